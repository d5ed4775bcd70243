# How the rate falls when much is there already: that of the orders that come after each of so many millions.

growth() {
	local seconds= peak= cpu= ours= window=${WINDOW:-300000} marks=() millions at first= last= rate micro kb pages
	needs_both growth
	prepare
	for millions in ${GROWTH:-0.3 1 3 10}; do
		marks+=("$(calc "$millions * 1000000")")
	done
	orders=$((marks[-1] + window))
	say "making $orders orders"
	kafka_topic orders "$partitions" retention.bytes=-1
	"$PYTHON" "$here/gen_orders.py" "$orders" --timestamps --partitions "$partitions" | "$here/produce" "$KAFKA_BOOTSTRAP" orders
	declare_ours
	PGDATABASE=ours "$PYTHON" "$here/consume.py" orders "$orders" "$window" "${marks[@]}" >"$work/growth" || die "millrace did not get through"
	while read -r at rate micro kb pages; do
		say "after $at orders: $rate orders/s; an order takes $micro µs of processor time and $kb kB of log, $pages whole pages among it"
		first=${first:-$rate}
		last=$rate
		result "growth.$at" "$rate" "$first" orders/s
	done < <(tail -n +2 "$work/growth")
	result growth "$last" "$first" orders/s
}
