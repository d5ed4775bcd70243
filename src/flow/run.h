/*
 * run.h
 *	  A flow from inside: what running a stream in one's own transaction, trying dead letters again and erasing
 *	  have in common.  Private to src/flow.
 */
#ifndef MR_FLOW_RUN_H
#define MR_FLOW_RUN_H

#include "flow/flow.h"
#include "flow/plan.h"

struct MrFlow
{
	MemoryContext context;
	int32 stream_id;
	int worker;
	int workers;
	bool in_caller; /* one transaction has the stream for itself, and fills, too */
	MrStream *stream;
	MrPlan *extraction;
	List *pending; /* ids of targets that wait for activation */
	bool must_open; /* anew: what was compiled last is not what the source was opened for */
	const MrSourceKind *kind;
	MrSource *source;
	MrBatch *batch;
	Size batch_bytes; /* the next batch may hold so many of raw messages */
	TimestampTz ticked_at;
	TimestampTz measured_at; /* what memory the process has taken */
	TimestampTz fill_at; /* not before, look for something to fill */
	MrWaitingPlace waiting_place; /* where asking again for what messages wait for has come to */
	bool waiting; /* some do */
	TimestampTz waiting_at; /* not before, ask again */
	MrStatement *count_letters; /* private to rate.c */
};

extern MrFlow *mr_flow_create(int32 stream_id, int worker, int workers);

/*
 * Locks and compiles the stream in the open transaction, and activates what has been declared since its last batch;
 * false when it is gone.
 */
extern bool mr_flow_compile_active(MrFlow *flow);

/* The stream that a caller names and may run, or an error. */
extern int32 mr_flow_own_stream(const char *name);

/* Batches in somebody's own transaction need each statement to see what others have committed (C3). */
extern void mr_flow_require_read_committed(const char *what);

/* Deferred constraints are checked by the statements that break them, to the end of the transaction. */
extern void mr_flow_check_constraints(void);

/* No batch may hold more bytes of raw messages. */
extern Size mr_flow_batch_bytes(void);

/*
 * Completes messages that wait for what dictionaries know now: ids are to be wanted (and asked for) before, then
 * letters are mapped again in the open transaction.  mr_flow_complete_wanted returns NULL when nothing is waited for.
 */
extern MrWaitingIds *mr_flow_complete_want(MrFlow *flow);
extern bool mr_flow_complete_known(MrFlow *flow, const MrWaitingIds *ids);

/* How many dead letters a batch has made. */
extern int64 mr_flow_count_letters(const MrBatch *batch);

/* Stops the stream when its last messages made more dead letters than it allows.  In the batch's transaction. */
extern void mr_flow_judge_letters(MrFlow *flow);

#endif /* MR_FLOW_RUN_H */
