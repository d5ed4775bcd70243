#!/usr/bin/env python3
"""Item-item neighbours against an independent implementation in numpy: random tables of users, items and weights, each measure, with shrinkage,
to the last digit that PostgreSQL prints. The same bytes for no worker and for two, with much memory and with so little that each row is
computed for one item alone, or that everything is in temporary files. What is recommended, against sums over the stored neighbours. How much memory
a training takes, and that it does without shared memory. And trainings that run out of memory, or are cancelled.

    model.py [--seed N] [--runs N]

The server is that of PG*.
"""

import hashlib
import json
import math
import os
import random
import sys
import threading
import time

import numpy
import psycopg2

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from property import check, in_schema  # noqa: E402

MEASURES = ["cosine", "tfidf", "bm25", "dice", "jaccard"]
K1, B = 1.2, 0.75


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


def make(rng, cur, weighted, sparse):
    """A table of bought, and the matrix it says."""
    users, items = rng.randint(30, 160), 300 if sparse else rng.choice([5, 40, 300])
    density = 0.02 if sparse else rng.choice([0.02, 0.1, 0.4])
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
    return version, stored(cur, version)


def stored(cur, version):
    """A digest of all that is stored of a version."""
    cur.execute("SELECT id FROM millrace.model WHERE relation = 'model_test.knn'::regclass")
    number = cur.fetchone()[0]
    digest = hashlib.sha256()
    for part in ("item", "user", "target", "source"):
        cur.execute(f"SELECT to_jsonb(t) - 'version' FROM millrace_state.model_{number}_{part} t WHERE version = %s ORDER BY (to_jsonb(t) - 'version')::text COLLATE \"C\"", (version,))
        digest.update(repr(cur.fetchall()).encode())
    return digest.hexdigest()


def one(rng, cur, run, sparse=False):
    measure = MEASURES[run % len(MEASURES)]
    weighted = not sparse and rng.random() < 0.5
    k, shrink = 3 if sparse else rng.choice([1, 3, 20, 400]), rng.choice([0, 0, 2.5])
    had, x, people, names = make(rng, cur, weighted, sparse)
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


def sparse(cur):
    """Items that have little in common with many others: most of those are dismissed by their counts."""
    for measure in ("cosine", "dice", "jaccard"):
        one(random.Random(1), cur, MEASURES.index(measure), sparse=True)


def short_of_memory(cur):
    """Lists of 500 items with 499 neighbours each are 2 MB: with 1 MB they are turned round in parts. And they are work for two workers."""
    cur.execute("TRUNCATE model_test.bought")
    cur.execute("INSERT INTO model_test.bought SELECT 'u' || u, 'i' || i, 1 FROM generate_series(1, 60) u, generate_series(1, 500) i WHERE hashint8(u * 1000 + i) % 3 = 0")
    cur.execute("SELECT millrace.create_model('model_test.knn', 'item_knn', 'SELECT u, i FROM model_test.bought', '{\"k\": 499}')")
    version, digest = train(cur, 0, "256MB")
    others = {train(cur, 0, "1MB")[1], train(cur, 2, "256MB")[1]}
    cur.execute("SELECT count(*) FROM model_test.knn WHERE version = %s", (version,))
    neighbours = cur.fetchone()[0]
    check("the same bytes when the lists do not fit into memory, and by two workers",
          f"only {neighbours} neighbours" if neighbours * 8 <= 1 << 20 else others != {digest} and "other bytes")
    cur.execute("SELECT millrace.drop_model('model_test.knn')")


def many(rng, cur, users, items, mean):
    """Pairs of which some come more than once, items that most users have and many that few have."""
    cur.execute("TRUNCATE model_test.bought")
    cur.execute("SELECT setseed(%s)", (rng.random(),))
    cur.execute("INSERT INTO model_test.bought SELECT 'u' || u, 'i' || floor(%s * power(random(), 3)), round(random() * 1000) / 7, '2026-01-01'::timestamptz + random() * interval '1 day'"
                " FROM generate_series(1, %s) u, generate_series(1, 1 + (hashint4(u) & 1023) * %s / 1024)", (items, users, 2 * mean))
    # an item that all have, and some that are as similar to it as others are, but for the last bits of their sums, which go over the same weights of other users
    cur.execute("INSERT INTO model_test.bought SELECT 'u' || u, 'all', 1.0 / 7, '2026-01-01' FROM generate_series(1, %s) u", (users,))
    cur.execute("INSERT INTO model_test.bought SELECT 'u' || %s + 1 - substr(u, 2)::integer, 'j' || i, w, at FROM model_test.bought WHERE i LIKE '%%3'", (users,))


def files(cur, pid):
    """How many temporary files a process has."""
    cur.execute("SELECT count(*) FROM pg_ls_tmpdir() WHERE name LIKE %s", (f"pgsql\\_tmp{pid}.%",))
    return cur.fetchone()[0]


def in_files(rng, cur):
    """More than 1 MB of everything: rows, pairs, the matrix, and lists."""
    many(rng, cur, 2000, 900, 55)
    cur.execute("SELECT count(*) FROM model_test.bought")
    rows = cur.fetchone()[0]
    for measure in MEASURES:
        cur.execute("SELECT millrace.create_model('model_test.knn', 'item_knn', %s, %s)",
                    ("SELECT u, i" + ("" if measure == "dice" else ", w") + " FROM model_test.bought", json.dumps({"similarity": measure, "k": 150})))
        digests = {train(cur, workers, memory)[1] for workers, memory in ((2, "1GB"), (2 if measure == "tfidf" else 0, "1MB"))}
        cur.execute("SELECT count(DISTINCT input_hash), min(pairs * 4), min(neighbours * 8) FROM millrace.model_version_status WHERE model = 'model_test.knn'")
        hashes, *sizes = cur.fetchone()
        check(f"the same bytes from temporary files: {measure}, {rows} rows",
              (rows * 20 < 1 << 20 or min(sizes) < 1 << 18) and f"only {rows} rows, {sizes} bytes" or (len(digests), hashes) != (1, 1) and "other bytes")
        cur.execute("SELECT millrace.drop_model('model_test.knn')")


def judged_in_files(rng, cur):
    """Splits and metrics, with times, of 1 MB and of much memory."""
    metrics = "{ndcg@10, recall@5, mrr, coverage, catalog_coverage@10}"
    cur.execute("SET max_parallel_maintenance_workers = 0")
    cur.execute("SELECT millrace.create_model('model_test.knn', 'item_knn', 'SELECT u, i, w, at FROM model_test.bought', '{\"k\": 150, \"similarity\": \"bm25\"}')")
    for by in ("time", "leave_one_out", "customers"):
        found = set()
        for memory in ("1GB", "1MB"):
            cur.execute(f"SET maintenance_work_mem = '{memory}'")
            cur.execute("SELECT millrace.train('model_test.knn', split => %s, metrics => %s)", (json.dumps({"by": by}), metrics))
            version = cur.fetchone()[0]
            cur.execute("SELECT array_agg((metric, value, popularity)::text ORDER BY metric) FROM millrace.model_version_metric WHERE model = 'model_test.knn' AND version = %s", (version,))
            values = cur.fetchone()[0]
            cur.execute("SELECT array_agg((metric, value, popularity, pairs)::text ORDER BY metric) FROM millrace.evaluate('model_test.knn', %s, 'SELECT u, i FROM model_test.bought ORDER BY w LIMIT 100')", (version,))
            found.add(repr((values, cur.fetchone()[0])))
        check(f"the same metrics from temporary files: split by {by}", len(found) != 1 and found)
    cur.execute("SELECT millrace.drop_model('model_test.knn')")


def searched(rng, cur):
    """The same values of trials one after the other, at once, and at once as far as memory goes; of pairs with weights, and of those that judge with what is given."""
    many(rng, cur, 800, 300, 30)
    cur.execute("SELECT millrace.create_model('model_test.knn', 'item_knn', 'SELECT u, i, w FROM model_test.bought')")
    search = '{"k": [3, 10, 40], "similarity": ["cosine", "bm25", "jaccard"], "shrink": {"uniform": [0.0, 5.0]}}'
    for by, halving in (("customer_rows", True), ("customers", False)):
        found = set()
        for workers, memory in ((0, "1GB"), (2, "1GB"), (2, "3MB"), (2, "1MB")):
            cur.execute(f"SET max_parallel_maintenance_workers = {workers}; SET maintenance_work_mem = '{memory}'")
            cur.execute("SELECT millrace.train('model_test.knn', split => %s, metrics => '{ndcg@10, recall@5, mrr, coverage}', search => %s, trials => 5, halving => %s)", (json.dumps({"by": by}), search, halving))
            cur.execute("SELECT array_agg((trial, rung, metrics, chosen)::text ORDER BY trial) FROM millrace.model_version_trial WHERE model = 'model_test.knn' AND version = %s", cur.fetchone())
            found.add(repr(cur.fetchone()[0]))
        check(f"the same trials, however many run at once: split by {by}", len(found) != 1 and found)
    cur.execute("SELECT millrace.drop_model('model_test.knn')")


class Watch:
    """Looks at a training from another session: the most memory of its process, above what it had, the most files, phases. Cancels it in a phase, if asked."""

    def __init__(self, cur, cancel_in=None):
        cur.execute("SELECT pg_backend_pid()")
        self.pid, self.cancel_in = cur.fetchone()[0], cancel_in
        self.phases, self.files, self.memory = set(), 0, 0
        self.ended = threading.Event()

    def anonymous(self):
        with open(f"/proc/{self.pid}/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

    def look(self):
        connection = psycopg2.connect("")
        connection.autocommit = True
        cur = connection.cursor()
        deadline = time.monotonic() + 120
        while not self.ended.is_set() and time.monotonic() < deadline:
            self.memory = max(self.memory, self.anonymous() - self.before)
            self.files = max(self.files, files(cur, self.pid))
            cur.execute("SELECT phase FROM millrace.training_progress WHERE pid = %s", (self.pid,))
            for (phase,) in cur.fetchall():
                self.phases.add(phase)
                if phase == self.cancel_in and self.files > 0:
                    cur.execute("SELECT pg_cancel_backend(%s)", (self.pid,))
        connection.close()

    def __enter__(self):
        self.before = self.anonymous()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def bounded(rng, cur):
    """What a training takes is near the setting; its files go with it, whatever becomes of it."""
    many(rng, cur, 12000, 2000, 60)
    cur.execute("SELECT millrace.create_model('model_test.knn', 'item_knn', 'SELECT u, i, w FROM model_test.bought')")
    taken = {}
    for setting in (8, 1024):
        connection = psycopg2.connect("")
        connection.autocommit = True
        own = connection.cursor()
        own.execute(f"SET client_min_messages = warning; SET max_parallel_maintenance_workers = 0; SET maintenance_work_mem = '{setting}MB'; SELECT count(*) FROM millrace.model_status")
        with Watch(own) as watch:
            own.execute("SELECT millrace.train('model_test.knn')")
        taken[setting] = (watch.memory >> 20, watch.files > 0)
        if setting == 8:
            check("files are gone after a training", files(cur, watch.pid) and "they are not")
            for phase in ("sorting", "computing"):
                error = "it was not cancelled"
                with Watch(own, phase) as watch:
                    try:
                        own.execute("SELECT millrace.train('model_test.knn')")
                    except psycopg2.errors.QueryCanceled:
                        error = None
                check(f"a training in files is cancelled while {phase}, and they are gone", error or files(cur, watch.pid) and "there are files")
            cur.execute("INSERT INTO model_test.bought VALUES ('u1', 'i1', -1e9)")
            error = "there is none"
            try:
                own.execute("SELECT millrace.train('model_test.knn')")
            except psycopg2.errors.NumericValueOutOfRange:
                error = None
            check("after an error files are gone, too", error or files(cur, watch.pid) and "there are files")
            cur.execute("DELETE FROM model_test.bought WHERE w < 0")
        connection.close()
    (short, spilled), (long, not_spilled) = taken[8], taken[1024]
    check("a training takes about maintenance_work_mem", (not spilled or not_spilled or short > 20 or long < 30) and f"with 8 MB {short} MB, with 1 GB {long} MB")
    cur.execute("SELECT millrace.drop_model('model_test.knn')")


def without_shared_memory(cur):
    """Where the system has no shared memory for the lists, which are 32 MB, the session computes alone."""
    cur.execute("TRUNCATE model_test.bought")
    cur.execute("INSERT INTO model_test.bought SELECT 'u' || u, 'i' || (u * 7 + i * i) % 2000, 1 FROM generate_series(1, 400) u, generate_series(1, 30) i")
    cur.execute("SELECT millrace.create_model('model_test.knn', 'item_knn', 'SELECT u, i FROM model_test.bought', '{\"k\": 1999}')")
    digest = train(cur, 2, "1GB")[1]
    connection = psycopg2.connect("")
    connection.autocommit = True
    own = connection.cursor()
    own.execute("COPY (SELECT 1) TO PROGRAM 'cat >/dev/null; prlimit --pid $PPID --fsize=20000000'")  # its files; segments of the WAL are smaller
    try:
        wrong = train(own, 2, "1GB")[1] != digest and "other bytes"
    except psycopg2.Error as error:
        wrong = error
    connection.close()
    check("the same bytes when there is no shared memory", wrong)
    cur.execute("SELECT millrace.drop_model('model_test.knn')")


def out_of_memory(cur):
    """Where the system gives no more memory, at whatever point, the training fails, or computes the same; the version before serves on."""
    cur.execute("TRUNCATE model_test.bought")
    cur.execute("INSERT INTO model_test.bought SELECT 'u' || u, 'i' || (u * 7 + i * i) % 2000, 1 FROM generate_series(1, 4000) u, generate_series(1, 30) i")
    cur.execute("SELECT millrace.create_model('model_test.knn', 'item_knn', 'SELECT u, i FROM model_test.bought', '{\"k\": 50}')")
    version, digest = train(cur, 0, "1GB")
    wrong, trained = [], []
    for workers, megabytes in ((0, 1), (0, 3), (0, 6), (2, 6), (0, 9), (2, 1000)):
        connection = psycopg2.connect("")
        connection.autocommit = True
        own = connection.cursor()
        try:
            own.execute("DO 'BEGIN END'")  # loads what is code
            own.execute(f"COPY (SELECT 1) TO PROGRAM 'cat >/dev/null; prlimit --pid $PPID --as=$(($(cut -d\" \" -f1 /proc/$PPID/statm) * 4096 + {megabytes << 20}))'")
            own.execute(f"SET max_parallel_maintenance_workers = {workers}; SET maintenance_work_mem = '1GB'; SELECT millrace.train('model_test.knn')")
            trained += own.fetchone()
        except psycopg2.errors.OutOfMemory:
            pass
        cur.execute("SELECT version FROM millrace.similar('model_test.knn', 'i1', 1)")
        wrong += [f"{megabytes} MB: another version is served"] if cur.fetchone()[0] != version else []
        connection.close()
    cur.execute("SELECT array_agg(version ORDER BY version) FROM millrace.model_version_status WHERE model = 'model_test.knn'")
    versions = cur.fetchone()[0]
    check("a training that runs out of memory fails, and nothing else does",
          wrong or versions != [version] + trained and f"{versions} are there" or not 1 <= len(trained) <= 4 and f"{len(trained)} were trained" or {stored(cur, v) for v in versions} != {digest} and "other bytes")
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


def beyond_memory(cur):
    rng = random.Random(1)
    in_files(rng, cur)
    judged_in_files(rng, cur)
    searched(rng, cur)
    bounded(rng, cur)
    without_shared_memory(cur)
    out_of_memory(cur)


if __name__ == "__main__":
    in_schema("model_test", "CREATE TABLE model_test.bought (u text, i text, w double precision, at timestamptz)", one, 10, sparse, short_of_memory, beyond_memory, cancelled)
