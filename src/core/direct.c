/*
 * direct.c
 *	  Inserting straight through the table access method.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/hio.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "core/compat.h"
#include "core/direct.h"
#include "core/extend.h"
#include "core/indexes.h"
#include "core/leaf.h"
#include "core/millrace.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "rewrite/prs2lock.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

/* Rows that go to the heap in one call; also how far index entries may lag behind their tuples. */
#define CHUNK 1000

struct MrDirect
{
	Relation relation;
	Datum *values; /* of the row that is being made, by attribute */
	bool *nulls;
	int ncolumns;
	const AttrNumber *attnums;
	bool *far; /* see mr_rows_far */
	int nkeys;
	MrIndexes indexes;
	int unique; /* which of them, or -1 */
	MrLeaf *leaf; /* of the unique index */
	ScanKey probe; /* equality on the unique index */
	TupleTableSlot *found; /* by a probe */
	SnapshotData dirty;
	TransactionId doubtful; /* makes the other row with a key doubtful that was probed last */
	uint32 doubtful_token; /* of its speculative insertion, or 0 */
	IndexScanDesc scan; /* of probes; NULL before the first */
	IndexFetchTableData *fetch; /* what an entry leads to */
	TupleDesc desc; /* a copy: a slot over the relation's own would pin it */
	TupleTableSlot *slots[CHUNK];
	int nslots;
	MemoryContext context;
	MemoryContext chunk_context;
	bool probe_first;
	int ncompared; /* columns that the row probed last had to agree in; or 0 */
	bool agrees; /* and it did */
	int64 nconflicts; /* rows that were left out */
	BulkInsertState bulk; /* remembers the page that is being filled */
};

bool
mr_direct_is_plain(Relation relation)
{
	TupleConstr *constraints = RelationGetDescr(relation)->constr;

	return relation->rd_rel->relkind == RELKIND_RELATION && !relation->rd_rel->relispartition &&
		   relation->rd_rel->relam == HEAP_TABLE_AM_OID && relation->trigdesc == NULL &&
		   relation->rd_rules == NULL &&
		   check_enable_rls(RelationGetRelid(relation), InvalidOid, true) != RLS_ENABLED &&
		   (constraints == NULL ||
			(constraints->num_check == 0 && !constraints->has_generated_stored));
}

/* Is every column that is not given one that may be left out? */
static bool
takes_columns(Relation relation, int ncolumns, const AttrNumber *attnums)
{
	TupleDesc desc = RelationGetDescr(relation);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		bool given = false;

		if (attribute->attisdropped)
			continue;
		for (int c = 0; c < ncolumns && !given; c++)
			given = attnums[c] == i + 1;
		if (!given && (attribute->atthasdef || attribute->attidentity || attribute->attnotnull))
			return false;
		if (get_typtype(attribute->atttypid) == TYPTYPE_DOMAIN && !given)
			return false;
	}
	return true;
}

/* Is the index over plain columns, and when it is unique, over exactly the key? */
static bool
is_plain_index(Relation index, const AttrNumber *attnums, int nkeys)
{
	Form_pg_index form = index->rd_index;

	if (!form->indisvalid || !form->indisready || !form->indimmediate || form->indisexclusion ||
		index->rd_indexprs != NIL || index->rd_indpred != NIL ||
		!heap_attisnull(index->rd_indextuple, Anum_pg_index_indexprs, NULL) ||
		!heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL))
		return false;
	if (!form->indisunique)
		return true;
	if (form->indnkeyatts != nkeys || index->rd_rel->relam != BTREE_AM_OID)
		return false;
	for (int i = 0; i < nkeys; i++)
	{
		bool found = false;

		for (int k = 0; k < nkeys && !found; k++)
			found = form->indkey.values[i] == attnums[k];
		if (!found)
			return false;
	}
	return true;
}

/* Scan keys that find a row by the unique index; their arguments are set for each probe. */
static void
prepare_probe(MrDirect *direct)
{
	Relation index = direct->indexes.relations[direct->unique];

	InitDirtySnapshot(direct->dirty);
	direct->found = table_slot_create(direct->relation, NULL);
	direct->fetch = table_index_fetch_begin(direct->relation);
	direct->probe = palloc0(sizeof(ScanKeyData) * direct->nkeys);
	for (int i = 0; i < direct->nkeys; i++)
	{
		Oid equality = get_opfamily_member(index->rd_opfamily[i], index->rd_opcintype[i],
										   index->rd_opcintype[i], BTEqualStrategyNumber);

		ScanKeyEntryInitialize(&direct->probe[i], 0, i + 1, BTEqualStrategyNumber, InvalidOid,
							   index->rd_indcollation[i], get_opcode(equality), (Datum) 0);
	}
}

MrDirect *
mr_direct_open(Oid relid, int ncolumns, const AttrNumber *attnums, int nkeys, bool probe_first)
{
	MrDirect *direct;
	Relation relation = table_open(relid, RowExclusiveLock);
	bool plain = mr_direct_is_plain(relation) && takes_columns(relation, ncolumns, attnums);
	bool allowed = pg_class_aclcheck(relid, GetUserId(), ACL_INSERT) == ACLCHECK_OK &&
				   mr_schema_aclcheck(RelationGetNamespace(relation), GetUserId()) == ACLCHECK_OK;

	/* Privileges on columns, and errors about missing ones, are for the other way. */
	if (!plain || !allowed)
	{
		table_close(relation, NoLock);
		return NULL;
	}
	direct = palloc0(sizeof(MrDirect));
	direct->context = CurrentMemoryContext;
	direct->relation = relation;
	direct->desc = CreateTupleDescCopyConstr(RelationGetDescr(relation));
	direct->values = palloc0(sizeof(Datum) * direct->desc->natts);
	direct->nulls = palloc(sizeof(bool) * direct->desc->natts);
	direct->ncolumns = ncolumns;
	direct->attnums = attnums;
	direct->far = mr_rows_far(direct->desc, ncolumns, attnums);
	direct->nkeys = nkeys;
	direct->probe_first = probe_first;
	direct->unique = -1;
	mr_indexes_open(&direct->indexes, relation);
	for (int i = 0; i < direct->indexes.count; i++)
	{
		Relation index = direct->indexes.relations[i];

		if (!is_plain_index(index, attnums, nkeys) ||
			(index->rd_index->indisunique && direct->unique >= 0))
		{
			mr_direct_close(direct);
			return NULL;
		}
		if (index->rd_index->indisunique)
			direct->unique = i;
	}
	if (direct->unique >= 0)
	{
		prepare_probe(direct);
		direct->leaf = mr_leaf_create(relation, direct->indexes.relations[direct->unique]);
	}
	direct->chunk_context = AllocSetContextCreate(CurrentMemoryContext, "millrace chunk",
												  ALLOCSET_DEFAULT_SIZES);
	return direct;
}

void
mr_direct_close(MrDirect *direct)
{
	for (int i = 0; i < direct->nslots; i++)
		ExecDropSingleTupleTableSlot(direct->slots[i]);
	if (direct->scan != NULL)
		index_endscan(direct->scan);
	if (direct->fetch != NULL)
		table_index_fetch_end(direct->fetch);
	if (direct->found != NULL)
		ExecDropSingleTupleTableSlot(direct->found);
	mr_indexes_close(&direct->indexes);
	table_close(direct->relation, NoLock);
	if (direct->chunk_context != NULL)
		MemoryContextDelete(direct->chunk_context);
	pfree(direct);
}

/* Puts a row into a slot, as a tuple: what it is made of is at hand now, and will not be again. */
static void
fill_slot(MrDirect *direct, TupleTableSlot *slot, const MrRows *rows, int row)
{
	MemoryContext previous = MemoryContextSwitchTo(direct->chunk_context);
	TupleDesc desc = direct->desc;

	memset(direct->nulls, true, desc->natts);
	for (int c = 0; c < direct->ncolumns; c++)
	{
		int attribute = direct->attnums[c] - 1;
		bool isnull = rows->nulls != NULL && rows->nulls[c] != NULL && rows->nulls[c][row];

		if (isnull && TupleDescAttr(desc, attribute)->attnotnull)
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("null value in column \"%s\" of relation \"%s\" violates not-null "
							"constraint",
							NameStr(TupleDescAttr(desc, attribute)->attname),
							RelationGetRelationName(direct->relation))));
		direct->values[attribute] = rows->values[c][row];
		direct->nulls[attribute] = isnull;
	}
	ExecStoreHeapTuple(heap_form_tuple(desc, direct->values, direct->nulls), slot, true);
	MemoryContextSwitchTo(previous);
}

typedef enum Standing
{
	STANDING_NONE, /* there is no other row with the key after all */
	STANDING_FOR_GOOD, /* its transaction has committed; perhaps it is being updated */
	STANDING_IN_DOUBT /* it is being inserted or deleted, by direct->doubtful */
} Standing;

/* Is the row that was found being taken away, or another key put into it?  Other updates leave the key there. */
static bool
is_being_deleted(MrDirect *direct)
{
	HeapTuple tuple;

	if (!TransactionIdIsValid(direct->dirty.xmax))
		return false;
	tuple = ExecFetchSlotHeapTuple(direct->found, false, NULL);
	return (tuple->t_data->t_infomask2 & HEAP_KEYS_UPDATED) != 0;
}

/* Does the row in direct->found agree with the one in the slot? */
static bool
agrees(MrDirect *direct, TupleTableSlot *slot)
{
	for (int c = 0; c < direct->ncompared; c++)
	{
		Form_pg_attribute attribute = TupleDescAttr(direct->desc, direct->attnums[c] - 1);
		bool isnull;
		bool found_null;
		Datum value = slot_getattr(slot, direct->attnums[c], &isnull);
		Datum found = slot_getattr(direct->found, direct->attnums[c], &found_null);

		/* To read what lies elsewhere may take locks. */
		if (!found_null && attribute->attlen == -1 && VARATT_IS_EXTERNAL(DatumGetPointer(found)))
			mr_leaf_release(direct->leaf);
		if (isnull != found_null ||
			(!isnull && !datum_image_eq(value, found, attribute->attbyval, attribute->attlen)))
			return false;
	}
	return direct->ncompared > 0;
}

/* How the row in direct->found stands, which has the slot's key. */
static Standing
note_standing(MrDirect *direct, TupleTableSlot *slot)
{
	direct->doubtful = TransactionIdIsValid(direct->dirty.xmin) ? direct->dirty.xmin
																: direct->dirty.xmax;
	direct->doubtful_token = direct->dirty.speculativeToken;
	direct->agrees = agrees(direct, slot);
	return TransactionIdIsValid(direct->dirty.xmin) || is_being_deleted(direct) ? STANDING_IN_DOUBT
																				: STANDING_FOR_GOOD;
}

/* How the other row with the slot's key stands. */
static Standing
probe_key(MrDirect *direct, TupleTableSlot *slot)
{
	Relation index = direct->indexes.relations[direct->unique];
	bool any_null = false;
	/* The scan allocates what it keeps whenever it needs it, and outlives a chunk. */
	MemoryContext previous = MemoryContextSwitchTo(direct->context);
	Standing standing = STANDING_NONE;

	for (int i = 0; i < direct->nkeys; i++)
	{
		bool isnull;

		direct->probe[i].sk_argument = slot_getattr(slot, index->rd_index->indkey.values[i],
													&isnull);
		direct->probe[i].sk_flags = isnull ? SK_ISNULL | SK_SEARCHNULL : 0;
		any_null |= isnull;
	}
	/* To most indexes no null is equal to another. */
	if (any_null && !index->rd_index->indnullsnotdistinct)
	{
		MemoryContextSwitchTo(previous);
		return STANDING_NONE;
	}
	if (direct->scan == NULL)
		direct->scan = mr_index_beginscan(direct->relation, index, &direct->dirty, direct->nkeys);
	index_rescan(direct->scan, direct->probe, direct->nkeys, NULL, 0);
	/* Beside the row that stays there may be one that somebody else takes back. */
	while (standing != STANDING_FOR_GOOD &&
		   index_getnext_slot(direct->scan, ForwardScanDirection, direct->found))
	{
		if (ItemPointerEquals(&direct->found->tts_tid, &slot->tts_tid))
			continue;
		standing = note_standing(direct, slot);
	}
	ExecClearTuple(direct->found);
	MemoryContextSwitchTo(previous);
	return standing;
}

/*
 * Takes a heap tuple back that an earlier command of ours has inserted.  To the statistics it is dead, but no row that was deleted:
 * those tell whoever knows keys of the table that they may be gone.
 */
static void
take_back(MrDirect *direct, TupleTableSlot *slot)
{
	PgStat_TableStatus *counts;

	simple_heap_delete(direct->relation, &slot->tts_tid);
	counts = direct->relation->pgstat_info;
	if (counts == NULL || counts->trans == NULL)
		return;
	counts->trans->tuples_inserted--;
	counts->trans->tuples_deleted--;
	pgstat_update_heap_dead_tuples(direct->relation, -1);
}

/* The row is left out: its key is there, in the row that was probed last. */
static void
leave_out(MrDirect *direct, bool *conflicts, int row)
{
	if (conflicts != NULL && !direct->agrees)
		conflicts[row] = true;
	direct->nconflicts++;
}

/*
 * Keeps the page that is being filled pinned.  Of the rest of a bulk insert, the small ring of buffers is left
 * out: pages of a batch are wanted again soon.
 */
static BulkInsertState
create_bulk_state(void)
{
	BulkInsertState bulk = GetBulkInsertState();

	FreeAccessStrategy(bulk->strategy);
	bulk->strategy = NULL;
	return bulk;
}

/* Waits for the transaction that makes the other row with the key doubtful that was probed last. */
static void
wait_for_other(MrDirect *direct, TupleTableSlot *slot)
{
	if (direct->doubtful_token != 0)
		SpeculativeInsertionWait(direct->doubtful, direct->doubtful_token);
	else
		XactLockTableWait(direct->doubtful, direct->relation, &slot->tts_tid, XLTW_InsertIndex);
}

/* Puts the entry of the unique index; when there is another row with the key, says how that stands. */
static Standing
insert_key(MrDirect *direct, TupleTableSlot *slot)
{
	if (mr_indexes_insert(&direct->indexes, direct->unique, slot, UNIQUE_CHECK_PARTIAL))
		return STANDING_NONE;
	return probe_key(direct, slot);
}

/*
 * Puts the key of a row whose tuple is in the heap, waiting as long as it is not known whether the other row stays.
 * Keys come in one order, so we hold smaller ones only, and nobody waits in a circle.  False when the other row
 * stays; then the tuple is still to be taken back.
 */
static bool
settle_key(MrDirect *direct, TupleTableSlot *slot)
{
	Standing standing = insert_key(direct, slot);

	while (standing == STANDING_IN_DOUBT)
	{
		/* Not both of us: whoever waits has nothing there. */
		CommandCounterIncrement();
		take_back(direct, slot);
		wait_for_other(direct, slot);
		table_tuple_insert(direct->relation, slot, GetCurrentCommandId(true), 0, NULL);
		standing = insert_key(direct, slot);
	}
	return standing == STANDING_NONE;
}

/* What the key of the tuple in the i-th slot begins with, for mr_leaf_look_ahead(). */
static void
begin_key(void *context, int i, Datum *values, bool *nulls)
{
	MrDirect *direct = context;
	const int16 *columns = direct->indexes.relations[direct->unique]->rd_index->indkey.values;

	for (int k = 0; k < Min(direct->nkeys, MR_LEAF_BEGINNING); k++)
		values[k] = slot_getattr(direct->slots[i], columns[k], &nulls[k]);
}

/*
 * Puts the keys of the tuples in the slots, whose rows have the numbers in `order`, and marks those that have to be
 * taken back: another row stays.
 */
static void
insert_keys(MrDirect *direct, const int *order, int n, MrConflict mode, bool *stays,
			bool *conflicts)
{
	for (int i = 0; i < n; i++)
	{
		TupleTableSlot *slot = direct->slots[i];
		Datum values[INDEX_MAX_KEYS];
		bool nulls[INDEX_MAX_KEYS];

		mr_leaf_look_ahead(direct->leaf, i, n, begin_key, direct);
		FormIndexDatum(direct->indexes.infos[direct->unique], slot, NULL, values, nulls);
		if (mr_leaf_insert(direct->leaf, values, nulls, &slot->tts_tid))
			continue;
		if (mode == MR_CONFLICT_ERROR)
			(void) mr_indexes_insert(&direct->indexes, direct->unique, slot, UNIQUE_CHECK_YES);
		else
			stays[i] = !settle_key(direct, slot);
		if (stays[i])
			leave_out(direct, conflicts, order[i]);
	}
	mr_leaf_release(direct->leaf);
}

/* Inserts the rows of one chunk, which stand in the slots; those that are left out are marked. */
static int64
insert_chunk(MrDirect *direct, const int *order, int n, MrConflict mode, bool *conflicts)
{
	bool stays[CHUNK] = {0};
	int64 inserted = 0;

	heap_multi_insert(direct->relation, direct->slots, n, GetCurrentCommandId(true), 0,
					  direct->bulk);
	if (direct->unique >= 0)
		insert_keys(direct, order, n, mode, stays, conflicts);
	for (int i = 0; i < n; i++)
	{
		if (stays[i])
			continue;
		for (int x = 0; x < direct->indexes.count; x++)
		{
			if (x != direct->unique)
				(void) mr_indexes_insert(&direct->indexes, x, direct->slots[i], UNIQUE_CHECK_NO);
		}
		inserted++;
	}
	if (inserted == n)
		return inserted;
	CommandCounterIncrement();
	for (int i = 0; i < n; i++)
	{
		if (stays[i])
			take_back(direct, direct->slots[i]);
	}
	return inserted;
}

/* Is there a row with the key of the tuple in the slot that is going to stay? */
static bool
is_there(MrDirect *direct, TupleTableSlot *slot)
{
	/* What is allocated underneath outlives a chunk. */
	MemoryContext previous = MemoryContextSwitchTo(direct->context);
	MrLeafFinding finding = MR_LEAF_UNSURE;
	bool stays = false;
	bool again = false;
	bool any_null = false;
	Datum values[INDEX_MAX_KEYS];
	bool nulls[INDEX_MAX_KEYS];
	ItemPointerData place;

	FormIndexDatum(direct->indexes.infos[direct->unique], slot, NULL, values, nulls);
	for (int i = 0; i < direct->nkeys; i++)
		any_null |= nulls[i];
	/* On a leaf nulls are equal. */
	if (!any_null)
		finding = mr_leaf_find(direct->leaf, values, nulls, &place);
	if (finding == MR_LEAF_ONE)
	{
		stays = table_index_fetch_tuple(direct->fetch, &place, &direct->dirty, direct->found,
										&again, NULL) &&
				note_standing(direct, slot) == STANDING_FOR_GOOD;
		ExecClearTuple(direct->found);
	}
	if (finding != MR_LEAF_NONE && !stays)
	{
		mr_leaf_release(direct->leaf);
		stays = probe_key(direct, slot) == STANDING_FOR_GOOD;
	}
	MemoryContextSwitchTo(previous);
	return stays;
}

/* The rows that are probed, in the order of their keys. */
typedef struct Probing
{
	const MrDirect *direct;
	const MrRows *rows;
	const int *order;
} Probing;

/* What the key of the i-th row begins with, for mr_leaf_look_ahead(). */
static void
begin_probed_key(void *context, int i, Datum *values, bool *nulls)
{
	const Probing *probing = context;
	const MrDirect *direct = probing->direct;
	const int16 *columns = direct->indexes.relations[direct->unique]->rd_index->indkey.values;
	int row = probing->order[i];

	for (int k = 0; k < Min(direct->nkeys, MR_LEAF_BEGINNING); k++)
	{
		int c = 0;

		while (direct->attnums[c] != columns[k])
			c++;
		nulls[k] = probing->rows->nulls != NULL && probing->rows->nulls[c] != NULL &&
				   probing->rows->nulls[c][row];
		values[k] = probing->rows->values[c][row];
	}
}

int64
mr_direct_insert(MrDirect *direct, const MrRows *rows, const int *order, MrConflict mode,
				 int ncompared, bool *conflicts)
{
	MemoryContext previous = CurrentMemoryContext;
	bool probe_first = direct->probe_first && direct->unique >= 0 && mode != MR_CONFLICT_ERROR;
	Probing probing = {direct, rows, order};
	int chunk[CHUNK];
	int64 inserted = 0;
	int next = 0;

	direct->ncompared = ncompared;
	direct->bulk = create_bulk_state();
	while (next < rows->nrows)
	{
		int n = 0;

		CHECK_FOR_INTERRUPTS();
		while (next < rows->nrows && n < CHUNK)
		{
			int row = order[next];

			mr_rows_prefetch(rows, direct->ncolumns, direct->far, order, next, rows->nrows);
			if (probe_first)
				mr_leaf_look_ahead(direct->leaf, next, rows->nrows, begin_probed_key, &probing);
			next++;

			/* Slots outlive the chunk, its tuples do not. */
			if (n == direct->nslots)
				direct->slots[direct->nslots++] = MakeSingleTupleTableSlot(direct->desc,
																		   &TTSOpsHeapTuple);
			fill_slot(direct, direct->slots[n], rows, row);
			if (probe_first && is_there(direct, direct->slots[n]))
				leave_out(direct, conflicts, row);
			else
				chunk[n++] = row;
		}
		if (probe_first)
		{
			mr_leaf_release(direct->leaf);
			table_index_fetch_reset(direct->fetch);
		}
		MemoryContextSwitchTo(direct->chunk_context);
		if (n > 0)
		{
			inserted += insert_chunk(direct, chunk, n, mode, conflicts);
			/* When that was all, more like it will come. */
			mr_extend_heap(direct->relation, direct->slots, n,
						   next < rows->nrows ? Min(rows->nrows - next, CHUNK) : n);
		}
		MemoryContextSwitchTo(previous);
		for (int i = 0; i < direct->nslots; i++)
			ExecClearTuple(direct->slots[i]);
		MemoryContextReset(direct->chunk_context);
	}
	FreeBulkInsertState(direct->bulk);
	direct->bulk = NULL;
	/* What comes next in the transaction sees the rows. */
	CommandCounterIncrement();
	return inserted;
}

bool
mr_direct_many_conflicts(const MrDirect *direct, int nrows)
{
	return direct->nconflicts > nrows / 20;
}
