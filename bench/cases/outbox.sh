# Messages with keys of their own sent to an HTTP sink without delay over 32 connections, beside a bare loop of libcurl that sends the same.

outbox() {
	local count=${MESSAGES:-50000} ours= baseline= port sink
	PREPARE_KAFKA=0 prepare "millrace.allowed_hosts = '127.0.0.1'"
	make -s -C "$here" sink post
	if measures baseline; then
		start_sink
		"$here/post" "http://127.0.0.1:$port/x" "$count" 32 '{"n": 1}'
		baseline=$(rate_of_sink)
		say "bare loop: $baseline a second"
	fi
	if measures ours; then
		start_sink
		psql -qXAt -d ours -o /dev/null -v ON_ERROR_STOP=1 <<-SQL
			CREATE EXTENSION millrace;
			CREATE SERVER sink FOREIGN DATA WRAPPER millrace_http OPTIONS (url 'http://127.0.0.1:$port');
			SELECT millrace.create_channel('sink', server => 'sink', options => '{"path": "/x", "connections": 32}');
			INSERT INTO millrace.outbox_message (channel_id, key, message, created_at)
			SELECT c.id, 'k' || n, '{"n": 1}', clock_timestamp() FROM millrace.channel c, generate_series(1, $count) n;
			SELECT millrace_internal.wake_delivery();
		SQL
		ours=$(rate_of_sink)
		say "millrace: $ours a second"
	fi
	result outbox "$ours" "$baseline" messages/s
}

# Starts a sink for $count requests; sets port and sink.
start_sink() {
	"$here/sink" "$count" >"$work/sink" &
	sink=$!
	on_exit kill "$sink"
	wait_for 10 test -s "$work/sink" || die "the sink does not start"
	port=$(head -n 1 "$work/sink")
}

# Waits for the sink's end; prints messages a second, from the first to the last.
rate_of_sink() {
	wait_for 300 sink_has_ended || die "not everything has arrived"
	calc "$count / $(tail -n 1 "$work/sink")"
}
sink_has_ended() { [ "$(wc -l <"$work/sink")" = 2 ]; }
