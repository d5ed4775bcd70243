#!/usr/bin/python3
"""Debezium's messages with bytes changed, taken out, doubled and put in: whatever comes, it is staged, a dead letter or passed over, and it is
the same for a worker that knows the schemas of messages before (one batch of all) as for one that knows nothing (each alone).

Connects as libpq's environment says (a superuser of a server with millrace), makes a database of its own and drops it.
Prints its seed; `debezium.py --seed N` repeats a run.
"""
import argparse
import json
import random
import sys

import psycopg2

SETUP = r"""
CREATE EXTENSION millrace; CREATE SCHEMA p;
SELECT millrace.create_stream(s, format => 'debezium'),
  millrace.create_staging('p.' || s, stream => s, log => true, tombstone => 'ignore', key => '{"id": ["$.id", "integer"]}', columns => '{"n": ["$.n", "numeric(12,2)", "base64"], "v": "$.v", "d": "$.d", "ts": "$.ts",
    "b": "$.b", "j": ["$.j", "jsonb"], "j_k": "$.j.k", "tx": "$.tx", "op": "$op", "tab": "$table", "was": "$before.d", "lsn": "$source.lsn", "key": "$key.id"}'),
  millrace.create_staging('p.' || s || '_items', stream => s, for_each => '$.j.l[*]', log => true, key => '{"id": ["$.id", "integer"]}', columns => '{"item": "@"}')
FROM unnest('{warm,cold}'::text[]) s;
"""

FIELDS = [{'type': 'int32', 'field': 'id'}, {'type': 'bytes', 'name': 'org.apache.kafka.connect.data.Decimal', 'parameters': {'scale': '2'}, 'field': 'n'},
          {'type': 'struct', 'name': 'io.debezium.data.VariableScaleDecimal', 'field': 'v'}, {'type': 'int32', 'name': 'io.debezium.time.Date', 'field': 'd'},
          {'type': 'int64', 'name': 'io.debezium.time.MicroTimestamp', 'field': 'ts'}, {'type': 'bytes', 'field': 'b'}, {'type': 'string', 'field': 'tx'},
          {'type': 'string', 'name': 'io.debezium.data.Json', 'field': 'j'}]


def compact(value):
    return json.dumps(value, separators=(',', ':'), ensure_ascii=False)


def message(rng):
    """(value, key) of a message as Debezium writes it."""
    number = rng.randrange(50)
    row = {'id': number, 'n': rng.choice(['BM4=', '+YA=', 'AA==']), 'v': {'scale': rng.randrange(9), 'value': 'MDk='}, 'd': rng.randrange(40000), 'ts': rng.randrange(10 ** 16),
           'b': 'AP8=', 'tx': rng.choice(['a', 'ü"\\', '{']), 'j': compact({'k': 1, 'l': [1, {'x': 2}]})}
    op = rng.choice('cccuurd')
    fields = rng.sample(FIELDS, rng.choice([len(FIELDS), 5]))
    if rng.random() < 0.5:
        value = {'before': row if op == 'd' else None, 'after': None if op == 'd' else row, 'source': {'schema': 'public', 'table': 't', 'lsn': 1}, 'op': op, 'ts_ms': 1}
        schema = {'type': 'struct', 'fields': [{'type': 'struct', 'fields': fields, 'field': 'before'}, {'type': 'struct', 'fields': fields, 'field': 'after'}]}
    else:
        value = dict(row, __op=op, __deleted=str(op == 'd').lower())
        schema = {'type': 'struct', 'fields': fields}
    key = {'id': number}
    if rng.random() < 0.7:
        value = {'schema': schema, 'payload': value}
        key = {'schema': {'type': 'struct', 'fields': FIELDS[:1]}, 'payload': key}
    if rng.random() < 0.1:
        value = rng.choice([None, {'ts_ms': 1}, {'event_count': 1, 'data_collections': None}])
    return None if value is None else compact(value).encode(), compact(key).encode()


def damaged(rng, text):
    """A text with some bytes that are not as they were, most of the time."""
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2])):
        at = rng.randrange(len(text) + 1)
        to = min(len(text), at + rng.choice([1, 1, 2, 10, 200]))
        text = rng.choice([text[:at] + text[to:], text[:to] + text[at:], text[:at] + bytes([rng.choice(b'{}[],:"\\0 n1e-\xff')]) + text[to:], text[:at] + text[to:] + text[at:to]])
    return text


def outcome(cursor, stream, positions):
    """By message: what was logged of it, and why it was refused."""
    found = {}
    for table in (stream, stream + '_items'):
        cursor.execute(f"SELECT _position, to_json(r)::text FROM p.{table}_log r ORDER BY _position, _rows")
        for position, row in cursor:
            found.setdefault(position, []).append({name: value for name, value in json.loads(row).items() if name not in ('_loaded_at', '_position', '_version')})
    cursor.execute("SELECT position, staging, sqlstate, message FROM millrace.dead_letter WHERE stream = %s ORDER BY position, staging", (stream,))
    for position, staging, *reason in cursor:
        found.setdefault(position, []).append((staging and staging.replace(stream, 's'), *(part.replace(stream, 's') for part in reason)))
    return {number: found.get(position) for number, position in enumerate(positions)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(2 ** 32))
    parser.add_argument('--messages', type=int, default=600)
    arguments = parser.parse_args()
    print('seed', arguments.seed, flush=True)
    rng = random.Random(arguments.seed)
    admin = psycopg2.connect('')
    admin.autocommit = True
    name = f'debezium_{arguments.seed}'
    with admin.cursor() as cursor:
        cursor.execute(f'CREATE DATABASE {name}')
    try:
        connection = psycopg2.connect(dbname=name)
        connection.autocommit = True
        positions = {'warm': [], 'cold': []}
        with connection.cursor() as cursor:
            cursor.execute(SETUP)
            for _ in range(arguments.messages):
                value, key = message(rng)
                value, key = value and damaged(rng, value), damaged(rng, key) if rng.random() < 0.2 else key
                for stream in positions:
                    cursor.execute("SELECT millrace.push(%s, %s::bytea, key => %s, message_time => '2026-01-01')", (stream, value, key.decode(errors='replace').replace('\0', '0')))
                    positions[stream].append(cursor.fetchone()[0])
                cursor.execute("SELECT millrace.run_stream('cold')")
            cursor.execute("SELECT * FROM millrace.run_stream('warm')")
            warm, cold = (outcome(cursor, stream, positions[stream]) for stream in positions)
            cursor.execute('SELECT count(*), count(json_strip_nulls(payload)) FROM p.warm_log')
            staged = cursor.fetchone()
            cursor.execute("SELECT count(*) FROM millrace.dead_letter WHERE stream = 'warm'")
            letters = cursor.fetchone()[0]
        connection.close()
    finally:
        with admin.cursor() as cursor:
            cursor.execute(f'DROP DATABASE {name} WITH (FORCE)')
    print(f'# {staged[0]} versions, {letters} dead letters')
    same = warm == cold
    print('ok - the same in one batch as one by one' if same else 'not ok - the same in one batch as one by one: %r' % [(warm[n], cold[n]) for n in warm if warm[n] != cold[n]][:1])
    enough = staged[0] > arguments.messages / 5 and letters > arguments.messages / 10
    print('ok - much was staged, and much refused' if enough else 'not ok - much was staged, and much refused')
    sys.exit(0 if same and enough else 1)


if __name__ == '__main__':
    main()
