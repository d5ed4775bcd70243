/*
 * booster.h
 *	  Training trees with XGBoost, in programs of its own.
 */
#ifndef MR_MODEL_BOOSTER_H
#define MR_MODEL_BOOSTER_H

#include "postgres.h"

typedef struct MrBoosting
{
	char **params; /* a name and a value by turns */
	int nparams;
	char **features;
	int nfeatures;
	uint32 rounds;
	uint32 patience; /* rounds without a better one before it stops; 0: none is judged */
	uint64 rows;
	uint64 rows_to_stop; /* the last ones do not train, but say which round is the best */
	const float *labels;
	/* Gives the values of a row. */
	void (*row)(void *context, uint64 row, float *values);
	void *context;
} MrBoosting;

/* Trainings that are independent of each other. */
typedef struct MrBoosterWork
{
	int trainings;
	int at_once; /* how many programs run at a time */
	uint64 rounds; /* of all of them, for the progress */
	/* Says what one is about, when it starts; what it allocates is kept until the training has been taken. */
	void (*give)(void *context, int training, MrBoosting *boosting);
	/* Takes its model, as XGBoost saves it, with so many rounds; in whatever order they end. */
	void (*take)(void *context, int training, bytea *model, uint32 rounds);
	void *context;
} MrBoosterWork;

extern void mr_booster_train(const MrBoosterWork *work);

#endif /* MR_MODEL_BOOSTER_H */
