#!/usr/bin/env python3
"""What a model of trees answers, against XGBoost: margins of random rows with missing values, bit for bit, for random models that XGBoost has trained and saved as
JSON and UBJSON; features by rows, JSON and arrays; what is refused, by name; files that are cut, changed and made to mislead, by which the server must stay alive.
Then trainings, against XGBoost's own on the same rows, metrics against numpy; one that is cancelled, and one whose program is killed.

    trees.py [--seed N] [--rows N]       rows of each of ten models (10,000)

The server is that of PG*.
"""

import argparse
import io
import json
import os
import pwd
import random
import subprocess
import sys
import threading
import time

import numpy
import psycopg2
import xgboost

failed = 0
OBJECTIVES = ["binary:logistic", "binary:logitraw", "reg:logistic", "reg:squarederror", "reg:squaredlogerror", "reg:pseudohubererror", "reg:absoluteerror", "count:poisson", "reg:gamma", "reg:tweedie"]


def check(name, wrong):
    global failed
    if wrong:
        failed += 1
        print("#", wrong)
    print("not ok -" if wrong else "ok -", name)
    sys.stdout.flush()


def fails(cur, statement, values, code, *words):
    """What is wrong when a statement does not fail like this."""
    try:
        cur.execute(statement, values)
    except psycopg2.Error as error:
        if error.pgcode != code or not all(word in str(error) for word in words):
            return f"{error.pgcode}: {error}"
        return None
    return f"{statement} did not fail"


def draw(rng, rows, features):
    """Rows as they come: some values missing, some repeated, some exactly where a tree splits, negative zeros."""
    data = rng.normal(size=(rows, features)).astype(numpy.float32)
    data[:, ::3] = rng.integers(-3, 4, size=data[:, ::3].shape)
    data[rng.random(data.shape) < 0.2] = numpy.nan
    data[rng.random(data.shape) < 0.02] = -0.0
    return data


def train(rng, objective, features, **more):
    data = draw(rng, 1000, features)
    label = (numpy.nan_to_num(data[:, 0]) + rng.normal(size=1000)).astype(numpy.float32)
    if objective.startswith(("binary:", "reg:logistic")):
        label = (label > 0).astype(numpy.float32)
    elif objective in ("count:poisson", "reg:gamma", "reg:tweedie", "reg:squaredlogerror"):
        label = numpy.exp(label / 2) + numpy.float32(0.1)
    params = {"objective": objective, "tree_method": "hist", "seed": int(rng.integers(1000)), "verbosity": 0, **more}
    names = [f"f{i}" for i in range(features)]
    return xgboost.train(params, xgboost.DMatrix(data, label, feature_names=names), int(rng.choice([1, 7, 30])))


def models(rng):
    """Names of models and how they were trained, each objective at least one time."""
    for objective in OBJECTIVES:
        features = int(rng.choice([1, 5, 20]))
        more = {"max_depth": int(rng.integers(1, 11)), "learning_rate": float(rng.choice([0.05, 0.3])), "max_bin": int(rng.choice([4, 256]))}
        if rng.random() < 0.4:
            more.update(grow_policy="lossguide", max_leaves=int(rng.choice([3, 60])), max_depth=0)
        if objective != "reg:absoluteerror" and rng.random() < 0.3:  # which XGBoost 3 does not train as forests
            more.update(num_parallel_tree=3, subsample=0.7)
        if objective != "reg:absoluteerror" and rng.random() < 0.7:
            more["base_score"] = float(rng.choice([0.1, 0.5, 0.731]))
        yield f"{objective} {more}", train(rng, objective, features, **more)


def create(cur, features, categories=None):
    columns = ", ".join(f"f{i} real" for i in range(features))
    cur.execute(f"DROP SCHEMA IF EXISTS trees_test CASCADE; CREATE SCHEMA trees_test; CREATE TABLE trees_test.source (id integer, label real, {columns})")
    cur.execute("SELECT millrace.create_model('trees_test.model', 'xgboost', 'SELECT * FROM trees_test.source', label => 'label', entity => '{id}')")


def drop(cur):
    cur.execute("SELECT millrace.drop_model('trees_test.model')")


def bits(values):
    return numpy.asarray(values, dtype=numpy.float32).view(numpy.int32)


def copy_rows(cur, table, data):
    text = io.StringIO()
    for i, row in enumerate(data.tolist()):
        text.write(f"{i}\t\\N\t" + "\t".join("\\N" if v != v else repr(v) for v in row) + "\n")
    text.seek(0)
    cur.copy_expert(f"COPY {table} FROM STDIN", text)


def margins(cur, rng, rows):
    wrong, worst = None, 0
    for name, booster in models(rng):
        features = booster.num_features()
        create(cur, features)
        data = draw(rng, rows, features)
        expected = bits(booster.predict(xgboost.DMatrix(data, feature_names=booster.feature_names), output_margin=True))
        predictions = booster.predict(xgboost.DMatrix(data, feature_names=booster.feature_names))
        copy_rows(cur, "trees_test.source", data)
        for form in ("json", "ubj"):
            cur.execute("SELECT millrace.import_model('trees_test.model', %s)", (psycopg2.Binary(bytes(booster.save_raw(form))),))
            cur.execute("SELECT millrace.promote('trees_test.model', %s)", (cur.fetchone()[0],))
            array = "ARRAY[" + ", ".join(f"f{i}" for i in range(features)) + "]"
            cur.execute(f"SELECT array_agg(millrace.predict('trees_test.model', {'s' if form == 'json' else array}, true) ORDER BY id), array_agg(millrace.predict('trees_test.model', {array}) ORDER BY id) FROM trees_test.source s")
            found, given = cur.fetchone()
            differ = numpy.nonzero(bits(found) != expected)[0]
            if len(differ):
                wrong = (wrong + "; " if wrong else "") + f"{name}, {form}: {len(differ)} rows, such as {data[differ[0]]}: {found[differ[0]]!r} instead of {expected.view(numpy.float32)[differ[0]]!r}"
            worst = max(worst, float(numpy.max(numpy.abs(bits(given).astype(numpy.int64) - bits(predictions)))))
        # the same rows as JSON, whose missing values are left out
        cur.execute("SELECT count(*) FROM trees_test.source s WHERE millrace.predict('trees_test.model', jsonb_strip_nulls(to_jsonb(s) - '{id,label}'::text[])) IS DISTINCT FROM millrace.predict('trees_test.model', s) AND id < 1000")
        if wrong is None and cur.fetchone()[0]:
            wrong = f"{name}: rows as JSON differ"
        drop(cur)
    check("margins are XGBoost's, bit for bit", wrong)
    check("predictions are within two units in the last place", worst > 2 and f"{worst} units")


def refused(cur, rng):
    create(cur, 2)
    for what, params in (('booster "dart"', {"booster": "dart"}), ('booster "gblinear"', {"booster": "gblinear", "tree_method": None}), ("several outputs", {"objective": "multi:softprob", "num_class": 3}),
                         ('objective "rank:pairwise"', {"objective": "rank:pairwise"}), ("categorical splits", "categorical")):
        data = draw(rng, 200, 2)
        types = None
        if params == "categorical":
            params, types = {"max_cat_to_onehot": 1}, ["c", "q"]
            data[:, 0] = rng.integers(0, 5, 200)
        label = data[:, 0] > 0 if what != "categorical splits" else data[:, 0] % 2
        matrix = xgboost.DMatrix(data, numpy.asarray(label, dtype=numpy.float32), feature_names=["f0", "f1"], feature_types=types, enable_categorical=types is not None)
        booster = xgboost.train({k: v for k, v in {"tree_method": "hist", "verbosity": 0, **params}.items() if v}, matrix, 3)
        for form in ("json", "ubj"):
            check(f"{what} is refused ({form})", fails(cur, "SELECT millrace.import_model('trees_test.model', %s)", (psycopg2.Binary(bytes(booster.save_raw(form))),), "0A000", what))
    other = xgboost.train({"verbosity": 0}, xgboost.DMatrix(draw(rng, 50, 2), numpy.ones(50), feature_names=["f0", "other"]), 1)
    check("other names are refused", fails(cur, "SELECT millrace.import_model('trees_test.model', %s)", (psycopg2.Binary(bytes(other.save_raw("ubj"))),), "22023", 'feature 2 of the model is "other"', '"f1"'))
    other = train(rng, "reg:squarederror", 3)
    check("more features are refused", fails(cur, "SELECT millrace.import_model('trees_test.model', %s)", (psycopg2.Binary(bytes(other.save_raw("ubj"))),), "22023", "trained on 3 features"))
    check("no version: an error", fails(cur, "SELECT millrace.predict('trees_test.model', '{}')", (), "55000", "no version"))
    mine = train(rng, "binary:logistic", 2)
    cur.execute("SELECT millrace.import_model('trees_test.model', %s)", (psycopg2.Binary(bytes(mine.save_raw("ubj"))),))
    for what, features, code, word in (("infinity", "'{\"f0\": 1e30}'", None, None), ("infinity in an array", "'{Infinity,1}'::real[]", "22003", '"f0" is infinite'), ("too few values", "'{1}'::real[]", "2202E", "2 features"),
                                       ("an unknown member", "'{\"f0\": 1, \"g\": 2}'", "22023", '"g"'), ("a row without a feature", "(SELECT r FROM (SELECT 1 AS f0) r)", "42703", '"f1"'),
                                       ("a row with a date", "(SELECT r FROM (SELECT 1 AS f0, now() AS f1) r)", "42804", '"f1"'), ("an array of JSON", "'[1, 2]'", "22023", "object"), ("another type", "1", "42804", "integer")):
        if code:
            check(f"{what} is an error", fails(cur, f"SELECT millrace.predict('trees_test.model', {features})", (), code, word))
    drop(cur)


def hostile(document, rng):
    """A model's JSON with one thing wrong."""
    document = json.loads(document)
    learner = document["learner"]
    trees = learner["gradient_booster"]["model"]["trees"]
    tree = rng.choice(trees)
    n = len(tree["left_children"])
    at = rng.randrange(n)
    number = rng.choice([-2, -1, 0, 1, n, n - 1, 2**31 - 1, -2**31, 2**63, 1e300, "x", None, True, [], {}])
    key = rng.choice(["left_children", "right_children", "split_indices", "split_conditions", "default_left", "loss_changes", "sum_hessian", "split_type", "parents"])
    choice = rng.randrange(8)
    if choice < 3:
        tree[key][at] = number
    elif choice == 3:
        tree["left_children"][at], tree["right_children"][at] = rng.randrange(n), rng.randrange(n)
    elif choice == 4:
        del tree[key][at:]
    elif choice == 5:
        learner["learner_model_param"][rng.choice(["num_feature", "base_score", "num_class"])] = str(number)
    elif choice == 6:
        rng.choice([document, learner, learner["gradient_booster"], learner["gradient_booster"]["model"], tree]).popitem()
    else:
        rng.choice([document, learner, learner["gradient_booster"]])[rng.choice(["learner", "gradient_booster", "model", "name", "version", "objective"])] = number
    return json.dumps(document).encode()


def fuzz(cur, rng, numbers, runs):
    create(cur, 4)
    booster = train(numbers, "binary:logistic", 4, max_depth=3)
    raw = {form: bytes(booster.save_raw(form)) for form in ("json", "ubj")}
    wrong, taken = None, 0
    for _ in range(runs):
        form = rng.choice(["json", "ubj"])
        content = bytearray(raw[form])
        kind = rng.randrange(3)
        if kind == 0:
            content = content[:rng.randrange(len(content))]
        elif kind == 1:
            for _ in range(rng.choice([1, 1, 3, 20])):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            content = hostile(raw["json"], rng)
        try:
            cur.execute("SELECT millrace.import_model('trees_test.model', %s)", (psycopg2.Binary(bytes(content)),))
            version = cur.fetchone()[0]
            cur.execute("SELECT millrace.promote('trees_test.model', %s)", (version,))
            cur.execute("SELECT millrace.predict('trees_test.model', ARRAY[f, -f, NULL, f / 2]::real[]) FROM generate_series(-3, 3) f")
            taken += 1
        except psycopg2.OperationalError as error:
            if cur.connection.closed:
                check("the server stays alive", f"{error}, by {bytes(content)!r}")
                return
        except psycopg2.Error as error:
            if error.pgcode[:2] in ("XX", "57"):
                wrong = f"{error.pgcode}: {error}, by {bytes(content)[:300]!r}"
    check(f"files that are wrong are refused or predict ({taken} of {runs} do)", wrong)
    drop(cur)


def programs():
    """Processes that train, by their parents."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    name, rest = stat.read().split("(", 1)[1].rsplit(")", 1)
            except OSError:
                continue
            if name.startswith("millrace_xgboos") and rest.split()[0] != "Z":
                found.setdefault(int(rest.split()[1]), []).append(int(entry))
    return found


def wait_for(what, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def metrics_of(predicted, label):
    predicted, label = predicted.astype(numpy.float64), label.astype(numpy.float64)
    with_label, without = predicted[label > 0.5], numpy.sort(predicted[label <= 0.5])
    wins = (numpy.searchsorted(without, with_label, "left") + numpy.searchsorted(without, with_label, "right")).sum() / 2
    return {"logloss": -(label * numpy.log(numpy.maximum(predicted, 1e-16)) + (1 - label) * numpy.log(numpy.maximum(1 - predicted, 1e-16))).mean(), "error": ((predicted > 0.5) != (label > 0.5)).mean(),
            "rmse": numpy.sqrt(((predicted - label) ** 2).mean()), "mae": numpy.abs(predicted - label).mean(), "auc": wins / (len(with_label) * len(without))}


def trainings(cur, rng):
    cur.execute("SHOW max_parallel_maintenance_workers")
    threads = int(cur.fetchone()[0]) + 1
    cur.execute("DROP SCHEMA IF EXISTS trees_test CASCADE; CREATE SCHEMA trees_test; CREATE TABLE trees_test.source (a integer, b text, label integer, colour text, x real, y numeric, z boolean)")
    rows = []
    for i in range(3000):
        colour, x, y, z = [None, "blue", "red", "Red", "\u00e4"][rng.integers(5)], float(numpy.float32(rng.normal())), int(rng.integers(0, 50)) / 4, bool(rng.integers(2))
        label = None if rng.random() < 0.05 else int((x > 0) ^ (colour in ("red", None)) ^ (rng.random() < 0.1))
        rows.append((i, f"s{i % 7}", label, colour, None if rng.random() < 0.1 else x, None if rng.random() < 0.1 else y, z))
    rng.shuffle(rows)
    cur.executemany("INSERT INTO trees_test.source VALUES (%s, %s, %s, %s, %s, %s, %s)", rows)
    objective, params = "binary:logistic", {"max_depth": int(rng.integers(1, 8)), "learning_rate": 0.3, "subsample": float(rng.choice([0.7, 1])), "seed": int(rng.integers(1000)), "max_bin": 32}
    cur.execute("SELECT millrace.create_model('trees_test.model', 'xgboost', 'SELECT * FROM trees_test.source', %s, label => 'label', entity => '{b,a}', categories => '{\"colour\": -1}')",
                (json.dumps({"rounds": 20, "objective": objective, **params}),))
    cur.execute("SELECT millrace.train('trees_test.model', split => '{\"by\": \"rows\", \"test\": 0.25, \"seed\": 7}', metrics => '{auc,logloss,error,rmse,mae}')")

    # the same rows, sorted; the split as the manual says it
    cur.execute("SELECT hash_record_extended(ROW(b, a), 7), label, colour, x, y, z FROM trees_test.source WHERE label IS NOT NULL ORDER BY b COLLATE \"C\", a")
    source = cur.fetchall()
    hashes, label = numpy.array([r[0] for r in source]), numpy.array([r[1] for r in source], dtype=numpy.float32)
    judges = hashes <= numpy.sort(hashes)[int(len(hashes) * 0.25 + 0.5) - 1]

    def matrix(chosen):
        colours = sorted({r[2] for r, c in zip(source, chosen) if c and r[2] is not None}, key=lambda c: c.encode())
        return numpy.array([[numpy.nan if r[2] is None else colours.index(r[2]) if r[2] in colours else -1, *(numpy.nan if v is None else float(v) for v in r[3:5]), r[5]] for r in source], dtype=numpy.float32)

    def fit(chosen):
        data, names = matrix(chosen), ["colour", "x", "y", "z"]
        booster = xgboost.train({"objective": objective, "tree_method": "hist", "nthread": threads, "verbosity": 0, **params}, xgboost.DMatrix(data[chosen], label[chosen], feature_names=names), 20)
        return lambda rows, margin: booster.predict(xgboost.DMatrix(data[rows], feature_names=names), output_margin=margin)

    cur.execute("SELECT array_agg(millrace.predict('trees_test.model', s, true) ORDER BY b COLLATE \"C\", a) FROM trees_test.source s WHERE label IS NOT NULL")
    found, same_library = cur.fetchone()[0], xgboost.__version__ == library(cur)
    if same_library:
        everything = numpy.ones(len(source), dtype=bool)
        check("trained trees are those that XGBoost trains", (bits(found) != bits(fit(everything)(everything, True))).any() and "margins differ")
        expected = metrics_of(fit(~judges)(judges, False), label[judges])
        cur.execute("SELECT metric, value FROM millrace.model_version_metric WHERE model = 'trees_test.model' AND version = 1")
        given = dict(cur.fetchall())
        check("metrics are numpy's", [(m, v, expected[m]) for m, v in given.items() if abs(v - expected[m]) > 1e-6] or len(given) != 5 and given)
    else:
        print(f"# XGBoost here is {xgboost.__version__}, and {library(cur)} trains: they are not compared")

    cur.execute("SELECT rows, rows_skipped FROM millrace.model_version_status WHERE model = 'trees_test.model'")
    check("rows without a label are skipped and counted", [cur.fetchone()] != [(len(rows), len(rows) - len(source))] and "they are not")
    cur.execute("CREATE TABLE trees_test.turned AS SELECT * FROM trees_test.source ORDER BY random(); TRUNCATE trees_test.source; INSERT INTO trees_test.source SELECT * FROM trees_test.turned")
    cur.execute("SELECT millrace.train('trees_test.model', like_version => 1)")
    cur.execute(f"SELECT count(DISTINCT t.trees) = 1 AND count(DISTINCT v.input_hash) = 1 FROM {state(cur)}_trees t, millrace.model_version_status v WHERE v.model = 'trees_test.model'")
    check("the order of rows changes nothing", cur.fetchone()[0] is not True and "it does")
    cur.execute("SELECT millrace.train('trees_test.model', search => '{\"early_stopping_rounds\": [3], \"rounds\": [500], \"max_depth\": [2, 6]}', trials => 3, split => '{\"by\": \"rows\"}')")
    cur.execute(f"SELECT rounds FROM {state(cur)}_trees ORDER BY version DESC LIMIT 1")
    kept = cur.fetchone()[0]
    check(f"training stops early ({kept} rounds)", not 1 <= kept < 400 and f"{kept} rounds")
    cur.execute("SELECT count(*), count(*) FILTER (WHERE chosen) FROM millrace.model_version_trial WHERE model = 'trees_test.model'")
    check("a search notes its trials", cur.fetchone() not in [(3, 1), (3, 2), (3, 3)] and "it does not")

    # evaluation sets never train; a gate judges by them
    cur.execute("SELECT millrace.train('trees_test.model', split => '{\"by\": \"rows\"}', refit => false)")
    cur.execute("SELECT value, pairs FROM millrace.model_version_metric WHERE model = 'trees_test.model' AND version = 4 AND metric = 'logloss'")
    then = cur.fetchone()
    cur.execute("SELECT value, pairs FROM millrace.evaluate('trees_test.model', 4, metrics => '{logloss}')")
    check("the evaluation set judges the same again", cur.fetchone() != then and "it does not")
    cur.execute("SELECT value, pairs FROM millrace.evaluate('trees_test.model', 4, 'SELECT * FROM trees_test.source', '{logloss}')")
    check("rows whose entity a version was trained on do not judge it", cur.fetchone() != then and "they do")
    check("a metric that is none is an error", fails(cur, "SELECT millrace.evaluate('trees_test.model', 4, metrics => '{map@10}')", (), "22023", "map@10"))
    gate = "SELECT millrace.promote('trees_test.model', %s, gate => 'new.logloss < old.logloss + 1000')"
    cur.execute(gate, (4,))
    check("no gate is passed by what has trained the version before", cur.fetchone()[0] is not False and "it is")
    cur.execute("SELECT millrace.promote('trees_test.model', 4), millrace.train('trees_test.model')")
    cur.execute(gate, (cur.fetchone()[1],))
    check("a gate is passed", cur.fetchone()[0] is not True and "it is not")
    check("a wrong label is told", fails(cur, "SELECT millrace.train('trees_test.model', split => '{\"by\": \"tables\", \"test\": \"SELECT * FROM trees_test.source WHERE a < 100\", \"train\": \"SELECT a, b, 7 AS label, colour, x, y, z::integer AS z FROM trees_test.source\"}')", (), "38000", "XGBoost cannot train: label must be"))
    cur.execute("UPDATE trees_test.source SET x = 'Infinity' WHERE a = (SELECT min(a) FROM trees_test.source WHERE label IS NOT NULL)")
    check("infinity is an error", fails(cur, "SELECT millrace.train('trees_test.model')", (), "22003", '"x"'))
    cur.execute("UPDATE trees_test.source SET x = 0 WHERE x = 'Infinity'")
    ends(cur)
    cur.execute("DELETE FROM trees_test.source")
    check("no rows are an error", fails(cur, "SELECT millrace.train('trees_test.model')", (), "55000", "no row"))
    drop(cur)


def split_by_time(cur, rng):
    """Rows from a time on judge, unless their entity has an earlier row or one without a time: then they take no part."""
    rows = [(int(rng.integers(300)), None if rng.random() < 0.05 else int(rng.integers(60)), float(numpy.float32(rng.normal())), float(numpy.float32(rng.normal()))) for _ in range(500)]
    cur.execute("DROP SCHEMA IF EXISTS trees_test CASCADE; CREATE SCHEMA trees_test; CREATE TABLE trees_test.source (id integer, at timestamptz, x real, label real)")
    cur.executemany("INSERT INTO trees_test.source VALUES (%s, '2024-01-01 UTC'::timestamptz + %s * interval '1 day', %s, %s)", rows)
    cur.execute("SELECT millrace.create_model('trees_test.model', 'xgboost', 'SELECT * FROM trees_test.source', '{\"rounds\": 2, \"objective\": \"reg:squarederror\"}', label => 'label', entity => '{id}')")
    wrong = None
    for since in (None, int(rng.integers(20, 55))):
        share, cut = float(rng.choice([0.1, 0.3])), since
        if since is None:
            cut = sorted(-1 if t is None else t for _, t, _, _ in rows)[len(rows) - int(share * len(rows) + 0.5)]
        early = {i for i, t, _, _ in rows if t is None or t < cut}
        judges = numpy.array([label for i, _, _, label in rows if i not in early])
        mean = numpy.mean([label for _, t, _, label in rows if t is None or t < cut])
        split = {"by": "time", **({"test": share} if since is None else {"since": str(numpy.datetime64("2024-01-01") + since) + "Z"})}
        cur.execute("BEGIN; SELECT millrace.train('trees_test.model', split => %s, metrics => '{mae}', refit => false)", (json.dumps(split),))
        version = cur.fetchone()[0]
        cur.execute("SELECT pairs, popularity FROM millrace.model_version_metric WHERE model = 'trees_test.model' AND version = %s", (version,))
        pairs, popularity = cur.fetchone()
        cur.execute("SELECT DISTINCT pairs FROM millrace.evaluate('trees_test.model', %s, 'SELECT * FROM trees_test.source')", (version,))
        if cur.fetchall() != [(pairs,)] or pairs != len(judges) or abs(popularity - numpy.abs(mean - judges).mean()) > 1e-9:
            wrong = f"{split}: {pairs} rows, not {len(judges)}; {popularity}"
        cur.execute("ROLLBACK")
    check("a split by time is as it is said to be", wrong)
    drop(cur)


def library(cur):
    cur.execute(f"SELECT library FROM {state(cur)}_trees LIMIT 1")
    return cur.fetchone()[0]


def state(cur):
    cur.execute("SELECT format('millrace_state.model_%s', id) FROM millrace.model WHERE relation = 'trees_test.model'::regclass")
    return cur.fetchone()[0]


def limit_memory(program):
    """Lets it have no more memory than it has, as its own user: who is root may not be allowed to."""
    owner = os.stat(f"/proc/{program}").st_uid
    subprocess.run((["runuser", "-u", pwd.getpwuid(owner).pw_name, "--"] if os.geteuid() == 0 != owner else []) + ["prlimit", f"--pid={program}", "--as=1048576"], check=True)


def ends(cur):
    """Searches that would take long are cancelled, one of their programs is killed or has no memory left, their backend is terminated."""
    endless = "SELECT millrace.train('trees_test.model', search => '{\"rounds\": [100000], \"max_depth\": [12]}', trials => 4, split => '{\"by\": \"rows\"}')"
    cur.execute("SELECT least(current_setting('max_parallel_maintenance_workers')::integer + 1, 4)")
    at_once = cur.fetchone()[0]
    for name, code, end in (("cancelled", "57014", lambda pid, program: cur.execute("SELECT pg_cancel_backend(%s)", (pid,))), ("killed", "38000", lambda pid, program: os.kill(program, 9) if os.geteuid() in (0, os.stat(f"/proc/{program}").st_uid) else cur.execute("SELECT 1")),
                            ("short of memory", "38000", lambda pid, program: limit_memory(program)),
                            ("terminated", "57P01", lambda pid, program: cur.execute("SELECT pg_terminate_backend(%s)", (pid,)))):
        other = psycopg2.connect("")
        other.autocommit = True
        pid = other.get_backend_pid()
        wrong = []

        def train_endless():
            try:
                other.cursor().execute(endless)
                wrong.append("it has ended by itself")
            except psycopg2.Error as error:
                # libpq may find the connection closed before it has read why
                if (error.pgcode or code) != code or name == "killed" and "signal 9" not in str(error):
                    wrong.append(f"{error.pgcode}: {error}")

        thread = threading.Thread(target=train_endless)
        thread.start()
        started = wait_for(lambda: [programs().get(pid, [])] if len(programs().get(pid, [])) == at_once else None)
        if not started:
            wrong.append(f"there are no {at_once} programs, but {programs()}")
            cur.execute("SELECT pg_terminate_backend(%s)", (pid,))
            started = [[]]
        running = started[0]
        cur.execute("SELECT count(*) FROM millrace.training_progress WHERE pid = %s AND model = 'trees_test.model'", (pid,))
        if cur.fetchone()[0] != 1:
            wrong.append("it is not in training_progress")
        if running:
            end(pid, running[-1])
        thread.join()
        if not wait_for(lambda: not set(running) & {p for ps in programs().values() for p in ps}):
            wrong.append(f"of processes {running} some go on")
        check(f"a search is {name}, and all of its programs end", "; ".join(wrong))
        other.close()
    cur.execute("SELECT count(*) FROM millrace.training_progress")
    check("nothing is left of them", cur.fetchone()[0] and "they are in training_progress")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--rows", type=int, default=10000)
    options = parser.parse_args()
    print(f"seed {options.seed}, XGBoost {xgboost.__version__}")
    connection = psycopg2.connect("")
    connection.autocommit = True
    cur = connection.cursor()
    cur.execute("CREATE EXTENSION IF NOT EXISTS millrace")
    numbers = numpy.random.default_rng(options.seed)
    margins(cur, numbers, options.rows)
    refused(cur, numbers)
    trainings(cur, numbers)
    split_by_time(cur, numbers)
    fuzz(cur, random.Random(options.seed), numbers, 300)
    if not cur.connection.closed:
        cur.execute("DROP SCHEMA IF EXISTS trees_test CASCADE")
    return failed != 0


sys.exit(main())
