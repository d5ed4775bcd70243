#!/usr/bin/env bash
# Kafka as a source, against a real broker: test/kafka/source.sh [CASE ...] (default: all). Starts a server of its own with the
# millrace that is installed, and a broker; the last line counts what passed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../scripts/lib.sh"

source "$here/lib.sh"

temp_dir work
[ "$(id -u)" != 0 ] || chmod 755 "$work"

admin() { kafka_java "org.apache.kafka.tools.$1" --bootstrap-server "$KAFKA_BOOTSTRAP" "${@:2}" >"$work/admin.log" 2>&1; }
delete_topic() {
	admin TopicCommand --delete --topic "$1"
	wait_for 20 bash -c "! kcat -b '$KAFKA_BOOTSTRAP' -L 2>/dev/null | grep -q 'topic \"$1\"'" || true
}
# Deletes the messages before OFFSET of partition 0, as retention does.
truncate_topic() {
	echo '{"partitions": [{"topic": "'"$1"'", "partition": 0, "offset": '"$2"'}], "version": 1}' >"$work/offsets.json"
	kafka_java org.apache.kafka.tools.DeleteRecordsCommand --bootstrap-server "$KAFKA_BOOTSTRAP" --offset-json-file "$work/offsets.json" \
		>"$work/admin.log" 2>&1 ||
		kafka_java kafka.admin.DeleteRecordsCommand --bootstrap-server "$KAFKA_BOOTSTRAP" --offset-json-file "$work/offsets.json" >"$work/admin.log" 2>&1
}

case_start() {
	local time
	kafka_topic start 2
	produce start 1 10 -p 0
	sleep 0.05
	time=$(date -u +%Y-%m-%dT%H:%M:%S.%3NZ)
	sleep 0.05
	produce start 11 20 -p 1
	stream start_e '{"topic": "start"}'
	stream start_l '{"topic": "start", "start": "latest"}'
	stream start_t '{"topic": "start", "start": "'"$time"'"}'
	stream start_o '{"topic": "start", "start": {"0": 4, "1": 9}}'
	stream start_p '{"topic": "start", "partitions": [1]}'
	is "start at the earliest" "$(run start_e)" 20
	is "start at the latest" "$(run start_l)" 0
	is "start at a time" "$(run start_t)" 10
	is "start at offsets" "$(run start_o)" 7
	is "given partitions only" "$(run start_p)" 10
	is "nothing is read twice" "$(run start_e)" 0
	produce start 21 22 -p 1
	is "what came since the latest" "$(run start_l)" 2
	is "positions" "$(sql "SELECT string_agg(partition || ':' || position || ':' || lag_messages, ' ' ORDER BY partition)
		FROM millrace.stream_partition WHERE stream = 'start_l'")" "0:10:0 1:12:0"
	call "SELECT millrace.reset_stream('start_l', start => 'earliest')"
	is "reset to the earliest" "$(run start_l)" 22
	printf 'key|{"id": 99}' | kcat -q -P -b "$KAFKA_BOOTSTRAP" -t start -p 0 -K '|' -H h=väl -H g=x
	printf '23|' | kcat -q -P -b "$KAFKA_BOOTSTRAP" -t start -p 0 -K '|' -Z
	run start_e >/dev/null
	is "key and headers" "$(sql "SELECT k, h FROM stg.start_e WHERE id = 99")" "key|väl"
	for s in start_e start_l start_t start_o start_p; do drop $s; done
}

case_worker() {
	kafka_topic work 2
	stream work '{"topic": "work", "refresh": "1 second"}'
	call "SELECT millrace.start_stream('work')"
	produce work 1 1000
	becomes "a worker reads" "SELECT count(*) FROM stg.work" 1000
	produce work 1001 2000
	becomes "and goes on" "SELECT count(*) FROM stg.work" 2000
	becomes "without lag" "SELECT lag_messages FROM millrace.stream_status WHERE stream = 'work'" 0
	admin TopicCommand --alter --topic work --partitions 4
	sleep 0.5
	produce work 2001 3000
	becomes "new partitions are found" "SELECT count(*) FROM stg.work" 3000
	becomes "and have positions" "SELECT count(*) FROM millrace.stream_partition WHERE stream = 'work'" 4
	kafka_stop KILL
	matches "a broker that is down is told" "$(problem work)" "cannot reach the broker|no broker"
	is "and the worker stays" "$(sql "SELECT state FROM millrace.stream_status WHERE stream = 'work'")" waiting
	kafka_run
	produce work 3001 4000
	becomes "it goes on when the broker is back" "SELECT count(*) FROM stg.work" 4000 40
	becomes "and the problem is gone" "SELECT state FROM millrace.stream_status WHERE stream = 'work'" running
	call "SELECT pg_terminate_backend(pid) FROM millrace.worker_status WHERE stream = 'work'"
	produce work 4001 5000
	becomes "a worker that was ended comes back" "SELECT count(*) FROM stg.work" 5000
	call "SELECT millrace.create_stream('work', server => 'broker', options => '{\"topic\": \"work\"}', workers => 2, replace => true)"
	produce work 5001 6000
	becomes "two workers share the partitions" "SELECT count(*) FROM stg.work" 6000
	is "run_stream while workers run" "$(run work)" 0
	produce work 6001 7000
	becomes "and they go on after it" "SELECT count(*) FROM stg.work" 7000
	is "nothing is dead" "$(sql "SELECT count(*) FROM millrace.dead_letter WHERE stream = 'work'")" 0
	drop work
}

case_waits() {
	stream unknown '{"topic": "unknown_topic"}'
	call "SELECT millrace.start_stream('unknown')"
	matches "an unknown topic is told" "$(problem unknown)" 'topic "unknown_topic" does not exist'
	like "by validate, too" "$(sql "SELECT message FROM millrace.validate('unknown') WHERE severity = 'error'")" 'does not exist'
	kafka_topic unknown_topic 1
	produce unknown_topic 1 5
	becomes "and waited for" "SELECT count(*) FROM stg.unknown" 5
	like "create_stream warned" "$(cat "$work/notices")" 'WARNING: +stream unknown: topic "unknown_topic" does not exist'
	drop unknown
	call "CREATE SERVER nowhere FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '127.0.0.1:1')"
	stream nowhere '{"topic": "x"}' nowhere
	like "an unreachable broker is a warning" "$(cat "$work/notices")" 'stream nowhere: .*(cannot reach|no broker)'
	like "and an error of run_stream" "$(run nowhere 2>&1 || true)" 'stream "nowhere" cannot be read: .*(cannot reach|no broker)'
	drop nowhere
}

case_lost() {
	kafka_topic lost 1
	produce lost 1 100
	for policy in stop earliest latest; do
		stream lost_$policy '{"topic": "lost", "on_lost": "'$policy'"}'
		is "read before the loss ($policy)" "$(run lost_$policy)" 100
	done
	produce lost 101 200
	truncate_topic lost 150
	like "lost messages stop a stream" "$(run lost_stop 2>&1 || true)" 'messages 100 to 149 were deleted before they were read'
	is "or are left out" "$(run lost_earliest)" 50
	is "with what follows" "$(run lost_latest)" 0
	like "an incident names them" "$(sql "SELECT kind, detail FROM millrace.incident WHERE stream = 'lost_earliest'")" \
		'messages_lost\|topic "lost", partition 0: messages 100 to 149 were deleted'
	call "SELECT millrace.start_stream('lost_stop')"
	matches "a worker tells it" "$(problem lost_stop)" 'messages 100 to 149'
	becomes "and keeps the incident" "SELECT count(*) FROM millrace.incident WHERE stream = 'lost_stop'" 1
	call "SELECT millrace.create_stream('lost_stop', server => 'broker', options => '{\"topic\": \"lost\", \"on_lost\": \"earliest\"}', replace => true)"
	becomes "another policy frees it" "SELECT count(*) FROM stg.lost_stop" 150
	for policy in stop earliest latest; do drop lost_$policy; done
}

case_recreated() {
	kafka_topic again 1
	produce again 1 100
	stream beyond '{"topic": "again", "on_lost": "earliest"}'
	stream grown '{"topic": "again", "on_lost": "earliest"}'
	stream grown_stop '{"topic": "again"}'
	for s in beyond grown grown_stop; do run $s >/dev/null; done
	delete_topic again
	kafka_topic again 1
	produce again 201 250
	is "a topic that was created again and is shorter" "$(run beyond)" 50
	like "is an incident" "$(sql "SELECT kind, detail FROM millrace.incident WHERE stream = 'beyond'")" 'topic_recreated\|.*ends at 50'
	is "in a new epoch" "$(sql "SELECT DISTINCT epoch FROM millrace.stream_partition WHERE stream = 'beyond'")" 2
	produce again 251 400
	is "one that has grown past the position" "$(run grown)" 200
	like "is an incident, too" "$(sql "SELECT kind, detail FROM millrace.incident WHERE stream = 'grown'")" 'topic_recreated\|.*message 99 is not the one'
	like "and stops where it should" "$(run grown_stop 2>&1 || true)" 'message 99 is not the one that was read'
	is "without reading anything" "$(sql "SELECT max(id) FROM stg.grown_stop")" 100
	for s in beyond grown grown_stop; do drop $s; done
}

case_compacted() {
	# The message before the position may be gone without anything being wrong.
	kafka_topic compacted 1 cleanup.policy=compact segment.ms=100 min.cleanable.dirty.ratio=0.01 max.compaction.lag.ms=100 delete.retention.ms=100
	stream compacted '{"topic": "compacted"}'
	for i in 1 2 3; do produce compacted 1 50; done
	is "before compaction" "$(run compacted)" 150
	for i in 4 5 6; do
		produce compacted 1 50
		sleep 0.3
	done
	# Fifty to a hundred and fifty, as far as the cleaner has come.
	is "gaps and missing messages are normal" "$(sql "SELECT messages BETWEEN 50 AND 150 FROM millrace.run_stream('compacted')")" t
	is "and nothing is left" "$(run compacted)" 0
	is "no incident" "$(sql "SELECT count(*) FROM millrace.incident WHERE stream = 'compacted'")" 0
	drop compacted
}

case_transactions() {
	local produce="$work/produce"
	cc -O1 -o "$produce" "$here/produce.c" -lrdkafka
	kafka_topic txn 1
	"$produce" "$KAFKA_BOOTSTRAP" txn commit 1 10
	"$produce" "$KAFKA_BOOTSTRAP" txn abort 11 20
	"$produce" "$KAFKA_BOOTSTRAP" txn commit 21 30
	"$produce" "$KAFKA_BOOTSTRAP" txn abort 31 40
	stream txn '{"topic": "txn"}'
	is "messages of aborted transactions are not read" "$(run txn)" 20
	is "nor seen" "$(sql "SELECT count(*) FROM stg.txn WHERE id BETWEEN 11 AND 20 OR id > 30")" 0
	is "control records are no lag" "$(sql "SELECT lag_messages FROM millrace.stream_status WHERE stream = 'txn'")" 0
	is "and nothing is left" "$(run txn)" 0
	drop txn
}

case_security() {
	local secrets="$PGDATA_DIR/millrace_secrets" wrong
	mkdir -p "$secrets"
	cp "$KAFKA_CA" "$secrets/ca.pem"
	cp "$KAFKA_WRONG_CA" "$secrets/wrong-ca.pem"
	printf '%s\n' "$KAFKA_PASSWORD" >"$secrets/password"
	ln -sf /etc/passwd "$secrets/link"
	[ "$(id -u)" != 0 ] || chown -R postgres: "$secrets"
	kafka_topic secure 1
	produce secure 1 10
	psql -Xq -v ON_ERROR_STOP=1 <<-SQL
		CREATE SERVER tls FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '$KAFKA_SASL_BOOTSTRAP', security_protocol 'SASL_SSL',
			sasl_mechanism 'SCRAM-SHA-512', ssl_ca_location 'ca.pem');
		CREATE USER MAPPING FOR CURRENT_USER SERVER tls OPTIONS (sasl_username '$KAFKA_USER', sasl_password_file 'password');
	SQL
	stream scram '{"topic": "secure"}' tls
	is "SCRAM over TLS with a password from a file" "$(run scram)" 10
	call "ALTER SERVER tls OPTIONS (SET sasl_mechanism 'PLAIN')"
	produce secure 11 20
	is "PLAIN over TLS" "$(run scram)" 10
	call "ALTER SERVER tls OPTIONS (SET sasl_mechanism 'SCRAM-SHA-512')"
	call "ALTER USER MAPPING FOR CURRENT_USER SERVER tls OPTIONS (DROP sasl_password_file, ADD sasl_password 'not-the-secret')"
	wrong=$(run scram 2>&1 || true)
	like "a wrong password is told" "$wrong" 'refuses the user name or the password'
	like "validate says what else it may be" "$(sql "SELECT message, hint FROM millrace.validate('scram') WHERE severity = 'error'")" 'password.*(Kafka 4|user mapping)'
	call "SELECT millrace.start_stream('scram')"
	matches "a worker waits" "$(problem scram)" 'refuses the user name or the password'
	call "ALTER USER MAPPING FOR CURRENT_USER SERVER tls OPTIONS (SET sasl_password '$KAFKA_PASSWORD')"
	produce secure 21 30
	becomes "and goes on when the password is right" "SELECT count(*) FROM stg.scram" 30
	call "SELECT millrace.stop_stream('scram')"
	call "ALTER SERVER tls OPTIONS (SET ssl_ca_location 'wrong-ca.pem')"
	like "a wrong authority is told" "$(run scram 2>&1 || true)" 'cannot make a TLS connection.*certificate'
	call "ALTER SERVER tls OPTIONS (SET ssl_ca_location 'link')"
	like "a link out of the directory is refused" "$(run scram 2>&1 || true)" 'not within millrace.secrets_directory'
	call "ALTER SERVER tls OPTIONS (SET ssl_ca_location 'missing.pem')"
	like "a missing file is told" "$(run scram 2>&1 || true)" 'could not find the file of option "ssl_ca_location"'
	call "ALTER SERVER tls OPTIONS (SET ssl_ca_location 'ca.pem')"
	call "CREATE ROLE app LOGIN; GRANT millrace_admin TO app"
	psql -Xq -v ON_ERROR_STOP=1 -U app <<-SQL
		CREATE SERVER theirs FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '$KAFKA_BOOTSTRAP');
	SQL
	like "a non-superuser's server must use a password" \
		"$(psql -XAtq -U app -c "SELECT millrace.create_stream('theirs', server => 'theirs', options => '{\"topic\": \"secure\"}')" 2>&1)" 'must use a password'
	is "no secret is in the log" "$(grep -c -e "$KAFKA_PASSWORD" -e not-the-secret <(grep -v STATEMENT "$PGDATA_DIR/../server.log") || true)" 0
	drop scram
}

case_big() {
	kafka_topic big 1 max.message.bytes=30000000
	stream big '{"topic": "big"}'
	{ printf '1|{"id": 1, "pad": "'; head -c 20000000 /dev/zero | tr '\0' x; printf '"}\n'; } >"$work/big.txt"
	kcat -q -P -b "$KAFKA_BOOTSTRAP" -t big -K '|' -X message.max.bytes=30000000 -l "$work/big.txt"
	produce big 2 3
	is "a message of 20 MB passes" "$(run big)" 3
	drop big
}

pg_start "$work/pg" "millrace.databases = 'postgres'"
PGDATA_DIR=$work/pg/data
kafka_start "$work/kafka" --scram
psql -Xq -v ON_ERROR_STOP=1 <<-SQL
	CREATE EXTENSION millrace;
	CREATE SCHEMA stg;
	CREATE SERVER broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '$KAFKA_BOOTSTRAP');
SQL
[ $# -gt 0 ] || set -- start worker waits lost recreated compacted transactions security big
for name in "$@"; do
	echo "# $name"
	"case_$name"
done
finish
