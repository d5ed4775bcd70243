/*
 * record.c
 *	  Rows of millrace.worker: what each stream worker does, and why it does not.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/record.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/elog.h"
#include "utils/snapmgr.h"

static const char *const record_sql =
	"INSERT INTO millrace.worker AS w (stream_id, worker, state, since, pid, started_at,"
	" last_error, last_error_at, sqlstate, detail, hint, context, failures)"
	" SELECT s.id, $2, $3, clock_timestamp(), $4, CASE WHEN $4 IS NOT NULL THEN clock_timestamp() END,"
	" $5, CASE WHEN $5 IS NOT NULL THEN clock_timestamp() END, $6, $7, $8, $9,"
	" CASE WHEN $10 > 0 THEN 1 ELSE 0 END"
	" FROM millrace.stream s WHERE s.id = $1"
	" ON CONFLICT (stream_id, worker) DO UPDATE SET state = excluded.state,"
	" since = CASE WHEN w.state = excluded.state THEN w.since ELSE excluded.since END,"
	" pid = excluded.pid,"
	" started_at = CASE WHEN w.pid = excluded.pid THEN w.started_at"
	" ELSE coalesce(excluded.started_at, w.started_at) END,"
	" last_error = coalesce(excluded.last_error, w.last_error),"
	" last_error_at = coalesce(excluded.last_error_at, w.last_error_at),"
	" sqlstate = CASE WHEN $5 IS NULL THEN w.sqlstate ELSE excluded.sqlstate END,"
	" detail = CASE WHEN $5 IS NULL THEN w.detail ELSE excluded.detail END,"
	" hint = CASE WHEN $5 IS NULL THEN w.hint ELSE excluded.hint END,"
	" context = CASE WHEN $5 IS NULL THEN w.context ELSE excluded.context END,"
	" failures = CASE WHEN $10 > 0 THEN w.failures + 1 WHEN $10 < 0 THEN 0 ELSE w.failures END"
	" WHERE (w.state, w.pid, w.last_error) IS DISTINCT FROM"
	" (excluded.state, excluded.pid, coalesce(excluded.last_error, w.last_error)) OR $10 <> 0"
	" RETURNING w.failures";

/* A text parameter. */
static void
set_text(int i, const char *text, Datum *values, char *nulls)
{
	nulls[i] = text ? ' ' : 'n';
	values[i] = text ? CStringGetTextDatum(text) : (Datum) 0;
}

/* Writes the row of a worker; see record.h. */
int
mr_worker_record(int32 stream_id, int worker, const char *state, int pid,
				 const MrWorkerError *error, MrFailures failures)
{
	Oid types[10] = {INT4OID, INT4OID, TEXTOID, INT4OID, TEXTOID,
					 TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT4OID};
	Datum values[10];
	char nulls[10];
	MrRunAs saved;
	int count = 0;

	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	memset(nulls, ' ', sizeof(nulls));
	values[0] = Int32GetDatum(stream_id);
	values[1] = Int32GetDatum(worker);
	set_text(2, state, values, nulls);
	values[3] = Int32GetDatum(pid);
	nulls[3] = pid ? ' ' : 'n';
	set_text(4, error ? error->message : NULL, values, nulls);
	set_text(5, error && error->sqlstate ? unpack_sql_state(error->sqlstate) : NULL, values, nulls);
	set_text(6, error ? error->detail : NULL, values, nulls);
	set_text(7, error ? error->hint : NULL, values, nulls);
	set_text(8, error ? error->context : NULL, values, nulls);
	values[9] = Int32GetDatum(failures == MR_FAILURES_ADD     ? 1
							  : failures == MR_FAILURES_CLEAR ? -1
															  : 0);
	if (SPI_execute_with_args(record_sql, 10, types, values, nulls, false, 1) !=
		SPI_OK_INSERT_RETURNING)
		elog(ERROR, "could not write the row of a worker");
	if (SPI_processed > 0)
	{
		bool isnull;

		count =
			DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	}
	PopActiveSnapshot();
	SPI_finish();
	mr_run_back(&saved);
	return count;
}
