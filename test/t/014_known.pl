# Workers remember keys that are in a hub; whoever takes them away, they come back when they are said again.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = new_server('known');

make_stream($node, 'postgres');
$node->safe_psql('postgres', q{
	SET ROLE etl;
	CREATE TABLE stg.h_parts (h_parts_hk uuid PRIMARY KEY, id bigint, load_at timestamptz, record_source text) PARTITION BY HASH (h_parts_hk);
	CREATE TABLE stg.h_parts_0 PARTITION OF stg.h_parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE stg.h_parts_1 PARTITION OF stg.h_parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	SELECT millrace.create_hub('stg.h_parts', source => 'stg.event', business_key => '{id}');
	SELECT millrace.create_hub('stg.h_plain', source => 'stg.event', business_key => '{id}')});

# Says all keys once more, until the hub has them, or some seconds are over.
sub said_again
{
	my ($hub, $seconds) = @_;
	my $missing = '';

	for (1 .. $seconds)
	{
		push_rows($node, 'postgres', 1, 20);
		poll($node, 'postgres', 'SELECT count(*) FROM millrace.inbox', 0);
		$missing = $node->safe_psql('postgres', "SELECT string_agg(i::text, ',' ORDER BY i) FROM generate_series(1, 20) i WHERE i NOT IN (SELECT id FROM $hub WHERE id IS NOT NULL)");
		last if $missing eq '';
		# They look at the statistics once a second.
		usleep(1_100_000);
	}
	return $missing;
}

# Twice, so that they are known.
is(said_again('stg.h_parts', 1), '', 'a partitioned hub is filled');
is(said_again('stg.h_plain', 1), '', 'and a plain one');

$node->safe_psql('postgres', 'TRUNCATE stg.h_parts_0; DELETE FROM stg.h_parts_1 WHERE id IS NOT NULL');
is(said_again('stg.h_parts', 5), '', 'keys come back that were removed from partitions');

# Deletes are told when the session ends.
$node->safe_psql('postgres', 'DELETE FROM stg.h_plain WHERE id > 5');
is(said_again('stg.h_plain', 20), '', 'keys come back that were deleted');
$node->safe_psql('postgres', q{SELECT pg_stat_reset_single_table_counters('stg.h_plain'::regclass)});
$node->safe_psql('postgres', 'DELETE FROM stg.h_plain WHERE id = 5');
is(said_again('stg.h_plain', 20), '', 'also when statistics were reset');

$node->append_conf('postgresql.conf', 'track_counts = off');
$node->reload;
ok(poll($node, 'postgres', 'SHOW track_counts', 'off'), 'nobody counts any more');
$node->safe_psql('postgres', 'DELETE FROM stg.h_plain WHERE id = 6');
is(said_again('stg.h_plain', 20), '', 'and when nobody counts');

$node->stop;
done_testing();
