#!/usr/bin/python3
"""The shop example over changes of its table in the same database, and the demonstration, which shows it.

Bronze is the table, silver what a plain query makes of it, and gold what verify() says it should be: when the table is copied, and
after it has changed.
"""
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'lib'))
from database import Database, finish, is_          # noqa: E402
from shell import TOP, Shell                        # noqa: E402

COLUMNS = 'order_id, order_date, customer_id, product_id, category, product_name, price, quantity, total, status, payment_method, region, created_at, updated_at'
SOLD = """SELECT order_id, order_date, customer_id, product_id, category, product_name, abs(price) AS price, quantity, (abs(price) * quantity)::numeric(14,2) AS total, status, region,
                 price < 0 OR total IS DISTINCT FROM price * quantity AS repaired
          FROM shop.orders WHERE status IN ('completed', 'processing') AND quantity > 0"""
SUMMARY = """SELECT order_date::date, count(*), sum(total)::numeric(18,2), avg(total)::numeric(14,2), count(DISTINCT customer_id), count(DISTINCT product_name) FROM (%s) AS s GROUP BY 1""" % SOLD


def different(left, right):
    """A query: how many rows only one of two queries has."""
    return f'SELECT count(*) FROM (({left} EXCEPT ALL {right}) UNION ALL ({right} EXCEPT ALL {left})) AS d'


def main():
    with Shell() as shell:
        shell.run('pg_start "$work/pg" "wal_level = logical" "fsync = off" "millrace.databases = postgres"')
        shell.environ()
        shell.run('psql -qXAt -o /dev/null -v orders=3000 -f "$1/examples/shop/table.sql"')
        shell.run('psql -qXAt -o /dev/null -v source=postgres -v start=1 -f "$1/examples/shop/shop.sql"')
        shop = Database()

        def same(when):
            shop.becomes(f'{when}: bronze is the table', different(f'SELECT {COLUMNS} FROM bronze.orders', f'SELECT {COLUMNS} FROM shop.orders'), 0)
            is_(f'{when}: silver is what is sold', shop.one(different('SELECT order_id, order_date, customer_id, product_id, category, product_name, price, quantity, total, status, region, repaired '
                                                             'FROM silver.orders', SOLD)), 0)
            is_(f'{when}: the daily summary is what a plain query makes of the table', shop.one(different('SELECT * FROM gold.daily_summary', SUMMARY)), 0)
            is_(f'{when}: all marts are as they should be, and what customers have', shop.query("SELECT count(*), sum(v.missing + v.unexpected) FROM millrace.target_status t, millrace.verify(t.relation::regclass) v WHERE t.kind <> 'rule'"), [(8, 0)])

        shop.becomes('the table is copied', "SELECT string_agg(state, ',') FROM millrace.snapshot_status", 'done')
        same('copied')
        is_('what is of no use is refused by name', shop.query('SELECT reason, rejected FROM gold.rejected ORDER BY 1'),
            shop.query("""SELECT CASE WHEN quantity = 0 THEN 'quantity_positive' ELSE 'has_status' END, count(*) FROM shop.orders
                          WHERE status = '' OR quantity = 0 AND status IN ('completed', 'processing') GROUP BY 1 ORDER BY 1"""))

        # one after the other, and many at once; updated_at stays, as it does when somebody types an UPDATE
        shop.query("UPDATE shop.orders SET status = 'cancelled' WHERE order_id = 'ORD0000007'")
        shop.query("UPDATE shop.orders SET status = 'completed' WHERE status IN ('', 'pending')")
        shop.query("UPDATE shop.orders SET price = -price, quantity = quantity - 1 WHERE region = 'East'")
        shop.query("UPDATE shop.orders SET order_id = 'NEW' || order_id WHERE category = 'Books'")
        shop.query("DELETE FROM shop.orders WHERE region = 'North'")
        shop.query("INSERT INTO shop.orders (order_id, customer_id, product_id, price, quantity, status) VALUES ('NEW', 'CUST0007', 'PROD007', -10.25, 2, 'processing')")
        same('changed')
        is_('what is inserted is cleaned', shop.query("SELECT price::text, total::text, repaired FROM silver.orders WHERE order_id = 'NEW'"), [('10.25', '20.50', True)])
        shop.query('TRUNCATE shop.orders')
        same('emptied')
        is_('nothing is wrong', shop.query("SELECT state, last_error FROM millrace.stream_status"), [('running', None)])

        demo = subprocess.run([os.path.join(TOP, 'scripts', 'demo.sh')], env={**os.environ, 'BUILD': '0', 'INSTALL': '0', 'ORDERS': '2000'},
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
        if not is_('the demonstration runs', demo.returncode, 0):
            print(demo.stdout)
        is_('it shows three changes in the mart', demo.stdout.count('seen in the mart'), 3)
        is_('and five alerts that arrive over HTTP', [demo.stdout.count(f'{severity}: {rule}, ') for severity, rule in (('critical', 'HIGH_VALUE_ORDER'), ('warning', 'SUSPICIOUS_QUANTITY'),
            ('warning', 'NEGATIVE_PRICE'), ('warning', 'INVALID_QUANTITY'), ('warning', 'RAPID_ORDERS'))], [1] * 5)
        is_('and what a model recommends', len(re.findall(r'^ +[123] \| PROD[0-9]{3} \| +[0-9.]+(?: \| PROD[0-9]{3})?$', demo.stdout, re.M)), 6)
        finish(shell)


if __name__ == '__main__':
    main()
