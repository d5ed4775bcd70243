/*
 * sweep.c
 *	  Finding the objects that a sweep removes: what has come from a source table that was truncated, or what a snapshot of
 *	  it did not bring.
 *
 * In the source's own order these are the objects that are older than the truncation, or than the first round of the
 * snapshot, whether they have rows or not: a version that is filtered out may still be waiting for a dictionary, and is not
 * to come back afterwards; nor does it help one that it was staged late.  A declared version tells nothing of when its object
 * has come: there it is the rows, by when they were staged.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "lib/stringinfo.h"
#include "stage/mapping.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/uuid.h"

/* Of the objects: the query, which the extension's owner runs. */
static uint64
find_objects(const MrStaging *staging, const MrMessage *message, int limit)
{
	static const Oid types[] = {INT4OID, INT8OID, UUIDOID};
	static const pg_uuid_t first = {{0}};
	bool copied = message->sweep_position != 0;
	Datum values[] = {Int32GetDatum(message->epoch),
					  Int64GetDatum(copied ? message->sweep_position : message->position),
					  UUIDPGetDatum(copied ? &first : &message->place)};
	StringInfoData sql;
	MrRunAs saved;
	uint64 count;

	initStringInfo(&sql);
	for (int k = 0; k < staging->nkeys; k++)
		appendStringInfo(&sql, "%s k%d", k > 0 ? "," : "SELECT", k + 1);
	appendStringInfo(&sql,
					 " FROM millrace_state.object_%d WHERE flags & 1 = 0 "
					 "AND (epoch, version, digest) < ($1, $2, $3) LIMIT %d",
					 staging->id, limit);
	mr_run_as(&saved, mr_extension_owner());
	count = mr_statement_run(mr_statement_create(sql.data, lengthof(types), types), values, NULL);
	mr_run_back(&saved);
	return count;
}

/* The same of the rows. */
static uint64
find_rows(const MrStaging *staging, const MrMessage *message, int limit)
{
	static const Oid types[] = {TIMESTAMPTZOID, INT8OID};
	const MrStagingPlan *plan = staging->plan;
	Datum values[] = {TimestampTzGetDatum(message->sweep_before), Int64GetDatum(message->position)};
	StringInfoData sql;

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
	return mr_statement_run(mr_statement_create(sql.data, lengthof(types), types), values, NULL);
}

int
mr_sweep_keys(const MrStaging *staging, const MrMessage *message, int limit, Datum ***keys)
{
	const MrStagingPlan *plan = staging->plan;
	uint64 count = plan->version == NULL ? find_objects(staging, message, limit)
										 : find_rows(staging, message, limit);

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
