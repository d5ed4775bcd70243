# Others' DDL under a running stream: every real change counts from the next batch on, and what VACUUM, ANALYZE and
# temporary tables do is none: compiling again takes longer than many a batch.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('definitions', conf => "log_min_messages = debug1\nautovacuum = off\n");
my $last = 0;

make_stream($node, 'postgres');
$node->safe_psql('postgres', q{
	CREATE DOMAIN public.small AS integer;
	CREATE FUNCTION public.twice(bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1 * 2; END';
	SET ROLE etl;
	SELECT millrace.create_staging('stg.computed', stream => 'events', key => '{"id": ["$.id", "bigint"]}',
		columns => '{"size": ["$.id", "public.small"], "fixed": "$.v"}',
		computed => '{"twice": ["id + public.twice(1)", "bigint"]}');
	SELECT millrace.create_hub('stg.h_event', source => 'stg.event', business_key => '{id}');
	SELECT millrace.create_satellite('stg.s_event', source => 'stg.event', parent => 'stg.h_event', attributes => '{v}');
	SELECT millrace.create_mart('stg.counts', 'SELECT length(v) AS l, count(*) AS n FROM stg.event GROUP BY length(v)')});

# Pushes one object and waits until it is staged.
sub push_next
{
	$last++;
	push_rows($node, 'postgres', $last, $last);
	return poll($node, 'postgres', 'SELECT count(*) FROM stg.computed', $last);
}

sub compiled
{
	return log_count($node, qr/stream "events" is compiled again/);
}

push_next() for 1 .. 2;
my $before = compiled();
for my $command ('VACUUM ANALYZE', 'VACUUM FULL pg_catalog.pg_statistic', 'CREATE TEMP TABLE mine (id integer, v text)',
	"CREATE TABLE other (id integer); ALTER TABLE other ADD v text; ANALYZE other", 'CREATE TYPE public.mood AS ENUM (\'good\', \'bad\')')
{
	$node->safe_psql('postgres', $command);
	push_next();
	is(compiled(), $before, "$command is no change");
}

# each with what a row that comes afterwards must show
for my $case (
	['ALTER TABLE stg.event ADD COLUMN note text', "SELECT v FROM stg.event WHERE id = ?", 'v?'],
	['ALTER TABLE stg.event DROP COLUMN note', "SELECT v FROM stg.event WHERE id = ?", 'v?'],
	['ALTER TABLE stg.event RENAME COLUMN v TO value', "SELECT value FROM stg.event WHERE id = ?", 'v?'],
	['ALTER TABLE stg.event ALTER COLUMN value SET DEFAULT \'none\'', "SELECT value FROM stg.event WHERE id = ?", 'v?'],
	['CREATE INDEX ON stg.event (value)', "SET enable_seqscan = off; SELECT value FROM stg.event WHERE value = 'v?'", 'v?'],
	['ALTER TABLE stg.s_event RENAME COLUMN v TO value', "SELECT value FROM stg.s_event s JOIN stg.h_event USING (h_event_hk) WHERE id = ?", 'v?'],
	['CREATE OR REPLACE FUNCTION public.twice(bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS \'BEGIN RETURN 1000; END\'',
		"SELECT twice - id FROM stg.computed WHERE id = ?", '1000'],
	['ALTER FUNCTION public.twice(bigint) COST 7', "SELECT twice - id FROM stg.computed WHERE id = ?", '1000'],
	['ALTER DOMAIN public.small ADD CHECK (VALUE > 0)', "SELECT size FROM stg.computed WHERE id = ?", '?'],
	['CREATE TABLE stg.heard (value text);
	  GRANT INSERT ON stg.heard TO etl;
	  CREATE FUNCTION public.hears() RETURNS trigger LANGUAGE plpgsql AS \'BEGIN INSERT INTO stg.heard VALUES (NEW.value); RETURN NULL; END\';
	  CREATE TRIGGER hears AFTER INSERT ON stg.event FOR EACH ROW EXECUTE FUNCTION public.hears()',
		"SELECT value FROM stg.heard", 'v?'],
	['ALTER TABLE stg.event DISABLE TRIGGER hears', "SELECT count(*) FROM stg.heard WHERE value = 'v?'", '0'],
	['ALTER TABLE stg.event ENABLE ROW LEVEL SECURITY', "SELECT value FROM stg.event WHERE id = ?", 'v?'],
	['ALTER TABLE stg.computed RENAME TO calculated; CREATE VIEW stg.computed AS SELECT * FROM stg.calculated',
		"SELECT fixed FROM stg.computed WHERE id = ?", 'v?'])
{
	my ($command, $query, $expected) = @$case;

	$before = compiled();
	$node->safe_psql('postgres', $command);
	ok(push_next(), "after $command the stream goes on");
	$query =~ s/\?/$last/g;
	$expected =~ s/\?/$last/g;
	is($node->safe_psql('postgres', $query), $expected, 'and writes what is right now');
	cmp_ok(compiled(), '>', $before, 'because it was compiled again');
}

# a row is what its message says, wherever it is counted
$node->safe_psql('postgres', 'CREATE FUNCTION public.shout() RETURNS trigger LANGUAGE plpgsql AS \'BEGIN NEW.value := upper(NEW.value); RETURN NEW; END\';
	CREATE TRIGGER shout BEFORE INSERT ON stg.event FOR EACH ROW EXECUTE FUNCTION public.shout()');
push_rows($node, 'postgres', $last + 1, $last + 1);
ok(poll($node, 'postgres', "SELECT last_error ~ 'trigger \"shout\" could change rows of staging table stg.event' FROM millrace.worker_status"), 'a trigger that could change it stops the stream');
$node->safe_psql('postgres', "DROP TRIGGER shout ON stg.event; SELECT millrace.start_stream('events')");
$last++;
ok(poll($node, 'postgres', "SELECT value FROM stg.event WHERE id = $last", "v$last"), 'which goes on without it');

# what breaks a domain's new constraint is told from what does not, without another look at the table
$before = compiled();
push_rows($node, 'postgres', -1, -1);
ok(poll($node, 'postgres', "SELECT count(*) FROM millrace.dead_letter", 1), 'a new constraint of a domain is obeyed');
is($node->safe_psql('postgres', 'SELECT count(*) FROM stg.event e LEFT JOIN stg.h_event h USING (id) WHERE h.id IS NULL'), '0',
	'the vault has all');

$node->stop;
done_testing();
