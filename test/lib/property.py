"""Random histories one after another in a database of their own.

    repeat('rules', SETUP, run, 25, 'alerts are those that Python finds')     run(cursor, rng) says whether all was well

The server is the one that libpq's environment says.  Each history has a seed of its own: `--seed N --runs 1` repeats one.
"""
import argparse
import random
import sys

from database import Database


def repeat(name, setup, run, runs, what):
    parser = argparse.ArgumentParser()
    parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument('--runs', type=int, default=runs)
    arguments = parser.parse_args()
    print(f'# seed {arguments.seed}', flush=True)
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
