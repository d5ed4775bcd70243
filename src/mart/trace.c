/*
 * trace.c
 *	  Which rows of its staging table are behind a row of a mart, and behind those of its side tables.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "funcapi.h"
#include "mart/mart.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "utils/array.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(millrace_mart_sides);
PG_FUNCTION_INFO_V1(millrace_mart_trace);

static Datum
text_array(Datum *texts, int n)
{
	return PointerGetDatum(construct_array(texts, n, TEXTOID, -1, false, TYPALIGN_INT));
}

/* The query of a mart, under SPI. */
static MrMartQuery *
open_mart(int32 id)
{
	MrTarget *target = mr_mart_open(id);

	if (target == NULL)
		elog(ERROR, "there is no mart %d", id);
	return mr_mart_analyze(mr_definition_query("mart", id), NULL, target->owner);
}

/*
 * mart_sides(target integer, OUT name text, OUT wanted text, OUT found text): for each side table of a mart, what it
 * should have by what is staged, and what it has, as queries.
 */
Datum
millrace_mart_sides(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	int32 id = PG_GETARG_INT32(0);
	MrMartQuery *mart;
	int nest_level;
	ListCell *lc;

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	nest_level = mr_settings_pin("UTC");
	mart = open_mart(id);
	foreach(lc, mart->sides)
	{
		MrMartSide *side = lfirst(lc);
		Datum values[] = {CStringGetTextDatum(mr_mart_state_name(mr_mart_base(id), side)),
						  CStringGetTextDatum(mr_mart_side_delta(mart, side, true)),
						  CStringGetTextDatum(mr_mart_side_rows(mart, id, side))};
		bool nulls[lengthof(values)] = {false};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	mr_settings_unpin(nest_level);
	SPI_finish();
	return (Datum) 0;
}

/*
 * mart_trace(target integer, OUT names text[], OUT expressions text[], OUT types text[], OUT condition text): the
 * columns of a mart that are values of its groups, as expressions over the rows "r" of its staging table, and
 * which of these rows it counts.
 */
Datum
millrace_mart_trace(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	MrMartQuery *mart;
	TupleDesc desc;
	Datum *names;
	Datum *expressions;
	Datum *types;
	Datum values[4];
	bool nulls[4] = {false};
	int nest_level;
	int n = 0;
	ListCell *lc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	SPI_connect();
	nest_level = mr_settings_pin("UTC");
	mart = open_mart(PG_GETARG_INT32(0));
	MemoryContextSwitchTo(context);
	names = palloc(sizeof(Datum) * list_length(mart->query->targetList));
	expressions = palloc(sizeof(Datum) * list_length(mart->query->targetList));
	types = palloc(sizeof(Datum) * list_length(mart->query->targetList));
	foreach(lc, mart->query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);
		Node *expression = (Node *) entry->expr;

		/* What is joined when the mart is read is no value of the group. */
		if (entry->resjunk || contain_agg_clause(expression) || mr_mart_is_joined(mart, expression))
			continue;
		names[n] = CStringGetTextDatum(entry->resname);
		expressions[n] = CStringGetTextDatum(mr_mart_text(mart, expression, MR_PLACE_ROWS));
		types[n] = CStringGetTextDatum(
			format_type_with_typemod(exprType(expression), exprTypmod(expression)));
		n++;
	}
	values[0] = text_array(names, n);
	values[1] = text_array(expressions, n);
	values[2] = text_array(types, n);
	values[3] = CStringGetTextDatum(
		mart->where == NULL ? "true" : mr_mart_text(mart, mart->where, MR_PLACE_ROWS));
	mr_settings_unpin(nest_level);
	SPI_finish();
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
