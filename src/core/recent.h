/*
 * recent.h
 *	  Pages that this process has met before, and the rows on them: to look first where a page stood is cheaper than to
 *	  look it up, and its memory can be asked for ahead.
 */
#ifndef MR_CORE_RECENT_H
#define MR_CORE_RECENT_H

#include "access/htup.h"
#include "storage/bufmgr.h"
#include "utils/rel.h"
#include "utils/snapshot.h"

/* Pins a page. */
extern Buffer mr_recent_read(Relation relation, BlockNumber block);

/* Asks for what mr_recent_prefetch() of the page reads. */
extern void mr_recent_prefetch_place(Relation relation, BlockNumber block);

/* Asks for what pinning the page and looking at its head reads; where it may stand, or NULL if it was not met. */
extern Page mr_recent_prefetch(Relation relation, BlockNumber block);

/*
 * A copy of the row, as the snapshot sees it, that stands at the place or has come from the one there; or NULL.  Whoever
 * does not hold the leaf that led there may get another row, which has taken the place.  What is dead on the page is taken away
 * when less than `room`, or than new versions need, is left.  The page stays pinned in *buffer, to be released by the caller, unless
 * another one is wanted next.
 */
extern HeapTuple mr_recent_copy(Relation heap, ItemPointer place, Snapshot snapshot, Size room,
								Buffer *buffer);

/* Asks for what copying the rows reads that come after the i-th of n; a place may be invalid. */
extern void mr_recent_prefetch_rows(Relation heap, const ItemPointerData *places, int n, int i);

#endif /* MR_CORE_RECENT_H */
