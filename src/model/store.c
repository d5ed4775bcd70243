/*
 * store.c
 *	  Writing a version of item-item neighbours.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "core/compat.h"
#include "core/writer.h"
#include "miscadmin.h"
#include "model/store.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* Rows that are written at once. */
#define CHUNK 1000

/* A table that is being written. */
typedef struct Writing
{
	MrTable *table;
	MrRows *rows;
	MemoryContext context; /* of the values of a chunk */
	int32 version;
} Writing;

Oid
mr_store_table(int32 model_id, const char *name)
{
	char relation[NAMEDATALEN];
	Oid relid;

	snprintf(relation, sizeof(relation), "model_%d_%s", model_id, name);
	relid = get_relname_relid(relation, get_namespace_oid("millrace_state", false));
	if (!OidIsValid(relid))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("table millrace_state.%s does not exist", relation)));
	return relid;
}

/* Begins to write all columns of a table. */
static void
writing_begin(Writing *writing, int32 model_id, const char *name, int32 version, int ncolumns,
			  int nkeys)
{
	AttrNumber attnums[8];

	for (int i = 0; i < ncolumns; i++)
		attnums[i] = i + 1;
	writing->table = mr_table_create(mr_store_table(model_id, name), GetUserId(), ncolumns, attnums,
									 nkeys);
	writing->rows = mr_rows_create(writing->table, CHUNK);
	writing->rows->nrows = 0;
	writing->version = version;
	writing->context = AllocSetContextCreate(CurrentMemoryContext, "millrace rows",
											 ALLOCSET_DEFAULT_SIZES);
}

/* Writes the chunk. */
static void
writing_flush(Writing *writing)
{
	CHECK_FOR_INTERRUPTS();
	mr_table_append(writing->table, writing->rows);
	writing->rows->nrows = 0;
	MemoryContextReset(writing->context);
}

/* The next row, with its version; the last column is NULL until it is set. */
static Datum **
writing_row(Writing *writing, int *row)
{
	if (writing->rows->nrows == CHUNK)
		writing_flush(writing);
	*row = writing->rows->nrows++;
	writing->rows->values[0][*row] = Int32GetDatum(writing->version);
	return writing->rows->values;
}

/* An array without NULLs of a type of fixed width. */
static Datum
make_array(MemoryContext context, Oid type, int width, const void *values, int n)
{
	Size size = ARR_OVERHEAD_NONULLS(1) + (Size) n * width;
	ArrayType *array = MemoryContextAllocZero(context, size);

	SET_VARSIZE(array, size);
	array->ndim = 1;
	array->elemtype = type;
	ARR_DIMS(array)[0] = n;
	ARR_LBOUND(array)[0] = 1;
	memcpy(ARR_DATA_PTR(array), values, (Size) n * width);
	return PointerGetDatum(array);
}

static void
write_items(int32 model_id, int32 version, const MrInput *input, const MrKnn *knn)
{
	uint32 *labels = MemoryContextAllocHuge(CurrentMemoryContext,
											Max(input->nitems, 1) * sizeof(uint32));
	Writing writing;
	int row;

	for (uint32 i = 0; i < input->nitems; i++)
		labels[knn->numbers[i]] = i;
	writing_begin(&writing, model_id, "item", version, 5, 2);
	for (uint32 i = 0; i < input->nitems; i++)
	{
		Datum **values = writing_row(&writing, &row);

		values[1][row] = Int32GetDatum(i);
		values[2][row] = mr_ids_value(input->items, i);
		values[3][row] = Int32GetDatum(input->item_users[i]);
		values[4][row] = Int32GetDatum(labels[i]);
	}
	writing_flush(&writing);
	pfree(labels);
}

static void
write_users(int32 model_id, int32 version, const MrInput *input)
{
	uint32 most = input->weighted ? MR_WEIGHTS_BLOCK : MR_ITEMS_BLOCK;
	Writing writing;
	int row;

	writing_begin(&writing, model_id, "user", version, 5, 3);
	for (uint32 user = 0; user < input->nusers; user++)
	{
		const uint32 *items = mr_input_column(input, input->user_items, user);
		const double *weights = mr_input_column(input, input->weights, user);
		uint32 length = mr_input_length(input, user);
		uint32 first = 0;

		for (int32 block = 0; first < length; block++)
		{
			Datum **values = writing_row(&writing, &row);
			uint32 n = Min(length - first, most);

			values[1][row] = mr_ids_value(input->users, user);
			values[2][row] = Int32GetDatum(block);
			values[3][row] = make_array(writing.context, INT4OID, 4, items + first, n);
			writing.rows->nulls[4][row] = !input->weighted;
			if (input->weighted)
				values[4][row] = make_array(writing.context, FLOAT8OID, 8, weights + first, n);
			first += n;
		}
	}
	writing_flush(&writing);
}

/* Writes the list of one item. */
static void
write_list(Writing *writing, uint32 item, const int32 *neighbours, const float *scores,
		   uint32 length)
{
	int row;

	for (int32 block = 0; length > 0; block++)
	{
		Datum **values = writing_row(writing, &row);
		uint32 n = Min(length, MR_NEIGHBOURS_BLOCK);

		values[1][row] = Int32GetDatum(item);
		values[2][row] = Int32GetDatum(block);
		values[3][row] = make_array(writing->context, INT4OID, 4, neighbours, n);
		values[4][row] = make_array(writing->context, FLOAT4OID, 4, scores, n);
		neighbours += n;
		scores += n;
		length -= n;
	}
}

static void
write_targets(int32 model_id, int32 version, const MrKnn *knn)
{
	Writing writing;

	writing_begin(&writing, model_id, "target", version, 5, 3);
	for (uint32 i = 0; i < knn->shape.items; i++)
	{
		const float *scores;
		const int32 *neighbours = mr_knn_list(knn, i, &scores);

		write_list(&writing, i, neighbours, scores, knn->found[i]);
	}
	writing_flush(&writing);
}

/* Where the list of each source begins when all are turned round, and one more. */
static Size *
find_sources(const MrKnn *knn)
{
	uint32 items = knn->shape.items;
	Size *start = mr_zeros((Size) items + 1, sizeof(Size));

	for (uint32 i = 0; i < items; i++)
	{
		const float *scores;
		const int32 *neighbours = mr_knn_list(knn, i, &scores);

		CHECK_FOR_INTERRUPTS();
		for (uint32 n = 0; n < knn->found[i]; n++)
			start[neighbours[n] + 1]++;
	}
	for (uint32 i = 0; i < items; i++)
		start[i + 1] += start[i];
	return start;
}

/* The memory that is left beside the block of neighbours: an eighth at least. */
static Size
memory_beside(const MrKnn *knn)
{
	Size left = mr_memory_left();
	Size block = knn->list_start == NULL ? mr_knn_size(&knn->shape) : 0;

	return left - Min(block, left / 8 * 7);
}

/* The lists of some sources. */
typedef struct Sources
{
	Size *start; /* by source, of all of them */
	uint32 first;
	uint32 end; /* the one after the last */
	int32 *targets;
	float *scores;
} Sources;

/*
 * Turns the lists round for the next sources, as many as maintenance_work_mem allows, one at least: targets are visited in
 * ascending order, so that they are in each list.  False: there are no more.
 */
static bool
next_sources(Sources *sources, const MrKnn *knn)
{
	Size most = memory_beside(knn) / (sizeof(int32) + sizeof(float));
	uint32 items = knn->shape.items;
	uint32 first = sources->first = sources->end;
	uint32 end = first + 1;
	Size total;
	Size *next;

	if (sources->targets != NULL)
	{
		pfree(sources->targets);
		pfree(sources->scores);
	}
	if (first >= items)
		return false;
	while (end < items && sources->start[end + 1] - sources->start[first] <= most)
		end++;
	sources->end = end;
	total = sources->start[end] - sources->start[first];
	sources->targets = mr_zeros(total, sizeof(int32));
	sources->scores = mr_zeros(total, sizeof(float));
	next = mr_zeros(end - first, sizeof(Size));
	for (uint32 source = first; source < end; source++)
		next[source - first] = sources->start[source] - sources->start[first];
	for (uint32 i = 0; i < items; i++)
	{
		const float *scores;
		const int32 *neighbours = mr_knn_list(knn, i, &scores);

		CHECK_FOR_INTERRUPTS();
		for (uint32 n = 0; n < knn->found[i]; n++)
		{
			uint32 source = neighbours[n];

			if (source >= first && source < end)
			{
				Size at = next[source - first]++;

				sources->targets[at] = i;
				sources->scores[at] = scores[n];
			}
		}
	}
	pfree(next);
	return true;
}

void
mr_judged_columns(MrJudged *judged, uint64 neighbours, Size memory)
{
	uint64 most = memory / (sizeof(int32) + sizeof(float));

	judged->targets = mr_column_create(sizeof(int32), neighbours, most);
	judged->scores = mr_column_create(sizeof(float), neighbours, most);
}

void
mr_judged_knn(MrJudged *judged, MrInput *input, const MrKnn *knn)
{
	Sources sources = {.start = find_sources(knn)};

	judged->input = input;
	judged->start = sources.start;
	mr_judged_columns(judged, sources.start[knn->shape.items], memory_beside(knn) / 2);
	while (next_sources(&sources, knn))
	{
		Size total = sources.start[sources.end] - sources.start[sources.first];

		mr_column_append(judged->targets, sources.targets, total);
		mr_column_append(judged->scores, sources.scores, total);
	}
}

/* Writes the lists by source. */
static void
write_sources(int32 model_id, int32 version, const MrKnn *knn)
{
	Sources sources = {.start = find_sources(knn)};
	Writing writing;

	writing_begin(&writing, model_id, "source", version, 5, 3);
	while (next_sources(&sources, knn))
		for (uint32 i = sources.first; i < sources.end; i++)
		{
			Size at = sources.start[i] - sources.start[sources.first];

			write_list(&writing, i, sources.targets + at, sources.scores + at,
					   (uint32) (sources.start[i + 1] - sources.start[i]));
		}
	writing_flush(&writing);
	pfree(sources.start);
}

void
mr_store_test(int32 model_id, const MrInput *pairs, bool is_given)
{
	static const AttrNumber attnums[] = {1, 2, 3, 4};
	MrTable *table = mr_table_create(mr_store_table(model_id, "test"), GetUserId(), 4, attnums, 2);
	MrRows *rows = mr_rows_create(table, CHUNK);

	rows->nrows = 0;
	for (uint32 user = 0; user < pairs->nusers; user++)
	{
		const uint32 *items = mr_input_column(pairs, pairs->user_items, user);
		const double *weights = mr_input_column(pairs, pairs->weights, user);

		for (uint32 p = 0; p < mr_input_length(pairs, user); p++)
		{
			int row = rows->nrows++;

			rows->values[0][row] = mr_ids_value(pairs->users, user);
			rows->values[1][row] = mr_ids_value(pairs->items, items[p]);
			rows->values[2][row] = BoolGetDatum(is_given);
			rows->values[3][row] = Float8GetDatum(weights != NULL ? weights[p] : 1);
			if (rows->nrows == CHUNK)
			{
				CHECK_FOR_INTERRUPTS();
				(void) mr_table_insert_new(table, rows, 0, NULL);
				rows->nrows = 0;
			}
		}
	}
	(void) mr_table_insert_new(table, rows, 0, NULL);
	mr_rows_free(table, rows);
}

void
mr_store_version(int32 model_id, int32 version, const MrInput *input, const MrKnn *knn)
{
	mr_progress_phase(MR_TRAINING_WRITING, 4);
	write_items(model_id, version, input, knn);
	mr_progress_done(1);
	write_users(model_id, version, input);
	mr_progress_done(2);
	write_targets(model_id, version, knn);
	mr_progress_done(3);
	write_sources(model_id, version, knn);
}
