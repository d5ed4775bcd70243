#!/usr/bin/env python3
"""What a model answers, against plain Python over its stored neighbours: random purchases, weights, ids of several types, catalogues, filters, users, baskets
and numbers of rows; read from the tables in the transaction that has trained the version, and from its copy in shared memory. Then answers while other
sessions train, promote, roll back, drop versions, and at last the model.

    serving.py [--seed N] [--runs N]

The server is that of PG*, with the library preloaded.
"""

import argparse
import random
import sys
import threading
import time

import numpy
import psycopg2

failed = 0
FILTERS = [(None, lambda row: True), ("price < 5", lambda row: row["price"] < 5), ("category = 'x' AND price >= 3", lambda row: row["category"] == "x" and row["price"] >= 3),
           ("category <> ALL (ARRAY['x', 'y'])", lambda row: row["category"] not in "xy"), ("false", lambda row: False)]


def check(name, wrong):
    global failed
    if wrong:
        failed += 1
        print("#", wrong)
    print("not ok -" if wrong else "ok -", name)
    sys.stdout.flush()


def connect():
    connection = psycopg2.connect("")
    connection.autocommit = True
    return connection, connection.cursor()


def wait_for(what, seconds=60):
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class World:
    """What the tables hold, and what follows from it. Ids are made so that their texts sort as they do."""

    def __init__(self, rng, cur):
        self.kind = rng.choice(["text", "integer", "uuid"])
        make = {"text": lambda n: f"i{n:04d}", "integer": lambda n: str(1000 + n), "uuid": lambda n: f"00000000-0000-0000-0000-{n:012d}"}[self.kind]
        self.ids = [make(n) for n in range(rng.choice([6, 40, 400]))]
        self.weighted = rng.random() < 0.4
        self.catalogue = rng.random() < 0.7
        rows, self.had = [], {}
        for u in range(rng.randint(5, 60)):
            for n in rng.sample(range(len(self.ids)), min(len(self.ids), rng.choice([1, 3, 12]))):
                if rng.random() < 0.9:
                    weight = rng.randint(1, 9) if self.weighted else 1
                    rows.append((f"u{u}", self.ids[n], weight))
                    self.had.setdefault(f"u{u}", {})[self.ids[n]] = float(weight)
        self.known = sorted({i for _, i, _ in rows})
        self.users = {i: sum(i in items for items in self.had.values()) for i in self.known}
        cur.execute(f"DROP TABLE IF EXISTS serving_test.bought, serving_test.product CASCADE; CREATE TABLE serving_test.bought (u text, i {self.kind}, w double precision)")
        cur.execute(f"CREATE TABLE serving_test.product (id {self.kind}, category text, price integer, stock integer)")
        cur.executemany("INSERT INTO serving_test.bought VALUES (%s, %s, %s)", rows)
        self.products = [{"id": i, "category": rng.choice("xyz"), "price": rng.randint(0, 9), "stock": rng.choice([None, 0, 1, 1, 1])}
                         for i in self.ids + [make(8000 + n) for n in range(3)] for _ in range(rng.choice([0, 1, 1, 2, 2]))]
        cur.executemany("INSERT INTO serving_test.product VALUES (%(id)s, %(category)s, %(price)s, %(stock)s)", self.products)
        if rng.random() < 0.5:
            cur.execute("CREATE INDEX ON serving_test.product (id)")
        cur.execute("SELECT millrace.create_model('serving_test.model', 'item_knn', %s, %s, catalogue => %s)",
                    ("SELECT u, i" + (", w" if self.weighted else "") + " FROM serving_test.bought", f'{{"k": {rng.choice([1, 5, 300])}}}',
                     "SELECT id, category, price, stock > 0 AS available FROM serving_test.product" if self.catalogue else None))

    def passes(self, passing):
        if not self.catalogue:
            return set(self.ids)
        return {p["id"] for p in self.products if p["stock"] is not None and p["stock"] > 0 and passing(p)}

    def expected(self, neighbours, profile, n, passing, exclude_seen, explain, fallback):
        scores, parts = {}, {}
        for i in sorted(profile):
            for j, listed in neighbours.items():
                if i in listed:
                    part = profile[i] * float(listed[i])
                    scores[j] = scores.get(j, 0.0) + part
                    parts.setdefault(j, []).append((-part, i))
        allowed = self.passes(passing)
        seen = set(profile) if exclude_seen else set()
        personal = sorted((-s, j) for j, s in scores.items() if s > 0 and j not in seen)
        answer = [(j, -s, min(parts[j])[1] if explain else None) for s, j in personal if j in allowed]
        if fallback:
            given = {j for _, j in personal} | seen
            answer += [(j, None, "popular") for j in sorted(self.known, key=lambda j: (-self.users[j], j)) if j in allowed and j not in given]
            if self.catalogue:
                answer += [(j, None, "popular") for j in sorted(allowed - set(self.known))]
        return answer[:n]


def ask(world, rng, cur, neighbours):
    """Asks some questions; says what is wrong with an answer."""
    for _ in range(10):
        sql, passing = rng.choice(FILTERS + FILTERS[:2]) if world.catalogue else (None, lambda row: True)
        n = rng.choice([0, 1, 3, 10, 1000, 1000])
        flags = [rng.random() < 0.7, rng.random() < 0.3, rng.random() < 0.7]
        if rng.random() < 0.7:
            user = rng.choice(list(world.had) + ["nobody"])
            profile, call, subject = world.had.get(user, {}), "%s", user
        else:
            basket = rng.sample(world.ids, 3)
            profile, call, subject = {i: 1.0 for i in basket if i in world.users}, "%s::text[]", basket
        cur.execute(f"SELECT item, score, reason FROM millrace.recommend('serving_test.model', {call}, %s, %s, %s, %s, %s) ORDER BY rank", [subject, n, sql] + flags)
        got, wanted = cur.fetchall(), world.expected(neighbours, profile, n, passing, *flags)
        if got != wanted:
            return f"{subject}, {n}, {sql}, {flags}: {got[:4]} ({len(got)}) instead of {wanted[:4]} ({len(wanted)})"
        item = rng.choice(world.ids)
        cur.execute("SELECT item, score FROM millrace.similar('serving_test.model', %s, %s) ORDER BY rank", (item, n))
        got = [(i, numpy.float32(s)) for i, s in cur.fetchall()]
        wanted = [(j, s) for j, s in neighbours.get(item, {}).items() if j in world.passes(lambda row: True)][:n]
        if got != wanted:
            return f"similar to {item}, {n}: {got[:4]} instead of {wanted[:4]}"
    return None


def set_cache(cur, other, size):
    """Sets how much memory copies may have, and waits until another session knows."""
    cur.execute("ALTER SYSTEM " + (f"SET millrace.model_cache = {size}" if size else "RESET millrace.model_cache"))
    cur.execute("SELECT pg_reload_conf()")

    def known():
        other.execute("SELECT setting = coalesce(%s, boot_val) FROM pg_settings WHERE name = 'millrace.model_cache'", (size,))
        return other.fetchone()[0]

    return None if wait_for(known) else "the setting is not known"


def one(rng, turn_off):
    connection, cur = connect()
    cur.execute("SET client_min_messages = warning")
    world = World(rng, cur)
    what = f"{len(world.known)} items by {world.kind}, {len(world.had)} users{', weighted' if world.weighted else ''}{', catalogue' if world.catalogue else ''}"
    connection.autocommit = False
    cur.execute("SELECT millrace.train('serving_test.model')")
    cur.execute("SELECT item::text, neighbour::text, score FROM serving_test.model ORDER BY item, rank")
    neighbours = {}
    for item, neighbour, score in cur.fetchall():
        neighbours.setdefault(item, {})[neighbour] = numpy.float32(score)
    wrong = ask(world, rng, cur, neighbours)
    cur.execute("SELECT memory_bytes FROM millrace.model_status WHERE model = 'serving_test.model'")
    check(f"answers from tables: {what}", wrong or (cur.fetchone()[0] is not None and "there is a copy of what has not been committed"))
    connection.commit()
    connection.autocommit = True

    def copied():
        other, ask_for = connect()
        ask_for.execute("SELECT count(*) FROM millrace.similar('serving_test.model', %s, 1)", (world.ids[0],))
        ask_for.execute("SELECT memory_bytes FROM millrace.model_status WHERE model = 'serving_test.model'")
        found = ask_for.fetchone()[0]
        other.close()
        return found

    wrong = None if wait_for(copied) else "no copy was made"
    other, fresh = connect()
    wrong = wrong or ask(world, rng, fresh, neighbours)
    if world.catalogue and not wrong:
        # what is sold out is not answered any more
        gone = [p["id"] for p in rng.sample(world.products, len(world.products) // 2)]
        for product in world.products:
            if product["id"] in gone:
                product["stock"] = 0
        cur.execute("UPDATE serving_test.product SET stock = 0 WHERE id::text = ANY (%s)", (gone,))
        wrong = ask(world, rng, fresh, neighbours)
    check(f"answers from memory: {what}", wrong)
    if turn_off:
        wrong = set_cache(cur, fresh, "0") or ask(world, rng, fresh, neighbours)
        cur.execute("SELECT count(memory_bytes) FROM millrace.model_status WHERE model = 'serving_test.model'")
        wrong = wrong or (cur.fetchone()[0] and "the copy is there")
        check(f"answers from tables again when there is to be no memory for copies: {what}", set_cache(cur, fresh, None) or wrong)
    other.close()
    cur.execute("SELECT 'serving_test.model'::regclass::oid")
    model = cur.fetchone()
    cur.execute("SELECT millrace.drop_model('serving_test.model')")
    cur.execute("SELECT count(*) FROM millrace_internal.model_copies() WHERE model = %s", model)
    check("the copy goes with the model", cur.fetchone()[0] and "it is there")
    connection.close()


def busy(rng, seconds):
    """Sessions ask while another one trains, promotes, rolls back and drops: each answer is of one version, as it was trained."""
    connection, cur = connect()
    cur.execute("SET client_min_messages = warning; DROP TABLE IF EXISTS serving_test.bought; CREATE TABLE serving_test.bought (u text, i text)")
    cur.execute("SELECT millrace.create_model('serving_test.model', 'item_knn', 'SELECT u, i FROM serving_test.bought')")
    expected, wrong, ended, answers = {}, [], threading.Event(), [0]

    def train():
        cur.execute("TRUNCATE serving_test.bought")
        cur.execute("INSERT INTO serving_test.bought SELECT 'u' || u, 'i' || i FROM generate_series(1, 30) u, generate_series(1, 20) i WHERE hashint4(u * 100 + i + %s) %% 3 = 0", (rng.randint(0, 1 << 20),))
        cur.execute("INSERT INTO serving_test.bought VALUES ('u1', 'i1'), ('u2', 'i1'), ('u2', 'i2')")
        connection.autocommit = False
        cur.execute("SELECT millrace.train('serving_test.model')")
        version = cur.fetchone()[0]
        cur.execute("SELECT neighbour, score FROM serving_test.model WHERE version = %s AND item = 'i1' ORDER BY rank LIMIT 5", (version,))
        expected[version] = cur.fetchall()
        connection.commit()
        connection.autocommit = True
        return version

    def serve():
        session, asking = connect()
        while not ended.is_set():
            try:
                asking.execute("SELECT item, score, version FROM millrace.similar('serving_test.model', 'i1', 5) ORDER BY rank")
                rows = asking.fetchall()
                asking.execute("SELECT count(DISTINCT version), count(*) FROM millrace.recommend('serving_test.model', 'u1', 5)")
                counted = asking.fetchone()
            except psycopg2.Error as error:
                # only when the model is gone
                if error.pgcode not in ("42P01", "42809") or not ended.wait(0.5):
                    wrong.append(str(error))
                return
            versions = {version for _, _, version in rows}
            if len(versions) != 1 or [(i, s) for i, s, _ in rows] != expected[versions.pop()] or counted[0] != 1:
                wrong.append(f"{rows}, {counted}")
                return
            answers[0] += 1
        session.close()

    def memory():
        cur.execute("SELECT count(memory_bytes) FROM millrace.model_status WHERE model = 'serving_test.model'")
        return cur.fetchone()[0] == 1

    served = train()
    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    if not wait_for(memory):
        wrong.append("no copy was made")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not wrong:
        version = train()
        cur.execute("SELECT millrace.promote('serving_test.model', %s)", (version,))
        if rng.random() < 0.5:
            cur.execute("SELECT millrace.rollback('serving_test.model')")
            cur.execute("SELECT millrace.drop_version('serving_test.model', %s)", (version,))
        else:
            cur.execute("SELECT millrace.drop_version('serving_test.model', %s)", (served,))
            served = version
    cur.execute("SELECT millrace.drop_model('serving_test.model')")
    ended.set()
    for thread in threads:
        thread.join()
    check("versions come and go while sessions ask", wrong[:2] or (answers[0] < 10 and f"only {answers[0]} answers"))
    connection.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--runs", type=int, default=8)
    arguments = parser.parse_args()
    print("seed", arguments.seed)
    connection, cur = connect()
    cur.execute("SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS millrace; DROP SCHEMA IF EXISTS serving_test CASCADE; CREATE SCHEMA serving_test")
    for run in range(arguments.runs):
        one(random.Random(arguments.seed + run), run == 0)
    busy(random.Random(arguments.seed), 4)
    cur.execute("SET client_min_messages = warning; DROP SCHEMA serving_test CASCADE")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
