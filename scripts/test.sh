#!/usr/bin/env bash
# Builds, installs and tests millrace on this machine.
#
#	scripts/test.sh                 everything
#	scripts/test.sh regress tap     these groups only
#	RUNS=1000 scripts/test.sh property    random histories for hours
#	scripts/test.sh --matrix        regress and property on PostgreSQL 17 and 18, see scripts/matrix.sh
#
#	check      static checks (scripts/check.sh)
#	regress    make installcheck: sql/ against expected/
#	decode     the decode stage alone: its own module, and random documents
#	tap        test/t/*.pl: processes, crashes, dumps
#	property   test/property/*.py: random histories
#	kafka      test/kafka/*.sh: a real broker
#	debezium   test/debezium/*: Debezium's connector on Kafka Connect
#	cdc        test/cdc/*.py: changes of real PostgreSQL servers
#	redis      test/redis/*: a real Redis, dictionaries over it
#	delivery   test/delivery/*: channels to endpoints that misbehave, a real Redis and Kafka
#	cron       test/cron/*: maintain() from the real pg_cron
#	kill       test/kill/*: everything is killed, nothing is lost
#
# What is missing is installed first (Debian, Ubuntu). JOBS=3 tests run at once, since for much of their time they wait; each is shown
# when it ends. BUILD=0 tests the millrace that is installed; LIMIT=1200 seconds is what one script may take. RUNS=1000 lets group
# property make so many histories of each thing that is derived (vault, marts, backfill, erase), and LIMIT a minute more for each. The
# last line counts: N passed, N failed. How a test says what it found is in CONTRIBUTING.md.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/lib.sh"

if [ "${1:-}" = --matrix ]; then
	shift
	exec "$root/scripts/matrix.sh" "$@"
fi

# Those whose tests take long come first: what is left at the end, when nothing waits for a place any more, is short.
all_groups=(kafka debezium delivery kill cdc property redis cron tap regress decode check)
jobs=${JOBS:-3}
runs=${RUNS:-}
limit=${LIMIT:-$((1200 + 60 * ${runs:-0}))}
passed=0
failed=0
names=()              # of all tests that have begun, and
starts=()             # when
declare -A running=() # process → test

# Ends the tests that run when we are interrupted, and waits until they have cleaned up: each is a group of processes.
end_running() {
	local process
	[ ${#running[@]} = 0 ] || kill "${!running[@]}" 2>/dev/null || true
	for process in "${!running[@]}"; do
		wait_for 60 eval '! kill -0 -- "-$process"' || kill -KILL -- "-$process"
	done
}

# The lines by which a test says what it found, pg_regress's in the same form.
findings() {
	sed -E -e 's/^(test| +) *([^ ]+) +\.\.\. ok +([0-9]+ ms)?$/ok - \2/' \
		-e 's/^(test| +) *([^ ]+) +\.\.\. (FAILED|failed).*$/not ok - \2/' "$1" | grep -E '^(not )?ok( [0-9]+| -|:)' || true
}

# Starts a test as soon as there is a place for it.
run() {
	local test=${#names[@]}
	((${#running[@]} < jobs)) || reap
	names+=("$1")
	starts+=("$SECONDS")
	shift
	timeout --kill-after=60 "$limit" "$@" >"$work/output.$test" 2>&1 </dev/null &
	running[$!]=$test
}

# Waits until a test has ended.
reap() {
	local process code
	wait -n "${!running[@]}" || true
	for process in "${!running[@]}"; do
		if ! kill -0 "$process" 2>/dev/null; then
			code=0
			wait "$process" || code=$?
			report "${running[$process]}" "$code"
			unset "running[$process]"
		fi
	done
}

# Counts what a test has said, and shows all of its output when something failed.
report() {
	local name=${names[$1]} log="$work/output.$1" code=$2 seconds=$((SECONDS - starts[$1])) good bad
	good=$(findings "$log" | grep -cE '^ok|# TODO' || true)
	bad=$(findings "$log" | grep -E '^not ok' | grep -cv '# TODO' || true)
	if [ "$code" = 124 ] || [ "$code" = 137 ]; then
		echo "took longer than $limit seconds" >>"$log"
	fi
	if [ "$code" != 0 ] && [ "$bad" = 0 ]; then
		bad=1
	elif [ "$code" = 0 ] && [ "$good" = 0 ] && [ "$bad" = 0 ]; then
		good=1
	fi
	passed=$((passed + good))
	failed=$((failed + bad))
	if [ "$bad" = 0 ]; then
		grep -iE '^#? ?seed' "$log" | sed 's/^#* */  # /' || true
		findings "$log" | sed 's/^/  /'
		echo "ok - $name: $good passed ($seconds s)"
	else
		sed 's/^/  | /' "$log"
		echo "not ok - $name: $bad failed, $good passed (exit code $code, $seconds s)"
	fi
}

# A copy of the sources that the server's user may read and write; set once.
tree=
copy_tree() {
	[ -z "$tree" ] || return 0
	tree=$work/tree
	mkdir "$tree"
	tar -C "$root" --exclude=./.git --exclude='*.o' --exclude='*.bc' --exclude='*.so' --exclude=./tmp_check -cf - . | tar -C "$tree" -xf -
	[ "$(id -u)" != 0 ] || chown -R postgres: "$tree"
}

test_check() { run check "$root/scripts/check.sh"; }

test_regress() {
	copy_tree
	run regress "${unprivileged[@]}" bash -c '
		make -s -C "$1" installcheck || { cat "$1/regression.diffs"; tail -n 50 "$1"/log/postmaster.log "$1"/tmp_check/log/postmaster.log 2>/dev/null; exit 1; }
		' regress "$tree"
}

# The module of this group is installed for as long as the test runs.
test_decode() {
	copy_tree
	on_exit uninstall_decode
	as_root make -s -C "$tree/test/decode" with_llvm=no install >"$work/output" 2>&1 ||
		{ cat "$work/output"; die "test/decode does not build"; }
	run decode/regress "$root/test/server.sh" "${unprivileged[@]}" bash -c '
		make -s -C "$1" installcheck || { cat "$1/regression.diffs"; exit 1; }' decode "$tree/test/decode"
	run fuzz/decode_properties.py "$root/test/server.sh" "$PYTHON" "$root/test/fuzz/decode_properties.py"
}

uninstall_decode() { as_root make -s -C "$tree/test/decode" with_llvm=no uninstall >/dev/null 2>&1 || true; }

test_tap() {
	local file
	copy_tree
	for file in "$tree"/test/t/*.pl; do
		run "t/$(basename "$file")" env PROVE_FLAGS=-v "$tree/test/tap.sh" "$file"
	done
}

# RUNS is for what is derived: the other files have other measures of their length.
test_property() {
	local file files=("$root"/test/property/*.py)
	[ -z "$runs" ] || files=("$root"/test/property/{vault,mart,backfill,erase}.py)
	for file in "${files[@]}"; do
		run "property/$(basename "$file")" "$root/test/server.sh" "$PYTHON" "$file" ${runs:+--runs "$runs"}
	done
}

# What is executable in a folder; it starts servers of its own.
run_folder() {
	local file
	for file in "$root/test/$1"/*; do
		if [ -f "$file" ] && [ -x "$file" ]; then
			run "$1/$(basename "$file")" "$file"
		fi
	done
}
test_kafka() { run_folder kafka; }
test_debezium() { run_folder debezium; }
test_cdc() { run_folder cdc; }
test_redis() { run_folder redis; }
test_delivery() { run_folder delivery; }
test_cron() { run_folder cron; }

# With named points at which processes can be killed, in a copy of PostgreSQL: what is installed has none.
test_kill() {
	local config=${PG_CONFIG:-pg_config} folder
	copy_tree
	cp -r "$tree" "$work/debug"
	make -s -C "$work/debug" clean >/dev/null
	make -s -C "$work/debug" -j "$(nproc)" with_llvm=no DEBUG_POINTS=1 >"$work/output" 2>&1 || { cat "$work/output"; die "the build with debug points fails"; }
	for folder in $("$config" --bindir --pkglibdir --sharedir); do
		mkdir -p "$work/pg$folder"
		cp -a "$folder/." "$work/pg$folder"
	done
	make -s -C "$work/debug" with_llvm=no DEBUG_POINTS=1 DESTDIR="$work/pg" install >/dev/null
	PG_CONFIG=$work/pg$("$config" --bindir)/pg_config run_folder kill
}

# What was started in our temporary folder is gone.
test_processes() {
	local process command left=
	for process in $(ls /proc | grep -E '^[0-9]+$'); do
		command=$(cat "/proc/$process/cmdline" 2>/dev/null | tr '\0' ' ') || continue
		if [[ "$(readlink "/proc/$process/cwd" 2>/dev/null)" == "$work"/* || "$command" == *"$work/"* ]]; then
			left+="$process $command"$'\n'
		fi
	done
	run processes bash -c 'printf %s "$1"; [ -z "$1" ]' processes "$left"
}

install_millrace() { as_root make -s -C "$root" install >/dev/null; }

groups=("$@")
[ $# -gt 0 ] || groups=("${all_groups[@]}")
for group in "${groups[@]}"; do
	[[ " ${all_groups[*]} " == *" $group "* ]] || die "there is no group \"$group\": ${all_groups[*]}"
done

needed=(build test)
[[ ! " ${groups[*]} " =~ \ (kafka|debezium|delivery|kill)\  ]] || needed+=(kafka)
[[ ! " ${groups[*]} " =~ \ (redis|delivery)\  ]] || needed+=(redis)
[[ ! " ${groups[*]} " =~ \ cron\  ]] || needed+=(cron)
need_packages "${needed[@]}"
if [ "${BUILD:-1}" = 1 ]; then
	say "building"
	make -s -C "$root" clean >/dev/null
	make -s -C "$root" -j "$(nproc)" WERROR=1 >/dev/null
	install_millrace
fi

temp_dir work
mkdir -m 1777 "$work/tmp"
export TMPDIR=$work/tmp
unprivileged=()
[ "$(id -u)" != 0 ] || unprivileged=(runuser -u postgres --)
on_exit end_running
start=$SECONDS
shopt -s nullglob
for group in "${groups[@]}"; do
	"test_$group"
done
while ((${#running[@]} > 0)); do reap; done
test_processes
reap
say "$((SECONDS - start)) seconds"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
