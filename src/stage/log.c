/*
 * log.c
 *	  Reading the log of a staging table again.
 *
 * The rows of one version were appended together, but other workers may have written between them.  A chunk
 * ends at a row such that every version has all of its rows before it, or none.
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
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* After so many chunks in a row that end no version, what is there is taken as it is: rows were deleted. */
#define PATIENCE 64

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

typedef struct Grouping
{
	const MrStaging *staging;
	const LogRow *rows;
} Grouping;

static AttrNumber
technical_column(Oid log, const char *name)
{
	AttrNumber attnum = get_attnum(log, name);

	if (attnum == InvalidAttrNumber)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
						errmsg("log %s has no column \"%s\"", mr_relation_name(log), name)));
	return attnum;
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
	columns->rows = technical_column(relid, "_rows");
	columns->deleted = technical_column(relid, "_deleted");
	columns->message_time = technical_column(relid, "_message_time");
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
	return 0;
}

static int
compare_numbers(const void *left, const void *right, void *argument)
{
	const Grouping *grouping = argument;
	int l = *(const int *) left;
	int r = *(const int *) right;
	int order = compare_versions(grouping->staging, &grouping->rows[l], &grouping->rows[r]);

	return order != 0 ? order : l < r ? -1 : l > r;
}

/*
 * Finds how many of the rows may be taken: up to the first row of a version that is not all there, or that has
 * rows on both sides of that.
 */
static int
find_cut(const MrStaging *staging, LogRow *rows, int nrows, int *order)
{
	Grouping grouping = {staging, rows};
	int *first = palloc(sizeof(int) * nrows); /* by version */
	int *last = palloc(sizeof(int) * nrows);
	int ngroups = 0;
	int cut = nrows;
	bool moved = true;

	for (int i = 0; i < nrows; i++)
		order[i] = i;
	qsort_arg(order, nrows, sizeof(int), compare_numbers, &grouping);
	for (int i = 0, next; i < nrows; i = next)
	{
		for (next = i + 1;
			 next < nrows && compare_versions(staging, &rows[order[i]], &rows[order[next]]) == 0;
			 next++)
			;
		for (int n = i; n < next; n++)
			rows[order[n]].group = ngroups;
		first[ngroups] = order[i];
		last[ngroups] = order[next - 1];
		if (next - i < rows[order[i]].rows)
			cut = Min(cut, order[i]);
		ngroups++;
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
	return cut;
}

/* The rows before the cut as versions. */
static void
make_versions(MrStaged *staged, const LogRow *rows, int nrows, int cut, const int *order)
{
	const MrStaging *staging = staged->staging;
	const MrStagingPlan *plan = staging->plan;

	staged->versions = MemoryContextAllocHuge(CurrentMemoryContext,
											  sizeof(MrVersion) * Max(cut, 1));
	staged->nversions = 0;
	for (int i = 0, next; i < nrows; i = next)
	{
		const LogRow *row = &rows[order[i]];
		MrVersion *version;

		for (next = i + 1; next < nrows && rows[order[next]].group == row->group; next++)
			;
		if (order[i] >= cut)
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
			version->rows[version->nrows++] = rows[order[n]].row;
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
	Relation log = table_open(relation, AccessShareLock);
	ItemPointerData end;
	TupleTableSlot *slot;
	TableScanDesc scan;
	Snapshot snapshot;
	LogColumns columns;
	LogRow *rows = NULL;
	int *order = NULL;
	int capacity = 0;
	int count = 0;
	int cut = 0;
	bool more = true;

	check_privileges(staging, relation);
	find_columns(&columns, staging, log);
	*nrows = 0;
	staged->nversions = 0;
	if (until == 0)
	{
		table_close(log, NoLock);
		return false;
	}
	ItemPointerSet(&end, until - 1, MaxOffsetNumber);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	slot = table_slot_create(log, NULL);
	scan = table_beginscan_tidrange(log, snapshot, from, &end);
	for (int attempt = 1; more; attempt++)
	{
		int wanted = count + Max(limit, 1);

		if (wanted > capacity)
		{
			capacity = wanted;
			rows = rows == NULL
					   ? MemoryContextAllocHuge(CurrentMemoryContext, sizeof(LogRow) * capacity)
					   : repalloc_huge(rows, sizeof(LogRow) * capacity);
		}
		while (count < wanted && more)
		{
			CHECK_FOR_INTERRUPTS();
			more = table_scan_getnextslot_tidrange(scan, ForwardScanDirection, slot);
			if (more)
				read_row(staging, &columns, slot, &rows[count++]);
		}
		if (count == 0)
			break;
		order = palloc(sizeof(int) * count);
		cut = find_cut(staging, rows, count, order);
		if (!more || (cut == 0 && attempt >= PATIENCE))
			cut = count;
		if (cut > 0)
			break;
	}
	if (cut > 0)
		make_versions(staged, rows, count, cut, order);
	*nrows = cut;
	if (cut < count)
		*from = rows[cut].place;
	else if (more)
	{
		*from = rows[count - 1].place;
		ItemPointerSetOffsetNumber(from, ItemPointerGetOffsetNumber(from) + 1);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	table_close(log, NoLock);
	return more || cut < count;
}
