/*
 * hash_key.c
 *	  millrace.hash_key(): the key that a hub or link has for given values.
 *
 * Which types the hub's business key has is configuration that the caller cannot read: it is read as the
 * extension's owner, once for each call site, and again when a relation that it was read from changes.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "vault/vault.h"

PG_FUNCTION_INFO_V1(millrace_hash_key);

/* What a call site knows. */
typedef struct HashKeyCall
{
	MemoryContext context; /* of what follows, emptied when it is out of date */
	Oid relid;
	uint64 generation;
	MrKeyReader reader;
	Oid *given; /* types of the arguments */
} HashKeyCall;

/* Raised when a hub or link that some call site knows may have changed. */
static uint64 generation = 1;
static List *watched = NIL;
static bool callback_registered = false;

static void
relation_changed(Datum argument, Oid relid)
{
	if (relid == InvalidOid || list_member_oid(watched, relid))
		generation++;
}

static void
watch(Oid relid)
{
	MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);

	if (!callback_registered)
	{
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
		callback_registered = true;
	}
	watched = list_append_unique_oid(watched, relid);
	MemoryContextSwitchTo(previous);
}

/* The key of the hub or link that a table is. */
static MrKey *
key_of_table(Oid relid)
{
	MemoryContext context = CurrentMemoryContext;
	Oid types[] = {OIDOID};
	Datum values[] = {ObjectIdGetDatum(relid)};
	char *kind = NULL;
	char *definition = NULL;
	int32 id = 0;
	MrRunAs saved;
	MrKey *key;

	mr_run_as(&saved, mr_extension_owner());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args("SELECT id, kind, definition::pg_catalog.text FROM millrace.target "
							  "WHERE relation OPERATOR(pg_catalog.=) $1",
							  lengthof(types), types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "cannot read the configuration of %s", mr_relation_name(relid));
	if (SPI_processed == 1)
	{
		bool isnull;

		id = DatumGetInt32(mr_sql_value(0, 1, &isnull));
		MemoryContextSwitchTo(context);
		kind = mr_sql_text(0, 2);
		definition = mr_sql_text(0, 3);
		kind = MemoryContextStrdup(context, kind);
		definition = MemoryContextStrdup(context, definition);
	}
	SPI_finish();
	MemoryContextSwitchTo(context);
	mr_run_back(&saved);

	if (kind == NULL || (strcmp(kind, "hub") != 0 && strcmp(kind, "link") != 0))
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("%s is neither a hub nor a link", mr_relation_name(relid)),
						errhint("hash_key() takes the hub or link whose key is wanted, then the "
								"values of its business key.")));
	if (strcmp(kind, "hub") == 0)
		key = mr_key_of_hub(id);
	else
		key = mr_key_of_hubs(mr_vault_json(definition));
	return key;
}

/* Compiles a call for `n` values of the given types. */
static void
prepare_call(HashKeyCall *call, Oid relid, int n, const Oid *given)
{
	MemoryContext previous;
	MrKey *key;

	call->relid = InvalidOid;
	MemoryContextReset(call->context);
	previous = MemoryContextSwitchTo(call->context);
	watch(relid);
	call->generation = generation;
	key = key_of_table(relid);
	if (n != key->ncolumns)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("the key of %s needs %d values, but %d are given",
							   mr_relation_name(relid), key->ncolumns, n)));

	call->reader.key = key;
	call->reader.attnums = palloc(sizeof(AttrNumber) * n);
	call->reader.casts = palloc(sizeof(MrCast *) * n);
	call->reader.values = palloc(sizeof(Datum) * n);
	call->reader.nulls = palloc(sizeof(bool) * n);
	call->reader.part_nulls = palloc(sizeof(bool) * key->nparts);
	call->given = palloc(sizeof(Oid) * n);
	for (int p = 0, column = 0; p < key->nparts; p++)
	{
		for (int c = 0; c < key->parts[p].ncolumns; c++, column++)
		{
			/* A literal without a type comes as a C string. */
			Oid from = given[column] == UNKNOWNOID ? TEXTOID : given[column];

			call->given[column] = given[column];
			call->reader.attnums[column] = column + 1;
			call->reader.casts[column] = mr_cast_create(from, -1, key->parts[p].types[c],
														key->parts[p].typmods[c]);
		}
	}
	MemoryContextSwitchTo(previous);
	call->relid = relid;
}

/* Is what the call site knows still right, for these arguments? */
static bool
call_is_current(const HashKeyCall *call, Oid relid, int n, const Oid *given)
{
	return call->relid == relid && call->generation == generation &&
		   call->reader.key->ncolumns == n && memcmp(call->given, given, sizeof(Oid) * n) == 0;
}

Datum
millrace_hash_key(PG_FUNCTION_ARGS)
{
	HashKeyCall *call = fcinfo->flinfo->fn_extra;
	pg_uuid_t *result;
	Oid given[FUNC_MAX_ARGS];
	Datum *values;
	bool *nulls;
	Oid relid;
	int n;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	relid = PG_GETARG_OID(0);
	if (get_fn_expr_variadic(fcinfo->flinfo))
	{
		ArrayType *array;
		int16 length;
		bool by_value;
		char alignment;

		if (PG_ARGISNULL(1))
			PG_RETURN_NULL();
		array = PG_GETARG_ARRAYTYPE_P(1);
		get_typlenbyvalalign(ARR_ELEMTYPE(array), &length, &by_value, &alignment);
		deconstruct_array(array, ARR_ELEMTYPE(array), length, by_value, alignment, &values, &nulls,
						  &n);
		if (n >= FUNC_MAX_ARGS)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("a key cannot have %d columns", n)));
		for (int i = 0; i < n; i++)
			given[i] = ARR_ELEMTYPE(array);
	}
	else
	{
		n = PG_NARGS() - 1;
		values = palloc(sizeof(Datum) * Max(n, 1));
		nulls = palloc(sizeof(bool) * Max(n, 1));
		for (int i = 0; i < n; i++)
		{
			given[i] = get_fn_expr_argtype(fcinfo->flinfo, i + 1);
			nulls[i] = PG_ARGISNULL(i + 1);
			if (nulls[i])
				continue;
			values[i] = PG_GETARG_DATUM(i + 1);
			if (given[i] == UNKNOWNOID)
				values[i] = CStringGetTextDatum(DatumGetCString(values[i]));
		}
	}

	if (call == NULL)
	{
		call = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(HashKeyCall));
		call->context = AllocSetContextCreate(fcinfo->flinfo->fn_mcxt, "millrace hash_key",
											  ALLOCSET_SMALL_SIZES);
		fcinfo->flinfo->fn_extra = call;
	}
	if (!call_is_current(call, relid, n, given))
		prepare_call(call, relid, n, given);

	result = palloc(sizeof(pg_uuid_t));
	if (mr_key_read(&call->reader, values, nulls) == 0)
		*result = mr_zero_key;
	else
		mr_key_hash(&call->reader, result);
	PG_RETURN_UUID_P(result);
}
