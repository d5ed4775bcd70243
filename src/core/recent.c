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

/* Of so many pages one is looked up as others do it: what is met by its buffer does not count as used. */
#define LOOKED_UP 4

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

/* Where the page may stand. */
static inline Page
page_of(Relation relation, BlockNumber block)
{
	Buffer buffer = *place_of(relation, block);

	return BufferIsValid(buffer) ? BufferGetPage(buffer) : NULL;
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
	Page page = page_of(relation, block);

	if (page != NULL)
	{
		__builtin_prefetch(GetBufferDescriptor(buffer - 1), 1);
		__builtin_prefetch(page);
	}
	return page;
}

HeapTuple
mr_recent_copy(Relation heap, ItemPointer place, Snapshot snapshot, Buffer *buffer)
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
	 * Whoever copies a row is going to change it.  The page is pruned when a new version might not fit any more: an index scan
	 * would prune whenever a page is nearly full or fuller than the fill factor, as those are that have been changed before.
	 */
	if (PageIsFull(page) || PageGetHeapFreeSpace(page) < 2 * copy->t_len)
		heap_page_prune_opt(heap, *buffer);
	return copy;
}

void
mr_recent_prefetch_rows(Relation heap, const ItemPointerData *places, int n, int i)
{
	const ItemPointerData *place = &places[i + 3 * ROWS_AHEAD];
	Page page;

	/* First what tells where its page is, ... */
	if (i + 3 * ROWS_AHEAD < n && ItemPointerIsValid(place))
		__builtin_prefetch(place_of(heap, ItemPointerGetBlockNumberNoCheck(place)));
	place -= ROWS_AHEAD;
	/* ... then the page and what tells where on it the row is, ... */
	if (i + 2 * ROWS_AHEAD < n && ItemPointerIsValid(place) &&
		(page = mr_recent_prefetch(heap, ItemPointerGetBlockNumberNoCheck(place))) != NULL)
		__builtin_prefetch(PageGetItemId(page, ItemPointerGetOffsetNumberNoCheck(place)));
	place -= ROWS_AHEAD;
	/* ... then the row. */
	if (i + ROWS_AHEAD < n && ItemPointerIsValid(place) &&
		(page = page_of(heap, ItemPointerGetBlockNumberNoCheck(place))) != NULL)
	{
		ItemId item = PageGetItemId(page, ItemPointerGetOffsetNumberNoCheck(place));

		if (ItemIdIsRedirected(item))
			item = PageGetItemId(page, ItemIdGetRedirect(item));
		__builtin_prefetch(page + ItemIdGetOffset(item));
		__builtin_prefetch(page + ItemIdGetOffset(item) + PG_CACHE_LINE_SIZE / 2);
	}
}
