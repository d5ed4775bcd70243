/*
 * watch.c
 *	  Notices when something that a compiled stream stands on is changed by others' DDL.
 *
 * What was compiled knows tables by their columns' numbers and types, and expressions by the functions that they
 * call.  PostgreSQL tells of every change by invalidation messages; one about a relation of the stream, or about any
 * function or type, makes the next batch compile again before it writes anything.
 */
#include "postgres.h"

#include "flow/plan.h"
#include "storage/lmgr.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

static Oid *relations = NULL;
static int nrelations = 0;
static bool compiling = false; /* relations are not known yet: all count */
static bool changed = false;

static void
relation_changed(Datum argument, Oid relid)
{
	if (compiling || !OidIsValid(relid))
		changed = true;
	for (int i = 0; i < nrelations && !changed; i++)
		changed = relations[i] == relid;
}

static void
definition_changed(Datum argument, int cache, uint32 hash)
{
	changed = true;
}

void
mr_watch_begin(void)
{
	static bool listening = false;

	if (!listening)
	{
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(PROCOID, definition_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(TYPEOID, definition_changed, (Datum) 0);
		listening = true;
	}
	compiling = true;
	changed = false;
}

void
mr_watch_end(const MrStream *stream)
{
	ListCell *lc;

	if (relations != NULL)
		pfree(relations);
	relations = MemoryContextAlloc(
		TopMemoryContext,
		sizeof(Oid) * (list_length(stream->stagings) + list_length(stream->targets) + 1));
	nrelations = 0;
	foreach(lc, stream->stagings)
		relations[nrelations++] = ((MrStaging *) lfirst(lc))->relid;
	foreach(lc, stream->targets)
		relations[nrelations++] = ((MrTarget *) lfirst(lc))->relid;
	compiling = false;
}

bool
mr_watch_changed(const MrStream *stream)
{
	ListCell *lc;

	/* Nobody changes a table any more when it is locked, and what has been changed is known then. */
	foreach(lc, stream->stagings)
		LockRelationOid(((MrStaging *) lfirst(lc))->relid, RowExclusiveLock);
	return changed;
}
