# Rules over what two workers load at the same time, one of which is killed now and then: each alert once, windows and tags as if one had loaded it,
# and nobody waits in a circle.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('rules', conf => "deadlock_timeout = 50ms\nfsync = off\nmillrace.worker_memory = '4MB'\n");

make_stream($node, 'postgres', workers => 2);
$node->safe_psql('postgres', q{
	SET ROLE etl;
	SELECT millrace.create_staging('stg.visit', stream => 'events', key => '{"id": ["$.id", "bigint"]}', version => '["$.n", "bigint"]', log => true,
		columns => '{"kind": "$.kind", "who": "$.who", "place": "$.place", "v": ["$.v", "integer"]}', route => $$ kind = 'visit' $$);
	SELECT millrace.create_staging('stg.click', stream => 'events', key => '{"id": ["$.id", "bigint"]}', version => '["$.n", "bigint"]', columns => '{"kind": "$.kind", "who": "$.who"}', route => $$ kind = 'click' $$);
	SELECT millrace.create_mart('stg.visits', 'SELECT who, place, count(*) AS n FROM stg.visit GROUP BY who, place');
	SELECT millrace.create_rule('once', kind => 'match', source => 'stg.visit', predicate => 'v = 3');
	SELECT millrace.create_rule('rapid', kind => 'frequency', source => 'stg.click', key => '{who}', count => 4, within => '1 hour', event_time => $$ '2026-01-01 00:00+00'::timestamptz $$, max_age => NULL);
	SELECT millrace.create_rule('regular', kind => 'threshold', source => 'stg.visits', predicate => 'n >= 2', key => '{who}', tag => 'regular');
	SELECT millrace.create_rule('bad', kind => 'match', source => 'stg.visit', predicate => '10 / (v - 1) = 3')});

# The key decides which worker takes a message. Of visits both get versions of all objects; clicks are each worker's own, but for whom they are of,
# and no mart makes one wait for the other before their rule does.
my $total = 0;
for my $round (1 .. 6)
{
	my $from = 1000 * ($round - 1);

	$node->safe_psql('postgres', "SELECT millrace.stop_stream('events')");
	poll($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace stream worker'", 0);
	$node->safe_psql('postgres', qq{
		SELECT setseed(0.$round);
		SELECT count(millrace.push('events', json_build_object('kind', CASE WHEN $round % 2 = 0 THEN 'click' ELSE 'visit' END, 'id', id, 'n', n, 'who', 'w' || (id * 7 + n % 3) % 900, 'place', 'p' || id % 2, 'v', n % 9), key => (CASE WHEN $round % 2 = 0 THEN id ELSE n END)::text))
		FROM (SELECT $from - 500 + (random() * 1500)::integer AS id, $total + i AS n FROM generate_series(1, CASE WHEN $round % 2 = 0 THEN 20000 ELSE 6000 END) i) m});
	$total += 20000;
	$node->safe_psql('postgres', "SELECT millrace.start_stream('events')");
	$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'millrace stream worker' LIMIT 1") if $round % 2;
	ok(poll($node, 'postgres', 'SELECT count(*) FROM millrace.inbox', 0, 120), "round $round is consumed");
}
$node->safe_psql('postgres', "SELECT millrace.stop_stream('events')");
poll($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace stream worker'", 0);

sub none
{
	my ($query, $what) = @_;

	is($node->safe_psql('postgres', "SELECT count(*) FROM ($query) AS x"), '0', $what);
}

is($node->safe_psql('postgres', "SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'"), '0', 'nobody waited in a circle');
none("SELECT DISTINCT id::text FROM stg.visit_log WHERE v = 3 EXCEPT SELECT key FROM millrace.alert WHERE rule = 'once'", 'each object that was true has an alert');
none("SELECT key FROM millrace.alert WHERE rule = 'once' EXCEPT SELECT id::text FROM stg.visit_log WHERE v = 3", 'no other has');
none("SELECT key FROM millrace.alert WHERE rule = 'once' GROUP BY key HAVING count(*) > 1", 'and each once');
my $events = "SELECT s.key AS who, e.object AS id FROM millrace.rule r JOIN millrace.rule_state s ON s.rule_id = r.target_id, millrace_internal.rule_events(s.events) e WHERE r.name = 'rapid'";
none("SELECT who, id::text FROM stg.click EXCEPT ALL $events", 'windows have all events');
none("$events EXCEPT ALL SELECT who, id::text FROM stg.click", 'and no others');
none("SELECT who FROM stg.click GROUP BY who HAVING count(*) >= 4 EXCEPT SELECT key FROM millrace.alert WHERE rule = 'rapid'", 'full ones have fired');
none("SELECT key FROM millrace.alert WHERE rule = 'rapid' GROUP BY key HAVING count(*) > 1", 'once');
none("SELECT DISTINCT who FROM stg.visits WHERE n >= 2 EXCEPT SELECT key FROM millrace.tag WHERE until IS NULL", 'who should be tagged is');
none("SELECT key FROM millrace.tag WHERE until IS NULL EXCEPT SELECT who FROM stg.visits WHERE n >= 2", 'and nobody else');
none("SELECT FROM millrace.alert WHERE rule = 'regular' AND resolved_at IS NULL GROUP BY left(occurrence, strpos(occurrence, chr(64))) HAVING count(*) > 1", 'a group that holds has one alert');
is($node->safe_psql('postgres', "SELECT count(*) FROM millrace.alert WHERE rule = 'regular' AND resolved_at IS NULL"),
	$node->safe_psql('postgres', 'SELECT count(*) FROM stg.visits WHERE n >= 2'), 'as many as hold');
is($node->safe_psql('postgres', "SELECT errors FROM millrace.rule_status WHERE rule = 'bad'"),
	$node->safe_psql('postgres', 'SELECT count(*) FROM stg.visit_log WHERE v = 1'), 'rows that could not be judged are known, each once');
is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT state, ',') FROM millrace.rule_status"), 'active', 'all rules go on');

# What rules know comes with a dump.
my $known = 'SELECT rule_id, key, state::text, events FROM millrace.rule_state ORDER BY 1, 2';
my $dump = $node->basedir . '/dump';
command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), $dump ], 'pg_restore');
is($node->safe_psql('restored', $known), $node->safe_psql('postgres', $known), 'what rules know is there');
my $alerts = $node->safe_psql('restored', 'SELECT count(*) FROM millrace.alert');
$node->safe_psql('restored', q{SELECT millrace.adopt(); SELECT millrace.push('events', json_build_object('kind', kind, 'id', id, 'n', _version, 'who', who, 'place', place, 'v', v), key => id::text) FROM stg.visit;
	SELECT * FROM millrace.run_stream('events')});
is($node->safe_psql('restored', 'SELECT count(*) FROM millrace.alert'), $alerts, 'what comes again is not alerted again');

$node->stop;
done_testing();
