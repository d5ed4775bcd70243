#!/usr/bin/python3
"""Measures how long it takes from producing an order until it is visible in the mart, and prints "p50 p99 undisturbed_p99 left_out":
milliseconds, and how many of a hundred orders were left out of the third; "-" for what is not known.

    freshness.py BROKERS TOPIC RATE WARM SECONDS SKIP

Orders SKIP + 1 … are produced evenly at RATE a second by bench/produce, which logs when it sent each. Of them
a sample is watched. A watched order has a user of its own, so that it is visible when its user is in a mart
(cdm.user_category_counters of the database that PG* names), and that is from when the transaction commits that writes the row. When
that was the server keeps (track_commit_timestamp); nobody asks while orders are sent, as a reader takes from the processors and measures
itself, too. The time is taken when the commit is logged: whoever then waits for the disk is shown too early by that wait. The first
WARM seconds are not counted, SECONDS after them are.

A machine that others use may stand still for some hundredths of a second. bench/metronome tells when: the undisturbed p99 is of the orders
that were not sent then, shortly before, or while what piled up was still there. Which ones are left out does not depend on how long they took.
"""
import os
import statistics
import subprocess
import sys
import tempfile
import time

import psycopg2

import gen_orders

HERE = os.path.dirname(os.path.abspath(__file__))
LIMIT = 300                         # seconds after the last order is sent until we give up
PAUSE = 2                           # seconds between two looks whether all have come
WATCHED = 100                       # orders a second at most that are watched: each is a user more in the mart
BIN = 10_000                        # µs: the machine is disturbed, or not, for that long at a time
SLOW = 2                            # when most beats of the metronome in it took so many times what they usually take
BEFORE, AFTER = 50_000, 250_000     # µs before and after it in which orders have to do with it, too

# Where the rows of the mart are, and the column that has the user: a view has no transactions.
TABLE = """SELECT c.oid::regclass, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = 1
WHERE c.relkind = 'r' AND (c.oid = 'cdm.user_category_counters'::regclass OR c.relnamespace = to_regnamespace('millrace_state')::oid
AND EXISTS (SELECT FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid WHERE d.classid = 'pg_rewrite'::regclass
AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND r.ev_class = 'cdm.user_category_counters'::regclass))"""


def make_orders(path, skip, count, every):
    """Writes the orders for bench/produce; returns (place in the file, key, user) of those that will be counted."""
    wanted = []
    with open(path, 'w', encoding='utf-8') as file:
        for number, message in enumerate(gen_orders.messages(skip + count, distinct_users=every)):
            if number >= skip:
                file.write(gen_orders.FORMATS['timestamps'](message))
                if (number + 1) % every == 0 and '"status":"CLOSED"' in message.value:
                    user = gen_orders.identifier('user', gen_orders.USERS + number + 1)
                    wanted.append((number - skip, message.key, user))
    return wanted


def wait_for_all(cursor, users, deadline):
    """Waits until all users are in the mart."""
    while True:
        cursor.execute('SELECT count(DISTINCT user_id) FROM cdm.user_category_counters WHERE user_id = ANY (%s)', (users,))
        visible = cursor.fetchone()[0]
        if visible == len(users):
            return
        if time.time() > deadline:
            sys.exit(f'only {visible} of {len(users)} orders became visible')
        time.sleep(PAUSE)


def commits(cursor, users):
    """When the transactions committed that wrote the users' rows, in µs."""
    cursor.execute(TABLE)
    (table, column), = cursor.fetchall()
    cursor.execute(f'SELECT {column}, extract(epoch FROM min(pg_xact_commit_timestamp(xmin))) * 1000000 FROM {table} '
                   f'WHERE {column} = ANY (%s) GROUP BY 1', (users,))
    return {user: float(at) for user, at in cursor.fetchall()}


def disturbed(path, start):
    """The numbers of the hundredths of a second since `start` that were disturbed, and those before and after that have to do with it."""
    bins = {}
    with open(path, encoding='ascii') as file:
        for beat in file:
            when, work = map(int, beat.split())
            bins.setdefault((when - start) // BIN, []).append(work)
    usual = statistics.median(statistics.median(beats) for beats in bins.values())
    slow = [number for number in range(min(bins), max(bins) + 1)
            if number not in bins or statistics.median(bins[number]) > SLOW * usual]
    return {near for number in slow for near in range(number - BEFORE // BIN, number + AFTER // BIN + 1)}


def p(part, numbers):
    """The number that so many of a hundred do not exceed."""
    return sorted(numbers)[len(numbers) * part // 100]


def main():
    brokers, topic, rate, warm, seconds, skip = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    with tempfile.TemporaryDirectory() as folder:
        orders, log, beats = (os.path.join(folder, name) for name in ('orders', 'log', 'beats'))
        wanted = make_orders(orders, skip, rate * (warm + seconds), max(1, rate // WATCHED))
        users = [user for *_, user in wanted]
        metronome = subprocess.Popen([os.path.join(HERE, 'metronome'), beats])
        try:
            producer = subprocess.run([os.path.join(HERE, 'produce'), brokers, topic, '--rate', str(rate), '--log', log, orders], check=False)
        finally:
            metronome.terminate()
            watched = metronome.wait() == 0
        if producer.returncode != 0:
            sys.exit('the producer failed')
        connection = psycopg2.connect('')
        connection.autocommit = True
        cursor = connection.cursor()
        # a plan made while the mart is small would read all of it when it is not
        cursor.execute('SET enable_seqscan = off')
        wait_for_all(cursor, users, time.time() + LIMIT)
        visible = commits(cursor, users)
        with open(log, encoding='ascii') as file:
            sent = {key: int(when) for key, when in map(str.split, file)}
        start = min(sent.values())
        near = disturbed(beats, start) if watched else set()
    counted = [(sent[key], (visible[user] - sent[key]) / 1000) for place, key, user in wanted if place >= rate * warm]
    latency = [took for _, took in counted]
    if not latency:
        sys.exit('no order was counted: more seconds are wanted')
    undisturbed = [took for when, took in counted if watched and (when - start) // BIN not in near]
    print(f'{p(50, latency):.1f} {p(99, latency):.1f}', f'{p(99, undisturbed):.1f}' if undisturbed else '-',
          f'{100 - 100 * len(undisturbed) / len(latency):.0f}' if watched else '-')


if __name__ == '__main__':
    main()
