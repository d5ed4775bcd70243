-- Online models: declared, counted in the transaction of a batch, seen, refused.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
SET client_min_messages = notice;
CREATE SCHEMA sto;
CREATE SCHEMA mo;
SELECT millrace.create_stream('online');
SELECT millrace.create_staging('sto.items', stream => 'online', for_each => '$.items[*]', key => '{"id": ["$key", "bigint"]}',
    columns => '{"customer": "$.customer", "status": "$.status", "at": ["$.at", "timestamptz"], "product": "@"}');
SELECT millrace.create_model('mo.live', 'item_knn', $$ SELECT customer, product FROM sto.items WHERE status = 'CLOSED' $$, online => true);
SELECT millrace.create_model('mo.newest', 'item_knn', 'SELECT customer, product, at FROM sto.items', '{"max_history": 2, "similarity": "jaccard"}', online => true);

-- by hand: cos(a, b) .8165, cos(a, c) .5774, cos(b, c) .7071; all of it in the transaction in which it comes
BEGIN;
SELECT count(millrace.push('online', v, key => k)) FROM (VALUES
    ('1', '{"customer": "u1", "status": "CLOSED", "at": "2026-01-01", "items": ["a", "b"]}'), ('2', '{"customer": "u2", "status": "CLOSED", "at": "2026-01-01", "items": ["a"]}'),
    ('3', '{"customer": "u2", "status": "CLOSED", "at": "2026-01-02", "items": ["b", "c"]}'), ('4', '{"customer": "u3", "status": "CLOSED", "at": "2026-01-01", "items": ["a", "a"]}')) AS m (k, v);
SELECT * FROM millrace.run_stream('online');
SELECT * FROM mo.live ORDER BY item, rank;
SELECT * FROM millrace.recommend('mo.live', 'u1', 5, explain => true);
COMMIT;
SELECT * FROM millrace.similar('mo.live', 'b', 1);
SELECT * FROM millrace.recommend('mo.live', items => '{c,unknown}', n => 1);
SELECT * FROM millrace.recommend('mo.live', 'nobody', 2);
SELECT * FROM millrace.similar('mo.live', 'unknown');
SELECT * FROM millrace.recommend('mo.live', 'u1', 0);
SELECT millrace.recommend('mo.live', 'u1', -1);

-- a new item is recommended from its first co-occurrence on, in that transaction, and goes with it
BEGIN;
SELECT millrace.push('online', '{"customer": "u5", "status": "CLOSED", "at": "2026-01-03", "items": ["a", "new"]}'::text, key => '5') > 0 AS pushed;
SELECT * FROM millrace.run_stream('online');
SELECT item, score FROM millrace.recommend('mo.live', 'u3', 9, fallback => false);
SELECT item FROM millrace.similar('mo.newest', 'new');
ROLLBACK;
SELECT item FROM millrace.recommend('mo.live', 'u3', 9, fallback => false);

-- only the newest two items of a customer count: b and c of u2; what he had before is not recommended either
SELECT * FROM mo.newest ORDER BY item, rank;
SELECT * FROM millrace.recommend('mo.newest', 'u2', 5);

-- a cancellation takes back what it had added, and brings the next one of a history back
SELECT millrace.push('online', '{"customer": "u2", "status": "CANCELLED", "at": "2026-01-02", "items": []}'::text, key => '3') > 0 AS pushed;
SELECT * FROM millrace.run_stream('online');
SELECT * FROM mo.live ORDER BY item, rank;
SELECT * FROM mo.newest ORDER BY item, rank;
SELECT relation, missing, unexpected, compared_with FROM millrace.verify('mo.live');
SELECT * FROM millrace.rebuild('mo.newest');

SELECT * FROM millrace.preview('online', payload => '{"customer": "u9", "status": "CLOSED", "at": "2026-01-09", "items": ["z"]}', key => '9') WHERE relation LIKE 'mo.%';
SELECT model, version, versions FROM millrace.model_status ORDER BY model;

SELECT severity, subject, message FROM millrace.validate('online') WHERE subject LIKE 'model %' AND severity = 'error';

-- whoever may read the model may ask for similar items, and for customers when that is granted
CREATE ROLE regress_online_reader;
GRANT USAGE ON SCHEMA mo TO regress_online_reader;
GRANT SELECT ON mo.live TO regress_online_reader;
SET ROLE regress_online_reader;
SELECT item FROM millrace.similar('mo.live', 'a');
SELECT count(*) FROM mo.live;
SELECT item FROM millrace.recommend('mo.live', 'u3', 1);
SELECT item FROM millrace.similar('mo.newest', 'a');
RESET ROLE;
SELECT millrace.grant_profiles('mo.live', 'regress_online_reader');
SET ROLE regress_online_reader;
SELECT item FROM millrace.recommend('mo.live', 'u3', 1);
RESET ROLE;

-- a catalogue, read live: b is not available, nobody has n yet and, when a customer has cancelled it, m any more
CREATE TABLE sto.offered (product text, price integer, available boolean);
INSERT INTO sto.offered VALUES ('a', 3, true), ('b', 1, false), ('c', 2, true), ('m', 1, true), ('n', 9, true);
SELECT millrace.create_model('mo.offered', 'item_knn', 'SELECT customer, product FROM sto.items', catalogue => 'SELECT * FROM sto.offered', online => true);
SELECT millrace.push('online', '{"customer": "u7", "status": "OPEN", "at": "2026-01-03", "items": ["a", "c", "m"]}'::text, key => '7') > 0 AS pushed;
SELECT * FROM millrace.run_stream('online');
SELECT item, score, reason FROM millrace.recommend('mo.offered', 'u3', 5, explain => true);
SELECT millrace.push('online', '{"customer": "u7", "status": "OPEN", "at": "2026-01-03", "items": ["a", "c"]}'::text, key => '7') > 0 AS pushed;
SELECT * FROM millrace.run_stream('online');
SELECT item, score, reason FROM millrace.recommend('mo.offered', 'u3', 5, exclude_seen => false);
SELECT item, reason FROM millrace.recommend('mo.offered', items => '{a}', n => 5, filter => 'price > 1');
SELECT item FROM millrace.similar('mo.offered', 'a');
SELECT item FROM millrace.recommend('mo.live', 'u3', 5, filter => $$ item > 'a' $$, exclude_seen => false);
SELECT item FROM millrace.recommend('mo.live', 'u1', 5, filter => 'price > 1');
SELECT millrace.describe('model', 'mo.offered');
SELECT millrace.drop_model('mo.offered');
SELECT millrace.push('online', NULL::text, key => '7') > 0 AS pushed;
SELECT * FROM millrace.run_stream('online');

-- the filter may ask the same model again; an error in between, and a look after it
CREATE FUNCTION mo.nearest(item text) RETURNS text STABLE LANGUAGE sql AS $$ SELECT s.item FROM millrace.similar('mo.live', item, 1) AS s $$;
SELECT item, round(score::numeric, 4) AS score FROM millrace.recommend('mo.live', 'u1', 5, filter => $$ mo.nearest(item) <> 'b' $$, exclude_seen => false);
SELECT item FROM millrace.recommend('mo.live', 'u1', 5, filter => 'length(mo.nearest(item)) / 0 = 1', exclude_seen => false);
SELECT item, round(score::numeric, 4) AS score FROM millrace.recommend('mo.live', 'u1', 5, exclude_seen => false);

-- judged as it is now: what a customer has already does not count
SELECT metric, value, popularity, pairs, skipped FROM millrace.evaluate('mo.live', 1, $$ VALUES ('u3', 'b'), ('u3', 'a'), ('nobody', 'a') $$, '{recall@1,mrr,user_coverage}');

-- refused
SELECT millrace.train('mo.live');
SELECT millrace.train('mo.live', split => '{"by": "customers"}', metrics => '{mrr}', async => true);
SELECT millrace.promote('mo.live', 1, gate => 'new.mrr > old.mrr', test => 'SELECT customer, product FROM sto.items');
SELECT millrace.promote('mo.live', 1, 'candidate');
SELECT millrace.rollback('mo.live');
SELECT millrace.drop_version('mo.live', 1);
SELECT * FROM millrace.evaluate('mo.live', 1);
SELECT * FROM millrace.evaluate('mo.live', 2, 'SELECT customer, product FROM sto.items');
SELECT millrace.import_model('mo.live', '\x');
SELECT millrace.predict('mo.live', '{}');
SELECT millrace.recommend('mo.live', 'u1', NULL);
SELECT millrace.similar('mo.live', 'a', -1);
SELECT millrace.create_model('mo.no', 'xgboost', 'SELECT customer, product FROM sto.items', label => 'product', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product FROM sto.items', keep => 2, online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product FROM sto.items', label => 'product', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product FROM sto.items', catalogue => 'SELECT price FROM sto.offered', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product FROM sto.items', '{"shrink": -1}', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product, at::date FROM sto.items', '{"max_history": 1}', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, (SELECT product) FROM sto.items', online => true);
BEGIN;
SELECT millrace.create_model('mo.unnamed', 'item_knn', $$ SELECT customer || '', product || '' FROM sto.items $$, online => true);
ROLLBACK;
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product FROM sto.items', '{"similarity": "tfidf"}', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product FROM sto.items', '{"k": 10}', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product FROM sto.items', '{"max_history": -1}', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product FROM sto.items', '{"max_history": 1}', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product, id FROM sto.items', '{"max_history": 1}', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product, id FROM sto.items', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product FROM sto.items GROUP BY 1, 2', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT a.customer, b.product FROM sto.items a JOIN sto.items b USING (id)', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product FROM sto.items WHERE at > now()', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT relname, relkind FROM pg_class', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer::numeric, product FROM sto.items', online => true);
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, ARRAY[product] AS product FROM sto.items', online => true);
BEGIN;
SELECT millrace.push('online', json_build_object('customer', repeat('u', 1301), 'status', 'CLOSED', 'items', '{a}'::text[])::text, key => '11') > 0 AS pushed;
SELECT * FROM millrace.run_stream('online');
ROLLBACK;
SELECT millrace.push('online', json_build_object('customer', 'u4', 'status', 'CLOSED', 'items', ARRAY(SELECT 'i' || n FROM generate_series(1, 12) n))::text, key => '12') > 0 AS pushed;
SELECT * FROM millrace.run_stream('online');
SET millrace.online_model_size = '2kB';
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product FROM sto.items', online => true);
SET millrace.online_model_size = '4kB';
SELECT millrace.create_model('mo.no', 'item_knn', 'SELECT customer, product FROM sto.items', online => true);
SELECT millrace.drop_table('mo.no');
RESET millrace.online_model_size;
SELECT millrace.trace('mo.live', '{}');
SELECT * FROM millrace.rebuild('mo.live', 'item = 1');

SELECT item, rank, neighbour FROM mo.live WHERE item = 'i1' AND rank > 9;

-- dropped with its staging table, or alone; nothing is left
SELECT millrace.drop_model('mo.newest');
SELECT millrace.drop_table('sto.items', cascade => true);
SELECT relname FROM pg_class WHERE relname LIKE 'model%' AND relnamespace IN ('millrace_state'::regnamespace, 'millrace_def'::regnamespace);
SELECT count(*) FROM millrace.model;
REVOKE ALL ON SCHEMA mo FROM regress_online_reader;
DROP ROLE regress_online_reader;
SET client_min_messages = warning;
SELECT millrace.drop_stream('online', cascade => true);
DROP SCHEMA mo, sto CASCADE;
