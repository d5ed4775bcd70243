-- What a loading session sets up once. temp_buffers is the caller's: it must hold a batch, and much more than that makes
-- every DROP of a temporary table slow.
SET work_mem = '512MB';
SET enable_mergejoin = off;     -- hubs without statistics would be sorted by text keys
SET client_min_messages = warning;
CREATE TEMP TABLE raw (position bigint GENERATED ALWAYS AS IDENTITY, payload json);
