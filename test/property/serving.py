#!/usr/bin/env python3
"""What a model answers, against plain Python over its stored neighbours: random purchases, weights, ids of several types, catalogues, filters, users, baskets
and numbers of rows; read from the tables in the transaction that has trained the version, and from its copy in shared memory. Then answers, and predictions of
trees, while other sessions train, promote, roll back, drop versions, and at last the model; while a copy goes, and when there is no room for one.

    serving.py [--seed N] [--runs N]

The server is that of PG*, with the library preloaded.
"""

import argparse
import json
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


def fails(cur, statement, code):
    """What is wrong when a statement does not fail so."""
    try:
        cur.execute(statement)
    except psycopg2.Error as error:
        return error.pgcode != code and f"{statement}: {error.pgcode} {error}"
    return f"{statement} does not fail"


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


class Neighbours:
    """A model that is asked for what is similar."""
    create = "DROP TABLE IF EXISTS serving_test.bought; CREATE TABLE serving_test.bought (u text, i text); SELECT millrace.create_model('serving_test.model', 'item_knn', 'SELECT u, i FROM serving_test.bought')"

    def __init__(self):
        self.expected = {}

    def train(self, cur, rng):
        cur.execute("TRUNCATE serving_test.bought")
        cur.execute("INSERT INTO serving_test.bought SELECT 'u' || u, 'i' || i FROM generate_series(1, 30) u, generate_series(1, 20) i WHERE hashint4(u * 100 + i + %s) %% 3 = 0", (rng.randint(0, 1 << 20),))
        cur.execute("INSERT INTO serving_test.bought VALUES ('u1', 'i1'), ('u2', 'i1'), ('u2', 'i2')")
        cur.execute("SELECT millrace.train('serving_test.model')")
        version = cur.fetchone()[0]
        cur.execute("SELECT neighbour, score FROM serving_test.model WHERE version = %s AND item = 'i1' ORDER BY rank LIMIT 5", (version,))
        self.expected[version] = cur.fetchall()
        return version

    def ask(self, cur):
        cur.execute("SELECT item, score, version FROM millrace.similar('serving_test.model', 'i1', 5) ORDER BY rank")
        rows = cur.fetchall()
        cur.execute("SELECT count(DISTINCT version), count(*) FROM millrace.recommend('serving_test.model', 'u1', 5)")
        counted = cur.fetchone()
        versions = {version for _, _, version in rows}
        return (len(versions) != 1 or [(i, s) for i, s, _ in rows] != self.expected[versions.pop()] or counted[0] != 1) and f"{rows}, {counted}"


class Trees:
    """A model of two leaves, which tell the version, after values of a category."""
    create = ("DROP TABLE IF EXISTS serving_test.event; CREATE TABLE serving_test.event (id integer, brand text, x real, y integer); INSERT INTO serving_test.event SELECT i, 'brand' || i % 9, i % 7, 0 FROM generate_series(1, 50) i;"
              "SELECT millrace.create_model('serving_test.model', 'xgboost', 'SELECT id, brand, x, y FROM serving_test.event', label => 'y', entity => '{id}', categories => '{\"brand\": -1}')")

    def __init__(self):
        self.values = {}

    def train(self, cur, rng):
        split = rng.randint(1, 6)
        value = len(self.values) + 1
        tree = {"left_children": [1, -1, -1], "right_children": [2, -1, -1], "split_indices": [0, 0, 0], "split_conditions": [split, value, -value], "default_left": [0, 0, 0], "loss_changes": [1, 0, 0], "sum_hessian": [2, 1, 1]}
        model = {"version": [1, 7, 4], "learner": {"feature_names": ["brand", "x"], "objective": {"name": "reg:squarederror"}, "learner_model_param": {"base_score": "0", "num_feature": "2", "num_class": "0"},
                                                   "gradient_booster": {"name": "gbtree", "model": {"trees": [tree] * 40}}}}
        self.values[value] = split
        cur.execute("SELECT millrace.import_model('serving_test.model', %s, %s)", (json.dumps(model).encode(), json.dumps({"brand": [f"brand{i}" for i in range(9)]})))
        return cur.fetchone()[0]

    def ask(self, cur):
        cur.execute("SELECT e.id % 9, millrace.predict('serving_test.model', e) / 40, millrace.predict('serving_test.model', to_jsonb(e) - '{id,y}'::text[]) / 40 FROM serving_test.event AS e")
        rows = cur.fetchall()
        value = abs(int(rows[0][1]))
        wanted = {brand: value if brand < self.values.get(value, 0) else -value for brand in range(9)}
        return [row for row in rows if row[1:] != (wanted[row[0]],) * 2][:3]


def wide(rng):
    """Users of many items, far apart, against SQL over the neighbours: from tables, in the transaction of the training, and from memory."""
    connection, cur = connect()
    cur.execute("SET client_min_messages = warning; DROP TABLE IF EXISTS serving_test.bought; CREATE TABLE serving_test.bought (u integer, i integer)")
    cur.execute("SELECT setseed(%s)", (rng.random(),))
    cur.execute("INSERT INTO serving_test.bought SELECT u, (random() ^ 2 * 20000)::integer FROM generate_series(1, 1000) u, generate_series(1, 1 + u % 60)")
    cur.execute("SELECT millrace.create_model('serving_test.model', 'item_knn', 'SELECT u, i FROM serving_test.bought', '{\"k\": 30}')")
    compared = """SELECT u, r.rows IS NOT DISTINCT FROM w.rows FROM unnest(%s) AS u,
        LATERAL (SELECT array_agg(x.item || ' ' || x.score ORDER BY x.rank) FROM millrace.recommend('serving_test.model', u::text, 25, fallback => false) AS x) AS r (rows),
        LATERAL (SELECT array_agg(y.item || ' ' || y.score ORDER BY y.score DESC, y.item)
                 FROM (SELECT n.item, sum(n.score::double precision ORDER BY n.neighbour) AS score FROM (SELECT DISTINCT i FROM serving_test.bought b WHERE b.u = u.u) AS p JOIN serving_test.model n ON n.neighbour = p.i
                       WHERE NOT EXISTS (SELECT FROM serving_test.bought s WHERE s.u = u.u AND s.i = n.item) GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 25) AS y) AS w (rows)"""

    def ask():
        cur.execute(compared, (rng.sample(range(1, 1001), 10),))
        return [user for user, is_same in cur.fetchall() if not is_same]

    connection.autocommit = False
    cur.execute("SELECT millrace.train('serving_test.model')")
    wrong = ask()
    connection.commit()
    connection.autocommit = True
    wrong = wrong or (None if wait_for(lambda: ask() or memory(cur)) else "no copy was made") or ask()
    check("users of many items are answered as by SQL", wrong)
    cur.execute("SELECT millrace.drop_model('serving_test.model')")
    connection.close()


def memory(cur):
    """Has the model a copy?"""
    cur.execute("SELECT count(memory_bytes) FROM millrace.model_status WHERE model = 'serving_test.model'")
    return cur.fetchone()[0] == 1


def busy(rng, model, seconds):
    """Sessions ask while another one trains, promotes, rolls back and drops: each answer is of one version, as it was trained."""
    connection, cur = connect()
    cur.execute("SET client_min_messages = warning;" + model.create)
    wrong, ended, answers = [], threading.Event(), [0]

    def train():
        connection.autocommit = False
        version = model.train(cur, rng)
        connection.commit()
        connection.autocommit = True
        return version

    def serve():
        session, asking = connect()
        while not ended.is_set():
            try:
                found = model.ask(asking)
            except psycopg2.Error as error:
                # only when the model is gone
                if error.pgcode not in ("42P01", "42809") or not ended.wait(0.5):
                    wrong.append(str(error))
                return
            if found:
                wrong.append(found)
                return
            answers[0] += 1
        session.close()

    served = train()
    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    if not wait_for(lambda: wrong or memory(cur)):
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
    check(f"versions of {type(model).__name__.lower()} come and go while sessions ask", wrong[:2] or (answers[0] < 10 and f"only {answers[0]} answers"))
    connection.close()


def mapped(cur):
    """How many segments of shared memory the session has."""
    cur.execute(r"SELECT count(*) FROM regexp_split_to_table(pg_read_file('/proc/self/maps'), '\n') AS l WHERE l ~ '/PostgreSQL\.'")
    return cur.fetchone()[0]


def kept(rng):
    """A statement goes on with the copy that it began with, when that is gone; and when there is no room for one, trees are served nonetheless."""
    (connection, cur), (other, asking), model = connect(), connect(), Trees()
    cur.execute("SET client_min_messages = warning;" + model.create)
    first = model.train(cur, rng)
    wrong = None if wait_for(lambda: model.ask(asking) or memory(cur)) else "no copy was made"
    asking.execute("SELECT millrace.predict('serving_test.model', e) FROM serving_test.event AS e")
    wanted = asking.fetchall()
    other.autocommit = False
    asking.execute("DECLARE c CURSOR FOR SELECT millrace.predict('serving_test.model', e) FROM serving_test.event AS e")
    asking.execute("FETCH 1 FROM c")
    found = asking.fetchall()
    second = model.train(cur, rng)
    cur.execute("SELECT millrace.promote('serving_test.model', %s), millrace.drop_version('serving_test.model', %s)", (second, first))
    cur.execute("SELECT count(*) FROM millrace_internal.model_copies() WHERE model = 'serving_test.model'::regclass")
    wrong = wrong or (cur.fetchone()[0] and "the copy is there") or model.ask(asking)
    asking.execute("FETCH ALL FROM c")
    check("a statement goes on with the version that it began with", wrong or (found + asking.fetchall() != wanted and "it does not"))
    other.commit()
    other.autocommit = True
    wrong = set_cache(cur, asking, "1")
    third = model.train(cur, rng)
    cur.execute("SELECT millrace.promote('serving_test.model', %s)", (third,))

    def tried():
        cur.execute("SELECT count(*) FROM millrace_internal.model_copies() WHERE model = 'serving_test.model'::regclass AND version = %s AND NOT is_ready AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'millrace copy of a model')", (third,))
        return cur.fetchone()[0]

    wrong = wrong or (None if wait_for(lambda: model.ask(asking) or tried()) else "no copy was tried")
    check("trees are served when there is no room for a copy", wrong or model.ask(asking) or (memory(cur) and "there is a copy"))
    set_cache(cur, asking, None)
    cur.execute("SELECT millrace.drop_model('serving_test.model')")
    connection.close()
    other.close()


def dropped(rng):
    """A session lets go of the copy of a model that was dropped, also by itself in the midst of a statement."""
    (connection, cur), (other, asking), model = connect(), connect(), Trees()
    cur.execute("SET client_min_messages = warning;" + model.create)
    model.train(cur, rng)
    before = mapped(asking)
    wrong = None if wait_for(lambda: model.ask(asking) or mapped(asking) > before) else "no copy was mapped"
    other.autocommit = False
    asking.execute("DECLARE c CURSOR FOR SELECT millrace.predict_for('serving_test.model', json_build_object('id', e.id)) FROM serving_test.event AS e; FETCH 1 FROM c; SAVEPOINT s")
    wrong = wrong or fails(asking, "SELECT millrace.drop_model('serving_test.model'); SELECT millrace.similar('serving_test.event', 'x')", "42809")
    asking.execute("ROLLBACK TO s; FETCH 1 FROM c")
    asking.execute("SELECT millrace.drop_model('serving_test.model')")
    wrong = wrong or fails(asking, "FETCH 1 FROM c", "42P01")
    other.rollback()
    other.autocommit = True
    wrong = wrong or model.ask(asking)
    cur.execute("SELECT millrace.drop_model('serving_test.model')")
    wrong = wrong or fails(asking, "SELECT millrace.similar('serving_test.event', 'x')", "42809")
    check("a session lets go of a model that was dropped", wrong or (mapped(asking) > before and "it does not"))
    connection.close()
    other.close()


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
    wide(random.Random(arguments.seed))
    busy(random.Random(arguments.seed), Neighbours(), 3)
    busy(random.Random(arguments.seed), Trees(), 3)
    kept(random.Random(arguments.seed))
    dropped(random.Random(arguments.seed))
    cur.execute("SET client_min_messages = warning; DROP SCHEMA serving_test CASCADE")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
