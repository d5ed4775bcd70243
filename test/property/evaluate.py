#!/usr/bin/env python3
"""Splits and metrics of models against an independent implementation: random tables of users, items, weights and times, each way to split, each metric, to the last digit that
PostgreSQL prints; for versions that are judged when they are trained, and for stored ones by other pairs. What an evaluation set holds never trains again.

    evaluate.py [--seed N] [--runs N]

The server is that of PG*.
"""

import math
import os
import sys

import numpy

from model import MEASURES, expected
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from property import check, in_schema  # noqa: E402

SPLITS = ["customer_rows", "customers", "time", "leave_one_out", "tables"]
AT = ["precision", "precision_returned", "recall", "map", "ndcg", "ndcg_untruncated", "hit_rate", "mrr", "catalog_coverage"]
ALONE = ["mrr", "user_coverage", "item_coverage", "coverage"]


def make(rng, cur):
    """Rows of (user, item, weight, time), pairs more than once, and users with one item."""
    users, items = rng.randint(2, 90), rng.choice([2, 12, 60])
    density = rng.choice([0.05, 0.2, 0.5])
    rows = []
    for u in range(users):
        for i in range(items):
            if rng.random() < density * 2 * (items - i) / items:
                for _ in range(rng.choice([1, 1, 2, 3])):
                    rows.append((f"{100 + u}", f"{100 + i}", rng.randint(0 if rng.random() < 0.05 else 1, 40) / 8, rng.randint(0, 60)))
    cur.execute("TRUNCATE evaluate_test.bought")
    cur.executemany("INSERT INTO evaluate_test.bought VALUES (%s, %s, %s, timestamptz '2024-01-01 00:00:00+00' + %s * interval '1 day')", rows)
    return rows


def sum_up(rows):
    """By pair: weight and newest time."""
    pairs = {}
    for u, i, w, t in rows:
        weight, newest = pairs.get((u, i), (0.0, -1))
        pairs[u, i] = (weight + w, max(newest, t))  # eighths: sums are exact in any order
    return pairs


def of_users(pairs):
    result = {}
    for u, i in sorted(pairs):
        result.setdefault(u, []).append(i)
    return result


def half_up(x):
    return math.floor(x + 0.5)


def share_of(n, share):
    return 0 if n < 2 else min(max(half_up(share * n), 1), n - 1)


def hashes(cur, seed, pairs):
    """hash(seed, user) and hash(seed, user, item), as docs/models.md defines them."""
    cur.execute("SELECT u, i, hashtextextended(u, %s), hashtextextended(i, hashtextextended(u, %s)) FROM (SELECT DISTINCT u, i FROM evaluate_test.bought) b", (seed, seed))
    found = cur.fetchall()
    return {u: h for u, _, h, _ in found}, {(u, i): h for u, i, _, h in found}


def split(cur, kind, share, seed, since, rows, timed):
    """What trains, what is asked, what is given: each as pairs with weights."""
    pairs = sum_up(rows)
    weights = {p: w for p, (w, _) in pairs.items()}
    asked, given = set(), set()
    if kind == "time":
        cut = since if since is not None else sorted(t for _, _, _, t in rows)[len(rows) - max(half_up(share * len(rows)), 1)] if rows else 0
        train = {p: w for p, (w, _) in sum_up([r for r in rows if r[3] < cut]).items()}
        return train, set(weights) - set(train), {}
    by_user, by_pair = hashes(cur, seed, pairs)
    have = of_users(pairs)
    chosen = sorted(have)
    if kind == "customers":
        chosen = sorted(have, key=lambda u: (by_user[u], u))[:share_of(len(have), share)]
    for u in chosen:
        n = len(have[u])
        if kind == "leave_one_out":
            order, m = sorted(have[u], key=lambda i: (-pairs[u, i][1] if timed else 0, by_pair[u, i], i)), int(n > 1)
        else:
            order, m = sorted(have[u], key=lambda i: (by_pair[u, i], i)), share_of(n, share)
        asked |= {(u, i) for i in order[:m]}
        if kind == "customers":
            given |= {(u, i) for i in order[m:]}
    return {p: w for p, w in weights.items() if p not in asked and p not in given}, asked, {p: weights[p] for p in given}


class Version:
    """Trained on pairs with weights."""

    def __init__(self, pairs, weighted, measure, k, shrink):
        self.pairs = pairs
        self.weighted = weighted
        self.users = {u for u, _ in pairs}
        self.items = sorted({i for _, i in pairs})
        self.number = {i: n for n, i in enumerate(self.items)}
        users = sorted(self.users)
        had = numpy.zeros((len(users), len(self.items)), dtype=bool)
        x = numpy.zeros((len(users), len(self.items)))
        place = {u: n for n, u in enumerate(users)}
        for (u, i), w in pairs.items():
            had[place[u], self.number[i]] = True
            x[place[u], self.number[i]] = w if weighted else 1
        self.near = [dict(found) for found in expected(x, had, weighted, measure, k, shrink)] if pairs else []
        self.popular = sorted(range(len(self.items)), key=lambda n: (-int(had[:, n].sum()), n))

    def profile(self, user, given):
        mine = {self.number[i]: (w if self.weighted else 1.0) for (u, i), w in self.pairs.items() if u == user}
        for (u, i), w in given.items():
            if u == user and i in self.number:
                mine.setdefault(self.number[i], w if self.weighted else 1.0)
        return mine

    def ranking(self, mine):
        sums = {}
        for i in sorted(mine):
            for j in range(len(self.items)):
                if i in self.near[j]:
                    sums[j] = sums.get(j, 0.0) + mine[i] * float(self.near[j][i])
        return [j for _, j in sorted((-s, j) for j, s in sums.items() if s > 0 and j not in mine)]


def judge(ranks, wanted, n, metric, k):
    """One user: the ranking, the numbers of items that are asked and known, and how many are asked."""
    top = ranks[:k] if k else ranks
    hits = [j in wanted for j in top]
    if metric == "precision":
        return sum(hits) / k
    if metric == "precision_returned":
        return sum(hits) / len(top) if top else 0.0
    if metric == "recall":
        return sum(hits) / n
    if metric == "map":
        total = 0.0
        for r, hit in enumerate(hits):
            if hit:
                total += sum(hits[:r + 1]) / (r + 1)
        return total / min(n, k)
    if metric in ("ndcg", "ndcg_untruncated"):
        gain, ideal = 0.0, 0.0
        for r, hit in enumerate(hits):
            if hit:
                gain += 1 / math.log2(r + 2)
        for r in range(min(n, k) if metric == "ndcg" else n):
            ideal += 1 / math.log2(r + 2)
        return gain / ideal
    if metric == "hit_rate":
        return float(any(hits))
    if metric == "mrr":
        return 1 / (hits.index(True) + 1) if any(hits) else 0.0
    raise AssertionError(metric)


def metrics_of(version, asked, given, names, skip):
    """By metric: (value, that of popularity); and how many pairs count."""
    asked = {p for p in asked if p not in skip}
    have = of_users(asked)
    if not have:
        return {name: (None, None) for name in names}, 0
    answers = []
    for u in sorted(have):
        mine = version.profile(u, given)
        wanted = {version.number[i] for i in have[u] if i in version.number}
        answers.append((version.ranking(mine), [j for j in version.popular if j not in mine], wanted, len(have[u])))
    user_coverage = sum(u in version.users for u, _ in asked) / len(asked)
    item_coverage = sum(i in version.number for _, i in asked) / len(asked)
    result = {}
    for name in names:
        metric, _, k = name.partition("@")
        k = int(k or 0)
        alone = {"user_coverage": user_coverage, "item_coverage": item_coverage, "coverage": (user_coverage + item_coverage) / 2}
        both = []
        for which in (0, 1):
            if name in alone:
                both.append(alone[name])
            elif metric == "catalog_coverage":
                both.append(len({j for a in answers for j in a[which][:k]}) / len(version.items) if version.items else 0.0)
            else:
                total = 0.0
                for a in answers:
                    total += judge(a[which], a[2], a[3], metric, k)
                both.append(total / len(answers))
        result[name] = tuple(both)
    return result, len(asked)


def compare(got, wanted):
    return [(name, got.get(name), wanted[name]) for name in wanted if got.get(name) != wanted[name]][:3]


def one(rng, cur, run):
    kind, measure, weighted, timed = SPLITS[run % len(SPLITS)], rng.choice(MEASURES), rng.random() < 0.5, rng.random() < 0.6
    timed = timed or kind == "time"
    k, shrink, seed = rng.choice([1, 3, 20]), rng.choice([0, 0, 2.5]), rng.randint(-1000, 1000)
    share = rng.choice([0.2, 0.2, 0.25, 0.7])
    rows = make(rng, cur)
    # three digits: the order of numbers is that of their texts
    columns = rng.choice(["u, i", "u::integer, i::bigint"]) + (", w" if weighted else "") + (", at" if timed else "")
    cur.execute("SELECT millrace.create_model('evaluate_test.knn', 'item_knn', %s, %s)",
                (f"SELECT {columns} FROM evaluate_test.bought", f'{{"similarity": "{measure}", "k": {k}, "shrink": {shrink}}}'))
    names = [f"{m}@{rng.choice([1, 2, 5, 10, 100])}" for m in AT] + ALONE
    since = rng.randint(0, 60) if kind == "time" and rng.random() < 0.5 else None
    options = {"customer_rows": f', "test": {share}, "seed": {seed}', "customers": f', "test": {share}, "seed": {seed}', "leave_one_out": f', "seed": {seed}',
               "time": f', "test": {share}' if since is None else f""", "since": "{numpy.datetime64('2024-01-01') + since}Z" """,
               "tables": ', "test": "SELECT u, i FROM evaluate_test.test"'}[kind]
    what = f"{columns}, {kind}, {measure} {'weighted ' if weighted else ''}{'timed ' if timed else ''}k={k} shrink={shrink} share={share} seed={seed} since={since}, {len(rows)} rows"
    pairs = {p: w for p, (w, _) in sum_up(rows).items()}
    other = {(f"{rng.randint(100, 195)}", f"{rng.randint(100, 165)}") for _ in range(rng.choice([0, 5, 100]))} | {p for p in pairs if rng.random() < 0.1}
    cur.execute("TRUNCATE evaluate_test.test")
    cur.executemany("INSERT INTO evaluate_test.test VALUES (%s, %s)", sorted(other))
    if kind == "tables":
        trained, asked, given = {p: w for p, w in pairs.items() if p not in other}, other, {}
    else:
        trained, asked, given = split(cur, kind, share, seed, since, rows, timed)

    def train(refit):
        cur.execute("SELECT millrace.train('evaluate_test.knn', split => %s, metrics => %s, refit => %s)", (f'{{"by": "{kind}"{options}}}', names, refit))
        number = cur.fetchone()[0]
        cur.execute("SELECT metric, value, popularity, pairs FROM millrace.model_version_metric WHERE model = 'evaluate_test.knn' AND version = %s", (number,))
        found = cur.fetchall()
        cur.execute("SELECT pairs, input_hash FROM millrace.model_version_status WHERE model = 'evaluate_test.knn' AND version = %s", (number,))
        return number, {m: (v, p) for m, v, p, _ in found}, {n for _, _, _, n in found}, cur.fetchone()

    # refitted: judged on the part, stored whole
    version = Version(trained, weighted, measure, k, shrink)
    wanted, n = metrics_of(version, asked, given, names, set(trained))
    number, got, counts, stored = train(True)
    check(f"metrics of a split: {what}", compare(got, wanted) or (counts != {n} and f"{counts} pairs, not {n}"))
    check(f"a refitted version has all pairs: {what}", stored[0] != len(pairs) and f"{stored[0]} pairs, not {len(pairs)}")

    # the part alone
    number, got, counts, stored = train(False)
    wrong = compare(got, wanted) or (counts != {n} and f"{counts} pairs, not {n}")
    if kind == "time":  # rows of the time before train; what pairs weigh then is what they weigh now
        kept = len(trained)
    else:
        kept = len(pairs) - len([p for p in pairs if p in asked or p in given])
    check(f"metrics of a version that is kept as split: {what}", wrong or (stored[0] != kept and f"{stored[0]} pairs, not {kept}"))

    # by other pairs; those it was trained on do not count
    cur.execute("SELECT metric, value, popularity, pairs FROM millrace.evaluate('evaluate_test.knn', %s, 'SELECT u, i FROM evaluate_test.test', %s)", (number, names))
    found = cur.fetchall()
    wanted, n = metrics_of(version, other, {}, names, set(trained))
    check(f"metrics of a stored version: {what}", compare({m: (v, p) for m, v, p, _ in found}, wanted) or ({c for _, _, _, c in found} != {n} and f"not {n} pairs"))

    # and by the evaluation set
    if asked or given:
        cur.execute("SELECT metric, value, popularity, pairs FROM millrace.evaluate('evaluate_test.knn', %s, metrics => %s)", (number, names))
        wanted, n = metrics_of(version, asked, given, names, set(trained))
        check(f"metrics by the evaluation set: {what}", compare({m: (v, p) for m, v, p, _ in cur.fetchall()}, wanted))

    # what the set holds never trains, however one trains
    cur.execute("SELECT millrace.train('evaluate_test.knn')")
    later = cur.fetchone()[0]
    cur.execute("SELECT pairs FROM millrace.model_version_status WHERE model = 'evaluate_test.knn' AND version = %s", (later,))
    left = {p: w for p, w in pairs.items() if p not in asked and p not in given}
    count = cur.fetchone()[0]
    cur.execute("SELECT id FROM millrace.model WHERE relation = 'evaluate_test.knn'::regclass")
    id = cur.fetchone()[0]
    cur.execute(f"SELECT i.item::text, u.user_id::text FROM millrace_state.model_{id}_user u, unnest(u.items) n JOIN millrace_state.model_{id}_item i ON i.number = n AND i.version = %s WHERE u.version = %s", (later, later))
    held = {(u, i) for i, u in cur.fetchall()} & (set(asked) | set(given))
    check(f"what an evaluation set holds never trains: {what}", (count != len(left) and f"{count} pairs, not {len(left)}") or held)
    cur.execute("SELECT millrace.drop_model('evaluate_test.knn')")


if __name__ == "__main__":
    in_schema("evaluate_test", """CREATE TABLE evaluate_test.bought (u text COLLATE "C", i text COLLATE "C", w double precision, at timestamptz);
        CREATE TABLE evaluate_test.test (u text, i text)""", one, 15)
