# The shop example whole, from changes of a table beside the same as messages in Kafka.

. "$here/cases/cdc_apply.sh"

cdc_to_marts() {
	local seconds= peak= cpu= ours= from_kafka expected end
	needs_both cdc_to_marts
	PREPARE_KAFKA=1 prepare_cdc
	make_shop_orders

	say "from Kafka"
	kafka_topic shop-orders "$partitions"
	"$here/produce" "$KAFKA_BOOTSTRAP" shop-orders "$work/shop.tsv"
	declare_shop -v broker="$KAFKA_BOOTSTRAP"
	consume_ours shop
	from_kafka=$ours
	expected=$(shop_answers)

	say "from the table"
	declare_shop -v source=source -v start=1
	wait_for 60 shop_copied || die "the stream does not begin"
	psql -qXAt -d ours -o /dev/null -c "SELECT millrace.stop_stream('shop')"
	say "making the changes"
	PGOPTIONS='-c synchronous_commit=off' psql -qX -v ON_ERROR_STOP=1 -d source -c "CALL replay(1, $messages - 1)"
	# the position is behind this place when it has passed the last one
	end=$(psql -qXAt -d source -c "SELECT pg_current_wal_insert_lsn() - '0/0' + 1")
	psql -qX -v ON_ERROR_STOP=1 -d source -c "CALL replay($messages, $messages)" -c CHECKPOINT
	consume_ours shop "$end"
	[ "$(shop_answers)" = "$expected" ] || die "the tables of the two sides differ: $(diff <(shop_answers) <(echo "$expected"))"
	result cdc_to_marts "$ours" "$from_kafka" rows/s
}

# Makes the messages of so many orders once: for the producer, and for replay() in the database source, which does to the table what
# they say, each in a transaction of its own. Sets messages.
make_shop_orders() {
	say "making $orders orders"
	psql -qXAt -d source -v orders=0 -o /dev/null -f "$here/../examples/shop/table.sql"
	psql -qXAt -v ON_ERROR_STOP=1 -d source -v orders="$orders" -o /dev/null <<-SQL
		\i $here/../examples/shop/generate.sql
		CREATE TABLE message AS SELECT row_number() OVER () AS n, m FROM pg_temp.shop_messages(:orders) AS m;
		ALTER TABLE message ADD PRIMARY KEY (n);
		CREATE PROCEDURE replay(first bigint, last bigint) LANGUAGE plpgsql AS \$\$
		DECLARE
			message json;
		BEGIN
			FOR message IN SELECT m FROM message WHERE n BETWEEN first AND last ORDER BY n LOOP
				INSERT INTO shop.orders SELECT * FROM json_populate_record(NULL::shop.orders, message)
					ON CONFLICT (order_id) DO UPDATE SET status = EXCLUDED.status, updated_at = EXCLUDED.updated_at;
				COMMIT;
			END LOOP;
		END \$\$;
	SQL
	psql -qXAt -d source -F $'\t' -c "SELECT abs(hashtext(m ->> 'order_id')::bigint) % $partitions, m ->> 'order_id',
		(extract(epoch FROM (m ->> 'updated_at')::timestamptz) * 1000)::bigint, m FROM message ORDER BY n" >"$work/shop.tsv"
	messages=$(wc -l <"$work/shop.tsv")
}

# Declares the shop example in a new database ours, without its rules: to these, messages that were made over months and changes that
# were made in seconds are not the same. Arguments are psql's.
declare_shop() {
	psql -qX -c 'DROP DATABASE IF EXISTS ours WITH (FORCE)' -c 'CREATE DATABASE ours' -c CHECKPOINT
	psql -qXAt -d ours -o /dev/null "$@" -f "$here/../examples/shop/shop.sql"
	psql -qXAt -d ours -o /dev/null -c 'SELECT millrace.drop_rule(rule) FROM millrace.rule_status'
}

# The table was empty when it was copied: all that comes are changes.
shop_copied() { [ "$(ours_value "SELECT state FROM millrace.snapshot_status WHERE stream = 'shop'")" = done ]; }

# What both sides must end with: the clean orders, what was refused, and each mart.
shop_answers() {
	local name
	for name in "silver.orders" "bronze.orders" $(ours_value "SELECT relation FROM millrace.target_status WHERE relation LIKE 'gold.%' ORDER BY 1"); do
		echo "$name $(ours_value "SELECT count(*), sum(hashtext((to_jsonb(t) - '{payload,_version,_event_time,_partition,_position,_loaded_at}'::text[])::text)::bigint) FROM $name t")"
	done
	ours_value 'SELECT reason, rejected FROM gold.rejected ORDER BY 1'
}
