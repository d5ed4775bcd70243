-- What a loading session sets up once: its memory, and the table that a batch is copied into.
SET work_mem = '512MB';
SET temp_buffers = '2GB';
SET client_min_messages = warning;
CREATE TEMP TABLE raw (position bigint GENERATED ALWAYS AS IDENTITY, payload json);
