/*
 * worker.h
 *	  The worker tree: launcher → one manager for each database → stream workers.
 *
 * Each process has a slot in shared memory.  Everything here does nothing, quietly, when the library was not
 * preloaded.
 */
#ifndef MR_CORE_WORKER_H
#define MR_CORE_WORKER_H

#include "fmgr.h"
#include "utils/timestamp.h"

/* From _PG_init, while shared_preload_libraries are loaded; none of them throws. */
extern void mr_worker_shmem_init(void);
extern void mr_launcher_register(void);
extern void mr_utility_init(void);

/* Is there shared memory, that is, was the library preloaded? */
extern bool mr_worker_ready(void);

/*
 * Wakes the workers of a stream in this database (0: of all streams) and, when `manager`, the manager; at
 * once, or when the current transaction commits.
 */
extern void mr_worker_wake(int32 stream_id);
extern void mr_worker_wake_at_commit(int32 stream_id);
extern void mr_manager_wake_at_commit(void);

/* ---- what follows is for the processes of the tree ---------------------------------------------------- */

typedef enum MrSlotKind
{
	MR_SLOT_FREE = 0,
	MR_SLOT_MANAGER,
	MR_SLOT_STREAM
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
	uint32 generation; /* raised whenever the slot is given away */
	Oid database;
	int32 stream_id; /* of a stream worker */
	int worker;
	int workers;
	Oid owner;
	int pid; /* 0 unless running */
	struct Latch *latch; /* of the process, while running */
	TimestampTz since; /* of the state */
	TimestampTz started; /* when it was registered */
	bool stop; /* asked to end between batches */
	bool held; /* ended because a command wants the database for itself */
	int exit_code;
	int sqlstate; /* of the last error that the process reported before its end, 0: none */
	char reason[MR_REASON_LENGTH];
} MrSlot;

/* How a process finds its slot: bgw_main_arg is the slot's index, bgw_extra holds the generation. */
extern MrSlot *mr_slot_attach(Datum index, MrSlotKind kind);

/* The slot of this process, after mr_slot_attach; a copy that does not change. */
extern bool mr_slot_stopping(void);
extern void mr_slot_forget_reason(void);

/*
 * Gives a slot away and registers the process with the postmaster.  False when there is no free slot or no
 * free background worker, or while the database is held.
 */
extern bool mr_slot_start(const MrSlot *wanted, const char *function, const char *name,
						  const char *type);

/* Copies of all slots of a kind in a database (InvalidOid: in all) in CurrentMemoryContext. */
extern int mr_slot_list(MrSlotKind kind, Oid database, MrSlot **slots);
extern bool mr_slot_frees(const MrSlot *slot);
extern void mr_slot_stop(const MrSlot *slot, bool terminate);

/* Is a command (DROP DATABASE and the like) keeping us away from a database? */
extern bool mr_database_held(Oid database);
extern void mr_database_hold(Oid database);

extern void mr_launcher_attach(void);
extern void mr_launcher_wake(void);

/* Settings that ALTER ROLE and ALTER DATABASE must not change for our processes (C13). */
extern void mr_worker_pin_settings(void);

/* The databases that the setting names, as a list of char *. */
extern struct List *mr_worker_databases(void);

extern PGDLLEXPORT void mr_launcher_main(Datum arg);
extern PGDLLEXPORT void mr_manager_main(Datum slot);

#endif							/* MR_CORE_WORKER_H */
