/*
 * ids.h
 *	  The ids of users and items: numbered as they come, then by their order.
 */
#ifndef MR_MODEL_IDS_H
#define MR_MODEL_IDS_H

#include "model/model.h"

typedef struct MrIds MrIds;

/* The collation that ids of a type are compared by: "C", when it has any. */
extern Oid mr_ids_collation(Oid type);

/* Can ids be equal that differ, as the numeric 1.0 and 1.00? */
extern bool mr_ids_vary(Oid type);

/* For ids of a type; lives in CurrentMemoryContext.  Of equal ones that differ the same one stays, in whatever order they come. */
extern MrIds *mr_ids_create(Oid type, const char *what);

/* The number of an id by arrival, a new one for a new id. */
extern uint32 mr_ids_number(MrIds *ids, Datum value);

/* Raises an error for an id that is too long to be looked up. */
extern void mr_ids_check(const MrIds *ids);

extern uint32 mr_ids_count(const MrIds *ids);
extern Oid mr_ids_type(const MrIds *ids);

/* Sorts them: by arrival, the place of each in the type's order.  No more can come then. */
extern uint32 *mr_ids_sort(MrIds *ids);

/* After sorting, of two of the same type: for each of some, its place among others, or MR_UNKNOWN. */
#define MR_UNKNOWN PG_UINT32_MAX
extern uint32 *mr_ids_places(const MrIds *ids, const MrIds *others);

/* After sorting, by place. */
extern Datum mr_ids_value(const MrIds *ids, uint32 place);
extern char *mr_ids_text(const MrIds *ids, uint32 place);

#endif /* MR_MODEL_IDS_H */
