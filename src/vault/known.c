/*
 * known.c
 *	  Keys known to be in a table.
 *
 * The cache is an array of keys indexed by the key itself, which is a hash already: two places for each key,
 * and the newer pushes the older out.  It grows when it is half full and keys turn out to be in the table that it
 * did not know, as long as all caches together stay within their share of the worker's memory.  Losing an entry
 * costs one needless insert; believing one that is not in the table would lose a row, so
 *
 * - what a batch notes waits aside until its (sub)transaction is known to have committed;
 * - TRUNCATE gives the table another file; the relation cache's invalidations, which reach us when the batch
 *	 locks its stream, say when to look whether it has;
 * - DELETE leaves no such message: the table's own count of deleted rows (pg_stat_get_tuples_deleted), in which
 *	 those are left out that batches take back, is compared once a second.  Who deletes tells his count when his
 *	 transaction is over, unless he told another one less than a second before: then with a later transaction, or
 *	 after ten idle seconds.  Whoever deletes keys by hand while the stream runs and feeds them again sooner has to
 *	 stop the stream first;
 * - where neither tells anything, nothing is believed: a partitioned table has no file and no count of its own, and
 *	 without track_counts nobody counts.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "core/millrace.h"
#include "lib/ilist.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "vault/vault.h"

struct MrKnownKeys
{
	MemoryContext context;
	Oid relid;
	pg_uuid_t *places; /* zero: empty */
	uint32 mask;
	uint32 nused; /* places */
	Oid file; /* of the table; another one after TRUNCATE */
	bool changed; /* something happened to the table */
	bool plain; /* not partitioned */
	pg_uuid_t *noted; /* by the last batch */
	int nnoted;
	TransactionId noted_by;
	int64 deleted; /* rows ever, as last seen: fewer when the statistics were reset */
	TimestampTz looked_at;
	dlist_node node;
	MemoryContextCallback release;
};

/* Of a cache that has not grown. */
#define FIRST_PLACES 16384
/* What all caches together may take of the worker's memory. */
#define MEMORY_SHARE 8

static dlist_head all_known = DLIST_STATIC_INIT(all_known);
static bool callback_registered = false;

/* Something happened to a relation, or (InvalidOid) to any. */
static void
invalidate(Datum argument, Oid relid)
{
	dlist_iter iter;

	dlist_foreach(iter, &all_known)
	{
		MrKnownKeys *known = dlist_container(MrKnownKeys, node, iter.cur);

		if (relid == InvalidOid || relid == known->relid)
			known->changed = true;
	}
}

static void
unlink_known(void *argument)
{
	dlist_delete(&((MrKnownKeys *) argument)->node);
}

/* The file that the table has now. */
static Oid
table_file(Oid relid)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid file;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	file = ((Form_pg_class) GETSTRUCT(tuple))->relfilenode;
	ReleaseSysCache(tuple);
	return file;
}

/* How many rows have ever been deleted from the table, as far as the statistics know. */
static int64
deleted_rows(const MrKnownKeys *known)
{
	PgStat_StatTabEntry *entry = pgstat_fetch_stat_tabentry(known->relid);

	return entry == NULL ? 0 : entry->tuples_deleted;
}

/* Looks whether rows have been deleted since the last time. */
static bool
rows_are_deleted(MrKnownKeys *known)
{
	int64 before = known->deleted;

	known->deleted = deleted_rows(known);
	return known->deleted != before;
}

MrKnownKeys *
mr_known_create(Oid relid)
{
	MrKnownKeys *known = palloc0(sizeof(MrKnownKeys));

	known->context = CurrentMemoryContext;
	known->relid = relid;
	known->mask = FIRST_PLACES - 1;
	known->places = palloc0(FIRST_PLACES * sizeof(pg_uuid_t));
	known->deleted = deleted_rows(known);
	known->file = table_file(relid);
	known->plain = get_rel_relkind(relid) == RELKIND_RELATION;

	if (!callback_registered)
	{
		CacheRegisterRelcacheCallback(invalidate, (Datum) 0);
		callback_registered = true;
	}
	dlist_push_head(&all_known, &known->node);
	known->release.func = unlink_known;
	known->release.arg = known;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &known->release);
	return known;
}

/* The first of a key's two places. */
static uint32
place_of(const MrKnownKeys *known, const pg_uuid_t *key)
{
	uint32 bits;

	/* The last bytes: no version or variant among them. */
	memcpy(&bits, key->data + UUID_LEN - sizeof(bits), sizeof(bits));
	return bits & known->mask & ~1U;
}

static void
forget_noted(MrKnownKeys *known)
{
	if (known->noted != NULL)
		pfree(known->noted);
	known->noted = NULL;
	known->nnoted = 0;
}

/* Puts a key first among its two places. */
static void
believe(MrKnownKeys *known, const pg_uuid_t *key)
{
	pg_uuid_t *pair = known->places + place_of(known, key);

	if (memcmp(&pair[0], key, sizeof(pg_uuid_t)) == 0)
		return;
	known->nused += memcmp(&pair[1], &mr_zero_key, sizeof(pg_uuid_t)) == 0;
	pair[1] = pair[0];
	pair[0] = *key;
}

/* Makes the cache four times as large if all caches together may have that much. */
static void
grow(MrKnownKeys *known)
{
	pg_uuid_t *before = known->places;
	uint32 nbefore = known->mask + 1;
	Size all = (Size) nbefore * 3 * sizeof(pg_uuid_t);
	dlist_iter iter;

	dlist_foreach(iter, &all_known)
		all += (dlist_container(MrKnownKeys, node, iter.cur)->mask + (Size) 1) * sizeof(pg_uuid_t);
	if (all > (Size) mr_worker_memory * 1024 / MEMORY_SHARE)
		return;

	known->places = MemoryContextAllocExtended(known->context, nbefore * 4 * sizeof(pg_uuid_t),
											   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	known->mask = nbefore * 4 - 1;
	known->nused = 0;
	for (uint32 i = 0; i < nbefore; i++)
	{
		if (memcmp(&before[i], &mr_zero_key, sizeof(pg_uuid_t)) != 0)
			believe(known, &before[i]);
	}
	pfree(before);
}

/* Has somebody removed rows, or would we not learn of it? */
static bool
rows_may_be_gone(MrKnownKeys *known)
{
	TimestampTz now = GetCurrentTimestamp();
	bool gone = false;

	if (known->changed)
	{
		Oid file = table_file(known->relid);

		gone = file != known->file;
		known->file = file;
		known->changed = false;
	}
	if (TimestampDifferenceExceeds(known->looked_at, now, 1000))
	{
		gone |= rows_are_deleted(known);
		known->looked_at = now;
	}
	return gone || !known->plain || !pgstat_track_counts;
}

void
mr_known_refresh(MrKnownKeys *known)
{
	/* Nobody takes rows away by TRUNCATE any more when it is locked, and who has done so is known then. */
	LockRelationOid(known->relid, RowExclusiveLock);
	if (rows_may_be_gone(known))
	{
		if (known->nused > 0)
			memset(known->places, 0, (known->mask + (Size) 1) * sizeof(pg_uuid_t));
		known->nused = 0;
	}
	else if (known->noted != NULL && TransactionIdIsValid(known->noted_by) &&
			 TransactionIdDidCommit(known->noted_by))
	{
		for (int i = 0; i < known->nnoted; i++)
			believe(known, &known->noted[i]);
	}
	forget_noted(known);
}

void
mr_known_prefetch(const MrKnownKeys *known, const pg_uuid_t *key)
{
	__builtin_prefetch(known->places + place_of(known, key));
}

bool
mr_known_contains(const MrKnownKeys *known, const pg_uuid_t *key)
{
	const pg_uuid_t *pair = known->places + place_of(known, key);

	return memcmp(&pair[0], key, sizeof(pg_uuid_t)) == 0 ||
		   memcmp(&pair[1], key, sizeof(pg_uuid_t)) == 0;
}

void
mr_known_note(MrKnownKeys *known, const pg_uuid_t *keys, int nkeys, int64 inserted)
{
	forget_noted(known);
	if (nkeys == 0)
		return;
	if ((nkeys - inserted) * 20 > nkeys && known->nused > known->mask / 2)
		grow(known);
	known->noted = MemoryContextAlloc(known->context, nkeys * sizeof(pg_uuid_t));
	memcpy(known->noted, keys, nkeys * sizeof(pg_uuid_t));
	known->nnoted = nkeys;
	/* Nothing inserted, no transaction id: then everything was there already, and nothing is noted. */
	known->noted_by = GetCurrentTransactionIdIfAny();
}
