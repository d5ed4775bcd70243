#!/usr/bin/env bash
# Runs a test with a server of its own: test/server.sh COMMAND [ARG ...]. What the server's log says of errors is shown when it fails.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"
temp_dir work
pg_start "$work/server" "fsync = off" "max_worker_processes = 16" "millrace.databases = ''"
code=0
"$@" || code=$?
[ "$code" = 0 ] || grep -E 'ERROR|FATAL|PANIC|terminated' "$work/server/server.log" | tail -n 20 || true
exit "$code"
