/*
 * erase.c
 *	  The parts of millrace.erase() that need the stages: rows that leave a staging table and its marts, vault rows
 *	  that are made again from what is left, and messages that nobody has read yet.
 *
 * All of it runs in the caller's transaction, under the exclusive lock of the streams that it is about, and in
 * portions, so that a person with many objects needs no more memory than a batch.
 */
#include "postgres.h"

#include "access/table.h"
#include "alert/rule.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "flow/backfill.h"
#include "flow/plan.h"
#include "flow/run.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "sink/sink.h"
#include "stage/reader.h"
#include "storage/bufmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#define OBJECTS_AT_ONCE 5000
#define MESSAGES_AT_ONCE 1000

PG_FUNCTION_INFO_V1(millrace_erase_staged);
PG_FUNCTION_INFO_V1(millrace_erase_reapply);
PG_FUNCTION_INFO_V1(millrace_erase_messages);

/* The stream, compiled in the caller's transaction, with a batch; SPI is connected. */
static MrFlow *
open_stream(int32 stream_id)
{
	MrFlow *flow = mr_flow_create(stream_id, 0, 1);
	MemoryContext previous = MemoryContextSwitchTo(flow->context);

	if (!mr_flow_compile_active(flow))
		elog(ERROR, "stream %d is gone", stream_id);
	mr_stream_check_fence(flow->stream);
	flow->batch = mr_batch_create(flow->context);
	MemoryContextSwitchTo(previous);
	return flow;
}

/* An empty batch for the stream's staging tables. */
static MrStaged *
empty_batch(MrFlow *flow, const MrStaging *staging)
{
	mr_batch_reset(flow->batch);
	mr_flow_prepare(flow->stream, flow->batch);
	return staging == NULL ? NULL : &flow->batch->staged[staging->ordinal];
}

static MrStaging *
staging_of(const MrFlow *flow, int32 id)
{
	ListCell *lc;

	foreach(lc, flow->stream->stagings)
	{
		if (((MrStaging *) lfirst(lc))->id == id)
			return lfirst(lc);
	}
	elog(ERROR, "stream \"%s\" has no staging table %d", flow->stream->name, id);
}

/* Fills the versions of the batch with objects of whose keys a cursor has fetched some. */
static void
add_objects(MrStaged *staged, uint64 count)
{
	const MrStaging *staging = staged->staging;

	staged->versions = palloc0(sizeof(MrVersion) * count);
	staged->nversions = (int) count;
	for (uint64 i = 0; i < count; i++)
	{
		MrVersion *version = &staged->versions[i];

		version->message = palloc0(sizeof(MrMessage));
		version->deleted = true;
		version->key = palloc(sizeof(Datum) * staging->nkeys);
		for (int k = 0; k < staging->nkeys; k++)
		{
			Form_pg_attribute attribute = TupleDescAttr(staging->desc, staging->key[k] - 1);
			bool isnull;

			version->key[k] = datumCopy(mr_sql_value(i, k + 1, &isnull), attribute->attbyval,
										attribute->attlen);
		}
	}
}

/*
 * erase_staged(stream integer, staging integer, objects regclass) → bigint: takes the objects whose keys stand in
 * a table out of the staging table, and out of the marts over it by the difference that this makes.
 */
Datum
millrace_erase_staged(PG_FUNCTION_ARGS)
{
	char *objects = NULL;
	int64 rows = 0;
	int nest_level;
	MrStaging *staging;
	SPIPlanPtr plan;
	Portal portal;
	MrFlow *flow;

	SPI_connect();
	objects = mr_relation_name(PG_GETARG_OID(2));
	nest_level = mr_settings_pin("UTC");
	flow = open_stream(PG_GETARG_INT32(0));
	staging = staging_of(flow, PG_GETARG_INT32(1));
	plan = SPI_prepare(psprintf("SELECT * FROM %s", objects), 0, NULL);
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, true);
	for (;;)
	{
		MemoryContext previous = CurrentMemoryContext;
		MrStaged *staged = empty_batch(flow, staging);
		MrRunAs saved;
		ListCell *lc;

		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(portal, true, OBJECTS_AT_ONCE);
		if (SPI_processed == 0)
			break;
		MemoryContextSwitchTo(flow->batch->context);
		add_objects(staged, SPI_processed);
		SPI_freetuptable(SPI_tuptable);
		mr_run_as(&saved, flow->stream->owner);
		mr_backfill_refresh(flow->stream);
		mr_stage_erase(staged);
		flow->batch->erasing = true;
		rows += staged->nold;
		foreach(lc, flow->stream->targets)
		{
			MrTarget *target = lfirst(lc);

			if (target->kind->filled_from == MR_FILLED_FROM_ROWS || target->kind == &mr_sink_kind ||
				target->kind == &mr_threshold_kind)
				mr_flow_apply(target, mr_backfill_restrict(target, flow->batch));
		}
		mr_run_back(&saved);
		MemoryContextSwitchTo(previous);
	}
	SPI_cursor_close(portal);
	mr_flow_close(flow);
	mr_settings_unpin(nest_level);
	SPI_finish();
	PG_RETURN_INT64(rows);
}

/*
 * erase_reapply(stream integer, target integer, staging integer, versions regclass, heard boolean) → void: brings a target
 * versions that came before, from a table that is like the staging table's log.  When only what a rule hears of is asked, it
 * takes them as one of kind absence would.
 */
Datum
millrace_erase_reapply(PG_FUNCTION_ARGS)
{
	int32 target_id = PG_GETARG_INT32(1);
	Oid versions = PG_GETARG_OID(3);
	bool heard = PG_GETARG_BOOL(4);
	MrTarget *target = NULL;
	BlockNumber pages;
	ItemPointerData place;
	int nest_level;
	Relation relation;
	ListCell *lc;
	MrFlow *flow;
	bool more = true;

	SPI_connect();
	nest_level = mr_settings_pin("UTC");
	flow = open_stream(PG_GETARG_INT32(0));
	foreach(lc, flow->stream->targets)
	{
		if (((MrTarget *) lfirst(lc))->id == target_id)
			target = lfirst(lc);
	}
	relation = table_open(versions, AccessShareLock);
	pages = RelationGetNumberOfBlocks(relation);
	table_close(relation, NoLock);
	ItemPointerSet(&place, 0, 1);
	while (target != NULL && more)
	{
		MemoryContext previous = CurrentMemoryContext;
		MrStaged *staged = empty_batch(flow, staging_of(flow, PG_GETARG_INT32(2)));
		int64 nrows;
		MrRunAs saved;

		/* Rules are judged as when they are filled. */
		flow->batch->again = flow->batch->erasing = target->kind->phase == MR_PHASE_RULE;
		MemoryContextSwitchTo(flow->batch->context);
		more = mr_log_read(staged, versions, &place, pages, OBJECTS_AT_ONCE, &nrows);
		mr_run_as(&saved, flow->stream->owner);
		if (nrows > 0 && heard)
			mr_absence_kind.apply(target, flow->batch);
		else if (nrows > 0)
			mr_flow_apply(target, flow->batch);
		mr_run_back(&saved);
		MemoryContextSwitchTo(previous);
	}
	mr_flow_close(flow);
	mr_settings_unpin(nest_level);
	SPI_finish();
	PG_RETURN_VOID();
}

/* Looks for erased messages; what cannot be mapped is none. */
static void
find_erased(MrFlow *flow)
{
	volatile int from = 0;

	while (from < flow->batch->nmessages)
	{
		ErrorData *volatile error = NULL;
		MrAttempt attempt;

		mr_attempt_begin(&attempt);
		PG_TRY();
		{
			mr_map_erased(flow->batch, flow->extraction, from);
			mr_attempt_end(&attempt, true);
		}
		PG_CATCH();
		{
			error = mr_attempt_failed(&attempt);
		}
		PG_END_TRY();
		if (error == NULL)
			return;
		if (mr_map_error_class(error->sqlerrcode) != MR_ERROR_DATA)
			mr_rethrow(error);
		else
		{
			MrFailure *failure = palloc0(sizeof(MrFailure));
			MrMessage *message;
			int place;

			/* One staging table cannot read it: the others are asked all the same. */
			FreeErrorData(error);
			mr_map_place(&place, &failure->staging);
			message = &flow->batch->messages[place];
			failure->message = message;
			from = failure->staging == NULL ? place + 1 : place;
			mr_failure_add(flow->batch, failure);
		}
	}
}

/* Bytes of SPI_tuptable as the batch keeps them. */
static char *
bytes_of(MrBatch *batch, uint64 row, int column, int *length)
{
	bool isnull;
	Datum value = mr_sql_value(row, column, &isnull);
	bytea *bytes;

	*length = 0;
	if (isnull)
		return NULL;
	bytes = DatumGetByteaPP(value);
	*length = VARSIZE_ANY_EXHDR(bytes);
	return mr_batch_copy(batch, VARDATA_ANY(bytes), *length);
}

/* Reads messages (number, topic, partition, epoch, position, time, key, value, headers, op, before) into the batch. */
static void
add_messages(MrBatch *batch, uint64 count)
{
	batch->capacity = (int) Max(count, 1);
	batch->messages = palloc(sizeof(MrMessage) * batch->capacity);
	for (uint64 i = 0; i < count; i++)
	{
		MrMessage *message = mr_batch_add(batch);
		bool isnull;
		char *op;

		message->letter = DatumGetInt64(mr_sql_value(i, 1, &isnull));
		message->topic = mr_sql_text(i, 2);
		message->partition = DatumGetInt32(mr_sql_value(i, 3, &isnull));
		message->epoch = DatumGetInt32(mr_sql_value(i, 4, &isnull));
		message->position = DatumGetInt64(mr_sql_value(i, 5, &isnull));
		message->time = DatumGetTimestampTz(mr_sql_value(i, 6, &isnull));
		message->key = bytes_of(batch, i, 7, &message->key_length);
		message->value = bytes_of(batch, i, 8, &message->value_length);
		message->headers = mr_sql_text(i, 9);
		op = mr_sql_text(i, 10);
		message->op = op != NULL ? op[0] : 0;
		message->before = bytes_of(batch, i, 11, &message->before_length);
	}
}

/* The tables to which the objects of staging tables are to be added. */
typedef struct ObjectTables
{
	int count;
	int32 *stagings;
	Oid *tables;
} ObjectTables;

/* Adds the objects that erased messages are about. */
static void
add_found(MrFlow *flow, const ObjectTables *objects)
{
	for (int o = 0; o < objects->count; o++)
	{
		MrStaging *staging = staging_of(flow, objects->stagings[o]);
		MrStaged *staged = &flow->batch->staged[staging->ordinal];
		Oid *types = palloc(sizeof(Oid) * staging->nkeys);
		MrStatement *insert;
		StringInfoData sql;

		initStringInfo(&sql);
		appendStringInfo(&sql, "INSERT INTO %s VALUES (", mr_relation_name(objects->tables[o]));
		for (int k = 0; k < staging->nkeys; k++)
		{
			types[k] = TupleDescAttr(staging->desc, staging->key[k] - 1)->atttypid;
			appendStringInfo(&sql, "%s$%d", k == 0 ? "" : ", ", k + 1);
		}
		appendStringInfoString(&sql, ") ON CONFLICT DO NOTHING");
		insert = mr_statement_create(sql.data, staging->nkeys, types);
		for (int i = 0; i < staged->nversions; i++)
			(void) mr_statement_run(insert, staged->versions[i].key, NULL);
	}
}

/* Deletes what speaks of something erased from a table of messages; returns how many. */
static int64
erase_from(MrFlow *flow, const ObjectTables *objects, const char *select, const char *delete)
{
	static const Oid types[] = {INT8ARRAYOID};
	SPIPlanPtr plan = SPI_prepare(select, 0, NULL);
	Portal portal = SPI_cursor_open(NULL, plan, NULL, NULL, false);
	int64 deleted = 0;

	for (;;)
	{
		MemoryContext previous = CurrentMemoryContext;
		Datum *ids;
		int nids = 0;
		MrRunAs saved;

		CHECK_FOR_INTERRUPTS();
		(void) empty_batch(flow, NULL);
		SPI_cursor_fetch(portal, true, MESSAGES_AT_ONCE);
		if (SPI_processed == 0)
			break;
		MemoryContextSwitchTo(flow->batch->context);
		add_messages(flow->batch, SPI_processed);
		SPI_freetuptable(SPI_tuptable);
		mr_run_as(&saved, flow->stream->owner);
		find_erased(flow);
		mr_run_back(&saved);
		ids = palloc(sizeof(Datum) * flow->batch->nmessages);
		for (int i = 0; i < flow->batch->nmessages; i++)
		{
			if (flow->batch->messages[i].erased)
				ids[nids++] = Int64GetDatum(flow->batch->messages[i].letter);
		}
		if (nids > 0)
		{
			Datum array = PointerGetDatum(construct_array(ids, nids, INT8OID, sizeof(int64),
														  FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));

			deleted += mr_statement_run(mr_statement_create(delete, 1, types), &array, NULL);
			add_found(flow, objects);
		}
		MemoryContextSwitchTo(previous);
	}
	SPI_cursor_close(portal);
	return deleted;
}

/*
 * erase_messages(stream integer, stagings integer[], objects regclass[], OUT inbox bigint, OUT letters bigint): from
 * what nobody has read, or could; the objects of staging tables that they are about are added to tables.
 */
Datum
millrace_erase_messages(PG_FUNCTION_ARGS)
{
	int32 stream_id = PG_GETARG_INT32(0);
	TupleDesc desc;
	Datum values[2];
	bool nulls[2] = {false};
	Datum *stagings;
	Datum *tables;
	ObjectTables objects;
	int nest_level;
	MrFlow *flow;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	SPI_connect();
	nest_level = mr_settings_pin("UTC");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), INT4OID, sizeof(int32), true, TYPALIGN_INT,
					  &stagings, NULL, &objects.count);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), REGCLASSOID, sizeof(Oid), true, TYPALIGN_INT,
					  &tables, NULL, &objects.count);
	objects.stagings = palloc(sizeof(int32) * objects.count);
	objects.tables = palloc(sizeof(Oid) * objects.count);
	for (int o = 0; o < objects.count; o++)
	{
		objects.stagings[o] = DatumGetInt32(stagings[o]);
		objects.tables[o] = DatumGetObjectId(tables[o]);
	}
	flow = open_stream(stream_id);
	values[0] = Int64GetDatum(erase_from(
		flow, &objects,
		psprintf(
			"SELECT i.push_no, '', 0, s.epoch, i.push_no, i.message_time, i.key, i.value, "
			"i.headers::text, NULL::text, NULL::bytea FROM millrace.inbox i JOIN millrace.stream s ON s.id = i.stream_id "
			"WHERE i.stream_id = %d",
			stream_id),
		psprintf("DELETE FROM millrace.inbox WHERE stream_id = %d AND push_no = ANY ($1)",
				 stream_id)));
	values[1] = Int64GetDatum(erase_from(
		flow, &objects,
		psprintf("SELECT id, topic, partition, epoch, position, message_time, key, value, "
				 "headers::text, op, before FROM millrace.letter WHERE stream_id = %d",
				 stream_id),
		"DELETE FROM millrace.letter WHERE id = ANY ($1)"));
	mr_flow_close(flow);
	mr_settings_unpin(nest_level);
	SPI_finish();
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
