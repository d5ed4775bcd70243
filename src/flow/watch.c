/*
 * watch.c
 *	  Notices when something that a compiled stream stands on is changed by others' DDL.
 *
 * What was compiled knows tables by their columns' numbers and types, and expressions by the functions that they
 * call.  PostgreSQL tells of every change by invalidation messages; when what they are about is not what it was, the
 * next batch compiles again before it writes anything.  Not everything that they are about is a change: VACUUM and
 * ANALYZE, which come by at any time, touch a relation's row in pg_class only for its statistics, and each temporary
 * table that somebody makes is a new type.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "core/compat.h"
#include "flow/plan.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* A relation as it was when the stream was compiled. */
typedef struct Watched
{
	Oid relid;
	bool suspect; /* a message about it has come since */
	FormData_pg_class class; /* without statistics */
	TupleDesc desc;
	List *indexes;
	int ntriggers;
	Trigger *triggers; /* of which only OIDs and what fires are compared */
} Watched;

static MemoryContext context = NULL; /* of what follows */
static Watched *relations = NULL;
static int nrelations = 0;
static uint32 *types = NULL; /* hash values of the types that were there, sorted */
static int ntypes = 0;
static bool compiling = false; /* relations are not known yet: all count */
static bool changed = false;

static void
relation_changed(Datum argument, Oid relid)
{
	if (compiling || !OidIsValid(relid))
		changed = true;
	for (int i = 0; i < nrelations; i++)
		relations[i].suspect |= relations[i].relid == relid;
}

static void
function_changed(Datum argument, int cache, uint32 hash)
{
	changed = true;
}

static int
compare_hashes(const void *left, const void *right)
{
	uint32 l = *(const uint32 *) left;
	uint32 r = *(const uint32 *) right;

	return l < r ? -1 : l > r;
}

static void
type_changed(Datum argument, int cache, uint32 hash)
{
	if (compiling || hash == 0 ||
		bsearch(&hash, types, ntypes, sizeof(uint32), compare_hashes) != NULL)
		changed = true;
}

void
mr_watch_begin(void)
{
	static bool listening = false;

	if (!listening)
	{
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(PROCOID, function_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(TYPEOID, type_changed, (Datum) 0);
		listening = true;
	}
	compiling = true;
	changed = false;
}

/*
 * Remembers which types there are: one that is made later is not of ours.  Row types and arrays are left out, because
 * what changes in one is its relation or its element's type.
 */
static void
remember_types(void)
{
	Relation catalog = table_open(TypeRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(catalog, InvalidOid, false, NULL, 0, NULL);
	int capacity = 64;
	HeapTuple tuple;

	types = palloc(sizeof(uint32) * capacity);
	ntypes = 0;
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_type type = (Form_pg_type) GETSTRUCT(tuple);

		if (type->oid < FirstNormalObjectId || type->typtype == TYPTYPE_COMPOSITE ||
			IsTrueArrayType(type))
			continue;
		if (ntypes == capacity)
			types = repalloc_huge(types, sizeof(uint32) * (capacity *= 2));
		types[ntypes++] = GetSysCacheHashValue1(TYPEOID, ObjectIdGetDatum(type->oid));
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	qsort(types, ntypes, sizeof(uint32), compare_hashes);
}

/* A relation's row in pg_class, without what VACUUM and ANALYZE write. */
static FormData_pg_class
lasting_class(Relation relation)
{
	FormData_pg_class class;

	memset(&class, 0, sizeof(class));
	memcpy(&class, relation->rd_rel, CLASS_TUPLE_SIZE);
	class.relpages = 0;
	class.reltuples = 0;
	class.relallvisible = 0;
	mr_class_forget_frozen(&class);
	class.relfrozenxid = InvalidTransactionId;
	class.relminmxid = InvalidTransactionId;
	return class;
}

static void
remember_relation(Watched *watched, Oid relid)
{
	Relation relation = try_relation_open(relid, AccessShareLock);

	watched->relid = relid;
	if (relation == NULL)
	{
		changed = true;
		return;
	}
	watched->class = lasting_class(relation);
	watched->desc = CreateTupleDescCopyConstr(RelationGetDescr(relation));
	watched->indexes = RelationGetIndexList(relation);
	if (relation->trigdesc != NULL)
	{
		Size size = sizeof(Trigger) * relation->trigdesc->numtriggers;

		watched->ntriggers = relation->trigdesc->numtriggers;
		watched->triggers = memcpy(palloc(size), relation->trigdesc->triggers, size);
	}
	relation_close(relation, AccessShareLock);
}

void
mr_watch_end(const MrStream *stream)
{
	MemoryContext previous;
	ListCell *lc;

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "millrace watch", ALLOCSET_DEFAULT_SIZES);
	nrelations = 0;
	MemoryContextReset(context);
	previous = MemoryContextSwitchTo(context);
	remember_types();
	relations = palloc0(sizeof(Watched) *
						(2 * list_length(stream->stagings) + list_length(stream->targets) + 1));
	foreach(lc, stream->stagings)
	{
		const MrStaging *staging = lfirst(lc);

		remember_relation(&relations[nrelations++], staging->relid);
		if (OidIsValid(staging->log))
			remember_relation(&relations[nrelations++], staging->log);
	}
	foreach(lc, stream->targets)
		remember_relation(&relations[nrelations++], ((MrTarget *) lfirst(lc))->relid);
	MemoryContextSwitchTo(previous);
	compiling = false;
}

static bool
same_triggers(const Watched *watched, const TriggerDesc *desc)
{
	if ((desc == NULL ? 0 : desc->numtriggers) != watched->ntriggers)
		return false;
	for (int i = 0; i < watched->ntriggers; i++)
	{
		const Trigger *then = &watched->triggers[i];
		const Trigger *now = &desc->triggers[i];

		if (then->tgoid != now->tgoid || then->tgenabled != now->tgenabled ||
			then->tgfoid != now->tgfoid || then->tgtype != now->tgtype)
			return false;
	}
	return true;
}

/* Is a suspect relation what it was?  Of views we do not know what they were. */
static bool
is_same(const Watched *watched)
{
	Relation relation = try_relation_open(watched->relid, AccessShareLock);
	FormData_pg_class class;
	List *indexes;
	bool same;

	if (relation == NULL)
		return false;
	class = lasting_class(relation);
	indexes = RelationGetIndexList(relation);
	same = relation->rd_rules == NULL && memcmp(&class, &watched->class, sizeof(class)) == 0 &&
		   equalTupleDescs(RelationGetDescr(relation), watched->desc) &&
		   equal(indexes, watched->indexes) && same_triggers(watched, relation->trigdesc);
	list_free(indexes);
	relation_close(relation, AccessShareLock);
	return same;
}

bool
mr_watch_changed(const MrStream *stream)
{
	ListCell *lc;

	/* Nobody changes a table any more when it is locked, and what has been changed is known then. */
	foreach(lc, stream->stagings)
	{
		const MrStaging *staging = lfirst(lc);

		LockRelationOid(staging->relid, RowExclusiveLock);
		if (OidIsValid(staging->log))
			LockRelationOid(staging->log, RowExclusiveLock);
	}
	/* What could not be compiled as it is now has not been compiled. */
	changed |= compiling;
	for (int i = 0; i < nrelations && !changed; i++)
	{
		if (!relations[i].suspect)
			continue;
		/* First: a message that comes while we look makes it suspect again. */
		relations[i].suspect = false;
		changed |= !is_same(&relations[i]);
	}
	return changed;
}
