# Who drops, erases or pauses a filling waits for who is at work there, and never in a circle.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('locks', databases => '', conf => "deadlock_timeout = 50ms\nfsync = off\n");

make_stream($node, 'postgres');
$node->safe_psql('postgres', q{
	SET ROLE etl;
	SELECT millrace.create_staging('stg.visit', stream => 'events', key => '{"id": ["$.id", "bigint"]}', columns => '{"v": "$.v"}');
	SELECT millrace.create_stream('others');
	SELECT millrace.create_staging('stg.other', stream => 'others', key => '{"id": ["$.id", "bigint"]}', columns => '{"v": "$.v"}');
	SELECT millrace.create_hub('stg.h_v', source => 'stg.other', business_key => '{v}');
	SELECT millrace.add_source('stg.h_v', source => 'stg.visit');
	SELECT millrace.create_rule('heard', kind => 'absence', source => 'stg.other', key => '{v}', within => '1 day')});
push_rows($node, 'postgres', 1, 20);
$node->safe_psql('postgres', "SELECT millrace.run_stream('events'); SELECT millrace.run_stream('others')");

# Begins a statement that has to wait; returns the session when it does.
sub begin_waiting
{
	my ($what, $sql) = @_;
	my $session = open_session($node, 'postgres');

	ask($session, 'SET client_min_messages = error; SET ROLE etl');
	my $pid = ask($session, 'SELECT pg_backend_pid()');
	$session->{out} = '';
	$session->{in} .= "$sql;\n\\echo done\n";
	$session->{run}->pump_nb;
	ok(poll($node, 'postgres', "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid"), "$what waits");
	return $session;
}

# Waits for its end; returns what went wrong.
sub end_waiting
{
	my ($session) = @_;

	$session->{run}->pump until $session->{out} =~ /^done\n/m;
	my $error = $session->{err};
	close_session($session);
	return $error;
}

# An erasure has the stream, and waits for its row; a table is dropped meanwhile.
my $holder = open_session($node, 'postgres');
for my $table ('stg.visit', 'stg.event')
{
	ask($holder, "BEGIN; SELECT FROM millrace.stream WHERE name = 'events' FOR UPDATE");
	my $eraser = begin_waiting('an erasure', q{SELECT count(*) FROM millrace.erase('events', '{"v": "v1"}')});
	my $dropper = begin_waiting("who drops $table", "SELECT millrace.drop_table('$table', cascade => true)");
	ask($holder, 'COMMIT');
	is(end_waiting($eraser), '', 'the erasure ends');
	is(end_waiting($dropper), '', 'and the other one');
}

# Somebody has begun to change a table when an erasure begins.
ask($holder, "BEGIN; SELECT FROM millrace.staging WHERE relation = 'stg.other'::regclass FOR UPDATE");
my $changer = begin_waiting('who adds a log',
	q{SELECT millrace.create_staging('stg.other', stream => 'others', key => '{"id": ["$.id", "bigint"]}', columns => '{"v": "$.v"}', log => true, replace => true)});
my $eraser = begin_waiting('an erasure', q{SELECT count(*) FROM millrace.erase('others', '{"v": "v1"}')});
ask($holder, 'COMMIT');
is(end_waiting($changer), '', 'the table is changed');
is(end_waiting($eraser), '', 'and somebody erased');

# A batch is in progress that may need a rule.
ask($holder, "BEGIN; SELECT millrace_internal.lock_stream(id, false) FROM millrace.stream WHERE name = 'others'");
my $dropper = begin_waiting('who drops a rule', "SELECT millrace.drop_rule('heard')");
ask($holder, 'COMMIT');
is(end_waiting($dropper), '', 'and goes on');

# The last chunk of a filling is in progress while that is paused: pausing waits for it, and tells that there is nothing to pause any more.
$node->safe_psql('postgres', q{
	SET ROLE etl;
	SELECT millrace.create_staging('stg.late', stream => 'events', key => '{"id": ["$.id", "bigint"]}', columns => '{"v": "$.v"}')});
push_rows($node, 'postgres', 21, 40);
$node->safe_psql('postgres', q{
	SET ROLE etl;
	SELECT millrace.run_stream('events');
	SELECT millrace.create_hub('stg.h_late', source => 'stg.late', business_key => '{v}');
	SELECT millrace.pause_backfill('stg.h_late');
	SELECT millrace.run_stream('events')});
is($node->safe_psql('postgres', "SELECT state, chunks FROM millrace.backfill_status WHERE relation = 'stg.h_late'"), 'paused|0', 'a filling is paused before its first chunk');

ask($holder, 'BEGIN; LOCK TABLE stg.h_late IN SHARE MODE');
$node->safe_psql('postgres', "SET ROLE etl; SELECT millrace.resume_backfill('stg.h_late')");
my $filler = begin_waiting('a chunk', "SELECT millrace.run_stream('events')");
my $pauser = begin_waiting('who pauses', "SELECT millrace.pause_backfill('stg.h_late')");
ask($holder, 'COMMIT');
is(end_waiting($filler), '', 'the chunk ends');
like(end_waiting($pauser), qr/hub stg.h_late is not being filled/, 'and was the last one');
is($node->safe_psql('postgres', "SELECT state, paused, rows_done FROM millrace.backfill_status WHERE relation = 'stg.h_late'"), 'done|f|20', 'which is what the status says');

# Somebody has a stream, as a chunk or an activation has: who declares something anew waits for that, and has no row of the target then.
$node->safe_psql('postgres', q{
	SET ROLE etl;
	SELECT millrace.create_staging('stg.more', stream => 'others', key => '{"id": ["$.id", "bigint"]}', columns => '{"v": "$.v"}', log => true);
	SELECT millrace.create_staging('stg.logged', stream => 'events', key => '{"id": ["$.id", "bigint"]}', columns => '{"v": "$.v", "w": "$.w"}', log => true)});
push_rows($node, 'postgres', 51, 60);
$node->safe_psql('postgres', q{
	SELECT millrace.push('others', '{"id": 1, "v": "of others"}', key => '1');
	SELECT millrace.run_stream('events');
	SELECT millrace.run_stream('others');
	SET ROLE etl;
	SELECT millrace.create_hub('stg.h_logged', source => 'stg.logged', business_key => '{v}');
	SELECT millrace.create_satellite('stg.s_logged', source => 'stg.logged', parent => 'stg.h_logged', attributes => '{id}');
	SELECT millrace.create_pit('stg.p_logged', hub => 'stg.h_logged', satellites => '{stg.s_logged}', every => 'day');
	SELECT millrace.run_stream('events')});
my %declared = (
	'h_logged' => q{SELECT millrace.add_source('stg.h_logged', source => 'stg.more')},
	's_logged' => q{SELECT millrace.create_satellite('stg.s_logged', source => 'stg.logged', parent => 'stg.h_logged', attributes => '{id, w}', replace => true)},
	'p_logged' => q{SELECT millrace.create_pit('stg.p_logged', hub => 'stg.h_logged', satellites => '{stg.s_logged}', every => 'hour', replace => true)});
for my $table (sort keys %declared)
{
	ask($holder, "BEGIN; SELECT millrace_internal.lock_stream(id, true) FROM millrace.stream WHERE name = 'events'");
	my $declarer = begin_waiting("who changes $table", $declared{$table});
	ask($holder, "UPDATE millrace.target SET state = 'active' WHERE relation = 'stg.$table'::regclass");
	ask($holder, 'COMMIT');
	is(end_waiting($declarer), '', 'and goes on');
}
$node->safe_psql('postgres', "SET ROLE etl; SELECT millrace.run_stream('events'); SELECT millrace.run_stream('others')");
is($node->safe_psql('postgres', "SELECT count(*) FROM stg.h_logged_current WHERE v = 'of others'"), '1', 'what the source that was added had before is there');

# A log is shortened while a table waits to be rebuilt from it.
ask($holder, "BEGIN; SELECT millrace_internal.lock_stream(id, true) FROM millrace.stream WHERE name = 'events'");
my $rebuilder = begin_waiting('who rebuilds', "SELECT millrace.rebuild('stg.s_logged')");
my $rows = $node->safe_psql('postgres', 'SELECT count(*) FROM stg.s_logged');
$node->safe_psql('postgres', q{
	SET ROLE etl;
	DELETE FROM stg.logged_log;
	RESET ROLE;
	SELECT millrace_internal.shorten_log(id, clock_timestamp()) FROM millrace.staging WHERE relation = 'stg.logged'::regclass});
ask($holder, 'COMMIT');
like(end_waiting($rebuilder), qr/cannot be rebuilt/, 'it is told that it cannot be');
is($node->safe_psql('postgres', 'SELECT count(*) FROM stg.s_logged'), $rows, 'and what it had is there');

# And while it is being rebuilt nothing is removed.
$node->safe_psql('postgres', q{SET ROLE etl; SELECT millrace.create_staging('stg.more', stream => 'others', key => '{"id": ["$.id", "bigint"]}', columns => '{"v": "$.v"}', log => true, log_retention => '1 us', replace => true)});
ask($holder, "BEGIN; SET ROLE etl; SELECT millrace.rebuild('stg.h_logged', filter => 'false')");
is($node->safe_psql('postgres', "SET ROLE etl; SELECT action FROM millrace.maintain() WHERE subject = 'stg.more_log'"), 'left for later: the log is being read by rebuild()', 'a log that is being read is left for later');
ask($holder, 'COMMIT; RESET ROLE');
is($node->safe_psql('postgres', "SET ROLE etl; SELECT action, rows FROM millrace.maintain() WHERE subject = 'stg.more_log'"), 'deleted|1', 'and shortened then');

# Indexes are being made that nobody may use yet, while they wait for who has written the tables before.
push_rows($node, 'postgres', 21, 40);
$node->safe_psql('postgres', q{
	SET ROLE etl;
	SELECT millrace.create_hub('stg.h_late_id', source => 'stg.late', business_key => '{id}');
	SELECT millrace.create_satellite('stg.s_late', source => 'stg.late', parent => 'stg.h_late_id', attributes => '{v}');
	SELECT millrace.run_stream('events')});
my %column = (h_late_id => 'load_at', s_late => 'confirmed_at');
my %maker;
for my $table (sort keys %column)
{
	ask($holder, 'BEGIN') unless %maker;
	ask($holder, "LOCK TABLE stg.$table IN ROW EXCLUSIVE MODE");
	$maker{$table} = begin_waiting("an index of $table", "CREATE INDEX CONCURRENTLY ${table}_extra ON stg.$table ($column{$table})");
}
push_rows($node, 'postgres', 21, 50);
$node->safe_psql('postgres', "SELECT millrace.run_stream('events')");
is($node->safe_psql('postgres', 'SELECT count(*), count(*) FILTER (WHERE confirmed_at > applied_at) FROM stg.s_late_current'), '30|20', 'batches go on without them');
ask($holder, 'COMMIT');
is(end_waiting($maker{$_}), '', "that of $_ is made") for sort keys %maker;
for my $table (sort keys %column)
{
	is($node->safe_psql('postgres', "SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT count($column{$table}) FROM (SELECT $column{$table} FROM stg.$table ORDER BY 1) t"),
		$node->safe_psql('postgres', "SELECT count(*) FROM stg.$table"), "and has all rows of $table");
}
close_session($holder);

# Positions are moved past the executor, which a table that somebody has changed does not allow.
push_rows($node, 'postgres', 101, 120);
$node->safe_psql('postgres', 'CREATE INDEX plain ON millrace.stream_position (position); CREATE INDEX odd ON millrace.stream_position ((position + 1))');
my ($code, $out, $error) = $node->psql('postgres', "SELECT millrace.run_stream('events')");
like($error, qr/stream_position is not as millrace has made it/, 'an index over an expression is refused');
$node->safe_psql('postgres', 'DROP INDEX millrace.odd');
$node->safe_psql('postgres', "SELECT millrace.run_stream('events')");
my $last = $node->safe_psql('postgres', 'SELECT max(position) FROM millrace.stream_position');
is($node->safe_psql('postgres', "SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT count(*) FROM millrace.stream_position WHERE position = $last"), '1',
	'one over columns is kept');

is($node->safe_psql('postgres', "SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'"), '0', 'nobody waited in a circle');

$node->stop;
done_testing();
