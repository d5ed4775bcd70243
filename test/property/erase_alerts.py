#!/usr/bin/env python3
"""Erasing reaches alerts: after erase() no table of millrace has anything of the person, and what rules know is what the others' messages make.

Stream "a" gets a random history of several people's orders, under rules of every kind, tags and sinks, with deliveries in every state; somebody is erased at a
random moment, and everything is sent to "a" again afterwards.  Stream "b" gets only what was never erased.  Ids bear the names of those whose they are, so that whatever
is left of somebody is found as text, in bytea, too.  What is compared is what does not depend on the order of
arrival or the borders of batches: alerts of match, marks, the events of windows, groups that hold, tags, keys that were heard of.

Connects as libpq's environment says (a superuser of a server with millrace), makes a database of its own and drops it.
Prints its seed; `erase_alerts.py --seed N --runs 1` repeats a run.
"""
import argparse
import json
import random
import sys
import time

import psycopg2

PEOPLE = ['annxx', 'bobxx', 'cyrxx', 'dorxx']
PRODUCTS = ['p1', 'p2', 'p3']
START = 1_767_225_600                   # 2026-01-01

DECLARE = """
CREATE SCHEMA {s};
SELECT millrace.create_stream('{s}');
SELECT millrace.create_channel('{s} told', options => '{{"channel": "told"}}', digest_above => 3);
SELECT millrace.create_staging('{s}.orders', stream => '{s}', key => '{{"id": [["$.id", "$key"], "text"]}}', version => '["$.v", "integer"]', deleted => $$ op = 'D' $$, log => {log},
  columns => '{{"op": "$.op", "person": "$.person", "product": "$.product", "n": ["$.n", "integer"], "at": ["$.at", "timestamptz", "s"]}}');
SELECT millrace.create_staging('{s}.lines', stream => '{s}', for_each => '$.lines[*]', key => '{{"id": [["$.id", "$key"], "text"]}}', version => '["$.v", "integer"]', deleted => $$ op = 'D' $$, log => {log},
  columns => '{{"op": "$.op", "what": "@.what", "q": ["@.q", "integer"]}}');
SELECT millrace.create_mart('{s}.by_person', 'SELECT person, count(*) AS n, sum(n) AS total FROM {s}.orders GROUP BY person');
SELECT millrace.create_mart('{s}.by_product', 'SELECT product, count(*) AS n, max(person) AS last FROM {s}.orders GROUP BY product');
SELECT millrace.create_mart('{s}.by_both', 'SELECT person, product, count(*) AS n FROM {s}.orders GROUP BY person, product');
SELECT millrace.create_rule('{s} high', kind => 'match', source => '{s}.orders', predicate => 'n > 7', details => '{{person, n}}', channels => '{{{s} told}}', group_by => '{{product}}', max_age => NULL);
SELECT millrace.create_rule('{s} edge', kind => 'match', source => '{s}.orders', predicate => 'n > 5', again => true, channels => '{{{s} told}}', max_age => NULL);
SELECT millrace.create_rule('{s} person', kind => 'match', source => '{s}.orders', predicate => 'n < 3', key => '{{person}}', channels => '{{{s} told}}', max_age => NULL);
SELECT millrace.create_rule('{s} product', kind => 'match', source => '{s}.orders', predicate => 'n < 4', key => '{{product}}', details => '{{id}}', channels => '{{{s} told}}', max_age => NULL);
SELECT millrace.create_rule('{s} forgotten', kind => 'match', source => '{s}.orders', predicate => 'n > 6', key => '{{product}}', max_age => NULL);
SELECT millrace.create_rule('{s} lines', kind => 'match', source => '{s}.lines', predicate => 'q > 2', details => '{{what}}', max_age => NULL);
SELECT millrace.create_rule('{s} odd', kind => 'match', source => '{s}.orders', predicate => '(CASE WHEN n = 4 THEN person ELSE ''0'' END)::integer > 0', max_age => NULL);
SELECT millrace.create_rule('{s} rapid', kind => 'frequency', source => '{s}.orders', key => '{{product}}', count => 3, within => '100 s', lateness => '1 hour', event_time => 'at',
  details => '{{person}}', channels => '{{{s} told}}', max_age => NULL);
SELECT millrace.create_rule('{s} busy', kind => 'frequency', source => '{s}.orders', key => '{{person}}', count => 2, within => '100 s', lateness => '1 hour', event_time => 'at', max_age => NULL);
SELECT millrace.create_rule('{s} silent', kind => 'absence', source => '{s}.orders', key => '{{person}}', within => '1 s', channels => '{{{s} told}}', max_age => NULL);
SELECT millrace.create_rule('{s} unsold', kind => 'absence', source => '{s}.orders', key => '{{product}}', within => '1 s', max_age => NULL);
SELECT millrace.create_rule('{s} scarce', kind => 'absence', source => '{s}.orders', predicate => 'n > 6', key => '{{product}}', within => '1 s', max_age => NULL);
SELECT millrace.create_rule('{s} loyal', kind => 'threshold', source => '{s}.by_person', predicate => 'n >= 2', details => '{{total}}', tag => 'loyal', key => '{{person}}', channels => '{{{s} told}}',
  send_resolved => true, max_age => NULL);
SELECT millrace.create_rule('{s} wanted', kind => 'threshold', source => '{s}.by_product', predicate => 'n >= 3', details => '{{n, last}}', channels => '{{{s} told}}', send_resolved => true, max_age => NULL);
SELECT millrace.create_rule('{s} fond', kind => 'threshold', source => '{s}.by_both', predicate => 'n >= 2', tag => 'fond', key => '{{product}}', max_age => NULL);
SELECT millrace.create_sink('{s} orders', source => '{s}.orders', channel => '{s} told', message => $$ jsonb_build_object('id', id, 'person', person) $$);
SELECT millrace.create_sink('{s} lines', source => '{s}.lines', channel => '{s} told', message_key => 'id', message => $$ jsonb_build_object('what', what) $$);
SELECT millrace.create_sink('{s} people', source => '{s}.by_person', channel => '{s} told', message => $$ jsonb_build_object('person', person, 'n', n) $$, at_most_every => '1 hour');
SELECT millrace.create_sink('{s} products', source => '{s}.by_product', channel => '{s} told', message => $$ jsonb_build_object('last', last, 'bad', 1 / (n - 2)) $$);
SELECT millrace.run_stream('{s}');
"""

# What a worker does to the next messages that wait, but for sending.
SEND = """
CREATE FUNCTION arrive(ids bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE forgotten bigint[];
BEGIN
    UPDATE millrace.delivery SET state = 'sent', done_at = clock_timestamp(), claimant = NULL, next_at = NULL WHERE id = ANY (ids);
    WITH ended AS (UPDATE millrace.outbox_message SET state = 'sent' WHERE delivery_id = ANY (ids) RETURNING delivery_id, erased)
    SELECT array_agg(delivery_id) INTO forgotten FROM ended WHERE erased;
    PERFORM millrace_internal.forget_deliveries(forgotten);
END $$;
CREATE FUNCTION send(ending text, at_most integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE d bigint; c record;
BEGIN
    FOR c IN SELECT n.*, m.channel_id FROM millrace.channel x, millrace_internal.next_messages(x.id, at_most, 1000) n JOIN millrace.outbox_message m USING (id) LOOP
        d := nextval('millrace.delivery_id_seq');
        IF c.group_by IS NULL THEN
            UPDATE millrace.outbox_message SET state = 'claimed', delivery_id = d WHERE id = c.id;
        ELSE
            PERFORM millrace_internal.claim_group(c.channel_id, c.group_by, d, 3);
        END IF;
        INSERT INTO millrace.delivery (id, channel_id, key, messages, payloads, claimant, created_at)
        SELECT d, c.channel_id, c.key, count(*), ARRAY[string_agg(m.message::text, ' ')], 1, now() FROM millrace.outbox_message m WHERE m.delivery_id = d;
        INSERT INTO millrace.attempt (delivery_id, part, no, at, seconds, outcome, error) SELECT d, 1, 1, now(), 0, 'retry', 'not ' || m.payloads[1] FROM millrace.delivery m WHERE m.id = d;
        IF ending = 'dead' THEN
            PERFORM millrace_internal.bury_deliveries(ARRAY[d], '{never}');
        ELSIF ending = 'sent' THEN
            PERFORM arrive(ARRAY[d]);
        ELSIF ending = 'ready' THEN
            UPDATE millrace.delivery SET state = 'ready', claimant = NULL, next_at = now() WHERE id = d;
        END IF;
    END LOOP;
END $$;
"""

# Of whom rules know something, and what.
STATES = {
    'alerts of match': """SELECT r.rule, r.key, r.occurrence FROM millrace.alert r WHERE r.kind = 'match' AND r.rule LIKE '{s} %' AND r.rule NOT IN ('{s} edge', '{s} forgotten')""",
    'marks': """SELECT r.name, s.key, s.state ->> 'fired' IS NOT NULL, s.state ->> 'ended' FROM millrace.rule_state s JOIN millrace.rule r ON r.target_id = s.rule_id WHERE r.kind = 'match' AND r.name LIKE '{s} %'""",
    'events': """SELECT r.name, s.key, e.object FROM millrace.rule_state s JOIN millrace.rule r ON r.target_id = s.rule_id, millrace_internal.rule_events(s.events) e
                 WHERE r.kind = 'frequency' AND r.name LIKE '{s} %' AND e.time > '2000-01-01'""",
    'groups': """SELECT r.name, s.key, s.state ->> 'details' FROM millrace.rule_state s JOIN millrace.rule r ON r.target_id = s.rule_id WHERE r.kind = 'threshold' AND r.name LIKE '{s} %'""",
    'tags': """SELECT r.name, g.key, g.groups FROM millrace.rule_tag g JOIN millrace.rule r ON r.target_id = g.rule_id WHERE r.name LIKE '{s} %' AND g.groups > 0""",
    'heard of': """SELECT r.name, s.key FROM millrace.rule_state s JOIN millrace.rule r ON r.target_id = s.rule_id WHERE r.kind = 'absence' AND r.name LIKE '{s} %'""",
    'keys of windows': """SELECT r.name, s.key FROM millrace.rule_state s JOIN millrace.rule r ON r.target_id = s.rule_id WHERE r.kind = 'frequency' AND r.name LIKE '{s} %'""",
    'rows of sinks': """SELECT k.name, r.object, r.key, r.digest IS NOT NULL FROM millrace.sink_row r JOIN millrace.sink k ON k.target_id = r.sink_id WHERE k.name LIKE '{s} %' AND k.name NOT IN ('{s} people', '{s} products')""",
}


def history(rng):
    messages = []
    for number in range(rng.randrange(8, 20)):
        person = rng.choice(PEOPLE)
        order = f'{person}-{number}'
        product = rng.choice(PRODUCTS)
        for version in range(1, rng.randrange(2, 5)):
            if rng.random() < 0.2:
                product = rng.choice(PRODUCTS)
            message = {'id': order, 'v': version, 'person': person, 'product': product, 'n': rng.randrange(10), 'at': START + number * 30 + version,
                       'lines': [{'what': f'{person} {i}', 'q': rng.randrange(5)} for i in range(rng.randrange(3))]}
            if version > 1 and rng.random() < 0.15:
                message['op'] = 'D'
            messages.append(message)
    # Versions of an order in their order, orders among each other in any.
    order = {m['id']: rng.random() for m in messages}
    return sorted(messages, key=lambda m: (order[m['id']] + m['v'] * 0.15))


def push(cursor, stream, messages):
    for message in messages:
        cursor.execute("SELECT millrace.push(%s, %s, key => %s)", (stream, json.dumps(message), message['id']))


def rows(cursor, query):
    cursor.execute(query)
    return sorted(json.dumps(row) for row in cursor.fetchall())


def left_of(cursor, person, but=''):
    """Where there is still something of somebody."""
    cursor.execute("SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace::regnamespace::text IN ('millrace', 'millrace_state', 'a')")
    found = []
    for (table,) in cursor.fetchall():
        condition = but if table == 'millrace.outbox_message' else 'true'
        cursor.execute(f"SELECT t::text FROM {table} t WHERE (position(%s IN t::text) > 0 OR position(%s IN t::text) > 0) AND {condition or 'true'} LIMIT 2", (person, person.encode().hex()))
        found += [f'{table}: {row[0]}' for row in cursor.fetchall()]
    return found


def check(cursor, what, erased, compared):
    good = True
    for person in erased:
        found = left_of(cursor, person)
        if found:
            good = False
            print(f'{what}: something of {person} is left:', *found, sep='\n  ')
    for name, query in STATES.items() if compared else ():
        a, b = ([row.replace(f'{s} ', '') for row in rows(cursor, query.format(s=s))] for s in 'ab')
        a.sort(), b.sort()
        if a != b:
            good = False
            print(f'{what}: {name}\n  only erased: {[x for x in a if x not in b]}\n  only never sent: {[x for x in b if x not in a]}')
    return good


def run(cursor, rng):
    log = rng.random() < 0.8
    cursor.execute("CREATE EXTENSION millrace")
    cursor.execute(SEND)
    for s in 'ab':
        cursor.execute(DECLARE.format(s=s, log=log if s == 'a' else True))
    messages = history(rng)
    erased = rng.sample(PEOPLE, rng.choice([1, 1, 2]))
    # Of what was deleted only a log says whose it was.
    messages = [m for m in messages if log or 'op' not in m or m['person'] not in erased]
    moments = {rng.randrange(2, len(messages) + 1): person for person in erased}
    for i, message in enumerate(messages + [None]):
        if message is not None:
            push(cursor, 'a', [message])
        if rng.random() < 0.5:
            cursor.execute("SELECT millrace.run_stream('a')")
        if rng.random() < 0.1:
            time.sleep(1.1)             # What is absent for a second is.
        if rng.random() < 0.5:
            cursor.execute("SELECT send(%s, %s)", (rng.choice(['dead', 'sent', 'sent', 'ready', 'claimed']), rng.randrange(1, 5)))
        if i in moments:
            # As maintain() does when they are old enough.
            cursor.execute("DELETE FROM millrace.rule_alert a USING millrace.rule r WHERE r.target_id = a.rule_id AND r.name = 'a forgotten'")
            cursor.execute("SELECT * FROM millrace.erase('a', %s)", (json.dumps({'person': moments[i]}),))
    for person in erased:
        cursor.execute("SELECT * FROM millrace.erase('a', %s)", (json.dumps({'person': person}),))
    # What is on its way arrives, and what says that somebody was erased is tried again.
    cursor.execute("""SELECT millrace_internal.retry_deliveries(array_agg(l.id)) FROM millrace.letter l JOIN millrace.outbox_message m ON m.delivery_id = l.position
                      WHERE l.kind = 'delivery' AND m.erased HAVING count(*) > 0""")
    cursor.execute("SELECT arrive(array_agg(id)) FROM millrace.delivery WHERE state IN ('claimed', 'ready')")
    for person in erased:
        found = left_of(cursor, person, "NOT (state = 'waiting' AND erased AND message IS NULL)")
        if found:
            print(f'something of {person} is left before deletions were sent:', *found, sep='\n  ')
            return False
    for _ in range(200):
        if not rows(cursor, "SELECT 1 FROM millrace.outbox_message WHERE state = 'waiting' LIMIT 1"):
            break
        cursor.execute("SELECT send('sent', 100)")
    cursor.execute("SELECT millrace.run_stream('a')")
    push(cursor, 'b', [m for m in messages if m['person'] not in erased])
    cursor.execute("SELECT millrace.run_stream('b')")
    good = check(cursor, 'erased', erased, log)
    if good:
        push(cursor, 'a', rng.sample(messages, len(messages)))
        cursor.execute("SELECT millrace.run_stream('a')")
        good = check(cursor, 'sent again', erased, log)
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--seed', type=int, default=int(time.time()))
    parser.add_argument('--runs', type=int, default=3)
    options = parser.parse_args()
    admin = psycopg2.connect('')
    admin.autocommit = True
    control = admin.cursor()
    for i in range(options.runs):
        seed = options.seed + i
        print(f'seed {seed}', flush=True)
        database = f'erase_alerts_{seed}'
        control.execute(f'DROP DATABASE IF EXISTS {database} WITH (FORCE)')
        control.execute(f'CREATE DATABASE {database} TEMPLATE template0')
        connection = psycopg2.connect(dbname=database)
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute('SET client_min_messages = error')
        good = run(cursor, random.Random(seed))
        connection.close()
        if not good:
            print(f'database {database}')
            sys.exit(1)
        control.execute(f'DROP DATABASE {database} WITH (FORCE)')
    print('nothing of the erased is left, and the others are as if they had been alone')


if __name__ == '__main__':
    main()
