#!/usr/bin/env python3
"""The vault under random histories: hubs and links by business key and satellites by their content equal a recompute in Python.

A history of versions of a few objects, told by two streams, is delivered in random order, some of it twice, in batches of
random size: first by run_stream(), then (when the library is preloaded) by two workers of each stream in the background while it is
being pushed.  Satellites of all kinds are compared by what is current, those with all history also by what was at random times.
A vault that is declared afterwards over staging tables with logs has to end as the one that was there all the time.

Connects as libpq's environment says (a superuser of a server with millrace), makes a database of its own and
drops it.  Prints its seed; `vault.py --seed N` repeats a run.
"""
import collections
import datetime
import decimal
import hashlib
import json
import os
import random
import struct
import sys
import time
import uuid

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from property import histories, in_background  # noqa: E402

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


MINUTES = 37    # of a unit of time, so that a history takes some days
# Point-in-time tables have rows for each day since, so the days that a history tells of lie not far back.
DAYS = 11
START = datetime.datetime.combine(datetime.datetime.now(datetime.timezone.utc).date() - datetime.timedelta(days=DAYS + 1), datetime.time())


def time_text(unit):
    return (START + datetime.timedelta(minutes=MINUTES * unit)).isoformat(" ") + "+00"


def history(rng, objects, versions):
    """What both streams tell: orders with their items, and now and then what the CRM knows of a user and of an order."""
    messages = []
    for _ in range(versions):
        if rng.random() < 0.2:
            messages.append({"stream": "crm", "id": rng.randrange(objects * 3), "minute": rng.randrange(versions // 2), "op": rng.choice("UUUUD"),
                             "who": rng.choice(["ann", "bob", "eve"]), "nick": rng.choice([None, "", "Ann"]), "order": str(rng.randrange(objects + 2))})
            continue
        messages.append({
            "stream": "feed",
            "id": rng.randrange(objects),
            "minute": rng.randrange(versions // 2),     # few enough for ties
            "op": rng.choice("UUUUUUD"),
            "user": rng.choice([None, "ann", "bob", "cy||d", "æ"]),
            "seller": rng.choice([None, "ann", "bob"]),
            "name": rng.choice([None, "", "Ann", "ann "]),
            "city": rng.choice([None, "Riga", "Oslo"]),
            "amount": rng.choice([None, "1.0", "1.00", "-2.5", "1000"]),
            "ok": rng.choice([None, True, False]),
            "items": [{"product": rng.choice([None, "a", "b", "c"]), "label": rng.choice([None, "x", "y", "hidden"]), "quantity": rng.choice([None, 1, 2])}
                      for _ in range(rng.choice([0, 1, 1, 2, 3]))],
        })
    return messages


def payload(message):
    if message["stream"] == "crm":
        return json.dumps({"id": message["id"], "at": time_text(message["minute"]), "op": message["op"], "who": message["who"], "nick": message["nick"], "order": message["order"]})
    return json.dumps({"id": message["id"], "at": time_text(message["minute"]), "op": message["op"], "user": {"id": message["user"], "name": message["name"]},
                       "seller": message["seller"], "city": message["city"], "amount": message["amount"], "ok": message["ok"], "items": message["items"]})


# Satellites whose past is compared, too, and those whose units say sets of rows.
ALL_HISTORY = {"s_order_all", "s_line_all", "m_items", "m_product", "e_product"}
SATELLITES = ("s_order", "s_user", "s_place", "s_product", "s_line", "s_order_all", "s_line_all", "m_items", "m_items_changes", "m_product", "m_product_changes", "e_order", "e_product")


def hash_of_set(members):
    """Of {member: content}, both hashes."""
    return digest(b"".join(struct.pack(">i", 16) + member + struct.pack(">i", 16) + content for member, content in sorted(members.items())))


def tell(messages):
    """Keys of hubs and links, and for each satellite what is said of each unit: {unit: {(minute, hash): rows}}."""
    hubs = {name: set() for name in ("h_order", "h_user", "h_product", "h_place")}
    links = {"l_order_user": set(), "l_trade": set(), "l_order_product": set()}
    said = {name: collections.defaultdict(dict) for name in SATELLITES}

    def say(name, unit, minute, hashed, rows):
        said[name][unit][(minute, hashed)] = rows

    def say_set(name, unit, minute, members):
        """members: [(member's hash, content's hash, row)]; of one member the greatest content counts."""
        kept = {}
        for member, content, row in sorted(members, key=lambda m: m[:2]):
            kept[member] = (content, row)
        hashed = hash_of_set({member: content for member, (content, _) in kept.items()}) if kept else DELETED
        say(name, unit, minute, hashed, [row for _, row in kept.values()])

    for m in messages:
        minute = m["minute"]
        if m["stream"] == "crm":
            if m["op"] == "D":
                continue    # of an object of the CRM's own
            hubs["h_user"].add((m["who"],))
            hubs["h_order"].add((m["order"],))
            links["l_order_user"].add((m["order"], m["who"]))
            say("s_user", (m["who"],), minute, hashdiff(m["nick"], None), [(m["who"], m["nick"], None)])
            continue
        order = str(m["id"])
        sets = ("m_items", "m_items_changes", "e_order")
        if m["op"] == "D":
            for name in ("s_order", "s_order_all") + sets:
                say(name, (order,), minute, DELETED, [])
            continue
        amount, ok = number(m["amount"]), boolean(m["ok"])
        hubs["h_order"].add((order,))
        for name in ("s_order", "s_order_all"):
            say(name, (order,), minute, hashdiff(amount, ok), [(order, amount, ok)])
        if m["user"] is not None:
            hubs["h_user"].add((m["user"],))
            say("s_user", (m["user"],), minute, hashdiff(m["name"], m["city"]), [(m["user"], m["name"], m["city"])])
        if m["city"] is not None and amount is not None:
            hubs["h_place"].add((m["city"], amount))
            say("s_place", (m["city"], amount), minute, hashdiff(ok), [(m["city"], amount, ok)])
        links["l_order_user"].add((order, m["user"]))
        if m["user"] is not None or m["seller"] is not None:
            links["l_trade"].add((m["user"], m["seller"]))
        items = [item for item in m["items"] if item["label"] != "hidden"]
        if m["items"] and not items:
            continue    # all of them were filtered out, which ends nothing
        whole, by_product = [], collections.defaultdict(list)
        there = []
        for item in items:
            product, label, quantity = item["product"], item["label"], None if item["quantity"] is None else str(item["quantity"])
            link = hash_key(order, product)
            links["l_order_product"].add((order, product))
            for name in ("s_line", "s_line_all"):
                say(name, (order, product), minute, hashdiff(quantity), [(order, product, quantity)])
            whole.append((hash_key(product), hashdiff(label, quantity), (order, product, label, quantity)))
            there.append((link, b"\0" * 16, (order, product)))
            if product is None:
                continue
            hubs["h_product"].add((product,))
            say("s_product", (product,), minute, hashdiff(label), [(product, label)])
            by_product[product].append((link, b"\0" * 16, (order, product)))
            content = max(hashdiff(None if i["quantity"] is None else str(i["quantity"])) for i in items if (i["product"], i["label"]) == (product, label))
            if content == hashdiff(quantity):
                for name in ("m_product", "m_product_changes"):
                    say(name, (product, order, label), minute, content, [(product, order, label, quantity)])
        for name in ("m_items", "m_items_changes"):
            say_set(name, (order,), minute, whole)
        say_set("e_order", (order,), minute, there)
        for product, members in by_product.items():
            say_set("e_product", (product,), minute, members)
    # A user who was only ever a seller is in the link, not in the hub, which is fed by user_id and the CRM.
    links["l_trade"] = [(buyer, seller if (seller,) in hubs["h_user"] else None) for buyer, seller in links["l_trade"]]
    return hubs, links, said


def content_at(units, minute):
    """What holds at a time: of each unit the rows that were said last."""
    rows = []
    for assertions in units.values():
        before = [key for key in assertions if minute is None or key[0] <= minute]
        if before:
            rows += assertions[max(before)]
    return rows


def expected(messages):
    """What the vault has to hold when all of the messages have come, in whatever order."""
    hubs, links, said = tell(messages)
    return {**hubs, **links, **{name: content_at(units, None) for name, units in said.items()}}


SHOWN = {
    "h_order": "order_id::text", "h_user": "user_id", "h_product": "product", "h_place": "city, trim_scale(amount)::text",
    "l_order_user": "order_id::text, user_id", "l_trade": "buyer_user_id, seller_user_id", "l_order_product": "order_id::text, product",
    "s_order": "order_id::text, trim_scale(amount)::text, ok::int", "s_user": "user_id, name, city",
    "s_place": "city, trim_scale(amount)::text, ok::int", "s_product": "product, label", "s_line": "order_id::text, product, quantity::text",
    "s_order_all": "order_id::text, trim_scale(amount)::text, ok::int", "s_line_all": "order_id::text, product, quantity::text",
    "m_items": "order_id::text, product, label, quantity::text", "m_items_changes": "order_id::text, product, label, quantity::text",
    "m_product": "product, order_no::text, label, quantity::text", "m_product_changes": "product, order_no::text, label, quantity::text",
    "e_order": "order_id::text, product", "e_product": "order_id::text, product",
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
    call(f"SELECT millrace.create_satellite('{schema}.s_order_all', source => 'stg.events', parent => '{schema}.h_order', attributes => '{{amount, ok}}', history => 'all')")
    call(f"SELECT millrace.create_satellite('{schema}.s_line_all', source => 'stg.items', parent => '{schema}.l_order_product', attributes => '{{quantity}}', history => 'all')")
    for name, history_kept in (("", "all"), ("_changes", "changes")):
        call(f"SELECT millrace.create_satellite('{schema}.m_items{name}', source => 'stg.items', parent => '{schema}.h_order', kind => 'multi_active', sub_key => '{{product}}', "
             f"attributes => '{{label, quantity}}', history => '{history_kept}')")
        call(f"SELECT millrace.create_satellite('{schema}.m_product{name}', source => 'stg.items', parent => '{schema}.h_product', kind => 'multi_active', sub_key => '{{order_no, label}}', "
             f"""attributes => '{{quantity}}', columns => '{{"order_no": "order_id"}}', history => '{history_kept}')""")
    call(f"SELECT millrace.create_satellite('{schema}.e_order', source => 'stg.items', parent => '{schema}.l_order_product', kind => 'effectivity', driving_key => '{{order_id}}')")
    call(f"SELECT millrace.create_satellite('{schema}.e_product', source => 'stg.items', parent => '{schema}.l_order_product', kind => 'effectivity', driving_key => '{{product}}', history => 'all')")
    call(f"SELECT millrace.create_pit('{schema}.pit_order', hub => '{schema}.h_order', satellites => '{{{schema}.s_order, {schema}.s_order_all, {schema}.m_items_changes}}', every => 'day')")
    call(f"SELECT millrace.create_pit('{schema}.pit_user', hub => '{schema}.h_user', satellites => '{{{schema}.s_user}}', every => 'day')")
    call(f"""SELECT millrace.add_source('{schema}.h_user', source => 'stg.crm', columns => '{{"user_id": "who"}}', record_source => 'crm')""")
    call(f"""SELECT millrace.add_source('{schema}.h_order', source => 'stg.crm', columns => '{{"order_id": "order_no"}}')""")
    call(f"""SELECT millrace.add_source('{schema}.l_order_user', source => 'stg.crm', columns => '{{"h_order": {{"order_id": "order_no"}}, "h_user": {{"user_id": "who"}}}}')""")
    call(f"""SELECT millrace.add_source('{schema}.s_user', source => 'stg.crm', columns => '{{"user_id": "who", "name": "nick", "city": null}}')""")


def declare(cursor, workers):
    cursor.execute("SET client_min_messages = warning; CREATE EXTENSION millrace; CREATE SCHEMA stg")
    cursor.execute("SELECT millrace.create_stream('feed', workers => %s), millrace.create_stream('crm', workers => %s)", (workers, workers))
    common = """key => '{"order_id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]', deleted => $$ op = 'D' $$, log => true"""
    cursor.execute(f"""SELECT millrace.create_staging('stg.events', stream => 'feed', {common}, columns =>
        '{{"op": "$.op", "user_id": "$.user.id", "seller_id": "$.seller", "name": "$.user.name", "city": "$.city", "amount": ["$.amount", "numeric"], "ok": ["$.ok", "boolean"]}}')""")
    cursor.execute(f"""SELECT millrace.create_staging('stg.items', stream => 'feed', for_each => '$.items[*]', {common}, filter => $$ label IS DISTINCT FROM 'hidden' $$, columns =>
        '{{"op": "$.op", "product": "@.product", "label": "@.label", "quantity": ["@.quantity", "integer"]}}')""")
    cursor.execute("""SELECT millrace.create_staging('stg.crm', stream => 'crm', key => '{"id": ["$.id", "bigint"]}', version => '["$.at", "timestamptz"]', deleted => $$ op = 'D' $$, log => true,
        columns => '{"op": "$.op", "who": ["$.who", "varchar(20)"], "nick": "$.nick", "order_no": "$.order"}')""")
    vault(cursor, "dds")


def run_streams(cursor):
    """What both streams have."""
    cursor.execute("SELECT millrace.run_stream('feed')")
    cursor.execute("SELECT millrace.run_stream('crm')")


def compare(cursor, schema, name, source, rows, step):
    cursor.execute(f"SELECT {SHOWN[name]} FROM {schema}.{name}{source}")
    found = collections.Counter(tuple(boolean(v) if isinstance(v, int) else v for v in row) for row in cursor.fetchall())
    rows = collections.Counter(rows)
    if found != rows:
        print(f"{schema}.{name}{source} differs at step {step}: missing {list(rows - found)[:5]}, unexpected {list(found - rows)[:5]}")
    return found == rows


def check_pit(cursor, schema, name, step):
    """A point-in-time table equals its plain query; in the days that the history tells of, for it has a row for each day since."""
    cursor.execute("SELECT id FROM millrace.target WHERE relation = %s::regclass", (f"{schema}.{name}",))
    kept, plain = (f"(SELECT * FROM {relation} WHERE snapshot_at < '{START + datetime.timedelta(days=DAYS)}')" for relation in (f"{schema}.{name}", f"millrace_def.pit_{cursor.fetchone()[0]}"))
    cursor.execute(f"SELECT (SELECT count(*) FROM ({kept} EXCEPT ALL {plain}) AS u), (SELECT count(*) FROM ({plain} EXCEPT ALL {kept}) AS m)")
    unexpected, missing = cursor.fetchone()
    if unexpected or missing:
        print(f"{schema}.{name} differs at step {step}: missing {missing}, unexpected {unexpected}")
    return not unexpected and not missing


def check_verified(cursor, schema, step):
    """What verify() says of satellites and point-in-time tables, which all come from logs."""
    good = True
    for name in SATELLITES + ("pit_order", "pit_user"):
        cursor.execute("SELECT missing, unexpected, example FROM millrace.verify(%s)", (f"{schema}.{name}",))
        found = cursor.fetchone()
        if found[:2] != (0, 0):
            print(f"verify({schema}.{name}) at step {step}: {found}")
            good = False
    return good


def check(cursor, schema, messages, step):
    good = check_verified(cursor, schema, step) if not isinstance(step, int) or step % 5 == 0 else True
    for name, rows in expected(messages).items():
        good &= compare(cursor, schema, name, "_current", rows, step)
    said = tell(messages)[2]
    times = random.Random(len(messages))
    for name in sorted(ALL_HISTORY):
        for minute in [times.randrange(-1, 1 + max((m["minute"] for m in messages), default=0)) for _ in range(3)]:
            good &= compare(cursor, schema, name, f"_as_of('{time_text(minute)}')", content_at(said[name], minute), step)
    for day in range(1, 4):
        # The ghost record has no order.
        good &= compare(cursor, schema, "s_order_all", f" s JOIN {schema}.h_order USING (h_order_hk) JOIN {schema}.pit_order p "
                        "ON (s.h_order_hk, s.applied_at, s.hashdiff) = (p.s_order_all_hk, p.s_order_all_applied_at, p.s_order_all_hashdiff) "
                        f"WHERE order_id IS NOT NULL AND p.snapshot_at = '{START + datetime.timedelta(days=day, microseconds=-1)}+00'",
                        content_at(said["s_order_all"], (day * 1440 - 1) // MINUTES), step)
    for name in ("pit_order", "pit_user") if not isinstance(step, int) or step % 3 == 0 else ():
        good &= check_pit(cursor, schema, name, step)
    cursor.execute(f"SELECT h_place_hk, city, amount::text FROM {schema}.h_place_current")
    for key, city, amount in cursor.fetchall():
        if uuid.UUID(key).bytes != hash_key(city, number(amount)):
            print(f"the key of ({city}, {amount}) is {key}")
            good = False
    return good


def push(cursor, message):
    cursor.execute("SELECT millrace.push(%s, %s, key => %s)", (message["stream"], payload(message), str(message["id"])))


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
            run_streams(cursor)
            if not check(cursor, "dds", come, step):
                return False
        step += 1
    return True


def wait_for_workers(cursor):
    deadline = time.time() + 240
    while time.time() < deadline:
        cursor.execute("SELECT NOT EXISTS (SELECT FROM millrace.inbox) AND NOT EXISTS (SELECT FROM millrace.target WHERE state <> 'active')")
        if cursor.fetchone()[0]:
            return True
        time.sleep(0.05)
    print("the workers do not empty the inbox and fill all tables")
    return False


def run_in_background(cursor, rng, messages):
    """Two workers that take what there is while it is being pushed."""
    cursor.execute("SELECT millrace.start_stream('feed'), millrace.start_stream('crm')")
    for message in delivery(rng, messages):
        push(cursor, message)
        if rng.random() < 0.02:
            time.sleep(rng.random() * 0.02)
    good = wait_for_workers(cursor) and check(cursor, "dds", messages, "end")
    # Workers that know keys hear of it when somebody takes them away, and put them back when they come again.
    # The ghost record, whose key is 0, stays away.
    counts = "SELECT " + ", ".join(f"(SELECT count(*) FROM dds.{t} WHERE {t}_hk <> '00000000-0000-0000-0000-000000000000')" for t in ("h_order", "l_order_product", "h_user"))
    cursor.execute(counts)
    wanted = cursor.fetchone()
    cursor.execute("TRUNCATE dds.h_order, dds.l_order_product")
    cursor.execute("DELETE FROM dds.h_user WHERE user_id IS NOT NULL")
    cursor.execute("SELECT pg_stat_force_next_flush()")
    deadline = time.time() + 60
    cursor.execute(counts)
    while good and cursor.fetchone() != wanted and time.time() < deadline:
        time.sleep(2.5)     # they look at the statistics of deleted rows once a second, when they are not kept from it
        for message in messages:
            push(cursor, message)
        good = wait_for_workers(cursor)
        cursor.execute(counts)
    cursor.execute("SELECT millrace.stop_stream('feed'), millrace.stop_stream('crm')")
    return good and check(cursor, "dds", messages, "forgotten keys")


def run(admin, database, cursor, rng, background, versions):
    messages = history(rng, rng.choice([3, 12]), versions)
    declare(cursor, 2 if background else 1)
    if background:
        with in_background(admin, database):
            good = run_in_background(cursor, rng, messages)
    else:
        good = run_in_session(cursor, rng, messages)
    if not good:
        return False
    # Filled from the logs, whose order is the order of delivery.
    cursor.execute(f"SET millrace.backfill_rows = {rng.choice([3, 50, 10000])}")
    vault(cursor, "again")
    run_streams(cursor)
    return check(cursor, "again", messages, "refill")


if __name__ == "__main__":
    histories("vault", "vaults equal their recompute", run, 3, with_background=True, versions=400)
