# What proving costs: the rate while another session verifies hubs, links and marts again and again.

verify() {
	local seconds= peak= cpu= ours= alone count
	needs_both verify
	prepare
	make_orders
	declare_ours
	consume_ours
	alone=$ours
	declare_ours
	verify_again_and_again &
	verifier=$!
	on_exit stop_verifier
	consume_ours
	count=$(wc -l <"$work/verified")
	stop_verifier
	[ "$count" -gt 0 ] || die "nothing was verified meanwhile"
	! grep -v '|0|0$' "$work/verified" >&2 || die "a table differs from its query"
	say "$count tables were verified meanwhile"
	result verify "$ours" "$alone" orders/s
}

# Satellites could be verified from a log of all versions only, which the example does not keep.
verify_again_and_again() {
	local table
	while [ ! -e "$work/enough" ]; do
		for table in $(ours_value "SELECT relation FROM millrace.target_status WHERE kind <> 'satellite' AND state = 'active'"); do
			ours_value "SELECT '$table', missing, unexpected FROM millrace.verify('$table')" >>"$work/verified"
		done
	done
}

stop_verifier() {
	touch "$work/enough"
	wait "${verifier:-}" 2>/dev/null || true
	verifier=
}
