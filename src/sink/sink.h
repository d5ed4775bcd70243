/*
 * sink.h
 *	  Sinks: changed rows of a staging table or mart become messages.
 */
#ifndef MR_SINK_SINK_H
#define MR_SINK_SINK_H

#include "stage/staging.h"

extern const MrTargetKind mr_sink_kind;

/* Lets sinks find the marts whose rows they send: called with all targets of a stream after they have been loaded. */
extern void mr_sinks_arrange(List *targets);

#endif /* MR_SINK_SINK_H */
