/*
 * knn.h
 *	  Item-item neighbours: the matrix, and the kernel that finds the K most similar items of each.
 *
 * Everything that the kernel reads and writes lies in one flat block, so that it can be shared memory; when
 * maintenance_work_mem has no room for one, there is none, and what is found is in columns.  Users are
 * numbered by their ids' order.  Items have two numbers: that of their ids' order, which is what is stored and what
 * ties are broken by, and a label, by which the matrix is kept: 0 is the item that most users have.
 */
#ifndef MR_MODEL_KNN_H
#define MR_MODEL_KNN_H

#include "model/best.h"
#include "model/input.h"
#include "storage/dsm.h"
#include "storage/shm_toc.h"

typedef enum MrMeasure
{
	MR_MEASURE_COSINE,
	MR_MEASURE_TFIDF,
	MR_MEASURE_BM25,
	MR_MEASURE_DICE,
	MR_MEASURE_JACCARD
} MrMeasure;

/* What is declared of a model. */
typedef struct MrKnnParams
{
	MrMeasure measure;
	int k;
	double shrink;
} MrKnnParams;

/* The one expression for all ways to come to what two items have in common; sizes are norms, or numbers of users. */
static pg_attribute_always_inline double
mr_knn_similarity(MrMeasure measure, double common, double a, double b, double shrink)
{
	switch (measure)
	{
		case MR_MEASURE_DICE:
			return 2 * common / (a + b + shrink + 1e-6);
		case MR_MEASURE_JACCARD:
			return common / (a + b - common + shrink + 1e-6);
		default:
			return common / (a * b + shrink + 1e-6);
	}
}

/* Sizes of a block. */
typedef struct MrKnnShape
{
	MrKnnParams params;
	uint32 users;
	uint32 items;
	uint32 pairs;
	bool weighted; /* products of weights are summed; else users are counted */
	bool symmetric; /* each pair of items is computed once, for both of them */
	int participants; /* processes that have lists of their own */
} MrKnnShape;

typedef struct MrKnnHead MrKnnHead;

/* A block as one process sees it. */
typedef struct MrKnn
{
	MrKnnShape shape;
	MrKnnHead *head;
	uint32 *user_start; /* by user, and one more: where his items begin */
	uint32 *user_items; /* labels, ascending */
	double *user_weights; /* when weighted */
	uint32 *item_start; /* by label, and one more: where its users begin */
	uint32 *item_users; /* ascending */
	uint32 *item_places; /* where the item stands in user_items */
	double *sizes; /* by label: the norm, or how many users */
	uint32 *numbers; /* by label */
	MrNeighbour *lists; /* by participant and label, k each; when symmetric */
	uint32 *lengths;
	int32 *neighbours; /* by number, k each, best first: what is found */
	float *scores;
	uint32 *found; /* by number: how many */
	/* When there is no block, neighbours and scores lie one list behind the other. */
	uint64 *list_start; /* by number; NULL: there is a block */
	MrColumn *list_neighbours; /* int32 */
	MrColumn *list_scores; /* float */
} MrKnn;

/* The neighbours of an item, best first, and their scores; they are there until those of another are asked for. */
static inline const int32 *
mr_knn_list(const MrKnn *knn, uint32 number, const float **scores)
{
	Size k = knn->shape.params.k;

	if (knn->list_start != NULL)
	{
		*scores = mr_column_read(knn->list_scores, knn->list_start[number], knn->found[number]);
		return mr_column_read(knn->list_neighbours, knn->list_start[number], knn->found[number]);
	}
	*scores = knn->scores + number * k;
	return knn->neighbours + number * k;
}

/* The size of a block; and of all that it takes to compute with one. */
extern Size mr_knn_size(const MrKnnShape *shape);
extern Size mr_knn_memory(const MrKnnShape *shape);

/* Lays a new block out; and finds the way around in one. */
extern void mr_knn_init(MrKnn *knn, void *block, const MrKnnShape *shape);
extern void mr_knn_attach(MrKnn *knn, void *block);

/* Computes sizes, when the matrix is there. */
extern void mr_knn_measure(MrKnn *knn);

/* What each process of a training does, with the help of others or alone. */
extern void mr_knn_work(MrKnn *knn, int participant, bool is_leader);

/* Shared memory for a block; NULL: the system has none. */
extern dsm_segment *mr_knn_segment(Size size);

/* Does work here, and lets workers do it by a function of the library, to which the toc tells the segment. */
extern void mr_parallel_run(const char *function, dsm_segment *segment, int workers,
							void (*work)(void *), void *arg);
extern dsm_segment *mr_parallel_segment(shm_toc *toc);

/* Runs it with so many workers at most; the block is in the segment, or in this process when there is none. */
extern void mr_knn_run(MrKnn *knn, dsm_segment *segment, int workers);

/*
 * The same without a block, from the input itself; the weights are those of its pairs as the measure counts them, NULL when
 * they are 1.  Alone, and in as much memory as is left, in passes over the pairs.
 */
extern void mr_knn_run_passes(MrKnn *knn, const MrInput *input, MrColumn *weights);

extern PGDLLEXPORT void mr_knn_worker_main(dsm_segment *segment, shm_toc *toc);

#endif /* MR_MODEL_KNN_H */
