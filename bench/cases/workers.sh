# Two workers beside one, over the same topic.

# In how many of a hundred looks a worker may wait for a lock: two that take turns wait in fifty; for a key that is new to both, one waits a little.
WAITING_LIMIT=20

workers() {
	local seconds= peak= cpu= waiting= ours= deadlocks round
	needs_both workers
	prepare
	make_orders
	# the first round is not counted: in it the broker, which works on the same processors, compiles its code
	for ((round = 0; round <= ${ROUNDS:-3}; round++)); do
		declare_ours
		consume_ours
		[ "$round" = 0 ] || echo "$ours" >>"$work/one"
		declare_ours
		ours_value "SELECT millrace.create_stream('orders', workers => 2, server => 'broker', format => 'json', replace => true,
			options => '{\"topic\": \"orders\", \"start\": \"earliest\"}')" >/dev/null
		consume_ours
		[ "$round" = 0 ] || { echo "$ours" >>"$work/two"; echo "$waiting" >>"$work/waiting"; }
		deadlocks=$(ours_value "SELECT deadlocks FROM pg_stat_database WHERE datname = 'ours'")
		[ "$deadlocks" = 0 ] || die "$deadlocks deadlocks"
	done
	waiting=$(median "$work/waiting")
	result workers "$(median "$work/two")" "$(median "$work/one")" orders/s
	result workers.waiting "$waiting" "$WAITING_LIMIT" %
	[ "$(calc "($waiting > $WAITING_LIMIT)")" = 0 ] || die "the workers wait for each other"
}
