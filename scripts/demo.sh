#!/usr/bin/env bash
# Shows millrace at work: installs what is missing, builds, starts a private PostgreSQL in a temporary folder, and runs an example
# in it. At the end there is a psql prompt, and nothing is left behind.
#
#	scripts/demo.sh                 the shop: its table of orders changes, and the marts with it; alerts arrive over HTTP
#	scripts/demo.sh --alerts        the same, and the alerts arrive in a real Apache Kafka and Redis, too
#	scripts/demo.sh --inbox         the restaurant: a stream of orders, pushed to an inbox
#	scripts/demo.sh --kafka         the restaurant's orders come through a real Apache Kafka
#	scripts/demo.sh --redis         the restaurant's orders are raw, and enriched from a real Redis
#	scripts/demo.sh --keep          what was started goes on running; says how to connect and how to stop it
#
# ORDERS=20000 in the shop's table; RATE=300 of the restaurant's messages a second, SECONDS_TO_RUN=15; BUILD=0 to take the millrace
# that is installed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/lib.sh"

shop_orders=${ORDERS:-20000}
rate=${RATE:-300}
seconds=${SECONDS_TO_RUN:-15}
example=shop
alerts=
kafka=
redis=
keep=
processes=()
for argument in "$@"; do
	case $argument in
		--alerts) alerts=1 kafka=1 redis=1 ;;
		--inbox) example=restaurant ;;
		--kafka) example=restaurant kafka=1 ;;
		--redis) example=restaurant redis=1 ;;
		--keep) keep=1 ;;
		*) die "unknown argument \"$argument\": scripts/demo.sh [--alerts] [--inbox] [--kafka] [--redis] [--keep]" ;;
	esac
done

bold= dim= plain=
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; fi
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
value() { psql -qXAt -v ON_ERROR_STOP=1 -c "$1"; }
table() { psql -qX -P pager=off -v ON_ERROR_STOP=1 -P footer=off -c "$1"; }

# Says whether the marts are what a plain query makes of the tables below them.
verify_marts() {
	local marts="millrace.target_status t, millrace.verify(t.relation::regclass) v WHERE t.kind = 'mart'" differences
	title "the marts against a plain recompute (millrace.verify)"
	table "SELECT v.* FROM $marts"
	differences=$(value "SELECT sum(v.missing + v.unexpected) FROM $marts")
	[ "$differences" = 0 ] || die "$differences differences"
	echo "${bold}0 differences${plain}"
}

# Prints a declaration of an example: of a mart, or of what is made by another function.
declaration() { sed -n "/${3:-create_mart}('$2/,\${ p; /;/q }" "$root/examples/$1" | sed "s/^/  $dim/; s/\$/$plain/"; }

# ---- the shop ----------------------------------------------------------------------------------------------

shop_day=2026-01-13
shop_figures="SELECT * FROM gold.daily_summary WHERE date = '$shop_day'"

copied() { [ "$(value "SELECT state FROM millrace.snapshot_status WHERE stream = 'shop'")" = done ]; }

# Runs a statement on the shop's table, waits until the figures of the day are others, and prints them.
change() {
	local row="SELECT d::text FROM ($shop_figures) AS d"
	printf '\n  %s%s%s\n' "$bold" "$1" "$plain"
	psql -qXAt -v ON_ERROR_STOP=1 <<-SQL
		DO \$\$
		DECLARE
		    before text := ($row);
		    changed bigint;
		    committed timestamptz;
		BEGIN
		    $1;
		    GET DIAGNOSTICS changed = ROW_COUNT;
		    COMMIT;
		    committed := clock_timestamp();
		    WHILE ($row) IS NOT DISTINCT FROM before LOOP
		        IF clock_timestamp() > committed + interval '60 s' THEN
		            RAISE 'the mart has not changed: %', (SELECT s FROM millrace.stream_status AS s);
		        END IF;
		        PERFORM pg_sleep(0.001);
		    END LOOP;
		    PERFORM set_config('demo.said', format('rows: %s; seen in the mart %s ms after the commit', changed,
		        round(1000 * extract(epoch FROM clock_timestamp() - committed))), false);
		END \$\$;
		SELECT '  ' || current_setting('demo.said');
	SQL
	table "$shop_figures"
}

# Takes POSTs and writes a line for each into a file; prints its port into another.
receive() {
	exec "$PYTHON" - "$work/port" "$work/received" <<-'PYTHON'
		import http.server, json, os, sys
		port, received = sys.argv[1:]
		class Receiver(http.server.BaseHTTPRequestHandler):
		    protocol_version = 'HTTP/1.1'
		    def log_message(self, *_):
		        pass
		    def do_POST(self):
		        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
		        with open(received, 'a') as file:
		            file.write(body['text'] + '\n')
		        self.send_response(200)
		        self.send_header('Content-Length', '0')
		        self.end_headers()
		server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Receiver)
		with open(port + '.new', 'w') as file:
		    file.write(str(server.server_address[1]))
		os.rename(port + '.new', port)
		server.serve_forever()
	PYTHON
}

# What alerts are sent to is started, and named in an option of the example each.
start_receivers() {
	receive >"$work/receiver.log" 2>&1 &
	processes+=($!)
	on_exit kill $!
	: >"$work/received"
	wait_for 30 test -f "$work/port" || die "the receiver does not start"
	options+=(-v hook="http://127.0.0.1:$(cat "$work/port")")
	[ -n "$alerts" ] || return 0
	say "starting Apache Kafka and Redis"
	kafka_start "$work/kafka"
	kafka_topic shop-alerts 1
	redis_start "$work/redis"
	redis-cli -h 127.0.0.1 -p "$REDIS_PORT" SUBSCRIBE shop:alerts >"$work/heard" 2>&1 </dev/null &
	processes+=($!)
	on_exit kill $!
	wait_for 30 grep -q subscribe "$work/heard" || die "Redis does not take a subscriber"
	options+=(-v alert_broker="$KAFKA_BOOTSTRAP" -v redis=127.0.0.1 -v redis_port="$REDIS_PORT")
}

# What has arrived, a line for each.
received_http() { cat "$work/received"; }
received_kafka() { kcat -b "$KAFKA_BOOTSTRAP" -C -t shop-alerts -e -q -X isolation.level=read_committed -f '%k  %s\n'; }
received_redis() { grep '^{' "$work/heard" || true; }
arrived() { [ "$("received_$1" | wc -l)" -ge "$2" ]; }

# Shows what has arrived somewhere: every alert, once.
show_received() {
	local where=$1 wanted
	wanted=$(value "SELECT count(*) FROM millrace.alert WHERE suppressed IS NULL")
	wait_for 60 arrived "$where" "$wanted" || { table 'SELECT * FROM millrace.channel_status' >&2; die "the alerts do not arrive"; }
	title "$2"
	"received_$where"
	[ "$("received_$where" | wc -l)" = "$wanted" ] || die "$wanted alerts were to arrive"
}

shop_alerts() {
	title "five rules of examples/shop/shop.sql, and orders that they are about"
	declaration shop/shop.sql HIGH_VALUE_ORDER create_rule
	declaration shop/shop.sql RAPID_ORDERS create_rule
	local order="INSERT INTO shop.orders (order_id, customer_id, product_id, product_name, price, quantity, total)" statement
	for statement in \
		"$order VALUES ('DEAR', 'CUST0001', 'PROD101', 'Piano', 6000, 2, 12000)" \
		"$order VALUES ('MANY', 'CUST0002', 'PROD102', 'Pencil', 1, 60, 60)" \
		"$order VALUES ('MINUS', 'CUST0003', 'PROD103', 'Lamp', -30, 1, -30)" \
		"$order VALUES ('NONE', 'CUST0004', 'PROD103', 'Lamp', 30, 0, 0)" \
		"$order SELECT 'RAPID' || n, 'CUST0005', 'PROD104', 'Pen', 2, 1, 2 FROM generate_series(1, 5) n"; do
		echo "  $bold$statement$plain"
		value "$statement"
	done
	wait_for 60 all_fired || { table 'SELECT * FROM millrace.alert ORDER BY id DESC LIMIT 10' >&2; die "not all rules have fired"; }
	title "millrace.alert"
	table "SELECT rule, severity, key, details FROM millrace.alert WHERE suppressed IS NULL ORDER BY id"
	show_received http "what an HTTP receiver was sent"
	if [ -n "$alerts" ]; then
		show_received kafka "what is in the Kafka topic shop-alerts: keys and messages"
		show_received redis "what a subscriber of Redis's shop:alerts has heard"
	fi
	title "millrace.delivery_attempt"
	table "SELECT channel, outcome, count(*) AS attempts, max(round(1000 * extract(epoch FROM d.at - o.created_at))) AS \"ms after the batch, at most\"
		FROM millrace.delivery_attempt d JOIN millrace.outbox o USING (delivery_id, channel) GROUP BY channel, outcome ORDER BY channel"
}

all_fired() { [ "$(value 'SELECT count(DISTINCT rule) FROM millrace.alert WHERE suppressed IS NULL')" = 5 ]; }

try_shop() {
	echo "  \\! tail -n 3 $work/received"
	cat <<-'TEXT'
		  INSERT INTO shop.orders (order_id, customer_id, product_id, quantity) VALUES ('HALF A TON', 'CUST0006', 'PROD102', 500);
		  SELECT rule, key, at, suppressed FROM millrace.alert ORDER BY id DESC LIMIT 5;
		  SELECT * FROM millrace.outbox ORDER BY id DESC LIMIT 1 \gx
		  UPDATE shop.orders SET quantity = 2 * quantity WHERE category = 'Food';
		  SELECT * FROM gold.category_stats ORDER BY revenue DESC;
		  ALTER TABLE shop.orders ADD note text;
		  UPDATE shop.orders SET note = 'call first' WHERE order_id = 'ORD0000005';
		  SELECT * FROM bronze.orders WHERE order_id = 'ORD0000005' \gx
		  SELECT * FROM millrace.stream_status \gx
		  SELECT * FROM millrace.validate('shop');
	TEXT
}

# Trains the model, and asks it.
shop_recommends() {
	title "gold.also_bought: a model of who bought what, trained on silver.orders"
	declaration shop/shop.sql gold.also_bought create_model
	value "SELECT millrace.train('gold.also_bought')" >/dev/null
	table "SELECT model, version, rows, users, items, round(seconds::numeric, 3) AS seconds FROM millrace.model_version_status"
	title "what it recommends to a customer; and of one category, with the product of his that speaks for it"
	table "SELECT rank, item, score::numeric(6,3) AS score FROM millrace.recommend('gold.also_bought', 'CUST0042', 3)"
	table "SELECT rank, item, score::numeric(6,3) AS score, reason FROM millrace.recommend('gold.also_bought', 'CUST0042', 3, filter => 'category = ''Food''', explain => true)"
}

shop() {
	local options=(-v source="$PGDATABASE" -v start=1)
	start_receivers
	title "examples/shop/table.sql: the shop keeps $shop_orders orders in shop.orders"
	psql -qXAt -o /dev/null -v orders="$shop_orders" -f "$root/examples/shop/table.sql"
	title "examples/shop/shop.sql: a stream of its changes → bronze (as it is) → silver (clean) → gold (7 marts), 5 rules and a model"
	declaration shop/shop.sql gold.daily_summary
	psql -qXAt -o /dev/null "${options[@]}" -f "$root/examples/shop/shop.sql"
	wait_for 120 copied || { table 'SELECT * FROM millrace.stream_status' >&2; die "the table is not copied"; }
	title "the table is copied, and the marts are there; from now on changes are followed"
	table 'SELECT source_table, state, rows, finished_at - started_at AS took FROM millrace.snapshot_status'
	table 'SELECT * FROM gold.category_stats ORDER BY revenue DESC LIMIT 5'
	title "gold.rejected: what silver refused"
	table 'SELECT reason, rejected FROM gold.rejected ORDER BY reason'

	title "gold.daily_summary moves with the table"
	table "$shop_figures"
	change "UPDATE shop.orders SET status = 'cancelled' WHERE order_id = 'ORD0000007'"
	change "INSERT INTO shop.orders (order_id, order_date, customer_id, product_id, category, product_name, price, quantity, status, region)
    VALUES ('NEW', '$shop_day 12:00', 'CUST0007', 'PROD007', 'Beauty', 'Beauty 7', 1000, 2, 'completed', 'East')"
	change "DELETE FROM shop.orders WHERE region = 'North'"

	shop_alerts
	shop_recommends

	verify_marts
	title "bronze.orders against shop.orders"
	table "SELECT count(o) AS \"shop.orders\", count(b) AS \"bronze.orders\", count(*) FILTER (WHERE (to_jsonb(b) @> to_jsonb(o)) IS NOT TRUE) AS different
		FROM shop.orders o FULL JOIN bronze.orders b USING (order_id)"
}

# ---- the restaurant ----------------------------------------------------------------------------------------

# Prints statements that push, so many messages a second.
push_statements() {
	"$PYTHON" - "$root/bench" "$rate" "$((rate * seconds))" "$redis" <<-'PYTHON'
		import itertools, sys, time
		sys.path.insert(0, sys.argv[1])
		import gen_orders
		rate, total = int(sys.argv[2]), int(sys.argv[3])
		quote = lambda text: "'" + text.replace("'", "''") + "'"
		messages = itertools.islice(gen_orders.messages(total, lifecycle=True, raw=bool(sys.argv[4])), total)
		begin, sent = time.monotonic(), 0
		while sent < total:
		    time.sleep(0.02)
		    due = min(total, int((time.monotonic() - begin) * rate))
		    rows = [f'({quote(m.key)}, {quote(m.value)})' for m in itertools.islice(messages, due - sent)]
		    sent = due
		    if rows:
		        print("SELECT count(millrace.push('orders', value, key => key)) FROM (VALUES", ', '.join(rows), ') AS m (key, value);', flush=True)
	PYTHON
}

# Sends the orders, to the inbox or to the topic.
feed() {
	if [ -n "$kafka" ]; then
		{ "$PYTHON" "$root/bench/gen_orders.py" "$((rate * seconds))" ${redis:+--raw} --lifecycle --partitions 4 --timestamps || true; } |
			head -n "$((rate * seconds))" | "$root/bench/produce" "$KAFKA_BOOTSTRAP" orders --rate "$rate" >/dev/null
	else
		push_statements | psql -qXAt -v ON_ERROR_STOP=1 -o /dev/null
	fi
}

end_feed() {
	[ -z "${feeder:-}" ] || kill "$feeder" 2>/dev/null || true
	wait "${feeder:-}" 2>/dev/null || true
	feeder=
}

# One line of figures. A position is the number of the next message: from 1 in an inbox, from 0 in a partition.
figures_sql="
	SELECT format('%s|%s|%s|%s|%s|%s|%s|%s',
		(SELECT coalesce(sum(position - CASE WHEN topic IS NULL THEN 1 ELSE 0 END), 0) FROM millrace.stream_partition),
		coalesce(lag_messages, 0), coalesce(round(lag_seconds * 1000), 0),
		(SELECT count(*) FROM stg.order_events), (SELECT count(*) FROM stg.order_items), (SELECT count(*) FROM dds.s_order_status),
		(SELECT count(*) FROM cdm.user_product_counters), (SELECT coalesce(sum(order_cnt), 0) FROM cdm.user_category_counters))
	FROM millrace.stream_status WHERE stream = 'orders'"
row() { printf '%6s │%9s %6s %7s %7s │%8s %8s │%12s │%10s %10s\n' "$@"; }

# All is consumed when as many messages as were sent have gone through.
caught_up() { [[ "$(value "$figures_sql")" == "$((rate * seconds))|0|"* ]]; }

try_restaurant() {
	[ -n "$kafka" ] || cat <<-'TEXT'
		  SELECT millrace.push('orders', '{"no": "order"}', key => '1');
		  SELECT id, kind, message FROM millrace.dead_letter;
	TEXT
	cat <<-'TEXT'
		  SELECT * FROM dds.s_user_names_current LIMIT 5;
		  SELECT * FROM millrace.stream_status \gx
		  SELECT * FROM millrace.validate('orders');
	TEXT
}

restaurant() {
	local model=plain.sql options=(-v start=1) messages lag lag_ms orders items satellite products counted before=0 tick
	if [ -n "$kafka" ]; then
		say "starting Apache Kafka"
		make -s -C "$root/bench" produce
		kafka_start "$work/kafka"
		kafka_topic orders 4
		options+=(-v broker="$KAFKA_BOOTSTRAP" -v topic=orders)
	fi
	if [ -n "$redis" ]; then
		say "starting Redis"
		redis_start "$work/redis"
		"$PYTHON" "$root/bench/gen_orders.py" --dictionary | redis --pipe >/dev/null
		model=restaurant.sql
		options+=(-v redis=127.0.0.1 -v redis_port="$REDIS_PORT")
	fi
	title "examples/restaurant/$model: a stream, ${redis:+3 dictionaries, }2 staging tables, 5 hubs, 4 links, $([ -n "$redis" ] && echo 6 || echo 5) satellites, 2 marts"
	declaration restaurant/model.sql cdm.user_product_counters
	psql -qXAt -o /dev/null "${options[@]}" -f "$root/examples/restaurant/$model"

	title "$rate messages a second for $seconds seconds${kafka:+, through Apache Kafka at $KAFKA_BOOTSTRAP}"
	printf %s "$dim"
	row time messages '' behind lag staged staged order_status product orders
	row '' consumed /s by ms orders items rows counters counted
	printf %s "$plain"
	feed &
	feeder=$!
	on_exit end_feed
	for ((tick = 1; tick <= seconds; tick++)); do
		sleep 1
		IFS='|' read -r messages lag lag_ms orders items satellite products counted < <(value "$figures_sql")
		row "$tick s" "$messages" "$((messages - before))" "$lag" "$lag_ms" "$orders" "$items" "$satellite" "$products" "$counted"
		before=$messages
	done
	wait "$feeder" || die "the orders could not be sent"
	feeder=
	wait_for 60 caught_up || { table 'SELECT * FROM millrace.stream_status' >&2; die "the stream does not catch up"; }

	title "cdm.user_product_counters: what a customer has bought"
	table 'SELECT left(user_id, 8) AS user_id, left(product_id, 8) AS product_id, product_name, order_cnt
		FROM cdm.user_product_counters ORDER BY order_cnt DESC, user_id COLLATE "C", product_id COLLATE "C" LIMIT 5'
	sleep 1.5             # figures are written once a second
	title "from a message to what is visible: seconds and rows by stage (millrace.stage_stats)"
	table "SELECT stage, batches, rows,
			round(seconds::numeric, 2) AS seconds, round((100 * seconds / sum(seconds) OVER ())::numeric) AS percent
		FROM millrace.stage_stats WHERE stream = 'orders'"
	if [ -n "$redis" ]; then
		title "how often Redis was asked (millrace.dictionary_status)"
		table 'SELECT dictionary, hits, misses, pending, requests, round(latency_ms::numeric, 2) AS latency_ms FROM millrace.dictionary_status'
	fi
	verify_marts
}

# ---- install, build, start ---------------------------------------------------------------------------------

packages=(build demo ${kafka:+kafka} ${redis:+redis})
need_packages "${packages[@]}"
if [ "${BUILD:-1}" = 1 ]; then
	say "building millrace for PostgreSQL $(pg_major)"
	make -s -C "$root" -j "$(nproc)" >/dev/null
	as_root make -s -C "$root" install >/dev/null
fi
temp_dir work
say "starting PostgreSQL in $work"
pg_start "$work/pg" "millrace.databases = 'demo'" "wal_level = logical" "millrace.allowed_hosts = '127.0.0.1'"
psql -qX -c 'CREATE DATABASE demo'
export PGDATABASE=demo
"$example"

# ---- and now ------------------------------------------------------------------------------------------------

connect="psql -h $PGHOST -p $PGPORT -U $PGUSER $PGDATABASE"
if [ -n "$keep" ]; then
	{
		echo '#!/bin/sh'
		[ ${#processes[@]} = 0 ] || echo "kill ${processes[*]}"
		[ -z "$kafka" ] || echo "kill $KAFKA_PID"
		[ -z "$redis" ] || echo "kill $REDIS_PID"
		printf '%q ' "$([ "$(id -u)" != 0 ] || echo runuser)" | sed "s/^'' //"
		[ "$(id -u)" != 0 ] || printf -- '-u postgres -- '
		printf '%q -D %q -m fast -w stop\n' "$(pg_bin pg_ctl)" "$work/pg/data"
		printf 'rm -rf %q\n' "$work"
	} >"$work/stop"
	chmod 755 "$work/stop"
	on_exit_commands=()
	title "PostgreSQL goes on running"
	echo "  $connect"
	echo "  $work/stop          stops it and removes the folder"
	title "what to try there"
	"try_$example"
elif [ -t 0 ]; then
	title "look around; \\q ends the demonstration and removes everything"
	"try_$example"
	psql -X || true
else
	title "for a psql prompt run this in a terminal, or type: scripts/demo.sh${*:+ $*} --keep"
	echo "  then: psql -h FOLDER -p PORT -U $PGUSER $PGDATABASE     (it prints them)"
fi
