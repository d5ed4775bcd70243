# The plain restaurant example with the names of users and restaurants looked up in a Redis, beside the same messages without.

enrich() {
	local seconds= peak= cpu= ours= enriched plain names
	needs_both enrich
	need_packages redis
	prepare
	redis_start "$work/redis"
	"$PYTHON" "$here/gen_orders.py" --dictionary | redis --pipe >/dev/null
	make_orders
	declare_ours
	consume_ours
	plain=$ours
	names=$(ours_value "$names_of_orders")
	declare_ours
	look_names_up
	consume_ours
	enriched=$ours
	[ "$(ours_value "$names_of_orders")" = "$names" ] || die "the names that were looked up differ from those in the messages"
	psql -qX -d ours -c 'SELECT dictionary, hits, misses, requests, latency_ms FROM millrace.dictionary_status' \
		-c 'SELECT stage, round(seconds::numeric, 2) AS seconds FROM millrace.stage_stats' >&2
	result enrich "$enriched" "$plain" messages/s
}

# Users who have changed their names are known in the Redis by the first one.
names_of_orders="SELECT count(*), sum(hashtext(format('%s %s %s %s', order_id, restaurant_name, replace(username, ' jr.', ''), userlogin))::bigint) FROM stg.order_events"

# Two look-ups for each message; nothing else changes.
look_names_up() {
	psql -qXAt -d ours -o /dev/null -v ON_ERROR_STOP=1 <<-SQL
		CREATE SERVER cache FOREIGN DATA WRAPPER millrace_redis OPTIONS (host '127.0.0.1', port '$REDIS_PORT');
		SELECT millrace.create_dictionary('users', server => 'cache');
		SELECT millrace.create_dictionary('restaurants', server => 'cache');
		SELECT millrace.create_stream('orders', server => 'broker', options => '{"topic": "orders", "start": "earliest"}', replace => true,
			enrich => '{"user": ["users", "\$.payload.user.id"], "restaurant": ["restaurants", "\$.payload.restaurant.id"]}');
		SELECT replace(replace(replace(millrace.describe('staging', 'stg.order_events'), '\$.payload.restaurant.name', '\$dict.restaurant.name'),
			'\$.payload.user.name', '\$dict.user.name'), '\$.payload.user.login', '\$dict.user.login') AS declaration \gset
		SELECT replace(:'declaration', 'key =>', 'replace => true, key =>') AS declaration \gset
		:declaration
	SQL
}
