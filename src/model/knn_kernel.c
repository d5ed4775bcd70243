/*
 * knn_kernel.c
 *	  The K most similar items of each item.
 *
 * Row i of the product of the matrix with itself says how often item i was had together with each other item: for
 * each user of i, in ascending order, one is added to (or the product of two weights, at) every item that he has.
 * The row is dense, so that this is one addition in the processor's cache; labels are by popularity, so that most
 * additions go to its first lines.
 *
 * The product is symmetric.  Where rows are dense and memory allows, row i has only the labels below i, and what is found is offered to
 * the lists of both items; each process then has lists for all items, which are merged in the end.  Otherwise a row is
 * whole and fills the list of its own item alone, at twice the additions.
 *
 * Processes take rows from a common counter.  No sum is ever split, and lists keep the first K of a total order
 * (score, number), so that which process computes what, and when, changes nothing.
 */
#include "postgres.h"

#include <math.h>

#include "miscadmin.h"
#include "model/knn.h"
#include "port/atomics.h"
#include "port/pg_bitutils.h"
#include "storage/barrier.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

/* Rows that are taken at once. */
#define ROWS_TAKEN 8

/* What users have lies anywhere in memory: it is fetched so many users before it is read. */
#define USERS_AHEAD 12

/* Labels are grouped by so many of their upper bits, to find a bound. */
#define LABEL_BITS 8

/* Labels are dismissed by counts below that; few have higher ones. */
#define SMALL_COUNTS 32

#define BLOCK_ALIGN(size) TYPEALIGN(PG_CACHE_LINE_SIZE, size)

struct MrKnnHead
{
	MrKnnShape shape;
	pg_atomic_uint32 next_row;
	pg_atomic_uint32 next_merge;
	Barrier barrier;
};

/* What a process needs for itself. */
typedef struct Row
{
	uint32 *counts; /* or */
	double *sums;
	uint32 *touched; /* labels that have been added to, of a row that has few */
	uint32 ntouched;
	MrNeighbour *list; /* of the row's own item, when not symmetric */
	double *thresholds; /* by label: what is below is not among the first K; when symmetric */
} Row;

/* Places an array behind what is there. */
static void *
place(char *block, Size *end, Size count, Size width)
{
	char *array = block + *end;

	*end = add_size(*end, BLOCK_ALIGN(mul_size(count, width)));
	return array;
}

/* Where everything is in a block; with a NULL block only its size. */
static Size
lay_out(MrKnn *knn, char *block, const MrKnnShape *shape)
{
	Size end = BLOCK_ALIGN(sizeof(MrKnnHead));
	Size k = shape->params.k;
	Size lists = shape->symmetric ? mul_size(shape->participants, shape->items) : 0;

	memset(knn, 0, sizeof(MrKnn));
	knn->shape = *shape;
	knn->head = (MrKnnHead *) block;
	knn->user_start = place(block, &end, (Size) shape->users + 1, sizeof(uint32));
	knn->user_items = place(block, &end, shape->pairs, sizeof(uint32));
	knn->user_weights = place(block, &end, shape->weighted ? shape->pairs : 0, sizeof(double));
	knn->item_start = place(block, &end, (Size) shape->items + 1, sizeof(uint32));
	knn->item_users = place(block, &end, shape->pairs, sizeof(uint32));
	knn->item_places = place(block, &end, shape->pairs, sizeof(uint32));
	knn->sizes = place(block, &end, shape->items, sizeof(double));
	knn->numbers = place(block, &end, shape->items, sizeof(uint32));
	knn->lists = place(block, &end, mul_size(lists, k), sizeof(MrNeighbour));
	knn->lengths = place(block, &end, lists, sizeof(uint32));
	knn->neighbours = place(block, &end, mul_size(shape->items, k), sizeof(int32));
	knn->scores = place(block, &end, mul_size(shape->items, k), sizeof(float));
	knn->found = place(block, &end, shape->items, sizeof(uint32));
	return end;
}

Size
mr_knn_size(const MrKnnShape *shape)
{
	MrKnn knn;

	return lay_out(&knn, NULL, shape);
}

Size
mr_knn_memory(const MrKnnShape *shape)
{
	/* beside the block: a row, the labels of one, and thresholds, which the lists of all items need */
	Size item = (shape->weighted ? sizeof(double) : sizeof(uint32)) + sizeof(uint32) / 2 +
				(shape->symmetric ? sizeof(double) : 0);

	return add_size(mr_knn_size(shape),
					mul_size(mul_size(shape->participants, shape->items), item));
}

void
mr_knn_init(MrKnn *knn, void *block, const MrKnnShape *shape)
{
	lay_out(knn, block, shape);
	knn->head->shape = *shape;
	pg_atomic_init_u32(&knn->head->next_row, 0);
	pg_atomic_init_u32(&knn->head->next_merge, 0);
	BarrierInit(&knn->head->barrier, 0);
	if (shape->symmetric)
		memset(knn->lengths, 0, sizeof(uint32) * shape->participants * shape->items);
}

void
mr_knn_attach(MrKnn *knn, void *block)
{
	lay_out(knn, block, &((MrKnnHead *) block)->shape);
}

void
mr_knn_measure(MrKnn *knn)
{
	MrMeasure measure = knn->shape.params.measure;

	for (uint32 i = 0; i < knn->shape.items; i++)
	{
		uint32 users = knn->item_start[i + 1] - knn->item_start[i];
		double squares = 0;

		if (measure == MR_MEASURE_DICE || measure == MR_MEASURE_JACCARD)
		{
			knn->sizes[i] = users;
			continue;
		}
		if (!knn->shape.weighted)
			squares = users;
		else
			for (uint32 p = knn->item_start[i]; p < knn->item_start[i + 1]; p++)
			{
				double weight = knn->user_weights[knn->item_places[p]];

				squares += weight * weight;
			}
		knn->sizes[i] = sqrt(squares);
	}
}

/* Writes a list down, best first, and empties it. */
static void
write_list(MrKnn *knn, uint32 label, MrNeighbour *heap, uint32 length)
{
	uint32 number = knn->numbers[label];
	Size start = (Size) number * knn->shape.params.k;

	knn->found[number] = length;
	while (length > 0)
	{
		MrNeighbour worst = mr_best_take_worst(heap, &length);

		knn->neighbours[start + length] = (int32) worst.number;
		knn->scores[start + length] = (float) worst.score;
	}
}

/* How many additions a row needs. */
static uint64
row_work(const MrKnn *knn, uint32 i)
{
	uint64 work = 0;

	for (uint32 p = knn->item_start[i]; p < knn->item_start[i + 1]; p++)
	{
		uint32 user = knn->item_users[p];

		work += (knn->shape.symmetric ? knn->item_places[p] : knn->user_start[user + 1]) -
				knn->user_start[user];
	}
	return work;
}

/* Has what a user has fetched into the processor's cache; of long lists it fetches the rest itself. */
static pg_attribute_always_inline void
prefetch_user(const MrKnn *knn, uint32 user, bool weighted)
{
	uint32 start = knn->user_start[user];

	__builtin_prefetch(&knn->user_items[start]);
	__builtin_prefetch(&knn->user_items[start + 64 / sizeof(uint32)]);
	if (weighted)
		__builtin_prefetch(&knn->user_weights[start]);
}

/*
 * Computes a row.  Of one that will have few labels, they are noted: without a branch, which would often be foreseen
 * wrongly.  Weights of zero let a label be noted again, at most once for each addition.
 */
static pg_attribute_always_inline void
add_row(const MrKnn *knn, Row *row, uint32 i, bool weighted, bool sparse)
{
	uint32 last = knn->shape.pairs - 1;
	uint32 ntouched = 0;

	for (uint32 p = knn->item_start[i]; p < knn->item_start[i + 1]; p++)
	{
		uint32 user = knn->item_users[p];
		uint32 place = knn->item_places[p];
		uint32 end = knn->shape.symmetric ? place : knn->user_start[user + 1];
		double weight = weighted ? knn->user_weights[place] : 1;

		prefetch_user(knn, knn->item_users[Min(p + USERS_AHEAD, last)], weighted);
		for (uint32 q = knn->user_start[user]; q < end; q++)
		{
			uint32 j = knn->user_items[q];

			if (sparse)
			{
				row->touched[ntouched] = j;
				ntouched += weighted ? row->sums[j] == 0 : row->counts[j] == 0;
			}
			if (weighted)
				row->sums[j] += weight * knn->user_weights[q];
			else
				row->counts[j]++;
		}
	}
	row->ntouched = ntouched;
}

/*
 * A score that the first K of a row of counts do not fall below: where K labels are not below some label, each of their items
 * was had with the row's own once at least, and has no more users than that label's.
 */
static double
find_bound(const MrKnn *knn, const Row *row, MrMeasure measure, uint32 i)
{
	int shift = Max(pg_leftmost_one_pos32(knn->shape.items) + 1 - LABEL_BITS, 0);
	uint32 groups[1 << LABEL_BITS] = {0};
	uint32 labels = 0;

	for (uint32 n = 0; n < row->ntouched; n++)
		groups[row->touched[n] >> shift]++;
	for (uint32 group = lengthof(groups); group-- > 0;)
	{
		labels += groups[group];
		/* one of them is the row's own */
		if (labels > knn->shape.params.k)
			return mr_knn_similarity(measure, 1, knn->sizes[i], knn->sizes[group << shift],
									 knn->shape.params.shrink);
	}
	return 0;
}

/*
 * Offers what a row has to the lists that it may belong to, and clears it.
 *
 * The lower a label is, the more users its item has: with the same count its score is not higher.  So when one has been found
 * to be below the bound, lower ones with its count are dismissed without a look at their sizes, which are far away.
 */
static pg_attribute_always_inline void
offer_row(MrKnn *knn, Row *row, MrMeasure measure, uint32 i, bool weighted, bool sparse,
		  MrNeighbour *lists, uint32 *lengths)
{
	uint32 k = knn->shape.params.k;
	bool dismisses = !weighted && lists == NULL;
	uint32 dismissed[SMALL_COUNTS + 1] = {0}; /* by count: labels below this one */
	double bound = dismisses && sparse ? find_bound(knn, row, measure, i) : 0;
	MrNeighbour *own = lists == NULL ? row->list : lists + (Size) i * k;
	uint32 own_length = lists == NULL ? 0 : lengths[i];
	uint32 end = sparse ? row->ntouched : lists != NULL ? i : knn->shape.items;

	for (uint32 n = 0; n < end; n++)
	{
		uint32 j = sparse ? row->touched[n] : n;
		uint32 count = weighted ? 0 : Min(row->counts[j], SMALL_COUNTS);
		double common = weighted ? row->sums[j] : row->counts[j];
		MrNeighbour found;

		if (common <= 0)
			continue;
		if (weighted)
			row->sums[j] = 0;
		else
			row->counts[j] = 0;
		if (j == i || (dismisses && j < dismissed[count]))
			continue;
		found.score = mr_knn_similarity(measure, common, knn->sizes[i], knn->sizes[j],
										knn->shape.params.shrink);
		if (found.score >= bound)
		{
			found.number = knn->numbers[j];
			mr_best_offer(own, &own_length, k, &found);
			if (own_length == k)
				bound = Max(bound, own[0].score);
		}
		else if (count < SMALL_COUNTS)
			dismissed[count] = j + 1;
		if (lists != NULL && found.score >= row->thresholds[j])
		{
			MrNeighbour *other = lists + (Size) j * k;

			found.number = knn->numbers[i];
			mr_best_offer(other, &lengths[j], k, &found);
			if (lengths[j] == k)
				row->thresholds[j] = other[0].score;
		}
	}
	if (lists == NULL)
	{
		write_list(knn, i, own, own_length);
		return;
	}
	lengths[i] = own_length;
	if (own_length == k)
		row->thresholds[i] = own[0].score;
}

/* One row, with the choices made that are the same for all of its additions. */
static void
work_row(MrKnn *knn, Row *row, uint32 i, MrNeighbour *lists, uint32 *lengths)
{
	bool sparse = row_work(knn, i) < (knn->shape.symmetric ? i : knn->shape.items) / 2;

#define WORK(weighted, sparse, measure) \
	do \
	{ \
		add_row(knn, row, i, weighted, sparse); \
		offer_row(knn, row, measure, i, weighted, sparse, lists, lengths); \
	} while (0)
#define WORK_SPARSE(weighted, measure) \
	do \
	{ \
		if (sparse) \
			WORK(weighted, true, measure); \
		else \
			WORK(weighted, false, measure); \
	} while (0)

	if (knn->shape.weighted)
		WORK_SPARSE(true, MR_MEASURE_COSINE);
	else if (knn->shape.params.measure == MR_MEASURE_DICE)
		WORK_SPARSE(false, MR_MEASURE_DICE);
	else if (knn->shape.params.measure == MR_MEASURE_JACCARD)
		WORK_SPARSE(false, MR_MEASURE_JACCARD);
	else
		WORK_SPARSE(false, MR_MEASURE_COSINE);
}

/* Merges the lists that the processes have of an item. */
static void
merge_lists(MrKnn *knn, uint32 label)
{
	uint32 k = knn->shape.params.k;
	Size items = knn->shape.items;
	MrNeighbour *list = knn->lists + label * (Size) k;

	for (int w = 1; w < knn->shape.participants; w++)
	{
		const MrNeighbour *other = knn->lists + (w * items + label) * k;

		for (uint32 n = 0; n < knn->lengths[w * items + label]; n++)
			mr_best_offer(list, &knn->lengths[label], k, &other[n]);
	}
	write_list(knn, label, list, knn->lengths[label]);
}

/* Memory of one process. */
static void
row_init(Row *row, const MrKnnShape *shape)
{
	Size items = shape->items;

	memset(row, 0, sizeof(Row));
	/* one more is written to than is noted */
	row->touched = MemoryContextAllocHuge(CurrentMemoryContext, (items / 2 + 1) * sizeof(uint32));
	if (shape->weighted)
		row->sums = MemoryContextAllocExtended(CurrentMemoryContext, items * sizeof(double),
											   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	else
		row->counts = MemoryContextAllocExtended(CurrentMemoryContext, items * sizeof(uint32),
												 MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	if (shape->symmetric)
		row->thresholds = MemoryContextAllocExtended(CurrentMemoryContext, items * sizeof(double),
													 MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	else
		row->list = palloc(sizeof(MrNeighbour) * shape->params.k);
}

void
mr_knn_work(MrKnn *knn, int participant, bool is_leader)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace rows",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Size items = knn->shape.items;
	MrNeighbour *lists = NULL;
	uint32 *lengths = NULL;
	Row row;
	uint32 first;

	row_init(&row, &knn->shape);
	if (knn->shape.symmetric)
	{
		lists = knn->lists + participant * items * knn->shape.params.k;
		lengths = knn->lengths + participant * items;
	}

	/* Who comes when others have begun to merge has nothing to add. */
	if (BarrierAttach(&knn->head->barrier) == 0)
	{
		while ((first = pg_atomic_fetch_add_u32(&knn->head->next_row, ROWS_TAKEN)) < items)
		{
			for (uint32 i = first; i < Min(first + ROWS_TAKEN, items); i++)
			{
				CHECK_FOR_INTERRUPTS();
				work_row(knn, &row, i, lists, lengths);
			}
			if (is_leader)
				mr_progress_done(first);
		}
		BarrierArriveAndWait(&knn->head->barrier, WAIT_EVENT_PARALLEL_FINISH);
	}
	if (knn->shape.symmetric)
		while ((first = pg_atomic_fetch_add_u32(&knn->head->next_merge, ROWS_TAKEN)) < items)
		{
			CHECK_FOR_INTERRUPTS();
			for (uint32 i = first; i < Min(first + ROWS_TAKEN, items); i++)
				merge_lists(knn, i);
		}
	BarrierDetach(&knn->head->barrier);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}
