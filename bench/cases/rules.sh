# What rules cost on the shop's stream: orders pushed into its inbox and consumed in one session, with rules and without.

rules() {
	local rounds=${ROUNDS:-3} round set
	needs_both rules
	PREPARE_KAFKA=0 prepare
	orders=${ORDERS:-100000}
	for round in $(seq "$rounds"); do
		for set in none 4 40 hits; do
			rules_consume "$set" >>"$work/rules.$set"
			say "round $round, rules $set: $(tail -n 1 "$work/rules.$set") messages/s"
		done
	done
	for set in 4 40 hits; do
		result "rules.$set" "$(median "$work/rules.$set")" "$(median "$work/rules.none")" messages/s
	done
}

# A new shop with a set of rules; prints messages a second.
rules_consume() {
	local alerts
	psql -qX -c 'DROP DATABASE IF EXISTS ours WITH (FORCE)' -c 'CREATE DATABASE ours'
	psql -qXAt -d ours -o /dev/null -f "$here/../examples/shop/shop.sql" \
		-c 'SELECT millrace.drop_rule(rule) FROM millrace.rule_status' -c "SELECT millrace.create_channel('ops', options => '{\"channel\": \"bench\"}')"
	rules_of "$1" | psql -qXAt -d ours -o /dev/null -v ON_ERROR_STOP=1
	psql -qXAt -d ours -o /dev/null -f "$here/../examples/shop/generate.sql" -c "SELECT * FROM millrace.run_stream('shop')" \
		-c "SELECT count(millrace.push('shop', m, key => m ->> 'order_id')) FROM pg_temp.shop_messages($orders) m" -c CHECKPOINT
	ours_value "WITH begun AS MATERIALIZED (SELECT clock_timestamp() AS at), run AS MATERIALIZED (SELECT r.messages FROM begun, millrace.run_stream('shop') r)
		SELECT (messages / extract(epoch FROM clock_timestamp() - at))::integer FROM run, begun"
	alerts=$(ours_value "SELECT count(*) FROM millrace.alert WHERE suppressed IS NULL")
	say "$alerts alerts, $(ours_value "SELECT round(sum(seconds)::numeric, 2) FROM millrace.stage_stats WHERE stage = 'alert'") s for them"
	[ "$1" = none ] || [ "$alerts" -gt 0 ] || die "no rule has fired"
}

# Four rules that 1 % of the orders make true, as in the example; forty of which most are about single columns; four with 6 %.
rules_of() {
	case $1 in
		4) rule_of 'total > 10000' 1; rule_of 'quantity > 50' 2; rule_of 'price < -200' 3; rule_of 'quantity <= 0' 4 ;;
		40)
			rule_of 'quantity <= 0' 1
			for n in $(seq 2 20); do rule_of "total > ${n}0000" "$n"; done
			for n in $(seq 21 40); do rule_of "quantity > ${n}" "$n"; done ;;
		hits) rule_of 'quantity <= 0' 1; rule_of 'price < 0' 2; rule_of 'total <> price * quantity' 3; rule_of 'quantity > 50' 4 ;;
	esac
}

rule_of() {
	echo "SELECT millrace.create_rule('rule $2', kind => 'match', source => 'bronze.orders', predicate => '$1', rule_group => 'check', ordinal => $2,
		details => '{order_id, customer_id, total, quantity}', channels => '{ops}');"
}
