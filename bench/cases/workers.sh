# Two workers beside one, over the same topic.

# In how many of a hundred looks a worker may wait for a lock: two that take turns wait in fifty; for a key that is new to both, one waits a little.
WAITING_LIMIT=20

workers() {
	local seconds= peak= cpu= waiting= ours= one two alone= apart= deadlocks round
	needs_both workers
	prepare "millrace.databases = 'ours,other'"
	make_orders
	make_half
	# the first round is not counted: in it the broker, which works on the same processors, compiles its code
	for ((round = 0; round <= ${ROUNDS:-5}; round++)); do
		declare_ours
		consume_ours
		one=$ours
		declare_ours
		ours_value "SELECT millrace.create_stream('orders', workers => 2, server => 'broker', format => 'json', replace => true,
			options => '{\"topic\": \"orders\", \"start\": \"earliest\"}')" >/dev/null
		consume_ours
		two=$ours
		deadlocks=$(ours_value "SELECT deadlocks FROM pg_stat_database WHERE datname = 'ours'")
		[ "$deadlocks" = 0 ] || die "$deadlocks deadlocks"
		[ "$(calc "($waiting > $WAITING_LIMIT)")" = 0 ] || die "the workers wait for each other"
		consume_apart
		[ "$round" = 0 ] || echo "$(calc "$two / $one" %.3f) $two $one $waiting $(calc "$apart / $alone" %.3f) $apart $alone" | tee -a "$work/rounds" >&2
	done
	# the middle round by a ratio: what disturbs the machine for a minute, disturbs all parts of a round
	read -r _ two one waiting _ < <(median "$work/rounds" 1)
	result workers "$two" "$one" orders/s
	result workers.waiting "$waiting" "$WAITING_LIMIT" %
	read -r _ _ _ _ _ apart alone < <(median "$work/rounds" 5)
	result workers.apart "$apart" "$alone" orders/s
}

# Makes half of the orders a topic of its own.
make_half() {
	head -n $((messages / 2)) "$work/orders.tsv" >"$work/half.tsv"
	kafka_topic half "$partitions"
	"$here/produce" "$KAFKA_BOOTSTRAP" half "$work/half.tsv"
}

# What the machine gives to two at once: half of the orders drained by a stream alone, and then by two that have nothing in common but the machine, the server and
# the broker, each into a database of its own. Sets alone and apart (messages a second of all).
consume_apart() {
	local half=$((messages / 2)) process slower
	declare_ours -v topic=half
	alone=$(calc "$half / $(drain_half ours)")
	declare_ours -v topic=half
	declare_in other -v topic=half
	drain_half other >"$work/other" &
	process=$!
	drain_half ours >"$work/ours"
	wait "$process"
	slower=$(sort -n "$work/ours" "$work/other" | tail -n 1)
	apart=$(calc "2 * $half / $slower")
	say "half of the orders: a stream alone $alone a second, two apart $apart a second together"
	psql -qX -c 'DROP DATABASE other WITH (FORCE)'
}

# Drains half of the orders into a database, and prints the seconds.
drain_half() {
	local seconds
	read -r seconds _ < <(PGDATABASE=$1 "$PYTHON" "$here/consume.py" orders $((messages / 2))) || die "millrace did not get through"
	psql -qXAt -d "$1" -o /dev/null -c "SELECT millrace.stop_stream('orders')"
	echo "$seconds"
}
