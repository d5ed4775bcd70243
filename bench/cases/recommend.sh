# Answers of a model of 100,000 items: recommend() for customers with 8 to 12 purchases and similar(), beside SELECT 1; and beside plain SQL over the same neighbours.

# Transactions a second of a pgbench script in the database ours: 2 clients, prepared.
answers() {
	pgbench -n -M prepared -c 2 -j 2 -T "${SECONDS_EACH:-10}" -D customers="$customers" -D items="$items" -f "$work/$1.bench" ours 2>"$work/pgbench.log" |
		awk '/^tps/ { print int($3) }'
}

is_copied() { [ "$(ours_value 'SELECT count(memory_bytes) FROM millrace.model_status')" = 1 ]; }

recommend() {
	local customers items name round
	needs_both recommend
	PREPARE_KAFKA=0 prepare "maintenance_work_mem = '4GB'" "max_parallel_maintenance_workers = $(($(nproc) - 1))" "millrace.model_cache = '2GB'"
	"$PYTHON" "$here/gen_bought.py" retail "$work/retail" "${SCALE:-1}"
	say "training"
	# customers are numbered so that the first ones have 8 to 12 purchases
	psql -qXAt -d ours -o /dev/null -c 'CREATE EXTENSION millrace' -c 'CREATE TABLE raw (u integer, i integer, w integer)' -c "\\copy raw FROM '$work/retail.copy' (FORMAT binary)" \
		-c 'CREATE TABLE bought AS SELECT c.number::integer AS u, r.i FROM raw r JOIN
			(SELECT u, row_number() OVER (ORDER BY count(*) BETWEEN 8 AND 12 DESC, u) AS number FROM raw GROUP BY u) c USING (u)' \
		-c "SELECT millrace.create_model('also', 'item_knn', 'SELECT u, i FROM bought')" -c "SELECT millrace.train('also')" \
		-c 'CREATE TABLE neighbours AS SELECT neighbour, item, score FROM also ORDER BY neighbour' -c 'CREATE INDEX ON neighbours (neighbour) INCLUDE (item, score)' \
		-c 'CREATE INDEX ON bought (u) INCLUDE (i)' -c 'VACUUM ANALYZE' -c CHECKPOINT
	customers=$(ours_value 'SELECT count(*) FROM (SELECT FROM bought GROUP BY u HAVING count(*) BETWEEN 8 AND 12) c')
	items=$(ours_value 'SELECT max(i) FROM bought')
	cat >"$work/select_1.bench" <<<'SELECT 1;'
	printf '%s\n' '\set u random(1, :customers)' "SELECT * FROM millrace.recommend('also', :u::text, 10);" >"$work/recommend.bench"
	printf '%s\n' '\set i random(0, :items)' "SELECT * FROM millrace.similar('also', :i::text, 10);" >"$work/similar.bench"
	cat >"$work/sql.bench" <<-'SQL'
		\set u random(1, :customers)
		SELECT n.item, sum(n.score::double precision) AS score FROM bought b JOIN neighbours n ON n.neighbour = b.i
		WHERE b.u = :u::integer AND NOT EXISTS (SELECT FROM bought s WHERE s.u = :u::integer AND s.i = n.item) GROUP BY n.item ORDER BY score DESC, n.item LIMIT 10;
	SQL
	# the first question asks for the copy in shared memory
	ours_value "SELECT count(*) FROM millrace.similar('also', '1', 1)" >/dev/null
	wait_for 120 is_copied || die "no copy of the model was made"
	say "$customers customers; the copy of the model has $(ours_value 'SELECT memory_bytes / 1000000 FROM millrace.model_status') MB"
	for ((round = 0; round < ${ROUNDS:-3}; round++)); do
		for name in select_1 recommend similar sql; do
			answers "$name" >>"$work/$name.rates"
		done
	done
	result recommend "$(median "$work/recommend.rates")" "$(median "$work/select_1.rates")" /s
	result similar "$(median "$work/similar.rates")" "$(median "$work/select_1.rates")" /s
	result recommend.sql "$(median "$work/recommend.rates")" "$(median "$work/sql.rates")" /s
}
