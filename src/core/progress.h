/*
 * progress.h
 *	  How far the workers of a stream have come, as their slots say (see worker.c).
 */
#ifndef MR_CORE_PROGRESS_H
#define MR_CORE_PROGRESS_H

#include "utils/timestamp.h"

/* Notes that this worker had consumed then all that was there for it. */
extern void mr_worker_note_caught_up(TimestampTz when);

/* When all workers of a stream had; DT_NOBEGIN while that is not known. */
extern TimestampTz mr_worker_caught_up(int32 stream_id, int workers);

/* Exits when the postmaster is gone: for work that may be long. */
extern void mr_end_with_postmaster(void);

#endif /* MR_CORE_PROGRESS_H */
