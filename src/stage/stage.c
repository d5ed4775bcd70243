/*
 * stage.c
 *	  Puts what was mapped into the staging tables and their logs.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "miscadmin.h"
#include "core/millrace.h"
#include "stage/mapping.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

/* Rows of the staging table as the writer takes them. */
static void
fill_columns(const MrStaging *staging, MrRows *rows, const MrRow *row)
{
	const MrStagingPlan *plan = staging->plan;
	int n = rows->nrows++;

	for (int c = 0; c < plan->ncolumns; c++)
	{
		rows->values[c][n] = row->values[plan->columns[c] - 1];
		rows->nulls[c][n] = row->nulls[plan->columns[c] - 1];
	}
}

/* Every version's rows, or one that says that it has none, are appended to the log. */
static void
append_log(MrStaged *staged)
{
	const MrStaging *staging = staged->staging;
	const MrStagingPlan *plan = staging->plan;
	int total = 0;
	MrRows *rows;

	for (int i = 0; i < staged->nversions; i++)
		total += Max(staged->versions[i].nrows, 1);
	rows = mr_rows_create(plan->log, total);
	for (int i = 0; i < staged->nversions; i++)
	{
		const MrVersion *version = &staged->versions[i];
		int first = rows->nrows;

		/* What is only ever appended to waits until it is complete, and that once. */
		if (version->incomplete || version->repeated)
			continue;

		for (int r = 0; r < version->nrows; r++)
			fill_columns(staging, rows, &version->rows[r]);
		if (version->nrows == 0)
		{
			MrRow empty = mr_version_empty_row(staging, version);

			fill_columns(staging, rows, &empty);
		}
		for (int r = first; r < rows->nrows; r++)
		{
			/* -1: it has elements, but none of them passed. */
			rows->values[plan->ncolumns][r] = Int32GetDatum(
				version->held_back && staging->element != InvalidAttrNumber ? -1 : version->nrows);
			rows->values[plan->ncolumns + 1][r] = BoolGetDatum(version->deleted);
			rows->values[plan->ncolumns + 2][r] = TimestampTzGetDatum(version->message->time);
		}
	}
	mr_table_append(plan->log, rows);
	mr_rows_free(plan->log, rows);
}

MrRow
mr_version_empty_row(const MrStaging *staging, const MrVersion *version)
{
	int natts = staging->desc->natts;
	MrRow row = {0};

	row.values = palloc0(sizeof(Datum) * natts);
	row.nulls = palloc(natts);
	memset(row.nulls, true, natts);
#define SET(attnum, value) (row.values[(attnum) -1] = (value), row.nulls[(attnum) -1] = false)
	for (int k = 0; k < staging->nkeys; k++)
		SET(staging->key[k], version->key[k]);
	if (staging->element != InvalidAttrNumber)
		SET(staging->element, Int32GetDatum(0));
	if (!version->version_null)
		SET(staging->version, version->version);
	/* Whoever reads the log knows no more what it has taken away. */
	else if (version->always && staging->version_is_time)
		SET(staging->version, TimestampTzGetDatum(mr_version_time(staging, version)));
	if (!version->event_time_null)
		SET(staging->event_time, TimestampTzGetDatum(version->event_time));
	SET(staging->plan->partition, Int32GetDatum(version->message->partition));
	SET(staging->plan->position, Int64GetDatum(version->message->position));
	SET(staging->plan->loaded_at, TimestampTzGetDatum(version->loaded_at));
#undef SET
	return row;
}

/* An old row beside its key, as it is found again among the new ones. */
typedef struct OldRow
{
	HeapTuple tuple;
	Datum *values;
	bool *nulls;
} OldRow;

/* Orders old rows by the object's key, then by element. */
static int
compare_old_rows(const void *left, const void *right, void *argument)
{
	const MrStaging *staging = argument;
	const OldRow *l = left;
	const OldRow *r = right;

	for (int k = 0; k < staging->nkeys; k++)
	{
		int attribute = staging->key[k] - 1;
		int order = ApplySortComparator(l->values[attribute], false, r->values[attribute], false,
										&staging->plan->key_sort[k]);

		if (order != 0)
			return order;
	}
	if (staging->element != InvalidAttrNumber)
	{
		int32 le = DatumGetInt32(l->values[staging->element - 1]);
		int32 re = DatumGetInt32(r->values[staging->element - 1]);

		return le < re ? -1 : le > re;
	}
	return 0;
}

/* Is the row of the object? */
static bool
of_object(const MrStaging *staging, const OldRow *row, const MrVersion *version)
{
	for (int k = 0; k < staging->nkeys; k++)
	{
		if (ApplySortComparator(row->values[staging->key[k] - 1], false, version->key[k], false,
								&staging->plan->key_sort[k]) != 0)
			return false;
	}
	return true;
}

/* Do two rows agree in everything but technical columns that nobody reads? */
static bool
rows_agree(const MrStaging *staging, const OldRow *old_row, const MrRow *new_row)
{
	const MrStagingPlan *plan = staging->plan;

	for (int c = 0; c < plan->ncolumns; c++)
	{
		AttrNumber attnum = plan->columns[c];
		Form_pg_attribute attribute = TupleDescAttr(staging->desc, attnum - 1);
		bool isnull = old_row->nulls[attnum - 1];

		if (!plan->compared[attnum] &&
			(attnum == staging->version || attnum == staging->event_time ||
			 attnum == plan->partition || attnum == plan->position || attnum == plan->loaded_at ||
			 (attnum == plan->payload_attnum && plan->payload != MR_PAYLOAD_NONE)))
			continue;
		if (isnull != new_row->nulls[attnum - 1])
			return false;
		if (!isnull && !datum_image_eq(old_row->values[attnum - 1], new_row->values[attnum - 1],
									   attribute->attbyval, attribute->attlen))
			return false;
	}
	return true;
}

/*
 * Old and new rows of an object are a difference when any of them changed: then all of them are, so that
 * what hangs on the staging table can count objects.
 */
static void
note_difference(MrStaged *staged, const MrVersion *version, const OldRow *old_rows, int nold)
{
	const MrStaging *staging = staged->staging;
	bool agree = nold == version->nrows;

	for (int i = 0; agree && i < nold; i++)
		agree = rows_agree(staging, &old_rows[i], &version->rows[i]);
	if (agree)
		return;
	for (int i = 0; i < nold; i++)
		staged->old_rows[staged->nold++] = old_rows[i].tuple;
	for (int i = 0; i < version->nrows; i++)
		staged->new_rows[staged->nnew++] = &version->rows[i];
}

/* Replaces the rows of the accepted objects, and finds the difference that this makes. */
static void
replace_rows(MrStaged *staged)
{
	const MrStaging *staging = staged->staging;
	const MrStagingPlan *plan = staging->plan;
	MrRows *keys = mr_rows_create(plan->table, staged->naccepted);
	MrRows *rows;
	HeapTuple *deleted;
	OldRow *old_rows;
	int ndeleted;
	int nrows = 0;
	int next = 0;

	for (int i = 0; i < staged->naccepted; i++)
	{
		const MrVersion *version = staged->accepted[i];

		nrows += version->nrows;
		if (!version->known)
			continue;
		for (int k = 0; k < staging->nkeys; k++)
			keys->values[k][keys->nrows] = version->key[k];
		keys->nrows++;
	}
	deleted = mr_table_delete_returning(plan->table, staging->nkeys, keys, &ndeleted);
	mr_rows_free(plan->table, keys);
	old_rows = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(OldRow) * Max(ndeleted, 1));
	for (int i = 0; i < ndeleted; i++)
	{
		old_rows[i].tuple = deleted[i];
		old_rows[i].values = palloc(sizeof(Datum) * staging->desc->natts);
		old_rows[i].nulls = palloc(staging->desc->natts);
		heap_deform_tuple(deleted[i], staging->desc, old_rows[i].values, old_rows[i].nulls);
	}
	qsort_arg(old_rows, ndeleted, sizeof(OldRow), compare_old_rows, (void *) staging);

	rows = mr_rows_create(plan->table, nrows);
	staged->old_rows = palloc(sizeof(HeapTuple) * Max(ndeleted, 1));
	staged->new_rows = MemoryContextAllocHuge(CurrentMemoryContext,
											  sizeof(MrRow *) * Max(nrows, 1));
	for (int i = 0; i < staged->naccepted; i++)
	{
		MrVersion *version = staged->accepted[i];
		int first = next;

		if (i + 2 * MR_AHEAD < staged->naccepted)
			__builtin_prefetch(staged->accepted[i + 2 * MR_AHEAD]->rows);
		if (i + MR_AHEAD < staged->naccepted)
			mr_version_prefetch(staged->accepted[i + MR_AHEAD]);
		while (next < ndeleted && of_object(staging, &old_rows[next], version))
			next++;
		for (int r = 0; r < version->nrows; r++)
			fill_columns(staging, rows, &version->rows[r]);
		note_difference(staged, version, &old_rows[first], next - first);
	}
	mr_table_append(plan->table, rows);
	mr_rows_free(plan->table, rows);
	pfree(old_rows);
}

void
mr_stage_erase(MrStaged *staged)
{
	staged->nold = staged->nnew = 0;
	mr_object_accept_all(staged);
	if (staged->naccepted > 0)
		replace_rows(staged);
}

void
mr_stage_apply(MrBatch *batch, MrStaging **writing_for)
{
	for (int s = 0; s < batch->nstaged; s++)
	{
		MrStaged *staged = &batch->staged[s];

		*writing_for = staged->staging;
		staged->nold = staged->nnew = 0;
		mr_object_fence(batch, staged);
	}
	for (int s = 0; s < batch->nstaged; s++)
	{
		MrStaged *staged = &batch->staged[s];

		*writing_for = staged->staging;
		if (staged->naccepted > 0)
			replace_rows(staged);
		if (staged->staging->plan->log != NULL && staged->nversions > 0)
			append_log(staged);
	}
}

/* Makes rows readable under a name, as a trigger's transition table is. */
static void
register_rows(const char *name, const MrStaging *staging, Tuplestorestate *store, int count)
{
	EphemeralNamedRelation relation = palloc0(sizeof(EphemeralNamedRelationData));
	int result;

	relation->md.name = pstrdup(name);
	relation->md.reliddesc = staging->relid;
	relation->md.enrtype = ENR_NAMED_TUPLESTORE;
	relation->md.enrtuples = count;
	relation->reldata = store;
	result = SPI_register_relation(relation);
	if (result != SPI_OK_REL_REGISTER)
		elog(ERROR, "cannot register %s: %s", name, SPI_result_code_string(result));
}

void
mr_staged_register(MrStaged *staged)
{
	const MrStaging *staging = staged->staging;

	/* They stay in memory, as the rows do, so that nobody has files to close. */
	if (staged->new_store == NULL)
	{
		staged->old_store = tuplestore_begin_heap(false, false, MAX_KILOBYTES);
		staged->new_store = tuplestore_begin_heap(false, false, MAX_KILOBYTES);
		for (int i = 0; i < staged->nold; i++)
			tuplestore_puttuple(staged->old_store, staged->old_rows[i]);
		for (int i = 0; i < staged->nnew; i++)
			tuplestore_putvalues(staged->new_store, staging->desc, staged->new_rows[i]->values,
								 staged->new_rows[i]->nulls);
	}
	register_rows(psprintf("mr_old_%d", staging->id), staging, staged->old_store, staged->nold);
	register_rows(psprintf("mr_new_%d", staging->id), staging, staged->new_store, staged->nnew);
}
