-- What a loading session sets up once. temp_buffers is the caller's: it must hold a batch, and much more than that makes
-- every DROP of a temporary table slow.
SET work_mem = '512MB';
SET enable_mergejoin = off;     -- hubs without statistics would be sorted by text keys
SET client_min_messages = warning;
CREATE TEMP TABLE raw (position bigint GENERATED ALWAYS AS IDENTITY, partition integer, key text, ms bigint, payload json);
CREATE TEMP TABLE gone (order_id bigint, user_id text, product_id text, category_name text, status text);
