/*
 * complete.c
 *	  Messages that wait for what a dictionary did not know are mapped again when it does.
 *
 * Worker 0 does it for the whole stream, before its batches and when it is idle, and run_stream() does.  Two of them at once are
 * in each other's way no more than two workers with versions of one object are: a letter is locked, and then gone.
 */
#include "postgres.h"

#include "core/millrace.h"
#include "flow/run.h"
#include "utils/memutils.h"

/* So many ids are asked for at once. */
#define IDS_AT_ONCE 1000

/* So many messages are completed in one transaction. */
#define LETTERS_AT_ONCE 5000

MrWaitingIds *
mr_flow_complete_want(MrFlow *flow)
{
	MemoryContext previous = MemoryContextSwitchTo(flow->batch->context);
	MrWaitingIds *ids;

	if (flow->stream->enrichment != NULL)
		mr_enrich_begin(flow->stream->enrichment);
	ids = mr_waiting_want(flow->stream, &flow->waiting_place, IDS_AT_ONCE);
	MemoryContextSwitchTo(previous);
	return ids->count > 0 ? ids : NULL;
}

bool
mr_flow_complete_known(MrFlow *flow, const MrWaitingIds *ids)
{
	MemoryContext previous = CurrentMemoryContext;
	ArrayType *letters;
	int64 taken = 0;
	int64 superseded = 0;

	MemoryContextSwitchTo(flow->batch->context);
	if (flow->stream->enrichment != NULL)
		mr_flow_read_entries(flow->stream);
	letters = mr_waiting_strike(flow->stream, ids, LETTERS_AT_ONCE);
	if (letters != NULL)
	{
		mr_flow_prepare(flow->stream, flow->batch);
		mr_letter_read(flow->batch, letters, true, 0);
		mr_flow_process(flow->stream, flow->extraction, flow->batch);
		mr_letter_close(flow->batch, &taken, &superseded);
	}
	MemoryContextSwitchTo(previous);
	return letters != NULL;
}
