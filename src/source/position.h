/*
 * position.h
 *	  Rows of millrace.stream_position: how far each partition has been consumed, and by whom (C5).
 */
#ifndef MR_SOURCE_POSITION_H
#define MR_SOURCE_POSITION_H

#include "source/source.h"

typedef struct MrPosition
{
	char *topic; /* "" when the source has none */
	int32 partition;
	int32 epoch;
	int64 position; /* as stored: what the next batch starts from */
	int64 generation;

	/* Of the last message before the position. */
	bool has_last;
	TimestampTz last_time;
	int64 last_checksum;

	/* What is to be stored by mr_positions_advance. */
	int64 next;
	int64 high_watermark; /* -1: not known */
	int64 reached; /* nothing is left to be read below it; -1: not known */
} MrPosition;

/*
 * Raises the generation of the stream's rows whose partition is this worker's and returns them, by topic and
 * partition, in CurrentMemoryContext.  A partition is of the worker partition % workers; with `spread` each topic begins at
 * another worker, so that many topics of one partition are not all the first one's.
 */
extern MrPosition *mr_positions_take(const MrStream *stream, int worker, int workers, bool spread,
									 int *count);

/* Has the open transaction written positions of the stream, so that they are not there if it rolls back? */
extern bool mr_positions_are_ours(const MrStream *stream);

/* Has the stream been opened before, since it was made or reset? */
extern bool mr_positions_any(const MrStream *stream);

/* The topics' partitions that have a row already, whoever's they are. */
extern bool mr_positions_known(const MrStream *stream, const char *topic);

/* Adds a row unless there is one. */
extern void mr_position_insert(const MrStream *stream, const char *topic, int32 partition,
							   int64 position);

/*
 * Moves the positions to their `next` under the fence; an error when one of them is not where this process
 * left it.  The structs themselves are changed by mr_positions_committed.
 */
extern void mr_positions_advance(const MrStream *stream, MrPosition **moved, int count);

/* Waits for whoever moves the position now, and raises the error of a lost fence before work is done. */
extern void mr_position_claim(const MrStream *stream, const MrPosition *position);

/* Puts a position elsewhere, under the fence, and forgets the last message. */
extern void mr_position_put(const MrStream *stream, MrPosition *position, int64 value);

/* Raises the epoch of the stream and all its rows, and their generation: everybody opens again. */
extern void mr_stream_raise_epoch(const MrStream *stream);

/* Was the error that is being handled that of a lost fence?  Asked once. */
extern bool mr_position_was_lost(void);

#endif /* MR_SOURCE_POSITION_H */
