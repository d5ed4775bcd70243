# Item-item neighbours beside other libraries, as many threads on both sides: from the compressed matrix to the neighbours, to the tables that are served, and all from
# the query on.

knn_train() {
	local shape weights name threads matrix stored all similaripy implicit copied
	PREPARE_KAFKA=0 prepare "maintenance_work_mem = '4GB'" "max_parallel_maintenance_workers = $(($(nproc) - 1))"
	threads=$(nproc)
	if measures baseline; then
		python3 -m venv "$work/venv" && "$work/venv/bin/pip" install -q similaripy implicit || die "similaripy and implicit cannot be installed"
	fi
	! measures ours || psql -qXAt -d ours -c "CREATE EXTENSION millrace"
	for name in ml retail weighted; do
		shape=retail weights=
		[ "$name" != ml ] || shape=ml
		[ "$name" != weighted ] || weights=weighted
		matrix='' stored='' all='' similaripy='' implicit='' copied=''
		[ -f "$work/$shape.npy" ] || "$PYTHON" "$here/gen_bought.py" "$shape" "$work/$shape" "${SCALE:-1}"
		psql -qXAt -d ours -o /dev/null -c "CREATE TABLE bought_$name (u integer, i integer, w integer)" -c "\\copy bought_$name FROM '$work/$shape.copy' (FORMAT binary)" -c VACUUM
		if measures ours; then
			psql -qXAt -d ours -o /dev/null -c "SELECT millrace.create_model('$name', 'item_knn', 'SELECT u, i${weights:+, w} FROM bought_$name')" -c CHECKPOINT
			all=$(elapsed psql -qXAt -d ours -o /dev/null -c "SELECT millrace.train('$name')")
			read -r matrix stored < <(psql -qXAt -F ' ' -d ours -c "SELECT round(compute_seconds::numeric, 3), round((compute_seconds + write_seconds)::numeric, 3) FROM millrace.model_version_status WHERE model = '$name'")
		fi
		if measures baseline; then
			# shellcheck disable=SC2086 -- a word or none
			similaripy=$("$work/venv/bin/python" "$here/baseline/similar.py" similaripy "$work/$shape.npy" "$threads" $weights)
			# shellcheck disable=SC2086
			implicit=$("$work/venv/bin/python" -W ignore "$here/baseline/similar.py" implicit "$work/$shape.npy" "$threads" $weights)
			psql -qX -c CHECKPOINT
			# shellcheck disable=SC2086
			copied=$(PGDATABASE=ours "$work/venv/bin/python" "$here/baseline/copied.py" "bought_$name" "$threads" $weights)
		fi
		result "knn_train.$name" "$matrix" "$similaripy" s
		result "knn_train.${name}_implicit" "$matrix" "$implicit" s
		[ "$name" = weighted ] || result "knn_stored.$name" "$stored" "$similaripy" s
		result "knn_all.$name" "$all" "$copied" s
	done
}

# The seconds that a command takes.
elapsed() {
	local start=$EPOCHREALTIME
	"$@"
	calc "$EPOCHREALTIME - $start" %.3f
}
