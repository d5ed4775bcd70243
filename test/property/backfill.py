#!/usr/bin/env python3
"""What is declared in the middle of a stream ends equal to what was there from the start; verify() finds what somebody changes.

While a random history is pushed, tables are declared a second time beside those that are there from the start, and filled in tiny chunks; they are
paused, resumed, replaced and rebuilt, whole or by a random filter.  At the end each equals its twin and verify() finds nothing.
Then one row of each kind is changed, removed or added: verify() finds it, rebuild() mends it.  First by run_stream(), then
(when the library is preloaded) by two workers in the background.

Connects as libpq's environment says (a superuser of a server with millrace), makes databases of its own and drops them.
Prints its seed; `backfill.py --seed N` repeats a run, --runs N makes more.
"""
import contextlib
import datetime
import json
import os
import sys
import time

import psycopg2

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from property import histories, in_background  # noqa: E402

# Declared once in schema a at the start, and once more in schema b in the middle: kind, name and the call.
TABLES = [
    ("hub", "h_thing", "SELECT millrace.create_hub('{s}.h_thing', source => 'stg.things', business_key => '{{id}}')"),
    ("hub", "h_city", "SELECT millrace.create_hub('{s}.h_city', source => 'stg.things', business_key => '{{city}}')"),
    ("hub", "h_item", "SELECT millrace.create_hub('{s}.h_item', source => 'stg.items', business_key => '{{item}}')"),
    ("link", "l_city", "SELECT millrace.create_link('{s}.l_city', source => 'stg.things', hubs => '{{{s}.h_thing, {s}.h_city}}')"),
    ("link", "l_item", "SELECT millrace.create_link('{s}.l_item', source => 'stg.items', hubs => '{{{s}.h_thing, {s}.h_item}}')"),
    ("satellite", "s_thing", "SELECT millrace.create_satellite('{s}.s_thing', source => 'stg.things', parent => '{s}.h_thing', attributes => '{{amount, city}}')"),
    ("satellite", "s_item", "SELECT millrace.create_satellite('{s}.s_item', source => 'stg.items', parent => '{s}.l_item', attributes => '{{quantity}}')"),
    ("satellite", "m_item", "SELECT millrace.create_satellite('{s}.m_item', source => 'stg.items', parent => '{s}.h_thing', kind => 'multi_active', "
                            "sub_key => '{{_element}}', attributes => '{{item, quantity}}')"),
    ("satellite", "e_item", "SELECT millrace.create_satellite('{s}.e_item', source => 'stg.items', parent => '{s}.l_item', kind => 'effectivity', driving_key => '{{id}}')"),
    ("satellite", "m_thing", "SELECT millrace.create_satellite('{s}.m_thing', source => 'stg.items', parent => '{s}.h_item', kind => 'multi_active', "
                             "sub_key => '{{id, quantity}}', history => 'all')"),
    ("pit", "p_thing", "SELECT millrace.create_pit('{s}.p_thing', hub => '{s}.h_thing', satellites => '{{{s}.s_thing, {s}.m_item}}', every => 'day')"),
    ("mart", "by_city", "SELECT millrace.create_mart('{s}.by_city', 'SELECT city, count(*) AS n, sum(amount) AS total, avg(amount) AS mean, count(DISTINCT amount) AS amounts, min(amount) AS low, stddev_pop(amount) AS spread "
                        "FROM stg.things GROUP BY city', replace => true)"),
    ("mart", "by_item", "SELECT millrace.create_mart('{s}.by_item', 'SELECT item, city, count(*) AS n, sum(quantity) AS q, max(quantity) AS most, count(DISTINCT id) AS things "
                        "FROM stg.items GROUP BY item, city', replace => true)"),
    ("mart", "striped", "SELECT millrace.create_mart('{s}.striped', 'SELECT city, count(*) AS n, sum(quantity) AS q FROM stg.items GROUP BY city', stripes => 3, replace => true)"),
    ("mart", "whole", "SELECT millrace.create_mart('{s}.whole', 'SELECT count(*) AS n, sum(amount) AS total, count(DISTINCT city) AS cities FROM stg.things', replace => true)"),
]

FILTERS = {
    "h_thing": ["id % 3 = 1"], "h_city": ["city > 'P'"], "h_item": ["true"], "l_city": ["load_at > '2020-01-01'"], "l_item": ["false"],
    "s_thing": ["amount > 3", "city IS NULL", "is_deleted"], "s_item": ["quantity = 2"], "m_item": ["quantity = 1"], "e_item": ["NOT is_deleted"],
    "by_city": ["city = 'Riga'", "city IS NULL"], "striped": ["city = 'Riga' OR city IS NULL"], "by_item": ["item = 'a'", "item IS NULL OR city = 'Oslo'"],
}

def shown(kind, name):
    """What of a table has to be equal, whoever filled it."""
    if kind == "pit":       # what holds in the end; between, that depends on which confirmations came in what order
        return ("SELECT p.h_thing_hk, p.snapshot_at, s.amount, s.city, m.item, m.quantity, m._element FROM (SELECT * FROM {s}.%s WHERE snapshot_at = (SELECT max(snapshot_at) FROM {s}.%s)) AS p "
                "LEFT JOIN {s}.s_thing AS s ON (s.h_thing_hk, s.applied_at, s.hashdiff) = (p.s_thing_hk, p.s_thing_applied_at, p.s_thing_hashdiff) "
                "LEFT JOIN {s}.m_item AS m ON (m.h_thing_hk, m.applied_at, m.hashdiff) = (p.m_item_hk, p.m_item_applied_at, p.m_item_hashdiff)") % (name, name)
    if kind == "mart":
        return f"SELECT * FROM {{s}}.{name}"
    technical = "'load_at' - 'record_source' - 'position' - 'confirmed_at' - 'applied_at'"
    return f"SELECT (to_jsonb(t) - {technical})::text FROM {{s}}.{name}_current AS t"


def message(rng, i):
    if rng.random() < 0.12:
        return json.dumps({"id": rng.randrange(40), "at": stamp(rng, i), "gone": True})
    return json.dumps({"id": rng.randrange(40), "at": stamp(rng, i), "city": rng.choice([None, "Riga", "Oslo", "riga"]), "amount": rng.choice([None, "1.5", "2", "7.25", "-1"]),
                       "items": [{"item": rng.choice([None, "a", "b", "c"]), "quantity": rng.choice([None, 1, 2])} for _ in range(rng.choice([0, 1, 2, 5]))]})


def stamp(rng, i):
    """A time in hours, so that a history takes some days."""
    return f"{datetime.datetime(2026, 1, 1) + datetime.timedelta(hours=max(0, i + rng.randrange(-30, 30)))}+00"


def declare(cursor, workers):
    call = cursor.execute
    call("CREATE EXTENSION millrace; CREATE SCHEMA stg; CREATE SCHEMA a; CREATE SCHEMA b; SET client_min_messages = warning")
    call("SELECT millrace.create_stream('feed', workers => %s)", (workers,))
    common = {"key": '{"id": ["$.id", "integer"]}', "version": '["$.at", "timestamptz"]', "deleted": "gone"}
    for name, each, columns in (
            ("things", None, {"city": "$.city", "amount": ["$.amount", "numeric"], "gone": ["$.gone", "boolean"]}),
            ("items", "$.items[*]", {"item": "@.item", "quantity": ["@.quantity", "integer"], "city": "$.city", "gone": ["$.gone", "boolean"]})):
        call("SELECT millrace.create_staging(%s, stream => 'feed', key => %s, version => %s, deleted => %s, for_each => %s, columns => %s, log => true)",
             (f"stg.{name}", common["key"], common["version"], common["deleted"], each, json.dumps(columns)))
    for _, _, statement in TABLES:
        call(statement.format(s="a"))


def push(cursor, messages):
    for text in messages:
        cursor.execute("SELECT millrace.push('feed', %s, key => %s)", (text, str(json.loads(text)["id"])))


def meddle(cursor, rng, made):
    """One thing that users do to a table while it is being filled, or after."""
    kind, name, statement = rng.choice(made)
    cursor.execute("SELECT state FROM millrace.target WHERE relation = %s::regclass", (f"b.{name}",))
    state = cursor.fetchone()[0]
    action = rng.choice(["pause", "resume", "rebuild", "filter", "replace"])
    if action in ("pause", "resume") and state != "active":
        try:
            cursor.execute(f"SELECT millrace.{action}_backfill(%s)", (f"b.{name}",))
        except psycopg2.errors.ObjectNotInPrerequisiteState:
            pass        # the worker was faster
    elif action == "rebuild" and rng.random() < 0.3:
        cursor.execute("SELECT * FROM millrace.rebuild(%s)", (f"b.{name}",))
    elif action == "filter" and state == "active" and name in FILTERS:
        cursor.execute("SELECT * FROM millrace.rebuild(%s, filter => %s)", (f"b.{name}", rng.choice(FILTERS[name])))
    elif action == "replace" and kind == "mart":
        cursor.execute(f"SELECT millrace.create_mart('b.{name}', 'SELECT id % 2 AS odd, count(*) AS n FROM stg.things GROUP BY 1', replace => true)")
        if rng.random() < 0.5:
            cursor.execute("SELECT * FROM millrace.run_stream('feed', max_messages => 3)" if rng.random() < 0.5 else "SELECT pg_sleep(0.01)")
        cursor.execute(statement.format(s="b"))


def scatter(cursor, rng):
    """Moves one row of some versions to the log's end, as if other workers had written much between."""
    cursor.execute("WITH gone AS (DELETE FROM stg.items_log WHERE _rows > 1 AND _element = 1 AND id %% 3 = %s RETURNING *) INSERT INTO stg.items_log SELECT * FROM gone", (rng.randrange(3),))


def history(cursor, rng, steps, background):
    todo = list(TABLES)
    made = []
    for step in range(steps):
        push(cursor, [message(rng, step * 10) for _ in range(rng.choice([1, 5, 20, 60]))])
        if not background:
            cursor.execute(f"SET millrace.backfill_rows = {rng.choice([1, 2, 7, 100])}")
            if rng.random() < 0.7:
                cursor.execute("SELECT * FROM millrace.run_stream('feed', max_messages => %s)", (rng.choice([None, 5, 50]),))
        if rng.random() < 0.2:
            scatter(cursor, rng)
        # In the order in which they stand on each other, from the second half on.
        while todo and step > steps // 3 and rng.random() < 0.6:
            made.append(todo.pop(0))
            cursor.execute(made[-1][2].format(s="b"))
        if made and rng.random() < 0.6:
            meddle(cursor, rng, made)
    for table in todo:
        cursor.execute(table[2].format(s="b"))
    # One at least whose items are the same twice.
    push(cursor, [json.dumps({"id": 99, "at": f"2026-01-01 0{hour}:00:00+00", "city": "Oslo", "items": [{"item": "a", "quantity": 1}, {"item": "b", "quantity": 2}]}) for hour in (1, 2)])
    cursor.execute("SELECT millrace.resume_backfill(t.relation) FROM millrace.target t WHERE t.state <> 'active'")


def settle(cursor, background):
    deadline = time.time() + 240
    while time.time() < deadline:
        if not background:
            cursor.execute("SELECT * FROM millrace.run_stream('feed')")
        cursor.execute("SELECT (SELECT count(*) FROM millrace.inbox) + (SELECT count(*) FROM millrace.target WHERE state <> 'active')")
        if cursor.fetchone()[0] == 0:
            return True
        time.sleep(0.05)
    cursor.execute("SELECT relation, state, rows_done, last_error FROM millrace.backfill_status WHERE state <> 'done'")
    print(f"# not settled: {cursor.fetchall()}")
    cursor.execute("SELECT stream, state, last_error FROM millrace.stream_status")
    print(f"# {cursor.fetchall()}")
    return False


def verified(cursor, relation):
    cursor.execute("SELECT missing, unexpected, example FROM millrace.verify(%s)", (relation,))
    return cursor.fetchone()


def check(cursor):
    good = True
    for kind, name, _ in TABLES:
        query = shown(kind, name)
        cursor.execute(f"({query.format(s='a')} EXCEPT ALL {query.format(s='b')}) UNION ALL ({query.format(s='b')} EXCEPT ALL {query.format(s='a')})")
        difference = cursor.fetchall()
        if difference:
            print(f"# {name} differs from its twin: {len(difference)} rows, {difference[0][0]}")
            good = False
        for schema in "ab":
            result = verified(cursor, f"{schema}.{name}")
            if result[:2] != (0, 0):
                print(f"# verify({schema}.{name}) = {result}")
                good = False
    for name in ("things", "items"):
        result = verified(cursor, f"stg.{name}")
        if result[:2] != (0, 0):
            print(f"# verify(stg.{name}) = {result}")
            good = False
    return good


ZERO = "'00000000-0000-0000-0000-000000000000'"


def corrupt(cursor, rng, relation):
    """Changes, removes or adds one row; what was done, or None when there is nothing to do it to."""
    def one(table, condition="true"):
        return f"(SELECT ctid FROM {table} WHERE {condition} ORDER BY md5(ctid::text || {rng.randrange(1000)}) LIMIT 1)"
    def needed(table, unit, member):
        """Is it one of several members, or all that is said of a content?  What another row says as well may go."""
        return (f"{unit} <> {ZERO} AND (EXISTS (SELECT FROM {table} AS m WHERE (m.{unit}, m.hashdiff, m.applied_at) = (t.{unit}, t.hashdiff, t.applied_at) AND m.{member} <> t.{member}) "
                f"OR NOT EXISTS (SELECT FROM {table} AS m WHERE (m.{unit}, m.hashdiff) = (t.{unit}, t.hashdiff) AND m.applied_at <> t.applied_at))")
    kinds = {
        "b.h_thing": [f"UPDATE b.h_thing SET id = id + 1000 WHERE ctid = {one('b.h_thing', f'h_thing_hk <> {ZERO}')}",
                      f"DELETE FROM b.h_thing WHERE ctid = {one('b.h_thing', f'h_thing_hk <> {ZERO}')}",
                      "INSERT INTO b.h_thing VALUES (gen_random_uuid(), 12345, now(), 'nobody')",
                      "INSERT INTO b.h_thing VALUES (millrace.hash_key('b.h_thing', 12345), 12345, now(), 'nobody')"],
        "b.l_item": [f"UPDATE b.l_item SET h_item_hk = gen_random_uuid() WHERE ctid = {one('b.l_item')}",
                     f"DELETE FROM b.l_item WHERE ctid = {one('b.l_item')}",
                     f"INSERT INTO b.l_item SELECT gen_random_uuid(), h_thing_hk, h_item_hk, load_at, record_source FROM b.l_item WHERE ctid = {one('b.l_item')}"],
        "b.s_thing": [f"UPDATE b.s_thing SET amount = coalesce(amount, 0) + 100 WHERE ctid = {one('b.s_thing', f'h_thing_hk <> {ZERO} AND NOT is_deleted')}",
                      f"UPDATE b.s_thing SET confirmed_at = confirmed_at + interval '1 second' WHERE ctid = {one('b.s_thing', f'h_thing_hk <> {ZERO}')}",
                      f"INSERT INTO b.s_thing (h_thing_hk, applied_at, hashdiff, confirmed_at, position, is_deleted, load_at, record_source, amount, city) "
                      f"SELECT h_thing_hk, '2030-01-01', hashdiff, '2030-01-01', position, is_deleted, load_at, record_source, amount, city FROM b.s_thing WHERE ctid = {one('b.s_thing', f'h_thing_hk <> {ZERO}')}"],
        "b.m_item": [f"UPDATE b.m_item SET quantity = coalesce(quantity, 0) + 100 WHERE ctid = {one('b.m_item', f'h_thing_hk <> {ZERO} AND NOT is_deleted')}",
                     f"UPDATE b.m_item SET _element = 99 WHERE ctid = {one('b.m_item', f'h_thing_hk <> {ZERO} AND NOT is_deleted')}",
                     f"UPDATE b.m_item SET is_deleted = NOT is_deleted WHERE ctid = {one('b.m_item', f'h_thing_hk <> {ZERO}')}",
                     f"UPDATE b.m_item SET confirmed_at = confirmed_at + interval '1 second' WHERE ctid = {one('b.m_item', f'h_thing_hk <> {ZERO}')}",
                     f"DELETE FROM b.m_item WHERE ctid = {one('b.m_item AS t', needed('b.m_item', 'h_thing_hk', 'sub_key_hk'))}",
                     # a set once more when it was said last, but for a member
                     "INSERT INTO b.m_item SELECT (json_populate_record(t, json_build_object('applied_at', x.last, 'confirmed_at', x.last))).* FROM b.m_item AS t JOIN (SELECT h_thing_hk, applied_at, hashdiff, "
                     "max(confirmed_at) AS last, min(sub_key_hk::text)::uuid AS but FROM b.m_item GROUP BY 1, 2, 3 HAVING count(*) > 1 AND max(confirmed_at) > applied_at ORDER BY 1, 2, 3 LIMIT 1) AS x "
                     "USING (h_thing_hk, applied_at, hashdiff) WHERE t.sub_key_hk <> x.but ON CONFLICT DO NOTHING",
                     f"INSERT INTO b.m_item SELECT (json_populate_record(t, json_build_object('sub_key_hk', gen_random_uuid()))).* FROM b.m_item AS t WHERE ctid = {one('b.m_item', f'h_thing_hk <> {ZERO}')}"],
        "b.e_item": [f"UPDATE b.e_item SET l_item_hk = gen_random_uuid() WHERE ctid = {one('b.e_item', f'driving_hk <> {ZERO}')}",
                     f"UPDATE b.e_item SET driving_hk = gen_random_uuid() WHERE ctid = {one('b.e_item', f'driving_hk <> {ZERO}')}",
                     f"DELETE FROM b.e_item WHERE ctid = {one('b.e_item AS t', needed('b.e_item', 'driving_hk', 'l_item_hk'))}",
                     f"INSERT INTO b.e_item SELECT (json_populate_record(t, json_build_object('applied_at', '2030-01-01', 'confirmed_at', '2030-01-01'))).* FROM b.e_item AS t WHERE ctid = {one('b.e_item', f'driving_hk <> {ZERO}')}"],
        "b.p_thing": ["UPDATE {state} SET s1_applied_at = s1_applied_at - interval '1 second' WHERE ctid = " + one("{state}", "from_at > '-infinity'"),
                      "UPDATE {state} SET until_at = until_at + interval '1 hour' WHERE ctid = " + one("{state}", "from_at > '-infinity' AND until_at < 'infinity'"),
                      "UPDATE {state} SET hash_key = gen_random_uuid() WHERE ctid = " + one("{state}", "from_at > '-infinity'"),
                      "DELETE FROM {state} WHERE ctid = " + one("{state}", "from_at > '-infinity'")],
        "b.by_city": ["UPDATE {state} SET n = n + 1 WHERE ctid = " + one("{state}"), "DELETE FROM {state} WHERE ctid = " + one("{state}")],
        "stg.things": [f"UPDATE stg.things SET amount = coalesce(amount, 0) + 100 WHERE ctid = {one('stg.things')}",
                       f"DELETE FROM stg.things WHERE ctid = {one('stg.things')}",
                       "INSERT INTO stg.things (id, _version, _partition, _position, _loaded_at) VALUES (999, '2026-01-01', 0, 1, now())"],
        "stg.items": [f"UPDATE stg.items SET quantity = 77 WHERE ctid = {one('stg.items')}", f"DELETE FROM stg.items WHERE ctid = {one('stg.items')}"],
    }
    statement = rng.choice(kinds[relation])
    if "{state}" in statement:
        cursor.execute("SELECT format('millrace_state.%%s_%%s', kind, id) FROM millrace.target WHERE relation = %s::regclass", (relation,))
        statement = statement.replace("{state}", cursor.fetchone()[0])
    cursor.execute(statement)
    return statement if cursor.rowcount else None


def check_corruptions(cursor, rng, background):
    good = True
    for relation in ("b.h_thing", "b.l_item", "b.s_thing", "b.m_item", "b.e_item", "b.p_thing", "b.by_city", "stg.things", "stg.items"):
        statement = corrupt(cursor, rng, relation)
        if statement is None:
            continue
        found = verified(cursor, relation)
        if found[0] + found[1] == 0:
            print(f"# verify({relation}) does not see: {statement}")
            good = False
        cursor.execute("SELECT * FROM millrace.rebuild(%s)", (relation,))
        found = verified(cursor, relation)
        if found[:2] != (0, 0):
            print(f"# rebuild({relation}) did not mend: {statement}: {found}")
            good = False
        # Point-in-time tables on a satellite are computed anew.
        good = settle(cursor, background) and good
    return check(cursor) and good


def run(admin, database, cursor, rng, background, steps):
    declare(cursor, 2 if background else 1)
    with in_background(admin, database, backfill_rows=rng.choice([1, 3, 20])) if background else contextlib.nullcontext():
        if background:
            cursor.execute("SELECT millrace.start_stream('feed')")
            # Thousands of chunks in one transaction take their time.
            cursor.execute("SET millrace.backfill_rows = 100")
        history(cursor, rng, steps, background)
        if not (settle(cursor, background) and check(cursor) and check_corruptions(cursor, rng, background)):
            return False
        # It goes on after all that.
        push(cursor, [message(rng, steps * 10) for _ in range(100)])
        return settle(cursor, background) and check(cursor)


if __name__ == "__main__":
    histories("backfill", "what was filled later equals what was there", run, 3, with_background=True, steps=40)
