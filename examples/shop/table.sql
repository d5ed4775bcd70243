-- Shop: the table in which the shop itself keeps its orders, for shop.sql to read the changes of; filled with made-up ones.
--
--	psql -v orders=20000 -f table.sql
\set ON_ERROR_STOP on

CREATE SCHEMA shop;
CREATE TABLE shop.orders (
    order_id       text PRIMARY KEY,
    order_date     timestamptz NOT NULL DEFAULT now(),
    customer_id    text NOT NULL,
    product_id     text NOT NULL,
    category       text,
    product_name   text,
    price          numeric(12,2),
    quantity       integer,
    total          numeric(14,2),
    status         text,
    payment_method text,
    region         text,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now()
);

\ir generate.sql
-- each order as its last message has it
INSERT INTO shop.orders
SELECT DISTINCT ON (o.order_id) o.* FROM pg_temp.shop_messages(:orders) AS m, json_populate_record(NULL::shop.orders, m) AS o
ORDER BY o.order_id, o.updated_at DESC;
