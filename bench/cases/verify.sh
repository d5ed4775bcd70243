# What proving costs: the rate while another session verifies every table again and again.

verify() {
	local seconds= peak= cpu= waiting= ours= alone count tables table
	needs_both verify
	prepare
	make_orders
	declare_all
	consume_ours
	alone=$ours
	declare_all
	tables=$(ours_value "SELECT relation FROM millrace.target_status UNION ALL SELECT unnest('{stg.order_events,stg.order_items}'::regclass[])::text")
	# shellcheck disable=SC2086 -- one word a table
	verify_again_and_again $tables &
	verifier=$!
	on_exit stop_verifier
	consume_ours
	count=$(wc -l <"$work/verified")
	stop_verifier
	[ "$count" -gt 0 ] || die "nothing was verified meanwhile"
	say "$count times a table was verified meanwhile; now each of $(wc -w <<<"$tables") once more"
	for table in $tables; do
		verify_table "$table"
	done
	! grep -v '|0|0$' "$work/verified" >&2 || die "a table differs from what it is computed from"
	result verify "$ours" "$alone" orders/s
}

# The example with logs, from which satellites and staging tables are judged, and with a point-in-time table.
declare_all() {
	declare_ours -v log=true
	ours_value "SELECT millrace.create_pit('dds.pit_order', hub => 'dds.h_order', satellites => '{dds.s_order_cost, dds.s_order_status}', every => 'day')" >/dev/null
}

verify_table() {
	ours_value "SELECT '$1', missing, unexpected FROM millrace.verify('$1')" >>"$work/verified" || echo "$1 cannot be verified" >>"$work/verified"
}

# Tables are filled, and can be verified, from the first batch on.
all_active() { [ "$(ours_value "SELECT bool_and(state = 'active') FROM millrace.target_status")" = t ]; }

verify_again_and_again() {
	local table
	wait_for 60 all_active
	while :; do
		for table in "$@"; do
			[ ! -e "$work/enough" ] || return 0
			verify_table "$table"
		done
	done
}

stop_verifier() {
	touch "$work/enough"
	wait "${verifier:-}" 2>/dev/null || true
	verifier=
}
