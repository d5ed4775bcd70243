/*
 * launcher.c
 *	  The launcher: one static process that keeps a manager in each database of millrace.databases.
 *
 * It is connected to no database and reads pg_database only.  It starts after recovery, so that a standby
 * has no workers before its promotion, and the postmaster starts it again a second after a crash.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "core/millrace.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define TICK 10000 /* ms: a safety net, whatever matters sets the latch */
#define STARTING_PATIENCE 30000 /* ms until a process that was registered counts as lost */
#define STOPPING_PATIENCE 10000 /* ms until a process that was asked to end is terminated */
#define STABLE 60000 /* ms after which a manager's earlier failures are forgotten */

/* A database of the setting. */
typedef struct Managed
{
	char *name;
	Oid oid; /* InvalidOid: there is none that one can connect to */
	bool said; /* that there is none */
	int failures;
	TimestampTz not_before;
} Managed;

static List *managed = NIL; /* Managed *, in launcher_context */
static MemoryContext launcher_context;

/* Registers the launcher. */
void
mr_launcher_register(void)
{
	BackgroundWorker bgw;

	memset(&bgw, 0, sizeof(bgw));
	bgw.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgw.bgw_start_time = BgWorkerStart_RecoveryFinished;
	bgw.bgw_restart_time = 1;
	strlcpy(bgw.bgw_library_name, "millrace", sizeof(bgw.bgw_library_name));
	strlcpy(bgw.bgw_function_name, "mr_launcher_main", sizeof(bgw.bgw_function_name));
	strlcpy(bgw.bgw_name, "millrace launcher", sizeof(bgw.bgw_name));
	strlcpy(bgw.bgw_type, "millrace launcher", sizeof(bgw.bgw_type));
	RegisterBackgroundWorker(&bgw);
}

/* Makes `managed` follow the setting; what is known of a database that stays is kept. */
static void
read_setting(void)
{
	MemoryContext old = MemoryContextSwitchTo(launcher_context);
	List *names = mr_worker_databases();
	List *fresh = NIL;
	ListCell *cell;

	foreach(cell, names)
	{
		Managed *entry = NULL;
		ListCell *known;

		foreach(known, managed)
		{
			if (strcmp(((Managed *) lfirst(known))->name, lfirst(cell)) == 0)
				entry = lfirst(known);
		}
		if (entry == NULL)
		{
			entry = palloc0(sizeof(Managed));
			entry->name = pstrdup(lfirst(cell));
		}
		fresh = list_append_unique_ptr(fresh, entry);
	}
	list_free(managed); /* entries that went are few and small */
	list_free_deep(names);
	managed = fresh;
	MemoryContextSwitchTo(old);
}

/* Looks the databases up.  Without a database of its own the process can scan pg_database, no more. */
static void
find_databases(void)
{
	Relation rel;
	TableScanDesc scan;
	HeapTuple tuple;
	ListCell *cell;

	foreach(cell, managed)
		((Managed *) lfirst(cell))->oid = InvalidOid;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		foreach(cell, managed)
		{
			Managed *entry = lfirst(cell);

			/* datconnlimit -2 marks what an interrupted DROP DATABASE left */
			if (strcmp(NameStr(form->datname), entry->name) == 0 && form->datallowconn &&
				form->datconnlimit != -2)
				entry->oid = form->oid;
		}
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();

	foreach(cell, managed)
	{
		Managed *entry = lfirst(cell);

		if (!OidIsValid(entry->oid) && !entry->said)
			ereport(LOG,
					(errmsg("millrace cannot connect to database \"%s\"", entry->name),
					 errdetail("It does not exist or does not allow connections."),
					 errhint("Millrace works there as soon as it can; else take the name out of "
							 "millrace.databases.")));
		entry->said = !OidIsValid(entry->oid);
	}
}

/* The entry of a database, or NULL. */
static Managed *
find_managed(Oid database)
{
	ListCell *cell;

	foreach(cell, managed)
	{
		if (((Managed *) lfirst(cell))->oid == database)
			return lfirst(cell);
	}
	return NULL;
}

/* Reads how managers ended, and stops those that are no longer wanted.  Marks in `present` who has one. */
static List *
review_managers(void)
{
	MrSlot *slots;
	int n = mr_slot_list(MR_SLOT_MANAGER, InvalidOid, &slots);
	TimestampTz now = GetCurrentTimestamp();
	List *present = NIL;

	for (int i = 0; i < n; i++)
	{
		MrSlot *slot = &slots[i];
		Managed *entry = find_managed(slot->database);
		bool lost = slot->state == MR_SLOT_STARTING &&
					TimestampDifferenceExceeds(slot->since, now, STARTING_PATIENCE);

		if (slot->state == MR_SLOT_ENDED || lost)
		{
			if (entry && (lost || (slot->exit_code != 0 && !slot->held)))
			{
				if (TimestampDifferenceExceeds(slot->started, slot->since, STABLE))
					entry->failures = 0;
				entry->failures++;
				entry->not_before = TimestampTzPlusMilliseconds(now,
																mr_worker_backoff(entry->failures));
			}
			mr_slot_free(slot);
			continue;
		}
		if (entry == NULL)
			mr_slot_stop(slot, slot->stop &&
								   TimestampDifferenceExceeds(slot->since, now, STOPPING_PATIENCE));
		present = lappend_oid(present, slot->database);
	}
	pfree(slots);
	return present;
}

/* Workers in databases that have neither a manager nor an entry end, and their slots are freed. */
static void
review_orphans(MrSlotKind kind, List *present)
{
	MrSlot *slots;
	int n = mr_slot_list(kind, InvalidOid, &slots);
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < n; i++)
	{
		MrSlot *slot = &slots[i];

		if (list_member_oid(present, slot->database) || find_managed(slot->database))
			continue;
		if (slot->state == MR_SLOT_ENDED)
			mr_slot_free(slot);
		else
			mr_slot_stop(slot, slot->stop &&
								   TimestampDifferenceExceeds(slot->since, now, STOPPING_PATIENCE));
	}
	pfree(slots);
}

/* Starts the managers that are missing; returns how long to wait for the next turn. */
static long
start_managers(List *present)
{
	TimestampTz now = GetCurrentTimestamp();
	long wait = TICK;
	ListCell *cell;

	foreach(cell, managed)
	{
		Managed *entry = lfirst(cell);
		char name[BGW_MAXLEN];
		MrSlot wanted = {0};

		if (!OidIsValid(entry->oid) || list_member_oid(present, entry->oid) ||
			mr_database_held(entry->oid))
			continue;
		if (entry->not_before > now)
		{
			wait = Min(wait, TimestampDifferenceMilliseconds(now, entry->not_before) + 1);
			continue;
		}
		wanted.kind = MR_SLOT_MANAGER;
		wanted.database = entry->oid;
		snprintf(name, sizeof(name), "millrace manager of %s", entry->name);
		if (!mr_slot_start(&wanted, "mr_manager_main", name, "millrace manager"))
		{
			entry->failures++;
			entry->not_before =
				TimestampTzPlusMilliseconds(now, mr_worker_backoff(Max(entry->failures, 5)));
			wait = Min(wait, TimestampDifferenceMilliseconds(now, entry->not_before) + 1);
			if (entry->failures == 1 && !mr_database_held(entry->oid))
				ereport(
					LOG,
					(errmsg("millrace found no free background worker for its manager of database "
							"\"%s\"",
							entry->name),
					 errhint("Raise max_worker_processes; one is needed for the launcher, one for "
							 "each database and one for each worker of a stream.")));
		}
	}
	return wait;
}

/* The launcher's main loop. */
void
mr_launcher_main(Datum arg)
{
	MemoryContext turn;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	if (!mr_worker_ready())
		proc_exit(0);
	mr_launcher_attach();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	launcher_context = AllocSetContextCreate(TopMemoryContext, "millrace launcher",
											 ALLOCSET_SMALL_SIZES);
	turn = AllocSetContextCreate(TopMemoryContext, "millrace launcher's turn",
								 ALLOCSET_SMALL_SIZES);
	read_setting();

	for (;;)
	{
		List *present;
		long wait;

		if (mr_worker_obey())
			read_setting();
		find_databases();
		MemoryContextSwitchTo(turn);
		MemoryContextReset(turn);
		present = review_managers();
		review_orphans(MR_SLOT_STREAM, present);
		review_orphans(MR_SLOT_DELIVERY, present);
		review_orphans(MR_SLOT_WATCH, present);
		review_orphans(MR_SLOT_TRAINER, present);
		wait = start_managers(present);
		pgstat_report_activity(STATE_IDLE, NULL);

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, wait,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}
