/*
 * popular.h
 *	  What is popular by a query of the model's owner, in the place of what most users of a version have.
 */
#ifndef MR_MODEL_POPULAR_H
#define MR_MODEL_POPULAR_H

#include "executor/spi.h"

/* What a session keeps of it: its statements. */
typedef struct MrPopularKept
{
	int32 model_id; /* 0: nothing yet */
	Oid owner;
	Oid view;
	Oid group; /* the type of groups, or InvalidOid: there are none */
	SPIPlanPtr all;
	SPIPlanPtr of_group;
} MrPopularKept;

/*
 * Calls back with the items of a group (NULL: of all), the most popular first, those as popular as each other in their order,
 * until that returns false.
 */
extern void mr_popular_read(MrPopularKept *kept, Oid model, int32 model_id, Oid owner, char *group,
							bool (*offer)(void *context, Datum id), void *context);

/* The error when there are no groups. */
extern void mr_popular_refuse_group(Oid model);

#endif /* MR_MODEL_POPULAR_H */
