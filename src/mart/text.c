/*
 * text.c
 *	  Expressions of a mart's query as text for other places.
 *
 * PostgreSQL can print an expression over one table.  Ours are over a staging table, a state table or
 * several joined views, and an aggregate becomes an expression over the state: what has to be named
 * otherwise is replaced by placeholders.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/expression.h"
#include "lib/stringinfo.h"
#include "mart/mart.h"
#include "mb/pg_wchar.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/ruleutils.h"

typedef struct Printing
{
	MrMartQuery *mart;
	MrMartPlace place;
	List *values; /* MrMartColumn * of the side table, for MR_PLACE_VALUES */
	List *pieces; /* text of parameter 1, 2, … */
} Printing;

/* A parameter that stands for `piece` where `node` stood. */
static Node *
placeholder(Printing *printing, Node *node, char *piece)
{
	return mr_expression_placeholder(node, piece, &printing->pieces);
}

/* A column of the state in this place: "alias.name". */
static char *
state_column(const Printing *printing, const char *name)
{
	MrMartQuery *mart = printing->mart;

	switch (printing->place)
	{
		case MR_PLACE_GROUPS:
			return psprintf("d.%s", name);
		case MR_PLACE_INDEX:
			return pstrdup(name);
		default:
			return psprintf(
				"%s.%s",
				quote_identifier(rt_fetch(mart->staging, mart->query->rtable)->eref->aliasname),
				name);
	}
}

/* A result, from the state.  Over no rows at all it is what the aggregate says of none. */
static char *
result_text(const Printing *printing, const MrMartSlot *slot)
{
	MrMartQuery *mart = printing->mart;
	char *result = state_column(printing, psprintf("r%d", slot->number));
	StringInfoData nothing;
	ListCell *lc;

	if (!mart->global || printing->place != MR_PLACE_VIEW)
		return result;
	initStringInfo(&nothing);
	foreach(lc, slot->side->values)
	{
		MrMartColumn *value = lfirst(lc);

		appendStringInfo(&nothing, "%sNULL::%s AS v%d", nothing.len == 0 ? "" : ", ",
						 format_type_with_typemod(value->type, value->typmod),
						 foreach_current_index(lc) + 1);
	}
	return psprintf(
		"(CASE WHEN %s > 0 THEN %s ELSE (SELECT %s FROM (SELECT %s) AS s WHERE false) END)",
		state_column(printing, "n"), result, mr_mart_result_text(mart, slot), nothing.data);
}

/* The value of an aggregate, from the state. */
static char *
aggregate_text(const Printing *printing, Aggref *aggregate)
{
	MrMartSlot *slot = mr_mart_slot(printing->mart, aggregate, false);
	MrMartFunction function = mr_mart_function(aggregate);
	char *specials = "";
	char *value;
	char *n;

	if (slot == NULL)
		return state_column(printing, "n");
	if (slot->kind == MR_SLOT_RESULT)
		return result_text(printing, slot);

	n = state_column(printing, psprintf("a%d_n", slot->number));
	switch (function)
	{
		case MR_FUNCTION_COUNT:
			return n;
		case MR_FUNCTION_EVERY:
			value = psprintf("%s = %s", state_column(printing, psprintf("a%d_true", slot->number)),
							 n);
			break;
		case MR_FUNCTION_SOME:
			value = psprintf("%s > 0", state_column(printing, psprintf("a%d_true", slot->number)));
			break;
		default:
			value = state_column(printing, psprintf("a%d_sum", slot->number));
			if (function == MR_FUNCTION_AVG)
				value = psprintf("%s::numeric / %s::numeric", value, n);
			if (function == MR_FUNCTION_EXACT_AVG)
				value = psprintf("trim_scale(%s) / %s::numeric", value, n);
			break;
	}
	if (slot->sum && slot->type == NUMERICOID)
	{
		char *nan = state_column(printing, psprintf("a%d_nan", slot->number));
		char *plus = state_column(printing, psprintf("a%d_pinf", slot->number));
		char *minus = state_column(printing, psprintf("a%d_ninf", slot->number));

		specials = psprintf(" WHEN %s > 0 OR %s > 0 AND %s > 0 THEN 'NaN'::numeric"
							" WHEN %s > 0 THEN 'Infinity'::numeric"
							" WHEN %s > 0 THEN '-Infinity'::numeric",
							nan, plus, minus, plus, minus);
	}
	value = psprintf("(CASE%s WHEN %s > 0 THEN %s END)", specials, n, value);
	if (function == MR_FUNCTION_EXACT_SUM || function == MR_FUNCTION_EXACT_AVG)
		value = psprintf("%s::%s", value, format_type_be(aggregate->aggtype));
	return value;
}

/* The column of `columns` that is this expression, from 1, or 0. */
static int
column_of(List *columns, Node *node)
{
	ListCell *lc;

	foreach(lc, columns)
	{
		MrMartColumn *column = lfirst(lc);

		if (column->expression != NULL && equal(column->expression, node))
			return foreach_current_index(lc) + 1;
	}
	return 0;
}

static Node *
printing_mutator(Node *node, void *context)
{
	Printing *printing = context;
	MrMartQuery *mart = printing->mart;
	bool over_state = printing->place != MR_PLACE_ROWS && printing->place != MR_PLACE_ERROR &&
					  printing->place != MR_PLACE_VALUES;
	int number;

	if (node == NULL)
		return NULL;
	if (printing->place == MR_PLACE_VALUES && !IsA(node, List) && !IsA(node, TargetEntry) &&
		(number = column_of(printing->values, node)) > 0)
		return placeholder(printing, node, psprintf("s.v%d", number));
	if (over_state && !IsA(node, List) && !IsA(node, TargetEntry))
	{
		if ((number = column_of(mart->groups, node)) > 0)
			return placeholder(printing, node, state_column(printing, psprintf("g%d", number)));
		if (printing->place != MR_PLACE_GROUPS && (number = column_of(mart->extras, node)) > 0)
			return placeholder(printing, node, state_column(printing, psprintf("e%d", number)));
		if (IsA(node, Aggref))
			return placeholder(printing, node, aggregate_text(printing, (Aggref *) node));
	}
	if (IsA(node, Var))
	{
		Var *var = (Var *) node;
		RangeTblEntry *entry = rt_fetch(var->varno, mart->query->rtable);
		const char *name;

		if (var->varno == mart->staging && over_state)
			elog(ERROR, "column %d of the staging table is not in the mart's state", var->varattno);
		if (var->varattno == InvalidAttrNumber)
			return placeholder(printing, node, psprintf("%s.*", entry->eref->aliasname));
		name = quote_identifier(get_attname(entry->relid, var->varattno, false));
		if (printing->place == MR_PLACE_ROWS)
			return placeholder(printing, node, psprintf("r.%s", name));
		if (printing->place == MR_PLACE_ERROR && mart->joined == NIL)
			return placeholder(printing, node, pstrdup(name));
		return placeholder(printing, node,
						   psprintf("%s.%s", quote_identifier(entry->eref->aliasname), name));
	}
	return expression_tree_mutator(node, printing_mutator, context);
}

/* An expression of the mart's query as SQL for a place; names are qualified as the search_path needs. */
char *
mr_mart_text(MrMartQuery *mart, Node *expression, MrMartPlace place)
{
	Printing printing = {.mart = mart, .place = place};
	Node *replaced = printing_mutator(expression, &printing);

	return mr_expression_print(replaced, printing.pieces);
}

/* An aggregate over the values "s" of its side table, whose rows have passed the filter. */
char *
mr_mart_result_text(MrMartQuery *mart, const MrMartSlot *slot)
{
	Printing printing = {.mart = mart, .place = MR_PLACE_VALUES, .values = slot->side->values};
	Aggref *aggregate = copyObject((Aggref *) slot->argument);
	Node *replaced;

	aggregate->aggfilter = NULL;
	replaced = printing_mutator((Node *) aggregate, &printing);
	return mr_expression_print(replaced, printing.pieces);
}

/* An expression for an error message. */
char *
mr_mart_describe(MrMartQuery *mart, Node *expression)
{
	return mr_mart_text(mart, expression, MR_PLACE_ERROR);
}

/* Where the expression stands in the query as typed, for ereport. */
int
mr_mart_position(const MrMartQuery *mart, Node *expression)
{
	int location = expression == NULL ? -1 : exprLocation(expression);

	if (mart->text == NULL || location < 0)
		return 0;
	return errposition(pg_mbstrlen_with_len(mart->text, location) + 1);
}
