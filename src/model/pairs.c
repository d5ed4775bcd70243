/*
 * pairs.c
 *	  The table of pairs of an online model: how many users have two items together.
 *
 * Changes are sorted by item and other item, and summed.  Those of an item go into its shortest row, or become another one when that is
 * full or somebody else is changing it: nobody ever waits.  When other rows have come to more than half of those that were put
 * together last, all of them are put together again.  Rows are updated where they stand, on pages that are half empty, so that their old
 * versions make room for the next ones without VACUUM.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "core/compat.h"
#include "core/indexes.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/online.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* Bytes of a list: several rows fit on a page, and none is moved out of line. */
#define LIST_BYTES 1900

/* Of an entry, about. */
#define CHANGE_BYTES 4

/* Changes that are written at once, rather than kept in memory. */
#define CHANGES_AT_ONCE (4 * 1024 * 1024)

/* Rows that are added at once. */
#define ROWS_AT_ONCE 1000

#define IS_FOLDED 3

PG_FUNCTION_INFO_V1(millrace_online_list);

typedef struct Change
{
	uint64 key; /* item, other item */
	int64 n;
} Change;

#define ST_SORT sort_changes
#define ST_ELEMENT_TYPE Change
#define ST_COMPARE(a, b) ((a)->key < (b)->key ? -1 : (a)->key > (b)->key)
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

struct MrPairs
{
	MemoryContext context;
	Change *changes;
	Size count;
	Size room;
};

MrPairs *
mr_pairs_create(void)
{
	MrPairs *pairs = palloc0(sizeof(MrPairs));

	pairs->context = CurrentMemoryContext;
	pairs->room = 1024;
	pairs->changes = palloc(sizeof(Change) * pairs->room);
	return pairs;
}

bool
mr_pairs_are_many(const MrPairs *pairs)
{
	return pairs->count > CHANGES_AT_ONCE;
}

void
mr_pairs_add(MrPairs *pairs, uint32 a, uint32 b, int32 n)
{
	Change *change;

	if (pairs->count == pairs->room)
	{
		pairs->room *= 2;
		pairs->changes = repalloc_huge(pairs->changes, sizeof(Change) * pairs->room);
	}
	change = &pairs->changes[pairs->count++];
	change->key = (uint64) a << 32 | b;
	change->n = n;
}

/* Sorts the changes, and makes one of those of a pair. */
static void
sum_up(MrPairs *pairs)
{
	Size kept = 0;

	sort_changes(pairs->changes, pairs->count);
	for (Size i = 0; i < pairs->count;)
	{
		Change sum = pairs->changes[i];

		while (++i < pairs->count && pairs->changes[i].key == sum.key)
			sum.n += pairs->changes[i].n;
		if (sum.n != 0)
			pairs->changes[kept++] = sum;
	}
	pairs->count = kept;
}

void
mr_list_begin(MrListRow *row, Datum list)
{
	bytea *packed = DatumGetByteaPP(list);

	row->at = (const uint8 *) VARDATA_ANY(packed);
	row->end = row->at + VARSIZE_ANY_EXHDR(packed);
	row->number = 0;
}

/* A row of the item that is being written. */
typedef struct Row
{
	ItemPointerData place;
	bool is_folded;
	bool is_locked; /* by us: to change it, nobody is waited for */
	Datum list;
	Size length;
} Row;

/* The table while it is written. */
typedef struct Writing
{
	MrTable *table;
	MrRows *added;
	MemoryContext context;
	MemoryContext of_added;
	MemoryContext of_item;
	Relation relation;
	Relation index;
	MrIndexes indexes;
	IndexScanDesc scan;
	Snapshot snapshot;
	TupleTableSlot *found;
	TupleTableSlot *changed;
	CommandId command;
	Row *rows;
	int nrows;
	int room;
} Writing;

/* Writes the rows that were added. */
static void
flush(Writing *writing)
{
	CHECK_FOR_INTERRUPTS();
	mr_table_append(writing->table, writing->added);
	writing->added->nrows = 0;
	MemoryContextReset(writing->of_added);
}

static void
add_row(Writing *writing, uint32 item, Datum list, bool is_folded)
{
	MrRows *rows = writing->added;
	MemoryContext previous = MemoryContextSwitchTo(writing->of_added);

	rows->values[0][rows->nrows] = Int32GetDatum((int32) item);
	rows->values[1][rows->nrows] = datumCopy(list, false, -1);
	rows->values[2][rows->nrows] = BoolGetDatum(is_folded);
	MemoryContextSwitchTo(previous);
	if (++rows->nrows == ROWS_AT_ONCE)
		flush(writing);
}

/* Reads the rows of an item. */
static void
read_rows(Writing *writing, uint32 item)
{
	/* The scan allocates what it keeps whenever it needs it. */
	MemoryContext previous = MemoryContextSwitchTo(writing->context);
	ScanKeyData key;

	writing->nrows = 0;
	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum((int32) item));
	index_rescan(writing->scan, &key, 1, NULL, 0);
	while (index_getnext_slot(writing->scan, ForwardScanDirection, writing->found))
	{
		Row *row;
		bool isnull;

		if (writing->nrows == writing->room)
		{
			writing->room *= 2;
			writing->rows = repalloc_huge(writing->rows, sizeof(Row) * writing->room);
		}
		row = &writing->rows[writing->nrows++];
		row->place = writing->found->tts_tid;
		row->is_locked = false;
		row->list = slot_getattr(writing->found, MR_ONLINE_VALUE, &isnull);
		MemoryContextSwitchTo(previous);
		row->list = datumCopy(row->list, false, -1);
		MemoryContextSwitchTo(writing->context);
		row->length = VARSIZE_ANY_EXHDR(DatumGetPointer(row->list));
		row->is_folded = DatumGetBool(slot_getattr(writing->found, IS_FOLDED, &isnull));
	}
	MemoryContextSwitchTo(previous);
}

/* Deletes a row; false when somebody else is changing it. */
static bool
delete_row(Writing *writing, const Row *row)
{
	TM_FailureData failure;

	return table_tuple_delete(writing->relation, (ItemPointer) &row->place, writing->command,
							  writing->snapshot, InvalidSnapshot, row->is_locked, &failure,
							  false) == TM_Ok;
}

/* Gives a row another list; false when somebody else is changing it. */
static bool
change_row(Writing *writing, uint32 item, const Row *row, Datum list, bool is_folded)
{
	TupleTableSlot *slot = writing->changed;

	ExecClearTuple(slot);
	slot->tts_values[MR_ONLINE_KEY - 1] = Int32GetDatum((int32) item);
	slot->tts_values[MR_ONLINE_VALUE - 1] = list;
	slot->tts_values[IS_FOLDED - 1] = BoolGetDatum(is_folded);
	memset(slot->tts_isnull, false, IS_FOLDED);
	ExecStoreVirtualTuple(slot);
	return mr_indexes_update(&writing->indexes, (ItemPointer) &row->place, slot, writing->command,
							 writing->snapshot, row->is_locked, UNIQUE_CHECK_YES) == TM_Ok;
}

/* The next list of changes from *at on, of as many as it takes. */
static Datum
next_list(const Change *changes, Size *at, Size end)
{
	bytea *list = palloc(VARHDRSZ + LIST_BYTES);
	uint8 *first = (uint8 *) VARDATA(list);
	uint8 *byte = first;
	uint32 before = 0;

	for (; *at < end && byte + 2 * MR_NUMBER_BYTES <= first + LIST_BYTES; (*at)++)
	{
		uint32 other = (uint32) changes[*at].key;

		byte = mr_number_put(byte, other - before);
		byte = mr_number_put(byte, mr_number_fold(changes[*at].n));
		before = other;
	}
	SET_VARSIZE(list, VARHDRSZ + (byte - first));
	return PointerGetDatum(list);
}

/* Adds what a row says to changes. */
static void
add_list(MrPairs *pairs, uint32 item, Datum list)
{
	MrListRow row;
	uint32 number;
	int32 n;

	mr_list_begin(&row, list);
	while (mr_list_next(&row, &number, &n))
		mr_pairs_add(pairs, item, number, n);
}

/* Changes of one item in addition to what a row says. */
static MrPairs *
merge_list(const Change *changes, Size count, Datum list)
{
	MrPairs *merged = mr_pairs_create();
	MrListRow row;
	uint32 number;
	int32 n;
	bool more;
	Size i = 0;

	mr_list_begin(&row, list);
	more = mr_list_next(&row, &number, &n);
	while (more || i < count)
	{
		uint32 item = changes[0].key >> 32;
		int64 sum = 0;
		uint32 next = more ? number : PG_UINT32_MAX;

		if (i < count)
			next = Min(next, (uint32) changes[i].key);
		if (more && number == next)
		{
			sum += n;
			more = mr_list_next(&row, &number, &n);
		}
		if (i < count && (uint32) changes[i].key == next)
			sum += changes[i++].n;
		if (sum != 0)
			mr_pairs_add(merged, item, next, (int32) sum);
	}
	return merged;
}

/* Puts the changes of an item and all of its rows together, but for those that somebody else is changing. */
static void
fold(Writing *writing, uint32 item, const Change *changes, Size count)
{
	MrPairs *sum = mr_pairs_create();
	Size at = 0;
	int locked = 0;

	for (int r = 0; r < writing->nrows; r++)
	{
		Row *row = &writing->rows[r];
		TM_FailureData failure;

		if (table_tuple_lock(writing->relation, &row->place, writing->snapshot, writing->found,
							 writing->command, LockTupleNoKeyExclusive, LockWaitSkip, 0,
							 &failure) != TM_Ok)
			continue;
		row->is_locked = true;
		add_list(sum, item, row->list);
		writing->rows[locked++] = *row;
	}
	for (Size i = 0; i < count; i++)
		mr_pairs_add(sum, item, (uint32) changes[i].key, (int32) changes[i].n);
	sum_up(sum);
	for (int r = 0; r < locked; r++)
	{
		if (!(at < sum->count ? change_row(writing, item, &writing->rows[r],
										   next_list(sum->changes, &at, sum->count), true)
							  : delete_row(writing, &writing->rows[r])))
			elog(ERROR, "a row of a list that was locked was changed");
	}
	while (at < sum->count)
		add_row(writing, item, next_list(sum->changes, &at, sum->count), true);
}

/* Writes what changes in the list of one item: into its shortest row if that has room and nobody else is changing it, or as another. */
static void
write_item(Writing *writing, uint32 item, const Change *changes, Size count)
{
	MrPairs *merged = NULL;
	Row *shortest = NULL;
	Size folded = 0;
	Size other = count * CHANGE_BYTES;
	Size at = 0;

	read_rows(writing, item);
	for (int r = 0; r < writing->nrows; r++)
	{
		Row *row = &writing->rows[r];

		if (shortest == NULL || row->length < shortest->length)
			shortest = row;
		if (row->is_folded)
			folded += row->length;
		else
			other += row->length;
	}
	if (writing->nrows > 1 && other > folded / 2 + LIST_BYTES)
	{
		fold(writing, item, changes, count);
		return;
	}
	if (shortest != NULL && shortest->length + count * CHANGE_BYTES <= LIST_BYTES)
	{
		merged = merge_list(changes, count, shortest->list);
		if (merged->count == 0
				? delete_row(writing, shortest)
				: change_row(writing, item, shortest,
							 next_list(merged->changes, &at, merged->count), shortest->is_folded))
		{
			changes = merged->changes;
			count = merged->count;
		}
		else
			at = 0;
	}
	while (at < count)
		add_row(writing, item, next_list(changes, &at, count), false);
}

static void
writing_begin(Writing *writing, MrTable *table, Oid relid, Oid index)
{
	memset(writing, 0, sizeof(Writing));
	writing->table = table;
	writing->context = CurrentMemoryContext;
	writing->added = mr_rows_create(table, ROWS_AT_ONCE);
	writing->added->nrows = 0;
	writing->of_added = AllocSetContextCreate(CurrentMemoryContext, "millrace added rows",
											  ALLOCSET_DEFAULT_SIZES);
	writing->of_item = AllocSetContextCreate(CurrentMemoryContext, "millrace list",
											 ALLOCSET_DEFAULT_SIZES);
	writing->room = 16;
	writing->rows = palloc(sizeof(Row) * writing->room);
	writing->relation = table_open(relid, RowExclusiveLock);
	writing->index = index_open(index, RowExclusiveLock);
	mr_indexes_open(&writing->indexes, writing->relation);
	writing->snapshot = RegisterSnapshot(GetLatestSnapshot());
	writing->found = table_slot_create(writing->relation, NULL);
	writing->changed = MakeSingleTupleTableSlot(RelationGetDescr(writing->relation),
												&TTSOpsVirtual);
	writing->scan = mr_index_beginscan(writing->relation, writing->index, writing->snapshot, 1);
	writing->command = GetCurrentCommandId(true);
}

static void
writing_end(Writing *writing)
{
	flush(writing);
	mr_rows_free(writing->table, writing->added);
	index_endscan(writing->scan);
	ExecDropSingleTupleTableSlot(writing->found);
	ExecDropSingleTupleTableSlot(writing->changed);
	UnregisterSnapshot(writing->snapshot);
	mr_indexes_close(&writing->indexes);
	index_close(writing->index, NoLock);
	table_close(writing->relation, NoLock);
	pfree(writing->rows);
	MemoryContextDelete(writing->of_added);
	MemoryContextDelete(writing->of_item);
	CommandCounterIncrement();
}

void
mr_pairs_write(MrPairs *pairs, MrTable *table, Oid relid, Oid index)
{
	Writing writing;
	Size end;

	sum_up(pairs);
	if (pairs->count == 0)
		return;
	writing_begin(&writing, table, relid, index);
	for (Size i = 0; i < pairs->count; i = end)
	{
		uint32 item = pairs->changes[i].key >> 32;
		MemoryContext previous = MemoryContextSwitchTo(writing.of_item);

		CHECK_FOR_INTERRUPTS();
		for (end = i + 1; end < pairs->count && pairs->changes[end].key >> 32 == item;)
			end++;
		write_item(&writing, item, &pairs->changes[i], end - i);
		MemoryContextSwitchTo(previous);
		MemoryContextReset(writing.of_item);
	}
	writing_end(&writing);
	pairs->count = 0;
}

/* online_list(list bytea) → (number integer, n integer) of each entry. */
Datum
millrace_online_list(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	MrListRow row;
	uint32 number;
	int32 n;

	InitMaterializedSRF(fcinfo, 0);
	mr_list_begin(&row, PG_GETARG_DATUM(0));
	while (mr_list_next(&row, &number, &n))
	{
		Datum values[2] = {Int32GetDatum((int32) number), Int32GetDatum(n)};
		bool nulls[2] = {false, false};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
