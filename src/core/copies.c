/*
 * copies.c
 *	  Read-only data in shared memory.
 *
 * Each copy is a dynamic shared memory segment of its own, pinned, and named by a slot in the server's shared memory.  A slot is
 * FREE; LOADING from when somebody misses the copy until the process that makes it ends; then READY or FAILED.  Freeing a slot
 * unpins the segment: sessions that have mapped it keep it until they detach.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "core/copies.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "tcop/tcopprot.h"
#include "utils/snapmgr.h"

#define SLOTS 64
#define TRANCHE "millrace copies"

#define RETRY (60 * 1000) /* ms after which what failed, or never came, is tried again */
#define TOUCH 1000 /* ms after which it is noted again that a copy is in use */
#define IDLE (60 * 1000) /* ms without use after which a copy gives way to another one */

typedef struct CopySlot
{
	MrCopyKey key;
	MrCopyState state;
	dsm_handle handle; /* when ready */
	Size size; /* reserved by a loader */
	TimestampTz since; /* of the state */
	bool told; /* that there is no room for it */
	pg_atomic_uint64 used; /* when last, written without the lock */
} CopySlot;

/* At the beginning of a segment. */
typedef struct CopyHead
{
	MrCopyKey key;
	int slot;
} CopyHead;

static CopySlot *slots = NULL;
static LWLock *lock = NULL;
static shmem_request_hook_type previous_shmem_request = NULL;
static shmem_startup_hook_type previous_shmem_startup = NULL;

/* Of a loader. */
static MrCopyKey my_key;
static int my_slot;

static void
request_shmem(void)
{
	if (previous_shmem_request)
		previous_shmem_request();
	RequestAddinShmemSpace(mul_size(SLOTS, sizeof(CopySlot)));
	RequestNamedLWLockTranche(TRANCHE, 1);
}

/* Makes the slots, at start and after a crash, when there are no segments. */
static void
startup_shmem(void)
{
	bool found;

	if (previous_shmem_startup)
		previous_shmem_startup();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	slots = ShmemInitStruct(TRANCHE, mul_size(SLOTS, sizeof(CopySlot)), &found);
	if (!found)
	{
		memset(slots, 0, mul_size(SLOTS, sizeof(CopySlot)));
		for (int i = 0; i < SLOTS; i++)
			pg_atomic_init_u64(&slots[i].used, 0);
	}
	lock = &GetNamedLWLockTranche(TRANCHE)->lock;
	LWLockRelease(AddinShmemInitLock);
}

void
mr_copies_shmem_init(void)
{
	previous_shmem_request = shmem_request_hook;
	shmem_request_hook = request_shmem;
	previous_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
}

bool
mr_copies_enabled(void)
{
	return slots != NULL && mr_model_cache > 0;
}

static bool
same_key(const MrCopyKey *a, const MrCopyKey *b)
{
	return a->database == b->database && a->relation == b->relation && a->version == b->version &&
		   a->digest == b->digest;
}

/* The slot of a key, or NULL.  The lock is held, as in what follows. */
static CopySlot *
find_slot(const MrCopyKey *key)
{
	for (int i = 0; i < SLOTS; i++)
		if (slots[i].state != MR_COPY_FREE && same_key(&slots[i].key, key))
			return &slots[i];
	return NULL;
}

static void
set_state(CopySlot *slot, MrCopyState state)
{
	slot->state = state;
	slot->since = GetCurrentTimestamp();
}

static void
free_slot(CopySlot *slot)
{
	if (slot->state == MR_COPY_READY)
		dsm_unpin_segment(slot->handle);
	slot->size = 0;
	set_state(slot, MR_COPY_FREE);
}

/* The copy that has been idle for longest, if it has been for long enough; or NULL. */
static CopySlot *
most_idle(void)
{
	TimestampTz now = GetCurrentTimestamp();
	CopySlot *idle = NULL;

	for (int i = 0; i < SLOTS; i++)
		if (slots[i].state == MR_COPY_READY &&
			TimestampDifferenceExceeds((TimestampTz) pg_atomic_read_u64(&slots[i].used), now,
									   IDLE) &&
			(idle == NULL || pg_atomic_read_u64(&slots[i].used) < pg_atomic_read_u64(&idle->used)))
			idle = &slots[i];
	return idle;
}

/* A slot for a copy that is to be made now; NULL: not now.  Copies are made one after the other. */
static CopySlot *
take_slot(const MrCopyKey *key)
{
	TimestampTz now = GetCurrentTimestamp();
	CopySlot *slot = find_slot(key);

	for (int i = 0; i < SLOTS; i++)
	{
		bool recent = !TimestampDifferenceExceeds(slots[i].since, now, RETRY);

		if (recent && (slots[i].state == MR_COPY_LOADING ||
					   (slots[i].state == MR_COPY_FAILED && &slots[i] == slot)))
			return NULL;
		if (slot == NULL &&
			(slots[i].state == MR_COPY_FREE || (slots[i].state == MR_COPY_FAILED && !recent)))
			slot = &slots[i];
	}
	if (slot == NULL && (slot = most_idle()) != NULL)
		free_slot(slot);
	if (slot == NULL || slot->state == MR_COPY_READY)
		return NULL;
	if (!same_key(&slot->key, key))
		slot->told = false;
	slot->key = *key;
	slot->size = 0;
	set_state(slot, MR_COPY_LOADING);
	return slot;
}

/* Starts the process that makes a copy. */
static void
want(const MrCopyKey *key, const char *loader)
{
	BackgroundWorker bgw = {.bgw_flags = BGWORKER_SHMEM_ACCESS |
										 BGWORKER_BACKEND_DATABASE_CONNECTION,
							.bgw_start_time = BgWorkerStart_ConsistentState,
							.bgw_restart_time = BGW_NEVER_RESTART,
							.bgw_name = "millrace copy of a model",
							.bgw_type = "millrace copy of a model",
							.bgw_library_name = "millrace"};
	CopySlot *slot;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	slot = take_slot(key);
	LWLockRelease(lock);
	if (slot == NULL)
		return;
	strlcpy(bgw.bgw_function_name, loader, sizeof(bgw.bgw_function_name));
	bgw.bgw_main_arg = Int32GetDatum((int32) (slot - slots));
	memcpy(bgw.bgw_extra, key, sizeof(MrCopyKey));
	if (!RegisterDynamicBackgroundWorker(&bgw, NULL))
	{
		LWLockAcquire(lock, LW_EXCLUSIVE);
		if (slot->state == MR_COPY_LOADING && same_key(&slot->key, key))
			set_state(slot, MR_COPY_FAILED);
		LWLockRelease(lock);
	}
}

dsm_segment *
mr_copy_attach(const MrCopyKey *key, const char *loader)
{
	dsm_handle handle = DSM_HANDLE_INVALID;
	dsm_segment *segment;
	CopySlot *slot;

	LWLockAcquire(lock, LW_SHARED);
	slot = find_slot(key);
	if (slot != NULL && slot->state == MR_COPY_READY)
		handle = slot->handle;
	LWLockRelease(lock);
	if (handle == DSM_HANDLE_INVALID)
	{
		want(key, loader);
		return NULL;
	}
	segment = dsm_attach(handle);
	if (segment == NULL)
		return NULL;
	/* The slot may have been freed meanwhile, and the handle be another segment's. */
	if (dsm_segment_map_length(segment) < sizeof(CopyHead) ||
		!same_key(&((CopyHead *) dsm_segment_address(segment))->key, key))
	{
		dsm_detach(segment);
		return NULL;
	}
	dsm_pin_mapping(segment);
	mr_copy_touch(segment);
	return segment;
}

void *
mr_copy_data(dsm_segment *segment)
{
	return (char *) dsm_segment_address(segment) + MAXALIGN(sizeof(CopyHead));
}

void
mr_copy_touch(dsm_segment *segment)
{
	/* The slot may be another copy's by now, which is none the worse. */
	CopySlot *slot = &slots[((CopyHead *) dsm_segment_address(segment))->slot];
	TimestampTz now = GetCurrentStatementStartTimestamp();

	/* Not each time: sessions on other processors read it, too. */
	if (TimestampDifferenceExceeds((TimestampTz) pg_atomic_read_u64(&slot->used), now, TOUCH))
		pg_atomic_write_u64(&slot->used, (uint64) now);
}

void
mr_copy_forget(Oid relation, int32 version)
{
	if (slots == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (int i = 0; i < SLOTS; i++)
		if (slots[i].state != MR_COPY_FREE && slots[i].key.database == MyDatabaseId &&
			slots[i].key.relation == relation && (version == 0 || slots[i].key.version == version))
			free_slot(&slots[i]);
	LWLockRelease(lock);
}

int
mr_copy_list(MrCopyInfo **copies)
{
	int n = 0;

	*copies = palloc(SLOTS * sizeof(MrCopyInfo));
	if (slots == NULL)
		return 0;
	LWLockAcquire(lock, LW_SHARED);
	for (int i = 0; i < SLOTS; i++)
		if (slots[i].state != MR_COPY_FREE && slots[i].key.database == MyDatabaseId)
		{
			(*copies)[n].key = slots[i].key;
			(*copies)[n].state = slots[i].state;
			(*copies)[n++].size = slots[i].size;
		}
	LWLockRelease(lock);
	return n;
}

/* ---- of a loader ------------------------------------------------------------------------------------------ */

/* The slot, unless it is no longer meant for this process.  The lock is held. */
static CopySlot *
own_slot(void)
{
	CopySlot *slot = &slots[my_slot];

	return slot->state == MR_COPY_LOADING && same_key(&slot->key, &my_key) ? slot : NULL;
}

/* What has not been published has failed. */
static void
loader_ends(int code, Datum arg)
{
	CopySlot *slot;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	slot = own_slot();
	if (slot != NULL)
	{
		slot->size = 0;
		set_state(slot, MR_COPY_FAILED);
	}
	LWLockRelease(lock);
}

MrCopyKey
mr_copy_loader_start(Datum slot)
{
	my_slot = DatumGetInt32(slot);
	memcpy(&my_key, MyBgworkerEntry->bgw_extra, sizeof(my_key));
	before_shmem_exit(loader_ends, (Datum) 0);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(my_key.database, InvalidOid, 0);
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	pgstat_report_activity(STATE_RUNNING, "copying a model into shared memory");
	return my_key;
}

dsm_segment *
mr_copy_create(Size size)
{
	Size allowed = (Size) mr_model_cache * 1024;
	Size taken = 0;
	bool told = false;
	bool fits;
	dsm_segment *segment;
	CopySlot *slot;
	CopyHead *head;

	size = add_size(size, MAXALIGN(sizeof(CopyHead)));
	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (int i = 0; i < SLOTS; i++)
		taken += slots[i].size;
	while (size <= allowed && taken + size > allowed && (slot = most_idle()) != NULL)
	{
		taken -= slot->size;
		free_slot(slot);
	}
	slot = own_slot();
	fits = taken + size <= allowed;
	if (slot != NULL && fits)
		slot->size = size;
	else if (slot != NULL)
	{
		told = slot->told;
		slot->told = true;
	}
	LWLockRelease(lock);
	if (!fits)
		ereport(
			told ? DEBUG1 : LOG,
			(errmsg("no room in shared memory for a copy of version %d of model %s: %zu kB, "
					"beside %zu kB of others",
					my_key.version, mr_relation_name(my_key.relation), size / 1024, taken / 1024),
			 errhint("Raise millrace.model_cache. Its tables are read instead.")));
	if (slot == NULL || !fits)
		return NULL;
	segment = dsm_create(size, 0);
	head = dsm_segment_address(segment);
	head->key = my_key;
	head->slot = my_slot;
	return segment;
}

void
mr_copy_publish(dsm_segment *segment)
{
	CopySlot *slot;

	dsm_pin_segment(segment);
	LWLockAcquire(lock, LW_EXCLUSIVE);
	slot = own_slot();
	if (slot != NULL)
	{
		slot->handle = dsm_segment_handle(segment);
		pg_atomic_write_u64(&slot->used, (uint64) GetCurrentTimestamp());
		set_state(slot, MR_COPY_READY);
	}
	LWLockRelease(lock);
	if (slot == NULL)
		dsm_unpin_segment(dsm_segment_handle(segment));
	dsm_detach(segment);
}
