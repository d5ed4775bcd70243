/*
 * worker.h
 *	  The worker tree: launcher → one manager for each database → stream workers and delivery workers.
 *
 * Each process has a slot in shared memory.  Everything here does nothing, quietly, when the library was not
 * preloaded.
 */
#ifndef MR_CORE_WORKER_H
#define MR_CORE_WORKER_H

#include "core/millrace.h"
#include "fmgr.h"
#include "nodes/pg_list.h"
#include "utils/timestamp.h"

/* From _PG_init, while shared_preload_libraries are loaded; none of them throws. */
extern void mr_worker_shmem_init(void);
extern void mr_launcher_register(void);
extern void mr_utility_init(void);

/* Is there shared memory, that is, was the library preloaded? */
extern bool mr_worker_ready(void);

/*
 * Wakes the workers of a stream in this database (0: of all streams), those that deliver, the manager or the
 * launcher: at once, or when the current transaction commits.
 */
extern void mr_worker_wake(int32 stream_id);
extern void mr_worker_wake_at_commit(int32 stream_id);
extern void mr_delivery_wake_at_commit(void);
extern void mr_manager_wake_at_commit(void);
extern void mr_launcher_wake_at_commit(void);

/* ---- what follows is for the processes of the tree ---------------------------------------------------- */

typedef enum MrSlotKind
{
	MR_SLOT_FREE = 0,
	MR_SLOT_MANAGER,
	MR_SLOT_STREAM,
	MR_SLOT_DELIVERY,
	MR_SLOT_WATCH, /* of replication slots that nobody reads */
	MR_SLOT_TRAINER /* of models */
} MrSlotKind;

typedef enum MrSlotState
{
	MR_SLOT_STARTING, /* registered with the postmaster, has not attached */
	MR_SLOT_RUNNING,
	MR_SLOT_ENDED /* waits for its parent to read how */
} MrSlotState;

#define MR_REASON_LENGTH 512

typedef struct MrSlot
{
	MrSlotKind kind;
	MrSlotState state;
	uint32 generation; /* raised whenever the slot is given away or taken back */
	Oid database;
	int32 stream_id; /* of a stream worker, and what follows */
	int worker;
	int workers;
	Oid owner;
	TimestampTz caught_up; /* when it had consumed all that was there; or DT_NOBEGIN */
	int pid; /* 0 until it runs */
	struct Latch *latch; /* of the process, while it runs */
	TimestampTz started; /* when the slot was given away */
	TimestampTz since; /* of the state, or of being asked to end */
	bool stop; /* asked to end between batches */
	bool held; /* ended because a command wants the database for itself */
	int exit_code;
	int sqlstate; /* of the last error that it reported before its end, 0: none */
	char reason[MR_REASON_LENGTH];
} MrSlot;

/*
 * bgw_main_arg is the slot's index, bgw_extra holds its generation.  mr_slot_attach returns a copy, or exits
 * the process when the slot is no longer meant for it.
 */
extern MrSlot *mr_slot_attach(Datum index, MrSlotKind kind);
extern bool mr_slot_stopping(void);

/* Which of its stream's workers this process is, from 0; -1 when it is none. */
extern int mr_worker_number(void);

/* What a parent does; a slot is named by a copy of it. */
extern bool mr_slot_start(const MrSlot *wanted, const char *function, const char *name,
						  const char *type);
/*
 * The same for a kind of which a database has one process at most, unless it is there.  The slot of the one before is
 * freed, also when none is wanted.
 */
extern bool mr_slot_start_only(const MrSlot *wanted, bool is_wanted, const char *function,
							   const char *name, const char *type);
extern int mr_slot_list(MrSlotKind kind, Oid database, MrSlot **slots);
extern void mr_slot_free(const MrSlot *copy);
extern void mr_slot_stop(const MrSlot *copy, bool terminate);
extern void mr_launcher_attach(void);

/* Keeps our processes away from a database until the current transaction ends. */
extern void mr_database_hold(Oid database);
extern bool mr_database_held(Oid database);

extern void mr_worker_pin_settings(void);

/* What a process is told from outside, obeyed between two steps of its work.  True when settings were read again. */
extern bool mr_worker_obey(void);

/* A transaction of a process's own, connected to SPI, as the extension's owner; and its end. */
extern void mr_worker_begin(MrRunAs *saved);
extern void mr_worker_commit(const MrRunAs *saved);

extern List *mr_worker_databases(void);
extern int mr_worker_backoff(int failures);

extern PGDLLEXPORT void mr_launcher_main(Datum arg);
extern PGDLLEXPORT void mr_manager_main(Datum slot);

#endif /* MR_CORE_WORKER_H */
