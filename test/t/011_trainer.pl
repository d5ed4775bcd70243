# Trainings in the background: done one after the other; what fails, is cancelled or killed leaves the version before, and says why.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $make = q{
	CREATE EXTENSION millrace;
	CREATE SCHEMA ml;
	CREATE TABLE ml.bought (u text, i text, w double precision);
	INSERT INTO ml.bought SELECT 'u' || u, 'i' || i, 1 FROM generate_series(1, 300) u, generate_series(1, 12) i WHERE (u * i) % 5 < 3;
	SELECT millrace.create_model('ml.also', 'item_knn', 'SELECT u, i, w FROM ml.bought')};
my $much = "INSERT INTO ml.bought SELECT 'u' || u, 'j' || i, 1 FROM generate_series(1, 500) u, generate_series(1, 2500) i";
my $trainers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace trainer'";
my $ended = sub { "SELECT state, error, sqlstate FROM millrace.training WHERE version = $_[0]" };
my $served = "SELECT DISTINCT version FROM millrace.similar('ml.also', 'i1', 5)";
my $computing = "SELECT count(*) FROM millrace.training_progress p JOIN millrace.training t USING (pid) WHERE p.phase = 'computing'";

my $node = new_server('primary', databases => 'postgres, other', conf => "restart_after_crash = on\n");
$node->safe_psql('postgres', $make);
is($node->safe_psql('postgres', "BEGIN; SELECT millrace.train('ml.also', async => true); ROLLBACK; SELECT count(*) FROM millrace.training"), "1\n0", 'what is rolled back asks for nothing');
is($node->safe_psql('postgres', "SELECT millrace.train('ml.also', split => '{\"by\": \"customer_rows\"}', metrics => '{mrr}', async => true)"), '2', 'the number is known at once');
ok(poll($node, 'postgres', $ended->(2), 'done||'), 'a training in the background');
is($node->safe_psql('postgres', $served), '2', 'its version is served, being the first');
is($node->safe_psql('postgres', 'SELECT metric, value > 0 FROM millrace.model_version_metric'), 'mrr|t', 'and judged');
ok(poll($node, 'postgres', $trainers, 0), 'the process goes');

# Several wait for each other.
$node->safe_psql('postgres', "SELECT millrace.train('ml.also', async => true) FROM generate_series(1, 3)");
ok(poll($node, 'postgres', "SELECT string_agg(state, ',') FROM millrace.training", 'done,done,done,done'), 'several, one after the other');

# What fails says why; the next one is trained.
$node->safe_psql('postgres', "INSERT INTO ml.bought VALUES ('u1', 'i1', 'Infinity')");
$node->safe_psql('postgres', "SELECT millrace.train('ml.also', async => true)");
ok(poll($node, 'postgres', "SELECT state, error LIKE 'weight Infinity of user \"u1\"%', sqlstate FROM millrace.training WHERE version = 6", 'failed|t|22003'), 'a failure is in the view');
is($node->safe_psql('postgres', "$served; SELECT count(*) FROM millrace.model_version_status WHERE version = 6"), "2\n0", 'and the version before is served');
$node->safe_psql('postgres', "DELETE FROM ml.bought WHERE w = 'Infinity'; SELECT millrace.train('ml.also', async => true)");
ok(poll($node, 'postgres', $ended->(7), 'done||'), 'the next one is trained');

# Cancelled, terminated, killed with the server.
$node->safe_psql('postgres', $much);
my %end = (8 => "SELECT pg_cancel_backend(pid) FROM millrace.training WHERE state = 'running'", 9 => "SELECT pg_terminate_backend(pid) FROM millrace.training WHERE state = 'running'");
foreach my $version (8, 9)
{
	$node->safe_psql('postgres', "SELECT millrace.train('ml.also', async => true)");
	ok(poll($node, 'postgres', $computing, 1), 'it computes');
	$node->safe_psql('postgres', $end{$version});
	ok(poll($node, 'postgres', "SELECT state, sqlstate FROM millrace.training WHERE version = $version", $version == 8 ? 'failed|57014' : 'failed|57P02'), 'it is noted how it ended');
}
$node->safe_psql('postgres', "SELECT millrace.train('ml.also', async => true)");
ok(poll($node, 'postgres', $computing, 1), 'it computes');
kill 'KILL', $node->safe_psql('postgres', "SELECT pid FROM millrace.training WHERE state = 'running'");
ok(poll($node, 'postgres', 'SELECT state, sqlstate FROM millrace.training WHERE version = 10', 'failed|57P02'), 'so when the server crashed');
is($node->safe_psql('postgres', "$served; SELECT max(version) FROM millrace.model_version_status"), "2\n7", 'and the version before is served');
is($node->safe_psql('postgres', "SELECT count(*) FROM millrace_state.model_1_target WHERE version > 7"), '0', 'nothing is left of the others');

# The program that trains trees dies with its backend.
$node->safe_psql('postgres', q{
	CREATE TABLE ml.event AS SELECT i AS id, random() AS x, random() AS label FROM generate_series(1, 2000) i;
	SELECT millrace.create_model('ml.trees', 'xgboost', 'SELECT * FROM ml.event', '{"rounds": 100000, "max_depth": 12}', label => 'label', entity => '{id}');
	SELECT millrace.train('ml.trees', async => true)});
ok(poll($node, 'postgres', "SELECT count(*) FROM millrace.training_progress p JOIN millrace.training t USING (pid) WHERE p.done > 0 AND p.phase = 'computing'", 1), 'rounds are trained');
my $trainer = $node->safe_psql('postgres', "SELECT pid FROM millrace.training WHERE state = 'running'");
my ($program) = slurp_file("/proc/$trainer/task/$trainer/children") =~ /(\d+)/;
ok($program, 'by a program');
kill 'KILL', $trainer;
ok(poll($node, 'postgres', "SELECT state, sqlstate FROM millrace.training WHERE model = 'ml.trees'", 'failed|57P02'), 'the crash is noted');
my $deadline = time + 60;
usleep(50_000) while (-d "/proc/$program" && time < $deadline);
ok(!-d "/proc/$program", 'and the program has ended');
$node->safe_psql('postgres', "SELECT millrace.drop_model('ml.trees'); DROP TABLE ml.event");

# The model goes while a training waits; the extension and the database while one runs.
$node->safe_psql('postgres', "BEGIN; SELECT millrace.train('ml.also', async => true); SELECT millrace.drop_model('ml.also'); COMMIT");
is($node->safe_psql('postgres', 'SELECT count(*) FROM millrace.training'), '0', 'trainings go with their model');
foreach my $command ('DROP EXTENSION millrace CASCADE', 'DROP DATABASE other')
{
	my $extension = $command =~ /EXTENSION/;

	$node->safe_psql('postgres', 'CREATE DATABASE other') if $extension;
	$node->safe_psql('other', ($extension ? '' : 'DROP SCHEMA ml CASCADE; ') . $make);
	$node->safe_psql('other', "$much; SELECT millrace.train('ml.also', async => true)");
	ok(poll($node, 'other', $computing, 1), 'it computes in another database');
	$node->safe_psql($extension ? 'other' : 'postgres', $command);
	ok(poll($node, 'postgres', $trainers, 0), "$command does not wait for it");
}

# Where nothing runs in the background.
$node->safe_psql('postgres', 'CREATE DATABASE unlisted');
$node->safe_psql('unlisted', $make);
my ($code, $out, $err) = $node->psql('unlisted', "SELECT millrace.train('ml.also', async => true)");
like($err, qr/WARNING:  version 1 of model ml.also is not trained yet: database "unlisted" is not in millrace.databases/, 'a warning where nothing runs');
is($node->safe_psql('unlisted', 'SELECT state FROM millrace.training'), 'waiting', 'it waits');
$node->stop;
done_testing();
