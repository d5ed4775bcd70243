# What the tests of Kafka share: checks that are counted, and streams with a staging table each. Source it after scripts/lib.sh,
# with $work being a temporary folder.

passed=0
failed=0

sql() { psql -XAtq -v ON_ERROR_STOP=1 -c "$1"; }
# For what returns nothing.
call() { sql "$1" >/dev/null; }
# Counts a check: is NAME GOT EXPECTED.
is() {
	if [ "$2" = "$3" ]; then
		passed=$((passed + 1))
		echo "ok: $1"
	else
		failed=$((failed + 1))
		echo "not ok: $1: got '$2', expected '$3'"
	fi
}
# Counts a check: like NAME GOT PATTERN.
like() {
	if [[ $2 =~ $3 ]]; then
		passed=$((passed + 1))
		echo "ok: $1"
	else
		failed=$((failed + 1))
		echo "not ok: $1: '$2' does not match '$3'"
	fi
}
# Waits until a query gives a value: becomes NAME QUERY VALUE.
becomes() {
	local deadline=$((SECONDS + 120)) got=
	while :; do
		got=$(sql "$2")
		[ "$got" != "$3" ] || break
		((SECONDS < deadline)) || break
		sleep 0.1
	done
	is "$1" "$got" "$3"
}
matches() {
	local deadline=$((SECONDS + 120)) got=
	while :; do
		got=$(sql "$2")
		[[ ! $got =~ $3 ]] || break
		((SECONDS < deadline)) || break
		sleep 0.1
	done
	like "$1" "$got" "$3"
}
# Produces messages {"id": n} for n from FROM to TO with key n: produce TOPIC FROM TO [KCAT ARGUMENT ...].
produce() {
	local topic=$1 from=$2 to=$3
	shift 3
	seq "$from" "$to" | sed 's/.*/&|{"id": &}/' | kcat -q -P -b "$KAFKA_BOOTSTRAP" -t "$topic" -K '|' "$@"
}
# A stream of a topic with a staging table of the same name: stream NAME OPTIONS [SERVER].
stream() {
	psql -XAtq -v ON_ERROR_STOP=1 >/dev/null 2>>"$work/notices" <<-SQL
		SELECT millrace.create_stream('$1', server => '${3:-broker}', options => '$2');
		SELECT millrace.create_staging('stg.$1', stream => '$1', key => '{"id": ["\$.id", "bigint"]}', columns => '{"k": "\$key", "h": "\$headers.h"}',
			payload => 'none');
	SQL
}
run_now() { sql "SELECT messages FROM millrace.run_stream('$1')"; }
# The same, again when the broker was too slow to answer in time, as the first one to shake hands may be.
run() {
	local deadline=$((SECONDS + 120)) code
	while :; do
		code=0
		run_now "$1" 2>"$work/run.err" || code=$?
		((code != 0 && SECONDS < deadline)) && grep -qE 'cannot reach the broker|no broker can be reached' "$work/run.err" || break
	done
	cat "$work/run.err" >&2
	return "$code"
}
drop() {
	psql -XAtq -v ON_ERROR_STOP=1 >/dev/null 2>&1 <<-SQL
		SELECT millrace.drop_stream('$1', cascade => true);
	SQL
}
problem() { echo "SELECT coalesce(last_error, '') FROM millrace.stream_status WHERE stream = '$1'"; }
# Prints the last line, fails when a check did.
finish() {
	echo "$passed passed, $failed failed"
	[ "$failed" = 0 ]
}
