# The life of stream workers: they start, stop, end and come back, and their rows say why.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_server('worker', databases => 'postgres, "not there"', conf => "restart_after_crash = on\n");

make_stream($node, 'postgres');
my $pid = worker_pid($node, 'postgres');
is($node->safe_psql('postgres', "SELECT state FROM millrace.stream_status"), 'running', 'a started stream runs');
is($node->safe_psql('postgres', "SELECT application_name || ', ' || usename FROM pg_stat_activity WHERE pid = $pid"),
	'millrace: events #0, etl', 'its worker is seen by its name, logged in as the owner');
push_rows($node, 'postgres', 1, 100);
ok(poll_rows($node, 'postgres', 100), 'what is pushed is staged');

# A push wakes the worker at commit: without, messages would wait for half a second on average.
for my $i (101 .. 110)
{
	push_rows($node, 'postgres', $i, $i);
	poll_rows($node, 'postgres', $i);
}
cmp_ok($node->safe_psql('postgres',
		'SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM _loaded_at - _event_time)) FROM stg.event WHERE id > 100'),
	'<', 0.25, 'the worker is woken by a push');

# pg_terminate_backend: comes back, and the row says why.
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok(poll($node, 'postgres', "SELECT pid <> $pid AND state = 'running' FROM millrace.worker_status"), 'a terminated worker comes back');
like($node->safe_psql('postgres', 'SELECT sqlstate, last_error FROM millrace.worker_status'),
	qr/57P01\|terminating background worker .* due to administrator command/, 'its row says that it was terminated');
push_rows($node, 'postgres', 111, 120);
ok(poll_rows($node, 'postgres', 120), 'it goes on where it was');

# The manager and the launcher come back too; workers go on meanwhile.
$pid = worker_pid($node, 'postgres');
for my $type ('millrace manager', 'millrace launcher')
{
	my $old = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = '$type'");

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($old)");
	ok(poll($node, 'postgres', "SELECT pid <> $old FROM pg_stat_activity WHERE backend_type = '$type'"), "the $type comes back");
}
is(worker_pid($node, 'postgres'), $pid, 'the worker did not notice');

# Stop and start.
$node->safe_psql('postgres', "SELECT millrace.stop_stream('events')");
push_rows($node, 'postgres', 121, 130);
ok(poll($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace stream worker'", 0), 'the worker of a stopped stream ends');
is($node->safe_psql('postgres', 'SELECT state, lag_messages FROM millrace.stream_status'), 'stopped|10', 'and says so');
is($node->safe_psql('postgres', 'SELECT count(*) FROM stg.event'), '120', 'nothing is consumed after stop_stream');
$node->safe_psql('postgres', "SELECT millrace.start_stream('events')");
ok(poll_rows($node, 'postgres', 130), 'a stream that is started again consumes what came meanwhile');

# Declarations that are rolled back stop nothing.
$pid = worker_pid($node, 'postgres');
$node->safe_psql('postgres', "BEGIN; SELECT millrace.stop_stream('events'); ROLLBACK");
push_rows($node, 'postgres', 131, 131);
ok(poll_rows($node, 'postgres', 131), 'stop_stream that is rolled back stops nothing');
is(worker_pid($node, 'postgres'), $pid, 'it is the same worker');

# More workers.
$node->safe_psql('postgres', "SET ROLE etl; SELECT millrace.create_stream('events', workers => 3, replace => true)");
ok(poll($node, 'postgres', "SELECT count(*) FROM millrace.worker_status w JOIN pg_stat_activity USING (pid) WHERE w.state = 'running'", 3), 'three workers');
push_rows($node, 'postgres', 132, 200);
ok(poll_rows($node, 'postgres', 200), 'that share the work');

# Targets that are declared while they run are filled and kept, by an owner who is no superuser.
for my $i (1 .. 5)
{
	$node->safe_psql('postgres', "SET ROLE etl; SELECT millrace.create_mart('stg.mart$i', 'SELECT length(v) AS l, count(*) AS n FROM stg.event GROUP BY length(v)')");
}
ok(poll($node, 'postgres', "SELECT string_agg(l || ' ' || n, ', ' ORDER BY l) FROM stg.mart5", '2 9, 3 90, 4 101'), 'marts are filled while workers run');
ok(poll($node, 'postgres', "SELECT count(*) FROM millrace.worker_status WHERE state = 'running' AND sqlstate IS DISTINCT FROM '40P01'", 3), 'and no worker was in another one\'s way');
$node->safe_psql('postgres', "SET ROLE etl; SELECT millrace.create_stream('events', workers => 1, replace => true)");
ok(poll($node, 'postgres', "SELECT count(*) FROM millrace.worker_status", 1), 'and one again');
$pid = worker_pid($node, 'postgres');

# A configuration that does not work: recorded, not a loop, and mended by DDL without further ado.
my $offset = -s $node->logfile;
$node->safe_psql('postgres', 'REVOKE ALL ON SCHEMA stg FROM etl');
push_rows($node, 'postgres', 201, 201);
ok(poll($node, 'postgres', "SELECT state, sqlstate FROM millrace.stream_status", 'failed|42501'), 'a lost privilege fails the stream');
like($node->safe_psql('postgres', 'SELECT last_error FROM millrace.stream_status'), qr/permission denied for schema stg/, 'with the reason');
like($node->safe_psql('postgres', 'SELECT context FROM millrace.worker_status'), qr/stream "events"/, 'and the place');
like($node->safe_psql('postgres', "SELECT string_agg(severity || ' ' || message, '; ') FROM millrace.validate()"),
	qr/error failed: permission denied.*error role etl has no USAGE on schema stg/, 'validate() finds it');
is(worker_pid_any($node), $pid, 'the worker stays');
$node->safe_psql('postgres', 'GRANT ALL ON SCHEMA stg TO etl');
ok(poll_rows($node, 'postgres', 201, 20), 'GRANT mends it');
ok(poll($node, 'postgres', 'SELECT state FROM millrace.stream_status', 'running'), 'the stream runs again');
is(log_count($node, qr/has stopped on an error/, $offset), 1, 'the log says it once');

# on_error => 'stop': stops with the reason, and goes on when that is declared otherwise.
$node->safe_psql('postgres', "SET ROLE etl; SELECT millrace.create_stream('events', on_error => 'stop', replace => true)");
$node->safe_psql('postgres', q{SELECT millrace.push('events', '{"id": "x", "v": 1}'::json)});
ok(poll($node, 'postgres', "SELECT state, lag_messages, dead_letters FROM millrace.stream_status", 'failed|1|0'), 'a stream that is to stop on bad data stops');
like($node->safe_psql('postgres', 'SELECT sqlstate, last_error FROM millrace.stream_status'), qr/^22P02\|.*"x"/, 'with the reason');
$node->safe_psql('postgres', "SET ROLE etl; SELECT millrace.create_stream('events', replace => true)");
ok(poll($node, 'postgres', "SELECT state, lag_messages, dead_letters FROM millrace.stream_status", 'running|0|1'), 'and goes on when it is to make dead letters');

# max_dead_letter_share: the batch that crosses it is committed with its letters, the worker ends, and nothing is read until somebody starts the stream.
$node->safe_psql('postgres', "SET ROLE etl; SELECT millrace.create_stream('events', max_dead_letter_share => 0.05, replace => true)");
$node->safe_psql('postgres', q{SELECT count(millrace.push('events', json_build_object('id', 'x' || i))) FROM generate_series(1, 30) i});
ok(poll($node, 'postgres', "SELECT state, lag_messages, dead_letters FROM millrace.stream_status", 'stopped|0|31'), 'a stream with too many dead letters stops itself');
like($node->safe_psql('postgres', 'SELECT last_error FROM millrace.stream_status'), qr/has stopped itself: 30 of its last 30 messages made dead letters/, 'with the reason');
is($node->safe_psql('postgres', "SELECT count(*) FROM millrace.incident WHERE kind = 'dead_letter_rate'"), '1', 'and an incident');
ok(poll($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace stream worker'", 0), 'its worker ends');
push_rows($node, 'postgres', 202, 202);
is($node->safe_psql('postgres', 'SELECT lag_messages FROM millrace.stream_status'), '1', 'and nothing more is read');
$node->safe_psql('postgres', "SELECT millrace.start_stream('events')");
ok(poll_rows($node, 'postgres', 202), 'until it is started again');
is($node->safe_psql('postgres', "SELECT state, last_error LIKE '%stopped itself%' FROM millrace.stream_status"), 'running|f', 'and counts anew');
$node->safe_psql('postgres', "SET ROLE etl; SELECT millrace.create_stream('events', max_dead_letter_share => NULL, replace => true)");
$pid = worker_pid($node, 'postgres');

# Settings of the role change no result; a terrible one does not keep the worker from running.
$node->safe_psql('postgres', q{
	ALTER ROLE etl SET datestyle = 'German';
	ALTER ROLE etl SET timezone = 'Asia/Tokyo';
	ALTER ROLE etl SET search_path = stg;
	ALTER ROLE etl SET default_transaction_isolation = 'serializable';
	ALTER ROLE etl SET default_transaction_read_only = on;
	ALTER ROLE etl SET statement_timeout = 1;
	ALTER ROLE etl SET role = 'millrace_admin'});
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok(poll($node, 'postgres', "SELECT pid <> $pid AND state = 'running' FROM millrace.worker_status"), 'comes back under other role settings');
push_rows($node, 'postgres', 203, 210);
ok(poll_rows($node, 'postgres', 210), 'and works under them');

is(log_count($node, qr/cannot connect to database "not there"/), 2, 'a missing database is said once in each life of the launcher');

# kill -9: the server starts again, and everything comes back by itself.
for my $round (1 .. 3)
{
	$pid = worker_pid($node, 'postgres');
	my $start = time;
	kill 'KILL', $pid;
	ok(poll($node, 'postgres', "SELECT pid <> $pid AND state = 'running' FROM millrace.worker_status"), "comes back after kill -9 ($round)");
	cmp_ok(time - $start, '<', 15, 'quickly');
	push_rows($node, 'postgres', 210 + $round, 210 + $round);
	ok(poll_rows($node, 'postgres', 210 + $round), 'and goes on');
}
like($node->safe_psql('postgres', 'SELECT last_error FROM millrace.worker_status'), qr/process $pid ended without a word/, 'its row says so');
ok(poll($node, 'postgres', 'SELECT failures FROM millrace.worker_status', 0), 'work ends the row of failures');

# ... in the middle of batches, nothing is lost or doubled.
push_rows($node, 'postgres', 1000, 40999);
for my $round (1 .. 5)
{
	my ($code, $victim) = $node->psql('postgres', 'SELECT pid FROM millrace.worker_status WHERE pid IS NOT NULL');

	kill 'KILL', $victim if defined $victim && $victim =~ /^\d+$/;
	Time::HiRes::usleep(300_000);
}
ok(poll($node, 'postgres', 'SELECT count(*) FROM stg.event WHERE id >= 1000', 40000), 'all there after kills in the middle of batches');
is($node->safe_psql('postgres', 'SELECT sum(n) - (SELECT count(*) FROM stg.event) FROM stg.mart1'), '0', 'and counted once');

# Dropped stream.
$node->safe_psql('postgres', "SET ROLE etl; SELECT millrace.drop_stream('events', cascade => true)");
ok(poll($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace stream worker'", 0), 'the worker of a dropped stream ends');

# Fast shutdown is prompt with streams running.
$node->safe_psql('postgres', 'DROP SCHEMA stg CASCADE; ALTER ROLE etl RESET ALL');
make_stream($node, 'postgres', workers => 2);
worker_pid($node, 'postgres', 1);
my $start = time;
$node->stop('fast');
cmp_ok(time - $start, '<', 10, 'fast shutdown is prompt');
$node->start;
ok(poll($node, 'postgres', "SELECT count(*) FROM millrace.worker_status WHERE state = 'running'", 2), 'workers are back after a restart');
is($node->safe_psql('postgres', "SELECT count(*) FROM millrace.worker_status WHERE last_error IS NOT NULL OR failures > 0"), '0', 'which is no failure');
$node->stop;
done_testing();

# The pid in the worker's row, whatever its state.
sub worker_pid_any
{
	my ($server) = @_;

	return $server->safe_psql('postgres', 'SELECT pid FROM millrace.worker_status WHERE worker = 0');
}
