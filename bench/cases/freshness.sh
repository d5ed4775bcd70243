# From producing an order to seeing it in the mart.

freshness() {
	local rate side skip p50 p99 warm=${WARM:-10} each=${SECONDS_EACH:-20} full=${FULL:-} seconds= peak= cpu= ours= name
	declare -A figures persecond
	prepare
	for rate in ${RATES:-200 2000 half}; do
		[ "$rate" != half ] || [ -n "$full" ] || measure_full_load
		persecond[$rate]=${rate/half/$((${full:-0} / 2))}
	done
	for side in ours baseline; do
		measures "$side" || continue
		kafka_topic "$side" "$partitions"
		if [ "$side" = ours ]; then
			psql -qX -c 'DROP DATABASE ours WITH (FORCE)' -c 'CREATE DATABASE ours'
			psql -qXAt -d ours -o /dev/null -v broker="$KAFKA_BOOTSTRAP" -v topic=ours -v start=1 -f "$here/../examples/restaurant/plain.sql"
		else
			psql -qX -v ON_ERROR_STOP=1 -d baseline -f "$here/baseline/schema.sql"
			PGDATABASE=baseline "$PYTHON" "$here/baseline/consume.py" "$KAFKA_BOOTSTRAP" baseline &
			on_exit stop $!
		fi
		settle
		skip=0
		for name in ${RATES:-200 2000 half}; do
			rate=${persecond[$name]}
			warm_broker "warm_${side}_$name" "$rate"
			read -r p50 p99 < <(PGDATABASE=$side "$PYTHON" "$here/freshness.py" "$KAFKA_BOOTSTRAP" "$side" "$rate" "$warm" "$each" "$skip") ||
				die "freshness of $side could not be measured"
			say "$side at $rate orders/s: p50 $p50 ms, p99 $p99 ms"
			figures[$side.$name.p50]=$p50
			figures[$side.$name.p99]=$p99
			skip=$((skip + rate * (warm + each)))
		done
		[ "$side" != ours ] || psql -qXAt -d ours -o /dev/null -c "SELECT millrace.stop_stream('orders')"
	done
	for name in ${RATES:-200 2000 half}; do
		for p in p50 p99; do
			result "freshness.${name}_$p" "${figures[ours.$name.$p]:-}" "${figures[baseline.$name.$p]:-}" ms
		done
	done
}

# A broker compiles its code while a load is new to it, and takes a processor for that: it gets this one before, written and read, on a
# topic of its own. What another consumer does otherwise is compiled in the seconds that are not counted.
warm_broker() {
	local reader
	kafka_topic "$1" "$partitions"
	"$PYTHON" "$here/gen_orders.py" $(($2 * 30)) --timestamps --partitions "$partitions" >"$work/warm.tsv"
	kcat -C -q -b "$KAFKA_BOOTSTRAP" -t "$1" -o beginning >/dev/null &
	reader=$!
	on_exit stop "$reader"
	"$here/produce" "$KAFKA_BOOTSTRAP" "$1" --rate "$2" "$work/warm.tsv"
	stop "$reader"
	rm "$work/warm.tsv"
	settle
}

# What was written before must not be in the way of commits: it goes to disk first.
settle() {
	psql -qX -c CHECKPOINT
	sync
	sleep 2
}

# The rate at which a backlog is drained, as kafka_to_marts has it; sets full.
measure_full_load() {
	measures ours || die "how much is half of the full load? Say it by FULL=… orders a second"
	make_orders
	declare_ours
	consume_ours
	full=$ours
}

# Ends a process of ours.
stop() {
	kill "$1" 2>/dev/null || true
	wait "$1" 2>/dev/null || true
}
