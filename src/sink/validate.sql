-- What is wrong with a channel.

CREATE FUNCTION millrace_internal.check_channel(name text) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_check_channel';
COMMENT ON FUNCTION millrace_internal.check_channel(text) IS 'raises an error when a channel cannot be used: its owner, its token, its host';

CREATE FUNCTION millrace_internal.send_test(name text) RETURNS text
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_send_test';
COMMENT ON FUNCTION millrace_internal.send_test(text) IS 'sends one message over a channel now; returns what is wrong, NULL when it was taken';

CREATE FUNCTION millrace_internal.validate_channel(channel millrace.channel, send boolean)
    RETURNS TABLE (severity text, subject text, message text, hint text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    label text := 'channel ' || channel.name;
    problem text;
BEGIN
    RETURN QUERY SELECT 'error', label, 'it belongs to another instance: this database was restored, copied or promoted',
                        'When the original does not send any more, call millrace.adopt().' WHERE NOT millrace_internal.may_send(channel);
    RETURN QUERY SELECT 'warning', label, 'nothing is sent: ' || p.message, p.hint FROM millrace_internal.background_problem() p WHERE p.message IS NOT NULL;
    RETURN QUERY SELECT 'warning', label, format('it fails, %s time%s in a row: %s', s.failures, CASE s.failures WHEN 1 THEN '' ELSE 's' END, s.last_error),
                        'See millrace.delivery_attempt.'
    FROM millrace.channel_state s WHERE s.channel_id = channel.id AND s.failures > 0;
    RETURN QUERY SELECT 'warning', label, format('%s dead letter%s open', count(*), CASE count(*) WHEN 1 THEN ' is' ELSE 's are' END), 'See millrace.dead_letter, and millrace.retry() or millrace.discard().'
    FROM millrace.letter l WHERE l.channel_id = channel.id AND l.state = 'open' HAVING count(*) > 0;
    BEGIN
        PERFORM millrace_internal.check_channel(channel.name);
        IF send THEN
            problem := millrace_internal.send_test(channel.name);
            RETURN QUERY SELECT CASE WHEN problem IS NULL THEN 'info' ELSE 'error' END, label, coalesce('a test message was not taken: ' || problem, 'a test message was taken'), NULL::text;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS problem = PG_EXCEPTION_HINT;
        RETURN QUERY SELECT 'error', label, sqlerrm, nullif(problem, '');
    END;
END
$$;
COMMENT ON FUNCTION millrace_internal.validate_channel(millrace.channel, boolean) IS 'what is wrong with a channel, and with `send` what comes back when one message is sent';
