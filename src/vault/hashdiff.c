/*
 * hashdiff.c
 *	  millrace.hashdiff(): the hash that a satellite has for values of its attributes.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/hash.h"
#include "core/millrace.h"
#include "utils/array.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(millrace_hashdiff);

/* What a call site knows. */
typedef struct HashdiffCall
{
	MrHasher *hasher;
	MrHashColumn *columns;
} HashdiffCall;

static HashdiffCall *
prepare_call(FunctionCallInfo fcinfo)
{
	MemoryContext previous = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	HashdiffCall *call = palloc(sizeof(HashdiffCall));

	call->hasher = mr_hasher_create();
	call->columns = palloc0(sizeof(MrHashColumn) * PG_NARGS());
	for (int i = 1; i < PG_NARGS(); i++)
		mr_hash_column_init(&call->columns[i], get_fn_expr_argtype(fcinfo->flinfo, i));
	MemoryContextSwitchTo(previous);
	return call;
}

/*
 * hashdiff(numbers integer[], VARIADIC "any"): over the number and value of each attribute that is not NULL.  The values
 * have the types of the satellite's columns.
 */
Datum
millrace_hashdiff(PG_FUNCTION_ARGS)
{
	HashdiffCall *call = fcinfo->flinfo->fn_extra;
	pg_uuid_t *result = palloc(sizeof(pg_uuid_t));
	Datum *numbers;
	bool *nulls;
	int n;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), INT4OID, sizeof(int32), true, TYPALIGN_INT,
					  &numbers, &nulls, &n);
	if (get_fn_expr_variadic(fcinfo->flinfo) || n != PG_NARGS() - 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("hashdiff() needs one number for each value, but %d are given for %d", n,
						PG_NARGS() - 1)));
	if (call == NULL)
		fcinfo->flinfo->fn_extra = call = prepare_call(fcinfo);

	mr_hasher_begin(call->hasher);
	for (int i = 0; i < n; i++)
	{
		if (PG_ARGISNULL(i + 1) || nulls[i])
			continue;
		mr_hasher_add_int32(call->hasher, DatumGetInt32(numbers[i]));
		mr_hasher_add(call->hasher, &call->columns[i + 1], PG_GETARG_DATUM(i + 1), false);
	}
	mr_hasher_end(call->hasher, result);
	PG_RETURN_UUID_P(result);
}
