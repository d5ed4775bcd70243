/*
 * extend.h
 *	  Making room at the end of a heap for many rows at once.
 */
#ifndef MR_CORE_EXTEND_H
#define MR_CORE_EXTEND_H

#include "executor/tuptable.h"
#include "storage/block.h"
#include "utils/rel.h"

/*
 * Adds empty pages for `nrows` rows like those that were written last, if the heap, which had `start` pages before, has no other room
 * for them.
 */
extern void mr_extend_heap(Relation relation, BlockNumber start, TupleTableSlot *const *written,
						   int nwritten, int nrows);

#endif /* MR_CORE_EXTEND_H */
