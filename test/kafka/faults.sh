#!/usr/bin/env bash
# Faults of brokers, made by librdkafka's mock cluster: test/kafka/faults.sh. Starts a server of its own with the millrace that
# is installed; the last line counts what passed. Whatever the brokers do, every message arrives once and nothing is an incident.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../scripts/lib.sh"
source "$here/lib.sh"

temp_dir work
[ "$(id -u)" != 0 ] || chmod 755 "$work"
cc -O1 -o "$work/mock" "$here/mock.c" -lrdkafka
coproc MOCK { "$work/mock" 3; }
on_exit kill "$MOCK_PID"
read -r KAFKA_BOOTSTRAP <&"${MOCK[0]}"
mock() {
	local answer
	echo "$*" >&"${MOCK[1]}"
	read -r answer <&"${MOCK[0]}"
	[ "$answer" = ok ] || die "mock: $answer: $*"
}

pg_start "$work/pg" "millrace.databases = 'postgres'"
psql -Xq -v ON_ERROR_STOP=1 <<-SQL
	CREATE EXTENSION millrace;
	CREATE SCHEMA stg;
	CREATE SERVER broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '$KAFKA_BOOTSTRAP');
SQL
mock topic faults 3
for p in 0 1 2; do mock leader faults $p $((p + 1)); done
sent=0
# Sends a hundred messages and waits until they are there: arrives NAME.
arrives() {
	produce faults $((sent + 1)) $((sent + 100)) -X message.timeout.ms=60000
	sent=$((sent + 100))
	becomes "$1" "SELECT count(*) FROM stg.faults" "$sent"
}

stream faults '{"topic": "faults", "refresh": "1 second"}'
call "SELECT millrace.start_stream('faults')"
arrives "messages arrive"
mock leader faults 0 2
mock leader faults 1 3
arrives "after a change of leaders"
mock errors 1 6 5
arrives "after fetches that met no leader"
mock errors 1 1 3
arrives "after fetches whose offset was said to be out of range"
mock errors 1 3 3
arrives "after fetches whose topic was said to be unknown"
mock errors 1 -1 5
arrives "after fetches that failed for an unknown reason"
mock errors 1 2 3
arrives "after fetches that were corrupt"
mock errors 3 5 10
arrives "after metadata without a leader"
mock errors 2 6 5
mock errors 1 1 2
arrives "when offsets cannot be listed at once"
mock flicker 2 6 30
mock errors 1 1 2
arrives "when one of two offsets cannot be listed"
mock rtt 1 700
mock rtt 2 700
mock rtt 3 700
arrives "slowly"
for b in 1 2 3; do mock rtt $b 0; done
mock down 2
sleep 2
mock up 2
arrives "after one broker was down"
for b in 1 2 3; do mock down $b; done
matches "all down is told" "$(problem faults)" 'cannot reach the broker|no broker'
for b in 1 2 3; do mock up $b; done
arrives "after all were down"
mock missing faults 29
matches "a topic that may not be read is told" "$(problem faults)" 'does not allow'
mock missing faults 0
arrives "and goes on when it may"
call "SELECT millrace.create_rule('silent', kind => 'absence', source => 'stg.faults', within => '20 seconds')"
arrives "and what is to come is waited for"
call "SELECT millrace.stop_stream('faults')"
becomes "stopped" "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace stream worker'" 0
call "SELECT pg_sleep(21)"
produce faults $((sent + 1)) $((sent + 100)) -X message.timeout.ms=60000
sent=$((sent + 100))
mock errors 1 6 20
call "SELECT millrace.start_stream('faults')"
becomes "what came meanwhile arrives slowly" "SELECT count(*) FROM stg.faults" "$sent"
is "it was not missed before" "$(sql "SELECT count(*) FROM millrace.alert")" 0
call "SELECT millrace.stop_stream('faults')"
mock errors 2 6 3
is "run_stream waits for a leader" "$(run faults)" 0
is "every message once" "$(sql "SELECT count(*), count(DISTINCT id), max(id) FROM stg.faults")" "$sent|$sent|$sent"
is "every position at its end" "$(sql "SELECT sum(position) FROM millrace.stream_partition WHERE stream = 'faults'")" "$sent"
is "no incident" "$(sql "SELECT string_agg(detail, '; ') FROM millrace.incident")" ""
is "no dead letter" "$(sql "SELECT count(*) FROM millrace.dead_letter")" 0
finish
