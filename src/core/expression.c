/*
 * expression.c
 *	  Users' SQL expressions.
 *
 * An expression reaches us twice: as text, which must be one expression and nothing else before it is put into
 * the text of a definition view; and as the analysed tree of that view, from which it is compiled.
 */
#include "postgres.h"

#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/expression.h"
#include "core/millrace.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/primnodes.h"
#include "optimizer/optimizer.h"
#include "parser/analyze.h"
#include "parser/parse_clause.h"
#include "parser/parse_collate.h"
#include "parser/parse_relation.h"
#include "parser/parse_type.h"
#include "parser/parser.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteManip.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/ruleutils.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(millrace_check_expression);
PG_FUNCTION_INFO_V1(millrace_check_names);
PG_FUNCTION_INFO_V1(millrace_check_query);
PG_FUNCTION_INFO_V1(millrace_check_stable);
PG_FUNCTION_INFO_V1(millrace_qualified_query);
PG_FUNCTION_INFO_V1(millrace_plain_query);
PG_FUNCTION_INFO_V1(millrace_query_columns);
PG_FUNCTION_INFO_V1(millrace_definition_expression);
PG_FUNCTION_INFO_V1(millrace_type_name);

/* Vars of the row around become those of the outer tuple. */
static Node *
outer_row_mutator(Node *node, void *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Var) && ((Var *) node)->varlevelsup == 1)
	{
		Var *var = copyObject((Var *) node);

		var->varno = OUTER_VAR;
		var->varlevelsup = 0;
		return (Node *) var;
	}
	return expression_tree_mutator(node, outer_row_mutator, context);
}

MrExpression *
mr_expression_compile(Node *node)
{
	MrExpression *expression = palloc0(sizeof(MrExpression));
	Expr *planned = expression_planner((Expr *) outer_row_mutator(copyObject(node), NULL));

	expression->type = exprType((Node *) planned);
	get_typlenbyval(expression->type, &expression->length, &expression->by_value);
	expression->state = ExecInitExpr(planned, NULL);
	return expression;
}

Datum
mr_expression_value(MrExpression *expression, ExprContext *context, bool *isnull)
{
	Datum value = ExecEvalExprSwitchContext(expression->state, context, isnull);

	if (*isnull || expression->by_value)
		return value;
	/* Results may be expanded objects or point into the row's memory. */
	if (expression->length == -1)
		return PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
	return datumCopy(value, expression->by_value, expression->length);
}

bool
mr_expression_true(MrExpression *expression, ExprContext *context)
{
	bool isnull;
	Datum value = ExecEvalExprSwitchContext(expression->state, context, &isnull);

	return !isnull && DatumGetBool(value);
}

/* Functions that are labelled stable but tell the time or who asks. */
static bool
tells_the_moment(Oid function)
{
	switch (function)
	{
		case F_NOW:
		case F_TRANSACTION_TIMESTAMP:
		case F_STATEMENT_TIMESTAMP:
		case F_AGE_TIMESTAMP:
		case F_AGE_TIMESTAMPTZ:
		case F_CURRENT_USER:
		case F_SESSION_USER:
		case F_CURRENT_SETTING_TEXT:
		case F_CURRENT_SETTING_TEXT_BOOL:
		case F_CURRENT_SCHEMA:
		case F_CURRENT_DATABASE:
			return true;
		default:
			return false;
	}
}

static bool
function_checker(Oid function, void *context)
{
	const char *what = context;

	if (tells_the_moment(function) || func_volatile(function) == PROVOLATILE_VOLATILE)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s calls %s, whose result depends on when it is called", what,
						get_func_name(function)),
				 errhint("A value has to be the same whenever it is computed again. Group by day, "
						 "say, and filter by the current time in a view over the result.")));
	return false;
}

/* Walks an expression for what would not give the same result tomorrow. */
static bool
stable_walker(Node *node, void *context)
{
	const char *what = context;

	if (node == NULL)
		return false;
	if (IsA(node, SQLValueFunction))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s depends on the current time or user", what),
				 errhint("Group by day, say, and filter by the current time in a view over the "
						 "result.")));
	if (IsA(node, SubLink))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("%s has a sub-select", what),
				 errhint("An expression is about one row. What other tables know comes in by "
						 "enrichment or in a mart.")));
	if (IsA(node, NextValueExpr))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("%s takes values from a sequence", what)));
	(void) check_functions_in_node(node, function_checker, context);
	return expression_tree_walker(node, stable_walker, context);
}

void
mr_expression_check_stable(Node *expression, const char *what)
{
	(void) stable_walker(expression, (void *) what);
}

/* Places of errors are places in this query, not in the statement that declares it. */
static void
query_error_callback(void *query)
{
	int position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(query);
	}
}

/* The parse trees of what somebody typed. */
static List *
parse(const char *text, RawParseMode mode)
{
	ErrorContextCallback callback = {
		.previous = error_context_stack, .callback = query_error_callback, .arg = (void *) text};
	List *parsed;

	error_context_stack = &callback;
	parsed = raw_parser(text, mode);
	error_context_stack = callback.previous;
	return parsed;
}

/* The text must be one expression: no FROM, no second statement.  Returns it. */
static Node *
parse_text(const char *expression, const char *what)
{
	List *parsed = parse(expression, RAW_PARSE_PLPGSQL_EXPR);
	SelectStmt *select = list_length(parsed) == 1
							 ? (SelectStmt *) linitial_node(RawStmt, parsed)->stmt
							 : NULL;

	if (select == NULL || !IsA(select, SelectStmt) || list_length(select->targetList) != 1 ||
		linitial_node(ResTarget, select->targetList)->name != NULL ||
		select->distinctClause != NIL || select->fromClause != NIL || select->whereClause != NULL ||
		select->groupClause != NIL || select->havingClause != NULL || select->windowClause != NIL ||
		select->valuesLists != NIL || select->sortClause != NIL || select->limitOffset != NULL ||
		select->limitCount != NULL || select->lockingClause != NIL || select->withClause != NULL ||
		select->op != SETOP_NONE)
		ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR),
						errmsg("%s is not one SQL expression: %s", what, expression)));
	return linitial_node(ResTarget, select->targetList)->val;
}

void
mr_expression_check_text(const char *expression, const char *what)
{
	(void) parse_text(expression, what);
}

Datum
millrace_check_expression(PG_FUNCTION_ARGS)
{
	mr_expression_check_text(text_to_cstring(PG_GETARG_TEXT_PP(1)),
							 text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}

/* The text must be one SELECT. */
Datum
millrace_check_query(PG_FUNCTION_ARGS)
{
	char *what = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char *query = text_to_cstring(PG_GETARG_TEXT_PP(1));
	List *parsed = parse(query, RAW_PARSE_DEFAULT);
	SelectStmt *select = list_length(parsed) == 1
							 ? (SelectStmt *) linitial_node(RawStmt, parsed)->stmt
							 : NULL;

	if (select == NULL || !IsA(select, SelectStmt) || select->intoClause != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR), errmsg("%s is not one SELECT statement", what)));
	PG_RETURN_VOID();
}

Node *
mr_expression_placeholder(Node *node, char *text, List **pieces)
{
	Param *param = makeNode(Param);

	*pieces = lappend(*pieces, text);
	param->paramkind = PARAM_EXTERN;
	param->paramid = list_length(*pieces);
	param->paramtype = exprType(node);
	param->paramtypmod = exprTypmod(node);
	param->paramcollid = exprCollation(node);
	param->location = -1;
	return (Node *) param;
}

/* Puts the pieces into what PostgreSQL prints; what stands in quotes is left alone. */
char *
mr_expression_print(Node *expression, const List *pieces)
{
	char *text = deparse_expression(expression, NIL, false, false);
	StringInfoData result;
	char quote = '\0';

	initStringInfo(&result);
	for (const char *p = text; *p != '\0'; p++)
	{
		if (quote != '\0')
		{
			if (*p == quote)
				quote = '\0';
		}
		else if (*p == '\'' || *p == '"')
			quote = *p;
		else if (*p == '$' && p[1] >= '1' && p[1] <= '9')
		{
			char *end;
			long number = strtol(p + 1, &end, 10);

			appendStringInfoString(&result, list_nth(pieces, (int) number - 1));
			p = end - 1;
			continue;
		}
		appendStringInfoChar(&result, *p);
	}
	return result.data;
}

/* A SELECT as a role means it under the search_path in force. */
static Query *
analyze_query(Oid role, char *typed, int nest_level)
{
	ErrorContextCallback callback = {
		.previous = error_context_stack, .callback = query_error_callback, .arg = typed};
	MrRunAs saved;
	List *parsed;
	Query *query;

	error_context_stack = &callback;
	mr_run_as_restricted(&saved, role);
	parsed = raw_parser(typed, RAW_PARSE_DEFAULT);
	query = parse_analyze_fixedparams(linitial_node(RawStmt, parsed), typed, NULL, 0, NULL);
	mr_run_back(&saved);
	error_context_stack = callback.previous;
	AtEOXact_GUC(false, nest_level);
	if (list_length(parsed) != 1 || query->commandType != CMD_SELECT)
		elog(ERROR, "not one SELECT: %s", typed);
	return query;
}

/* The same in a spelling that means the same everywhere.  The search_path is that of whoever declares. */
Datum
millrace_qualified_query(PG_FUNCTION_ARGS)
{
	Query *query = analyze_query(PG_GETARG_OID(0), text_to_cstring(PG_GETARG_TEXT_PP(1)),
								 mr_enter_declaring_path());
	bool is_kept = PG_GETARG_BOOL(2);

	if (query->hasModifyingCTE)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("a query must not contain data-modifying statements in WITH")));
	if (is_kept && isQueryUsingTempRelation(query))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("a query that is kept cannot read a temporary table or view"),
						errhint("Use a permanent one: the query outlives the session.")));
	PG_RETURN_TEXT_P(cstring_to_text(pg_get_querydef(query, false)));
}

/* The search_path is the calling function's. */
Datum
millrace_plain_query(PG_FUNCTION_ARGS)
{
	Query *query = analyze_query(PG_GETARG_OID(0), text_to_cstring(PG_GETARG_TEXT_PP(1)),
								 NewGUCNestLevel());

	PG_RETURN_TEXT_P(cstring_to_text(pg_get_querydef(query, false)));
}

void
mr_expression_check_names(const Query *query, const char *what)
{
	int number = 0;
	ListCell *lc;
	ListCell *lc2;

	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (entry->resjunk)
			continue;
		number++;
		if (strcmp(entry->resname, "?column?") == 0)
			ereport(ERROR, (errcode(ERRCODE_INVALID_COLUMN_DEFINITION),
							errmsg("column %d of %s has no name", number, what),
							errhint("Name it with AS.")));
		foreach(lc2, query->targetList)
		{
			TargetEntry *other = lfirst_node(TargetEntry, lc2);

			if (other == entry)
				break;
			if (!other->resjunk && strcmp(other->resname, entry->resname) == 0)
				ereport(ERROR, (errcode(ERRCODE_DUPLICATE_COLUMN),
								errmsg("two columns of %s are called \"%s\"", what, entry->resname),
								errhint("Name one of them with AS.")));
		}
	}
}

/* Of a qualified SELECT. */
Datum
millrace_check_names(PG_FUNCTION_ARGS)
{
	Query *query = analyze_query(GetUserId(), text_to_cstring(PG_GETARG_TEXT_PP(1)),
								 NewGUCNestLevel());

	mr_expression_check_names(query, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}

/* Names and types of the columns that a qualified SELECT gives. */
Datum
millrace_query_columns(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Query *query = analyze_query(GetUserId(), text_to_cstring(PG_GETARG_TEXT_PP(0)),
								 NewGUCNestLevel());
	ListCell *cell;

	InitMaterializedSRF(fcinfo, 0);
	foreach(cell, query->targetList)
	{
		TargetEntry *target = lfirst_node(TargetEntry, cell);
		Datum values[3];
		bool nulls[3] = {false};

		if (target->resjunk)
			continue;
		values[0] = Int32GetDatum(target->resno);
		values[1] = CStringGetTextDatum(target->resname);
		values[2] = ObjectIdGetDatum(exprType((Node *) target->expr));
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

Node *
mr_expression_condition(Relation relation, const char *text, const char *what)
{
	ErrorContextCallback callback = {
		.previous = error_context_stack, .callback = query_error_callback, .arg = (void *) text};
	ParseState *pstate = make_parsestate(NULL);
	Node *condition;

	error_context_stack = &callback;
	pstate->p_sourcetext = text;
	addNSItemToQuery(pstate,
					 addRangeTableEntryForRelation(pstate, relation, AccessShareLock,
												   makeAlias("catalogue", NIL), false, false),
					 false, true, true);
	condition = transformWhereClause(pstate, parse_text(text, what), EXPR_KIND_WHERE, what);
	assign_expr_collations(pstate, condition);
	if (checkExprHasSubLink(condition))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("%s has a sub-select", what)));
	if (contain_volatile_functions(condition))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("%s calls a volatile function", what)));
	free_parsestate(pstate);
	error_context_stack = callback.previous;
	return condition;
}

typedef struct Naming
{
	Query *query; /* around that of the expressions */
	Query *expressions;
	List *pieces;
} Naming;

/* A column as a definition calls it, whatever it is called in its table by now. */
static char *
column_text(const Naming *naming, const Var *var)
{
	Query *query = var->varlevelsup == 0 ? naming->expressions : naming->query;
	RangeTblEntry *entry = rt_fetch(var->varno, query->rtable);
	const char *table = quote_identifier(entry->eref->aliasname);
	ListCell *lc;

	if (var->varattno == InvalidAttrNumber)
	{
		/* A definition goes by the table's present name. */
		if (entry->rtekind == RTE_RELATION)
			table = quote_identifier(get_rel_name(entry->relid));
		return psprintf("%s.*", table);
	}
	if (var->varlevelsup == 1)
		return psprintf("%s.%s", table,
						quote_identifier(get_rte_attribute_name(entry, var->varattno)));
	foreach(lc, query->targetList)
	{
		TargetEntry *target = lfirst_node(TargetEntry, lc);

		if (equal(target->expr, var))
			return pstrdup(quote_identifier(target->resname));
	}
	return pstrdup(quote_identifier(get_rte_attribute_name(entry, var->varattno)));
}

static Node *
naming_mutator(Node *node, void *context)
{
	Naming *naming = context;

	if (node == NULL)
		return NULL;
	if (IsA(node, Var))
		return mr_expression_placeholder(node, column_text(naming, (Var *) node), &naming->pieces);
	return expression_tree_mutator(node, naming_mutator, context);
}

/*
 * definition_expression(role regrole, query text, name text): an expression of a definition's query as PostgreSQL
 * prints it, over columns under the names by which the definition knows them; NULL when there is none of that name.  The
 * search_path is the calling function's.
 */
Datum
millrace_definition_expression(PG_FUNCTION_ARGS)
{
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(2));
	Naming naming = {.query = analyze_query(PG_GETARG_OID(0), text_to_cstring(PG_GETARG_TEXT_PP(1)),
											NewGUCNestLevel())};
	ListCell *lc;

	naming.expressions = mr_definition_expressions(naming.query);
	foreach(lc, naming.expressions->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (!entry->resjunk && strcmp(entry->resname, name) == 0)
		{
			Node *named = naming_mutator((Node *) entry->expr, &naming);

			PG_RETURN_TEXT_P(cstring_to_text(mr_expression_print(named, naming.pieces)));
		}
	}
	PG_RETURN_NULL();
}

/*
 * Checks the expressions of a staging table's definition: those whose column name starts with a colon.  They
 * stand in the sub-select over the table.
 */
Datum
millrace_check_stable(PG_FUNCTION_ARGS)
{
	char *kind = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int32 id = PG_GETARG_INT32(1);
	Query *query = mr_definition_expressions(mr_definition_query(kind, id));
	ListCell *lc;

	if (query->hasAggs || query->hasWindowFuncs || query->hasTargetSRFs)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("an expression of the %s has an aggregate, a window function or a "
							   "function that returns a set",
							   kind),
						errhint("An expression is about one row.")));
	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (entry->resname[0] == ':')
			mr_expression_check_stable((Node *) entry->expr, entry->resname + 1);
	}
	PG_RETURN_VOID();
}

/* A type as the caller names it, in the spelling that means the same everywhere. */
Datum
millrace_type_name(PG_FUNCTION_ARGS)
{
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int nest_level = mr_enter_declaring_path();
	Oid type;
	int32 typmod;

	mr_parse_type(name, &type, &typmod);
	AtEOXact_GUC(false, nest_level);
	if (get_typtype(type) == TYPTYPE_PSEUDO)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("a column cannot have the pseudo-type %s", name)));
	PG_RETURN_TEXT_P(cstring_to_text(format_type_with_typemod(type, typmod)));
}
