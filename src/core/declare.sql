-- What the declaring functions in millrace_internal stand on.  They run as the extension's owner with the
-- caller's role as first argument; what belongs to the caller is done as the caller.

CREATE FUNCTION millrace_internal.execute_as(role regrole, statement text) RETURNS bigint
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_execute_as';
COMMENT ON FUNCTION millrace_internal.execute_as(regrole, text) IS
    'runs one statement, in which every name is qualified, with the privileges of a role; returns how many rows it was about';

CREATE FUNCTION millrace_internal.value_as(role regrole, query text, kind anyelement) RETURNS anyelement
LANGUAGE C AS 'MODULE_PATHNAME', 'millrace_value_as';
COMMENT ON FUNCTION millrace_internal.value_as(regrole, text, anyelement) IS
    'the one value that a query gives, in which every name is qualified, with the privileges of a role; it is of the type of the last argument';

-- ANALYZE reads 300 rows for each unit of the highest target among a table's columns.  Tables that are written all the time are analyzed often, most
-- of all while they are young, beside a worker that wants the processor.
CREATE FUNCTION millrace_internal.fewer_statistics(relation regclass, names text[] DEFAULT NULL) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('ALTER TABLE %s %s', relation, string_agg(format('ALTER %I SET STATISTICS 20', a.attname), ', ' ORDER BY a.attnum))
    FROM pg_attribute a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped AND (names IS NULL OR a.attname = ANY (names));
$$;
COMMENT ON FUNCTION millrace_internal.fewer_statistics(regclass, text[]) IS
    'the statement that makes ANALYZE look at 6000 rows of a table instead of 30000; for columns that were added, their names';

CREATE FUNCTION millrace_internal.qualified_query(role regrole, query text, is_kept boolean DEFAULT true) RETURNS text
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_qualified_query';
COMMENT ON FUNCTION millrace_internal.qualified_query(regrole, text, boolean) IS
    'a SELECT as a role means it under the search_path of whoever called the declaring function, with every name qualified; one that is kept reads nothing temporary';

CREATE FUNCTION millrace_internal.query_columns(query text, OUT number integer, OUT name text, OUT type regtype) RETURNS SETOF record
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_query_columns';
COMMENT ON FUNCTION millrace_internal.query_columns(text) IS 'names and types of the columns that a SELECT gives, in which every name is qualified';

CREATE FUNCTION millrace_internal.declaring_path() RETURNS text
LANGUAGE C STABLE AS 'MODULE_PATHNAME', 'millrace_declaring_path';
COMMENT ON FUNCTION millrace_internal.declaring_path() IS 'the search_path under which the declaring function was called';

CREATE FUNCTION millrace_internal.qualified_name(name text) RETURNS text
LANGUAGE C STRICT STABLE AS 'MODULE_PATHNAME', 'millrace_qualified_name';
COMMENT ON FUNCTION millrace_internal.qualified_name(text) IS
    'a possibly unqualified name of a table to be made, as schema.table quoted where needed, under the caller''s search_path';

CREATE FUNCTION millrace_internal.relation(name text) RETURNS regclass
LANGUAGE C STRICT STABLE AS 'MODULE_PATHNAME', 'millrace_relation';
COMMENT ON FUNCTION millrace_internal.relation(text) IS 'the relation of that name under the caller''s search_path, or NULL';

CREATE FUNCTION millrace_internal.nearest(word text, known text[]) RETURNS text
LANGUAGE C STRICT IMMUTABLE AS 'MODULE_PATHNAME', 'millrace_nearest';
COMMENT ON FUNCTION millrace_internal.nearest(text, text[]) IS 'the known word that was probably meant, or NULL';

-- Each member of `given` (a JSON object) must be one of `known`, and none may stand twice.
CREATE FUNCTION millrace_internal.check_members(what text, given json, known text[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    member record;
    near text;
BEGIN
    IF given IS NULL THEN
        RETURN;
    END IF;
    IF json_typeof(given) <> 'object' THEN
        RAISE EXCEPTION '% must be a JSON object', what USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR member IN SELECT key, count(*) AS n FROM json_each(given) GROUP BY key ORDER BY key LOOP
        IF member.n > 1 THEN
            RAISE EXCEPTION 'duplicate key "%" in %', member.key, what USING ERRCODE = 'invalid_parameter_value';
        END IF;
        IF known IS NOT NULL AND NOT member.key = ANY (known) THEN
            near := millrace_internal.nearest(member.key, known);
            RAISE EXCEPTION 'unknown option "%" in %', member.key, what
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = CASE WHEN near IS NULL THEN format('Known are: %s.', array_to_string(known, ', '))
                                  ELSE format('Perhaps you meant "%s".', near) END;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.check_members(text, json, text[]) IS
    'raises an error for an unknown or repeated member of a JSON object, naming the nearest known one';

-- The value must be one of a few words.
CREATE FUNCTION millrace_internal.check_word(argument text, word text, known text[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    near text;
BEGIN
    IF word IS NULL OR NOT word = ANY (known) THEN
        near := millrace_internal.nearest(coalesce(word, ''), known);
        RAISE EXCEPTION 'invalid value "%" for argument %', coalesce(word, 'NULL'), argument
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = CASE WHEN near IS NULL THEN format('Known are: %s.', array_to_string(known, ', '))
                              ELSE format('Perhaps you meant "%s".', near) END;
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.check_word(text, text, text[]) IS
    'raises an error for a word that is not one of the known ones, naming the nearest';

CREATE FUNCTION millrace_internal.check_expression(what text, expression text) RETURNS void
LANGUAGE C STRICT IMMUTABLE AS 'MODULE_PATHNAME', 'millrace_check_expression';
COMMENT ON FUNCTION millrace_internal.check_expression(text, text) IS
    'raises an error unless the text is one SQL expression and nothing else, so that it may be put into a statement';

CREATE FUNCTION millrace_internal.check_query(what text, query text) RETURNS void
LANGUAGE C STRICT IMMUTABLE AS 'MODULE_PATHNAME', 'millrace_check_query';
COMMENT ON FUNCTION millrace_internal.check_query(text, text) IS
    'raises an error unless the text is one SELECT and nothing else';

CREATE FUNCTION millrace_internal.check_names(what text, query text) RETURNS void
LANGUAGE C STRICT STABLE AS 'MODULE_PATHNAME', 'millrace_check_names';
COMMENT ON FUNCTION millrace_internal.check_names(text, text) IS
    'raises an error unless each column of a SELECT, in which every name is qualified, has a name of its own';

CREATE FUNCTION millrace_internal.check_stable(kind text, id integer) RETURNS void
LANGUAGE C STRICT STABLE AS 'MODULE_PATHNAME', 'millrace_check_stable';
COMMENT ON FUNCTION millrace_internal.check_stable(text, integer) IS
    'raises an error when an expression of a definition would not give the same result whenever it is computed';

CREATE FUNCTION millrace_internal.type_name(name text) RETURNS text
LANGUAGE C STRICT STABLE AS 'MODULE_PATHNAME', 'millrace_type_name';
COMMENT ON FUNCTION millrace_internal.type_name(text) IS
    'a type as the caller names it, in the spelling that means the same under every search_path';

-- The caller must own what he changes, as PostgreSQL asks for tables.
CREATE FUNCTION millrace_internal.check_owner(caller regrole, owner regrole, what text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT pg_has_role(caller, owner, 'USAGE') THEN
        RAISE EXCEPTION 'must be owner of %', what USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.check_owner(regrole, regrole, text) IS 'raises an error unless the caller has the privileges of the owner';

CREATE FUNCTION millrace_internal.has_row_security(role regrole, relation regclass) RETURNS boolean
LANGUAGE C STRICT STABLE AS 'MODULE_PATHNAME', 'millrace_has_row_security';
COMMENT ON FUNCTION millrace_internal.has_row_security(regrole, regclass) IS 'whether policies decide which rows of a table a role sees';

-- What is kept from a table, and shown of it, is of all of its rows.
CREATE FUNCTION millrace_internal.check_reader(role regrole, relation regclass) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT has_table_privilege(role, relation, 'SELECT') THEN
        RAISE EXCEPTION 'permission denied for table %', relation USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF millrace_internal.has_row_security(role, relation) THEN
        RAISE EXCEPTION 'permission denied for rows of table %, which has row security for role %', relation, role USING ERRCODE = 'insufficient_privilege',
            DETAIL = 'What millrace keeps from a table, and shows of it, is of all of its rows.';
    END IF;
END
$$;
COMMENT ON FUNCTION millrace_internal.check_reader(regrole, regclass) IS 'raises an error unless a role may read all rows of a table';
