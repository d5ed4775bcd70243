#!/usr/bin/python3
"""Measures how long it takes from producing an order to seeing it in the mart, and prints "p50 p99" in ms.

    freshness.py BROKERS TOPIC RATE WARM SECONDS SKIP

Orders SKIP + 1 … are produced evenly at RATE a second by bench/produce, which logs when it sent each. Of them
a sample is watched. A watched order has a user of its own, so that it is visible when its user is: a reader asks a mart
(cdm.user_category_counters of the database that PG* names) for the users that it has not seen yet, again and again, a
millisecond between (more when the query itself takes more). The first WARM seconds are not counted, SECONDS after them are. A time is
that of the answer, so that the reader's own query is part of it.
"""
import os
import subprocess
import sys
import tempfile
import time

import psycopg2

import gen_orders

HERE = os.path.dirname(os.path.abspath(__file__))
LIMIT = 300                         # seconds after the last order is sent until we give up
PATIENCE = 4                        # a backlog makes the query long: so many times that is a pause, in which others have the processor
WATCHED = 100                       # orders a second at most whose arrival is watched: asking for more takes from a processor


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


def watch(cursor, wanted, rate, deadline):
    """Returns when each user was first seen, in µs, asking only for those that may have been sent by now."""
    seen, unseen, following, start = {}, set(), 0, time.time()
    while len(seen) < len(wanted):
        now = time.time()
        if now > deadline:
            sys.exit(f'only {len(seen)} of {len(wanted)} orders became visible')
        while following < len(wanted) and wanted[following][0] < (now - start) * rate + 1:
            unseen.add(wanted[following][2])
            following += 1
        pause = 0.001
        if unseen:
            cursor.execute('EXECUTE visible (%s)', (list(unseen),))
            rows = cursor.fetchall()
            answered = time.time()
            pause = max(pause, PATIENCE * (answered - now))
            for (user,) in rows:
                seen[user] = answered * 1e6
                unseen.discard(user)
        time.sleep(pause)
    return seen


def main():
    brokers, topic, rate, warm, seconds, skip = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    with tempfile.TemporaryDirectory() as folder:
        orders, log = os.path.join(folder, 'orders'), os.path.join(folder, 'log')
        wanted = make_orders(orders, skip, rate * (warm + seconds), max(1, rate // WATCHED))
        connection = psycopg2.connect('')
        connection.autocommit = True
        cursor = connection.cursor()
        # a plan made while the mart is small would read all of it when it is not
        cursor.execute('SET enable_seqscan = off')
        cursor.execute('PREPARE visible (text[]) AS SELECT DISTINCT user_id FROM cdm.user_category_counters WHERE user_id = ANY ($1)')
        producer = subprocess.Popen([os.path.join(HERE, 'produce'), brokers, topic, '--rate', str(rate), '--log', log, orders],
                                    stderr=subprocess.DEVNULL)
        try:
            seen = watch(cursor, wanted, rate, time.time() + warm + seconds + LIMIT)
            if producer.wait() != 0:
                sys.exit('the producer failed')
        finally:
            producer.kill()
        with open(log, encoding='ascii') as file:
            sent = dict(line.split() for line in file)
    latency = sorted((seen[user] - int(sent[key])) / 1000 for place, key, user in wanted if place >= rate * warm)
    print(f'{latency[len(latency) // 2]:.1f} {latency[len(latency) * 99 // 100]:.1f}')


if __name__ == '__main__':
    main()
