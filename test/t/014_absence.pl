# What one of two workers has not read yet is not absent, whatever the other one has read; and who is silent is missed while others are not.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('absence', conf => "fsync = off\n");

make_stream($node, 'postgres', workers => 2);
$node->safe_psql('postgres', q{
	SET ROLE etl;
	SELECT millrace.create_rule('silent', kind => 'absence', source => 'stg.event', key => '{id}', within => '10 seconds')});
worker_pid($node, 'postgres', $_) for 0, 1;
push_rows($node, 'postgres', 1, 20);
ok(poll_rows($node, 'postgres', 20), 'all are heard of');

# Worker 1 waits for the row of one that is its, with all that it has fetched.
my $pushed = $node->safe_psql('postgres', q{
	BEGIN;
	SELECT count(millrace.push('events', '{}', key => i::text)) FROM generate_series(1, 20) i;
	SELECT min(convert_from(key, 'UTF8')) FROM millrace.inbox WHERE bucket % 2 = 1;
	ROLLBACK});
my $id = (split /\n/, $pushed)[1];
my $session = open_session($node, 'postgres');
ask($session, "BEGIN; SELECT FROM stg.event WHERE id = $id FOR UPDATE");
push_rows($node, 'postgres', 1, 20);
ok(poll($node, 'postgres', "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND backend_type = 'millrace stream worker'", 1), 'one worker is held up');
my $held = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
ok(poll($node, 'postgres', "SELECT clock_timestamp() > '$held'::timestamptz + interval '13 seconds'"), 'time passes');
is($node->safe_psql('postgres', 'SELECT count(*) FROM millrace.alert'), '0', 'nobody is missed of whom it is not known');
ask($session, 'COMMIT');
close_session($session);
ok(poll($node, 'postgres', 'SELECT count(*) FROM millrace.alert', 20), 'all are missed when it is');

# Messages that never end: no look at the inbox finds it empty.
my @others = map { open_session($node, 'postgres') } 1, 2;
for my $other (@others)
{
	$other->{in} .= q{DO $$ DECLARE began timestamptz := clock_timestamp(); BEGIN
		LOOP
			PERFORM millrace.push('events', '{"id": 1000}', key => k::text) FROM generate_series(1, 20) k;
			COMMIT;
			EXIT WHEN EXISTS (SELECT FROM millrace.alert WHERE key = '2000') OR clock_timestamp() > began + interval '2 minutes';
		END LOOP; END $$;
		\\echo asked
	};
	$other->{run}->pump_nb;
}
push_rows($node, 'postgres', 2000, 2000);
ok(poll($node, 'postgres', q{SELECT count(*) > 0 FROM stg.event WHERE id = 2000}), 'one is heard of once');
ok(poll($node, 'postgres', q{SELECT string_agg(key, ',') FROM millrace.alert WHERE key IN ('1000', '2000')}, '2000', 100), 'and missed while others are heard all the time');
for my $other (@others)
{
	$other->{run}->pump until $other->{out} =~ /^asked\n/m;
	close_session($other);
}

$node->stop;
done_testing();
