#!/usr/bin/env bash
# The restaurant example over a real Redis that learns half of its users late: test/redis/restaurant.sh. Starts servers of its own with
# the millrace that is installed; the last line counts what passed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../..
source "$root/scripts/lib.sh"
source "$here/../kafka/lib.sh"

temp_dir work
pg_start "$work/pg" "millrace.databases = ''" "fsync = off"
redis_start "$work/redis"
"$PYTHON" "$root/bench/gen_orders.py" --dictionary >"$work/dictionary"
awk 'NR % 2 == 1 || /menu/' "$work/dictionary" | redis --pipe >/dev/null
psql -qXAt -o /dev/null -v redis=127.0.0.1 -v redis_port="$REDIS_PORT" -f "$root/examples/restaurant/restaurant.sql"
"$PYTHON" "$root/bench/gen_orders.py" 300 --raw --lifecycle --format json >"$work/orders.json"
psql -qX -v ON_ERROR_STOP=1 -c 'CREATE TABLE sent (n serial, value json)' -c "\\copy sent (value) FROM '$work/orders.json' WITH (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02')"
sent=$(sql "SELECT count(millrace.push('orders', value, key => value ->> 'object_id')) FROM (SELECT value FROM sent ORDER BY n) s")
# Of satellites, what has a log to compare with.
wrong() { sql "SELECT coalesce(sum(v.missing + v.unexpected), 0) FROM millrace.target t, millrace.verify(t.relation) v WHERE t.relation::text NOT IN ('dds.s_product_names', 'dds.es_order_product')"; }

is "all messages are consumed" "$(sql "SELECT messages, dead_letters FROM millrace.run_stream('orders')")" "$sent|0"
waiting=$(sql "SELECT count(*) FROM millrace.pending_message")
like "those of users that are not known wait" "$waiting" '^[1-9][0-9]+$'
is "they are staged without names" "$(sql "SELECT count(*) FROM stg.order_events WHERE username IS NULL") $(sql 'SELECT count(*) FROM stg.order_events')" \
	"$(sql "SELECT count(DISTINCT (value ->> 'id')) FROM (SELECT convert_from(value, 'UTF8')::json -> 'payload' AS value FROM millrace.pending_message) p") 300"
is "vault and marts equal a recompute" "$(wrong)" 0
redis --pipe <"$work/dictionary" >/dev/null
call "SELECT millrace.run_stream('orders')"
is "nothing waits any more" "$(sql 'SELECT count(*) FROM millrace.pending_message')" 0
is "every order has its names" "$(sql "SELECT count(*) FILTER (WHERE username IS NULL OR userlogin IS NULL OR restaurant_name IS NULL), (SELECT count(*) FROM stg.order_items WHERE category_name IS NULL) FROM stg.order_events")" "0|0"
is "every version is logged" "$(sql 'SELECT count(*), count(username) FROM stg.order_events_log')" "$sent|$sent"
is "users are known to the vault" "$(sql 'SELECT count(*) FROM dds.s_user_names_current WHERE username IS NOT NULL')" "$(sql "SELECT count(DISTINCT value #>> '{payload,user,id}') FROM sent")"
is "vault and marts still equal a recompute" "$(wrong)" 0
is "the newest states are those that were sent last" "$(sql "SELECT count(*) FROM stg.order_events e JOIN (SELECT DISTINCT ON (value ->> 'object_id') (value ->> 'object_id')::bigint AS order_id,
	value #>> '{payload,final_status}' AS status FROM sent ORDER BY value ->> 'object_id', n DESC) s USING (order_id, status)")" 300
finish
