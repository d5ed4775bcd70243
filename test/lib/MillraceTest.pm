# What the TAP tests share: a server with millrace preloaded, a stream to play with, waiting for things to happen.
package MillraceTest;

use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use IPC::Run ();
use Test::More;
use Time::HiRes qw(usleep time);
use Exporter 'import';

our @EXPORT = qw(new_server make_stream push_rows poll poll_rows worker_pid log_count open_session ask close_session);

# A started server. `databases` is millrace.databases; `conf` further lines of postgresql.conf.
sub new_server
{
	my ($name, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(allows_streaming => $options{allows_streaming} // 0, extra => [qw(--encoding=UTF8 --locale=C.UTF-8)]);
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'millrace'\n")
	  unless $options{without_preload};
	$node->append_conf('postgresql.conf',
		"millrace.databases = '" . ($options{databases} // 'postgres') . "'\n"
		  . "max_worker_processes = 24\nlog_min_messages = info\n"
		  . ($options{conf} // ''));
	$node->start;
	return $node;
}

# Extension, a role that may declare, an inbox and a staging table of it: events → stg.event (id, v).
sub make_stream
{
	my ($node, $database, %options) = @_;
	my $workers = $options{workers} // 1;

	$node->safe_psql($database, qq{
		CREATE EXTENSION IF NOT EXISTS millrace;
		DO \$\$ BEGIN
			IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'etl') THEN
				CREATE ROLE etl LOGIN IN ROLE millrace_admin;
			END IF;
		END \$\$;
		CREATE SCHEMA stg;
		GRANT ALL ON SCHEMA stg TO etl;
		SET ROLE etl;
		SELECT millrace.create_stream('events', workers => $workers);
		SELECT millrace.create_staging('stg.event', stream => 'events',
			key => '{"id": ["\$.id", "bigint"]}', columns => '{"v": "\$.v"}');
		SELECT millrace.start_stream('events')});
}

# Pushes objects with the given ids.
sub push_rows
{
	my ($node, $database, $from, $to) = @_;

	$node->safe_psql($database, qq{
		SELECT count(millrace.push('events', json_build_object('id', i, 'v', 'v' || i), key => i::text))
		FROM generate_series($from, $to) i});
}

# Waits until a query gives a result, at most 240 seconds; true or false.  Unlike poll_query_until a connection that fails counts
# as another result: the server may be on its way back.
sub poll
{
	my ($node, $database, $query, $expected, $seconds) = @_;
	my $deadline = time + ($seconds // 240);
	my $last = '';

	$expected //= 't';
	while (time < $deadline)
	{
		# A server that starts again may refuse psql before psql has read the query, and then it dies.
		my ($code, $stdout) = eval { $node->psql($database, $query, on_error_stop => 0) };
		$last = $stdout // '';
		return 1 if defined $stdout && $stdout eq $expected;
		usleep(50_000);
	}
	diag("waited for $expected from $query, last was $last");
	return 0;
}

# Waits until the staging table holds so many rows.
sub poll_rows
{
	my ($node, $database, $rows, $seconds) = @_;

	return poll($node, $database, 'SELECT count(*) FROM stg.event', $rows, $seconds);
}

# The pid of a worker once it runs.
sub worker_pid
{
	my ($node, $database, $worker) = @_;

	$worker //= 0;
	poll($node, $database,
		"SELECT count(*) FROM millrace.worker_status w JOIN pg_stat_activity a USING (pid) WHERE w.worker = $worker AND w.state = 'running'",
		1);
	return $node->safe_psql($database, "SELECT pid FROM millrace.worker_status WHERE worker = $worker");
}

# How often a pattern stands in the server's log.
sub log_count
{
	my ($node, $pattern, $from) = @_;
	my $log = slurp_file($node->logfile, $from // 0);
	my @hits = $log =~ /$pattern/g;

	return scalar @hits;
}

# A session that stays open from one statement to the next.
sub open_session
{
	my ($node, $database) = @_;
	my $session = { in => '', out => '', err => '' };

	$session->{run} = IPC::Run::start(
		[ 'psql', '-XqAt', '-h', $node->host, '-p', $node->port, '-d', $database ],
		'<', \$session->{in}, '>', \$session->{out}, '2>', \$session->{err}, IPC::Run::timeout(300));
	return $session;
}

# Runs statements in a session; returns what they give, and dies of an error.
sub ask
{
	my ($session, $sql) = @_;
	my $out;

	$session->{out} = '';
	$session->{in} .= "$sql;\n\\echo asked\n";
	$session->{run}->pump until $session->{out} =~ /^asked\n/m;
	die "$sql: $session->{err}" if $session->{err} ne '';
	($out = $session->{out}) =~ s/\n?asked\n$//;
	return $out;
}

sub close_session
{
	my ($session) = @_;

	$session->{in} .= "\\q\n";
	$session->{run}->finish;
}

1;
