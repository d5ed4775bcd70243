/*
 * lists.h
 *	  A version of item-item neighbours in shared memory.
 *
 * What a call reads of the version's tables item, target and source, with the items' ids.  What a user had stays in its table.
 */
#ifndef MR_MODEL_LISTS_H
#define MR_MODEL_LISTS_H

#include "storage/dsm.h"

/* One entry of a list. */
typedef struct MrListed
{
	uint32 number;
	float score;
} MrListed;

/* The lists of all items in one direction: of item i from start[i] to start[i + 1]. */
typedef struct MrLists
{
	uint64 *start;
	MrListed *entries;
} MrLists;

/* A copy as one process sees it. */
typedef struct MrCopy
{
	uint32 items;
	uint32 *places; /* items by popularity */
	MrLists targets;
	MrLists sources;
	uint64 *id_start; /* by item: where its id begins, unless ids are passed by value */
	char *ids;
} MrCopy;

/* The way around in a copy. */
extern void mr_lists_find(MrCopy *found, char *block);

/* For the process that makes a copy, of so many items and neighbours; NULL: there is no room. */
extern dsm_segment *mr_lists_copy(int32 model_id, int32 version, uint64 nitems, uint64 neighbours);

/* The id of an item. */
static inline Datum
mr_lists_id(const MrCopy *copy, uint32 item)
{
	return copy->id_start == NULL ? ((const Datum *) copy->ids)[item]
								  : PointerGetDatum(copy->ids + copy->id_start[item]);
}

#endif /* MR_MODEL_LISTS_H */
