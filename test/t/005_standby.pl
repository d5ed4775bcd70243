# A standby has no workers before its promotion, and comes to the same pages.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Each page that a record of WAL has changed goes along, and the standby stops when it makes another one of it.
my $node = new_server('primary', allows_streaming => 1, conf => "wal_consistency_checking = 'all'\nwal_keep_size = '2GB'\n");

make_stream($node, 'postgres');
push_rows($node, 'postgres', 1, 10);
ok(poll_rows($node, 'postgres', 10), 'the primary works');
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE bought (u text, i text);
INSERT INTO bought VALUES ('u1', 'a'), ('u1', 'b'), ('u2', 'a'), ('u2', 'b'), ('u2', 'c'), ('u3', 'a');
CREATE TABLE product AS SELECT i AS id, true AS available FROM (SELECT DISTINCT i FROM bought) d;
SELECT millrace.create_model('also', 'item_knn', 'SELECT u, i FROM bought', catalogue => 'SELECT id, available FROM product');
SELECT millrace.train('also');
CREATE TABLE event AS SELECT i AS id, i % 2 AS bought, i % 4 / 2 AS x, i % 2 AS y FROM generate_series(1, 200) i;
SELECT millrace.create_model('purchase', 'xgboost', 'SELECT * FROM event', '{"rounds": 5}', label => 'bought', entity => '{id}');
SELECT millrace.train('purchase');
SQL
$node->backup('copy');

my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'copy', has_streaming => 1);
$standby->start;
push_rows($node, 'postgres', 11, 20);
ok(poll_rows($standby, 'postgres', 20), 'the standby follows');
is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'millrace%'"), '0', 'it has no processes of ours');
is($standby->safe_psql('postgres', 'SELECT stream FROM millrace.stream_status'), 'events', 'status can be read there');

# Leaves get one entry, a few, and many at once.
$node->safe_psql('postgres', q{CREATE EXTENSION amcheck; SET ROLE etl; SELECT millrace.create_hub('stg.h_event', source => 'stg.event', business_key => '{v}')});
my $rows = 20;
for my $more (8000, 1, 40, 8000, 300)
{
	push_rows($node, 'postgres', $rows + 1, $rows + $more);
	$rows += $more;
	ok(poll_rows($standby, 'postgres', $rows), "$rows rows are there, too");
}
$node->wait_for_catchup($standby);
is($standby->safe_psql('postgres', 'SELECT count(*) FROM stg.h_event'), $rows + 1, 'so are their keys, and that of the unknown');
is($standby->safe_psql('postgres', q{SELECT count(bt_index_check(indexrelid, true)) FROM pg_index WHERE indrelid IN ('stg.event'::regclass, 'stg.h_event'::regclass)}),
	'2', 'indexes are sound there');

# Models answer there, from tables and from memory, by what has been replayed.  A copy is made when nobody else's is: one asks again.
my $asked = q{SELECT string_agg(item, ',' ORDER BY rank) || ' ' || min(version) FROM millrace.recommend('also', 'u1', 10, filter => $$ id <> 'z' $$)};
my $predicted = q{SELECT round(millrace.predict_for('purchase', '{"id": 3}')::numeric) || ' ' || round(millrace.predict('purchase', '{"y": 0}')::numeric)};
my $copied = "$asked; $predicted; SELECT count(memory_bytes) FROM millrace.model_status";
is($standby->safe_psql('postgres', $asked), 'c 1', 'a model answers on the standby');
is($standby->safe_psql('postgres', $predicted), '1 0', 'trees predict on the standby');
ok(poll($standby, 'postgres', $copied, "c 1\n1 0\n2"), 'both have copies in memory, which give the same');
$node->safe_psql('postgres', q{INSERT INTO bought VALUES ('u3', 'c'), ('u3', 'd'); INSERT INTO product VALUES ('d', true); SELECT millrace.promote('also', millrace.train('also'));
	UPDATE product SET available = false WHERE id = 'd'; SELECT millrace.drop_version('also', 1);
	UPDATE event SET bought = 1 - bought; SELECT millrace.promote('purchase', millrace.train('purchase')); SELECT millrace.drop_version('purchase', 1)});
$node->wait_for_catchup($standby);
is($standby->safe_psql('postgres', $predicted), '0 1', 'trees that are promoted on the primary count there');
is($standby->safe_psql('postgres', $asked), 'c 2', 'what is promoted and sold out on the primary counts there');
ok(poll($standby, 'postgres', $copied, "c 2\n0 1\n2"), 'the new versions have copies, which give the same, too');

# Batches wait for no standby, unless their owner says that they shall.
my $waiting = q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'millrace: events #0'};
for my $setting ('SET synchronous_commit = on', 'RESET synchronous_commit')
{
	my $worker = worker_pid($node, 'postgres');

	$node->safe_psql('postgres', "ALTER ROLE etl $setting; SELECT pg_terminate_backend($worker)");
	ok(poll($node, 'postgres', "SELECT count(*) FROM millrace.worker_status WHERE state = 'running' AND pid <> $worker", 1), 'another worker runs');
	$node->safe_psql('postgres', q{ALTER SYSTEM SET synchronous_standby_names = 'nobody'});
	$node->reload;
	ok(poll($node, 'postgres', 'SHOW synchronous_standby_names', 'nobody'), 'whoever waits now, waits for ever');
	local $ENV{PGOPTIONS} = '-c synchronous_commit=local';
	push_rows($node, 'postgres', $rows + 1, $rows + 1);
	$rows++;
	ok($setting =~ /^SET/ ? poll($node, 'postgres', $waiting, 1) : poll_rows($node, 'postgres', $rows), "its batch does so, or does not: $setting");
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET synchronous_standby_names');
	$node->reload;
	ok(poll_rows($node, 'postgres', $rows), 'nobody waits for ever any more');
}

$node->stop('immediate');
$standby->promote;
ok(poll($standby, 'postgres', "SELECT count(*) FROM millrace.worker_status w JOIN pg_stat_activity USING (pid) WHERE w.state = 'running'", 1), 'workers start after promotion');
push_rows($standby, 'postgres', $rows + 1, $rows + 10);
ok(poll_rows($standby, 'postgres', $rows + 10), 'and work');
$standby->stop;
done_testing();
