# Two workers that write the same objects, keys, satellites and groups at the same time: they wait for each other where they
# must, never in a circle, and what they leave is what one would have left.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use IPC::Run ();
use Test::More;
use Time::HiRes qw(usleep);

my $node = new_server('two', conf => "deadlock_timeout = 50ms\nfsync = off\nmillrace.worker_memory = '4MB'\n");

make_stream($node, 'postgres', workers => 2);
$node->safe_psql('postgres', q{
	SET ROLE etl;
	SELECT millrace.create_staging('stg.visit', stream => 'events', key => '{"id": ["$.id", "bigint"]}', version => '["$.n", "bigint"]',
		columns => '{"who": "$.who", "place": "$.place", "v": "$.v"}');
	SELECT millrace.create_hub('stg.h_who', source => 'stg.visit', business_key => '{who}');
	SELECT millrace.create_hub('stg.h_place', source => 'stg.visit', business_key => '{place}');
	SELECT millrace.create_link('stg.l_visit', source => 'stg.visit', hubs => '{stg.h_who, stg.h_place}');
	SELECT millrace.create_satellite('stg.s_who', source => 'stg.visit', parent => 'stg.h_who', attributes => '{v}');
	SELECT millrace.create_mart('stg.visits', 'SELECT who, place, count(*) AS n FROM stg.visit GROUP BY who, place')});

# The inbox's key decides which worker takes a message, and it is not that of the object: both get versions of all objects.
my $total = 0;
for my $round (1 .. 6)
{
	my $from = 2000 * ($round - 1);

	$node->safe_psql('postgres', "SELECT millrace.stop_stream('events')");
	poll($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace stream worker'", 0);
	$node->safe_psql('postgres', qq{
		SELECT setseed(0.$round);
		SELECT count(millrace.push('events', json_build_object('id', id, 'n', n, 'who', 'w' || md5((id % 3000)::text),
			'place', 'p' || md5((id % 1700)::text), 'v', n % 5), key => n::text))
		FROM (SELECT $from - 1000 + (random() * 3000)::integer AS id, $total + i AS n FROM generate_series(1, 12000) i) m});
	$total += 12000;
	$node->safe_psql('postgres', "SELECT millrace.start_stream('events')");
	ok(poll($node, 'postgres', 'SELECT count(*) FROM millrace.inbox', 0, 120), "round $round is consumed");
}
$node->safe_psql('postgres', "SELECT millrace.stop_stream('events')");
poll($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace stream worker'", 0);

# Of keys that both insert, one of them takes his rows back.  Were these counted as deleted, each would forget what he knows, again and again.
is($node->safe_psql('postgres', "SELECT sum(n_tup_del) FROM pg_stat_user_tables WHERE relname IN ('h_who', 'h_place', 'l_visit')"), '0', 'no key counts as deleted');
is($node->safe_psql('postgres', "SELECT sum(n_tup_ins) FROM pg_stat_user_tables WHERE relname IN ('h_who', 'h_place', 'l_visit')"),
	$node->safe_psql('postgres', 'SELECT (SELECT count(*) FROM stg.h_who) + (SELECT count(*) FROM stg.h_place) + (SELECT count(*) FROM stg.l_visit)'), 'and each as inserted once');

# Somebody runs the stream in a transaction of his own, in which a table is to be filled, while both want to go on.
$node->safe_psql('postgres', "SELECT millrace.start_stream('events')");
worker_pid($node, 'postgres', $_) for 0, 1;
my $session = open_session($node, 'postgres');
ask($session, "BEGIN; SELECT FROM millrace.run_stream('events', max_messages => 0)");
$node->safe_psql('postgres', qq{
	SET ROLE etl;
	SELECT count(millrace.push('events', json_build_object('id', i, 'n', $total + i, 'who', 'w', 'place', 'p', 'v', i), key => i::text)) FROM generate_series(1, 100) i;
	SELECT millrace.create_hub('stg.h_v', source => 'stg.visit', business_key => '{v}')});
ok(poll($node, 'postgres', "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND backend_type = 'millrace stream worker'", 2), 'workers wait for who runs the stream');
is(ask($session, "SELECT messages FROM millrace.run_stream('events'); COMMIT"), '100', 'who need not wait for them');
close_session($session);
ok(poll($node, 'postgres', "SELECT state FROM millrace.backfill_status WHERE relation = 'stg.h_v'", 'done'), 'what is declared is filled');
$node->safe_psql('postgres', "SELECT millrace.stop_stream('events')");
poll($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace stream worker'", 0);

# Two streams that feed a hub together are run at once when it is to be filled: each needs the locks of both.
$node->safe_psql('postgres', q{
	SET ROLE etl;
	SELECT millrace.create_stream('one'), millrace.create_stream('other');
	SELECT millrace.create_staging('stg.one', stream => 'one', key => '{"id": "$.id"}');
	SELECT millrace.create_staging('stg.other', stream => 'other', key => '{"id": "$.id"}');
	SELECT millrace.create_hub('stg.h_both', source => 'stg.one', business_key => '{id}');
	SELECT millrace.add_source('stg.h_both', source => 'stg.other')});
$session = open_session($node, 'postgres');
ask($session, 'BEGIN; LOCK TABLE millrace.dictionary');    # which compiling reads
my @calls = map { IPC::Run::start([ 'psql', '-Xq', '-h', $node->host, '-p', $node->port, '-d', 'postgres', '-c', "SELECT FROM millrace.run_stream('$_')" ]) } 'other', 'one';
ok(poll($node, 'postgres', 'SELECT count(*) FROM pg_locks WHERE NOT granted', 2), 'two streams begin at once');
close_session($session);
is(scalar(grep { $_->finish } @calls), 2, 'and both have run');

is($node->safe_psql('postgres', "SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'"), '0', 'nobody waited in a circle');
is($node->safe_psql('postgres', 'SELECT count(*) FROM millrace.worker_status WHERE last_error IS NOT NULL'), '0', 'no batch was repeated');
is($node->safe_psql('postgres', "SELECT missing, unexpected FROM millrace.verify('stg.visits')"), '0|0', 'the mart is what its query gives');
is($node->safe_psql('postgres', 'SELECT count(*) FROM stg.visit v WHERE NOT EXISTS (SELECT FROM stg.h_who h WHERE h.who = v.who)
	OR NOT EXISTS (SELECT FROM stg.h_place h WHERE h.place = v.place)'), '0', 'the hubs have all keys');
is($node->safe_psql('postgres', 'SELECT count(*) - count(DISTINCT who) FROM stg.h_who WHERE who IS NOT NULL'), '0', 'and each once');
is($node->safe_psql('postgres', "SELECT count(*) FROM (SELECT who, place FROM stg.visit EXCEPT
	SELECT who, place FROM stg.l_visit JOIN stg.h_who USING (h_who_hk) JOIN stg.h_place USING (h_place_hk)) x"), '0', 'so has the link');
is($node->safe_psql('postgres', 'SELECT count(*) FROM stg.visit v JOIN (SELECT id, max(_version) AS newest FROM stg.visit GROUP BY id) m USING (id)
	WHERE v._version <> newest'), '0', 'objects have one row');

$node->stop;
done_testing();
