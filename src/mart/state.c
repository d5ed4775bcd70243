/*
 * state.c
 *	  The state table of a mart, the statements that keep it, and the view over it.
 *
 * A delta is computed from the ephemeral relations mr_new_<staging id> and mr_old_<staging id> as the mart's
 * owner, materialised as mr_delta_<target id>, and added to the state as the extension's owner.  Distinct
 * values come first: their side tables (mr_side_<target id>_<side> in, mr_appeared_<target id>_<side> out)
 * tell which values appeared and disappeared, and that is one more input of the delta.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "core/statement.h"
#include "lib/stringinfo.h"
#include "mart/mart.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "parser/parser.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/ruleutils.h"

/* " FILTER (WHERE …)" of the conditions that are not NULL, or "". */
static char *
filter_clause(const char *first, const char *second)
{
	if (first == NULL && second == NULL)
		return "";
	if (first == NULL || second == NULL)
		return psprintf(" FILTER (WHERE %s)", first != NULL ? first : second);
	return psprintf(" FILTER (WHERE (%s) AND %s)", first, second);
}

static List *
add_column(List *columns, char *name, MrMartCount what, char *source, MrMartSlot *slot)
{
	MrMartCounter *column = palloc(sizeof(MrMartCounter));

	column->name = name;
	column->what = what;
	column->source = source;
	column->slot = slot;
	return lappend(columns, column);
}

/* The columns of a slot. */
static List *
slot_columns(MrMartQuery *mart, MrMartSlot *slot, List *columns)
{
	char *filter = slot->filter == NULL ? NULL : mr_mart_text(mart, slot->filter, MR_PLACE_ROWS);
	char *name = psprintf("a%d_n", slot->number);
	const char *finite = NULL;
	char *x;

	if (slot->kind == MR_SLOT_RESULT)
		return columns;
	if (slot->kind == MR_SLOT_DISTINCT)
		return add_column(columns, name, MR_COUNT_DISTINCT, NULL, slot);
	x = slot->argument == NULL ? NULL : mr_mart_text(mart, slot->argument, MR_PLACE_ROWS);
	if (slot->kind == MR_SLOT_OBJECTS)
	{
		/* Rows are grouped by the object's key, too, so that an object is there or not. */
		char *rows = psprintf("count(*)%s", filter_clause(filter, NULL));

		return add_column(columns, name, MR_COUNT_OBJECTS,
						  mart->many ? psprintf("(%s > 0)::integer::bigint", rows) : rows, slot);
	}

	columns = add_column(columns, name, MR_COUNT_VALUES,
						 psprintf("count(%s)%s", x == NULL ? "*" : x, filter_clause(filter, NULL)),
						 slot);
	if (slot->truth)
		columns = add_column(columns, psprintf("a%d_true", slot->number), MR_COUNT_TRUE,
							 psprintf("count(*)%s", filter_clause(filter, psprintf("(%s)", x))),
							 slot);
	if (!slot->sum)
		return columns;
	if (slot->type == NUMERICOID)
		/* NaN is greater than infinity. */
		finite = psprintf("(%s) < 'Infinity'::numeric AND (%s) > '-Infinity'::numeric", x, x);
	columns =
		add_column(columns, psprintf("a%d_sum", slot->number),
				   slot->type == INT2OID || slot->type == INT4OID ? MR_SUM_INT8 : MR_SUM_NUMERIC,
				   psprintf("coalesce(sum(%s)%s, 0)", x, filter_clause(filter, finite)), slot);
	if (slot->type == NUMERICOID)
	{
		static const struct
		{
			const char *name;
			const char *value;
			MrMartCount what;
		} specials[] = {{"nan", "NaN", MR_COUNT_NAN},
						{"pinf", "Infinity", MR_COUNT_PLUS},
						{"ninf", "-Infinity", MR_COUNT_MINUS}};

		for (int i = 0; i < lengthof(specials); i++)
			columns = add_column(
				columns, psprintf("a%d_%s", slot->number, specials[i].name), specials[i].what,
				psprintf("count(*)%s", filter_clause(filter, psprintf("(%s) = '%s'::numeric", x,
																	  specials[i].value))),
				slot);
	}
	return columns;
}

/* The type of a counter. */
static const char *
counter_type(const MrMartCounter *counter)
{
	return counter->what == MR_SUM_NUMERIC ? "numeric" : "bigint";
}

/* Is NULL in the state 0, because the counter is seldom another? */
bool
mr_mart_is_rare(MrMartCount what)
{
	return what == MR_COUNT_NAN || what == MR_COUNT_PLUS || what == MR_COUNT_MINUS;
}

List *
mr_mart_counters(MrMartQuery *mart)
{
	List *columns = add_column(NIL, "n", MR_COUNT_ROWS, "count(*)", NULL);
	ListCell *lc;

	foreach(lc, mart->slots)
		columns = slot_columns(mart, lfirst(lc), columns);
	return columns;
}

/* Name of the state's tables in millrace_state, without schema. */
char *
mr_mart_base(int32 target_id)
{
	return psprintf("mart_%d", target_id);
}

/* The state table, or with `side` a side table, qualified. */
char *
mr_mart_state_name(const char *base, const MrMartSide *side)
{
	if (side == NULL)
		return psprintf("millrace_state.%s", quote_identifier(base));
	return psprintf("millrace_state.%s",
					quote_identifier(psprintf("%s_values_%d", base, side->number)));
}

/* "g1, g2, …" with a prefix for each. */
static char *
group_list(MrMartQuery *mart, const char *prefix)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 1; i <= list_length(mart->groups); i++)
		appendStringInfo(&list, "%s%sg%d", i == 1 ? "" : ", ", prefix, i);
	return list.data;
}

/* "g1, g2, …, v1, …" with a prefix for each. */
static char *
key_list(MrMartQuery *mart, const MrMartSide *side, const char *prefix)
{
	StringInfoData list;

	initStringInfo(&list);
	appendStringInfoString(&list, group_list(mart, prefix));
	for (int i = 1; i <= list_length(side->values); i++)
		appendStringInfo(&list, ", %sv%d", prefix, i);
	return list.data;
}

/* "1, 2, …, n" */
static char *
numbers(int n)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 1; i <= n; i++)
		appendStringInfo(&list, "%s%d", i == 1 ? "" : ", ", i);
	return list.data;
}

/* ---- tables ----------------------------------------------------------------------------------- */

/* A column that holds values of an expression, as CREATE TABLE wants it. */
static char *
column_definition(const char *name, Oid type, int32 typmod, Oid collation)
{
	char *definition = psprintf("%s %s", name, format_type_with_typemod(type, typmod));

	if (OidIsValid(collation) && collation != get_typcollation(type))
		definition = psprintf("%s COLLATE %s", definition, generate_collation_name(collation));
	return definition;
}

static void
append_columns(StringInfo sql, List *columns, char letter)
{
	ListCell *lc;

	foreach(lc, columns)
	{
		MrMartColumn *column = lfirst(lc);

		appendStringInfo(sql, "%s, ",
						 column_definition(psprintf("%c%d", letter, foreach_current_index(lc) + 1),
										   column->type, column->typmod, column->collation));
	}
}

static bool
is_users_function(Oid function, void *context)
{
	return function >= FirstNormalObjectId;
}

/*
 * Would an index over the expression call what users have written?  It would do so as the owner of the state,
 * who is the extension's and mostly a superuser.
 */
static bool
runs_users_code(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, CoerceToDomain) || check_functions_in_node(node, is_users_function, NULL))
		return true;
	return expression_tree_walker(node, runs_users_code, context);
}

/* The columns of an index for order_by => 'column [ASC | DESC] [NULLS FIRST | LAST], …'. */
static char *
index_columns(MrMartQuery *mart, const char *order_by)
{
	List *parsed = raw_parser(psprintf("SELECT ORDER BY %s", order_by), RAW_PARSE_DEFAULT);
	SelectStmt *select = list_length(parsed) == 1
							 ? (SelectStmt *) linitial_node(RawStmt, parsed)->stmt
							 : NULL;
	StringInfoData result;
	ListCell *lc;

	if (select == NULL || !IsA(select, SelectStmt) || select->limitCount != NULL ||
		select->limitOffset != NULL || select->lockingClause != NIL || select->op != SETOP_NONE)
		ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR),
						errmsg("order_by is not a list of columns: %s", order_by)));
	initStringInfo(&result);
	foreach(lc, select->sortClause)
	{
		SortBy *item = lfirst_node(SortBy, lc);
		ColumnRef *column = (ColumnRef *) item->node;
		TargetEntry *found = NULL;
		ListCell *lc2;

		if (!IsA(column, ColumnRef) || list_length(column->fields) != 1 ||
			!IsA(linitial(column->fields), String) || item->sortby_dir == SORTBY_USING)
			ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR),
							errmsg("order_by is not a list of columns: %s", order_by),
							errhint("Write names of the mart's columns, each with ASC or DESC, "
									"NULLS FIRST or NULLS LAST.")));
		foreach(lc2, mart->query->targetList)
		{
			TargetEntry *entry = lfirst_node(TargetEntry, lc2);

			if (!entry->resjunk && strcmp(entry->resname, strVal(linitial(column->fields))) == 0)
				found = entry;
		}
		if (found == NULL)
			ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
							errmsg("order_by: the mart has no column \"%s\"",
								   strVal(linitial(column->fields)))));
		if (mr_mart_is_joined(mart, (Node *) found->expr))
			ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
							errmsg("order_by cannot use column \"%s\"", found->resname),
							errdetail("It is joined when the mart is read, so no index can "
									  "have it.")));
		if (runs_users_code((Node *) found->expr, NULL))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("order_by cannot use column \"%s\"", found->resname),
					 errdetail("It calls a function or checks a domain that is not built in, "
							   "and an index over it would do that as its own owner.")));
		appendStringInfo(&result, "%s(%s)%s%s", result.len == 0 ? "" : ", ",
						 mr_mart_text(mart, (Node *) found->expr, MR_PLACE_INDEX),
						 item->sortby_dir == SORTBY_DESC ? " DESC" : "",
						 item->sortby_nulls == SORTBY_NULLS_FIRST  ? " NULLS FIRST"
						 : item->sortby_nulls == SORTBY_NULLS_LAST ? " NULLS LAST"
																   : "");
	}
	return result.data;
}

/* Statements that make the tables of the state, to be run as the extension's owner. */
List *
mr_mart_ddl(MrMartQuery *mart, const char *base, const char *order_by)
{
	char *state = mr_mart_state_name(base, NULL);
	List *ddl;
	StringInfoData sql;
	ListCell *lc;

	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE TABLE %s (", state);
	append_columns(&sql, mart->groups, 'g');
	if (mart->stripes > 1)
		appendStringInfoString(&sql, "stripe smallint NOT NULL, ");
	append_columns(&sql, mart->extras, 'e');
	foreach(lc, mr_mart_counters(mart))
	{
		MrMartCounter *column = lfirst(lc);

		appendStringInfo(&sql, "%s%s %s%s", foreach_current_index(lc) == 0 ? "" : ", ",
						 column->name, counter_type(column),
						 mr_mart_is_rare(column->what) ? "" : " NOT NULL");
	}
	foreach(lc, mart->slots)
	{
		MrMartSlot *slot = lfirst(lc);

		if (slot->kind == MR_SLOT_RESULT)
			appendStringInfo(&sql, ", %s",
							 column_definition(psprintf("r%d", slot->number),
											   exprType(slot->argument), exprTypmod(slot->argument),
											   exprCollation(slot->argument)));
	}
	/* Groups are updated again and again: room for it on their page spares the index. */
	appendStringInfoString(&sql, ") WITH (fillfactor = 80)");
	ddl = list_make1(sql.data);
	ddl = lappend(ddl, psprintf("CREATE UNIQUE INDEX ON %s (%s%s) NULLS NOT DISTINCT", state,
								group_list(mart, ""), mart->stripes > 1 ? ", stripe" : ""));
	if (order_by != NULL)
		ddl = lappend(ddl,
					  psprintf("CREATE INDEX ON %s (%s)", state, index_columns(mart, order_by)));

	foreach(lc, mart->sides)
	{
		MrMartSide *side = lfirst(lc);
		char *name = mr_mart_state_name(base, side);

		initStringInfo(&sql);
		appendStringInfo(&sql, "CREATE TABLE %s (", name);
		append_columns(&sql, mart->groups, 'g');
		append_columns(&sql, side->values, 'v');
		/* d is what was added last: with n it tells whether the value is new to its group. */
		appendStringInfoString(&sql,
							   "n bigint NOT NULL, d bigint NOT NULL) WITH (fillfactor = 90)");
		ddl = lappend(ddl, sql.data);
		ddl = lappend(ddl, psprintf("CREATE UNIQUE INDEX ON %s (%s) NULLS NOT DISTINCT", name,
									key_list(mart, side, "")));
	}
	return ddl;
}

/* ---- deltas ----------------------------------------------------------------------------------- */

/* "E1 AS g1, E2 AS g2, …" over staging rows. */
static char *
group_expressions(MrMartQuery *mart)
{
	StringInfoData list;
	ListCell *lc;

	initStringInfo(&list);
	foreach(lc, mart->groups)
	{
		MrMartColumn *group = lfirst(lc);

		appendStringInfo(&list, "%s%s AS g%d", foreach_current_index(lc) == 0 ? "" : ", ",
						 group->expression == NULL
							 ? "0::smallint"
							 : mr_mart_text(mart, group->expression, MR_PLACE_ROWS),
						 foreach_current_index(lc) + 1);
	}
	return list.data;
}

/* " WHERE …" of the query's own condition and one more. */
static char *
where_clause(MrMartQuery *mart, const char *more)
{
	if (mart->where == NULL)
		return more == NULL ? "" : psprintf(" WHERE %s", more);
	return psprintf(" WHERE (%s)%s%s", mr_mart_text(mart, mart->where, MR_PLACE_ROWS),
					more == NULL ? "" : " AND ", more == NULL ? "" : more);
}

/* The aggregate over the rows of one relation, negated when they are old. */
static void
append_rows(StringInfo sql, MrMartQuery *mart, List *columns, const char *relation, bool old)
{
	bool by_object = false;
	ListCell *lc;

	appendStringInfo(sql, "SELECT %s", group_expressions(mart));
	foreach(lc, columns)
	{
		MrMartCounter *column = lfirst(lc);

		if (column->what == MR_COUNT_DISTINCT)
			appendStringInfo(sql, ", 0::bigint AS %s", column->name);
		else
			appendStringInfo(sql, ", %s%s AS %s", old ? "- " : "", column->source, column->name);
		by_object |= column->slot != NULL && column->slot->kind == MR_SLOT_OBJECTS && mart->many;
	}
	appendStringInfo(sql, " FROM %s AS r%s GROUP BY %s", relation, where_clause(mart, NULL),
					 numbers(list_length(mart->groups)));
	for (int i = 0; by_object && i < mart->nkeys; i++)
		appendStringInfo(sql, ", r.%s",
						 quote_identifier(get_attname(mart->staging_relid, mart->keys[i], false)));
}

/* What the batch, or with `whole` the staging table, adds to each group, in the order of groups. */
char *
mr_mart_delta(MrMartQuery *mart, int32 target_id, bool whole)
{
	List *columns = mr_mart_counters(mart);
	int ngroups = list_length(mart->groups);
	StringInfoData sql;
	ListCell *lc;
	ListCell *lc2;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT %s", group_list(mart, "d."));
	foreach(lc, mart->extras)
		appendStringInfo(
			&sql, ", %s AS e%d",
			mr_mart_text(mart, ((MrMartColumn *) lfirst(lc))->expression, MR_PLACE_GROUPS),
			foreach_current_index(lc) + 1);
	foreach(lc, columns)
	{
		MrMartCounter *column = lfirst(lc);

		if (mr_mart_is_rare(column->what))
			appendStringInfo(&sql, ", nullif(sum(d.%s), 0)::%s AS %s", column->name,
							 counter_type(column), column->name);
		else
			appendStringInfo(&sql, ", sum(d.%s)::%s AS %s", column->name, counter_type(column),
							 column->name);
	}
	appendStringInfoString(&sql, " FROM (");
	if (whole)
		append_rows(&sql, mart, columns, mr_relation_name(mart->staging_relid), false);
	else
	{
		append_rows(&sql, mart, columns, psprintf("mr_new_%d", mart->staging_id), false);
		appendStringInfoString(&sql, " UNION ALL ");
		append_rows(&sql, mart, columns, psprintf("mr_old_%d", mart->staging_id), true);
	}
	foreach(lc, mart->sides)
	{
		MrMartSide *side = lfirst(lc);

		if (side->distinct == NULL)
			continue;
		appendStringInfo(&sql, " UNION ALL SELECT %s", group_list(mart, ""));
		foreach(lc2, columns)
		{
			MrMartCounter *column = lfirst(lc2);

			appendStringInfo(&sql, ", %s",
							 column->slot == side->distinct
								 ? "appeared"
								 : psprintf("0::%s", counter_type(column)));
		}
		appendStringInfo(&sql, " FROM mr_appeared_%d_%d", target_id, side->number);
	}
	appendStringInfo(&sql, ") AS d GROUP BY %s HAVING ", numbers(ngroups));
	foreach(lc, columns)
		appendStringInfo(&sql, "%ssum(d.%s) <> 0", foreach_current_index(lc) == 0 ? "" : " OR ",
						 ((MrMartCounter *) lfirst(lc))->name);
	appendStringInfo(&sql, " ORDER BY %s", numbers(ngroups));
	return sql.data;
}

/* Adds the delta to the state; returns the places of groups that have no rows any more. */
char *
mr_mart_upsert(MrMartQuery *mart, int32 target_id)
{
	StringInfoData names;
	StringInfoData sets;
	ListCell *lc;

	initStringInfo(&names);
	initStringInfo(&sets);
	appendStringInfoString(&names, group_list(mart, ""));
	for (int i = 1; i <= list_length(mart->extras); i++)
		appendStringInfo(&names, ", e%d", i);
	foreach(lc, mr_mart_counters(mart))
	{
		MrMartCounter *column = lfirst(lc);

		appendStringInfo(&names, ", %s", column->name);
		appendStringInfo(&sets,
						 mr_mart_is_rare(column->what)
							 ? "%s%s = nullif(coalesce(s.%s, 0) + coalesce(excluded.%s, 0), 0)"
							 : "%s%s = s.%s + excluded.%s",
						 foreach_current_index(lc) == 0 ? "" : ", ", column->name, column->name,
						 column->name);
	}
	return psprintf("WITH written AS (INSERT INTO %s AS s (%s%s) SELECT %s%s FROM mr_delta_%d "
					"ON CONFLICT (%s%s) DO UPDATE SET %s RETURNING s.ctid AS place, s.n) "
					"SELECT place, n FROM written WHERE n <= 0",
					mr_mart_state_name(mr_mart_base(target_id), NULL), names.data,
					mart->stripes > 1 ? ", stripe" : "", names.data, mart->stripes > 1 ? ", 0" : "",
					target_id, group_list(mart, ""), mart->stripes > 1 ? ", stripe" : "",
					sets.data);
}

/* In how many rows the values of a side table come or go in each group. */
char *
mr_mart_side_delta(MrMartQuery *mart, const MrMartSide *side, bool whole)
{
	char *filter = side->filter == NULL ? NULL : mr_mart_text(mart, side->filter, MR_PLACE_ROWS);
	char *columns = numbers(list_length(mart->groups) + list_length(side->values));
	const char *relations[2] = {psprintf("mr_new_%d", mart->staging_id),
								psprintf("mr_old_%d", mart->staging_id)};
	StringInfoData sql;
	ListCell *lc;

	if (whole)
		relations[0] = mr_relation_name(mart->staging_relid);
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT %s, sum(d.n)::bigint AS n FROM (", key_list(mart, side, "d."));
	for (int old = 0; old < (whole ? 1 : 2); old++)
	{
		appendStringInfo(&sql, "%sSELECT %s", old ? " UNION ALL " : "", group_expressions(mart));
		foreach(lc, side->values)
			appendStringInfo(
				&sql, ", %s AS v%d",
				mr_mart_text(mart, ((MrMartColumn *) lfirst(lc))->expression, MR_PLACE_ROWS),
				foreach_current_index(lc) + 1);
		appendStringInfo(&sql, ", %scount(*) AS n FROM %s AS r%s GROUP BY %s", old ? "- " : "",
						 relations[old], where_clause(mart, filter), columns);
	}
	appendStringInfo(&sql, ") AS d GROUP BY %s HAVING sum(d.n) <> 0 ORDER BY %s", columns, columns);
	return sql.data;
}

/* What a side table has. */
char *
mr_mart_side_rows(MrMartQuery *mart, int32 target_id, const MrMartSide *side)
{
	return psprintf("SELECT %s, n FROM %s", key_list(mart, side, ""),
					mr_mart_state_name(mr_mart_base(target_id), side));
}

/* Adds it to the side table; returns what appeared in or disappeared from its group. */
char *
mr_mart_side_upsert(MrMartQuery *mart, int32 target_id, const MrMartSide *side)
{
	char *keys = key_list(mart, side, "");
	char *groups = group_list(mart, "");
	bool values = side->values != NIL;

	return psprintf(
		"WITH written AS (INSERT INTO %s AS s (%s, n, d) "
		"SELECT %s, n, n FROM mr_side_%d_%d ON CONFLICT (%s) "
		"DO UPDATE SET n = s.n + excluded.n, d = excluded.n "
		"RETURNING s.ctid AS place, s.n, %s, s.d, %s AS nothing) "
		"SELECT place, n, %s, CASE WHEN nothing THEN 0 WHEN n > 0 THEN 1 ELSE -1 END::bigint "
		"AS appeared FROM written WHERE n <= 0 OR n = d",
		mr_mart_state_name(mr_mart_base(target_id), side), keys, keys, target_id, side->number,
		keys, group_list(mart, "s."), values ? "s.v1 IS NULL" : "true", groups);
}

/* The row that a mart without GROUP BY has for no rows, or NULL. */
char *
mr_mart_empty_row(MrMartQuery *mart, const char *base)
{
	StringInfoData names;
	StringInfoData values;
	ListCell *lc;

	if (!mart->global)
		return NULL;
	initStringInfo(&names);
	initStringInfo(&values);
	foreach(lc, mr_mart_counters(mart))
	{
		MrMartCounter *column = lfirst(lc);

		if (!mr_mart_is_rare(column->what))
		{
			appendStringInfo(&names, ", %s", column->name);
			appendStringInfoString(&values, ", 0");
		}
	}
	if (mart->stripes > 1)
	{
		appendStringInfoString(&names, ", stripe");
		appendStringInfoString(&values, ", 0");
	}
	return psprintf("INSERT INTO %s (g1%s) VALUES (0%s)", mr_mart_state_name(base, NULL),
					names.data, values.data);
}

/* ---- the view --------------------------------------------------------------------------------- */

/*
 * The state as the view reads it: one row a group.  What is stored beside the group may differ between its stripes, as
 * the texts of 1.0 and 1.00 do: that of one stripe counts.
 */
static char *
state_relation(MrMartQuery *mart, const char *base)
{
	char *state = mr_mart_state_name(base, NULL);
	char *groups = group_list(mart, "");
	StringInfoData columns;
	ListCell *lc;

	if (mart->stripes == 1)
		return state;
	initStringInfo(&columns);
	for (int i = 1; i <= list_length(mart->extras); i++)
		appendStringInfo(&columns, ", millrace.latest(e%d, stripe) AS e%d", i, i);
	foreach(lc, mr_mart_counters(mart))
	{
		MrMartCounter *column = lfirst(lc);

		appendStringInfo(&columns, ", sum(%s)::%s AS %s", column->name, counter_type(column),
						 column->name);
	}
	return psprintf("(SELECT %s%s FROM %s GROUP BY %s%s)", groups, columns.data, state, groups,
					mart->global ? "" : " HAVING sum(n) > 0");
}

/* FROM, with the state in place of the staging table. */
static char *
from_text(MrMartQuery *mart, Node *item, const char *base)
{
	JoinExpr *join = (JoinExpr *) item;

	if (IsA(item, RangeTblRef))
	{
		Index rti = ((RangeTblRef *) item)->rtindex;
		RangeTblEntry *entry = rt_fetch(rti, mart->query->rtable);

		return psprintf("%s AS %s",
						rti == mart->staging ? state_relation(mart, base)
											 : mr_relation_name(entry->relid),
						quote_identifier(entry->eref->aliasname));
	}
	return psprintf("(%s %s %s ON %s)", from_text(mart, join->larg, base),
					join->jointype == JOIN_LEFT ? "LEFT JOIN" : "JOIN",
					from_text(mart, join->rarg, base),
					join->quals == NULL ? "true" : mr_mart_text(mart, join->quals, MR_PLACE_VIEW));
}

/* The query of the mart's view. */
char *
mr_mart_view(MrMartQuery *mart, const char *base)
{
	Query *query = mart->query;
	StringInfoData sql;
	ListCell *lc;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (!entry->resjunk)
			appendStringInfo(&sql, "%s%s AS %s", foreach_current_index(lc) == 0 ? "" : ", ",
							 mr_mart_text(mart, (Node *) entry->expr, MR_PLACE_VIEW),
							 quote_identifier(entry->resname));
	}
	appendStringInfo(&sql, " FROM %s", from_text(mart, linitial(query->jointree->fromlist), base));
	if (query->havingQual != NULL)
		appendStringInfo(&sql, " WHERE %s", mr_mart_text(mart, query->havingQual, MR_PLACE_VIEW));
	return sql.data;
}
