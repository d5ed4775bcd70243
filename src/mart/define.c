/*
 * define.c
 *	  The C half of create_mart: parsing the query as its author, and what is to be made for it.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/expression.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "mart/mart.h"
#include "optimizer/optimizer.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "rewrite/rewriteHandler.h"
#include "source/source.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"

PG_FUNCTION_INFO_V1(millrace_mart_query);
PG_FUNCTION_INFO_V1(millrace_mart_groups);
PG_FUNCTION_INFO_V1(millrace_mart_layout);
PG_FUNCTION_INFO_V1(millrace_mart_rebuild);
PG_FUNCTION_INFO_V1(millrace_run_as);

/* Places of errors are places in the mart's query, not in the statement that declares it. */
static void
query_error_callback(void *arg)
{
	int position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(arg);
	}
}

/* The query as its author means it: parsed with his privileges under his search_path. */
static Query *
parse_query(Oid author, char *text)
{
	int nest_level = mr_enter_declaring_path();
	List *parsed = raw_parser(text, RAW_PARSE_DEFAULT);
	RawStmt *raw = list_length(parsed) == 1 ? linitial_node(RawStmt, parsed) : NULL;
	MrRunAs saved;
	Query *query;

	if (raw == NULL || !IsA(raw->stmt, SelectStmt) ||
		((SelectStmt *) raw->stmt)->intoClause != NULL)
		ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR),
						errmsg("the query of a mart is not one SELECT statement")));
	mr_run_as(&saved, author);
	query = parse_analyze_fixedparams(raw, text, NULL, 0, NULL);
	mr_check_privileges(query);
	mr_run_back(&saved);
	AtEOXact_GUC(false, nest_level);
	return query;
}

/*
 * mart_query(author regrole, query text, OUT staging_id integer, OUT definition text): refuses what cannot be
 * maintained; the definition is the same query with every name qualified.
 */
Datum
millrace_mart_query(PG_FUNCTION_ARGS)
{
	Oid author = PG_GETARG_OID(0);
	char *typed = text_to_cstring(PG_GETARG_TEXT_PP(1));
	MemoryContext context = CurrentMemoryContext;
	ErrorContextCallback callback = {
		.previous = error_context_stack, .callback = query_error_callback, .arg = typed};
	Query *query;
	MrMartQuery *mart;
	char *definition;
	TupleDesc desc;
	Datum values[2];
	bool nulls[2] = {false, false};

	error_context_stack = &callback;
	query = parse_query(author, typed);
	mr_expression_check_names(query, "the mart");
	mr_mart_rewrite(query);
	definition = pg_get_querydef(copyObject(query), false);
	SPI_connect();
	MemoryContextSwitchTo(context);
	mart = mr_mart_analyze(query, typed, author);
	SPI_finish();
	error_context_stack = callback.previous;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int32GetDatum(mart->staging_id);
	values[1] = CStringGetTextDatum(definition);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* The analysed query of a definition view. */
static Query *
view_query(Oid view)
{
	Relation relation = table_open(view, AccessShareLock);
	Query *query = copyObject(get_view_query(relation));

	mr_flatten_groups(query);
	table_close(relation, NoLock);
	return query;
}

/* The mart's columns that are its groups, in the order of the state's; an error when it does not show one of them. */
Datum
millrace_mart_groups(PG_FUNCTION_ARGS)
{
	int32 target_id = PG_GETARG_INT32(0);
	MemoryContext context = CurrentMemoryContext;
	ArrayBuildState *names = initArrayResult(TEXTOID, context, false);
	Query *query = mr_definition_query("mart", target_id);
	MrMartQuery *mart;
	ListCell *lc;

	SPI_connect();
	MemoryContextSwitchTo(context);
	mart = mr_mart_load_query(query, target_id, PG_GETARG_OID(1));
	foreach(lc, mart->groups)
	{
		MrMartColumn *group = lfirst(lc);
		char *name = NULL;
		ListCell *lc2;

		if (group->expression == NULL)
			continue;
		foreach(lc2, mart->query->targetList)
		{
			TargetEntry *entry = lfirst_node(TargetEntry, lc2);

			if (!entry->resjunk && equal(entry->expr, group->expression))
				name = entry->resname;
		}
		if (name == NULL)
			ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
							errmsg("the mart does not show %s, by which it groups",
								   mr_mart_describe(mart, group->expression)),
							errhint("Rules on a mart need all of its groups among its columns.")));
		names = accumArrayResult(names, CStringGetTextDatum(name), false, TEXTOID, context);
	}
	SPI_finish();
	PG_RETURN_DATUM(makeArrayResult(names, context));
}

/*
 * mart_layout(definition regclass, base text, stripes integer, order_by text, OUT ddl text[], OUT view text): statements that
 * make the state's tables, called after `base`, and the query of the mart's view over them.
 */
Datum
millrace_mart_layout(PG_FUNCTION_ARGS)
{
	Oid view = PG_GETARG_OID(0);
	char *base = text_to_cstring(PG_GETARG_TEXT_PP(1));
	int32 stripes = PG_GETARG_INT32(2);
	char *order_by = PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3));
	MemoryContext context = CurrentMemoryContext;
	ArrayBuildState *ddl = NULL;
	MrMartQuery *mart;
	TupleDesc desc;
	Datum values[2];
	bool nulls[2] = {false, false};
	ListCell *lc;
	Relation relation;
	Oid owner;

	relation = table_open(view, AccessShareLock);
	owner = relation->rd_rel->relowner;
	table_close(relation, NoLock);
	SPI_connect();
	MemoryContextSwitchTo(context);
	mart = mr_mart_analyze(view_query(view), NULL, owner);
	mr_mart_stripe(mart, stripes);
	foreach(lc, mr_mart_ddl(mart, base, order_by))
		ddl = accumArrayResult(ddl, CStringGetTextDatum((char *) lfirst(lc)), false, TEXTOID,
							   context);
	if (mart->global)
		ddl = accumArrayResult(ddl, CStringGetTextDatum(mr_mart_empty_row(mart, base)), false,
							   TEXTOID, context);
	SPI_finish();

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = makeArrayResult(ddl, context);
	values[1] = CStringGetTextDatum(mr_mart_view(mart, base));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* run_as(role regrole, statement text): under the search_path that is in force. */
Datum
millrace_run_as(PG_FUNCTION_ARGS)
{
	char *statement = text_to_cstring(PG_GETARG_TEXT_PP(1));
	MrRunAs saved;

	mr_run_as(&saved, PG_GETARG_OID(0));
	SPI_connect();
	(void) mr_sql("%s", statement);
	SPI_finish();
	mr_run_back(&saved);
	PG_RETURN_VOID();
}

/*
 * mart_rebuild(target integer, OUT rows_before bigint, OUT rows_after bigint): empties the state and fills it
 * from what is staged, under the exclusive lock of the stream.
 */
Datum
millrace_mart_rebuild(PG_FUNCTION_ARGS)
{
	int32 target_id = PG_GETARG_INT32(0);
	int32 stream_id;
	int64 before = 0;
	int64 after = 0;
	MrTarget *target;
	TupleDesc desc;
	Datum values[2];
	bool nulls[2] = {false, false};
	bool isnull;

	if (IsolationUsesXactSnapshot())
		ereport(ERROR, (errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
						errmsg("a mart can be filled in a READ COMMITTED transaction only"),
						errdetail("It has to see what batches committed before the stream was "
								  "locked.")));
	SPI_connect();
	if (mr_sql("SELECT s.stream_id FROM millrace.target_source AS t "
			   "JOIN millrace.staging AS s ON s.id = t.staging_id WHERE t.target_id = %d",
			   target_id) != 1)
		elog(ERROR, "mart %d has no source", target_id);
	stream_id = DatumGetInt32(mr_sql_value(0, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	mr_stream_lock(stream_id, true);
	target = mr_mart_open(target_id);
	if (target == NULL)
		elog(ERROR, "target %d is not a mart", target_id);
	mr_mart_rebuild(target, &before, &after);
	SPI_finish();

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int64GetDatum(before);
	values[1] = Int64GetDatum(after);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
