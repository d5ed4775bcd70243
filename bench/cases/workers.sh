# Two workers beside one, over the same topic.

# In how many of a hundred looks a worker may wait for a lock: two that take turns wait in fifty; for a key that is new to both, one waits a little.
WAITING_LIMIT=20

workers() {
	local seconds= peak= cpu= waiting= ours= one deadlocks round
	needs_both workers
	prepare
	make_orders
	# the first round is not counted: in it the broker, which works on the same processors, compiles its code
	for ((round = 0; round <= ${ROUNDS:-5}; round++)); do
		declare_ours
		consume_ours
		one=$ours
		declare_ours
		ours_value "SELECT millrace.create_stream('orders', workers => 2, server => 'broker', format => 'json', replace => true,
			options => '{\"topic\": \"orders\", \"start\": \"earliest\"}')" >/dev/null
		consume_ours
		deadlocks=$(ours_value "SELECT deadlocks FROM pg_stat_database WHERE datname = 'ours'")
		[ "$deadlocks" = 0 ] || die "$deadlocks deadlocks"
		[ "$(calc "($waiting > $WAITING_LIMIT)")" = 0 ] || die "the workers wait for each other"
		[ "$round" = 0 ] || echo "$(calc "$ours / $one" %.3f) $ours $one $waiting" | tee -a "$work/rounds" >&2
	done
	# the middle round: what disturbs the machine for a minute, disturbs both of its halves
	read -r _ ours one waiting < <(sort -n "$work/rounds" | sed -n "$((($(wc -l <"$work/rounds") + 1) / 2))p")
	result workers "$ours" "$one" orders/s
	result workers.waiting "$waiting" "$WAITING_LIMIT" %
}
