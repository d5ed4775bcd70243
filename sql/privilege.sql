-- Nobody's names, functions and triggers run with somebody else's privileges.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
SET client_min_messages = notice;
\set SHOW_CONTEXT never
CREATE ROLE regress_millrace_admin LOGIN IN ROLE millrace_admin;
CREATE ROLE regress_millrace_guest;
CREATE ROLE regress_millrace_other IN ROLE millrace_admin;
CREATE SCHEMA priv AUTHORIZATION regress_millrace_admin;
CREATE SCHEMA guest AUTHORIZATION regress_millrace_guest;
GRANT USAGE ON SCHEMA priv TO regress_millrace_other;
GRANT ALL ON SCHEMA guest TO regress_millrace_other;
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

-- Who may read a view may call what it calls.
SET ROLE regress_millrace_guest;
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'millrace'::regnamespace AND c.relkind = 'v' AND has_table_privilege(c.oid, 'SELECT') LOOP
        EXECUTE format('SELECT * FROM millrace.%I', name);
    END LOOP;
END
$$;
RESET ROLE;

-- Who does not see all rows of a table keeps nothing from it, and is shown nothing of what it was made of; and nobody lets others' batches fail by what he may not read.
SET ROLE regress_millrace_admin;
SELECT millrace.create_staging('priv.o', stream => 'priv', log => true, key => '{"id": ["$.id", "integer"]}', columns => '{"a": "$.a"}');
SELECT millrace.create_mart('priv.counts', 'SELECT a, count(*) AS n FROM priv.o GROUP BY a');
ALTER TABLE priv.o ENABLE ROW LEVEL SECURITY;
CREATE POLICY visible ON priv.o USING (a = 'x');
GRANT SELECT ON priv.counts TO regress_millrace_other;
RESET ROLE;
SET ROLE regress_millrace_other;
SELECT millrace.create_model('guest.unread', 'item_knn', 'SELECT id, a FROM priv.o');
SELECT millrace.create_model('guest.live', 'item_knn', 'SELECT id, a FROM priv.o', online => true);
RESET ROLE;
GRANT SELECT ON priv.o, priv.o_log TO regress_millrace_other;
SET ROLE regress_millrace_other;
SELECT millrace.create_hub('guest.h', source => 'priv.o', business_key => '{id}');
SELECT millrace.create_mart('guest.m', 'SELECT a, count(*) AS n FROM priv.o GROUP BY a');
SELECT millrace.create_rule('guest', kind => 'match', source => 'priv.o', predicate => 'true');
SELECT millrace.create_model('guest.live', 'item_knn', 'SELECT id, a FROM priv.o', online => true);
SELECT millrace.create_model('guest.some', 'item_knn', 'SELECT id, a FROM priv.o');
SELECT model, profiles FROM millrace.model_status ORDER BY model::text;
SELECT * FROM millrace.verify('priv.o');
SELECT * FROM millrace.trace('priv.o', '{"id": 1}');
SELECT * FROM millrace.trace('priv.counts', '{"a": "y"}');
SELECT millrace.drop_model(model::regclass) FROM millrace.model_status;
RESET ROLE;
SELECT millrace.push('priv', '{"id": 5, "a": "x"}') > 0 AS pushed;
SELECT * FROM millrace.run_stream('priv');

-- Who lacks a right that he had is said, by what he has declared.
GRANT SELECT ON priv.t TO regress_millrace_other;
SET ROLE regress_millrace_other;
SELECT millrace.create_mart('guest.m', 'SELECT a, count(*) AS n FROM priv.t GROUP BY a');
RESET ROLE;
SELECT messages FROM millrace.run_stream('priv');
REVOKE SELECT ON priv.t FROM regress_millrace_other;
SELECT millrace.push('priv', '{"id": 6, "a": "x"}') > 0 AS pushed;
\set SHOW_CONTEXT errors
SELECT messages FROM millrace.run_stream('priv');
\set SHOW_CONTEXT never
SET ROLE regress_millrace_other;
SELECT millrace.drop_table('guest.m');
RESET ROLE;
SELECT messages FROM millrace.run_stream('priv');

-- What models keep their owner may verify, and look at before it comes, though functions of ours read it.
SET ROLE regress_millrace_admin;
SET client_min_messages = warning;
SELECT millrace.create_model('priv.model', 'item_knn', 'SELECT id / 3, a FROM priv.o');
SELECT millrace.create_model('priv.live', 'item_knn', 'SELECT id / 3, a FROM priv.o', online => true);
SET client_min_messages = notice;
SELECT count(millrace.push('priv', json_build_object('id', i, 'a', chr(ascii('a') + i % 5)))) FROM generate_series(10, 19) i;
SELECT messages FROM millrace.run_stream('priv');
SELECT relation, missing, unexpected FROM unnest('{priv.model,priv.live}'::regclass[]) AS m, millrace.verify(m);
SELECT relation, change, before, after FROM millrace.preview('priv', payload => '{"id": 20, "a": "z"}') WHERE layer = 'model' ORDER BY 1;
RESET ROLE;

-- The index of a mart's state calls nobody's functions.
SET ROLE regress_millrace_admin;
CREATE FUNCTION priv.twice(n bigint) RETURNS bigint IMMUTABLE LANGUAGE sql RETURN 2 * n;
SELECT millrace.create_mart('priv.m', 'SELECT a, priv.twice(count(*)) AS c, count(*) AS n FROM priv.t GROUP BY a', order_by => 'c');
SELECT millrace.create_mart('priv.m', 'SELECT a, priv.twice(count(*)) AS c, count(*) AS n FROM priv.t GROUP BY a', order_by => 'n DESC');

-- What an erasure or a rebuild calls of somebody's functions it calls as he, and his operators not at all; what it works with he cannot prepare for it.
CREATE FUNCTION priv.checks(value text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN IF current_user <> 'regress_millrace_admin' THEN RAISE NOTICE 'checks() as %', current_user; END IF; RETURN true; END $$;
CREATE FUNCTION priv.seen(n bigint) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN IF current_user <> 'regress_millrace_admin' THEN RAISE NOTICE 'seen() as %', current_user; END IF; RETURN true; END $$;
CREATE FUNCTION priv.same(uuid, uuid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN IF current_user <> 'regress_millrace_admin' THEN RAISE NOTICE 'same() as %', current_user; END IF; RETURN true; END $$;
CREATE FUNCTION priv.plants() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN CREATE TRIGGER planted BEFORE INSERT ON millrace_state.erase_rule_key EXECUTE FUNCTION priv.tells(); RETURN OLD; END $$;
CREATE DOMAIN priv.name AS text CHECK (priv.checks(value));
SELECT millrace.create_stream('own');
SELECT millrace.create_staging('priv.p', stream => 'own', key => '{"id": ["$.id", "integer"]}', columns => '{"who": ["$.who", "priv.name"], "city": "$.city"}', log => true);
SELECT millrace.create_mart('priv.named', 'SELECT who, count(*) AS n FROM priv.p GROUP BY who HAVING priv.seen(count(*))');
SELECT millrace.create_rule('named', kind => 'match', source => 'priv.p', predicate => 'true');
RESET ROLE;
SELECT millrace.create_hub('priv.h_city', source => 'priv.p', business_key => '{city}');
SET ROLE regress_millrace_admin;
SET client_min_messages = warning;
SELECT count(millrace.push('own', json_build_object('id', i, 'who', chr(96 + i), 'city', chr(64 + i)))) FROM generate_series(1, 3) i;
SELECT messages FROM millrace.run_stream('own');
SET client_min_messages = notice;
SELECT millrace.rebuild('priv.named');
CREATE OPERATOR priv.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = priv.same);
SET search_path = priv, pg_catalog;
SELECT * FROM millrace.erase('own', '{"who": "a"}');
RESET search_path;
RESET ROLE;
SELECT city FROM priv.h_city WHERE length(city) = 1 ORDER BY city;
SET ROLE regress_millrace_admin;
CREATE TRIGGER plants BEFORE DELETE ON priv.p FOR EACH ROW EXECUTE FUNCTION priv.plants();
SET client_min_messages = warning;
SELECT * FROM millrace.erase('own', '{"who": "b"}');
SET client_min_messages = notice;
DROP TRIGGER plants ON priv.p;

-- Keys are not arrays, under whatever name.
CREATE DOMAIN priv.list AS integer[];
SELECT millrace.create_staging('priv.v', stream => 'priv', key => '{"id": ["$.id", "priv.list"]}');
SELECT millrace.create_staging('priv.v', stream => 'priv', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer[]"]');
SET client_min_messages = warning;
RESET ROLE;
SELECT millrace.drop_table('priv.h_city');
SET ROLE regress_millrace_admin;
SELECT millrace.drop_stream('own', cascade => true);
SELECT millrace.drop_stream('priv', cascade => true);
RESET ROLE;
DROP SCHEMA priv, guest CASCADE;
DROP ROLE regress_millrace_admin, regress_millrace_guest, regress_millrace_other;
