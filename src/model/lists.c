/*
 * lists.c
 *	  Copying a version of item-item neighbours into shared memory.
 */
#include "postgres.h"

#include "access/table.h"
#include "core/copies.h"
#include "miscadmin.h"
#include "model/copied.h"
#include "model/lists.h"
#include "model/store.h"
#include "utils/datum.h"
#include "utils/memutils.h"

/* Sizes of a copy, at its beginning. */
typedef struct Shape
{
	uint64 items;
	uint64 neighbours;
	uint64 id_bytes;
	bool by_value; /* of ids */
} Shape;

static void
place_lists(MrLists *lists, char *block, Size *size, const Shape *shape)
{
	lists->start = mr_copied_place(block, size, shape->items + 1, sizeof(uint64));
	lists->entries = mr_copied_place(block, size, shape->neighbours, sizeof(MrListed));
}

/* Finds the way around in a block, or (NULL) how large one is. */
static Size
lay_out(MrCopy *version, char *block, const Shape *shape)
{
	Size size = MAXALIGN(sizeof(Shape));

	version->items = (uint32) shape->items;
	version->places = mr_copied_place(block, &size, shape->items, sizeof(uint32));
	place_lists(&version->targets, block, &size, shape);
	place_lists(&version->sources, block, &size, shape);
	version->id_start = shape->by_value
							? NULL
							: mr_copied_place(block, &size, shape->items, sizeof(uint64));
	version->ids = mr_copied_place(block, &size, shape->id_bytes, 1);
	return size;
}

void
mr_lists_find(MrCopy *found, char *block)
{
	(void) lay_out(found, block, (const Shape *) block);
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

dsm_segment *
mr_lists_copy(int32 model_id, int32 version, uint64 nitems, uint64 neighbours)
{
	Shape shape = {.items = nitems, .neighbours = neighbours};
	dsm_segment *segment;
	MrCopy copy;
	Items items;
	char *block;

	read_items(model_id, version, nitems, &items);
	shape.id_bytes = items.id_bytes;
	shape.by_value = items.by_value;
	segment = mr_copy_create(lay_out(&copy, NULL, &shape));
	if (segment == NULL)
		return NULL;
	block = mr_copy_data(segment);
	memcpy(block, &shape, sizeof(Shape));
	(void) lay_out(&copy, block, &shape);
	memcpy(copy.places, items.places, nitems * sizeof(uint32));
	if (copy.id_start != NULL)
		memcpy(copy.id_start, items.id_start, nitems * sizeof(uint64));
	memcpy(copy.ids, items.ids, items.id_bytes);
	read_lists(model_id, version, "target", "target_pkey", &shape, &copy.targets);
	read_lists(model_id, version, "source", "source_pkey", &shape, &copy.sources);
	return segment;
}
