/*
 * recent.c
 *	  Pages that this process has met before, and the rows on them.
 *
 * What is remembered is in which buffer a page stood; the page may have gone from there: whoever pins it checks.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "core/compat.h"
#include "core/recent.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/buf_internals.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

/* How many rows ahead each step of asking for memory is. */
#define ROWS_AHEAD 4

/* The fewest pages of a relation that are remembered. */
#define FEWEST 1024

/* The pages of one relation. */
typedef struct Pages
{
	Oid relid; /* hash key */
	uint32 mask; /* two blocks that agree in these bits share a place */
	Buffer *buffers; /* by block */
} Pages;

static HTAB *relations;
static Pages *latest; /* asked for: they come in turns that are long */
static Size remembered; /* places of all relations */

/* Makes room for a block, unless as many places are there as the server has buffers, twice. */
static void
grow(Pages *pages, BlockNumber block)
{
	Size before = pages->mask + (Size) 1;
	Size after = pg_nextpower2_64(Max((uint64) block + 1, 2 * before));

	if (remembered + after - before > 2 * (Size) NBuffers)
		return;
	pages->buffers = repalloc_huge(pages->buffers, sizeof(Buffer) * after);
	memset(pages->buffers + before, 0, sizeof(Buffer) * (after - before));
	pages->mask = after - 1;
	remembered += after - before;
}

/* Those of a relation. */
static Pages *
pages_of(Oid relid)
{
	HASHCTL control = {.keysize = sizeof(Oid), .entrysize = sizeof(Pages)};
	Pages *pages;
	bool found;

	if (relations == NULL)
		relations = hash_create("millrace recent pages", 64, &control, HASH_ELEM | HASH_BLOBS);
	pages = hash_search(relations, &relid, HASH_ENTER, &found);
	if (!found)
	{
		pages->mask = FEWEST - 1;
		pages->buffers = MemoryContextAllocZero(TopMemoryContext, sizeof(Buffer) * FEWEST);
		remembered += FEWEST;
	}
	return pages;
}

/* Where it is remembered in which buffer a page stood. */
static inline Buffer *
place_of(Relation relation, BlockNumber block)
{
	if (unlikely(latest == NULL || latest->relid != RelationGetRelid(relation)))
		latest = pages_of(RelationGetRelid(relation));
	return &latest->buffers[block & latest->mask];
}

/* The page that stands there; NULL when none was met, and of a temporary table. */
static inline Page
page_at(Buffer buffer)
{
	return buffer > 0 ? BufferGetPage(buffer) : NULL;
}

/* Counts a page as used, as looking it up does: it is to stay longer than what nobody wants again. */
static void
count_use(Buffer buffer)
{
	pg_atomic_uint32 *shared = &GetBufferDescriptor(buffer - 1)->state;
	uint32 state = pg_atomic_read_u32(shared);

	/* Whoever has it locked puts back what he has read: then it is not worth waiting for. */
	while ((state & BM_LOCKED) == 0 && BUF_STATE_GET_USAGECOUNT(state) < BM_MAX_USAGE_COUNT &&
		   !pg_atomic_compare_exchange_u32(shared, &state, state + BUF_USAGECOUNT_ONE))
		;
}

Buffer
mr_recent_read(Relation relation, BlockNumber block)
{
	Buffer *place = place_of(relation, block);

	if (BufferIsValid(*place) && mr_read_recent_buffer(relation, block, *place))
	{
		if (*place > 0)
			count_use(*place);
		return *place;
	}
	if (block > latest->mask)
	{
		grow(latest, block);
		place = place_of(relation, block);
	}
	return *place = ReadBuffer(relation, block);
}

void
mr_recent_prefetch_place(Relation relation, BlockNumber block)
{
	__builtin_prefetch(place_of(relation, block));
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
		mr_recent_prefetch_place(heap, ItemPointerGetBlockNumberNoCheck(&places[i]));
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
