#!/usr/bin/env bash
# Dictionaries over a real Redis, and what a user sees when it, or what it holds, is not as it should be: test/redis/bad_input.sh.
# Starts servers of its own with the millrace that is installed; the last line counts what passed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../scripts/lib.sh"
source "$here/../kafka/lib.sh"

temp_dir work
pg_start "$work/pg" "millrace.databases = 'postgres'" "fsync = off"
redis_start "$work/redis"
psql -Xq -v ON_ERROR_STOP=1 <<-SQL
	CREATE EXTENSION millrace;
	CREATE SCHEMA stg;
	CREATE SCHEMA dds;
	CREATE SERVER cache FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', port '$REDIS_PORT');
SQL

# A stream with a dictionary of the same name, and a staging table: enriched NAME SERVER [ARGUMENTS OF create_dictionary].
enriched() {
	psql -XAtq -v ON_ERROR_STOP=1 >/dev/null 2>"$work/notices" <<-SQL
		SELECT millrace.create_dictionary('$1', server => '$2'${3:+, $3});
		SELECT millrace.create_stream('$1', enrich => '{"user": ["$1", "\$.user"]}');
		SELECT millrace.create_staging('stg.$1', stream => '$1', key => '{"id": ["\$.id", "bigint"]}', columns => '{"name": "\$dict.user.name"}', log => true);
	SQL
}
# Pushes messages about users: push STREAM ID USER [ID USER ...].
push() {
	local stream=$1
	shift
	while [ $# -gt 0 ]; do
		call "SELECT millrace.push('$stream', '{\"id\": $1, \"user\": \"$2\"}')"
		shift 2
	done
}
names() { sql "SELECT coalesce(string_agg(id || ' ' || coalesce(name, '-'), ', ' ORDER BY id), 'none') FROM stg.$1"; }
# What running a stream says: its error, or how many messages there were.
run_says() { sql "SELECT messages FROM millrace.run_stream('$1')" 2>&1 | head -n 1; }
reasons() { sql "SELECT string_agg(reason, '; ' ORDER BY id) FROM millrace.pending_message WHERE stream = '$1'"; }

# ---- what is stored ----------------------------------------------------------------------------------------

redis set u1 '{"name": "Ann"}' >/dev/null
redis hset user:h1 name "B\"ob" age 40 >/dev/null
enriched plain cache "ttl => '0'"
enriched hashes cache "lookup => 'user:<id>', type => 'hash'"
push plain 1 u1 2 u2
push hashes 1 h1
is "values are JSON" "$(run_says plain) $(names plain)" "2 1 Ann, 2 -"
is "fields of hashes are texts" "$(run_says hashes) $(names hashes)" '1 1 B"ob'
is "an unknown id is said" "$(reasons plain)" 'dictionary "plain" does not know "u2"'
redis set u2 '{"name": "Bob"}' >/dev/null
is "and learned" "$(run_says plain) $(names plain)" "0 1 Ann, 2 Bob"

redis lpush wrong x >/dev/null
redis set broken '{"name": ' >/dev/null
redis set nothing '' >/dev/null
redis set binary "$(printf '{"name": "\xff"}')" >/dev/null
head -c 10485760 /dev/zero | tr '\0' ' ' | redis -x set large >/dev/null
push plain 3 wrong 4 broken 5 large 6 nothing 7 binary
is "what cannot be used is staged without" "$(run_says plain) $(sql "SELECT count(*) FROM stg.plain WHERE name IS NULL")" "5 5"
like "invalid JSON is said" "$(reasons plain)" '"broken" of dictionary "plain" cannot be used: invalid input syntax for type json'
like "a value of another type is said" "$(reasons plain)" '"wrong" of dictionary "plain" cannot be used: WRONGTYPE'
like "a value of 10 MB is said" "$(reasons plain)" '"large" of dictionary "plain" cannot be used: it has more than the 1048576 bytes that max_value allows'
like "what is no UTF-8 is said" "$(reasons plain)" '"binary" of dictionary "plain" cannot be used: invalid byte sequence'
is "it is an incident" "$(sql "SELECT count(*) > 0 FROM millrace.incident WHERE stream = 'plain' AND kind = 'dictionary_entry'")" t
redis del wrong >/dev/null
for user in wrong broken large nothing binary; do redis set "$user" "{\"name\": \"$user\"}" >/dev/null; done
is "mended, it is taken" "$(run_says plain) $(names plain)" "0 1 Ann, 2 Bob, 3 wrong, 4 broken, 5 large, 6 nothing, 7 binary"
is "and logged once" "$(sql "SELECT count(*), count(DISTINCT id) FROM stg.plain_log")" "7|7"

# ---- Redis is down -----------------------------------------------------------------------------------------

call "SELECT millrace.start_stream('plain')"
becomes "a stream runs" "SELECT state FROM millrace.stream_status WHERE stream = 'plain'" running
redis_stop KILL
push plain 8 u8
becomes "Redis is killed: the stream waits" "SELECT state FROM millrace.stream_status WHERE stream = 'plain'" waiting
like "it says for what" "$(sql "$(problem plain)")" 'dictionary "plain" cannot be asked: Redis of server "cache" at 127.0.0.1:'
is "nothing is staged" "$(sql "SELECT count(*) FROM stg.plain WHERE id = 8")" 0
like "validate says so, too" "$(sql "SELECT string_agg(message, '; ') FROM millrace.validate('plain') WHERE severity = 'error'")" 'Connection refused'
enriched away cache
like "down at the start: a warning" "$(cat "$work/notices")" 'WARNING:  dictionary "away" cannot be asked: .*Connection refused'
enriched without cache "on_down => 'stage'"
push without 1 u1 2 u8
is "by policy it is staged without" "$(run_says without) $(names without)" "2 1 -, 2 -"
like "and waits" "$(reasons without)" 'entry "u1" of dictionary "without" cannot be used: .*(Connection refused|cannot be reached)'
redis_run
redis set u8 '{"name": "Eve"}' >/dev/null
redis set u1 '{"name": "Ann"}' >/dev/null
becomes "Redis is back: nothing was lost" "SELECT name FROM stg.plain WHERE id = 8" Eve
becomes "the stream runs again" "SELECT state FROM millrace.stream_status WHERE stream = 'plain'" running
call "SELECT millrace.start_stream('without')"
becomes "what was staged without is completed" "SELECT string_agg(name, ', ' ORDER BY id) FROM stg.without" "Ann, Eve"
push plain 9 u9
becomes "an id that a worker does not know" "SELECT pending FROM millrace.dictionary_status WHERE dictionary = 'plain'" 1
redis set u9 '{"name": "Zoe"}' >/dev/null
becomes "is learned by it" "SELECT name FROM stg.plain WHERE id = 9" Zoe
matches "figures are kept" "SELECT hits >= 0 AND misses > 0 AND unknown > 0 AND requests > 0 AND latency_ms > 0 FROM millrace.dictionary_status WHERE dictionary = 'plain'" t
call "SELECT millrace.stop_stream('plain'), millrace.stop_stream('without')"

# ---- Redis does not answer as it should --------------------------------------------------------------------

# Starts a Redis that misbehaves; sets port: misbehaving HOW.
misbehaving() {
	"$PYTHON" "$here/fake.py" "$1" >"$work/$1.port" &
	on_exit kill "$!"
	wait_for 60 test -s "$work/$1.port"
	port=$(cat "$work/$1.port")
}
misbehaving silent
call "CREATE SERVER silent FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', port '$port', timeout '300ms')"
enriched silent silent
like "silence: a warning" "$(cat "$work/notices")" 'no answer within 300 ms'
push silent 1 u1
like "silence is an error after a while" "$(run_says silent)" 'ERROR:  dictionary "silent" cannot be asked: .*no answer within 300 ms'
call "ALTER SERVER silent OPTIONS (SET timeout '1h')"
psql -XAtq -c "SET application_name = 'patient'" -c "SELECT millrace.run_stream('silent')" >"$work/patient" 2>&1 &
becomes "somebody waits" "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'patient' AND wait_event_type = 'Extension'" 1
call "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'patient'"
wait $! || true
like "and can be cancelled" "$(cat "$work/patient")" 'canceling statement due to user request'

misbehaving half
call "CREATE SERVER half FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', port '$port')"
enriched half half
push half 1 a 2 b 3 c 4 d
like "half of a pipeline answered is an error" "$(run_says half)" 'ERROR:  dictionary "half" cannot be asked: .*the connection was closed'
is "nothing is staged of it" "$(names half)" none
is "the next attempt is whole" "$(run_says half) $(names half)" "4 1 Na, 2 Nb, 3 Nc, 4 Nd"

# ---- passwords and TLS -------------------------------------------------------------------------------------

plain_dir=$REDIS_DIR plain_port=$REDIS_PORT plain_pid=$REDIS_PID
on_exit kill "$plain_pid"
redis_start "$work/secure" --tls 'requirepass right'
REDISCLI_AUTH=right redis set u1 '{"name": "Ann"}' >/dev/null
as_root mkdir -p "$work/pg/data/millrace_secrets"
as_root cp "$REDIS_CA" "$REDIS_WRONG_CA" "$work/pg/data/millrace_secrets"
printf 'right\n' | as_root tee "$work/pg/data/millrace_secrets/right" >/dev/null
[ "$(id -u)" != 0 ] || chown -R postgres: "$work/pg/data/millrace_secrets"
psql -Xq -v ON_ERROR_STOP=1 <<-SQL
	CREATE SERVER secure FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', port '$REDIS_PORT', tls 'on', ssl_ca_location 'ca.pem');
	CREATE USER MAPPING FOR CURRENT_USER SERVER secure OPTIONS (password_file 'right');
SQL
enriched secure secure
push secure 1 u1
is "TLS with the right authority and password" "$(run_says secure) $(names secure)" "1 1 Ann"
is "without a warning" "$(cat "$work/notices")" ""
# What running the stream says after the server or the mapping was changed: after STATEMENT.
after() {
	call "$1"
	push secure "$((++last))" u1
	run_says secure
}
last=1
like "a wrong password" "$(after "ALTER USER MAPPING FOR CURRENT_USER SERVER secure OPTIONS (DROP password_file, ADD password 'wrong')")" 'cannot be asked: .*WRONGPASS'
like "no password" "$(after "ALTER USER MAPPING FOR CURRENT_USER SERVER secure OPTIONS (DROP password)")" 'cannot be asked: .*NOAUTH'
call "SELECT millrace.start_stream('secure')"
becomes "a password stops a stream until somebody changes it" "SELECT state FROM millrace.stream_status WHERE stream = 'secure'" failed
call "ALTER USER MAPPING FOR CURRENT_USER SERVER secure OPTIONS (ADD username 'default', ADD password 'right')"
becomes "then it goes on" "SELECT count(name) FROM stg.secure" "$last"
call "SELECT millrace.stop_stream('secure')"
like "a wrong authority" "$(after "ALTER SERVER secure OPTIONS (SET ssl_ca_location 'wrong-ca.pem')")" 'cannot be asked: .*TLS failed: (self.signed certificate|unable to get local issuer certificate|certificate signature failure)'
like "no TLS where there should be" "$(after "ALTER SERVER secure OPTIONS (SET tls 'off')")" 'cannot be asked: '
like "TLS where there is none" "$(after "ALTER SERVER secure OPTIONS (SET tls 'on', SET ssl_ca_location 'ca.pem', SET port '$plain_port', ADD timeout '1s')")" 'cannot be asked: .*(TLS failed|no answer within 1000 ms)'
is "passwords are shown nowhere" "$(sql "SELECT count(*) FROM millrace.worker_status WHERE format('%s', worker_status) ~ 'wrong|right'")" 0

# ---- dump and restore --------------------------------------------------------------------------------------

push plain 10 u10
is "a message waits" "$(run_says plain) $(sql 'SELECT count(*) FROM millrace.pending_message')" "1 1"
"$(pg_bin pg_dump)" postgres >"$work/dump.sql"
psql -Xq -c 'CREATE DATABASE restored'
psql -XAtq -v ON_ERROR_STOP=1 -d restored -f "$work/dump.sql" >/dev/null
export PGDATABASE=restored
is "and comes with a dump" "$(sql "SELECT dictionary, id FROM millrace.pending_message")" "plain|u10"
call "SELECT millrace.adopt()"
REDIS_PORT=$plain_port REDIS_OPTIONS=()
redis set u10 '{"name": "Max"}' >/dev/null
is "and is completed after it" "$(run_says plain) $(sql 'SELECT name FROM stg.plain WHERE id = 10')" "0 Max"
finish
