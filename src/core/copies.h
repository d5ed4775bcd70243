/*
 * copies.h
 *	  Read-only data in shared memory: copies of what lies in tables, for all sessions.
 *
 * A copy is made once, by a process of its own, and is found by a key that names its content for ever.  It is a cache: who finds
 * none reads the tables.  All copies together take at most millrace.model_cache; when that is full, or the library was not
 * preloaded, there is none.
 */
#ifndef MR_CORE_COPIES_H
#define MR_CORE_COPIES_H

#include "storage/dsm.h"
#include "utils/timestamp.h"

typedef struct MrCopyKey
{
	Oid database;
	Oid relation;
	int32 version;
	uint64 digest; /* of the content, or of what determines it */
} MrCopyKey;

typedef enum MrCopyState
{
	MR_COPY_FREE = 0,
	MR_COPY_LOADING,
	MR_COPY_READY,
	MR_COPY_FAILED /* tried again after a while */
} MrCopyState;

typedef struct MrCopyInfo
{
	MrCopyKey key;
	MrCopyState state;
	Size size;
} MrCopyInfo;

/* From _PG_init. */
extern void mr_copies_shmem_init(void);

/* May there be copies at all? */
extern bool mr_copies_enabled(void);

/*
 * The copy, mapped into this process until it is detached; NULL: there is none, and unless that was tried in vain a moment ago, a
 * process is started that makes it by the function `loader` of the library.
 */
extern dsm_segment *mr_copy_attach(const MrCopyKey *key, const char *loader);

/* Where its data begin. */
extern void *mr_copy_data(dsm_segment *segment);

/* Notes that it is in use: one that is not is the first to go. */
extern void mr_copy_touch(dsm_segment *segment);

/* Lets go of the copies of a relation of this database, of one version or (0) of all. */
extern void mr_copy_forget(Oid relation, int32 version);

/* The copies of this database, palloc'd; returns how many. */
extern int mr_copy_list(MrCopyInfo **copies);

/*
 * For a loader, which is called with `slot`: it starts, in a transaction; makes room (NULL: there is none, which is logged);
 * publishes what it has written, and ends.
 */
extern MrCopyKey mr_copy_loader_start(Datum slot);
extern dsm_segment *mr_copy_create(Size size);
extern void mr_copy_publish(dsm_segment *segment);

#endif /* MR_CORE_COPIES_H */
