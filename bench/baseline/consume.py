#!/usr/bin/python3
"""Feeds a topic into the hand-written SQL in small batches, for the freshness bench: whatever has arrived is the next
batch. The positions are not kept: a loader for use would have to.

    consume.py BROKERS TOPIC          (the database is the one that PG* names; ends when it is terminated)
"""
import os
import select
import signal
import subprocess
import sys

import psycopg2

HERE = os.path.dirname(os.path.abspath(__file__))


def read(name):
    with open(os.path.join(HERE, name), encoding='utf-8') as file:
        return file.read()


class Chunks:
    """What COPY reads from."""

    def __init__(self, data):
        self.data = memoryview(data)

    def read(self, size):
        chunk, self.data = bytes(self.data[:size]), self.data[size:]
        return chunk


def main():
    brokers, topic = sys.argv[1:]
    kcat = subprocess.Popen(['kcat', '-C', '-u', '-q', '-b', brokers, '-t', topic, '-o', 'beginning', '-f', '%s\n'],
                            stdout=subprocess.PIPE)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    pipe = kcat.stdout.fileno()
    connection = psycopg2.connect('', options='-c temp_buffers=64MB')
    cursor = connection.cursor()
    cursor.execute(read('session.sql'))
    connection.commit()
    load, rest = read('orders.sql'), b''
    try:
        while True:
            select.select([pipe], [], [])
            while len(rest) < 16 << 20 and select.select([pipe], [], [], 0)[0]:
                data = os.read(pipe, 1 << 20)
                if not data:
                    sys.exit('kcat ended')
                rest += data
            whole, newline, rest = rest.rpartition(b'\n')
            if whole:
                cursor.execute('TRUNCATE raw')
                cursor.copy_expert('COPY raw (payload) FROM STDIN', Chunks(whole + newline))
                cursor.execute(load)
                connection.commit()
    finally:
        kcat.terminate()


if __name__ == '__main__':
    main()
