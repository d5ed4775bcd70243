#!/usr/bin/python3
"""A table, Debezium's connector, Kafka, staging tables: in the end they hold the same, however the connector was told to write.

One source table with columns of every type that Debezium tells apart, changed at random: inserts, updates, deletes, changed keys,
large values that updates leave alone.  Connectors read it side by side, each with another combination of settings: with schemas or
without, as envelopes or unwrapped, decimals as bytes, strings or doubles, four ways to write times.  Connect is killed in the middle
and delivers again what it had not written down; then all topics are read from their beginning once more.

Starts a server, a broker and Connect of its own.  Prints its seed; --seed N repeats the changes, --long takes all combinations.
"""
import argparse
import datetime
import decimal
import itertools
import json
import os
import random
import sys
import uuid

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'lib'))
import psycopg2                                     # noqa: E402
from shell import Shell, wait_for                   # noqa: E402

DECIMALS = ('precise', 'string', 'double')
TIMES = ('adaptive', 'adaptive_time_microseconds', 'connect', 'isostring')

TABLE = """
CREATE TABLE shop (id integer, day date, b boolean, i2 smallint, i8 bigint, f8 double precision, n numeric(12,2), v numeric, tx text, by bytea,
    d date, ti time, ts timestamp, ts3 timestamp(3), tsz timestamptz, iv interval, u uuid, j jsonb, a integer[], big text, PRIMARY KEY (id, day));
ALTER TABLE shop ALTER big SET STORAGE EXTERNAL;
CREATE PUBLICATION dbz FOR TABLE shop
"""
COLUMNS = ('b', 'i2', 'i8', 'f8', 'n', 'v', 'tx', 'by', 'd', 'ti', 'ts', 'ts3', 'tsz', 'iv', 'u', 'j', 'a', 'big')


class Connector:
    """One combination of settings, and what its stream and staging table are called."""

    def __init__(self, number, schemas, unwrapped, decimals, times):
        self.name = f'c{number}'
        self.schemas, self.unwrapped, self.decimals, self.times = schemas, unwrapped, decimals, times

    def __str__(self):
        return ', '.join(('schema' if self.schemas else 'no schema', 'unwrapped' if self.unwrapped else 'envelope', self.decimals, self.times))

    def properties(self, shell):
        settings = {
            'name': self.name, 'connector.class': 'io.debezium.connector.postgresql.PostgresConnector', 'tasks.max': 1,
            'database.hostname': '127.0.0.1', 'database.port': os.environ['PGPORT'], 'database.user': 'postgres',
            'database.password': os.environ['PGPASSWORD'], 'database.dbname': 'source', 'plugin.name': 'pgoutput', 'slot.name': self.name,
            'publication.name': 'dbz', 'publication.autocreate.mode': 'disabled', 'topic.prefix': self.name, 'table.include.list': 'public.shop',
            'topic.creation.default.replication.factor': 1, 'topic.creation.default.partitions': 1, 'poll.interval.ms': 20,
            'key.converter': 'org.apache.kafka.connect.json.JsonConverter', 'value.converter': 'org.apache.kafka.connect.json.JsonConverter',
            'key.converter.schemas.enable': str(self.schemas).lower(), 'value.converter.schemas.enable': str(self.schemas).lower(),
            'decimal.handling.mode': self.decimals, 'time.precision.mode': self.times, 'interval.handling.mode': 'string',
            # what is no change, in the same stream
            'provide.transaction.metadata': 'true', 'heartbeat.interval.ms': 1000,
        }
        if self.unwrapped:
            settings.update({'transforms': 'unwrap', 'transforms.unwrap.type': 'io.debezium.transforms.ExtractNewRecordState',
                             'transforms.unwrap.add.fields': 'op,schema,table,lsn',
                             # half of them tell deletes by tombstones alone, as is the default
                             'transforms.unwrap.delete.tombstone.handling.mode': 'rewrite-with-tombstone' if self.schemas else 'tombstone'})
        path = f'{shell.work}/{self.name}.properties'
        with open(path, 'w') as out:
            out.writelines(f'{key}={value}\n' for key, value in settings.items())
        return path

    def mapping(self, column, kind, format=None):
        """With a schema no format is needed."""
        return ['$.' + column, kind] + ([format] if format and not self.schemas else [])

    def declare(self, cursor):
        bytes_ = 'base64' if self.decimals == 'precise' else None
        days = 'days' if self.times != 'isostring' else None
        micros = {'connect': 'ms', 'isostring': None}.get(self.times, 'us')
        millis = micros and 'ms'
        key = {'id': self.mapping('id', 'integer'), 'day': self.mapping('day', 'date', days)}
        columns = {'b': '$.b', 'i2': self.mapping('i2', 'smallint'), 'i8': self.mapping('i8', 'bigint'), 'f8': self.mapping('f8', 'double precision'),
                   'n': self.mapping('n', 'numeric(12,2)', bytes_), 'v': self.mapping('v', 'numeric', bytes_), 'tx': '$.tx',
                   'by': self.mapping('by', 'bytea', 'base64'), 'd': self.mapping('d', 'date', days), 'ti': self.mapping('ti', 'time', micros),
                   'ts': self.mapping('ts', 'timestamp', micros), 'ts3': self.mapping('ts3', 'timestamp(3)', millis),
                   'tsz': self.mapping('tsz', 'timestamptz'), 'iv': self.mapping('iv', 'interval'), 'u': self.mapping('u', 'uuid'),
                   'j': self.mapping('j', 'jsonb'), 'j_k': ['$.j.k', 'integer'], 'a': self.mapping('a', 'jsonb'), 'big': '$.big', 'op': '$op'}
        columns['b'] = self.mapping('b', 'boolean')
        cursor.execute("SELECT millrace.create_stream(%s, server => 'broker', format => 'debezium', options => %s)",
                       (self.name, json.dumps({'topic': rf'^({self.name}\..*|__debezium-heartbeat\.{self.name})$', 'refresh': '1 second'})))
        self.stagings = [(f'stg.{self.name}', None)]
        # a version makes what is delivered again no change at all
        if not self.unwrapped:
            self.stagings.append((f'stg.{self.name}_versioned', '["$source.lsn", "bigint"]'))
        elif self.schemas:
            self.stagings.append((f'stg.{self.name}_versioned', '["$.__lsn", "bigint"]'))
        for table, version in self.stagings:
            cursor.execute("SELECT millrace.create_staging(%s, stream => %s, source_table => 'public.shop', key => %s, columns => %s, version => %s, tombstone => %s, "
                           "payload => 'none', log => true)",
                           (table, self.name, json.dumps(key), json.dumps(columns), version, 'ignore' if version else 'timestamp'))

    def compared(self, source):
        """The columns as texts, as far as the settings can tell them: those of the source, or those that were staged."""
        as_text = {column: f'{column}::text' for column in COLUMNS}
        as_text['v'] = 'trim_scale(v)::text' if self.decimals != 'double' else 'v::float8::text'
        if self.times == 'connect' and source:
            as_text['ti'] = "date_trunc('milliseconds', ti)::time::text"
            as_text['ts'] = "date_trunc('milliseconds', ts)::text"
        as_text['a'] = 'to_jsonb(a)::text' if source else 'a::text'
        return 'id, day::text, ' + ', '.join(as_text[column] for column in COLUMNS) + (", (j ->> 'k')::integer" if source else ', j_k')


# ---- changes -------------------------------------------------------------------------------------------------------

def random_row(rng):
    """Values for COLUMNS; a null among them now and then."""
    second = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=rng.randrange(3_000_000_000), microseconds=rng.randrange(1_000_000))
    values = {
        'b': rng.random() < 0.5, 'i2': rng.randrange(-32768, 32768), 'i8': rng.randrange(-2 ** 63, 2 ** 63), 'f8': rng.choice([rng.uniform(-1e9, 1e9), 1e300, 0.1, float('inf')]),
        'n': decimal.Decimal(rng.randrange(-10 ** 12 + 1, 10 ** 12)).scaleb(-2), 'v': decimal.Decimal(rng.randrange(-10 ** 40, 10 ** 40)).scaleb(-rng.randrange(30), decimal.Context(60)),
        'tx': rng.choice(['plain', 'quoted "text"', 'back\\slash', 'ümläut', '', '{no json', '[', 'null', '🙂']), 'by': rng.randbytes(rng.randrange(9)),
        'd': second.date(), 'ti': second.time(), 'ts': second, 'ts3': second.replace(microsecond=second.microsecond // 1000 * 1000),
        'tsz': second.replace(tzinfo=datetime.timezone.utc), 'iv': rng.choice(['1 year 2 mons 3 days 04:05:06.7', '-00:00:01', '5 days']),
        'u': str(uuid.UUID(int=rng.getrandbits(128))), 'j': json.dumps({'k': rng.randrange(9), 'l': ['"', 'ü', None]}), 'a': rng.choice([[], [1, 2, 3], [-1, None]]),
        'big': rng.choice(['small', '%08x' % rng.getrandbits(32) * 900]),
    }
    return {column: None if rng.random() < 0.1 else value for column, value in values.items()}


def change(cursor, rng, ids):
    """One random change of the source."""
    number = rng.choice(ids)
    kind = rng.random()
    row = random_row(rng)
    if kind < 0.35:
        names = ', '.join(row)
        cursor.execute(f"INSERT INTO shop (id, day, {names}) VALUES (%s, %s{', %s' * len(row)}) ON CONFLICT DO NOTHING",
                       (number, datetime.date(2024, 1, 1 + number), *row.values()))
    elif kind < 0.75:
        # what is not named, the large text most of the time, stays as it is
        some = rng.sample(sorted(row), rng.randrange(1, 4))
        cursor.execute(f"UPDATE shop SET {', '.join(f'{column} = %s' for column in some)} WHERE id = %s", (*(row[column] for column in some), number))
    elif kind < 0.85:
        # it becomes a new row, of which a large text that is left alone would be known to nobody
        cursor.execute('UPDATE shop SET day = day + 1, big = %s WHERE (id, day) = (SELECT id, max(day) FROM shop WHERE id = %s GROUP BY id)', (row['big'], number))
    else:
        cursor.execute('DELETE FROM shop WHERE id = %s', (number,))


def changes(connection, rng, transactions):
    with connection.cursor() as cursor:
        for _ in range(transactions):
            for _ in range(rng.choice([1, 1, 1, 4])):
                change(cursor, rng, range(1, 25))
            connection.commit()


# ---- the test ------------------------------------------------------------------------------------------------------

class Test:
    def __init__(self, shell, connectors):
        self.shell, self.connectors, self.failed = shell, connectors, False
        self.target = psycopg2.connect('')
        self.target.autocommit = True
        with self.target.cursor() as cursor:
            cursor.execute('CREATE DATABASE source')
        self.source = psycopg2.connect('dbname=source')

    def is_(self, what, found, wanted):
        print('ok - ' + what if found == wanted else f'not ok - {what}: {found!r} instead of {wanted!r}', flush=True)
        self.failed = self.failed or found != wanted

    def rows(self, connection, sql):
        with connection.cursor() as cursor:
            cursor.execute("SET timezone = 'UTC'; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'")
            cursor.execute(sql)
            result = cursor.fetchall()
        if connection is self.source:
            connection.commit()
        return result

    def wait_for_mark(self, mark):
        """Until a row that is inserted now has come everywhere, and with it all that was changed before."""
        with self.source.cursor() as cursor:
            cursor.execute("INSERT INTO shop (id, day, tx) VALUES (%s, '2024-01-01', 'mark')", (mark,))
        self.source.commit()
        for connector in self.connectors:
            for table, _ in connector.stagings:
                wait_for(f'row {mark} in {table} ({connector})', lambda: self.rows(self.target, f'SELECT FROM {table} WHERE id = {mark}') != [])

    def offsets_written(self):
        try:
            with open(f'{self.shell.work}/connect/offsets', 'rb') as file:
                offsets = file.read()
        except FileNotFoundError:
            return False
        return b'"snapshot"' not in offsets and all(f'"{connector.name}"'.encode() in offsets for connector in self.connectors)

    def compare(self, when):
        for connector in self.connectors:
            wanted = sorted(self.rows(self.source, f'SELECT {connector.compared(True)} FROM shop'), key=repr)
            for table, version in connector.stagings:
                found = sorted(self.rows(self.target, f'SELECT {connector.compared(False)} FROM {table}'), key=repr)
                odd = [pair for pair in itertools.zip_longest(found, wanted) if pair[0] != pair[1]]
                self.is_(f"{when}: {connector}{', version' if version else ''}", odd[:1], [])
        self.is_(f'{when}: no dead letters', self.rows(self.target, "SELECT stream, staging, message, topic, left(convert_from(value, 'UTF8'), 200) FROM millrace.dead_letter LIMIT 3"), [])

    def everywhere(self, statement):
        with self.target.cursor() as cursor:
            for connector in self.connectors:
                cursor.execute(statement, (connector.name,))

    def run(self, rng):
        with self.source.cursor() as cursor:
            cursor.execute(TABLE)
        changes(self.source, rng, 30)
        self.shell.run('connect_start "$work/connect" ' + ' '.join(connector.properties(self.shell) for connector in self.connectors))
        with self.target.cursor() as cursor:
            cursor.execute('CREATE EXTENSION millrace')
            cursor.execute('CREATE SCHEMA stg')
            cursor.execute(f"CREATE SERVER broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '{os.environ['KAFKA_BOOTSTRAP']}')")
            for connector in self.connectors:
                connector.declare(cursor)
        self.everywhere('SELECT millrace.start_stream(%s)')
        changes(self.source, rng, 30)
        self.wait_for_mark(101)
        # Killed before it has written down that it streams, a connector would begin anew and never tell what was deleted meanwhile.
        wait_for('offsets of every connector', self.offsets_written)
        mark, again = 101, False
        # It may have written down all that it has sent when it is killed: once more then.
        while not again and mark < 111:
            changes(self.source, rng, 60)
            self.wait_for_mark(mark + 1)
            self.shell.run('connect_stop KILL')
            changes(self.source, rng, 30)
            self.shell.run('connect_run')
            changes(self.source, rng, 30)
            mark += 2
            self.wait_for_mark(mark)
            again = any(self.rows(self.target, f'SELECT FROM {table}_log GROUP BY id, day, _version HAVING count(*) > 1 LIMIT 1') != []
                        for connector in self.connectors for table, version in connector.stagings if version)
        self.compare('after a kill')
        self.is_('something was delivered twice', again, True)
        ends = self.rows(self.target, 'SELECT stream, topic, partition, position FROM millrace.stream_partition')
        ends = {row[:3]: row[3] for row in ends}
        self.everywhere("SELECT millrace.reset_stream(%s, start => 'earliest')")
        wait_for('the end of every topic once more',
                 lambda: all(row[3] >= ends[row[:3]] for row in self.rows(self.target, 'SELECT stream, topic, partition, position FROM millrace.stream_partition') if row[:3] in ends)
                 and len(self.rows(self.target, 'SELECT FROM millrace.stream_partition')) >= len(ends))
        self.compare('read once more')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(2 ** 32))
    parser.add_argument('--long', action='store_true')
    arguments = parser.parse_args()
    print('seed', arguments.seed, flush=True)
    # any two settings meet in the short form
    combinations = [(schemas, unwrapped, d, t) for d, t, schemas, unwrapped in itertools.product(range(3), range(4), (True, False), (True, False))
                    if arguments.long or (schemas == ((d + t) % 2 == 0) and unwrapped == ((t // 2 + d) % 2 == 0))]
    connectors = [Connector(number, schemas, unwrapped, DECIMALS[d], TIMES[t]) for number, (schemas, unwrapped, d, t) in enumerate(combinations)]
    with Shell() as shell:
        shell.run('pg_start "$work/pg" "wal_level = logical" "fsync = off" "max_connections = 200" "max_worker_processes = 80" '
                  '"max_wal_senders = 60" "max_replication_slots = 60" "millrace.databases = \'postgres\'" "millrace.worker_memory = \'32MB\'"')
        shell.run('kafka_start "$work/kafka"')
        shell.environ()
        test = Test(shell, connectors)
        try:
            test.run(random.Random(arguments.seed))
        except Exception:
            shell.run('tail -n 20 "$work/connect/connect.log" "$work/pg/server.log" 2>/dev/null || true')
            raise
    sys.exit(1 if test.failed else 0)


if __name__ == '__main__':
    main()
