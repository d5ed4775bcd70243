/*
 * log.c
 *	  Reading the log of a staging table again.
 *
 * The rows of one version were appended together, but other workers may have written between them.  A chunk
 * ends at a row such that every version has all of its rows before it, or none.  Where that would take too many
 * rows (one page had room for a row only, and the next free one was far away), versions are made whole by looking
 * through the log; they are then met again by the chunk that comes to their other rows, without harm.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "core/millrace.h"
#include "miscadmin.h"
#include "stage/mapping.h"
#include "stage/reader.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* So many rows are read on, at least, for the end of a version. */
#define PATIENCE 10000

/* Where the columns of a staging table stand in its log. */
typedef struct LogColumns
{
	AttrNumber *staged; /* by attribute number - 1; 0: not there */
	AttrNumber rows;
	AttrNumber deleted;
	AttrNumber message_time;
} LogColumns;

typedef struct LogRow
{
	ItemPointerData place;
	MrRow row;
	int32 rows; /* of its version */
	bool deleted;
	TimestampTz message_time;
	int group; /* number of its version in the order of first rows */
} LogRow;

typedef struct LogRows
{
	const MrStaging *staging;
	LogRow *rows;
	int count;
	int capacity;
	int *order; /* their numbers, those of one version together: group_rows() */
} LogRows;

static AttrNumber
technical_column(Oid log, const char *name)
{
	AttrNumber attnum = get_attnum(log, name);

	if (attnum == InvalidAttrNumber)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
						errmsg("log %s has no column \"%s\"", mr_relation_name(log), name)));
	return attnum;
}

/* What versions are told apart by must not have gone since the table was compiled. */
static void
require_column(const LogColumns *columns, const MrStaging *staging, AttrNumber attnum)
{
	if (columns->staged[attnum - 1] == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("the log of staging table %s has no column \"%s\" of type %s",
						staging->name, NameStr(TupleDescAttr(staging->desc, attnum - 1)->attname),
						format_type_be(TupleDescAttr(staging->desc, attnum - 1)->atttypid))));
}

static void
find_columns(LogColumns *columns, const MrStaging *staging, Relation log)
{
	TupleDesc desc = RelationGetDescr(log);
	Oid relid = RelationGetRelid(log);

	columns->staged = palloc0(sizeof(AttrNumber) * staging->desc->natts);
	for (int a = 0; a < staging->desc->natts; a++)
	{
		Form_pg_attribute attribute = TupleDescAttr(staging->desc, a);
		AttrNumber attnum;

		if (attribute->attisdropped)
			continue;
		attnum = mr_staging_log_attribute(staging, relid, a + 1);
		if (attnum > 0 && TupleDescAttr(desc, attnum - 1)->atttypid == attribute->atttypid)
			columns->staged[a] = attnum;
	}
	for (int k = 0; k < staging->nkeys; k++)
		require_column(columns, staging, staging->key[k]);
	require_column(columns, staging, staging->plan->partition);
	require_column(columns, staging, staging->plan->position);
	require_column(columns, staging, staging->plan->loaded_at);
	columns->rows = technical_column(relid, "_rows");
	columns->deleted = technical_column(relid, "_deleted");
	columns->message_time = technical_column(relid, "_message_time");
}

static LogRow *
add_row(LogRows *rows)
{
	if (rows->count == rows->capacity)
	{
		rows->capacity = Max(rows->capacity * 2, 1024);
		rows->rows = rows->rows == NULL
						 ? palloc(sizeof(LogRow) * rows->capacity)
						 : repalloc_huge(rows->rows, sizeof(LogRow) * rows->capacity);
	}
	return &rows->rows[rows->count++];
}

/* Copies a row of the log out of its slot. */
static void
read_row(const MrStaging *staging, const LogColumns *columns, TupleTableSlot *slot, LogRow *row)
{
	int natts = staging->desc->natts;

	slot_getallattrs(slot);
	row->place = slot->tts_tid;
	row->row.values = palloc0(sizeof(Datum) * natts);
	row->row.nulls = palloc(natts);
	for (int a = 0; a < natts; a++)
	{
		AttrNumber attnum = columns->staged[a];
		Form_pg_attribute attribute = TupleDescAttr(staging->desc, a);

		row->row.nulls[a] = attnum == 0 || slot->tts_isnull[attnum - 1];
		if (!row->row.nulls[a])
			row->row.values[a] = datumCopy(slot->tts_values[attnum - 1], attribute->attbyval,
										   attribute->attlen);
	}
	if (staging->element != InvalidAttrNumber && !row->row.nulls[staging->element - 1])
		row->row.element = DatumGetInt32(row->row.values[staging->element - 1]);
	row->rows = DatumGetInt32(slot->tts_values[columns->rows - 1]);
	row->deleted = DatumGetBool(slot->tts_values[columns->deleted - 1]);
	row->message_time = DatumGetTimestampTz(slot->tts_values[columns->message_time - 1]);
}

/* Orders rows by the version that they belong to, those of one version by their places. */
static int
compare_versions(const MrStaging *staging, const LogRow *l, const LogRow *r)
{
	const MrStagingPlan *plan = staging->plan;
	const AttrNumber technical[] = {plan->position, plan->partition, plan->loaded_at};

	for (int i = 0; i < lengthof(technical); i++)
	{
		/* Positions, partitions and times: all of them compare as integers. */
		int64 lv = (int64) l->row.values[technical[i] - 1];
		int64 rv = (int64) r->row.values[technical[i] - 1];

		if (lv != rv)
			return lv < rv ? -1 : 1;
	}
	for (int k = 0; k < staging->nkeys; k++)
	{
		int attribute = staging->key[k] - 1;
		int order = ApplySortComparator(l->row.values[attribute], false, r->row.values[attribute],
										false, &plan->key_sort[k]);

		if (order != 0)
			return order;
	}
	/* One transaction of the source may have declared several. */
	if (plan->version == NULL)
		return 0;
	return ApplySortComparator(
		l->row.values[staging->version - 1], l->row.nulls[staging->version - 1],
		r->row.values[staging->version - 1], r->row.nulls[staging->version - 1],
		unconstify(SortSupportData *, &plan->version_sort));
}

static int
compare_numbers(const void *left, const void *right, void *argument)
{
	const LogRows *rows = argument;
	int l = *(const int *) left;
	int r = *(const int *) right;
	int order = compare_versions(rows->staging, &rows->rows[l], &rows->rows[r]);

	return order != 0 ? order : l < r ? -1 : l > r;
}

/* Gives the rows of one version one number, and their places in `order`; returns how many versions there are. */
static int
group_rows(LogRows *rows)
{
	int ngroups = 0;

	if (rows->order != NULL)
		pfree(rows->order);
	rows->order = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(int) * rows->count);
	for (int i = 0; i < rows->count; i++)
		rows->order[i] = i;
	qsort_arg(rows->order, rows->count, sizeof(int), compare_numbers, rows);
	for (int i = 0; i < rows->count; i++)
	{
		LogRow *row = &rows->rows[rows->order[i]];

		if (i > 0 && compare_versions(rows->staging, &rows->rows[rows->order[i - 1]], row) != 0)
			ngroups++;
		row->group = ngroups;
	}
	return ngroups + 1;
}

/* The place in `order` behind the version that begins at place `first`. */
static int
end_of_version(const LogRows *rows, int first)
{
	int group = rows->rows[rows->order[first]].group;
	int next = first + 1;

	while (next < rows->count && rows->rows[rows->order[next]].group == group)
		next++;
	return next;
}

/*
 * Finds how many of the rows may be taken: up to the first row of a version that is not all there, or that has
 * rows on both sides of that.
 */
static int
find_cut(LogRows *rows)
{
	int ngroups = group_rows(rows);
	int *first = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(int) * ngroups);
	int *last = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(int) * ngroups);
	int cut = rows->count;
	bool moved = true;

	for (int i = 0, g = 0, next; i < rows->count; i = next, g++)
	{
		next = end_of_version(rows, i);
		first[g] = rows->order[i];
		last[g] = rows->order[next - 1];
		if (next - i < rows->rows[first[g]].rows)
			cut = Min(cut, first[g]);
	}
	while (moved)
	{
		moved = false;
		for (int g = 0; g < ngroups; g++)
		{
			if (first[g] < cut && last[g] >= cut)
			{
				cut = first[g];
				moved = true;
			}
		}
	}
	pfree(first);
	pfree(last);
	return cut;
}

static int
compare_to_version(const void *key, const void *element, void *staging)
{
	return compare_versions(staging, key, element);
}

static int
compare_places(const void *left, const void *right)
{
	return ItemPointerCompare(unconstify(ItemPointerData *, &((const LogRow *) left)->place),
							  unconstify(ItemPointerData *, &((const LogRow *) right)->place));
}

/* Adds the rows that are missing in versions, from anywhere in the log; a version whose rows were deleted stays as it is. */
static void
complete_versions(LogRows *rows, Relation log, const LogColumns *columns, Snapshot snapshot)
{
	int nread = rows->count;
	LogRow *partial = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(LogRow) * nread);
	int npartial = 0;
	MemoryContext row_context;
	TupleTableSlot *slot;
	TableScanDesc scan;

	(void) group_rows(rows);
	for (int i = 0, next; i < nread; i = next)
	{
		next = end_of_version(rows, i);
		if (next - i < rows->rows[rows->order[i]].rows)
			partial[npartial++] = rows->rows[rows->order[i]];
	}
	if (npartial == 0)
		return;
	row_context = AllocSetContextCreate(CurrentMemoryContext, "row of a log",
										ALLOCSET_DEFAULT_SIZES);
	slot = table_slot_create(log, NULL);
	scan = table_beginscan(log, snapshot, 0, NULL);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		MemoryContext saved = MemoryContextSwitchTo(row_context);
		bool wanted;
		LogRow row;

		CHECK_FOR_INTERRUPTS();
		read_row(rows->staging, columns, slot, &row);
		wanted = bsearch_arg(&row, partial, npartial, sizeof(LogRow), compare_to_version,
							 unconstify(MrStaging *, rows->staging)) != NULL &&
				 bsearch(&row, rows->rows, nread, sizeof(LogRow), compare_places) == NULL;
		MemoryContextSwitchTo(saved);
		if (wanted)
			read_row(rows->staging, columns, slot, add_row(rows));
		MemoryContextReset(row_context);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	MemoryContextDelete(row_context);
	pfree(partial);
	(void) group_rows(rows);
}

/* The rows before the cut as versions. */
static void
make_versions(MrStaged *staged, const LogRows *rows, int cut)
{
	const MrStaging *staging = staged->staging;
	const MrStagingPlan *plan = staging->plan;

	staged->versions = MemoryContextAllocHuge(CurrentMemoryContext,
											  sizeof(MrVersion) * Max(cut, 1));
	staged->nversions = 0;
	for (int i = 0, next; i < rows->count; i = next)
	{
		const LogRow *row = &rows->rows[rows->order[i]];
		MrVersion *version;

		next = end_of_version(rows, i);
		if (rows->order[i] >= cut)
			continue;
		version = &staged->versions[staged->nversions++];
		memset(version, 0, sizeof(MrVersion));
		version->message = palloc0(sizeof(MrMessage));
		version->message->partition = DatumGetInt32(row->row.values[plan->partition - 1]);
		version->message->position = DatumGetInt64(row->row.values[plan->position - 1]);
		version->message->time = row->message_time;
		version->key = palloc(sizeof(Datum) * staging->nkeys);
		for (int k = 0; k < staging->nkeys; k++)
			version->key[k] = row->row.values[staging->key[k] - 1];
		version->version = row->row.values[staging->version - 1];
		version->version_null = row->row.nulls[staging->version - 1];
		version->event_time_null = row->row.nulls[staging->event_time - 1];
		if (!version->event_time_null)
			version->event_time = DatumGetTimestampTz(row->row.values[staging->event_time - 1]);
		version->loaded_at = DatumGetTimestampTz(row->row.values[plan->loaded_at - 1]);
		version->deleted = row->deleted;
		/* A filter left nothing; one row for each version has no other reason to be empty. */
		version->held_back = row->rows < 0 || (row->rows == 0 && !row->deleted &&
											   staging->element == InvalidAttrNumber);
		if (row->rows <= 0)
			continue;
		version->rows = palloc(sizeof(MrRow) * (next - i));
		for (int n = i; n < next; n++)
			version->rows[version->nrows++] = rows->rows[rows->order[n]].row;
	}
}

/* A log is read as its staging table's owner would read it. */
static void
check_privileges(const MrStaging *staging, Oid relation)
{
	AclResult result = pg_class_aclcheck(relation, staging->owner, ACL_SELECT);

	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_TABLE, get_rel_name(relation));
}

bool
mr_log_read(MrStaged *staged, Oid relation, ItemPointer from, BlockNumber until, int limit,
			int64 *nrows)
{
	const MrStaging *staging = staged->staging;
	Relation log;
	ItemPointerData end;
	TupleTableSlot *slot;
	TableScanDesc scan;
	Snapshot snapshot;
	LogColumns columns;
	LogRows rows = {.staging = staging};
	int nread = 0;
	int taken = 0;
	bool more = true;

	*nrows = 0;
	staged->nversions = 0;
	/* It may even be gone. */
	if (until == 0)
		return false;
	log = table_open(relation, AccessShareLock);
	check_privileges(staging, relation);
	find_columns(&columns, staging, log);
	ItemPointerSet(&end, until - 1, MaxOffsetNumber);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	slot = table_slot_create(log, NULL);
	scan = table_beginscan_tidrange(log, snapshot, from, &end);
	for (int wanted = Max(limit, 1);; wanted *= 2)
	{
		while (rows.count < wanted && more)
		{
			CHECK_FOR_INTERRUPTS();
			more = table_scan_getnextslot_tidrange(scan, ForwardScanDirection, slot);
			if (more)
				read_row(staging, &columns, slot, add_row(&rows));
		}
		if (rows.count == 0)
			break;
		nread = rows.count;
		taken = find_cut(&rows);
		if (taken == 0 && (!more || nread >= Max(PATIENCE, limit * 4)))
		{
			taken = nread;
			complete_versions(&rows, log, &columns, snapshot);
		}
		if (taken > 0)
		{
			make_versions(staged, &rows, taken);
			break;
		}
	}
	*nrows = taken;
	if (taken < nread)
		*from = rows.rows[taken].place;
	else if (more)
	{
		*from = rows.rows[nread - 1].place;
		ItemPointerSetOffsetNumber(from, ItemPointerGetOffsetNumber(from) + 1);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	table_close(log, NoLock);
	return more || taken < nread;
}
