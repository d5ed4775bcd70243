# Stripes: two workers change one group without waiting for each other.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('stripes');
my $query = 'SELECT hot, count(*) AS n, sum(v)::bigint AS v FROM stg.event GROUP BY hot';

$node->safe_psql('postgres', qq{
	CREATE EXTENSION millrace;
	CREATE SCHEMA stg;
	SELECT millrace.create_stream('events', workers => 2);
	SELECT millrace.create_staging('stg.event', stream => 'events', key => '{"id": ["\$.id", "bigint"]}',
		columns => '{"hot": "\$.hot", "gate": "\$.gate", "v": ["\$.v", "bigint"]}');
	SELECT millrace.create_mart('stg.hot', '$query', stripes => 2);
	SELECT millrace.create_mart('stg.gate', 'SELECT gate, count(*) AS n FROM stg.event GROUP BY gate');
	SELECT count(millrace.push('events', json_build_object('id', i, 'v', i), key => i::text)) FROM generate_series(1, 20) AS i});

# An object of each worker.
my @id = map {
	$node->safe_psql('postgres', "SELECT min(convert_from(key, 'UTF8')::integer) FROM millrace.inbox WHERE bucket % 2 = $_")
} (0, 1);
my $gate = $node->safe_psql('postgres', "SELECT 'millrace_state.mart_' || id FROM millrace.target WHERE relation = 'stg.gate'::regclass");

$node->safe_psql('postgres', "SELECT millrace.start_stream('events')");
ok(poll($node, 'postgres', 'SELECT count(*) FROM millrace.inbox', 0), 'both workers run');
my @pid = map { worker_pid($node, 'postgres', $_) } (0, 1);

# Somebody holds a group of the mart that comes after the striped one: the first worker waits for him when it has changed the hot group.
# What does the second one do?  Returns once it waits, too, or has committed.
sub meet
{
	my ($hot, $v) = @_;
	my $holder = open_session($node, 'postgres');
	my $result;

	ask($holder, "BEGIN; INSERT INTO $gate (g1, n) VALUES ('closed $v', 1)");
	$node->safe_psql('postgres', qq{SELECT millrace.push('events', '{"id": $id[0], "v": $v, "hot": "$hot", "gate": "closed $v"}', key => '$id[0]')});
	ok(poll($node, 'postgres', "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pid = $pid[0]"), "$hot: the first worker waits for somebody");
	$node->safe_psql('postgres', qq{SELECT millrace.push('events', '{"id": $id[1], "v": $v, "hot": "$hot", "gate": "open"}', key => '$id[1]')});
	poll($node, 'postgres', qq{SELECT EXISTS (SELECT FROM stg.event WHERE id = $id[1] AND v = $v) OR $pid[0] = ANY (pg_blocking_pids($pid[1]))});
	$result = $node->safe_psql('postgres', qq{SELECT CASE WHEN EXISTS (SELECT FROM stg.event WHERE id = $id[1] AND v = $v) THEN 'done' ELSE 'waits' END});
	ask($holder, 'ROLLBACK');
	close_session($holder);
	ok(poll($node, 'postgres', 'SELECT count(*) FROM millrace.inbox', 0), "$hot: both go on");
	is($node->safe_psql('postgres', "SELECT n, v FROM stg.hot WHERE hot = '$hot'"), '2|' . 2 * $v, "$hot: both have counted");
	return $result;
}

is(meet('new', 101), 'done', 'with stripes the second worker makes a group that the first one is making');
is(meet('new', 102), 'done', 'and changes one that the first one is changing');
$node->safe_psql('postgres', "SELECT millrace.create_mart('stg.hot', '$query', replace => true)");
is(meet('new', 103), 'waits', 'without stripes the second worker waits for the first one');
is(meet('other', 104), 'waits', 'also for a group that is new');
is($node->safe_psql('postgres', "SELECT missing, unexpected FROM millrace.verify('stg.hot')"), '0|0', 'the mart is right');
is($node->safe_psql('postgres', 'SELECT coalesce(max(failures), 0) FROM millrace.worker_status'), '0', 'no worker failed');

$node->stop;
done_testing();
