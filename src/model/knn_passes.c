/*
 * knn_passes.c
 *	  The K most similar items of each item, when there is no memory for the matrix.
 *
 * Items are taken in blocks, in ascending order: as many as there is memory for their rows of the product of the matrix with
 * itself.  For each block the pairs are read once, by user: what a user has is added to the rows of those of his items that are
 * in the block.  So each sum goes over users in ascending order, as in the kernel, and comes to the same bits.
 *
 * A row is an array of sums of all items, or counts; or, when there are fewer additions than that takes memory, what is to be
 * added, which is summed up when all has come: items that few users have are had together with few others.
 */
#include "postgres.h"

#include <math.h>

#include "miscadmin.h"
#include "model/knn.h"

/* Rows that stay in the processor's cache are added to twice as fast: smaller blocks are worth some more passes. */
#define CACHE_BYTES (8 * 1024 * 1024)
#define CHEAP_PASSES 128

/* One row. */
typedef struct Row
{
	double *sums; /* by label; or */
	uint32 *counts; /* when all weights are 1; or neither, but what is to be added: */
	uint32 *labels;
	double *products; /* NULL: they are 1 */
	Size length;
} Row;

/* What all passes need. */
typedef struct Passes
{
	MrKnn *knn;
	const MrInput *input;
	MrColumn *weights;
	uint32 *labels; /* by number */
	uint64 *work; /* by number: additions */
	Row *rows; /* of the present block */
	uint32 first; /* its items */
	uint32 end;
	uint32 *user_labels; /* of one user's items */
	double *sums; /* of a row that is summed up */
	uint32 *touched; /* labels that have been added to */
	MrNeighbour *list;
	int32 *neighbours; /* of one item */
	float *scores;
} Passes;

/* Computes how many additions each row needs, and sizes. */
static void
measure(Passes *passes)
{
	MrKnn *knn = passes->knn;
	const MrInput *input = passes->input;
	MrMeasure measure = knn->shape.params.measure;

	for (uint32 user = 0; user < input->nusers; user++)
	{
		const uint32 *items = mr_input_column(input, input->user_items, user);
		const double *weights = mr_input_column(input, passes->weights, user);
		uint32 length = mr_input_length(input, user);

		CHECK_FOR_INTERRUPTS();
		for (uint32 p = 0; p < length; p++)
		{
			passes->work[items[p]] += length;
			if (weights != NULL)
				knn->sizes[passes->labels[items[p]]] += weights[p] * weights[p];
		}
	}
	for (uint32 item = 0; item < input->nitems; item++)
	{
		double *size = &knn->sizes[passes->labels[item]];

		if (measure == MR_MEASURE_DICE || measure == MR_MEASURE_JACCARD)
			*size = input->item_users[item];
		else
			*size = sqrt(knn->shape.weighted ? *size : input->item_users[item]);
	}
}

/* The size of an array of all items. */
static Size
whole_bytes(const Passes *passes)
{
	return passes->input->nitems * (passes->weights != NULL ? sizeof(double) : sizeof(uint32));
}

/* Is what is to be added to a row less than the row? */
static bool
is_short(const Passes *passes, uint32 item)
{
	Size width = sizeof(uint32) + (passes->weights != NULL ? sizeof(double) : 0);

	return passes->work[item] * width < whole_bytes(passes);
}

static Size
row_bytes(const Passes *passes, uint32 item)
{
	if (!is_short(passes, item))
		return MAXALIGN(whole_bytes(passes));
	return MAXALIGN(passes->work[item] * sizeof(uint32)) +
		   (passes->weights != NULL ? passes->work[item] * sizeof(double) : 0);
}

/* What of a row is added to in no order: all of an array, and the end of what is to be added. */
static Size
cached_bytes(const Passes *passes, uint32 item)
{
	return is_short(passes, item) ? PG_CACHE_LINE_SIZE : whole_bytes(passes);
}

/*
 * Takes the next block: as many items as so much memory has rows for, and so much cache, one at least.  Returns the memory of
 * the rows.
 */
static char *
begin_block(Passes *passes, Size memory, Size cache)
{
	Size size = row_bytes(passes, passes->first);
	Size cached = cached_bytes(passes, passes->first);
	char *rows;
	char *next;

	for (passes->end = passes->first + 1; passes->end < passes->input->nitems; passes->end++)
	{
		Size bytes = row_bytes(passes, passes->end);

		cached += cached_bytes(passes, passes->end);
		if (cached > cache ||
			size + bytes + (passes->end + 1 - passes->first) * sizeof(Row) > memory)
			break;
		size += bytes;
	}
	passes->rows = mr_zeros(passes->end - passes->first, sizeof(Row));
	rows = next = MemoryContextAllocHuge(CurrentMemoryContext, size);
	for (uint32 item = passes->first; item < passes->end; item++)
	{
		Row *row = &passes->rows[item - passes->first];

		if (is_short(passes, item))
		{
			row->labels = (uint32 *) next;
			if (passes->weights != NULL)
				row->products = (double *) (next + MAXALIGN(passes->work[item] * sizeof(uint32)));
		}
		else
		{
			memset(next, 0, whole_bytes(passes));
			if (passes->weights != NULL)
				row->sums = (double *) next;
			else
				row->counts = (uint32 *) next;
		}
		next += row_bytes(passes, item);
	}
	return rows;
}

/* Adds all that a user has to a row. */
static void
add_user(Row *row, const uint32 *labels, const double *weights, double weight, uint32 length)
{
	if (row->labels != NULL)
	{
		memcpy(row->labels + row->length, labels, length * sizeof(uint32));
		for (uint32 q = 0; weights != NULL && q < length; q++)
			row->products[row->length + q] = weight * weights[q];
		row->length += length;
	}
	else if (weights != NULL)
		for (uint32 q = 0; q < length; q++)
			row->sums[labels[q]] += weight * weights[q];
	else
		for (uint32 q = 0; q < length; q++)
			row->counts[labels[q]]++;
}

/* The first of some items, which ascend, that is not below one. */
static uint32
find_first(const uint32 *items, uint32 length, uint32 item)
{
	uint32 first = 0;

	while (first < length)
	{
		uint32 middle = first + (length - first) / 2;

		if (items[middle] < item)
			first = middle + 1;
		else
			length = middle;
	}
	return first;
}

/* Computes the rows of the block. */
static void
fill_block(Passes *passes)
{
	const MrInput *input = passes->input;

	for (uint32 user = 0; user < input->nusers; user++)
	{
		const uint32 *items = mr_input_column(input, input->user_items, user);
		uint32 length = mr_input_length(input, user);
		uint32 p = find_first(items, length, passes->first);
		const double *weights;

		CHECK_FOR_INTERRUPTS();
		if (p == length || items[p] >= passes->end)
			continue;
		weights = mr_input_column(input, passes->weights, user);
		for (uint32 q = 0; q < length; q++)
			passes->user_labels[q] = passes->labels[items[q]];
		for (; p < length && items[p] < passes->end; p++)
			add_user(&passes->rows[items[p] - passes->first], passes->user_labels, weights,
					 weights != NULL ? weights[p] : 1, length);
	}
}

/* Sums up what is to be added to a row; weights of zero let a label be noted again, at most once for each addition. */
static uint32
sum_up(Passes *passes, const Row *row)
{
	uint32 ntouched = 0;

	for (Size p = 0; p < row->length; p++)
	{
		double *sum = &passes->sums[row->labels[p]];

		passes->touched[ntouched] = row->labels[p];
		ntouched += *sum == 0;
		*sum += row->products != NULL ? row->products[p] : 1;
	}
	return ntouched;
}

/* Finds the neighbours of an item, whose row is there. */
static void
finish_row(Passes *passes, uint32 item, const Row *row)
{
	MrKnn *knn = passes->knn;
	MrKnnParams *params = &knn->shape.params;
	uint32 own = passes->labels[item];
	double *sums = row->labels != NULL ? passes->sums : row->sums;
	uint32 n = row->labels != NULL ? sum_up(passes, row) : knn->shape.items;
	uint32 length = 0;

	for (uint32 t = 0; t < n; t++)
	{
		uint32 label = row->labels != NULL ? passes->touched[t] : t;
		double common = sums != NULL ? sums[label] : row->counts[label];
		MrNeighbour found;

		if (row->labels != NULL)
			sums[label] = 0;
		if (common <= 0 || label == own)
			continue;
		found.score = mr_knn_similarity(params->measure, common, knn->sizes[own], knn->sizes[label],
										params->shrink);
		if (length == params->k && found.score < passes->list[0].score)
			continue;
		found.number = knn->numbers[label];
		mr_best_offer(passes->list, &length, params->k, &found);
	}
	knn->found[item] = length;
	knn->list_start[item] = knn->list_neighbours->count;
	while (length > 0)
	{
		MrNeighbour worst = mr_best_take_worst(passes->list, &length);

		passes->neighbours[length] = (int32) worst.number;
		passes->scores[length] = (float) worst.score;
	}
	mr_column_append(knn->list_neighbours, passes->neighbours, knn->found[item]);
	mr_column_append(knn->list_scores, passes->scores, knn->found[item]);
}

void
mr_knn_run_passes(MrKnn *knn, const MrInput *input, MrColumn *weights)
{
	Passes passes = {.knn = knn, .input = input, .weights = weights};
	uint32 items = input->nitems;
	uint32 k = knn->shape.params.k;
	Size left = mr_memory_left();
	Size memory = left / 4 * 3;
	Size total = 0;
	uint32 longest = 0;

	for (uint32 user = 0; user < input->nusers; user++)
		longest = Max(longest, mr_input_length(input, user));
	passes.labels = mr_zeros(items, sizeof(uint32));
	passes.work = mr_zeros(items, sizeof(uint64));
	passes.user_labels = mr_zeros(longest, sizeof(uint32));
	passes.sums = mr_zeros(items, sizeof(double));
	passes.touched = mr_zeros((Size) items + 1, sizeof(uint32));
	passes.list = mr_zeros(k, sizeof(MrNeighbour));
	passes.neighbours = mr_zeros(k, sizeof(int32));
	passes.scores = mr_zeros(k, sizeof(float));
	knn->sizes = mr_zeros(items, sizeof(double));
	knn->found = mr_zeros(items, sizeof(uint32));
	knn->list_start = mr_zeros(items, sizeof(uint64));
	knn->list_neighbours = mr_column_create(sizeof(int32), 0, left / 8 / sizeof(int32));
	knn->list_scores = mr_column_create(sizeof(float), 0, left / 8 / sizeof(float));
	for (uint32 label = 0; label < items; label++)
		passes.labels[knn->numbers[label]] = label;
	mr_progress_phase(MR_TRAINING_COMPUTING, items);
	measure(&passes);
	for (uint32 item = 0; item < items; item++)
		total += cached_bytes(&passes, item);
	for (passes.first = 0; passes.first < items; passes.first = passes.end)
	{
		char *rows = begin_block(&passes, memory, Max(total / CHEAP_PASSES, CACHE_BYTES));

		fill_block(&passes);
		for (uint32 item = passes.first; item < passes.end; item++)
		{
			CHECK_FOR_INTERRUPTS();
			finish_row(&passes, item, &passes.rows[item - passes.first]);
		}
		pfree(rows);
		pfree(passes.rows);
		mr_progress_done(passes.end);
	}
	pfree(passes.labels);
	pfree(passes.work);
	pfree(passes.user_labels);
	pfree(passes.sums);
	pfree(passes.touched);
	pfree(passes.list);
	pfree(passes.neighbours);
	pfree(passes.scores);
}
