# An online model: interactions counted and committed in batches of 1,000, beside dictionaries of dictionaries in Python; and what it answers beside SELECT 1.

# Transactions a second of a pgbench script in the database ours: 2 clients, prepared.
online_answers() {
	pgbench -n -M prepared -c 2 -j 2 -T "${SECONDS_EACH:-10}" -D users="$users" -f "$work/$1.bench" ours 2>"$work/pgbench.log" | awk '/^tps/ { print int($3) }'
}

online() {
	local users=$((${SCALE_USERS:-100000})) items=10000 ours= baseline= select_1 recommend
	PREPARE_KAFKA=0 prepare
	"$PYTHON" "$here/online.py" make "$work/interactions.npy" "$users" "$items" 10
	! measures baseline || baseline=$("$PYTHON" "$here/baseline/counting.py" "$work/interactions.npy" 1000)
	if measures ours; then
		psql -qXAt -d ours -o /dev/null -c 'CREATE EXTENSION millrace' -c "SELECT millrace.create_stream('feed')" \
			-c "SELECT millrace.create_staging('public.bought', stream => 'feed', key => '{\"n\": [\"\$key\", \"bigint\"]}', columns => '{\"u\": [\"\$.u\", \"integer\"], \"i\": [\"\$.i\", \"integer\"]}')" \
			-c "SELECT millrace.create_model('live', 'item_knn', 'SELECT u, i FROM bought', online => true)" -c CHECKPOINT
		ours=$(PGDATABASE=ours "$PYTHON" "$here/online.py" run "$work/interactions.npy" 1000)
		say "$(ours_value "SELECT format('%s pairs of items, %s bytes each', n, round(pg_total_relation_size('millrace_state.model_1_pair') / n::numeric, 1))
			FROM (SELECT count(*) / 2 AS n FROM live) AS l")"
		[ "$(ours_value "SELECT missing + unexpected FROM millrace.verify('live')")" = 0 ] || die "the model does not fit what is staged"
	fi
	result online "$ours" "$baseline" /s
	measures ours || return 0
	cat >"$work/select_1.bench" <<<'SELECT 1;'
	printf '%s\n' '\set u random(0, :users - 1)' "SELECT * FROM millrace.recommend('live', :u::text, 10);" >"$work/recommend.bench"
	select_1=$(online_answers select_1)
	recommend=$(online_answers recommend)
	result online.recommend "$recommend" "$select_1" /s
}
