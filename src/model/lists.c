/*
 * lists.c
 *	  Copying a version of item-item neighbours into shared memory.
 *
 * A version never changes once its transaction has committed, and its number is not used again: so a copy needs no invalidation.
 * Which version is served is read from the tables at each call.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "common/hashfn.h"
#include "core/copies.h"
#include "core/millrace.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/lists.h"
#include "model/store.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(millrace_model_copies);
PG_FUNCTION_INFO_V1(millrace_forget_copies);

/* Sizes of a copy, at its beginning. */
typedef struct Shape
{
	uint64 items;
	uint64 neighbours;
	uint64 id_bytes;
	bool by_value; /* of ids */
} Shape;

/* What the registry tells of a version. */
typedef struct Registered
{
	Shape shape; /* without ids */
	uint64 digest;
	bool is_own; /* made by the current transaction */
} Registered;

/* The next array of a copy; counts only when there is no block. */
static void *
place(char *block, Size *size, uint64 count, Size width)
{
	Size at = *size;

	*size = add_size(at, MAXALIGN(mul_size(count, width)));
	return block == NULL ? NULL : block + at;
}

static void
place_lists(MrLists *lists, char *block, Size *size, const Shape *shape)
{
	lists->start = place(block, size, shape->items + 1, sizeof(uint64));
	lists->entries = place(block, size, shape->neighbours, sizeof(MrListed));
}

/* Finds the way around in a block, or (NULL) how large one is. */
static Size
lay_out(MrCopy *version, char *block, const Shape *shape)
{
	Size size = MAXALIGN(sizeof(Shape));

	version->items = (uint32) shape->items;
	version->places = place(block, &size, shape->items, sizeof(uint32));
	place_lists(&version->targets, block, &size, shape);
	place_lists(&version->sources, block, &size, shape);
	version->id_start = shape->by_value ? NULL : place(block, &size, shape->items, sizeof(uint64));
	version->ids = place(block, &size, shape->id_bytes, 1);
	return size;
}

/* Reads the registry's row of a version; false when there is none. */
static bool
read_registered(int32 model_id, int32 version, Registered *registered)
{
	TupleDesc desc;
	HeapTuple row = mr_lookup_row(mr_lookup_configuration("model_version", "model_version_pkey"), 1,
								  Int32GetDatum(model_id), 2, Int32GetDatum(version), &desc);
	text *hash;
	bool isnull;

	if (row == NULL)
		return false;
	hash = DatumGetTextPP(mr_lookup_named(row, desc, "input_hash", &isnull));
	registered->shape.items = DatumGetInt32(mr_lookup_named(row, desc, "items", &isnull));
	registered->shape.neighbours = DatumGetInt64(mr_lookup_named(row, desc, "neighbours", &isnull));
	registered->digest = DatumGetUInt64(hash_any_extended(
		(unsigned char *) VARDATA_ANY(hash), VARSIZE_ANY_EXHDR(hash),
		(uint64) DatumGetTimestampTz(mr_lookup_named(row, desc, "trained_at", &isnull))));
	registered->is_own = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(row->t_data));
	return true;
}

dsm_segment *
mr_version_attach(Oid relation, int32 model_id, int32 version, MrCopy *found)
{
	MrCopyKey key = {.database = MyDatabaseId, .relation = relation, .version = version};
	Registered registered;
	dsm_segment *segment;
	char *block;

	if (!read_registered(model_id, version, &registered) || registered.is_own)
		return NULL;
	key.digest = registered.digest;
	segment = mr_copy_attach(&key, "mr_version_copy_main");
	if (segment == NULL)
		return NULL;
	block = mr_copy_data(segment);
	(void) lay_out(found, block, (Shape *) block);
	return segment;
}

/* ---- making a copy ---------------------------------------------------------------------------------------- */

/* Ids and places of the items, in the memory of this process. */
typedef struct Items
{
	uint32 *places;
	uint64 *id_start;
	char *ids;
	Size id_bytes;
	Size room;
	bool by_value;
} Items;

/* Appends an id, aligned for any type. */
static void
add_id(Items *items, uint32 number, Datum id, int16 length)
{
	Size size = items->by_value ? sizeof(Datum) : datumGetSize(id, false, length);

	while (items->id_bytes + MAXALIGN(size) > items->room)
	{
		items->room *= 2;
		items->ids = repalloc_huge(items->ids, items->room);
	}
	items->id_start[number] = items->id_bytes;
	memcpy(items->ids + items->id_bytes,
		   items->by_value ? (const void *) &id : (const void *) DatumGetPointer(id), size);
	items->id_bytes += MAXALIGN(size);
}

/* Reads the items; there must be as many as the registry says. */
static void
read_items(int32 model_id, int32 version, uint64 count, Items *items)
{
	MrIndexed indexed = mr_lookup_state(model_id, "item", "item_pkey");
	Relation relation = table_open(indexed.table, AccessShareLock);
	TupleDesc desc = RelationGetDescr(relation);
	Form_pg_attribute type = TupleDescAttr(desc, MR_ITEM_ID - 1);
	SysScanDesc rows = mr_lookup(relation, indexed.index, 1, Int32GetDatum(version), 0, (Datum) 0);
	HeapTuple row;
	uint64 number = 0;

	items->places = MemoryContextAllocHuge(CurrentMemoryContext, Max(count, 1) * sizeof(uint32));
	items->id_start = MemoryContextAllocHuge(CurrentMemoryContext, Max(count, 1) * sizeof(uint64));
	items->by_value = type->attbyval;
	items->room = 1024;
	items->ids = palloc(items->room);
	items->id_bytes = 0;
	while (HeapTupleIsValid(row = systable_getnext(rows)))
	{
		uint32 place = DatumGetInt32(mr_lookup_column(row, MR_ITEM_PLACE, desc));
		Datum id = mr_lookup_column(row, MR_ITEM_ID, desc);

		CHECK_FOR_INTERRUPTS();
		if (number >= count || place >= count ||
			DatumGetInt32(mr_lookup_column(row, MR_ITEM_NUMBER, desc)) != (int32) number)
			elog(ERROR, "the items of model %d, version %d are not 0 to " UINT64_FORMAT, model_id,
				 version, count - 1);
		items->places[place] = (uint32) number;
		if (type->attlen == -1)
			id = PointerGetDatum(PG_DETOAST_DATUM_PACKED(id));
		add_id(items, (uint32) number++, id, type->attlen);
	}
	systable_endscan(rows);
	table_close(relation, AccessShareLock);
	if (number != count)
		elog(ERROR, "model %d, version %d has " UINT64_FORMAT " items, not " UINT64_FORMAT,
			 model_id, version, number, count);
}

/* Copies the lists of one direction. */
static void
read_lists(int32 model_id, int32 version, const char *table, const char *index, const Shape *shape,
		   MrLists *lists)
{
	MrIndexed indexed = mr_lookup_state(model_id, table, index);
	Relation relation = table_open(indexed.table, AccessShareLock);
	TupleDesc desc = RelationGetDescr(relation);
	SysScanDesc rows = mr_lookup(relation, indexed.index, 1, Int32GetDatum(version), 0, (Datum) 0);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace block",
												  ALLOCSET_DEFAULT_SIZES);
	HeapTuple row;
	uint64 item = 0;
	uint64 filled = 0;

	lists->start[0] = 0;
	while (HeapTupleIsValid(row = systable_getnext(rows)))
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		uint64 next = (uint32) DatumGetInt32(mr_lookup_column(row, MR_LIST_ITEM, desc));
		MrBlock block = mr_lookup_block(row, desc);

		CHECK_FOR_INTERRUPTS();
		if (next < item || next >= shape->items || filled + block.length > shape->neighbours)
			elog(ERROR, "table %s of model %d, version %d is not as it was written", table,
				 model_id, version);
		while (item < next)
			lists->start[++item] = filled;
		for (int i = 0; i < block.length; i++)
		{
			lists->entries[filled].number = block.numbers[i];
			lists->entries[filled++].score = ((const float *) block.values)[i];
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	systable_endscan(rows);
	table_close(relation, AccessShareLock);
	MemoryContextDelete(context);
	while (item < shape->items)
		lists->start[++item] = filled;
	if (filled != shape->neighbours)
		elog(ERROR, "table %s of model %d, version %d has " UINT64_FORMAT " neighbours", table,
			 model_id, version, filled);
}

/* The process that makes a copy. */
void
mr_version_copy_main(Datum slot)
{
	MrCopyKey key = mr_copy_loader_start(slot);
	Registered registered;
	TupleDesc desc;
	HeapTuple model = NULL;
	dsm_segment *segment;
	int32 model_id;
	MrCopy copy;
	Items items;
	char *block;

	if (mr_extension_exists())
		model = mr_lookup_row(mr_lookup_configuration("model", "model_relation_key"), 2,
							  ObjectIdGetDatum(key.relation), 0, (Datum) 0, &desc);
	if (model == NULL)
		proc_exit(0);
	model_id = DatumGetInt32(mr_lookup_column(model, 1, desc));
	if (!read_registered(model_id, key.version, &registered) || registered.digest != key.digest)
		proc_exit(0);
	read_items(model_id, key.version, registered.shape.items, &items);
	registered.shape.id_bytes = items.id_bytes;
	registered.shape.by_value = items.by_value;
	segment = mr_copy_create(lay_out(&copy, NULL, &registered.shape));
	if (segment == NULL)
		proc_exit(0);
	block = mr_copy_data(segment);
	memcpy(block, &registered.shape, sizeof(Shape));
	(void) lay_out(&copy, block, &registered.shape);
	memcpy(copy.places, items.places, registered.shape.items * sizeof(uint32));
	if (copy.id_start != NULL)
		memcpy(copy.id_start, items.id_start, registered.shape.items * sizeof(uint64));
	memcpy(copy.ids, items.ids, items.id_bytes);
	read_lists(model_id, key.version, "target", "target_pkey", &registered.shape, &copy.targets);
	read_lists(model_id, key.version, "source", "source_pkey", &registered.shape, &copy.sources);
	mr_copy_publish(segment);
	PopActiveSnapshot();
	CommitTransactionCommand();
	proc_exit(0);
}

/* ---- for SQL ---------------------------------------------------------------------------------------------- */

/* The copies in shared memory: model, version, whether it is there, bytes. */
Datum
millrace_model_copies(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	MrCopyInfo *copies;
	int n = mr_copy_list(&copies);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		Datum values[4] = {
			ObjectIdGetDatum(copies[i].key.relation), Int32GetDatum(copies[i].key.version),
			BoolGetDatum(copies[i].state == MR_COPY_READY), Int64GetDatum(copies[i].size)};
		bool nulls[4] = {false};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Lets go of the copies of a model, of one version or (0) of all. */
Datum
millrace_forget_copies(PG_FUNCTION_ARGS)
{
	mr_copy_forget(PG_GETARG_OID(0), PG_GETARG_INT32(1));
	PG_RETURN_VOID();
}
