-- Running a stream in one's own transaction.

CREATE FUNCTION millrace.run_stream(name text, max_messages bigint DEFAULT NULL, OUT messages bigint, OUT batches bigint, OUT dead_letters bigint)
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_run_stream';
COMMENT ON FUNCTION millrace.run_stream(text, bigint) IS
    'consumes what is there now in the caller''s transaction; for the stream''s owner and its members';
REVOKE ALL ON FUNCTION millrace.run_stream(text, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.run_stream(text, bigint) TO millrace_admin;

CREATE FUNCTION millrace.retry(ids bigint[], OUT taken bigint, OUT superseded bigint, OUT refused bigint)
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_retry';
COMMENT ON FUNCTION millrace.retry(bigint[]) IS
    'maps dead letters of one''s streams again, with their version and position; what is taken now is removed, what a newer version has overtaken is closed; those of channels are sent again, out of order';
CREATE FUNCTION millrace.retry(id bigint, OUT taken bigint, OUT superseded bigint, OUT refused bigint)
LANGUAGE sql STRICT AS 'SELECT * FROM millrace.retry(ARRAY[id])';
COMMENT ON FUNCTION millrace.retry(bigint) IS 'maps one dead letter again';
CREATE FUNCTION millrace.retry(filter text, OUT taken bigint, OUT superseded bigint, OUT refused bigint)
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_retry_filter';
COMMENT ON FUNCTION millrace.retry(text) IS 'maps those dead letters again that an SQL expression over millrace.dead_letter finds';
CREATE FUNCTION millrace.discard(filter text) RETURNS bigint
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_discard_filter';
COMMENT ON FUNCTION millrace.discard(text) IS 'removes those dead letters for good that an SQL expression over millrace.dead_letter finds; returns how many';
REVOKE ALL ON FUNCTION millrace.retry(text), millrace.discard(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.retry(text), millrace.discard(text) TO millrace_admin;
REVOKE ALL ON FUNCTION millrace.retry(bigint[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION millrace.retry(bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.retry(bigint[]), millrace.retry(bigint) TO millrace_admin;
