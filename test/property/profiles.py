#!/usr/bin/env python3
"""What users have, of models that are trained: after each batch recommendations come from what is staged then, with the neighbours of the version.

Objects come, change, are cancelled and deleted, in any order; users, items, weights and times change; models begin over an empty table and over what is
staged, are trained and promoted at any time.  Answers are compared with a recompute in Python over the model's query and the version's neighbours.
Then two workers at once, damage, rebuilding, erasing, dropping.

Connects as libpq's environment says (a superuser of a server with millrace), makes a database of its own and drops it.
Prints its seed; `profiles.py --seed N` repeats a run.
"""
import json
import math
import os
import sys
import threading

import psycopg2

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from property import drain, growing, histories, in_background, preloaded, wait  # noqa: E402

MODELS = {
    "plain": ("SELECT customer, product FROM stg.items WHERE status <> 'CANCELLED'", '{"k": 5}', None),
    "timed": ("SELECT customer, product, at FROM stg.items", '{"similarity": "dice"}', None),
    "weighted": ("SELECT customer, product, quantity, at::date FROM stg.items WHERE status = 'CLOSED'", '{"similarity": "bm25", "k": 4}', None),
    "numbered": ("SELECT customer, length(product) * 7 + ascii(product), quantity FROM stg.items", '{"similarity": "jaccard"}', None),
    "offered": ("SELECT customer, product FROM stg.items", "{}", "SELECT product FROM stg.product"),
}
USERS, ITEMS, ORDERS = 10, 14, 25


def declare(cursor):
    cursor.execute("CREATE EXTENSION millrace; CREATE SCHEMA stg; CREATE SCHEMA ml; CREATE TABLE stg.product (product text)")
    cursor.execute("INSERT INTO stg.product SELECT chr(97 + n %% 26) || n FROM generate_series(0, %s) n", (ITEMS + 3,))
    cursor.execute("SELECT millrace.create_stream('feed')")
    cursor.execute("SELECT millrace.create_staging('stg.items', stream => 'feed', for_each => '$.items[*]', key => %s, columns => %s)",
                   ('{"id": ["$key", "bigint"]}', json.dumps({"customer": "$.customer", "status": "$.status", "at": ["$.at", "timestamp"], "product": "@.product", "quantity": ["@.quantity", "numeric"]})))


def push(cursor, rng, wide=1):
    value = None if rng.random() < 0.15 else json.dumps({
        "customer": rng.choice([None] + [f"u{u}" for u in range(USERS * wide)]), "status": rng.choice(["CLOSED", "CLOSED", "OPEN", "CANCELLED"]),
        "at": rng.choice([None] + ["2026-02-03 12:00:00"] * 9),
        "items": [{"product": rng.choice([None] + [f"{chr(97 + i % 26)}{i}" for i in range(ITEMS * wide)] * 2), "quantity": rng.choice([None, 0, 0.1, 0.2, 0.3, 1, 2.5, 1e9, "NaN" if rng.random() < 0.1 else -0.1])}
                  for _ in range(rng.choice([0, 1, 2, 4, 7]))]})
    cursor.execute("SELECT millrace.push('feed', %s, key => %s)", (value, str(rng.randrange(ORDERS * wide))))


def rows(cursor, sql, *arguments):
    cursor.execute(sql, arguments)
    return cursor.fetchall()


def number_of(cursor, name):
    return rows(cursor, "SELECT id FROM millrace.model WHERE relation = %s::regclass", f"ml.{name}")[0][0]


def train(cursor, name):
    """A new version is served, unless weights are such that there is none."""
    try:
        version = rows(cursor, "SELECT millrace.train(%s::regclass)", f"ml.{name}")[0][0]
    except psycopg2.errors.NumericValueOutOfRange:
        return
    cursor.execute("SELECT millrace.promote(%s::regclass, %s)", (f"ml.{name}", version))


class Recompute:
    """What a model should answer now."""

    def __init__(self, cursor, name):
        number = number_of(cursor, name)
        version = rows(cursor, "SELECT version FROM millrace.model_status WHERE model = %s", f"ml.{name}")[0][0]
        self.items = [i for i, in rows(cursor, f"SELECT item FROM millrace_state.model_{number}_item WHERE version = %s ORDER BY number", version)]
        self.popular = [i for i, in rows(cursor, f"SELECT item FROM millrace_state.model_{number}_item WHERE version = %s ORDER BY place", version)]
        self.listed = {}
        for item, neighbour, score in rows(cursor, f"SELECT item, neighbour, score::double precision FROM ml.{name} WHERE version = %s", version):
            self.listed.setdefault(neighbour, []).append((item, score))
        self.catalogue = MODELS[name][2] and sorted(p for p, in rows(cursor, MODELS[name][2]))
        columns = [c for c, in rows(cursor, "SELECT attname::text FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0", f"millrace_def.model_{number}")]
        self.had = {}
        for row in rows(cursor, f"SET timezone = 'UTC'; SELECT * FROM millrace_def.model_{number}"):
            if None not in row:
                self.had.setdefault(row[0], {}).setdefault(row[1], []).append(row[2] if "weight" in columns else None)
        for profile in self.had.values():
            for item, weights in profile.items():
                total = 1.0
                if weights[0] is not None:
                    total = 0.0
                    for weight in sorted(weights, key=lambda w: math.inf if math.isnan(w) else w):
                        total += weight
                    total = total if 0 <= total <= 1e100 else 0.0
                profile[item] = total

    def answer(self, user, n, exclude_seen, fallback):
        profile, scores = self.had.get(user, {}), {}
        for item in [i for i in self.items if i in profile]:
            for target, score in self.listed.get(item, []):
                scores[target] = scores.get(target, 0.0) + profile[item] * score
        place = {item: n for n, item in enumerate(self.items)}
        seen = set(profile) if exclude_seen else set()
        allowed = set(self.items) if self.catalogue is None else set(self.catalogue)
        given = sorted((-s, place[i], i) for i, s in scores.items() if s > 0 and i not in seen)
        answer = [(str(i), -s, None) for s, _, i in given if i in allowed]
        if fallback:
            given = seen | {i for _, _, i in given}
            answer += [(str(i), None, "popular") for i in self.popular if i in allowed and i not in given]
            answer += [(i, None, "popular") for i in self.catalogue or [] if i not in place and i not in seen]
        return answer[:n]


def check(cursor, rng, name, step):
    good = True
    if not rows(cursor, "SELECT version FROM millrace.model_status WHERE model = %s", f"ml.{name}")[0][0]:
        return True
    recompute = Recompute(cursor, name)
    n, exclude_seen, fallback = rng.choice([1, 3, 1000, 1000]), rng.random() < 0.7, rng.random() < 0.7
    for user in [u for u, in rows(cursor, "SELECT DISTINCT customer FROM stg.items WHERE customer IS NOT NULL")] + ["nobody"]:
        got = rows(cursor, f"SELECT item, score, reason FROM millrace.recommend('ml.{name}', %s, %s, exclude_seen => %s, fallback => %s) ORDER BY rank", user, n, exclude_seen, fallback)
        wanted = recompute.answer(user, n, exclude_seen, fallback)
        if got != wanted:
            print(f"{name} at step {step}, for {user}, {n}, {exclude_seen}, {fallback}: {got[:4]} ({len(got)}) instead of {wanted[:4]} ({len(wanted)})")
            good = False
    verified = rows(cursor, "SELECT missing, unexpected, example FROM millrace.verify(%s::regclass)", f"ml.{name}")[0]
    if verified[:2] != (0, 0):
        print(f"{name} at step {step}: verify() says {verified}")
        good = False
    return good


def two_workers(admin, database, cursor, rng, pushes):
    """Two workers that meet at the same users and items; meanwhile a version is trained again and again."""
    ended, stop = [], threading.Event()

    def keep_training():
        connection = psycopg2.connect(dbname=database)
        connection.autocommit = True
        other = connection.cursor()
        while not stop.is_set():
            other.execute("SELECT millrace.promote('ml.plain', millrace.train('ml.plain'))")
            other.execute("SELECT count(*) FROM generate_series(0, 40) u, millrace.recommend('ml.plain', 'u' || u, 10)")
        connection.close()
        ended.append(True)

    cursor.execute("SELECT millrace.create_stream('feed', workers => 2, replace => true)")
    trainer = threading.Thread(target=keep_training)
    with in_background(admin, database):
        cursor.execute("SELECT millrace.start_stream('feed')")
        trainer.start()
        try:
            for _ in range(pushes):
                push(cursor, rng, 4)
            drain(cursor)
        finally:
            stop.set()
            trainer.join()
    if rows(cursor, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0][0] or not ended:
        print("the workers deadlocked, or the trainer failed")
        return False
    return all([check(cursor, rng, name, "two workers") for name in MODELS])


def erase(admin, cursor, customer):
    """Somebody, while a training that has read him is not committed: it ends first."""
    training = psycopg2.connect(dbname=cursor.connection.info.dbname)
    training.cursor().execute("SELECT millrace.train('ml.plain')")
    erasing = threading.Thread(target=cursor.execute, args=("SELECT * FROM millrace.erase('stg.items', %s)", (json.dumps({"customer": customer}),)))
    erasing.start()
    wait(admin.cursor(), f"SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {cursor.connection.info.backend_pid} AND wait_event_type = 'Lock')", "the erasure to wait for a training")
    training.commit()
    training.close()
    erasing.join()


def ends(admin, cursor, rng):
    """Damage is seen, a rebuild mends it; what is erased is gone; nothing is left of what is dropped."""
    good = True
    number = number_of(cursor, "plain")
    cursor.execute(f"DELETE FROM millrace_state.model_{number}_current_user WHERE ctid IN (SELECT min(ctid) FROM millrace_state.model_{number}_current_user)")
    if rows(cursor, "SELECT missing + unexpected FROM millrace.verify('ml.plain')")[0][0] == 0:
        print("verify() does not see a user who is missing")
        good = False
    cursor.execute("SELECT * FROM millrace.rebuild('ml.plain')")
    good = check(cursor, rng, "plain", "rebuilt") and good
    for name in MODELS:
        try:
            cursor.execute("SELECT millrace.train(%s::regclass, split => '{\"by\": \"customer_rows\"}', refit => false)", (f"ml.{name}",))
        except psycopg2.errors.NumericValueOutOfRange:
            pass
    cursor.execute("SELECT customer FROM stg.items WHERE product IS NOT NULL AND customer IS NOT NULL LIMIT 1")
    erased = cursor.fetchone()[0]
    erase(admin, cursor, erased)
    for table, in rows(cursor, "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'millrace_state'::regnamespace AND relname LIKE 'model%%' AND relkind = 'r'"):
        if rows(cursor, f"SELECT count(*) FROM {table} AS t WHERE t::text ~ %s", f"\\m{erased}\\M")[0][0]:
            print(f"{table} remembers who was erased")
            good = False
    for name in MODELS:
        for version, users, pairs in rows(cursor, "SELECT version, users, pairs FROM millrace.model_version_status WHERE model = %s", f"ml.{name}"):
            kept = rows(cursor, f"SELECT count(DISTINCT user_id), coalesce(sum(cardinality(items)), 0) FROM millrace_state.model_{number_of(cursor, name)}_user WHERE version = %s", version)[0]
            if kept != (users, pairs):
                print(f"version {version} of {name} has {kept} users and pairs, and says {users}, {pairs}")
                good = False
    for name in MODELS:
        good = check(cursor, rng, name, "erased") and good
    cursor.execute("SELECT millrace.drop_model('ml.plain')")
    cursor.execute("SELECT millrace.drop_table('ml.timed')")
    cursor.execute("SELECT millrace.drop_table('stg.items', cascade => true)")
    left = rows(cursor, "SELECT c.relname FROM pg_class c WHERE c.relname LIKE 'model%%' AND c.relnamespace IN ('millrace_state'::regnamespace, 'millrace_def'::regnamespace) UNION ALL SELECT t.kind FROM millrace.target t")
    if left:
        print(f"left of models that were dropped: {left}")
        good = False
    return good


def run(admin, database, cursor, rng, steps, pushes):
    def create(name):
        query, params, catalogue = MODELS[name]
        cursor.execute("SELECT millrace.create_model(%s, 'item_knn', %s, %s, catalogue => %s, keep => 2)", (f"ml.{name}", query, params, catalogue))

    declare(cursor)
    cursor.execute("SET millrace.backfill_rows = 5")    # what is staged is counted in many chunks
    for step, made in growing(cursor, rng, steps, MODELS, create, lambda: push(cursor, rng)):
        for name in made:
            if rng.random() < 0.3:
                train(cursor, name)
            if not check(cursor, rng, name, step):
                return False
    kept = rows(cursor, "SELECT count(*) FROM millrace.model_status WHERE profiles = 'current'")[0][0]
    if kept != len(MODELS):
        print(f"{kept} models are current")
        return False
    if preloaded(admin):
        train(cursor, "plain")
        if not two_workers(admin, database, cursor, rng, pushes):
            return False
    return ends(admin, cursor, rng)


if __name__ == "__main__":
    histories("profiles", "recommendations come from what users have now", run, 1, steps=25, pushes=250)
