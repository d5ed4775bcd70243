# Kafka to one staging table beside COPY of the same rows.
kafka_to_staging() {
	local ours= baseline= start end
	measures ours || die "the baseline of kafka_to_staging loads what millrace wrote: it needs both"
	prepare
	make_orders
	psql -qXAt -v ON_ERROR_STOP=1 -d ours -o /dev/null -v broker="$KAFKA_BOOTSTRAP" <<-'SQL'
		CREATE EXTENSION millrace;
		CREATE SCHEMA stg;
		CREATE SERVER broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers :'broker');
		SELECT millrace.create_stream('orders', server => 'broker', format => 'json', options => '{"topic": "orders", "start": "earliest"}');
		SELECT millrace.create_staging('stg.order_events', stream => 'orders', payload => 'jsonb',
		  key => '{"order_id": [["$.object_id", "$key"], "bigint"]}',
		  version => '["$timestamp", "timestamptz"]', event_time => '["$.payload.date", "timestamptz"]',
		  columns => '{"restaurant_id": "$.payload.restaurant.id", "restaurant_name": "$.payload.restaurant.name",
		               "user_id": "$.payload.user.id", "username": "$.payload.user.name", "userlogin": "$.payload.user.login",
		               "status": "$.payload.status",
		               "cost": ["$.payload.cost", "numeric(12,2)"], "payment": ["$.payload.payment", "numeric(12,2)"]}');
	SQL
	consume_ours
	[ "$(ours_value 'SELECT count(*) FROM stg.order_events')" = "$orders" ] || die "stg.order_events has not $orders rows"
	# the same rows, in order of arrival, into a table with the same columns and primary key
	psql -qX -v ON_ERROR_STOP=1 -d ours \
		-c "COPY (SELECT * FROM stg.order_events ORDER BY _position, _partition) TO '$work/pg/rows'" \
		-c "CREATE TABLE stg.copied (LIKE stg.order_events)" -c "ALTER TABLE stg.copied ADD PRIMARY KEY (order_id)" -c CHECKPOINT
	start=$(date +%s.%N)
	psql -qX -v ON_ERROR_STOP=1 -d ours -c "COPY stg.copied FROM '$work/pg/rows'"
	end=$(date +%s.%N)
	baseline=$(calc "$orders / ($end - $start)")
	result kafka_to_staging "$ours" "$baseline" messages/s
}
