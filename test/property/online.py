#!/usr/bin/env python3
"""Online models under random histories: after each batch they answer as a model that is trained on what is staged then, bit for bit.

Objects come, change, are cancelled and deleted, in any order; users, items and times change; models begin over an empty table and over what is
staged, with each measure, with max_history and without.  Then two workers at once, and rebuilding, erasing, dropping.

Connects as libpq's environment says (a superuser of a server with millrace), makes a database of its own and drops it.
Prints its seed; `online.py --seed N` repeats a run.
"""
import argparse
import json
import random
import sys
import threading
import time

import psycopg2

QUERY = "SELECT customer, {item}{time} FROM stg.items WHERE status IN ('CLOSED', 'OPEN') AND quantity > 0"
# What is trained for comparison: of a model with max_history the newest items of each user, ties by id.
NEWEST = ("SELECT customer, product FROM (SELECT customer, product, row_number() OVER (PARTITION BY customer ORDER BY max(at) DESC, product COLLATE \"C\") AS place FROM stg.items "
          "WHERE status IN ('CLOSED', 'OPEN') AND quantity > 0 AND at IS NOT NULL AND customer IS NOT NULL AND product IS NOT NULL GROUP BY customer, product) AS l WHERE place <= {most}")
MODELS = {
    "cosine": {"similarity": "cosine"},
    "cosine_shrunk": {"similarity": "cosine", "shrink": 2.5},
    "dice": {"similarity": "dice", "shrink": 0.5},
    "jaccard": {"similarity": "jaccard"},
    "newest": {"similarity": "cosine", "max_history": 3},
    "last": {"similarity": "dice", "max_history": 1},
}
# One has numbers as items.
ITEM = {"dice": "(length(product) * 7 + ascii(product))"}
USERS, ITEMS, ORDERS = 12, 14, 30


def declare(cursor):
    cursor.execute("CREATE EXTENSION millrace; CREATE SCHEMA stg; CREATE SCHEMA ml")
    cursor.execute("SELECT millrace.create_stream('feed')")
    cursor.execute("SELECT millrace.create_staging('stg.items', stream => 'feed', for_each => '$.items[*]', key => %s, columns => %s)",
                   ('{"id": ["$key", "bigint"]}', json.dumps({"customer": ["$.customer", "bigint"], "status": "$.status", "at": ["$.at", "timestamptz"], "product": "@.product", "quantity": ["@.quantity", "integer"]})))


def order(rng, wide):
    return {
        "customer": rng.choice([None] + list(range(-2, USERS * wide - 2))),
        "status": rng.choice(["CLOSED", "CLOSED", "OPEN", "CANCELLED"]),
        "at": rng.choice([None, "2026-01-05 23:30:00+00"] + [f"2026-02-{d:02d} 12:00:00+00" for d in range(1, 20)]),
        "items": [{"product": rng.choice([None, ""] + [f"{'zZaAé'[i % 5]}{i}" for i in range(ITEMS * wide)]), "quantity": rng.choice([None, 0, 1, 1, 1, 2])} for _ in range(rng.choice([0, 1, 1, 2, 4, 7]))],
    }


def push(cursor, rng, wide=1):
    value = None if rng.random() < 0.15 else json.dumps(order(rng, wide))
    cursor.execute("SELECT millrace.push('feed', %s, key => %s)", (value, str(rng.randrange(ORDERS * wide))))


def create(cursor, name):
    params = MODELS[name]
    most = params.get("max_history")
    cursor.execute("SET client_min_messages = error")
    cursor.execute("SELECT millrace.create_model(%s, 'item_knn', %s, %s, online => true)", (f"ml.{name}", QUERY.format(item=ITEM.get(name, "product"), time=", at" if most else ""), json.dumps(params)))
    trained = {"k": 10000, **{k: v for k, v in params.items() if k != "max_history"}}
    cursor.execute("SELECT millrace.create_model(%s, 'item_knn', %s, %s)", (f"ml.{name}_trained", NEWEST.format(most=most) if most else QUERY.format(item=ITEM.get(name, "product"), time=""), json.dumps(trained)))
    cursor.execute("SET client_min_messages = notice")


def bits(cursor, sql, *arguments):
    cursor.execute(sql, arguments)
    return cursor.fetchall()


def check(cursor, rng, name, step):
    """Everything that both models answer; doubles as the bytes that they are."""
    online, trained, item = f"ml.{name}", f"ml.{name}_trained", ITEM.get(name, "product")
    cursor.execute("SELECT millrace.train(%s::regclass)", (trained,))
    version = cursor.fetchone()[0]
    cursor.execute("SELECT millrace.promote(%s::regclass, %s)", (trained, version))
    most = MODELS[name].get("max_history")
    # What is left of a history when only the newest of it counts is had nevertheless.
    seen = "false" if most else rng.choice(["true", "false"])
    explain, n, fallback = rng.choice(["true", "false"]), rng.choice([1, 3, 1000]), rng.choice(["true", "true", "false"])
    questions = {
        "similar items": f"SELECT i.item, s.rank, s.item, float4send(s.score), s.reason FROM (SELECT DISTINCT {item}::text AS item FROM stg.items) AS i, millrace.similar('MODEL', i.item, {n}) AS s ORDER BY 1, 2",
        "recommendations": f"SELECT u.customer, r.rank, r.item, float8send(r.score), r.reason FROM (SELECT DISTINCT customer FROM stg.items UNION SELECT 77) AS u, "
                           f"millrace.recommend('MODEL', u.customer::text, {n}, exclude_seen => {seen}, explain => {explain}, fallback => {fallback}) AS r ORDER BY 1, 2",
        "baskets": f"SELECT r.rank, r.item, float8send(r.score), r.reason FROM millrace.recommend('MODEL', items => ARRAY(SELECT DISTINCT {item}::text FROM stg.items ORDER BY 1 LIMIT 4) || '{{77777,77777}}', n => {n}, explain => {explain}) AS r ORDER BY 1",
        "the view": "SELECT item, rank, neighbour, float4send(score) FROM MODEL WHERE version = VERSION ORDER BY item, rank",
    }
    cursor.execute("SELECT count(DISTINCT product) FROM stg.items")
    if cursor.fetchone()[0] > 100:
        del questions["the view"]   # without statistics trained ones take their time
    good = True
    for what, question in questions.items():
        answers = [bits(cursor, question.replace("MODEL", model).replace("VERSION", str(v))) for model, v in ((online, 1), (trained, version))]
        if answers[0] != answers[1]:
            differ = [(a, b) for a, b in zip(*answers) if a != b][:3]
            print(f"{name}, {what} at step {step}: {len(answers[0])} and {len(answers[1])} rows, {differ} (online, trained); {question}")
            good = False
    cursor.execute("SELECT millrace.drop_version(%s::regclass, v.version) FROM millrace.model_version v JOIN millrace.model m ON m.id = v.model_id WHERE m.relation = %s::regclass AND v.version <> %s", (trained, trained, version))
    if most:
        cursor.execute(f"SELECT count(*) FROM (SELECT DISTINCT customer, product FROM stg.items WHERE status IN ('CLOSED', 'OPEN') AND quantity > 0 AND at IS NOT NULL AND customer IS NOT NULL) AS h "
                       f"JOIN LATERAL millrace.recommend('{online}', h.customer::text, 1000) AS r ON r.item = h.product")
        if cursor.fetchone()[0]:
            print(f"{name} at step {step}: what is had is recommended")
            good = False
    cursor.execute("SELECT missing, unexpected, example FROM millrace.verify(%s::regclass)", (online,))
    verified = cursor.fetchone()
    if verified[:2] != (0, 0):
        print(f"{name} at step {step}: verify() says {verified}")
        good = False
    return good


def wait(cursor, query, what):
    deadline = time.time() + 240
    while time.time() < deadline:
        cursor.execute(query)
        if cursor.fetchone()[0]:
            return
        time.sleep(0.02)
    raise Exception(f"waited in vain for {what}")


def in_background(admin, database, cursor, rng, made, pushes):
    """Two workers that meet at the same users and items, and make the same new ones, at once."""
    cursor.execute("SELECT millrace.create_stream('feed', workers => 2, replace => true)")
    admin.cursor().execute(f"ALTER SYSTEM SET millrace.databases = '{database}'")
    admin.cursor().execute("SELECT pg_reload_conf()")
    try:
        cursor.execute("SELECT millrace.start_stream('feed')")
        for _ in range(pushes):
            push(cursor, rng, 4)
        wait(cursor, "SELECT NOT EXISTS (SELECT FROM millrace.inbox)", "the workers to empty the inbox")
        cursor.execute("SELECT millrace.stop_stream('feed')")
        wait(cursor, "SELECT count(*) = 0 FROM millrace.worker_status WHERE pid IS NOT NULL", "the workers to end")
    finally:
        admin.cursor().execute("ALTER SYSTEM RESET millrace.databases")
        admin.cursor().execute("SELECT pg_reload_conf()")
    cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    if cursor.fetchone()[0]:
        print("the workers deadlocked")
        return False
    return all([check(cursor, rng, name, "two workers") for name in made])


def long_lists(cursor, rng, made):
    """Items that have something in common with so many others that their lists have many rows, which are put together again and again."""
    good = True
    for step in range(8):
        for _ in range(6):
            products = rng.sample(range(2, 1500), 60) + [0, 1]
            value = json.dumps({"customer": rng.randrange(40), "status": "CLOSED", "at": "2026-03-01 00:00:00+00", "items": [{"product": f"w{i}", "quantity": 1} for i in products]})
            cursor.execute("SELECT millrace.push('feed', %s, key => %s)", (value, str(1000 + rng.randrange(30))))
        cursor.execute("SELECT * FROM millrace.run_stream('feed')")
        cursor.execute("SELECT r.relation, r.missing, r.unexpected, r.example FROM unnest(%s::regclass[]) AS m, millrace.verify(m) AS r WHERE r.missing + r.unexpected > 0", ([f"ml.{name}" for name in made],))
        for wrong in cursor.fetchall():
            print(f"long lists: verify() says {wrong}")
            good = False
    cursor.execute("SELECT id FROM millrace.model WHERE relation = 'ml.cosine'::regclass")
    cursor.execute(f"SELECT max(n), bool_or(folded) FROM (SELECT count(*) AS n, bool_or(is_folded) AS folded FROM millrace_state.model_{cursor.fetchone()[0]}_pair GROUP BY item) AS l")
    rows, folded = cursor.fetchone()
    if rows < 2 or not folded:
        print(f"no list has several rows that were put together: {rows}, {folded}")
        good = False
    return good and check(cursor, rng, made[0], "long lists")


def ends(cursor, rng, made):
    """Damage is seen, a rebuild mends it; what is erased is gone; nothing is left of what is dropped."""
    good = True
    name = made[0]
    cursor.execute("SELECT id FROM millrace.model WHERE relation = %s::regclass", (f"ml.{name}",))
    number = cursor.fetchone()[0]
    cursor.execute(f"DELETE FROM millrace_state.model_{number}_pair WHERE ctid IN (SELECT min(ctid) FROM millrace_state.model_{number}_pair WHERE item > 0)")
    cursor.execute("SELECT missing + unexpected FROM millrace.verify(%s::regclass)", (f"ml.{name}",))
    if cursor.fetchone()[0] == 0:
        print("verify() does not see a pair that is missing")
        good = False
    cursor.execute("SELECT * FROM millrace.rebuild(%s::regclass)", (f"ml.{name}",))
    good = check(cursor, rng, name, "rebuilt") and good
    cursor.execute("SELECT id::text FROM stg.items WHERE product IS NOT NULL LIMIT 1")
    cursor.execute("SELECT * FROM millrace.erase('stg.items', %s)", (json.dumps({"id": int(cursor.fetchone()[0])}),))
    for name in made:
        good = check(cursor, rng, name, "erased") and good
    for name in made:
        cursor.execute("SELECT millrace.drop_model(%s::regclass), millrace.drop_model(%s::regclass)", (f"ml.{name}", f"ml.{name}_trained"))
    cursor.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'model%%' AND relnamespace IN ('millrace_state'::regnamespace, 'millrace_def'::regnamespace)")
    left = cursor.fetchone()[0]
    cursor.execute("SELECT count(*) FROM millrace.target")
    if left or cursor.fetchone()[0]:
        print(f"{left} relations are left of models that were dropped")
        good = False
    return good


def run(seed, steps, pushes):
    rng = random.Random(seed)
    admin = psycopg2.connect("")
    admin.autocommit = True
    database = f"online_{seed}"
    admin.cursor().execute(f"DROP DATABASE IF EXISTS {database}")
    admin.cursor().execute(f"CREATE DATABASE {database} TEMPLATE template0")
    connection = psycopg2.connect(dbname=database)
    connection.autocommit = True
    good = True
    try:
        cursor = connection.cursor()
        declare(cursor)
        cursor.execute("SET millrace.backfill_rows = 5")    # what is staged is counted in many chunks
        made, names = [], list(MODELS)
        rng.shuffle(names)
        for step in range(steps):
            # Some models are there from the beginning, others begin over what is staged.
            while names and (len(names) > len(MODELS) // 2 or rng.random() < 0.3):
                made.append(names.pop())
                create(cursor, made[-1])
            for _ in range(rng.choice([1, 1, 3, 20])):
                push(cursor, rng)
            cursor.execute("SELECT * FROM millrace.run_stream('feed')")
            for name in made:
                good = check(cursor, rng, name, step) and good
            if not good:
                break
        cursor.execute("SELECT current_setting('shared_preload_libraries') LIKE '%millrace%'")
        if good and cursor.fetchone()[0]:
            good = in_background(admin, database, cursor, rng, made, pushes)
        good = good and long_lists(cursor, rng, [name for name in made if name in ("cosine", "newest")])
        good = good and ends(cursor, rng, made)
        cursor.execute("SELECT count(*) FROM millrace.letter")
        if cursor.fetchone()[0]:
            print("there are dead letters")
            good = False
    finally:
        connection.close()
        if good:
            admin.cursor().execute(f"DROP DATABASE {database} WITH (FORCE)")
        admin.close()
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pushes", type=int, default=250, help="in the background")
    options = parser.parse_args()
    for i in range(options.runs):
        seed = options.seed + i
        print(f"seed {seed}", flush=True)
        if not run(seed, options.steps, options.pushes):
            sys.exit(1)
    print("online models answer as trained ones")


if __name__ == "__main__":
    main()
