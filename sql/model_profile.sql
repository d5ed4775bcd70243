-- What users have, of models that are trained: kept in the transaction of a batch when the query is over one staging table, else as of training.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace;
CREATE SCHEMA sp;
CREATE SCHEMA mp;
SELECT millrace.create_stream('profiles');
SELECT millrace.create_staging('sp.items', stream => 'profiles', for_each => '$.items[*]', key => '{"id": ["$key", "bigint"]}',
    columns => '{"customer": "$.customer", "status": "$.status", "product": "@.p", "price": ["@.w", "numeric"]}');
CREATE TABLE sp.product (code text PRIMARY KEY);
INSERT INTO sp.product SELECT unnest('{a,b,c,d,new}'::text[]);

SELECT millrace.create_model('mp.plain', 'item_knn', $$ SELECT customer, product FROM sp.items WHERE status = 'CLOSED' $$, catalogue => 'SELECT code FROM sp.product');
SELECT millrace.create_model('mp.weighted', 'item_knn', 'SELECT customer, product, price FROM sp.items');
SELECT millrace.create_model('mp.nested', 'item_knn', $$ SELECT l.c || '', l.p FROM (SELECT i.customer AS c, i.product AS p, 1 AS one FROM (SELECT * FROM sp.items WHERE status <> 'OPEN') AS i WHERE i.price > 0) AS l WHERE l.one = 1 $$);
-- not kept: more than rows of one staging table
SELECT millrace.create_model('mp.distinct', 'item_knn', 'SELECT DISTINCT customer, product FROM sp.items');
SELECT millrace.create_model('mp.joined', 'item_knn', 'SELECT i.customer, i.product FROM sp.items i JOIN sp.product p ON p.code = i.product');
SELECT millrace.create_model('mp.recent', 'item_knn', 'SELECT customer, product FROM sp.items WHERE now() IS NOT NULL');
SELECT millrace.create_model('mp.sampled', 'item_knn', 'SELECT customer, product FROM sp.items TABLESAMPLE BERNOULLI (50)');
SELECT millrace.create_model('mp.elsewhere', 'item_knn', 'SELECT code, code AS other FROM sp.product');
SELECT model, profiles FROM millrace.model_status ORDER BY 1;

CREATE FUNCTION sp.put(id integer, customer text, items text, status text DEFAULT 'CLOSED') RETURNS bigint LANGUAGE sql AS $$
    SELECT millrace.push('profiles', json_build_object('customer', customer, 'status', status, 'items', items::json)::text, key => id::text) $$;
SELECT sp.put(1, 'u1', '[{"p": "a", "w": 1}, {"p": "b", "w": 2}]') + sp.put(2, 'u2', '[{"p": "a", "w": 0.5}, {"p": "b", "w": 2}, {"p": "c", "w": 1}]') + sp.put(3, 'u3', '[{"p": "d", "w": 1}, {"p": "c", "w": 1}]') > 0 AS pushed;
SELECT messages, dead_letters FROM millrace.run_stream('profiles');
SELECT millrace.train('mp.plain'), millrace.train('mp.weighted'), millrace.train('mp.distinct');
SELECT model, profiles FROM millrace.model_status ORDER BY 1;

-- somebody who came after the training, with something that the version does not know
SELECT item, score, reason FROM millrace.recommend('mp.plain', 'u9', 5);
BEGIN;
SELECT sp.put(9, 'u9', '[{"p": "a", "w": 1}, {"p": "new", "w": 1}]') > 0 AS pushed;
SELECT messages, dead_letters FROM millrace.run_stream('profiles');
SELECT item, round(score::numeric, 4) AS score, reason FROM millrace.recommend('mp.plain', 'u9', 5, explain => true);
SELECT item, round(score::numeric, 4) AS score, reason FROM millrace.recommend('mp.plain', 'u9', 7, exclude_seen => false);
ROLLBACK;
SELECT item, score, reason FROM millrace.recommend('mp.plain', 'u9', 1);

-- corrected, cancelled, deleted
SELECT sp.put(1, 'u1', '[{"p": "d", "w": 1}, {"p": "d", "w": 0.1}, {"p": "d", "w": -5}]') + sp.put(2, 'u2', '[{"p": "a"}]', 'CANCELLED') + millrace.push('profiles', NULL::text, key => '3') > 0 AS pushed;
SELECT messages, dead_letters FROM millrace.run_stream('profiles');
SELECT u, item, round(score::numeric, 4) AS score, reason FROM unnest('{u1,u2,u3}'::text[]) AS u, millrace.recommend('mp.plain', u, 2) ORDER BY u, rank;
-- as of training
SELECT item, round(score::numeric, 4) AS score, reason FROM millrace.recommend('mp.distinct', 'u3', 2);
-- a sum of weights that no training takes says nothing, but is had
SELECT item, round(score::numeric, 4) AS score, reason FROM millrace.recommend('mp.weighted', 'u1', 5);
SELECT relation, missing, unexpected, compared_with FROM unnest('{mp.nested,mp.plain,mp.weighted}'::regclass[]) AS m, millrace.verify(m);
SELECT * FROM millrace.rebuild('mp.weighted');
SELECT relation, change, before, after FROM millrace.preview('profiles', payload => '{"customer": "u1", "status": "CLOSED", "items": [{"p": "a", "w": 3}]}', key => '8') WHERE relation LIKE 'mp.%' ORDER BY 1;

-- one over rows that are staged has the profiles of its training until they are counted
SELECT millrace.create_model('mp.late', 'item_knn', 'SELECT customer, product FROM sp.items');
SELECT millrace.train('mp.late');
SELECT profiles, item FROM millrace.model_status, millrace.recommend('mp.late', 'u1', 1) WHERE model = 'mp.late';
SELECT messages, dead_letters FROM millrace.run_stream('profiles');
SELECT profiles, item FROM millrace.model_status, millrace.recommend('mp.late', 'u1', 1) WHERE model = 'mp.late';

SELECT millrace.describe('model', 'mp.plain');

-- what is popular by a mart, live: of a group, of all, and only what may be answered
SELECT millrace.create_mart('mp.best', 'SELECT product, status, count(*) AS n FROM sp.items GROUP BY product, status');
SELECT millrace.create_model('mp.filled', 'item_knn', 'SELECT customer, product FROM sp.items', catalogue => 'SELECT code FROM sp.product', popular => 'SELECT product, n, status FROM mp.best');
SELECT millrace.create_model('mp.total', 'item_knn', 'SELECT customer, product FROM sp.items', popular => 'SELECT code, length(code) FROM sp.product');
SELECT count(sp.put(n, 'c' || n, '[{"p": "b"}, {"p": "new"}, {"p": "gone"}]', 'OPEN')) FROM generate_series(40, 44) AS n;
SELECT millrace.train('mp.filled'), millrace.train('mp.total');
SELECT messages, dead_letters FROM millrace.run_stream('profiles');
SELECT item, score, reason FROM millrace.recommend('mp.filled', 'nobody', 5);
SELECT item, score, reason FROM millrace.recommend('mp.filled', 'nobody', 5, popular_group => 'CLOSED');
SELECT item, score, reason FROM millrace.recommend('mp.filled', 'c40', 5, popular_group => 'OPEN');
SELECT item, score, reason FROM millrace.recommend('mp.filled', 'c40', 5, popular_group => 'OPEN', exclude_seen => false, filter => 'code > ''b''');
SELECT item, score, reason FROM millrace.recommend('mp.filled', items => '{d}', popular_group => 'none');
SELECT item, score, reason FROM millrace.recommend('mp.total', 'nobody', 2);
SELECT item, score, reason FROM millrace.recommend('mp.total', 'c40', 2);
SELECT item FROM millrace.recommend('mp.total', 'nobody', 2, fallback => false);
SELECT item FROM millrace.recommend('mp.total', 'nobody', 2, popular_group => 'OPEN');
SELECT item FROM millrace.recommend('mp.plain', 'nobody', 2, popular_group => 'OPEN');
SELECT millrace.create_model('mp.no', 'item_knn', 'SELECT customer, product FROM sp.items', popular => 'SELECT code FROM sp.product');
SELECT millrace.create_model('mp.no', 'item_knn', 'SELECT customer, product FROM sp.items', popular => 'SELECT code, code AS n FROM sp.product');
SELECT millrace.create_model('mp.no', 'item_knn', 'SELECT customer, product FROM sp.items', popular => 'SELECT 1 AS code, 1 AS n');
SELECT millrace.describe('model', 'mp.filled');

-- of an online model as well
SELECT millrace.create_model('mp.now', 'item_knn', 'SELECT customer, product FROM sp.items', popular => 'SELECT product, n, status FROM mp.best', online => true);
SELECT messages, dead_letters FROM millrace.run_stream('profiles');
SELECT item, score, reason FROM millrace.recommend('mp.now', 'nobody', 5, popular_group => 'OPEN');
SELECT item, round(score::numeric, 4) AS score, reason FROM millrace.recommend('mp.now', 'c40', 5);
SELECT item, round(score::numeric, 4) AS score, reason FROM millrace.recommend('mp.now', items => '{d}', popular_group => 'OPEN');
SELECT millrace.describe('model', 'mp.now');
SELECT millrace.drop_model('mp.filled'), millrace.drop_model('mp.total'), millrace.drop_model('mp.now');

-- somebody is erased: he leaves what versions were trained on and are judged by, also where that is seen through a mart
SELECT millrace.create_mart('mp.counted', 'SELECT customer, product, count(*) AS n FROM sp.items GROUP BY customer, product');
SELECT millrace.create_model('mp.through', 'item_knn', 'SELECT customer, product, n FROM mp.counted');
SELECT millrace.create_model('mp.trees', 'xgboost', 'SELECT customer, n AS x, n % 2 AS y FROM mp.counted', label => 'y', entity => '{customer}');
SELECT count(sp.put(n, 'e' || n, '[{"p": "a", "w": 1}, {"p": "b", "w": 1}, {"p": "c", "w": 1}]')) FROM generate_series(20, 29) AS n;
SELECT messages, dead_letters FROM millrace.run_stream('profiles');
SELECT millrace.train(m, split => '{"by": "customer_rows"}', refit => false) FROM unnest('{mp.plain,mp.through,mp.joined}'::regclass[]) AS m;
DO $$ BEGIN EXECUTE (SELECT format('INSERT INTO millrace_state.model_%s_test SELECT hash_record_extended(ROW(c), 0) FROM unnest(''{e20,e21}''::text[]) AS c', id) FROM millrace.model WHERE relation = 'mp.trees'::regclass); END $$;
CREATE FUNCTION sp.remembered(who text) RETURNS TABLE (model regclass, part text, rows bigint) LANGUAGE plpgsql AS $$
BEGIN
    FOR model, part IN SELECT m.relation, substr(c.relname, length(format('model_%s_', m.id)) + 1) FROM millrace.model m JOIN pg_class c ON c.relname LIKE format('model\_%s\_%%', m.id) AND c.relkind = 'r' LOOP
        EXECUTE format('SELECT count(*) FROM millrace_state.model_%s_%s AS t WHERE t::text ~ $1 OR t::text = $2', (SELECT m.id FROM millrace.model m WHERE m.relation = model), part)
        INTO rows USING '\m' || who || '\M', format('(%s)', hash_record_extended(ROW(who), 0));
        IF rows > 0 THEN RETURN NEXT; END IF;
    END LOOP;
END $$;
SELECT * FROM sp.remembered('e20') ORDER BY model::text, part;
SELECT model, version, users, pairs FROM millrace.model_version_status WHERE model IN ('mp.plain', 'mp.through') ORDER BY 1, 2;
SELECT * FROM millrace.erase('profiles', '{"customer": "e20"}');
SELECT * FROM sp.remembered('e20');
SELECT count(*) > 0 AS others FROM sp.remembered('e21') WHERE part = 'test';
SELECT model, version, users, pairs FROM millrace.model_version_status WHERE model IN ('mp.plain', 'mp.through') ORDER BY 1, 2;
SELECT metric, pairs > 0 AS judged FROM millrace.evaluate('mp.through', 1, metrics => '{recall@2}');
SELECT count(*) FROM millrace.recommend('mp.through', 'e20', 2) WHERE score > 0;

-- dropped alone, or with the staging table; nothing is left
SELECT millrace.drop_model('mp.distinct'), millrace.drop_model('mp.joined'), millrace.drop_model('mp.recent'), millrace.drop_model('mp.sampled'), millrace.drop_model('mp.elsewhere'), millrace.drop_model('mp.late');
SELECT millrace.drop_model('mp.through'), millrace.drop_model('mp.trees');
SELECT millrace.drop_table('sp.items', cascade => true);
SELECT relname FROM pg_class WHERE relname LIKE 'model%' AND relnamespace IN ('millrace_state'::regnamespace, 'millrace_def'::regnamespace);
SELECT count(*) FROM millrace.model;
SELECT millrace.drop_stream('profiles', cascade => true);
DROP SCHEMA mp, sp CASCADE;
