# Changes of a table of the same server into a mirror, beside PostgreSQL's own logical replication of the same changes.

cdc_apply() {
	local transactions=${TRANSACTIONS:-200000} rows=${ROWS:-1000000} name last=0 ours baseline
	prepare_cdc
	psql -qX -v ON_ERROR_STOP=1 -d source -c 'CREATE TABLE item (id bigint PRIMARY KEY, customer text, price numeric(12,2), amount integer, at timestamptz)'
	declare_cdc
	cat >"$work/one_row.sql" <<-'SQL'
		\set id random(1, 1000000000)
		INSERT INTO item VALUES (:id::bigint * 1000 + :client_id, 'customer ' || :id % 1000, :id % 10000 / 100.0, :id % 10, now()) ON CONFLICT DO NOTHING;
	SQL
	for name in small large; do
		say "making the changes ($name)"
		if [ "$name" = small ]; then
			PGOPTIONS='-c synchronous_commit=off' PGDATABASE=source "$(pg_bin pgbench)" -n -c 8 -j 2 -t $((transactions / 8)) -f "$work/one_row.sql" >"$work/pgbench.log" 2>&1 ||
				die "$(cat "$work/pgbench.log")"
			changes=$transactions
		else
			psql -qX -d source -c "INSERT INTO item SELECT -i, 'customer ' || i % 1000, i % 10000 / 100.0, i % 10, now() FROM generate_series(1, $rows) i"
			changes=$rows
		fi
		# each side is done when what was committed last can be seen there
		last=$((last - rows - 1))
		psql -qX -d source -c "INSERT INTO item (id) VALUES ($last)"
		ours= baseline=
		if measures baseline; then
			psql -qX -c CHECKPOINT
			baseline=$(calc "$changes / $(cdc_seconds baseline 'ALTER SUBSCRIPTION native ENABLE' "SELECT EXISTS (SELECT FROM item WHERE id = $last)")")
			psql -qX -d baseline -c 'ALTER SUBSCRIPTION native DISABLE'
		fi
		if measures ours; then
			psql -qX -c CHECKPOINT
			ours=$(calc "$changes / $(cdc_seconds ours "SELECT millrace.start_stream('cdc')" "SELECT EXISTS (SELECT FROM bronze.item WHERE id = $last)")")
			psql -qXAt -d ours -o /dev/null -c "SELECT millrace.stop_stream('cdc')"
			psql -qX -d ours -c "SELECT * FROM millrace.stage_stats" >&2
		fi
		result "cdc_apply.$name" "$ours" "$baseline" changes/s
	done
	! measures ours || [ "$(items ours bronze.item)" = "$(items source item)" ] || die "the mirror is not what the source has"
	! measures baseline || [ "$(items baseline item)" = "$(items source item)" ] || die "the baseline is not what the source has"
}

# How many items a table of a database has, and a sum over all that is in them.
items() { psql -qXAt -d "$1" -c "SELECT count(*), sum(hashtext((id, customer, price, amount, at)::text)::bigint) FROM $2"; }

# A server that is source and target of both sides, without a broker unless PREPARE_KAFKA=1.
prepare_cdc() {
	PREPARE_KAFKA=${PREPARE_KAFKA:-0} prepare "wal_level = logical" "max_replication_slots = 10" "max_wal_senders = 10" "logical_decoding_work_mem = 256MB" \
		"wal_retrieve_retry_interval = 100ms" # a subscription that is enabled begins at once, not up to five seconds later
	psql -qX -c 'CREATE DATABASE source'
}

# Both sides with a slot, and stopped.
declare_cdc() {
	psql -qX -v ON_ERROR_STOP=1 -d source -c 'CREATE PUBLICATION native FOR TABLE item'
	if measures baseline; then
		psql -qXAt -v ON_ERROR_STOP=1 -d source -o /dev/null -c "SELECT pg_create_logical_replication_slot('native', 'pgoutput')"
		psql -qX -v ON_ERROR_STOP=1 -d baseline -c 'CREATE TABLE item (id bigint PRIMARY KEY, customer text, price numeric(12,2), amount integer, at timestamptz)' \
			-c "CREATE SUBSCRIPTION native CONNECTION 'host=$PGHOST port=$PGPORT user=postgres dbname=source' PUBLICATION native WITH (create_slot = false, slot_name = native, enabled = false, copy_data = false)"
	fi
	measures ours || return 0
	psql -qXAt -v ON_ERROR_STOP=1 -d ours -o /dev/null -v host="$PGHOST" -v port="$PGPORT" <<-'SQL'
		CREATE EXTENSION millrace;
		CREATE SCHEMA bronze;
		CREATE SERVER source FOREIGN DATA WRAPPER millrace_postgres OPTIONS (host :'host', port :'port', dbname 'source');
		CREATE USER MAPPING FOR postgres SERVER source OPTIONS (username 'postgres');
		SELECT millrace.create_stream('cdc', server => 'source', options => '{"tables": ["public.item"], "snapshot": "never"}');
		SELECT millrace.create_staging('bronze.item', stream => 'cdc', source_table => 'public.item');
		SELECT millrace.start_stream('cdc');
	SQL
	wait_for 60 cdc_ready || die "the stream does not begin"
	psql -qXAt -d ours -o /dev/null -c "SELECT millrace.stop_stream('cdc')"
}

cdc_ready() { [ "$(psql -qXAt -d ours -c 'SELECT count(*) FROM millrace.stream_position')" = 1 ]; }

# Seconds from a statement in a database until a query there is true.
cdc_seconds() {
	local start
	start=$(date +%s.%N)
	psql -qXAt -d "$1" -o /dev/null -c "$2"
	until [ "$(psql -qXAt -d "$1" -c "$3")" = t ]; do sleep 0.01; done
	calc "$(date +%s.%N) - $start" %.3f
}
