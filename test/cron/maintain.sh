#!/usr/bin/env bash
# maintain() from the real pg_cron, while its stream runs: what is too old goes, what is new stays, and nothing is in the stream's way. And a model that is trained at night.
# pg_cron begins its jobs at full minutes, so that this takes up to one.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$root/scripts/lib.sh"
need_packages cron

temp_dir work
pg_start "$work/pg" "shared_preload_libraries = 'millrace, pg_cron'" "cron.database_name = 'postgres'" "cron.use_background_workers = on" \
	"millrace.databases = 'postgres'" "max_worker_processes = 20" "fsync = off"
failed=0
ask() { psql -qXAt -v ON_ERROR_STOP=1 -c "$1"; }
is() { # NAME FOUND WANTED
	if [ "$2" = "$3" ]; then
		echo "ok - $1"
	else
		echo "not ok - $1: $2 instead of $3"
		failed=1
	fi
}
holds() { [ "$(ask "SELECT $1")" = t ]; }

ask "CREATE EXTENSION pg_cron; CREATE EXTENSION millrace; CREATE SCHEMA keep"
ask "SELECT millrace.create_stream('keep', letter_retention => '30 days', incident_retention => '30 days');
	SELECT millrace.create_staging('keep.days', stream => 'keep', key => '{\"id\": [\"\$.id\", \"bigint\"]}', columns => '{\"n\": [\"\$.n\", \"integer\"]}',
		log => true, log_partition => 'day', log_retention => '7 days');
	SELECT millrace.create_staging('keep.rows', stream => 'keep', key => '{\"id\": [\"\$.id\", \"bigint\"]}', log => true, log_retention => '7 days');
	SELECT millrace.push('keep', json_build_object('id', i, 'n', CASE WHEN i % 10 = 0 THEN 'x' END)) FROM generate_series(1, 100) i;
	SELECT millrace.start_stream('keep')" >/dev/null
wait_for 240 holds "lag_messages = 0 AND dead_letters = 10 FROM millrace.stream_status" || { ask "SELECT * FROM millrace.stream_status"; echo "not ok - the stream runs"; exit 1; }

# Half of everything becomes old.
ask "DO \$\$ BEGIN PERFORM millrace_internal.extend_log(id, now() - interval '20 days') FROM millrace.staging WHERE log_partition = 'day'; END \$\$;
	UPDATE keep.days_log SET _loaded_at = now() - interval '20 days' WHERE id <= 50;
	UPDATE keep.rows_log SET _loaded_at = now() - interval '20 days' WHERE id <= 50;
	UPDATE millrace.letter SET at = now() - interval '40 days' WHERE position <= 50;
	INSERT INTO millrace.stream_incident (stream_id, kind, detail, at) SELECT id, 'test', 'old', now() - interval '40 days' FROM millrace.stream"
ask "CREATE TABLE keep.bought AS SELECT 'u' || u AS u, 'i' || i AS i FROM generate_series(1, 50) u, generate_series(1, 9) i WHERE (u * i) % 7 < 4;
	SELECT millrace.create_model('keep.knn', kind => 'item_knn', query => 'SELECT u, i FROM keep.bought')" >/dev/null
ask "SELECT cron.schedule('maintain', '* * * * *', 'SELECT millrace.maintain()'), cron.schedule('train', '* * * * *', \$\$ SELECT millrace.train('keep.knn', async => true) \$\$)" >/dev/null

# The stream goes on all the while.
(while sleep 0.02; do ask "SELECT millrace.push('keep', json_build_object('id', 1000 + (random() * 1000)::int, 'n', 1)) FROM generate_series(1, 20)" >/dev/null; done) &
pusher=$!
end_pusher() { kill "$pusher" 2>/dev/null || true; }
on_exit end_pusher
wait_for 150 holds "count(DISTINCT jobid) = 2 FROM cron.job_run_details WHERE status IN ('succeeded', 'failed')" || true
kill "$pusher"
wait "$pusher" 2>/dev/null || true
is "pg_cron ran it" "$(ask "SELECT DISTINCT status FROM cron.job_run_details WHERE status <> 'running'")" succeeded
wait_for 60 holds "count(*) > 0 FROM millrace.training WHERE state IN ('done', 'failed')" || true
is "a model is trained in the background" "$(ask "SELECT DISTINCT state FROM millrace.training WHERE state NOT IN ('waiting', 'running')")" done
is "and served" "$(ask "SELECT count(*) > 0 FROM millrace.similar('keep.knn', 'i1', 3)")" t
is "old days are dropped" "$(ask "SELECT count(*) FROM millrace_internal.log_parts('keep.days_log') WHERE until < now() - interval '7 days'")" 0
is "rows of new days stay" "$(ask "SELECT count(*) FROM keep.days_log WHERE id <= 100")" 45
is "old rows are deleted, new ones stay" "$(ask "SELECT count(*) FILTER (WHERE id <= 50), count(*) FILTER (WHERE id BETWEEN 51 AND 100) FROM keep.rows_log")" "0|50"
is "old letters are gone, new ones stay" "$(ask "SELECT count(*) FROM millrace.dead_letter")" 5
is "the old incident is gone" "$(ask "SELECT count(*) FROM millrace.incident WHERE kind = 'test'")" 0
wait_for 240 holds "lag_messages = 0 FROM millrace.stream_status" || true
is "the stream has run on" "$(ask "SELECT state, lag_messages, coalesce(last_error, '-') FROM millrace.stream_status")" "running|0|-"
is "nothing of it was lost" "$(ask "SELECT count(*) FROM keep.days WHERE id > 100")" "$(ask "SELECT count(DISTINCT id) FROM keep.rows WHERE id > 100")"
exit "$failed"
