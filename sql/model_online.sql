-- Online models: declared, counted in the transaction of a batch, seen, refused.
\set VERBOSITY terse
CREATE EXTENSION millrace;
SET client_min_messages = notice;
CREATE SCHEMA stg;
CREATE SCHEMA ml;
SELECT millrace.create_stream('orders');
SELECT millrace.create_staging('stg.items', stream => 'orders', for_each => '$.items[*]', key => '{"id": ["$key", "bigint"]}',
    columns => '{"customer": "$.customer", "status": "$.status", "at": ["$.at", "timestamptz"], "product": "@"}');
SELECT millrace.create_model('ml.live', 'item_knn', $$ SELECT customer, product FROM stg.items WHERE status = 'CLOSED' $$, online => true);
SELECT millrace.create_model('ml.newest', 'item_knn', 'SELECT customer, product, at FROM stg.items', '{"max_history": 2, "similarity": "jaccard"}', online => true);

-- by hand: cos(a, b) .8165, cos(a, c) .5774, cos(b, c) .7071; all of it in the transaction in which it comes
BEGIN;
SELECT count(millrace.push('orders', v, key => k)) FROM (VALUES
    ('1', '{"customer": "u1", "status": "CLOSED", "at": "2026-01-01", "items": ["a", "b"]}'), ('2', '{"customer": "u2", "status": "CLOSED", "at": "2026-01-01", "items": ["a"]}'),
    ('3', '{"customer": "u2", "status": "CLOSED", "at": "2026-01-02", "items": ["b", "c"]}'), ('4', '{"customer": "u3", "status": "CLOSED", "at": "2026-01-01", "items": ["a", "a"]}')) AS m (k, v);
SELECT * FROM millrace.run_stream('orders');
SELECT * FROM ml.live ORDER BY item, rank;
SELECT * FROM millrace.recommend('ml.live', 'u1', 5, explain => true);
COMMIT;
SELECT * FROM millrace.similar('ml.live', 'b', 1);
SELECT * FROM millrace.recommend('ml.live', items => '{c,unknown}', n => 1);
SELECT * FROM millrace.recommend('ml.live', 'nobody', 2);
SELECT * FROM millrace.similar('ml.live', 'unknown');
SELECT * FROM millrace.recommend('ml.live', 'u1', 0);
SELECT millrace.recommend('ml.live', 'u1', -1);

-- only the newest two items of a customer count: b and c of u2; what he had before is not recommended either
SELECT * FROM ml.newest ORDER BY item, rank;
SELECT * FROM millrace.recommend('ml.newest', 'u2', 5);

-- a cancellation takes back what it had added, and brings the next one of a history back
SELECT millrace.push('orders', '{"customer": "u2", "status": "CANCELLED", "at": "2026-01-02", "items": []}'::text, key => '3');
SELECT * FROM millrace.run_stream('orders');
SELECT * FROM ml.live ORDER BY item, rank;
SELECT * FROM ml.newest ORDER BY item, rank;
SELECT relation, missing, unexpected, compared_with FROM millrace.verify('ml.live');
SELECT * FROM millrace.rebuild('ml.newest');

SELECT * FROM millrace.preview('orders', payload => '{"customer": "u9", "status": "CLOSED", "at": "2026-01-09", "items": ["z"]}', key => '9') WHERE relation LIKE 'ml.%';
SELECT model, version, versions FROM millrace.model_status ORDER BY model;

-- whoever may read the model may ask for similar items, and for customers when that is granted
CREATE ROLE regress_online_reader;
GRANT USAGE ON SCHEMA ml TO regress_online_reader;
GRANT SELECT ON ml.live TO regress_online_reader;
SET ROLE regress_online_reader;
SELECT item FROM millrace.similar('ml.live', 'a');
SELECT count(*) FROM ml.live;
SELECT item FROM millrace.recommend('ml.live', 'u3', 1);
SELECT item FROM millrace.similar('ml.newest', 'a');
RESET ROLE;
SELECT millrace.grant_profiles('ml.live', 'regress_online_reader');
SET ROLE regress_online_reader;
SELECT item FROM millrace.recommend('ml.live', 'u3', 1);
RESET ROLE;

-- refused
SELECT millrace.train('ml.live');
SELECT millrace.create_model('ml.no', 'item_knn', 'SELECT customer, product FROM stg.items', '{"similarity": "tfidf"}', online => true);
SELECT millrace.create_model('ml.no', 'item_knn', 'SELECT customer, product FROM stg.items', '{"k": 10}', online => true);
SELECT millrace.create_model('ml.no', 'item_knn', 'SELECT customer, product FROM stg.items', '{"max_history": -1}', online => true);
SELECT millrace.create_model('ml.no', 'item_knn', 'SELECT customer, product FROM stg.items', '{"max_history": 1}', online => true);
SELECT millrace.create_model('ml.no', 'item_knn', 'SELECT customer, product, id FROM stg.items', '{"max_history": 1}', online => true);
SELECT millrace.create_model('ml.no', 'item_knn', 'SELECT customer, product, id FROM stg.items', online => true);
SELECT millrace.create_model('ml.no', 'item_knn', 'SELECT customer, product FROM stg.items GROUP BY 1, 2', online => true);
SELECT millrace.create_model('ml.no', 'item_knn', 'SELECT a.customer, b.product FROM stg.items a JOIN stg.items b USING (id)', online => true);
SELECT millrace.create_model('ml.no', 'item_knn', 'SELECT customer, product FROM stg.items WHERE at > now()', online => true);
SELECT millrace.create_model('ml.no', 'item_knn', 'SELECT relname, relkind FROM pg_class', online => true);
SELECT millrace.push('orders', json_build_object('customer', 'u4', 'status', 'CLOSED', 'items', ARRAY(SELECT 'i' || n FROM generate_series(1, 12) n))::text, key => '12');
SELECT * FROM millrace.run_stream('orders');
SET millrace.online_model_size = '1kB';
SELECT millrace.create_model('ml.no', 'item_knn', 'SELECT customer, product FROM stg.items', online => true);
SET millrace.online_model_size = '2kB';
SELECT millrace.create_model('ml.no', 'item_knn', 'SELECT customer, product FROM stg.items', online => true);
SELECT millrace.drop_table('ml.no');
RESET millrace.online_model_size;
SELECT millrace.trace('ml.live', '{}');
SELECT * FROM millrace.rebuild('ml.live', 'item = 1');

SELECT item, rank, neighbour FROM ml.live WHERE item = 'i1' AND rank > 9;

-- dropped with its staging table, or alone; nothing is left
SELECT millrace.drop_model('ml.newest');
SELECT millrace.drop_table('stg.items', cascade => true);
SELECT relname FROM pg_class WHERE relname LIKE 'model%' AND relnamespace IN ('millrace_state'::regnamespace, 'millrace_def'::regnamespace);
SELECT count(*) FROM millrace.model;
REVOKE ALL ON SCHEMA ml FROM regress_online_reader;
DROP ROLE regress_online_reader;
