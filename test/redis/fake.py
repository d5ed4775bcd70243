#!/usr/bin/python3
"""A Redis that misbehaves as the real one cannot be made to: fake.py silent | half. Prints its port.

silent   takes connections and commands, and never answers
half     answers the first half of the first pipeline and closes; after that it answers everything with a person's name
"""
import re
import socket
import sys

mode = sys.argv[1]
server = socket.create_server(('127.0.0.1', 0))
print(server.getsockname()[1], flush=True)
broken = False


def serve(connection):
    """Answers pipelines: what has arrived is one."""
    global broken
    while True:
        received = connection.recv(1 << 20)
        if not received:
            return
        if mode == 'silent':
            continue
        keys = re.findall(rb'GETRANGE\r\n\$\d+\r\n(.*?)\r\n', received)
        half = not broken and len(keys) > 1
        for key in keys[:len(keys) // 2] if half else keys:
            value = b'{"name": "N%s"}' % key
            connection.sendall(b'$%d\r\n%s\r\n' % (len(value), value))
        if half:
            broken = True
            return


connections = []
while True:
    connection, _ = server.accept()
    if mode == 'silent':
        connections.append(connection)          # it stays open, and unanswered
        continue
    try:
        serve(connection)
    except OSError:
        pass
    connection.close()
