/*
 * functions.c
 *	  Aggregates that millrace brings: the latest value, and exact sums of floating point numbers.
 *
 * Their results depend on what is aggregated and not on the order in which it comes, so that a mart and a plain
 * query always agree.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/typcache.h"

/* PostgreSQL's own gives no more than 350 digits; the C library gives all there are. */
#undef snprintf

PG_FUNCTION_INFO_V1(millrace_latest_next);
PG_FUNCTION_INFO_V1(millrace_latest_result);
PG_FUNCTION_INFO_V1(millrace_exact_numeric);
PG_FUNCTION_INFO_V1(millrace_exact_next);
PG_FUNCTION_INFO_V1(millrace_exact_sum_result);
PG_FUNCTION_INFO_V1(millrace_exact_avg_result);

/* ---- the latest value ------------------------------------------------------------------------- */

/* A value of one of the arguments. */
typedef struct Kept
{
	TypeCacheEntry *type;
	Oid collation;
	Datum value;
	bool isnull;
} Kept;

typedef struct Latest
{
	bool any;
	Kept time;
	Kept value;
} Latest;

static void
kept_init(Kept *kept, FunctionCallInfo fcinfo, int argument)
{
	Oid type = get_fn_expr_argtype(fcinfo->flinfo, argument);

	kept->type = lookup_type_cache(type, TYPECACHE_CMP_PROC_FINFO);
	if (!OidIsValid(kept->type->cmp_proc_finfo.fn_oid))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_FUNCTION),
						errmsg("latest() cannot compare values of type %s", format_type_be(type))));
	kept->collation = PG_GET_COLLATION();
	/* The two arguments may differ in whether they have a collation. */
	if (!OidIsValid(kept->collation))
		kept->collation = get_typcollation(type);
}

static int
kept_compare(const Kept *kept, Datum value, bool isnull)
{
	if (kept->isnull || isnull)
		return (isnull ? 0 : 1) - (kept->isnull ? 0 : 1);
	return DatumGetInt32(
		FunctionCall2Coll(&kept->type->cmp_proc_finfo, kept->collation, value, kept->value));
}

static void
kept_set(Kept *kept, MemoryContext context, Datum value, bool isnull)
{
	MemoryContext previous = MemoryContextSwitchTo(context);

	if (kept->value != (Datum) 0 && !kept->type->typbyval)
		pfree(DatumGetPointer(kept->value));
	kept->isnull = isnull;
	kept->value = isnull ? (Datum) 0
				  : kept->type->typlen == -1
					  ? PointerGetDatum(PG_DETOAST_DATUM_COPY(value))
					  : datumCopy(value, kept->type->typbyval, kept->type->typlen);
	MemoryContextSwitchTo(previous);
}

/* Of two rows of the same time the greater value counts, any value before NULL. */
Datum
millrace_latest_next(PG_FUNCTION_ARGS)
{
	Latest *latest = PG_ARGISNULL(0) ? NULL : (Latest *) PG_GETARG_POINTER(0);
	MemoryContext context;
	int order;

	if (!AggCheckCallContext(fcinfo, &context))
		elog(ERROR, "latest() is an aggregate");
	if (latest == NULL)
	{
		latest = MemoryContextAllocZero(context, sizeof(Latest));
		kept_init(&latest->value, fcinfo, 1);
		kept_init(&latest->time, fcinfo, 2);
	}
	/* Who knows when it was? */
	if (PG_ARGISNULL(2))
		PG_RETURN_POINTER(latest);
	order = latest->any ? kept_compare(&latest->time, PG_GETARG_DATUM(2), false) : 1;
	if (order == 0)
		order = kept_compare(&latest->value, PG_GETARG_DATUM(1), PG_ARGISNULL(1));
	if (order > 0)
	{
		kept_set(&latest->time, context, PG_GETARG_DATUM(2), false);
		kept_set(&latest->value, context, PG_GETARG_DATUM(1), PG_ARGISNULL(1));
		latest->any = true;
	}
	PG_RETURN_POINTER(latest);
}

Datum
millrace_latest_result(PG_FUNCTION_ARGS)
{
	Latest *latest = PG_ARGISNULL(0) ? NULL : (Latest *) PG_GETARG_POINTER(0);

	if (latest == NULL || !latest->any || latest->value.isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(latest->value.value);
}

/* ---- exact sums ------------------------------------------------------------------------------- */

/* A binary fraction has as many decimals as it has binary places. */
static Datum
exact_numeric(double number)
{
	int exponent;
	double mantissa = frexp(number, &exponent);
	int decimals = 0;
	char *text;
	int length;
	Datum result;

	if (isnan(number) || isinf(number))
		return DirectFunctionCall1(float8_numeric, Float8GetDatum(number));
	while (mantissa != rint(mantissa))
	{
		mantissa *= 2;
		exponent--;
	}
	decimals = Max(-exponent, 0);
	length = snprintf(NULL, 0, "%.*f", decimals, number) + 1;
	text = palloc(length);
	(void) snprintf(text, length, "%.*f", decimals, number);
	result = DirectFunctionCall3(numeric_in, CStringGetDatum(text), ObjectIdGetDatum(InvalidOid),
								 Int32GetDatum(-1));
	pfree(text);
	return result;
}

/* The argument of a function over real or double precision. */
static double
float_argument(FunctionCallInfo fcinfo, int argument)
{
	if (get_fn_expr_argtype(fcinfo->flinfo, argument) == FLOAT4OID)
		return PG_GETARG_FLOAT4(argument);
	return PG_GETARG_FLOAT8(argument);
}

/* The number that a floating point number stands for, with all of its digits. */
Datum
millrace_exact_numeric(PG_FUNCTION_ARGS)
{
	PG_RETURN_DATUM(exact_numeric(float_argument(fcinfo, 0)));
}

typedef struct ExactSum
{
	Datum sum;
	int64 n;
} ExactSum;

Datum
millrace_exact_next(PG_FUNCTION_ARGS)
{
	ExactSum *state = PG_ARGISNULL(0) ? NULL : (ExactSum *) PG_GETARG_POINTER(0);
	MemoryContext context;
	MemoryContext previous;
	Datum number;
	Datum sum;

	if (!AggCheckCallContext(fcinfo, &context))
		elog(ERROR, "exact_sum() and exact_avg() are aggregates");
	if (state == NULL)
	{
		state = MemoryContextAllocZero(context, sizeof(ExactSum));
		previous = MemoryContextSwitchTo(context);
		state->sum = NumericGetDatum(int64_to_numeric(0));
		MemoryContextSwitchTo(previous);
	}
	if (PG_ARGISNULL(1))
		PG_RETURN_POINTER(state);
	number = exact_numeric(float_argument(fcinfo, 1));
	previous = MemoryContextSwitchTo(context);
	sum = DirectFunctionCall2(numeric_add, state->sum, number);
	pfree(DatumGetPointer(state->sum));
	MemoryContextSwitchTo(previous);
	state->sum = sum;
	state->n++;
	PG_RETURN_POINTER(state);
}

/* A numeric as the function's result type. */
static Datum
float_result(FunctionCallInfo fcinfo, Datum number)
{
	if (get_fn_expr_rettype(fcinfo->flinfo) == FLOAT4OID)
		return DirectFunctionCall1(numeric_float4, number);
	return DirectFunctionCall1(numeric_float8, number);
}

Datum
millrace_exact_sum_result(PG_FUNCTION_ARGS)
{
	ExactSum *state = PG_ARGISNULL(0) ? NULL : (ExactSum *) PG_GETARG_POINTER(0);

	if (state == NULL || state->n == 0)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(float_result(fcinfo, state->sum));
}

/* As a mart computes it from its state: without zeros that depend on what has been added and taken back. */
Datum
millrace_exact_avg_result(PG_FUNCTION_ARGS)
{
	ExactSum *state = PG_ARGISNULL(0) ? NULL : (ExactSum *) PG_GETARG_POINTER(0);
	Datum sum;

	if (state == NULL || state->n == 0)
		PG_RETURN_NULL();
	sum = DirectFunctionCall1(numeric_trim_scale, state->sum);
	PG_RETURN_DATUM(
		float_result(fcinfo, DirectFunctionCall2(numeric_div, sum,
												 NumericGetDatum(int64_to_numeric(state->n)))));
}
