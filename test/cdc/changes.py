#!/usr/bin/python3
"""Random changes while tables are copied, copied again, paused and killed: in the end all is what the source has.

Several sessions insert, update, delete, give rows other keys, leave large values as they are, truncate and roll back
at the source, in transactions of one to some hundred rows.  Meanwhile the stream begins with its initial snapshot, by
several connections and in small chunks, tables are copied again, the snapshot is paused and resumed, and the worker,
the target and the source are killed.  At the end a mirror, a filtered staging table with computed columns, one with
elements of a json column, one that is enriched from a dictionary which comes to know its entries one by one, and a mart
equal a recompute from the source.

    changes.py             15 seconds of changes
    changes.py --long      5 minutes
    --seed, --seconds, --kills (more are more frequent; 0: none)
"""
import argparse
import os
import random
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
import psycopg2                                     # noqa: E402
from shell import Shell, wait_for                   # noqa: E402


def say(text):
    print(f'# {text}', flush=True)


SOURCE = '''
CREATE TABLE public.items (id int PRIMARY KEY, owner text, price numeric(12,2), amount int, state text, big text, doc jsonb);
CREATE TABLE public.whole (id int PRIMARY KEY, name text, big text);
ALTER TABLE public.whole REPLICA IDENTITY FULL;
CREATE TABLE public.parts (id int, day int, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE public.parts_1 PARTITION OF public.parts FOR VALUES FROM (0) TO (5);
CREATE TABLE public.parts_2 PARTITION OF public.parts FOR VALUES FROM (5) TO (10);
ALTER TABLE public.items ALTER COLUMN big SET STORAGE EXTERNAL, ALTER COLUMN doc SET STORAGE EXTERNAL;
ALTER TABLE public.whole ALTER COLUMN big SET STORAGE EXTERNAL;
INSERT INTO public.items SELECT i, 'o' || i % 50, i, i % 9, (ARRAY['new', 'done', 'bad'])[1 + i % 3], CASE WHEN i % 4 = 0 THEN repeat('x' || i, 900) END,
       jsonb_build_object('n', i, 'kind', 'o' || i % 50, 'pad', repeat('p', 3000 * (i % 7 / 6)), 'tags', jsonb_build_array(jsonb_build_object('t', 'a' || i % 5), jsonb_build_object('t', 'b')))
FROM generate_series(1, 5000) i;
INSERT INTO public.whole SELECT i, 'n' || i, repeat('y' || i, 900) FROM generate_series(1, 500) i;
INSERT INTO public.parts SELECT i, i % 10, 'v' || i FROM generate_series(1, 3000) i;
'''

TARGET = '''
CREATE EXTENSION millrace;
CREATE SCHEMA bronze; CREATE SCHEMA silver; CREATE SCHEMA gold;
CREATE SERVER source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host %(host)s, port %(port)s, dbname 'postgres');
CREATE USER MAPPING FOR postgres SERVER source OPTIONS (username 'postgres');
SELECT millrace.create_stream('owners');
SELECT millrace.create_staging('bronze.owners', stream => 'owners', key => '{"owner": "$.owner"}', columns => '{"name": "$.name"}');
SELECT millrace.create_dictionary('owners', source => 'bronze.owners');
SELECT millrace.create_stream('shop', server => 'source', options => '{"tables": ["public.items", "public.whole", "public.parts"], "snapshot_chunk": 300, "snapshot_parallel": 3}',
    enrich => '{"owner": ["owners", "$.owner"], "kind": ["owners", "$.doc.kind"]}');
SELECT millrace.create_staging('bronze.items', stream => 'shop', source_table => 'public.items');
SELECT millrace.create_staging('bronze.whole', stream => 'shop', source_table => 'public.whole');
SELECT millrace.create_staging('bronze.parts', stream => 'shop', source_table => 'public.parts');
SELECT millrace.create_staging('silver.items', stream => 'shop', source_table => 'public.items', key => '{"id": ["$.id", "int"]}', payload => 'none',
    columns => '{"owner": "$.owner", "price": ["$.price", "numeric(12,2)"], "amount": ["$.amount", "int"], "state": "$.state", "n": ["$.doc.n", "int"]}',
    computed => '{"total": ["price * amount", "numeric(14,2)"]}', filter => $$ state <> 'bad' $$);
SELECT millrace.create_staging('silver.tags', stream => 'shop', source_table => 'public.items', key => '{"id": ["$.id", "int"]}', for_each => '$.doc.tags[*]', columns => '{"t": "@.t"}');
SELECT millrace.create_staging('silver.named', stream => 'shop', source_table => 'public.items', key => '{"id": ["$.id", "int"]}', payload => 'none', log => true,
    columns => '{"state": "$.state", "owner_name": "$dict.owner.name", "kind_name": "$dict.kind.name", "big": "$.big"}', filter => $$ owner_name <> 'Owner o7' AND state <> 'bad' $$);
SELECT millrace.create_mart('gold.by_owner', $$ SELECT owner, count(*) AS n, sum(total)::numeric(18,2) AS total FROM silver.items GROUP BY owner $$);
SELECT millrace.start_stream('owners');
SELECT millrace.start_stream('shop');
'''

# What is compared: at the source, and at the target.
COMPARED = {
    'mirror': ('SELECT id, owner, price, amount, state, md5(big), doc FROM public.items ORDER BY 1',
               'SELECT id, owner, price, amount, state, md5(big), doc FROM bronze.items ORDER BY 1'),
    'mirror of a table with full identity': ('SELECT id, name, md5(big) FROM public.whole ORDER BY 1', 'SELECT id, name, md5(big) FROM bronze.whole ORDER BY 1'),
    'mirror of a partitioned table': ('SELECT id, day, v FROM public.parts ORDER BY 1, 2', 'SELECT id, day, v FROM bronze.parts ORDER BY 1, 2'),
    'filtered and computed': ("SELECT id, owner, price, amount, state, (doc ->> 'n')::int, price * amount FROM public.items WHERE state <> 'bad' ORDER BY 1",
                              'SELECT id, owner, price, amount, state, n, total FROM silver.items ORDER BY 1'),
    'elements of a json column': ("SELECT id, n, t ->> 't' FROM public.items, jsonb_array_elements(doc -> 'tags') WITH ORDINALITY AS e (t, n) ORDER BY 1, 2",
                                  'SELECT id, _element, t FROM silver.tags ORDER BY 1, 2'),
    'enriched': ("SELECT id, state, 'Owner ' || owner, 'Owner ' || (doc ->> 'kind'), md5(big) FROM public.items WHERE owner <> 'o7' AND state <> 'bad' ORDER BY 1",
                 'SELECT id, state, owner_name, kind_name, md5(big) FROM silver.named ORDER BY 1'),
    'mart': ("SELECT owner, count(*), sum(price * amount) FROM public.items WHERE state <> 'bad' GROUP BY 1 ORDER BY 1", 'SELECT owner, n, total FROM gold.by_owner ORDER BY 1'),
}


class Writer(threading.Thread):
    """One session at the source, until it is told to stop."""

    def __init__(self, dsn, seed):
        super().__init__(daemon=True)
        self.dsn, self.random, self.stopping, self.transactions = dsn, random.Random(seed), False, 0

    def statement(self):
        r = self.random
        i, j = r.randint(1, 6000), r.randint(1, 6000)
        return r.choices([
            f"INSERT INTO public.items VALUES ({i}, 'o{i % 50}', {r.random() * 100:.2f}, {r.randint(0, 9)}, 'new', repeat('z{j}', {r.choice([1, 900])}), "
            f"'{{\"n\": {j}, \"kind\": \"o{j % 50}\", \"tags\": [{{\"t\": \"c{j % 7}\"}}]}}') ON CONFLICT (id) DO UPDATE SET amount = EXCLUDED.amount, state = 'done'",
            f"UPDATE public.items SET price = {r.random() * 100:.2f}, state = '{r.choice(['new', 'done', 'bad'])}' WHERE id BETWEEN {i} AND {i + r.choice([0, 0, 0, 40])}",
            f"UPDATE public.items SET doc = jsonb_set(doc, '{{n}}', '{j}') WHERE id = {i}",
            f"UPDATE public.items SET big = repeat('w{j}', {r.choice([1, 900])}) WHERE id = {i}",
            f"UPDATE public.items SET id = {j} WHERE id = {i} AND NOT EXISTS (SELECT FROM public.items WHERE id = {j})",
            f"DELETE FROM public.items WHERE id BETWEEN {i} AND {i + r.choice([0, 0, 20])}",
            f"UPDATE public.whole SET name = 'm{j}' WHERE id = {i % 600}",
            f"UPDATE public.whole SET id = {j % 600} WHERE id = {i % 600} AND NOT EXISTS (SELECT FROM public.whole WHERE id = {j % 600})",
            f"INSERT INTO public.whole VALUES ({i % 600}, 'w{j}', repeat('v{j}', 900)) ON CONFLICT DO NOTHING",
            f"DELETE FROM public.whole WHERE id = {i % 600}",
            f"UPDATE public.parts SET day = (day + {r.randint(1, 9)}) % 10 WHERE id = {i}",
            f"INSERT INTO public.parts VALUES ({i}, {j % 10}, 'p{j}') ON CONFLICT (id, day) DO UPDATE SET v = EXCLUDED.v",
            f"INSERT INTO public.items SELECT 10000 + {i} * 10 + g, 'o1', 1, 1, 'new', NULL, '{{\"tags\": []}}' FROM generate_series(1, 200) g ON CONFLICT DO NOTHING",
            'DELETE FROM public.items WHERE id >= 10000',
        ], weights=[12, 20, 6, 6, 5, 6, 4, 2, 3, 2, 4, 4, 0.4, 0.2])[0]

    def run(self):
        while not self.stopping:
            try:
                connection = psycopg2.connect(self.dsn)
                while not self.stopping:
                    with connection.cursor() as cursor:
                        for _ in range(self.random.choice([1, 1, 1, 3, 20])):
                            # Within what else the transaction does.
                            if self.random.random() < 0.003:
                                cursor.execute(self.random.choice(['', 'SAVEPOINT a;']) + 'TRUNCATE public.whole' + self.random.choice(['', ', public.parts']))
                            cursor.execute(self.statement())
                    if self.random.random() < 0.1:
                        connection.rollback()
                    else:
                        connection.commit()
                    self.transactions += 1
                connection.close()
            except psycopg2.Error:
                time.sleep(0.05)                    # a conflict with another session, or the source is down


def one(dsn, sql):
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def execute(dsn, sql, arguments=None):
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(sql, arguments)
    connection.close()


def rows(dsn, sql):
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def try_to(action):
    try:
        return action()
    except psycopg2.Error:
        return None


def learn(target, owners):
    try_to(lambda: execute(target, "SELECT millrace.push('owners', json_build_object('owner', 'o' || n, 'name', 'Owner o' || n)) FROM unnest(%s) n", (owners,)))


def disturb(shell, draw, source, target, kills):
    """Something that must make no difference."""
    what = draw.choice(['again', 'again', 'some', 'pause', 'resume', 'owners', 'owners'] + ['worker', 'target', 'source'] * kills)
    if what in ('again', 'some'):
        table = draw.choice(['items', 'whole', 'parts'])
        try_to(lambda: execute(target, 'SELECT millrace.resnapshot(%s, %s, %s)', ('shop', f'public.{table}', 'id % 3 = 0' if what == 'some' else None)))
        return f'{what}: {table}'
    if what == 'owners':
        learn(target, draw.sample(range(50), 10))
    elif what in ('pause', 'resume'):
        try_to(lambda: execute(target, f"SELECT millrace.{what}_snapshot('shop')"))
    elif what == 'worker':
        pid = try_to(lambda: one(target, 'SELECT max(pid) FROM millrace.worker'))
        if pid:
            os.kill(pid, signal.SIGKILL)
    else:
        with open(os.path.join(shell.work, what, 'data', 'postmaster.pid')) as file:
            os.kill(int(file.readline()), signal.SIGKILL)
        # The server can start when everybody who hangs on the shared memory has noticed.
        shell.run(f'start_again() {{ (pg_start "$work/{what}"); }}; wait_for 180 start_again')
    return what


def difference(source, target, name):
    at_source, at_target = COMPARED[name]
    left, right = rows(source, at_source), rows(target, at_target)
    if left == right:
        return None
    missing, extra = [r for r in left if r not in right][:3], [r for r in right if r not in left][:3]
    return f'{len(left)} at the source, {len(right)} here; missing {missing}, too much {extra}'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument('--long', action='store_true')
    parser.add_argument('--seconds', type=int)
    parser.add_argument('--kills', type=int, default=1)
    options = parser.parse_args()
    seconds = options.seconds or (300 if options.long else 15)
    draw = random.Random(options.seed)
    say(f'seed {options.seed}')
    failed = False
    with Shell() as shell:
        shell.run('pg_start "$work/source" "wal_level = logical" "shared_preload_libraries = \'\'" "restart_after_crash = on"')
        source_host, source_port = shell.value('$PGHOST'), shell.value('$PGPORT')
        source = f'host={source_host} port={source_port} user=postgres dbname=postgres'
        shell.run('pg_start "$work/target" "millrace.databases = postgres" "max_worker_processes = 16"')
        target = f"host={shell.value('$PGHOST')} port={shell.value('$PGPORT')} user=postgres dbname=postgres"
        execute(source, SOURCE)
        writers = [Writer(source, draw.random()) for _ in range(3)]
        for writer in writers:
            writer.start()
        execute(target, TARGET, {'host': source_host, 'port': source_port})
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(draw.expovariate(1 / 1.5), max(end - time.monotonic(), 0)))
            say(disturb(shell, draw, source, target, options.kills))
        for writer in writers:
            writer.stopping = True
        for writer in writers:
            writer.join()
        # Whoever was killed last may still be coming back.
        wait_for('the target', lambda: try_to(lambda: execute(target, "SELECT millrace.resume_snapshot('shop')") or True))
        learn(target, list(range(50)))
        say(f'{sum(writer.transactions for writer in writers)} transactions')
        lsn = one(source, 'SELECT pg_current_wal_lsn()')
        # A change of its own, after which all have come.
        execute(source, "INSERT INTO public.parts VALUES (-1, 0, 'last') ON CONFLICT (id, day) DO UPDATE SET v = 'last'")
        try:
            wait_for('the end of the stream', lambda: try_to(lambda: one(target, "SELECT NOT EXISTS (SELECT FROM millrace.snapshot_status WHERE state <> 'done') AND NOT EXISTS (SELECT FROM millrace.pending_message) AND NOT EXISTS (SELECT FROM millrace.snapshot_key) "
                                                                          f"AND (SELECT position_lsn::pg_lsn FROM millrace.replication_status) > '{lsn}'")), 60)
        except TimeoutError:
            print('not ok - the stream comes to its end')
            say(try_to(lambda: rows(target, 'SELECT * FROM millrace.snapshot_status')))
            say(try_to(lambda: rows(target, 'SELECT * FROM millrace.stream_status')))
            say(try_to(lambda: rows(target, 'SELECT * FROM millrace.replication_status')))
            say(try_to(lambda: rows(target, 'SELECT staging, dictionary, count(*) FROM millrace.pending_message GROUP BY 1, 2')))
            say(lsn)
            failed = True
        for name in COMPARED:
            what = difference(source, target, name)
            print(f'not ok - {name}: {what}' if what else f'ok - {name}')
            failed = failed or what is not None
        letters = rows(target, 'SELECT staging, sqlstate, message, count(*) FROM millrace.dead_letter GROUP BY 1, 2, 3')
        print(f'not ok - no dead letters: {letters}' if letters else 'ok - no dead letters')
        failed = failed or bool(letters)
        if failed:
            shell.run('grep -E "terminated|PANIC|ERROR|waits" "$work/target/server.log" | tail -n 30 >&2')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
