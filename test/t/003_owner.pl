# Streams whose owner cannot run them: recorded, not tried for ever.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('owner');
my $workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace stream worker'";

make_stream($node, 'postgres');
worker_pid($node, 'postgres');

SKIP:
{
	skip 'workers need no LOGIN from 17 on', 4 if $node->pg_version >= 17;
	my $offset = -s $node->logfile;

	$node->safe_psql('postgres', 'ALTER ROLE etl NOLOGIN');
	ok(poll($node, 'postgres', "SELECT s.state || ' ' || s.last_error FROM millrace.stream_status s",
			'failed the owner of the stream, role "etl", has no LOGIN'), 'an owner without LOGIN is recorded');
	ok(poll($node, 'postgres', $workers, 0), 'and his worker ends');
	my ($code, $out, $err) = $node->psql('postgres', "SELECT millrace.start_stream('events')");
	like($err, qr/WARNING:.*has no LOGIN/, 'start_stream() warns');
	$node->safe_psql('postgres', 'ALTER ROLE etl LOGIN');
	ok(poll($node, 'postgres', 'SELECT state FROM millrace.stream_status', 'running'), 'LOGIN mends it');
	is(log_count($node, qr/FATAL/, $offset), 0, 'no worker was started in vain');
}

# Somebody else's streams.
$node->safe_psql('postgres', 'CREATE ROLE other LOGIN IN ROLE millrace_admin; CREATE ROLE reader LOGIN; CREATE ROLE watcher LOGIN IN ROLE millrace_monitor');
for my $call ("start_stream('events')", "stop_stream('events')", "reset_stream('events')", "validate('events')", "reset_stage_stats('events')")
{
	my ($code, $out, $err) = $node->psql('postgres', "SELECT millrace.$call", extra_params => [ '-U', 'other' ]);
	like($err, qr/must be owner of stream "events"/, "$call is the owner's");
	($code, $out, $err) = $node->psql('postgres', "SELECT millrace.$call", extra_params => [ '-U', 'reader' ]);
	like($err, qr/permission denied for function/, "$call is not everybody's");
}
for my $view ('stream_status', 'worker_status', 'stage_stats')
{
	push_rows($node, 'postgres', 1, 1);
	poll($node, 'postgres', "SELECT count(*) > 0 FROM millrace.$view");
	is($node->safe_psql('postgres', "SELECT count(*) FROM millrace.$view", extra_params => [ '-U', 'reader' ]), '0', "nobody sees others' $view");
	cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM millrace.$view", extra_params => [ '-U', $_ ]), '>', 0, "$_ sees $view") for ('etl', 'watcher', 'other');
}
is($node->safe_psql('postgres', 'SELECT millrace.adopt()', extra_params => [ '-U', 'other' ]), '0', 'adopt() is for one\'s own streams');

# The types that Trino reads.
is($node->safe_psql('postgres', q{
	SELECT string_agg(c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ')
	FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
	WHERE c.relnamespace = 'millrace'::regnamespace AND c.relname IN ('stream_status', 'stream_partition', 'worker_status', 'stage_stats', 'incident')
	AND format_type(a.atttypid, a.atttypmod) NOT IN ('text', 'integer', 'bigint', 'double precision', 'boolean', 'timestamp with time zone')}),
	'', 'status views have plain types');

# Dropped.
$node->safe_psql('postgres', 'REASSIGN OWNED BY etl TO postgres; DROP OWNED BY etl; DROP ROLE etl');
ok(poll($node, 'postgres', "SELECT s.state || ' ' || s.last_error FROM millrace.stream_status s",
		'failed the owner of the stream does not exist any more'), 'an owner that was dropped is recorded');
ok(poll($node, 'postgres', $workers, 0), 'and his worker ends');
like($node->safe_psql('postgres', 'SELECT message FROM millrace.validate()'), qr/its owner does not exist any more/, 'validate() says so');
$node->safe_psql('postgres', "SELECT millrace.stop_stream('events')");
is($node->safe_psql('postgres', 'SELECT state FROM millrace.stream_status'), 'stopped', 'a superuser can stop it');
$node->safe_psql('postgres', "SELECT millrace.drop_stream('events', cascade => true)");
is($node->safe_psql('postgres', 'SELECT count(*) FROM millrace.stream_status'), '0', 'and drop it');
$node->stop;
done_testing();
