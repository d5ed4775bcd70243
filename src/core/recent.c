/*
 * recent.c
 *	  Pages that this process has met before, and the rows on them.
 *
 * What is remembered is where a page stood, by relation and block; two may fall on one place, and the page may
 * have gone: whoever pins it checks.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "core/compat.h"
#include "core/recent.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/buf_internals.h"
#include "utils/memutils.h"

/* Pages that are remembered, at most. */
#define RECENT (1 << 20)

/*
 * Of so many pages one is looked up as others do it: what is met by its buffer does not count as used.  An odd number, as leaves and
 * pages of heaps come in turns.
 */
#define LOOKED_UP 5

/* How many rows ahead each step of asking for memory is. */
#define ROWS_AHEAD 4

static Buffer *recent;
static uint32 recent_mask;

static inline Buffer *
place_of(Relation relation, BlockNumber block)
{
	if (unlikely(recent == NULL))
	{
		uint32 size = pg_nextpower2_32(Min(NBuffers, RECENT));

		recent = MemoryContextAllocZero(TopMemoryContext, sizeof(Buffer) * size);
		recent_mask = size - 1;
	}
	return &recent[(block + RelationGetRelid(relation) * 0x9e3779b1) & recent_mask];
}

/* The page that stands there; NULL when none was met, and of a temporary table. */
static inline Page
page_at(Buffer buffer)
{
	return buffer > 0 ? BufferGetPage(buffer) : NULL;
}

Buffer
mr_recent_read(Relation relation, BlockNumber block)
{
	static uint32 met = 0;
	Buffer *place = place_of(relation, block);

	if (BufferIsValid(*place) && ++met % LOOKED_UP != 0 &&
		mr_read_recent_buffer(relation, block, *place))
		return *place;
	return *place = ReadBuffer(relation, block);
}

Page
mr_recent_prefetch(Relation relation, BlockNumber block)
{
	Buffer buffer = *place_of(relation, block);
	Page page = page_at(buffer);

	if (page != NULL)
	{
		__builtin_prefetch(GetBufferDescriptor(buffer - 1), 1);
		__builtin_prefetch(page);
	}
	return page;
}

HeapTuple
mr_recent_copy(Relation heap, ItemPointer place, Snapshot snapshot, Size room, Buffer *buffer)
{
	BlockNumber block = ItemPointerGetBlockNumber(place);
	HeapTupleData tuple;
	HeapTuple copy;
	Page page;
	bool found;

	if (BufferIsValid(*buffer) && BufferGetBlockNumber(*buffer) != block)
	{
		ReleaseBuffer(*buffer);
		*buffer = InvalidBuffer;
	}
	if (!BufferIsValid(*buffer))
		*buffer = mr_recent_read(heap, block);
	page = BufferGetPage(*buffer);
	LockBuffer(*buffer, BUFFER_LOCK_SHARE);
	found = heap_hot_search_buffer(place, heap, *buffer, snapshot, &tuple, NULL, true);
	LockBuffer(*buffer, BUFFER_LOCK_UNLOCK);
	if (!found)
		return NULL;
	copy = heap_copytuple(&tuple);

	/*
	 * The page is pruned when a new version of the row might not fit any more: an index scan would prune whenever a page is
	 * nearly full or fuller than the fill factor, as those are that have been changed before.
	 */
	if (PageIsFull(page) || PageGetHeapFreeSpace(page) < Max(2 * copy->t_len, room))
		heap_page_prune_opt(heap, *buffer);
	return copy;
}

/* Where the row at a place begins on its page, as far as that can be told while others change it. */
static char *
row_at(Page page, OffsetNumber place)
{
	ItemIdData item = *PageGetItemId(page, place);

	if (ItemIdIsRedirected(&item) && ItemIdGetRedirect(&item) <= MaxHeapTuplesPerPage)
		item = *PageGetItemId(page, ItemIdGetRedirect(&item));
	return page + ItemIdGetOffset(&item);
}

void
mr_recent_prefetch_rows(Relation heap, const ItemPointerData *places, int n, int i)
{
	Page page;

	/* First what tells where its page is, ... */
	i += 3 * ROWS_AHEAD;
	if (i < n && ItemPointerIsValid(&places[i]))
		__builtin_prefetch(place_of(heap, ItemPointerGetBlockNumberNoCheck(&places[i])));
	/* ... then the page and what tells where on it the row is, ... */
	i -= ROWS_AHEAD;
	if (i < n && ItemPointerIsValid(&places[i]) &&
		(page = mr_recent_prefetch(heap, ItemPointerGetBlockNumberNoCheck(&places[i]))) != NULL)
		__builtin_prefetch(PageGetItemId(page, ItemPointerGetOffsetNumberNoCheck(&places[i])));
	/* ... then the row. */
	i -= ROWS_AHEAD;
	if (i < n && ItemPointerIsValid(&places[i]) &&
		(page = page_at(*place_of(heap, ItemPointerGetBlockNumberNoCheck(&places[i])))) != NULL)
	{
		char *row = row_at(page, ItemPointerGetOffsetNumberNoCheck(&places[i]));

		__builtin_prefetch(row);
		__builtin_prefetch(row + PG_CACHE_LINE_SIZE / 2);
	}
}
