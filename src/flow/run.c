/*
 * run.c
 *	  Batches one after another: a worker's share of a stream, run_stream(), and dead letters tried again.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "core/memory.h"
#include "core/millrace.h"
#include "core/progress.h"
#include "core/statement.h"
#include "flow/backfill.h"
#include "flow/flow.h"
#include "flow/plan.h"
#include "flow/run.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/*
 * A batch may take this part of a worker's memory as raw messages.  Parsed, mapped, hashed and on their way
 * into tables they take about ten times that much, more where much is declared: see size_next_batch().
 */
#define BATCH_SHARE 26
/* The first batch is a quarter of that, and none has to be smaller than a sixteenth. */
#define FIRST_BATCH 4
#define SMALLEST_BATCH 16
/* One of less than a sixteenth of what it may be says little of the memory that batches take. */
#define SMALL_BATCH 16

/* No batch is larger than this, however small its messages. */
#define BATCH_MESSAGES 50000

/* ms between attempts to complete messages that wait, while some do and while none does. */
#define COMPLETE_PAUSE 100
#define COMPLETE_IDLE_PAUSE 1000
/* ms to wait for the next part of a transaction of the source, each time. */
#define PART_WAIT 1000

PG_FUNCTION_INFO_V1(millrace_run_stream);

/*
 * Deferred constraints are checked by the statements that break them: only then is it known which message does,
 * and triggers of a table run as the role that writes it, not as whoever commits.
 */
void
mr_flow_check_constraints(void)
{
	ConstraintsSetStmt *all = makeNode(ConstraintsSetStmt);

	AfterTriggerSetState(all);
	pfree(all);
}

/* A transaction as all of ours are: READ COMMITTED, connected to SPI, with a snapshot for expressions. */
static void
begin_transaction(void)
{
	StartTransactionCommand();
	XactIsoLevel = XACT_READ_COMMITTED;
	XactReadOnly = false;
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	mr_flow_check_constraints();
}

static void
commit_transaction(void)
{
	PopActiveSnapshot();
	SPI_finish();
	CommitTransactionCommand();
}

Size
mr_flow_batch_bytes(void)
{
	return (Size) mr_worker_memory * 1024 / BATCH_SHARE;
}

/* Compiles the stream as it is now; false when it is gone, and then, as after an error, the flow is what it was. */
static bool
compile(MrFlow *flow)
{
	MrPlan *extraction;
	List *pending;
	MrStream *stream;

	mr_watch_begin();
	stream = mr_flow_compile(CurrentMemoryContext, flow->stream_id, &extraction, &pending);
	if (stream == NULL)
		return false;
	mr_watch_end(stream);
	MemoryContextSetParent(stream->context, flow->context);
	if (flow->stream != NULL)
		MemoryContextDelete(flow->stream->context);
	flow->stream = stream;
	flow->extraction = extraction;
	flow->pending = pending;
	if (flow->source != NULL)
		flow->source->stream = stream;
	return true;
}

/*
 * The streams that have to stand still while targets of this one are activated and, in a caller's transaction, filled:
 * all that feed a target together with it, in the order in which they are locked.  None when nothing is to be done.
 */
static List *
streams_to_stop(const MrFlow *flow)
{
	List *ids;
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	ids = mr_sql_ids(mr_sql(
		"WITH fed AS (SELECT t.id, t.state FROM millrace.target t "
		"JOIN millrace.target_source s ON s.target_id = t.id "
		"JOIN millrace.staging g ON g.id = s.staging_id WHERE g.stream_id = %d) "
		"SELECT DISTINCT g.stream_id FROM fed JOIN millrace.target_source s ON s.target_id = fed.id "
		"JOIN millrace.staging g ON g.id = s.staging_id "
		"WHERE EXISTS (SELECT FROM fed WHERE state IN ('new'%s)) ORDER BY 1",
		flow->stream_id, flow->in_caller ? ", 'filling'" : ""));
	mr_run_back(&saved);
	return ids;
}

/*
 * Locks and compiles the stream, and activates what has been declared since its last batch; false when it is
 * gone.  All locks that the transaction will need are taken before it writes anything, and none in two steps: a worker
 * that holds one of them shared may wait for what was written, or want it exclusively, too.
 */
bool
mr_flow_compile_active(MrFlow *flow)
{
	for (;;)
	{
		List *ids = streams_to_stop(flow);
		bool exclusive = flow->in_caller || ids != NIL;
		ListCell *lc;

		if (ids == NIL)
			ids = list_make1_int(flow->stream_id);
		foreach(lc, ids)
			mr_stream_lock(lfirst_int(lc), exclusive);
		if (!compile(flow))
			return false;
		if (list_difference_int(streams_to_stop(flow), exclusive ? ids : NIL) != NIL)
		{
			/* Declared between the two looks. */
			foreach(lc, ids)
				mr_stream_unlock(lfirst_int(lc), exclusive);
		}
		else if (flow->pending != NIL)
			mr_flow_activate(flow->stream, flow->pending);
		else
			return true;
	}
}

/* Compiles, activates and opens the source, in the transaction that is open; false when the stream is gone. */
static bool
open_in_transaction(MrFlow *flow)
{
	MemoryContext previous = MemoryContextSwitchTo(flow->context);
	bool there;

	there = mr_flow_compile_active(flow);
	if (there)
	{
		flow->kind = mr_source_kind(flow->stream);
		flow->source = flow->kind->open(flow->stream, flow->worker, flow->workers);
		flow->source->in_caller = flow->in_caller;
		flow->batch = mr_batch_create(flow->context);
	}
	MemoryContextSwitchTo(previous);
	return there;
}

MrFlow *
mr_flow_create(int32 stream_id, int worker, int workers)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace flow",
												  ALLOCSET_DEFAULT_SIZES);
	MrFlow *flow = MemoryContextAllocZero(context, sizeof(MrFlow));

	flow->context = context;
	flow->stream_id = stream_id;
	flow->worker = worker;
	flow->workers = workers;
	flow->batch_bytes = mr_flow_batch_bytes() / FIRST_BATCH;
	flow->waiting_place.context = context;
	return flow;
}

MrFlow *
mr_flow_open(int32 stream_id, int worker, int workers)
{
	MemoryContext previous = CurrentMemoryContext;
	MrFlow *flow = mr_flow_create(stream_id, worker, workers);
	bool there;

	begin_transaction();
	there = open_in_transaction(flow);
	commit_transaction();
	MemoryContextSwitchTo(previous);
	if (!there)
	{
		mr_flow_close(flow);
		return NULL;
	}
	return flow;
}

void
mr_flow_close(MrFlow *flow)
{
	if (flow->source != NULL)
		flow->kind->close(flow->source);
	MemoryContextDelete(flow->context);
}

pgsocket
mr_flow_descriptor(MrFlow *flow)
{
	return flow->kind->descriptor != NULL ? flow->kind->descriptor(flow->source) : PGINVALID_SOCKET;
}

bool
mr_flow_hurried(const MrFlow *flow)
{
	return flow->source->wants_tick;
}

bool
mr_flow_lasting(const MrFlow *flow)
{
	return flow->kind->lasting;
}

const char *
mr_flow_problem(const MrFlow *flow)
{
	return mr_source_problem(flow->source);
}

const MrMessage *
mr_flow_message(const MrFlow *flow)
{
	int message;
	MrStaging *staging;

	if (flow->batch == NULL || flow->batch->nmessages == 0)
		return NULL;
	mr_map_place(&message, &staging);
	return message < flow->batch->nmessages ? &flow->batch->messages[message] : NULL;
}

/* Is what was compiled still what the stream says?  False when it was stopped, dropped or declared anew. */
static bool
still_current(MrFlow *flow)
{
	bool enabled;
	int64 version = mr_stream_config_version(flow->stream_id, &enabled);

	if (version == 0 || !enabled || flow->must_open)
		return false;
	return version == flow->stream->config_version;
}

/* Compiles again when somebody's DDL has changed what the stream stands on; false when it is to be opened anew. */
static bool
follow_definitions(MrFlow *flow)
{
	int64 version = flow->stream->config_version;

	if (!mr_watch_changed(flow->stream))
		return true;
	ereport(DEBUG1, (errmsg_internal("stream \"%s\" is compiled again: a definition has changed",
									 flow->stream->name)));
	if (!compile(flow))
		return false;
	/* What was looked up has gone with the plan. */
	flow->batch->looked_up = NULL;
	/* While its tables were waited for, it may have been declared anew, or something on them. */
	flow->must_open = flow->pending != NIL || flow->stream->config_version != version;
	return !flow->must_open;
}

/* Gives targets their turn; the stream is locked. */
static void
tick_targets(MrFlow *flow, TimestampTz caught_up)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace tick",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext previous = MemoryContextSwitchTo(context);
	ListCell *lc;

	foreach(lc, flow->stream->targets)
	{
		MrTarget *target = lfirst(lc);

		if (target->kind->tick != NULL)
			target->kind->tick(target, caught_up);
	}
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
}

static bool
has_ticks(const MrFlow *flow)
{
	ListCell *lc;

	foreach(lc, flow->stream->targets)
	{
		if (((MrTarget *) lfirst(lc))->kind->tick != NULL)
			return true;
	}
	return false;
}

/*
 * Gives the source its turn between batches, and then the targets, about once a second.  False when the stream is not
 * what it was: a source that has nothing would not find out.  The stream is not locked for the source, nor after it has
 * written: who holds the lock may want to take its positions over.
 */
static bool
tick(MrFlow *flow)
{
	TimestampTz now = GetCurrentTimestamp();
	bool current;

	if (now - flow->ticked_at < USECS_PER_SEC && !flow->source->wants_tick)
		return true;
	begin_transaction();
	current = still_current(flow);
	if (current && flow->kind->tick != NULL)
		flow->kind->tick(flow->source);
	if (current)
		mr_flow_stats_write(flow->stream, flow->worker, false);
	commit_transaction();
	if (current && flow->worker == 0 && has_ticks(flow))
	{
		begin_transaction();
		mr_stream_lock(flow->stream_id, false);
		current = still_current(flow) && follow_definitions(flow);
		if (current)
			tick_targets(flow, mr_worker_caught_up(flow->stream_id, flow->workers));
		commit_transaction();
	}
	flow->ticked_at = now;
	return current;
}

/* Fetches into the empty batch; adds to the stage's time only when something came. */
static void
fetch(MrFlow *flow, int max_messages, int wait_ms)
{
	instr_time start;

	INSTR_TIME_SET_CURRENT(start);
	flow->kind->fetch(flow->source, flow->batch, max_messages, flow->batch_bytes, wait_ms);
	if (flow->batch->nmessages > 0)
		mr_flow_stats_add(MR_STAGE_FETCH, start, flow->batch->nmessages);
}

/* Has all been consumed that was there when a fetch began that has been processed now? */
static void
note_caught_up(MrFlow *flow, TimestampTz fetched_at)
{
	if (flow->kind->drained(flow->source) && flow->kind->caught_up(flow->source) &&
		mr_source_problem(flow->source) == NULL)
		mr_worker_note_caught_up(fetched_at);
}

/*
 * What a message becomes depends on what is declared: the next batch is as large as the memory that this one has taken
 * allows, an eighth of the setting left free, as messages differ.
 */
static void
size_next_batch(MrFlow *flow)
{
	Size most = mr_flow_batch_bytes();
	Size target = (Size) mr_worker_memory * 1024 / 8 * 7;
	TimestampTz now = GetCurrentTimestamp();
	Size taken;
	double fits;

	/* To ask costs as much as a batch of one message does. */
	if (flow->batch->bytes < flow->batch_bytes / SMALL_BATCH &&
		now - flow->measured_at < USECS_PER_SEC)
		return;
	flow->measured_at = now;
	taken = mr_worker_memory_taken();
	fits = taken == 0 ? 2.0 : Min(2.0, (double) target / taken);
	if (taken > target)
		mr_worker_release_memory();
	else if (flow->batch->bytes < flow->batch_bytes)
		return;
	flow->batch_bytes = Max(most / SMALLEST_BATCH, Min(most, (Size) (flow->batch->bytes * fits)));
}

/* Does the batch end within a transaction of the source? */
static bool
unfinished(MrFlow *flow)
{
	return flow->kind->unfinished != NULL && flow->kind->unfinished(flow->source, flow->batch);
}

/*
 * Processes the batch that has been fetched, those after it that belong to the same transaction of the source, and moves
 * the position.  Returns how many messages there were, and adds the dead letters.
 */
static int64
process_and_advance(MrFlow *flow, int64 *letters)
{
	int64 consumed = 0;
	instr_time start;
	bool more;

	do
	{
		mr_end_with_postmaster();
		mr_flow_prepare(flow->stream, flow->batch);
		mr_flow_process(flow->stream, flow->extraction, flow->batch);
		size_next_batch(flow);
		consumed += flow->batch->nmessages;
		*letters += mr_flow_count_letters(flow->batch);
		/* The next part may hold no message of ours. */
		while ((more = unfinished(flow)))
		{
			CHECK_FOR_INTERRUPTS();
			mr_flow_judge_letters(flow);
			mr_batch_reset(flow->batch);
			fetch(flow, BATCH_MESSAGES, PART_WAIT);
			if (flow->batch->nmessages > 0)
				break;
		}
	} while (more);
	mr_debug_point("before_advance");
	INSTR_TIME_SET_CURRENT(start);
	flow->kind->advance(flow->source, flow->batch);
	mr_flow_stats_add(MR_STAGE_POSITION, start, consumed);
	mr_flow_judge_letters(flow);
	return consumed;
}

/* Asks dictionaries for what the messages of the batch speak of, outside its transaction: a Redis may hang. */
static void
look_up_ahead(MrFlow *flow)
{
	instr_time start;

	if (flow->stream->enrichment == NULL)
		return;
	INSTR_TIME_SET_CURRENT(start);
	begin_transaction();
	mr_flow_collect_ids(flow->stream, flow->batch);
	commit_transaction();
	MemoryContextSwitchTo(flow->batch->context);
	mr_enrich_ask(flow->stream->enrichment);
	mr_flow_stats_add(MR_STAGE_ENRICH, start, 0);
}

/*
 * Completes messages of which dictionaries know now what they wait for (worker 0, for all).  False when the stream is
 * not what it was.
 */
static bool
complete_waiting(MrFlow *flow)
{
	TimestampTz now = GetCurrentTimestamp();
	MrWaitingIds *ids;
	bool current = true;
	bool more = false;

	if (flow->worker != 0 || now < flow->waiting_at)
		return true;
	mr_batch_reset(flow->batch);
	begin_transaction();
	ids = mr_flow_complete_want(flow);
	commit_transaction();
	if (ids != NULL)
	{
		MemoryContextSwitchTo(flow->batch->context);
		if (flow->stream->enrichment != NULL)
			mr_enrich_ask(flow->stream->enrichment);
		begin_transaction();
		mr_stream_lock(flow->stream_id, false);
		current = still_current(flow) && follow_definitions(flow);
		if (current)
			more = mr_flow_complete_known(flow, ids);
		mr_debug_point("before_complete_commit");
		commit_transaction();
	}
	flow->waiting = ids != NULL;
	flow->waiting_at = more ? now
							: TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														  flow->waiting ? COMPLETE_PAUSE
																		: COMPLETE_IDLE_PAUSE);
	return current;
}

int64
mr_flow_step(MrFlow *flow, int wait_ms)
{
	MemoryContext previous = CurrentMemoryContext;
	int64 consumed = 0;
	int64 letters = 0;
	TimestampTz fetched_at;
	instr_time start;

	if (!tick(flow) || !complete_waiting(flow))
	{
		MemoryContextSwitchTo(previous);
		return MR_FLOW_CHANGED;
	}
	MemoryContextSwitchTo(previous);
	mr_batch_reset(flow->batch);
	fetched_at = GetCurrentTimestamp();
	if (!flow->kind->in_transaction)
	{
		fetch(flow, BATCH_MESSAGES, wait_ms);
		if (flow->batch->nmessages == 0)
		{
			note_caught_up(flow, fetched_at);
			return 0;
		}
		look_up_ahead(flow);
		MemoryContextSwitchTo(previous);
	}

	begin_transaction();
	mr_stream_lock(flow->stream_id, false);
	if (!still_current(flow) || !follow_definitions(flow))
	{
		commit_transaction();
		MemoryContextSwitchTo(previous);
		return MR_FLOW_CHANGED;
	}
	if (flow->kind->in_transaction)
		fetch(flow, BATCH_MESSAGES, 0);
	consumed = flow->batch->nmessages;
	if (consumed > 0)
	{
		consumed = process_and_advance(flow, &letters);
		mr_flow_stats_write(flow->stream, flow->worker, false);
		mr_debug_point("before_commit");
	}
	INSTR_TIME_SET_CURRENT(start);
	commit_transaction();
	MemoryContextSwitchTo(previous);
	mr_debug_point("after_commit");
	note_caught_up(flow, fetched_at);
	if (flow->batch->waits && !flow->waiting)
		flow->waiting_at = 0;
	if (consumed > 0)
	{
		mr_flow_stats_add(MR_STAGE_COMMIT, start, 0);
		if (flow->kind->committed != NULL)
			flow->kind->committed(flow->source, flow->batch);
	}
	return consumed;
}

/* Fills a chunk of the next target that is due, in a transaction: *target_id, also when that fails; 0 when there is none. */
static void
fill_next(MrFlow *flow, volatile int32 *target_id)
{
	begin_transaction();
	*target_id = mr_backfill_next_due(flow->stream_id);
	if (*target_id != 0)
	{
		mr_backfill_lock(*target_id);
		/* What changed meanwhile is the next batch's business. */
		if (!still_current(flow) || !follow_definitions(flow) ||
			!mr_backfill_chunk(flow->stream, *target_id))
			*target_id = 0;
	}
	mr_debug_point("before_chunk_commit");
	commit_transaction();
	mr_debug_point("after_chunk");
}

/* Notes why a chunk failed, and when it is to be tried again. */
static void
note_fill_error(MrFlow *flow, int32 target_id, const ErrorData *error)
{
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("stream \"%s\" cannot fill a table: %s", flow->stream->name, error->message),
			 errhint("See millrace.backfill_status.")));
	begin_transaction();
	mr_backfill_failed(target_id, error);
	commit_transaction();
}

bool
mr_flow_fill(MrFlow *flow)
{
	MemoryContext previous = CurrentMemoryContext;
	ErrorData *volatile error = NULL;
	volatile int32 target_id = 0;

	if (flow->worker != 0 || !mr_backfill_pending(flow->stream) ||
		GetCurrentTimestamp() < flow->fill_at)
		return false;

	PG_TRY();
	{
		fill_next(flow, &target_id);
	}
	PG_CATCH();
	{
		/* It is nobody's message: the stream goes on. */
		MemoryContextSwitchTo(previous);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(previous);
	if (error != NULL)
	{
		note_fill_error(flow, target_id, error);
		MemoryContextSwitchTo(previous);
		FreeErrorData(error);
	}
	/* After one that failed, others have their turn at once. */
	if (target_id == 0)
		flow->fill_at = GetCurrentTimestamp() + USECS_PER_SEC;
	return target_id != 0;
}

/* A chunk of run_stream in a subtransaction of its own; false when it failed (with a warning), or has to wait. */
static bool
fill_in_caller(MrFlow *flow, int32 target_id)
{
	ErrorData *volatile error = NULL;
	volatile bool filled = false;
	MrAttempt attempt;

	mr_attempt_begin(&attempt);
	PG_TRY();
	{
		filled = mr_backfill_chunk(flow->stream, target_id);
		mr_attempt_end(&attempt, true);
	}
	PG_CATCH();
	{
		error = mr_attempt_failed(&attempt);
	}
	PG_END_TRY();
	if (error == NULL)
		return filled;
	if (mr_error_class(error->sqlerrcode) == MR_ERROR_ENVIRONMENT &&
		error->sqlerrcode != ERRCODE_SQL_ROUTINE_EXCEPTION)
		mr_rethrow(error);
	mr_backfill_failed(target_id, error);
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("a table cannot be filled with what was there before: %s", error->message),
			 errhint("The stream goes on; see millrace.backfill_status.")));
	return false;
}

/* Fills all that is to be filled, in the transaction that is open; false when the stream is gone. */
static bool
fill_all(MrFlow *flow)
{
	List *failed = NIL;
	bool filled;

	do
	{
		int32 target_id;

		filled = false;
		while (mr_backfill_pending(flow->stream) &&
			   (target_id = mr_backfill_next(flow->stream_id, failed)) != 0)
		{
			MrRunAs saved;

			CHECK_FOR_INTERRUPTS();
			mr_run_as(&saved, flow->stream->owner);
			if (fill_in_caller(flow, target_id))
				filled = true;
			else
				failed = lappend_int(failed, target_id);
			mr_run_back(&saved);
		}
		/* What stands on a table that has been filled is activated again, and filled. */
		if (filled && !mr_flow_compile_active(flow))
			return false;
	} while (filled);
	return true;
}

/* The stream that a caller names and may run. */
int32
mr_flow_own_stream(const char *name)
{
	MrRunAs saved;
	MrStream *stream;
	int32 id;

	mr_run_as(&saved, mr_extension_owner());
	id = mr_stream_id(name);
	stream = id == 0 ? NULL : mr_stream_load(CurrentMemoryContext, id);
	mr_run_back(&saved);
	if (stream == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("stream \"%s\" does not exist", name)));
	if (!has_privs_of_role(GetUserId(), stream->owner))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("must be owner of stream \"%s\"", name)));
	return id;
}

/* Batches in somebody's own transaction need each statement to see what others have committed (C3). */
void
mr_flow_require_read_committed(const char *what)
{
	if (XactIsoLevel != XACT_READ_COMMITTED)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("%s needs isolation level READ COMMITTED", what),
				 errhint("Begin the transaction with BEGIN ISOLATION LEVEL READ COMMITTED.")));
	PreventCommandIfReadOnly(what);
}

/* How many dead letters a batch has made. */
int64
mr_flow_count_letters(const MrBatch *batch)
{
	int64 count = 0;
	ListCell *lc;

	foreach(lc, batch->failures)
	{
		if (!((MrFailure *) lfirst(lc))->silent)
			count++;
	}
	return count;
}

/* One batch of run_stream; the next one starts from where it has come to. */
static int64
run_batch(MrFlow *flow, int max_messages, int64 *letters)
{
	int64 consumed;

	mr_batch_reset(flow->batch);
	fetch(flow, max_messages, flow->kind->in_transaction ? 0 : 1000);
	if (flow->batch->nmessages == 0)
		return 0;
	consumed = process_and_advance(flow, letters);
	if (flow->kind->committed != NULL)
		flow->kind->committed(flow->source, flow->batch);
	return consumed;
}

/* Completes what waits and is known now, in the transaction that is open. */
static void
complete_all(MrFlow *flow)
{
	MrWaitingIds *ids;

	do
	{
		CHECK_FOR_INTERRUPTS();
		mr_batch_reset(flow->batch);
		ids = mr_flow_complete_want(flow);
		if (ids == NULL)
			return;
		if (flow->stream->enrichment != NULL)
			mr_enrich_ask(flow->stream->enrichment);
	} while (mr_flow_complete_known(flow, ids) || flow->waiting_place.id != NULL);
}

/* Consumes what is there now, in the caller's transaction. */
Datum
millrace_run_stream(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	char *name;
	int32 id;
	int64 limit = PG_ARGISNULL(1) ? PG_INT64_MAX : PG_GETARG_INT64(1);
	int64 messages = 0;
	int64 batches = 0;
	int64 letters = 0;
	TupleDesc desc;
	Datum values[3];
	bool nulls[3] = {false};
	int nest_level;
	MrRunAs saved;
	MrFlow *flow;

	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("the stream to run must not be null")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	mr_flow_require_read_committed("run_stream()");
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (limit < 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("max_messages must not be negative")));

	nest_level = mr_settings_pin("UTC");
	SPI_connect();
	id = mr_flow_own_stream(name);
	/* It outlives the connection to SPI. */
	MemoryContextSwitchTo(context);
	flow = mr_flow_create(id, 0, 1);
	flow->in_caller = true;
	PushActiveSnapshot(GetTransactionSnapshot());
	mr_flow_check_constraints();
	PG_TRY();
	{
		if (!open_in_transaction(flow))
			elog(ERROR, "stream \"%s\" was dropped", name);
		mr_stream_check_fence(flow->stream);
		if (flow->stream->stop_reason != NULL)
			ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
							errmsg("%s", flow->stream->stop_reason),
							errhint("Mend what is wrong, then call millrace.start_stream().")));
		if (!fill_all(flow))
			elog(ERROR, "stream \"%s\" was dropped", name);
		mr_run_as(&saved, flow->stream->owner);
		complete_all(flow);
		while (messages < limit && flow->stream->stop_reason == NULL)
		{
			int64 consumed = run_batch(flow, (int) Min(limit - messages, BATCH_MESSAGES), &letters);

			CHECK_FOR_INTERRUPTS();
			messages += consumed;
			batches += consumed > 0;
			/* What comes meanwhile is not waited for: it may never end. */
			if (consumed == 0 || flow->kind->drained(flow->source))
				flow->kind->tick(flow->source);
			if (flow->kind->drained(flow->source))
				break;
			if (consumed == 0 && mr_source_problem(flow->source) != NULL)
				ereport(ERROR, (errcode(ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION),
								errmsg("stream \"%s\" cannot be read: %s", flow->stream->name,
									   mr_source_problem(flow->source))));
		}
		if (flow->stream->stop_reason != NULL)
			ereport(WARNING, (errmsg("%s", flow->stream->stop_reason)));
		else
			tick_targets(flow, messages < limit ? GetCurrentTimestamp() : DT_NOBEGIN);
		mr_flow_stats_write(flow->stream, 0, true);
		mr_run_back(&saved);
	}
	PG_CATCH();
	{
		/* A remote source holds threads and sockets: they go with the flow. */
		mr_flow_close(flow);
		PG_RE_THROW();
	}
	PG_END_TRY();
	PopActiveSnapshot();
	mr_flow_close(flow);
	SPI_finish();
	mr_settings_unpin(nest_level);

	values[0] = Int64GetDatum(messages);
	values[1] = Int64GetDatum(batches);
	values[2] = Int64GetDatum(letters);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
