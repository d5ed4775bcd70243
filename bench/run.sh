#!/usr/bin/env bash
# Runs one bench beside its baseline, on a private server and broker, and prints a line "CASE ratio=… ours=… …" for each
# figure. What the cases measure is in README.md; each is a file in cases/.
#
#	bench/run.sh kafka_to_staging | kafka_to_marts [--lifecycle] | floor | workers | growth | freshness | verify | enrich |
#		cdc_apply | cdc_to_marts | freshness_cdc | rules | outbox | alert_latency | knn_train | recommend | online | predict
#
# ORDERS=300000, BATCHES="10000 50000 all" (of the baseline), RATES="200 2000 half", SECONDS_EACH=20, WARM=10 (seconds of freshness that are not counted), ROUNDS (of cases that take the middle one), GROWTH="0.3 1 3 10", and
# BUFFERS=8192 (MB of shared_buffers), ONLY=baseline (which needs no millrace) or ONLY=ours, change a run. BUILD=0 takes the millrace that is installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../scripts/lib.sh"

orders=${ORDERS:-300000}
messages=$orders
only=${ONLY:-both}
partitions=8

# Does this run measure SIDE?
measures() { [ "$only" = both ] || [ "$only" = "$1" ]; }

# A case that has nothing to compare with needs both sides.
needs_both() { [ "$only" = both ] || die "$1 compares millrace with what it wrote itself: it needs both sides"; }

# Calculates with awk.
calc() { awk "BEGIN { printf \"${2:-%.0f}\", $1 }"; }

# The middle line of a file by the number in its COLUMN, the first by default.
median() { sort -n -k "${2:-1},${2:-1}" "$1" | awk '{ of[NR] = $0 } END { print of[int((NR + 1) / 2)] }'; }

# Prints a final line, or the one half that was measured.
result() {
	local name=$1 ours=$2 baseline=$3 unit=$4
	if [ -n "$ours" ] && [ -n "$baseline" ]; then
		echo "$name ratio=$(calc "$ours / $baseline" %.2f) ours=$ours baseline=$baseline unit=$unit"
	else
		echo "$name ratio= ours=$ours baseline=$baseline unit=$unit"
	fi
}

# Reserves huge pages for so many MB of shared memory, as whoever runs a server with much of it does, until the end of the run. Those that are
# free already are used: a run that was killed leaves its own behind, and the rest of the memory would be too little for two such heaps.
reserve_huge_pages() {
	local free added wanted=$(($1 * 53 / 100))       # of 2 MB, and what the server needs beside its buffers
	free=$(awk '/^HugePages_Free/ { print $2 }' /proc/meminfo)
	added=$((wanted - ${free:-0}))
	[ "$added" -gt 0 ] || return 0
	add_huge_pages "$added" || { say "no huge pages can be reserved: the server does without"; return 0; }
	on_exit add_huge_pages "-$added"
}

# Changes how many are reserved by so many: another run may have changed it, too.
add_huge_pages() { as_root sysctl -q "vm.nr_hugepages=$(($(cat /proc/sys/vm/nr_hugepages) + $1))"; } 2>/dev/null

# Builds what is measured, and starts the server and (unless PREPARE_KAFKA=0) the broker that both sides use. Arguments are settings of the server.
prepare() {
	local memory settings
	need_packages build test
	if [ "${PREPARE_KAFKA:-1}" = 1 ]; then
		need_packages kafka
		make -s -C "$here" produce
	fi
	if [ "${BUILD:-1}" = 1 ] && measures ours; then
		make -s -C "$here/.." -j "$(nproc)" >/dev/null
		as_root make -s -C "$here/.." install >/dev/null
	fi
	temp_dir work
	memory=${BUFFERS:-$(awk '/MemTotal/ { m = int($2 / 1024 * 2 / 5); print (m > 10240) ? 10240 : m }' /proc/meminfo)}
	settings=("shared_buffers = ${memory}MB" "min_wal_size = 8GB" "max_wal_size = 16GB" "wal_buffers = 64MB" "checkpoint_timeout = 30min" "bgwriter_lru_maxpages = 1000" "jit = off")
	if measures ours; then
		settings+=("millrace.databases = 'ours'")
	else
		settings+=("shared_preload_libraries = ''")
	fi
	settings+=("$@")           # the last one of a name counts
	reserve_huge_pages "$memory"
	pg_start "$work/pg" "${settings[@]}"
	# log files that are used again cost less than new ones: make them before either side does
	psql -qXAt -o /dev/null -c "SELECT count(pg_logical_emit_message(false, '', repeat('x', 1000000))) FROM generate_series(1, 4000)" -c CHECKPOINT
	# so does memory: a page of shared_buffers is zeroed when it is touched for the first time
	psql -qX -c 'CREATE UNLOGGED TABLE touched (filler text)' -c 'ALTER TABLE touched ALTER filler SET STORAGE PLAIN' \
		-c "INSERT INTO touched SELECT repeat('x', 8000) FROM generate_series(1, $memory * 128)" -c 'DROP TABLE touched'
	psql -qX -c 'CREATE DATABASE ours' -c 'CREATE DATABASE baseline'
	[ "${PREPARE_KAFKA:-1}" = 0 ] || kafka_start "$work/kafka"
}

# Makes the orders once, with the arguments of gen_orders.py: for the producer, and as the file that the baseline loads.
make_orders() {
	say "making $orders orders"
	"$PYTHON" "$here/gen_orders.py" "$orders" --timestamps --partitions "$partitions" "$@" >"$work/orders.tsv"
	messages=$(wc -l <"$work/orders.tsv")
	cut -f 4- "$work/orders.tsv" >"$work/orders.json"
	kafka_topic orders "$partitions"
	"$here/produce" "$KAFKA_BOOTSTRAP" orders "$work/orders.tsv"
}

# Declares the plain restaurant example in a new database; further arguments are psql's.
declare_in() {
	local database=$1
	shift
	psql -qX -c "DROP DATABASE IF EXISTS $database WITH (FORCE)" -c "CREATE DATABASE $database" -c CHECKPOINT
	psql -qXAt -d "$database" -o /dev/null -v broker="$KAFKA_BOOTSTRAP" -v topic=orders "$@" -f "$here/../examples/restaurant/plain.sql"
}
declare_ours() { declare_in ours "$@"; }

# Starts a stream (the 1st argument, or 'orders') in the database ours and waits for its end (the 2nd, or all messages); sets seconds, ours
# (messages a second), peak (MB), cpu (s) and waiting (% of looks at its workers).
consume_ours() {
	local stream=${1:-orders} end=${2:-$messages}
	read -r seconds peak cpu waiting < <(PGDATABASE=ours "$PYTHON" "$here/consume.py" "$stream" "$end") || die "millrace did not get through"
	ours=$(calc "$messages / $seconds")
	say "millrace: $seconds s, $ours a second, $cpu s of processor time, at most $peak MB of anonymous memory in a process, $waiting % of the time in wait for locks"
	say "millrace by stage: $(ours_value "SELECT string_agg(format('%s %s s', stage, round(seconds::numeric, 2)), ', ') FROM
		(SELECT stage, sum(seconds) AS seconds FROM millrace.stage_stats WHERE stream = '$stream' GROUP BY stage) s")"
	psql -qXAt -d ours -o /dev/null -c "SELECT millrace.stop_stream('$stream')" -c CHECKPOINT
}

ours_value() { psql -qXAt -d ours -c "$1"; }

# Both sides must give the same answer to a query.
same_answer() {
	[ "$(ours_value "$2")" = "$(psql -qXAt -d baseline -c "$2")" ] || die "the $1 of the two sides differ"
}

case ${1:-} in
	kafka_to_staging | kafka_to_marts | floor | workers | growth | freshness | verify | enrich | cdc_apply | cdc_to_marts | freshness_cdc | rules | outbox | alert_latency | knn_train | recommend | online | predict)
		. "$here/cases/$1.sh"
		"$@" ;;
	*) die "which case? kafka_to_staging, kafka_to_marts, floor, workers, growth, freshness, verify, enrich, cdc_apply, cdc_to_marts, freshness_cdc, rules, outbox, alert_latency, knn_train, recommend, online or predict" ;;
esac
