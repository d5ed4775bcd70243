#!/usr/bin/env python3
"""Versions of a model while sessions train, promote and expire them at once: numbers are taken once, of the versions that are promoted behind a gate the newest stays, what an alias
names is there and answers. A training that is killed, or rolled back while another takes place, leaves nothing.

    registry.py [--seed N]

The server is that of PG*.
"""

import argparse
import os
import random
import sys
import threading
import time

import psycopg2

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
import property  # noqa: E402
from property import check  # noqa: E402

MODEL = "registry_test.knn"


def connect():
    connection = psycopg2.connect("")
    connection.autocommit = True
    return connection


def value(cur, sql, *args):
    cur.execute(sql, args)
    return cur.fetchone()[0]


def together(jobs):
    """Runs functions in threads, each with a cursor; returns what they raised."""
    errors = []

    def run(job):
        connection = connect()
        try:
            job(connection.cursor())
        except Exception as error:
            errors.append(repr(error))
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def fill(cur, users, items):
    cur.execute("TRUNCATE registry_test.bought")
    cur.execute("INSERT INTO registry_test.bought SELECT 'u' || u, 'i' || i FROM generate_series(1, %s) u, generate_series(1, %s) i WHERE (u * i) %% 7 < 4", (users, items))


def create(cur, keep="NULL"):
    cur.execute(f"SELECT millrace.create_model('{MODEL}', 'item_knn', 'SELECT u, i FROM registry_test.bought', keep => {keep})")
    return value(cur, f"SELECT id FROM millrace.model WHERE relation = '{MODEL}'::regclass")


def drop(cur):
    cur.execute(f"SELECT millrace.drop_model('{MODEL}')")


def stored(cur, id):
    """The versions that have rows in any table."""
    cur.execute(" UNION ".join(f"SELECT version FROM millrace_state.model_{id}_{part}" for part in ("item", "user", "target", "source")))
    return {v for v, in cur.fetchall()}


def promotions(cur):
    fill(cur, 60, 20)
    create(cur)
    taken, refused, lock = [], [], threading.Lock()

    def job(own):
        for _ in range(4):
            version = value(own, f"SELECT millrace.train('{MODEL}')")
            passed = value(own, f"SELECT millrace.promote('{MODEL}', %s, gate => 'true', test => 'SELECT u, ''x'' FROM registry_test.bought')", version)
            with lock:
                taken.append(version)
                if not passed:
                    refused.append(version)

    errors = together([job] * 4)
    check("trainings at once take numbers of their own", errors or (len(set(taken)) != 16 and sorted(taken)))
    cur.execute("SELECT from_version, to_version FROM millrace.model_alias_history WHERE model = %s ORDER BY promoted_at", (MODEL,))
    history = cur.fetchall()
    chained = all(history[i][0] == history[i - 1][1] for i in range(1, len(history))) and history[0][0] is None
    check("promotions at once form one history", not chained and history)
    rising = [to for _, to in history[1:]]
    check("behind a gate no older version passes", rising != sorted(rising) and history)
    check("the newest version is served in the end", value(cur, f"SELECT millrace.model_at('{MODEL}')") != max(taken) and history)
    check("one version is the first", value(cur, "SELECT count(*) FROM millrace.model_alias_history WHERE model = %s AND reason = 'the first version'", MODEL) != 1 and history)
    # an alias that nothing had made yet
    together([lambda own, v=v: value(own, f"SELECT millrace.promote('{MODEL}', %s, 'new')", v) for v in taken[:6]])
    cur.execute("SELECT from_version, to_version FROM millrace.model_alias_history WHERE model = %s AND alias = 'new' ORDER BY promoted_at", (MODEL,))
    history = cur.fetchall()
    check("so when the alias is new", (len(history) != 6 or [f for f, _ in history] != [None] + [t for _, t in history[:-1]]) and history)
    drop(cur)


def expiry(rng, cur):
    fill(cur, 60, 20)
    id = create(cur, keep=1)
    value(cur, f"SELECT millrace.train('{MODEL}')")
    ended = threading.Event()

    def train(own):
        for _ in range(8):
            value(own, f"SELECT millrace.train('{MODEL}')")

    def promote(own):
        while not ended.is_set():
            own.execute("SELECT version FROM millrace.model_version_status WHERE model = %s", (MODEL,))
            version = rng.choice(own.fetchall())[0]
            try:
                value(own, f"SELECT millrace.promote('{MODEL}', %s)", version)
            except psycopg2.errors.UndefinedObject:
                pass  # expired meanwhile

    def ask(own):
        while not ended.is_set():
            own.execute(f"SELECT count(*) FROM millrace.similar('{MODEL}', 'i1', 5)")
            if own.fetchone()[0] != 5:
                raise AssertionError("no answer")

    def all_trained(own):
        errors = together([train, train])
        ended.set()
        if errors:
            raise AssertionError(errors)

    errors = together([all_trained, promote, ask])
    check("versions expire while others are promoted, and all are answered", errors)
    cur.execute("SELECT version FROM millrace.model_version_status WHERE model = %s", (MODEL,))
    versions = {v for v, in cur.fetchall()}
    check("rows are of versions that are there", stored(cur, id) != versions and f"{stored(cur, id)}, not {versions}")
    drop(cur)


def rolled_back(cur):
    fill(cur, 60, 20)
    id = create(cur)
    first = psycopg2.connect("")
    own = first.cursor()
    lost = value(own, f"SELECT millrace.train('{MODEL}')")
    numbers = []
    thread = threading.Thread(target=lambda: numbers.append(together([lambda other: numbers.append(value(other, f"SELECT millrace.train('{MODEL}')"))])))
    thread.start()
    first.rollback()
    thread.join()
    first.close()
    kept = numbers[0]
    check("a training that is rolled back leaves its number to nobody", (lost == kept or numbers[1] != [] or stored(cur, id) != {kept}) and f"{lost}, {numbers}, {stored(cur, id)}")
    check("and the other one is served", value(cur, f"SELECT millrace.model_at('{MODEL}')") != kept)
    drop(cur)


def dropped(cur):
    """A model that is dropped while sessions train and promote it: they end, or find no model; nobody waits in a circle, nothing stays."""
    wrong = []
    for _ in range(6):
        fill(cur, 60, 20)
        id = create(cur)
        first, over = threading.Event(), threading.Event()

        def train(own):
            while not over.is_set():
                try:
                    value(own, f"SELECT millrace.promote('{MODEL}', millrace.train('{MODEL}'))")
                    first.set()
                except psycopg2.Error as error:
                    first.set()
                    # by its name, or by what it was when it was looked up
                    if not isinstance(error, (psycopg2.errors.UndefinedTable, psycopg2.errors.WrongObjectType)):
                        raise
                    break

        def drop_it(own):
            first.wait()
            try:
                own.execute(f"SELECT millrace.drop_model('{MODEL}')")
            finally:
                over.set()

        wrong += together([train, train, drop_it])
        if value(cur, "SELECT count(*) FROM pg_class WHERE relname LIKE %s", f"model_{id}_%"):
            wrong.append("tables stay")
    check("a model is dropped while it is trained", wrong)


def trees(cur):
    """Trees that sessions train, promote behind a gate and ask at once, until their model is dropped."""
    cur.execute("CREATE TABLE registry_test.event AS SELECT i AS id, i % 7 AS x, i % 5 AS y, i % 3 AS label FROM generate_series(1, 500) i")
    name = "registry_test.trees"
    cur.execute(f"""SELECT millrace.create_model('{name}', 'xgboost', 'SELECT * FROM registry_test.event', '{{"objective": "reg:squarederror", "rounds": 5}}', label => 'label', entity => '{{id}}')""")
    id = value(cur, f"SELECT id FROM millrace.model WHERE relation = '{name}'::regclass")
    value(cur, f"SELECT millrace.train('{name}')")
    value(cur, f"""SELECT millrace.promote('{name}', millrace.train('{name}', split => '{{"by": "rows"}}', metrics => '{{mae}}'))""")
    taken, ended = [], threading.Event()

    def train(own):
        for _ in range(2):
            taken.append(value(own, f"""SELECT millrace.train('{name}', split => '{{"by": "rows"}}', metrics => '{{mae}}')"""))
            value(own, f"SELECT millrace.promote('{name}', %s, gate => 'new.mae <= 1.5 * old.mae')", taken[-1])

    def ask(own):
        while not ended.is_set():
            if value(own, f"SELECT millrace.predict('{name}', '{{\"x\": 1}}')") is None:
                raise AssertionError("no answer")

    def all_trained(own):
        errors = together([train] * 3)
        ended.set()
        if errors:
            raise AssertionError(errors)

    check("trees are trained, promoted and asked at once", together([all_trained, ask]))
    cur.execute("SELECT from_version, to_version FROM millrace.model_alias_history WHERE model = %s ORDER BY promoted_at", (name,))
    history = cur.fetchall()
    rising = [to for _, to in history]
    wrong = len(set(taken)) != 6 or rising != sorted(rising) or rising[-1] != max(taken) or any(history[i][0] != rising[i - 1] for i in range(1, len(history)))
    check("of trees that are promoted at once the newest is served", wrong and f"{taken}, {history}")
    over, begun = threading.Event(), [threading.Event(), threading.Event()]

    def until_dropped(own, sql, first):
        while not over.is_set():
            try:
                value(own, sql)
                first.set()
            except (psycopg2.errors.UndefinedTable, psycopg2.errors.WrongObjectType):
                break

    def drop_it(own):
        try:
            for event in begun:
                event.wait(60)
            own.execute(f"SELECT millrace.drop_model('{name}')")
        finally:
            over.set()

    errors = together([lambda own: until_dropped(own, f"SELECT millrace.train('{name}')", begun[0]), lambda own: until_dropped(own, f"SELECT millrace.predict('{name}', '{{}}')", begun[1]), drop_it])
    check("a model is dropped while it is trained and predicts", errors or value(cur, "SELECT count(*) FROM pg_class WHERE relname LIKE %s", f"model_{id}_%") and "tables stay")


def killed(cur):
    fill(cur, 60, 20)
    id = create(cur)
    value(cur, f"SELECT millrace.train('{MODEL}')")
    cur.execute("INSERT INTO registry_test.bought SELECT 'u' || u, 'j' || i FROM generate_series(1, 400) u, generate_series(1, 2500) i")
    victim = connect()
    own = victim.cursor()
    pid = value(own, "SELECT pg_backend_pid()")
    outcome = []

    def train():
        try:
            outcome.append(value(own, f"SELECT millrace.train('{MODEL}')"))
        except psycopg2.Error as error:
            outcome.append(error.__class__.__name__)

    thread = threading.Thread(target=train)
    thread.start()
    deadline = time.monotonic() + 120
    while not outcome and time.monotonic() < deadline:
        cur.execute("SELECT pg_terminate_backend(pid) FROM millrace.training_progress WHERE pid = %s AND phase = 'computing'", (pid,))
        cur.fetchall()
    thread.join()
    check("a training is killed", outcome not in (["AdminShutdown"], ["OperationalError"]) and outcome)
    cur.execute(f"SELECT DISTINCT version FROM millrace.similar('{MODEL}', 'i1', 5)")
    answers = cur.fetchall()
    check("and the version before serves on, alone", (answers != [(1,)] or stored(cur, id) != {1} or value(cur, "SELECT count(*) FROM millrace.model_version WHERE model_id = %s", id) != 1) and f"{answers}, {stored(cur, id)}")
    drop(cur)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    arguments = parser.parse_args()
    print("seed", arguments.seed)
    cur = connect().cursor()
    cur.execute("SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS millrace; DROP SCHEMA IF EXISTS registry_test CASCADE; CREATE SCHEMA registry_test")
    cur.execute("CREATE TABLE registry_test.bought (u text, i text)")
    promotions(cur)
    expiry(random.Random(arguments.seed), cur)
    rolled_back(cur)
    dropped(cur)
    trees(cur)
    killed(cur)
    cur.execute("DROP SCHEMA registry_test CASCADE")
    return property.failed > 0


if __name__ == "__main__":
    sys.exit(main())
