#!/usr/bin/python3
"""Large values that a change leaves as they are and does not send: what completes them is what the row was before.

A copy of the table that is ahead of the stream is not always that: it may have what another row became later.
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from database import Database, finish, is_          # noqa: E402
from shell import Shell, wait_for                   # noqa: E402

ROWS = 'SELECT id, price, left(big, 1), length(big) FROM {} ORDER BY 1'
STOPPED = "SELECT state = 'stopped' FROM millrace.stream_status"


def main():
    with Shell() as shell:
        shell.run('pg_start "$work/pg" "wal_level = logical" "fsync = off" "millrace.databases = postgres" "max_worker_processes = 16"')
        shell.environ()
        dsn = f"host={os.environ['PGHOST']} port={os.environ['PGPORT']} user=postgres"
        target = Database(f'{dsn} dbname=postgres')
        target.query('CREATE DATABASE shop')
        source = Database(f'{dsn} dbname=shop')
        source.query("""CREATE TABLE public.t (id int PRIMARY KEY, price int, big text);
                        CREATE TABLE public.other (i int, t text);
                        ALTER TABLE public.t ALTER COLUMN big SET STORAGE EXTERNAL;
                        INSERT INTO public.t SELECT i, 1, repeat(chr(96 + i), 5000) FROM generate_series(1, 3) i;
                        CREATE TABLE public.docs (id int PRIMARY KEY, state text, mobile text, doc jsonb);
                        ALTER TABLE public.docs ALTER COLUMN doc SET STORAGE EXTERNAL;
                        INSERT INTO public.docs SELECT i, 'new', 'm' || i, jsonb_build_object('pad', repeat('p', 5000), 'phone', 'p' || i,
                            'orders', jsonb_build_array(jsonb_build_object('items', '[{"sku": "a"}, {"sku": "b"}]'::jsonb), jsonb_build_object('items', '[{"sku": "c"}]'::jsonb))) FROM generate_series(1, 3) i""")
        target.query(f"""CREATE EXTENSION millrace; CREATE SCHEMA bronze;
            CREATE SERVER source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{os.environ['PGHOST']}', port '{os.environ['PGPORT']}', dbname 'shop');
            CREATE USER MAPPING FOR postgres SERVER source OPTIONS (username 'postgres');
            SELECT millrace.create_stream('shop', server => 'source', options => '{{"tables": ["public.t", "public.docs"], "snapshot_parallel": 1}}');
            SELECT millrace.create_staging('bronze.t', stream => 'shop', source_table => 'public.t', log => true);
            SELECT millrace.create_staging('bronze.skus', stream => 'shop', source_table => 'public.docs', key => '{{"id": ["$.id", "int"]}}', for_each => '$.doc.orders[*].items[*]', columns => '{{"sku": "@.sku"}}');
            SELECT millrace.create_staging('bronze.phones', stream => 'shop', source_table => 'public.docs', key => '{{"id": ["$.id", "int"]}}',
                columns => '{{"state": "$.state", "phone": [["$.phone", "$.mobile"]], "first": [["$.doc.phone", "$.mobile"]]}}');
            ALTER TABLE bronze.phones ADD CONSTRAINT fine CHECK (state <> 'bad');
            SELECT millrace.start_stream('shop')""")

        def equal(what):
            price = source.one("UPDATE public.t SET price = (SELECT max(price) FROM public.t) + 1 WHERE id = 3 RETURNING price")
            target.becomes(f'{what}: all has come', f"SELECT count(*)::int FROM bronze.t WHERE id = 3 AND price = {price}", 1)
            is_(what, target.query(ROWS.format('bronze.t')), source.query(ROWS.format('public.t')))

        equal('copied')

        # A change that does not send what elements of elements are in.
        skus = "SELECT string_agg(id || ' ' || sku, ',' ORDER BY id, _element) FROM bronze.skus"
        target.becomes('documents are copied', "SELECT count(*)::int FROM millrace.snapshot_status WHERE state = 'done'", 2)
        is_('elements of elements', target.one(skus), '1 a,1 b,1 c,2 a,2 b,2 c,3 a,3 b,3 c')
        source.query("UPDATE public.docs SET state = 'old' WHERE id = 1")
        target.becomes('a change that leaves them as they are', "SELECT state FROM bronze.phones WHERE id = 1", 'old')
        is_('leaves them', target.one(skus), '1 a,1 b,1 c,2 a,2 b,2 c,3 a,3 b,3 c')
        # One that is a dead letter first: a column that its table does not have was not left out, one that was not sent was.
        source.query("UPDATE public.docs SET state = 'bad', mobile = 'new' WHERE id = 2")
        target.becomes('a bad change', 'SELECT count(*)::int FROM millrace.dead_letter', 1)
        target.query('ALTER TABLE bronze.phones DROP CONSTRAINT fine')
        is_('is tried again', target.query("SELECT taken::int, refused::int FROM millrace.retry(filter => $$ stream = 'shop' $$)"), [(1, 0)])
        is_('with what it has sent', target.query('SELECT state, phone, first FROM bronze.phones WHERE id = 2'), [('bad', 'new', 'p2')])

        def ahead(*changes, meanwhile):
            """The table is copied after the changes, of which the stream has none yet; others come while it is copied."""
            target.query("SELECT millrace.stop_stream('shop')")
            wait_for('the stream to stop', lambda: target.one(STOPPED))
            wait_for('the slot', lambda: source.one('SELECT NOT bool_or(active) FROM pg_replication_slots'))
            # The stream has much to read before it finds them; the copy is there first.
            source.query("INSERT INTO public.other SELECT i, repeat('o', 100) FROM generate_series(1, 300000) i")
            for change in changes:
                source.query(change)
            source.query('SELECT pg_advisory_lock(1)')
            target.query("SELECT millrace.resnapshot('shop', 'public.t', $$ pg_advisory_xact_lock_shared(1) IS NOT NULL $$)")
            target.query("SELECT millrace.start_stream('shop')")
            wait_for('the copy', lambda: source.one("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
            for change in meanwhile:
                source.query(change)
            source.query('SELECT pg_advisory_unlock(1)')

        def versions(what, row, were):
            found = target.query(f'SELECT DISTINCT price, left(big, 1) FROM bronze.t_log WHERE id = {row} AND big IS NOT NULL')
            is_(what, sorted(set(found) - set(were)), [])

        # Row 1 became 11, and another one row 1.
        ahead('UPDATE public.t SET id = 11 WHERE id = 1', "INSERT INTO public.t VALUES (1, 1, repeat('z', 5000))", meanwhile=['UPDATE public.t SET price = 7 WHERE id = 11'])
        equal('a row that got another key before the copy has another one under its own')
        versions('no version of it has a value that it never had', 11, [(1, 'a'), (7, 'a')])
        ahead('UPDATE public.t SET price = 8 WHERE id = 2', "UPDATE public.t SET price = 9, big = repeat('y', 5000) WHERE id = 2", meanwhile=['UPDATE public.t SET price = 10 WHERE id = 2'])
        equal('a row that the copy has as it became later')
        versions('no version of this one either', 2, [(1, 'b'), (8, 'b'), (9, 'y'), (10, 'y')])
        finish(shell)


if __name__ == '__main__':
    main()
