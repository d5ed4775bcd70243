/*
 * leaf.h
 *	  Many keys in ascending order against a unique B-tree: one descent for each leaf instead of each key.
 */
#ifndef MR_CORE_LEAF_H
#define MR_CORE_LEAF_H

#include "storage/itemptr.h"
#include "utils/rel.h"

typedef struct MrLeaf MrLeaf;

/* So many columns of a key are enough to tell where most keys stand. */
#define MR_LEAF_BEGINNING 2

/* Over an index that is_plain to the caller and has no more than one entry for most keys. */
extern MrLeaf *mr_leaf_create(Relation heap, Relation index);

/*
 * Puts an entry with these values (as for index_insert()), when that is certain to be right without a look at the heap:
 * no other entry has its key, and there is room.  False: nothing was done, and index_insert() has to decide.
 */
extern bool mr_leaf_insert(MrLeaf *leaf, Datum *values, bool *nulls, ItemPointer tuple);

/*
 * The values of the first MR_LEAF_BEGINNING columns of a caller's i-th key, or of all it has.  All are null at first; the first one stays so when the
 * key is not going to be looked for.
 */
typedef void (*MrLeafBegin)(void *context, int i, Datum *values, bool *nulls);

/*
 * Asks the memory, step by step, for what finding the keys reads that come after the i-th of n: to be called before each
 * of them.
 */
extern void mr_leaf_look_ahead(MrLeaf *leaf, int i, int n, MrLeafBegin begin, void *context);

typedef enum MrLeafFinding
{
	MR_LEAF_NONE, /* no entry has the key */
	MR_LEAF_ONE, /* one that has leads to *place; if nothing is to be seen there, another may */
	MR_LEAF_UNSURE
} MrLeafFinding;

/*
 * Looks for an entry with that key.  As long as the page is held, nobody takes away what an entry
 * leads to.
 */
extern MrLeafFinding mr_leaf_find(MrLeaf *leaf, const Datum *values, const bool *nulls,
								  ItemPointer place);

/* The same for the last entry whose key is not greater. */
extern MrLeafFinding mr_leaf_find_last(MrLeaf *leaf, const Datum *values, const bool *nulls,
									   ItemPointer place);

/*
 * Lets the page go that is kept locked for the next key: to be called before anything else is done that may
 * take time or locks.
 */
extern void mr_leaf_release(MrLeaf *leaf);

#endif /* MR_CORE_LEAF_H */
