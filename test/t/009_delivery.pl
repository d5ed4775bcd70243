# Delivery workers: they come and go with channels, leave for commands that need the database, and do not send from a copy.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $add = q{
	CREATE FUNCTION add(channel text, key text) RETURNS void LANGUAGE sql AS $$
		INSERT INTO millrace.outbox_message (channel_id, key, message, created_at) SELECT c.id, $2, '{}', clock_timestamp() FROM millrace.channel c WHERE c.name = $1;
		SELECT millrace_internal.wake_delivery() $$};
my $workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace delivery worker' AND datname = current_database()";
my $state = sub { "SELECT string_agg(m.state, ',' ORDER BY m.id) FROM millrace.outbox m WHERE m.channel = '$_[0]'" };

my $node = new_server('primary', allows_streaming => 1, databases => 'postgres, other, copied', conf => "restart_after_crash = on\n");

$node->safe_psql('postgres', "CREATE EXTENSION millrace; $add");
is($node->safe_psql('postgres', $workers), '0', 'without channels nothing runs');
$node->safe_psql('postgres', "SELECT millrace.create_channel('told')");
ok(poll($node, 'postgres', $workers, 1), 'a worker comes with the first channel');
$node->safe_psql('postgres', "SELECT add('told', 'a')");
ok(poll($node, 'postgres', $state->('told'), 'sent'), 'and sends');
my $pid = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'millrace delivery worker'");
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok(poll($node, 'postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'millrace delivery worker' AND pid <> $pid", 1), 'a terminated one comes back');
$node->safe_psql('postgres', "SELECT millrace.drop_channel('told')");
ok(poll($node, 'postgres', $workers, 0), 'it goes with the last channel');

# Commands that need the database for themselves.
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', "CREATE EXTENSION millrace; $add; SELECT millrace.create_channel('told')");
ok(poll($node, 'other', $workers, 1), 'a worker in another database');
$node->safe_psql('postgres', 'CREATE DATABASE template_copy TEMPLATE other');
ok(poll($node, 'other', $workers, 1), 'CREATE DATABASE from it works, and the worker comes back');
$node->safe_psql('other', "SELECT add('told', 'a')");
ok(poll($node, 'other', $state->('told'), 'sent'), 'and sends');

# Dump and restore: the copy does not send.
my $dump = $node->basedir . '/dump.sql';
$node->safe_psql('other', "SELECT millrace.create_channel('own', message => 'upper(key)')");
command_ok([ 'pg_dump', '-d', $node->connstr('other'), '-f', $dump ], 'it is dumped');
$node->safe_psql('postgres', 'CREATE DATABASE copied');
command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('copied'), '-f', $dump ], 'and restored');
$node->safe_psql('copied', "SELECT add('told', 'b'), add('own', 'b')");
ok(poll($node, 'copied', "SELECT string_agg(DISTINCT state, ',') FROM millrace.channel_status", 'fenced'), 'channels of the copy are fenced');
ok($node->wait_for_log(qr/WARNING: .*channel "told" is fenced/), 'the log warns');
is($node->safe_psql('copied', $state->('told')), 'sent,waiting', 'nothing is sent');
$node->safe_psql('copied', 'SELECT millrace.adopt()');
ok(poll($node, 'copied', $state->('told'), 'sent,sent'), 'adopted, it sends');
is($node->safe_psql('copied', "SELECT d.payloads[1] FROM millrace.delivery d JOIN millrace.outbox m ON m.delivery_id = d.id WHERE m.channel = 'own'"), 'B', 'by its own expression');

$node->safe_psql('copied', 'DROP EXTENSION millrace CASCADE');
ok(poll($node, 'copied', $workers, 0), 'DROP EXTENSION ends the workers');
$node->safe_psql('postgres', "DROP DATABASE $_") foreach ('other', 'copied', 'template_copy');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_database WHERE datname IN ('other', 'copied')"), '0', 'DROP DATABASE does not wait for them');

# Promotion: a standby sends then, unless the channel says no.
$node->safe_psql('postgres', "SELECT millrace.create_channel('open'), millrace.create_channel('careful', on_promote => 'fence')");
$node->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'copy', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
is($standby->safe_psql('postgres', $workers), '0', 'a standby has no worker');
$node->stop('immediate');
$standby->promote;
$standby->safe_psql('postgres', "SELECT add('open', 'a'), add('careful', 'a')");
ok(poll($standby, 'postgres', $state->('open'), 'sent'), 'a promoted standby sends');
is($standby->safe_psql('postgres', $state->('careful')), 'waiting', 'but not over a channel that asks to be fenced');
ok($standby->wait_for_log(qr/WARNING: .*channel "careful" is fenced/), 'the log warns of that');
$standby->safe_psql('postgres', 'SELECT millrace.adopt()');
ok(poll($standby, 'postgres', $state->('careful'), 'sent'), 'adopted, it sends');
$standby->stop;
done_testing();
