/*
 * hashdiff.c
 *	  millrace.hashdiff(), millrace.hash_set(): the hashes that a satellite has for what is said.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/hash.h"
#include "core/millrace.h"
#include "utils/array.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(millrace_hashdiff);
PG_FUNCTION_INFO_V1(millrace_hash_set);

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
 * have the types of the satellite's columns.  What has no number is part of a sub-key, and NULL counts.
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
		bool isnull = PG_ARGISNULL(i + 1);

		if (isnull && !nulls[i])
			continue;
		if (!nulls[i])
			mr_hasher_add_int32(call->hasher, DatumGetInt32(numbers[i]));
		mr_hasher_add(call->hasher, &call->columns[i + 1],
					  isnull ? (Datum) 0 : PG_GETARG_DATUM(i + 1), isnull);
	}
	mr_hasher_end(call->hasher, result);
	PG_RETURN_UUID_P(result);
}

/* hash_set(members uuid[], contents uuid[]): over the hashes of a set's members, in their order, and of what is said of each. */
Datum
millrace_hash_set(PG_FUNCTION_ARGS)
{
	MrHasher *hasher = fcinfo->flinfo->fn_extra;
	pg_uuid_t *result = palloc(sizeof(pg_uuid_t));
	Datum *elements[2];
	bool *nulls[2];
	int n[2];

	for (int i = 0; i < 2; i++)
		deconstruct_array(PG_GETARG_ARRAYTYPE_P(i), UUIDOID, UUID_LEN, false, TYPALIGN_CHAR,
						  &elements[i], &nulls[i], &n[i]);
	if (n[0] != n[1])
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("hash_set() needs one content for each member, but %d are given for %d",
						n[1], n[0])));
	if (hasher == NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);

		fcinfo->flinfo->fn_extra = hasher = mr_hasher_create();
		MemoryContextSwitchTo(previous);
	}
	mr_hasher_begin(hasher);
	for (int m = 0; m < n[0]; m++)
	{
		for (int i = 0; i < 2; i++)
		{
			if (nulls[i][m])
				PG_RETURN_NULL();
			mr_hasher_add_bytes(hasher, (char *) DatumGetUUIDP(elements[i][m])->data, UUID_LEN);
		}
	}
	mr_hasher_end(hasher, result);
	PG_RETURN_UUID_P(result);
}
