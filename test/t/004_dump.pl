# Dump and restore: streams come back stopped and fenced. Without preload everything but the background works.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('dumped');

make_stream($node, 'postgres');
push_rows($node, 'postgres', 1, 100);
ok(poll_rows($node, 'postgres', 100), 'a stream that runs');
$node->safe_psql('postgres', "SELECT millrace.stop_stream('events')");
push_rows($node, 'postgres', 101, 105);
$node->safe_psql('postgres', "SELECT millrace.start_stream('events')");
ok(poll_rows($node, 'postgres', 105), 'goes on');
$node->safe_psql('postgres', "SELECT millrace.create_rule('copy', kind => 'health', source => 'millrace.stream_status', predicate => \$\$ state = 'fenced' \$\$)");
# Models, with the right to ask for customers: one that is kept up to date, one that was trained.
my $bought = 'SELECT id % 11 AS customer, id % 13 AS item FROM stg.event WHERE id % 3 > 0';
$node->safe_psql('postgres', "CREATE ROLE asker; GRANT USAGE ON SCHEMA stg TO asker;
	SELECT millrace.create_model('stg.live', 'item_knn', '$bought', catalogue => 'SELECT generate_series(0::bigint, 15) AS item', online => true);
	SELECT millrace.create_model('stg.trained', 'item_knn', '$bought', '{\"k\": 10000}', catalogue => 'SELECT generate_series(0::bigint, 15) AS item');
	SELECT millrace.train('stg.trained');
	GRANT SELECT ON stg.live, stg.trained TO asker; SELECT millrace.grant_profiles('stg.live', 'asker'), millrace.grant_profiles('stg.trained', 'asker')");
ok(poll($node, 'postgres', "SELECT count(*) FROM millrace.target_status WHERE relation = 'stg.live' AND state = 'active'", 1), 'an online model');
my $answers = "SET ROLE asker; SELECT u, r.* FROM generate_series(0, 11) AS u, millrace.recommend('stg.MODEL', u::text, 20, explain => true) AS r";
my ($live, $trained) = map { $node->safe_psql('postgres', $answers =~ s/MODEL/$_/r) } ('live', 'trained');
ok($live =~ /\d\.\d/ && $trained =~ /\d\.\d/, 'both answer');
my $positions = $node->safe_psql('postgres', 'SELECT topic, partition, epoch, position FROM millrace.stream_position');

my $dump = $node->basedir . '/dump';
command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ], 'pg_dump of a running stream');

# Into another database of the same server.
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->append_conf('postgresql.conf', "millrace.databases = 'postgres, restored'");
$node->reload;
command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), $dump ], 'pg_restore');
is($node->safe_psql('restored', 'SELECT state FROM millrace.stream_status'), 'fenced', 'a restored stream is fenced');
ok($node->poll_query_until('restored', "SELECT count(*) = 1 FROM millrace.alert WHERE rule = 'copy' AND key = 'events' AND resolved_at IS NULL"), 'which a restored rule tells');
is($node->safe_psql('restored', $answers =~ s/MODEL/live/r), $live, 'a restored online model answers the same');
is($node->safe_psql('restored', $answers =~ s/MODEL/trained/r), $trained, 'so does one that was trained');
is($node->safe_psql('restored', 'SELECT topic, partition, epoch, position FROM millrace.stream_position'), $positions, 'its position came with it');
my ($code, $out, $err) = $node->psql('restored', "SELECT millrace.start_stream('events')");
like($err, qr/belongs to another instance/, 'it does not start');
like($node->safe_psql('restored', 'SELECT severity, message FROM millrace.validate()'), qr/error\|it belongs to another instance/, 'validate() says so');
push_rows($node, 'restored', 201, 210);
is($node->safe_psql('restored', "SELECT count(*) FROM pg_stat_activity WHERE datname = 'restored' AND backend_type = 'millrace stream worker'"), '0', 'no worker runs it');
($code, $out, $err) = $node->psql('restored', "SELECT millrace.adopt(outbox => 'sned')");
like($err, qr/invalid value "sned" for argument outbox.*Perhaps you meant "send"/s, 'adopt() checks its argument');
is($node->safe_psql('restored', "SELECT millrace.adopt(outbox => 'send')"), '1', 'adopt()');
is($node->safe_psql('restored', 'SELECT millrace.adopt()'), '0', 'once');
is($node->safe_psql('restored', 'SELECT state FROM millrace.stream_status'), 'stopped', 'an adopted stream is stopped');
$node->safe_psql('restored', "SELECT millrace.start_stream('events')");
ok(poll_rows($node, 'restored', 115), 'and goes on when it is started');
$node->safe_psql('restored', "SELECT millrace.promote('stg.trained', millrace.train('stg.trained'))");
is($node->safe_psql('restored', 'SELECT item, rank, neighbour, score FROM stg.live ORDER BY 1, 2'),
	$node->safe_psql('restored', 'SELECT item, rank, neighbour, score FROM stg.trained WHERE version = 2 ORDER BY 1, 2'), 'and so does the online model');
push_rows($node, 'postgres', 300, 300);
ok(poll($node, 'postgres', 'SELECT count(*) FROM stg.event WHERE id = 300', 1), 'the original never stopped');

# The setting millrace.instance fences copies that cannot be seen.
$node->append_conf('postgresql.conf', "millrace.instance = 'b'");
$node->reload;
ok(poll($node, 'postgres', 'SELECT state FROM millrace.stream_status', 'fenced'), 'another millrace.instance fences');
ok(poll($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace stream worker'", 0), 'and ends the workers');
$node->append_conf('postgresql.conf', "millrace.instance = ''");
$node->reload;
ok(poll($node, 'postgres', 'SELECT state FROM millrace.stream_status', 'running'), 'the former one runs again');
$node->stop;

# Without preload.
my $plain = new_server('plain', without_preload => 1);
my $setup = "CREATE EXTENSION millrace; SELECT millrace.create_stream('events');
	SELECT millrace.create_staging('event', stream => 'events', key => '{\"id\": [\"\$.id\", \"bigint\"]}', columns => '{\"v\": \"\$.v\"}')";
$plain->safe_psql('postgres', $setup);
($code, $out, $err) = $plain->psql('postgres', "SELECT millrace.start_stream('events')");
is($code, 0, 'start_stream() works without preload');
like($err, qr/WARNING:.*millrace is not in shared_preload_libraries.*HINT:.*shared_preload_libraries = 'millrace'.*run_stream/s, 'and warns with a hint');
push_rows($plain, 'postgres', 1, 10);
is($plain->safe_psql('postgres', 'SELECT state, last_error FROM millrace.stream_status'), 'waiting|millrace is not in shared_preload_libraries', 'the status says why nothing runs');
is($plain->safe_psql('postgres', "SELECT messages FROM millrace.run_stream('events')"), '10', 'run_stream() works');
is($plain->safe_psql('postgres', 'SELECT count(*) FROM event'), '10', 'and stages');
$plain->safe_psql('postgres', "SELECT millrace.stop_stream('events'); SELECT millrace.reset_stream('events')");
is($plain->safe_psql('postgres', 'SELECT epoch FROM millrace.stream_status'), '2', 'reset_stream() raises the epoch');
($code, $out, $err) = $plain->psql('postgres', "SELECT millrace.reset_stream('events', start => 'earliest')");
like($err, qr/inbox "events" has no beginning to choose/, 'an inbox has no beginning');
($code, $out, $err) = $plain->psql('postgres', "SELECT millrace.start_stream('event')");
like($err, qr/stream "event" does not exist.*Perhaps you meant "events"/s, 'a misspelt stream');
$plain->safe_psql('postgres', 'DROP EXTENSION millrace CASCADE');
$plain->stop;
done_testing();
