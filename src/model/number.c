/*
 * number.c
 *	  The numbers that items have in histories.
 *
 * An item gets its number when it comes for the first time, and keeps it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "core/leaf.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "model/named.h"
#include "model/online.h"
#include "model/store.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

struct MrNumbers
{
	Oid type;
	Oid table;
	Oid index;
	MrStatement *find;
	MrStatement *insert;
	MrStatement *find_id;
	named_hash *named; /* of this batch */
};

MrNumbers *
mr_numbers_create(int32 model_id, const char *prefix, Oid type)
{
	MrNumbers *numbers = palloc0(sizeof(MrNumbers));
	char *name = psprintf("%sitem", prefix);
	char *table = psprintf("millrace_state.model_%d_%s", model_id, name);
	Oid ids = get_array_type(type);
	Oid number = INT4OID;

	numbers->type = type;
	numbers->table = mr_store_table(model_id, name);
	numbers->index = mr_store_table(model_id, psprintf("%s_item", name));
	/* Not a join, which could begin with all items: all have one version. */
	numbers->find = mr_statement_create(
		psprintf("SELECT u.n, (SELECT i.number FROM %s AS i WHERE i.version = 1 AND i.item = u.id) "
				 "FROM unnest($1) WITH ORDINALITY AS u (id, n)",
				 table),
		1, &ids);
	numbers->insert = mr_statement_create(
		psprintf("INSERT INTO %s (item) SELECT u FROM unnest($1) AS u ON CONFLICT DO NOTHING",
				 table),
		1, &ids);
	numbers->find_id = mr_statement_create(
		psprintf("SELECT i.item FROM %s AS i WHERE i.version = 1 AND i.number = $1", table), 1,
		&number);
	return numbers;
}

/* Looks for items leaf by leaf; returns how many are not found like this, and which. */
static int
walk(const MrNumbers *numbers, const MrIds *items, uint32 *found, uint32 *missing)
{
	Relation table = table_open(numbers->table, AccessShareLock);
	Relation index = index_open(numbers->index, AccessShareLock);
	MrLeaf *leaf = mr_leaf_create(table, index);
	IndexFetchTableData *fetch = table_index_fetch_begin(table);
	TupleTableSlot *row = table_slot_create(table, NULL);
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	int nmissing = 0;

	for (uint32 i = 0; i < mr_ids_count(items); i++)
	{
		Datum key[] = {Int32GetDatum(1), mr_ids_value(items, i)};
		bool nulls[] = {false, false};
		bool again = false;
		bool isnull;
		ItemPointerData place;

		if (mr_leaf_find(leaf, key, nulls, &place) == MR_LEAF_ONE &&
			table_index_fetch_tuple(fetch, &place, snapshot, row, &again, NULL))
			found[i] = (uint32) DatumGetInt32(slot_getattr(row, MR_ITEM_NUMBER, &isnull));
		else
			missing[nmissing++] = i;
	}
	mr_leaf_release(leaf);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(row);
	table_index_fetch_end(fetch);
	index_close(index, NoLock);
	table_close(table, NoLock);
	return nmissing;
}

/* Those of items that are missing, as an array. */
static Datum
id_array(const MrNumbers *numbers, const MrIds *items, const uint32 *missing, int nmissing)
{
	MrArray *array = mr_array_create(numbers->type, nmissing);

	for (int i = 0; i < nmissing; i++)
		mr_array_add(array, mr_ids_value(items, missing[i]), false);
	return mr_array_datum(array);
}

/* Looks for items that are missing yet; returns how many are left. */
static int
find(const MrNumbers *numbers, const MrIds *items, uint32 *found, uint32 *missing, int nmissing)
{
	Datum ids;
	uint64 n;
	int left = 0;

	if (nmissing == 0)
		return 0;
	ids = id_array(numbers, items, missing, nmissing);
	n = mr_statement_run(numbers->find, &ids, NULL);
	for (uint64 r = 0; r < n; r++)
	{
		bool isnull;
		int64 place = DatumGetInt64(mr_sql_value(r, 1, &isnull));
		Datum number = mr_sql_value(r, 2, &isnull);

		if (!isnull)
			found[missing[place - 1]] = (uint32) DatumGetInt32(number);
	}
	SPI_freetuptable(SPI_tuptable);
	for (int i = 0; i < nmissing; i++)
		if (found[missing[i]] == 0)
			missing[left++] = missing[i];
	return left;
}

uint32 *
mr_numbers_find(MrNumbers *numbers, const MrIds *items)
{
	Size room = Max(mr_ids_count(items), 1);
	uint32 *found = mr_zeros(room, sizeof(uint32));
	uint32 *missing = mr_zeros(room, sizeof(uint32));
	int nmissing = walk(numbers, items, found, missing);

	nmissing = find(numbers, items, found, missing, nmissing);
	/* One that somebody has just put there is waited for, and found then. */
	if (nmissing > 0)
	{
		Datum ids = id_array(numbers, items, missing, nmissing);

		(void) mr_statement_run(numbers->insert, &ids, NULL);
		nmissing = find(numbers, items, found, missing, nmissing);
	}
	if (nmissing > 0)
		elog(ERROR, "an item has no number");
	numbers->named = named_create(CurrentMemoryContext, 128, NULL);
	return found;
}

Datum
mr_numbers_id(void *context, uint32 number)
{
	MrNumbers *numbers = context;
	Datum argument = Int32GetDatum((int32) number);
	bool found;
	Named *named = named_insert(numbers->named, number, &found);
	bool isnull;

	if (found)
		return named->id;
	if (mr_statement_run(numbers->find_id, &argument, NULL) != 1)
		elog(ERROR, "item %u is gone", number);
	named->id = datumCopy(mr_sql_value(0, 1, &isnull), get_typbyval(numbers->type),
						  get_typlen(numbers->type));
	SPI_freetuptable(SPI_tuptable);
	return named->id;
}
