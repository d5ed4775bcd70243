/*
 * statement.c
 *	  Saved SQL statements over SPI.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

struct MrStatement
{
	char *sql;
	int nargs;
	Oid *types;
	SPIPlanPtr plan; /* NULL until it runs first */
	MemoryContextCallback release;
};

/* A saved plan goes with the memory of the statement that owns it. */
static void
release_plan(void *arg)
{
	MrStatement *statement = arg;

	if (statement->plan != NULL)
		(void) SPI_freeplan(statement->plan);
	statement->plan = NULL;
}

MrStatement *
mr_statement_create(const char *sql, int nargs, const Oid *types)
{
	MrStatement *statement = palloc0(sizeof(MrStatement));

	statement->sql = pstrdup(sql);
	statement->nargs = nargs;
	statement->types = palloc(sizeof(Oid) * Max(nargs, 1));
	if (nargs > 0)
		memcpy(statement->types, types, sizeof(Oid) * nargs);
	statement->release.func = release_plan;
	statement->release.arg = statement;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &statement->release);
	return statement;
}

SPIPlanPtr
mr_sql_prepare(const char *sql, int nargs, Oid *types)
{
	SPIPlanPtr plan = SPI_prepare(sql, nargs, types);

	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "cannot prepare \"%s\": %s", sql, SPI_result_code_string(SPI_result));
	return plan;
}

uint64
mr_statement_run(MrStatement *statement, Datum *values, const char *nulls)
{
	MemoryContext context = CurrentMemoryContext;
	int result;

	if (statement->plan == NULL)
		statement->plan = mr_sql_prepare(statement->sql, statement->nargs, statement->types);
	result = SPI_execute_plan(statement->plan, values, nulls, false, 0);
	if (result < 0)
		elog(ERROR, "cannot run \"%s\": %s", statement->sql, SPI_result_code_string(result));
	MemoryContextSwitchTo(context);
	return SPI_processed;
}

uint64
mr_statement_by_index(MrStatement **statement, const char *sql, int nargs, const Oid *types,
					  Datum *values)
{
	int nest_level;
	uint64 processed;

	if (*statement == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		*statement = mr_statement_create(sql, nargs, types);
		MemoryContextSwitchTo(old);
	}
	nest_level = mr_settings_prefer_indexes();
	processed = mr_statement_run(*statement, values, NULL);
	mr_settings_unpin(nest_level);
	return processed;
}

/* Elements of an array, as construct_md_array wants them. */
struct MrArray
{
	Oid type;
	int count;
	int capacity;
	Datum *values;
	bool *nulls;
};

MrArray *
mr_array_create(Oid type, int expected)
{
	MrArray *array = palloc0(sizeof(MrArray));

	array->type = type;
	array->capacity = Max(expected, 8);
	array->values = palloc(sizeof(Datum) * array->capacity);
	array->nulls = palloc(sizeof(bool) * array->capacity);
	return array;
}

void
mr_array_add(MrArray *array, Datum value, bool isnull)
{
	if (array->count == array->capacity)
	{
		array->capacity *= 2;
		array->values = repalloc_huge(array->values, sizeof(Datum) * array->capacity);
		array->nulls = repalloc_huge(array->nulls, sizeof(bool) * array->capacity);
	}
	array->values[array->count] = value;
	array->nulls[array->count++] = isnull;
}

void
mr_array_add_text(MrArray *array, const char *text)
{
	mr_array_add(array, text == NULL ? (Datum) 0 : CStringGetTextDatum(text), text == NULL);
}

int
mr_array_length(const MrArray *array)
{
	return array->count;
}

Datum
mr_array_datum(const MrArray *array)
{
	int count = array->count;
	int lower = 1;
	int16 length;
	bool by_value;
	char align;

	get_typlenbyvalalign(array->type, &length, &by_value, &align);
	return PointerGetDatum(construct_md_array(array->values, array->nulls, 1, &count, &lower,
											  array->type, length, by_value, align));
}

uint64
mr_sql(const char *format, ...)
{
	MemoryContext context = CurrentMemoryContext;
	StringInfoData sql;
	int result;

	initStringInfo(&sql);
	for (;;)
	{
		va_list args;
		int needed;

		va_start(args, format);
		needed = appendStringInfoVA(&sql, format, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&sql, needed);
	}
	result = SPI_execute(sql.data, false, 0);
	if (result < 0)
		elog(ERROR, "cannot run \"%s\": %s", sql.data, SPI_result_code_string(result));
	MemoryContextSwitchTo(context);
	pfree(sql.data);
	return SPI_processed;
}

uint64
mr_sql_with(const char *sql, int nargs, const Oid *types, Datum *values, const char *nulls)
{
	MemoryContext context = CurrentMemoryContext;
	int result = SPI_execute_with_args(sql, nargs, (Oid *) types, values, nulls, false, 0);

	if (result < 0)
		elog(ERROR, "cannot run \"%s\": %s", sql, SPI_result_code_string(result));
	MemoryContextSwitchTo(context);
	return SPI_processed;
}

Datum
mr_sql_value(uint64 row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, isnull);
}

char *
mr_sql_text(uint64 row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}

List *
mr_sql_ids(uint64 count)
{
	List *ids = NIL;
	bool isnull;

	for (uint64 i = 0; i < count; i++)
		ids = lappend_int(ids, DatumGetInt32(mr_sql_value(i, 1, &isnull)));
	SPI_freetuptable(SPI_tuptable);
	return ids;
}

char *
mr_relation_name(Oid relid)
{
	char *name = get_rel_name(relid);

	if (name == NULL)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("relation with OID %u does not exist", relid)));
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), name);
}
