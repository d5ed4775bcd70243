/*
 * manager.c
 *	  The manager of a database: keeps one worker for each enabled stream and worker number.
 *
 * A turn reads what is wanted (millrace.stream) and what is there (slots), records how workers ended, stops
 * those that are not wanted, and starts the missing ones after their back-off, which counts from the
 * committed number of failures in a row in millrace.worker.  Workers whose stream's owner or number of
 * workers has changed are stopped first.
 *
 * What is recorded for a worker that is gone: the last error that it reported, as its slot says; for a
 * process that vanished together with its slot (the server crashed, or somebody killed it, which is the
 * same), that its row names a pid that nobody has.  A restart of the whole server is nobody's failure.
 */
#include "postgres.h"

#include <signal.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "core/delivery.h"
#include "core/millrace.h"
#include "core/record.h"
#include "core/retention.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#define TICK 10000 /* ms: a safety net, whatever matters sets the latch */
#define STARTING_PATIENCE 30000 /* ms until a process that was registered counts as lost */
#define STOPPING_PATIENCE 10000 /* ms until a process that was asked to end is terminated */
#define SHUTDOWN_GRACE 200 /* ms between our worker's end and ours when the server goes down */
#define HEALTH 1000 /* ms between looks at the rules on millrace itself */
#define STABLE 60000 /* ms of running after which earlier failures are forgotten */

/* A worker that should run, and what its row says of the last one. */
typedef struct Wanted
{
	int32 stream_id;
	char *stream;
	int worker;
	int workers;
	Oid owner;
	const char *problem; /* why its owner cannot log in, or NULL */
	const char *hint;
	int pid; /* of the row, 0: none */
	int failures;
	TimestampTz failed_at;
	TimestampTz started_at;
	bool present; /* a process runs or starts */
} Wanted;

static Oid my_database;
static bool said_no_extension = false;
static bool said_no_worker = false;
static bool health_failed = false; /* at the last look */

static const char *const wanted_sql =
	"SELECT s.id, s.name, n, s.workers, s.owner::oid, w.pid,"
	" coalesce(w.failures, 0), w.last_error_at, w.started_at"
	" FROM millrace.stream s CROSS JOIN generate_series(0, s.workers - 1) n"
	" LEFT JOIN millrace.worker w ON w.stream_id = s.id AND w.worker = n"
	" WHERE s.enabled AND s.fence = millrace_internal.fence() ORDER BY 1, 3";

/* Column `column` (from 1) of a row that SPI returned; 0 for NULL. */
static Datum
column_of(uint64 row, int column)
{
	bool isnull;
	Datum value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);

	return isnull ? (Datum) 0 : value;
}

/* Reads which workers should run, into `context`. */
static int
read_wanted(MemoryContext context, Wanted **result)
{
	int n;

	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_execute(wanted_sql, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read millrace.stream");
	n = (int) SPI_processed;
	*result = MemoryContextAllocZero(context, sizeof(Wanted) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		Wanted *wanted = &(*result)[i];
		wanted->stream_id = DatumGetInt32(column_of(i, 1));
		wanted->stream = MemoryContextStrdup(
			context, SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2));
		wanted->worker = DatumGetInt32(column_of(i, 3));
		wanted->workers = DatumGetInt32(column_of(i, 4));
		wanted->owner = DatumGetObjectId(column_of(i, 5));
		wanted->pid = DatumGetInt32(column_of(i, 6));
		wanted->failures = DatumGetInt32(column_of(i, 7));
		wanted->failed_at = DatumGetTimestampTz(column_of(i, 8));
		wanted->started_at = DatumGetTimestampTz(column_of(i, 9));
	}
	PopActiveSnapshot();
	SPI_finish();
	return n;
}

/* The wanted worker of a slot, or NULL. */
static Wanted *
find_wanted(Wanted *wanted, int n, const MrSlot *slot)
{
	for (int i = 0; i < n; i++)
	{
		if (wanted[i].stream_id == slot->stream_id && wanted[i].worker == slot->worker)
			return &wanted[i];
	}
	return NULL;
}

/* Records how the process of a slot ended. */
static void
record_end(const MrSlot *slot, Wanted *wanted, bool lost)
{
	MrWorkerError error = {0};
	bool failed = lost || (slot->exit_code != 0 && !slot->held);
	int failures;

	/* When the whole server goes down, we are told a moment later: then it is no failure of the worker. */
	if (slot->sqlstate == ERRCODE_ADMIN_SHUTDOWN && !slot->held)
	{
		(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, SHUTDOWN_GRACE,
						 PG_WAIT_EXTENSION);
		CHECK_FOR_INTERRUPTS();
	}

	if (slot->held)
		error.message = "stopped for a command that needs the database for itself";
	else if (lost)
		error.message = "the process did not start";
	else if (slot->reason[0])
	{
		error.message = slot->reason;
		error.sqlstate = slot->sqlstate;
	}
	else
		error.message = psprintf("the process ended with exit code %d", slot->exit_code);

	/* A worker that leaves with code 0 has recorded why, or its stream is gone. */
	if (!failed && !slot->held)
	{
		if (wanted == NULL || wanted->pid == slot->pid)
			(void) mr_worker_record(slot->stream_id, slot->worker, MR_STATE_STOPPED, 0, NULL,
									MR_FAILURES_KEEP);
		if (wanted)
			wanted->pid = 0;
		return;
	}
	if (failed && wanted && TimestampDifferenceExceeds(slot->started, slot->since, STABLE))
		(void) mr_worker_record(slot->stream_id, slot->worker, MR_STATE_WAITING, 0, NULL,
								MR_FAILURES_CLEAR);
	failures = mr_worker_record(slot->stream_id, slot->worker,
								slot->held ? MR_STATE_STOPPED : MR_STATE_WAITING, 0, &error,
								failed ? MR_FAILURES_ADD : MR_FAILURES_KEEP);
	if (wanted)
	{
		wanted->failures = failed ? failures : 0;
		wanted->failed_at = GetCurrentTimestamp();
		wanted->pid = 0;
	}
}

/* Records that the process of a row has vanished without a slot that says why. */
static void
record_vanished(Wanted *wanted)
{
	MrWorkerError error = {0};

	if (wanted->started_at < PgStartTime)
	{
		(void) mr_worker_record(wanted->stream_id, wanted->worker, MR_STATE_STOPPED, 0, NULL,
								MR_FAILURES_CLEAR);
		wanted->failures = 0;
	}
	else
	{
		error.message = psprintf("process %d ended without a word", wanted->pid);
		error.detail = "It was killed, or the server crashed.";
		error.hint = "See the server's log.";
		error.sqlstate = ERRCODE_CRASH_SHUTDOWN;
		wanted->failures = mr_worker_record(wanted->stream_id, wanted->worker, MR_STATE_WAITING, 0,
											&error, MR_FAILURES_ADD);
		wanted->failed_at = GetCurrentTimestamp();
	}
	wanted->pid = 0;
}

/* Why a stream's owner cannot log in; NULL when he can. */
static const char *
owner_problem(Oid owner, const char **hint)
{
	HeapTuple tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(owner));
	bool login;

	if (!HeapTupleIsValid(tuple))
	{
		*hint = "Drop the stream and create it again as another role.";
		return "the owner of the stream does not exist any more";
	}
	login = ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	ReleaseSysCache(tuple);
	if (!login && MR_WORKER_FLAGS == 0)
	{
		*hint = "Before PostgreSQL 17 the owner needs it: ALTER ROLE ... LOGIN.";
		return psprintf("the owner of the stream, role \"%s\", has no LOGIN",
						GetUserNameFromId(owner, false));
	}
	return NULL;
}

/*
 * Rows that no worker will correct: of streams that are not to run whose process is gone, and of worker
 * numbers that do not exist any more.
 */
static void
tidy_rows(const MrSlot *slots, int nslots)
{
	Datum *pids = palloc(sizeof(Datum) * Max(nslots, 1));
	int npids = 0;
	Oid type = INT4ARRAYOID;
	Datum value;
	MrRunAs saved;

	for (int i = 0; i < nslots; i++)
	{
		if (slots[i].state == MR_SLOT_RUNNING)
			pids[npids++] = Int32GetDatum(slots[i].pid);
	}
	value = PointerGetDatum(construct_array(pids, npids, INT4OID, 4, true, TYPALIGN_INT));

	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_execute_with_args(
		"UPDATE millrace.worker w SET state = 'stopped', pid = NULL,"
		" since = clock_timestamp() FROM millrace.stream s"
		" WHERE s.id = w.stream_id AND (w.pid IS NOT NULL OR w.state <> 'stopped')"
		" AND NOT (s.enabled AND s.fence = millrace_internal.fence())"
		" AND (w.pid IS NULL OR NOT w.pid = ANY ($1))",
		1, &type, &value, NULL, false, 0);
	SPI_execute_with_args("DELETE FROM millrace.worker w USING millrace.stream s"
						  " WHERE s.id = w.stream_id AND w.worker >= s.workers"
						  " AND (w.pid IS NULL OR NOT w.pid = ANY ($1))",
						  1, &type, &value, NULL, false, 0);
	PopActiveSnapshot();
	SPI_finish();
	mr_run_back(&saved);
}

/* Records in one transaction what the slots say; returns those that can be freed afterwards. */
static List *
review_slots(MrSlot *slots, int nslots, Wanted *wanted, int nwanted, bool *stopping)
{
	TimestampTz now = GetCurrentTimestamp();
	List *ended = NIL;

	for (int i = 0; i < nslots; i++)
	{
		MrSlot *slot = &slots[i];
		Wanted *want = find_wanted(wanted, nwanted, slot);
		bool lost = slot->state == MR_SLOT_STARTING &&
					TimestampDifferenceExceeds(slot->since, now, STARTING_PATIENCE);

		if (slot->state == MR_SLOT_ENDED || lost)
		{
			record_end(slot, want, lost);
			ended = lappend(ended, slot);
			continue;
		}
		if (want == NULL || want->problem || want->owner != slot->owner ||
			want->workers != slot->workers)
		{
			mr_slot_stop(slot, slot->stop &&
								   TimestampDifferenceExceeds(slot->since, now, STOPPING_PATIENCE));
			*stopping = true;
		}
		if (want)
			want->present = true;
	}
	return ended;
}

/* Starts the missing workers of which the back-off is over; returns how long to wait for the others. */
static long
start_workers(Wanted *wanted, int nwanted, MrSlot *slots, int nslots)
{
	TimestampTz now = GetCurrentTimestamp();
	long wait = TICK;

	for (int i = 0; i < nwanted; i++)
	{
		Wanted *want = &wanted[i];
		MrSlot slot = {0};
		TimestampTz not_before = TimestampTzPlusMilliseconds(want->failed_at,
															 mr_worker_backoff(want->failures));
		char name[BGW_MAXLEN];
		bool old_shape = false;

		if (want->present)
			continue;
		for (int j = 0; j < nslots; j++)
		{
			if (slots[j].stream_id == want->stream_id && slots[j].state == MR_SLOT_RUNNING &&
				(slots[j].workers != want->workers || slots[j].owner != want->owner))
				old_shape = true;
		}
		if (old_shape)
			continue;
		if (not_before > now)
		{
			wait = Min(wait, TimestampDifferenceMilliseconds(now, not_before) + 1);
			continue;
		}
		slot.kind = MR_SLOT_STREAM;
		slot.database = my_database;
		slot.stream_id = want->stream_id;
		slot.worker = want->worker;
		slot.workers = want->workers;
		slot.owner = want->owner;
		snprintf(name, sizeof(name), "millrace: %s #%d", want->stream, want->worker);
		if (mr_slot_start(&slot, "mr_stream_worker_main", name, "millrace stream worker"))
			said_no_worker = false;
		else
		{
			wait = Min(wait, 2000);
			if (!said_no_worker && !mr_database_held(my_database))
				ereport(
					LOG,
					(errmsg("millrace found no free background worker for stream \"%s\"",
							want->stream),
					 errhint("Raise max_worker_processes; one is needed for the launcher, one for "
							 "each database and one for each worker of a stream.")));
			said_no_worker = true;
			break;
		}
	}
	return wait;
}

/* Does a training wait, or was one running when its process ended? */
static bool
trainings_wait(void)
{
	bool found;

	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_execute("SELECT FROM millrace.model_training t WHERE t.state IN ('waiting', 'running')",
					true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read millrace.model_training");
	found = SPI_processed > 0;
	PopActiveSnapshot();
	SPI_finish();
	return found;
}

/* One turn; returns how long to wait for the next one. */
static long
take_turn(MemoryContext context)
{
	Wanted *wanted;
	MrSlot *slots;
	int nwanted;
	int nslots;
	int kept = 0;
	bool stopping = false;
	bool unread;
	bool untrained;
	MrSlot trainer = {.kind = MR_SLOT_TRAINER, .database = my_database};
	MrDeliveryWanted delivery = {0};
	List *ended;
	ListCell *cell;
	long wait;

	StartTransactionCommand();
	if (!mr_extension_exists())
	{
		CommitTransactionCommand();
		if (!said_no_extension)
			ereport(LOG,
					(errmsg("millrace has nothing to do in this database: the extension is not "
							"installed"),
					 errhint("CREATE EXTENSION millrace, or take the database out of "
							 "millrace.databases.")));
		said_no_extension = true;
		MemoryContextSwitchTo(context);
		nslots = mr_slot_list(MR_SLOT_STREAM, my_database, &slots);
		for (int i = 0; i < nslots; i++)
		{
			if (slots[i].state == MR_SLOT_ENDED)
				mr_slot_free(&slots[i]);
			else
				mr_slot_stop(&slots[i], false);
		}
		return mr_delivery_manage(my_database, &delivery, TICK);
	}
	said_no_extension = false;

	/* Rows first: a process that starts later then has a slot, one that ended has an ended one. */
	nwanted = read_wanted(context, &wanted);
	MemoryContextSwitchTo(context);
	for (int i = 0; i < nwanted; i++)
		wanted[i].problem = owner_problem(wanted[i].owner, &wanted[i].hint);
	nslots = mr_slot_list(MR_SLOT_STREAM, my_database, &slots);
	ended = review_slots(slots, nslots, wanted, nwanted, &stopping);
	for (int i = 0; i < nwanted; i++)
	{
		if (wanted[i].present)
			continue;
		if (wanted[i].pid != 0)
			record_vanished(&wanted[i]);
		if (wanted[i].problem)
		{
			MrWorkerError error = {.message = wanted[i].problem,
								   .hint = wanted[i].hint,
								   .sqlstate = ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION};

			(void) mr_worker_record(wanted[i].stream_id, wanted[i].worker, MR_STATE_FAILED, 0,
									&error, MR_FAILURES_KEEP);
			continue;
		}
		wanted[kept++] = wanted[i];
	}
	tidy_rows(slots, nslots);
	mr_delivery_wanted(&delivery);
	unread = mr_retention_due();
	untrained = trainings_wait();
	CommitTransactionCommand();
	pgstat_report_stat(true);
	MemoryContextSwitchTo(context);

	foreach(cell, ended)
		mr_slot_free(lfirst(cell));

	/* Those that cannot run were skipped, those that run were skipped too: only the missing are left. */
	wait = start_workers(wanted, kept, slots, nslots);
	wait = mr_delivery_manage(my_database, &delivery, wait);
	mr_retention_manage(my_database, unread);
	(void) mr_slot_start_only(&trainer, untrained, "mr_trainer_main", "millrace: trainer",
							  "millrace trainer");
	return stopping ? Min(wait, 1000) : wait;
}

/* Judges one of the rules on millrace itself; false: it could not be judged this time. */
static bool
judge_rule(MemoryContext context, Datum id)
{
	Oid type = INT4OID;

	StartTransactionCommand();
	PG_TRY();
	{
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (SPI_execute_with_args("SELECT millrace_internal.health_tick($1)", 1, &type, &id, NULL,
								  false, 0) != SPI_OK_SELECT)
			elog(ERROR, "could not judge millrace's health");
		PopActiveSnapshot();
		SPI_finish();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (!health_failed)
			EmitErrorReport();
		FlushErrorState();
		AbortCurrentTransaction();
		MemoryContextSwitchTo(context);
		return false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return true;
}

/*
 * Judges the rules on millrace itself; returns how long to wait for the next time.  What they read may be slow: that does not
 * take more than a tenth of the time.
 */
static long
judge_health(MemoryContext context, long wait)
{
	static TimestampTz next_at = 0;
	TimestampTz now = GetCurrentTimestamp();
	Datum *rules = NULL;
	int nrules = 0;
	bool failed = false;

	if (now < next_at)
		return Min(wait, TimestampDifferenceMilliseconds(now, next_at) + 1);
	StartTransactionCommand();
	if (mr_extension_exists())
	{
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (SPI_execute("SELECT millrace_internal.health_rules()", true, 0) != SPI_OK_SELECT)
			elog(ERROR, "could not read millrace.rule");
		nrules = (int) SPI_processed;
		rules = MemoryContextAlloc(context, sizeof(Datum) * Max(nrules, 1));
		for (int i = 0; i < nrules; i++)
			rules[i] = column_of(i, 1);
		PopActiveSnapshot();
		SPI_finish();
	}
	CommitTransactionCommand();
	for (int i = 0; i < nrules; i++)
		failed |= !judge_rule(context, rules[i]);
	health_failed = failed;
	MemoryContextSwitchTo(context);
	if (nrules == 0)
		return wait;
	pgstat_report_stat(false);
	next_at = GetCurrentTimestamp();
	next_at = TimestampTzPlusMilliseconds(
		next_at, Max(HEALTH, 10 * TimestampDifferenceMilliseconds(now, next_at)));
	return Min(wait, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next_at) + 1);
}

/* Asks the workers of a kind to end; returns how many still run. */
static int
stop_kind(MrSlotKind kind)
{
	MrSlot *slots;
	int n = mr_slot_list(kind, my_database, &slots);
	int running = 0;

	for (int i = 0; i < n; i++)
	{
		if (slots[i].state == MR_SLOT_ENDED)
			continue;
		running++;
		mr_slot_stop(&slots[i], slots[i].stop && TimestampDifferenceExceeds(slots[i].since,
																			GetCurrentTimestamp(),
																			STOPPING_PATIENCE / 2));
	}
	return running;
}

/* The manager was asked to end: its workers end first. */
static void
stop_workers(MemoryContext context)
{
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(context);
		MemoryContextReset(context);
		if (stop_kind(MR_SLOT_STREAM) + stop_kind(MR_SLOT_DELIVERY) + stop_kind(MR_SLOT_WATCH) +
				stop_kind(MR_SLOT_TRAINER) ==
			0)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 1000,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

/* The manager's main loop. */
void
mr_manager_main(Datum index)
{
	MrSlot *slot = mr_slot_attach(index, MR_SLOT_MANAGER);
	MemoryContext context;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	my_database = slot->database;
	BackgroundWorkerInitializeConnectionByOid(slot->database, InvalidOid, 0);
	mr_worker_pin_settings();
	SetConfigOption("application_name", "millrace manager", PGC_SUSET, PGC_S_OVERRIDE);
	context = AllocSetContextCreate(TopMemoryContext, "millrace manager's turn",
									ALLOCSET_DEFAULT_SIZES);

	for (;;)
	{
		long wait;

		(void) mr_worker_obey();
		if (mr_slot_stopping())
		{
			stop_workers(context);
			proc_exit(0);
		}
		MemoryContextReset(context);
		pgstat_report_activity(STATE_RUNNING, "looking after the workers");
		wait = judge_health(context, take_turn(context));
		pgstat_report_activity(STATE_IDLE, NULL);
		MemoryContextSwitchTo(context);

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, wait,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}
