/*
 * input.h
 *	  What a model is trained on: the rows of its query, as a sparse matrix.
 */
#ifndef MR_MODEL_INPUT_H
#define MR_MODEL_INPUT_H

#include "model/ids.h"

typedef struct MrInput
{
	MrIds *users;
	MrIds *items;
	bool weighted; /* the query gives weights */
	int64 rows; /* read */
	int64 skipped; /* because of a NULL */
	uint32 pairs; /* after the sums */
	uint32 nusers;
	uint32 nitems;
	/* By user, each with his items in ascending order; all are numbers by the order of the ids. */
	uint32 *user_start; /* one more than there are users */
	uint32 *user_items;
	double *weights; /* when weighted */
	uint32 *item_users; /* by item: how many users have it */
	uint64 digest; /* of all of it */
} MrInput;

/* Runs the query of a model as its owner and sums it up; memory is of CurrentMemoryContext. */
extern MrInput *mr_input_read(int32 model_id, Oid owner);

#endif /* MR_MODEL_INPUT_H */
