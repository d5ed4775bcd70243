/*
 * worker.c
 *	  The stream worker: one stream's share of one process, logged in as the stream's owner.
 *
 *	  look ──▶ open ──▶ step, step, … ──▶ (changed) ──▶ look
 *	   │          └── error ──┘
 *	   └▶ end                └▶ record ──▶ wait ──▶ look
 *
 * *Look* reads the stream's row: a worker whose stream is stopped, dropped, fenced, or has got another owner
 * or number of workers ends with exit code 0, and so does one whose extension is gone; the manager starts
 * another one where that is right.  *Step* is one batch in its own transaction (flow.h); when there was
 * nothing, the worker sleeps until its latch or the source's descriptor says that there is something; the
 * timeout is a safety net.
 *
 * After an error everything is aborted and closed, and the error is recorded in millrace.worker.  An error
 * of the environment is waited out with exponential back-off.  For an error of the configuration, or of the
 * data where the stream is to stop on it, the worker waits until the stream is declared anew, until
 * somebody's DDL may have mended what is wrong (an invalidation message has come), or for a minute.
 */
#include "postgres.h"

#include "access/xact.h"
#include "core/memory.h"
#include "core/millrace.h"
#include "core/record.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "flow/flow.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "source/position.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#define TICK 1000 /* ms: a safety net while there is nothing to do */
#define STABLE 10000 /* ms without an error after which earlier failures are forgotten */
#define DDL_PAUSE 2000 /* ms between attempts that DDL sets off */
#define TAKEN_PAUSE 100 /* ms before a stream that somebody has taken over is taken back */
#define FAILED_PAUSE 60000 /* ms between attempts that nothing sets off */

static MrSlot *my;
static char *stream_name = NULL;
static int64 config_version = 0; /* as last looked at */
static MrFlow *flow = NULL;
static MemoryContext flow_context;
static MemoryContext error_context;
static const char *recorded_state = NULL; /* MR_STATE_..., what our row says */
static int failures = 0; /* in a row, as committed in our row */
static char *last_message = NULL; /* of the error that was logged last */
static volatile bool definitions_changed = false;
static bool keeps_memory = false; /* of batches that are over */

/* Says in an error's context what the worker was at. */
static void
describe_place(void *arg)
{
	const MrMessage *message = flow ? mr_flow_message(flow) : NULL;

	if (message && message->topic)
		errcontext("stream \"%s\", topic \"%s\", partition %d, offset " INT64_FORMAT, stream_name,
				   message->topic, message->partition, message->position);
	else if (message)
		errcontext("stream \"%s\", partition %d, message " INT64_FORMAT, stream_name,
				   message->partition, message->position);
	else if (stream_name)
		errcontext("stream \"%s\", worker %d", stream_name, my->worker);
}

/* A relation's definition has changed. */
static void
relation_changed(Datum arg, Oid relid)
{
	definitions_changed = true;
}

/* Another definition has changed. */
static void
definition_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	definitions_changed = true;
}

/* Listens to changes of what a stream may need. */
static void
watch_definitions(void)
{
	const int caches[] = {PROCOID,      TYPEOID,          AUTHOID,       AUTHMEMMEMROLE,
						  NAMESPACEOID, FOREIGNSERVEROID, USERMAPPINGOID};

	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	for (int i = 0; i < lengthof(caches); i++)
		CacheRegisterSyscacheCallback(caches[i], definition_changed, (Datum) 0);
}

/* Reads the stream's row; false when this worker is not wanted (any more). */
static bool
look(void)
{
	static const char *const sql =
		"SELECT s.name, s.config_version, coalesce(w.failures, 0), s.enabled AND s.workers = $3"
		" AND s.owner = $4::regrole AND s.fence = millrace_internal.fence()"
		" FROM millrace.stream s LEFT JOIN millrace.worker w ON w.stream_id = s.id AND w.worker = $2"
		" WHERE s.id = $1";
	Oid types[4] = {INT4OID, INT4OID, INT4OID, OIDOID};
	Datum values[4];
	bool wanted = false;
	MrRunAs saved;

	values[0] = Int32GetDatum(my->stream_id);
	values[1] = Int32GetDatum(my->worker);
	values[2] = Int32GetDatum(my->workers);
	values[3] = ObjectIdGetDatum(my->owner);

	StartTransactionCommand();
	if (mr_extension_exists())
	{
		mr_run_as(&saved, mr_extension_owner());
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (SPI_execute_with_args(sql, 4, types, values, NULL, true, 1) != SPI_OK_SELECT)
			elog(ERROR, "could not read millrace.stream");
		if (SPI_processed > 0)
		{
			HeapTuple row = SPI_tuptable->vals[0];
			TupleDesc desc = SPI_tuptable->tupdesc;
			char *name = SPI_getvalue(row, desc, 1);
			bool isnull;

			if (stream_name == NULL || strcmp(stream_name, name) != 0)
				stream_name = MemoryContextStrdup(TopMemoryContext, name);
			config_version = DatumGetInt64(SPI_getbinval(row, desc, 2, &isnull));
			failures = DatumGetInt32(SPI_getbinval(row, desc, 3, &isnull));
			wanted = DatumGetBool(SPI_getbinval(row, desc, 4, &isnull));
		}
		PopActiveSnapshot();
		SPI_finish();
		mr_run_back(&saved);
	}
	CommitTransactionCommand();
	return wanted;
}

/* Does our row say this state? */
static bool
recorded_as(const char *state)
{
	return recorded_state != NULL && strcmp(recorded_state, state) == 0;
}

/* Writes our row, in a transaction of its own. */
static void
record(const char *state, const MrWorkerError *error, MrFailures change)
{
	int pid = strcmp(state, MR_STATE_STOPPED) == 0 ? 0 : MyProcPid;

	StartTransactionCommand();
	if (mr_extension_exists())
	{
		int count = mr_worker_record(my->stream_id, my->worker, state, pid, error, change);

		if (change != MR_FAILURES_KEEP)
			failures = count;
	}
	CommitTransactionCommand();
	pgstat_report_stat(true);
	recorded_state = state;
}

/* Keeps the message that was logged last, so that a condition that stays is logged once. */
static void
remember_message(const char *message)
{
	char *kept = message ? MemoryContextStrdup(TopMemoryContext, message) : NULL;

	if (last_message)
		pfree(last_message);
	last_message = kept;
}

/* Gives back what a flow holds. */
static void
close_flow(void)
{
	MrFlow *closing = flow;

	flow = NULL;
	if (closing)
		mr_flow_close(closing);
	MemoryContextReset(flow_context);
}

/*
 * Sleeps until the latch is set, the source has something, or the time is over.  What is waited for is said anew each time:
 * a source that has connected again may have the same descriptor, and a set made before would never hear of it.
 */
static void
sleep_until_something(void)
{
	pgsocket descriptor = mr_flow_descriptor(flow);
	int events = WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH;
	int happened;

	if (descriptor != PGINVALID_SOCKET)
		events |= WL_SOCKET_READABLE;
	pgstat_report_activity(STATE_IDLE, NULL);
	pgstat_report_stat(true);
	happened = WaitLatchOrSocket(MyLatch, events, descriptor, TICK, PG_WAIT_EXTENSION);
	if (happened & WL_LATCH_SET)
		ResetLatch(MyLatch);
	else if (keeps_memory && happened & WL_TIMEOUT)
	{
		mr_worker_release_memory();
		keeps_memory = false;
	}
}

/*
 * Writes our row after a step that succeeded, when there is something new to say: that the worker runs, that
 * its source waits for something, that earlier failures are over.
 */
static void
record_progress(int64 consumed, TimestampTz opened)
{
	const char *problem = consumed > 0 ? NULL : mr_flow_problem(flow);
	bool over = failures > 0 &&
				(consumed > 0 || TimestampDifferenceExceeds(opened, GetCurrentTimestamp(), STABLE));

	if (problem && (!recorded_as(MR_STATE_WAITING) || last_message == NULL ||
					strcmp(last_message, problem) != 0))
	{
		MrWorkerError error = {.message = problem, .sqlstate = ERRCODE_CONNECTION_EXCEPTION};

		remember_message(problem);
		ereport(LOG, (errcode(ERRCODE_CONNECTION_EXCEPTION),
					  errmsg("stream \"%s\" waits: %s", stream_name, last_message)));
		record(MR_STATE_WAITING, &error, MR_FAILURES_KEEP);
	}
	else if (problem == NULL && (!recorded_as(MR_STATE_RUNNING) || over))
	{
		if (last_message)
			ereport(LOG, (errmsg("stream \"%s\" runs again", stream_name)));
		remember_message(NULL);
		record(MR_STATE_RUNNING, NULL, over ? MR_FAILURES_CLEAR : MR_FAILURES_KEEP);
	}
}

/* Opens the stream and consumes it until something changes. */
static void
consume(void)
{
	TimestampTz opened;
	char *activity = psprintf("consuming stream \"%s\"", stream_name);
	bool busy = true;

	if (recorded_state == NULL)
		record(MR_STATE_STARTING, NULL, MR_FAILURES_KEEP);
	pgstat_report_activity(STATE_RUNNING, activity);
	MemoryContextSwitchTo(flow_context);
	flow = mr_flow_open(my->stream_id, my->worker, my->workers);
	MemoryContextSwitchTo(flow_context);
	if (flow == NULL)
		return;
	/* ALTER ROLE and ALTER DATABASE rank above: who sets it there has his way. */
	if (mr_flow_lasting(flow))
		SetConfigOption("synchronous_commit", "off", PGC_USERSET, PGC_S_GLOBAL);
	opened = GetCurrentTimestamp();

	while (!mr_slot_stopping())
	{
		int64 consumed;
		bool filled;

		(void) mr_worker_obey();
		if (!busy)
			pgstat_report_activity(STATE_RUNNING, activity);
		busy = true;
		consumed = mr_flow_step(flow, 0);
		MemoryContextSwitchTo(flow_context);
		if (consumed == MR_FLOW_CHANGED)
			break;

		record_progress(consumed, opened);
		MemoryContextSwitchTo(flow_context);
		filled = mr_flow_fill(flow);
		MemoryContextSwitchTo(flow_context);

		if (consumed == 0 && !filled && !mr_flow_hurried(flow))
		{
			busy = false;
			sleep_until_something();
		}
		else
		{
			keeps_memory = true;
			pgstat_report_stat(false);
		}
	}
	close_flow();
}

/* Takes an error in: aborts and closes everything.  What it was is returned in error_context. */
static ErrorData *
recover(void)
{
	ErrorData *error;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(error_context);
	error = CopyErrorData();
	FlushErrorState();

	/* As the main loops of auxiliary processes do; an error outside a transaction releases nothing. */
	LWLockReleaseAll();
	ConditionVariableCancelSleep();
	pgstat_report_wait_end();
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(error_context);
	RESUME_INTERRUPTS();
	close_flow();
	return error;
}

/* Logs an error, unless it is the one that was logged last, and writes it into our row. */
static void
report(const ErrorData *error, MrErrorClass class)
{
	MrWorkerError row = {.message = error->message ? error->message : "unknown error",
						 .detail = error->detail,
						 .hint = error->hint,
						 .context = error->context,
						 .sqlstate = error->sqlerrcode};
	bool environment = class == MR_ERROR_ENVIRONMENT;
	ErrorContextCallback *callbacks = error_context_stack;

	/* The error has its own context already. */
	error_context_stack = NULL;
	if (last_message == NULL || strcmp(last_message, row.message) != 0)
	{
		ereport(LOG, (errcode(error->sqlerrcode),
					  environment ? errmsg("stream \"%s\" waits after an error: %s", stream_name,
										   row.message)
								  : errmsg("stream \"%s\" has stopped on an error: %s", stream_name,
										   row.message),
					  error->detail ? errdetail_internal("%s", error->detail) : 0,
					  error->hint ? errhint("%s", error->hint) : 0,
					  error->context ? errcontext("%s", error->context) : 0));
		remember_message(row.message);
	}
	error_context_stack = callbacks;
	record(environment ? MR_STATE_WAITING : MR_STATE_FAILED, &row, MR_FAILURES_ADD);
}

/*
 * Waits until another attempt makes sense.  While waiting, what was declared in the meantime counts at once,
 * and so does being stopped.
 */
static void
wait_for_better_times(MrErrorClass class)
{
	int64 tried = config_version;
	long pause = class == MR_ERROR_ENVIRONMENT ? mr_worker_backoff(failures) : FAILED_PAUSE;
	TimestampTz start = GetCurrentTimestamp();

	definitions_changed = false;
	pgstat_report_activity(STATE_IDLE, NULL);
	for (;;)
	{
		long left;
		TimestampTz now;

		(void) mr_worker_obey();
		if (mr_slot_stopping() || !look() || config_version != tried)
			return;
		now = GetCurrentTimestamp();
		if (class != MR_ERROR_ENVIRONMENT && definitions_changed &&
			TimestampDifferenceExceeds(start, now, DDL_PAUSE))
			return;
		left = pause - TimestampDifferenceMilliseconds(start, now);
		if (left <= 0)
			return;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, Min(left, TICK),
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

/* One attempt: from looking at the stream until it changes or fails.  False when the worker is to end. */
static bool
attempt(void)
{
	ErrorData *volatile error = NULL;
	volatile bool wanted = true;
	MrErrorClass class;

	PG_TRY();
	{
		wanted = look();
		if (wanted)
			consume();
	}
	PG_CATCH();
	{
		error = recover();
	}
	PG_END_TRY();
	if (error == NULL)
		return wanted;

	/* What was dropped under us is no error. */
	if (!look())
		return false;
	class = mr_flow_error_class(error->sqlerrcode);
	if (mr_position_was_lost())
	{
		/* No error: somebody runs the stream himself, and it is taken back when he has done. */
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, TAKEN_PAUSE,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		MemoryContextReset(error_context);
		return true;
	}
	report(error, class);
	MemoryContextReset(error_context);
	wait_for_better_times(class);
	return true;
}

/* The stream worker's main function. */
void
mr_stream_worker_main(Datum index)
{
	ErrorContextCallback callback = {.callback = describe_place};

	my = mr_slot_attach(index, MR_SLOT_STREAM);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(my->database, my->owner, MR_WORKER_FLAGS);
	mr_worker_pin_settings();
	mr_worker_keep_memory();
	SetConfigOption("application_name", MyBgworkerEntry->bgw_name, PGC_SUSET, PGC_S_OVERRIDE);

	flow_context = AllocSetContextCreate(TopMemoryContext, "millrace flow", ALLOCSET_DEFAULT_SIZES);
	error_context = AllocSetContextCreate(TopMemoryContext, "millrace error", ALLOCSET_SMALL_SIZES);
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	watch_definitions();

	do
	{
		(void) mr_worker_obey();
	} while (!mr_slot_stopping() && attempt());

	record(MR_STATE_STOPPED, NULL, MR_FAILURES_KEEP);
	proc_exit(0);
}
