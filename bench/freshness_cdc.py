#!/usr/bin/python3
"""Measures how long a row takes from its commit at the source until it is seen, and prints "p50 p99" in ms.

    freshness_cdc.py SOURCE TARGET TABLE FIRST RATE SECONDS

Rows FIRST, FIRST + 1, … are inserted evenly into item of the database SOURCE, RATE a second, each in a transaction of its
own; a row counts as committed when the source has answered.  A reader asks TABLE of the database TARGET for those that it
has not seen yet, again and again, a millisecond between.  The first second is warm-up and is not counted.  A time is that
of the answer, so that the reader's own query is part of it.
"""
import multiprocessing
import sys
import time

import psycopg2

LIMIT = 60                          # seconds after the last commit until we give up


def connect(database):
    connection = psycopg2.connect(dbname=database)
    connection.autocommit = True
    return connection.cursor()


def write(database, first, rate, count, queue):
    """Commits the rows, and puts each one's number and the time of its commit into the queue."""
    cursor = connect(database)
    cursor.execute("PREPARE put (bigint) AS INSERT INTO item VALUES ($1, 'customer ' || $1 % 1000, 1.25, 3, now())")
    start = time.time()
    for i in range(count):
        time.sleep(max(0, start + i / rate - time.time()))
        cursor.execute('EXECUTE put (%s)', (first + i,))
        queue.put((first + i, time.time()))


def watch(cursor, queue, count, deadline):
    """Returns when each row was committed and when it was first seen."""
    committed, seen, unseen = {}, {}, set()
    while len(seen) < count:
        if time.time() > deadline:
            sys.exit(f'only {len(seen)} of {count} rows became visible')
        while not queue.empty():
            number, at = queue.get()
            committed[number] = at
            unseen.add(number)
        if unseen:
            cursor.execute('EXECUTE visible (%s)', (list(unseen),))
            rows = cursor.fetchall()
            answered = time.time()
            for (number,) in rows:
                seen[number] = answered
                unseen.discard(number)
        time.sleep(0.001)
    return committed, seen


def main():
    source, target, table, first, rate, seconds = sys.argv[1:4] + list(map(int, sys.argv[4:]))
    count = rate * seconds
    queue = multiprocessing.Queue()
    cursor = connect(target)
    cursor.execute(f'PREPARE visible (bigint[]) AS SELECT id FROM {table} WHERE id = ANY ($1)')
    writer = multiprocessing.Process(target=write, args=(source, first, rate, count, queue), daemon=True)
    writer.start()
    committed, seen = watch(cursor, queue, count, time.time() + seconds + LIMIT)
    latency = sorted((seen[n] - committed[n]) * 1000 for n in range(first + rate, first + count))
    print(f'{latency[len(latency) // 2]:.2f} {latency[len(latency) * 99 // 100]:.2f}')


main()
