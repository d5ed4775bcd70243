/*
 * trees_split.c
 *	  Which rows of trees train, and which judge.
 *
 * Rows that judge have the lowest hashes of their entities, or are the latest ones, those that decide when to stop have the highest
 * hashes of the rest: an entity is never on two sides.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "core/statement.h"
#include "model/model.h"
#include "model/trees_split.h"
#include "utils/array.h"
#include "utils/memutils.h"

/* How many entities are stored in a row. */
#define ENTITIES_PER_BLOCK 10000

MrTreesRows
mr_trees_choose(const MrTreesInput *input, const uint8 *flags, uint8 mask, bool is_set)
{
	MrTreesRows chosen = {.input = input};

	chosen.rows = palloc_extended(Max(input->count, 1) * sizeof(uint64), MCXT_ALLOC_HUGE);
	for (uint64 row = 0; row < input->count; row++)
		if (((flags[row] & mask) != 0) == is_set)
			chosen.rows[chosen.n++] = row;
	return chosen;
}

static int
compare_numbers(const void *a, const void *b)
{
	int64 x = *(const int64 *) a;
	int64 y = *(const int64 *) b;

	return x < y ? -1 : x > y;
}

int64
mr_trees_chance(const MrTreesRows *rows, double share)
{
	int64 *chances = palloc_extended(rows->n * sizeof(int64), MCXT_ALLOC_HUGE);
	uint64 wanted = Max((uint64) floor(share * rows->n + 0.5), 1);
	int64 last;

	for (uint64 i = 0; i < rows->n; i++)
		chances[i] = rows->input->chances[rows->rows[i]];
	qsort(chances, rows->n, sizeof(int64), compare_numbers);
	last = chances[Min(wanted, rows->n) - 1];
	if (last == chances[rows->n - 1])
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("there are too few entities to be split")));
	pfree(chances);
	return last;
}

MrEntities
mr_entities_find(const MrTreesRows *rows)
{
	MrEntities found = {
		.hashes = palloc_extended(Max(rows->n, 1) * sizeof(int64), MCXT_ALLOC_HUGE)};
	uint64 distinct = 0;

	for (; found.n < rows->n; found.n++)
		found.hashes[found.n] = rows->input->entities[rows->rows[found.n]];
	qsort(found.hashes, found.n, sizeof(int64), compare_numbers);
	for (uint64 i = 0; i < found.n; i++)
		if (i == 0 || found.hashes[i] != found.hashes[distinct - 1])
			found.hashes[distinct++] = found.hashes[i];
	found.n = distinct;
	return found;
}

static bool
has_entity(const MrEntities *entities, int64 hash)
{
	return bsearch(&hash, entities->hashes, entities->n, sizeof(int64), compare_numbers) != NULL;
}

void
mr_entities_mark(const MrTreesInput *input, uint8 *flags, const MrEntities *entities, uint8 bit)
{
	for (uint64 row = 0; row < input->count; row++)
		if (has_entity(entities, input->entities[row]))
			flags[row] |= bit;
}

MrEntities
mr_entities_read(const char *sql)
{
	MemoryContext context = CurrentMemoryContext;
	MrEntities found = {0};
	uint64 arrays;

	SPI_connect();
	arrays = mr_sql("%s", sql);
	for (int pass = 0; pass < 2; pass++)
	{
		found.n = 0;
		for (uint64 i = 0; i < arrays; i++)
		{
			bool isnull;
			Datum value = mr_sql_value(i, 1, &isnull);
			ArrayType *array = isnull ? construct_empty_array(INT8OID) : DatumGetArrayTypeP(value);
			int n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));

			if (pass > 0)
				memcpy(found.hashes + found.n, ARR_DATA_PTR(array), n * sizeof(int64));
			found.n += n;
			if ((Pointer) array != DatumGetPointer(value))
				pfree(array);
		}
		if (pass == 0)
			found.hashes = MemoryContextAllocHuge(context, Max(found.n, 1) * sizeof(int64));
	}
	SPI_finish();
	return found;
}

MrEntities
mr_entities_held(int32 model_id)
{
	return mr_entities_read(psprintf("SELECT array_agg(entity ORDER BY entity)"
									 " FROM millrace_state.model_%d_test",
									 model_id));
}

void
mr_entities_write(const MrEntities *entities, const char *sql)
{
	SPI_connect();
	for (uint64 first = 0; first < entities->n; first += ENTITIES_PER_BLOCK)
	{
		MrArray *block = mr_array_create(INT8OID, ENTITIES_PER_BLOCK);
		Oid types[] = {INT8ARRAYOID, INT4OID};
		Datum values[2];

		for (uint64 i = first; i < Min(first + ENTITIES_PER_BLOCK, entities->n); i++)
			mr_array_add(block, Int64GetDatum(entities->hashes[i]), false);
		values[0] = mr_array_datum(block);
		values[1] = Int32GetDatum((int32) (first / ENTITIES_PER_BLOCK));
		(void) mr_sql_with(sql, 2, types, values, NULL);
	}
	SPI_finish();
}

uint8 *
mr_trees_flags(const MrTreesInput *input, const MrEntities *held)
{
	uint8 *flags = mr_zeros(input->count, sizeof(uint8));

	mr_entities_mark(input, flags, held, MR_ROW_IS_HELD);
	return flags;
}

void
mr_trees_mark_late(const MrTreesInput *input, uint8 *flags, TimestampTz since)
{
	MrTreesRows all = mr_trees_choose(input, flags, MR_ROW_IS_HELD, false);
	MrTreesRows early = {.input = input, .rows = mr_zeros(all.n, sizeof(uint64))};
	MrEntities entities;

	for (uint64 i = 0; i < all.n; i++)
		if (input->times[all.rows[i]] < since)
			early.rows[early.n++] = all.rows[i];
		else
			flags[all.rows[i]] |= MR_ROW_JUDGES;
	entities = mr_entities_find(&early);
	for (uint64 i = 0; i < all.n; i++)
		if (flags[all.rows[i]] == MR_ROW_JUDGES &&
			has_entity(&entities, input->entities[all.rows[i]]))
			flags[all.rows[i]] = MR_ROW_IS_LATE;
}

TimestampTz
mr_trees_time(const MrTreesRows *rows, double share)
{
	int64 *times = mr_zeros(rows->n, sizeof(int64));
	uint64 late = Max((uint64) floor(share * rows->n + 0.5), 1);
	TimestampTz found;

	for (uint64 i = 0; i < rows->n; i++)
		times[i] = rows->input->times[rows->rows[i]];
	qsort(times, rows->n, sizeof(int64), compare_numbers);
	found = rows->n == 0 ? DT_NOEND : times[rows->n - Min(late, rows->n)];
	pfree(times);
	return found;
}
