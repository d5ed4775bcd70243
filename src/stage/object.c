/*
 * object.c
 *	  The table of objects: every object of a staging table is remembered with its newest version (C2).
 *
 * Objects that nobody has seen are inserted, then one upsert locks and compares the others, both in the order of
 * keys: of several workers that hold the same object one waits for the other and then compares with what that one
 * has written.  An object that has no rows, because it was deleted, filtered or had no elements, is there all the
 * same, so that an older version which comes late changes nothing.  A version that lacks what a dictionary did not know
 * gives way to the same one when it is complete, and a complete one to none: the first complete one stays (C20).
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "stage/mapping.h"
#include "catalog/namespace.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"

/* For so many batches known objects are not tried as new ones, after a batch that had many of them. */
#define KNOWN_BATCHES 16

/* Flags of an object. */
#define OBJECT_DELETED 1
/* Its newest version lacks what a dictionary does not know yet. */
#define OBJECT_INCOMPLETE 2
/* A snapshot has read it. */
#define OBJECT_READ 4
/*
 * Of a row on its way in, which is taken when it equals what is there, too: a dead letter that is tried again, or a row
 * that was copied, which a sweep then does not find old.
 */
#define OBJECT_RETRIED 32
/* Of a row on its way in: wins over every version that is there. */
#define OBJECT_ALWAYS 64
/* Of a row that was updated: the object had come from another partition. */
#define OBJECT_MOVED 128

Datum
mr_version_compared(const MrVersion *version, bool *isnull)
{
	*isnull = version->always ? !version->has_beaten : version->version_null;
	return version->always ? version->beaten : version->version;
}

int
mr_version_compare(const MrStaging *staging, const MrVersion *left, const MrVersion *right)
{
	MrStagingPlan *plan = staging->plan;
	Datum l_version;
	Datum r_version;
	bool l_null;
	bool r_null;
	int order;

	if (plan->version == NULL)
	{
		const MrMessage *l = left->message;
		const MrMessage *r = right->message;

#define COMPARE(a, b) ((a) < (b) ? -1 : (a) > (b))
		if (l->epoch != r->epoch)
			return COMPARE(l->epoch, r->epoch);
		if (l->partition == r->partition)
			return l->position != r->position ? COMPARE(l->position, r->position)
											  : memcmp(&l->place, &r->place, sizeof(pg_uuid_t));
		if (l->time != r->time)
			return COMPARE(l->time, r->time);
		return COMPARE(l->partition, r->partition);
	}
	l_version = mr_version_compared(left, &l_null);
	r_version = mr_version_compared(right, &r_null);
	order = ApplySortComparator(l_version, l_null, r_version, r_null, &plan->version_sort);
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

/* The condition under which what comes is newer than what is there (C1). */
static const char *
newer_condition(const MrStagingPlan *plan)
{
	if (plan->version == NULL)
		return "EXCLUDED.epoch > o.epoch OR (EXCLUDED.epoch = o.epoch AND "
			   "CASE WHEN EXCLUDED.partition = o.partition "
			   "THEN (EXCLUDED.version, EXCLUDED.digest, EXCLUDED.definition) > "
			   "(o.version, o.digest, o.definition) "
			   "ELSE (EXCLUDED.message_time, EXCLUDED.partition) > "
			   "(o.message_time, o.partition) END)";
	return "EXCLUDED.flags & 64 <> 0 "
		   "OR (o.version IS NULL AND EXCLUDED.version IS NOT NULL) "
		   "OR EXCLUDED.version > o.version "
		   "OR (EXCLUDED.version IS NOT DISTINCT FROM o.version "
		   "AND (EXCLUDED.flags & 1, EXCLUDED.digest, EXCLUDED.definition) > "
		   "(o.flags & 1, o.digest, CASE WHEN (EXCLUDED.flags & 1, EXCLUDED.digest) = "
		   "(o.flags & 1, o.digest) THEN o.definition ELSE 2147483647 END))";
}

/* The upsert, whose parameters are arrays of the columns; returns keys, whether known, flags, and the version. */
static void
prepare_upsert(const MrStaging *staging, const char *columns, int nargs, const Oid *types)
{
	MrStagingPlan *plan = staging->plan;
	bool own_order = plan->version == NULL;
	StringInfoData keys;
	StringInfoData arrays;
	StringInfoData sql;

	initStringInfo(&keys);
	initStringInfo(&arrays);
	initStringInfo(&sql);
	for (int i = 0; i < staging->nkeys; i++)
		appendStringInfo(&keys, "k%d, ", i + 1);
	for (int i = 0; i < nargs; i++)
		appendStringInfo(&arrays, "%s$%d", i > 0 ? ", " : "", i + 1);

	appendStringInfo(&sql,
					 "INSERT INTO millrace_state.object_%d AS o (%s) SELECT u.* FROM unnest(%s) "
					 "AS u ON CONFLICT (",
					 staging->id, columns, arrays.data);
	appendBinaryStringInfo(&sql, keys.data, keys.len - 2);
	appendStringInfo(
		&sql,
		") DO UPDATE SET version = CASE WHEN EXCLUDED.flags & 64 <> 0 "
		"THEN GREATEST(o.version, EXCLUDED.version) ELSE EXCLUDED.version END, epoch = EXCLUDED.epoch, "
		"digest = EXCLUDED.digest, definition = EXCLUDED.definition, "
		"flags = %s%s WHERE %s OR ((EXCLUDED.flags & 32 <> 0 AND "
		"EXCLUDED.flags & 2 <= o.flags & 2 OR EXCLUDED.flags & 2 < o.flags & 2) AND "
		"EXCLUDED.version IS NOT DISTINCT FROM o.version AND "
		"EXCLUDED.digest = o.digest) RETURNING %sxmax <> 0, flags, version",
		own_order ? "EXCLUDED.flags & 7 | CASE WHEN o.epoch = EXCLUDED.epoch AND "
					"o.partition <> EXCLUDED.partition THEN 128 ELSE 0 END"
				  : "EXCLUDED.flags & 7",
		own_order ? ", partition = EXCLUDED.partition, "
					"message_time = EXCLUDED.message_time"
				  : "",
		newer_condition(plan), keys.data);
	plan->fence = mr_statement_create(sql.data, nargs, types);
	plan->fence_nargs = nargs;
}

void
mr_object_prepare(const MrStaging *staging)
{
	MrStagingPlan *plan = staging->plan;
	Oid relid = get_relname_relid(psprintf("object_%d", staging->id),
								  get_namespace_oid("millrace_state", false));
	int ncolumns = staging->nkeys + (plan->version == NULL ? 7 : 5);
	AttrNumber *attnums = palloc(sizeof(AttrNumber) * ncolumns);
	Oid *types = palloc(sizeof(Oid) * ncolumns);
	StringInfoData columns;

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("millrace_state.object_%d, which remembers the objects of %s, is gone",
						staging->id, staging->name)));
	initStringInfo(&columns);
	for (int i = 0; i < ncolumns; i++)
	{
		/* The table is ours: its columns stand in the order in which they are written. */
		attnums[i] = i + 1;
		types[i] = get_array_type(get_atttype(relid, attnums[i]));
		appendStringInfo(&columns, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(get_attname(relid, attnums[i], false)));
	}
	plan->objects = mr_table_create(relid, mr_extension_owner(), ncolumns, attnums, staging->nkeys);
	prepare_upsert(staging, columns.data, ncolumns, types);
}

static MrVersion **
sorted_versions(const MrStaged *staged, qsort_arg_comparator compare)
{
	MrVersion **versions = MemoryContextAllocHuge(CurrentMemoryContext,
												  sizeof(MrVersion *) * staged->nversions);

	for (int i = 0; i < staged->nversions; i++)
		versions[i] = &staged->versions[i];
	qsort_arg(versions, staged->nversions, sizeof(MrVersion *), compare, (void *) staged->staging);
	return versions;
}

/* Orders versions by the state that they declare: of which object, in which transaction of the source, under which version. */
static int
compare_states(const MrStaging *staging, const MrVersion *left, const MrVersion *right)
{
	MrStagingPlan *plan = staging->plan;
	int order = compare_keys(staging, left->key, right->key);

	if (order == 0)
		order = COMPARE(left->message->transaction, right->message->transaction);
	if (order == 0)
		order = COMPARE(left->always, right->always);
	if (order == 0 && plan->version != NULL)
		order = ApplySortComparator(left->version, left->version_null, right->version,
									right->version_null, &plan->version_sort);
	return order;
}

static int
compare_versions_by_state(const void *left, const void *right, void *argument)
{
	const MrVersion *l = *(MrVersion *const *) left;
	const MrVersion *r = *(MrVersion *const *) right;
	int order = compare_states(argument, l, r);

	return order != 0 ? order : COMPARE(l, r);
}

/*
 * Leaves out what nobody has seen, because a later version of the same transaction of the source has taken its place: it
 * never was.  They have one time, so that who orders states by it could not tell which one is the last; where a version is
 * declared, only those that declare the same are in question.
 */
static void
leave_out_unseen(MrStaged *staged)
{
	const MrStaging *staging = staged->staging;
	MrVersion **versions;
	int kept = 0;
	bool any = false;

	for (int i = 1; i < staged->nversions && !any; i++)
	{
		uint64 transaction = staged->versions[i].message->transaction;

		any = transaction != 0 && transaction == staged->versions[i - 1].message->transaction;
	}
	if (!any)
		return;
	versions = sorted_versions(staged, compare_versions_by_state);
	for (int i = 0; i < staged->nversions; i++)
		versions[i]->unseen = i + 1 < staged->nversions && versions[i]->message->transaction != 0 &&
							  !versions[i]->always &&
							  compare_states(staging, versions[i], versions[i + 1]) == 0;
	pfree(versions);
	for (int i = 0; i < staged->nversions; i++)
	{
		if (!staged->versions[i].unseen)
			staged->versions[kept++] = staged->versions[i];
	}
	staged->nversions = kept;
}

/* Finds the newest version of each object in the batch; returns them in the order of keys. */
static MrVersion **
newest_versions(MrStaged *staged, int *count)
{
	const MrStaging *staging = staged->staging;
	MrVersion **newest = sorted_versions(staged, compare_versions_by_key);
	int n = 0;

	for (int i = 0; i < staged->nversions; i++)
	{
		MrVersion *version = newest[i];
		MrVersion *best = n > 0 ? newest[n - 1] : NULL;

		version->instead = NULL;
		version->has_beaten = false;
		if (best == NULL || compare_keys(staging, best->key, version->key) != 0)
		{
			newest[n++] = version;
			continue;
		}
		if (version->always)
		{
			bool isnull;

			version->beaten = mr_version_compared(best, &isnull);
			version->has_beaten = !isnull;
			newest[n - 1] = version;
		}
		else if (mr_version_compare(staging, version, best) > 0)
		{
			version->instead = best->always ? best : best->instead;
			newest[n - 1] = version;
		}
	}
	for (int i = 0; i < n; i++)
		newest[i]->newest = true;
	*count = n;
	return newest;
}

/* Is the message taken again when it says what is there already? */
static bool
again(const MrStaging *staging, const MrMessage *message)
{
	return message->retried || (message->op == MR_OP_READ && staging->plan->version != NULL);
}

/* The newest versions as rows of the table of objects. */
static MrRows *
object_rows(const MrStaging *staging, MrVersion **newest, int count)
{
	MrStagingPlan *plan = staging->plan;
	MrRows *rows = mr_rows_create(plan->objects, count);
	int nkeys = staging->nkeys;

	for (int i = 0; i < count; i++)
	{
		const MrVersion *version = newest[i];
		const MrMessage *message = version->message;
		Datum **values = rows->values;
		int c = 0;

		for (int k = 0; k < nkeys; k++)
			values[c++][i] = version->key[k];
		values[c][i] = mr_version_compared(version, &rows->nulls[c][i]);
		c++;
		values[c++][i] = Int32GetDatum(message->epoch);
		values[c++][i] = UUIDPGetDatum(&version->digest);
		values[c++][i] = Int16GetDatum(
			(version->deleted ? OBJECT_DELETED : 0) |
			(version->incomplete ? OBJECT_INCOMPLETE : 0) | (version->read ? OBJECT_READ : 0) |
			(version->always ? OBJECT_ALWAYS : 0) | (again(staging, message) ? OBJECT_RETRIED : 0));
		if (plan->version == NULL)
		{
			values[c++][i] = Int32GetDatum(message->partition);
			values[c++][i] = TimestampTzGetDatum(message->time);
		}
		values[c][i] = Int32GetDatum(plan->definition_no);
	}
	rows->nrows = count;
	return rows;
}

/*
 * A query for the numbers of those versions, of the ones that are given as the fence takes them, for which a condition over
 * them ("excluded") and what is there ("o") is true, and for the versions that are there.
 */
static MrStatement *
prepare_comparison(const MrStaging *staging, const char *condition)
{
	MrStagingPlan *plan = staging->plan;
	Oid relid = get_relname_relid(psprintf("object_%d", staging->id),
								  get_namespace_oid("millrace_state", false));
	Oid *types = palloc(sizeof(Oid) * plan->fence_nargs);
	MemoryContext previous = MemoryContextSwitchTo(GetMemoryChunkContext(plan));
	MrStatement *statement;
	StringInfoData names;
	StringInfoData arrays;
	StringInfoData same;

	initStringInfo(&names);
	initStringInfo(&arrays);
	initStringInfo(&same);
	for (int i = 0; i < plan->fence_nargs; i++)
	{
		const char *name = quote_identifier(get_attname(relid, i + 1, false));

		types[i] = get_array_type(get_atttype(relid, i + 1));
		appendStringInfo(&names, "%s, ", name);
		appendStringInfo(&arrays, "%s$%d", i > 0 ? ", " : "", i + 1);
		if (i < staging->nkeys)
			appendStringInfo(&same, "%so.%s = excluded.%s", i > 0 ? " AND " : "", name, name);
	}
	statement = mr_statement_create(
		psprintf("SELECT excluded.n, o.version FROM unnest(%s) WITH ORDINALITY AS "
				 "excluded (%sn) JOIN millrace_state.object_%d AS o ON %s "
				 "WHERE %s",
				 arrays.data, names.data, staging->id, same.data, condition),
		plan->fence_nargs, types);
	MemoryContextSwitchTo(previous);
	return statement;
}

/* Makes a comparison of versions; returns of how many it is true, which SPI_tuptable tells. */
static uint64
compare_versions(const MrStaging *staging, MrStatement *comparison, MrVersion **versions, int count)
{
	MrStagingPlan *plan = staging->plan;
	Datum *arrays = palloc(sizeof(Datum) * plan->fence_nargs);
	int *all = palloc(sizeof(int) * count);
	uint64 found;
	MrRunAs saved;

	for (int i = 0; i < count; i++)
		all[i] = i;
	mr_table_arrays(plan->objects, object_rows(staging, versions, count), all, count,
					plan->fence_nargs, arrays);
	mr_run_as(&saved, mr_extension_owner());
	found = mr_statement_run(comparison, arrays, NULL);
	mr_run_back(&saved);
	return found;
}

/* The version that a row of a comparison speaks of. */
static MrVersion *
compared(MrVersion **versions, uint64 row)
{
	bool isnull;

	return versions[DatumGetInt64(mr_sql_value(row, 1, &isnull)) - 1];
}

/* Marks the versions for which a comparison is true. */
static void
mark_versions(const MrStaging *staging, MrStatement *comparison, MrVersion **versions, int count,
			  Size flag)
{
	uint64 found = compare_versions(staging, comparison, versions, count);

	for (uint64 i = 0; i < found; i++)
		*(bool *) ((char *) compared(versions, i) + flag) = true;
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Inserts the objects that nobody has seen; returns how many are left, whose places among the newest versions
 * are put into `left`.  It costs more than it saves when most objects are known: then, for a while, it is
 * not tried.  Where others write the same objects it is: all have to take new ones before they lock old ones.
 */
static int
insert_unseen(MrStaged *staged, MrVersion **newest, MrRows *rows, bool alone, int *left)
{
	MrStagingPlan *plan = staged->staging->plan;
	bool *conflicts;
	int nleft = 0;
	bool direct;

	if (plan->mostly_known > 0)
		plan->mostly_known--;
	for (int i = 0; i < rows->nrows; i++)
	{
		/* These have flags that are not for the table. */
		if (newest[i]->always || again(staged->staging, newest[i]->message))
			plan->mostly_known = Max(plan->mostly_known, 1);
	}
	conflicts = palloc0(rows->nrows);
	direct = plan->mostly_known == 0 &&
			 mr_table_insert_free(plan->objects, rows, !alone, conflicts);
	for (int i = 0; i < rows->nrows; i++)
	{
		if (direct && !conflicts[i])
			newest[i]->accepted = true;
		else
			left[nleft++] = i;
	}
	if (alone && direct && nleft * 5 > rows->nrows)
		plan->mostly_known = KNOWN_BATCHES;
	return nleft;
}

/* Notes a version that an unconditional delete takes away, if no greater one is known. */
static void
note_beaten(const MrStaging *staging, MrVersion *version, Datum beaten, bool isnull)
{
	MrStagingPlan *plan = staging->plan;

	if (isnull || (version->has_beaten && ApplySortComparator(beaten, false, version->beaten, false,
															  &plan->version_sort) <= 0))
		return;
	version->beaten = datumCopy(beaten, plan->version_by_value, plan->version_length);
	version->has_beaten = true;
}

/*
 * Upserts the objects that are left, in the order of keys.  What RETURNING gives are the accepted ones, in
 * the order in which they were given: it is walked beside them.
 */
static void
upsert_left(MrBatch *batch, MrStaged *staged, MrVersion **newest, const MrRows *rows,
			const int *left, int nleft)
{
	const MrStaging *staging = staged->staging;
	MrStagingPlan *plan = staging->plan;
	Datum *arrays = palloc(sizeof(Datum) * plan->fence_nargs);
	Datum *key = palloc(sizeof(Datum) * staging->nkeys);
	SPITupleTable *returned;
	MrRunAs saved;
	bool moved = false;
	int next = 0;

	mr_table_arrays(plan->objects, rows, left, nleft, plan->fence_nargs, arrays);
	mr_run_as(&saved, mr_extension_owner());
	(void) mr_statement_run(plan->fence, arrays, NULL);
	mr_run_back(&saved);
	returned = SPI_tuptable;
	for (uint64 r = 0; r < returned->numvals; r++)
	{
		bool isnull;
		int16 flags;

		for (int k = 0; k < staging->nkeys; k++)
			key[k] = SPI_getbinval(returned->vals[r], returned->tupdesc, k + 1, &isnull);
		while (next < nleft && compare_keys(staging, newest[left[next]]->key, key) != 0)
			next++;
		if (next == nleft)
			elog(ERROR, "the table of objects of %s returned a key that it was not given",
				 staging->name);
		newest[left[next]]->accepted = true;
		newest[left[next]]->known = DatumGetBool(
			SPI_getbinval(returned->vals[r], returned->tupdesc, staging->nkeys + 1, &isnull));
		flags = DatumGetInt16(
			SPI_getbinval(returned->vals[r], returned->tupdesc, staging->nkeys + 2, &isnull));
		moved |= (flags & OBJECT_MOVED) != 0;
		if (newest[left[next]]->always)
			note_beaten(
				staging, newest[left[next]],
				SPI_getbinval(returned->vals[r], returned->tupdesc, staging->nkeys + 3, &isnull),
				isnull);
		next++;
	}
	SPI_freetuptable(returned);
	if (moved)
		mr_incident(batch->stream->id, "key_in_two_partitions",
					psprintf("objects of %s have come through more than one partition; which "
							 "state is newer is decided by the messages' times: declare a version",
							 staging->name));
}

/* Marks those versions that are what is there already, and complete. */
static void
mark_staged(const MrStaging *staging, MrVersion **versions, int count, Size flag)
{
	MrStagingPlan *plan = staging->plan;

	if (count == 0)
		return;
	if (plan->repeated == NULL)
		plan->repeated = prepare_comparison(
			staging, psprintf("excluded.version IS NOT DISTINCT FROM o.version AND "
							  "excluded.digest = o.digest AND o.flags & %d = 0%s",
							  OBJECT_INCOMPLETE,
							  plan->version == NULL ? " AND excluded.epoch = o.epoch AND "
													  "excluded.partition = o.partition"
													: ""));
	mark_versions(staging, plan->repeated, versions, count, flag);
}

/*
 * Marks versions that were not accepted because they are what is there already: dictionaries may say something else of
 * them now, but what they said when the version was complete for the first time stays.
 */
static void
mark_repeated(MrStaged *staged)
{
	MrVersion **refused = palloc(sizeof(MrVersion *) * staged->nversions);
	int count = 0;

	for (int i = 0; i < staged->nversions; i++)
	{
		if (!staged->versions[i].accepted && !staged->versions[i].incomplete)
			refused[count++] = &staged->versions[i];
	}
	mark_staged(staged->staging, refused, count, offsetof(MrVersion, repeated));
}

void
mr_object_accept_staged(MrStaged *staged)
{
	MrVersion **versions = palloc(sizeof(MrVersion *) * Max(staged->nversions, 1));
	int nrows = 0;

	for (int i = 0; i < staged->nversions; i++)
	{
		versions[i] = &staged->versions[i];
		nrows += versions[i]->nrows;
	}
	mark_staged(staged->staging, versions, staged->nversions, offsetof(MrVersion, accepted));
	staged->accepted = versions;
	staged->new_rows = palloc(sizeof(MrRow *) * Max(nrows, 1));
	for (int i = 0; i < staged->nversions; i++)
	{
		MrVersion *version = &staged->versions[i];

		if (!version->accepted)
			continue;
		version->known = true;
		staged->accepted[staged->naccepted++] = version;
		for (int r = 0; r < version->nrows; r++)
			staged->new_rows[staged->nnew++] = &version->rows[r];
	}
}

/*
 * Marks versions that later ones of the batch supersede, and that would not have been accepted alone: before the fence
 * puts those into the place of what is there.
 */
static void
mark_stale(MrStaged *staged)
{
	const MrStaging *staging = staged->staging;
	MrStagingPlan *plan = staging->plan;
	MrVersion **superseded = palloc(sizeof(MrVersion *) * staged->nversions);
	int count = 0;

	for (int i = 0; i < staged->nversions; i++)
	{
		if (!staged->versions[i].newest)
			superseded[count++] = &staged->versions[i];
	}
	if (count == 0)
		return;
	if (plan->stale == NULL)
		plan->stale = prepare_comparison(staging,
										 psprintf("(%s) IS NOT TRUE", newer_condition(plan)));
	mark_versions(staging, plan->stale, superseded, count, offsetof(MrVersion, stale));
}

/*
 * Finds what unconditional deletes take away that do not come to the fence, because other versions of the batch came
 * after them: the time from which on they count must not depend on where batches end.
 */
static void
find_beaten(MrStaged *staged)
{
	const MrStaging *staging = staged->staging;
	MrStagingPlan *plan = staging->plan;
	MrVersion **deletes = palloc(sizeof(MrVersion *) * staged->nversions);
	uint64 found;
	int count = 0;

	for (int i = 0; i < staged->nversions; i++)
	{
		if (staged->versions[i].always && !staged->versions[i].newest)
			deletes[count++] = &staged->versions[i];
	}
	if (count == 0)
		return;
	if (plan->beaten == NULL)
		plan->beaten = prepare_comparison(staging, "true");
	found = compare_versions(staging, plan->beaten, deletes, count);
	for (uint64 i = 0; i < found; i++)
	{
		bool isnull;
		Datum beaten = mr_sql_value(i, 2, &isnull);

		note_beaten(staging, compared(deletes, i), beaten, isnull);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Where a version was refused, the unconditional delete counts that came before it in the batch. */
static void
delete_instead(MrBatch *batch, MrStaged *staged, MrVersion **newest, int count, int *left)
{
	int nleft = 0;
	MrRows *rows;

	for (int i = 0; i < count; i++)
	{
		MrVersion *version = newest[i];

		if (version->accepted || version->instead == NULL)
			continue;
		version->newest = false;
		version->stale = true;
		newest[i] = version->instead;
		newest[i]->newest = true;
		left[nleft++] = i;
	}
	if (nleft == 0)
		return;
	rows = object_rows(staged->staging, newest, count);
	upsert_left(batch, staged, newest, rows, left, nleft);
	mr_rows_free(staged->staging->plan->objects, rows);
}

void
mr_object_accept_all(MrStaged *staged)
{
	staged->accepted = newest_versions(staged, &staged->naccepted);
	for (int i = 0; i < staged->naccepted; i++)
		staged->accepted[i]->accepted = staged->accepted[i]->known = true;
}

void
mr_object_fence(MrBatch *batch, MrStaged *staged)
{
	MrVersion **newest;
	MrRows *rows;
	int *left;
	int nleft;
	int count;

	staged->naccepted = 0;
	if (staged->nversions == 0)
		return;
	leave_out_unseen(staged);
	newest = newest_versions(staged, &count);
	if (staged->staging->each_version)
		mark_stale(staged);
	if (staged->staging->version_is_time)
		find_beaten(staged);
	rows = object_rows(staged->staging, newest, count);
	left = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(int) * count);
	nleft = insert_unseen(staged, newest, rows, batch->stream->workers == 1, left);
	if (nleft > 0)
		upsert_left(batch, staged, newest, rows, left, nleft);
	mr_rows_free(staged->staging->plan->objects, rows);
	delete_instead(batch, staged, newest, count, left);
	pfree(left);

	staged->accepted = newest;
	for (int i = 0; i < count; i++)
	{
		if (newest[i]->accepted)
			staged->accepted[staged->naccepted++] = newest[i];
	}
	if (staged->staging->plan->enriched != NULL)
		mark_repeated(staged);
}
