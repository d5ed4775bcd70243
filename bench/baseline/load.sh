#!/usr/bin/env bash
# Loads a file of orders (one JSON a line) into the hand-written tables of schema.sql, in the database that PG* names:
#
#	load.sh FILE [BATCH [orders | lifecycle]]
#
# by orders.sql, or by lifecycle.sql (then a line is partition, key, milliseconds, JSON, with tabs between),
# in batches of BATCH lines (default: all at once), each in one transaction, and prints "seconds lines/s". The file
# is read by the server; the clock runs from before the first COPY to after the last COMMIT.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
file=$(realpath "$1")
lines=$(wc -l <"$file")
batch=${2:-$lines}
flavour=${3:-orders}
columns=payload
[ "$flavour" = orders ] || columns='partition, key, ms, payload'

psql -qX -v ON_ERROR_STOP=1 -f "$here/schema.sql"
parts=$(mktemp -d "$(dirname "$file")/parts.XXXXXX")
trap 'rm -rf "$parts"' EXIT
chmod 755 "$parts"
split -a 4 -d -l "$batch" "$file" "$parts/part."
{
	cat "$here/session.sql"
	for part in "$parts"/part.*; do
		# text COPY takes a backslash as an escape; the generator writes none
		printf "BEGIN;\nTRUNCATE raw;\nCOPY raw ($columns) FROM '%s';\n\\\\i '%s'\nCOMMIT;\n" "$part" "$here/$flavour.sql"
	done
} >"$parts/script"
export PGOPTIONS="-c temp_buffers=$((64 + batch * 6 / 1024))MB"       # a batch takes 5 kB an order
start=$(date +%s.%N)
psql -qX ${TIMING:+-c '\timing on'} -v ON_ERROR_STOP=1 -f "$parts/script"
end=$(date +%s.%N)
awk -v s="$start" -v e="$end" -v n="$lines" 'BEGIN { printf "%.2f %.0f\n", e - s, n / (e - s) }'
