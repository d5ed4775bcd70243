-- Nobody's names, functions and triggers run with somebody else's privileges.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
SET client_min_messages = notice;
\set SHOW_CONTEXT never
CREATE ROLE regress_millrace_admin LOGIN IN ROLE millrace_admin;
CREATE ROLE regress_millrace_guest;
CREATE SCHEMA priv AUTHORIZATION regress_millrace_admin;
CREATE SCHEMA guest AUTHORIZATION regress_millrace_guest;
SET ROLE regress_millrace_admin;
SELECT millrace.create_stream('priv');

-- An operator of the caller's is not used by push().
RESET ROLE;
SET ROLE regress_millrace_guest;
CREATE FUNCTION guest.equals(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'equals() as %', current_user; RETURN true; END $$;
CREATE OPERATOR guest.= (LEFTARG = text, RIGHTARG = text, FUNCTION = guest.equals);
SET search_path = guest, pg_catalog;
SELECT millrace.push('priv', '{}');
RESET search_path;
RESET ROLE;

-- A function in an expression changes no setting of those who come after it.
SET ROLE regress_millrace_admin;
CREATE FUNCTION priv.sets(value text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('search_path', 'priv, pg_catalog', false); RETURN value; END $$;
SELECT millrace.create_staging('priv.t', stream => 'priv', key => '{"id": ["$.id", "integer"]}', columns => '{"a": "$.a"}', computed => '{"a": ["priv.sets(raw.a)", "text"]}');
SELECT millrace.push('priv', '{"id": 1, "a": "x"}') > 0 AS pushed;
SELECT * FROM millrace.run_stream('priv');
SHOW search_path;

-- A deferred trigger runs at once as the owner of the table; a deferred constraint finds its message.
CREATE FUNCTION priv.tells() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'trigger as %', current_user; RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER tells AFTER INSERT ON priv.t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION priv.tells();
CREATE TABLE priv.known (a text PRIMARY KEY);
INSERT INTO priv.known VALUES ('x');
ALTER TABLE priv.t ADD FOREIGN KEY (a) REFERENCES priv.known DEFERRABLE INITIALLY DEFERRED;
SELECT millrace.push('priv', '{"id": 2, "a": "x"}') > 0 AS pushed;
SELECT millrace.push('priv', '{"id": 3, "a": "y"}') > 0 AS pushed;
RESET ROLE;
SET client_min_messages = warning;
SELECT * FROM millrace.run_stream('priv');
SET client_min_messages = notice;
SELECT sqlstate FROM millrace.dead_letter WHERE stream = 'priv';
SELECT millrace.push('priv', '{"id": 4, "a": "x"}') > 0 AS pushed;
SELECT * FROM millrace.run_stream('priv');
SELECT id, a FROM priv.t ORDER BY id;

-- What a role cannot see it cannot name, although definitions are kept by the extension's owner.
SET ROLE regress_millrace_admin;
SELECT millrace.create_staging('priv.u', stream => 'priv', key => '{"id": ["$.id", "integer"]}', expect => '{"hidden": "millrace_internal.nearest(''a'', ''{a}'') IS NOT NULL"}');
RESET ROLE;
SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'millrace_internal'::regnamespace AND has_function_privilege('regress_millrace_guest', p.oid, 'EXECUTE') ORDER BY 1;

-- The index of a mart's state calls nobody's functions.
SET ROLE regress_millrace_admin;
CREATE FUNCTION priv.twice(n bigint) RETURNS bigint IMMUTABLE LANGUAGE sql RETURN 2 * n;
SELECT millrace.create_mart('priv.m', 'SELECT a, priv.twice(count(*)) AS c, count(*) AS n FROM priv.t GROUP BY a', order_by => 'c');
SELECT millrace.create_mart('priv.m', 'SELECT a, priv.twice(count(*)) AS c, count(*) AS n FROM priv.t GROUP BY a', order_by => 'n DESC');

-- Keys are not arrays, under whatever name.
CREATE DOMAIN priv.list AS integer[];
SELECT millrace.create_staging('priv.v', stream => 'priv', key => '{"id": ["$.id", "priv.list"]}');
SELECT millrace.create_staging('priv.v', stream => 'priv', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer[]"]');
SET client_min_messages = warning;
SELECT millrace.drop_stream('priv', cascade => true);
RESET ROLE;
DROP SCHEMA priv, guest CASCADE;
DROP ROLE regress_millrace_admin, regress_millrace_guest;
