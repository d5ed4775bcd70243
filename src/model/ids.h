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

/* For ids of a type; lives in CurrentMemoryContext. */
extern MrIds *mr_ids_create(Oid type, const char *what);

/* The number of an id by arrival, a new one for a new id. */
extern uint32 mr_ids_number(MrIds *ids, Datum value);

extern uint32 mr_ids_count(const MrIds *ids);
extern Oid mr_ids_type(const MrIds *ids);

/* Sorts them: by arrival, the place of each in the type's order. */
extern uint32 *mr_ids_sort(MrIds *ids);

/* After sorting: the place of an id; false when it is not known. */
extern bool mr_ids_place(MrIds *ids, Datum value, uint32 *place);

/* After sorting, by place. */
extern Datum mr_ids_value(const MrIds *ids, uint32 place);
extern char *mr_ids_text(const MrIds *ids, uint32 place);

#endif /* MR_MODEL_IDS_H */
