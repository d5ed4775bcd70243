/*
 * aggregate.c
 *	  The aggregates of a mart, and what its state keeps for them.
 *
 * Three ways.  What is a function of counts and sums over rows follows by differences alone.  What needs the
 * values themselves has a side table of them, which follows by differences, too: how many different ones there
 * are is counted as they come and go; everything else is computed from the side table, for the groups that a
 * batch touched.  Sums of floating point numbers are kept as the exact numbers that these stand for, since
 * otherwise they would depend on the order of addition.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "mart/mart.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_clause.h"
#include "parser/parse_func.h"
#include "parser/parse_oper.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/* ---- which aggregate it is -------------------------------------------------------------------- */

/* Is it millrace's own aggregate of that name? */
static bool
is_ours(Oid function, const char *name)
{
	return get_func_namespace(function) == get_namespace_oid("millrace", true) &&
		   strcmp(get_func_name(function), name) == 0;
}

MrMartFunction
mr_mart_function(const Aggref *aggregate)
{
	Oid function = aggregate->aggfnoid;

	switch (function)
	{
		case F_COUNT_:
		case F_COUNT_ANY:
			return MR_FUNCTION_COUNT;
		case F_SUM_INT2:
		case F_SUM_INT4:
		case F_SUM_INT8:
		case F_SUM_NUMERIC:
			return MR_FUNCTION_SUM;
		case F_AVG_INT2:
		case F_AVG_INT4:
		case F_AVG_INT8:
		case F_AVG_NUMERIC:
			return MR_FUNCTION_AVG;
		case F_BOOL_AND:
		case F_EVERY:
			return MR_FUNCTION_EVERY;
		case F_BOOL_OR:
			return MR_FUNCTION_SOME;
	}
	if (get_func_namespace(function) == PG_CATALOG_NAMESPACE && list_length(aggregate->args) == 1)
	{
		if (strcmp(get_func_name(function), "min") == 0)
			return MR_FUNCTION_MIN;
		if (strcmp(get_func_name(function), "max") == 0)
			return MR_FUNCTION_MAX;
	}
	if (is_ours(function, "exact_sum"))
		return MR_FUNCTION_EXACT_SUM;
	if (is_ours(function, "exact_avg"))
		return MR_FUNCTION_EXACT_AVG;
	if (is_ours(function, "latest"))
		return MR_FUNCTION_LATEST;
	return MR_FUNCTION_OTHER;
}

/* Does it follow by differences of counts and sums, or of its different values? */
static bool
is_sum(const Aggref *aggregate)
{
	MrMartFunction function = mr_mart_function(aggregate);

	if (aggregate->aggdistinct != NIL)
		return function == MR_FUNCTION_COUNT;
	return function <= MR_FUNCTION_EXACT_AVG;
}

/* ---- how it is written down ------------------------------------------------------------------- */

/* The aggregate of the same arguments that gives the same whatever the order of rows. */
static void
use_exact(Aggref *aggregate, const char *name, Oid type)
{
	aggregate->aggfnoid = LookupFuncName(
		list_make2(makeString("millrace"), makeString((char *) name)), 1, &type, false);
}

/*
 * Orders the aggregate's input by all of its arguments, after what it is ordered by already, so that its result depends on
 * no other order.
 */
static void
order_input(Aggref *aggregate)
{
	ListCell *lc;

	foreach(lc, aggregate->args)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);
		Oid type = exprType((Node *) entry->expr);
		SortGroupClause *sort = makeNode(SortGroupClause);

		if (entry->ressortgroupref != 0 ||
			!OidIsValid(lookup_type_cache(type, TYPECACHE_CMP_PROC)->cmp_proc))
			continue;
		get_sort_group_operators(type, true, true, false, &sort->sortop, &sort->eqop, NULL,
								 &sort->hashable);
		sort->tleSortGroupRef = assignSortGroupRef(entry, aggregate->args);
		aggregate->aggorder = lappend(aggregate->aggorder, sort);
	}
}

static bool
rewrite_walker(Node *node, void *context)
{
	Aggref *aggregate = (Aggref *) node;

	if (node == NULL)
		return false;
	if (!IsA(node, Aggref))
		return expression_tree_walker(node, rewrite_walker, context);
	switch (aggregate->aggfnoid)
	{
		case F_SUM_FLOAT4:
			use_exact(aggregate, "exact_sum", FLOAT4OID);
			break;
		case F_SUM_FLOAT8:
			use_exact(aggregate, "exact_sum", FLOAT8OID);
			break;
		case F_AVG_FLOAT4:
			use_exact(aggregate, "exact_avg", FLOAT4OID);
			break;
		case F_AVG_FLOAT8:
			use_exact(aggregate, "exact_avg", FLOAT8OID);
			break;
		default:
			if (mr_mart_function(aggregate) == MR_FUNCTION_OTHER &&
				aggregate->aggkind == AGGKIND_NORMAL && aggregate->aggdistinct == NIL)
				order_input(aggregate);
	}
	return false;
}

/* Gives the aggregates of a query the form in which one set of rows has one result. */
void
mr_mart_rewrite(Query *query)
{
	(void) expression_tree_walker((Node *) query->targetList, rewrite_walker, NULL);
	(void) rewrite_walker(query->havingQual, NULL);
}

/* ---- what the state keeps --------------------------------------------------------------------- */

/* The argument is the object's key. */
static bool
is_object_key(MrMartQuery *mart, Node *argument)
{
	List *parts = IsA(argument, RowExpr) ? ((RowExpr *) argument)->args : list_make1(argument);

	if (mart->nkeys == 0 || list_length(parts) != mart->nkeys)
		return false;
	for (int i = 0; i < mart->nkeys; i++)
	{
		bool found = false;
		ListCell *lc;

		foreach(lc, parts)
		{
			Var *var = (Var *) strip_implicit_coercions(lfirst(lc));

			found |= IsA(var, Var) && var->varno == mart->staging && var->varattno == mart->keys[i];
		}
		if (!found)
			return false;
	}
	return true;
}

/* The slot for an argument, made when it is not there. */
static MrMartSlot *
find_slot(MrMartQuery *mart, MrMartSlotKind kind, Node *argument, Node *filter, bool add)
{
	MrMartSlot *slot;
	ListCell *lc;

	foreach(lc, mart->slots)
	{
		slot = lfirst(lc);
		if (slot->kind == kind && equal(slot->argument, argument) && equal(slot->filter, filter))
			return slot;
	}
	if (!add)
		elog(ERROR, "an aggregate of the mart has no place in its state");

	slot = palloc0(sizeof(MrMartSlot));
	slot->kind = kind;
	slot->number = list_length(mart->slots) + 1;
	slot->argument = argument;
	slot->filter = filter;
	if (argument != NULL)
		slot->type = exprType(argument);
	mart->slots = lappend(mart->slots, slot);
	return slot;
}

/* The side table of these values, made when it is not there. */
static MrMartSide *
find_side(MrMartQuery *mart, List *arguments, Node *filter)
{
	MrMartSide *side;
	ListCell *lc;

	foreach(lc, mart->sides)
	{
		bool same = list_length(((MrMartSide *) lfirst(lc))->values) == list_length(arguments);
		ListCell *lc1;
		ListCell *lc2;

		side = lfirst(lc);
		forboth(lc1, side->values, lc2, arguments)
			same = same && equal(((MrMartColumn *) lfirst(lc1))->expression, lfirst(lc2));
		if (same && equal(side->filter, filter))
			return side;
	}
	side = palloc0(sizeof(MrMartSide));
	side->number = list_length(mart->sides) + 1;
	side->filter = filter;
	foreach(lc, arguments)
		side->values = lappend(side->values, mr_mart_make_column(lfirst(lc)));
	mart->sides = lappend(mart->sides, side);
	return side;
}

/* Refuses values that a side table cannot keep. */
static void
check_values(MrMartQuery *mart, Aggref *aggregate, List *arguments)
{
	ListCell *lc;

	foreach(lc, arguments)
	{
		Oid type = exprType(lfirst(lc));
		TypeCacheEntry *cache = lookup_type_cache(type, TYPECACHE_CMP_PROC | TYPECACHE_HASH_PROC);

		if (type_is_rowtype(type) || !OidIsValid(cache->cmp_proc) || !OidIsValid(cache->hash_proc))
			mr_mart_refuse(
				mart, aggregate,
				errmsg("a mart cannot maintain %s", mr_mart_describe(mart, (Node *) aggregate)),
				errdetail("Values of type %s cannot be kept in an index and hashed.",
						  format_type_be(type)));
	}
	if (list_length(mart->groups) + list_length(arguments) > INDEX_MAX_KEYS)
		mr_mart_refuse(
			mart, aggregate,
			errmsg("a mart cannot maintain %s", mr_mart_describe(mart, (Node *) aggregate)),
			errdetail("Groups and arguments are more than the %d columns of an index.",
					  INDEX_MAX_KEYS));
}

/* Such aggregates follow batches in C only, which finds groups by hashing. */
static void
check_group(MrMartQuery *mart, Aggref *aggregate, const MrMartColumn *group)
{
	if (!OidIsValid(lookup_type_cache(group->type, TYPECACHE_HASH_PROC)->hash_proc))
		mr_mart_refuse(
			mart, aggregate,
			errmsg("a mart cannot maintain %s", mr_mart_describe(mart, (Node *) aggregate)),
			errdetail("It is grouped by a value of type %s, which cannot be hashed.",
					  format_type_be(group->type)));
}

/* Refuses aggregates whose result does not follow from the values alone. */
static void
check_functions(MrMartQuery *mart, Aggref *aggregate)
{
	HeapTuple tuple = SearchSysCache1(AGGFNOID, ObjectIdGetDatum(aggregate->aggfnoid));
	Form_pg_aggregate form;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for aggregate %u", aggregate->aggfnoid);
	form = (Form_pg_aggregate) GETSTRUCT(tuple);
	if (form->aggkind == AGGKIND_HYPOTHETICAL)
		mr_mart_refuse(
			mart, aggregate,
			errmsg("a mart cannot maintain %s", mr_mart_describe(mart, (Node *) aggregate)),
			errdetail("It is about a row that is not there."));
	/* An aggregate is always labelled immutable; what it does is done by these. */
	mr_mart_check_function(mart, (Node *) aggregate, form->aggtransfn);
	if (OidIsValid(form->aggfinalfn))
		mr_mart_check_function(mart, (Node *) aggregate, form->aggfinalfn);
	ReleaseSysCache(tuple);
	if (contain_var_clause((Node *) aggregate->aggdirectargs))
		mr_mart_refuse(
			mart, aggregate,
			errmsg("a mart cannot maintain %s", mr_mart_describe(mart, (Node *) aggregate)),
			errdetail("What stands before WITHIN GROUP must be constant."));
}

/* The slot of an aggregate that is computed from a side table of its arguments. */
static MrMartSlot *
result_slot(MrMartQuery *mart, Aggref *aggregate, bool add)
{
	List *arguments = NIL;
	MrMartSlot *slot;
	ListCell *lc;

	foreach(lc, mart->slots)
	{
		slot = lfirst(lc);
		if (slot->kind == MR_SLOT_RESULT && equal(slot->argument, aggregate))
			return slot;
	}
	if (mr_mart_function(aggregate) == MR_FUNCTION_LATEST && aggregate->aggorder != NIL)
		mr_mart_refuse(
			mart, aggregate,
			errmsg("a mart cannot maintain %s", mr_mart_describe(mart, (Node *) aggregate)),
			errdetail("latest() has an order of its own, that of its second argument."));
	foreach(lc, aggregate->args)
	{
		Node *argument = (Node *) lfirst_node(TargetEntry, lc)->expr;

		/* The latest is found by its time. */
		arguments = mr_mart_function(aggregate) == MR_FUNCTION_LATEST
						? lcons(argument, arguments)
						: lappend(arguments, argument);
	}
	if (add)
	{
		check_functions(mart, aggregate);
		check_values(mart, aggregate, arguments);
		foreach(lc, mart->groups)
			check_group(mart, aggregate, lfirst(lc));
	}
	slot = find_slot(mart, MR_SLOT_RESULT, (Node *) aggregate, NULL, add);
	slot->side = find_side(mart, arguments, (Node *) aggregate->aggfilter);
	slot->side->results = true;
	return slot;
}

/* A floating point number as the exact number that it stands for. */
static Node *
exact_argument(Node *argument)
{
	Oid type = exprType(argument);
	Oid function = LookupFuncName(list_make2(makeString("millrace"), makeString("exact_numeric")),
								  1, &type, false);

	return (Node *) makeFuncExpr(function, NUMERICOID, list_make1(argument), InvalidOid, InvalidOid,
								 COERCE_EXPLICIT_CALL);
}

/*
 * What the state keeps for an aggregate; NULL when it is the number of rows, which is always kept.  With `add`
 * it is made, or refused.
 */
MrMartSlot *
mr_mart_slot(MrMartQuery *mart, Aggref *aggregate, bool add)
{
	MrMartFunction function = mr_mart_function(aggregate);
	Node *filter = (Node *) aggregate->aggfilter;
	Node *argument = NULL;
	MrMartSlot *slot;

	if (add)
	{
		MrMartColumns columns = mr_mart_columns_of(mart, (Node *) aggregate->args);

		if (columns.joined == NULL)
			columns = mr_mart_columns_of(mart, filter);
		if (columns.joined != NULL)
			mr_mart_refuse(
				mart, columns.joined,
				errmsg("a mart cannot aggregate over %s",
					   mr_mart_describe(mart, (Node *) columns.joined)),
				errdetail("Columns of …_current views are joined when the mart is read."),
				errhint("Aggregate over columns of the staging table."));
		mr_mart_check_stability(mart, (Node *) aggregate->args, false);
		mr_mart_check_stability(mart, filter, false);
	}
	if (!is_sum(aggregate))
		return result_slot(mart, aggregate, add);
	if (aggregate->args != NIL)
		argument = (Node *) linitial_node(TargetEntry, aggregate->args)->expr;
	if (aggregate->aggdistinct != NIL)
	{
		if (is_object_key(mart, argument))
			return find_slot(mart, MR_SLOT_OBJECTS, argument, filter, add);
		if (add)
			check_values(mart, aggregate, list_make1(argument));
		slot = find_slot(mart, MR_SLOT_DISTINCT, argument, filter, add);
		slot->side = find_side(mart, list_make1(argument), filter);
		slot->side->distinct = slot;
		return slot;
	}
	/* A constant counts rows. */
	if (argument != NULL && function == MR_FUNCTION_COUNT && IsA(argument, Const) &&
		!((Const *) argument)->constisnull)
		argument = NULL;
	if (argument == NULL && filter == NULL)
		return NULL;
	if (function == MR_FUNCTION_EXACT_SUM || function == MR_FUNCTION_EXACT_AVG)
		argument = exact_argument(argument);
	slot = find_slot(mart, MR_SLOT_VALUES, argument, filter, add);
	slot->truth |= function == MR_FUNCTION_EVERY || function == MR_FUNCTION_SOME;
	slot->sum |= function == MR_FUNCTION_SUM || function == MR_FUNCTION_AVG ||
				 function == MR_FUNCTION_EXACT_SUM || function == MR_FUNCTION_EXACT_AVG;
	return slot;
}
