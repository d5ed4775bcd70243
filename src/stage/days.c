/*
 * days.c
 *	  Logs that are partitioned by day: whoever writes makes the days ahead of their time.
 *
 * A day is that of _loaded_at, which is the time of the batch: whatever times messages carry, their rows belong
 * to today.  Days are made when the last one that is there is a day away, so that midnight finds its partition
 * there, and in a transaction that has not locked anything yet.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "stage/mapping.h"

void
mr_log_extend(const MrStaging *staging, TimestampTz at)
{
	static const Oid types[] = {INT4OID, TIMESTAMPTZOID};
	MrStagingPlan *plan = staging->plan;
	Datum values[] = {Int32GetDatum(staging->id), TimestampTzGetDatum(at)};
	MrRunAs saved;
	bool isnull;

	if (plan->log == NULL || !plan->log_in_days || at < plan->log_until - USECS_PER_DAY)
		return;
	mr_run_as(&saved, mr_extension_owner());
	(void) mr_statement_run(
		mr_statement_create("SELECT millrace_internal.extend_log($1, $2)", lengthof(types), types),
		values, NULL);
	mr_run_back(&saved);
	plan->log_until = DatumGetTimestampTz(mr_sql_value(0, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
}
