-- Erasing a person.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
\set VERBOSITY default
\set SHOW_CONTEXT never
CREATE SCHEMA er;
SELECT millrace.create_stream('er');
SELECT millrace.create_staging('er.o', stream => 'er', key => '{"order_id": [["$.id", "$key"], "bigint"]}', version => '["$.v", "bigint"]', route => $$ kind IS DISTINCT FROM 'user' $$,
  columns => '{"kind": "$.kind", "user_id": "$.user.id", "user_name": "$.user.name", "n": ["$.n", "integer"]}', computed => '{"upper_name": ["upper(user_name)", "text"]}', log => true);
SELECT millrace.create_staging('er.i', stream => 'er', for_each => '$.items[*]', key => '{"oid": [["$.id", "$key"], "bigint"]}', version => '["$.v", "bigint"]', columns => '{"product": "@.p", "q": ["@.q", "integer"]}', log => true);
SELECT millrace.create_staging('er.u', stream => 'er', key => '{"id": ["$.id", "text"]}', version => '["$.v", "bigint"]', route => $$ kind = 'user' $$, columns => '{"kind": "$.kind", "name": "$.name"}');
SELECT millrace.create_hub('er.h_order', source => 'er.o', business_key => '{order_id}');
SELECT millrace.create_hub('er.h_user', source => 'er.o', business_key => '{user_id}');
SELECT millrace.create_hub('er.h_product', source => 'er.i', business_key => '{product}');
SELECT millrace.create_link('er.l_user', source => 'er.o', hubs => '{er.h_order, er.h_user}');
SELECT millrace.create_satellite('er.s_user', source => 'er.o', parent => 'er.h_user', attributes => '{user_name}');
SELECT millrace.create_satellite('er.s_user2', source => 'er.u', parent => 'er.h_user', columns => '{"user_id": "id"}', attributes => '{name}');
SELECT millrace.create_pit('er.p', hub => 'er.h_user', satellites => '{er.s_user}');
SELECT millrace.create_mart('er.m', 'SELECT product, count(DISTINCT oid) AS orders, sum(q) AS q FROM er.i GROUP BY product');
-- Order 1 is Ann's; 2 Bob's; 3 Ann's, which er.o cannot take and er.i does; 4 and 5 cannot be decoded.
SELECT count(millrace.push('er', m)) FROM unnest(ARRAY[
  '{"id": 1, "v": 1, "user": {"id": "u1", "name": "Ann"}, "n": 1, "items": [{"p": "a", "q": 1}, {"p": "b", "q": 2}]}',
  '{"id": 2, "v": 1, "user": {"id": "u2", "name": "Bob"}, "n": 1, "items": [{"p": "a", "q": 5}]}',
  '{"id": 3, "v": 1, "user": {"id": "u1", "name": "Ann"}, "n": "bad", "items": [{"p": "a", "q": 7}]}',
  '{"id": 4, "v": 1, "user": {"id": "u1"},', '{"id": 5, "v": 1, "user": {"id": "u11"},',
  '{"id": "u1", "v": 1, "kind": "user", "name": "Ann"}']) m;
SELECT messages, dead_letters FROM millrace.run_stream('er');
-- In the inbox: Ann's sixth order, a tombstone of her first, and one of Cy's.
SELECT count(millrace.push('er', m)) FROM unnest(ARRAY['{"id": 6, "v": 1, "user": {"id": "u1", "name": "Ann"}}', '{"id": 7, "v": 1, "user": {"id": "u3", "name": "Cy"}, "items": [{"p": "a", "q": 1}]}']) m;
SELECT millrace.push('er', NULL::text, key => '1') IS NOT NULL AS pushed;

SELECT * FROM millrace.erase('er', '{"usr_id": "u1"}');
SELECT * FROM millrace.erase('er', '{}');
SELECT * FROM millrace.erase('er', '{"user_id": null}');
SELECT * FROM millrace.erase('er', '{"upper_name": "ANN"}');
SELECT * FROM millrace.erase('er.i', '{"user_id": "u1"}');
SELECT * FROM millrace.erase('nobody', '{"user_id": "u1"}');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM millrace.erase('er', '{"user_id": "u1"}');
ROLLBACK;
CREATE ROLE er_stranger IN ROLE millrace_admin;
SET ROLE er_stranger;
SELECT * FROM millrace.erase('er', '{"user_id": "u1"}');
RESET ROLE;
DROP ROLE er_stranger;

INSERT INTO millrace.worker (stream_id, worker, state, since, last_error, detail) SELECT id, 0, 'failed', now(), 'invalid input syntax for type integer: "Ann"', 'Ann' FROM millrace.stream WHERE name = 'er';
SET client_min_messages = notice;
SELECT * FROM millrace.erase('er', '{"user_id": "u1"}');
SELECT last_error, detail FROM millrace.worker_status WHERE stream = 'er';
SELECT order_id, user_id FROM er.o;
SELECT order_id, user_id FROM er.o_log;
SELECT oid, product FROM er.i;
SELECT oid, product FROM er.i_log;
SELECT * FROM er.m;
SELECT product FROM er.h_product_current ORDER BY 1;
SELECT user_id FROM er.h_user_current;
SELECT order_id, user_id FROM er.l_user_current;
SELECT user_id, user_name FROM er.s_user_current;
SELECT (xpath('//h/text()', query_to_xml(format('SELECT u.user_id AS h FROM millrace_state.pit_%s s JOIN er.h_user u ON u.h_user_hk = s.hash_key WHERE s.from_at > ''-infinity''', id), true, true, '')))[1] AS users,
       (xpath('//n/text()', query_to_xml(format('SELECT count(DISTINCT hash_key) AS n FROM millrace_state.pit_%s', id), true, true, '')))[1] AS keys FROM millrace.target WHERE relation = 'er.p'::regclass;
SELECT kind, convert_from(value, 'UTF8') FROM millrace.dead_letter WHERE stream = 'er' ORDER BY id;
SELECT convert_from(value, 'UTF8') FROM millrace.inbox i JOIN millrace.stream s ON s.id = i.stream_id WHERE s.name = 'er';
-- The user's own row is found by the staging table in which that column is his.
SELECT * FROM millrace.erase('er.u', '{"id": "u1"}') WHERE rows > 0;
SELECT kind, convert_from(value, 'UTF8') FROM millrace.dead_letter WHERE stream = 'er' ORDER BY id;
SELECT count(*) FROM er.u;
-- Again: there is nothing left.
SET client_min_messages = warning;
SELECT * FROM millrace.erase('er', '{"user_id": "u1"}') WHERE rows > 0;

-- What speaks of her now never came: it makes nobody else's order hers.
SELECT millrace.push('er', '{"id": 2, "v": 2, "user": {"id": "u1", "name": "Ann"}}'::text) IS NOT NULL AS pushed;
SELECT * FROM millrace.erase('er', '{"user_id": "u1"}') WHERE rows > 0;
SELECT order_id, user_id FROM er.o ORDER BY 1;

-- Nothing comes back: the same messages, later versions of these objects under another name, new ones, also where the table is declared anew.
SELECT count(millrace.push('er', m)) FROM unnest(ARRAY[
  '{"id": 1, "v": 1, "user": {"id": "u1", "name": "Ann"}, "n": 1, "items": [{"p": "a", "q": 1}, {"p": "b", "q": 2}]}',
  '{"id": 1, "v": 9, "user": {"id": "u9", "name": "Nobody"}, "n": 1, "items": [{"p": "a", "q": 1}]}',
  '{"id": 8, "v": 1, "user": {"id": "u1", "name": "Ann"}, "n": 1, "items": [{"p": "b", "q": 1}]}',
  '{"id": "u1", "v": 2, "kind": "user", "name": "Ann"}', '{"id": "u2", "v": 2, "kind": "user", "name": "Bob"}']) m;
SELECT messages, dead_letters FROM millrace.run_stream('er');
SELECT order_id, user_id FROM er.o ORDER BY 1;
SELECT oid, product FROM er.i ORDER BY 1;
SELECT id, name FROM er.u;
SELECT * FROM er.m;
SELECT user_id FROM er.h_user_current ORDER BY 1;
-- Nor where the columns by which she was named are called otherwise; they have to be mapped.
ALTER TABLE er.u RENAME COLUMN id TO user_id;
SELECT millrace.create_staging('er.u', stream => 'er', key => '{"user_id": ["$.id", "text"]}', version => '["$.v", "bigint"]', route => $$ kind = 'user' $$, columns => '{"kind": "$.kind", "name": "$.name", "town": "$.town"}', replace => true);
SELECT * FROM millrace.erase('er.u', '{"town": "Ys"}') WHERE rows > 0;
SELECT millrace.create_staging('er.u', stream => 'er', key => '{"user_id": ["$.id", "text"]}', version => '["$.v", "bigint"]', route => $$ kind = 'user' $$, columns => '{"kind": "$.kind", "name": "$.name"}', replace => true);
SELECT millrace.push('er', '{"id": "u1", "v": 3, "kind": "user", "name": "Ann"}'::text) IS NOT NULL AS pushed;
SELECT messages FROM millrace.run_stream('er');
SELECT user_id, name FROM er.u;
ALTER TABLE er.u RENAME COLUMN user_id TO id;
SELECT millrace.create_staging('er.u', stream => 'er', key => '{"id": ["$.id", "text"]}', version => '["$.v", "bigint"]', route => $$ kind = 'user' $$, columns => '{"kind": "$.kind", "name": "$.name", "town": "$.town"}', replace => true);
SELECT millrace.drop_table('er.u', cascade => true);
SELECT millrace.create_staging('er.u', stream => 'er', key => '{"id": ["$.id", "text"]}', version => '["$.v", "bigint"]', route => $$ kind = 'user' $$, columns => '{"kind": "$.kind", "name": "$.name"}');
SELECT count(millrace.push('er', m)) FROM unnest(ARRAY['{"id": "u1", "v": 3, "kind": "user", "name": "Ann"}', '{"id": "u2", "v": 3, "kind": "user", "name": "Bob"}']) m;
SELECT messages FROM millrace.run_stream('er');
SELECT id, name FROM er.u;
SELECT relname FROM pg_class WHERE relnamespace = 'millrace_state'::regnamespace AND relname LIKE 'erase%';
SELECT millrace.drop_stream('er', cascade => true);

-- What marts have of her beside what they show: groups that one stripe has got and another one gives, results where a row always stays.
SELECT millrace.create_stream('er_marts');
SELECT millrace.create_staging('er.mail', stream => 'er_marts', key => '{"id": ["$.id", "integer"]}', columns => '{"email": "$.email"}');
SELECT millrace.create_mart('er.by_email', 'SELECT email, count(*) AS n FROM er.mail GROUP BY email', stripes => 2);
SELECT millrace.create_mart('er.all_emails', 'SELECT string_agg(email, '','') AS emails, max(email) AS last, count(*) AS n FROM er.mail WHERE email LIKE ''ann%''');
SELECT millrace.create_mart('er.her_emails', 'SELECT count(*) AS n FROM er.mail WHERE email LIKE ''ann%''', stripes => 4);
SELECT count(millrace.push('er_marts', json_build_object('id', i, 'email', e))) FROM (VALUES (1, 'ann@x'), (2, 'bob@x')) v (i, e);
SELECT messages FROM millrace.run_stream('er_marts');
DO $$ BEGIN EXECUTE (SELECT format('UPDATE millrace_state.mart_%s SET stripe = 1 - stripe', id) FROM millrace.target WHERE relation = 'er.by_email'::regclass); END $$;
SELECT relation, rows FROM millrace.erase('er_marts', '{"email": "ann@x"}') WHERE rows > 0;
SELECT t.relation, query_to_xml(format('SELECT * FROM millrace_state.mart_%s', t.id), false, true, '')::text ~ 'ann' AS remembers FROM millrace.target t WHERE t.relation IN ('er.by_email'::regclass, 'er.all_emails'::regclass) ORDER BY 1;
TABLE er.by_email ORDER BY 1;
TABLE er.all_emails;
TABLE er.her_emails;
SELECT count(millrace.push('er_marts', json_build_object('id', i, 'email', e))) FROM (VALUES (3, 'ann@y'), (4, 'bob@x')) v (i, e);
SELECT messages FROM millrace.run_stream('er_marts');
TABLE er.by_email ORDER BY 1;
TABLE er.all_emails;
TABLE er.her_emails;
SELECT relation, missing, unexpected FROM unnest('{er.by_email, er.all_emails, er.her_emails}'::regclass[]) r, millrace.verify(r);
SELECT millrace.drop_stream('er_marts', cascade => true);
DROP SCHEMA er;
