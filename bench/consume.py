#!/usr/bin/python3
"""Starts a stream, waits until its positions add up to TOTAL, and prints "seconds peak_MB cpu waiting": the time from before
start_stream to then, the most anonymous memory (RssAnon) that any process of millrace had, the processor time in seconds
that all of them took together, and in how many of a hundred looks at a worker it waited for a lock.

    consume.py STREAM TOTAL [WINDOW MARK ...]           (the database is the one that PG* names)

Positions are counted in messages of a Kafka topic, in bytes of the log of a PostgreSQL source.

Then, for each MARK, a line "MARK rate µs kB pages": messages a second while the WINDOW messages after the first MARK ones were
consumed, and for one of them the processor time, what the log grew by, and how many pages stand there whole because a checkpoint
had gone before.
"""
import os
import sys
import time

import psycopg2

LIMIT = 600                         # seconds without a step forward
PAUSE = 0.05                        # s between two looks at the memory of processes, and at the positions towards the end
SELDOM = 5                          # before, only every so many looks ask the server, which takes from the processors
NEAR = 1                            # s that the end is away, at most, when it is near


def rss_anon(pid):
    """The process's anonymous memory in MB, 0 when it is gone."""
    try:
        with open(f'/proc/{pid}/status', encoding='ascii', errors='replace') as status:
            return next((int(line.split()[1]) / 1024 for line in status if line.startswith('RssAnon')), 0)
    except OSError:
        return 0


def cpu_time(pid):
    """The processor time that the process has taken in seconds, 0 when it is gone."""
    try:
        with open(f'/proc/{pid}/stat', encoding='ascii', errors='replace') as stat:
            fields = stat.read().rpartition(')')[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
    except OSError:
        return 0


def at(samples, position):
    """(Time, processor time, kB of log, whole pages in it) when so many messages had been consumed, between two looks at the positions."""
    before = samples[0]
    for sample in samples:
        if sample[0] >= position:
            part = (position - before[0]) / max(1, sample[0] - before[0])
            return [x + part * (y - x) for x, y in zip(before[1:], sample[1:])]
        before = sample
    return before[1:]


def main():
    stream, total = sys.argv[1], int(sys.argv[2])
    window, marks = int((sys.argv + ['0'] * 4)[3]), [int(mark) for mark in sys.argv[4:]]
    connection = psycopg2.connect('')
    connection.autocommit = True                # a snapshot held open would keep dead rows alive
    cursor = connection.cursor()
    # planned once: what a look takes from the processors is missing to the workers
    cursor.execute('PREPARE position (text) AS SELECT (SELECT coalesce(sum(position), 0) FROM millrace.stream_partition WHERE stream = $1), '
                   'wal_bytes::double precision / 1024, wal_fpi FROM pg_stat_wal')
    cursor.execute("PREPARE processes AS SELECT pid, backend_type = 'millrace stream worker', wait_event_type IS NOT DISTINCT FROM 'Lock' "
                   "FROM pg_stat_activity WHERE backend_type LIKE 'millrace%'")
    start, peak, done, cpu = time.monotonic(), 0, 0, {}
    cursor.execute('SELECT wal_bytes::double precision / 1024, wal_fpi FROM pg_stat_wal')
    moved, samples = start, [(0, start, 0, *cursor.fetchone())]
    looks, waiting = 0, 0
    cursor.execute('SELECT millrace.start_stream(%s)', (stream,))
    while done < total:
        cursor.execute('EXECUTE position (%s)', (stream,))
        position, *log = cursor.fetchone()
        before, done = done, int(position)
        now = time.monotonic()
        moved = now if done > before else moved
        cursor.execute('EXECUTE processes')
        for pid, worker, waits in cursor.fetchall():
            looks += worker
            waiting += worker and waits
            peak = max(peak, rss_anon(pid))
            cpu[pid] = max(cpu.get(pid, 0), cpu_time(pid))
        samples.append((done, now, sum(cpu.values()), *log))
        if done < total:
            if now - moved > LIMIT:
                cursor.execute('SELECT * FROM millrace.stream_status')
                sys.exit(f'stands at {done} of {total} for {LIMIT} s: {cursor.fetchall()}')
            near = (total - done) * (now - start) < NEAR * done
            time.sleep(PAUSE)
            for _ in range(0 if near else SELDOM - 1):
                peak = max([peak, *map(rss_anon, cpu)])
                time.sleep(PAUSE)
    print(f'{now - start:.2f} {peak:.0f} {sum(cpu.values()):.1f} {100 * waiting / max(1, looks):.1f}')
    for mark in marks:
        seconds, cpu, kb, pages = (y - x for x, y in zip(at(samples, mark), at(samples, mark + window)))
        print(f'{mark} {window / seconds:.0f} {cpu / window * 1e6:.1f} {kb / window:.1f} {pages / window:.2f}')


if __name__ == '__main__':
    main()
