/*
 * preview.c
 *	  What messages would become in every layer: millrace.preview().
 *
 * The messages go through all stages in a subtransaction, which is then rolled back.  What they have changed is found by the
 * transaction ids of that subtransaction: rows that one of them made are seen now; rows that one of them replaced or removed are
 * seen by a snapshot that leaves out what this transaction has done since the beginning of the subtransaction.  So nothing
 * of the stages need know that it is only a preview.
 *
 * The messages are read without being taken: positions stay, rows of the inbox are not touched.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "flow/backfill.h"
#include "flow/run.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(millrace_preview);
PG_FUNCTION_INFO_V1(millrace_preview_text);
PG_FUNCTION_INFO_V1(millrace_preview_jsonb);

/* No more messages than this at once: their locks are held as long as it takes to show them. */
#define PREVIEW_MESSAGES 1000

/* How long a broker may take to give the messages. */
#define PREVIEW_TIMEOUT_MS 10000

typedef struct Preview
{
	ReturnSetInfo *result;
	Oid caller;
	MrFlow *flow;
	int max_messages; /* to be read from the source */
	/* or one message that is given */
	bool given;
	text *key;
	text *value;
	text *headers;
	bool has_time;
	TimestampTz time;

	CommandId begun; /* what was done by this command or later is the preview's */
	Datum ids; /* xid[]: of the subtransaction and of those in it */
} Preview;

/* One row of the result; texts that are NULL are null. */
static void
show(Preview *preview, const MrMessage *message, const char *layer, const char *relation,
	 const char *change, const char *before, const char *after, const char *reason)
{
	const char *texts[] = {layer, relation, change, before, after, reason};
	Datum values[7];
	bool nulls[7];

	nulls[0] = message == NULL;
	values[0] = message == NULL
					? (Datum) 0
					: Int32GetDatum((int32) (message - preview->flow->batch->messages) + 1);
	for (int i = 0; i < lengthof(texts); i++)
	{
		nulls[i + 1] = texts[i] == NULL;
		values[i + 1] = nulls[i + 1] ? (Datum) 0 : CStringGetTextDatum(texts[i]);
	}
	tuplestore_putvalues(preview->result->setResult, preview->result->setDesc, values, nulls);
}

/* ---- reading what was, and what is ----------------------------------------------------------------- */

/* A snapshot that sees all but what the preview has done. */
static Snapshot
snapshot_before(Preview *preview)
{
	Snapshot snapshot;

	PushCopiedSnapshot(GetLatestSnapshot());
	snapshot = GetActiveSnapshot();
	snapshot->curcid = preview->begun;
	return snapshot;
}

/* Runs a query as a role, as it was before the preview or as it is now; rows are in SPI_tuptable. */
static uint64
query(Preview *preview, Oid role, bool before, const char *sql, int nargs, Oid *types,
	  Datum *values)
{
	SPIPlanPtr plan;
	MrRunAs saved;
	int result;

	mr_run_as_restricted(&saved, role);
	plan = SPI_prepare(sql, nargs, types);
	if (plan == NULL)
		elog(ERROR, "cannot prepare: %s", SPI_result_code_string(SPI_result));
	if (before)
		(void) snapshot_before(preview);
	else
		PushActiveSnapshot(GetLatestSnapshot());
	result = SPI_execute_snapshot(plan, values, NULL, GetActiveSnapshot(), InvalidSnapshot, true,
								  false, 0);
	PopActiveSnapshot();
	if (result != SPI_OK_SELECT)
		elog(ERROR, "cannot execute: %s", SPI_result_code_string(result));
	SPI_freeplan(plan);
	mr_run_back(&saved);
	return SPI_processed;
}

/* A row as JSON, and what tells it from others. */
typedef struct Seen
{
	char *key;
	char *row;
	bool shown;
} Seen;

/* Adds the keys that a query finds to texts. */
static void
see_keys(Preview *preview, Oid role, bool before, const char *sql, ArrayBuildState **keys)
{
	static Oid types[] = {XIDARRAYOID};
	uint64 count = query(preview, role, before, sql, lengthof(types), types, &preview->ids);

	for (uint64 i = 0; i < count; i++)
		*keys = accumArrayResult(*keys, CStringGetTextDatum(mr_sql_text(i, 1)), false, TEXTOID,
								 CurrentMemoryContext);
	SPI_freetuptable(SPI_tuptable);
}

/* The rows of a query whose columns are a key and JSON. */
static Seen *
see(Preview *preview, Oid role, bool before, const char *sql, Datum keys, uint64 *count)
{
	static Oid types[] = {XIDARRAYOID, TEXTARRAYOID};
	Datum values[] = {preview->ids, keys};
	Seen *rows;

	*count = query(preview, role, before, sql, lengthof(types), types, values);
	rows = palloc(sizeof(Seen) * Max(*count, 1));
	for (uint64 i = 0; i < *count; i++)
	{
		rows[i].key = mr_sql_text(i, 1);
		rows[i].row = mr_sql_text(i, 2);
		rows[i].shown = false;
	}
	SPI_freetuptable(SPI_tuptable);
	return rows;
}

/* ---- staging --------------------------------------------------------------------------------------- */

/* A row of a version as JSON. */
static char *
row_text(const MrStaging *staging, const MrRow *row)
{
	HeapTuple tuple = heap_form_tuple(staging->desc, row->values, row->nulls);
	Datum composite = heap_copy_tuple_as_datum(tuple, staging->desc);

	return TextDatumGetCString(DirectFunctionCall1(row_to_json, composite));
}

/* The rows that an object had, as JSON; their number in *count. */
static char **
rows_before(Preview *preview, const MrStaging *staging, const MrVersion *version, int *count)
{
	Oid *types = palloc(sizeof(Oid) * staging->nkeys);
	StringInfoData sql;
	char **rows;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT pg_catalog.row_to_json(t.*)::text FROM %s AS t WHERE ",
					 mr_relation_name(staging->relid));
	for (int k = 0; k < staging->nkeys; k++)
	{
		Form_pg_attribute attribute = TupleDescAttr(staging->desc, staging->key[k] - 1);

		types[k] = attribute->atttypid;
		appendStringInfo(&sql, "%st.%s = $%d", k == 0 ? "" : " AND ",
						 quote_identifier(NameStr(attribute->attname)), k + 1);
	}
	if (staging->element != InvalidAttrNumber)
		appendStringInfo(
			&sql, " ORDER BY t.%s",
			quote_identifier(NameStr(TupleDescAttr(staging->desc, staging->element - 1)->attname)));
	*count = (int) query(preview, staging->owner, true, sql.data, staging->nkeys, types,
						 version->key);
	rows = palloc(sizeof(char *) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
		rows[i] = mr_sql_text(i, 1);
	SPI_freetuptable(SPI_tuptable);
	return rows;
}

/* What one version does to its object. */
static void
show_version(Preview *preview, const MrStaging *staging, const MrVersion *version)
{
	const char *name = mr_relation_name(staging->relid);
	int nbefore = 0;
	char **before = NULL;

	if (!version->accepted)
	{
		const char *reason = version->newest ? "a version at least as new is staged"
											 : "a newer version is among the messages";

		for (int r = 0; r < version->nrows; r++)
			show(preview, version->message, "staging", name, "none", NULL,
				 row_text(staging, &version->rows[r]), reason);
		if (version->nrows == 0)
			show(preview, version->message, "staging", name, "none", NULL, NULL, reason);
		return;
	}
	before = rows_before(preview, staging, version, &nbefore);
	for (int r = 0; r < Max(version->nrows, nbefore); r++)
		show(preview, version->message, "staging", name,
			 r >= nbefore          ? "insert"
			 : r >= version->nrows ? "delete"
								   : "update",
			 r < nbefore ? before[r] : NULL,
			 r < version->nrows ? row_text(staging, &version->rows[r]) : NULL,
			 version->deleted ? "the message deletes the object" : NULL);
	if (version->nrows == 0 && nbefore == 0)
		show(preview, version->message, "staging", name, "none", NULL, NULL,
			 version->deleted ? "the message deletes an object that has no rows"
							  : "no row of it is kept");
}

/* ---- what hangs on staging tables ------------------------------------------------------------------ */

/*
 * The rows that are new or were changed in what a target keeps.  The queries are made in SQL, where the target's definition
 * can be read.
 */
static void
show_target(Preview *preview, const MrTarget *target)
{
	const char *kind = target->kind->name;
	bool has_name = target->kind->phase >= MR_PHASE_RULE;
	const char *name = has_name ? target->name : mr_relation_name(target->relid);
	Oid reader = has_name ? mr_extension_owner() : target->owner;
	ArrayBuildState *keys = initArrayResult(TEXTOID, CurrentMemoryContext, false);
	Datum touched;
	char *sql[4];
	Seen *before;
	Seen *after;
	uint64 nbefore;
	uint64 nafter;
	MrRunAs saved;

	if (pg_class_aclcheck(target->relid, preview->caller, ACL_SELECT) != ACLCHECK_OK)
	{
		show(preview, NULL, kind, name, "none", NULL, NULL, "permission denied");
		return;
	}
	mr_run_as(&saved, mr_extension_owner());
	(void) mr_sql("SELECT millrace_internal.preview_query(%d, 'xmax'), "
				  "millrace_internal.preview_query(%d, 'xmin'), "
				  "millrace_internal.preview_touched(%d, 'xmax'), "
				  "millrace_internal.preview_touched(%d, 'xmin')",
				  target->id, target->id, target->id, target->id);
	for (int i = 0; i < lengthof(sql); i++)
		sql[i] = mr_sql_text(0, i + 1);
	SPI_freetuptable(SPI_tuptable);
	mr_run_back(&saved);
	if (sql[2] != NULL)
	{
		see_keys(preview, target->owner, true, sql[2], &keys);
		see_keys(preview, target->owner, false, sql[3], &keys);
	}
	touched = makeArrayResult(keys, CurrentMemoryContext);
	before = see(preview, reader, true, sql[0], touched, &nbefore);
	after = see(preview, reader, false, sql[1], touched, &nafter);
	for (uint64 i = 0; i < nafter; i++)
	{
		char *was = NULL;

		for (uint64 j = 0; j < nbefore && was == NULL; j++)
		{
			if (before[j].shown || strcmp(before[j].key, after[i].key) != 0)
				continue;
			before[j].shown = true;
			was = before[j].row;
		}
		if (was == NULL || strcmp(was, after[i].row) != 0)
			show(preview, NULL, kind, name, was == NULL ? "insert" : "update", was, after[i].row,
				 NULL);
	}
	for (uint64 j = 0; j < nbefore; j++)
	{
		if (!before[j].shown)
			show(preview, NULL, kind, name, "delete", before[j].row, NULL, NULL);
	}
	if (target->filling)
		show(preview, NULL, kind, name, "none", NULL, NULL,
			 "it is being filled: what it has not reached yet is not shown");
}

/* ---- dead letters ---------------------------------------------------------------------------------- */

static void
show_failure(Preview *preview, const MrFailure *failure)
{
	StringInfoData reason;

	initStringInfo(&reason);
	appendStringInfo(&reason, "%s: %s", unpack_sql_state(failure->sqlstate), failure->text);
	if (failure->detail != NULL)
		appendStringInfo(&reason, " (%s)", failure->detail);
	show(preview, failure->message, "dead_letter",
		 failure->staging == NULL ? NULL : mr_relation_name(failure->staging->relid),
		 failure->staging == NULL       ? "message"
		 : failure->expectation != NULL ? "row"
										: "object",
		 NULL, NULL, reason.data);
}

/* ---- the run --------------------------------------------------------------------------------------- */

/* The message that was given, as if it were the next of its stream. */
static void
add_given(Preview *preview)
{
	MrBatch *batch = preview->flow->batch;
	MrMessage *message = mr_batch_add(batch);
	MrRunAs saved;
	bool isnull;

	mr_run_as(&saved, mr_extension_owner());
	(void) mr_sql("SELECT topic, partition, next_position, op "
				  "FROM millrace_internal.preview_place(%d, %s)",
				  preview->flow->stream_id,
				  preview->headers == NULL ? "NULL"
										   : quote_literal_cstr(text_to_cstring(preview->headers)));
	MemoryContextSwitchTo(batch->context);
	message->topic = mr_sql_text(0, 1);
	message->partition = DatumGetInt32(mr_sql_value(0, 2, &isnull));
	message->position = DatumGetInt64(mr_sql_value(0, 3, &isnull));
	if (mr_sql_text(0, 4) != NULL)
		message->op = mr_sql_text(0, 4)[0];
	SPI_freetuptable(SPI_tuptable);
	mr_run_back(&saved);
	message->epoch = preview->flow->stream->epoch;
	message->time = preview->has_time ? preview->time : GetCurrentTimestamp();
	if (preview->key != NULL)
	{
		message->key_length = VARSIZE_ANY_EXHDR(preview->key);
		message->key = mr_batch_copy(batch, VARDATA_ANY(preview->key), message->key_length);
	}
	if (preview->value != NULL)
	{
		message->value_length = VARSIZE_ANY_EXHDR(preview->value);
		message->value = mr_batch_copy(batch, VARDATA_ANY(preview->value), message->value_length);
	}
	if (preview->headers != NULL)
		message->headers = text_to_cstring(preview->headers);
}

/* The ids of this subtransaction and of those that have ended in it, as an array. */
static Datum
transaction_ids(void)
{
	TransactionId *children;
	int count = xactGetCommittedChildren(&children);
	TransactionId own = GetCurrentTransactionIdIfAny();
	Datum *ids = palloc(sizeof(Datum) * (count + 1));
	int n = 0;

	for (int i = 0; i < count; i++)
		ids[n++] = TransactionIdGetDatum(children[i]);
	if (TransactionIdIsValid(own))
		ids[n++] = TransactionIdGetDatum(own);
	return PointerGetDatum(
		construct_array(ids, n, XIDOID, sizeof(TransactionId), true, TYPALIGN_INT));
}

/* In the order of the layers, and in each as they were declared. */
static int
compare_targets(const ListCell *left, const ListCell *right)
{
	const MrTarget *l = lfirst(left);
	const MrTarget *r = lfirst(right);

	return l->kind->phase != r->kind->phase ? (int) l->kind->phase - (int) r->kind->phase
											: l->id - r->id;
}

/* Takes the messages through all stages and shows what has become of them. */
static void
run(Preview *preview)
{
	MrFlow *flow = preview->flow;
	MrBatch *batch;
	List *targets;
	MrRunAs saved;
	ListCell *lc;

	PushActiveSnapshot(GetTransactionSnapshot());
	mr_flow_check_constraints();
	MemoryContextSwitchTo(flow->context);
	if (!mr_flow_compile_active(flow))
		elog(ERROR, "stream \"%d\" was dropped", flow->stream_id);
	batch = flow->batch = mr_batch_create(flow->context);
	if (preview->given)
		add_given(preview);
	else
		mr_source_kind(flow->stream)
			->peek(flow->stream, batch, preview->max_messages, mr_flow_batch_bytes(),
				   PREVIEW_TIMEOUT_MS);
	if (batch->nmessages == 0)
		return;

	/* Whatever happens to bad data: here it is shown, and the rest goes on. */
	flow->stream->on_error = MR_ON_ERROR_SKIP;
	CommandCounterIncrement();
	preview->begun = GetCurrentCommandId(true);
	mr_run_as(&saved, flow->stream->owner);
	mr_flow_prepare(flow->stream, batch);
	mr_flow_process(flow->stream, flow->extraction, batch);
	mr_run_back(&saved);
	CommandCounterIncrement();

	MemoryContextSwitchTo(batch->context);
	preview->ids = transaction_ids();
	for (int s = 0; s < batch->nstaged; s++)
	{
		const MrStaged *staged = &batch->staged[s];

		for (int i = 0; i < staged->nversions; i++)
		{
			if (!mr_message_left_out(batch, staged->versions[i].message, staged->staging))
				show_version(preview, staged->staging, &staged->versions[i]);
		}
	}
	foreach(lc, batch->failures)
	{
		if (!((MrFailure *) lfirst(lc))->silent)
			show_failure(preview, lfirst(lc));
	}
	targets = list_copy(flow->stream->targets);
	list_sort(targets, compare_targets);
	foreach(lc, targets)
		show_target(preview, lfirst(lc));
}

/* Runs it in a subtransaction that is rolled back. */
static void
run_and_roll_back(Preview *preview)
{
	ErrorData *volatile error = NULL;
	MrAttempt attempt;

	mr_attempt_begin(&attempt);
	PG_TRY();
	{
		run(preview);
		mr_attempt_end(&attempt, false);
	}
	PG_CATCH();
	{
		error = mr_attempt_failed(&attempt);
	}
	PG_END_TRY();
	mr_flow_stats_forget();
	mr_flow_close(preview->flow);
	if (error != NULL)
		mr_rethrow(error);
}

/* What the functions have in common. */
static void
preview_stream(FunctionCallInfo fcinfo, Preview *preview)
{
	char *name;
	int nest_level;

	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("the stream to preview must not be null")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	mr_flow_require_read_committed("preview()");
	InitMaterializedSRF(fcinfo, 0);
	preview->result = (ReturnSetInfo *) fcinfo->resultinfo;
	preview->caller = GetUserId();
	nest_level = mr_settings_pin("UTC");
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	preview->flow = mr_flow_create(mr_flow_own_stream(name), 0, 1);
	run_and_roll_back(preview);
	PopActiveSnapshot();
	SPI_finish();
	mr_settings_unpin(nest_level);
}

/* preview(stream, max_messages): what would be consumed next. */
Datum
millrace_preview(PG_FUNCTION_ARGS)
{
	Preview preview = {0};

	preview.max_messages = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1);
	if (preview.max_messages < 1 || preview.max_messages > PREVIEW_MESSAGES)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("max_messages must be between 1 and %d", PREVIEW_MESSAGES)));
	preview_stream(fcinfo, &preview);
	return (Datum) 0;
}

/* preview(stream, payload, key, headers, message_time), the payload being text or json. */
static Datum
preview_given(FunctionCallInfo fcinfo, text *value)
{
	Preview preview = {0};

	preview.given = true;
	preview.value = value;
	preview.key = PG_ARGISNULL(2) ? NULL : PG_GETARG_TEXT_PP(2);
	preview.headers = PG_ARGISNULL(3) ? NULL : PG_GETARG_TEXT_PP(3);
	preview.has_time = !PG_ARGISNULL(4);
	if (preview.has_time)
		preview.time = PG_GETARG_TIMESTAMPTZ(4);
	preview_stream(fcinfo, &preview);
	return (Datum) 0;
}

Datum
millrace_preview_text(PG_FUNCTION_ARGS)
{
	return preview_given(fcinfo, PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1));
}

Datum
millrace_preview_jsonb(PG_FUNCTION_ARGS)
{
	return preview_given(fcinfo, PG_ARGISNULL(1)
									 ? NULL
									 : cstring_to_text(DatumGetCString(
										   DirectFunctionCall1(jsonb_out, PG_GETARG_DATUM(1)))));
}
