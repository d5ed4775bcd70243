#!/usr/bin/python3
"""Kills workers at each named point of a batch, or lets them wait there: afterwards every message, or change of a table, was taken exactly once.

Needs a build with debug points (make DEBUG_POINTS=1 install), as scripts/test.sh makes it.
"""
import os
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
import psycopg2                                     # noqa: E402
from shell import Shell, wait_for                   # noqa: E402

POINTS = ('before_advance', 'before_commit', 'after_commit')
MODEL_POINTS = ('users_counted',)
SLOT_POINTS = ('slot_made', 'slot_settled')
FILL_POINTS = ('in_chunk', 'before_chunk_commit', 'after_chunk')
MESSAGES = 200
SETUP = """
CREATE EXTENSION millrace; CREATE SCHEMA k; CREATE TABLE k.pushed (first integer PRIMARY KEY);
SELECT millrace.create_stream('feed');
SELECT millrace.create_staging('k.things', stream => 'feed', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]',
  columns => '{"name": "$.name", "n": ["$.n", "smallint"]}', log => true);
SELECT millrace.create_hub('k.h_name', source => 'k.things', business_key => '{name}');
SELECT millrace.create_hub('k.h_thing', source => 'k.things', business_key => '{id}');
SELECT millrace.create_satellite('k.s_thing', source => 'k.things', parent => 'k.h_thing', attributes => '{n}');
SELECT millrace.create_mart('k.by_name', 'SELECT name, count(*) AS n, sum(n) AS total FROM k.things GROUP BY name');
SELECT millrace.create_model('k.live', 'item_knn', 'SELECT n, id % 7 FROM k.things', online => true);
SELECT millrace.create_model('k.trained', 'item_knn', 'SELECT n, id % 7 FROM k.things', '{"k": 10000}', keep => 1);
"""


class Server:
    def __init__(self):
        self.connection = None

    def try_query(self, sql):
        """Rows, or None when the server was away."""
        try:
            if self.connection is None:
                self.connection = psycopg2.connect('', connect_timeout=5)
                self.connection.autocommit = True
            cursor = self.connection.cursor()
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
        except psycopg2.Error as error:
            if error.pgcode and error.pgcode[:3] not in ('57P', '080'):
                raise
            self.connection = None
            return None

    def query(self, sql):
        """Rows; again until the server answers, for what may be done twice."""
        def answer():
            rows = self.try_query(sql)
            return None if rows is None else (rows,)

        return wait_for(sql, answer)[0]

    def one(self, sql):
        return wait_for(sql, lambda: self.try_query(sql))[0][0]

    def crashes(self):
        """When the server was started or restarted last."""
        rows = self.try_query("SELECT backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
        return rows[0][0] if rows else None


def push(server, first):
    """
    Every fifth message is a copy, every twentieth is broken, odd things get a second version.  A crash may take the
    answer away: what is pushed is noted, so that it is not pushed twice.
    """
    server.one(f"""WITH pushed AS (INSERT INTO k.pushed VALUES ({first}) ON CONFLICT DO NOTHING RETURNING first) SELECT count(millrace.push('feed', CASE WHEN i % 20 = 7 THEN '{{"id": ' ELSE
        json_build_object('id', i / 2, 'v', i % 2 + 1, 'name', 'n' || i % 3, 'n', i % 50)::text END))
        FROM (SELECT i - (i % 5 = 4)::integer AS i FROM pushed, generate_series({first}, {first + MESSAGES - 1}) i) i""")


def expected(last):
    things, log, letters = {}, 0, 0
    for number in range(last):
        i = number - (number % 5 == 4)
        if i % 20 == 7:
            letters += 1
            continue
        log += 1
        things[i // 2] = max(things.get(i // 2, (0,)), (i % 2 + 1, f'n{i % 3}', i % 50))
    return sorted((key,) + value for key, value in things.items()), log, letters


def check(server, what, last):
    things, log, letters = expected(last)
    found = (server.query('SELECT id, _version, name, n FROM k.things ORDER BY 1'), server.one('SELECT count(*) FROM k.things_log'),
             server.one('SELECT count(*) FROM millrace.letter'))
    current = server.query('SELECT id, n FROM k.s_thing_current ORDER BY 1')
    verified = [server.query(f"SELECT missing, unexpected FROM millrace.verify('k.{name}')") for name in ('by_name', 'live')]
    version = server.one("SELECT millrace.train('k.trained')")
    answers = [server.query(f"SELECT item, rank, neighbour, score FROM k.{name} WHERE version = {number} ORDER BY 1, 2") for name, number in (('live', 1), ('trained', version))]
    same = answers[0] == answers[1]
    good = found == (things, log, letters) and current == [(t[0], t[3]) for t in things] and verified == [[(0, 0)]] * 2 and same
    print(f"{'ok' if good else 'not ok'} - {what}")
    if not good:
        print(f'# {len(found[0])} things of {len(things)}, {found[1]} versions of {log}, {found[2]} letters of {letters}, verify {verified}, online as trained {same}')
    return good


def fill(server, point, last):
    """A hub, a satellite and a mart declared over what is there are filled, and the server is killed at a point of a chunk."""
    server.query(f"ALTER SYSTEM SET millrace.debug_point = '{point}'")
    server.query('ALTER SYSTEM SET millrace.backfill_rows = 50')
    server.query('SELECT pg_reload_conf()')
    wait_for('the setting', lambda: server.one('SHOW millrace.debug_point') == point)
    started = server.crashes()
    # One transaction; the crash may take the answer away.
    server.try_query(f"""CREATE SCHEMA {point};
        SELECT millrace.create_hub('{point}.h_thing', source => 'k.things', business_key => '{{id}}');
        SELECT millrace.create_satellite('{point}.s_thing', source => 'k.things', parent => '{point}.h_thing', attributes => '{{n}}');
        SELECT millrace.create_mart('{point}.by_name', 'SELECT name, count(*) AS n, sum(n) AS total FROM k.things GROUP BY name');
        SELECT millrace.create_model('{point}.live', 'item_knn', 'SELECT n, id % 7 FROM k.things', online => true)""")
    wait_for(f'a crash {point}', lambda: (server.crashes() or started) != started)
    push(server, last)
    server.query('ALTER SYSTEM RESET millrace.debug_point')
    server.query('SELECT pg_reload_conf()')
    wait_for('everything is filled', lambda: server.one("SELECT (SELECT count(*) FROM millrace.target WHERE state <> 'active') + (SELECT count(*) FROM millrace.inbox)") == 0)
    verified = [server.query(f"SELECT missing, unexpected FROM millrace.verify('{point}.{name}')") for name in ('h_thing', 's_thing', 'by_name', 'live')]
    same = server.one(f"""SELECT (SELECT count(*) FROM (SELECT id, n FROM k.s_thing_current EXCEPT SELECT id, n FROM {point}.s_thing_current) d)
        + (SELECT count(*) FROM (SELECT * FROM k.by_name EXCEPT SELECT * FROM {point}.by_name) d)
        + (SELECT count(*) FROM (SELECT * FROM k.live EXCEPT SELECT * FROM {point}.live) d)""") == 0
    good = same and verified == [[(0, 0)]] * 4
    print(f"{'ok' if good else 'not ok'} - filled although killed {point}")
    if not good:
        print(f'# verify {verified}, equal to what was there {same}')
    return good


def complete(server, point):
    """Messages wait for names; when these come to be known, the server is killed at a point of completing them."""
    server.query("""SELECT millrace.create_stream('names');
        SELECT millrace.create_staging('k.names', stream => 'names', payload => 'none', key => '{"id": ["$.id", "integer"]}', columns => '{"name": "$.name"}');
        SELECT millrace.create_dictionary('names', source => 'k.names');
        SELECT millrace.create_stream('asking', enrich => '{"of": ["names", "$.id"]}');
        SELECT millrace.create_staging('k.named', stream => 'asking', key => '{"id": ["$.id", "integer"]}', columns => '{"name": "$dict.of.name"}', log => true);
        SELECT millrace.create_hub('k.h_named', source => 'k.named', business_key => '{name}');
        SELECT count(millrace.push('asking', json_build_object('id', i))), millrace.start_stream('asking') FROM generate_series(1, 50) i""")
    wait_for('messages wait', lambda: server.one('SELECT count(*) FROM millrace.pending_message') == 50)
    server.query(f"ALTER SYSTEM SET millrace.debug_point = '{point}'")
    server.query('SELECT pg_reload_conf()')
    wait_for('the setting', lambda: server.one('SHOW millrace.debug_point') == point)
    started = server.crashes()
    # the crash may take the answer away
    server.try_query("SELECT count(millrace.push('names', json_build_object('id', i, 'name', 'n' || i))), millrace.start_stream('names') FROM generate_series(1, 50) i")
    wait_for(f'a crash {point}', lambda: (server.crashes() or started) != started)
    server.query('ALTER SYSTEM RESET millrace.debug_point')
    server.query('SELECT pg_reload_conf()')
    wait_for('nothing waits', lambda: server.one('SELECT count(*) FROM millrace.pending_message') == 0)
    found = server.query("""SELECT (SELECT count(*) FROM k.named WHERE name = 'n' || id), (SELECT count(*) FROM k.named_log WHERE name = 'n' || id),
        (SELECT count(*) FROM k.named_log), (SELECT count(*) FROM k.h_named WHERE record_source = 'asking'), (SELECT count(*) FROM millrace.letter WHERE state = 'waiting')""")[0]
    good = found == (50, 50, 50, 50, 0)
    print(f"{'ok' if good else 'not ok'} - completed although killed {point}")
    if not good:
        print(f'# {found}')
    return good


def recycle(server):
    """Where the index says that a mart's row is, another one stands by the time that it is read."""
    server.query("""SELECT millrace.create_stream('groups');
        SELECT millrace.create_staging('k.members', stream => 'groups', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]', columns => '{"name": "$.name"}');
        SELECT millrace.create_mart('k.groups', 'SELECT name, count(*) AS n FROM k.members GROUP BY name')""")
    # The row of a goes, and its entry in the index stays.
    for version, name in ((1, 'a'), (2, 'b')):
        server.query(f"SELECT millrace.push('groups', '{{\"id\": 1, \"v\": {version}, \"name\": \"{name}\"}}'::json)")
        server.query("SELECT FROM millrace.run_stream('groups')")
    server.query("SELECT millrace.push('groups', '{\"id\": 2, \"v\": 1, \"name\": \"a\"}'::json)")
    server.query('SELECT pg_advisory_lock(0)')
    other = Server()
    other.query("SET millrace.debug_point = '~rows_looked_up'")
    runner = threading.Thread(target=other.query, args=("SELECT FROM millrace.run_stream('groups')",), daemon=True)
    runner.start()
    wait_for('the batch', lambda: server.one("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'") == 1)
    table = 'millrace_state.mart_' + str(server.one("SELECT id FROM millrace.target WHERE relation = 'k.groups'::regclass"))
    before = server.one(f'SELECT min(ctid) FROM {table}')
    server.query(f'VACUUM (INDEX_CLEANUP ON) {table}')
    columns = [row[0] for row in server.query(f"SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 1 ORDER BY attnum")]
    server.query(f"INSERT INTO {table} SELECT 'c', {', '.join(columns)} FROM {table}")
    moved = server.one(f"SELECT ctid FROM {table} WHERE g1 = 'c'") < before
    server.query('SELECT pg_advisory_unlock(0)')
    runner.join()
    found = server.query('SELECT name, n FROM k.groups ORDER BY name')
    good = moved and found == [('a', 1), ('b', 1), ('c', 1)]
    print(f"{'ok' if good else 'not ok'} - a mart's row that has taken the place of another one")
    if not good:
        print(f'# {found}, took the place: {moved}')
    return good


def set_point(server, point):
    server.query(f"ALTER SYSTEM SET millrace.debug_point = '{point}'" if point else 'ALTER SYSTEM RESET millrace.debug_point')
    server.query('SELECT pg_reload_conf()')
    wait_for('the setting', lambda: server.one('SHOW millrace.debug_point') == (point or ''))


def follow(server, shell, while_copying):
    """
    A table of this server is followed, and the server killed at each point, while the table is copied or while changes
    come.  The source is killed with it.
    """
    name = 'copied' if while_copying else 'streamed'
    server.query(f"""CREATE TABLE k.{name} (id integer PRIMARY KEY, v integer, big text);
        ALTER TABLE k.{name} ALTER COLUMN big SET STORAGE EXTERNAL;
        INSERT INTO k.{name} SELECT i, i, repeat('b', 4000) FROM generate_series(1, 500) i""")
    server.query(f"""CREATE SERVER {name} FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host '{shell.value('$PGHOST')}', port '{shell.value('$PGPORT')}', dbname 'postgres');
        CREATE USER MAPPING FOR CURRENT_USER SERVER {name} OPTIONS (username 'postgres');
        SELECT millrace.create_stream('{name}', server => '{name}', options => '{{"tables": ["k.{name}"], "snapshot_chunk": 100}}');
        SELECT millrace.create_staging('k.m_{name}', stream => '{name}', source_table => 'k.{name}', log => true);
        SELECT millrace.create_mart('k.v_{name}', 'SELECT v % 7 AS group, count(*) AS n, sum(v) AS total FROM k.m_{name} GROUP BY 1')""")
    state = f"SELECT count(*) FROM millrace.snapshot_status WHERE stream = '{name}' AND state = 'done'"
    if not while_copying:
        server.query(f"SELECT millrace.start_stream('{name}')")
        wait_for('the copy', lambda: server.one(state) == 1)
    changes, good = 0, True
    for point in SLOT_POINTS + POINTS if while_copying else POINTS:
        started = server.crashes()
        set_point(server, point)
        if point == SLOT_POINTS[0]:
            server.try_query(f"SELECT millrace.start_stream('{name}')")
        elif point in SLOT_POINTS:
            server.try_query(f"SELECT millrace.reset_stream('{name}')")
        elif while_copying:
            server.try_query(f"SELECT millrace.resnapshot('{name}', 'k.{name}')")
        else:
            server.try_query(f"UPDATE k.{name} SET v = v + 1 WHERE id % 3 = 0")
        wait_for(f'a crash {point}', lambda: (server.crashes() or started) != started)
        set_point(server, None)
        changes += 1
        server.query(f"INSERT INTO k.{name} VALUES (-{changes}, 0, 'last') ON CONFLICT DO NOTHING")
        wait_for('the last change', lambda: server.one(f'SELECT count(*) FROM k.m_{name} WHERE id = -{changes}') == 1)
        wait_for('the copy', lambda: server.one(state) == 1)
        different = server.one(f"""SELECT count(*) FROM ((SELECT id, v, big FROM k.{name} EXCEPT SELECT id, v, big FROM k.m_{name})
            UNION ALL (SELECT id, v, big FROM k.m_{name} EXCEPT SELECT id, v, big FROM k.{name})) d""")
        verified = server.query(f"SELECT missing, unexpected FROM millrace.verify('k.v_{name}')")
        twice = server.one(f'SELECT count(*) FROM (SELECT FROM k.m_{name}_log GROUP BY id, _position, v HAVING count(*) > 1) d')
        same = (different, verified, twice) == (0, [(0, 0)], 0)
        print(f"{'ok' if same else 'not ok'} - a table that is {name}, killed {point}")
        if not same:
            print(f'# {different} rows differ, verify {verified}, {twice} versions came twice')
        good = good and same
    # No slot is left behind by one that was made and not written down, or by settling it.
    server.query(f"SELECT millrace.stop_stream('{name}')")
    slots = server.one(f"SELECT count(*) FROM pg_replication_slots WHERE slot_name ~ '{name}|settling'")
    print(f"{'ok' if slots == 1 else 'not ok'} - and there is one slot")
    return good and slots == 1


def main():
    good = True
    with Shell() as shell:
        shell.run('pg_start "$work/pg" "millrace.databases = \'postgres\'" "wal_level = logical" "max_worker_processes = 16"')
        shell.environ()
        server = Server()
        server.query(SETUP)
        try:
            server.query('SHOW millrace.debug_point')
        except psycopg2.Error:
            print('ok - killed at points # SKIP this build has no debug points')
            return True

        last = 0
        # In a session of one's own: nothing of what it was doing is there.
        push(server, last)
        started = server.crashes()
        server.try_query("SET millrace.debug_point = 'before_advance'; SELECT * FROM millrace.run_stream('feed')")
        wait_for('a crash', lambda: (server.crashes() or started) != started)
        left = server.one('SELECT count(*) FROM millrace.inbox')
        good = good and left == MESSAGES
        print(f"{'ok' if left == MESSAGES else 'not ok'} - run_stream() killed before_advance leaves {left} messages")

        server.query("SELECT millrace.start_stream('feed')")
        last += MESSAGES
        wait_for('the worker takes what is there', lambda: server.one('SELECT count(*) FROM millrace.inbox') == 0)
        good = check(server, 'what was left is taken', last) and good
        for point in MODEL_POINTS + POINTS:
            wait_for('the worker', lambda: server.one("SELECT count(*) FROM millrace.worker_status WHERE state = 'running'"))
            started = server.crashes()
            server.query(f"ALTER SYSTEM SET millrace.debug_point = '{point}'")
            server.query('SELECT pg_reload_conf()')
            wait_for('the setting', lambda: server.one('SHOW millrace.debug_point') == point)
            for _ in range(3):
                push(server, last)
                last += MESSAGES
            wait_for(f'a crash {point}', lambda: (server.crashes() or started) != started)
            server.query('ALTER SYSTEM RESET millrace.debug_point')
            server.query('SELECT pg_reload_conf()')
            wait_for('the worker takes what is there', lambda: server.one('SELECT count(*) FROM millrace.inbox') == 0)
            good = check(server, f'killed {point}', last) and good
        for point in FILL_POINTS:
            wait_for('the worker', lambda: server.one("SELECT count(*) FROM millrace.worker_status WHERE state = 'running'"))
            good = fill(server, point, last) and good
            last += MESSAGES
            good = check(server, f'after being killed {point}', last) and good
        good = complete(server, 'before_complete_commit') and good
        good = recycle(server) and good
        good = follow(server, shell, True) and good
        good = follow(server, shell, False) and good
        if not good:
            shell.run('tail -n 40 "$work/pg/server.log"')
    return good


if __name__ == '__main__':
    sys.exit(not main())
