"""What tests share: a database as somebody sees it, and what was found.

    shop = Database('host=… dbname=shop')
    shop.query('SELECT …'), shop.one('SELECT …')
    bronze.becomes('a name', 'SELECT …', 3)     polls, and says whether it became so
    finish()                                    ends with 1 when something was not ok
"""
import sys

import psycopg2

from shell import wait_for

failed = 0


def is_(what, found, wanted):
    global failed
    good = found == wanted
    failed += not good
    print(f"{'ok' if good else 'not ok'} - {what}", flush=True)
    if not good:
        print(f'# found {found!r}, wanted {wanted!r}', flush=True)
    return good


def finish(shell):
    if failed:
        shell.run('for log in "$work"/*/server.log; do grep -E "terminated|PANIC|ERROR|FATAL|waits" "$log" | tail -n 20 >&2 || true; done')
    sys.exit(1 if failed else 0)


class Database:
    def __init__(self, dsn=''):
        self.dsn = dsn
        self.connect()

    def connect(self):
        self.connection = psycopg2.connect(self.dsn)
        self.connection.autocommit = True

    def query(self, sql, *arguments):
        cursor = self.connection.cursor()
        cursor.execute(sql, arguments or None)
        return cursor.fetchall() if cursor.description else []

    def one(self, sql, *arguments):
        return self.query(sql, *arguments)[0][0]

    def fails(self, what, sql, part):
        """The statement fails, and message or hint have the part."""
        try:
            self.query(sql)
            return is_(what, 'it works', part)
        except psycopg2.Error as error:
            said = ' '.join(filter(None, (error.diag.message_primary, error.diag.message_detail, error.diag.message_hint)))
            return is_(what, part if part in said else said, part)

    def becomes(self, what, sql, wanted, seconds=240):
        found = [None]

        def same():
            try:
                found[0] = self.one(sql)
            except psycopg2.ProgrammingError as error:      # a column, say, that is not there yet
                found[0] = str(error)
            return found[0] == wanted

        try:
            wait_for(what, same, seconds)
        except TimeoutError:
            for row in self.query('SELECT w::text FROM millrace.worker_status w UNION ALL SELECT i::text FROM millrace.incident i UNION ALL SELECT t::text FROM millrace.snapshot_status t'):
                print('#', row[0])
        return is_(what, found[0], wanted)

    def says(self, what, part, seconds=240):
        """A worker says it, as what it waits for or failed on."""
        quoted = part.replace("'", "''")
        return self.becomes(what, f"SELECT coalesce((SELECT '{quoted}' WHERE strpos(said, '{quoted}') > 0), said) FROM (SELECT string_agg(concat_ws(' ', last_error, hint), '; ') AS said "
                            "FROM millrace.worker_status) AS w", part, seconds)
