/*
 * extend.h
 *	  Making room at the end of heaps and indexes for many rows at once.
 */
#ifndef MR_CORE_EXTEND_H
#define MR_CORE_EXTEND_H

#include "executor/tuptable.h"
#include "utils/rel.h"

/*
 * Adds empty pages to a heap for `nrows` rows like those that were written last, or for more that will come, unless there is other
 * room for them.
 */
extern void mr_extend_heap(Relation relation, TupleTableSlot *const *written, int nwritten,
						   int nrows);

/* Adds empty pages to a B-tree for splits, unless there are some. */
extern void mr_extend_index(Relation index);

#endif /* MR_CORE_EXTEND_H */
