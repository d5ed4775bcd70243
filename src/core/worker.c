/*
 * worker.c
 *	  Slots of the worker tree in shared memory, wake-ups, and keeping away from a database.
 *
 * launcher → manager for each database → stream and delivery workers.  A parent gives a slot away (mr_slot_start) and
 * registers the process with the postmaster; the process attaches to its slot before it connects, and ends
 * it when it exits, with the last error that it reported.  The parent reads that and frees the slot.
 *
 *	  free → starting → running → ended → free
 *
 * A slot's generation is raised each time it is given away or taken back, so that a process that comes late
 * finds no slot and exits.  Since attaching comes before connecting, the exit callback runs after the
 * process has left the array of processes: a slot that is not running means that nobody of ours is connected.
 *
 * A command that needs a database for itself (DROP DATABASE and the like) *holds* it until its transaction
 * ends: processes in it are terminated, waiting ones lose their slots, new ones are not started.
 *
 * The model is PostgreSQL's src/backend/replication/logical/launcher.c.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "core/millrace.h"
#include "core/progress.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/pmsignal.h"
#include "storage/shmem.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/varlena.h"
#include "utils/wait_event.h"

#define MAX_HOLDS 32
#define MAX_PENDING_STREAMS 16
#define STARTING_PATIENCE 30000 /* ms until a process that was registered counts as lost */
#define HOLD_PATIENCE 60000 /* ms */

/* A database that a command keeps for itself. */
typedef struct Hold
{
	Oid database;
	int pid; /* of the backend that runs the command; 0: unused */
} Hold;

typedef struct WorkerShared
{
	struct Latch *launcher; /* NULL while it does not run */
	ConditionVariable ended; /* a process has ended */
	Hold holds[MAX_HOLDS];
	int nslots;
	MrSlot slots[FLEXIBLE_ARRAY_MEMBER];
} WorkerShared;

static WorkerShared *shared = NULL;
static LWLock *shared_lock = NULL;

static shmem_request_hook_type previous_shmem_request = NULL;
static shmem_startup_hook_type previous_shmem_startup = NULL;
static emit_log_hook_type previous_emit_log = NULL;

/* Of this process, when it has a slot. */
static MrSlot *my_slot = NULL;
static uint32 my_generation;
static int my_number = -1; /* among the workers of a stream */
static char my_reason[MR_REASON_LENGTH];
static int my_sqlstate = 0;

/* What the current transaction wants to be done when it has committed. */
static bool xact_callback_registered = false;
static bool wake_manager_pending = false;
static bool wake_launcher_pending = false;
static bool wake_all_pending = false;
static bool wake_delivery_pending = false;
static int wake_pending_count = 0;
static int32 wake_pending[MAX_PENDING_STREAMS];
static bool holding = false;

/* As many slots as there can be background workers. */
static Size
shared_size(void)
{
	return add_size(offsetof(WorkerShared, slots), mul_size(max_worker_processes, sizeof(MrSlot)));
}

/* Asks for shared memory and a lock. */
static void
request_shmem(void)
{
	if (previous_shmem_request)
		previous_shmem_request();
	RequestAddinShmemSpace(shared_size());
	RequestNamedLWLockTranche("millrace", 1);
}

/* Makes the shared memory, at start and after a crash. */
static void
startup_shmem(void)
{
	bool found;

	if (previous_shmem_startup)
		previous_shmem_startup();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("millrace", shared_size(), &found);
	if (!found)
	{
		memset(shared, 0, shared_size());
		shared->nslots = max_worker_processes;
		ConditionVariableInit(&shared->ended);
	}
	shared_lock = &GetNamedLWLockTranche("millrace")->lock;
	LWLockRelease(AddinShmemInitLock);
}

/* Installs the hooks that make the shared memory. */
void
mr_worker_shmem_init(void)
{
	previous_shmem_request = shmem_request_hook;
	shmem_request_hook = request_shmem;
	previous_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
}

/* Is there shared memory, that is, was the library preloaded? */
bool
mr_worker_ready(void)
{
	return shared != NULL;
}

/* ---- slots ------------------------------------------------------------------------------------------------ */

/* Takes a slot back.  The lock is held. */
static void
free_slot(MrSlot *slot)
{
	slot->kind = MR_SLOT_FREE;
	slot->generation++;
	slot->pid = 0;
	slot->latch = NULL;
}

/* Wakes the manager of a database.  The lock is held. */
static void
wake_manager(Oid database)
{
	for (int i = 0; i < shared->nslots; i++)
	{
		MrSlot *slot = &shared->slots[i];

		if (slot->kind == MR_SLOT_MANAGER && slot->database == database && slot->latch)
			SetLatch(slot->latch);
	}
}

/* Keeps the last error that goes to the log: it is probably why the process ends. */
static void
remember_error(ErrorData *edata)
{
	if (edata->elevel >= ERROR && edata->message)
	{
		strlcpy(my_reason, edata->message, sizeof(my_reason));
		my_sqlstate = edata->sqlerrcode;
	}
	if (previous_emit_log)
		previous_emit_log(edata);
}

/* The process exits: says how in its slot, and tells its parent and whoever waits for it. */
static void
end_slot(int code, Datum arg)
{
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	if (my_slot->generation == my_generation)
	{
		my_slot->state = MR_SLOT_ENDED;
		my_slot->latch = NULL;
		my_slot->since = GetCurrentTimestamp();
		my_slot->exit_code = code;
		my_slot->sqlstate = my_sqlstate;
		memcpy(my_slot->reason, my_reason, sizeof(my_reason));
		if (my_slot->kind != MR_SLOT_MANAGER)
			wake_manager(my_slot->database);
		else if (shared->launcher)
			SetLatch(shared->launcher);
	}
	LWLockRelease(shared_lock);
	ConditionVariableBroadcast(&shared->ended);
}

/*
 * Finds the slot that was given to this process, and returns a copy of it that does not change; a process
 * without one exits at once.  Comes before the process connects to its database.
 */
MrSlot *
mr_slot_attach(Datum index, MrSlotKind kind)
{
	MrSlot *copy;
	int i = DatumGetInt32(index);
	uint32 generation;

	memcpy(&generation, MyBgworkerEntry->bgw_extra, sizeof(generation));
	if (shared == NULL || i < 0 || i >= shared->nslots)
		proc_exit(0);
	copy = MemoryContextAllocZero(TopMemoryContext, sizeof(MrSlot));

	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	if (shared->slots[i].kind != kind || shared->slots[i].generation != generation ||
		shared->slots[i].state != MR_SLOT_STARTING)
	{
		LWLockRelease(shared_lock);
		proc_exit(0);
	}
	my_slot = &shared->slots[i];
	my_generation = generation;
	my_slot->state = MR_SLOT_RUNNING;
	my_slot->since = GetCurrentTimestamp();
	my_slot->pid = MyProcPid;
	my_slot->latch = MyLatch;
	if (kind == MR_SLOT_STREAM)
		my_number = my_slot->worker;
	*copy = *my_slot;
	LWLockRelease(shared_lock);

	on_shmem_exit(end_slot, (Datum) 0);
	previous_emit_log = emit_log_hook;
	emit_log_hook = remember_error;
	return copy;
}

int
mr_worker_number(void)
{
	return my_number;
}

void
mr_worker_note_caught_up(TimestampTz when)
{
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	if (my_slot->generation == my_generation)
		my_slot->caught_up = when;
	LWLockRelease(shared_lock);
}

TimestampTz
mr_worker_caught_up(int32 stream_id, int workers)
{
	TimestampTz when = DT_NOEND;
	int found = 0;

	LWLockAcquire(shared_lock, LW_SHARED);
	for (int i = 0; i < shared->nslots; i++)
	{
		MrSlot *slot = &shared->slots[i];

		if (slot->kind != MR_SLOT_STREAM || slot->state != MR_SLOT_RUNNING ||
			slot->database != MyDatabaseId || slot->stream_id != stream_id)
			continue;
		when = Min(when, slot->caught_up);
		found++;
	}
	LWLockRelease(shared_lock);
	return found == workers ? when : DT_NOBEGIN;
}

/* Has somebody asked this process to end? */
bool
mr_slot_stopping(void)
{
	return my_slot->stop || my_slot->generation != my_generation;
}

/*
 * Gives a slot away for a process as `wanted` says, and registers it with the postmaster.  False when the
 * database is held or nothing is free.
 */
bool
mr_slot_start(const MrSlot *wanted, const char *function, const char *name, const char *type)
{
	BackgroundWorker bgw;
	BackgroundWorkerHandle *handle;
	MrSlot *slot = NULL;
	uint32 generation = 0;
	bool held = false;
	bool registered;

	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_HOLDS; i++)
	{
		if (shared->holds[i].pid != 0 && shared->holds[i].database == wanted->database)
			held = true;
	}
	for (int i = 0; i < shared->nslots && !held && slot == NULL; i++)
	{
		if (shared->slots[i].kind == MR_SLOT_FREE)
			slot = &shared->slots[i];
	}
	if (slot)
	{
		generation = slot->generation + 1;
		*slot = *wanted;
		slot->state = MR_SLOT_STARTING;
		slot->generation = generation;
		slot->since = slot->started = GetCurrentTimestamp();
		slot->caught_up = DT_NOBEGIN;
		slot->pid = 0;
		slot->latch = NULL;
		slot->stop = slot->held = false;
		slot->exit_code = slot->sqlstate = 0;
		slot->reason[0] = '\0';
	}
	LWLockRelease(shared_lock);
	if (slot == NULL)
		return false;

	memset(&bgw, 0, sizeof(bgw));
	bgw.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgw.bgw_start_time = BgWorkerStart_RecoveryFinished;
	bgw.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(bgw.bgw_library_name, "millrace", sizeof(bgw.bgw_library_name));
	strlcpy(bgw.bgw_function_name, function, sizeof(bgw.bgw_function_name));
	strlcpy(bgw.bgw_name, name, sizeof(bgw.bgw_name));
	strlcpy(bgw.bgw_type, type, sizeof(bgw.bgw_type));
	bgw.bgw_main_arg = Int32GetDatum((int32) (slot - shared->slots));
	memcpy(bgw.bgw_extra, &generation, sizeof(generation));
	bgw.bgw_notify_pid = MyProcPid;
	registered = RegisterDynamicBackgroundWorker(&bgw, &handle);
	if (registered)
		pfree(handle);
	else
	{
		LWLockAcquire(shared_lock, LW_EXCLUSIVE);
		if (slot->generation == generation)
			free_slot(slot);
		LWLockRelease(shared_lock);
	}
	return registered;
}

/* Copies of all slots of a kind in a database (InvalidOid: in all); returns how many. */
int
mr_slot_list(MrSlotKind kind, Oid database, MrSlot **slots)
{
	int n = 0;

	*slots = palloc(mul_size(shared->nslots, sizeof(MrSlot)));
	LWLockAcquire(shared_lock, LW_SHARED);
	for (int i = 0; i < shared->nslots; i++)
	{
		MrSlot *slot = &shared->slots[i];

		if (slot->kind == kind && (!OidIsValid(database) || slot->database == database))
			(*slots)[n++] = *slot;
	}
	LWLockRelease(shared_lock);
	return n;
}

/* The slot that a copy was made of, when it still belongs to the same process.  The lock is held. */
static MrSlot *
find_slot(const MrSlot *copy)
{
	for (int i = 0; i < shared->nslots; i++)
	{
		MrSlot *slot = &shared->slots[i];

		if (slot->kind == copy->kind && slot->generation == copy->generation &&
			slot->database == copy->database && slot->stream_id == copy->stream_id &&
			slot->worker == copy->worker && slot->started == copy->started)
			return slot;
	}
	return NULL;
}

/* Takes back the slot of a process that has ended or never came. */
void
mr_slot_free(const MrSlot *copy)
{
	MrSlot *slot;

	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	slot = find_slot(copy);
	if (slot && slot->state != MR_SLOT_RUNNING)
		free_slot(slot);
	LWLockRelease(shared_lock);
}

bool
mr_slot_start_only(const MrSlot *wanted, bool is_wanted, const char *function, const char *name,
				   const char *type)
{
	MrSlot *slots;
	int n = mr_slot_list(wanted->kind, wanted->database, &slots);
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < n; i++)
	{
		if (slots[i].state == MR_SLOT_ENDED ||
			(slots[i].state == MR_SLOT_STARTING &&
			 TimestampDifferenceExceeds(slots[i].since, now, STARTING_PATIENCE)))
			mr_slot_free(&slots[i]);
		else
			is_wanted = false;
	}
	pfree(slots);
	return is_wanted && mr_slot_start(wanted, function, name, type);
}

/* Asks a process to end: between batches, or at once. */
void
mr_slot_stop(const MrSlot *copy, bool terminate)
{
	MrSlot *slot;

	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	slot = find_slot(copy);
	if (slot && slot->state == MR_SLOT_STARTING)
		free_slot(slot);
	else if (slot && slot->state == MR_SLOT_RUNNING)
	{
		if (!slot->stop)
		{
			slot->stop = true;
			slot->since = GetCurrentTimestamp();
		}
		SetLatch(slot->latch);
		if (terminate)
			kill(slot->pid, SIGTERM);
	}
	LWLockRelease(shared_lock);
}

/* The launcher's latch is no longer there. */
static void
detach_launcher(int code, Datum arg)
{
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	shared->launcher = NULL;
	LWLockRelease(shared_lock);
}

/* The launcher says that it is there. */
void
mr_launcher_attach(void)
{
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	shared->launcher = MyLatch;
	LWLockRelease(shared_lock);
	on_shmem_exit(detach_launcher, (Datum) 0);
}

/* ---- wake-ups --------------------------------------------------------------------------------------------- */

/* Wakes the workers of a stream in this database; 0 stands for all streams. */
void
mr_worker_wake(int32 stream_id)
{
	if (shared == NULL)
		return;
	LWLockAcquire(shared_lock, LW_SHARED);
	for (int i = 0; i < shared->nslots; i++)
	{
		MrSlot *slot = &shared->slots[i];

		if (slot->kind == MR_SLOT_STREAM && slot->database == MyDatabaseId && slot->latch &&
			(stream_id == 0 || slot->stream_id == stream_id))
			SetLatch(slot->latch);
	}
	LWLockRelease(shared_lock);
}

/* Wakes the delivery workers of this database. */
static void
wake_delivery(void)
{
	LWLockAcquire(shared_lock, LW_SHARED);
	for (int i = 0; i < shared->nslots; i++)
	{
		MrSlot *slot = &shared->slots[i];

		if (slot->kind == MR_SLOT_DELIVERY && slot->database == MyDatabaseId && slot->latch)
			SetLatch(slot->latch);
	}
	LWLockRelease(shared_lock);
}

/* Ends this backend's holds. */
static void
release_holds(void)
{
	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_HOLDS; i++)
	{
		if (shared->holds[i].pid == MyProcPid)
			shared->holds[i].pid = 0;
	}
	if (shared->launcher)
		SetLatch(shared->launcher);
	LWLockRelease(shared_lock);
	holding = false;
}

/* At the end of a transaction: wakes whom it concerns, and lets go of held databases. */
static void
at_transaction_end(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	if (event == XACT_EVENT_COMMIT)
	{
		if (wake_all_pending)
			mr_worker_wake(0);
		else
		{
			for (int i = 0; i < wake_pending_count; i++)
				mr_worker_wake(wake_pending[i]);
		}
		if (wake_delivery_pending)
			wake_delivery();
		if (wake_manager_pending || wake_launcher_pending)
		{
			LWLockAcquire(shared_lock, LW_SHARED);
			if (wake_manager_pending)
				wake_manager(MyDatabaseId);
			if (wake_launcher_pending && shared->launcher)
				SetLatch(shared->launcher);
			LWLockRelease(shared_lock);
		}
	}
	wake_all_pending = wake_delivery_pending = wake_manager_pending = wake_launcher_pending = false;
	wake_pending_count = 0;
	if (holding)
		release_holds();
}

/* Makes sure that at_transaction_end is called. */
static void
register_xact_callback(void)
{
	if (!xact_callback_registered)
	{
		RegisterXactCallback(at_transaction_end, NULL);
		xact_callback_registered = true;
	}
}

/* Wakes the workers of a stream (0: of all streams) when the current transaction has committed. */
void
mr_worker_wake_at_commit(int32 stream_id)
{
	if (shared == NULL)
		return;
	register_xact_callback();
	for (int i = 0; i < wake_pending_count; i++)
	{
		if (wake_pending[i] == stream_id)
			return;
	}
	if (stream_id == 0 || wake_pending_count == MAX_PENDING_STREAMS)
		wake_all_pending = true;
	else
		wake_pending[wake_pending_count++] = stream_id;
}

/* Wakes the delivery workers of this database when the current transaction has committed. */
void
mr_delivery_wake_at_commit(void)
{
	if (shared == NULL)
		return;
	register_xact_callback();
	wake_delivery_pending = true;
}

/* Wakes the manager of this database when the current transaction has committed. */
void
mr_manager_wake_at_commit(void)
{
	if (shared == NULL)
		return;
	register_xact_callback();
	wake_manager_pending = true;
}

/* Wakes the launcher when the current transaction has committed. */
void
mr_launcher_wake_at_commit(void)
{
	if (shared == NULL)
		return;
	register_xact_callback();
	wake_launcher_pending = true;
}

/* ---- keeping away from a database ------------------------------------------------------------------------- */

/* Does a command keep us away from a database? */
bool
mr_database_held(Oid database)
{
	bool held = false;

	LWLockAcquire(shared_lock, LW_SHARED);
	for (int i = 0; i < MAX_HOLDS; i++)
	{
		if (shared->holds[i].pid != 0 && shared->holds[i].database == database)
			held = true;
	}
	LWLockRelease(shared_lock);
	return held;
}

/* Marks a database as held by this backend and terminates who is in it. */
static void
mark_held(Oid database)
{
	int free_hold = -1;
	bool mine = false;

	LWLockAcquire(shared_lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_HOLDS; i++)
	{
		if (shared->holds[i].pid == 0)
			free_hold = i;
		else if (shared->holds[i].pid == MyProcPid && shared->holds[i].database == database)
			mine = true;
	}
	if (!mine && free_hold < 0)
	{
		LWLockRelease(shared_lock);
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("more than %d databases are held at once", MAX_HOLDS)));
	}
	if (!mine)
	{
		shared->holds[free_hold].database = database;
		shared->holds[free_hold].pid = MyProcPid;
	}
	holding = true;
	for (int i = 0; i < shared->nslots; i++)
	{
		MrSlot *slot = &shared->slots[i];

		if (slot->kind == MR_SLOT_FREE || slot->database != database)
			continue;
		if (slot->state == MR_SLOT_STARTING)
			free_slot(slot);
		else if (slot->state == MR_SLOT_RUNNING)
		{
			slot->held = true;
			kill(slot->pid, SIGTERM);
		}
	}
	LWLockRelease(shared_lock);
}

/* Does one of our processes run in a database? */
static bool
any_running(Oid database)
{
	bool running = false;

	LWLockAcquire(shared_lock, LW_SHARED);
	for (int i = 0; i < shared->nslots; i++)
	{
		MrSlot *slot = &shared->slots[i];

		if (slot->kind != MR_SLOT_FREE && slot->database == database &&
			slot->state == MR_SLOT_RUNNING && slot->pid != MyProcPid)
			running = true;
	}
	LWLockRelease(shared_lock);
	return running;
}

/*
 * Ends our processes in a database and keeps them away until the current transaction ends; then the launcher
 * starts them again, if the database is still there.  Returns when they have left, or after a minute.
 */
void
mr_database_hold(Oid database)
{
	TimestampTz start = GetCurrentTimestamp();

	if (shared == NULL)
		return;
	register_xact_callback();
	mark_held(database);
	ConditionVariablePrepareToSleep(&shared->ended);
	while (any_running(database) &&
		   !TimestampDifferenceExceeds(start, GetCurrentTimestamp(), HOLD_PATIENCE))
		ConditionVariableTimedSleep(&shared->ended, 1000, PG_WAIT_EXTENSION);
	ConditionVariableCancelSleep();
}

/* ---- what the processes have in common -------------------------------------------------------------------- */

/*
 * Pins the settings that decide what values mean, so that ALTER ROLE ... SET and ALTER DATABASE ... SET
 * change no result (C13), and those that would end a worker's sessions and statements.
 */
void
mr_worker_pin_settings(void)
{
	static const struct
	{
		const char *name;
		const char *value;
	} pins[] = {{"role", "none"},
				{"default_transaction_isolation", "read committed"},
				{"default_transaction_read_only", "off"},
				{"default_transaction_deferrable", "off"},
				{"row_security", "on"},
				{"session_replication_role", "origin"},
				{"statement_timeout", "0"},
				{"lock_timeout", "0"},
				{"idle_in_transaction_session_timeout", "0"},
				{"idle_session_timeout", "0"},
				{"transaction_timeout", "0"}};

	StartTransactionCommand();
	mr_settings_pin_session();
	for (int i = 0; i < lengthof(pins); i++)
	{
		if (GetConfigOption(pins[i].name, true, false))
			SetConfigOption(pins[i].name, pins[i].value, PGC_SUSET, PGC_S_OVERRIDE);
	}
	SetConfigOption("client_encoding", GetDatabaseEncodingName(), PGC_SUSET, PGC_S_OVERRIDE);
	CommitTransactionCommand();
}

/*
 * A process whose work has no end never sleeps, and only sleeping ends it when the postmaster is gone.  It would go on writing,
 * and the server could not be started again while it does.
 */
void
mr_end_with_postmaster(void)
{
	if (!PostmasterIsAlive())
		proc_exit(1);
}

bool
mr_worker_obey(void)
{
	mr_end_with_postmaster();
	CHECK_FOR_INTERRUPTS();
	if (!ConfigReloadPending)
		return false;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	return true;
}

void
mr_worker_begin(MrRunAs *saved)
{
	StartTransactionCommand();
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	mr_run_as(saved, mr_extension_owner());
}

void
mr_worker_commit(const MrRunAs *saved)
{
	mr_run_back(saved);
	PopActiveSnapshot();
	SPI_finish();
	CommitTransactionCommand();
	pgstat_report_stat(true);
}

/* The databases that the setting names, as a list of char *. */
List *
mr_worker_databases(void)
{
	List *names = NIL;
	List *copies = NIL;
	char *raw = pstrdup(mr_databases ? mr_databases : "");
	ListCell *cell;

	if (!SplitGUCList(raw, ',', &names))
	{
		ereport(LOG, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					  errmsg("millrace.databases is not a list of names: \"%s\"", mr_databases)));
		names = NIL;
	}
	foreach(cell, names)
		copies = lappend(copies, pstrdup(lfirst(cell)));
	list_free(names);
	pfree(raw);
	return copies;
}

/* How long to wait after so many failures in a row, in milliseconds: doubles from 0.1 s up to a minute. */
int
mr_worker_backoff(int failures)
{
	if (failures <= 0)
		return 0;
	return failures > 10 ? 60000 : Min(60000, 100 << (failures - 1));
}
