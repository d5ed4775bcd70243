/*
 * object.c
 *	  The table of objects: every object of a staging table is remembered with its newest version (C2).
 *
 * One upsert in the order of keys locks and compares: of several workers that hold the same object one waits
 * for the other and then compares with what that one has written.  An object that has no rows, because it was
 * deleted, filtered or had no elements, is there all the same, so that an older version which comes late
 * changes nothing.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "stage/mapping.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"

/* Flags of an object. */
#define OBJECT_DELETED 1
/* Of a row on its way in: a dead letter that is tried again, equal to what is there perhaps. */
#define OBJECT_RETRIED 32
/* Of a row on its way in: wins over every version that is there. */
#define OBJECT_ALWAYS 64
/* Of a row that was updated: the object had come from another partition. */
#define OBJECT_MOVED 128

int
mr_version_compare(const MrStaging *staging, const MrVersion *left, const MrVersion *right)
{
	MrStagingPlan *plan = staging->plan;
	int order;

	if (plan->version == NULL)
	{
		const MrMessage *l = left->message;
		const MrMessage *r = right->message;

#define COMPARE(a, b) ((a) < (b) ? -1 : (a) > (b))
		if (l->epoch != r->epoch)
			return COMPARE(l->epoch, r->epoch);
		if (l->partition == r->partition)
			return COMPARE(l->position, r->position);
		if (l->time != r->time)
			return COMPARE(l->time, r->time);
		return COMPARE(l->partition, r->partition);
	}
	order = ApplySortComparator(left->version, left->version_null, right->version,
								right->version_null, &plan->version_sort);
	if (order != 0)
		return order;
	if (left->deleted != right->deleted)
		return left->deleted ? 1 : -1;
	return memcmp(&left->digest, &right->digest, sizeof(pg_uuid_t));
}

/* Orders versions by their object's key, then by arrival. */
static int
compare_keys(const MrStaging *staging, const Datum *left, const Datum *right)
{
	for (int i = 0; i < staging->nkeys; i++)
	{
		int order = ApplySortComparator(left[i], false, right[i], false,
										&staging->plan->key_sort[i]);

		if (order != 0)
			return order;
	}
	return 0;
}

static int
compare_versions_by_key(const void *left, const void *right, void *staging)
{
	const MrVersion *l = *(MrVersion *const *) left;
	const MrVersion *r = *(MrVersion *const *) right;
	int order = compare_keys(staging, l->key, r->key);

	return order != 0 ? order : COMPARE(l, r);
}

/*
 * The upsert.  Parameters are arrays: the key's columns, version, epoch, digest, flags and, when the order is
 * the source's own, partition and message time.
 */
MrStatement *
mr_object_statement(const MrStaging *staging)
{
	const MrStagingPlan *plan = staging->plan;
	bool own_order = plan->version == NULL;
	int nkeys = staging->nkeys;
	int nargs = nkeys + 4 + (own_order ? 2 : 0);
	Oid *types = palloc(sizeof(Oid) * nargs);
	StringInfoData keys;
	StringInfoData arrays;
	StringInfoData sql;
	const char *newer;

	initStringInfo(&keys);
	initStringInfo(&arrays);
	initStringInfo(&sql);
	for (int i = 0; i < nkeys; i++)
	{
		types[i] = get_array_type(TupleDescAttr(staging->desc, staging->key[i] - 1)->atttypid);
		appendStringInfo(&keys, "k%d, ", i + 1);
	}
	types[nkeys] = get_array_type(plan->version_type);
	types[nkeys + 1] = INT4ARRAYOID;
	types[nkeys + 2] = get_array_type(UUIDOID);
	types[nkeys + 3] = INT2ARRAYOID;
	if (own_order)
	{
		types[nkeys + 4] = INT4ARRAYOID;
		types[nkeys + 5] = get_array_type(TIMESTAMPTZOID);
	}
	for (int i = 0; i < nargs; i++)
		appendStringInfo(&arrays, "%s$%d", i > 0 ? ", " : "", i + 1);

	if (own_order)
		newer = "EXCLUDED.epoch > o.epoch OR (EXCLUDED.epoch = o.epoch AND "
				"CASE WHEN EXCLUDED.partition = o.partition "
				"THEN EXCLUDED.version > o.version OR (EXCLUDED.version = o.version "
				"AND EXCLUDED.definition > o.definition) "
				"ELSE (EXCLUDED.message_time, EXCLUDED.partition) > "
				"(o.message_time, o.partition) END)";
	else
		newer = "EXCLUDED.flags & 64 <> 0 "
				"OR (o.version IS NULL AND EXCLUDED.version IS NOT NULL) "
				"OR EXCLUDED.version > o.version "
				"OR (EXCLUDED.version IS NOT DISTINCT FROM o.version "
				"AND (EXCLUDED.flags & 1, EXCLUDED.digest, EXCLUDED.definition) > "
				"(o.flags & 1, o.digest, CASE WHEN (EXCLUDED.flags & 1, EXCLUDED.digest) = "
				"(o.flags & 1, o.digest) THEN o.definition ELSE 2147483647 END))";

	appendStringInfo(&sql,
					 "INSERT INTO millrace_state.object_%d AS o "
					 "(%sversion, epoch, digest, flags%s, definition) "
					 "SELECT u.*, %d FROM unnest(%s) AS u "
					 "ON CONFLICT (",
					 staging->id, keys.data, own_order ? ", partition, message_time" : "",
					 plan->definition_no, arrays.data);
	appendBinaryStringInfo(&sql, keys.data, keys.len - 2);
	appendStringInfo(&sql,
					 ") DO UPDATE SET version = CASE WHEN EXCLUDED.flags & 64 <> 0 "
					 "THEN o.version ELSE EXCLUDED.version END, epoch = EXCLUDED.epoch, "
					 "digest = EXCLUDED.digest, definition = EXCLUDED.definition, "
					 "flags = %s%s WHERE %s OR (EXCLUDED.flags & 32 <> 0 AND "
					 "EXCLUDED.version IS NOT DISTINCT FROM o.version AND "
					 "EXCLUDED.digest = o.digest) RETURNING %sxmax <> 0, flags",
					 own_order ? "EXCLUDED.flags & 1 | CASE WHEN o.epoch = EXCLUDED.epoch AND "
								 "o.partition <> EXCLUDED.partition THEN 128 ELSE 0 END"
							   : "EXCLUDED.flags & 1",
					 own_order ? ", partition = EXCLUDED.partition, "
								 "message_time = EXCLUDED.message_time"
							   : "",
					 newer, keys.data);
	return mr_statement_create(sql.data, nargs, types);
}

/* Finds the newest version of each object in the batch; returns them in the order of keys. */
static MrVersion **
newest_versions(MrStaged *staged, int *count)
{
	const MrStaging *staging = staged->staging;
	MrVersion **newest = MemoryContextAllocHuge(CurrentMemoryContext,
												sizeof(MrVersion *) * staged->nversions);
	int n = 0;

	for (int i = 0; i < staged->nversions; i++)
		newest[i] = &staged->versions[i];
	qsort_arg(newest, staged->nversions, sizeof(MrVersion *), compare_versions_by_key,
			  (void *) staging);
	for (int i = 0; i < staged->nversions; i++)
	{
		MrVersion *version = newest[i];
		MrVersion *best = n > 0 ? newest[n - 1] : NULL;

		if (best == NULL || compare_keys(staging, best->key, version->key) != 0)
		{
			newest[n++] = version;
			continue;
		}
		if (version->always)
		{
			/* It stands where the object stood when it came. */
			version->version = best->version;
			version->version_null = best->version_null;
			version->always = best->always;
			newest[n - 1] = version;
		}
		else if (best->always || mr_version_compare(staging, version, best) > 0)
		{
			/* What came after an unconditional delete has to beat what is staged all the same. */
			newest[n - 1] = version;
		}
	}
	for (int i = 0; i < n; i++)
		newest[i]->newest = true;
	*count = n;
	return newest;
}

/* One array parameter. */
static Datum
array_of(Datum *values, bool *nulls, int count, Oid type)
{
	int dims[1] = {count};
	int lower[1] = {1};
	int16 length;
	bool by_value;
	char alignment;

	get_typlenbyvalalign(type, &length, &by_value, &alignment);
	return PointerGetDatum(
		construct_md_array(values, nulls, 1, dims, lower, type, length, by_value, alignment));
}

/* Runs the upsert for the newest versions, in the order of keys. */
static void
upsert_objects(MrStaged *staged, MrVersion **newest, int count)
{
	const MrStaging *staging = staged->staging;
	MrStagingPlan *plan = staging->plan;
	int nkeys = staging->nkeys;
	Datum *arrays = palloc(sizeof(Datum) * (nkeys + 6));
	Datum *values = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(Datum) * count);
	bool *nulls = palloc0(count);
	MrRunAs saved;

	for (int k = 0; k < nkeys; k++)
	{
		for (int i = 0; i < count; i++)
			values[i] = newest[i]->key[k];
		arrays[k] = array_of(values, NULL, count,
							 TupleDescAttr(staging->desc, staging->key[k] - 1)->atttypid);
	}
#define FILL(n, type, value) \
	do \
	{ \
		for (int i = 0; i < count; i++) \
			values[i] = (value); \
		arrays[nkeys + (n)] = array_of(values, (n) == 0 ? nulls : NULL, count, type); \
	} while (0)
	for (int i = 0; i < count; i++)
		nulls[i] = newest[i]->version_null;
	FILL(0, plan->version_type, newest[i]->version);
	FILL(1, INT4OID, Int32GetDatum(newest[i]->message->epoch));
	FILL(2, UUIDOID, UUIDPGetDatum(&newest[i]->digest));
	FILL(3, INT2OID,
		 Int16GetDatum((newest[i]->deleted ? OBJECT_DELETED : 0) |
					   (newest[i]->always ? OBJECT_ALWAYS : 0) |
					   (newest[i]->message->retried ? OBJECT_RETRIED : 0)));
	if (plan->version == NULL)
	{
		FILL(4, INT4OID, Int32GetDatum(newest[i]->message->partition));
		FILL(5, TIMESTAMPTZOID, TimestampTzGetDatum(newest[i]->message->time));
	}
#undef FILL

	mr_run_as(&saved, mr_extension_owner());
	(void) mr_statement_run(plan->fence, arrays, NULL);
	mr_run_back(&saved);
}

/*
 * What RETURNING gave are the accepted ones, in the order in which they were given: it is walked beside
 * them.
 */
static void
mark_accepted(MrBatch *batch, MrStaged *staged, MrVersion **newest, int count)
{
	const MrStaging *staging = staged->staging;
	SPITupleTable *returned = SPI_tuptable;
	Datum *key = palloc(sizeof(Datum) * staging->nkeys);
	bool moved = false;
	int next = 0;

	staged->accepted = newest;
	for (uint64 r = 0; r < returned->numvals; r++)
	{
		bool isnull;

		for (int k = 0; k < staging->nkeys; k++)
			key[k] = SPI_getbinval(returned->vals[r], returned->tupdesc, k + 1, &isnull);
		while (next < count && compare_keys(staging, newest[next]->key, key) != 0)
			next++;
		if (next == count)
			elog(ERROR, "the table of objects of %s returned a key that it was not given",
				 staging->name);
		newest[next]->accepted = true;
		newest[next]->known = DatumGetBool(
			SPI_getbinval(returned->vals[r], returned->tupdesc, staging->nkeys + 1, &isnull));
		if (DatumGetInt16(
				SPI_getbinval(returned->vals[r], returned->tupdesc, staging->nkeys + 2, &isnull)) &
			OBJECT_MOVED)
			moved = true;
		staged->accepted[staged->naccepted++] = newest[next++];
	}
	SPI_freetuptable(returned);
	if (moved)
		mr_incident(batch->stream->id, "key_in_two_partitions",
					psprintf("objects of %s have come through more than one partition; which "
							 "state is newer is decided by the messages' times: declare a version",
							 staging->name));
}

void
mr_object_fence(MrBatch *batch, MrStaged *staged)
{
	MrVersion **newest;
	int count;

	staged->naccepted = 0;
	if (staged->nversions == 0)
		return;
	newest = newest_versions(staged, &count);
	upsert_objects(staged, newest, count);
	mark_accepted(batch, staged, newest, count);
}
