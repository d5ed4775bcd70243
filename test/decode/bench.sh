#!/bin/bash
# Microseconds a message of the decode stage, over the restaurant model's messages (one JSON a line, on standard input).
# Needs a running server (PGHOST, PGPORT, ... as for psql) with millrace_decode_test installed.
set -e
psql -X -q -v ON_ERROR_STOP=1 <<'SQL'
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS millrace_decode_test;
DROP TABLE IF EXISTS decode_bench_messages;
CREATE UNLOGGED TABLE decode_bench_messages (n serial, message text);
SQL
psql -X -q -v ON_ERROR_STOP=1 -c "\copy decode_bench_messages (message) FROM pstdin WITH (FORMAT csv, DELIMITER E'\x01', QUOTE E'\x02')"
psql -X -v ON_ERROR_STOP=1 <<'SQL'
SET TimeZone = 'UTC';
SELECT count(*) AS messages, round(avg(octet_length(message))) AS bytes FROM decode_bench_messages;
CREATE TEMP TABLE m AS SELECT array_agg(convert_to(message, 'UTF8')) AS messages, 300000 / count(*)::int AS loops FROM decode_bench_messages;
CREATE TEMP TABLE p AS SELECT
    '{$.object_id,$.object_type,$.payload.date,$.payload.cost,$.payload.payment,$.payload.status,$.payload.restaurant.id,$.payload.restaurant.name,$.payload.user.id,$.payload.user.name}'::text[] AS paths,
    '{bigint,text,timestamptz,"numeric(12,2)","numeric(12,2)",text,text,text,text,text}'::text[] AS types,
    '{@.id,@.name,@.price,@.quantity,@.category,@}'::text[] AS item_paths,
    '{text,text,"numeric(12,2)",integer,text,json}'::text[] AS item_types;
SELECT round(decode_bench(messages, loops, '{}', NULL)::numeric, 2) AS parse_only FROM m;
SELECT round(decode_bench(messages, loops, paths, NULL)::numeric, 2) AS message_slots FROM m, p;
SELECT round(decode_bench(messages, loops, paths || item_paths, '$.payload.products[*]')::numeric, 2) AS with_elements FROM m, p;
SELECT round(decode_bench(messages, loops, paths || item_paths, '$.payload.products[*]', types || item_types)::numeric, 2) AS converted FROM m, p;
SELECT round(decode_bench(messages, loops, '{$}', NULL, '{jsonb}')::numeric, 2) AS jsonb_of_the_whole FROM m;
DROP TABLE decode_bench_messages;
SQL
