/*
 * plan.h
 *	  A stream compiled: its staging tables and what hangs on them.
 */
#ifndef MR_FLOW_PLAN_H
#define MR_FLOW_PLAN_H

#include "stage/mapping.h"

/*
 * Loads and compiles a stream into a child of `parent`; NULL when it is gone.  The caller is in a transaction,
 * connected to SPI, and holds the stream's lock.  *pending are the ids of targets that wait for activation.
 */
extern MrStream *mr_flow_compile(MemoryContext parent, int32 stream_id, MrPlan **extraction,
								 List **pending);

/* One target, compiled with all its sources, whatever stream they belong to. */
extern MrTarget *mr_flow_compile_target(MrStream *stream, int32 target_id);

/*
 * Activates pending targets, under the exclusive lock of all streams that feed them: from now on batches keep them, and
 * what was there before is filled in (C11).
 */
extern void mr_flow_activate(MrStream *stream, const List *pending);

/* Decodes, maps, stages and applies what the batch holds, leaving bad data out; writes dead letters. */
extern void mr_flow_process(MrStream *stream, MrPlan *extraction, MrBatch *batch);

/* Writes what a batch means for a target; errors say whose they are. */
extern void mr_flow_apply(MrTarget *target, MrBatch *batch);

/* Decodes and maps what the batch holds, all of it staged before, and applies it to one target only. */
extern void mr_flow_judge(MrStream *stream, MrPlan *extraction, MrBatch *batch, MrTarget *target);

/*
 * What enrichment does before that where a Redis may be waited for outside the batch's transaction: collects the ids of a
 * batch, in a transaction of its own.
 */
extern void mr_flow_collect_ids(MrStream *stream, MrBatch *batch);

/* Asks tables, and reads what was found. */
extern void mr_flow_read_entries(MrStream *stream);

/* Readies the batch for the stream's staging tables. */
extern void mr_flow_prepare(MrStream *stream, MrBatch *batch);

/* Time and rows by stage, since the process began to count; written now and then (mr_flow_stats_write). */
typedef struct MrStageTime
{
	int64 batches;
	int64 rows;
	double seconds;
} MrStageTime;

extern void mr_flow_stats_add(MrStage stage, instr_time start, int64 rows);
extern void mr_flow_stats_forget(void);
extern void mr_flow_stats_write(MrStream *stream, int worker, bool now);

/* What others' DDL changes between these two and later makes mr_watch_changed true; see watch.c. */
extern void mr_watch_begin(void);
extern void mr_watch_end(const MrStream *stream);
/* Locks the staging tables as for writing.  In the transaction of a batch. */
extern bool mr_watch_changed(const MrStream *stream);

#endif /* MR_FLOW_PLAN_H */
