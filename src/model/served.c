/*
 * served.c
 *	  The version of a model that is served.
 *
 * Lists are read from a copy in shared memory (lists.h), or row by row from the tables while there is none.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "core/catalog.h"
#include "core/copies.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "model/copied.h"
#include "model/ids.h"
#include "model/named.h"
#include "model/online.h"
#include "model/served.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

/* How much of a list is fetched before it is read. */
#define PREFETCH_LINES 6

/* ---- models ----------------------------------------------------------------------------------------------- */

/* Finds how ids of a type are read. */
static void
learn_input(MrIdInput *input, Oid type)
{
	Oid function;

	getTypeInputInfo(type, &function, &input->parameter);
	fmgr_info_cxt(function, &input->function, CacheMemoryContext);
}

/* Reads what a session keeps of a model. */
static void
learn(MrModel *model, HeapTuple row, TupleDesc desc)
{
	MrKept *kept = model->kept;
	bool is_varlena;
	bool isnull;
	Datum value;
	Oid output;
	Oid view;

	model->tables[MR_BY_NUMBER] = mr_lookup_state(model->id, "item", "item_pkey");
	model->tables[MR_BY_ITEM] = mr_lookup_state(model->id, "item", "item_item");
	model->tables[MR_USERS] = mr_lookup_state(model->id, "user", "user_pkey");
	if (model->kind == MR_MODEL_ONLINE)
	{
		model->tables[MR_PAIRS] = mr_lookup_state(model->id, "pair", "pair_item");
		mr_counted_learn(&kept->counting, mr_lookup_named(row, desc, "params", &isnull));
	}
	else
	{
		model->tables[MR_BY_PLACE] = mr_lookup_state(model->id, "item", "item_place");
		model->tables[MR_TARGETS] = mr_lookup_state(model->id, "target", "target_pkey");
		model->tables[MR_SOURCES] = mr_lookup_state(model->id, "source", "source_pkey");
	}
	value = mr_lookup_named(row, desc, "target_id", &isnull);
	view = mr_definition_view("model", model->id);
	kept->target_id = isnull || !OidIsValid(view) || model->kind == MR_MODEL_ONLINE
						  ? 0
						  : DatumGetInt32(value);
	if (kept->target_id != 0)
	{
		kept->weighted = get_attnum(view, "weight") != InvalidAttrNumber;
		model->tables[MR_KEEPING] = mr_lookup_configuration("target", "target_pkey");
		model->tables[MR_CURRENT_USERS] = mr_lookup_state(model->id, "current_user",
														  "current_user_pkey");
		model->tables[MR_CURRENT_ITEMS] = mr_lookup_state(model->id, "current_item",
														  "current_item_pkey");
	}
	kept->placed = 0;
	kept->type = get_atttype(model->tables[MR_BY_NUMBER].table, MR_ITEM_ID);
	kept->collation = mr_ids_collation(kept->type);
	learn_input(&kept->items, kept->type);
	learn_input(&kept->users,
				get_atttype(model->tables[MR_USERS].table,
							model->kind == MR_MODEL_ONLINE ? MR_ONLINE_KEY : MR_USER_ID));
	fmgr_info_cxt(lookup_type_cache(kept->type, TYPECACHE_CMP_PROC)->cmp_proc, &kept->compare,
				  CacheMemoryContext);
	get_typlenbyval(kept->type, &kept->length, &kept->by_value);
	getTypeOutputInfo(kept->type, &output, &is_varlena);
	fmgr_info_cxt(output, &kept->output, CacheMemoryContext);
	(void) mr_lookup_named(row, desc, "catalogue", &isnull);
	kept->has_catalogue = !isnull;
	(void) mr_lookup_named(row, desc, "popular", &isnull);
	kept->has_popular = !isnull;
}

/* Lets go of what is kept of a model that is gone. */
static void
forget(void *kept)
{
	if (((MrKept *) kept)->segment != NULL)
		dsm_detach(((MrKept *) kept)->segment);
	if (((MrKept *) kept)->places != NULL)
		pfree(((MrKept *) kept)->places);
	if (((MrKept *) kept)->ids != NULL)
		MemoryContextDelete(((MrKept *) kept)->ids);
}

const MrModelKeeping mr_neighbours_keeping = {sizeof(MrKept), learn, forget};

/*
 * The copy of a version, or NULL.  What a transaction has used it keeps to its end: a function that the caller's query calls may
 * ask again, and see another version.
 */
static const MrCopy *
find_copy(MrModel *model, int32 version)
{
	TimestampTz transaction = GetCurrentTransactionStartTimestamp();
	MrKept *kept = model->kept;

	if (kept->segment != NULL && (kept->copied != version || !mr_copies_enabled()))
	{
		if (kept->used == transaction)
			return NULL;
		dsm_detach(kept->segment);
		kept->segment = NULL;
		if (!mr_copies_enabled())
			mr_copy_forget(model->relation, 0);
	}
	if (kept->segment == NULL)
	{
		kept->segment = mr_copied_attach(model, version);
		if (kept->segment == NULL)
			return NULL;
		kept->copied = version;
		mr_lists_find(&kept->copy, mr_copy_data(kept->segment));
	}
	kept->used = transaction;
	mr_copy_touch(kept->segment);
	return &kept->copy;
}

void
mr_served_open(MrServed *served, Oid relation)
{
	MrModel *model = mr_model_open(relation, false);

	memset(served, 0, sizeof(MrServed));
	served->model = model;
	served->kept = model->kept;
	served->version = mr_model_served(model);
	if (model->kind != MR_MODEL_ONLINE)
		served->copy = find_copy(model, served->version);
	if (served->copy == NULL)
	{
		served->items = table_open(model->tables[MR_BY_NUMBER].table, AccessShareLock);
		served->by_number = index_open(model->tables[MR_BY_NUMBER].index, AccessShareLock);
		served->slot = table_slot_create(served->items, NULL);
		served->scan = mr_index_beginscan(served->items, served->by_number, GetActiveSnapshot(), 2);
	}
	if (served->model->kind == MR_MODEL_ONLINE)
		served->counted = mr_counted_open(served);
}

void
mr_served_close(MrServed *served)
{
	if (served->copy != NULL)
		return;
	if (served->counted != NULL)
		mr_counted_close(served->counted);
	index_endscan(served->scan);
	ExecDropSingleTupleTableSlot(served->slot);
	index_close(served->by_number, AccessShareLock);
	table_close(served->items, AccessShareLock);
}

/* ---- items ------------------------------------------------------------------------------------------------ */

Datum
mr_served_read_id(MrIdInput *input, char *text)
{
	return InputFunctionCall(&input->function, text, input->parameter, -1);
}

/* The number of an item in a copy: numbers have the order of ids. */
static bool
search_item(const MrKept *kept, const MrCopy *copy, Datum id, uint32 *number)
{
	uint32 low = 0;
	uint32 high = copy->items;

	while (low < high)
	{
		uint32 middle = low + (high - low) / 2;
		int32 order = DatumGetInt32(FunctionCall2Coll((FmgrInfo *) &kept->compare, kept->collation,
													  mr_lists_id(copy, middle), id));

		if (order == 0)
		{
			*number = middle;
			return true;
		}
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return false;
}

bool
mr_served_find_id(MrServed *served, Datum id, uint32 *number)
{
	SysScanDesc rows;
	HeapTuple row;
	bool found;

	if (served->copy != NULL)
		return search_item(served->kept, served->copy, id, number);
	rows = mr_lookup(served->items, served->model->tables[MR_BY_ITEM].index, 1,
					 Int32GetDatum(served->version), MR_ITEM_ID, id);
	row = systable_getnext(rows);
	found = HeapTupleIsValid(row);
	if (found)
		*number =
			DatumGetInt32(mr_lookup_column(row, MR_ITEM_NUMBER, RelationGetDescr(served->items)));
	systable_endscan(rows);
	return found;
}

bool
mr_served_find_item(MrServed *served, char *text, uint32 *number)
{
	return mr_served_find_id(served, mr_served_read_id(&served->kept->items, text), number) &&
		   (served->counted == NULL || served->counted->sizes[*number] > 0);
}

/* Keeps the id of an item of an online model, whose number never becomes another's; no more of them than work_mem has room for. */
static Datum
keep_id(MrKept *kept, uint32 number, Datum id)
{
	MemoryContext previous;
	bool found;

	if (kept->ids == NULL)
		kept->ids = AllocSetContextCreate(CacheMemoryContext, "millrace ids",
										  ALLOCSET_DEFAULT_SIZES);
	else if (MemoryContextMemAllocated(kept->ids, false) > work_mem * (Size) 1024)
	{
		kept->named = NULL;
		MemoryContextReset(kept->ids);
	}
	if (kept->named == NULL)
		kept->named = named_create(kept->ids, 128, NULL);
	previous = MemoryContextSwitchTo(kept->ids);
	id = datumCopy(id, kept->by_value, kept->length);
	MemoryContextSwitchTo(previous);
	named_insert(kept->named, number, &found)->id = id;
	return id;
}

Datum
mr_served_id(MrServed *served, uint32 number)
{
	MrKept *kept = served->kept;
	ScanKeyData keys[2];
	Named *named;
	bool isnull;
	Datum id;

	if (served->copy != NULL)
		return mr_lists_id(served->copy, number);
	if (kept->named != NULL && (named = named_lookup(kept->named, number)) != NULL)
		return named->id;
	/* the columns of the key have the same numbers in table and index */
	mr_lookup_key(&keys[0], served->items, 1, Int32GetDatum(served->version));
	mr_lookup_key(&keys[1], served->items, MR_ITEM_NUMBER, Int32GetDatum((int32) number));
	index_rescan(served->scan, keys, 2, NULL, 0);
	if (!index_getnext_slot(served->scan, ForwardScanDirection, served->slot))
		elog(ERROR, "model %d, version %d has no item %u", served->model->id, served->version,
			 number);
	id = slot_getattr(served->slot, MR_ITEM_ID, &isnull);
	return served->counted == NULL ? id : keep_id(kept, number, id);
}

Datum
mr_served_id_copy(MrServed *served, uint32 number)
{
	return datumCopy(mr_served_id(served, number), served->kept->by_value, served->kept->length);
}

Datum
mr_served_id_text(MrServed *served, Datum id)
{
	return CStringGetTextDatum(OutputFunctionCall(&served->kept->output, id));
}

void
mr_reading_begin(MrReading *reading, const MrServed *served, bool targets, uint32 number)
{
	MrIndexed indexed = served->model->tables[targets ? MR_TARGETS : MR_SOURCES];

	reading->table = NULL;
	if (served->counted != NULL)
	{
		reading->at_end = false;
		reading->entries = mr_counted_list(served->counted, number, NULL, &reading->length);
		return;
	}
	if (served->copy != NULL)
	{
		const MrLists *lists = targets ? &served->copy->targets : &served->copy->sources;

		reading->at_end = false;
		reading->entries = lists->entries + lists->start[number];
		reading->length = (int) (lists->start[number + 1] - lists->start[number]);
		return;
	}
	reading->table = table_open(indexed.table, AccessShareLock);
	reading->rows = mr_lookup(reading->table, indexed.index, 1, Int32GetDatum(served->version),
							  MR_LIST_ITEM, Int32GetDatum((int32) number));
}

bool
mr_reading_next(MrReading *reading)
{
	HeapTuple row;
	MrBlock block;

	if (reading->table == NULL)
	{
		bool has_block = !reading->at_end;

		reading->at_end = true;
		return has_block;
	}
	CHECK_FOR_INTERRUPTS();
	row = systable_getnext(reading->rows);
	if (!HeapTupleIsValid(row))
		return false;
	block = mr_lookup_block(row, RelationGetDescr(reading->table));
	if (block.length > MR_NEIGHBOURS_BLOCK)
		elog(ERROR, "a block has %d entries", block.length);
	for (int i = 0; i < block.length; i++)
	{
		reading->read[i].number = block.numbers[i];
		reading->read[i].score = ((const float *) block.values)[i];
	}
	reading->entries = reading->read;
	reading->length = block.length;
	return true;
}

void
mr_reading_end(MrReading *reading)
{
	if (reading->table == NULL)
		return;
	systable_endscan(reading->rows);
	table_close(reading->table, AccessShareLock);
}

const MrListed *
mr_served_sources(const MrServed *served, uint32 number, uint64 *length)
{
	MrListed *list = NULL;
	MrReading reading;
	uint64 room = 0;

	*length = 0;
	if (served->copy != NULL)
	{
		const MrLists *lists = &served->copy->sources;
		const MrListed *entries = lists->entries + lists->start[number];

		*length = lists->start[number + 1] - lists->start[number];
		/* Lists are read together, and begin somewhere. */
		for (int line = 0; line < PREFETCH_LINES; line++)
			__builtin_prefetch((const char *) entries + line * 64);
		return entries;
	}
	mr_reading_begin(&reading, served, false, number);
	while (mr_reading_next(&reading))
	{
		if (*length + reading.length > room)
		{
			room = Max(room * 2, MR_NEIGHBOURS_BLOCK);
			list = list == NULL ? palloc(room * sizeof(MrListed))
								: repalloc_huge(list, room * sizeof(MrListed));
		}
		memcpy(list + *length, reading.entries, reading.length * sizeof(MrListed));
		*length += reading.length;
	}
	mr_reading_end(&reading);
	return list;
}
