/*
 * record.h
 *	  Rows of millrace.worker: what each stream worker does, and why it does not.
 */
#ifndef MR_CORE_RECORD_H
#define MR_CORE_RECORD_H

/* States of a worker, as in millrace.worker.state. */
#define MR_STATE_STARTING "starting"
#define MR_STATE_RUNNING "running"
#define MR_STATE_WAITING "waiting" /* for the next attempt after an error of the environment */
#define MR_STATE_FAILED "failed" /* until somebody changes something */
#define MR_STATE_STOPPED "stopped"

typedef enum MrFailures
{
	MR_FAILURES_KEEP,
	MR_FAILURES_ADD,
	MR_FAILURES_CLEAR
} MrFailures;

/* Why a worker does not run; any of the texts may be NULL. */
typedef struct MrWorkerError
{
	const char *message;
	const char *detail;
	const char *hint;
	const char *context;
	int sqlstate;
} MrWorkerError;

/*
 * Writes the row of a worker in the current transaction, as the extension's owner.  `error` NULL keeps what
 * the row says of the last one.  Nothing happens when the stream is gone or when nothing would change.
 * Returns the number of failures in a row.
 */
extern int mr_worker_record(int32 stream_id, int worker, const char *state, int pid,
							const MrWorkerError *error, MrFailures failures);

#endif /* MR_CORE_RECORD_H */
