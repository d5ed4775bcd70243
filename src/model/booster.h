/*
 * booster.h
 *	  Training trees with XGBoost, in a program of its own.
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

/* The model as XGBoost saves it, and how many rounds it has. */
extern bytea *mr_booster_train(const MrBoosting *boosting, uint32 *rounds);

#endif /* MR_MODEL_BOOSTER_H */
