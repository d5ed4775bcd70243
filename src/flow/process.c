/*
 * process.c
 *	  One batch through the stages, and what becomes of bad data.
 *
 * Mapping writes nothing, so that a message which cannot be mapped is found where it raises its error and left
 * out at once.  An error while tables are written does not say which message it is about: then halves of the
 * batch are tried in subtransactions that are always rolled back, which only finds the messages; at last the
 * whole is done again without them, each table visited once in the order of keys (C3).
 */
#include "postgres.h"

#include "access/xlog.h"
#include "core/millrace.h"
#include "flow/backfill.h"
#include "flow/flow.h"
#include "flow/plan.h"
#include "portability/instr_time.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* So many bytes of the log are worth a flush of their own. */
#define WRITE_AHEAD ((uint64) 8 * 1024 * 1024)

/* What is being written, for whoever catches an error. */
static MrStaging *writing_for;
static bool in_mart;
static bool must_configure;

MrErrorClass
mr_flow_error_class(int sqlstate)
{
	bool configure = must_configure;

	/* What a mart cannot add up, or a stream that stops at bad data, is nobody's message: see C10. */
	must_configure = false;
	return configure ? MR_ERROR_CONFIGURATION : mr_error_class(sqlstate);
}

void
mr_flow_prepare(MrStream *stream, MrBatch *batch)
{
	ListCell *lc;

	batch->stream = stream;
	batch->loaded_at = GetCurrentTimestamp();
	batch->nstaged = list_length(stream->stagings);
	batch->staged = MemoryContextAllocZero(batch->context,
										   sizeof(MrStaged) * Max(batch->nstaged, 1));
	foreach(lc, stream->stagings)
	{
		MrStaging *staging = lfirst(lc);

		batch->staged[staging->ordinal].staging = staging;
		mr_log_extend(staging, batch->loaded_at);
	}
}

/* Notes an error as the reason why a message is left out. */
static void
note_failure(MrBatch *batch, MrMessage *message, MrStaging *staging, const ErrorData *error)
{
	MemoryContext previous = MemoryContextSwitchTo(batch->context);
	MrFailure *failure = palloc0(sizeof(MrFailure));

	failure->message = message;
	failure->staging = staging;
	failure->sqlstate = error->sqlerrcode;
	failure->text = error->message != NULL ? pstrdup(error->message) : pstrdup("");
	failure->detail = error->detail != NULL ? pstrdup(error->detail) : NULL;
	failure->hint = error->hint != NULL ? pstrdup(error->hint) : NULL;
	failure->silent = staging != NULL && message->reread;
	mr_failure_add(batch, failure);
	MemoryContextSwitchTo(previous);
}

/*
 * Runs `step` in a subtransaction.  NULL when it went well; the error when it is one of data; others are
 * raised again.
 */
static ErrorData *
try_step(void (*step)(void *), void *argument, bool keep)
{
	ErrorData *volatile error = NULL;
	MrAttempt attempt;
	MrErrorClass class;
	bool was_in_mart;

	mr_attempt_begin(&attempt);
	PG_TRY();
	{
		step(argument);
		mr_attempt_end(&attempt, keep);
	}
	PG_CATCH();
	{
		error = mr_attempt_failed(&attempt);
	}
	PG_END_TRY();

	if (error == NULL)
		return NULL;
	class = mr_map_error_class(error->sqlerrcode);
	/* The next step may be one before any mart. */
	was_in_mart = in_mart;
	in_mart = false;
	/* What no index of a mart takes is found as other bad data is. */
	if (class != MR_ERROR_DATA ||
		(was_in_mart && error->sqlerrcode != ERRCODE_PROGRAM_LIMIT_EXCEEDED))
	{
		must_configure = was_in_mart && class == MR_ERROR_DATA;
		mr_rethrow(error);
	}
	return error;
}

/* ---- enrichment ------------------------------------------------------------------------------------------ */

typedef struct CollectStep
{
	MrBatch *batch;
	int from;
} CollectStep;

static void
collect_step(void *argument)
{
	CollectStep *step = argument;

	mr_enrich_collect(step->batch, step->from);
}

static void
read_step(void *argument)
{
	mr_enrich_read(argument);
}

void
mr_flow_collect_ids(MrStream *stream, MrBatch *batch)
{
	CollectStep step = {batch, 0};
	ErrorData *error;

	batch->stream = stream;
	mr_enrich_begin(stream->enrichment);
	/* What cannot be decoded is found again when it is mapped. */
	while ((error = try_step(collect_step, &step, true)) != NULL)
	{
		step.from = mr_enrich_place() + 1;
		FreeErrorData(error);
	}
}

void
mr_flow_read_entries(MrStream *stream)
{
	ErrorData *error;

	mr_enrich_select(stream->enrichment);
	while ((error = try_step(read_step, stream->enrichment, true)) != NULL)
	{
		mr_enrich_refuse(stream->enrichment, error->message);
		FreeErrorData(error);
	}
}

/* Finds what dictionaries know of the batch's messages, unless their ids have been collected and asked for already. */
static void
enrich_all(MrStream *stream, MrBatch *batch)
{
	instr_time start;

	if (stream->enrichment == NULL)
		return;
	INSTR_TIME_SET_CURRENT(start);
	if (batch->looked_up == NULL)
	{
		mr_flow_collect_ids(stream, batch);
		mr_enrich_ask(stream->enrichment);
	}
	mr_flow_read_entries(stream);
	mr_enrich_resolve(batch);
	mr_flow_stats_add(MR_STAGE_ENRICH, start, batch->nmessages);
}

/* ---- mapping --------------------------------------------------------------------------------------------- */

typedef struct MapStep
{
	MrBatch *batch;
	MrPlan *extraction;
	int from;
} MapStep;

static void
map_step(void *argument)
{
	MapStep *step = argument;

	mr_map_messages(step->batch, step->extraction, step->from);
}

/* Maps all messages, leaving out what raises an error of data. */
static void
map_all(MrBatch *batch, MrPlan *extraction)
{
	MapStep step = {batch, extraction, 0};
	ErrorData *error;

	while ((error = try_step(map_step, &step, true)) != NULL)
	{
		MrStaging *staging;

		mr_map_place(&step.from, &staging);
		mr_map_forget(batch, step.from);
		note_failure(batch, &batch->messages[step.from], staging, error);
		FreeErrorData(error);
	}
}

/* The first version, in order of arrival, that is of this message or of a later one. */
static int
first_version(const MrStaged *staged, const MrMessage *message)
{
	int low = 0;
	int high = staged->nversions;

	while (low < high)
	{
		int middle = low + (high - low) / 2;

		if (staged->versions[middle].message < message)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* The versions of messages [from, to) that are not left out, as a batch that shares everything else. */
static MrBatch *
sub_batch(const MrBatch *batch, int from, int to)
{
	MrBatch *part = palloc(sizeof(MrBatch));

	*part = *batch;
	part->staged = palloc0(sizeof(MrStaged) * Max(batch->nstaged, 1));
	for (int s = 0; s < batch->nstaged; s++)
	{
		const MrStaged *whole = &batch->staged[s];
		MrStaged *staged = &part->staged[s];
		int first = first_version(whole, &batch->messages[from]);
		int end = first_version(whole, &batch->messages[to]);

		staged->staging = whole->staging;
		staged->versions = MemoryContextAllocHuge(CurrentMemoryContext,
												  sizeof(MrVersion) * Max(end - first, 1));
		for (int i = first; i < end; i++)
		{
			const MrVersion *version = &whole->versions[i];

			if (mr_message_left_out(batch, version->message, whole->staging))
				continue;
			staged->versions[staged->nversions] = *version;
			staged->versions[staged->nversions].newest = false;
			staged->versions[staged->nversions].stale = false;
			staged->versions[staged->nversions].accepted = false;
			staged->nversions++;
		}
	}
	return part;
}

/* Is the version for those who only ever append?  One that is not complete comes again when it is, and counts once. */
static inline bool
to_append(const MrVersion *version)
{
	return !version->incomplete && !version->repeated;
}

/* The batch as those see it who only ever append. */
static MrBatch *
complete_part(MrBatch *part)
{
	MrBatch *complete = NULL;

	for (int s = 0; s < part->nstaged; s++)
	{
		const MrStaged *staged = &part->staged[s];
		MrStaged *kept;
		int first = 0;

		while (first < staged->nversions && to_append(&staged->versions[first]))
			first++;
		if (first == staged->nversions)
			continue;
		if (complete == NULL)
		{
			complete = palloc(sizeof(MrBatch));
			*complete = *part;
			complete->staged = palloc(sizeof(MrStaged) * part->nstaged);
			memcpy(complete->staged, part->staged, sizeof(MrStaged) * part->nstaged);
		}
		kept = &complete->staged[s];
		kept->versions = MemoryContextAllocHuge(CurrentMemoryContext,
												sizeof(MrVersion) * staged->nversions);
		kept->nversions = 0;
		for (int i = 0; i < staged->nversions; i++)
		{
			if (to_append(&staged->versions[i]))
				kept->versions[kept->nversions++] = staged->versions[i];
		}
	}
	return complete == NULL ? part : complete;
}

typedef struct WriteStep
{
	MrStream *stream;
	MrBatch *batch; /* the whole */
	MrBatch *part; /* what was written */
	int from;
	int to;
} WriteStep;

/* Whose what failed is. */
static void
target_error_context(void *argument)
{
	const MrTarget *target = argument;

	errcontext("%s %s", target->kind->name, target->name);
}

void
mr_flow_apply(MrTarget *target, MrBatch *batch)
{
	ErrorContextCallback callback = {
		.previous = error_context_stack, .callback = target_error_context, .arg = target};

	error_context_stack = &callback;
	target->kind->apply(target, batch);
	error_context_stack = callback.previous;
}

/* Has the WAL writer flush what a large batch logs while the batch goes on, so that its commit has little to wait for. */
static void
write_ahead(XLogRecPtr *logged)
{
	XLogRecPtr now = GetXLogInsertRecPtr();

	if (now - *logged < WRITE_AHEAD)
		return;
	XLogSetAsyncXactLSN(now);
	*logged = now;
}

/* Stages and applies the messages [from, to). */
static void
write_step(void *argument)
{
	WriteStep *step = argument;
	/* What one target needs is gone before the next: a batch is large. */
	MemoryContext context = AllocSetContextCreate(step->batch->context, "millrace target",
												  ALLOCSET_DEFAULT_SIZES);
	MrBatch *complete;
	XLogRecPtr logged = GetXLogInsertRecPtr();
	instr_time start;
	int64 rows = 0;
	ListCell *lc;

	step->part = sub_batch(step->batch, step->from, step->to);
	in_mart = false;
	INSTR_TIME_SET_CURRENT(start);
	writing_for = step->part->nstaged > 0 ? step->part->staged[0].staging : NULL;
	mr_stage_apply(step->part, &writing_for);
	for (int s = 0; s < step->part->nstaged; s++)
		rows += step->part->staged[s].nnew;
	mr_flow_stats_add(MR_STAGE_STAGING, start, rows);

	complete = complete_part(step->part);
	foreach(lc, step->stream->targets)
	{
		MrTarget *target = lfirst(lc);

		in_mart = target->kind->phase >= MR_PHASE_MART;
		for (int i = 0; i < target->nsources; i++)
		{
			if (target->sources[i].staging != NULL)
				writing_for = target->sources[i].staging;
		}
		INSTR_TIME_SET_CURRENT(start);
		target->written = 0;
		MemoryContextSwitchTo(context);
		mr_flow_apply(target, mr_backfill_restrict(target, target->kind->phase == MR_PHASE_MART
															   ? step->part
															   : complete));
		MemoryContextSwitchTo(step->batch->context);
		MemoryContextReset(context);
		mr_flow_stats_add(target->kind->stage, start, target->written);
		write_ahead(&logged);
	}
	in_mart = false;
	MemoryContextDelete(context);
}

/* Finds what makes the writing of messages [from, to) fail. */
static void
find_bad(WriteStep *step, int from, int to)
{
	WriteStep part = *step;
	ErrorData *error;

	part.from = from;
	part.to = to;
	error = try_step(write_step, &part, false);
	if (error == NULL)
		return;
	if (to - from == 1)
	{
		note_failure(step->batch, &step->batch->messages[from], writing_for, error);
		FreeErrorData(error);
		return;
	}
	FreeErrorData(error);
	find_bad(step, from, from + (to - from) / 2);
	find_bad(step, from + (to - from) / 2, to);
}

/*
 * Writes messages [from, to) half by half, each on top of the one before: for what fails only together, as
 * two objects with the same value in a unique column of the user's.
 */
static void
write_in_halves(WriteStep *step, int from, int to)
{
	WriteStep part = *step;
	ErrorData *error;

	part.from = from;
	part.to = to;
	error = try_step(write_step, &part, true);
	if (error == NULL)
		return;
	if (to - from == 1)
	{
		/* Not what was thought to be bad: leaving out more would not help. */
		if (mr_message_left_out(step->batch, &step->batch->messages[from], writing_for))
			mr_rethrow(error);
		note_failure(step->batch, &step->batch->messages[from], writing_for, error);
		/* The other staging tables of the stream still take it. */
		write_in_halves(step, from, to);
		return;
	}
	write_in_halves(step, from, from + (to - from) / 2);
	write_in_halves(step, from + (to - from) / 2, to);
}

/* Copies what the fence decided back to the whole batch's versions. */
static void
copy_decisions(MrBatch *batch, const MrBatch *part)
{
	for (int s = 0; s < batch->nstaged; s++)
	{
		MrStaged *whole = &batch->staged[s];
		const MrStaged *staged = &part->staged[s];
		int next = 0;

		for (int i = 0; i < whole->nversions; i++)
		{
			MrVersion *version = &whole->versions[i];

			if (next == staged->nversions || version->message != staged->versions[next].message)
			{
				version->unseen = !mr_message_left_out(batch, version->message, whole->staging);
				continue;
			}
			version->newest = staged->versions[next].newest;
			version->accepted = staged->versions[next].accepted;
			next++;
		}
	}
}

void
mr_flow_process(MrStream *stream, MrPlan *extraction, MrBatch *batch)
{
	MemoryContext previous = MemoryContextSwitchTo(batch->context);
	WriteStep step = {stream, batch, NULL, 0, batch->nmessages};
	instr_time start;
	ErrorData *error;

	must_configure = false;
	in_mart = false;
	mr_backfill_refresh(stream);
	enrich_all(stream, batch);
	INSTR_TIME_SET_CURRENT(start);
	map_all(batch, extraction);
	mr_flow_stats_add(MR_STAGE_MAP, start, batch->nmessages);

	error = try_step(write_step, &step, true);
	if (error != NULL)
	{
		int known = list_length(batch->failures);

		find_bad(&step, 0, batch->nmessages);
		if (list_length(batch->failures) > known)
			error = try_step(write_step, &step, true);
		if (error != NULL)
			write_in_halves(&step, 0, batch->nmessages);
	}
	if (step.part != NULL)
		copy_decisions(batch, step.part);
	if (batch->failures != NIL)
	{
		must_configure = stream->on_error == MR_ON_ERROR_STOP;
		(void) mr_letter_write(stream, batch->failures);
		must_configure = false;
	}
	if (stream->enrichment != NULL)
		mr_waiting_write(stream, batch);
	MemoryContextSwitchTo(previous);
}

void
mr_flow_judge(MrStream *stream, MrPlan *extraction, MrBatch *batch, MrTarget *target)
{
	MemoryContext previous = MemoryContextSwitchTo(batch->context);
	MrBatch *part;

	enrich_all(stream, batch);
	map_all(batch, extraction);
	part = sub_batch(batch, 0, batch->nmessages);
	for (int s = 0; s < part->nstaged; s++)
		mr_object_accept_staged(&part->staged[s]);
	mr_flow_apply(target, part);
	/* Others are too old for what is made from the newest ones only. */
	for (int s = 0; s < part->nstaged && target->kind->filled_from == MR_FILLED_FROM_VERSIONS; s++)
	{
		for (int v = 0; v < part->staged[s].nversions; v++)
			part->staged[s].versions[v].accepted = true;
	}
	copy_decisions(batch, part);
	MemoryContextSwitchTo(previous);
}
