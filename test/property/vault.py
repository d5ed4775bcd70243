#!/usr/bin/env python3
"""The vault under random histories: hubs and links by business key and satellites by their current content equal a recompute in Python.

A history of versions of a few objects is delivered in random order, some of it twice, in batches of random size: first by
run_stream(), then (when the library is preloaded) by two workers in the background while it is being pushed.  A vault that
is declared afterwards over a staging table with a log has to end as the one that was there all the time.

Connects as libpq's environment says (a superuser of a server with millrace), makes a database of its own and
drops it.  Prints its seed; `vault.py --seed N` repeats a run.
"""
import argparse
import collections
import decimal
import hashlib
import json
import random
import struct
import sys
import time
import uuid

import psycopg2

DELETED = b"\xff" * 16


def digest(encoded):
    value = bytearray(hashlib.sha256(encoded).digest()[:16])
    value[6] = value[6] & 0x0F | 0x80
    value[8] = value[8] & 0x3F | 0x80
    return bytes(value)


def encode(value):
    if value is None:
        return struct.pack(">i", -1)
    text = value.encode()
    return struct.pack(">i", len(text)) + text


def hash_key(*values):
    return digest(b"".join(encode(value) for value in values))


def hashdiff(*attributes):
    return digest(b"".join(struct.pack(">i", number + 1) + encode(value) for number, value in enumerate(attributes) if value is not None))


def number(text):
    """A numeric without trailing zeros, as it is hashed and compared."""
    return None if text is None else format(decimal.Decimal(text).normalize(), "f")


def boolean(value):
    return None if value is None else "t" if value else "f"


def time_text(minute):
    return f"2026-01-{1 + minute // 1440:02d} {minute % 1440 // 60:02d}:{minute % 60:02d}:00+00"


def history(rng, objects, versions):
    messages = []
    for _ in range(versions):
        messages.append({
            "id": rng.randrange(objects),
            "minute": rng.randrange(versions // 2),     # few enough for ties
            "op": rng.choice("UUUUUUD"),
            "user": rng.choice([None, "ann", "bob", "cy||d", "æ"]),
            "seller": rng.choice([None, "ann", "bob"]),
            "name": rng.choice([None, "", "Ann", "ann "]),
            "city": rng.choice([None, "Riga", "Oslo"]),
            "amount": rng.choice([None, "1.0", "1.00", "-2.5", "1000"]),
            "ok": rng.choice([None, True, False]),
            "items": [{"product": rng.choice([None, "a", "b", "c"]), "label": rng.choice([None, "x", "y"]), "quantity": rng.choice([None, 1, 2])}
                      for _ in range(rng.choice([0, 1, 1, 2, 3]))],
        })
    return messages


def payload(message):
    return json.dumps({"id": message["id"], "at": time_text(message["minute"]), "op": message["op"], "user": {"id": message["user"], "name": message["name"]},
                       "seller": message["seller"], "city": message["city"], "amount": message["amount"], "ok": message["ok"], "items": message["items"]})


def expected(messages):
    """What the vault has to hold when all of the messages have come, in whatever order."""
    hubs = {name: set() for name in ("h_order", "h_user", "h_product", "h_place")}
    links = {"l_order_user": set(), "l_trade": set(), "l_order_product": set()}
    satellites = {name: {} for name in ("s_order", "s_user", "s_place", "s_product", "s_line")}

    def assert_content(name, parent, minute, hashed, content):
        last = satellites[name].get(parent)
        if last is None or (minute, hashed) > last[0]:
            satellites[name][parent] = ((minute, hashed), content)

    for m in messages:
        order, minute = str(m["id"]), m["minute"]
        if m["op"] == "D":
            assert_content("s_order", (order,), minute, DELETED, None)
            continue
        amount, ok = number(m["amount"]), boolean(m["ok"])
        hubs["h_order"].add((order,))
        assert_content("s_order", (order,), minute, hashdiff(amount, ok), (amount, ok))
        if m["user"] is not None:
            hubs["h_user"].add((m["user"],))
            assert_content("s_user", (m["user"],), minute, hashdiff(m["name"], m["city"]), (m["name"], m["city"]))
        if m["city"] is not None and amount is not None:
            hubs["h_place"].add((m["city"], amount))
            assert_content("s_place", (m["city"], amount), minute, hashdiff(ok), (ok,))
        links["l_order_user"].add((order, m["user"]))
        if m["user"] is not None or m["seller"] is not None:
            links["l_trade"].add((m["user"], m["seller"]))
        for item in m["items"]:
            quantity = None if item["quantity"] is None else str(item["quantity"])
            if item["product"] is not None:
                hubs["h_product"].add((item["product"],))
                assert_content("s_product", (item["product"],), minute, hashdiff(item["label"]), (item["label"],))
            links["l_order_product"].add((order, item["product"]))
            assert_content("s_line", (order, item["product"]), minute, hashdiff(quantity), (quantity,))
    # A user who was only ever a seller is in the link, not in the hub, which is fed by user_id alone.
    links["l_trade"] = [(buyer, seller if (seller,) in hubs["h_user"] else None) for buyer, seller in links["l_trade"]]
    current = {name: {parent + content for parent, (_, content) in rows.items() if content is not None} for name, rows in satellites.items()}
    return {**hubs, **links, **current}


SHOWN = {
    "h_order": "order_id::text", "h_user": "user_id", "h_product": "product", "h_place": "city, trim_scale(amount)::text",
    "l_order_user": "order_id::text, user_id", "l_trade": "buyer_user_id, seller_user_id", "l_order_product": "order_id::text, product",
    "s_order": "order_id::text, trim_scale(amount)::text, ok::int", "s_user": "user_id, name, city",
    "s_place": "city, trim_scale(amount)::text, ok::int", "s_product": "product, label", "s_line": "order_id::text, product, quantity::text",
}


def vault(cursor, schema):
    call = cursor.execute
    call(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    call(f"SELECT millrace.create_hub('{schema}.h_order', source => 'stg.events', business_key => '{{order_id}}')")
    call(f"SELECT millrace.create_hub('{schema}.h_user', source => 'stg.events', business_key => '{{user_id}}')")
    call(f"SELECT millrace.create_hub('{schema}.h_place', source => 'stg.events', business_key => '{{city, amount}}')")
    call(f"SELECT millrace.create_hub('{schema}.h_product', source => 'stg.items', business_key => '{{product}}')")
    call(f"SELECT millrace.create_link('{schema}.l_order_user', source => 'stg.events', hubs => '{{{schema}.h_order, {schema}.h_user}}')")
    call(f"SELECT millrace.create_link('{schema}.l_trade', source => 'stg.events', hubs => '{{buyer={schema}.h_user, seller={schema}.h_user}}', "
         """columns => '{"seller": {"user_id": "seller_id"}}')""")
    call(f"SELECT millrace.create_link('{schema}.l_order_product', source => 'stg.items', hubs => '{{{schema}.h_order, {schema}.h_product}}')")
    call(f"SELECT millrace.create_satellite('{schema}.s_order', source => 'stg.events', parent => '{schema}.h_order', attributes => '{{amount, ok}}')")
    call(f"SELECT millrace.create_satellite('{schema}.s_user', source => 'stg.events', parent => '{schema}.h_user', attributes => '{{name, city}}')")
    call(f"SELECT millrace.create_satellite('{schema}.s_place', source => 'stg.events', parent => '{schema}.h_place', attributes => '{{ok}}')")
    call(f"SELECT millrace.create_satellite('{schema}.s_product', source => 'stg.items', parent => '{schema}.h_product', attributes => '{{label}}')")
    call(f"SELECT millrace.create_satellite('{schema}.s_line', source => 'stg.items', parent => '{schema}.l_order_product', attributes => '{{quantity}}')")


def declare(cursor, workers):
    cursor.execute("SET client_min_messages = warning; CREATE EXTENSION millrace; CREATE SCHEMA stg")
    cursor.execute("SELECT millrace.create_stream('feed', workers => %s)", (workers,))
    common = """key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]', deleted => $$ op = 'D' $$, log => true"""
    cursor.execute(f"""SELECT millrace.create_staging('stg.events', stream => 'feed', {common}, columns =>
        '{{"op": "$.op", "user_id": "$.user.id", "seller_id": "$.seller", "name": "$.user.name", "city": "$.city", "amount": ["$.amount", "numeric"], "ok": ["$.ok", "boolean"]}}')""")
    cursor.execute(f"""SELECT millrace.create_staging('stg.items', stream => 'feed', for_each => '$.items[*]', {common}, columns =>
        '{{"op": "$.op", "product": "@.product", "label": "@.label", "quantity": ["@.quantity", "integer"]}}')""")
    vault(cursor, "dds")


def check(cursor, schema, messages, step):
    good = True
    for name, rows in expected(messages).items():
        cursor.execute(f"SELECT {SHOWN[name]} FROM {schema}.{name}_current")
        found = [tuple(boolean(v) if isinstance(v, int) else v for v in row) for row in cursor.fetchall()]
        found, rows = collections.Counter(found), collections.Counter(rows)
        if found != rows:
            print(f"{schema}.{name} differs at step {step}: missing {list(rows - found)[:5]}, unexpected {list(found - rows)[:5]}")
            good = False
    cursor.execute(f"SELECT h_place_hk, city, amount::text FROM {schema}.h_place_current")
    for key, city, amount in cursor.fetchall():
        if uuid.UUID(key).bytes != hash_key(city, number(amount)):
            print(f"the key of ({city}, {amount}) is {key}")
            good = False
    return good


def push(cursor, message):
    cursor.execute("SELECT millrace.push('feed', %s, key => %s)", (payload(message), str(message["id"])))


def delivery(rng, messages):
    order = messages + rng.choices(messages, k=len(messages) // 10)
    rng.shuffle(order)
    return order


def run_in_session(cursor, rng, messages):
    """One session, batches of random size."""
    left = delivery(rng, messages)
    come = []
    step = 0
    while left:
        n = rng.choice([1, 2, 5, 40, 200])
        for message in left[:n]:
            push(cursor, message)
        come += left[:n]
        left = left[n:]
        cursor.execute("SELECT dead_letters FROM millrace.run_stream('feed', max_messages => %s)", (rng.choice([None, None, n // 2 or 1]),))
        if rng.random() < 0.3 or not left:
            cursor.execute("SELECT millrace.run_stream('feed')")
            if not check(cursor, "dds", come, step):
                return False
        step += 1
    return True


def wait_for_workers(cursor):
    deadline = time.time() + 60
    while time.time() < deadline:
        cursor.execute("SELECT count(*) FROM millrace.inbox")
        if cursor.fetchone()[0] == 0:
            return True
        time.sleep(0.05)
    print("the workers do not empty the inbox")
    return False


def run_in_background(cursor, rng, messages):
    """Two workers that take what there is while it is being pushed."""
    cursor.execute("SELECT millrace.start_stream('feed')")
    for message in delivery(rng, messages):
        push(cursor, message)
        if rng.random() < 0.02:
            time.sleep(rng.random() * 0.02)
    good = wait_for_workers(cursor) and check(cursor, "dds", messages, "end")
    # Workers that know keys hear of it when somebody takes them away, and put them back when they come again.
    cursor.execute("TRUNCATE dds.h_order, dds.l_order_product")
    cursor.execute("DELETE FROM dds.h_user WHERE user_id IS NOT NULL")
    time.sleep(2.5)     # statistics of deleted rows are looked at once a second
    for message in messages:
        push(cursor, message)
    good = good and wait_for_workers(cursor)
    cursor.execute("SELECT millrace.stop_stream('feed')")
    return good and check(cursor, "dds", messages, "forgotten keys")


def run(seed, versions):
    rng = random.Random(seed)
    admin = psycopg2.connect("")
    admin.autocommit = True
    cursor = admin.cursor()
    cursor.execute("SHOW shared_preload_libraries")
    modes = ["session"] + ["background"] * ("millrace" in cursor.fetchone()[0])
    good = True
    for mode in modes:
        database = f"vault_{seed}_{mode}"
        admin.cursor().execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        admin.cursor().execute(f"CREATE DATABASE {database} TEMPLATE template0")
        connection = psycopg2.connect(dbname=database)
        connection.autocommit = True
        messages = history(rng, rng.choice([3, 12]), versions)
        try:
            cursor = connection.cursor()
            declare(cursor, 1 if mode == "session" else 2)
            if mode == "session":
                good = run_in_session(cursor, rng, messages)
            else:
                admin.cursor().execute(f"ALTER SYSTEM SET millrace.databases = '{database}'")
                admin.cursor().execute("SELECT pg_reload_conf()")
                good = run_in_background(cursor, rng, messages)
            if good:
                # Filled from the logs, whose order is the order of delivery.
                vault(cursor, "again")
                cursor.execute("SELECT millrace.run_stream('feed')")
                good = check(cursor, "again", messages, "refill")
            cursor.execute("SELECT count(*) FROM millrace.letter")
            if cursor.fetchone()[0]:
                print("there are dead letters")
                good = False
        finally:
            connection.close()
            if mode == "background":
                admin.cursor().execute("ALTER SYSTEM RESET millrace.databases")
                admin.cursor().execute("SELECT pg_reload_conf()")
            if good:
                admin.cursor().execute(f"DROP DATABASE {database} WITH (FORCE)")
        if not good:
            print(f"mode {mode}, database {database}")
            break
    admin.close()
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--versions", type=int, default=400)
    options = parser.parse_args()
    for i in range(options.runs):
        seed = options.seed + i
        print(f"seed {seed}", flush=True)
        if not run(seed, options.versions):
            sys.exit(1)
    print("vaults equal their recompute")


if __name__ == "__main__":
    main()
