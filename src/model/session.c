/*
 * session.c
 *	  What a session knows of models.
 *
 * An entry has what seldom changes while the model is there, and is read again after any change of the model's relation or of a table
 * that its kind reads.  Whether the caller may ask and which version is served is looked up each time.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/objectaddress.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "miscadmin.h"
#include "model/session.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(millrace_model_changed);

static HTAB *models = NULL;

/* One of them may be gone. */
static bool have_changed = false;

static const MrModelKeeping *const keepings[] = {[MR_MODEL_NEIGHBOURS] = &mr_neighbours_keeping,
												 [MR_MODEL_ONLINE] = &mr_neighbours_keeping,
												 [MR_MODEL_TREES] = &mr_trees_keeping};

/* A relation may be another model by now, or have other indexes; who is answering goes on with what it has. */
static void
relation_changed(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS all;
	MrModel *model;

	hash_seq_init(&all, models);
	while ((model = hash_seq_search(&all)) != NULL)
	{
		bool has_changed = !OidIsValid(relid) || relid == model->relation ||
						   relid == model->aliases.table;

		for (int i = 0; i < MR_MODEL_TABLES; i++)
			has_changed |= relid == model->tables[i].table;
		model->changes += has_changed;
		have_changed |= has_changed;
	}
}

/* Lets sessions read the registry's row of a model again, from the commit on. */
Datum
millrace_model_changed(PG_FUNCTION_ARGS)
{
	CacheInvalidateRelcacheByRelid(PG_GETARG_OID(0));
	PG_RETURN_VOID();
}

/* Lets go of what is kept of a model that was dropped. */
static void
forget(MrModel *model)
{
	if (model->kept == NULL)
		return;
	if (keepings[model->kind]->forget != NULL)
		keepings[model->kind]->forget(model->kept);
	pfree(model->kept);
	model->kept = NULL;
}

/* Lets go of what is kept of models that were dropped. */
static void
forget_dropped(void)
{
	HASH_SEQ_STATUS all;
	MrModel *model;

	have_changed = false;
	hash_seq_init(&all, models);
	while ((model = hash_seq_search(&all)) != NULL)
		if (model->learnt != model->changes &&
			!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(model->relation)))
			forget(model);
}

/* Reads the registry's row of a model; false when there is none. */
static bool
learn(MrModel *model)
{
	uint64 changes = model->changes;
	TupleDesc desc;
	HeapTuple row = mr_lookup_row(mr_lookup_configuration("model", "model_relation_key"), 2,
								  ObjectIdGetDatum(model->relation), 0, (Datum) 0, &desc);
	MrModelKind kind = MR_MODEL_NEIGHBOURS;
	bool isnull;
	int32 id;

	if (row == NULL)
		return false;
	id = DatumGetInt32(mr_lookup_column(row, 1, desc));
	if (strcmp(TextDatumGetCString(mr_lookup_named(row, desc, "kind", &isnull)), "xgboost") == 0)
		kind = MR_MODEL_TREES;
	if (DatumGetBool(mr_lookup_named(row, desc, "is_online", &isnull)))
		kind = MR_MODEL_ONLINE;
	if (id != model->id)
		forget(model);
	model->id = id;
	model->kind = kind;
	model->owner = DatumGetObjectId(mr_lookup_named(row, desc, "owner", &isnull));
	model->aliases = mr_lookup_configuration("model_alias", "model_alias_pkey");
	if (model->kept == NULL)
		model->kept = MemoryContextAllocZero(CacheMemoryContext, Max(keepings[kind]->size, 1));
	if (keepings[kind]->learn != NULL)
		keepings[kind]->learn(model, row, desc);
	model->learnt = changes;
	return true;
}

MrModel *
mr_model_open(Oid relation, bool predicts)
{
	AclResult allowed;
	MrModel *model;
	bool is_model;
	bool found;

	if (have_changed)
		forget_dropped();
	allowed = pg_class_aclcheck(relation, GetUserId(), ACL_SELECT);
	if (allowed != ACLCHECK_OK)
		aclcheck_error(allowed, get_relkind_objtype(get_rel_relkind(relation)),
					   get_rel_name(relation));
	/* Nobody drops the model meanwhile. */
	LockRelationOid(relation, AccessShareLock);
	if (models == NULL)
	{
		HASHCTL control = {.keysize = sizeof(Oid), .entrysize = sizeof(MrModel)};

		models = hash_create("millrace models", 16, &control, HASH_ELEM | HASH_BLOBS);
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	}
	model = hash_search(models, &relation, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) model + sizeof(Oid), 0, sizeof(MrModel) - sizeof(Oid));
		model->changes = 1;
	}
	is_model = model->learnt == model->changes || learn(model);
	if (!is_model || (model->kind == MR_MODEL_TREES) != predicts)
		ereport(
			ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("%s is not a model%s",
					DatumGetCString(DirectFunctionCall1(regclassout, ObjectIdGetDatum(relation))),
					!is_model  ? ""
					: predicts ? " that predicts"
							   : " that recommends")));
	return model;
}

int32
mr_model_served(const MrModel *model)
{
	Relation aliases = table_open(model->aliases.table, AccessShareLock);
	SysScanDesc rows = mr_lookup(aliases, model->aliases.index, 1, Int32GetDatum(model->id), 2,
								 CStringGetTextDatum("production"));
	HeapTuple row = systable_getnext(rows);
	int32 version = 0;

	if (HeapTupleIsValid(row))
		version = DatumGetInt32(mr_lookup_column(row, 3, RelationGetDescr(aliases)));
	systable_endscan(rows);
	table_close(aliases, AccessShareLock);
	if (version == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("model %s has no version yet", mr_relation_name(model->relation)),
						errhint("Call millrace.train().")));
	return version;
}
