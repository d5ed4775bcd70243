# From producing an order to seeing it in the mart.
freshness() {
	local rate side skip=0 p50 p99
	declare -A figures
	prepare
	for side in ours baseline; do
		measures "$side" || continue
		kafka_topic "$side" "$partitions"
		if [ "$side" = ours ]; then
			psql -qXAt -d ours -o /dev/null -v broker="$KAFKA_BOOTSTRAP" -v topic=ours -v start=1 -f "$here/../examples/restaurant/restaurant.sql"
		else
			psql -qX -v ON_ERROR_STOP=1 -d baseline -f "$here/baseline/schema.sql"
			PGDATABASE=baseline "$PYTHON" "$here/baseline/consume.py" "$KAFKA_BOOTSTRAP" baseline &
			consumer=$!
			on_exit stop_consumer
		fi
		skip=0
		for rate in ${RATES:-200 2000}; do
			read -r p50 p99 < <(PGDATABASE=$side "$PYTHON" "$here/freshness.py" "$KAFKA_BOOTSTRAP" "$side" "$rate" "${SECONDS_EACH:-20}" "$skip") ||
				die "freshness of $side could not be measured"
			say "$side at $rate orders/s: p50 $p50 ms, p99 $p99 ms"
			figures[$side.$rate.p50]=$p50
			figures[$side.$rate.p99]=$p99
			skip=$((skip + rate * ${SECONDS_EACH:-20}))
		done
		[ "$side" != ours ] || psql -qXAt -d ours -o /dev/null -c "SELECT millrace.stop_stream('orders')"
	done
	for rate in ${RATES:-200 2000}; do
		for p in p50 p99; do
			result "freshness.${rate}_$p" "${figures[ours.$rate.$p]:-}" "${figures[baseline.$rate.$p]:-}" ms
		done
	done
}

stop_consumer() {
	[ -z "${consumer:-}" ] || kill "$consumer" 2>/dev/null || true
	wait "${consumer:-}" 2>/dev/null || true
	consumer=
}
