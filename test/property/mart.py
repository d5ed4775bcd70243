#!/usr/bin/env python3
"""Marts under random histories: after each batch each mart equals its plain query.

Connects as libpq's environment says (a superuser of a server with millrace), makes a database of its own and
drops it.  Prints its seed; `mart.py --seed N` repeats a run.
"""
import json
import os
import sys
import threading

import psycopg2

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from property import drain, growing, histories, in_background, preloaded, wait  # noqa: E402

KEYS = 14

# Each mart: its query over {events} (one row an object) or {items} (several).
MARTS = {
    "global_events": "SELECT count(*) AS n, count(amount) AS amounts, sum(amount) AS total, avg(small) AS mean, count(DISTINCT city) AS cities FROM {events}",
    "global_items": "SELECT count(*) AS n, count(DISTINCT id) AS objects, sum(quantity) AS q FROM {items} HAVING count(*) > 3",
    "by_city": "SELECT city, count(*) AS n, sum(amount) AS total, avg(amount) AS mean, count(DISTINCT id) AS objects FROM {events} GROUP BY city",
    "by_amount": "SELECT amount, count(*) AS n FROM {events} GROUP BY amount",
    "by_two": "SELECT city, ok, sum(small) AS s2, sum(big) AS s8, sum(number) AS s4, avg(big) AS a8, avg(number) AS a4, bool_and(ok) AS every_ok, bool_or(number > 0) AS some FROM {events} GROUP BY 1, 2",
    "expressions": "SELECT at::date AS day, upper(city) AS city, (sum(price) / count(*))::numeric(14,2) AS mean, coalesce(sum(price), 0)::numeric(18,2) AS total, count(*) + 1 AS more FROM {events} GROUP BY 1, upper(city)",
    "filters": "SELECT city, count(*) FILTER (WHERE ok) AS n_ok, sum(amount) FILTER (WHERE number > 0) AS positive, count(DISTINCT id) FILTER (WHERE ok) AS objects_ok, count(DISTINCT number) FILTER (WHERE NOT ok) AS numbers_bad FROM {events} WHERE number IS DISTINCT FROM 3 GROUP BY city",
    "having": "SELECT city, sum(number) AS s FROM {events} GROUP BY city HAVING sum(number) > 0 OR count(*) > 2",
    "items": "SELECT city, product, count(DISTINCT id) AS objects, count(*) AS n, sum(price)::numeric(18,2) AS spent FROM {items} WHERE ok IS NOT FALSE GROUP BY city, product",
    "distincts": "SELECT product, count(DISTINCT city) AS cities, count(DISTINCT price) AS prices, count(DISTINCT id) AS objects, count(DISTINCT quantity % 2) AS parities, count(DISTINCT id) FILTER (WHERE quantity > 2) AS objects_2 FROM {items} GROUP BY product",
    "stored": "SELECT to_char(at, 'YYYY-MM') AS month, to_char(date_trunc('day', at), 'Dy') AS weekday, count(*) AS n FROM {events} GROUP BY 1, date_trunc('day', at)",
    "striped_stored": "SELECT at, to_char(at, 'YYYY-MM-DD HH24') AS hour, count(*) AS n FROM {events} GROUP BY at",
    "no_aggregate": "SELECT DISTINCT_ROW.city FROM {events} AS DISTINCT_ROW GROUP BY DISTINCT_ROW.city",
    "extremes": "SELECT city, min(amount) AS least, max(number) AS most, max(at) FILTER (WHERE ok) AS last_ok, min(upper(city)) AS name, count(DISTINCT number) AS numbers FROM {events} GROUP BY city",
    "global_extremes": "SELECT min(number) AS least, max(city) AS most, array_agg(DISTINCT small) AS smalls FROM {events}",
    "latest": "SELECT product, city, millrace.latest(price, quantity) AS price, millrace.latest(quantity, city) AS quantity FROM {items} GROUP BY 1, 2",
    "others": "SELECT city, array_agg(number ORDER BY number DESC, small) AS numbers, string_agg(DISTINCT city, ',') AS names, sum(DISTINCT small) AS smalls, percentile_cont(0.5) WITHIN GROUP (ORDER BY number) AS median, bit_or(number) FILTER (WHERE ok) AS bits FROM {events} GROUP BY city",
    "ties": "SELECT city, array_agg(number ORDER BY ok) AS numbers, string_agg(city, ',' ORDER BY number DESC) AS names FROM {events} GROUP BY city",
    "floats": "SELECT city, ok, millrace.exact_sum(ratio) AS total, millrace.exact_avg(ratio) AS mean, millrace.exact_sum((number / 7.0)::real) FILTER (WHERE number > 0) AS part, max(ratio) AS most FROM {events} GROUP BY city, ok",
    "float_sums": "SELECT city, sum(ratio) AS total, avg(ratio) AS mean, array_agg(number) AS numbers FROM {events} GROUP BY city",
    "striped": "SELECT product, city, count(*) AS n, count(DISTINCT id) AS objects, sum(price) AS total FROM {items} GROUP BY product, city",
    "global_striped": "SELECT count(*) AS n, sum(amount) AS total, avg(small) AS mean FROM {events}",
    "ordered": "SELECT city, count(*) AS n, max(number) AS most FROM {events} GROUP BY city",
    "bits": "SELECT small::integer::bit(4) AS bits, count(*) AS n, count(DISTINCT city) AS cities, sum(big) AS total FROM {events} GROUP BY 1",
    "constant_group": "SELECT 'all'::text AS what, count(*) AS n FROM {events} GROUP BY 'all'::text",
}


# Where a plain query says something else, or nothing certain.
PLAIN = {
    "ties": "SELECT city, array_agg(number ORDER BY ok, number) AS numbers, string_agg(city, ',' ORDER BY number DESC) AS names FROM {events} GROUP BY city",
    "float_sums": "SELECT city, millrace.exact_sum(ratio) AS total, millrace.exact_avg(ratio) AS mean, array_agg(number ORDER BY number) AS numbers FROM {events} GROUP BY city",
}
OPTIONS = {"striped": {"stripes": 3}, "striped_stored": {"stripes": 2}, "global_striped": {"stripes": 2}, "ordered": {"order_by": "most DESC NULLS LAST, n"}}


def decimal(rng):
    return rng.choice([None, None, "NaN", "Infinity", "-Infinity", "0", "1.50", "-2.25", "1e-3", "123456789012345678.125", "7", "-7"])


def event(rng):
    return {
        "city": rng.choice([None, "Riga", "Oslo", "riga", ""]),
        "amount": decimal(rng),
        "price": rng.choice([None, "NaN", "10.25", "-3.5", "0.01"]),
        "small": rng.choice([None, -3, 0, 7, 32767]),
        "number": rng.choice([None, -5, 0, 3, 2147483647]),
        "big": rng.choice([None, -9, 0, 4, 9223372036854775807]),
        "ratio": rng.choice([None, 0.1, -0.3, 1e300, 2.5e-310, 1 / 3, 1e16, 7]),
        "ok": rng.choice([None, True, False]),
        "at": rng.choice([None, "2026-01-05 23:30:00+00", "2026-01-06 00:30:00+00", "2026-02-01 12:00:00+00"]),
        "items": [
            {"product": rng.choice([None, "a", "b", "c"]), "price": rng.choice([None, "1.10", "NaN", "-4"]), "quantity": rng.choice([None, 1, 2, 3])}
            for _ in range(rng.choice([0, 1, 1, 2, 4]))
        ],
    }


def declare(cursor):
    cursor.execute("CREATE EXTENSION millrace; CREATE SCHEMA stg; CREATE SCHEMA cdm")
    cursor.execute("SELECT millrace.create_stream('feed')")
    common = {"city": "$.city", "ok": ["$.ok", "boolean"]}
    cursor.execute(
        "SELECT millrace.create_staging('stg.events', stream => 'feed', timezone => 'Europe/Riga', key => %s, columns => %s)",
        ('{"id": ["$key", "bigint"]}',
         json.dumps(dict(common, amount=["$.amount", "numeric"], price=["$.price", "numeric(12,2)"], small=["$.small", "smallint"],
                         number=["$.number", "integer"], big=["$.big", "bigint"], ratio=["$.ratio", "double precision"], at=["$.at", "timestamptz"]))))
    cursor.execute(
        "SELECT millrace.create_staging('stg.items', stream => 'feed', for_each => '$.items[*]', key => %s, columns => %s)",
        ('{"id": ["$key", "bigint"]}',
         json.dumps(dict(common, product="@.product", price=["@.price", "numeric(12,2)"], quantity=["@.quantity", "integer"]))))


def create(cursor, name, replace=False, query=None):
    cursor.execute("SET client_min_messages = error")
    options = dict(OPTIONS.get(name, {}), replace=replace)
    cursor.execute("SELECT millrace.create_mart(%s, %s, " + ", ".join(f"{o} => %s" for o in options) + ")",
                   [f"cdm.{name}", (query or MARTS[name]).format(events="stg.events", items="stg.items")] + list(options.values()))


def check(cursor, name, step, query=None):
    query = (query or PLAIN.get(name) or MARTS[name]).format(events="stg.events", items="stg.items")
    cursor.execute("SET timezone = 'Europe/Riga'" if "stg.events" in query else "SET timezone = 'UTC'")
    cursor.execute(f"SELECT 'missing', to_jsonb(d) FROM ({query} EXCEPT ALL SELECT * FROM cdm.{name}) AS d "
                   f"UNION ALL SELECT 'unexpected', to_jsonb(d) FROM (SELECT * FROM cdm.{name} EXCEPT ALL ({query})) AS d")
    differences = cursor.fetchall()
    cursor.execute("SET timezone = 'America/New_York'")     # no setting of the session may matter
    cursor.execute("SELECT missing, unexpected, example FROM millrace.verify(%s::regclass)", (f"cdm.{name}",))
    verified = cursor.fetchone()
    if differences or verified[:2] != (0, 0):
        print(f"mart {name} differs at step {step}: {differences} {verified}")
        return False
    return True


def check_state(cursor, step):
    cursor.execute("SELECT relname FROM pg_class WHERE relnamespace = 'millrace_state'::regnamespace AND relkind = 'r' AND relname LIKE 'mart%'")
    for (name,) in cursor.fetchall():
        cursor.execute("SELECT count(*) FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'g1' AND atttypid = 'smallint'::regtype",
                       (f"millrace_state.{name}",))
        limit = "n < 0" if cursor.fetchone()[0] else "n <= 0"
        cursor.execute("SELECT FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'stripe'", (f"millrace_state.{name}",))
        if cursor.fetchone() is not None:
            continue
        if "values" in name:
            limit = "n <= 0"
        cursor.execute(f"SELECT count(*) FROM millrace_state.{name} WHERE {limit}")
        if cursor.fetchone()[0]:
            print(f"{name} has groups without rows at step {step}")
            return False
    return True


def push(cursor, rng, keys):
    value = None if rng.random() < 0.2 else json.dumps(event(rng))
    cursor.execute("SELECT millrace.push('feed', %s, key => %s)", (value, str(rng.randrange(keys))))


def two_workers(admin, database, cursor, rng, pushes):
    """Two workers whose batches touch the same groups, and make the same new ones, at once."""
    cursor.execute("SELECT millrace.create_stream('feed', workers => 2, replace => true)")
    with in_background(admin, database):
        for _ in range(2):
            cursor.execute("BEGIN")
            for _ in range(pushes):
                push(cursor, rng, KEYS * 20)
            cursor.execute("COMMIT")
            cursor.execute("SELECT millrace.start_stream('feed')")
            for _ in range(pushes):
                push(cursor, rng, KEYS)
            drain(cursor)
    return all([check(cursor, name, "end") for name in MARTS] + [check_state(cursor, "end")])


WIDE = "SELECT g, h, count(*) AS n, count(DISTINCT id) AS objects, sum(x) AS total FROM stg.wide GROUP BY g, h"
WIDE_MARTS = {"wide": WIDE, "wide_results": "SELECT g, max(x) AS most, count(DISTINCT h) AS hs FROM stg.wide GROUP BY g"}


def run_wide(admin, database, cursor, rng, count):
    """Two workers with large batches of which each makes and changes many groups of the other: neither waits in a circle."""
    cursor.execute("SELECT millrace.create_stream('wide', workers => 2)")
    cursor.execute("SELECT millrace.create_staging('stg.wide', stream => 'wide', key => %s, columns => %s)",
                   ('{"id": ["$key", "bigint"]}', '{"g": ["$.g", "integer"], "h": "$.h", "x": ["$.x", "integer"]}'))
    for name, query in WIDE_MARTS.items():
        cursor.execute("SELECT millrace.create_mart(%s, %s)", (f"cdm.{name}", query))
    with in_background(admin, database):
        for _ in range(2):
            values = [json.dumps({"g": rng.randrange(400), "h": rng.choice("abc"), "x": rng.randrange(100)}) for _ in range(count)]
            keys = [str(rng.randrange(count)) for _ in range(count)]
            cursor.execute("SELECT count(millrace.push('wide', v, key => k)) FROM unnest(%s, %s) AS u (v, k)", (values, keys))
            cursor.execute("SELECT millrace.start_stream('wide')")
            drain(cursor, "wide")
    cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    if cursor.fetchone()[0]:
        print("the workers deadlocked")
        return False
    return all([check(cursor, name, "wide", query) for name, query in WIDE_MARTS.items()])


KEYED = {"name": "$.name", "code": "$.code", "device": ["$.device", "uuid"], "price": ["$.price", "numeric"], "number": ["$.number", "bigint"], "day": ["$.day", "date"]}
KEYED_MARTS = ["name, code", "code, name", "device, number", "number, device", "price, code", "code, price", "day, number", "number, day", "device, code", "name, number", "code"]


def keyed(rng):
    """What keys are made of: values that begin alike, that others begin with, that are many, and none."""
    return {
        "name": rng.choice([None, "customer", "customer-1", "customer-10", "customer-2", "customer\x7f", "client"]),
        "code": rng.choice([None, "", "customer", "%032x" % rng.getrandbits(128), "%x" % rng.randrange(1 << 16), "customer-%d" % rng.randrange(3000), "\xff\u20ac%d" % rng.randrange(300)]),
        "device": rng.choice([None, "11111111-1111-1111-ffff-%012x" % rng.randrange(3), "%08x-0000-0000-0000-%012x" % (rng.getrandbits(32), rng.getrandbits(8))]),
        "price": rng.choice([None, "NaN", "1", "1.0", "%d.%02d" % (rng.randrange(3), rng.randrange(100))]),
        "number": rng.choice([None, -9223372036854775808, 9223372036854775807, rng.randrange(-3000, 3000)]),
        "day": rng.choice([None, "-infinity", "infinity", "20%02d-%02d-%02d" % (rng.randrange(100), rng.randrange(1, 13), rng.randrange(1, 29))]),
    }


def run_keyed(cursor, rng, count):
    """Groups of two values, so many that each of their indexes has pages above its leaves."""
    cursor.execute("SELECT millrace.create_stream('keyed')")
    cursor.execute("SELECT millrace.create_staging('stg.keyed', stream => 'keyed', key => %s, columns => %s)", ('{"id": ["$key", "bigint"]}', json.dumps(KEYED)))
    marts = {f"keyed_{number}": f"SELECT {names}, count(*) AS n FROM stg.keyed GROUP BY {names}" for number, names in enumerate(KEYED_MARTS)}
    for name, query in marts.items():
        cursor.execute("SELECT millrace.create_mart(%s, %s)", (f"cdm.{name}", query))
    for size in (count, count, count // 20, 1):
        values = [json.dumps(keyed(rng)) for _ in range(size)]
        keys = [str(rng.randrange(2 * count)) for _ in range(size)]
        cursor.execute("SELECT count(millrace.push('keyed', v, key => k)) FROM unnest(%s, %s) AS u (v, k)", (values, keys))
        cursor.execute("SELECT * FROM millrace.run_stream('keyed')")
        if not all([check(cursor, name, f"keyed, {size}", query) for name, query in marts.items()]):
            return False
    return check_state(cursor, "keyed")


def run_moved(database, cursor, rng, name, count, prefix=""):
    """Groups that all go and others that come, in an index whose pages are taken away, used again and made anew meanwhile by somebody else; with
    a long prefix, in one of many levels, in batches that split pages on each of them."""
    cursor.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
    cursor.execute("SELECT millrace.create_stream(%s)", (name,))
    cursor.execute("SELECT millrace.create_staging(%s, stream => %s, key => %s, columns => %s)",
                   ("stg." + name, name, '{"id": ["$key", "bigint"]}', '{"g": ["$.g", "%s"]}' % ("text" if prefix else "bigint")))
    query = f"SELECT g, count(*) AS n FROM stg.{name} GROUP BY g"
    cursor.execute("SELECT millrace.create_mart(%s, %s)", ("cdm." + name, query))
    cursor.execute("SELECT 'millrace_state.mart_' || id FROM millrace.target WHERE relation = %s::regclass", ("cdm." + name,))
    state = cursor.fetchone()[0]
    group = f"'{prefix}' || (10 * k + %s)" if prefix else "10 * k + %s"
    other = psycopg2.connect(dbname=database)
    other.autocommit = True
    for step in range(30):
        # the groups of half of the objects stay; the others' come after them, go before them, then far after them, and come back
        first, last = (0, count) if step == 0 else (count // 2, rng.choice([count * 6 // 10, count, count]))
        cursor.execute(f"SELECT count(millrace.push(%s, json_build_object('g', {group})::text, key => k::text)) FROM generate_series(%s, %s) AS k",
                       (name, (0, -20, 20)[step % 3] * count + rng.randrange(10), first, last))
        # who comes back knows the pages as they were when he left
        taken_by = cursor if step % 3 == 0 and rng.random() < 0.9 else other.cursor()
        taken_by.execute("SELECT * FROM millrace.run_stream(%s)", (name,))
        cursor.execute("SELECT bt_index_check(indexrelid, true) FROM pg_index WHERE indrelid = %s::regclass", (state,))
        if not check(cursor, name, f"{name} {step}", query):
            return False
        for _ in range(2):
            cursor.execute(rng.choice([f"VACUUM {state}"] * 9 + [f"REINDEX TABLE {state}"]))
            cursor.execute("SELECT txid_current()")
    other.close()
    return check_state(cursor, name)


def check_gone(database, cursor):
    """A batch that meets a group that somebody is just making, after it had found that there is none, makes it when he gives up."""
    cursor.execute("SELECT millrace.create_stream('gone')")
    cursor.execute("SELECT millrace.create_staging('stg.gone', stream => 'gone', key => %s, columns => %s)", ('{"id": ["$key", "bigint"]}', '{"g": "$.g"}'))
    cursor.execute("SELECT millrace.create_mart('cdm.gone', 'SELECT g, count(*) AS n FROM stg.gone GROUP BY g')")
    cursor.execute("SELECT * FROM millrace.run_stream('gone')")
    cursor.execute("SELECT 'millrace_state.mart_' || id FROM millrace.target WHERE relation = 'cdm.gone'::regclass")
    state = cursor.fetchone()[0]
    cursor.execute("SELECT millrace.push('gone', '{\"g\": \"a\"}'::text, key => '1'), millrace.push('gone', '{\"g\": \"b\"}'::text, key => '2')")
    others = [psycopg2.connect(dbname=database) for _ in range(2)]
    batch = psycopg2.connect(dbname=database)
    batch.autocommit = True
    waits = f"SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pid = {batch.info.backend_pid}"
    failed = []

    def take():
        try:
            batch.cursor().execute("SELECT * FROM millrace.run_stream('gone')")
        except psycopg2.Error as error:
            failed.append(error)

    thread = threading.Thread(target=take)
    others[0].cursor().execute(f"INSERT INTO {state} (g1, n) VALUES ('a', 1)")
    thread.start()
    wait(cursor, waits, "the batch to wait for group a")
    others[1].cursor().execute(f"INSERT INTO {state} (g1, n) VALUES ('b', 1)")
    others[0].rollback()
    wait(cursor, f"SELECT EXISTS ({waits.replace('count(*) > 0', '')} AND transactionid = (SELECT transactionid FROM pg_locks WHERE granted AND locktype = 'transactionid' "
         f"AND pid = {others[1].info.backend_pid}))", "the batch to wait for group b")
    others[1].rollback()
    thread.join(60)
    if thread.is_alive():
        print("the batch does not end when those who made its groups gave up")
        cursor.execute("SELECT pg_terminate_backend(%s)", (batch.info.backend_pid,))
        thread.join()
    for connection in others + [batch]:
        connection.close()
    cursor.execute("SELECT g, n FROM cdm.gone ORDER BY g")
    rows = cursor.fetchall()
    if failed or rows != [("a", 1), ("b", 1)]:
        print(f"groups that others gave up: {rows}, {failed}")
    return not failed and rows == [("a", 1), ("b", 1)]


def run(admin, database, cursor, rng, steps, pushes):
    declare(cursor)
    for step, made in growing(cursor, rng, steps, MARTS, lambda name: create(cursor, name), lambda: push(cursor, rng, KEYS)):
        if rng.random() < 0.1:
            cursor.execute("SELECT * FROM millrace.rebuild(%s::regclass)", (f"cdm.{rng.choice(made)}",))
        if not all([check(cursor, name, step) for name in made] + [check_state(cursor, step)]):
            return False
    if preloaded(admin) and not (two_workers(admin, database, cursor, rng, pushes) and run_wide(admin, database, cursor, rng, pushes * 20)):
        return False
    if not (run_keyed(cursor, rng, pushes * 20) and run_moved(database, cursor, rng, "moved", pushes * 20)):
        return False
    prefix = "".join(rng.choices("0123456789abcdef", k=600))
    return run_moved(database, cursor, rng, "deep", pushes * 5, prefix) and check_gone(database, cursor)


if __name__ == "__main__":
    histories("mart", "marts equal their queries", run, 3, steps=40, pushes=300)
