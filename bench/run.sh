#!/usr/bin/env bash
# Runs one bench beside its baseline, on a private server and broker, and prints a line "CASE ratio=… ours=… …" for each
# figure. What the cases measure is in README.md.
#
#	bench/run.sh kafka_to_staging | kafka_to_marts | freshness
#
# ORDERS=300000, BATCHES="10000 50000 all" (of the baseline), RATES="200 2000", SECONDS_EACH=20, and ONLY=baseline (which
# needs no millrace) or ONLY=ours, change a run. BUILD=0 takes the millrace that is installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../scripts/lib.sh"

orders=${ORDERS:-300000}
only=${ONLY:-both}
partitions=8

# Does this run measure SIDE?
measures() { [ "$only" = both ] || [ "$only" = "$1" ]; }

# Calculates with awk.
calc() { awk "BEGIN { printf \"${2:-%.0f}\", $1 }"; }

# Prints a final line, or the one half that was measured.
result() {
	local name=$1 ours=$2 baseline=$3 unit=$4
	if [ -n "$ours" ] && [ -n "$baseline" ]; then
		echo "$name ratio=$(calc "$ours / $baseline" %.2f) ours=$ours baseline=$baseline unit=$unit"
	else
		echo "$name ratio= ours=$ours baseline=$baseline unit=$unit"
	fi
}

# Builds what is measured, and starts the server and the broker that both sides use.
prepare() {
	local memory settings
	need_packages build test kafka
	make -s -C "$here" produce
	if [ "${BUILD:-1}" = 1 ] && measures ours; then
		make -s -C "$here/.." -j "$(nproc)" >/dev/null
		as_root make -s -C "$here/.." install >/dev/null
	fi
	temp_dir work
	memory=$(awk '/MemTotal/ { m = int($2 / 1024 / 6); print (m > 4096) ? 4096 : m }' /proc/meminfo)
	settings=("shared_buffers = ${memory}MB" "min_wal_size = 8GB" "max_wal_size = 16GB" "checkpoint_timeout = 30min" "jit = off")
	if measures ours; then
		settings+=("millrace.databases = 'ours'")
	else
		settings+=("shared_preload_libraries = ''")
	fi
	pg_start "$work/pg" "${settings[@]}"
	# log files that are used again cost less than new ones: make them before either side does
	psql -qXAt -o /dev/null -c "SELECT count(pg_logical_emit_message(false, '', repeat('x', 1000000))) FROM generate_series(1, 4000)" -c CHECKPOINT
	psql -qX -c 'CREATE DATABASE ours' -c 'CREATE DATABASE baseline'
	kafka_start "$work/kafka"
}

# Makes the orders once: for the producer, and as the file that the baseline loads.
make_orders() {
	say "making $orders orders"
	"$PYTHON" "$here/gen_orders.py" "$orders" --timestamps --partitions "$partitions" >"$work/orders.tsv"
	cut -f 4- "$work/orders.tsv" >"$work/orders.json"
	kafka_topic orders "$partitions"
	"$here/produce" "$KAFKA_BOOTSTRAP" orders "$work/orders.tsv"
}

# Starts the stream 'orders' in the database ours and waits for its end; sets ours (per second).
consume_ours() {
	local seconds peak
	read -r seconds peak < <(PGDATABASE=ours "$PYTHON" "$here/consume.py" orders "$orders") || die "millrace did not get through"
	ours=$(calc "$orders / $seconds")
	say "millrace: $seconds s, $ours a second, at most $peak MB of anonymous memory in a process"
	psql -qXAt -d ours -o /dev/null -c "SELECT millrace.stop_stream('orders')" -c CHECKPOINT
}

ours_value() { psql -qXAt -d ours -c "$1"; }

kafka_to_staging() {
	local ours= baseline= start end
	measures ours || die "the baseline of kafka_to_staging loads what millrace wrote: it needs both"
	prepare
	make_orders
	psql -qXAt -v ON_ERROR_STOP=1 -d ours -o /dev/null -v broker="$KAFKA_BOOTSTRAP" <<-'SQL'
		CREATE EXTENSION millrace;
		CREATE SCHEMA stg;
		CREATE SERVER broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers :'broker');
		SELECT millrace.create_stream('orders', server => 'broker', format => 'json', options => '{"topic": "orders", "start": "earliest"}');
		SELECT millrace.create_staging('stg.order_events', stream => 'orders', payload => 'jsonb',
		  key => '{"order_id": [["$.object_id", "$key"], "bigint"]}',
		  version => '["$timestamp", "timestamptz"]', event_time => '["$.payload.date", "timestamptz"]',
		  columns => '{"restaurant_id": "$.payload.restaurant.id", "restaurant_name": "$.payload.restaurant.name",
		               "user_id": "$.payload.user.id", "username": "$.payload.user.name", "userlogin": "$.payload.user.login",
		               "status": "$.payload.status",
		               "cost": ["$.payload.cost", "numeric(12,2)"], "payment": ["$.payload.payment", "numeric(12,2)"]}');
	SQL
	consume_ours
	[ "$(ours_value 'SELECT count(*) FROM stg.order_events')" = "$orders" ] || die "stg.order_events has not $orders rows"
	# the same rows, in order of arrival, into a table with the same columns and primary key
	psql -qX -v ON_ERROR_STOP=1 -d ours \
		-c "COPY (SELECT * FROM stg.order_events ORDER BY _position, _partition) TO '$work/pg/rows'" \
		-c "CREATE TABLE stg.copied (LIKE stg.order_events)" -c "ALTER TABLE stg.copied ADD PRIMARY KEY (order_id)" -c CHECKPOINT
	start=$(date +%s.%N)
	psql -qX -v ON_ERROR_STOP=1 -d ours -c "COPY stg.copied FROM '$work/pg/rows'"
	end=$(date +%s.%N)
	baseline=$(calc "$orders / ($end - $start)")
	result kafka_to_staging "$ours" "$baseline" messages/s
}

kafka_to_marts() {
	local ours= baseline= batch seconds rate
	prepare
	make_orders
	if measures ours; then
		psql -qXAt -d ours -o /dev/null -v broker="$KAFKA_BOOTSTRAP" -v topic=orders -f "$here/../examples/restaurant/restaurant.sql"
		consume_ours
	fi
	if measures baseline; then
		for batch in ${BATCHES:-10000 50000 all}; do
			psql -qX -c 'DROP DATABASE baseline' -c 'CREATE DATABASE baseline' -c CHECKPOINT
			read -r seconds rate < <(PGDATABASE=baseline "$here/baseline/load.sh" "$work/orders.json" "${batch/all/$orders}") ||
				die "the baseline failed"
			say "baseline in batches of $batch: $seconds s, $rate a second"
			if [ -z "$baseline" ] || [ "$rate" -gt "$baseline" ]; then baseline=$rate; fi
		done
	fi
	[ "$only" != both ] || same_marts
	result kafka_to_marts "$ours" "$baseline" orders/s
}

# Both sides must have come to the same counters.
same_marts() {
	local sql="SELECT md5(string_agg(format('%s %s %s', user_id, product_id, order_cnt), ',' ORDER BY user_id COLLATE \"C\", product_id COLLATE \"C\"))
		FROM cdm.user_product_counters"
	[ "$(ours_value "$sql")" = "$(psql -qXAt -d baseline -c "$sql")" ] || die "the marts of the two sides differ"
}

freshness() {
	local rate side skip=0 p50 p99
	declare -A figures
	prepare
	for side in ours baseline; do
		measures "$side" || continue
		kafka_topic "$side" "$partitions"
		if [ "$side" = ours ]; then
			psql -qXAt -d ours -o /dev/null -v broker="$KAFKA_BOOTSTRAP" -v topic=ours -v start=1 -f "$here/../examples/restaurant/restaurant.sql"
		else
			psql -qX -v ON_ERROR_STOP=1 -d baseline -f "$here/baseline/schema.sql"
			PGDATABASE=baseline "$PYTHON" "$here/baseline/consume.py" "$KAFKA_BOOTSTRAP" baseline &
			consumer=$!
			on_exit stop_consumer
		fi
		skip=0
		for rate in ${RATES:-200 2000}; do
			read -r p50 p99 < <(PGDATABASE=$side "$PYTHON" "$here/freshness.py" "$KAFKA_BOOTSTRAP" "$side" "$rate" "${SECONDS_EACH:-20}" "$skip") ||
				die "freshness of $side could not be measured"
			say "$side at $rate orders/s: p50 $p50 ms, p99 $p99 ms"
			figures[$side.$rate.p50]=$p50
			figures[$side.$rate.p99]=$p99
			skip=$((skip + rate * ${SECONDS_EACH:-20}))
		done
		[ "$side" != ours ] || psql -qXAt -d ours -o /dev/null -c "SELECT millrace.stop_stream('orders')"
	done
	for rate in ${RATES:-200 2000}; do
		for p in p50 p99; do
			result "freshness.${rate}_$p" "${figures[ours.$rate.$p]:-}" "${figures[baseline.$rate.$p]:-}" ms
		done
	done
}

stop_consumer() {
	[ -z "${consumer:-}" ] || kill "$consumer" 2>/dev/null || true
	wait "${consumer:-}" 2>/dev/null || true
	consumer=
}

case ${1:-} in
	kafka_to_staging | kafka_to_marts | freshness) "$1" ;;
	*) die "which case? kafka_to_staging, kafka_to_marts or freshness" ;;
esac
