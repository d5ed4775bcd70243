#!/usr/bin/env python3
"""Sinks under random histories: whatever the borders of batches, the last message of a key is the row as it is at the end, or says
that it was deleted; every row that is there has been sent.

Objects have versions, copies, deletes, elements, and a user by whom a mart groups, perhaps NULL; some rows have an error.  In between
marts are rebuilt, sinks are made again and look again, in chunks of any size, and what waits for at_most_every is hurried or not.

See test/lib/property.py for how it is run.
"""
import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from property import repeat  # noqa: E402

SETUP = """
CREATE EXTENSION millrace; CREATE SCHEMA p;
SELECT millrace.create_stream('feed');
SELECT millrace.create_staging('p.orders', stream => 'feed', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]', deleted => $$ op = 'D' $$,
  columns => '{"op": "$.op", "who": "$.who", "total": ["$.total", "numeric"]}', filter => $$ op IS DISTINCT FROM 'hidden' $$);
SELECT millrace.create_staging('p.lines', stream => 'feed', for_each => '$.lines[*]', key => '{"id": ["$.id", "integer"]}', version => '["$.v", "integer"]', deleted => $$ op = 'D' $$,
  columns => '{"op": "$.op", "product": "@.product"}');
SELECT millrace.create_mart('p.people', 'SELECT who, count(*) AS n, sum(total) AS total, max(total) AS most FROM p.orders GROUP BY who');
SELECT millrace.create_mart('p.large', 'SELECT who, count(*) AS n FROM p.orders GROUP BY who HAVING count(*) > 1');
SELECT millrace.create_mart('p.sums', 'SELECT count(*) AS n FROM p.orders');
"""

# source, the message, and the key of a row as the database says them, the filter, at_most_every
SINKS = {
    'orders': ('orders', "jsonb_build_object('version', _version, 'total', total, 'lines', (SELECT jsonb_agg(l.product ORDER BY l._element) FROM p.lines l WHERE l.id = orders.id))", 'id::text', None, None),
    'failing': ('orders', 'to_jsonb(100 / total)', 'id::text', None, None),
    'filtered': ('orders', 'to_jsonb(total)', 'id::text', 'total > 4', None),
    'lines': ('lines', 'to_jsonb(product)', "json_build_array(id::text, _element::text)::text", None, None),
    'people': ('people', 'to_jsonb(people)', "coalesce(who, '[null]')", None, None),
    'large': ('large', 'to_jsonb(n)', "coalesce(who, '[null]')", None, None),
    'sums': ('sums', 'to_jsonb(n)', "'all'", None, None),
    'orders later': ('orders', 'to_jsonb(total)', 'id::text', None, '1 hour'),
    'people later': ('people', 'to_jsonb(people)', "coalesce(who, '[null]')", None, '10 milliseconds'),
    'lines later': ('lines', 'to_jsonb(product)', "json_build_array(id::text, _element::text)::text", None, '1 hour'),
}


def create(cursor, name, replace=False, initial=True):
    source, message, key, filtered, every = SINKS[name]
    cursor.execute("SELECT millrace.create_sink(%s, source => %s::regclass, channel => %s, message => %s, message_key => %s, filter => %s, at_most_every => %s, initial => %s, replace => %s)",
                   (name, 'p.' + source, name, message, None if source != 'sums' else key, filtered, every, initial, replace))


def history(rng):
    """Messages: versions of objects."""
    messages = []
    for number in range(rng.randrange(3, 20)):
        for version in range(1, rng.randrange(2, 7)):
            message = {'id': number, 'v': version, 'who': rng.choice(['a', 'b', 'c', None]), 'total': rng.randrange(9),
                       'lines': [{'product': rng.choice(['tea', 'bread'])} for _ in range(rng.randrange(4))]}
            if rng.random() < 0.25:
                message['op'] = rng.choice(['D', 'D', 'hidden'])
            messages.append(message)
            if rng.random() < 0.1:
                messages.append(message)
    rng.shuffle(messages)
    return messages


def run_stream(cursor, limit=None):
    cursor.execute("SELECT dead_letters FROM millrace.run_stream('feed', %s)", (limit or 100000,))
    assert cursor.fetchone() == (0,)


def hurry(cursor):
    cursor.execute("UPDATE millrace.sink_row SET due_at = now(), sent_at = sent_at - interval '1 hour' WHERE due_at IS NOT NULL")


def disturb(cursor, rng, names):
    what = rng.randrange(6)
    if what == 0:
        cursor.execute("SELECT millrace.rebuild(%s)", (rng.choice(['p.people', 'p.large']),))
    elif what == 1:
        cursor.execute("SELECT millrace.retry_sink(%s)", (rng.choice(names),))
    elif what == 2:
        name = rng.choice(names)
        # Without initial, one that has not looked yet at what was there before it never sends that.
        cursor.execute("SELECT state = 'new' FROM millrace.sink_status WHERE sink = %s", (name,))
        create(cursor, name, replace=True, initial=cursor.fetchone()[0] or rng.random() < 0.5)
    elif what == 3:
        hurry(cursor)


def deliver(cursor, rng, messages, late):
    """Pushes and runs in batches of any size."""
    i = 0
    while i < len(messages):
        size = rng.choice([1, 1, 2, 5, 20, len(messages)])
        for message in messages[i:i + size]:
            cursor.execute("SELECT millrace.push('feed', %s, key => %s)", (json.dumps(message), str(message['id'])))
        run_stream(cursor, rng.choice([1, 3, 1000]))
        for name in [name for name in late if rng.random() < 0.3]:
            create(cursor, name)
            late.remove(name)
        if rng.random() < 0.3:
            disturb(cursor, rng, [name for name in SINKS if name not in late])
        i += size
    for name in late:
        create(cursor, name)
    run_stream(cursor)
    deadline = time.monotonic() + 60
    while True:
        hurry(cursor)
        run_stream(cursor)
        cursor.execute("SELECT sum(waiting), count(*) FILTER (WHERE state <> 'active') FROM millrace.sink_status")
        if cursor.fetchone() == (0, 0):
            return
        assert time.monotonic() < deadline, 'sinks are not done'


def rows(cursor, name):
    """What should have been sent: the message of each row by its key; those with an error apart."""
    source, message, key, filtered, _ = SINKS[name]
    if name == 'failing':
        filtered = 'total <> 0'
    cursor.execute(f"SELECT {key}, ({message})::text FROM p.{source} WHERE {filtered or 'true'}")
    return {k: json.loads(m) for k, m in cursor.fetchall() if m is not None}


def judge(cursor, name):
    """What is wrong with the last messages of a sink, by key."""
    wanted = rows(cursor, name)
    cursor.execute("SELECT DISTINCT ON (key) key, message FROM millrace.outbox WHERE channel = %s ORDER BY key, id DESC", (name,))
    last = dict(cursor.fetchall())
    wrong = {key: (last.get(key, 'nothing'), row) for key, row in wanted.items() if key not in last or last[key] != row}
    # What is left over has errors, or has left the filter.
    source, _, key, filtered, _ = SINKS[name]
    cursor.execute(f"SELECT {key} FROM p.{source}")
    there = {k for k, in cursor.fetchall()}
    for k, message in last.items():
        if k not in there and message is not None:
            if filtered is None:
                wrong[k] = (message, 'deleted')
    cursor.execute("SELECT object FROM millrace.sink_error WHERE sink = %s", (name,))
    errors = {json.loads(o)[0] for o, in cursor.fetchall()}
    bad = set()
    if name == 'failing':
        cursor.execute("SELECT id::text FROM p.orders WHERE total = 0")
        bad = {k for k, in cursor.fetchall()}
    if errors != bad:
        wrong['errors'] = (errors, bad)
    return wrong


def run(cursor, rng):
    names = sorted(SINKS)
    cursor.execute(f'SET millrace.backfill_rows = {rng.choice([1, 3, 1000])}')
    late = [name for name in names if name != 'orders' and rng.random() < 0.3]
    for name in names:
        if name not in late:
            create(cursor, name)
    deliver(cursor, rng, history(rng), late)
    good = True
    for name in names:
        wrong = judge(cursor, name)
        if wrong:
            print(f'not ok - {name}: (last message, row) {wrong}')
            good = False
        cursor.execute("SELECT millrace.drop_sink(%s)", (name,))
    cursor.execute("SELECT count(*) FROM millrace.sink_row")
    assert cursor.fetchone() == (0,)
    cursor.execute("""DELETE FROM millrace.outbox_message; DELETE FROM p.orders; DELETE FROM p.lines;
        DO $$ DECLARE t text; BEGIN FOR t IN SELECT relname FROM pg_class WHERE relname LIKE 'object\\_%' AND relkind = 'r' LOOP EXECUTE 'DELETE FROM millrace_state.' || t; END LOOP; END $$;
        SELECT millrace.rebuild('p.people'), millrace.rebuild('p.large'), millrace.rebuild('p.sums')""")
    return good


if __name__ == '__main__':
    channels = ''.join(f"SELECT millrace.create_channel('{name}');" for name in SINKS)
    repeat('sinks', SETUP + channels, run, 12, 'the last message of each row is the row')
