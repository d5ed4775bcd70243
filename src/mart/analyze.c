/*
 * analyze.c
 *	  What a mart's query is, and whether it can be maintained.
 *
 * A mart is maintained by adding the difference that a batch makes, so each row of the staging table must
 * belong to one group by itself, and each aggregate must be a function of sums over rows.  What the vault's
 * …_current views say is joined when the mart is read: it may neither form groups nor choose rows, and must
 * be found by what is grouped by.  Everything else is refused here, with the reason and the place.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "mart/mart.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/tlist.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteManip.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rls.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#define TIME_HINT "Group by day, and filter by the current day in a view over the mart."

/* ---- what an expression is made of ------------------------------------------------------------ */

static bool
columns_walker(Node *node, void *context)
{
	MrMartColumns *columns = context;

	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		Var *var = (Var *) node;

		if (var->varattno <= 0)
			columns->whole = true;
		if (var->varno == columns->staging)
			columns->of_staging = true;
		else if (columns->joined == NULL)
			columns->joined = var;
		return false;
	}
	return expression_tree_walker(node, columns_walker, context);
}

MrMartColumns
mr_mart_columns_of(MrMartQuery *mart, Node *expression)
{
	MrMartColumns columns = {.staging = mart->staging};

	(void) columns_walker(expression, &columns);
	if (columns.whole)
		mr_mart_refuse(mart, expression,
					   errmsg("a mart cannot use rows as a whole or system columns: %s",
							  mr_mart_describe(mart, expression)),
					   errhint("Name the columns."));
	return columns;
}

/* Whether an expression has columns of a joined view. */
bool
mr_mart_is_joined(MrMartQuery *mart, Node *expression)
{
	return mr_mart_columns_of(mart, expression).joined != NULL;
}

typedef struct Stability
{
	MrMartQuery *mart;
	Node *node; /* at which the walk is */
	bool immutable; /* stable functions are refused, too */
} Stability;

/* A stable function of PostgreSQL's whose result depends on the moment, the session or other tables. */
static bool
tells_the_moment(Oid function, const char *name)
{
	static const char *const names[] = {"now",
										"clock_timestamp",
										"timeofday",
										"transaction_timestamp",
										"statement_timestamp",
										"current_setting",
										"current_user",
										"session_user",
										"getpgusername",
										"current_schema",
										"current_schemas",
										"current_database",
										"current_query",
										"version",
										"obj_description",
										"col_description",
										"shobj_description"};
	static const char *const prefixes[] = {"pg_",          "txid_",     "inet_",     "has_",
										   "to_reg",       "table_to_", "query_to_", "schema_to_",
										   "database_to_", "cursor_to_"};

	if (function == F_AGE_TIMESTAMP || function == F_AGE_TIMESTAMPTZ || function == F_AGE_XID)
		return true;
	for (int i = 0; i < lengthof(names); i++)
		if (strcmp(name, names[i]) == 0)
			return true;
	for (int i = 0; i < lengthof(prefixes); i++)
		if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0)
			return true;
	return false;
}

static bool
function_checker(Oid function, void *context)
{
	Stability *stability = context;
	MrMartQuery *mart = stability->mart;
	char volatility = func_volatile(function);
	char *schema;
	char *name;

	if (volatility == PROVOLATILE_IMMUTABLE)
		return false;
	name = get_func_name(function);
	schema = get_namespace_name(get_func_namespace(function));
	if (strcmp(schema, "pg_catalog") == 0 && tells_the_moment(function, name))
		mr_mart_refuse(
			mart, stability->node,
			errmsg("a mart cannot call %s, whose result depends on when it is called", name),
			errhint(TIME_HINT));
	if (volatility == PROVOLATILE_VOLATILE)
		mr_mart_refuse(
			mart, stability->node, errmsg("a mart cannot call the volatile function %s", name),
			errdetail("What it returned for a row cannot be computed again to take it back."),
			errhint("Compute it in a view over the mart."));
	if (strcmp(schema, "pg_catalog") != 0 && strcmp(schema, "millrace") != 0)
		mr_mart_refuse(
			mart, stability->node, errmsg("a mart cannot call %s, which is only stable", name),
			errdetail("It may read tables, and a change there would not be seen."),
			errhint("If its result depends on nothing but its arguments, ALTER FUNCTION … "
					"IMMUTABLE."));
	if (stability->immutable)
		mr_mart_refuse(
			mart, stability->node,
			errmsg("%s is only stable, and what is computed when the mart is read must be "
				   "immutable",
				   name),
			errdetail("Its result may depend on the reader's settings."),
			errhint("Group by it, or compute it in a view over the mart."));
	return false;
}

static bool
stability_walker(Node *node, void *context)
{
	Stability *stability = context;

	if (node == NULL)
		return false;
	if (IsA(node, SQLValueFunction))
		mr_mart_refuse(stability->mart, node,
					   errmsg("a mart cannot use %s, which depends on when it is computed",
							  mr_mart_describe(stability->mart, node)),
					   errhint(TIME_HINT));
	if (IsA(node, NextValueExpr))
		mr_mart_refuse(stability->mart, node, errmsg("a mart cannot take values from a sequence"));
	stability->node = node;
	(void) check_functions_in_node(node, function_checker, context);
	return expression_tree_walker(node, stability_walker, context);
}

void
mr_mart_check_stability(MrMartQuery *mart, Node *expression, bool immutable)
{
	Stability stability = {.mart = mart, .immutable = immutable};

	(void) stability_walker(expression, &stability);
}

void
mr_mart_check_function(MrMartQuery *mart, Node *node, Oid function)
{
	Stability stability = {.mart = mart, .node = node};

	(void) function_checker(function, &stability);
}

/* The first node of a kind, for its place in the query; contain_… functions do not tell. */
typedef struct Finding
{
	NodeTag tag;
	Node *found;
} Finding;

static bool
finding_walker(Node *node, void *context)
{
	Finding *finding = context;

	if (node == NULL)
		return false;
	if (nodeTag(node) == finding->tag)
	{
		finding->found = node;
		return true;
	}
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, finding_walker, context, 0);
	return expression_tree_walker(node, finding_walker, context);
}

static Node *
find_node(Query *query, NodeTag tag)
{
	Finding finding = {.tag = tag};

	(void) query_tree_walker(query, finding_walker, &finding, 0);
	return finding.found;
}

/* ---- the query's shape ------------------------------------------------------------------------ */

/* Refuses the clauses that no mart has. */
static void
check_clauses(MrMartQuery *mart)
{
	Query *query = mart->query;

	if (query->commandType != CMD_SELECT || query->utilityStmt != NULL)
		mr_mart_refuse(mart, NULL, errmsg("a mart's query must be a SELECT"));
	if (query->setOperations != NULL)
		mr_mart_refuse(mart, NULL, errmsg("a mart cannot have UNION, INTERSECT or EXCEPT"),
					   errhint("Make a mart of each side, and a view over them."));
	if (query->cteList != NIL)
		mr_mart_refuse(mart, NULL, errmsg("a mart cannot have WITH"),
					   errhint("A mart groups the rows of one staging table."));
	if (query->hasSubLinks)
		mr_mart_refuse(
			mart, find_node(query, T_SubLink), errmsg("a mart cannot have a sub-query"),
			errdetail("A change of what the sub-query reads would not be seen."),
			errhint("Join a …_current view of the vault, or make a view over the mart."));
	if (query->hasDistinctOn)
		mr_mart_refuse(mart, NULL, errmsg("a mart cannot have DISTINCT ON"));
	if (query->distinctClause != NIL)
		mr_mart_refuse(mart, NULL, errmsg("a mart cannot have DISTINCT"),
					   errhint("Use GROUP BY, which gives each group once."));
	if (query->groupingSets != NIL)
		mr_mart_refuse(mart, NULL, errmsg("a mart cannot have GROUPING SETS, ROLLUP or CUBE"),
					   errhint("Make a mart of each grouping."));
	if (query->hasWindowFuncs || query->windowClause != NIL)
		mr_mart_refuse(mart, find_node(query, T_WindowFunc),
					   errmsg("a mart cannot have a window function"),
					   errdetail("One changed row would change the result of many groups."),
					   errhint("Compute it in a view over the mart."));
	if (query->hasTargetSRFs)
		mr_mart_refuse(mart, NULL, errmsg("a mart cannot call a function that returns a set"));
	if (query->sortClause != NIL)
		mr_mart_refuse(mart,
					   get_sortgroupclause_expr(linitial(query->sortClause), query->targetList),
					   errmsg("a mart cannot have ORDER BY"),
					   errhint("Order when the mart is read; order_by => makes an index for it."));
	if (query->limitOffset != NULL || query->limitCount != NULL)
		mr_mart_refuse(mart, query->limitCount != NULL ? query->limitCount : query->limitOffset,
					   errmsg("a mart cannot have LIMIT or OFFSET"),
					   errhint("Use them in a view over the mart."));
	if (query->rowMarks != NIL)
		mr_mart_refuse(mart, NULL, errmsg("a mart cannot lock rows"));
	if (query->groupClause == NIL && !query->hasAggs)
		mr_mart_refuse(mart, NULL, errmsg("a mart needs GROUP BY or an aggregate"),
					   errhint("The rows themselves are in the staging table."));
}

/* Refuses columns of the staging table that others fill: of their changes nothing is heard. */
static void
check_columns(MrMartQuery *mart)
{
	Query *definition = mr_definition_expressions(mr_definition_query("staging", mart->staging_id));
	Bitmapset *read = NULL;
	int member = -1;

	pull_varattnos((Node *) mart->query->targetList, mart->staging, &read);
	pull_varattnos((Node *) mart->query->jointree->fromlist, mart->staging, &read);
	pull_varattnos(mart->where, mart->staging, &read);
	pull_varattnos(mart->query->havingQual, mart->staging, &read);
	while ((member = bms_next_member(read, member)) >= 0)
	{
		AttrNumber attnum = member + FirstLowInvalidHeapAttributeNumber;
		bool kept = false;
		ListCell *lc;

		foreach(lc, definition->targetList)
		{
			TargetEntry *entry = lfirst_node(TargetEntry, lc);

			kept |= entry->resname[0] != ':' &&
					mr_definition_attribute(definition, mart->staging_relid, entry->resname) ==
						attnum;
		}
		if (attnum == InvalidAttrNumber)
			mr_mart_refuse(mart, NULL,
						   errmsg("a mart cannot use rows of %s as a whole",
								  mr_relation_name(mart->staging_relid)),
						   errhint("Name the columns."));
		/* Of system columns more is said where they stand. */
		if (!kept && attnum > 0)
			mr_mart_refuse(
				mart, NULL,
				errmsg("a mart cannot use column \"%s\" of %s",
					   get_attname(mart->staging_relid, attnum, false),
					   mr_relation_name(mart->staging_relid)),
				errdetail("millrace does not keep it, so nothing would tell the mart when it "
						  "changes."));
	}
}

/* Notes the staging table, when it is one. */
static bool
take_staging(MrMartQuery *mart, Index rti, Oid relid)
{
	bool found;

	found = mr_sql("SELECT id, timezone, coalesce((SELECT array_agg(c ->> 'name' ORDER BY n) FROM "
				   "json_array_elements(definition -> 'columns') WITH ORDINALITY AS e (c, n) "
				   "WHERE (c ->> 'key')::boolean), '{}'), definition ->> 'for_each' IS NOT NULL "
				   "FROM millrace.staging WHERE relation = %u",
				   relid) > 0;
	if (found)
	{
		bool isnull;
		Datum *names;
		Query *definition;

		if (mart->staging != 0)
			mr_mart_refuse(mart, NULL,
						   errmsg("a mart cannot read two staging tables: %s and %s",
								  mr_relation_name(mart->staging_relid), mr_relation_name(relid)),
						   errhint("Make a mart of each, and join them in a view."));
		mart->staging = rti;
		mart->staging_relid = relid;
		mart->staging_id = DatumGetInt32(mr_sql_value(0, 1, &isnull));
		mart->timezone = mr_sql_text(0, 2);
		mart->many = DatumGetBool(mr_sql_value(0, 4, &isnull));
		deconstruct_array(DatumGetArrayTypePCopy(mr_sql_value(0, 3, &isnull)), TEXTOID, -1, false,
						  TYPALIGN_INT, &names, NULL, &mart->nkeys);
		mart->keys = palloc(sizeof(AttrNumber) * Max(mart->nkeys, 1));
		definition = mr_definition_expressions(mr_definition_query("staging", mart->staging_id));
		for (int i = 0; i < mart->nkeys; i++)
			mart->keys[i] = mr_definition_attribute(definition, relid,
													TextDatumGetCString(names[i]));
	}
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/* Takes in one item of FROM. */
static void
take_table(MrMartQuery *mart, Index rti)
{
	RangeTblEntry *entry = rt_fetch(rti, mart->query->rtable);

	if (entry->rtekind == RTE_SUBQUERY)
		mr_mart_refuse(
			mart, NULL,
			errmsg("a mart cannot have a sub-query in FROM: %s", entry->eref->aliasname));
	if (entry->rtekind != RTE_RELATION)
		mr_mart_refuse(mart, NULL,
					   errmsg("a mart reads tables only, not %s", entry->eref->aliasname));
	if (entry->tablesample != NULL)
		mr_mart_refuse(mart, NULL, errmsg("a mart cannot have TABLESAMPLE"));
	if (take_staging(mart, rti, entry->relid))
		return;

	/* What was recognised when it was declared may have been renamed since. */
	if (mart->text != NULL)
	{
		bool known;
		bool isnull;

		(void) mr_sql("SELECT millrace_internal.current_keys(%u) IS NOT NULL", entry->relid);
		known = DatumGetBool(mr_sql_value(0, 1, &isnull));
		SPI_freetuptable(SPI_tuptable);
		if (!known)
			mr_mart_refuse(
				mart, NULL, errmsg("a mart cannot read %s", mr_relation_name(entry->relid)),
				errdetail("It is neither a staging table nor a …_current view of the vault, so "
						  "its changes would not be seen."),
				errhint("Join it in a view over the mart."));
	}
	mart->joined = lappend(mart->joined, makeInteger(rti));
}

/* Walks FROM; returns whether the staging table is in this part of it. */
static bool
take_from(MrMartQuery *mart, Node *item)
{
	bool left;
	bool right;
	JoinExpr *join;

	if (IsA(item, RangeTblRef))
	{
		Index rti = ((RangeTblRef *) item)->rtindex;

		take_table(mart, rti);
		return mart->staging == rti;
	}
	join = castNode(JoinExpr, item);
	left = take_from(mart, join->larg);
	right = take_from(mart, join->rarg);
	if (join->jointype == JOIN_FULL || (join->jointype == JOIN_LEFT && right) ||
		(join->jointype == JOIN_RIGHT && left))
		mr_mart_refuse(
			mart, join->quals,
			errmsg("a mart cannot keep rows that have no row in the staging table"),
			errhint("Let the staging table be the side that is kept: staging LEFT JOIN …"));
	if (join->jointype == JOIN_RIGHT)
		mr_mart_refuse(mart, join->quals, errmsg("a mart cannot have RIGHT JOIN"),
					   errhint("Write it as LEFT JOIN."));
	join->quals = mr_flatten_vars(mart->query, join->quals);
	return left || right;
}

/* ---- groups ----------------------------------------------------------------------------------- */

/* The group that is this expression. */
static bool
is_group(MrMartQuery *mart, Node *node)
{
	ListCell *lc;

	foreach(lc, mart->groups)
	{
		MrMartColumn *group = lfirst(lc);

		if (group->expression != NULL && equal(group->expression, node))
			return true;
	}
	return false;
}

MrMartColumn *
mr_mart_make_column(Node *expression)
{
	MrMartColumn *column = palloc0(sizeof(MrMartColumn));

	column->expression = expression;
	column->type = exprType(expression);
	column->typmod = exprTypmod(expression);
	column->collation = exprCollation(expression);
	return column;
}

static void
add_group(MrMartQuery *mart, Node *expression)
{
	if (is_group(mart, expression))
		return;
	mr_mart_check_stability(mart, expression, false);
	if (!OidIsValid(lookup_type_cache(exprType(expression), TYPECACHE_CMP_PROC)->cmp_proc) ||
		get_typtype(exprType(expression)) == TYPTYPE_PSEUDO)
		mr_mart_refuse(mart, expression,
					   errmsg("a mart cannot group by %s of type %s, which has no order",
							  mr_mart_describe(mart, expression),
							  format_type_be(exprType(expression))));
	mart->groups = lappend(mart->groups, mr_mart_make_column(expression));
}

/* Looks, below groups and aggregates, for columns of the staging table. */
static bool
ungrouped_walker(Node *node, void *context)
{
	MrMartQuery *mart = ((void **) context)[0];

	if (node == NULL || IsA(node, Aggref) || is_group(mart, node))
		return false;
	if (IsA(node, Var) && ((Var *) node)->varno == mart->staging)
	{
		((void **) context)[1] = node;
		return true;
	}
	return expression_tree_walker(node, ungrouped_walker, context);
}

/* The first column of the staging table in an expression that is not part of a group, or NULL. */
static Node *
find_ungrouped(MrMartQuery *mart, Node *expression)
{
	void *context[2] = {mart, NULL};

	(void) ungrouped_walker(expression, context);
	return context[1];
}

/* Collects the groups: expressions over the staging table's columns. */
static void
take_groups(MrMartQuery *mart)
{
	Query *query = mart->query;
	ListCell *lc;
	Node *ungrouped;

	foreach(lc, query->groupClause)
	{
		Node *expression = get_sortgroupclause_expr(lfirst(lc), query->targetList);

		if (mr_mart_columns_of(mart, expression).joined == NULL)
			add_group(mart, expression);
	}

	/* GROUP BY a primary key allows the table's other columns: they are constant within a group. */
	foreach(lc, query->targetList)
	{
		while (query->constraintDeps != NIL &&
			   (ungrouped = find_ungrouped(mart, (Node *) lfirst_node(TargetEntry, lc)->expr)) !=
				   NULL)
			add_group(mart, ungrouped);
	}
	while (query->constraintDeps != NIL &&
		   (ungrouped = find_ungrouped(mart, query->havingQual)) != NULL)
		add_group(mart, ungrouped);

	/* Joined columns form no groups; what they are joined by is checked with the joins. */
	foreach(lc, query->groupClause)
	{
		Node *expression = get_sortgroupclause_expr(lfirst(lc), query->targetList);
		MrMartColumns columns = mr_mart_columns_of(mart, expression);

		if (columns.joined != NULL && (ungrouped = find_ungrouped(mart, expression)) != NULL)
			mr_mart_refuse(mart, expression,
						   errmsg("a mart cannot group by %s", mr_mart_describe(mart, expression)),
						   errdetail("%s is joined when the mart is read, so it cannot form groups "
									 "together with %s.",
									 mr_mart_describe(mart, (Node *) columns.joined),
									 mr_mart_describe(mart, ungrouped)),
						   errhint("Group by %s itself.", mr_mart_describe(mart, ungrouped)));
	}

	mart->global = query->groupClause == NIL;
	if (mart->global)
	{
		MrMartColumn *constant = palloc0(sizeof(MrMartColumn));

		constant->type = INT2OID;
		constant->typmod = -1;
		mart->groups = list_make1(constant);
	}
	if (list_length(mart->groups) + 1 > INDEX_MAX_KEYS)
		mr_mart_refuse(mart, NULL,
					   errmsg("a mart cannot have more than %d groups", INDEX_MAX_KEYS - 1));
}

/* ---- aggregates ------------------------------------------------------------------------------- */

static bool
slots_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Aggref))
	{
		(void) mr_mart_slot(context, (Aggref *) node, true);
		return false;
	}
	return expression_tree_walker(node, slots_walker, context);
}

/* ---- what is computed when the mart is read --------------------------------------------------- */

/*
 * Finds, top down, what has to be stored because it is not immutable, and refuses what cannot be.  An
 * expression over nothing but groups is stored beside them; what has aggregates or joined columns is computed
 * for each reader.
 */
static bool
outputs_walker(Node *node, void *context)
{
	MrMartQuery *mart = context;
	Stability stability = {.mart = mart, .node = node, .immutable = true};

	if (node == NULL || IsA(node, Aggref) || is_group(mart, node))
		return false;
	if (!mart->global && !IsA(node, List) && contain_mutable_functions(node) &&
		mr_mart_columns_of(mart, node).joined == NULL && !contain_aggs_of_level(node, 0))
	{
		MrMartColumn *column = mr_mart_make_column(node);
		ListCell *lc;

		mr_mart_check_stability(mart, node, false);
		foreach(lc, mart->extras)
			if (equal(((MrMartColumn *) lfirst(lc))->expression, node))
				return false;
		if (get_typtype(column->type) == TYPTYPE_PSEUDO)
			mr_mart_refuse(mart, node,
						   errmsg("a mart cannot store %s of type %s", mr_mart_describe(mart, node),
								  format_type_be(column->type)));
		mart->extras = lappend(mart->extras, column);
		return false;
	}
	if (IsA(node, SQLValueFunction))
		mr_mart_check_stability(mart, node, false);
	(void) check_functions_in_node(node, function_checker, &stability);
	return expression_tree_walker(node, outputs_walker, context);
}

/* Checks SELECT and HAVING. */
static void
take_outputs(MrMartQuery *mart)
{
	Query *query = mart->query;
	ListCell *lc;
	Node *ungrouped;

	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (entry->resjunk)
			continue;
		(void) mr_mart_columns_of(mart, (Node *) entry->expr);
		if ((ungrouped = find_ungrouped(mart, (Node *) entry->expr)) != NULL)
			mr_mart_refuse(mart, ungrouped,
						   errmsg("%s must be in GROUP BY or in an aggregate",
								  mr_mart_describe(mart, ungrouped)));
		(void) outputs_walker((Node *) entry->expr, mart);
		if (mart->text != NULL && exprType((Node *) entry->expr) == NUMERICOID &&
			exprTypmod((Node *) entry->expr) == -1)
			ereport(WARNING,
					(errmsg("column \"%s\" is numeric without precision, which Trino does not see",
							entry->resname),
					 errhint("Cast it, for example (…)::numeric(18,2).")));
	}
	if ((ungrouped = find_ungrouped(mart, query->havingQual)) != NULL)
		mr_mart_refuse(
			mart, ungrouped,
			errmsg("%s must be in GROUP BY or in an aggregate", mr_mart_describe(mart, ungrouped)));
	(void) outputs_walker(query->havingQual, mart);
}

/* ---- joins ------------------------------------------------------------------------------------ */

/* Adds the columns of a joined view that the condition equates with something to an array of names. */
static ArrayBuildState *
equated_columns(MrMartQuery *mart, Index rti, Node *condition, ArrayBuildState *names)
{
	ListCell *lc;

	foreach(lc, make_ands_implicit((Expr *) condition))
	{
		OpExpr *equation = lfirst(lc);

		if (!IsA(equation, OpExpr) || list_length(equation->args) != 2 ||
			strcmp(get_opname(equation->opno), "=") != 0)
			continue;
		for (int side = 0; side < 2; side++)
		{
			Var *var = (Var *) strip_implicit_coercions(list_nth(equation->args, side));
			Oid relid = rt_fetch(rti, mart->query->rtable)->relid;

			if (IsA(var, Var) && var->varno == rti)
				names = accumArrayResult(
					names, CStringGetTextDatum(get_attname(relid, var->varattno, false)), false,
					TEXTOID, CurrentMemoryContext);
		}
	}
	return names;
}

/* Checks the conditions of the joins, and collects what they equate with columns of `rti`. */
static ArrayBuildState *
check_joins(MrMartQuery *mart, Node *item, Index rti, ArrayBuildState *names)
{
	JoinExpr *join = (JoinExpr *) item;
	Node *ungrouped;

	if (!IsA(item, JoinExpr))
		return names;
	names = check_joins(mart, join->larg, rti, names);
	names = check_joins(mart, join->rarg, rti, names);
	(void) mr_mart_columns_of(mart, join->quals);
	if ((ungrouped = find_ungrouped(mart, join->quals)) != NULL)
		mr_mart_refuse(
			mart, ungrouped,
			errmsg("a mart can join by what it is grouped by only: %s is not in GROUP BY",
				   mr_mart_describe(mart, ungrouped)),
			errdetail("%s is joined when the mart is read, by the columns of the group.",
					  rt_fetch(rti, mart->query->rtable)->eref->aliasname),
			errhint("Add %s to GROUP BY.", mr_mart_describe(mart, ungrouped)));
	mr_mart_check_stability(mart, join->quals, true);
	return equated_columns(mart, rti, join->quals, names);
}

/* Each joined view must be found by its whole key: a second row would count a group twice. */
static void
take_joins(MrMartQuery *mart)
{
	Node *from = linitial(mart->query->jointree->fromlist);
	ListCell *lc;

	foreach(lc, mart->joined)
	{
		Index rti = intVal(lfirst(lc));
		RangeTblEntry *entry = rt_fetch(rti, mart->query->rtable);
		ArrayBuildState *names = check_joins(mart, from, rti, NULL);
		Datum array;
		char *keys = NULL;

		if (mart->text == NULL)
			continue;
		array = names == NULL ? PointerGetDatum(construct_empty_array(TEXTOID))
							  : makeArrayResult(names, CurrentMemoryContext);
		if (mr_sql("SELECT string_agg('(' || array_to_string(k, ', ') || ')', ' or ') "
				   "FROM (SELECT ARRAY(SELECT json_array_elements_text(e)) AS k "
				   "FROM json_array_elements(millrace_internal.current_keys(%u)) AS e) AS keys "
				   "HAVING NOT bool_or(k <@ %s::text[])",
				   entry->relid, quote_literal_cstr(OidOutputFunctionCall(F_ARRAY_OUT, array))) > 0)
			keys = mr_sql_text(0, 1);
		SPI_freetuptable(SPI_tuptable);
		if (keys != NULL)
			mr_mart_refuse(
				mart, from,
				errmsg("a mart must join %s by its whole key", mr_relation_name(entry->relid)),
				errdetail("Otherwise one group could have several rows."),
				errhint("Join it by %s.", keys));
	}
}

/* ----------------------------------------------------------------------------------------------- */

/*
 * What the query is.  `text` is what the user typed, when he declares it: then messages have places, joined
 * views are looked up in the vault's configuration, and he is warned of what is legal but unwise.
 */
MrMartQuery *
mr_mart_analyze(Query *query, const char *text, Oid owner)
{
	MrMartQuery *mart = palloc0(sizeof(MrMartQuery));
	MrMartColumns columns;

	mart->query = query;
	mart->text = text;
	mart->stripes = 1;
	mr_flatten_groups(query);
	check_clauses(mart);
	if (list_length(query->jointree->fromlist) != 1)
		mr_mart_refuse(mart, NULL,
					   errmsg("a mart reads one staging table and what is joined to it"),
					   errhint("Use JOIN … USING instead of a comma in FROM."));
	(void) take_from(mart, linitial(query->jointree->fromlist));
	if (mart->staging == 0)
		mr_mart_refuse(mart, NULL, errmsg("a mart must read a staging table"),
					   errhint("Make one with millrace.create_staging()."));
	if (check_enable_rls(mart->staging_relid, owner, true) == RLS_ENABLED)
		mr_mart_refuse(mart, NULL,
					   errmsg("a mart cannot read %s, which has row security for its owner",
							  mr_relation_name(mart->staging_relid)),
					   errdetail("The difference of a batch would not follow the policies."));

	query->targetList = (List *) mr_flatten_vars(query, (Node *) query->targetList);
	query->havingQual = mr_flatten_vars(query, query->havingQual);
	mart->where = mr_flatten_vars(query, query->jointree->quals);
	if (text != NULL)
		check_columns(mart);
	columns = mr_mart_columns_of(mart, mart->where);
	if (columns.joined != NULL)
		mr_mart_refuse(
			mart, columns.joined,
			errmsg("a mart cannot filter by %s", mr_mart_describe(mart, (Node *) columns.joined)),
			errdetail("Columns of …_current views are joined when the mart is read, and change "
					  "without a row of the staging table."),
			errhint("Put it into GROUP BY and filter in HAVING, or in a view over the mart."));
	mr_mart_check_stability(mart, mart->where, false);

	take_groups(mart);
	(void) slots_walker((Node *) query->targetList, mart);
	(void) slots_walker(query->havingQual, mart);
	take_outputs(mart);
	take_joins(mart);
	return mart;
}

void
mr_mart_stripe(MrMartQuery *mart, int stripes)
{
	ListCell *lc;

	mart->stripes = stripes;
	if (stripes == 1)
		return;
	if (mart->sides != NIL)
		mr_mart_refuse(mart, NULL, errmsg("stripes => %d cannot be used for this mart", stripes),
					   errdetail("Only counts and sums can be spread over several rows, not "
								 "different values and what is computed from them."));
	foreach(lc, mart->groups)
	{
		MrMartColumn *group = lfirst(lc);

		if (!OidIsValid(lookup_type_cache(group->type, TYPECACHE_HASH_PROC)->hash_proc))
			mr_mart_refuse(mart, group->expression,
						   errmsg("stripes => %d cannot be used for this mart", stripes),
						   errdetail("It is grouped by a value of type %s, which cannot be hashed.",
									 format_type_be(group->type)));
	}
	foreach(lc, mart->extras)
	{
		MrMartColumn *extra = lfirst(lc);

		if (!OidIsValid(lookup_type_cache(extra->type, TYPECACHE_CMP_PROC)->cmp_proc))
			mr_mart_refuse(mart, extra->expression,
						   errmsg("stripes => %d cannot be used for this mart", stripes),
						   errdetail("It stores %s of type %s, which has no order.",
									 mr_mart_describe(mart, extra->expression),
									 format_type_be(extra->type)));
	}
	if (list_length(mart->groups) + 1 > INDEX_MAX_KEYS)
		mr_mart_refuse(
			mart, NULL,
			errmsg("a mart with stripes cannot have more than %d groups", INDEX_MAX_KEYS - 1));
}
