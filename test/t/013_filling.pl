# A filling that fails keeps no other one waiting, and waits longer each time.
use strict;
use warnings;
use MillraceTest;
use Test::More;

# So many chunks that what fails is due again before they are done.
my $node = new_server('filling', conf => "millrace.backfill_rows = 1\nfsync = off\n");

make_stream($node, 'postgres');
push_rows($node, 'postgres', 1, 3000);
ok(poll_rows($node, 'postgres', 3000), 'rows are staged');
$node->safe_psql('postgres', q{
	SET ROLE etl;
	SET client_min_messages = error;
	SELECT millrace.create_mart('stg.odd', 'SELECT 6 / (id - 2) AS part, count(*) AS n FROM stg.event GROUP BY 1');
	SELECT millrace.create_hub('stg.h_v', source => 'stg.event', business_key => '{v}');
	SELECT millrace.create_mart('stg.even', 'SELECT id % 2 AS odd, count(*) AS n FROM stg.event GROUP BY 1')});
my $state = 'SELECT state FROM millrace.backfill_status WHERE relation =';
ok(poll($node, 'postgres', "$state 'stg.h_v'", 'done'), 'what was declared after one that fails is filled');
ok(poll($node, 'postgres', "$state 'stg.even'", 'done'), 'and what comes after that');
ok(poll($node, 'postgres', "SELECT failures >= 3 AND retry_at > last_error_at + interval '3 s' FROM millrace.backfill b JOIN millrace.target t ON t.id = b.target_id WHERE t.relation = 'stg.odd'::regclass"),
	'the one that fails is tried again, after longer and longer');
is($node->safe_psql('postgres', "$state 'stg.odd'"), 'failed', 'as its state says');
$node->safe_psql('postgres', "SET ROLE etl; SELECT millrace.drop_table('stg.odd')");
push_rows($node, 'postgres', 3001, 3010);
ok(poll($node, 'postgres', 'SELECT sum(n) FROM stg.even', 3010), 'the stream goes on');

$node->stop;
done_testing();
