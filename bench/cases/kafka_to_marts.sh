# The restaurant example whole, beside the best set-based SQL that we could write by hand.

# With --lifecycle an order comes several times, its states in any order, some of them twice.
kafka_to_marts() {
	local name=kafka_to_marts ours= baseline= seconds= peak= cpu= batch rate file flavour=orders
	prepare
	if [ "${1:-}" = --lifecycle ]; then
		name=kafka_to_marts.lifecycle
		flavour=lifecycle
		orders=${ORDERS:-100000}
		make_orders --lifecycle --duplicates 5
		file=$work/orders.tsv
	else
		make_orders
		file=$work/orders.json
	fi
	if measures ours; then
		declare_ours
		consume_ours
	fi
	if measures baseline; then
		for batch in ${BATCHES:-10000 50000 all}; do
			psql -qX -c 'DROP DATABASE baseline' -c 'CREATE DATABASE baseline' -c CHECKPOINT
			read -r seconds rate < <(PGDATABASE=baseline "$here/baseline/load.sh" "$file" "${batch/all/$messages}" "$flavour") ||
				die "the baseline failed"
			say "baseline in batches of $batch: $seconds s, $rate a second"
			if [ -z "$baseline" ] || [ "$rate" -gt "$baseline" ]; then baseline=$rate; fi
		done
	fi
	[ "$only" != both ] || same_results "$flavour"
	result "$name" "$ours" "$baseline" messages/s
	! measures ours || result "$name.memory" "$peak" "$(ours_value "SELECT setting::integer / 1024 FROM pg_settings WHERE name = 'millrace.worker_memory'")" MB
}

# Both sides must have come to the same marts, and after life cycles to the same items and newest names and states.
same_results() {
	same_answer marts "SELECT sum(hashtext(format('%s %s %s', user_id, product_id, order_cnt))::bigint) FROM cdm.user_product_counters"
	same_answer marts "SELECT sum(hashtext(format('%s %s %s', user_id, category_name, order_cnt))::bigint) FROM cdm.user_category_counters"
	[ "$1" = lifecycle ] || return 0
	same_answer items "SELECT count(*), sum(hashtext(format('%s %s %s %s', order_id, product_id, quantity, status))::bigint) FROM stg.order_items"
	same_answer names "SELECT sum(hashtext(format('%s %s %s', user_id, username, userlogin))::bigint) FROM (SELECT DISTINCT ON (user_id)
		user_id, username, userlogin FROM dds.s_user_names JOIN dds.h_user USING (h_user_hk) WHERE user_id IS NOT NULL
		ORDER BY user_id, confirmed_at DESC) s"
	same_answer states "SELECT sum(hashtext(format('%s %s %s', order_id, applied_at, status))::bigint) FROM dds.s_order_status
		JOIN dds.h_order USING (h_order_hk) WHERE order_id IS NOT NULL"
}
