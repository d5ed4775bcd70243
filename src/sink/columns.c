/*
 * columns.c
 *	  What the expressions of a sink read, and what they may not do.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "catalog/pg_proc.h"
#include "core/catalog.h"
#include "core/expression.h"
#include "core/millrace.h"
#include "fmgr.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "sink/columns.h"
#include "utils/lsyscache.h"

PG_FUNCTION_INFO_V1(millrace_check_sink);

/* Looks for columns of one entry of the range table. */
typedef struct Search
{
	int varno;
	int depth; /* of sub-selects */
	Bitmapset *found;
} Search;

static bool
columns_walker(Node *node, void *context)
{
	Search *search = context;

	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		const Var *var = (const Var *) node;

		if (var->varno == search->varno && var->varlevelsup == search->depth)
			search->found = bms_add_member(search->found,
										   var->varattno - FirstLowInvalidHeapAttributeNumber);
		return false;
	}
	if (IsA(node, Query))
	{
		bool result;

		search->depth++;
		result = query_tree_walker((Query *) node, columns_walker, context, 0);
		search->depth--;
		return result;
	}
	return expression_tree_walker(node, columns_walker, context);
}

/* The entry that the definition has under a name. */
static Node *
expression_named(const Query *definition, const char *name)
{
	ListCell *lc;

	foreach(lc, definition->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (!entry->resjunk && strcmp(entry->resname, name) == 0)
			return (Node *) entry->expr;
	}
	elog(ERROR, "the definition of a sink has no \"%s\"", name);
}

Bitmapset *
mr_sink_columns(const Query *definition, Oid source, const char *name)
{
	Search search = {0};

	for (Index rti = 1; rti <= list_length(definition->rtable); rti++)
	{
		if (rt_fetch(rti, definition->rtable)->relid == source)
			search.varno = rti;
	}
	(void) columns_walker(expression_named(definition, name), &search);
	return search.found;
}

static bool
function_checker(Oid function, void *context)
{
	if (func_volatile(function) == PROVOLATILE_VOLATILE)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("an expression of the sink calls %s, which is volatile",
							   get_func_name(function)),
						errhint("The message of a row is made by functions that write nothing and "
								"give one result within a statement.")));
	return false;
}

/* Walks an expression and its sub-selects for what writes, or would do it at each call. */
static bool
volatile_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, NextValueExpr))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("an expression of the sink takes values from a sequence")));
	if (IsA(node, Query))
	{
		if (((Query *) node)->rowMarks != NIL)
			ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
							errmsg("an expression of the sink locks rows")));
		return query_tree_walker((Query *) node, volatile_walker, context, 0);
	}
	(void) check_functions_in_node(node, function_checker, context);
	return expression_tree_walker(node, volatile_walker, context);
}

/* The key of messages has to be known of a row that was deleted: nothing but the row's key is. */
static void
check_key(const Query *definition, Oid source)
{
	Bitmapset *read = mr_sink_columns(definition, source, ":key");
	ListCell *lc;

	mr_expression_check_stable(expression_named(definition, ":key"), "message_key");
	foreach(lc, definition->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (strncmp(entry->resname, ":k", 2) == 0 && strcmp(entry->resname, ":key") != 0)
			read = bms_del_member(read, ((Var *) entry->expr)->varattno -
											FirstLowInvalidHeapAttributeNumber);
	}
	if (!bms_is_empty(read))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("message_key has columns that are not of the key of %s",
							   get_rel_name(source)),
						errdetail("Of a row that was deleted nothing else is known.")));
}

/* Checks the expressions of a sink's definition. */
Datum
millrace_check_sink(PG_FUNCTION_ARGS)
{
	Query *definition = mr_definition_query("sink", PG_GETARG_INT32(0));
	const RangeTblEntry *source = NULL;
	ListCell *lc;

	if (definition->hasAggs || definition->hasWindowFuncs || definition->hasTargetSRFs)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("an expression of the sink has an aggregate, a window function or a "
						"function that returns a set"),
				 errhint("An expression is about one row; in a sub-select they may stand.")));
	foreach(lc, definition->jointree->fromlist)
		source = rt_fetch(castNode(RangeTblRef, lfirst(lc))->rtindex, definition->rtable);
	if (source == NULL)
		elog(ERROR, "the definition of a sink has no source");
	(void) volatile_walker(expression_named(definition, ":message"), NULL);
	check_key(definition, source->relid);
	PG_RETURN_VOID();
}
