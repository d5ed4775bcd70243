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

/* Writes the row of an attempt. */
static void
write_attempt(const MrDelivery *delivery, const char *outcome, TimestampTz next_at)
{
	static const Oid types[] = {INT8OID, INT4OID, INT4OID, TIMESTAMPTZOID, FLOAT8OID,
								TEXTOID, INT4OID, TEXTOID, TIMESTAMPTZOID};
	static MrStatement *insert = NULL;
	Datum values[lengthof(types)];
	char nulls[] = "         ";

	if (insert == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		insert = mr_statement_create("INSERT INTO millrace.attempt (delivery_id, part, no, at, "
									 "seconds, outcome, status, error, next_at) "
									 "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
									 lengthof(types), types);
		MemoryContextSwitchTo(old);
	}
	values[0] = Int64GetDatum(delivery->id);
	values[1] = Int32GetDatum(delivery->part);
	values[2] = Int32GetDatum(delivery->attempts);
	values[3] = TimestampTzGetDatum(delivery->at);
	values[4] = Float8GetDatum(delivery->seconds);
	values[5] = CStringGetTextDatum(outcome);
	values[6] = Int32GetDatum(delivery->status);
	nulls[6] = delivery->status ? ' ' : 'n';
	nulls[7] = delivery->error ? ' ' : 'n';
	values[7] = delivery->error ? CStringGetTextDatum(delivery->error) : (Datum) 0;
	nulls[8] = next_at ? ' ' : 'n';
	values[8] = TimestampTzGetDatum(next_at);
	(void) mr_statement_run(insert, values, nulls);
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
	static const Oid types[] = {INT8OID, INT4OID, TIMESTAMPTZOID};
	static MrStatement *update = NULL;
	Datum values[] = {Int64GetDatum(delivery->id), Int32GetDatum(delivery->attempts),
					  TimestampTzGetDatum(next_at)};

	if (update == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		update =
			mr_statement_create("UPDATE millrace.delivery d SET state = 'ready', claimant = NULL, "
								"attempts = $2, next_at = $3 WHERE d.id = $1",
								lengthof(types), types);
		MemoryContextSwitchTo(old);
	}
	(void) mr_statement_run(update, values, NULL);
}

/* Makes a dead letter of it. */
static void
bury(const MrDelivery *delivery)
{
	(void) mr_sql("UPDATE millrace.delivery d SET attempts = %d WHERE d.id = " INT64_FORMAT,
				  delivery->attempts, delivery->id);
	(void) mr_sql("SELECT millrace_internal.bury_delivery(" INT64_FORMAT ", %s)", delivery->id,
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

/* Writes what is known of a channel now. */
static void
write_summary(const Summary *summary, TimestampTz now)
{
	const MrChannel *channel = summary->channel;
	const MrDelivery *failed = summary->failed;
	const char *error = failed && failed->error ? quote_literal_cstr(failed->error) : "NULL";
	TimestampTz until = 0;

	if (summary->sent > 0)
		(void) mr_sql("UPDATE millrace.channel_state s SET sent = s.sent + " INT64_FORMAT
					  ", last_sent_at = clock_timestamp() WHERE s.channel_id = %d",
					  summary->sent, channel->id);
	if (summary->answered)
		(void) mr_sql("UPDATE millrace.channel_state s SET failures = 0, not_before = NULL "
					  "WHERE s.channel_id = %d AND s.failures > 0",
					  channel->id);
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

/*
 * Takes the locks in the order in which claims take them, and leaves out what is not ours any more:
 * its channel was dropped.
 */
static List *
lock_deliveries(List *deliveries, List *summaries)
{
	StringInfoData ids;
	List *ours = NIL;
	ListCell *cell;
	uint64 n;

	foreach(cell, summaries)
		(void) mr_sql(
			"SELECT FROM millrace.channel_state s WHERE s.channel_id = %d FOR NO KEY UPDATE",
			((Summary *) lfirst(cell))->channel->id);
	initStringInfo(&ids);
	foreach(cell, deliveries)
		appendStringInfo(&ids, "%s" INT64_FORMAT, ids.len > 0 ? "," : "",
						 ((MrDelivery *) lfirst(cell))->id);
	n = mr_sql("SELECT d.id FROM millrace.delivery d WHERE d.id = ANY ('{%s}') "
			   "AND d.state = 'claimed' AND d.claimant = " INT64_FORMAT
			   " ORDER BY d.id FOR NO KEY UPDATE",
			   ids.data, mr_claimant());
	foreach(cell, deliveries)
	{
		MrDelivery *delivery = lfirst(cell);
		uint64 low = 0;
		uint64 high = n;

		while (low < high)
		{
			uint64 middle = (low + high) / 2;
			bool isnull;
			int64 id = DatumGetInt64(mr_sql_value(middle, 1, &isnull));

			if (id == delivery->id)
			{
				ours = lappend(ours, delivery);
				break;
			}
			if (id < delivery->id)
				low = middle + 1;
			else
				high = middle;
		}
	}
	SPI_freetuptable(SPI_tuptable);
	return ours;
}

/* Records one delivery; true when more of it is to be sent now. */
static bool
record_one(MrDelivery *delivery, Summary *summary, StringInfo sent, TimestampTz now)
{
	TimestampTz next_at;

	if (delivery->outcome != MR_OUTCOME_UNSENT)
		delivery->attempts++;
	switch (delivery->outcome)
	{
		case MR_OUTCOME_UNSENT:
			put_back(delivery, now);
			if (delivery->not_allowed)
				summary->not_allowed = delivery;
			return false;
		case MR_OUTCOME_SENT:
			summary->answered = true;
			summary->failed = NULL;
			write_attempt(delivery, "sent", 0);
			if (delivery->part < delivery->parts)
				return go_on(delivery, true);
			summary->sent++;
			appendStringInfo(sent, "%s" INT64_FORMAT, sent->len > 0 ? "," : "", delivery->id);
			return false;
		case MR_OUTCOME_PLAIN:
			write_attempt(delivery, "retry", now);
			return go_on(delivery, false);
		case MR_OUTCOME_DEAD:
			summary->answered = true;
			summary->failed = NULL;
			write_attempt(delivery, "dead", 0);
			bury(delivery);
			return false;
		case MR_OUTCOME_RETRY:
			break;
	}
	summary->failed = delivery;
	next_at = next_attempt(delivery, now);
	if (now - delivery->created_at > delivery->channel->give_up)
	{
		write_attempt(delivery, "dead", 0);
		bury(delivery);
		return false;
	}
	write_attempt(delivery, "retry", next_at);
	put_back(delivery, next_at);
	return false;
}

List *
mr_record(List *deliveries)
{
	MemoryContext context = CurrentMemoryContext;
	bool own_transaction = !IsTransactionState();
	TimestampTz now = GetCurrentTimestamp();
	List *summaries = NIL;
	List *more = NIL;
	StringInfoData sent;
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
	deliveries = lock_deliveries(deliveries, summaries);
	initStringInfo(&sent);
	foreach(cell, deliveries)
	{
		MrDelivery *delivery = lfirst(cell);

		if (record_one(delivery, find_summary(&summaries, delivery->channel), &sent, now))
			more = lappend(more, delivery);
	}
	if (sent.len > 0)
		(void) mr_sql("SELECT millrace_internal.finish_deliveries('{%s}', 'sent')", sent.data);
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
