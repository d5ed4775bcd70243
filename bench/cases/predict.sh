# What trees predict: row by row in one query, beside onnxruntime; all rows, beside XGBoost on as many threads, also from COPY out of the table.

# Milliseconds of a statement in the database ours with so many workers: the least of five.
milliseconds() {
	local round
	for round in 1 2 3 4 5; do
		psql -qX -d ours -c "SET max_parallel_workers_per_gather = $1" -c 'SET parallel_setup_cost = 0' -c 'SET parallel_tuple_cost = 0' -c 'SET min_parallel_table_scan_size = 0' -c '\timing on' -c "$2"
	done | awk '/^Time:/ && (least == "" || $2 < least) { least = $2 } END { print least }'
}

predict() {
	local rows=${ROWS:-1000000} threads name one jsonb arrays table batch onnx copied
	needs_both predict
	PREPARE_KAFKA=0 prepare
	threads=$(nproc)
	python3 -m venv --system-site-packages "$work/venv" && "$work/venv/bin/pip" install -q onnx onnxruntime || die "onnxruntime cannot be installed"
	say "making $rows rows"
	"$PYTHON" "$here/baseline/predict.py" make "$work" "$rows"
	psql -qXAt -d ours -o /dev/null -c 'CREATE EXTENSION millrace' -c "CREATE TABLE features (id integer, label real, $(seq -s ', ' -f 'f%g real' 0 19))" -c "\\copy features FROM '$work/rows.tsv'" \
		-c "ALTER TABLE features SET (parallel_workers = $threads)" -c "CREATE TABLE arrays WITH (parallel_workers = $threads) AS SELECT ARRAY[$(seq -s ', ' -f 'f%g' 0 19)] AS a FROM features" \
		-c "CREATE TABLE objects AS SELECT jsonb_strip_nulls(to_jsonb(f) - '{id,label}'::text[]) AS j FROM features f" -c 'VACUUM ANALYZE' -c CHECKPOINT \
		-c "SELECT millrace.create_model('trees', 'xgboost', 'SELECT * FROM features', label => 'label', entity => '{id}')" -c "\\set model \`base64 -w 0 $work/model.ubj\`" \
		-f - <<<"SELECT millrace.import_model('trees', decode(:'model', 'base64'))"
	one=$(milliseconds 0 "SELECT sum(millrace.predict('trees', f)) FROM features f")
	jsonb=$(milliseconds 0 "SELECT sum(millrace.predict('trees', j)) FROM objects")
	arrays=$(milliseconds $((threads - 1)) "SELECT sum(millrace.predict('trees', a)) FROM arrays")
	table=$(milliseconds $((threads - 1)) "SELECT sum(millrace.predict('trees', f)) FROM features f")
	onnx=$("$work/venv/bin/python" "$here/baseline/predict.py" one "$work")
	batch=$("$PYTHON" "$here/baseline/predict.py" batch "$work" "$threads")
	copied=$(PGDATABASE=ours "$PYTHON" "$here/baseline/predict.py" copy "$work" "$threads")
	result predict_one "$(calc "$one * 1000 / $rows" %.2f)" "$onnx" µs
	result predict_one.jsonb "$(calc "$jsonb * 1000 / $rows" %.2f)" "$onnx" µs
	result predict_batch.arrays "$(calc "$rows * 1000 / $arrays")" "$batch" rows/s
	result predict_batch.table "$(calc "$rows * 1000 / $table")" "$batch" rows/s
	result predict_batch.copy "$(calc "$rows * 1000 / $table")" "$copied" rows/s
}
