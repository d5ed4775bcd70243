/*
 * letter.c
 *	  Dead letters: what could not be taken, kept as it came until somebody tries it again or discards it.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "source/change.h"
#include "stage/mapping.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

static const char *const kind_message = "message"; /* it cannot be decoded */
static const char *const kind_object = "object"; /* one staging table cannot take it */
static const char *const kind_row = "row"; /* one row fails an expectation */
static const char *const kind_rule = "rule"; /* a rule could not judge it */

/* Bytes as a bytea. */
static Datum
bytes_value(const char *bytes, int length)
{
	bytea *value = palloc(VARHDRSZ + length);

	SET_VARSIZE(value, VARHDRSZ + length);
	memcpy(VARDATA(value), bytes, length);
	return PointerGetDatum(value);
}

/* Bad data on a stream that is told to stop at it. */
static void
stop_at(const MrStream *stream, const MrFailure *failure)
{
	ereport(ERROR, (errcode(failure->sqlstate),
					errmsg("stream %s stops at a message that cannot be taken: %s", stream->name,
						   failure->text),
					errdetail("Topic \"%s\", partition %d, position " INT64_FORMAT ".",
							  failure->message->topic != NULL ? failure->message->topic : "",
							  failure->message->partition, failure->message->position),
					errhint("Declare what can take it, or create the stream with on_error => "
							"'dead_letter'.")));
}

/* Notes what a letter waits for. */
static void
write_lacks(const MrStream *stream, int64 letter, const List *lacks)
{
	static const Oid types[] = {INT8OID, INT4OID, TEXTOID, TEXTOID, INT4OID};
	static MrStatement *insert = NULL;
	Datum values[lengthof(types)] = {Int64GetDatum(letter)};
	ListCell *lc;

	if (insert == NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);

		insert = mr_statement_create("INSERT INTO millrace.letter_wait (letter_id, dictionary_id, "
									 "id, element, stream_id) VALUES ($1, $2, $3, $4, $5) "
									 "ON CONFLICT DO NOTHING",
									 lengthof(types), types);
		MemoryContextSwitchTo(previous);
	}
	foreach(lc, lacks)
	{
		const MrLack *lack = lfirst(lc);
		char nulls[] = "     ";

		values[1] = Int32GetDatum(lack->dictionary_id);
		values[2] = CStringGetTextDatum(lack->id);
		if (lack->element != NULL)
			values[3] = CStringGetTextDatum(lack->element);
		else
			nulls[3] = 'n';
		values[4] = Int32GetDatum(stream->id);
		(void) mr_statement_run(insert, values, nulls);
	}
}

int64
mr_letter_write(MrStream *stream, const List *failures)
{
	static const Oid types[] = {INT4OID, INT4OID,  TEXTOID, INT4OID,        TEXTOID,  TEXTOID,
								INT4OID, INT4OID,  INT8OID, TIMESTAMPTZOID, BYTEAOID, BYTEAOID,
								TEXTOID, TEXTOID,  TEXTOID, TEXTOID,        TEXTOID,  UUIDOID,
								TEXTOID, BYTEAOID, TEXTOID, INT4OID,        TEXTOID};
	MrStatement *insert = NULL;
	Oid owner = mr_extension_owner();
	int64 written = 0;
	ListCell *lc;
	MrRunAs saved;

	foreach(lc, failures)
	{
		const MrFailure *failure = lfirst(lc);
		MrMessage readable;
		const MrMessage *message = &readable;
		Datum values[lengthof(types)];
		char nulls[lengthof(types) + 1];
		int64 letter;
		/* Nothing else is lost. */
		bool taken = failure->lacks != NIL || failure->rule_id != 0;
		bool isnull;

		if (failure->silent)
			continue;
		if (!taken && stream->on_error == MR_ON_ERROR_STOP && !failure->message->retried)
			stop_at(stream, failure);
		written++;
		if (!taken && stream->on_error == MR_ON_ERROR_SKIP)
			continue;
		readable = mr_message_readable(failure->message);

		memset(nulls, ' ', sizeof(nulls));
		nulls[lengthof(types)] = '\0';
#define SET(n, absent, value) \
	do \
	{ \
		if (absent) \
			nulls[n] = 'n', values[n] = (Datum) 0; \
		else \
			values[n] = (value); \
	} while (0)
#define SET_TEXT(n, string) SET(n, (string) == NULL, CStringGetTextDatum(string))
		SET(0, stream == NULL, Int32GetDatum(stream->id));
		SET(1, failure->staging == NULL, Int32GetDatum(failure->staging->id));
		SET_TEXT(2, failure->rule_id != 0          ? kind_rule
					: failure->staging == NULL     ? kind_message
					: failure->expectation != NULL ? kind_row
												   : kind_object);
		SET(3, failure->element == 0, Int32GetDatum(failure->element));
		SET_TEXT(4, failure->expectation);
		SET_TEXT(5, message->topic != NULL ? message->topic : "");
		SET(6, false, Int32GetDatum(message->partition));
		SET(7, false, Int32GetDatum(message->epoch));
		SET(8, false, Int64GetDatum(message->position));
		SET(9, false, TimestampTzGetDatum(message->time));
		SET(10, message->key == NULL, bytes_value(message->key, message->key_length));
		SET(11, message->value == NULL, bytes_value(message->value, message->value_length));
		SET_TEXT(12, message->headers);
		SET_TEXT(13, unpack_sql_state(failure->sqlstate));
		SET_TEXT(14, failure->text);
		SET_TEXT(15, failure->detail);
		SET_TEXT(16, failure->hint);
		SET(17, false, UUIDPGetDatum(&message->place));
		SET_TEXT(18, message->op ? pnstrdup(&message->op, 1) : NULL);
		SET(19, message->before == NULL, bytes_value(message->before, message->before_length));
		SET_TEXT(20, failure->lacks != NIL ? "waiting" : "open");
		SET(21, failure->rule_id == 0, Int32GetDatum(failure->rule_id));
		SET_TEXT(22, message->unsent);
#undef SET_TEXT
#undef SET

		if (insert == NULL)
			insert = mr_statement_create(
				"INSERT INTO millrace.letter AS l (stream_id, staging_id, kind, element, "
				"expectation, topic, partition, epoch, position, message_time, key, value, "
				"headers, sqlstate, message, detail, hint, place, op, before, state, rule_id, "
				"unsent) "
				"VALUES (coalesce($1, (SELECT g.stream_id FROM millrace.staging g WHERE g.id = $2)), "
				"$2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13::json, $14, $15, "
				"$16, $17, $18, $19, $20, $21, $22, $23::json) "
				"ON CONFLICT (stream_id, topic, epoch, partition, position, place, staging_id, "
				"element, rule_id) "
				"DO UPDATE SET sqlstate = EXCLUDED.sqlstate, message = EXCLUDED.message, "
				"detail = EXCLUDED.detail, hint = EXCLUDED.hint, attempts = l.attempts + 1, "
				"expectation = EXCLUDED.expectation, kind = EXCLUDED.kind, "
				"state = EXCLUDED.state RETURNING id",
				lengthof(types), types);
		mr_run_as(&saved, owner);
		(void) mr_statement_run(insert, values, nulls);
		letter = DatumGetInt64(mr_sql_value(0, 1, &isnull));
		SPI_freetuptable(SPI_tuptable);
		write_lacks(stream, letter, failure->lacks);
		mr_run_back(&saved);
	}
	return written;
}

void
mr_letter_sweep(const MrStream *stream, const MrStaging *staging, const MrMessage *sweep)
{
	static const Oid types[] = {INT4OID, INT4OID, TEXTOID, INT4OID, INT8OID, UUIDOID};
	static const pg_uuid_t first = {{0}};
	bool copied = sweep->sweep_position != 0;
	Datum values[] = {Int32GetDatum(stream->id),
					  Int32GetDatum(staging->id),
					  CStringGetTextDatum(sweep->topic),
					  Int32GetDatum(sweep->epoch),
					  Int64GetDatum(copied ? sweep->sweep_position : sweep->position),
					  UUIDPGetDatum(copied ? &first : &sweep->place)};
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	(void) mr_sql_with("WITH late AS (DELETE FROM millrace.letter WHERE stream_id = $1 "
					   "AND staging_id = $2 AND topic = $3 AND state = 'waiting' "
					   "AND (epoch, position, place) < ($4, $5, $6)) "
					   "UPDATE millrace.letter SET state = 'superseded' WHERE stream_id = $1 "
					   "AND staging_id = $2 AND topic = $3 AND state = 'open' "
					   "AND (epoch, position, place) < ($4, $5, $6)",
					   lengthof(types), types, values, NULL);
	mr_run_back(&saved);
}

/* A column of SPI_tuptable as bytes in the batch. */
static char *
read_bytes(MrBatch *batch, uint64 row, int column, int *length)
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

/* Leaves a message out for every staging table of the batch but one. */
static void
only_for(MrBatch *batch, MrMessage *message, int32 staging_id)
{
	for (int s = 0; s < batch->nstaged; s++)
	{
		MrFailure *failure;

		if (batch->staged[s].staging->id == staging_id)
			continue;
		failure = palloc0(sizeof(MrFailure));
		failure->message = message;
		failure->staging = batch->staged[s].staging;
		failure->silent = true;
		mr_failure_add(batch, failure);
	}
}

void
mr_letter_read(MrBatch *batch, ArrayType *ids, bool waiting, int32 rule_id)
{
	static const Oid types[] = {INT4OID, INT8ARRAYOID, TEXTOID, INT4OID};
	Datum values[] = {Int32GetDatum(((MrStream *) batch->stream)->id), PointerGetDatum(ids),
					  CStringGetTextDatum(waiting ? "waiting" : "open"), Int32GetDatum(rule_id)};
	MrStatement *select = mr_statement_create(
		"SELECT id, staging_id, topic, partition, epoch, position, message_time, key, value, "
		"headers::text, place, op, before, unsent::text FROM millrace.letter "
		"WHERE stream_id = $1 AND id = ANY ($2) AND state = $3 AND coalesce(rule_id, 0) = $4 "
		"ORDER BY topic, epoch, partition, position, place, staging_id, element FOR UPDATE",
		lengthof(types), types);
	MrRunAs saved;
	uint64 count;

	mr_run_as(&saved, mr_extension_owner());
	count = mr_statement_run(select, values, NULL);
	mr_run_back(&saved);
	/* Failures point at messages: their array must not move. */
	batch->capacity = (int) Max(count, 1);
	batch->messages = palloc(sizeof(MrMessage) * batch->capacity);
	for (uint64 i = 0; i < count; i++)
	{
		MrMessage *message = mr_batch_add(batch);
		bool isnull;
		int32 staging_id;
		char *op;

		/* What waited had been taken: it wins over what is there only by being complete. */
		message->retried = !waiting;
		message->letter = DatumGetInt64(mr_sql_value(i, 1, &isnull));
		message->topic = mr_sql_text(i, 3);
		message->partition = DatumGetInt32(mr_sql_value(i, 4, &isnull));
		message->epoch = DatumGetInt32(mr_sql_value(i, 5, &isnull));
		message->position = DatumGetInt64(mr_sql_value(i, 6, &isnull));
		message->time = DatumGetTimestampTz(mr_sql_value(i, 7, &isnull));
		message->key = read_bytes(batch, i, 8, &message->key_length);
		message->value = read_bytes(batch, i, 9, &message->value_length);
		message->headers = mr_sql_text(i, 10);
		message->place = *DatumGetUUIDP(mr_sql_value(i, 11, &isnull));
		op = mr_sql_text(i, 12);
		message->op = op != NULL ? op[0] : 0;
		message->before = read_bytes(batch, i, 13, &message->before_length);
		message->unsent = mr_sql_text(i, 14);
		staging_id = DatumGetInt32(mr_sql_value(i, 2, &isnull));
		/* What was judged as it was staged came without its message. */
		message->rule_id = rule_id;
		message->unjudged = rule_id != 0 && message->value == NULL;
		if (message->unjudged)
			only_for(batch, message, 0);
		else if (!isnull)
			only_for(batch, message, staging_id);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Did the message fail again somewhere? */
static bool
failed_again(const MrMessage *message)
{
	for (const MrFailure *failure = message->failures; failure != NULL; failure = failure->next)
	{
		if (!failure->silent)
			return true;
	}
	return false;
}

/* What became of a message: mapped, and perhaps newer than what was there. */
typedef enum Outcome
{
	OUTCOME_NONE,
	OUTCOME_MAPPED,
	OUTCOME_ACCEPTED
} Outcome;

/* The outcome of each message. */
static Outcome *
find_outcomes(const MrBatch *batch)
{
	Outcome *outcomes = palloc0(sizeof(Outcome) * Max(batch->nmessages, 1));

	for (int s = 0; s < batch->nstaged; s++)
	{
		for (int i = 0; i < batch->staged[s].nversions; i++)
		{
			const MrVersion *version = &batch->staged[s].versions[i];
			Outcome *outcome = &outcomes[version->message - batch->messages];

			*outcome = Max(*outcome, version->accepted ? OUTCOME_ACCEPTED : OUTCOME_MAPPED);
		}
	}
	return outcomes;
}

/* Are both letters of one message?  Those stand side by side. */
static bool
same_message(const MrMessage *left, const MrMessage *right)
{
	return left->position == right->position && left->partition == right->partition &&
		   left->epoch == right->epoch &&
		   memcmp(&left->place, &right->place, sizeof(pg_uuid_t)) == 0 &&
		   strcmp(left->topic, right->topic) == 0;
}

/* Runs a statement on letters by their ids. */
static void
close_letters(const char *sql, Datum *ids, int count)
{
	static const Oid types[] = {INT8ARRAYOID};
	Datum array;

	if (count == 0)
		return;
	array = PointerGetDatum(
		construct_array(ids, count, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	(void) mr_statement_run(mr_statement_create(sql, 1, types), &array, NULL);
}

void
mr_letter_close(MrBatch *batch, int64 *taken, int64 *closed)
{
	Outcome *outcomes = find_outcomes(batch);
	Datum *gone = palloc(sizeof(Datum) * Max(batch->nmessages, 1));
	Datum *late = palloc(sizeof(Datum) * Max(batch->nmessages, 1));
	int ngone = 0;
	int nlate = 0;
	MrRunAs saved;

	for (int i = 0, end; i < batch->nmessages; i = end)
	{
		Outcome outcome = OUTCOME_NONE;

		for (end = i;
			 end < batch->nmessages && same_message(&batch->messages[i], &batch->messages[end]);
			 end++)
			outcome = Max(outcome, outcomes[end]);
		for (int m = i; m < end; m++)
		{
			const MrMessage *message = &batch->messages[m];

			if (failed_again(message) || message->waits || message->unjudged)
				continue;
			/* A newer version of its object had come in the meantime. */
			if ((outcome == OUTCOME_MAPPED || message->late) && message->retried)
				late[nlate++] = Int64GetDatum(message->letter);
			else
				gone[ngone++] = Int64GetDatum(message->letter);
		}
	}
	mr_run_as(&saved, mr_extension_owner());
	close_letters("UPDATE millrace.letter SET state = 'superseded' WHERE id = ANY ($1)", late,
				  nlate);
	close_letters("DELETE FROM millrace.letter WHERE id = ANY ($1)", gone, ngone);
	mr_run_back(&saved);
	*closed += nlate;
	*taken += ngone;
}
