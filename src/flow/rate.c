/*
 * rate.c
 *	  A stream that makes too many dead letters stops itself.
 *
 * What is judged is the share of messages with dead letters among the last ones of a worker.  The figures are
 * in a table, so that they last through restarts and short calls of run_stream(); every WINDOW messages both
 * are halved, which forgets slowly.  The batch that crosses the limit is committed with its letters: nothing is
 * lost, and nothing further is read.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "flow/run.h"
#include "stage/mapping.h"
#include "utils/builtins.h"

#define WINDOW 10000

/* Fewer than this say nothing about a share. */
#define ENOUGH 20

/* How many messages of a batch made dead letters. */
static int64
failed_messages(const MrBatch *batch)
{
	int64 failed = 0;

	for (int i = 0; batch->failures != NIL && i < batch->nmessages; i++)
		failed += batch->messages[i].failures != NULL;
	return failed;
}

/* Stops the stream as of this transaction's commit. */
static void
stop(MrStream *stream, int64 messages, int64 failed)
{
	static const Oid types[] = {INT4OID, TEXTOID};
	char *reason = psprintf("the stream has stopped itself: " INT64_FORMAT
							" of its last " INT64_FORMAT
							" messages made dead letters, more than the share of %g that "
							"max_dead_letter_share allows",
							failed, messages, stream->max_dead_letter_share);
	Datum values[] = {Int32GetDatum(stream->id), CStringGetTextDatum(reason)};

	(void) mr_statement_run(
		mr_statement_create("UPDATE millrace.stream s SET enabled = false, stop_reason = $2, "
							"config_version = s.config_version + 1 WHERE s.id = $1",
							lengthof(types), types),
		values, NULL);
	/* Whoever starts it again begins to count anew. */
	(void) mr_sql("DELETE FROM millrace.letter_rate WHERE stream_id = %d", stream->id);
	mr_incident(stream->id, "dead_letter_rate", reason);
	(void) mr_sql("SELECT millrace_internal.wake(%d)", stream->id);
	SPI_freetuptable(SPI_tuptable);
	stream->stop_reason = MemoryContextStrdup(stream->context, reason);
}

void
mr_flow_judge_letters(MrFlow *flow)
{
	static const Oid types[] = {INT4OID, INT4OID, INT8OID, INT8OID, INT4OID};
	MrStream *stream = flow->stream;
	Datum values[] = {Int32GetDatum(stream->id), Int32GetDatum(flow->worker),
					  Int64GetDatum(flow->batch->nmessages),
					  Int64GetDatum(failed_messages(flow->batch)), Int32GetDatum(WINDOW)};
	int64 messages;
	int64 failed;
	bool isnull;
	MrRunAs saved;

	if (stream->max_dead_letter_share < 0)
		return;
	mr_run_as(&saved, mr_extension_owner());
	if (flow->count_letters == NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(flow->context);

		flow->count_letters = mr_statement_create(
			"INSERT INTO millrace.letter_rate AS r (stream_id, worker, messages, failed) "
			"VALUES ($1, $2, $3, $4) ON CONFLICT (stream_id, worker) DO UPDATE SET "
			"messages = r.messages / CASE WHEN r.messages >= $5 THEN 2 ELSE 1 END + EXCLUDED.messages, "
			"failed = r.failed / CASE WHEN r.messages >= $5 THEN 2 ELSE 1 END + EXCLUDED.failed "
			"RETURNING messages, failed",
			lengthof(types), types);
		MemoryContextSwitchTo(previous);
	}
	(void) mr_statement_run(flow->count_letters, values, NULL);
	messages = DatumGetInt64(mr_sql_value(0, 1, &isnull));
	failed = DatumGetInt64(mr_sql_value(0, 2, &isnull));
	SPI_freetuptable(SPI_tuptable);
	if (failed >= ENOUGH && failed > stream->max_dead_letter_share * messages)
		stop(stream, messages, failed);
	mr_run_back(&saved);
}
