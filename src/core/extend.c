/*
 * extend.c
 *	  Making room at the end of heaps and indexes for many rows at once.
 *
 * A relation grows by one page at a time, each of which is written to the file as zeroes first; from PostgreSQL 16 on only indexes
 * do.  Here the file system is asked for the room of many pages, as 16 does for heaps, and they are left to whoever looks for free
 * ones.
 */
#include "postgres.h"

#include <fcntl.h>

#include "common/relpath.h"
#include "core/compat.h"
#include "core/extend.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/fd.h"
#include "storage/freespace.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/smgr.h"

/* Pages that are added at once, at most: all of them are pinned. */
#define MAX_PAGES 64

/* A relation grows by this part of it, or MAX_PAGES: a small one gets no pages that it may never need. */
#define GROWN_PART 32

#ifdef MR_RELATIONS_GROW_BY_THE_PAGE

/* Has the file system set room aside for pages of one segment, which read as zeroes; false when it knows no way. */
static bool
reserve(Relation relation, BlockNumber first, int npages)
{
#ifdef HAVE_POSIX_FALLOCATE
	BlockNumber segment = first / RELSEG_SIZE;
	char *path = relpath(RelationGetSmgr(relation)->smgr_rnode, MAIN_FORKNUM);
	int file;
	int error;

	if (segment > 0)
		path = psprintf("%s.%u", path, segment);
	file = OpenTransientFile(path, O_RDWR | PG_BINARY);
	if (file < 0)
		ereport(ERROR, (errcode_for_file_access(), errmsg("could not open file \"%s\": %m", path)));
	do
		error = posix_fallocate(file, (off_t) (first % RELSEG_SIZE) * BLCKSZ,
								(off_t) npages * BLCKSZ);
	while (error == EINTR);
	CloseTransientFile(file);
	if (error == 0)
		return true;
	errno = error;
	if (error != EINVAL && error != EOPNOTSUPP)
		ereport(ERROR, (errcode_for_file_access(), errmsg("could not extend file \"%s\": %m", path),
						errhint("Check free disk space.")));
#endif
	return false;
}

/* Adds at most so many empty pages, pinned in `buffers` in their order, and returns how many; 0 when the next one begins a segment. */
static int
add_pages(Relation relation, int npages, Buffer *buffers)
{
	PGAlignedBlock zeroes = {0};
	BlockNumber first;

	LockRelationForExtension(relation, ExclusiveLock);
	first = RelationGetNumberOfBlocks(relation);
	npages = first % RELSEG_SIZE == 0 ? 0 : Min(npages, RELSEG_SIZE - first % RELSEG_SIZE);
	/* Before anybody else can see the pages they stand in memory, so that nobody's rows are taken for zeroes. */
	for (int i = 0; i < npages; i++)
	{
		buffers[i] = ReadBufferExtended(relation, MAIN_FORKNUM, first + i, RBM_ZERO_AND_LOCK, NULL);
		if (!PageIsNew(BufferGetPage(buffers[i])))
			ereport(ERROR, (errmsg("unexpected data beyond EOF in block %u of relation %s",
								   first + i, RelationGetRelationName(relation))));
		LockBuffer(buffers[i], BUFFER_LOCK_UNLOCK);
	}
	/* Once there is room, somebody may be using it: then nothing more is written there.  A hole is what hash indexes make. */
	if (npages > 0 && !reserve(relation, first, npages))
		smgrextend(RelationGetSmgr(relation), MAIN_FORKNUM, first + npages - 1, zeroes.data, false);
	UnlockRelationForExtension(relation, ExclusiveLock);
	return npages;
}

#else

/* Adds at most so many empty pages, pinned in `buffers` in their order, and returns how many. */
static int
add_pages(Relation relation, int npages, Buffer *buffers)
{
	uint32 added;

	(void) ExtendBufferedRelBy(BMR_REL(relation), MAIN_FORKNUM, NULL, 0, npages, buffers, &added);
	return added;
}

#endif

/* Adds some of so many empty pages, which whoever looks for free ones finds, and makes them what he needs; returns how many. */
static int
add_free_pages(Relation relation, int64 wanted)
{
	Buffer buffers[MAX_PAGES];
	int most = Min(MAX_PAGES, NBuffers / (MaxBackends + NUM_AUXILIARY_PROCS));
	int npages = most > 0 ? add_pages(relation, Min(wanted, most), buffers) : 0;
	BlockNumber first = npages > 0 ? BufferGetBlockNumber(buffers[0]) : InvalidBlockNumber;

	for (int i = 0; i < npages; i++)
	{
		ReleaseBuffer(buffers[i]);
		RecordPageWithFreeSpace(relation, first + i, BLCKSZ - 1);
	}
	if (npages > 0)
		FreeSpaceMapVacuumRange(relation, first, first + npages);
	return npages;
}

void
mr_extend_heap(Relation relation, TupleTableSlot *const *written, int nwritten, int nrows)
{
#ifdef MR_RELATIONS_GROW_BY_THE_PAGE
	BlockNumber last = ItemPointerGetBlockNumber(&written[nwritten - 1]->tts_tid);
	int64 pages = 1;
	int added;

	for (int i = 1; i < nwritten; i++)
		pages += ItemPointerGetBlockNumber(&written[i]->tts_tid) !=
				 ItemPointerGetBlockNumber(&written[i - 1]->tts_tid);
	pages = pages * nrows / nwritten;
	if (pages <= 1)
		return;
	pages -= (int64) RelationGetNumberOfBlocks(relation) - 1 - last;
	/* What is free elsewhere is used first. */
	if (pages <= 1 || GetPageWithFreeSpace(relation, BLCKSZ / 2) < last)
		return;
	pages = Max(pages, Min(RelationGetNumberOfBlocks(relation) / GROWN_PART, MAX_PAGES));
	while (pages > 1 && (added = add_free_pages(relation, pages)) > 0)
		pages -= added;
#endif
}

void
mr_extend_index(Relation index)
{
	BlockNumber pages = RelationGetNumberOfBlocks(index) / GROWN_PART;

	if (pages > 1 && !BlockNumberIsValid(GetPageWithFreeSpace(index, BLCKSZ / 2)))
		(void) add_free_pages(index, pages);
}
