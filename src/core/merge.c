/*
 * merge.c
 *	  Adding differences to counters, straight through the table access method.
 *
 * Rows are taken in chunks, in the order of their keys.  First each key of a chunk is looked up in the index.  Then the
 * rows that it led to are copied, while nothing is locked: by then another row may have taken the place of one, and the
 * key is looked up again.  Tuples of those that are not there go to the heap by the page, where nobody can find them
 * yet.  Then, key by key, either the index entry is inserted or the row that is there is updated.  Both may find that
 * somebody else was faster: then that transaction is waited for, while we hold smaller keys only, and the key is looked
 * up again.  An update is a compare-and-swap: it is computed from a version of the row and refused by the heap when that
 * is not the newest one any more.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/nbtree.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_index.h"
#include "common/int.h"
#include "core/compat.h"
#include "core/extend.h"
#include "core/indexes.h"
#include "core/leaf.h"
#include "core/merge.h"
#include "core/millrace.h"
#include "core/order.h"
#include "core/recent.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* Rows that go to the heap in one call. */
#define CHUNK 1000

struct MrMerge
{
	Oid relid;
	Oid role;
	int ncolumns;
	int nkeys;
	int counter;
	AttrNumber *attnums;
	MrMergeColumn *columns;
	bool *far; /* see mr_rows_far */
	MrOrder *order; /* of keys */
};

/* A merge under way. */
typedef struct Merging
{
	MrMerge *merge;
	const MrRows *rows;
	MrMergeEmpty empty;
	int64 *after;
	ItemPointerData *places;
	MrMergeValue compute; /* or NULL */
	void *computing;
	Relation relation;
	MrIndexes indexes;
	int unique; /* which of them has the key */
	bool exact; /* keys that are equal are the same */
	TupleDesc desc; /* a copy: a slot over the relation's own would pin it */
	ScanKeyData probe[INDEX_MAX_KEYS];
	int probe_column[INDEX_MAX_KEYS]; /* number of the column that is the index's i-th */
	MrLeaf *leaf; /* of the unique index */
	IndexScanDesc scan;
	Buffer buffer; /* of the heap, pinned; or invalid */
	SnapshotData dirty;
	TupleTableSlot *found; /* the row that is there */
	TupleTableSlot *changed;
	TupleTableSlot *slots[CHUNK];
	int nslots;
	const int *chunk; /* its rows, in the order of their keys */
	CommandId command;
	MemoryContext caller; /* of the rows */
	MemoryContext context;
	MemoryContext row_context;
} Merging;

/* How rows are compared and reached. */
static void
describe_columns(MrMerge *merge)
{
	Relation relation = table_open(merge->relid, AccessShareLock);
	Oid *types = palloc(sizeof(Oid) * Max(merge->nkeys, 1));
	Oid *collations = palloc(sizeof(Oid) * Max(merge->nkeys, 1));

	for (int i = 0; i < merge->nkeys; i++)
	{
		Form_pg_attribute column = TupleDescAttr(RelationGetDescr(relation), merge->attnums[i] - 1);

		types[i] = column->atttypid;
		collations[i] = column->attcollation;
	}
	merge->far = mr_rows_far(RelationGetDescr(relation), merge->ncolumns, merge->attnums);
	table_close(relation, NoLock);
	merge->order = mr_order_create(merge->nkeys, types, collations);
}

MrMerge *
mr_merge_create(Oid relid, Oid role, int ncolumns, const AttrNumber *attnums,
				const MrMergeColumn *columns, int counter)
{
	MrMerge *merge = palloc0(sizeof(MrMerge));

	merge->relid = relid;
	merge->role = role;
	merge->ncolumns = ncolumns;
	merge->counter = counter;
	merge->attnums = palloc(sizeof(AttrNumber) * ncolumns);
	merge->columns = palloc(sizeof(MrMergeColumn) * ncolumns);
	memcpy(merge->attnums, attnums, sizeof(AttrNumber) * ncolumns);
	memcpy(merge->columns, columns, sizeof(MrMergeColumn) * ncolumns);
	while (merge->nkeys < ncolumns && columns[merge->nkeys] == MR_MERGE_KEY)
		merge->nkeys++;
	describe_columns(merge);
	return merge;
}

Oid
mr_merge_relation(const MrMerge *merge)
{
	return merge->relid;
}

/* ---- opening ---------------------------------------------------------------------------------- */

/* A heap of the role's own that nobody has put a trigger or a policy on, and whose other columns may be left out. */
static bool
is_plain_table(const MrMerge *merge, Relation relation)
{
	TupleConstr *constraints = relation->rd_att->constr;
	bool optional = true;

	for (int i = 0; i < relation->rd_att->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(relation->rd_att, i);
		bool given = attribute->attisdropped;

		for (int c = 0; c < merge->ncolumns && !given; c++)
			given = merge->attnums[c] == i + 1;
		optional = optional && (given || !(attribute->attnotnull || attribute->atthasdef));
	}
	return relation->rd_rel->relkind == RELKIND_RELATION && !relation->rd_rel->relispartition &&
		   relation->rd_rel->relam == HEAP_TABLE_AM_OID && relation->trigdesc == NULL &&
		   relation->rd_rules == NULL && !relation->rd_rel->relrowsecurity &&
		   (constraints == NULL || constraints->num_check == 0) && optional &&
		   merge->role == relation->rd_rel->relowner;
}

/* The number of the column that the i-th of an index is, or -1. */
static int
key_column(const MrMerge *merge, Relation index, int i)
{
	for (int c = 0; c < merge->nkeys; c++)
	{
		if (merge->attnums[c] == index->rd_index->indkey.values[i])
			return c;
	}
	return -1;
}

/* Is it the unique index over the key, nulls being equal or none? */
static bool
is_key_index(const MrMerge *merge, Relation index)
{
	Form_pg_index form = index->rd_index;

	if (!form->indisunique || !form->indimmediate ||
		!(form->indnullsnotdistinct || form->indisprimary) || form->indnkeyatts != merge->nkeys ||
		index->rd_rel->relam != BTREE_AM_OID)
		return false;
	for (int i = 0; i < merge->nkeys; i++)
	{
		if (key_column(merge, index, i) < 0 || (index->rd_indoption[i] & INDOPTION_DESC) != 0)
			return false;
	}
	return true;
}

bool
mr_merge_is_plain(const MrMerge *merge)
{
	Relation relation = table_open(merge->relid, RowExclusiveLock);
	bool plain = is_plain_table(merge, relation);
	int nunique = 0;
	ListCell *lc;

	foreach(lc, RelationGetIndexList(relation))
	{
		Relation index = index_open(lfirst_oid(lc), RowExclusiveLock);

		plain = plain && index->rd_index->indisvalid && index->rd_index->indisready &&
				!index->rd_index->indisexclusion &&
				heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL) &&
				(!index->rd_index->indisunique || is_key_index(merge, index));
		nunique += index->rd_index->indisunique ? 1 : 0;
		index_close(index, NoLock);
	}
	table_close(relation, NoLock);
	return plain && nunique == 1;
}

/* How rows are found in the key's index. */
static void
prepare_key(Merging *merging)
{
	const MrMerge *merge = merging->merge;
	Relation index = merging->indexes.relations[merging->unique];

	merging->leaf = mr_leaf_create(merging->relation, index);
	merging->exact = _bt_allequalimage(index, false);
	for (int i = 0; i < merge->nkeys; i++)
	{
		Oid equality = get_opfamily_member(index->rd_opfamily[i], index->rd_opcintype[i],
										   index->rd_opcintype[i], BTEqualStrategyNumber);

		merging->probe_column[i] = key_column(merge, index, i);
		ScanKeyEntryInitialize(&merging->probe[i], 0, i + 1, BTEqualStrategyNumber, InvalidOid,
							   index->rd_indcollation[i], get_opcode(equality), (Datum) 0);
	}
}

/* Slots outlive the chunk, their tuples do not. */
static TupleTableSlot *
make_slot(const Merging *merging)
{
	MemoryContext previous = MemoryContextSwitchTo(merging->context);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(merging->desc, &TTSOpsVirtual);

	MemoryContextSwitchTo(previous);
	return slot;
}

static void
open_table(Merging *merging)
{
	merging->relation = table_open(merging->merge->relid, RowExclusiveLock);
	merging->desc = CreateTupleDescCopyConstr(RelationGetDescr(merging->relation));
	mr_indexes_open(&merging->indexes, merging->relation);
	for (int i = 0; i < merging->indexes.count; i++)
	{
		Form_pg_index form = merging->indexes.relations[i]->rd_index;

		/* Another one may be being made since we have looked. */
		if (form->indisunique && form->indisvalid)
			merging->unique = i;
	}
	prepare_key(merging);
	merging->found = table_slot_create(merging->relation, NULL);
	merging->changed = make_slot(merging);
	InitDirtySnapshot(merging->dirty);
	merging->command = GetCurrentCommandId(true);
}

static void
close_table(Merging *merging)
{
	for (int i = 0; i < merging->nslots; i++)
		ExecDropSingleTupleTableSlot(merging->slots[i]);
	if (merging->scan != NULL)
		index_endscan(merging->scan);
	ExecDropSingleTupleTableSlot(merging->found);
	ExecDropSingleTupleTableSlot(merging->changed);
	mr_indexes_close(&merging->indexes);
	table_close(merging->relation, NoLock);
}

/* ---- one row ---------------------------------------------------------------------------------- */

/* Puts a row into a slot as it is inserted. */
static void
fill_slot(const Merging *merging, TupleTableSlot *slot, int row)
{
	const MrMerge *merge = merging->merge;

	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, merging->desc->natts);
	for (int c = 0; c < merge->ncolumns; c++)
	{
		int attribute = merge->attnums[c] - 1;

		if (merge->columns[c] == MR_MERGE_VALUE)
			slot->tts_isnull[attribute] = !merging->compute(merging->computing, row, NULL,
															&slot->tts_values[attribute]);
		else
		{
			slot->tts_values[attribute] = merging->rows->values[c][row];
			slot->tts_isnull[attribute] = merging->rows->nulls[c][row];
		}
	}
	ExecStoreVirtualTuple(slot);
	ItemPointerSetInvalid(&slot->tts_tid);
}

/* Puts the entries of a new tuple but for that of its key. */
static void
insert_other_entries(Merging *merging, TupleTableSlot *slot)
{
	if (merging->indexes.count > 1)
		mr_leaf_release(merging->leaf);
	for (int i = 0; i < merging->indexes.count; i++)
	{
		if (i != merging->unique)
			(void) mr_indexes_insert(&merging->indexes, i, slot, UNIQUE_CHECK_NO);
	}
}

/* Puts the entries of a new tuple; false, and only that of the key is there, when somebody else's may be, too. */
static bool
insert_entries(Merging *merging, TupleTableSlot *slot)
{
	Datum values[INDEX_MAX_KEYS];
	bool nulls[INDEX_MAX_KEYS];

	FormIndexDatum(merging->indexes.infos[merging->unique], slot, NULL, values, nulls);
	if (!mr_leaf_insert(merging->leaf, values, nulls, &slot->tts_tid) &&
		!mr_indexes_insert(&merging->indexes, merging->unique, slot, UNIQUE_CHECK_PARTIAL))
		return false;
	insert_other_entries(merging, slot);
	return true;
}

/*
 * Finds the row with the key, ours or committed or in doubt, other than `except`; it stands in merging->found.
 */
static bool
find(Merging *merging, int row, ItemPointer except)
{
	/* The scan allocates what it keeps whenever it needs it. */
	MemoryContext previous = MemoryContextSwitchTo(merging->context);
	bool found = false;

	for (int i = 0; i < merging->merge->nkeys; i++)
	{
		int column = merging->probe_column[i];
		bool isnull = merging->rows->nulls[column][row];

		merging->probe[i].sk_argument = merging->rows->values[column][row];
		merging->probe[i].sk_flags = isnull ? SK_ISNULL | SK_SEARCHNULL : 0;
	}
	if (merging->scan == NULL)
		merging->scan = mr_index_beginscan(merging->relation,
										   merging->indexes.relations[merging->unique],
										   &merging->dirty, merging->merge->nkeys);
	index_rescan(merging->scan, merging->probe, merging->merge->nkeys, NULL, 0);
	while (!found && index_getnext_slot(merging->scan, ForwardScanDirection, merging->found))
		found = except == NULL || !ItemPointerEquals(&merging->found->tts_tid, except);
	MemoryContextSwitchTo(previous);
	return found;
}

/* Is the row in merging->found being inserted by somebody?  Then waits for him. */
static bool
wait_for_inserter(Merging *merging)
{
	TransactionId inserter = merging->dirty.xmin;

	if (!TransactionIdIsValid(inserter))
		return false;
	if (merging->dirty.speculativeToken != 0)
		SpeculativeInsertionWait(inserter, merging->dirty.speculativeToken);
	else
		XactLockTableWait(inserter, merging->relation, &merging->found->tts_tid, XLTW_InsertIndex);
	return true;
}

static Datum
add(MrMergeColumn kind, Datum old, bool old_null, Datum difference, bool difference_null,
	bool *isnull)
{
	int64 sum;

	*isnull = false;
	if (kind == MR_MERGE_NUMERIC)
		return DirectFunctionCall2(numeric_add, old, difference);
	if (pg_add_s64_overflow(old_null ? 0 : DatumGetInt64(old),
							difference_null ? 0 : DatumGetInt64(difference), &sum))
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE), errmsg("bigint out of range")));
	*isnull = kind == MR_MERGE_RARE_INT8 && sum == 0;
	return Int64GetDatum(sum);
}

static void
note(Merging *merging, int row, int64 count, ItemPointer place)
{
	if (merging->after != NULL)
		merging->after[row] = count;
	if (merging->places != NULL)
		merging->places[row] = *place;
}

static bool
is_zero(MrMergeColumn kind, Datum value)
{
	if (kind != MR_MERGE_NUMERIC)
		return DatumGetInt64(value) == 0;
	return DatumGetInt32(
			   DirectFunctionCall2(numeric_cmp, value, NumericGetDatum(int64_to_numeric(0)))) == 0;
}

/* Puts what becomes of a row that is there into merging->changed; false when it goes. */
static bool
compute_changed(Merging *merging, int row, HeapTuple found, int64 *count)
{
	const MrMerge *merge = merging->merge;
	TupleTableSlot *changed = merging->changed;
	bool all_zero = true;

	*count = 0;
	ExecClearTuple(changed);
	heap_deform_tuple(found, merging->desc, changed->tts_values, changed->tts_isnull);
	for (int c = merge->nkeys; c < merge->ncolumns; c++)
	{
		int attribute = merge->attnums[c] - 1;
		Datum *value = &changed->tts_values[attribute];
		bool *isnull = &changed->tts_isnull[attribute];

		if (merge->columns[c] == MR_MERGE_FIXED)
			continue;
		if (merge->columns[c] == MR_MERGE_VALUE)
		{
			Datum old = *value;

			return merging->compute(merging->computing, row, &old, value);
		}
		*value = add(merge->columns[c], *value, *isnull, merging->rows->values[c][row],
					 merging->rows->nulls[c][row], isnull);
		all_zero = all_zero && (*isnull || is_zero(merge->columns[c], *value));
	}
	*count = DatumGetInt64(changed->tts_values[merge->attnums[merge->counter] - 1]);
	return *count != 0 || merging->empty == MR_EMPTY_STAYS ||
		   (merging->empty == MR_EMPTY_GOES_IF_ALL_ARE && !all_zero);
}

/* A key that is equal to the table's, but not the same (1.0 and 1.00), becomes that. */
static void
adopt_key(Merging *merging, int row, HeapTuple tuple)
{
	const MrMerge *merge = merging->merge;
	MemoryContext previous;

	if (merging->exact)
		return;
	previous = MemoryContextSwitchTo(merging->caller);
	for (int c = 0; c < merge->nkeys; c++)
	{
		Form_pg_attribute attribute = TupleDescAttr(merging->desc, merge->attnums[c] - 1);
		bool isnull;
		Datum value = heap_getattr(tuple, merge->attnums[c], merging->desc, &isnull);

		if (!isnull)
			merging->rows->values[c][row] = datumCopy(value, attribute->attbyval,
													  attribute->attlen);
	}
	MemoryContextSwitchTo(previous);
}

/* Updates or deletes a row that is there; false when it is not the newest version any more. */
static bool
change_row(Merging *merging, int row, HeapTuple found)
{
	TupleTableSlot *changed = merging->changed;
	TM_FailureData failure;
	TM_Result result;
	int64 count;

	if (!compute_changed(merging, row, found, &count))
		result = table_tuple_delete(merging->relation, &found->t_self, merging->command,
									SnapshotAny, InvalidSnapshot, true, &failure, false);
	else
	{
		ExecStoreVirtualTuple(changed);
		/* The key is this row's; a tuple that we are going to take back may have it, too. */
		result = mr_indexes_update(&merging->indexes, &found->t_self, changed, merging->command,
								   SnapshotAny, true, UNIQUE_CHECK_PARTIAL);
	}
	switch (result)
	{
		case TM_Ok:
			note(merging, row, count, &changed->tts_tid);
			return true;
		case TM_Updated:
		case TM_Deleted:
			return false;
		default:
			elog(ERROR, "cannot change a row of \"%s\": %d",
				 RelationGetRelationName(merging->relation), (int) result);
	}
}

static void
note_inserted(Merging *merging, int row, TupleTableSlot *slot)
{
	note(merging, row,
		 merging->after == NULL
			 ? 0
			 : DatumGetInt64(merging->rows->values[merging->merge->counter][row]),
		 &slot->tts_tid);
}

/* Takes a tuple back that an earlier command has inserted. */
static void
take_back(Merging *merging, ItemPointer place)
{
	simple_heap_delete(merging->relation, place);
}

/*
 * Merges a row of whose key it is known that it was there, or that somebody is just inserting it.  A tuple of `ours` may
 * be there with the entry of its key; true when it stays.
 */
static bool
merge_row(Merging *merging, int row, TupleTableSlot *ours)
{
	ItemPointerData own;

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (find(merging, row, ours == NULL ? NULL : &ours->tts_tid))
		{
			HeapTuple tuple = ExecFetchSlotHeapTuple(merging->found, false, NULL);

			if (!wait_for_inserter(merging) && change_row(merging, row, tuple))
			{
				adopt_key(merging, row, tuple);
				return false;
			}
			continue;
		}
		/* It is gone.  Another tuple would never get past the one that is there; and who comes later meets that one. */
		if (ours != NULL)
		{
			insert_other_entries(merging, ours);
			note_inserted(merging, row, ours);
			return true;
		}
		fill_slot(merging, merging->changed, row);
		table_tuple_insert(merging->relation, merging->changed, merging->command, 0, NULL);
		if (insert_entries(merging, merging->changed))
		{
			note_inserted(merging, row, merging->changed);
			return false;
		}
		own = merging->changed->tts_tid;
		CommandCounterIncrement();
		merging->command = GetCurrentCommandId(true);
		take_back(merging, &own);
	}
}

/* ---- all rows --------------------------------------------------------------------------------- */

/* Does the tuple have the key, to the last bit?  One that is equal in another way is looked for by the index. */
static bool
has_key(const Merging *merging, HeapTuple tuple, int row)
{
	const MrMerge *merge = merging->merge;

	for (int c = 0; c < merge->nkeys; c++)
	{
		Form_pg_attribute attribute = TupleDescAttr(merging->desc, merge->attnums[c] - 1);
		bool isnull;
		Datum value = heap_getattr(tuple, merge->attnums[c], merging->desc, &isnull);

		if (isnull != merging->rows->nulls[c][row] ||
			(!isnull && !datum_image_eq(value, merging->rows->values[c][row], attribute->attbyval,
										attribute->attlen)))
			return false;
	}
	return true;
}

/*
 * A copy of the row that an entry of the index led to, if it is to be seen and not being inserted by somebody; since then
 * its place may have become another row's.
 */
static HeapTuple
copy_row(Merging *merging, int row, ItemPointer place)
{
	HeapTuple copy = mr_recent_copy(merging->relation, place, &merging->dirty, BLCKSZ / 10,
									&merging->buffer);

	if (copy == NULL || TransactionIdIsValid(merging->dirty.xmin) || !has_key(merging, copy, row))
		return NULL;
	return copy;
}

/* What a key begins with, for mr_leaf_look_ahead(). */
static void
begin_key(void *context, int i, Datum *values, bool *nulls)
{
	const Merging *merging = context;
	int row = merging->chunk[i];

	for (int k = 0; k < Min(merging->merge->nkeys, MR_LEAF_BEGINNING); k++)
	{
		int column = merging->probe_column[k];

		nulls[k] = merging->rows->nulls[column][row];
		values[k] = merging->rows->values[column][row];
	}
}

/* Looks a key up: there is no such row, or *place is where it may stand, unless that is invalid. */
static bool
is_new(Merging *merging, int row, ItemPointer place)
{
	Datum values[INDEX_MAX_KEYS];
	bool nulls[INDEX_MAX_KEYS];
	MrLeafFinding finding;

	for (int i = 0; i < merging->merge->nkeys; i++)
	{
		values[i] = merging->rows->values[merging->probe_column[i]][row];
		nulls[i] = merging->rows->nulls[merging->probe_column[i]][row];
	}
	finding = mr_leaf_find(merging->leaf, values, nulls, place);
	if (finding != MR_LEAF_ONE)
		ItemPointerSetInvalid(place);
	return finding == MR_LEAF_NONE;
}

/*
 * Which rows of a chunk have to be inserted?  Their tuples stand in the first slots then, and how many they are is
 * returned; of the others, `found` has copies, as far as they are known.
 */
static int
find_new(Merging *merging, const int *order, int n, bool *there, HeapTuple *found)
{
	const MrMerge *merge = merging->merge;
	ItemPointerData places[CHUNK];
	int nnew = 0;

	merging->chunk = order;
	for (int i = 0; i < n; i++)
	{
		/* A value that is computed is the last column. */
		mr_rows_prefetch(merging->rows, merge->ncolumns - (merging->compute != NULL), merge->far,
						 order, i, n);
		mr_leaf_look_ahead(merging->leaf, i, n, begin_key, merging);
		there[i] = !is_new(merging, order[i], &places[i]);
	}
	mr_leaf_release(merging->leaf);
	mr_debug_point("rows_looked_up");
	for (int i = 0; i < n; i++)
	{
		mr_recent_prefetch_rows(merging->relation, places, n, i);
		found[i] = ItemPointerIsValid(&places[i]) ? copy_row(merging, order[i], &places[i]) : NULL;
	}
	if (BufferIsValid(merging->buffer))
		ReleaseBuffer(merging->buffer);
	merging->buffer = InvalidBuffer;
	for (int i = 0; i < n; i++)
	{
		if (there[i] && found[i] == NULL)
		{
			there[i] = find(merging, order[i], NULL);
			if (there[i] && !TransactionIdIsValid(merging->dirty.xmin))
			{
				found[i] = ExecCopySlotHeapTuple(merging->found);
				adopt_key(merging, order[i], found[i]);
			}
		}
		/* Only who has rows to give can be new. */
		if (!there[i] && merging->compute == NULL)
			there[i] = merging->empty == MR_EMPTY_GOES &&
					   DatumGetInt64(merging->rows->values[merge->counter][order[i]]) <= 0;
		if (there[i])
			continue;
		if (nnew == merging->nslots)
			merging->slots[merging->nslots++] = make_slot(merging);
		fill_slot(merging, merging->slots[nnew++], order[i]);
	}
	return nnew;
}

/* Merges the rows of one chunk. */
static void
merge_chunk(Merging *merging, const int *order, int n)
{
	bool there[CHUNK];
	HeapTuple found[CHUNK];
	ItemPointerData taken_back[CHUNK];
	int ntaken_back = 0;
	int next = 0;
	int nnew = find_new(merging, order, n, there, found);

	if (nnew > 0)
	{
		heap_multi_insert(merging->relation, merging->slots, nnew, merging->command, 0, NULL);
		mr_extend_heap(merging->relation, merging->slots, nnew, nnew);
	}
	for (int i = 0; i < n; i++)
	{
		TupleTableSlot *slot;

		if (there[i])
		{
			mr_leaf_release(merging->leaf);
			if (found[i] == NULL || !change_row(merging, order[i], found[i]))
				(void) merge_row(merging, order[i], NULL);
			continue;
		}
		slot = merging->slots[next++];
		if (insert_entries(merging, slot))
			note_inserted(merging, order[i], slot);
		else if (!merge_row(merging, order[i], slot))
			taken_back[ntaken_back++] = slot->tts_tid;
	}
	mr_leaf_release(merging->leaf);
	if (ntaken_back > 0)
	{
		CommandCounterIncrement();
		merging->command = GetCurrentCommandId(true);
	}
	for (int i = 0; i < ntaken_back; i++)
		take_back(merging, &taken_back[i]);
}

static void
merge_all(Merging *merging)
{
	int nrows = merging->rows->nrows;
	int *order = mr_order_rows(merging->merge->order, merging->rows, merging->merge->nkeys);

	for (int first = 0; first < nrows; first += CHUNK)
	{
		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(merging->row_context);
		merge_chunk(merging, &order[first], Min(CHUNK, nrows - first));
		MemoryContextSwitchTo(merging->context);
		MemoryContextReset(merging->row_context);
	}
}

static void
merge_with(Merging *merging)
{
	MemoryContext previous = CurrentMemoryContext;
	MrRunAs saved;

	if (merging->rows->nrows == 0)
		return;
	merging->caller = previous;
	merging->context = AllocSetContextCreate(previous, "millrace merge", ALLOCSET_DEFAULT_SIZES);
	merging->row_context = AllocSetContextCreate(merging->context, "millrace merge chunk",
												 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(merging->context);
	mr_run_as_restricted(&saved, merging->merge->role);
	open_table(merging);
	merge_all(merging);
	close_table(merging);
	mr_run_back(&saved);
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(merging->context);
	/* What comes next in the transaction sees the rows. */
	CommandCounterIncrement();
}

void
mr_merge_rows(MrMerge *merge, const MrRows *rows, MrMergeEmpty empty, int64 *after,
			  ItemPointerData *places)
{
	Merging merging = {
		.merge = merge, .rows = rows, .empty = empty, .after = after, .places = places};

	merge_with(&merging);
}

void
mr_merge_values(MrMerge *merge, const MrRows *rows, MrMergeValue compute, void *context)
{
	Merging merging = {.merge = merge, .rows = rows, .compute = compute, .computing = context};

	merge_with(&merging);
}
