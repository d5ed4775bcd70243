#!/usr/bin/python3
"""Several changes of one row in one transaction of the source: what is made of the log of them is what was made of the changes."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from database import Database, finish, is_          # noqa: E402
from shell import Shell                             # noqa: E402


def main():
    with Shell() as shell:
        shell.run('pg_start "$work/source" "wal_level = logical" "fsync = off" "shared_preload_libraries = \'\'"')
        host, port = shell.value('$work/source'), shell.value('$PGPORT')
        source = Database(f'host={host} port={port} user=postgres dbname=postgres')
        shell.run('pg_start "$work/target" "fsync = off" "millrace.databases = \'\'"')
        shell.environ()
        target = Database('user=postgres dbname=postgres')
        source.query("CREATE TABLE public.doc (id int PRIMARY KEY, v text); INSERT INTO public.doc SELECT i, 'first' FROM generate_series(1, 6) i")
        target.query(f"""CREATE EXTENSION millrace; CREATE SCHEMA bronze;
            CREATE SERVER away FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{host}', port '{port}', dbname 'postgres');
            CREATE USER MAPPING FOR postgres SERVER away OPTIONS (username 'postgres');
            SELECT millrace.create_stream('docs', server => 'away', options => '{{"tables": ["public.doc"]}}');
            SELECT millrace.create_staging('bronze.doc', stream => 'docs', source_table => 'public.doc', log => true);
            SELECT millrace.create_hub('bronze.h_doc', source => 'bronze.doc', business_key => '{{id}}');
            SELECT millrace.create_satellite('bronze.s_doc', source => 'bronze.doc', parent => 'bronze.h_doc', attributes => '{{v}}');
            SELECT millrace.run_stream('docs')""")
        for changes in ("UPDATE public.doc SET v = 'last' WHERE id = 1; DELETE FROM public.doc WHERE id = 1",
                        "DELETE FROM public.doc WHERE id = 2; INSERT INTO public.doc VALUES (2, 'again')",
                        "INSERT INTO public.doc VALUES (7, 'a'); UPDATE public.doc SET v = 'b' WHERE id = 7; UPDATE public.doc SET v = 'c' WHERE id = 7",
                        "INSERT INTO public.doc VALUES (8, 'a'); DELETE FROM public.doc WHERE id = 8",
                        "UPDATE public.doc SET v = 'z' WHERE id = 3; UPDATE public.doc SET id = 9 WHERE id = 3; UPDATE public.doc SET v = 'y' WHERE id = 9"):
            source.query(f'BEGIN; {changes}; COMMIT')
        target.query("SELECT millrace.run_stream('docs')")
        said = '''SELECT h.id, s.v, s.is_deleted, s.applied_at, s.hashdiff FROM bronze.%s s JOIN bronze.h_doc h USING (h_doc_hk) WHERE h.id IS NOT NULL ORDER BY 1, 4, 5'''
        shown = 'SELECT h.id, s.v FROM bronze.%s_current s JOIN bronze.h_doc h USING (h_doc_hk) ORDER BY 1'
        staged = 'SELECT id, v FROM bronze.doc ORDER BY 1'
        wrong = "SELECT missing + unexpected FROM millrace.verify('bronze.%s')"
        there = source.query('SELECT id, v FROM public.doc ORDER BY 1')
        is_('the mirror is as its source', target.query(staged), there)
        is_('so is what is current of the satellite', target.query(shown % 's_doc'), there)
        rows = target.query(said % 's_doc')
        is_('nothing is wrong', [target.one(wrong % name) for name in ('doc', 'h_doc', 's_doc')], [0, 0, 0])
        target.query("SELECT millrace.create_satellite('bronze.s_later', source => 'bronze.doc', parent => 'bronze.h_doc', attributes => '{v}'); SELECT millrace.run_stream('docs')")
        is_('a satellite that is filled from the log is the same', target.query(said % 's_later'), rows)
        target.query("SELECT millrace.rebuild('bronze.s_doc')")
        is_('so is one that is rebuilt', target.query(said % 's_doc'), rows)
        target.query("DELETE FROM bronze.doc WHERE id IN (2, 7); SELECT millrace.rebuild('bronze.doc')")
        is_('and the mirror', target.query(staged), there)

        # Where a column is declared to be the version, it orders changes of one transaction, too.
        source.query('CREATE TABLE public.note (id int PRIMARY KEY, n int, v text); ALTER TABLE public.note REPLICA IDENTITY FULL')
        target.query("""SELECT millrace.create_stream('notes', server => 'away', options => '{"tables": ["public.note"]}');
            SELECT millrace.create_staging('bronze.note', stream => 'notes', source_table => 'public.note', log => true, version => '["$.n", "integer"]', key => '{"id": ["$.id", "integer"]}', columns => '{"v": "$.v"}');
            SELECT millrace.create_hub('bronze.h_note', source => 'bronze.note', business_key => '{id}');
            SELECT millrace.create_satellite('bronze.s_note', source => 'bronze.note', parent => 'bronze.h_note', attributes => '{v}');
            SELECT millrace.run_stream('notes')""")
        source.query("BEGIN; INSERT INTO public.note VALUES (1, 5, 'five'), (2, 1, 'one'); UPDATE public.note SET (n, v) = (3, 'three') WHERE id = 1; UPDATE public.note SET (n, v) = (2, 'second') WHERE id = 2; UPDATE public.note SET v = 'two' WHERE id = 2; COMMIT")
        target.query("SELECT millrace.run_stream('notes')")
        is_('the highest version is staged', target.query('SELECT id, v FROM bronze.note ORDER BY 1'), [(1, 'five'), (2, 'two')])
        rows = target.query("SELECT h.id, s.v FROM bronze.s_note s JOIN bronze.h_note h USING (h_note_hk) WHERE h.id IS NOT NULL ORDER BY 1, 2")
        is_('every version is known, of those that say the same the last', rows, [(1, 'five'), (1, 'three'), (2, 'one'), (2, 'two')])
        is_('nothing is wrong', [target.one(wrong % name) for name in ('note', 'h_note', 's_note')], [0, 0, 0])
        target.query("SELECT millrace.rebuild('bronze.s_note')")
        is_('rebuilt, it is the same', target.query("SELECT h.id, s.v FROM bronze.s_note s JOIN bronze.h_note h USING (h_note_hk) WHERE h.id IS NOT NULL ORDER BY 1, 2"), rows)
        finish(shell)


if __name__ == '__main__':
    main()
