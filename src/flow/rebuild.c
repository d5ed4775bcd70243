/*
 * rebuild.c
 *	  Computing a target anew, whole or in part, under the exclusive lock of its streams.
 *
 * What is to be made again is removed, and what its sources hold is applied once more, in one transaction: those
 * who read see the old rows until it commits, batches wait.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "flow/backfill.h"
#include "flow/plan.h"
#include "flow/run.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/online.h"
#include "stage/reader.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* Rows that are read and applied at once. */
#define REBUILD_ROWS 10000

PG_FUNCTION_INFO_V1(millrace_rebuild_target);

/* The tables with pages of a log; none without a log. */
static List *
log_tables(int32 staging_id)
{
	List *tables = NIL;
	uint64 count =
		mr_sql("SELECT l::oid FROM millrace.staging g, millrace_internal.log_tables(g.log) l "
			   "WHERE g.id = %d ORDER BY 1",
			   staging_id);

	for (uint64 i = 0; i < count; i++)
	{
		bool isnull;

		tables = lappend_oid(tables, DatumGetObjectId(mr_sql_value(i, 1, &isnull)));
	}
	SPI_freetuptable(SPI_tuptable);
	return tables;
}

/* Does the log of a staging table have every version that ever came? */
static bool
log_is_whole(int32 staging_id)
{
	uint64 found = mr_sql("SELECT FROM millrace.staging WHERE id = %d AND log_since = '-infinity'",
						  staging_id);

	SPI_freetuptable(SPI_tuptable);
	return found > 0;
}

/* Applies what a reader gives, chunk after chunk: from a log's table, or (InvalidOid) from what is staged. */
static void
apply_all(MrStream *stream, MrTarget *target, MrStaging *staging, Oid log, const char *condition)
{
	MemoryContext previous = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(previous, "millrace chunk",
												  ALLOCSET_DEFAULT_SIZES);
	MrKeyPlace *place = NULL;
	ItemPointerData from;
	bool more = true;

	ItemPointerSet(&from, 0, 1);
	while (more)
	{
		MrStaged *staged;
		MrBatch *batch;
		ArrayType *reached = NULL;
		int64 nrows;

		CHECK_FOR_INTERRUPTS();
		SPI_connect();
		MemoryContextSwitchTo(context);
		batch = mr_backfill_batch(stream, staging, &staged);
		batch->counted = true;
		if (OidIsValid(log))
			more = mr_log_read(staged, log, &from, MaxBlockNumber, REBUILD_ROWS, &nrows);
		else
		{
			if (place == NULL)
				place = mr_key_place_read(staging, NULL);
			more = mr_rows_read(staged, place, condition == NULL ? staging->owner : target->owner,
								condition, REBUILD_ROWS, &nrows);
			if (more)
				reached = mr_key_place_text(staging, place);
		}
		if (nrows > 0)
			mr_flow_apply(target, batch);
		MemoryContextSwitchTo(previous);
		if (reached != NULL)
			reached = (ArrayType *) DatumGetPointer(datumCopy(PointerGetDatum(reached), false, -1));
		SPI_finish();
		MemoryContextSwitchTo(previous);
		MemoryContextReset(context);
		if (reached != NULL)
			place = mr_key_place_read(staging, reached);
	}
	MemoryContextDelete(context);
}

/* Applies again what one stream feeds the target from. */
static void
apply_stream(MrStream *stream, MrTarget *target, const char *condition)
{
	List *done = NIL;

	for (int s = 0; s < target->nsources; s++)
	{
		MrStaging *staging = target->sources[s].staging;
		List *tables = NIL;
		ListCell *lc;

		if (staging == NULL || list_member_int(done, staging->id))
			continue;
		done = lappend_int(done, staging->id);
		if (target->kind->filled_from == MR_FILLED_FROM_VERSIONS)
			tables = log_tables(staging->id);
		foreach(lc, tables)
			apply_all(stream, target, staging, lfirst_oid(lc), NULL);
		if (target->kind->filled_from == MR_FILLED_FROM_ROWS ||
			(target->kind->filled_from_staged && !log_is_whole(staging->id)))
			apply_all(stream, target, staging, InvalidOid, condition);
	}
}

/* How many rows it has; of what is a view that unfolds when it is read, those that are stored. */
static int64
count_rows(const MrTarget *target)
{
	const char *ours = NULL;
	MrRunAs saved;
	int64 count;

	if (target->kind->phase == MR_PHASE_RULE)
		ours = psprintf("millrace.rule_state WHERE rule_id = %d", target->id);
	else if (target->kind->filled_from == MR_FILLED_BY_ITSELF)
		ours = psprintf("millrace_state.%s_%d", target->kind->name, target->id);
	else if (target->kind->phase == MR_PHASE_MODEL)
		ours = mr_online_users(target);
	/* What a mart's view calls is its owner's business. */
	mr_run_as_restricted(&saved, ours != NULL ? mr_extension_owner() : target->owner);
	(void) mr_sql("SELECT count(*)::text FROM %s",
				  ours != NULL ? ours : mr_relation_name(target->relid));
	mr_run_back(&saved);
	count = strtoll(mr_sql_text(0, 1), NULL, 10);
	SPI_freetuptable(SPI_tuptable);
	return count;
}

/* The target compiled with those of its sources that one stream keeps. */
static MrTarget *
compile_for(MrStream **stream, int32 stream_id, int32 target_id)
{
	MrPlan *extraction;
	MrTarget *target;
	List *pending;

	*stream = mr_flow_compile(CurrentMemoryContext, stream_id, &extraction, &pending);
	if (*stream == NULL)
		elog(ERROR, "stream %d is gone", stream_id);
	target = mr_flow_compile_target(*stream, target_id);
	if (target == NULL)
		elog(ERROR, "target %d is gone", target_id);
	return target;
}

/*
 * rebuild_target(target integer, filter text, OUT removed bigint, OUT rows_before bigint, OUT rows_after bigint): as
 * the extension's owner.
 */
Datum
millrace_rebuild_target(PG_FUNCTION_ARGS)
{
	int32 target_id = PG_GETARG_INT32(0);
	char *filter = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	char *condition = NULL;
	List *streams;
	int nest_level;
	TupleDesc desc;
	Datum values[2];
	bool nulls[2] = {false, false};
	MrTarget *target = NULL;
	ListCell *lc;

	mr_flow_require_read_committed("rebuild()");
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	nest_level = mr_settings_pin("UTC");
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	streams = mr_backfill_lock(target_id);
	foreach(lc, streams)
	{
		MrStream *stream;

		target = compile_for(&stream, lfirst_int(lc), target_id);
		if (lc == list_head(streams))
		{
			if (target->kind->clear == NULL)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("%s %s cannot be rebuilt", target->kind->name, target->name)));
			values[0] = Int64GetDatum(count_rows(target));
			target->kind->clear(target, filter, &condition);
		}
		apply_stream(stream, target, condition);
	}
	values[1] = Int64GetDatum(count_rows(target));
	PopActiveSnapshot();
	SPI_finish();
	mr_settings_unpin(nest_level);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
