/*
 * lists.h
 *	  A version of item-item neighbours in shared memory.
 *
 * What a call reads of the version's tables item, target and source, with the items' ids.  What a user had stays in its table.
 */
#ifndef MR_MODEL_LISTS_H
#define MR_MODEL_LISTS_H

#include "model/lookup.h"
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

/*
 * The version of a model in shared memory; NULL: there is no copy (yet).  One that the current transaction has made has none.  It
 * is there until the segment is detached.
 */
extern dsm_segment *mr_version_attach(Oid relation, int32 model_id, int32 version, MrCopy *found);

/* The id of an item. */
static inline Datum
mr_version_id(const MrCopy *version, uint32 item)
{
	return version->id_start == NULL ? ((const Datum *) version->ids)[item]
									 : PointerGetDatum(version->ids + version->id_start[item]);
}

extern PGDLLEXPORT void mr_version_copy_main(Datum slot);

#endif /* MR_MODEL_LISTS_H */
