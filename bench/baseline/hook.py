#!/usr/bin/python3
"""POSTs each message of a topic to a port of 127.0.0.1, one after the other over a connection that stays open: the bare consumer of alert_latency.

    hook.py BROKERS TOPIC PORT          (ends when it is terminated)
"""
import http.client
import signal
import subprocess
import sys


def main():
    brokers, topic, port = sys.argv[1:]
    kcat = subprocess.Popen(['kcat', '-C', '-u', '-q', '-b', brokers, '-t', topic, '-o', 'beginning', '-f', '%s\n'],
                            stdout=subprocess.PIPE)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    connection = http.client.HTTPConnection('127.0.0.1', int(port))
    try:
        for line in kcat.stdout:
            connection.request('POST', '/x', line.rstrip(b'\n'), {'Content-Type': 'application/json'})
            connection.getresponse().read()
    finally:
        kcat.terminate()


if __name__ == '__main__':
    main()
