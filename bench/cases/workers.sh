# Two workers beside one, over the same topic.

# In how many of a hundred looks a worker may wait for a lock: two that take turns wait in fifty; for a key that is new to both, one waits a little.
WAITING_LIMIT=20

workers() {
	local seconds= peak= cpu= waiting= ours= one deadlocks
	needs_both workers
	prepare
	make_orders
	declare_ours
	consume_ours
	one=$ours
	declare_ours
	ours_value "SELECT millrace.create_stream('orders', workers => 2, server => 'broker', format => 'json', replace => true,
		options => '{\"topic\": \"orders\", \"start\": \"earliest\"}')" >/dev/null
	consume_ours
	deadlocks=$(ours_value "SELECT deadlocks FROM pg_stat_database WHERE datname = 'ours'")
	[ "$deadlocks" = 0 ] || die "$deadlocks deadlocks"
	result workers "$ours" "$one" orders/s
	result workers.waiting "$waiting" "$WAITING_LIMIT" %
	[ "$(calc "($waiting > $WAITING_LIMIT)")" = 0 ] || die "the workers wait for each other"
}
