"""Servers and brokers of scripts/lib.sh for tests in Python.

    with Shell() as shell:
        shell.run('pg_start "$work/pg" "max_connections = 30"')
        shell.environ()             PG*, KAFKA_* as they are exported now, also put into os.environ

A bash that has read lib.sh obeys one command after another; when it ends, what it has started ends.
"""
import os
import subprocess
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

LOOP = r'''
set -euo pipefail
source "$1/scripts/lib.sh"
exec 3>&1 1>&2
temp_dir work
while IFS= read -r -d '' command; do
	eval "$command"
	printf 'done\0' >&3
done
'''


class Shell:
    def __init__(self):
        self.process = subprocess.Popen(['bash', '-c', LOOP, 'shell', TOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.work = self.value('$work')

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.stdin.close()
        self.process.wait()

    def answer(self):
        text = b''
        while not text.endswith(b'\0'):
            byte = self.process.stdout.read(1)
            if not byte:
                raise RuntimeError('a command failed, see above')
            text += byte
        return text[:-1].decode()

    def run(self, command):
        """Runs a command; its output goes to stderr.  One that fails ends everything."""
        self.process.stdin.write(command.encode() + b'\0')
        self.process.stdin.flush()
        text = self.answer()
        assert text == 'done', text

    def value(self, expression):
        self.process.stdin.write(f'printf "%s\\0" "{expression}" >&3'.encode() + b'\0')
        self.process.stdin.flush()
        value = self.answer()
        assert self.answer() == 'done'
        return value

    def environ(self):
        text = self.value('$(env | grep -E "^(PG|KAFKA_)[A-Z_]*=" || true)')
        os.environ.update(line.split('=', 1) for line in text.splitlines())


def wait_for(what, condition, seconds=240):
    """Polls until the condition is true and returns what it gave; an error after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f'{what}: not within {seconds} s')
        time.sleep(0.02)
