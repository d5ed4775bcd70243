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
	wait_for 60 bash -c "! kcat -b '$KAFKA_BOOTSTRAP' -L 2>/dev/null | grep -q 'topic \"$1\"'" || true
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
	becomes "the worker waits for a broker that is down" "SELECT state FROM millrace.stream_status WHERE stream = 'work'" waiting
	matches "and says so" "$(problem work)" "cannot reach the broker|no broker"
	kafka_run
	produce work 3001 4000
	becomes "it goes on when the broker is back" "SELECT count(*) FROM stg.work" 4000
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
	matches "by validate, too" "SELECT message FROM millrace.validate('unknown') WHERE severity = 'error'" 'does not exist'
	kafka_topic unknown_topic 1
	produce unknown_topic 1 5
	becomes "and waited for" "SELECT count(*) FROM stg.unknown" 5
	like "create_stream warned" "$(cat "$work/notices")" 'WARNING: +stream unknown: topic "unknown_topic" does not exist'
	drop unknown
	call "CREATE SERVER nowhere FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '127.0.0.1:1')"
	stream nowhere '{"topic": "x"}' nowhere
	like "an unreachable broker is a warning" "$(cat "$work/notices")" 'stream nowhere: .*(cannot reach|no broker)'
	like "and an error of run_stream" "$(run_now nowhere 2>&1 || true)" 'stream "nowhere" cannot be read: .*(cannot reach|no broker)'
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
	# Each round is read before the next one makes it superfluous: the cleaner comes when it likes.
	for i in 1 2 3; do
		produce compacted 1 50
		is "before compaction, $i" "$(run compacted)" 50
	done
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
	matches "validate says what else it may be" "SELECT message, hint FROM millrace.validate('scram') WHERE severity = 'error'" 'password.*(Kafka 4|user mapping)'
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

case_patterns() {
	kafka_topic orders-eu 2
	kafka_topic orders-us 1
	kafka_topic other 1
	produce orders-eu 1 10
	produce orders-us 11 20
	produce other 901 905
	stream pattern '{"topic": "^orders-[a-z]+$", "refresh": "1 second"}'
	stream late '{"topic": "^orders-", "start": "latest", "refresh": "1 second"}'
	stream several '{"topic": ["other", "^orders-u.*", "^(orders-us|nothing)$"]}'
	stream all '{"topic": "^.*"}'
	is "topics that match a pattern are read" "$(run pattern)" 20
	is "one at the latest" "$(run late)" 0
	is "a name and patterns, each topic once" "$(run several)" 15
	is "positions are by topic" "$(sql "SELECT string_agg(DISTINCT topic, ' ' ORDER BY topic) || ' ' || count(*) FROM millrace.stream_partition WHERE stream = 'pattern'")" "orders-eu orders-us 3"
	run all >/dev/null
	is "Kafka's own topics are not meant" "$(sql "SELECT count(*) FROM millrace.stream_partition WHERE stream = 'all' AND topic LIKE E'\\\\_\\\\_%'")" 0
	call "SELECT millrace.start_stream('pattern'), millrace.start_stream('late')"
	kafka_topic orders-asia 2
	produce orders-asia 21 30
	becomes "a topic that comes to match is found" "SELECT count(*) FROM stg.pattern" 30
	becomes "and read from its beginning, wherever the stream began" "SELECT count(*) FROM stg.late" 10
	call "SELECT millrace.create_stream('pattern', server => 'broker', options => '{\"topic\": \"^orders-[a-z]+$\", \"refresh\": \"1 second\"}', workers => 2, replace => true)"
	produce orders-us 31 40
	produce orders-asia 41 50
	becomes "two workers share the topics" "SELECT count(*) FROM stg.pattern" 50
	becomes "both run" "SELECT state || ' ' || workers_running FROM millrace.stream_status WHERE stream = 'pattern'" "running 2"
	delete_topic orders-us
	produce orders-eu 51 60
	becomes "a topic that is deleted does not stop the others" "SELECT count(*) FROM stg.pattern" 60
	is "nothing came twice, nothing is dead" "$(sql "SELECT count(*) FROM millrace.dead_letter WHERE stream = 'pattern'")" 0
	call "SELECT millrace.stop_stream('pattern')"
	kafka_topic orders-late 1
	produce orders-late 61 65
	is "one made while the stream was stopped" "$(run pattern)" 5
	stream none '{"topic": "^nothing-", "refresh": "1 second"}'
	call "SELECT millrace.start_stream('none')"
	matches "no topic matches" "$(problem none)" 'no topic matches the pattern'
	matches "validate tells" "SELECT severity, message FROM millrace.validate('none')" "warning\|0 topics fit"
	kafka_topic nothing-1 1
	produce nothing-1 1 5
	becomes "until one does" "SELECT count(*) FROM stg.none" 5
	becomes "which ends the problem" "SELECT state FROM millrace.stream_status WHERE stream = 'none'" running
	like "a pattern that is none is refused" "$(sql "SELECT millrace.create_stream('wrong', server => 'broker', options => '{\"topic\": \"^orders-(\"}')" 2>&1)" 'invalid topic pattern "\^orders-\("'
	for s in pattern late several all none; do drop $s; done
}

case_preview() {
	local before
	kafka_topic preview 2
	produce preview 1 10 -p 0
	produce preview 11 20 -p 1
	stream preview '{"topic": "preview"}'
	call "SELECT millrace.create_mart('stg.preview_count', 'SELECT count(*) AS n FROM stg.preview')"
	is "a stream that has not begun" "$(sql "SELECT count(*) FILTER (WHERE layer = 'staging'), max(after ->> 'n') FILTER (WHERE layer = 'mart') FROM millrace.preview('preview', 100)")" "20|20"
	is "leaves no position" "$(sql "SELECT count(*) FROM millrace.stream_partition WHERE stream = 'preview'")" 0
	is "and no row" "$(sql "SELECT count(*) FROM stg.preview")" 0
	is "all is still to be read" "$(run preview)" 20
	is "nothing is left to preview" "$(sql "SELECT count(*) FROM millrace.preview('preview')")" 0
	before=$(sql "SELECT string_agg(p::text, ' ' ORDER BY p.partition) FROM millrace.stream_position p JOIN millrace.stream s ON s.id = p.stream_id WHERE s.name = 'preview'")
	produce preview 21 23 -p 1
	printf 'x|{"id": "y"}\n' | kcat -q -P -b "$KAFKA_BOOTSTRAP" -t preview -p 1 -K '|'
	is "messages at the stored position" "$(sql "SELECT string_agg(coalesce(after ->> 'id', after ->> 'n', reason), ' ' ORDER BY layer DESC, message) FROM millrace.preview('preview', 10)")" \
		'21 22 23 23 22P02: invalid input syntax for type bigint: "y"'
	is "at most so many" "$(sql "SELECT count(DISTINCT message) FROM millrace.preview('preview', 2)")" 2
	is "a given message" "$(sql "SELECT string_agg(coalesce(after ->> 'id', after ->> 'n'), ' ' ORDER BY layer DESC) FROM millrace.preview('preview', payload => '{\"id\": 99}')")" "99 21"
	is "positions stay" "$(sql "SELECT string_agg(p::text, ' ' ORDER BY p.partition) FROM millrace.stream_position p JOIN millrace.stream s ON s.id = p.stream_id WHERE s.name = 'preview'")" "$before"
	call "SELECT millrace.start_stream('preview')"
	becomes "a worker takes them" "SELECT count(*) FROM stg.preview" 23
	is "a preview while it runs" "$(sql "SELECT count(*) FROM millrace.preview('preview')")" 0
	produce preview 24 1000
	for i in 1 2 3; do call "SELECT count(*) FROM millrace.preview('preview', 100)"; done
	becomes "does not disturb it" "SELECT count(*) FROM stg.preview" 1000
	is "no failure" "$(sql "SELECT coalesce(max(failures), 0) FROM millrace.worker_status WHERE stream = 'preview'")" 0
	drop preview
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
[ $# -gt 0 ] || set -- start worker waits lost recreated compacted transactions patterns preview security big
for name in "$@"; do
	echo "# $name"
	"case_$name"
done
finish
