/*
 * declare.c
 *	  The two halves of a declaring function.
 *
 * What users call is a trampoline in schema millrace that runs with their privileges: it notes who calls and
 * under which search_path, becomes the extension's owner and calls its namesake in millrace_internal, which
 * takes the caller as an additional first argument.  A SECURITY DEFINER function could not know its caller.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "funcapi.h"
#include "parser/parse_func.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

/* The search_path under which the outermost declaring function of this call was called. */
static char *declaring_path = NULL;

PG_FUNCTION_INFO_V1(millrace_declare);
PG_FUNCTION_INFO_V1(millrace_execute_as);
PG_FUNCTION_INFO_V1(millrace_value_as);
PG_FUNCTION_INFO_V1(millrace_declaring_path);
PG_FUNCTION_INFO_V1(millrace_qualified_name);
PG_FUNCTION_INFO_V1(millrace_relation);
PG_FUNCTION_INFO_V1(millrace_nearest);

/* The namesake of a trampoline: found once for each call site. */
static FmgrInfo *
internal_half(FmgrInfo *trampoline)
{
	FmgrInfo *half = trampoline->fn_extra;
	Oid types[FUNC_MAX_ARGS];
	HeapTuple tuple;
	Form_pg_proc proc;
	Oid function;

	if (half != NULL)
		return half;

	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(trampoline->fn_oid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", trampoline->fn_oid);
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	types[0] = REGROLEOID;
	for (int i = 0; i < proc->pronargs; i++)
		types[i + 1] = proc->proargtypes.values[i];
	function = LookupFuncName(
		list_make2(makeString("millrace_internal"), makeString(pstrdup(NameStr(proc->proname)))),
		proc->pronargs + 1, types, false);
	ReleaseSysCache(tuple);

	half = MemoryContextAllocZero(trampoline->fn_mcxt, sizeof(FmgrInfo));
	fmgr_info_cxt(function, half, trampoline->fn_mcxt);
	/* Polymorphic and set-returning functions look at the call expression for their result type. */
	half->fn_expr = trampoline->fn_expr;
	trampoline->fn_extra = half;
	return half;
}

/*
 * Throws the error on without the places inside the internal half, which tell a user nothing; the places from
 * which he called are added again.  What cannot happen keeps them.
 */
static void
throw_without_inside(MemoryContext context)
{
	ErrorData *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_TO_CATEGORY(ERRCODE_INTERNAL_ERROR))
		PG_RE_THROW();
	FlushErrorState();
	error->context = NULL;
	ThrowErrorData(error);
}

/* Calls the internal half as the extension's owner. */
Datum
millrace_declare(PG_FUNCTION_ARGS)
{
	LOCAL_FCINFO(inner, FUNC_MAX_ARGS);
	Oid caller = GetUserId();
	MemoryContext context = CurrentMemoryContext;
	char *outer_path = declaring_path;
	FmgrInfo *half;
	MrRunAs saved;
	Datum result;

	/* Only the owner may look into millrace_internal. */
	mr_run_as(&saved, mr_extension_owner());
	half = internal_half(fcinfo->flinfo);
	mr_run_back(&saved);

	InitFunctionCallInfoData(*inner, half, PG_NARGS() + 1, fcinfo->fncollation, NULL,
							 fcinfo->resultinfo);
	inner->args[0].value = ObjectIdGetDatum(caller);
	inner->args[0].isnull = false;
	for (int i = 0; i < PG_NARGS(); i++)
		inner->args[i + 1] = fcinfo->args[i];

	if (outer_path == NULL)
		declaring_path = pstrdup(namespace_search_path);
	PG_TRY();
	{
		mr_run_as(&saved, mr_extension_owner());
		result = FunctionCallInvoke(inner);
		mr_run_back(&saved);
	}
	PG_CATCH();
	{
		declaring_path = outer_path;
		throw_without_inside(context);
	}
	PG_END_TRY();
	declaring_path = outer_path;

	fcinfo->isnull = inner->isnull;
	return result;
}

/* Becomes the search path of whoever declares until the nest level ends. */
int
mr_enter_declaring_path(void)
{
	int nest_level = NewGUCNestLevel();

	if (declaring_path != NULL)
		(void) set_config_option("search_path", declaring_path, PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	return nest_level;
}

/* Runs one statement as a role; the search_path is the calling function's, so that no operator is the caller's. */
Datum
millrace_execute_as(PG_FUNCTION_ARGS)
{
	Oid role = PG_GETARG_OID(0);
	char *statement = text_to_cstring(PG_GETARG_TEXT_PP(1));
	uint64 processed;
	MrRunAs saved;

	/* Restricted: a deferred trigger would run as whoever commits. */
	mr_run_as_restricted(&saved, role);
	SPI_connect();
	processed = mr_sql("%s", statement);
	SPI_finish();
	mr_run_back(&saved);
	PG_RETURN_INT64((int64) processed);
}

/* The same for a query that gives one value, of the type of the last argument. */
Datum
millrace_value_as(PG_FUNCTION_ARGS)
{
	Oid role = PG_GETARG_OID(0);
	char *query = text_to_cstring(PG_GETARG_TEXT_PP(1));
	Oid type = get_fn_expr_rettype(fcinfo->flinfo);
	Datum value = (Datum) 0;
	bool isnull = true;
	MrRunAs saved;

	mr_run_as_restricted(&saved, role);
	SPI_connect();
	if (mr_sql("%s", query) > 0)
	{
		if (SPI_gettypeid(SPI_tuptable->tupdesc, 1) != type)
			elog(ERROR, "\"%s\" does not give %s", query, format_type_be(type));
		value = mr_sql_value(0, 1, &isnull);
		if (!isnull)
			value = SPI_datumTransfer(value, get_typbyval(type), get_typlen(type));
	}
	SPI_finish();
	mr_run_back(&saved);
	if (isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(value);
}

Datum
millrace_declaring_path(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(
		cstring_to_text(declaring_path != NULL ? declaring_path : namespace_search_path));
}

/* A name as the user typed it, looked up or completed under his search_path. */
static RangeVar *
users_name(text *name)
{
	return makeRangeVarFromNameList(textToQualifiedNameList(name));
}

Datum
millrace_qualified_name(PG_FUNCTION_ARGS)
{
	RangeVar *name = users_name(PG_GETARG_TEXT_PP(0));
	int nest_level = mr_enter_declaring_path();
	Oid namespace = RangeVarGetCreationNamespace(name);

	AtEOXact_GUC(false, nest_level);
	PG_RETURN_TEXT_P(
		cstring_to_text(quote_qualified_identifier(get_namespace_name(namespace), name->relname)));
}

Datum
millrace_relation(PG_FUNCTION_ARGS)
{
	RangeVar *name = users_name(PG_GETARG_TEXT_PP(0));
	int nest_level = mr_enter_declaring_path();
	Oid relid = RangeVarGetRelid(name, NoLock, true);

	AtEOXact_GUC(false, nest_level);
	if (!OidIsValid(relid))
		PG_RETURN_NULL();
	PG_RETURN_OID(relid);
}

/* The known word nearest to the given one, when it is near enough to be what was meant. */
Datum
millrace_nearest(PG_FUNCTION_ARGS)
{
	text *word = PG_GETARG_TEXT_PP(0);
	int best_distance = PG_INT32_MAX;
	Datum best = (Datum) 0;
	Datum *known;
	int nknown;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &known, NULL,
					  &nknown);
	/* Longer words than this cannot be compared, and are nobody's misspelling. */
	if (VARSIZE_ANY_EXHDR(word) > 255)
		PG_RETURN_NULL();
	for (int i = 0; i < nknown; i++)
	{
		text *candidate = DatumGetTextPP(known[i]);
		int distance = varstr_levenshtein(VARDATA_ANY(word), VARSIZE_ANY_EXHDR(word),
										  VARDATA_ANY(candidate), VARSIZE_ANY_EXHDR(candidate), 1,
										  1, 1, true);

		if (distance < best_distance)
		{
			best_distance = distance;
			best = known[i];
		}
	}
	if (best_distance > 3 || best_distance * 2 > VARSIZE_ANY_EXHDR(word) + 1)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(best);
}
