#!/usr/bin/env python3
"""Item-item neighbours against an independent implementation in numpy: random tables of users, items and weights, each measure, with shrinkage,
to the last digit that PostgreSQL prints. The same bytes for no worker and for two, with much memory and with so little that each row is
computed for one item alone. What is recommended, against sums over the stored neighbours. And a training that is cancelled.

    model.py [--seed N] [--runs N]

The server is that of PG*.
"""

import argparse
import hashlib
import math
import random
import sys
import threading
import time

import numpy
import psycopg2

MEASURES = ["cosine", "tfidf", "bm25", "dice", "jaccard"]
K1, B = 1.2, 0.75
failed = 0


def check(name, wrong):
    global failed
    if wrong:
        failed += 1
        print("#", wrong)
    print("not ok -" if wrong else "ok -", name)
    sys.stdout.flush()


def expected(x, had, weighted, measure, k, shrink):
    """The neighbours of each column: (column, score), best first. x: users × items; had: which pairs there are. Sums go over users one by one, as they are defined."""
    users, items = x.shape
    counted = measure in ("dice", "jaccard")
    if counted:
        w = had.astype(float)
    elif measure == "cosine":
        w = x.copy() if weighted else had.astype(float)
    else:
        df = had.sum(axis=1)
        rarity = numpy.array([math.log(items / (1 + float(d))) for d in df])
        if measure == "tfidf":
            w = numpy.sqrt(x) * rarity[:, None]
        else:
            length = numpy.zeros(items)
            for u in range(users):
                length = length + x[u]
            total = 0.0
            for i in range(items):
                total += length[i]
            average = total / items
            w = x * (K1 + 1) / (K1 * (1 - B + B * length[None, :] / average) + x) * rarity[:, None]
        w = numpy.where(had, w, 0.0)
    common = numpy.zeros((items, items))
    for u in range(users):
        common = common + w[u][:, None] * w[u][None, :]
    if counted:
        d = had.sum(axis=0).astype(float)
        if measure == "dice":
            score = 2 * common / (d[:, None] + d[None, :] + shrink + 1e-6)
        else:
            score = common / (d[:, None] + d[None, :] - common + shrink + 1e-6)
    else:
        norm = numpy.sqrt(numpy.diag(common))
        score = common / (norm[:, None] * norm[None, :] + shrink + 1e-6)
    result = []
    for i in range(items):
        found = [(-score[i, j], j) for j in range(items) if j != i and common[i, j] > 0]
        found.sort()
        result.append([(j, numpy.float32(-s)) for s, j in found[:k]])
    return result


def make(rng, cur, weighted):
    """A table of bought, and the matrix it says."""
    users, items = rng.randint(30, 160), rng.choice([5, 40, 300])
    density = rng.choice([0.02, 0.1, 0.4])
    had = numpy.zeros((users, items), dtype=bool)
    x = numpy.zeros((users, items))
    rows = []
    for u in range(users):
        for i in range(items):
            if rng.random() < density * 2 * (items - i) / items:
                had[u, i] = True
                times = rng.choice([1, 1, 1, 2])
                for _ in range(times):
                    weight = rng.randint(1, 40) / 8 if weighted else 1  # eighths: sums are exact in any order
                    x[u, i] += weight
                    rows.append((f"u{u:05d}", f"i{i:05d}", weight))
                if not weighted:
                    x[u, i] = 1
    rng.shuffle(rows)
    cur.execute("TRUNCATE model_test.bought")
    cur.executemany("INSERT INTO model_test.bought VALUES (%s, %s, %s)", rows)
    # ids that are not there have no number
    kept_users, kept_items = had.any(axis=1), had.any(axis=0)
    names = [f"i{i:05d}" for i in range(items) if kept_items[i]]
    people = [f"u{u:05d}" for u in range(users) if kept_users[u]]
    return had[kept_users][:, kept_items], x[kept_users][:, kept_items], people, names


def train(cur, workers, memory):
    cur.execute(f"SET max_parallel_maintenance_workers = {workers}; SET maintenance_work_mem = '{memory}'")
    cur.execute("SELECT millrace.train('model_test.knn')")
    version = cur.fetchone()[0]
    cur.execute("SELECT id FROM millrace.model WHERE relation = 'model_test.knn'::regclass")
    number = cur.fetchone()[0]
    digest = hashlib.sha256()
    for part in ("item", "user", "target", "source"):
        cur.execute(f"SELECT to_jsonb(t) - 'version' FROM millrace_state.model_{number}_{part} t WHERE version = %s ORDER BY (to_jsonb(t) - 'version')::text COLLATE \"C\"", (version,))
        digest.update(repr(cur.fetchall()).encode())
    return version, digest.hexdigest()


def one(rng, cur, run):
    measure = MEASURES[run % len(MEASURES)]
    weighted = rng.random() < 0.5
    k, shrink = rng.choice([1, 3, 20, 400]), rng.choice([0, 0, 2.5])
    had, x, people, names = make(rng, cur, weighted)
    what = f"{measure} {'weighted ' if weighted else ''}k={k} shrink={shrink}, {had.shape[0]} users, {had.shape[1]} items, {had.sum()} pairs"
    cur.execute("SELECT millrace.create_model('model_test.knn', 'item_knn', %s, %s)",
                ("SELECT u, i" + (", w" if weighted else "") + " FROM model_test.bought", f'{{"similarity": "{measure}", "k": {k}, "shrink": {shrink}}}'))
    version, digest = train(cur, 0, "256MB")
    wrong = None
    for workers, memory in ((2, "256MB"), (2, "1MB"), (0, "1MB")):
        other = train(cur, workers, memory)[1]
        if other != digest:
            wrong = f"{workers} workers with {memory} give other bytes"
    check(f"the same bytes, however computed: {what}", wrong)

    neighbours = expected(x, had, weighted, measure, k, shrink)
    wanted = [(names[i], n + 1, names[j], str(s)) for i, found in enumerate(neighbours) for n, (j, s) in enumerate(found)]
    cur.execute("SELECT item, rank, neighbour, score::text FROM model_test.knn WHERE version = %s ORDER BY item COLLATE \"C\", rank", (version,))
    got = [(a, b, c, str(numpy.float32(d))) for a, b, c, d in cur.fetchall()]
    differ = [pair for pair in zip(wanted, got) if pair[0] != pair[1]][:3]
    check(f"neighbours are numpy's: {what}", len(wanted) != len(got) and f"{len(got)} neighbours, not {len(wanted)}" or differ)

    wrong = None
    places = sorted(range(len(names)), key=lambda i: (-int(had[:, i].sum()), i))
    for person in rng.sample(range(len(people)), min(5, len(people))):
        sums = {}
        for i in range(len(names)):
            if had[person, i]:
                for j in range(len(names)):
                    score = dict(neighbours[j]).get(i)
                    if score is not None:
                        sums[j] = sums.get(j, 0.0) + (x[person, i] if weighted else 1.0) * float(score)
        personal = sorted((-s, j) for j, s in sums.items() if s > 0 and not had[person, j])
        given = {j for _, j in personal}
        answer = [(names[j], -s) for s, j in personal] + [(names[j], None) for j in places if j not in given and not had[person, j]]
        n = rng.choice([1, 5, 1000])
        cur.execute("SELECT item, score FROM millrace.recommend('model_test.knn', %s, %s) ORDER BY rank", (people[person], n))
        got = cur.fetchall()
        if got != answer[:n]:
            wrong = f"{people[person]}, {n}: {got[:4]} instead of {answer[:n][:4]}"
    check(f"recommendations are sums over the neighbours: {what}", wrong)
    cur.execute("SELECT millrace.drop_model('model_test.knn')")


def short_of_memory(cur):
    """Lists of 500 items with 499 neighbours each are 2 MB: with 1 MB they are turned round in parts."""
    cur.execute("TRUNCATE model_test.bought")
    cur.execute("INSERT INTO model_test.bought SELECT 'u' || u, 'i' || i, 1 FROM generate_series(1, 60) u, generate_series(1, 500) i WHERE hashint8(u * 1000 + i) % 3 = 0")
    cur.execute("SELECT millrace.create_model('model_test.knn', 'item_knn', 'SELECT u, i FROM model_test.bought', '{\"k\": 499}')")
    version, digest = train(cur, 0, "256MB")
    other = train(cur, 0, "1MB")[1]
    cur.execute("SELECT count(*) FROM model_test.knn WHERE version = %s", (version,))
    neighbours = cur.fetchone()[0]
    check("the same bytes when the lists do not fit into memory",
          f"only {neighbours} neighbours" if neighbours * 8 <= 1 << 20 else other != digest and "other bytes")
    cur.execute("SELECT millrace.drop_model('model_test.knn')")


def cancelled(cur):
    """A training that is cancelled while it computes leaves the version that is served, and no lock."""
    cur.execute("TRUNCATE model_test.bought")
    cur.execute("INSERT INTO model_test.bought SELECT 'u' || u, 'i' || i, 1 FROM generate_series(1, 400) u, generate_series(1, 20) i")
    cur.execute("SELECT millrace.create_model('model_test.knn', 'item_knn', 'SELECT u, i FROM model_test.bought')")
    cur.execute("SELECT millrace.train('model_test.knn')")
    cur.execute("INSERT INTO model_test.bought SELECT 'u' || u, 'j' || i, 1 FROM generate_series(1, 400) u, generate_series(1, 2500) i")
    cur.execute("SELECT pg_backend_pid()")
    pid = cur.fetchone()[0]
    seen, ended = set(), threading.Event()
    other = psycopg2.connect("")
    other.autocommit = True
    watch = other.cursor()

    def cancel():
        deadline = time.monotonic() + 120
        while not ended.is_set() and time.monotonic() < deadline:
            watch.execute("SELECT phase FROM millrace.training_progress WHERE pid = %s AND model = 'model_test.knn'", (pid,))
            for (phase,) in watch.fetchall():
                seen.add(phase)
                if phase == "computing":
                    watch.execute("SELECT pg_cancel_backend(%s)", (pid,))

    thread = threading.Thread(target=cancel)
    thread.start()
    wrong = "it was not cancelled"
    try:
        cur.execute("SET max_parallel_maintenance_workers = 2; SET maintenance_work_mem = '256MB'")
        cur.execute("SELECT millrace.train('model_test.knn')")
    except psycopg2.errors.QueryCanceled:
        wrong = None
    ended.set()
    thread.join()
    other.close()
    check("a training is cancelled while it computes", wrong or ("computing" not in seen and f"seen: {seen}"))
    cur.execute("SELECT count(*), min(version) FROM millrace.model_version_status WHERE model = 'model_test.knn'")
    versions = cur.fetchone()
    cur.execute("SELECT count(*) FROM millrace.similar('model_test.knn', 'i1', 5)")
    answers = cur.fetchone()[0]
    cur.execute("SELECT count(*) FROM millrace.training_progress")
    check("the version before serves on", (versions, answers, cur.fetchone()[0]) != ((1, 1), 5, 0) and f"{versions}, {answers}")
    cur.execute("SELECT millrace.drop_model('model_test.knn')")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    print("seed", arguments.seed)
    connection = psycopg2.connect("")
    connection.autocommit = True
    cur = connection.cursor()
    cur.execute("SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS millrace; DROP SCHEMA IF EXISTS model_test CASCADE; CREATE SCHEMA model_test")
    cur.execute("CREATE TABLE model_test.bought (u text, i text, w double precision)")
    for run in range(arguments.runs):
        one(random.Random(arguments.seed + run), cur, run)
    short_of_memory(cur)
    cancelled(cur)
    cur.execute("SET client_min_messages = warning; DROP SCHEMA model_test CASCADE")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
