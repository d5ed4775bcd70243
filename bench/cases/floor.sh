# What PostgreSQL needs to write the same final rows: binary COPY into the same empty tables with their keys.

floor() {
	local seconds= peak= cpu= ours= table columns order baseline=0 start end
	needs_both floor
	prepare
	make_orders
	declare_ours
	consume_ours
	psql -qX -d ours -c 'CREATE SCHEMA floor'
	while IFS='|' read -r table order; do
		psql -qX -v ON_ERROR_STOP=1 -d ours -c "COPY (SELECT * FROM $table t ORDER BY $order) TO '$work/pg/$table' (FORMAT binary)" \
			-c "CREATE TABLE floor.\"$table\" (LIKE $table INCLUDING INDEXES)"
	done < <(final_tables | tee "$work/tables")
	psql -qX -d ours -c CHECKPOINT
	start=$(date +%s.%N)
	cut -d '|' -f 1 "$work/tables" | sed "s,.*,COPY floor.\"&\" FROM '$work/pg/&' (FORMAT binary);," | psql -qX -v ON_ERROR_STOP=1 -d ours
	end=$(date +%s.%N)
	baseline=$(calc "$end - $start" %.2f)
	say "COPY of $(wc -l <"$work/tables") tables: $baseline s"
	result floor "$seconds" "$baseline" s
}

# The tables that were written, each with the order in which its rows came: by position or version where a row has one; else the
# key is a hash or a pair of random ids, and arrival is no order of it at all.
final_tables() {
	ours_value "SELECT c.oid::regclass || '|' || CASE
			WHEN bool_or(attname = '_element') THEN '_position, _partition, _element'
			WHEN bool_or(attname = '_position') THEN '_position, _partition'
			WHEN bool_or(attname = 'position') THEN 'position'
			WHEN bool_or(attname = 'version') THEN 'version'
			ELSE 'md5(t::text)' END
		FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid
		WHERE relkind = 'r' AND attnum > 0 AND relnamespace IN ('stg'::regnamespace, 'dds'::regnamespace, 'millrace_state'::regnamespace)
		GROUP BY c.oid ORDER BY c.oid"
}
