#!/usr/bin/env bash
# Runs the TAP tests: test/tap.sh [FILE ...] (default: test/t/*.pl). Each test starts servers of its own with the millrace that
# is installed; root hands over to user postgres.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../scripts/lib.sh"

# Ends servers whose test was ended before it could stop them.
stop_servers() {
	local file pids=()
	while read -r file; do
		pids+=("$(head -n 1 "$file")")
	done < <(find "$work" -name postmaster.pid 2>/dev/null)
	[ ${#pids[@]} = 0 ] || kill -QUIT "${pids[@]}" 2>/dev/null || true
	[ ${#pids[@]} = 0 ] || wait_for 20 eval '! kill -0 "${pids[@]}"'
}

[ $# -gt 0 ] || set -- "$here"/t/*.pl
files=()
for file in "$@"; do
	files+=("$(realpath "$file")")
done
temp_dir work
on_exit stop_servers
[ "$(id -u)" != 0 ] || chown postgres: "$work"
regress=$("${PG_CONFIG:-pg_config}" --pgxs)
regress=$(dirname "$regress")/../test/regress/pg_regress
perl=$(dirname "$regress")/../perl

code=0
# The servers' folders are $work/…: what they leave in their logs is shown when a test fails.
as_server env PATH="$(dirname "$(pg_bin psql)"):$PATH" PG_REGRESS="$regress" TESTDIR="$work" TESTDATADIR="$work" \
	TESTLOGDIR="$work/log" top_builddir="$work" with_icu=no PERL5LIB="$here/lib:$perl${PERL5LIB:+:$PERL5LIB}" \
	prove ${PROVE_FLAGS:-} "${files[@]}" || code=$?
if [ "$code" != 0 ]; then
	tail -n 60 "$work"/log/*_*.log "$work"/tmp_check/log/*.log >&2 2>/dev/null || true
fi
exit "$code"
