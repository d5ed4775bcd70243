# create_…(replace => true) and renames while a stream runs and messages come: each takes effect between two batches.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use IPC::Run ();
use Test::More;

my $node = new_server('replace');

$node->safe_psql('postgres', q{
	CREATE EXTENSION millrace;
	CREATE ROLE etl LOGIN IN ROLE millrace_admin;
	CREATE SCHEMA stg AUTHORIZATION etl;
	SET ROLE etl;
	SELECT millrace.create_stream('events');
	SELECT millrace.create_staging('stg.event', stream => 'events', log => true, payload => 'none', key => '{"id": ["$.id", "bigint"]}', columns => '{"grp": "$.grp", "n": ["$.n", "bigint"]}',
		computed => '{"c": ["n * 10", "bigint"]}');
	SELECT millrace.create_hub('stg.h_event', source => 'stg.event', business_key => '{id}', record_source => 'first');
	SELECT millrace.create_hub('stg.h_grp', source => 'stg.event', business_key => '{grp}');
	SELECT millrace.create_link('stg.l_event', source => 'stg.event', hubs => '{stg.h_event, stg.h_grp}', record_source => 'first');
	SELECT millrace.create_satellite('stg.s_event', source => 'stg.event', parent => 'stg.h_event', attributes => '{n}');
	SELECT millrace.create_mart('stg.sums', 'SELECT grp, count(*) AS objects, sum(n)::bigint AS n FROM stg.event GROUP BY grp');
	SELECT millrace.start_stream('events')});

# Traffic: two messages in each transaction, of ten thousand objects in seven groups, until it is told to end.
$node->safe_psql('postgres', 'CREATE TABLE public.go (wanted boolean); INSERT INTO public.go VALUES (true)');
my ($out, $err) = ('', '');
my $traffic = IPC::Run::start(
	[ 'psql', '-XqAt', '-h', $node->host, '-p', $node->port, '-d', 'postgres', '-c', q{
	DO $$
	DECLARE i bigint := 0;
	BEGIN
		WHILE (SELECT wanted FROM public.go) LOOP
			i := i + 2;
			PERFORM millrace.push('events', json_build_object('id', (i * 7) % 10000, 'grp', 'g' || i % 7, 'n', i, 'extra', 'e' || i)),
				millrace.push('events', json_build_object('id', (i * 7 + 1) % 10000, 'grp', 'g' || (i + 1) % 7, 'n', i + 1, 'extra', 'e' || i + 1));
			COMMIT;
			PERFORM pg_sleep(0.001);
		END LOOP;
	END $$} ], '>', \$out, '2>', \$err);

# Waits until so many messages more have been staged.
sub flow
{
	my ($more) = @_;
	my $now = $node->safe_psql('postgres', 'SELECT count(*) FROM stg.event_log');

	return poll($node, 'postgres', 'SELECT count(*) >= ' . ($now + ($more // 100)) . ' FROM stg.event_log');
}

# Declares as etl; returns what is said, without the words of psql.
sub declare
{
	my ($sql) = @_;
	my ($code, $stdout, $stderr) = $node->psql('postgres', "SET ROLE etl; $sql", on_error_stop => 1);

	return $stderr // '';
}

my $version = q{SELECT config_version FROM millrace.stream WHERE name = 'events'};
my $staging = q{SELECT millrace.create_staging('stg.event', stream => 'events', log => true, payload => 'none', replace => true, key => '{"id": ["$.id", "bigint"]}', };

ok(flow(), 'messages come');

# Nothing changes: nothing happens, and nothing is said.
my $before = $node->safe_psql('postgres', $version);
my $said = declare($staging . q{columns => '{"grp": "$.grp", "n": ["$.n", "bigint"]}', computed => '{"c": ["n * 10", "bigint"]}')});
$said .= declare(q{SELECT millrace.create_hub('stg.h_event', source => 'stg.event', business_key => '{id}', record_source => 'first', replace => true)});
$said .= declare(q{SELECT millrace.create_link('stg.l_event', source => 'stg.event', hubs => '{stg.h_event, stg.h_grp}', record_source => 'first', replace => true)});
$said .= declare(q{SELECT millrace.create_satellite('stg.s_event', source => 'stg.event', parent => 'stg.h_event', attributes => '{n}', replace => true)});
$said .= declare(q{SELECT millrace.create_mart('stg.sums', 'SELECT grp, count(*) AS objects, sum(n)::bigint AS n FROM stg.event GROUP BY grp', replace => true)});
$said .= declare(q{SELECT millrace.create_stream('events', replace => true)});
is($said, '', 'the same again says nothing');
is($node->safe_psql('postgres', $version), $before, 'and changes nothing');

# Everything that the log holds of one column must be of one kind up to a message, and of the other from there on.
sub switches_once
{
	my ($name, $old, $new) = @_;

	ok(flow(), "$name: messages come");
	is($node->safe_psql('postgres', qq{
		SELECT count(*) FILTER (WHERE $old) > 0, count(*) FILTER (WHERE $new) > 0, count(*) FILTER (WHERE NOT ($old) AND NOT ($new)),
			max(_position) FILTER (WHERE $old) < min(_position) FILTER (WHERE $new) FROM stg.event_log}), 't|t|0|t', "$name: between two batches");
}

$said = declare($staging . q{columns => '{"grp": "$.grp", "n": ["$.n", "bigint"], "extra": "$.extra"}', computed => '{"c": ["n * 10", "bigint"]}')});
like($said, qr/NOTICE: +the new definition of stg.event is for messages from now on/, 'what history is covered is said');
switches_once('a new column', 'extra IS NULL', "extra = 'e' || n");

declare($staging . q{columns => '{"grp": "$.grp", "n": ["$.n", "bigint"], "extra": "$.extra"}', computed => '{"c": ["n * 10 + 1", "bigint"]}')});
switches_once('another expression', 'c = n * 10', 'c = n * 10 + 1');

declare($staging . q{columns => '{"grp": "$.grp", "n": ["$.n", "bigint"], "extra": "$.extra"}', computed => '{"c": ["n * 10 + 1", "bigint"]}', filter => 'n % 2 = 0')});
ok(flow(), 'with a filter messages come');
ok(poll($node, 'postgres', "SELECT count(*) > 0 FROM stg.event_log WHERE _rows = 0"), 'and some do not pass');
declare($staging . q{columns => '{"grp": "$.grp", "n": ["$.n", "bigint"], "extra": "$.extra"}', computed => '{"c": ["n * 10 + 1", "bigint"]}')});
ok(flow(), 'nor without');

# What reads a column keeps it; what nobody reads may go.
like(declare($staging . q{columns => '{"grp": "$.grp", "extra": "$.extra"}')}), qr/ERROR: +column "n" of staging table stg.event is read by (satellite|mart)/, 'a column that is read stays');
like(declare($staging . q{columns => '{"grp": "$.grp", "n": ["$.n", "integer"]}')}), qr/ERROR: +column "n" of staging table stg.event cannot become integer/, 'types do not change');

# Vault and marts.
$said = declare(q{SELECT millrace.create_hub('stg.h_event', source => 'stg.event', business_key => '{id}', record_source => 'second', replace => true)});
like($said, qr/^psql:.*NOTICE: +the new record source of stg.h_event is for rows from now on$/, 'a hub says from when on it writes another record source');
declare(q{SELECT millrace.create_link('stg.l_event', source => 'stg.event', hubs => '{stg.h_event, stg.h_grp}', record_source => 'second', replace => true)});
$said = declare(q{SELECT millrace.create_satellite('stg.s_event', source => 'stg.event', parent => 'stg.h_event', attributes => '{n, extra}', replace => true)});
like($said, qr/^psql:.*NOTICE: +the new definition of stg.s_event is for versions that come from now on\n.*HINT: [^\n]*rebuild[^\n]*$/s, 'a satellite says what history is covered');
$said = declare(q{SELECT millrace.create_mart('stg.sums', 'SELECT grp, count(*) AS objects, sum(n)::bigint AS n, sum(c)::bigint AS c FROM stg.event GROUP BY grp', replace => true)});
like($said, qr/^psql:.*NOTICE: +the new definition of stg.sums is for all that is staged$/, 'and so does a mart');
ok(flow(), 'with a new record source messages come');
ok(poll($node, 'postgres', "SELECT count(*) > 0 FROM stg.h_event WHERE record_source = 'second'"), 'a hub writes another record source');
ok(poll($node, 'postgres', "SELECT count(*) > 0 FROM stg.l_event WHERE record_source = 'second'"), 'a link, too');
ok(poll($node, 'postgres', "SELECT count(*) > 0 FROM stg.s_event WHERE extra IS NOT NULL"), 'a satellite has a new attribute');
is($node->safe_psql('postgres', "SELECT horizon > '-infinity', horizon <= (SELECT min(load_at) FROM stg.s_event WHERE extra IS NOT NULL) FROM millrace.target_status WHERE relation = 'stg.s_event'"),
	't|t', 'from its horizon on');
is($node->safe_psql('postgres', "SELECT count(*) FROM stg.s_event WHERE extra IS NULL AND load_at > (SELECT min(load_at) FROM stg.s_event WHERE extra IS NOT NULL)"), '0', 'in all rows from then on');
is($node->safe_psql('postgres', "SELECT missing, unexpected FROM millrace.verify('stg.sums')"), '0|0', 'a mart has a new column, of all that is staged');
declare(q{SELECT millrace.create_mart('stg.sums', 'SELECT grp, count(*) FILTER (WHERE n > 100) AS objects FROM stg.event GROUP BY grp', replace => true)});
ok(flow(), 'messages come');
is($node->safe_psql('postgres', "SELECT missing, unexpected FROM millrace.verify('stg.sums')"), '0|0', 'and another query');

# What users of a model have is counted anew by another query; no batch finds tables gone, nor when the model is dropped.
my $model = q{SELECT millrace.create_model('stg.model', 'item_knn', query => 'SELECT id %% 500 AS u, grp FROM stg.event WHERE n %% 3 <> %d', replace => true)};
for my $round (1 .. 12)
{
	$said = declare(sprintf($model, $round % 3));
	$said .= declare(q{SELECT millrace.drop_model('stg.model')}) if $round % 3 == 0;
	unlike($said, qr/ERROR/, 'a model has another query') or diag $said;
	flow(20);
}
$said = declare(sprintf($model, 0));
ok(poll($node, 'postgres', q{SELECT profiles FROM millrace.model_status}, 'current'), 'and what its users have is current again');
is($node->safe_psql('postgres', "SELECT missing, unexpected FROM millrace.verify('stg.model')"), '0|0', 'as the last query says');
is($node->safe_psql('postgres', q{SELECT concat_ws(': ', last_error, context) FROM millrace.worker_status WHERE last_error IS NOT NULL}), '', 'while no batch failed');

# Another query waits for a training that reads this one; batches do not wait for both.
my $training = open_session($node, 'postgres');
ask($training, 'BEGIN');
ask($training, q{SELECT millrace.train('stg.model')});
my ($change_out, $change_err) = ('', '');
my $changing = IPC::Run::start([ 'psql', '-XqAt', '-h', $node->host, '-p', $node->port, '-d', 'postgres', '-c', 'SET client_min_messages = error; ' . sprintf($model, 1) ], '>', \$change_out, '2>', \$change_err);
ok(poll($node, 'postgres', q{SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%create_model%' AND pid <> pg_backend_pid()}), 'another query waits for a training');
ok(flow(), 'but no batch does');
ask($training, 'COMMIT');
close_session($training);
$changing->finish;
is($change_err, '', 'it comes when the training has ended');
declare(q{SELECT millrace.drop_model('stg.model')});

# Renames are followed, also by declarations after them.
$node->safe_psql('postgres', 'ALTER TABLE stg.event RENAME COLUMN n TO number');
ok(flow(), 'after the rename of a column messages come');
is($node->safe_psql('postgres', "SELECT missing, unexpected FROM millrace.verify('stg.sums')"), '0|0', 'and the mart follows');
is(declare($staging . q{columns => '{"grp": "$.grp", "n": ["$.n", "bigint"], "extra": "$.extra"}', computed => '{"c": ["n * 10 + 1", "bigint"]}')}), '', 'the declaration of before is still the same');
like(declare($staging . q{columns => '{"grp": "$.grp", "n": ["$.n", "bigint"], "extra": "$.extra", "more": "$.more"}', computed => '{"c": ["n * 10 + 1", "bigint"]}')}),
	qr/column "n" of staging table stg.event is called "number" now.*Declare it under its present name/s, 'another one needs the present name');
$said = declare($staging . q{columns => '{"grp": "$.grp", "number": ["$.n", "bigint"], "extra": "$.extra"}', computed => '{"c": ["number * 10 + 2", "bigint"]}')});
unlike($said, qr/ERROR/, 'which does');
ok(flow(), 'and messages come');
is($node->safe_psql('postgres', "SELECT count(*) > 0, min(c - number * 10) FROM stg.event_log WHERE _position >= (SELECT min(_position) FROM stg.event_log WHERE c = number * 10 + 2)"), 't|2', 'with the new expression');
is(declare(q{SELECT millrace.create_satellite('stg.s_event', source => 'stg.event', parent => 'stg.h_event', attributes => '{n, extra}', columns => '{"n": "number"}', replace => true)}), '', 'the satellite reads it as before');
$node->safe_psql('postgres', 'ALTER TABLE stg.event RENAME COLUMN grp TO team');
is(declare($staging . q{columns => '{"team": "$.grp", "number": ["$.n", "bigint"], "extra": "$.extra"}', computed => '{"c": ["number * 10 + 2", "bigint"]}')}), '', 'only the name has changed');
is(declare(q{SELECT millrace.create_hub('stg.h_grp', source => 'stg.event', business_key => '{grp}', replace => true);
	SELECT millrace.create_hub('stg.h_grp', source => 'stg.event', business_key => '{team}', replace => true)}), '', 'a hub knows its key by either name');
$node->safe_psql('postgres', 'ALTER TABLE stg.h_grp RENAME TO h_team; ALTER TABLE stg.h_team RENAME COLUMN grp TO team');
is(declare(q{SELECT millrace.create_hub('stg.h_team', source => 'stg.event', business_key => '{team}', replace => true);
	SELECT millrace.create_link('stg.l_event', source => 'stg.event', hubs => '{stg.h_event, stg.h_team}', record_source => 'second', replace => true)}), '', 'and under another name of its own');
ok(flow(), 'and messages come');
$node->safe_psql('postgres', 'ALTER TABLE stg.event RENAME TO occurrence; CREATE SCHEMA moved AUTHORIZATION etl; ALTER TABLE stg.h_event SET SCHEMA moved; ALTER TABLE stg.s_event RENAME COLUMN n TO number');
is($node->safe_psql('postgres', 'SELECT count(*) FROM stg.occurrence WHERE number IS NULL'), '0', 'a renamed table');
ok(flow(), 'and a moved one are followed');

# The stream itself.
declare(q{SELECT millrace.create_stream('events', workers => 2, on_error => 'skip', replace => true)});
ok(poll($node, 'postgres', "SELECT workers_running FROM millrace.stream_status", 2), 'another number of workers');
$node->safe_psql('postgres', q{SELECT millrace.push('events', '{"id": "none"}')});
ok(flow(), 'and messages come');
is($node->safe_psql('postgres', 'SELECT count(*) FROM millrace.dead_letter'), '0', 'and another way with bad ones');

# In the end everything is there once.
$node->safe_psql('postgres', 'UPDATE public.go SET wanted = false');
$traffic->finish;
is($err, '', 'the traffic had no error');
ok(poll($node, 'postgres', 'SELECT count(*) FROM millrace.inbox', 0), 'all is consumed');
is($node->safe_psql('postgres', q{
	SELECT count(*), count(DISTINCT _position), (SELECT sum(number) FROM stg.occurrence) = (SELECT sum(number) FROM (SELECT DISTINCT ON (id) number FROM stg.event_log ORDER BY id, _position DESC) AS l)
	FROM stg.event_log}), $node->safe_psql('postgres', 'SELECT (max(_position) - 1) || $$|$$ || (max(_position) - 1) || $$|t$$ FROM stg.event_log'), 'each message once, and the newest counts');
is($node->safe_psql('postgres', "SELECT missing, unexpected FROM millrace.verify('stg.sums')"), '0|0', 'the mart is right');
is($node->safe_psql('postgres', 'SELECT count(*) FROM stg.occurrence LEFT JOIN moved.h_event USING (id) WHERE h_event_hk IS NULL'), '0', 'the hub has all');
is($node->safe_psql('postgres', 'SELECT coalesce(max(failures), 0) FROM millrace.worker_status'), '0', 'no worker failed');

$node->stop;
done_testing();
