/*
 * known.c
 *	  Keys known to be in a table.
 *
 * The cache is an array of keys indexed by the key itself, which is a hash already: two places for each key,
 * and the newer pushes the older out.  Nothing has to be evicted and its size never changes.  Losing an entry
 * costs one needless insert; believing one that is not in the table would lose a row, so
 *
 * - what a batch notes waits aside until its (sub)transaction is known to have committed;
 * - TRUNCATE and whatever else gives the table another file empty the cache: the relation cache's invalidations,
 *	 which reach us when the batch locks the table, say when to look (most of them are VACUUM's and ANALYZE's);
 * - DELETE leaves no such message: the table's own count of deleted rows (pg_stat_get_tuples_deleted) is
 *	 compared once a second.  Whoever deletes keys by hand while the stream runs and feeds them again within
 *	 that second has to stop the stream first.
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
	bool suspect; /* something happened to the table */
	Oid file; /* the table's, when the cache was empty last */
	pg_uuid_t *noted; /* by the last batch */
	int nnoted;
	TransactionId noted_by;
	int64 deleted; /* rows ever deleted, as last seen */
	TimestampTz looked_at;
	dlist_node node;
	MemoryContextCallback release;
};

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
			known->suspect = true;
	}
}

static void
unlink_known(void *argument)
{
	dlist_delete(&((MrKnownKeys *) argument)->node);
}

/* How many rows were ever deleted from the table, as the statistics know. */
static int64
deleted_rows(Oid relid)
{
	PgStat_StatTabEntry *entry = pgstat_fetch_stat_tabentry(relid);

	return entry == NULL ? 0 : entry->tuples_deleted;
}

/* The file in which the table's rows are. */
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

MrKnownKeys *
mr_known_create(Oid relid)
{
	MrKnownKeys *known = palloc0(sizeof(MrKnownKeys));
	uint32 places = 1024;

	/* A hundredth part of the worker's memory, about. */
	while (places * 2 * sizeof(pg_uuid_t) <= (Size) mr_worker_memory * 1024 / 128)
		places *= 2;
	known->context = CurrentMemoryContext;
	known->relid = relid;
	known->suspect = true;
	known->mask = places - 1;
	known->places = palloc0(places * sizeof(pg_uuid_t));

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

/* Believes what the last batch noted. */
static void
believe_noted(MrKnownKeys *known)
{
	for (int i = 0; i < known->nnoted; i++)
	{
		pg_uuid_t *pair = known->places + place_of(known, &known->noted[i]);

		if (memcmp(&pair[0], &known->noted[i], sizeof(pg_uuid_t)) == 0)
			continue;
		pair[1] = pair[0];
		pair[0] = known->noted[i];
	}
}

void
mr_known_refresh(MrKnownKeys *known)
{
	TimestampTz now = GetCurrentTimestamp();
	bool lost = false;

	/* Nobody takes rows away by TRUNCATE any more when it is locked, and who has done so is known then. */
	LockRelationOid(known->relid, RowExclusiveLock);
	if (known->suspect)
	{
		Oid file;

		known->suspect = false;
		file = table_file(known->relid);
		lost = file != known->file;
		known->file = file;
	}
	if (TimestampDifferenceExceeds(known->looked_at, now, 1000))
	{
		int64 deleted = deleted_rows(known->relid);

		lost |= deleted != known->deleted;
		known->deleted = deleted;
		known->looked_at = now;
	}
	if (known->noted != NULL)
	{
		if (TransactionIdIsValid(known->noted_by) && !lost &&
			TransactionIdDidCommit(known->noted_by))
			believe_noted(known);
		forget_noted(known);
	}
	if (lost)
		memset(known->places, 0, (known->mask + 1) * sizeof(pg_uuid_t));
}

bool
mr_known_contains(const MrKnownKeys *known, const pg_uuid_t *key)
{
	const pg_uuid_t *pair = known->places + place_of(known, key);

	return memcmp(&pair[0], key, sizeof(pg_uuid_t)) == 0 ||
		   memcmp(&pair[1], key, sizeof(pg_uuid_t)) == 0;
}

void
mr_known_note(MrKnownKeys *known, const MrRows *rows)
{
	forget_noted(known);
	if (rows->nrows == 0)
		return;
	known->noted = MemoryContextAlloc(known->context, rows->nrows * sizeof(pg_uuid_t));
	for (int i = 0; i < rows->nrows; i++)
		known->noted[i] = *DatumGetUUIDP(rows->values[0][i]);
	known->nnoted = rows->nrows;
	/* Nothing inserted, no transaction id: then everything was there already, and nothing is noted. */
	known->noted_by = GetCurrentTransactionIdIfAny();
}
