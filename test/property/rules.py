#!/usr/bin/env python3
"""Rules of kind match and frequency under random histories: the alerts are those that Python finds, whatever the borders of
batches, and those of match whatever the order of delivery.

A history has objects with versions, copies, versions that a filter takes away, deletes, elements, changed keys, and times that go back and forth.
Match is judged by sets: which rule fires for which object.  Frequency depends on the order in which events come, because an alert
is not withdrawn: the recompute takes them one by one, and batches of any size must agree with it.

See test/lib/property.py for how it is run.
"""
import json
import os
import sys
from collections import defaultdict

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from property import repeat  # noqa: E402

START = 1_767_225_600                   # 2026-01-01
WITHIN = 100
LATENESS = 40

SETUP = f"""
CREATE EXTENSION millrace; CREATE SCHEMA p;
SELECT millrace.create_stream('feed');
SELECT millrace.create_staging('p.orders', stream => 'feed', key => '{{"id": ["$.id", "integer"]}}', version => '["$.v", "integer"]', deleted => $$ op = 'D' $$,
  columns => '{{"op": "$.op", "customer": "$.customer", "total": ["$.total", "numeric"], "quantity": ["$.quantity", "integer"], "at": ["$.at", "timestamptz", "s"]}}',
  filter => $$ op IS DISTINCT FROM 'hidden' $$);
SELECT millrace.create_staging('p.lines', stream => 'feed', for_each => '$.lines[*]', key => '{{"id": ["$.id", "integer"]}}', version => '["$.v", "integer"]', deleted => $$ op = 'D' $$,
  columns => '{{"op": "$.op", "product": "@.product", "n": ["@.n", "integer"]}}');
SELECT millrace.create_rule('high', kind => 'match', source => 'p.orders', predicate => 'total > 90', rule_group => 'g', ordinal => 1, max_age => NULL);
SELECT millrace.create_rule('many', kind => 'match', source => 'p.orders', predicate => 'quantity > 7', rule_group => 'g', ordinal => 2, max_age => NULL);
SELECT millrace.create_rule('odd', kind => 'match', source => 'p.orders', predicate => '100 / quantity = 33', max_age => NULL);
SELECT millrace.create_rule('customer', kind => 'match', source => 'p.orders', predicate => 'total < 5', key => '{{customer}}', max_age => NULL);
SELECT millrace.create_rule('tea', kind => 'match', source => 'p.lines', predicate => $$ product = 'tea' AND n > 3 $$, rule_group => 'l', ordinal => 2, max_age => NULL);
SELECT millrace.create_rule('bread', kind => 'match', source => 'p.lines', predicate => $$ product = 'bread' $$, rule_group => 'l', ordinal => 1, max_age => NULL);
SELECT millrace.create_rule('rapid', kind => 'frequency', source => 'p.orders', key => '{{customer}}', count => 3, within => '{WITHIN} s', lateness => '{LATENESS} s',
  event_time => 'at', max_age => NULL);
SELECT millrace.create_rule('spent', kind => 'frequency', source => 'p.orders', key => '{{customer}}', sum => 'total', at_least => 150, within => '{WITHIN} s', lateness => '{LATENESS} s',
  event_time => 'at', predicate => 'quantity > 1', max_age => NULL);
SELECT millrace.create_rule('varied', kind => 'frequency', source => 'p.orders', key => '{{customer}}', count => 3, distinct_values => 'quantity', within => '{WITHIN} s',
  lateness => '{LATENESS} s', event_time => 'at', max_age => NULL);
SELECT millrace.run_stream('feed');
"""


def history(rng, deletes):
    """Messages: versions of objects."""
    messages = []
    for number in range(rng.randrange(5, 25)):
        customer = rng.choice('abc')
        at = START + rng.randrange(600)
        for version in range(1, rng.randrange(2, 6)):
            if rng.random() < 0.2:
                customer = rng.choice(['a', 'b', 'c', None])
            message = {'id': number, 'v': version, 'customer': customer, 'total': rng.randrange(100), 'quantity': rng.choice([None, 0, 1, 2, 3, 8, 9]),
                       'at': at + rng.choice([0, 0, 3, 50, 400]),
                       'lines': [{'product': rng.choice(['tea', 'bread', 'milk', 'milk']), 'n': rng.randrange(6)} for _ in range(rng.randrange(4))]}
            if rng.random() < 0.1:
                message['op'] = 'hidden'
            elif deletes and rng.random() < 0.2:
                message['op'] = 'D'
            messages.append(message)
            if rng.random() < 0.1:
                messages.append(message)
    return messages


# ---- what should be found -----------------------------------------------------------------------------------

def true_rules(message):
    """(rule, key) of the rules that a version makes true."""
    found = []
    if message.get('op') == 'D':
        return found
    if message.get('op') != 'hidden':
        if message['total'] > 90:
            found.append(('high', str(message['id'])))
        elif message['quantity'] is not None and message['quantity'] > 7:
            found.append(('many', str(message['id'])))
        if message['quantity'] not in (None, 0) and 100 // message['quantity'] == 33:
            found.append(('odd', str(message['id'])))
        if message['total'] < 5:
            found.append(('customer', message['customer'] if message['customer'] is not None else '[null]'))
    if any(line['product'] == 'bread' for line in message['lines']):
        found.append(('bread', str(message['id'])))
    elif any(line['product'] == 'tea' and line['n'] > 3 for line in message['lines']):
        found.append(('tea', str(message['id'])))
    return found


def matches(messages):
    """How often each rule fires for each key: once for each life of the object, of messages in the order of versions."""
    fired = defaultdict(int)
    alive = set()
    for message in messages:
        if message.get('op') == 'D':
            for rule in ('high', 'many', 'odd', 'bread', 'tea'):
                alive.discard((rule, str(message['id'])))
        for hit in true_rules(message):
            if hit not in alive:
                alive.add(hit)
                fired[hit] += 1
    return dict(fired)


class Key:
    def __init__(self):
        self.events = []                # (time, object, value)
        self.alerted = []               # ends
        self.watermark = None

    def horizon(self):
        return self.watermark - WITHIN - LATENESS if self.watermark is not None else None

    def add(self, event, enough):
        """The first events of the windows that fire."""
        fired = []
        if self.horizon() is not None and event[0] <= self.horizon():
            return fired
        self.events = sorted(self.events + [event], key=lambda e: (e[0], str(e[1])))
        for end in sorted({e[0] for e in self.events if event[0] <= e[0] < event[0] + WITHIN}):
            window = [e for e in self.events if end - WITHIN < e[0] <= end]
            if all(abs(end - other) >= WITHIN for other in self.alerted) and enough([e[2] for e in window]):
                fired.append(window[0][1])
                self.alerted.append(end)
        self.watermark = max(self.watermark or 0, event[0])
        self.events = [e for e in self.events if e[0] > self.horizon()]
        self.alerted = [a for a in self.alerted if a > self.horizon() - WITHIN]
        return fired


def frequencies(messages):
    rules = {'rapid': (lambda m: 1, lambda values: len(values) >= 3),
             'spent': (lambda m: m['total'] if (m['quantity'] or 0) > 1 else None, lambda values: sum(values) >= 150),
             'varied': (lambda m: m['quantity'], lambda values: len(set(values)) >= 3)}
    found = []
    for rule, (value, enough) in rules.items():
        keys = defaultdict(Key)
        newest = {}
        for message in messages:
            number = message['id']
            # a delete of the same version comes after it, a copy is not newer
            if newest.get(number, (0, False)) >= (message['v'], message.get('op') == 'D'):
                continue
            newest[number] = (message['v'], message.get('op') == 'D')
            for key in keys.values():
                key.events = [e for e in key.events if e[1] != number]
            if message.get('op') in ('D', 'hidden') or message['customer'] is None or value(message) is None:
                continue
            for first in keys[message['customer']].add((message['at'], number, value(message)), enough):
                found.append((rule, message['customer'], first))
    return sorted(found)


# ---- what is found ------------------------------------------------------------------------------------------

def deliver(cursor, rng, messages):
    """Pushes and runs in batches of any size; returns what has fired, and forgets it."""
    i = 0
    while i < len(messages):
        size = rng.choice([1, 1, 2, 5, 20, len(messages)])
        for message in messages[i:i + size]:
            cursor.execute("SELECT millrace.push('feed', %s, key => %s)", (json.dumps(message), str(message['id'])))
        cursor.execute("SELECT dead_letters FROM millrace.run_stream('feed', %s)", (rng.choice([1, 3, 1000]),))
        assert cursor.fetchone() == (0,)
        i += size
    cursor.execute("SELECT dead_letters FROM millrace.run_stream('feed')")
    cursor.execute("SELECT rule, kind, key, split_part(split_part(occurrence, '@', 2), '/', 1), occurrence, suppressed FROM millrace.alert")
    found = defaultdict(int)
    windows = []
    for rule, kind, key, first, occurrence, suppressed in cursor.fetchall():
        assert suppressed is None
        if kind == 'match':
            found[(rule, key)] += 1
        else:
            windows.append((rule, key, int(first)))
    cursor.execute("SELECT count(*) FROM millrace.rule_status WHERE state <> 'active'")
    assert cursor.fetchone() == (0,)
    cursor.execute("""DELETE FROM millrace.rule_alert; DELETE FROM millrace.rule_state; DELETE FROM p.orders; DELETE FROM p.lines;
        DO $$ DECLARE t text; BEGIN FOR t IN SELECT relname FROM pg_class WHERE relname LIKE 'object\\_%' AND relkind = 'r' LOOP EXECUTE 'DELETE FROM millrace_state.' || t; END LOOP; END $$""")
    return dict(found), sorted(windows)


def check(what, found, wanted):
    if found != wanted:
        print(f'not ok - {what}\n# found {found}\n# wanted {wanted}')
        return False
    return True


def run(cursor, rng):
    good = True
    messages = history(rng, False)
    for _ in range(4):
        rng.shuffle(messages)
        found, windows = deliver(cursor, rng, messages)
        good &= check('match, any order', found, matches(messages))
        good &= check('frequency, any batches', windows, frequencies(messages))
    messages = history(rng, True)
    mixed = sorted(messages, key=lambda m: (rng.random(), m['id']))
    positions = sorted(range(len(mixed)), key=lambda i: (mixed[i]['id'], i))
    ordered = list(mixed)
    for place, message in zip(positions, sorted(messages, key=lambda m: (m['id'], m['v']))):
        ordered[place] = message
    for _ in range(3):
        found, windows = deliver(cursor, rng, ordered)
        good &= check('match with deletes, any batches', found, matches(ordered))
        good &= check('frequency with deletes, any batches', windows, frequencies(ordered))
    return good


if __name__ == '__main__':
    repeat('rules', SETUP, run, 25, 'alerts are those that Python finds')
