#!/usr/bin/python3
"""Starts a stream, waits until its positions add up to TOTAL, and prints "seconds peak_MB": the time from before
start_stream to then, and the most anonymous memory (RssAnon) that any process of millrace had.

    consume.py STREAM TOTAL           (the database is the one that PG* names)
"""
import sys
import time

import psycopg2

LIMIT = 900                         # seconds


def rss_anon(pid):
    """The process's anonymous memory in MB, 0 when it is gone."""
    try:
        with open(f'/proc/{pid}/status', encoding='ascii', errors='replace') as status:
            return next((int(line.split()[1]) / 1024 for line in status if line.startswith('RssAnon')), 0)
    except OSError:
        return 0


def main():
    stream, total = sys.argv[1], int(sys.argv[2])
    connection = psycopg2.connect('')
    connection.autocommit = True                # a snapshot held open would keep dead rows alive
    cursor = connection.cursor()
    start, peak, done = time.monotonic(), 0, 0
    cursor.execute('SELECT millrace.start_stream(%s)', (stream,))
    while done < total:
        cursor.execute('SELECT coalesce(sum(position), 0) FROM millrace.stream_partition WHERE stream = %s', (stream,))
        done = cursor.fetchone()[0]
        now = time.monotonic()
        if done < total:
            cursor.execute("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'millrace%'")
            peak = max([peak] + [rss_anon(pid) for (pid,) in cursor.fetchall()])
            if now - start > LIMIT:
                cursor.execute('SELECT * FROM millrace.stream_status')
                sys.exit(f'{done} of {total} messages after {LIMIT} s: {cursor.fetchall()}')
            time.sleep(0.05)
    print(f'{now - start:.2f} {peak:.0f}')


if __name__ == '__main__':
    main()
