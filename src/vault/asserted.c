/*
 * asserted.c
 *	  The rows of a satellite, read and confirmed straight through the index and the heap.
 *
 * A stream that repeats itself confirms many rows in each batch, and each takes one descent of the unique
 * index here where the statements need three.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "core/compat.h"
#include "core/direct.h"
#include "core/indexes.h"
#include "core/leaf.h"
#include "core/recent.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "vault/asserted.h"

enum
{
	PARENT,
	APPLIED_AT,
	HASHDIFF,
	CONFIRMED_AT,
	COLUMNS
};

struct MrAsserted
{
	Relation relation;
	AttrNumber attnums[COLUMNS];
	MrIndexes indexes;
	Snapshot snapshot;
	MrLeaf *leaf; /* of the index that orders the rows */
	Buffer buffer; /* of the heap, pinned; or invalid */
	IndexScanDesc scan; /* when the leaf does not tell */
	ScanKeyData keys[2]; /* the parent, and the time at the latest */
	TupleTableSlot *scanned; /* what the scan has come to */
	HeapTuple row; /* that was found last; or NULL */
	TupleTableSlot *changed;
};

/* Is it the index that orders a parent's rows by time and content? */
static bool
is_order(Relation index, const AttrNumber attnums[COLUMNS])
{
	Form_pg_index form = index->rd_index;

	if (!form->indisunique || !form->indisvalid || index->rd_rel->relam != BTREE_AM_OID ||
		form->indnkeyatts != CONFIRMED_AT || index->rd_indpred != NIL)
		return false;
	for (int i = 0; i < CONFIRMED_AT; i++)
	{
		if (form->indkey.values[i] != attnums[i] || index->rd_indoption[i] != 0)
			return false;
	}
	return true;
}

/* Opens the indexes and the scan of the one that orders the rows; false when there is none. */
static bool
open_indexes(MrAsserted *asserted)
{
	Relation order = NULL;

	mr_indexes_open(&asserted->indexes, asserted->relation);
	for (int i = 0; i < asserted->indexes.count; i++)
	{
		Relation index = asserted->indexes.relations[i];
		const IndexInfo *info = asserted->indexes.infos[i];

		/* What needs the executor's help when a row gets a new place is left to statements. */
		if (info->ii_Expressions != NIL || info->ii_Predicate != NIL ||
			index->rd_index->indisexclusion || !index->rd_index->indimmediate)
			return false;
		if (is_order(index, asserted->attnums))
			order = index;
	}
	if (order == NULL)
		return false;
	ScanKeyInit(&asserted->keys[0], 1, BTEqualStrategyNumber, F_UUID_EQ, (Datum) 0);
	ScanKeyInit(&asserted->keys[1], 2, BTLessEqualStrategyNumber, F_TIMESTAMPTZ_LE, (Datum) 0);
	asserted->snapshot = RegisterSnapshot(GetLatestSnapshot());
	asserted->leaf = mr_leaf_create(asserted->relation, order);
	asserted->scan = mr_index_beginscan(asserted->relation, order, asserted->snapshot, 2);
	return true;
}

MrAsserted *
mr_asserted_open(Oid relid, const AttrNumber attnums[COLUMNS])
{
	Relation relation = table_open(relid, RowExclusiveLock);
	MrAsserted *asserted;

	if (!mr_direct_is_plain(relation) ||
		pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) != ACLCHECK_OK ||
		pg_class_aclcheck(relid, GetUserId(), ACL_UPDATE) != ACLCHECK_OK ||
		mr_schema_aclcheck(RelationGetNamespace(relation), GetUserId()) != ACLCHECK_OK)
	{
		table_close(relation, NoLock);
		return NULL;
	}
	asserted = palloc0(sizeof(MrAsserted));
	asserted->relation = relation;
	memcpy(asserted->attnums, attnums, sizeof(asserted->attnums));
	asserted->scanned = table_slot_create(relation, NULL);
	asserted->changed = MakeSingleTupleTableSlot(RelationGetDescr(relation), &TTSOpsHeapTuple);
	if (!open_indexes(asserted))
	{
		mr_asserted_close(asserted);
		return NULL;
	}
	return asserted;
}

void
mr_asserted_close(MrAsserted *asserted)
{
	ExecDropSingleTupleTableSlot(asserted->scanned);
	ExecDropSingleTupleTableSlot(asserted->changed);
	if (asserted->scan != NULL)
	{
		mr_leaf_release(asserted->leaf);
		if (BufferIsValid(asserted->buffer))
			ReleaseBuffer(asserted->buffer);
		index_endscan(asserted->scan);
		UnregisterSnapshot(asserted->snapshot);
	}
	mr_indexes_close(&asserted->indexes);
	table_close(asserted->relation, NoLock);
	pfree(asserted);
	/* What comes next in the transaction sees what was confirmed. */
	CommandCounterIncrement();
}

/* A column of the row that was found. */
static Datum
value_of(MrAsserted *asserted, int column)
{
	bool isnull;

	return heap_getattr(asserted->row, asserted->attnums[column],
						RelationGetDescr(asserted->relation), &isnull);
}

void
mr_asserted_look_ahead(MrAsserted *asserted, int i, int n, MrLeafBegin begin, void *context)
{
	mr_leaf_look_ahead(asserted->leaf, i, n, begin, context);
}

/* Does the row that was found have this content? */
static bool
has_hash(MrAsserted *asserted, const pg_uuid_t *hash)
{
	return memcmp(DatumGetUUIDP(value_of(asserted, HASHDIFF)), hash, sizeof(pg_uuid_t)) == 0;
}

/* Forgets the row that was found last. */
static void
let_go(MrAsserted *asserted)
{
	if (asserted->row != NULL)
		heap_freetuple(asserted->row);
	asserted->row = NULL;
}

/* Finds the row by a scan of the index. */
static bool
scan_for(MrAsserted *asserted, const pg_uuid_t *parent, TimestampTz time, const pg_uuid_t *hash)
{
	asserted->keys[0].sk_argument = UUIDPGetDatum(parent);
	asserted->keys[1].sk_argument = TimestampTzGetDatum(time);
	index_rescan(asserted->scan, asserted->keys, 2, NULL, 0);
	while (index_getnext_slot(asserted->scan, BackwardScanDirection, asserted->scanned))
	{
		let_go(asserted);
		asserted->row = ExecCopySlotHeapTuple(asserted->scanned);
		ExecClearTuple(asserted->scanned);
		/* Of the same time, it may come after the content that is looked for. */
		if (DatumGetTimestampTz(value_of(asserted, APPLIED_AT)) < time ||
			memcmp(DatumGetUUIDP(value_of(asserted, HASHDIFF)), hash, sizeof(pg_uuid_t)) <= 0)
			return has_hash(asserted, hash);
	}
	return false;
}

bool
mr_asserted_find(MrAsserted *asserted, const pg_uuid_t *parent, TimestampTz time,
				 const pg_uuid_t *hash, TimestampTz *applied, TimestampTz *confirmed)
{
	Datum key[] = {UUIDPGetDatum(parent), TimestampTzGetDatum(time), UUIDPGetDatum(hash)};
	bool nulls[lengthof(key)] = {false};
	ItemPointerData place;
	MrLeafFinding finding = mr_leaf_find_last(asserted->leaf, key, nulls, &place);
	bool found = false;

	let_go(asserted);
	if (finding == MR_LEAF_ONE)
		asserted->row = mr_recent_copy(asserted->relation, &place, asserted->snapshot, 0,
									   &asserted->buffer);
	if (asserted->row != NULL)
		found = memcmp(DatumGetUUIDP(value_of(asserted, PARENT)), parent, sizeof(pg_uuid_t)) == 0 &&
				has_hash(asserted, hash);
	/* An entry may lead to a row that is gone, before which one may be that is there. */
	else if (finding != MR_LEAF_NONE)
	{
		mr_leaf_release(asserted->leaf);
		found = scan_for(asserted, parent, time, hash);
	}
	if (found)
	{
		*applied = DatumGetTimestampTz(value_of(asserted, APPLIED_AT));
		*confirmed = DatumGetTimestampTz(value_of(asserted, CONFIRMED_AT));
	}
	return found;
}

bool
mr_asserted_confirm(MrAsserted *asserted, TimestampTz time)
{
	int natts = RelationGetDescr(asserted->relation)->natts;
	Datum *values = palloc0(sizeof(Datum) * natts);
	bool *nulls = palloc0(natts);
	bool *replaced = palloc0(natts);
	ItemPointerData place = asserted->row->t_self;
	HeapTuple after;
	bool confirmed;

	mr_leaf_release(asserted->leaf);
	values[asserted->attnums[CONFIRMED_AT] - 1] = TimestampTzGetDatum(time);
	replaced[asserted->attnums[CONFIRMED_AT] - 1] = true;
	after = heap_modify_tuple(asserted->row, RelationGetDescr(asserted->relation), values, nulls,
							  replaced);
	ExecStoreHeapTuple(after, asserted->changed, false);
	confirmed = mr_indexes_update(&asserted->indexes, &place, asserted->changed,
								  GetCurrentCommandId(true), asserted->snapshot, false,
								  UNIQUE_CHECK_YES) == TM_Ok;
	ExecClearTuple(asserted->changed);
	heap_freetuple(after);
	pfree(values);
	pfree(nulls);
	pfree(replaced);
	return confirmed;
}
