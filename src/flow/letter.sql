-- Dead letters as users see them: of streams and of channels.

CREATE VIEW millrace.dead_letter WITH (security_barrier) AS
SELECT l.id, s.name AS stream, c.name AS channel, g.relation::text AS staging, r.name AS rule, l.kind, l.state, l.element, l.expectation, l.topic, l.partition, l.epoch, l.position, l.message_time, l.op,
       l.key, l.value, l.headers, l.sqlstate, l.message, l.detail, l.hint, l.attempts, l.at
FROM millrace.letter l
LEFT JOIN millrace.stream s ON s.id = l.stream_id
LEFT JOIN millrace.channel c ON c.id = l.channel_id
LEFT JOIN millrace.staging g ON g.id = l.staging_id
LEFT JOIN millrace.rule r ON r.target_id = l.rule_id
WHERE l.state <> 'waiting' AND (pg_catalog.pg_has_role(coalesce(s.owner, c.owner), 'USAGE') OR pg_catalog.pg_has_role('millrace_admin', 'USAGE'));
COMMENT ON VIEW millrace.dead_letter IS 'messages, objects and rows that could not be taken, as they came, messages that could not be delivered, and rows that a rule could not judge, with the reason';
COMMENT ON COLUMN millrace.dead_letter.kind IS 'message: cannot be decoded; object: this staging table cannot take it; row: fails an expectation; delivery: could not be sent over this channel; rule: was taken, but this rule could not judge it';
COMMENT ON COLUMN millrace.dead_letter.state IS 'open, or superseded: when it was retried a newer version of its object had come';
GRANT SELECT ON millrace.dead_letter TO PUBLIC;

CREATE FUNCTION millrace_internal.discard(caller regrole, ids bigint[]) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    discarded bigint;
BEGIN
    DELETE FROM millrace.letter l
    WHERE l.id = ANY (ids) AND l.state <> 'waiting'
      AND pg_has_role(caller, coalesce((SELECT s.owner FROM millrace.stream s WHERE s.id = l.stream_id),
                                       (SELECT c.owner FROM millrace.channel c WHERE c.id = l.channel_id)), 'USAGE');
    GET DIAGNOSTICS discarded = ROW_COUNT;
    RETURN discarded;
END
$$;
COMMENT ON FUNCTION millrace_internal.discard(regrole, bigint[]) IS 'the other half of millrace.discard';
CREATE FUNCTION millrace.discard(ids bigint[]) RETURNS bigint
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.discard(bigint[]) IS 'removes dead letters of one''s streams and channels for good; returns how many';
CREATE FUNCTION millrace.discard(id bigint) RETURNS bigint
LANGUAGE sql STRICT AS 'SELECT millrace.discard(ARRAY[id])';
COMMENT ON FUNCTION millrace.discard(bigint) IS 'removes one dead letter for good';
REVOKE ALL ON FUNCTION millrace.discard(bigint[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION millrace.discard(bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.discard(bigint[]), millrace.discard(bigint) TO millrace_admin;
