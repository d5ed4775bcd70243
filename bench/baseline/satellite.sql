-- One satellite of lifecycle.sql, whose rows say from when to when something was said: :said gives parent, at, content and
-- hash; :satellite, :parent and :attributes are its table, key column and the columns of its content.
--
-- Neighbours that say the same become one run. A run that begins where the table's last row before it says the same
-- lengthens that row, any other becomes a row. (As in millrace: what comes late may make a row too many, never one too few.)
DROP TABLE IF EXISTS run;
CREATE TEMP TABLE run AS
SELECT r.*, p.applied_at, p.hashdiff = r.hash AND p.applied_at <= r.since
	AND (r.before IS NULL OR (p.applied_at, p.hashdiff) >= (r.before, r.before_hash)) AS goes_on
FROM (SELECT parent, hash, min(at) AS since, max(at) AS until, (array_agg(content))[1] AS content,
		(array_agg(before ORDER BY at))[1] AS before, (array_agg(before_hash ORDER BY at))[1] AS before_hash
	  FROM (SELECT *, count(*) FILTER (WHERE before_hash IS DISTINCT FROM hash) OVER (PARTITION BY parent ORDER BY at, hash) AS number
			FROM (SELECT *, lag(at) OVER w AS before, lag(hash) OVER w AS before_hash FROM (:said) s WINDOW w AS (PARTITION BY parent ORDER BY at, hash)) l) n
	  GROUP BY parent, number, hash) r
	LEFT JOIN LATERAL (SELECT s.applied_at, s.hashdiff FROM :satellite s WHERE s.:parent = r.parent AND (s.applied_at, s.hashdiff) <= (r.until, r.hash)
		ORDER BY s.applied_at DESC, s.hashdiff DESC LIMIT 1) p ON true;
UPDATE :satellite s SET confirmed_at = r.until FROM run r
WHERE r.goes_on AND s.:parent = r.parent AND s.applied_at = r.applied_at AND s.hashdiff = r.hash AND s.confirmed_at < r.until;
INSERT INTO :satellite AS s (:parent, applied_at, hashdiff, confirmed_at, load_at, record_source, :attributes)
SELECT parent, since, hash, until, now(), 'orders', :content FROM run WHERE goes_on IS NOT TRUE ORDER BY parent, since, hash
ON CONFLICT (:parent, applied_at, hashdiff) DO UPDATE SET confirmed_at = greatest(s.confirmed_at, excluded.confirmed_at);
