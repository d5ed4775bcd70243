# verify() while two workers write: it takes no lock that a batch would wait for, finds nothing that is not wrong, and one row that is.
use strict;
use warnings;
use MillraceTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('verify');

$node->safe_psql('postgres', q{
	CREATE EXTENSION millrace;
	CREATE SCHEMA stg;
	SELECT millrace.create_stream('events', workers => 2);
	SELECT millrace.create_staging('stg.event', stream => 'events', log => true, key => '{"id": ["$.id", "bigint"]}', version => '["$.v", "bigint"]',
		columns => '{"grp": "$.grp", "n": ["$.n", "bigint"]}');
	SELECT millrace.create_staging('stg.item', stream => 'events', for_each => '$.items[*]', log => true, key => '{"id": ["$.id", "bigint"]}', version => '["$.v", "bigint"]',
		columns => '{"grp": "$.grp", "product": "@.p", "q": ["@.q", "integer"]}');
	SELECT millrace.create_hub('stg.h_event', source => 'stg.event', business_key => '{id}');
	SELECT millrace.create_hub('stg.h_grp', source => 'stg.event', business_key => '{grp}');
	SELECT millrace.create_hub('stg.h_product', source => 'stg.item', business_key => '{product}');
	SELECT millrace.create_link('stg.l_event', source => 'stg.event', hubs => '{stg.h_event, stg.h_grp}');
	SELECT millrace.create_link('stg.l_item', source => 'stg.item', hubs => '{stg.h_event, stg.h_product}');
	SELECT millrace.create_satellite('stg.s_event', source => 'stg.event', parent => 'stg.h_event', attributes => '{n}');
	SELECT millrace.create_satellite('stg.s_all', source => 'stg.event', parent => 'stg.h_event', attributes => '{n, grp}', history => 'all');
	SELECT millrace.create_satellite('stg.m_item', source => 'stg.item', parent => 'stg.h_event', kind => 'multi_active', sub_key => '{product}', attributes => '{q}');
	SELECT millrace.create_satellite('stg.e_item', source => 'stg.item', parent => 'stg.l_item', kind => 'effectivity', driving_key => '{id}');
	SELECT millrace.create_pit('stg.p_event', hub => 'stg.h_event', satellites => '{stg.s_event, stg.m_item}', every => 'day');
	SELECT millrace.create_mart('stg.by_grp', 'SELECT grp, count(*) AS objects, sum(n)::bigint AS n FROM stg.event GROUP BY grp');
	SELECT millrace.create_mart('stg.most', 'SELECT grp, max(n) AS n, count(DISTINCT n % 10) AS digits FROM stg.event GROUP BY grp');
	SELECT millrace.create_mart('stg.striped', 'SELECT product, count(*) AS rows, sum(q)::bigint AS q FROM stg.item GROUP BY product', stripes => 2);
	CREATE FUNCTION public.message(id bigint, v bigint, grp text, n bigint) RETURNS json IMMUTABLE LANGUAGE sql AS $$
		SELECT json_build_object('id', id, 'v', v, 'grp', grp, 'n', n, 'items', CASE n % 3 WHEN 0 THEN json_build_array() WHEN 1 THEN json_build_array(json_build_object('p', 'p' || grp, 'q', n % 5))
			ELSE json_build_array(json_build_object('p', 'p' || grp, 'q', 1), json_build_object('p', 'all', 'q', n % 5)) END) $$;
	-- What the traffic never speaks of.
	SELECT count(millrace.push('events', public.message(100000 + i, 1, 'quiet', 2), key => i::text)) FROM generate_series(1, 10) i;
	SELECT millrace.start_stream('events')});
ok(poll($node, 'postgres', 'SELECT count(*) FROM millrace.inbox', 0), 'there are rows that nobody changes');

# Messages for both workers, some of them late, until it is told to end.
$node->safe_psql('postgres', 'CREATE TABLE public.go (wanted boolean); INSERT INTO public.go VALUES (true)');
my $traffic = open_session($node, 'postgres');
$traffic->{in} .= q{
	DO $$
	DECLARE i bigint := 0;
	BEGIN
		WHILE (SELECT wanted FROM public.go) LOOP
			i := i + 1;
			PERFORM millrace.push('events', public.message((i * 7) % 500, CASE i % 5 WHEN 0 THEN i - 300 ELSE i END, 'g' || i % 7, i), key => ((i * 7) % 500)::text);
			COMMIT;
			PERFORM pg_sleep(0.001);
		END LOOP;
	END $$;
};
$traffic->{run}->pump_nb;

# Waits until both workers have taken all of the next messages.
sub flow
{
	my $until = 200 + $node->safe_psql('postgres', 'SELECT coalesce(max(push_no), (SELECT max(_position) FROM stg.event_log)) FROM millrace.inbox');

	return poll($node, 'postgres', "SELECT EXISTS (SELECT FROM stg.event_log WHERE _position > $until) AND NOT EXISTS (SELECT FROM millrace.inbox WHERE push_no <= $until)");
}

my @tables = split /\n/, $node->safe_psql('postgres', q{
	SELECT relation FROM millrace.target_status WHERE state = 'active' UNION ALL SELECT unnest('{stg.event,stg.item}'::regclass[])::text});
is(scalar @tables, 15, 'all tables are filled');
ok(flow(), 'messages come');

# Each at another moment, and all of them at one.
my $position = 'SELECT max(_position) FROM stg.event_log';
my $before = $node->safe_psql('postgres', $position);
for my $round (1 .. 3)
{
	my @wrong = grep { $_ !~ /\|0\|0\|$/ } map { $node->safe_psql('postgres', "SELECT '$_', missing, unexpected, example FROM millrace.verify('$_')") } @tables;
	is("@wrong", '', "nothing is wrong ($round)");
}
cmp_ok($node->safe_psql('postgres', $position), '>', $before, 'while messages came');

# The locks of a verification last until its transaction ends.
my $session = open_session($node, 'postgres');
my $pid = ask($session, 'BEGIN; SELECT pg_backend_pid()');
for my $table (@tables)
{
	like(ask($session, "SELECT missing, unexpected FROM millrace.verify('$table')"), qr/^0\|0$/, "$table is right");
}
is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT mode, ', ') FROM pg_locks WHERE pid = $pid AND locktype <> 'virtualxid'"), 'AccessShareLock', 'all locks are those of reading');
is($node->safe_psql('postgres', "SELECT string_agg(r::text, ' ') FROM unnest('{" . join(',', @tables) . "}'::regclass[]) r WHERE r <> 'stg.p_event'::regclass AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.pid = $pid AND l.relation = r)"), '', 'of every table (a point-in-time table is a view of what is looked at)');
ok(flow(), 'both workers go on while they are held');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE $pid = ANY (pg_blocking_pids(pid))"), '0', 'nobody waits for it');
ask($session, 'ROLLBACK');

# One row is wrong, of what nobody speaks of, and in no transaction but this one.
my %state = map { split /\|/ } split /\n/, $node->safe_psql('postgres', q{SELECT relation, format('millrace_state.%s_%s', kind, id) FROM millrace.target WHERE kind IN ('mart', 'pit')});
my $hash = q{(SELECT h_event_hk FROM stg.h_event WHERE id = 100003)};
my @wrong = (
	[ 'stg.event', 'UPDATE stg.event SET n = 3 WHERE id = 100003' ],
	[ 'stg.item', q{DELETE FROM stg.item WHERE id = 100003 AND product = 'all'} ],
	[ 'stg.h_event', 'UPDATE stg.h_event SET id = 1000030 WHERE id = 100003' ],
	[ 'stg.h_grp', q{DELETE FROM stg.h_grp WHERE grp = 'quiet'} ],
	[ 'stg.l_event', "UPDATE stg.l_event SET h_grp_hk = gen_random_uuid() WHERE h_event_hk = $hash" ],
	[ 'stg.l_item', "DELETE FROM stg.l_item WHERE h_event_hk = $hash AND h_product_hk = (SELECT h_product_hk FROM stg.h_product WHERE product = 'all')" ],
	[ 'stg.s_event', "UPDATE stg.s_event SET n = 3 WHERE h_event_hk = $hash" ],
	[ 'stg.s_all', "DELETE FROM stg.s_all WHERE h_event_hk = $hash" ],
	[ 'stg.m_item', "UPDATE stg.m_item SET q = 77 WHERE h_event_hk = $hash AND product = 'all'" ],
	[ 'stg.e_item', "DELETE FROM stg.e_item WHERE driving_hk = $hash AND l_item_hk = (SELECT min(l_item_hk::text)::uuid FROM stg.e_item WHERE driving_hk = $hash)" ],
	[ 'stg.p_event', "UPDATE $state{'stg.p_event'} SET s1_applied_at = s1_applied_at - interval '1 second' WHERE from_at > '-infinity' AND hash_key = $hash" ],
	[ 'stg.by_grp', "UPDATE $state{'stg.by_grp'} SET n = n + 1 WHERE g1 = 'quiet'" ],
	[ 'stg.most', "DELETE FROM $state{'stg.most'} WHERE g1 = 'quiet'" ],
	[ 'stg.striped', "UPDATE $state{'stg.striped'} SET n = n + 1 WHERE g1 = 'pquiet' AND ctid = (SELECT min(ctid) FROM $state{'stg.striped'} WHERE g1 = 'pquiet')" ]);
$before = $node->safe_psql('postgres', $position);
for my $case (@wrong)
{
	my ($table, $change) = @$case;

	is(ask($session, "BEGIN; $change RETURNING 'one'"), 'one', "one row of $table is made wrong");
	like(ask($session, "SELECT missing + unexpected FROM millrace.verify('$table')"), qr/^[12]$/, 'which is found');
	ask($session, 'ROLLBACK');
}
ok(flow(), 'messages come');
cmp_ok($node->safe_psql('postgres', $position), '>', $before, 'all the time');
close_session($session);

$node->safe_psql('postgres', 'UPDATE public.go SET wanted = false');
close_session($traffic);
is($traffic->{err}, '', 'the traffic had no error');
ok(poll($node, 'postgres', 'SELECT count(*) FROM millrace.inbox', 0), 'all is consumed');
is(join(' ', grep { $_ !~ /\|0\|0$/ } map { $node->safe_psql('postgres', "SELECT '$_', missing, unexpected FROM millrace.verify('$_')") } @tables), '', 'nothing is wrong in the end');
is($node->safe_psql('postgres', 'SELECT coalesce(max(failures), 0) FROM millrace.worker_status'), '0', 'no worker failed');

$node->stop;
done_testing();
