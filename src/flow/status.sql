-- What runs, how far it is and where its time goes: tables that workers write and views that everybody reads.
-- View columns have types that Trino and Grafana read.

CREATE TABLE millrace.worker (
    stream_id integer NOT NULL REFERENCES millrace.stream ON DELETE CASCADE,
    worker integer NOT NULL,
    state text NOT NULL CHECK (state IN ('starting', 'running', 'waiting', 'failed', 'stopped')),
    since timestamptz NOT NULL,
    pid integer,
    started_at timestamptz,
    -- In a row, without a batch or some seconds of quiet in between: the back-off counts from it.
    failures integer NOT NULL DEFAULT 0,
    last_error text,
    last_error_at timestamptz,
    sqlstate text,
    detail text,
    hint text,
    context text,
    PRIMARY KEY (stream_id, worker)
) WITH (fillfactor = 50);
COMMENT ON TABLE millrace.worker IS 'what each stream worker does, and why it does not';

CREATE TABLE millrace.stage_time (
    stream_id integer NOT NULL REFERENCES millrace.stream ON DELETE CASCADE,
    worker integer NOT NULL,
    stage text NOT NULL,
    batches bigint NOT NULL DEFAULT 0,
    rows bigint NOT NULL DEFAULT 0,
    seconds double precision NOT NULL DEFAULT 0,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (stream_id, worker, stage)
) WITH (fillfactor = 50);
COMMENT ON TABLE millrace.stage_time IS 'batches, rows and seconds by stage of the flow';

-- Messages and those of them that made dead letters, lately: what max_dead_letter_share is judged by.
CREATE TABLE millrace.letter_rate (
    stream_id integer NOT NULL REFERENCES millrace.stream ON DELETE CASCADE,
    worker integer NOT NULL,
    messages bigint NOT NULL,
    failed bigint NOT NULL,
    PRIMARY KEY (stream_id, worker)
) WITH (fillfactor = 50);
COMMENT ON TABLE millrace.letter_rate IS 'how many of the last messages of each worker made dead letters; for streams that are to stop at too many';

CREATE VIEW millrace.worker_status WITH (security_barrier) AS
SELECT s.name AS stream, w.worker, w.state, w.since, w.pid, w.started_at, w.failures, w.last_error, w.last_error_at, w.sqlstate, w.detail,
       w.hint, w.context
FROM millrace.worker w JOIN millrace.stream s ON s.id = w.stream_id
WHERE millrace_internal.may_watch(s.owner);
COMMENT ON VIEW millrace.worker_status IS 'the workers of each stream: what they do, and their last error';
COMMENT ON COLUMN millrace.worker_status.state IS
    'starting, running, waiting (for its source, or for the next attempt after an error), failed (until something is changed), stopped';
COMMENT ON COLUMN millrace.worker_status.failures IS 'in a row; a batch or ten quiet seconds end the row';

CREATE VIEW millrace.stream_status WITH (security_barrier) AS
SELECT s.name AS stream,
       CASE WHEN s.fence <> millrace_internal.fence() THEN 'fenced'
            WHEN NOT s.enabled THEN CASE WHEN w.alive > 0 THEN 'stopping' ELSE 'stopped' END
            WHEN millrace_internal.background() IS NOT NULL THEN 'waiting'
            WHEN w.failed > 0 THEN 'failed'
            WHEN w.waiting > 0 THEN 'waiting'
            WHEN w.running = s.workers THEN 'running'
            ELSE 'starting' END AS state,
       w.since,
       CASE WHEN s.fence <> millrace_internal.fence() THEN 'the stream belongs to another instance; see millrace.adopt()'
            WHEN s.enabled AND millrace_internal.background() = 'preload' THEN 'millrace is not in shared_preload_libraries'
            WHEN s.enabled AND millrace_internal.background() = 'databases' THEN 'the database is not in millrace.databases'
            WHEN NOT s.enabled AND s.stop_reason IS NOT NULL THEN s.stop_reason
            ELSE e.last_error END AS last_error,
       e.last_error_at, e.sqlstate, lag.messages AS lag_messages, lag.seconds AS lag_seconds,
       (SELECT coalesce(sum(t.rows), 0)::bigint FROM millrace.stage_time t WHERE t.stream_id = s.id AND t.stage = 'fetch') AS messages,
       (SELECT count(*) FROM millrace.letter l WHERE l.stream_id = s.id AND l.state = 'open' AND l.kind <> 'rule') AS dead_letters,
       s.workers, w.running::integer AS workers_running,
       pg_catalog.pg_get_userbyid(s.owner)::text AS owner, s.server::text AS server, s.epoch
FROM millrace.stream s
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE w.state = 'failed') AS failed, count(*) FILTER (WHERE w.state = 'waiting') AS waiting,
           count(*) FILTER (WHERE w.state = 'running') AS running, count(w.pid) AS alive, max(w.since) AS since
    FROM millrace.worker w WHERE w.stream_id = s.id AND w.worker < s.workers) AS w
LEFT JOIN LATERAL (
    SELECT w.last_error, w.last_error_at, w.sqlstate FROM millrace.worker w
    WHERE w.stream_id = s.id AND w.last_error IS NOT NULL
    ORDER BY w.state IN ('failed', 'waiting') DESC, w.last_error_at DESC LIMIT 1) AS e ON true
CROSS JOIN LATERAL (
    SELECT CASE WHEN s.server IS NULL THEN (SELECT count(*) FROM millrace.inbox i WHERE i.stream_id = s.id)
                ELSE (SELECT sum(greatest(p.high_watermark - greatest(p.position, p.reached), 0))::bigint
                      FROM millrace.stream_position p WHERE p.stream_id = s.id AND p.topic <> '') END AS messages,
           CASE WHEN s.server IS NULL THEN
                     (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(i.message_time))::double precision, 0)
                      FROM millrace.inbox i WHERE i.stream_id = s.id)
                ELSE (SELECT max(CASE WHEN p.high_watermark <= greatest(p.position, p.reached) THEN 0
                                      ELSE extract(epoch FROM clock_timestamp() - p.last_time)::double precision END)
                      FROM millrace.stream_position p WHERE p.stream_id = s.id) END AS seconds) AS lag
WHERE millrace_internal.may_watch(s.owner);
COMMENT ON VIEW millrace.stream_status IS 'streams: whether they run, what is wrong, how far they lie behind';
COMMENT ON COLUMN millrace.stream_status.state IS
    'running, starting, waiting (for its source, or for the next attempt after an error), failed (until something is changed), stopping, stopped, fenced (see adopt())';
COMMENT ON COLUMN millrace.stream_status.lag_messages IS 'messages that are there and not consumed yet; NULL: not known yet, or of a PostgreSQL source: see replication_status';
COMMENT ON COLUMN millrace.stream_status.lag_seconds IS 'age of the oldest message of an inbox, or of the last one consumed when more are there';
COMMENT ON COLUMN millrace.stream_status.messages IS 'messages consumed since reset_stage_stats(), replays included';

CREATE VIEW millrace.stage_stats WITH (security_barrier) AS
SELECT s.name AS stream, t.worker, t.stage, t.batches, t.rows, t.seconds,
       CASE WHEN t.seconds > 0 THEN t.rows / t.seconds END AS rows_per_second, t.since
FROM millrace.stage_time t JOIN millrace.stream s ON s.id = t.stream_id
WHERE millrace_internal.may_watch(s.owner)
ORDER BY s.name, t.worker, array_position('{fetch, decode, enrich, map, staging, vault, mart, alert, position, commit}'::text[], t.stage);
COMMENT ON VIEW millrace.stage_stats IS 'time and rows by stage of the flow since reset_stage_stats()';

CREATE VIEW millrace.target_status WITH (security_barrier) AS
SELECT coalesce((SELECT r.name FROM millrace.rule r WHERE r.target_id = t.id), (SELECT k.name FROM millrace.sink k WHERE k.target_id = t.id), t.relation::text) AS relation, t.kind, t.state, greatest(t.horizon, t.redefined_at) AS horizon, (SELECT coalesce(sum(c.skipped), 0)::bigint FROM millrace.target_counter c WHERE c.target_id = t.id) AS skipped,
       (SELECT string_agg(g.relation::text, ', ' ORDER BY s.ordinal) FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = t.id) AS sources,
       t.owner::text AS owner
FROM millrace.target t
WHERE millrace_internal.may_watch(t.owner);
COMMENT ON VIEW millrace.target_status IS 'hubs, links, satellites, point-in-time tables, marts, rules, sinks and models that batches keep: whether they are filled, and what they left out';
COMMENT ON COLUMN millrace.target_status.state IS 'new until the first batch after the declaration, filling until it has what was there before (see backfill_status), then active';
COMMENT ON COLUMN millrace.target_status.horizon IS 'from when on it has what its sources say, as it is defined now; -infinity: from their beginning';
COMMENT ON COLUMN millrace.target_status.skipped IS 'rows without the key that a hub needs, or without any key of a link';

CREATE VIEW millrace.channel_status WITH (security_barrier) AS
SELECT c.name AS channel, c.kind, c.server::text AS server,
       CASE WHEN NOT millrace_internal.may_send(c) THEN 'fenced'
            WHEN millrace_internal.background() IS NOT NULL THEN 'stopped'
            WHEN s.problem IS NOT NULL THEN 'failed'
            WHEN s.failures > 0 THEN 'failing'
            WHEN s.not_before > clock_timestamp() THEN 'paused'
            WHEN w.messages + k.messages > 0 THEN 'sending'
            ELSE 'idle' END AS state,
       w.messages AS waiting, k.messages AS sending, least(w.oldest, k.oldest) AS oldest,
       (SELECT count(*) FROM millrace.delivery d WHERE d.channel_id = c.id AND d.state = 'sent' AND d.done_at > clock_timestamp() - interval '1 minute') AS sent_last_minute,
       s.sent, s.last_sent_at, s.failures, s.not_before AS next_at,
       CASE WHEN NOT millrace_internal.may_send(c) THEN 'the channel belongs to another instance; see millrace.adopt()' ELSE coalesce(s.problem, s.last_error) END AS last_error,
       s.last_error_at, (SELECT count(*) FROM millrace.letter l WHERE l.channel_id = c.id AND l.state = 'open') AS dead_letters, pg_catalog.pg_get_userbyid(c.owner)::text AS owner
FROM millrace.channel c
JOIN millrace.channel_state s ON s.channel_id = c.id
-- Each by an index of its own: what was sent is not gone through.
CROSS JOIN LATERAL (
    SELECT count(*) AS messages, min(m.created_at) AS oldest FROM millrace.outbox_message m WHERE m.channel_id = c.id AND m.state = 'waiting') AS w
CROSS JOIN LATERAL (
    SELECT count(*) AS messages, min(m.created_at) AS oldest FROM millrace.outbox_message m WHERE m.channel_id = c.id AND m.state = 'claimed') AS k
WHERE millrace_internal.may_watch(c.owner);
COMMENT ON VIEW millrace.channel_status IS 'channels: what waits, how fast it goes, what is wrong';
COMMENT ON COLUMN millrace.channel_status.state IS
    'idle, sending, failing (one message at a time is tried), paused (told to wait), failed (until something is changed), stopped (nothing runs in the background), fenced (see adopt())';
COMMENT ON COLUMN millrace.channel_status.waiting IS 'messages that nobody has begun to send';
COMMENT ON COLUMN millrace.channel_status.sending IS 'messages that are being sent, or are tried again later';
COMMENT ON COLUMN millrace.channel_status.failures IS 'in a row';
COMMENT ON COLUMN millrace.channel_status.next_at IS 'when it is tried again';

CREATE VIEW millrace.health WITH (security_barrier) AS
SELECT s.failing + c.failing + r.suspended + k.suspended = 0 AS healthy, s.failing AS streams_failing, c.failing AS channels_failing, r.suspended AS rules_suspended, k.suspended AS sinks_suspended
FROM (SELECT count(*) AS failing FROM millrace.stream_status v
      WHERE v.state IN ('waiting', 'failed', 'fenced') OR EXISTS (SELECT FROM millrace.stream f WHERE f.name = v.stream AND NOT f.enabled AND f.stop_reason IS NOT NULL)) AS s,
     -- A channel over which nothing is to be sent any more is no trouble, and may have nothing else to show that it works again.
     (SELECT count(*) AS failing FROM millrace.channel_status v
      WHERE v.state IN ('failed', 'fenced', 'stopped') OR (v.state = 'failing' AND v.waiting + v.sending > 0)) AS c,
     (SELECT count(*) AS suspended FROM millrace.rule_status v WHERE v.state = 'suspended') AS r,
     (SELECT count(*) AS suspended FROM millrace.sink_status v WHERE v.state = 'suspended') AS k;
COMMENT ON VIEW millrace.health IS 'one row that says whether all works of what one may watch';
COMMENT ON COLUMN millrace.health.healthy IS 'no stream and no channel fails, and no rule and no sink is suspended';
COMMENT ON COLUMN millrace.health.streams_failing IS 'streams that wait for their source or after an error, have failed, are fenced, or have stopped themselves';
COMMENT ON COLUMN millrace.health.channels_failing IS 'channels over which something is to be sent that could not be sent at the last attempt, or nothing can be';

GRANT SELECT ON millrace.health, millrace.worker_status, millrace.stream_status, millrace.stage_stats, millrace.target_status, millrace.channel_status TO PUBLIC;

-- millrace.reset_stage_stats()
CREATE FUNCTION millrace_internal.reset_stage_stats(caller regrole, stream text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF stream IS NOT NULL THEN
        PERFORM millrace_internal.own_stream(caller, stream);
    END IF;
    DELETE FROM millrace.stage_time t USING millrace.stream s
    WHERE s.id = t.stream_id AND (s.name = reset_stage_stats.stream OR reset_stage_stats.stream IS NULL)
      AND pg_has_role(caller, s.owner, 'USAGE');
END
$$;
COMMENT ON FUNCTION millrace_internal.reset_stage_stats(regrole, text) IS 'the other half of millrace.reset_stage_stats()';

CREATE FUNCTION millrace.reset_stage_stats(stream text DEFAULT NULL) RETURNS void
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.reset_stage_stats(text) IS 'counts time and rows by stage from now on, for one stream or all of one''s streams';
REVOKE ALL ON FUNCTION millrace.reset_stage_stats(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.reset_stage_stats(text) TO millrace_admin;

-- The other halves are for nobody but the extension's owner; what its views call is for those who read them.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA millrace_internal FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace_internal.fence(), millrace_internal.may_watch(regrole), millrace_internal.background(), millrace_internal.may_send(millrace.channel), millrace_internal.timeline(),
    millrace_internal.model_copies(), millrace_internal.training_progress(),
    millrace_internal.postgres_options(integer) TO PUBLIC;
