# Item-item neighbours, from the compressed matrix and to the tables, beside similaripy from the matrix to its neighbours; as many threads on both sides.

knn_train() {
	local shape weights name threads ours baseline stored=
	PREPARE_KAFKA=0 prepare "maintenance_work_mem = '4GB'" "max_parallel_maintenance_workers = $(($(nproc) - 1))"
	threads=$(nproc)
	if measures baseline; then
		python3 -m venv "$work/venv" && "$work/venv/bin/pip" install -q similaripy || die "similaripy cannot be installed"
	fi
	! measures ours || psql -qXAt -d ours -c "CREATE EXTENSION millrace"
	for name in ml retail weighted; do
		shape=retail weights=
		[ "$name" != ml ] || shape=ml
		[ "$name" != weighted ] || weights=weighted
		ours= baseline= stored=
		[ -f "$work/$shape.npy" ] || "$PYTHON" "$here/gen_bought.py" "$shape" "$work/$shape" "${SCALE:-1}"
		if measures ours; then
			psql -qXAt -d ours -o /dev/null -c "CREATE TABLE bought_$name (u integer, i integer, w integer)" -c "\\copy bought_$name FROM '$work/$shape.copy' (FORMAT binary)" \
				-c "SELECT millrace.create_model('$name', 'item_knn', 'SELECT u, i${weights:+, w} FROM bought_$name')" -c "SELECT millrace.train('$name')"
			read -r ours stored < <(psql -qXAt -F ' ' -d ours -c "SELECT round(compute_seconds::numeric, 3), round((compute_seconds + write_seconds)::numeric, 3) FROM millrace.model_version_status WHERE model = '$name'")
		fi
		! measures baseline || baseline=$("$work/venv/bin/python" "$here/baseline/similar.py" "$work/$shape.npy" "$threads" $weights)
		result "knn_train.$name" "$ours" "$baseline" s
		[ "$name" = weighted ] || result "knn_stored.$name" "$stored" "$baseline" s
	done
}
