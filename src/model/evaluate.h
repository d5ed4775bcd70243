/*
 * evaluate.h
 *	  How well a version finds what users have beside what it was trained on.
 */
#ifndef MR_MODEL_EVALUATE_H
#define MR_MODEL_EVALUATE_H

#include "model/input.h"
#include "utils/array.h"

/* A version as it is judged. */
typedef struct MrJudged
{
	MrInput *input; /* what it was trained on: users, items, and who has what */
	/* By item: of what items it is a neighbour. */
	Size *start; /* one more than there are items */
	MrColumn *targets; /* int32 */
	MrColumn *scores; /* float */
} MrJudged;

/* What it is judged by. */
typedef struct MrTest
{
	MrInput *asked; /* to be found */
	MrInput *given; /* what users have beside what the version knows of them; or NULL */
	bool *skipped; /* by pair that is asked: it does not count */
	/* The numbers of its users and items in what the version to be judged was trained on. */
	uint32 *users; /* those asked for */
	uint32 *items;
	uint32 *given_users; /* by user asked for: his number among those given */
	uint32 *given_items;
} MrTest;

typedef struct MrMetric
{
	int kind;
	int k; /* 0: of a metric that has none */
} MrMetric;

typedef struct MrJudgement
{
	double *values; /* by metric; NaN: nobody was asked for */
	double *popular; /* the same of recommending what most users have */
	uint32 users; /* that were asked for */
	int64 pairs; /* that count */
} MrJudgement;

/* Reads names of metrics; an error names the one that is not known. */
extern MrMetric *mr_metrics_parse(ArrayType *names, int *n);

/* A test of nothing skipped. */
extern MrTest *mr_test_create(MrInput *asked, MrInput *given);

/* Finds a test's users and items in what a version was trained on, before it is judged. */
extern void mr_test_place(MrTest *test, const MrInput *input);

/* Skips what that has: the version cannot recommend it.  For a test that is placed in it. */
extern void mr_test_skip(MrTest *test, const MrInput *input);

extern void mr_evaluate(const MrJudged *judged, const MrTest *test, const MrMetric *metrics, int n,
						MrJudgement *judgement);

/* Reads a version from its tables. */
extern void mr_judged_load(MrJudged *judged, int32 model_id, int32 version);

/* The evaluation set of a model, as a test; NULL: it has none. */
extern MrTest *mr_test_kept(int32 model_id);

#endif /* MR_MODEL_EVALUATE_H */
