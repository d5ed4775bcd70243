/*
 * retry.c
 *	  Dead letters tried again, or discarded: by their ids, or those that a filter finds.
 *
 * What a rule could not judge was taken all the same: it is mapped once more, and only the rule sees it.
 *
 * A filter is the caller's own SQL over millrace.dead_letter and runs as he; what it finds is gone through in
 * portions, so that any number of letters needs no more memory than a batch.  A letter that fails again keeps
 * its id, and the cursor's snapshot is from before: none is tried twice.
 */
#include "postgres.h"

#include "alert/rule.h"
#include "catalog/pg_type.h"
#include "core/expression.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "flow/run.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* So many letters at once, unless they are large. */
#define LETTERS_AT_ONCE 5000

typedef struct Outcome
{
	int64 taken;
	int64 superseded;
	int64 refused;
} Outcome;

PG_FUNCTION_INFO_V1(millrace_retry);
PG_FUNCTION_INFO_V1(millrace_retry_filter);
PG_FUNCTION_INFO_V1(millrace_discard_filter);

/* The rule, among the targets of the stream, if it is judged and knows what was there before; else NULL. */
static MrTarget *
find_rule(const MrStream *stream, int32 rule_id)
{
	ListCell *lc;

	foreach(lc, stream->targets)
	{
		MrTarget *target = lfirst(lc);

		if (target->id == rule_id && !target->filling && mr_rule_is_judged((MrRule *) target, NULL))
			return target;
	}
	return NULL;
}

/* Tries dead letters of one stream again, in the caller's transaction: those of one rule, or (0) of no rule. */
static void
retry_letters(int32 stream_id, int32 rule_id, ArrayType *ids, Outcome *outcome)
{
	MrFlow *flow = mr_flow_create(stream_id, 0, 1);
	MemoryContext previous = MemoryContextSwitchTo(flow->context);
	int64 closed = outcome->taken + outcome->superseded;
	MrTarget *rule = NULL;
	MrRunAs saved;

	if (mr_flow_compile_active(flow))
	{
		mr_stream_check_fence(flow->stream);
		flow->batch = mr_batch_create(flow->context);
		mr_flow_prepare(flow->stream, flow->batch);
		MemoryContextSwitchTo(flow->batch->context);
		mr_letter_read(flow->batch, ids, false, rule_id);
		if (rule_id != 0)
			rule = find_rule(flow->stream, rule_id);
		mr_run_as(&saved, flow->stream->owner);
		if (rule_id == 0)
			mr_flow_process(flow->stream, flow->extraction, flow->batch);
		else if (rule != NULL)
			mr_flow_judge(flow->stream, flow->extraction, flow->batch, rule);
		mr_run_back(&saved);
		/* A rule that was suspended by it has not judged. */
		if (rule_id == 0 || (rule != NULL && mr_rule_is_judged((MrRule *) rule, NULL)))
			mr_letter_close(flow->batch, &outcome->taken, &outcome->superseded);
		if (rule_id == 0)
			outcome->refused += mr_flow_count_letters(flow->batch);
		else
			outcome->refused += flow->batch->nmessages -
								(outcome->taken + outcome->superseded - closed);
	}
	MemoryContextSwitchTo(previous);
	mr_flow_close(flow);
}

/* Puts those into the outbox again that are of channels of the caller's; returns how many. */
static int64
retry_deliveries(ArrayType *ids)
{
	static const Oid types[] = {INT8ARRAYOID, OIDOID};
	Datum arguments[] = {PointerGetDatum(ids), ObjectIdGetDatum(GetUserId())};
	MrRunAs saved;
	int64 count;
	bool isnull;

	mr_run_as(&saved, mr_extension_owner());
	(void) mr_sql_with("SELECT millrace_internal.retry_deliveries(ARRAY(SELECT l.id "
					   "FROM millrace.letter l JOIN millrace.channel c ON c.id = l.channel_id "
					   "WHERE l.id = ANY ($1) AND l.state = 'open' "
					   "AND pg_catalog.pg_has_role($2, c.owner, 'USAGE')))",
					   lengthof(types), types, arguments, NULL);
	count = DatumGetInt64(mr_sql_value(0, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	mr_run_back(&saved);
	return count;
}

/* Tries those of the letters that are open and of streams or channels of the caller's. */
static void
retry_ids(ArrayType *ids, Outcome *outcome)
{
	static const Oid types[] = {INT8ARRAYOID, OIDOID};
	Datum arguments[] = {PointerGetDatum(ids), ObjectIdGetDatum(GetUserId())};
	int nest_level = mr_settings_pin("UTC");
	MrRunAs saved;
	int32 *streams;
	int32 *rules;
	uint64 count;

	mr_run_as(&saved, mr_extension_owner());
	count = mr_statement_run(
		mr_statement_create("SELECT DISTINCT l.stream_id, coalesce(l.rule_id, 0) "
							"FROM millrace.letter l "
							"JOIN millrace.stream s ON s.id = l.stream_id "
							"WHERE l.id = ANY ($1) AND l.state = 'open' "
							"AND pg_catalog.pg_has_role($2, s.owner, 'USAGE') ORDER BY 1, 2",
							2, types),
		arguments, NULL);
	mr_run_back(&saved);
	streams = palloc(sizeof(int32) * Max(count, 1));
	rules = palloc(sizeof(int32) * Max(count, 1));
	for (uint64 i = 0; i < count; i++)
	{
		bool isnull;

		streams[i] = DatumGetInt32(mr_sql_value(i, 1, &isnull));
		rules[i] = DatumGetInt32(mr_sql_value(i, 2, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	for (uint64 i = 0; i < count; i++)
		retry_letters(streams[i], rules[i], ids, outcome);
	outcome->taken += retry_deliveries(ids);
	mr_settings_unpin(nest_level);
}

/* Removes those of the letters that are of streams or channels of the caller's; returns how many. */
static int64
discard_ids(ArrayType *ids)
{
	static const Oid types[] = {INT8ARRAYOID, OIDOID};
	Datum arguments[] = {PointerGetDatum(ids), ObjectIdGetDatum(GetUserId())};
	MrRunAs saved;
	uint64 count;

	mr_run_as(&saved, mr_extension_owner());
	count = mr_statement_run(
		mr_statement_create(
			"DELETE FROM millrace.letter l WHERE l.id = ANY ($1) AND pg_catalog.pg_has_role($2, "
			"coalesce((SELECT s.owner FROM millrace.stream s WHERE s.id = l.stream_id), "
			"(SELECT c.owner FROM millrace.channel c WHERE c.id = l.channel_id)), 'USAGE')",
			2, types),
		arguments, NULL);
	mr_run_back(&saved);
	return (int64) count;
}

/* The caller's filter, open as a cursor over the ids of letters and their sizes. */
static Portal
open_filter(text *filter, bool open_only)
{
	char *condition = text_to_cstring(filter);
	SPIPlanPtr plan;

	/* It may stand in a statement only when it is an expression and nothing else. */
	mr_expression_check_text(condition, "filter");
	plan = SPI_prepare(psprintf("SELECT id, octet_length(value) FROM millrace.dead_letter "
								"WHERE (%s\n)%s ORDER BY id",
								condition, open_only ? " AND state = 'open'" : ""),
					   0, NULL);
	if (plan == NULL)
		elog(ERROR, "cannot prepare the filter \"%s\": %s", condition,
			 SPI_result_code_string(SPI_result));
	return SPI_cursor_open(NULL, plan, NULL, NULL, false);
}

/* The next ids that make one batch, or NULL at the end. */
static ArrayType *
fetch_ids(Portal portal)
{
	Datum *ids = palloc(sizeof(Datum) * LETTERS_AT_ONCE);
	Size bytes = 0;
	int n = 0;

	CHECK_FOR_INTERRUPTS();
	while (n < LETTERS_AT_ONCE && bytes < mr_flow_batch_bytes())
	{
		uint64 fetched;

		SPI_cursor_fetch(portal, true, Min(100, LETTERS_AT_ONCE - n));
		fetched = SPI_processed;
		for (uint64 i = 0; i < fetched; i++)
		{
			bool isnull;

			ids[n++] = Int64GetDatum(DatumGetInt64(mr_sql_value(i, 1, &isnull)));
			bytes += DatumGetInt32(mr_sql_value(i, 2, &isnull));
		}
		SPI_freetuptable(SPI_tuptable);
		if (fetched == 0)
			break;
	}
	return n == 0
			   ? NULL
			   : construct_array(ids, n, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE);
}

/* Tries or discards all that a filter finds. */
static void
for_filter(text *filter, Outcome *outcome, int64 *discarded)
{
	Portal portal = open_filter(filter, outcome != NULL);
	MemoryContext previous = CurrentMemoryContext;
	MemoryContext portion = AllocSetContextCreate(previous, "millrace letters",
												  ALLOCSET_DEFAULT_SIZES);
	ArrayType *ids;

	MemoryContextSwitchTo(portion);
	while ((ids = fetch_ids(portal)) != NULL)
	{
		if (outcome != NULL)
			retry_ids(ids, outcome);
		else
			*discarded += discard_ids(ids);
		MemoryContextReset(portion);
	}
	SPI_cursor_close(portal);
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(portion);
}

/* retry(), by ids or by filter. */
static Datum
retry(FunctionCallInfo fcinfo, ArrayType *ids, text *filter)
{
	Outcome outcome = {0};
	TupleDesc desc;
	Datum values[3];
	bool nulls[3] = {false};

	mr_flow_require_read_committed("retry()");
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	mr_flow_check_constraints();
	if (filter != NULL)
		for_filter(filter, &outcome, NULL);
	else
		retry_ids(ids, &outcome);
	PopActiveSnapshot();
	SPI_finish();

	values[0] = Int64GetDatum(outcome.taken);
	values[1] = Int64GetDatum(outcome.superseded);
	values[2] = Int64GetDatum(outcome.refused);
	return HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
}

Datum
millrace_retry(PG_FUNCTION_ARGS)
{
	return retry(fcinfo, PG_GETARG_ARRAYTYPE_P(0), NULL);
}

Datum
millrace_retry_filter(PG_FUNCTION_ARGS)
{
	return retry(fcinfo, NULL, PG_GETARG_TEXT_PP(0));
}

Datum
millrace_discard_filter(PG_FUNCTION_ARGS)
{
	int64 discarded = 0;

	SPI_connect();
	for_filter(PG_GETARG_TEXT_PP(0), NULL, &discarded);
	SPI_finish();
	PG_RETURN_INT64(discarded);
}
