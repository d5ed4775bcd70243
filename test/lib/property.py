"""Random histories one after another in databases of their own.

    repeat('rules', SETUP, run, 25, 'alerts are those that Python finds')     run(cursor, rng) says whether all was well
    in_schema('model_test', SETUP, one, 10, cancelled)                        one(rng, cursor, number) for each seed, then others once
    histories('mart', 'marts equal their queries', run, 3, steps=40)          run(admin, database, cursor, rng, steps), a new database for each;
                                                                              with_background: run(…, background=False, …), then True if it may

The server is the one that libpq's environment says.  Each history has a seed of its own: `--seed N --runs 1` repeats one.
"""
import argparse
import contextlib
import itertools
import random
import sys

from database import Database
from shell import wait_for

failed = 0


def check(name, wrong):
    """wrong: what was found instead, or nothing."""
    global failed
    if wrong:
        failed += 1
        print('#', wrong)
    print('not ok -' if wrong else 'ok -', name, flush=True)


def seeds(runs, **numbers):
    """Seed and runs as the command line says, and other numbers by name."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(1 << 30))
    for name, number in dict(runs=runs, **numbers).items():
        parser.add_argument(f'--{name}', type=int, default=number)
    arguments = parser.parse_args()
    print(f'# seed {arguments.seed}', flush=True)
    return arguments


def in_schema(schema, setup, one, runs, *then):
    arguments = seeds(runs)
    cursor = Database().connection.cursor()
    cursor.execute(f'SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS millrace; DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}; {setup}')
    for number in range(arguments.runs):
        one(random.Random(arguments.seed + number), cursor, number)
    for step in then:
        step(cursor)
    cursor.execute(f'SET client_min_messages = warning; DROP SCHEMA {schema} CASCADE')
    sys.exit(failed > 0)


def histories(name, what, run, runs, with_background=False, **numbers):
    """A database in which something was not as it should be stays; dead letters never should be."""
    arguments = vars(seeds(runs, **numbers))
    first = arguments.pop('seed')
    admin = Database()
    ways = [False, True][:1 + preloaded(admin.connection)] if with_background else [None]
    for seed, background in itertools.product(range(first, first + arguments.pop('runs')), ways):
        database = f'{name}_{seed}' + ('_background' if background else '')
        if with_background:
            arguments['background'] = background
        print(f'# database {database}', flush=True)
        admin.query(f'DROP DATABASE IF EXISTS {database} WITH (FORCE)')
        admin.query(f'CREATE DATABASE {database} TEMPLATE template0')
        cursor = Database(f'dbname={database}').connection.cursor()
        good = run(admin.connection, database, cursor, random.Random(seed), **arguments)
        cursor.execute('SELECT FROM millrace.letter')
        if cursor.rowcount or not good:
            print(f'# {cursor.rowcount} dead letters')
            print(f'not ok - {what} (--seed {seed} --runs 1)')
            sys.exit(1)
        cursor.connection.close()
        admin.query(f'DROP DATABASE {database} WITH (FORCE)')
    print(f'ok - {what}')


def growing(cursor, rng, steps, names, create, push):
    """Gives what there is after each batch of a stream: half of what has names is declared at once, the rest over what is staged then."""
    made, left = [], rng.sample(list(names), len(names))
    for step in range(steps):
        while left and (len(left) > len(names) // 2 or rng.random() < 0.3 or step >= steps - 2):
            made.append(left.pop())
            create(made[-1])
        for _ in range(rng.choice([1, 1, 3, 20])):
            push()
        cursor.execute("SELECT * FROM millrace.run_stream('feed')")
        yield step, made


def preloaded(admin):
    cursor = admin.cursor()
    cursor.execute('SHOW shared_preload_libraries')
    return 'millrace' in cursor.fetchone()[0]


def wait(cursor, query, what):
    """Polls until the query says true."""
    def holds():
        cursor.execute(query)
        return cursor.fetchone()[0]
    wait_for(what, holds)


@contextlib.contextmanager
def in_background(admin, database, **settings):
    """millrace runs in the background in the database, under settings of its own."""
    control = admin.cursor()
    settings['databases'] = database
    for name, value in settings.items():
        control.execute(f"ALTER SYSTEM SET millrace.{name} = '{value}'")
    control.execute('SELECT pg_reload_conf()')
    try:
        yield
    finally:
        for name in settings:
            control.execute(f'ALTER SYSTEM RESET millrace.{name}')
        control.execute('SELECT pg_reload_conf()')


def drain(cursor, stream='feed'):
    """Lets workers consume what is in the inbox, and ends those of the stream."""
    wait(cursor, 'SELECT NOT EXISTS (SELECT FROM millrace.inbox)', 'the workers to empty the inbox')
    cursor.execute('SELECT millrace.stop_stream(%s)', (stream,))
    wait(cursor, 'SELECT count(*) = 0 FROM millrace.worker_status WHERE pid IS NOT NULL', 'the workers to end')


def repeat(name, setup, run, runs, what):
    arguments = seeds(runs)
    admin = Database()
    admin.query(f'DROP DATABASE IF EXISTS {name}_property')
    admin.query(f'CREATE DATABASE {name}_property')
    seed = arguments.seed
    good = False
    try:
        database = Database(f'dbname={name}_property')
        database.query(setup)
        for seed in range(arguments.seed, arguments.seed + arguments.runs):
            good = False        # also when it raises an error
            good = run(database.connection.cursor(), random.Random(seed))
            if not good:
                break
    finally:
        admin.query(f'DROP DATABASE {name}_property WITH (FORCE)')
        print(f'ok - {what}' if good else f'not ok - {what} (--seed {seed} --runs 1)')
    sys.exit(not good)
