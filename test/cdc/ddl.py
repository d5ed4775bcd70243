#!/usr/bin/python3
"""The source's tables change: a mirror follows what is safe; else the stream stops, says what to run, and goes on after it.

Rows that were there before and after, and those that change while it happens, are what the source has in the end.
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from database import Database, finish, is_          # noqa: E402
from shell import Shell                             # noqa: E402

STATE = "SELECT state FROM millrace.stream_status"
HINT = 'SELECT hint FROM millrace.worker_status'


def main():
    with Shell() as shell:
        shell.run('pg_start "$work/pg" "wal_level = logical" "fsync = off" "millrace.databases = postgres" "max_worker_processes = 16"')
        shell.environ()
        dsn = f"host={os.environ['PGHOST']} port={os.environ['PGPORT']} user=postgres"
        target = Database(f'{dsn} dbname=postgres')
        target.query('CREATE DATABASE shop')
        source = Database(f'{dsn} dbname=shop')
        source.query("""CREATE TABLE public.t (id int PRIMARY KEY, code text NOT NULL UNIQUE, a int, b varchar(5), c numeric(6,2), gone text, "old Name" text);
                        INSERT INTO public.t SELECT i, 'c' || i, i, 'b', 1.5, 'x', 'o' FROM generate_series(1, 100) i;
                        CREATE TABLE public.mapped (id int PRIMARY KEY, a int, gone text); INSERT INTO public.mapped VALUES (1, 1, 'x')""")
        target.query(f"""CREATE EXTENSION millrace; CREATE SCHEMA bronze;
            CREATE SERVER source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{os.environ['PGHOST']}', port '{os.environ['PGPORT']}', dbname 'shop');
            CREATE USER MAPPING FOR postgres SERVER source OPTIONS (username 'postgres');
            SELECT millrace.create_stream('shop', server => 'source', options => '{{"tables": ["public.t", "public.mapped"]}}');
            SELECT millrace.create_staging('bronze.t', stream => 'shop', source_table => 'public.t');
            SELECT millrace.create_staging('bronze.mapped', stream => 'shop', source_table => 'public.mapped', key => '{{"id": ["$.id", "int"]}}', columns => '{{"a": ["$.a", "int"], "gone": "$.gone"}}');
            SELECT millrace.start_stream('shop')""")
        target.becomes('the tables are copied', "SELECT count(*)::int FROM millrace.snapshot_status WHERE state = 'done'", 2)

        # What an update leaves out matters only to those that may not have it.
        large = "SELECT string_agg(substring(message FROM '^table .* and (.*) has a filter'), ',') FROM millrace.validate('shop') WHERE message ~ 'large values'"
        is_('validate() has nothing to say of large values', target.one(large), None)
        target.query("""SELECT millrace.create_staging('bronze.few', stream => 'shop', source_table => 'public.mapped', key => '{"id": ["$.id", "int"]}', columns => '{"a": ["$.a", "int"], "gone": "$.gone"}',
            filter => 'a < 100')""")
        is_('but where a filter keeps rows out', target.one(large), 'bronze.few')
        is_('a staging table that comes later says how it gets what was there', "SELECT millrace.resnapshot('shop', 'public.mapped')" in target.connection.notices[-1], True)

        def same(what, columns, key='id'):
            sql = f"SELECT string_agg(t::text, '|' ORDER BY {key}) FROM (SELECT {columns} FROM %s.t) t"
            target.becomes(what, sql % 'bronze', source.one(sql % 'public'))

        def obey_hint(what, columns):
            """Drops what the hint says, sees that the mirror goes on, and declares it again."""
            run, again = target.one("SELECT regexp_match(hint, '^Run (SELECT .*); when the stream runs again: (SELECT .*)$') FROM millrace.worker_status")
            target.query(run)
            same(what, columns)
            target.query(again)

        # What is safe. A column comes with the next change of the table.
        source.query("ALTER TABLE public.t ADD COLUMN note text; UPDATE public.t SET note = 'n' WHERE id < 3")
        same('a column is added', 'id, code, a, b, c, gone, "old Name", note')
        source.query("ALTER TABLE public.t ADD COLUMN n int DEFAULT 7; ALTER TABLE public.t ADD COLUMN \"At\" timestamptz NOT NULL DEFAULT '2024-01-01 00:00+00'; UPDATE public.t SET a = 0 WHERE id = 5")
        same('columns are added with a default, which old rows have', 'id, a, note, n, "At"')
        source.query("""BEGIN; INSERT INTO public.t (id, code) VALUES (200, 'c200'); ALTER TABLE public.t ADD COLUMN within int DEFAULT 1; UPDATE public.t SET within = 2 WHERE id = 200;
                        INSERT INTO public.t (id, code) VALUES (201, 'c201'); COMMIT""")
        same('a column is added within a transaction that changes rows', 'id, code, n, within')
        source.query("ALTER TABLE public.t ALTER a TYPE bigint, ALTER b TYPE text, ALTER c TYPE numeric(20,2); UPDATE public.t SET a = 10000000000, b = 'longer than five', c = 123456789012.25 WHERE id = 7")
        same('columns become wider', 'id, a, b, c')
        is_('with their types', target.query("SELECT string_agg(format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'bronze.t'::regclass AND attname IN ('a', 'b', 'c')"), [('bigint, text, numeric(20,2)',)])
        source.query("ALTER TABLE public.t ALTER a TYPE int USING 1, ALTER c TYPE numeric(9,2) USING 2; UPDATE public.t SET a = 3 WHERE id = 8")
        target.becomes('one that is narrowed fits in what is there', 'SELECT a::int FROM bronze.t WHERE id = 8', 3)
        source.query("ALTER TABLE public.t ALTER id TYPE bigint; INSERT INTO public.t (id, code) VALUES (10000000000, 'far'); DELETE FROM public.t WHERE id = 4; UPDATE public.t SET id = 20000000000 WHERE id = 3")
        same('so does the key, by which rows are still found', 'id, code')
        is_('here, too', target.one("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'bronze.t'::regclass AND attname = 'id'"), 'bigint')
        source.query("ALTER TABLE public.t ADD COLUMN _version int DEFAULT 1, ADD COLUMN payload text DEFAULT 'p'; UPDATE public.t SET _version = 2, payload = 'q' WHERE id = 12")
        same('a column whose name is taken is left out, others come', 'id, payload')
        is_('with an incident', target.query("SELECT kind, detail FROM millrace.incident"), [('column_left_out', 'column "_version" of table public.t is not in its mirror bronze.t, because its name is taken by millrace itself')])
        source.query("ALTER TABLE public.t DROP COLUMN _version; UPDATE public.t SET payload = 'r' WHERE id = 13")
        same('nor does it matter when it goes', 'id, payload')
        is_('all this without stopping', target.one(STATE), 'running')

        # A mart reads a column: its own would become another one.
        target.query("CREATE SCHEMA gold; SELECT millrace.create_mart('gold.m', 'SELECT n, count(*) AS rows FROM bronze.t GROUP BY n'); CREATE VIEW gold.v AS SELECT id, note FROM bronze.t")
        target.becomes('a mart is filled', 'SELECT sum(rows)::int FROM gold.m', source.one('SELECT count(*)::int FROM public.t'))
        source.query('ALTER TABLE public.t ALTER n TYPE bigint; UPDATE public.t SET n = 10000000000 WHERE id = 14')
        target.becomes('a wider column that a mart reads stops the stream', STATE, 'failed')
        target.says('it says which', 'column "n" of table public.t is bigint at the source now, and its mirror bronze.t cannot follow because mart gold.m reads it')
        obey_hint('without the mart it goes on', 'id, n')
        target.becomes('which comes again', 'SELECT sum(rows)::int FROM gold.m WHERE n = 10000000000', 1)
        # So does a model, which batches keep.
        source.query("ALTER TABLE public.t ADD COLUMN title varchar(2); UPDATE public.t SET title = 't' WHERE id = 14")
        same('a column comes', 'id, title')
        target.query("CREATE SCHEMA ml; SELECT millrace.create_model('ml.noted', 'item_knn', 'SELECT id, title FROM bronze.t')")
        source.query("ALTER TABLE public.t ALTER title TYPE text; UPDATE public.t SET title = 'longer' WHERE id = 14")
        target.becomes('a wider column that a model reads stops the stream, too', STATE, 'failed')
        target.says('it says which model', 'cannot follow because model ml.noted reads it')
        obey_hint('without the model it goes on', 'id, title')
        is_('which comes again', target.one("SELECT count(*)::int FROM millrace.model_status WHERE model = 'ml.noted'"), 1)
        target.query("SELECT millrace.drop_model('ml.noted')")

        source.query('ALTER TABLE public.t ADD COLUMN short varchar(2); UPDATE public.t SET short = \'s\' WHERE id = 15')
        same('another column comes', 'id, short')
        target.query('CREATE VIEW gold.mine AS SELECT short FROM bronze.t')
        source.query('ALTER TABLE public.t ALTER short TYPE text; UPDATE public.t SET short = \'longer\' WHERE id = 16')
        target.becomes('one that a view reads stops it, too', STATE, 'failed')
        target.says('it says why', 'cannot follow: cannot alter type of a column used by a view or rule')
        is_('which view', 'gold.mine' in target.one('SELECT detail FROM millrace.worker_status'), True)
        target.query('DROP VIEW gold.mine')
        same('and goes on without it', 'id, short')
        target.query("DROP VIEW gold.v; SELECT millrace.drop_table('gold.m')")
        target.query("SELECT millrace.resnapshot('shop', 'public.t')")
        same('a table that was rewritten is as it is when it was copied again', 'id, a, c')

        # Dropped and renamed.
        source.query("ALTER TABLE public.t DROP COLUMN gone; INSERT INTO public.t (id, code) VALUES (300, 'c300')")
        target.becomes('a column that is dropped stops the stream', STATE, 'failed')
        target.says('it says why', 'column "gone" of table public.t was dropped or renamed at the source')
        statement = target.one("SELECT substring(hint FROM 'SELECT millrace.create_staging.*true\\)') FROM millrace.worker_status")
        is_('and what to run', statement, "SELECT millrace.create_staging('bronze.t',\n  stream => 'shop',\n  source_table => 'public.t',\n  replace => true)")
        target.query(statement)
        same('after which it goes on', 'id, code, a')
        target.becomes('and runs', STATE, 'running')
        is_('the column keeps what was in it', target.one("SELECT gone FROM bronze.t WHERE id = 9"), 'x')
        source.query("ALTER TABLE public.t RENAME \"old Name\" TO \"new Name\"; INSERT INTO public.t (id, code, \"new Name\") VALUES (301, 'c301', 'y')")
        target.becomes('so does one that is renamed', STATE, 'failed')
        target.query(target.one("SELECT substring(hint FROM 'SELECT millrace.create_staging.*true\\)') FROM millrace.worker_status"))
        same('which comes under its new name, old rows included', 'id, "new Name"')

        # Another type, another key.
        source.query("ALTER TABLE public.t ALTER b TYPE int USING 5; INSERT INTO public.t (id, code) VALUES (302, 'c302')")
        target.becomes('another type stops the stream', STATE, 'failed')
        target.says('it says so', 'column "b" of table public.t is integer at the source now, and text in its mirror bronze.t')
        is_('and what to do', "millrace.drop_table('bronze.t', cascade => true)" in target.one(HINT), True)
        again = "SELECT millrace.drop_table('bronze.t', cascade => true); SELECT millrace.create_staging('bronze.t', stream => 'shop', source_table => 'public.t'); SELECT millrace.resnapshot('shop', 'public.t')"
        target.query(again)
        same('after which it goes on', 'id, code, b')
        source.query("ALTER TABLE public.t DROP CONSTRAINT t_pkey; ALTER TABLE public.t ADD PRIMARY KEY (code); UPDATE public.t SET a = 4 WHERE id = 9; DELETE FROM public.t WHERE id = 10")
        target.becomes('another key stops the stream', STATE, 'failed')
        target.says('it says so', 'column "id" of table public.t is not of its replica identity any more')
        target.query(again)
        same('after which it goes on with that key', 'code, id, a', 'code')
        is_('which the mirror has', target.one("SELECT string_agg(a.attname, ', ') FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) WHERE i.indrelid = 'bronze.t'::regclass AND i.indisprimary"), 'code')
        source.query("DELETE FROM public.t WHERE code = 'c11'; UPDATE public.t SET code = 'd12' WHERE code = 'c12'")
        same('and rows are found by it', 'code, id', 'code')

        # Replica identities.
        source.query("""CREATE TABLE public.by_index (id int PRIMARY KEY, code text NOT NULL UNIQUE, v int); ALTER TABLE public.by_index REPLICA IDENTITY USING INDEX by_index_code_key;
                        CREATE TABLE public.by_nothing (id int PRIMARY KEY, v int); ALTER TABLE public.by_nothing REPLICA IDENTITY NOTHING; INSERT INTO public.by_index VALUES (1, 'a', 1), (2, 'b', 2)""")
        options = '{"tables": ["public.t", "public.mapped", "public.by_index", "public.by_nothing"]}'
        target.query(f"SELECT millrace.create_stream('shop', server => 'source', options => '{options}', replace => true)")
        target.query("SELECT millrace.create_staging('bronze.by_index', stream => 'shop', source_table => 'public.by_index'); SELECT millrace.create_staging('bronze.by_nothing', stream => 'shop', source_table => 'public.by_nothing')")
        target.becomes('a table that is added is copied', 'SELECT count(*)::int FROM bronze.by_index', 2)
        source.query("INSERT INTO public.by_nothing VALUES (1, 1); DELETE FROM public.by_index WHERE id = 1; UPDATE public.by_index SET code = 'c' WHERE id = 2")
        target.becomes('rows are found by the index of the replica identity', "SELECT string_agg(code || id || v, ',') FROM bronze.by_index", 'c22')
        target.becomes('what has no identity is inserted', 'SELECT count(*)::int FROM bronze.by_nothing', 1)
        source.fails('and cannot be updated there', 'UPDATE public.by_nothing SET v = 2', 'does not have a replica identity')

        # A type that is here, too, is still known when a column is added.
        for database in source, target:
            database.query("CREATE TYPE public.mood AS ENUM ('fine', 'bad')")
        source.query("CREATE TABLE public.moody (id int PRIMARY KEY, m public.mood); INSERT INTO public.moody VALUES (1, 'fine')")
        options = options.replace(']', ', "public.moody"]')
        target.query(f"SELECT millrace.create_stream('shop', server => 'source', options => '{options}', replace => true); SELECT millrace.create_staging('bronze.moody', stream => 'shop', source_table => 'public.moody')")
        target.becomes('a table with a type of its own is copied', 'SELECT max(m)::text FROM bronze.moody', 'fine')
        source.query("ALTER TABLE public.moody ADD COLUMN n int; UPDATE public.moody SET n = 1, m = 'bad'")
        target.becomes('and followed', 'SELECT max(m) || max(n)::text FROM bronze.moody', 'bad1', 60)

        # What was mapped stays as it was declared.
        source.query("ALTER TABLE public.mapped DROP COLUMN gone; ALTER TABLE public.mapped ADD COLUMN more int; UPDATE public.mapped SET a = 2, more = 3")
        target.becomes('a mapping of a column that is gone has nothing', "SELECT a || coalesce(gone, ' nothing') FROM bronze.mapped", '2 nothing')

        # Tables that are exchanged for others, which the publication does not have.
        source.query("""BEGIN; ALTER TABLE public.t RENAME TO t_old; CREATE TABLE public.t (LIKE public.t_old INCLUDING ALL); COMMIT;
                        INSERT INTO public.t_old (code, id) VALUES ('not here', 1000); INSERT INTO public.t (code, id) VALUES ('here', 1001);
                        DROP TABLE public.mapped; CREATE TABLE public.mapped (id int PRIMARY KEY, a int); INSERT INTO public.mapped VALUES (5, 50)""")
        target.becomes('a table that takes the place of another one is copied', "SELECT string_agg(code, ',') FROM bronze.t", 'here')
        target.becomes('so is one that was dropped and created again', "SELECT string_agg(a::text, ',') FROM bronze.mapped", '50')
        is_('which is an incident', target.one("SELECT count(*)::int FROM millrace.incident WHERE kind = 'table_replaced'"), 2)
        source.query("INSERT INTO public.t (code, id) VALUES ('more', 1002)")
        target.becomes('and changes of it come', "SELECT string_agg(code, ',' ORDER BY code) FROM bronze.t", 'here,more')
        is_('nothing was refused', target.query('SELECT staging, message FROM millrace.dead_letter'), [])
        finish(shell)


if __name__ == '__main__':
    main()
