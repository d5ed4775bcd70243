# Two workers beside one, over the same topic.

# In how many of a hundred looks a worker may wait for a lock: two that take turns wait in fifty; for a key that is new to both, one waits a little.
WAITING_LIMIT=20

workers() {
	local seconds= peak= cpu= waiting= ours= one two apart= deadlocks round
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
		[ "$round" = 0 ] || echo "$(calc "$two / $one" %.3f) $two $one $waiting $(calc "$apart / $one" %.3f) $apart" | tee -a "$work/rounds" >&2
	done
	# the middle round: what disturbs the machine for a minute, disturbs all parts of a round
	read -r _ two one waiting _ < <(middle_by 1)
	result workers "$two" "$one" orders/s
	result workers.waiting "$waiting" "$WAITING_LIMIT" %
	read -r _ _ one _ _ apart < <(middle_by 5)
	result workers.apart "$apart" "$one" orders/s
}

# The middle round by one of its ratios.
middle_by() { sort -n -k "$1,$1" "$work/rounds" | sed -n "$((($(wc -l <"$work/rounds") + 1) / 2))p"; }

# Half of the orders, as a topic of its own.
make_half() {
	head -n $((messages / 2)) "$work/orders.tsv" >"$work/half.tsv"
	kafka_topic half "$partitions"
	"$here/produce" "$KAFKA_BOOTSTRAP" half "$work/half.tsv"
}

# Two streams at once that have nothing in common but the machine, the server and the broker: each drains half of the orders into a database of its own. Sets apart
# (messages a second of both).
consume_apart() {
	local database process slower
	for database in ours other; do
		declare_in "$database" -v topic=half
	done
	PGDATABASE=other "$PYTHON" "$here/consume.py" orders $((messages / 2)) >"$work/other" &
	process=$!
	PGDATABASE=ours "$PYTHON" "$here/consume.py" orders $((messages / 2)) >"$work/ours" || die "millrace did not get through"
	wait "$process" || die "millrace did not get through"
	slower=$(cut -d ' ' -f 1 "$work/ours" "$work/other" | sort -n | tail -n 1)
	apart=$(calc "$messages / $slower")
	say "two streams apart: $slower s, $apart a second together"
	for database in ours other; do
		psql -qXAt -d "$database" -o /dev/null -c "SELECT millrace.stop_stream('orders')" -c CHECKPOINT
	done
	psql -qX -c 'DROP DATABASE other WITH (FORCE)'
}
