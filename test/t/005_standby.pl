# A standby has no workers before its promotion.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('primary', allows_streaming => 1);

make_stream($node, 'postgres');
push_rows($node, 'postgres', 1, 10);
ok(poll_rows($node, 'postgres', 10), 'the primary works');
$node->backup('copy');

my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'copy', has_streaming => 1);
$standby->start;
push_rows($node, 'postgres', 11, 20);
ok(poll_rows($standby, 'postgres', 20), 'the standby follows');
is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'millrace%'"), '0', 'it has no processes of ours');
is($standby->safe_psql('postgres', 'SELECT stream FROM millrace.stream_status'), 'events', 'status can be read there');

$node->stop('immediate');
$standby->promote;
ok(poll($standby, 'postgres', "SELECT count(*) FROM millrace.worker_status w JOIN pg_stat_activity USING (pid) WHERE w.state = 'running'", 1), 'workers start after promotion');
push_rows($standby, 'postgres', 21, 30);
ok(poll_rows($standby, 'postgres', 30), 'and work');
$standby->stop;
done_testing();
