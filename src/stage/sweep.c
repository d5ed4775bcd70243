/*
 * sweep.c
 *	  Finding the objects that a sweep removes: what is staged from a source table that was truncated, or what a snapshot of
 *	  it did not bring.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "lib/stringinfo.h"
#include "stage/mapping.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"

int
mr_sweep_keys(const MrStaging *staging, const MrMessage *message, int limit, Datum ***keys)
{
	static const Oid types[] = {TIMESTAMPTZOID, INT8OID};
	const MrStagingPlan *plan = staging->plan;
	Datum values[] = {TimestampTzGetDatum(message->sweep_before), Int64GetDatum(message->position)};
	StringInfoData sql;
	uint64 count;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT");
	/* An object has several rows only where it has elements. */
	if (staging->element != InvalidAttrNumber)
		appendStringInfoString(&sql, " DISTINCT");
	for (int k = 0; k < staging->nkeys; k++)
		appendStringInfo(&sql, "%s r.%s", k > 0 ? "," : "",
						 quote_identifier(get_attname(staging->relid, staging->key[k], false)));
	appendStringInfo(&sql, " FROM %s AS r WHERE r.%s < $1", staging->name,
					 quote_identifier(get_attname(staging->relid, plan->loaded_at, false)));
	/* What a snapshot has read after the table was emptied is younger, though it was staged before. */
	if (TIMESTAMP_IS_NOEND(message->sweep_before))
		appendStringInfo(&sql, " AND r.%s <= $2",
						 quote_identifier(get_attname(staging->relid, plan->position, false)));
	appendStringInfo(&sql, " LIMIT %d", limit);
	count = mr_statement_run(mr_statement_create(sql.data, lengthof(types), types), values, NULL);
	*keys = palloc(sizeof(Datum *) * Max(count, 1));
	for (uint64 i = 0; i < count; i++)
	{
		Datum *key = palloc(sizeof(Datum) * staging->nkeys);

		for (int k = 0; k < staging->nkeys; k++)
		{
			bool isnull;

			key[k] = datumCopy(mr_sql_value(i, k + 1, &isnull), plan->key_by_value[k],
							   plan->key_length[k]);
		}
		(*keys)[i] = key;
	}
	SPI_freetuptable(SPI_tuptable);
	return (int) count;
}
