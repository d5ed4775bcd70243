#!/usr/bin/env python3
"""Online models under random histories: after each batch they answer, and are judged, as a model that is trained on what is staged then, bit for bit.

Objects come, change, are cancelled and deleted, in any order; users, items and times change; models begin over an empty table and over what is
staged, with each measure, with max_history and without, with a catalogue, with what is popular by a query, and without.  Then two workers at
once, and rebuilding, erasing, dropping.

Connects as libpq's environment says (a superuser of a server with millrace), makes a database of its own and drops it.
Prints its seed; `online.py --seed N` repeats a run.
"""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from property import drain, growing, histories, in_background, preloaded  # noqa: E402

QUERY = "SELECT customer, {item}{time} FROM stg.items WHERE status IN ('CLOSED', 'OPEN') AND quantity > 0"
# What is trained for comparison: of a model with max_history the newest items of each user, ties by id.
NEWEST = ("SELECT customer, product FROM (SELECT customer, product, row_number() OVER (PARTITION BY customer ORDER BY max(at) DESC, product COLLATE \"C\") AS place FROM stg.items "
          "WHERE status IN ('CLOSED', 'OPEN') AND quantity > 0 AND at IS NOT NULL AND customer IS NOT NULL AND product IS NOT NULL GROUP BY customer, product) AS l WHERE place <= {most}")
MODELS = {
    "cosine": {"similarity": "cosine"},
    "cosine_shrunk": {"similarity": "cosine", "shrink": 2.5},
    "dice": {"similarity": "dice", "shrink": 0.5},
    "jaccard": {"similarity": "jaccard"},
    "newest": {"similarity": "cosine", "max_history": 3},
    "last": {"similarity": "dice", "max_history": 1},
}
# One has numbers as items.
ITEM = {"dice": "(length(product) * 7 + ascii(product))"}
# Some answer what a catalogue has only; some of that nobody has (yet, or any more).
CATALOGUE = {"cosine_shrunk", "last"}
# Of some a query says what is popular, also of items that nobody has, in groups.
POPULAR = {"cosine", "newest", "last"}
USERS, ITEMS, ORDERS = 12, 14, 30


def declare(cursor):
    cursor.execute("CREATE EXTENSION millrace; CREATE SCHEMA stg; CREATE SCHEMA ml")
    cursor.execute("SELECT millrace.create_stream('feed')")
    cursor.execute("SELECT millrace.create_staging('stg.items', stream => 'feed', for_each => '$.items[*]', key => %s, columns => %s)",
                   ('{"id": ["$key", "bigint"]}', json.dumps({"customer": ["$.customer", "bigint"], "status": "$.status", "at": ["$.at", "timestamptz"], "product": "@.product", "quantity": ["@.quantity", "integer"]})))


def offer(cursor, rng):
    """What the catalogue has."""
    cursor.execute("CREATE TABLE IF NOT EXISTS stg.offered (product text, class integer, available boolean); DELETE FROM stg.offered")
    for i in range(-3, ITEMS):
        if rng.random() < 0.8:
            cursor.execute("INSERT INTO stg.offered VALUES (%s, %s, %s)", (f"{'zZaAé'[i % 5]}{i}", rng.choice([None, 1, 2, 3]), rng.choice([None, True, True, True, False])))


def order(rng, wide):
    return {
        "customer": rng.choice([None] + list(range(-2, USERS * wide - 2))),
        "status": rng.choice(["CLOSED", "CLOSED", "OPEN", "CANCELLED"]),
        "at": rng.choice([None, "2026-01-05 23:30:00+00"] + [f"2026-02-{d:02d} 12:00:00+00" for d in range(1, 20)]),
        "items": [{"product": rng.choice([None, ""] + [f"{'zZaAé'[i % 5]}{i}" for i in range(ITEMS * wide)]), "quantity": rng.choice([None, 0, 1, 1, 1, 2])} for _ in range(rng.choice([0, 1, 1, 2, 4, 7]))],
    }


def push(cursor, rng, wide=1):
    value = None if rng.random() < 0.15 else json.dumps(order(rng, wide))
    cursor.execute("SELECT millrace.push('feed', %s, key => %s)", (value, str(rng.randrange(ORDERS * wide))))


def create(cursor, name):
    params = MODELS[name]
    most = params.get("max_history")
    cursor.execute("SET client_min_messages = error")
    catalogue = "SELECT product, class, available FROM stg.offered" if name in CATALOGUE else None
    popular = "SELECT product, class, available FROM stg.offered" if name in POPULAR else None
    cursor.execute("SELECT millrace.create_model(%s, 'item_knn', %s, %s, catalogue => %s, popular => %s, online => true)", (f"ml.{name}", QUERY.format(item=ITEM.get(name, "product"), time=", at" if most else ""), json.dumps(params), catalogue, popular))
    trained = {"k": 10000, **{k: v for k, v in params.items() if k != "max_history"}}
    cursor.execute("SELECT millrace.create_model(%s, 'item_knn', %s, %s, catalogue => %s, popular => %s)", (f"ml.{name}_trained", NEWEST.format(most=most) if most else QUERY.format(item=ITEM.get(name, "product"), time=""), json.dumps(trained), catalogue, popular))
    cursor.execute("SET client_min_messages = notice")


def bits(cursor, sql, *arguments):
    cursor.execute(sql, arguments)
    return cursor.fetchall()


def check(cursor, rng, name, step):
    """Everything that both models answer; doubles as the bytes that they are."""
    online, trained, item = f"ml.{name}", f"ml.{name}_trained", ITEM.get(name, "product")
    cursor.execute("SELECT millrace.train(%s::regclass)", (trained,))
    version = cursor.fetchone()[0]
    cursor.execute("SELECT millrace.promote(%s::regclass, %s)", (trained, version))
    most = MODELS[name].get("max_history")
    # What is left of a history when only the newest of it counts is had nevertheless.
    seen = "false" if most else rng.choice(["true", "false"])
    explain, n, fallback = rng.choice(["true", "false"]), rng.choice([1, 3, 1000]), rng.choice(["true", "true", "false"])
    group = rng.choice(["NULL", "'true'", "'false'"]) if name in POPULAR else "NULL"
    # Without a catalogue a filter passes what a version knows: of the online one that is also what nobody has any more.
    choice = "NULL" if name in POPULAR - CATALOGUE else rng.choice(["NULL", "NULL", "'class < 3'" if name in CATALOGUE else "'item::text < ''b'''"])
    questions = {
        "similar items": f"SELECT i.item, s.rank, s.item, float4send(s.score), s.reason FROM (SELECT DISTINCT {item}::text AS item FROM stg.items) AS i, millrace.similar('MODEL', i.item, {n}) AS s ORDER BY 1, 2",
        "recommendations": f"SELECT u.customer, r.rank, r.item, float8send(r.score), r.reason FROM (SELECT DISTINCT customer FROM stg.items UNION SELECT 77) AS u, "
                           f"millrace.recommend('MODEL', u.customer::text, {n}, filter => {choice}, exclude_seen => {seen}, explain => {explain}, fallback => {fallback}, popular_group => {group}) AS r ORDER BY 1, 2",
        "baskets": f"SELECT r.rank, r.item, float8send(r.score), r.reason FROM millrace.recommend('MODEL', items => ARRAY(SELECT DISTINCT {item}::text FROM stg.items ORDER BY 1 LIMIT 4) || '{{77777,77777}}', n => {n}, filter => {choice}, explain => {explain}, popular_group => {group}) AS r ORDER BY 1",
        "the view": "SELECT item, rank, neighbour, float4send(score) FROM MODEL WHERE version = VERSION ORDER BY item, rank",
    }
    cursor.execute("SELECT count(DISTINCT product) FROM stg.items")
    if cursor.fetchone()[0] > 100:
        del questions["the view"]   # without statistics trained ones take their time
    good = True
    for what, question in questions.items():
        answers = [bits(cursor, question.replace("MODEL", model).replace("VERSION", str(v))) for model, v in ((online, 1), (trained, version))]
        if answers[0] != answers[1]:
            differ = [(a, b) for a, b in zip(*answers) if a != b][:3]
            print(f"{name}, {what} at step {step}: {len(answers[0])} and {len(answers[1])} rows, {differ} (online, trained); {question}")
            good = False
    had = "status IN ('CLOSED', 'OPEN') AND quantity > 0 AND at IS NOT NULL"
    if rng.random() < 0.3:
        # What a user has and does not count is not recommended: a trained one does not know of it.
        whole = f"(SELECT count(DISTINCT product) FROM stg.items WHERE customer = c AND {had}) <= {most}" if most else "true"
        test = f"SELECT c, i.item FROM generate_series(-2, 20) AS c, (SELECT DISTINCT {item} AS item FROM stg.items WHERE product IS NOT NULL UNION SELECT {item} FROM (VALUES ('zz')) AS never (product)) AS i WHERE hashtext(c || ' ' || i.item) % 5 = {rng.randrange(5)} AND {whole}"
        judged = [bits(cursor, "SELECT metric, float8send(value), float8send(popularity), pairs, skipped FROM millrace.evaluate(%s::regclass, %s, %s) ORDER BY 1", model, v, test) for model, v in ((online, 1), (trained, version))]
        if judged[0] != judged[1] or len(judged[0]) < 10:
            print(f"{name}, metrics at step {step}: {judged[0]} and {judged[1]} (online, trained); {test}")
            good = False
    if name == "newest" and rng.random() < 0.3:
        test = f"SELECT c, i.item FROM generate_series(-2, 20) AS c, (SELECT DISTINCT product FROM stg.items WHERE product IS NOT NULL) AS i (item) WHERE NOT EXISTS (SELECT FROM stg.items WHERE customer = c AND product = i.item AND {had})"
        precision = bits(cursor, "SELECT value FROM millrace.evaluate(%s::regclass, 1, %s, '{precision@3}')", online, test)
        users, hits = bits(cursor, f"SELECT count(DISTINCT t.c), count(r.item) FROM ({test}) AS t LEFT JOIN LATERAL millrace.recommend('{online}', t.c::text, 3, fallback => false) AS r ON r.item = t.item")[0]
        if users and abs(precision[0][0] * users * 3 - hits) > 1e-6:
            print(f"{name} at step {step}: precision@3 is {precision}, {hits} of what is recommended to {users} users is right")
            good = False
    cursor.execute("SELECT millrace.drop_version(%s::regclass, v.version) FROM millrace.model_version v JOIN millrace.model m ON m.id = v.model_id WHERE m.relation = %s::regclass AND v.version <> %s", (trained, trained, version))
    if most:
        cursor.execute(f"SELECT count(*) FROM (SELECT DISTINCT customer, product FROM stg.items WHERE {had} AND customer IS NOT NULL) AS h "
                       f"JOIN LATERAL millrace.recommend('{online}', h.customer::text, 1000) AS r ON r.item = h.product")
        if cursor.fetchone()[0]:
            print(f"{name} at step {step}: what is had is recommended")
            good = False
    cursor.execute("SELECT missing, unexpected, example FROM millrace.verify(%s::regclass)", (online,))
    verified = cursor.fetchone()
    if verified[:2] != (0, 0):
        print(f"{name} at step {step}: verify() says {verified}")
        good = False
    return good


def two_workers(admin, database, cursor, rng, made, pushes):
    """Two workers that meet at the same users and items, and make the same new ones, at once."""
    cursor.execute("SELECT millrace.create_stream('feed', workers => 2, replace => true)")
    with in_background(admin, database):
        cursor.execute("SELECT millrace.start_stream('feed')")
        for _ in range(pushes):
            push(cursor, rng, 4)
        drain(cursor)
    cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    if cursor.fetchone()[0]:
        print("the workers deadlocked")
        return False
    return all([check(cursor, rng, name, "two workers") for name in made])


def long_lists(cursor, rng, made):
    """Items that have something in common with so many others that their lists have many rows, which are put together again and again."""
    good = True
    for step in range(8):
        for _ in range(6):
            products = rng.sample(range(2, 1500), 60) + [0, 1]
            value = json.dumps({"customer": rng.randrange(40), "status": "CLOSED", "at": "2026-03-01 00:00:00+00", "items": [{"product": f"w{i}", "quantity": 1} for i in products]})
            cursor.execute("SELECT millrace.push('feed', %s, key => %s)", (value, str(1000 + rng.randrange(60))))
        cursor.execute("SELECT * FROM millrace.run_stream('feed')")
        cursor.execute("SELECT r.relation, r.missing, r.unexpected, r.example FROM unnest(%s::regclass[]) AS m, millrace.verify(m) AS r WHERE r.missing + r.unexpected > 0", ([f"ml.{name}" for name in made],))
        for wrong in cursor.fetchall():
            print(f"long lists: verify() says {wrong}")
            good = False
    cursor.execute("SELECT id FROM millrace.model WHERE relation = 'ml.cosine'::regclass")
    cursor.execute(f"SELECT max(n), bool_or(folded) FROM (SELECT count(*) AS n, bool_or(is_folded) AS folded FROM millrace_state.model_{cursor.fetchone()[0]}_pair GROUP BY item) AS l")
    rows, folded = cursor.fetchone()
    cursor.execute("SELECT pg_total_relation_size(format('millrace_state.model_%s_pair', id)::regclass), (SELECT count(*) / 2 FROM ml.cosine), (SELECT count(DISTINCT item) FROM ml.cosine) FROM millrace.model WHERE relation = 'ml.cosine'::regclass")
    size, pairs, items = cursor.fetchone()
    if size > 20 * pairs + 120 * items + 8 * 8192:
        print(f"{pairs} pairs of {items} items take {size} bytes")
        good = False
    if rows < 2 or not folded:
        print(f"no list has several rows that were put together: {rows}, {folded}")
        good = False
    return good and check(cursor, rng, made[0], "long lists")


def ends(cursor, rng, made):
    """Damage is seen, a rebuild mends it; what is erased is gone; nothing is left of what is dropped."""
    good = True
    name = next(m for m in made if m != "last")    # of one item no pairs count
    cursor.execute("SELECT id FROM millrace.model WHERE relation = %s::regclass", (f"ml.{name}",))
    number = cursor.fetchone()[0]
    cursor.execute(f"DELETE FROM millrace_state.model_{number}_pair WHERE ctid IN (SELECT min(ctid) FROM millrace_state.model_{number}_pair WHERE item > 0)")
    cursor.execute("SELECT missing + unexpected FROM millrace.verify(%s::regclass)", (f"ml.{name}",))
    if cursor.fetchone()[0] == 0:
        print("verify() does not see a pair that is missing")
        good = False
    cursor.execute("SELECT * FROM millrace.rebuild(%s::regclass)", (f"ml.{name}",))
    good = check(cursor, rng, name, "rebuilt") and good
    cursor.execute("SELECT id::text FROM stg.items WHERE product IS NOT NULL LIMIT 1")
    cursor.execute("SELECT * FROM millrace.erase('stg.items', %s)", (json.dumps({"id": int(cursor.fetchone()[0])}),))
    for name in made:
        good = check(cursor, rng, name, "erased") and good
    for name in made:
        cursor.execute("SELECT millrace.drop_model(%s::regclass), millrace.drop_model(%s::regclass)", (f"ml.{name}", f"ml.{name}_trained"))
    cursor.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'model%%' AND relnamespace IN ('millrace_state'::regnamespace, 'millrace_def'::regnamespace)")
    left = cursor.fetchone()[0]
    cursor.execute("SELECT count(*) FROM millrace.target")
    if left or cursor.fetchone()[0]:
        print(f"{left} relations are left of models that were dropped")
        good = False
    return good


def run(admin, database, cursor, rng, steps, pushes):
    declare(cursor)
    offer(cursor, rng)
    cursor.execute("SET millrace.backfill_rows = 5")    # what is staged is counted in many chunks
    for step, made in growing(cursor, rng, steps, MODELS, lambda name: create(cursor, name), lambda: push(cursor, rng)):
        if not all([check(cursor, rng, name, step) for name in made]):
            return False
        offer(cursor, rng)
    if preloaded(admin) and not two_workers(admin, database, cursor, rng, made, pushes):
        return False
    return long_lists(cursor, rng, ["cosine", "newest"]) and ends(cursor, rng, made)


if __name__ == "__main__":
    histories("online", "online models answer as trained ones", run, 1, steps=20, pushes=250)
