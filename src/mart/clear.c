/*
 * clear.c
 *	  Removing groups of a mart's state: to be computed anew, or because they have no rows.
 *
 * A filter over the columns by which the mart groups selects the same groups in the state and among the staged
 * rows: so what was removed is exactly what comes of these rows.  It is evaluated as the mart's owner; the
 * state belongs to the extension's.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "lib/stringinfo.h"
#include "mart/mart.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "rewrite/rewriteManip.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"

PG_FUNCTION_INFO_V1(millrace_mart_sweep);

/* "expression AS column, …" of the mart's columns that depend on the group alone, for a place. */
static char *
grouped_columns(MrMartQuery *mart, MrMartPlace place, bool names_only)
{
	StringInfoData list;
	ListCell *lc;

	initStringInfo(&list);
	foreach(lc, mart->query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (entry->resjunk || contain_aggs_of_level((Node *) entry->expr, 0) ||
			mr_mart_is_joined(mart, (Node *) entry->expr))
			continue;
		appendStringInfo(&list, "%s%s", list.len == 0 ? "" : ", ",
						 names_only
							 ? quote_identifier(entry->resname)
							 : psprintf("%s AS %s", mr_mart_text(mart, (Node *) entry->expr, place),
										quote_identifier(entry->resname)));
	}
	return list.data;
}

/* The filter as a condition on what stands in a place. */
static char *
condition_for(MrMartQuery *mart, const MrTarget *target, const char *filter, MrMartPlace place)
{
	return psprintf("(SELECT (%s\n) FROM (SELECT %s) AS %s)", filter,
					grouped_columns(mart, place, false),
					quote_identifier(get_rel_name(target->relid)));
}

/* Refuses what does not always give the same answer, and names that are no columns of the group. */
static void
check_filter(MrMartQuery *mart, const MrTarget *target, const char *filter)
{
	char *columns = grouped_columns(mart, MR_PLACE_ROWS, true);
	char *sql = psprintf("SELECT FROM (SELECT %s FROM %s AS r) AS %s WHERE (%s\n)",
						 grouped_columns(mart, MR_PLACE_ROWS, false),
						 mr_relation_name(mart->staging_relid),
						 quote_identifier(get_rel_name(target->relid)), filter);
	CachedPlanSource *source;
	SPIPlanPtr volatile plan = NULL;

	if (columns[0] == '\0' || mart->global)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("mart %s shows no column by which it groups", target->name),
						errhint("Rebuild it whole, without a filter.")));
	PG_TRY();
	{
		plan = SPI_prepare(sql, 0, NULL);
	}
	PG_CATCH();
	{
		if (geterrcode() == ERRCODE_UNDEFINED_COLUMN)
			errhint("The filter speaks of the columns by which the mart groups: %s.", columns);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (plan == NULL)
		elog(ERROR, "cannot prepare \"%s\": %s", sql, SPI_result_code_string(SPI_result));
	source = linitial(SPI_plan_get_plan_sources(plan));
	if (contain_volatile_functions((Node *) source->query_list))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("the filter calls a volatile function: %s", filter),
						errdetail("It has to select the same groups whenever it is asked.")));
}

/* Deletes the groups of one table of the state that fulfil the condition. */
static void
delete_groups(const char *table, Oid owner, const char *condition)
{
	ArrayType *places;
	Oid types[] = {TIDARRAYOID};
	Datum value;
	MrRunAs saved;
	bool isnull;

	mr_run_as_restricted(&saved, owner);
	(void) mr_sql("SELECT array_agg(d.ctid) FROM millrace_state.%s AS d WHERE %s", table,
				  condition);
	value = mr_sql_value(0, 1, &isnull);
	places = isnull ? NULL : DatumGetArrayTypePCopy(value);
	SPI_freetuptable(SPI_tuptable);
	mr_run_back(&saved);
	if (places == NULL)
		return;

	value = PointerGetDatum(places);
	mr_run_as(&saved, mr_extension_owner());
	if (SPI_execute_with_args(
			psprintf("DELETE FROM millrace_state.%s WHERE ctid = ANY ($1)", table), 1, types,
			&value, NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "cannot delete from millrace_state.%s", table);
	mr_run_back(&saved);
}

void
mr_mart_clear(MrTarget *target, const char *filter, char **condition)
{
	MemoryContext context = CurrentMemoryContext;
	MrMartQuery *mart;
	char *base = mr_mart_base(target->id);
	char *short_base = psprintf("mart_%d", target->id);
	char **tables;
	uint64 ntables;
	MrRunAs saved;
	int nest_level;
	char *empty_row;

	SPI_connect();
	MemoryContextSwitchTo(context);
	mart = mr_mart_load_query(mr_definition_query("mart", target->id), target->id, target->owner);
	nest_level = mr_settings_pin(mart->timezone);
	mr_run_as(&saved, mr_extension_owner());
	ntables =
		mr_sql("SELECT pg_catalog.quote_ident(relname) FROM millrace_internal.mart_tables('%s')",
			   short_base);
	tables = palloc(sizeof(char *) * Max(ntables, 1));
	for (uint64 i = 0; i < ntables; i++)
		tables[i] = mr_sql_text(i, 1);
	SPI_freetuptable(SPI_tuptable);
	mr_run_back(&saved);

	if (filter == NULL)
	{
		mr_run_as(&saved, mr_extension_owner());
		/* Not TRUNCATE: who reads under an older snapshot must go on seeing the mart. */
		for (uint64 i = 0; i < ntables; i++)
			(void) mr_sql("DELETE FROM millrace_state.%s", tables[i]);
		empty_row = mr_mart_empty_row(mart, base);
		if (empty_row != NULL)
			(void) mr_sql("%s", empty_row);
		mr_run_back(&saved);
		*condition = NULL;
	}
	else
	{
		char *over_groups = condition_for(mart, target, filter, MR_PLACE_GROUPS);

		mr_run_as_restricted(&saved, target->owner);
		check_filter(mart, target, filter);
		mr_run_back(&saved);
		for (uint64 i = 0; i < ntables; i++)
			delete_groups(tables[i], target->owner, over_groups);
		MemoryContextSwitchTo(context);
		*condition = condition_for(mart, target, filter, MR_PLACE_ROWS);
	}
	mr_settings_unpin(nest_level);
	SPI_finish();
}

/*
 * mart_sweep(target integer, owner regrole): removes groups that have no rows any more, which stripes do not see: each has
 * a part of what came and went.  Nobody may be writing to the mart.
 */
Datum
millrace_mart_sweep(PG_FUNCTION_ARGS)
{
	int32 target_id = PG_GETARG_INT32(0);
	MemoryContext context = CurrentMemoryContext;
	Query *query = mr_definition_query("mart", target_id);
	MrMartQuery *mart;

	SPI_connect();
	MemoryContextSwitchTo(context);
	mart = mr_mart_load_query(query, target_id, PG_GETARG_OID(1));
	if (mart->stripes > 1 && !mart->global)
	{
		char *state = mr_mart_state_name(mr_mart_base(target_id), NULL);
		StringInfoData groups;

		initStringInfo(&groups);
		for (int i = 1; i <= list_length(mart->groups); i++)
			appendStringInfo(&groups, "%sg%d", i == 1 ? "" : ", ", i);
		(void) mr_sql("DELETE FROM %s WHERE ctid = ANY (ARRAY(SELECT unnest(array_agg(s.ctid)) "
					  "FROM %s AS s GROUP BY %s HAVING sum(s.n) = 0))",
					  state, state, groups.data);
	}
	SPI_finish();
	PG_RETURN_VOID();
}
