/*
 * vault.c
 *	  What the kinds of vault tables have in common.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "core/catalog.h"
#include "core/millrace.h"
#include "miscadmin.h"
#include "parser/parsetree.h"
#include "source/source.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "vault/vault.h"

PG_FUNCTION_INFO_V1(millrace_definition_column);
PG_FUNCTION_INFO_V1(millrace_declared_column);

/* ---- tables ------------------------------------------------------------------------------------------ */

void
mr_vault_table_open(MrVaultTable *table, const MrTarget *target)
{
	Relation relation = table_open(target->relid, AccessShareLock);

	table->relid = target->relid;
	table->desc = CreateTupleDescCopy(RelationGetDescr(relation));
	table->definition = mr_definition_query(target->kind->name, target->id);
	table_close(relation, NoLock);
}

AttrNumber
mr_vault_attribute(const MrVaultTable *table, const char *name)
{
	AttrNumber attnum = mr_definition_attribute(table->definition, table->relid, name);

	if (attnum == InvalidAttrNumber)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
						errmsg("the definition of %s has no column \"%s\"",
							   mr_relation_name(table->relid), name)));
	return attnum;
}

/* The current name of the column that a definition knows under a declared name, or NULL. */
Datum
millrace_definition_column(PG_FUNCTION_ARGS)
{
	char *kind = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char *declared = text_to_cstring(PG_GETARG_TEXT_PP(2));
	Query *query = mr_definition_expressions(mr_definition_query(kind, PG_GETARG_INT32(1)));
	ListCell *lc;

	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);
		Var *var = (Var *) entry->expr;

		if (!entry->resjunk && IsA(var, Var) && strcmp(entry->resname, declared) == 0)
			PG_RETURN_TEXT_P(cstring_to_text(
				get_attname(rt_fetch(var->varno, query->rtable)->relid, var->varattno, false)));
	}
	PG_RETURN_NULL();
}

/* The name under which a definition knows a column that is called so now, or NULL. */
Datum
millrace_declared_column(PG_FUNCTION_ARGS)
{
	char *kind = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(2));
	Query *query = mr_definition_expressions(mr_definition_query(kind, PG_GETARG_INT32(1)));
	ListCell *lc;

	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);
		Var *var = (Var *) entry->expr;

		if (!entry->resjunk && IsA(var, Var) && var->varlevelsup == 0 &&
			strcmp(name, get_attname(rt_fetch(var->varno, query->rtable)->relid, var->varattno,
									 false)) == 0)
			PG_RETURN_TEXT_P(cstring_to_text(entry->resname));
	}
	PG_RETURN_NULL();
}

/* ---- configuration ----------------------------------------------------------------------------------- */

Jsonb *
mr_vault_json(const char *text)
{
	if (text == NULL)
		return NULL;
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
}

Jsonb *
mr_vault_json_member(Jsonb *object, const char *name)
{
	JsonbValue *value;

	if (object == NULL || !JB_ROOT_IS_OBJECT(object))
		return NULL;
	value = getKeyJsonValueFromContainer(&object->root, name, strlen(name), NULL);
	return value == NULL || value->type == jbvNull ? NULL : JsonbValueToJsonb(value);
}

Jsonb *
mr_vault_json_element(Jsonb *array, int i)
{
	JsonbValue *value;

	if (array == NULL || !JB_ROOT_IS_ARRAY(array))
		return NULL;
	value = getIthJsonbValueFromContainer(&array->root, i);
	return value == NULL ? NULL : JsonbValueToJsonb(value);
}

int
mr_vault_json_length(Jsonb *array)
{
	return array != NULL && JB_ROOT_IS_ARRAY(array) ? JB_ROOT_COUNT(array) : 0;
}

char *
mr_vault_json_text(Jsonb *scalar)
{
	JsonbValue value;

	if (scalar == NULL)
		return NULL;
	if (!JsonbExtractScalar(&scalar->root, &value))
		elog(ERROR, "a member of a vault table's configuration is no scalar");
	switch (value.type)
	{
		case jbvString:
			return pnstrdup(value.val.string.val, value.val.string.len);
		case jbvNumeric:
			return DatumGetCString(
				DirectFunctionCall1(numeric_out, NumericGetDatum(value.val.numeric)));
		default:
			return NULL;
	}
}

bool
mr_vault_json_true(Jsonb *scalar)
{
	JsonbValue value;

	return scalar != NULL && JsonbExtractScalar(&scalar->root, &value) && value.type == jbvBool &&
		   value.val.boolean;
}

Datum
mr_vault_record_source(const char *of_source, const char *of_target, const MrBatch *batch)
{
	return CStringGetTextDatum(of_source != NULL   ? of_source
							   : of_target != NULL ? of_target
												   : batch->stream->name);
}

int
mr_vault_count_rows(const MrTarget *target, const MrBatch *batch)
{
	int rows = 0;

	for (int s = 0; s < target->nsources; s++)
	{
		const MrStaging *staging = target->sources[s].staging;
		const MrStaged *staged;

		if (staging == NULL)
			continue;
		staged = &batch->staged[staging->ordinal];
		for (int v = 0; v < staged->nversions; v++)
			rows += staged->versions[v].nrows;
	}
	return rows;
}

/* ---- counting ---------------------------------------------------------------------------------------- */

void
mr_vault_count_skipped(int32 target_id, const MrBatch *batch, int64 rows)
{
	MrRunAs saved;

	if (rows == 0 || batch->counted)
		return;
	/* A row is locked until the batch ends: several of them, so that workers seldom meet. */
	mr_run_as(&saved, mr_extension_owner());
	(void) mr_sql("INSERT INTO millrace.target_counter AS c (target_id, stripe, skipped) "
				  "VALUES (%d, %d, " INT64_FORMAT ") "
				  "ON CONFLICT (target_id, stripe) DO UPDATE "
				  "SET skipped = c.skipped OPERATOR(pg_catalog.+) excluded.skipped",
				  target_id, MyProcPid % 64, rows);
	mr_run_back(&saved);
}

/* ---- sets of keys ------------------------------------------------------------------------------------ */

typedef struct KeyEntry
{
	pg_uuid_t key;
	char status;
} KeyEntry;

/* Keys are hashes: any four bytes of one are a good hash of it. */
static inline uint32
hash_of_key(pg_uuid_t key)
{
	uint32 bits;

	memcpy(&bits, key.data, sizeof(bits));
	return bits;
}

#define SH_PREFIX keyset
#define SH_ELEMENT_TYPE KeyEntry
#define SH_KEY_TYPE pg_uuid_t
#define SH_KEY key
#define SH_HASH_KEY(table, key) hash_of_key(key)
#define SH_EQUAL(table, a, b) (memcmp(&(a), &(b), sizeof(pg_uuid_t)) == 0)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

struct MrKeySet
{
	keyset_hash *hash;
};

MrKeySet *
mr_key_set_create(int capacity)
{
	MrKeySet *set = palloc(sizeof(MrKeySet));

	set->hash = keyset_create(CurrentMemoryContext, Max(capacity, 64), NULL);
	return set;
}

bool
mr_key_set_add(MrKeySet *set, const pg_uuid_t *key)
{
	bool found;

	(void) keyset_insert(set->hash, *key, &found);
	return !found;
}
