#!/usr/bin/env python3
"""Erasing under random histories: what is left equals what the same messages without the erased ones make, and replays bring nothing back.

Stream "a" gets a random history, from which people are erased at random moments, some of it still in the inbox or in dead letters, and afterwards
replays; stream "b" gets only what was never erased; both keep logs.  Stream "c" is as "a" without logs, so that it does not know which orders
were somebody's before: nothing in it names the erased any more, and all that "b" holds is there, but for pairs of which an erased order spoke, too, and
no staged row does, and it names somebody only where a table in which he was not looked for did.

Some tables of "a" are declared in the middle, and filled from its logs.  First everything by run_stream(), then (when the library is preloaded) "a" by
two workers in the background, without "c", and one of these tables is half filled when somebody is erased.

Connects as libpq's environment says (a superuser of a server with millrace), makes a database of its own and
drops it.  Prints its seed; `erase.py --seed N` repeats a run.
"""
import argparse
import json
import random
import sys
import time

import psycopg2

USERS = ["u1", "u2", "u3", "u4", "u5"]
PRODUCTS = ["p1", "p2", "p3", "p4"]

VAULT = {
    "h_order": "order_id", "h_user": "user_id", "h_product": "product",
    "l_user": "order_id, user_id", "l_product": "order_id, product", "l_bought": "user_id, product",
    "s_order": "order_id, n", "s_user": "user_id, city", "s_product": "product, label", "s_all": "user_id, city",
    "s_phone": "order_id, product, quantity", "e_product": "order_id, product", "e_user": "order_id, user_id",
}
MARTS = {
    "by_user": "SELECT user_id, count(*) AS n, sum(n) AS total, min(n) AS least, max(city) AS last_city, string_agg(DISTINCT city, ',' ORDER BY city) AS cities FROM {s}.o GROUP BY user_id",
    "by_product": "SELECT product, count(DISTINCT order_id) AS orders, sum(quantity) AS q, count(DISTINCT user_id) AS users FROM {s}.i GROUP BY product",
    "all": "SELECT count(*) AS n FROM {s}.i",
}

# Declared later, in an order in which they stand on each other.
LATE = {"x_user": "user_id", "x_bought": "user_id, product", "y_user": "user_id, city", "y_phone": "order_id, product, quantity", "y_product": "order_id, product"}
VAULT.update(LATE)


def declare(call, s, log, workers):
    call(f"CREATE SCHEMA {s}")
    call("SELECT millrace.create_stream(%s, workers => %s)", (s, workers))
    log = f"log => true, log_partition => '{log}'" if log else "log => false"
    common = f"""key => '{{"order_id": [["$.id", "$key"], "bigint"]}}', version => '["$.v", "bigint"]', deleted => $$ op = 'D' $$, {log}"""
    call(f"""SELECT millrace.create_staging('{s}.o', stream => '{s}', {common},
             columns => '{{"op": "$.op", "user_id": "$.user", "city": "$.city", "n": ["$.n", "integer"]}}')""")
    call(f"""SELECT millrace.create_staging('{s}.i', stream => '{s}', for_each => '$.items[*]', {common},
             columns => '{{"op": "$.op", "user_id": "$.user", "product": "@.p", "label": "@.l", "quantity": ["@.q", "integer"]}}')""")
    # Knows nothing of users: its objects are found by their key.
    call(f"""SELECT millrace.create_staging('{s}.k', stream => '{s}', {common.replace('order_id', 'id')}, columns => '{{"op": "$.op", "status": "$.status"}}')""")
    call(f"SELECT millrace.create_hub('{s}.h_order', source => '{s}.o', business_key => '{{order_id}}')")
    call(f"SELECT millrace.create_hub('{s}.h_user', source => '{s}.o', business_key => '{{user_id}}')")
    call(f"SELECT millrace.create_hub('{s}.h_product', source => '{s}.i', business_key => '{{product}}')")
    call(f"SELECT millrace.create_link('{s}.l_user', source => '{s}.o', hubs => '{{{s}.h_order, {s}.h_user}}')")
    call(f"SELECT millrace.create_link('{s}.l_product', source => '{s}.i', hubs => '{{{s}.h_order, {s}.h_product}}')")
    call(f"SELECT millrace.create_link('{s}.l_bought', source => '{s}.i', hubs => '{{{s}.h_user, {s}.h_product}}')")
    call(f"SELECT millrace.create_satellite('{s}.s_order', source => '{s}.o', parent => '{s}.h_order', attributes => '{{n}}')")
    call(f"SELECT millrace.create_satellite('{s}.s_user', source => '{s}.o', parent => '{s}.h_user', attributes => '{{city}}')")
    call(f"SELECT millrace.create_satellite('{s}.s_all', source => '{s}.o', parent => '{s}.h_user', attributes => '{{city}}', history => 'all')")
    call(f"SELECT millrace.create_satellite('{s}.s_product', source => '{s}.i', parent => '{s}.h_product', attributes => '{{label}}')")
    call(f"SELECT millrace.create_satellite('{s}.s_phone', source => '{s}.i', parent => '{s}.h_order', kind => 'multi_active', sub_key => '{{product}}', attributes => '{{quantity}}')")
    call(f"SELECT millrace.create_satellite('{s}.e_product', source => '{s}.i', parent => '{s}.l_product', kind => 'effectivity', driving_key => '{{order_id}}')")
    call(f"SELECT millrace.create_satellite('{s}.e_user', source => '{s}.o', parent => '{s}.l_user', kind => 'effectivity', driving_key => '{{user_id}}')")
    for name, query in MARTS.items():
        call("SELECT millrace.create_mart(%s, %s)", (f"{s}.m_{name}", query.format(s=s)))


def declare_late(call, s):
    call(f"SELECT millrace.create_hub('{s}.x_user', source => '{s}.o', business_key => '{{user_id}}')")
    call(f"SELECT millrace.create_link('{s}.x_bought', source => '{s}.i', hubs => '{{{s}.x_user, {s}.h_product}}')")
    call(f"SELECT millrace.create_satellite('{s}.y_user', source => '{s}.o', parent => '{s}.x_user', attributes => '{{city}}')")
    call(f"SELECT millrace.create_satellite('{s}.y_phone', source => '{s}.i', parent => '{s}.h_order', kind => 'multi_active', sub_key => '{{product}}', attributes => '{{quantity}}')")
    call(f"SELECT millrace.create_satellite('{s}.y_product', source => '{s}.i', parent => '{s}.l_product', kind => 'effectivity', driving_key => '{{order_id}}')")


def message(rng, number):
    order = rng.randrange(12)
    op = rng.choice("UUUUUUD")
    user = USERS[order % 5] if rng.random() < 0.8 else rng.choice(USERS + [None])
    if op == "D":
        return order, None, number, {"id": order, "v": number, "op": "D"}
    return order, user, number, {
        "id": order, "v": number, "op": op, "user": user, "city": rng.choice([None, "Riga", "Oslo"]), "status": rng.choice(["new", "paid"]),
        "n": rng.choice([1, 2, 3, "bad"]) if rng.random() < 0.3 else number,
        "items": [{"p": p, "l": rng.choice("xyz"), "q": rng.choice([1, 2, "bad"]) if rng.random() < 0.1 else rng.randrange(5)}
                  for p in rng.sample(PRODUCTS, rng.choice([0, 1, 1, 2, 3]))]}


def rows(call, query):
    call(query)
    return [json.dumps(row, default=str) for row in call.cursor.fetchall()]


class Caller:
    def __init__(self, cursor):
        self.cursor = cursor

    def __call__(self, query, arguments=None):
        self.cursor.execute(query, arguments)


def compare(call, what, left, right, subset=False):
    l, r = sorted(rows(call, left)), sorted(rows(call, right))
    if l == r or (subset and set(r) <= set(l)):
        return True
    print(f"{what} differs:\n  {[x for x in l if x not in r]}\n  {[x for x in r if x not in l]}\n  ({len(l)} and {len(r)} rows)")
    return False


def check(call, erased_objects, erased_users, others):
    good = True
    for other in others:
        some = other == "c"
        for table, columns in (("o", "order_id, user_id, city, n, _version"), ("i", "order_id, _element, user_id, product, label, quantity, _version"), ("k", "id, status, _version")):
            good &= compare(call, f"{other}.{table}", f"SELECT {columns} FROM {other}.{table}", f"SELECT {columns} FROM b.{table}", some)
            if other == "a":
                good &= compare(call, f"log of {table}", f"SELECT DISTINCT {columns}, _rows, _deleted FROM a.{table}_log", f"SELECT DISTINCT {columns}, _rows, _deleted FROM b.{table}_log")
            ids = []
            for s in (other, "b"):
                call("SELECT id FROM millrace.staging WHERE relation = %s::regclass", (f"{s}.{table}",))
                ids.append(call.cursor.fetchone()[0])
            good &= compare(call, f"objects of {table}", *(f"SELECT k1, version, flags FROM millrace_state.object_{i}" for i in ids), some)
        for name in MARTS:
            if not some:
                good &= compare(call, f"{other}.m_{name}", f"SELECT * FROM {other}.m_{name}", f"SELECT * FROM b.m_{name}")
            call(f"SELECT missing, unexpected FROM millrace.verify('{other}.m_{name}')")
            if call.cursor.fetchone() != (0, 0):
                print(f"{other}.m_{name} differs from its query")
                good = False
        good &= compare(call, f"letters of {other}", *(
            f"SELECT split_part(staging, '.', 2), kind, element, encode(value, 'escape') FROM millrace.dead_letter WHERE stream = '{s}'" for s in (other, "b")), some)
        for name, columns in VAULT.items():
            if some and name in LATE:
                continue
            if not some or name[0] in "hl":
                # Without a log only staged rows tell that a pair is also somebody else's.
                staged = f" INTERSECT SELECT {columns} FROM c.i" if some and name == "l_bought" else ""
                good &= compare(call, f"{other}.{name}", f"SELECT {columns} FROM {other}.{name}_current", f"SELECT {columns} FROM b.{name}_current{staged}", some)
            if "user_id" in columns and erased_users:
                still = f" EXCEPT SELECT {columns} FROM still" if some and name in ("h_user", "l_bought") else ""
                good &= compare(call, f"{other}.{name} of the erased", f"SELECT {columns} FROM {other}.{name}_current WHERE user_id = ANY ('{{{','.join(erased_users)}}}'){still}", "SELECT 1 WHERE false")
            if "order_id" in columns and erased_objects and not some:
                good &= compare(call, f"{other}.{name} of the erased", f"SELECT {columns} FROM {other}.{name}_current WHERE order_id IN ({','.join(map(str, erased_objects))})", "SELECT 1 WHERE false")
    call("SELECT relname FROM pg_class WHERE relnamespace = 'millrace_state'::regnamespace AND relname LIKE 'erase%'")
    if call.cursor.fetchall():
        print("an erasure left tables behind")
        good = False
    return good


def wait(call, query, wanted=True):
    deadline = time.time() + 240
    while True:
        call(query)
        found = call.cursor.fetchone()[0]
        if found == wanted:
            return
        if time.time() > deadline:
            raise Exception(f"waited in vain for {query} to give {wanted}, not {found}")
        time.sleep(0.005)


def stop_half_filled(call, rng):
    """Declares the late tables, and stops the filling of one of them somewhere; its name, or None when it was faster."""
    name = f"a.{rng.choice(list(LATE))}"
    declare_late(call, "a")
    wait(call, f"SELECT state IN ('filling', 'failed', 'done') AND chunks >= {rng.randrange(1, 25)} OR state = 'done' FROM millrace.backfill_status WHERE relation = '{name}'")
    try:
        call("SELECT millrace.pause_backfill(%s)", (name,))
    except psycopg2.errors.ObjectNotInPrerequisiteState:
        return None
    return name


def history(call, rng, steps, background):
    """The messages, those who are erased and their orders; when somebody was erased, a table was half filled or not."""
    others = "a" if background else "ac"
    sent = []
    erased_objects, erased_users = set(), set()
    late = rng.randrange(steps // 3, steps - 5)
    half = None

    def push(s, m):
        order, _, number, payload = m
        call("SELECT millrace.push(%s, %s::text, key => %s)", (s, json.dumps(payload) if payload is not None else None, str(order)))

    def take(streams):
        for s in streams:
            if not background or s == "b":
                call("SELECT millrace.run_stream(%s)", (s,))
        if background:
            wait(call, "SELECT NOT EXISTS (SELECT FROM millrace.inbox) AND NOT EXISTS (SELECT FROM millrace.target WHERE state <> 'active')")

    def erase(user):
        for s in others:
            named = rng.choice([s, f"{s}.o"])
            call("SELECT * FROM millrace.erase(%s, %s)", (named, json.dumps({"user_id": user})))
            if named == "c.o":
                # Rows of c.i may be older and name him, because it could not take what c.o took.
                call("INSERT INTO still SELECT user_id, product FROM c.i WHERE user_id = %s", (user,))
        if user not in erased_users:
            # Messages by somebody erased before never came.
            erased_objects.update(m[0] for m in sent if m[1] == user)
        erased_users.add(user)

    for step in range(steps):
        for _ in range(rng.randrange(8)):
            m = rng.choice(sent) if sent and rng.random() < 0.2 else message(rng, rng.randrange(1, 200))
            sent.append(m)
            for s in others:
                push(s, m)
        if step == late and background:
            half = stop_half_filled(call, rng)
            # Of whom the half that is filled speaks.
            erase(rng.choice([m[1] for m in sent[:15] if m[1]] or USERS))
        elif step == late:
            declare_late(call, "a")
        elif half and rng.random() < 0.3:
            call("SELECT millrace.resume_backfill(%s)", (half,))
            half = ""
        if not background and rng.random() < 0.7:
            take("ac")
        if rng.random() < 0.06 and len(erased_users) < 2:
            erase(rng.choice(USERS))
    if half:
        call("SELECT millrace.resume_backfill(%s)", (half,))
    for m in sent:
        if m[0] not in erased_objects and m[1] not in erased_users:
            push("b", m)
    take(others + "b")
    good = check(call, erased_objects, erased_users, others)
    if good:
        # What came before comes again, in another order.
        for m in rng.sample(sent, len(sent)):
            for s in others:
                push(s, m)
            if m[0] not in erased_objects and m[1] not in erased_users:
                push("b", m)
        take(others + "b")
        good = check(call, erased_objects, erased_users, others)
    if not good:
        print(f"erased {sorted(erased_users)} with orders {sorted(erased_objects)}")
    return good, half is not None


def run(seed, steps):
    admin = psycopg2.connect("")
    admin.autocommit = True
    control = admin.cursor()
    control.execute("SHOW shared_preload_libraries")
    good = True
    for mode in ["session"] + ["background"] * ("millrace" in control.fetchone()[0]):
        rng = random.Random(seed)
        background = mode == "background"
        database = f"erase_{seed}_{mode}"
        control.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        control.execute(f"CREATE DATABASE {database} TEMPLATE template0")
        connection = psycopg2.connect(dbname=database)
        connection.autocommit = True
        call = Caller(connection.cursor())
        half = None
        try:
            call("SET client_min_messages = error")
            call("CREATE EXTENSION millrace")
            declare(call, "a", rng.choice(["none", "day"]), 2 if background else 1)
            declare(call, "b", "none", 1)
            declare_late(call, "b")
            if not background:
                declare(call, "c", None, 1)
            call("CREATE TABLE still (user_id text, product text)")
            if background:
                control.execute(f"ALTER SYSTEM SET millrace.databases = '{database}'")
                control.execute("ALTER SYSTEM SET millrace.backfill_rows = 1")
                control.execute("SELECT pg_reload_conf()")
                call("SELECT millrace.start_stream('a')")
                call("SELECT millrace.run_stream('b')")
            good, half = history(call, rng, steps, background)
        finally:
            connection.close()
            if background:
                control.execute("ALTER SYSTEM RESET millrace.databases")
                control.execute("ALTER SYSTEM RESET millrace.backfill_rows")
                control.execute("SELECT pg_reload_conf()")
                print(f"# somebody was erased while a table was {'half filled' if half else 'being filled or just filled'}")
        if not good:
            print(f"mode {mode}, database {database}")
            break
        control.execute(f"DROP DATABASE {database} WITH (FORCE)")
    admin.close()
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    for i in range(options.runs):
        seed = options.seed + i
        print(f"seed {seed}", flush=True)
        if not run(seed, options.steps):
            sys.exit(1)
    print("what is left is what was never erased")


if __name__ == "__main__":
    main()
