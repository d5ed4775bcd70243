# Commands that need a database for themselves, while streams run in it.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_server('database', databases => 'app, copied, renamed');
my $workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace stream worker'";
my $running = "SELECT count(*) = 2 FROM millrace.worker_status JOIN pg_stat_activity USING (pid) WHERE worker_status.state = 'running'";

# Two databases of a new server, at once.
my ($first, $second) = map { $node->safe_psql('postgres', "CREATE DATABASE $_"); open_session($node, $_) } 'first', 'second';
ask($first, 'BEGIN; CREATE EXTENSION millrace');
$second->{in} .= "CREATE EXTENSION millrace;\n";
$second->{run}->pump_nb;
ok(poll($node, 'postgres', 'SELECT count(*) FROM pg_locks WHERE NOT granted', 1), 'the extension waits for roles that another database is making');
ask($first, 'COMMIT');
is(ask($second, 'SELECT count(*) FROM pg_extension WHERE extname = $$millrace$$'), '1', 'and takes them');
close_session($_) for $first, $second;

# Made after the start of the launcher.
$node->safe_psql('postgres', 'CREATE DATABASE app');
make_stream($node, 'app', workers => 2);
ok(poll($node, 'app', $running, 't', 30), 'a database that is made later is found');

# A backlog, so that there is always a batch in progress.
sub backlog { push_rows($node, 'app', 1, 50000) }

# Those who may not give a command stop nothing by it.
my $pids = $node->safe_psql('app', 'SELECT string_agg(pid::text, $$,$$ ORDER BY worker) FROM millrace.worker_status');
$node->safe_psql('postgres', 'CREATE ROLE nobody LOGIN; CREATE ROLE maker LOGIN CREATEDB');
for my $command ('DROP DATABASE app', 'ALTER DATABASE app RENAME TO renamed', 'ALTER DATABASE app SET TABLESPACE pg_default',
	'CREATE DATABASE other TEMPLATE app')
{
	my ($code, $out, $err) = $node->psql('postgres', $command, extra_params => [ '-U', 'nobody' ]);
	like($err, qr/must be owner|permission denied/, "$command is not everybody's");
}
my ($code, $out, $err) = $node->psql('postgres', 'CREATE DATABASE other TEMPLATE app', extra_params => [ '-U', 'maker' ]);
like($err, qr/permission denied to copy database/, 'nor is a template that one does not own');
is($node->safe_psql('app', 'SELECT string_agg(pid::text, $$,$$ ORDER BY worker) FROM millrace.worker_status'), $pids, 'and the workers did not notice');

# CREATE DATABASE ... TEMPLATE: the workers leave and come back; the copy is fenced.
backlog();
my $start = time;
$node->safe_psql('postgres', 'CREATE DATABASE copied TEMPLATE app');
cmp_ok(time - $start, '<', 20, 'CREATE DATABASE TEMPLATE of a database with streams is prompt');
ok(poll($node, 'app', $running), 'the workers come back');
is($node->safe_psql('app', 'SELECT count(*) FROM millrace.worker_status WHERE failures > 0'), '0', 'which is no failure');
ok(poll_rows($node, 'app', 50000), 'and go on');
is($node->safe_psql('copied', 'SELECT state FROM millrace.stream_status'), 'fenced', 'the copy is fenced');
($code, $out, $err) = $node->psql('copied', "SELECT millrace.start_stream('events')");
like($err, qr/stream "events" belongs to another instance.*millrace.adopt\(\)/s, 'it cannot be started');
is($node->safe_psql('copied', 'SELECT millrace.adopt()'), '1', 'adopt() takes it over');
is($node->safe_psql('copied', 'SELECT state FROM millrace.stream_status'), 'stopped', 'stopped');
$node->safe_psql('copied', "SELECT millrace.start_stream('events')");
ok(poll($node, 'copied', $running), 'it can be started then');
push_rows($node, 'copied', 60001, 60002);
ok(poll($node, 'copied', 'SELECT count(*) FROM stg.event WHERE id > 60000', 2), 'and works');
is($node->safe_psql('copied', 'SELECT count(*) FROM millrace.inbox'), '0', 'to the end of what it copied');

# A command that fails: the workers come back.
($code, $out, $err) = $node->psql('postgres', 'CREATE DATABASE copied TEMPLATE app');
like($err, qr/already exists/, 'a command that fails');
ok(poll($node, 'app', $running), 'brings the workers back');
$node->safe_psql('postgres', 'BEGIN; ALTER DATABASE app RENAME TO elsewhere; SELECT pg_sleep(1); ROLLBACK');
ok(poll($node, 'app', $running), 'and so does one that is rolled back');

# ALTER DATABASE ... RENAME and SET TABLESPACE.
my $directory = $node->basedir . '/space';
mkdir $directory;
$node->safe_psql('postgres', "CREATE TABLESPACE space LOCATION '$directory'");
$node->safe_psql('postgres', 'ALTER DATABASE app SET TABLESPACE space');
ok(poll($node, 'app', $running), 'SET TABLESPACE');
$node->safe_psql('postgres', 'ALTER DATABASE app RENAME TO renamed');
ok(poll($node, 'renamed', $running), 'RENAME, to a name that is listed');
$node->safe_psql('postgres', 'ALTER DATABASE renamed RENAME TO app');
ok(poll($node, 'app', $running), 'and back');

# A database that is taken out of the list, and put back.
$node->append_conf('postgresql.conf', "millrace.databases = 'copied'");
$node->reload;
ok(poll($node, 'postgres', "$workers AND datname = 'app'", 0), 'a database that is taken out of millrace.databases');
is($node->safe_psql('app', 'SELECT state, last_error FROM millrace.stream_status'), 'waiting|the database is not in millrace.databases', 'its streams say so');
$node->append_conf('postgresql.conf', "millrace.databases = 'app, copied'");
$node->reload;
ok(poll($node, 'app', $running), 'and is put back');

# DROP EXTENSION, rolled back and committed.
$node->safe_psql('app', 'BEGIN; DROP EXTENSION millrace CASCADE; ROLLBACK');
ok(poll($node, 'app', $running), 'DROP EXTENSION that is rolled back');
push_rows($node, 'app', 70001, 90000);
my $offset = -s $node->logfile;
$start = time;
$node->safe_psql('app', 'DROP EXTENSION millrace CASCADE');
cmp_ok(time - $start, '<', 20, 'DROP EXTENSION with a batch in progress is prompt');
ok(poll($node, 'app', "$workers AND datname = 'app'", 0), 'and leaves no worker');
is(log_count($node, qr/ERROR/, $offset), 0, 'and no error');
ok(poll($node, 'app', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace manager' AND datname = 'app'", 1), 'the manager waits for the extension');
$node->safe_psql('app', 'DROP SCHEMA stg CASCADE');
make_stream($node, 'app', workers => 2);
ok(poll($node, 'app', $running, 't', 30), 'which comes again');

# ALLOW_CONNECTIONS.
$node->safe_psql('postgres', 'ALTER DATABASE app ALLOW_CONNECTIONS false');
ok(poll($node, 'postgres', "$workers AND datname = 'app'", 0), 'ALLOW_CONNECTIONS false');
$node->safe_psql('postgres', 'ALTER DATABASE app ALLOW_CONNECTIONS true');
ok(poll($node, 'app', $running), 'and true');

# DROP DATABASE, with batches in progress.
backlog();
$start = time;
$node->safe_psql('postgres', 'DROP DATABASE app');
cmp_ok(time - $start, '<', 20, 'DROP DATABASE is prompt');
$node->safe_psql('postgres', 'DROP DATABASE copied');
is($node->safe_psql('postgres', $workers), '0', 'no worker is left');
ok(poll($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace manager'", 0), 'and no manager');
is(log_count($node, qr/PANIC|TRAP|server process .* was terminated/), 0, 'nothing crashed');
$node->stop;
done_testing();
