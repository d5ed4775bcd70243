/*
 * train.c
 *	  Training a version of item-item neighbours: read, compute, write.
 */
#include "postgres.h"

#include <math.h>

#include "core/compat.h"
#include "core/statement.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/input.h"
#include "model/knn.h"
#include "model/store.h"
#include "optimizer/optimizer.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define BM25_K1 1.2
#define BM25_B 0.75

/* Below so many items a worker costs more than it does. */
#define ITEMS_PER_WORKER 64

/* What it costs to keep the list of another item, for each of its neighbours. */
#define ADDITIONS_PER_OFFER 32

PG_FUNCTION_INFO_V1(millrace_model_train);

/* Items by popularity, those of as many users by their numbers: the number of each label. */
static uint32 *
sort_labels(const MrInput *input)
{
	Size items = input->nitems;
	uint32 *numbers = MemoryContextAllocHuge(CurrentMemoryContext, Max(items, 1) * sizeof(uint32));
	uint32 *start = MemoryContextAllocExtended(CurrentMemoryContext,
											   ((Size) input->nusers + 2) * sizeof(uint32),
											   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);

	for (Size i = 0; i < items; i++)
		start[input->nusers - input->item_users[i] + 1]++;
	for (Size n = 0; n < input->nusers; n++)
		start[n + 1] += start[n];
	for (Size i = 0; i < items; i++)
		numbers[start[input->nusers - input->item_users[i]]++] = i;
	pfree(start);
	return numbers;
}

/* The weight by which the measure counts a pair. */
static double
pair_weight(const MrInput *input, MrMeasure measure, uint32 user, uint32 place, const double *sums,
			double average)
{
	uint32 items = input->user_start[user + 1] - input->user_start[user];
	double weight = input->weighted ? input->weights[place] : 1;
	double rarity;

	if (measure == MR_MEASURE_COSINE)
		return weight;
	rarity = log((double) input->nitems / (1 + (double) items));
	if (measure == MR_MEASURE_TFIDF)
		return sqrt(weight) * rarity;
	/* weights that are all zero count for nothing, and have no average */
	if (average == 0)
		return 0;
	return weight * (BM25_K1 + 1) /
		   (BM25_K1 * (1 - BM25_B + BM25_B * sums[input->user_items[place]] / average) + weight) *
		   rarity;
}

/* The sum of the weights of each item, and their average. */
static double *
sum_items(const MrInput *input, double *average)
{
	double *sums = MemoryContextAllocExtended(CurrentMemoryContext,
											  Max(input->nitems, 1) * sizeof(double),
											  MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	double total = 0;

	for (uint32 p = 0; p < input->pairs; p++)
		sums[input->user_items[p]] += input->weighted ? input->weights[p] : 1;
	for (uint32 i = 0; i < input->nitems; i++)
		total += sums[i];
	*average = input->nitems > 0 ? total / input->nitems : 0;
	return sums;
}

/* Puts the matrix into the block, by labels. */
static void
fill_matrix(MrKnn *knn, const MrInput *input, const uint32 *numbers)
{
	uint32 items = input->nitems;
	uint32 *labels = MemoryContextAllocHuge(CurrentMemoryContext, Max(items, 1) * sizeof(uint32));
	uint32 *next = MemoryContextAllocHuge(CurrentMemoryContext,
										  ((Size) items + 1) * sizeof(uint32));
	uint32 *user_next = MemoryContextAllocHuge(CurrentMemoryContext,
											   Max(input->nusers, 1) * sizeof(uint32));
	double average = 0;
	double *sums = NULL;

	if (knn->shape.params.measure == MR_MEASURE_BM25)
		sums = sum_items(input, &average);
	knn->item_start[0] = 0;
	for (uint32 i = 0; i < items; i++)
	{
		knn->numbers[i] = numbers[i];
		labels[numbers[i]] = i;
		knn->item_start[i + 1] = knn->item_start[i] + input->item_users[numbers[i]];
	}

	/* By label, users ascending; then from there by user, labels ascending. */
	memcpy(next, knn->item_start, ((Size) items + 1) * sizeof(uint32));
	for (uint32 user = 0; user < input->nusers; user++)
		for (uint32 p = input->user_start[user]; p < input->user_start[user + 1]; p++)
		{
			uint32 at = next[labels[input->user_items[p]]]++;

			knn->item_users[at] = user;
			knn->item_places[at] = p;
		}
	memcpy(knn->user_start, input->user_start, ((Size) input->nusers + 1) * sizeof(uint32));
	memcpy(user_next, input->user_start, (Size) input->nusers * sizeof(uint32));
	for (uint32 i = 0; i < items; i++)
		for (uint32 at = knn->item_start[i]; at < knn->item_start[i + 1]; at++)
		{
			uint32 user = knn->item_users[at];
			uint32 place = user_next[user]++;

			if (knn->shape.weighted)
				knn->user_weights[place] = pair_weight(input, knn->shape.params.measure, user,
													   knn->item_places[at], sums, average);
			knn->user_items[place] = i;
			knn->item_places[at] = place;
		}
	pfree(labels);
	pfree(next);
	pfree(user_next);
	if (sums != NULL)
		pfree(sums);
}

/* How many additions all rows need, by row. */
static double
average_work(const MrInput *input)
{
	double work = 0;

	for (uint32 user = 0; user < input->nusers; user++)
	{
		double items = input->user_start[user + 1] - input->user_start[user];

		work += items * items;
	}
	return work / Max(input->nitems, 1);
}

/*
 * How the neighbours are found: by as many processes as allowed; each pair of items once when there is memory for
 * lists of all items in each process, and when rows are long: to offer a pair to the list of another item, which is
 * far away, costs more than some additions.
 */
static void
choose_shape(MrKnnShape *shape, const MrInput *input, int *workers)
{
	Size allowed = (Size) maintenance_work_mem * 1024;

	*workers = (int) Min((uint32) max_parallel_maintenance_workers,
						 shape->items / ITEMS_PER_WORKER);
	shape->participants = *workers + 1;
	shape->symmetric = true;
	if (mr_knn_size(shape) > allowed ||
		average_work(input) < (double) ADDITIONS_PER_OFFER * shape->params.k)
		shape->symmetric = false;
}

/* Trains: model, version, owner, measure, k, shrink → what is noted of the version. */
Datum
millrace_model_train(PG_FUNCTION_ARGS)
{
	static const char *const measures[] = {"cosine", "tfidf", "bm25", "dice", "jaccard"};
	int32 model_id = PG_GETARG_INT32(0);
	int32 version = PG_GETARG_INT32(1);
	Oid owner = PG_GETARG_OID(2);
	Oid relation = PG_GETARG_OID(3);
	char *measure = text_to_cstring(PG_GETARG_TEXT_PP(4));
	MrKnnShape shape = {.params = {.k = PG_GETARG_INT32(5), .shrink = PG_GETARG_FLOAT8(6)}};
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace training",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	dsm_segment *segment = NULL;
	uint64 stored = 0;
	int workers;
	MrInput *input;
	MrKnn knn;
	Size size;
	Datum values[9];
	bool nulls[9] = {false};
	TimestampTz begun;
	TimestampTz computed;
	TupleDesc desc;
	Datum result;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	for (int m = 0; m < lengthof(measures); m++)
		if (strcmp(measure, measures[m]) == 0)
			shape.params.measure = m;

	mr_progress_start(relation);
	input = mr_input_read(model_id, owner);
	shape.users = input->nusers;
	shape.items = input->nitems;
	shape.pairs = input->pairs;
	shape.params.k = Max(Min(shape.params.k, (int) input->nitems - 1), 0);
	shape.weighted = shape.params.measure == MR_MEASURE_TFIDF ||
					 shape.params.measure == MR_MEASURE_BM25 ||
					 (shape.params.measure == MR_MEASURE_COSINE && input->weighted);
	choose_shape(&shape, input, &workers);
	size = mr_knn_size(&shape);
	if (workers > 0)
		segment = dsm_create(size, DSM_CREATE_NULL_IF_MAXSEGMENTS);
	mr_knn_init(&knn,
				segment != NULL ? dsm_segment_address(segment)
								: MemoryContextAllocHuge(CurrentMemoryContext, size),
				&shape);
	fill_matrix(&knn, input, sort_labels(input));
	mr_knn_measure(&knn);
	mr_progress_phase(MR_TRAINING_COMPUTING, shape.items);
	begun = GetCurrentTimestamp();
	mr_knn_run(&knn, segment, workers);
	computed = GetCurrentTimestamp();

	mr_store_version(model_id, version, input, &knn);
	for (uint32 i = 0; i < shape.items; i++)
		stored += knn.found[i];
	values[0] = Int64GetDatum(input->rows);
	values[1] = Int64GetDatum(input->skipped);
	values[2] = Int64GetDatum(input->pairs);
	values[3] = Int32GetDatum(input->nusers);
	values[4] = Int32GetDatum(input->nitems);
	values[5] = Int64GetDatum(stored);
	values[7] = Float8GetDatum((computed - begun) / (double) USECS_PER_SEC);
	values[8] = Float8GetDatum((GetCurrentTimestamp() - computed) / (double) USECS_PER_SEC);
	MemoryContextSwitchTo(old);
	values[6] = CStringGetTextDatum(psprintf("%016llx", (unsigned long long) input->digest));
	result = HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
	if (segment != NULL)
		dsm_detach(segment);
	MemoryContextDelete(context);
	mr_progress_end();
	PG_RETURN_DATUM(result);
}
