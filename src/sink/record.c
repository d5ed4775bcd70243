/*
 * record.c
 *	  Recording what became of attempts.
 *
 * What was sent is done; what failed for a time is tried again after a while, until it is older
 * than the channel's give_up, and then it is a dead letter, as is at once what the endpoint refuses
 * for good.  A channel's failures in a row are counted once for those attempts that were on their
 * way together: the first failure stops the others, and each probe after it is one more.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "sink/delivery.h"
#include "utils/memutils.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#define LONGEST_BACKOFF 300000 /* ms */

/*
 * How long to wait after so many attempts, in ms: between half and all of 1 s, 2 s, 4 s up to 5
 * minutes.
 */
static int
backoff(int attempts)
{
	int longest = attempts > 9 ? LONGEST_BACKOFF : Min(LONGEST_BACKOFF, 1000 << (attempts - 1));

	return longest / 2 + (int) (pg_prng_double(&pg_global_prng_state) * (longest / 2));
}

/* When it is tried again. */
static TimestampTz
next_attempt(const MrDelivery *delivery, TimestampTz now)
{
	return delivery->retry_after >= 0
			   ? TimestampTzPlusMilliseconds(now, (int64) delivery->retry_after * 1000)
			   : TimestampTzPlusMilliseconds(now, backoff(delivery->attempts));
}

/* Rows of attempts, until they are written together. */
typedef struct Attempts
{
	MrArray *delivery;
	MrArray *part;
	MrArray *no;
	MrArray *at;
	MrArray *seconds;
	MrArray *outcome;
	MrArray *status;
	MrArray *error;
	MrArray *next_at;
} Attempts;

/* Makes room for rows of attempts. */
static void
begin_attempts(Attempts *attempts, int expected)
{
	attempts->delivery = mr_array_create(INT8OID, expected);
	attempts->part = mr_array_create(INT4OID, expected);
	attempts->no = mr_array_create(INT4OID, expected);
	attempts->at = mr_array_create(TIMESTAMPTZOID, expected);
	attempts->seconds = mr_array_create(FLOAT8OID, expected);
	attempts->outcome = mr_array_create(TEXTOID, expected);
	attempts->status = mr_array_create(INT4OID, expected);
	attempts->error = mr_array_create(TEXTOID, expected);
	attempts->next_at = mr_array_create(TIMESTAMPTZOID, expected);
}

/* Keeps the row of an attempt. */
static void
add_attempt(Attempts *attempts, const MrDelivery *delivery, const char *outcome,
			TimestampTz next_at)
{
	mr_array_add(attempts->delivery, Int64GetDatum(delivery->id), false);
	mr_array_add(attempts->part, Int32GetDatum(delivery->part), false);
	mr_array_add(attempts->no, Int32GetDatum(delivery->attempts), false);
	mr_array_add(attempts->at, TimestampTzGetDatum(delivery->at), false);
	mr_array_add(attempts->seconds, Float8GetDatum(delivery->seconds), false);
	mr_array_add_text(attempts->outcome, outcome);
	mr_array_add(attempts->status, Int32GetDatum(delivery->status), delivery->status == 0);
	mr_array_add_text(attempts->error, delivery->error);
	mr_array_add(attempts->next_at, TimestampTzGetDatum(next_at), next_at == 0);
}

/* Writes the rows of attempts. */
static void
write_attempts(const Attempts *attempts)
{
	static const Oid types[] = {INT8ARRAYOID,        INT4ARRAYOID,   INT4ARRAYOID,
								TIMESTAMPTZARRAYOID, FLOAT8ARRAYOID, TEXTARRAYOID,
								INT4ARRAYOID,        TEXTARRAYOID,   TIMESTAMPTZARRAYOID};
	static MrStatement *insert = NULL;
	Datum values[] = {mr_array_datum(attempts->delivery), mr_array_datum(attempts->part),
					  mr_array_datum(attempts->no),       mr_array_datum(attempts->at),
					  mr_array_datum(attempts->seconds),  mr_array_datum(attempts->outcome),
					  mr_array_datum(attempts->status),   mr_array_datum(attempts->error),
					  mr_array_datum(attempts->next_at)};

	if (mr_array_length(attempts->delivery) == 0)
		return;
	(void) mr_statement_by_index(
		&insert,
		"INSERT INTO millrace.attempt (delivery_id, part, no, at, seconds, "
		"outcome, status, error, next_at) "
		"SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9)",
		lengthof(types), types, values);
}

/*
 * Makes the next part, or the same once more without markup, the one to be sent now; false when its
 * claim is not ours.
 */
static bool
go_on(MrDelivery *delivery, bool next_part)
{
	bool ours =
		mr_sql("UPDATE millrace.delivery d SET part = d.part + %d, attempts = %d, plain = %s "
			   "WHERE d.id = " INT64_FORMAT " RETURNING d.payloads[d.part]",
			   next_part ? 1 : 0, next_part ? 0 : delivery->attempts, next_part ? "false" : "true",
			   delivery->id) > 0;

	if (ours)
		delivery->payload = mr_sql_text(0, 1);
	SPI_freetuptable(SPI_tuptable);
	delivery->plain = !next_part;
	delivery->part += next_part ? 1 : 0;
	if (next_part)
		delivery->attempts = 0;
	delivery->outcome = MR_OUTCOME_UNSENT;
	return ours;
}

/* Gives it back, to be tried at a time. */
static void
put_back(const MrDelivery *delivery, TimestampTz next_at)
{
	static const Oid types[] = {INT8OID, INT4OID, TIMESTAMPTZOID, BOOLOID};
	static MrStatement *update = NULL;
	Datum values[] = {
		Int64GetDatum(delivery->id), Int32GetDatum(delivery->attempts),
		TimestampTzGetDatum(next_at),
		BoolGetDatum(delivery->passed_by > 0 || !(delivery->again || delivery->handed_over))};

	(void) mr_statement_by_index(
		&update,
		"UPDATE millrace.delivery d SET state = 'ready', claimant = NULL, attempts = $2, "
		"next_at = $3, send_no = CASE WHEN NOT $4 THEN d.send_no END WHERE d.id = $1",
		lengthof(types), types, values);
}

/* Makes a dead letter of it. */
static void
bury(const MrDelivery *delivery)
{
	(void) mr_sql("UPDATE millrace.delivery d SET attempts = %d WHERE d.id = " INT64_FORMAT,
				  delivery->attempts, delivery->id);
	(void) mr_sql("SELECT millrace_internal.bury_deliveries(ARRAY[" INT64_FORMAT "], ARRAY[%s])",
				  delivery->id,
				  quote_literal_cstr(delivery->error ? delivery->error : "it was refused"));
}

/* What the attempts say of one channel. */
typedef struct Summary
{
	MrChannel *channel;
	int64 sent;
	bool answered; /* the endpoint works */
	MrDelivery *failed; /* the last one that failed for a time */
	MrDelivery *not_allowed;
	int64 passed_by; /* the highest number that was sent without being known here; or 0 */
} Summary;

/* Tells all channels with the same token to wait. */
static void
pause_sender(const MrChannel *channel, TimestampTz until)
{
	static const Oid types[] = {UUIDOID, TIMESTAMPTZOID};
	Datum values[] = {UUIDPGetDatum(&channel->sender), TimestampTzGetDatum(until)};

	if (!channel->has_sender)
		return;
	(void) mr_sql_with(
		"INSERT INTO millrace.sender_pause AS p (sender, not_before) VALUES ($1, $2) "
		"ON CONFLICT (sender) DO UPDATE SET not_before = greatest(p.not_before, excluded.not_before)",
		lengthof(types), types, values, NULL);
}

/* The endpoint works. */
static void
write_success(const Summary *summary)
{
	static const Oid types[] = {INT4OID, INT8OID, BOOLOID};
	static MrStatement *update = NULL;
	Datum values[] = {Int32GetDatum(summary->channel->id), Int64GetDatum(summary->sent),
					  BoolGetDatum(summary->answered)};

	(void) mr_statement_by_index(
		&update,
		"UPDATE millrace.channel_state s SET sent = s.sent + $2, "
		"last_sent_at = CASE WHEN $2 > 0 THEN clock_timestamp() ELSE s.last_sent_at END, "
		"failures = CASE WHEN $3 THEN 0 ELSE s.failures END, "
		"not_before = CASE WHEN $3 AND s.failures > 0 THEN NULL ELSE s.not_before END "
		"WHERE s.channel_id = $1",
		lengthof(types), types, values);
}

/* Writes what is known of a channel now. */
static void
write_summary(const Summary *summary, TimestampTz now)
{
	const MrChannel *channel = summary->channel;
	const MrDelivery *failed = summary->failed;
	const char *error = failed && failed->error ? quote_literal_cstr(failed->error) : "NULL";
	TimestampTz until = 0;

	if (summary->sent > 0 || summary->answered)
		write_success(summary);
	if (summary->passed_by > 0)
	{
		(void) mr_sql(
			"UPDATE millrace.channel_state s SET send_no = greatest(s.send_no, " INT64_FORMAT
			") WHERE s.channel_id = %d",
			summary->passed_by, channel->id);
		ereport(WARNING,
				(errmsg("channel \"%s\" has sent messages that this database knows nothing of",
						channel->name),
				 errdetail("It was restored from a backup, or from a server that was behind.")));
	}
	if (failed)
	{
		int failures;
		bool isnull;
		static const Oid types[] = {TIMESTAMPTZOID};
		Datum values[1];

		/* An attempt that began before the last failure was known adds none. */
		values[0] = TimestampTzGetDatum(failed->at);
		(void) mr_sql_with(
			psprintf("UPDATE millrace.channel_state s SET failures = s.failures + "
					 "CASE WHEN s.failures > 0 AND $1 < s.last_error_at THEN 0 ELSE 1 END, "
					 "last_error = %s, last_error_at = clock_timestamp() "
					 "WHERE s.channel_id = %d RETURNING s.failures",
					 error, channel->id),
			lengthof(types), types, values, NULL);
		if (SPI_processed == 0)
			return;
		failures = DatumGetInt32(mr_sql_value(0, 1, &isnull));
		SPI_freetuptable(SPI_tuptable);
		if (failed->retry_after >= 0)
		{
			until = TimestampTzPlusMilliseconds(now, (int64) failed->retry_after * 1000);
			pause_sender(channel, until);
		}
		else
			until = TimestampTzPlusMilliseconds(now, backoff(failures));
		if (failures == 1)
			ereport(LOG, (errcode(ERRCODE_CONNECTION_EXCEPTION),
						  errmsg("channel \"%s\" fails: %s", channel->name,
								 failed->error ? failed->error : "")));
	}
	else if (summary->not_allowed)
		until = TimestampTzPlusMilliseconds(now, MR_PROBLEM_PAUSE);
	if (until != 0)
	{
		static const Oid types[] = {TIMESTAMPTZOID};
		Datum values[] = {TimestampTzGetDatum(until)};

		(void) mr_sql_with(
			psprintf("UPDATE millrace.channel_state s SET not_before = $1, problem = %s "
					 "WHERE s.channel_id = %d",
					 summary->not_allowed && !failed
						 ? quote_literal_cstr(summary->not_allowed->error)
						 : "NULL",
					 channel->id),
			lengthof(types), types, values, NULL);
	}
}

/* The summary of a delivery's channel, made when it is the first. */
static Summary *
find_summary(List **summaries, MrChannel *channel)
{
	Summary *summary;
	ListCell *cell;

	foreach(cell, *summaries)
	{
		summary = lfirst(cell);
		if (summary->channel->id == channel->id)
			return summary;
	}
	summary = palloc0(sizeof(Summary));
	summary->channel = channel;
	*summaries = lappend(*summaries, summary);
	return summary;
}

static int
by_channel(const ListCell *a, const ListCell *b)
{
	int32 left = ((Summary *) lfirst(a))->channel->id;
	int32 right = ((Summary *) lfirst(b))->channel->id;

	return left < right ? -1 : left > right;
}

/* Pauses of senders are locked in their order, too; the channels are locked already. */
static int
by_sender(const ListCell *a, const ListCell *b)
{
	return memcmp(&((Summary *) lfirst(a))->channel->sender,
				  &((Summary *) lfirst(b))->channel->sender, sizeof(pg_uuid_t));
}

/* Is all of it sent? */
static bool
is_finished(const MrDelivery *delivery)
{
	return delivery->outcome == MR_OUTCOME_SENT && delivery->part == delivery->parts;
}

static int
by_number(const void *a, const void *b)
{
	int64 left = *(const int64 *) a;
	int64 right = *(const int64 *) b;

	return left < right ? -1 : left > right;
}

/*
 * Runs a statement over the deliveries that are finished, or over the others, and notes which are
 * ours still, because it returns them: the channel of the others was dropped.
 */
static void
take_ours(MrStatement **statement, const char *sql, List *deliveries, bool finished)
{
	static const Oid types[] = {INT8ARRAYOID, INT8OID};
	MrArray *ids = mr_array_create(INT8OID, list_length(deliveries));
	Datum values[2];
	int64 *ours;
	ListCell *cell;
	uint64 n;

	foreach(cell, deliveries)
	{
		const MrDelivery *delivery = lfirst(cell);

		if (is_finished(delivery) == finished)
			mr_array_add(ids, Int64GetDatum(delivery->id), false);
	}
	if (mr_array_length(ids) == 0)
		return;
	values[0] = mr_array_datum(ids);
	values[1] = Int64GetDatum(mr_claimant());
	n = mr_statement_by_index(statement, sql, lengthof(types), types, values);
	ours = palloc(sizeof(int64) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
	{
		bool isnull;

		ours[i] = DatumGetInt64(mr_sql_value(i, 1, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	qsort(ours, n, sizeof(int64), by_number);
	foreach(cell, deliveries)
	{
		MrDelivery *delivery = lfirst(cell);

		if (is_finished(delivery) == finished)
			delivery->ours = bsearch(&delivery->id, ours, n, sizeof(int64), by_number) != NULL;
	}
}

/*
 * Takes the locks in the order in which claims take them, ends what is finished, and notes which
 * deliveries are ours.
 */
static void
lock_deliveries(List *deliveries, List *summaries)
{
	static const Oid types[] = {INT4OID};
	static MrStatement *lock_channel = NULL;
	static MrStatement *finish = NULL;
	static MrStatement *lock = NULL;
	ListCell *cell;

	foreach(cell, summaries)
	{
		Datum id = Int32GetDatum(((Summary *) lfirst(cell))->channel->id);

		(void) mr_statement_by_index(
			&lock_channel,
			"SELECT FROM millrace.channel_state s WHERE s.channel_id = $1 FOR NO KEY UPDATE",
			lengthof(types), types, &id);
	}
	take_ours(&finish,
			  "UPDATE millrace.delivery d SET state = 'sent', done_at = clock_timestamp(), "
			  "claimant = NULL, next_at = NULL, attempts = d.attempts + 1 "
			  "WHERE d.id = ANY ($1) AND d.claimant = $2 RETURNING d.id",
			  deliveries, true);
	take_ours(&lock,
			  "SELECT d.id FROM millrace.delivery d WHERE d.id = ANY ($1) AND d.claimant = $2 "
			  "ORDER BY d.id FOR NO KEY UPDATE",
			  deliveries, false);
}

/* Records one delivery; true when more of it is to be sent now. */
static bool
record_one(MrDelivery *delivery, Summary *summary, MrArray *sent, Attempts *attempts,
		   TimestampTz now)
{
	TimestampTz next_at;

	if (delivery->outcome != MR_OUTCOME_UNSENT)
		delivery->attempts++;
	switch (delivery->outcome)
	{
		case MR_OUTCOME_UNSENT:
			put_back(delivery, now);
			summary->passed_by = Max(summary->passed_by, delivery->passed_by);
			if (delivery->not_allowed)
				summary->not_allowed = delivery;
			return false;
		case MR_OUTCOME_SENT:
			summary->answered = true;
			summary->failed = NULL;
			add_attempt(attempts, delivery, "sent", 0);
			if (delivery->part < delivery->parts)
				return go_on(delivery, true);
			summary->sent++;
			mr_array_add(sent, Int64GetDatum(delivery->id), false);
			return false;
		case MR_OUTCOME_PLAIN:
			add_attempt(attempts, delivery, "retry", now);
			return go_on(delivery, false);
		case MR_OUTCOME_DEAD:
			summary->answered = true;
			summary->failed = NULL;
			add_attempt(attempts, delivery, "dead", 0);
			bury(delivery);
			return false;
		case MR_OUTCOME_RETRY:
			break;
	}
	summary->failed = delivery;
	next_at = next_attempt(delivery, now);
	if (now - delivery->created_at > delivery->channel->give_up)
	{
		add_attempt(attempts, delivery, "dead", 0);
		bury(delivery);
		return false;
	}
	add_attempt(attempts, delivery, "retry", next_at);
	put_back(delivery, next_at);
	return false;
}

/* Ends the messages of deliveries that were sent; of those about somebody who was erased nothing stays. */
static void
finish_messages(const MrArray *sent)
{
	static const Oid types[] = {INT8ARRAYOID};
	static MrStatement *finish = NULL;
	static MrStatement *forget = NULL;
	Datum ids = mr_array_datum(sent);
	bool isnull;

	(void) mr_statement_by_index(
		&finish,
		"WITH ended AS (UPDATE millrace.outbox_message m SET state = 'sent' "
		"WHERE m.delivery_id = ANY ($1) RETURNING m.delivery_id, m.erased) "
		"SELECT array_agg(e.delivery_id) FROM ended e WHERE e.erased",
		lengthof(types), types, &ids);
	ids = mr_sql_value(0, 1, &isnull);
	if (!isnull)
		(void) mr_statement_by_index(&forget, "SELECT millrace_internal.forget_deliveries($1)",
									 lengthof(types), types, &ids);
}

List *
mr_record(List *deliveries)
{
	MemoryContext context = CurrentMemoryContext;
	bool own_transaction = !IsTransactionState();
	TimestampTz now = GetCurrentTimestamp();
	List *summaries = NIL;
	List *more = NIL;
	MrArray *sent;
	Attempts attempts;
	ListCell *cell;
	MrRunAs saved;

	if (deliveries == NIL)
		return NIL;
	if (own_transaction)
		StartTransactionCommand();
	if (!mr_extension_exists())
	{
		if (own_transaction)
			CommitTransactionCommand();
		MemoryContextSwitchTo(context);
		return NIL;
	}
	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(context);

	foreach(cell, deliveries)
		(void) find_summary(&summaries, ((MrDelivery *) lfirst(cell))->channel);
	list_sort(summaries, by_channel);
	lock_deliveries(deliveries, summaries);
	sent = mr_array_create(INT8OID, list_length(deliveries));
	begin_attempts(&attempts, list_length(deliveries));
	foreach(cell, deliveries)
	{
		MrDelivery *delivery = lfirst(cell);

		if (delivery->ours &&
			record_one(delivery, find_summary(&summaries, delivery->channel), sent, &attempts, now))
			more = lappend(more, delivery);
	}
	write_attempts(&attempts);
	if (mr_array_length(sent) > 0)
		finish_messages(sent);
	list_sort(summaries, by_sender);
	foreach(cell, summaries)
		write_summary(lfirst(cell), now);

	PopActiveSnapshot();
	SPI_finish();
	mr_run_back(&saved);
	mr_debug_point("delivery_before_record");
	if (own_transaction)
	{
		CommitTransactionCommand();
		mr_debug_point("delivery_recorded");
	}
	MemoryContextSwitchTo(context);
	return more;
}
