# From the commit of a row at a PostgreSQL source to seeing it in the mirror and in a mart, beside PostgreSQL's own logical
# replication.

. "$here/cases/cdc_apply.sh"

freshness_cdc() {
	local rate=${RATE:-500} seconds=${SECONDS_EACH:-20} name p50 p99 first=1
	declare -A figures
	prepare_cdc
	psql -qX -v ON_ERROR_STOP=1 -d source -c 'CREATE TABLE item (id bigint PRIMARY KEY, customer text, price numeric(12,2), amount integer, at timestamptz)'
	declare_cdc
	! measures ours || psql -qXAt -v ON_ERROR_STOP=1 -d ours -o /dev/null -c 'CREATE SCHEMA cdm' \
		-c "SELECT millrace.create_mart('cdm.spent', 'SELECT id, sum(price)::numeric(18,2) AS spent FROM bronze.item GROUP BY id')"
	settle_cdc
	for name in baseline:item ours:bronze.item ours:cdm.spent; do
		measures "${name%:*}" || continue
		if [ "${name%:*}" = ours ]; then
			psql -qXAt -d ours -o /dev/null -c "SELECT millrace.start_stream('cdc')"
		else
			psql -qX -d baseline -c 'ALTER SUBSCRIPTION native ENABLE'
		fi
		read -r p50 p99 < <("$PYTHON" "$here/freshness_cdc.py" source "${name%:*}" "${name#*:}" "$first" "$rate" "$seconds") ||
			die "freshness of $name could not be measured"
		say "$name at $rate transactions/s: p50 $p50 ms, p99 $p99 ms"
		figures[$name.p50]=$p50 figures[$name.p99]=$p99
		first=$((first + rate * seconds))
		if [ "${name%:*}" = ours ]; then
			psql -qXAt -d ours -o /dev/null -c "SELECT millrace.stop_stream('cdc')"
		else
			psql -qX -d baseline -c 'ALTER SUBSCRIPTION native DISABLE'
		fi
	done
	for p in p50 p99; do
		result "freshness_cdc.mirror_$p" "${figures[ours:bronze.item.$p]:-}" "${figures[baseline:item.$p]:-}" ms
		result "freshness_cdc.mart_$p" "${figures[ours:cdm.spent.$p]:-}" "${figures[baseline:item.$p]:-}" ms
	done
}

# What was written before must not be in the way of commits: it goes to disk first.
settle_cdc() {
	psql -qX -c CHECKPOINT
	sync
	sleep 2
}
