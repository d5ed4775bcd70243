/*
 * results.c
 *	  Aggregates that are computed from side tables, for the groups that a batch touched.
 *
 * When it comes to this, the batch's values are in the side tables and its groups' rows in the state are locked,
 * so that whoever else changes these groups has committed or comes after us (C4).  The statements, each in a new
 * snapshot, compute as the mart's owner and write as the extension's.  Groups with a NULL in other places have
 * statements of their own: "is not distinct from" knows no index.
 */
#include "postgres.h"

#include "access/tupdesc.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "executor/executor.h"
#include "lib/stringinfo.h"
#include "mart/mart.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "storage/itemptr.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

/* Statements for groups with NULL in certain places. */
typedef struct Pattern
{
	bool *nulls;
	Tuplestorestate *store; /* groups that are being computed */
	char *touched; /* name of the ephemeral relation of groups */
	char *computed; /* and of their results */
	MrSaved *compute;
	MrSaved *write;
} Pattern;

struct MrMartResults
{
	MemoryContext context;
	MrMartQuery *mart;
	int32 target_id;
	TupleDesc desc; /* of touched groups: place, g1, g2, … */
	List *patterns;
	MrSaved *all; /* every group of the state */
};

MrMartResults *
mr_mart_results_create(MrMartQuery *mart, int32 target_id)
{
	MrMartResults *results;
	StringInfoData sql;
	ListCell *lc;
	bool any = false;

	foreach(lc, mart->slots)
		any |= ((MrMartSlot *) lfirst(lc))->kind == MR_SLOT_RESULT;
	if (!any)
		return NULL;
	results = palloc0(sizeof(MrMartResults));
	results->context = CurrentMemoryContext;
	results->mart = mart;
	results->target_id = target_id;
	results->desc = CreateTemplateTupleDesc(list_length(mart->groups) + 1);
	TupleDescInitEntry(results->desc, 1, "place", TIDOID, -1, 0);
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT s.ctid AS place");
	foreach(lc, mart->groups)
	{
		MrMartColumn *group = lfirst(lc);
		int i = foreach_current_index(lc) + 1;

		TupleDescInitEntry(results->desc, i + 1, psprintf("g%d", i), group->type, group->typmod, 0);
		TupleDescInitEntryCollation(results->desc, i + 1, group->collation);
		appendStringInfo(&sql, ", s.g%d", i);
	}
	appendStringInfo(&sql, " FROM %s AS s", mr_mart_state_name(mr_mart_base(target_id), NULL));
	results->all = mr_saved_create(sql.data);
	return results;
}

/* " FROM side table WHERE it is of the group "t"". */
static char *
from_side(const MrMartResults *results, const Pattern *pattern, const MrMartSide *side, bool repeat)
{
	StringInfoData sql;
	ListCell *lc;

	initStringInfo(&sql);
	appendStringInfo(&sql, " FROM %s AS s%s WHERE ",
					 mr_mart_state_name(mr_mart_base(results->target_id), side),
					 repeat ? ", pg_catalog.generate_series(1, s.n)" : "");
	foreach(lc, results->mart->groups)
	{
		MrMartColumn *group = lfirst(lc);
		int i = foreach_current_index(lc) + 1;
		Oid equality = lookup_type_cache(group->type, TYPECACHE_EQ_OPR)->eq_opr;
		char *schema;

		appendStringInfoString(&sql, i == 1 ? "" : " AND ");
		if (pattern->nulls[i - 1])
		{
			appendStringInfo(&sql, "s.g%d IS NULL", i);
			continue;
		}
		schema = get_namespace_name(get_func_namespace(get_opcode(equality)));
		appendStringInfo(&sql, "s.g%d OPERATOR(%s.=) t.g%d", i, quote_identifier(schema), i);
	}
	return sql.data;
}

/* The sub-select that computes an aggregate for the group "t". */
static char *
result_query(const MrMartResults *results, const Pattern *pattern, const MrMartSlot *slot)
{
	const Aggref *aggregate = (const Aggref *) slot->argument;
	MrMartFunction function = mr_mart_function(aggregate);
	char *from = from_side(results, pattern, slot->side,
						   function == MR_FUNCTION_OTHER || function == MR_FUNCTION_EXACT_SUM ||
								   function == MR_FUNCTION_EXACT_AVG || function <= MR_FUNCTION_SOME
							   ? aggregate->aggdistinct == NIL
							   : false);

	switch (function)
	{
		case MR_FUNCTION_MIN:
		case MR_FUNCTION_MAX:
			return psprintf("(SELECT s.v1%s AND s.v1 IS NOT NULL ORDER BY s.v1%s LIMIT 1)", from,
							function == MR_FUNCTION_MAX ? " DESC" : "");
		case MR_FUNCTION_LATEST:
			return psprintf("(SELECT s.v2%s AND s.v1 IS NOT NULL "
							"ORDER BY s.v1 DESC, s.v2 DESC NULLS LAST LIMIT 1)",
							from);
		default:
			return psprintf("(SELECT %s%s)", mr_mart_result_text(results->mart, slot), from);
	}
}

/* Makes the statements for groups with such NULLs. */
static Pattern *
make_pattern(MrMartResults *results, const bool *nulls)
{
	MemoryContext previous = MemoryContextSwitchTo(results->context);
	Pattern *pattern = palloc0(sizeof(Pattern));
	int ngroups = list_length(results->mart->groups);
	int number = list_length(results->patterns) + 1;
	StringInfoData compute;
	StringInfoData sets;
	StringInfoData before;
	StringInfoData after;
	ListCell *lc;

	pattern->nulls = palloc(ngroups);
	memcpy(pattern->nulls, nulls, ngroups);
	pattern->touched = psprintf("mr_touched_%d_%d", results->target_id, number);
	pattern->computed = psprintf("mr_computed_%d_%d", results->target_id, number);
	initStringInfo(&compute);
	initStringInfo(&sets);
	initStringInfo(&before);
	initStringInfo(&after);
	appendStringInfoString(&compute, "SELECT t.place");
	foreach(lc, results->mart->slots)
	{
		MrMartSlot *slot = lfirst(lc);
		const char *comma = sets.len == 0 ? "" : ", ";

		if (slot->kind != MR_SLOT_RESULT)
			continue;
		appendStringInfo(&compute, ", %s AS r%d", result_query(results, pattern, slot),
						 slot->number);
		appendStringInfo(&sets, "%sr%d = c.r%d", comma, slot->number, slot->number);
		appendStringInfo(&before, "%ss.r%d", comma, slot->number);
		appendStringInfo(&after, "%sc.r%d", comma, slot->number);
	}
	appendStringInfo(&compute, " FROM %s AS t", pattern->touched);
	pattern->compute = mr_saved_create(compute.data);
	pattern->write = mr_saved_create(
		psprintf("UPDATE %s AS s SET %s FROM %s AS c WHERE s.ctid = c.place "
				 "AND ROW(%s)::record OPERATOR(pg_catalog.*<>) ROW(%s)::record RETURNING 1",
				 mr_mart_state_name(mr_mart_base(results->target_id), NULL), sets.data,
				 pattern->computed, before.data, after.data));
	results->patterns = lappend(results->patterns, pattern);
	MemoryContextSwitchTo(previous);
	return pattern;
}

static Pattern *
find_pattern(MrMartResults *results, const bool *nulls)
{
	ListCell *lc;

	foreach(lc, results->patterns)
	{
		Pattern *pattern = lfirst(lc);

		if (memcmp(pattern->nulls, nulls, list_length(results->mart->groups)) == 0)
			return pattern;
	}
	return make_pattern(results, nulls);
}

/* Computes for the groups of one pattern. */
static void
compute_touched(const Pattern *pattern, TupleDesc desc, Oid owner)
{
	Tuplestorestate *computed;
	Tuplestorestate *written;
	TupleDesc computed_desc;
	TupleDesc written_desc;
	MrRunAs saved;

	mr_saved_publish(pattern->touched, pattern->store, desc);
	mr_run_as_restricted(&saved, owner);
	computed = mr_saved_run(pattern->compute, &computed_desc);
	mr_run_back(&saved);
	mr_run_as(&saved, mr_extension_owner());
	mr_saved_publish(pattern->computed, computed, computed_desc);
	written = mr_saved_run(pattern->write, &written_desc);
	mr_run_back(&saved);
	tuplestore_end(written);
	tuplestore_end(computed);
}

/* Adds a group to those that its pattern will compute; the slot has place, g1, g2, …. */
static void
touch(MrMartResults *results, TupleTableSlot *slot)
{
	Pattern *pattern = find_pattern(results, &slot->tts_isnull[1]);

	if (pattern->store == NULL)
		pattern->store = tuplestore_begin_heap(false, false, work_mem);
	tuplestore_puttupleslot(pattern->store, slot);
}

static void
touch_all(MrMartResults *results)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(results->desc, &TTSOpsMinimalTuple);
	Tuplestorestate *all;
	TupleDesc desc;
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	all = mr_saved_run(results->all, &desc);
	mr_run_back(&saved);
	while (tuplestore_gettupleslot(all, true, false, slot))
	{
		slot_getallattrs(slot);
		touch(results, slot);
	}
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(all);
}

static void
touch_rows(MrMartResults *results, const MrRows *groups, ItemPointerData *places,
		   const bool *chosen)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(results->desc, &TTSOpsVirtual);

	for (int r = 0; r < groups->nrows; r++)
	{
		if (!chosen[r])
			continue;
		ExecClearTuple(slot);
		slot->tts_values[0] = PointerGetDatum(&places[r]);
		slot->tts_isnull[0] = false;
		for (int i = 1; i < results->desc->natts; i++)
		{
			slot->tts_values[i] = groups->values[i - 1][r];
			slot->tts_isnull[i] = groups->nulls[i - 1][r];
		}
		ExecStoreVirtualTuple(slot);
		touch(results, slot);
	}
	ExecDropSingleTupleTableSlot(slot);
}

void
mr_mart_results_compute(MrMartResults *results, Oid owner, const MrRows *groups,
						ItemPointerData *places, const bool *chosen)
{
	ListCell *lc;

	/* What an error left behind went with its memory. */
	foreach(lc, results->patterns)
		((Pattern *) lfirst(lc))->store = NULL;
	if (groups == NULL)
		touch_all(results);
	else
		touch_rows(results, groups, places, chosen);
	foreach(lc, results->patterns)
	{
		Pattern *pattern = lfirst(lc);

		if (pattern->store == NULL)
			continue;
		compute_touched(pattern, results->desc, owner);
		tuplestore_end(pattern->store);
		pattern->store = NULL;
	}
}
