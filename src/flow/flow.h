/*
 * flow.h
 *	  What runs all stages: one stream's share of one worker, batch by batch.
 */
#ifndef MR_FLOW_FLOW_H
#define MR_FLOW_FLOW_H

#include "core/batch.h"
#include "core/millrace.h"

typedef struct MrFlow MrFlow;

/* The stream was stopped, dropped or declared anew: close the flow and look at the stream again. */
#define MR_FLOW_CHANGED (-1)

/*
 * Opens the share of worker `worker` (from 0) of `workers`: compiles the stream's plan and opens its source
 * at the stored positions.  Called outside any transaction and makes its own; everything that lasts lives in
 * a child of CurrentMemoryContext.  NULL when the stream is gone.
 */
extern MrFlow *mr_flow_open(int32 stream_id, int worker, int workers);

/*
 * One batch in one transaction of its own, activations before it in theirs.  Waits at most `wait_ms` for the
 * first message.  Returns the number of messages consumed, 0 when there was nothing, MR_FLOW_CHANGED when
 * the flow no longer fits its stream.  Called outside any transaction; after an error the caller aborts
 * what is open and closes the flow.
 */
extern int64 mr_flow_step(MrFlow *flow, int wait_ms);

/*
 * One chunk of what is to be filled (worker 0), in a transaction of its own; false when nothing is to be filled
 * now.  Its errors are noted and stop nothing.
 */
extern bool mr_flow_fill(MrFlow *flow);

/* Is there something to be done before anything can come? */
extern bool mr_flow_hurried(const MrFlow *flow);

/* Would its source give again what a crash takes?  See MrSourceKind. */
extern bool mr_flow_lasting(const MrFlow *flow);

/* Why nothing comes although the stream runs, or NULL. */
extern const char *mr_flow_problem(const MrFlow *flow);

/*
 * The source's descriptor, readable when there is something to fetch, or PGINVALID_SOCKET: then the worker's
 * latch says so (mr_worker_wake).
 */
extern pgsocket mr_flow_descriptor(MrFlow *flow);

/* The message that is being worked on, for error contexts; NULL between messages. */
extern const MrMessage *mr_flow_message(const MrFlow *flow);

/* Which class an error belongs to that came out of mr_flow_step; see mr_error_class. */
extern MrErrorClass mr_flow_error_class(int sqlstate);

/* Closes the source and frees everything; also after an error, and outside any transaction. */
extern void mr_flow_close(MrFlow *flow);

/* Entry point of the stream worker. */
extern PGDLLEXPORT void mr_stream_worker_main(Datum slot);

#endif /* MR_FLOW_FLOW_H */
