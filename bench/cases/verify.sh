# What proving costs: the rate while another session verifies every derived table again and again.

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

verify_again_and_again() {
	while :; do
		psql -qXAt -d ours 2>/dev/null -c "SELECT t.relation, v.missing, v.unexpected FROM millrace.target_status t, millrace.verify(t.relation::regclass) v
			WHERE t.state = 'active'" >>"$work/verified" || true
	done
}

stop_verifier() {
	[ -z "${verifier:-}" ] || kill "$verifier" 2>/dev/null || true
	wait "${verifier:-}" 2>/dev/null || true
	verifier=
}
