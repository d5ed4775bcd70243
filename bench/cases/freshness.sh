# From producing an order to seeing it in the mart.

freshness() {
	local rates=${RATES:-200 2000 half} full=${FULL:-} round side name p seconds= peak= cpu= waiting= ours= baseline=
	prepare 'track_commit_timestamp = on'
	make -s -C "$here" metronome
	if [ -z "$full" ] && [[ " $rates " = *" half "* ]]; then
		measures ours || die "how much is half of the full load? Say it by FULL=… orders a second"
		make_orders
	fi
	for ((round = 1; round <= ${ROUNDS:-3}; round++)); do
		for side in ours baseline; do
			! measures "$side" || "freshness_of_$side"
		done
	done
	for name in $rates; do
		for p in p50 p99 p99_undisturbed; do
			ours=
			baseline=
			for side in ours baseline; do
				# without the right to a real-time priority nobody knows what was undisturbed
				[ ! -e "$work/$side.$name.$p" ] || eval "$side=$(median "$work/$side.$name.$p")"
			done
			[ -z "$ours$baseline" ] || result "freshness.${name}_$p" "$ours" "$baseline" ms
		done
	done
}

# A round of ours, on an empty database. The full load is measured just before: the machine is not the same all day.
freshness_of_ours() {
	if [ -e "$work/orders.tsv" ]; then
		declare_ours
		consume_ours
		full=$ours
	fi
	kafka_topic "ours_$round" "$partitions"
	declare_ours -v topic="ours_$round" -v start=1
	freshness_at_rates
	psql -qXAt -d ours -o /dev/null -c "SELECT millrace.stop_stream('orders')"
}

freshness_of_baseline() {
	local consumer
	kafka_topic "baseline_$round" "$partitions"
	psql -qX -c 'DROP DATABASE baseline WITH (FORCE)' -c 'CREATE DATABASE baseline'
	psql -qX -v ON_ERROR_STOP=1 -d baseline -f "$here/baseline/schema.sql"
	PGDATABASE=baseline "$PYTHON" "$here/baseline/consume.py" "$KAFKA_BOOTSTRAP" "baseline_$round" &
	consumer=$!
	on_exit stop "$consumer"
	freshness_at_rates
	stop "$consumer"
}

# One rate after the other, to the same side.
freshness_at_rates() {
	local warm=${WARM:-10} each=${SECONDS_EACH:-20} skip=0 name rate p50 p99 undisturbed left_out
	settle
	for name in $rates; do
		rate=${name/half/$((${full:-0} / 2))}
		[ "$round" != 1 ] || warm_broker "warm_${side}_$name" "$rate"
		read -r p50 p99 undisturbed left_out < <(PGDATABASE=$side "$PYTHON" "$here/freshness.py" "$KAFKA_BOOTSTRAP" "${side}_$round" "$rate" "$warm" "$each" "$skip") ||
			die "freshness of $side could not be measured"
		say "$side at $rate orders/s: p50 $p50 ms, p99 $p99 ms; undisturbed $undisturbed ms, without $left_out % of the orders"
		echo "$p50" >>"$work/$side.$name.p50"
		echo "$p99" >>"$work/$side.$name.p99"
		[ "$undisturbed" = - ] || echo "$undisturbed" >>"$work/$side.$name.p99_undisturbed"
		skip=$((skip + rate * (warm + each)))
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

# Ends a process of ours, unless it has ended: its number may be somebody else's by now.
stop() {
	jobs -p | grep -qx "$1" || return 0
	kill "$1" 2>/dev/null || true
	wait "$1" 2>/dev/null || true
}
