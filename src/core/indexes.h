/*
 * indexes.h
 *	  The indexes of a table that is written to straight through its access method.
 */
#ifndef MR_CORE_INDEXES_H
#define MR_CORE_INDEXES_H

#include "access/genam.h"
#include "access/tableam.h"
#include "nodes/execnodes.h"
#include "utils/rel.h"

typedef struct MrIndexes
{
	Relation table;
	int count;
	Relation *relations;
	IndexInfo **infos;
	EState *estate; /* of indexes over expressions; NULL when there are none */
} MrIndexes;

/* Opens all that take entries: one that is only being made has no pages yet. */
extern void mr_indexes_open(MrIndexes *indexes, Relation table);
extern void mr_indexes_close(MrIndexes *indexes);

/* Puts the entry of the i-th for the row in the slot; false when the key of a unique one may be there already. */
extern bool mr_indexes_insert(MrIndexes *indexes, int i, TupleTableSlot *slot,
							  IndexUniqueCheck check);

/*
 * Puts the row in the slot in the place of another, and its entries where they are needed, `unique` being the check for unique
 * indexes.  Anything but TM_Ok: nothing was done.
 */
extern TM_Result mr_indexes_update(MrIndexes *indexes, ItemPointer place, TupleTableSlot *slot,
								   CommandId command, Snapshot snapshot, bool wait,
								   IndexUniqueCheck unique);

#endif /* MR_CORE_INDEXES_H */
