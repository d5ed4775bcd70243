/*
 * split.h
 *	  Which pairs judge a version instead of training it.
 */
#ifndef MR_MODEL_SPLIT_H
#define MR_MODEL_SPLIT_H

#include "model/input.h"

typedef enum MrSplitKind
{
	MR_SPLIT_NONE,
	MR_SPLIT_CUSTOMER_ROWS,
	MR_SPLIT_CUSTOMERS,
	MR_SPLIT_TIME,
	MR_SPLIT_LEAVE_ONE_OUT,
	MR_SPLIT_TABLES
} MrSplitKind;

/* What is known of a pair, as bits; one without any trains. */
#define MR_PAIR_ASKED 1 /* judges: it is to be found */
#define MR_PAIR_GIVEN 2 /* does not train, but tells of whom it is asked what he has */
#define MR_PAIR_HELD 4 /* in the model's evaluation set: never trains */

/* The kind of that name. */
extern MrSplitKind mr_split_kind(const char *name);

/* Marks pairs as asked and given; of kind tables none, which come from elsewhere. */
extern void mr_split(const MrInput *input, MrSplitKind kind, double share, int64 seed,
					 uint8 *flags);

/*
 * For trying things on some users first: the hash up to which so many of an input's users have it, and the pairs of
 * another one's users who have it up to there.
 */
extern int64 mr_split_bound(const MrInput *input, uint32 users);
extern MrInput *mr_split_sample(MrInput *input, int64 bound);

#endif /* MR_MODEL_SPLIT_H */
