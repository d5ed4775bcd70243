/*
 * backfill.h
 *	  Filling targets chunk by chunk.
 */
#ifndef MR_FLOW_BACKFILL_H
#define MR_FLOW_BACKFILL_H

#include "source/source.h"
#include "stage/staging.h"

/*
 * Notes what the target is to be filled from, under the exclusive lock of its streams and as the extension's
 * owner; false when there is nothing.
 */
extern bool mr_backfill_begin(const MrTarget *target);

/* Is some target of the compiled stream being filled? */
extern bool mr_backfill_pending(const MrStream *stream);

/* Before a batch, in its transaction and under its lock: reads how far such targets have come. */
extern void mr_backfill_refresh(MrStream *stream);

/* What of the batch belongs to the target by now: the batch itself when it is not being filled. */
extern MrBatch *mr_backfill_restrict(const MrTarget *target, MrBatch *batch);

/*
 * The target of which a chunk is to be filled next from what the stream keeps, or 0: one that does not wait after
 * an error; any but some.
 */
extern int32 mr_backfill_next_due(int32 stream_id);
extern int32 mr_backfill_next(int32 stream_id, const List *except);

/* Locks all streams that feed the target exclusively, and returns their ids. */
extern List *mr_backfill_lock(int32 target_id);

/* Fills one chunk, under that lock; false when the compiled stream does not know of it. */
extern bool mr_backfill_chunk(MrStream *stream, int32 target_id);

/* A batch of nothing but what one staging table's chunk will hold: *staged, empty yet. */
extern MrBatch *mr_backfill_batch(MrStream *stream, MrStaging *staging, MrStaged **staged);

/* Notes an error of a chunk, whose transaction was rolled back; it is tried again after a while. */
extern void mr_backfill_failed(int32 target_id, const ErrorData *error);

#endif /* MR_FLOW_BACKFILL_H */
