# A filling that fails keeps no other one waiting, and waits longer each time; one that is long keeps no server from starting again.
use strict;
use warnings;
use MillraceTest;
use Test::More;
use Time::HiRes qw(usleep);

# So many chunks that what fails is due again before they are done.
my $node = new_server('filling', conf => "millrace.backfill_rows = 1\nfsync = off\n");

make_stream($node, 'postgres');
push_rows($node, 'postgres', 1, 3000);
ok(poll_rows($node, 'postgres', 3000), 'rows are staged');
$node->safe_psql('postgres', q{
	SET ROLE etl;
	SET client_min_messages = error;
	SELECT millrace.create_mart('stg.odd', 'SELECT 6 / (id - 2) AS part, count(*) AS n FROM stg.event GROUP BY 1');
	SELECT millrace.create_hub('stg.h_v', source => 'stg.event', business_key => '{v}');
	SELECT millrace.create_mart('stg.even', 'SELECT id % 2 AS odd, count(*) AS n FROM stg.event GROUP BY 1')});
my $state = 'SELECT state FROM millrace.backfill_status WHERE relation =';
ok(poll($node, 'postgres', "$state 'stg.h_v'", 'done'), 'what was declared after one that fails is filled');
ok(poll($node, 'postgres', "$state 'stg.even'", 'done'), 'and what comes after that');
ok(poll($node, 'postgres', "SELECT failures >= 3 AND retry_at > last_error_at + interval '3 s' FROM millrace.backfill b JOIN millrace.target t ON t.id = b.target_id WHERE t.relation = 'stg.odd'::regclass"),
	'the one that fails is tried again, after longer and longer');
is($node->safe_psql('postgres', "$state 'stg.odd'"), 'failed', 'as its state says');
$node->safe_psql('postgres', "SET ROLE etl; SELECT millrace.drop_table('stg.odd')");
push_rows($node, 'postgres', 3001, 3010);
ok(poll($node, 'postgres', 'SELECT sum(n) FROM stg.even', 3010), 'the stream goes on');

# Who always has something to do ends with the postmaster, too, in the middle of it.
push_rows($node, 'postgres', 3011, 40000);
ok(poll_rows($node, 'postgres', 40000), 'more rows are staged');
$node->safe_psql('postgres', q{
	SET ROLE etl;
	SET client_min_messages = error;
	SELECT millrace.create_mart('stg.long', 'SELECT id % 3 AS rest, count(*) AS n FROM stg.event GROUP BY 1')});
my $done = "SELECT rows_done FROM millrace.backfill_status WHERE relation = 'stg.long'";
ok(poll($node, 'postgres', "SELECT ($done) > 0"), 'a long filling has begun');
my @processes = split /\n/, $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'millrace %'");
$node->kill9;
for (1 .. 4800)
{
	last unless kill 0, @processes;
	usleep(50_000);
}
$node->append_conf('postgresql.conf', "millrace.databases = ''\nmillrace.backfill_rows = 5000\n");
ok(start_again($node), 'the server starts when the postmaster was killed');
cmp_ok($node->safe_psql('postgres', $done), '<', 20000, 'nobody went on without it');
$node->adjust_conf('postgresql.conf', 'millrace.databases', 'postgres');
$node->reload;
ok(poll($node, 'postgres', 'SELECT sum(n) FROM stg.long', 40000), 'and then it is filled');

$node->stop;
done_testing();

# Who else hangs on the shared memory needs a moment to notice that the postmaster is gone.
sub start_again
{
	my ($server) = @_;

	for (1 .. 100)
	{
		return 1 if $server->start(fail_ok => 1);
		usleep(200_000);
	}
	return 0;
}
