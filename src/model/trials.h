/*
 * trials.h
 *	  Trials of a search for the parameters of item-item neighbours.
 */
#ifndef MR_MODEL_TRIALS_H
#define MR_MODEL_TRIALS_H

#include "model/evaluate.h"
#include "model/knn.h"

/* What was learnt, and how long it took. */
typedef struct MrLearnt
{
	MrKnn knn;
	dsm_segment *segment; /* where it lies; NULL: in a context of this process */
	MemoryContext context;
	double seconds;
} MrLearnt;

/* Finds the neighbours of each item, with so many workers at most; and lets go of them. */
extern void mr_learn(MrLearnt *learnt, const MrInput *input, const MrKnnParams *params,
					 int workers);
extern void mr_forget(MrLearnt *learnt);

/* The least memory with which a process learns without temporary files, and judges. */
extern Size mr_learn_memory(const MrInput *input, const MrKnnParams *params);

typedef struct MrTrial
{
	MrKnnParams params;
	int number; /* from 0 */
	int rung; /* how far it came, from 1 */
	double *values; /* by metric */
	double seconds;
} MrTrial;

/* Judges trials by what they learn from an input, whose places are in the test.  What a single one has learnt stays. */
extern void mr_trials_judge(MrInput *input, MrTest *test, MrTrial *trials, int ntrials,
							const MrMetric *metrics, int nmetrics, MrLearnt *learnt,
							MrJudgement *judgement);

extern PGDLLEXPORT void mr_trials_worker_main(dsm_segment *segment, shm_toc *toc);

#endif /* MR_MODEL_TRIALS_H */
