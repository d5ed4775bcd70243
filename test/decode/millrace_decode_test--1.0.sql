\echo Use "CREATE EXTENSION millrace_decode_test" to load this file. \quit

-- Every path of a message or of the elements of for_each, as the plan finds it.
CREATE FUNCTION decode_json(value bytea, paths text[], for_each text DEFAULT NULL, key bytea DEFAULT NULL, headers text DEFAULT NULL)
    RETURNS TABLE (element integer, outer_element integer, path text, kind text, value_text text, json text)
    LANGUAGE C STABLE AS 'MODULE_PATHNAME', 'decode_test_decode';

-- The same by one plan for both messages, one after the other: nothing of the first may be left.
CREATE FUNCTION decode_after(first bytea, value bytea, paths text[], for_each text DEFAULT NULL)
    RETURNS TABLE (element integer, outer_element integer, path text, kind text, value_text text, json text)
    LANGUAGE C STABLE AS 'MODULE_PATHNAME', 'decode_test_decode_after';

-- A whole JSON text, or a text that is not JSON, as a value of a type, shown by the type's output function.
CREATE FUNCTION convert_json(value text, type text, format text DEFAULT NULL) RETURNS text
    LANGUAGE C STABLE AS 'MODULE_PATHNAME', 'decode_test_convert_json';
CREATE FUNCTION convert_plain(value text, type text, format text DEFAULT NULL) RETURNS text
    LANGUAGE C STABLE AS 'MODULE_PATHNAME', 'decode_test_convert_plain';

-- The spelling of a path.
CREATE FUNCTION path_text(path text) RETURNS text
    LANGUAGE C STRICT STABLE AS 'MODULE_PATHNAME', 'decode_test_path_text';

-- Microseconds a message; types NULL: without conversion.
CREATE FUNCTION decode_bench(messages bytea[], loops integer, paths text[], for_each text, types text[] DEFAULT NULL)
    RETURNS double precision LANGUAGE C STABLE AS 'MODULE_PATHNAME', 'decode_test_bench';
