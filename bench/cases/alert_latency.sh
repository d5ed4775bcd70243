# From producing a message to the request that a match rule makes of it: 200 alerts a second with keys of their own, beside a bare consumer that POSTs.

alert_latency() {
	local rate=${RATE:-200} count side p port sink consumer=
	declare -A figures
	count=$((rate * ${SECONDS_EACH:-20}))
	prepare "millrace.allowed_hosts = '127.0.0.1'"
	make -s -C "$here" sink
	awk -v n="$count" 'BEGIN { for (i = 1; i <= n; i++) printf "%d\talert-%07d\t0\t{\"id\": \"alert-%07d\", \"total\": 20000}\n", i % 8, i, i }' >"$work/alerts.tsv"
	for side in ours baseline; do
		measures "$side" || continue
		kafka_topic "$side" "$partitions"
		: >"$work/sink"
		"$here/sink" "$count" "$work/received" >"$work/sink" &
		sink=$!
		on_exit kill "$sink"
		wait_for 10 test -s "$work/sink" || die "the sink does not start"
		port=$(head -n 1 "$work/sink")
		if [ "$side" = ours ]; then
			alerts_declare "$port"
		else
			"$PYTHON" "$here/baseline/hook.py" "$KAFKA_BOOTSTRAP" baseline "$port" &
			consumer=$!
			on_exit kill "$consumer"
		fi
		psql -qX -c CHECKPOINT
		sync
		sleep 2
		"$here/produce" "$KAFKA_BOOTSTRAP" "$side" --rate "$rate" --log "$work/sent" "$work/alerts.tsv"
		wait_for 60 alerts_have_come || die "$side: not every alert has arrived"
		alerts_percentiles "$rate" >"$work/figures"
		read -r "figures[$side.p50]" "figures[$side.p99]" <"$work/figures" || die "$side: alerts are missing"
		say "$side: p50 ${figures[$side.p50]} ms, p99 ${figures[$side.p99]} ms"
		[ "$side" != ours ] || psql -qXAt -d ours -o /dev/null -c "SELECT millrace.stop_stream('alerts')"
	done
	for p in p50 p99; do
		result "alert_latency.$p" "${figures[ours.$p]:-}" "${figures[baseline.$p]:-}" ms
	done
}

# A stream whose every message makes a rule true, which is sent to the sink's port.
alerts_declare() {
	psql -qXAt -d ours -o /dev/null -v ON_ERROR_STOP=1 <<-SQL
		CREATE EXTENSION millrace;
		CREATE SERVER broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers '$KAFKA_BOOTSTRAP');
		CREATE SERVER sink FOREIGN DATA WRAPPER millrace_http OPTIONS (url 'http://127.0.0.1:$1');
		SELECT millrace.create_stream('alerts', server => 'broker', format => 'json', options => '{"topic": "ours", "start": "earliest"}');
		SELECT millrace.create_staging('alerts', stream => 'alerts', key => '{"id": "\$.id"}', columns => '{"total": ["\$.total", "numeric"]}');
		SELECT millrace.create_channel('sink', server => 'sink', options => '{"path": "/x"}');
		SELECT millrace.create_rule('high', kind => 'match', source => 'alerts', predicate => 'total > 10000', details => '{id, total}', channels => '{sink}');
		SELECT millrace.start_stream('alerts');
	SQL
}

alerts_have_come() { [ "$(wc -l <"$work/sink")" = 2 ]; }

# "p50 p99" in ms from what was sent and received, without the first second; nothing when a message has not come.
alerts_percentiles() {
	awk -v skip="$1" 'NR == FNR { if (match($0, /alert-[0-9]+/)) { key = substr($0, RSTART, RLENGTH); if (!(key in at)) at[key] = $1 } next }
		!($1 in at) { exit 1 }
		FNR > skip { printf "%.1f\n", (at[$1] - $2) / 1000 }' "$work/received" "$work/sent" >"$work/latency" || return 0
	sort -n "$work/latency" | awk '{ t[NR - 1] = $1 } END { printf "%s %s\n", t[int(NR / 2)], t[int(NR * 0.99)] }'
}
