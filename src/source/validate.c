/*
 * validate.c
 *	  What is wrong with the endpoint of a stream: millrace_internal.validate_source().
 */
#include "postgres.h"

#include "core/millrace.h"
#include "core/statement.h"
#include "funcapi.h"
#include "source/source.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(millrace_validate_source);

void
mr_report(MrReport *to, const char *severity, const char *message, const char *hint)
{
	Datum values[4];
	bool nulls[4] = {false};

	values[0] = CStringGetTextDatum(severity);
	values[1] = CStringGetTextDatum(to->subject);
	values[2] = CStringGetTextDatum(message);
	values[3] = hint == NULL ? (Datum) 0 : CStringGetTextDatum(hint);
	nulls[3] = hint == NULL;
	tuplestore_putvalues(to->result->setResult, to->result->setDesc, values, nulls);
}

/* millrace_internal.validate_source(stream_id, timeout, sample) */
Datum
millrace_validate_source(PG_FUNCTION_ARGS)
{
	int32 id = PG_GETARG_INT32(0);
	Interval *timeout = PG_GETARG_INTERVAL_P(1);
	MemoryContext context;
	MrStream *stream;
	MrReport to = {0};

	InitMaterializedSRF(fcinfo, 0);
	to.result = (ReturnSetInfo *) fcinfo->resultinfo;
	to.sample = PG_GETARG_BOOL(2);
	to.timeout_ms = (int) Min(Max(timeout->time / 1000, 100), 60000);

	/* All that is made here goes with this context, whatever happens. */
	context = AllocSetContextCreate(CurrentMemoryContext, "millrace validate",
									ALLOCSET_SMALL_SIZES);
	SPI_connect();
	stream = mr_stream_load(context, id);
	SPI_finish();
	if (stream != NULL && stream->server != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		ErrorData *volatile error = NULL;
		MrAttempt attempt;

		to.subject = psprintf("stream %s", stream->name);
		to.debezium = strcmp(stream->format, "debezium") == 0;
		mr_attempt_begin(&attempt);
		PG_TRY();
		{
			mr_source_kind(stream)->validate(&to, stream);
			mr_attempt_end(&attempt, true);
		}
		PG_CATCH();
		{
			error = mr_attempt_failed(&attempt);
		}
		PG_END_TRY();
		if (error != NULL && error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			mr_rethrow(error);
		if (error != NULL)
			mr_report(&to, "error", error->message, error->hint);
		MemoryContextSwitchTo(old);
	}
	MemoryContextDelete(context);
	return (Datum) 0;
}
