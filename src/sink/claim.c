/*
 * claim.c
 *	  Claiming: what can be sent now becomes deliveries of this worker, before it is sent.
 *
 * A claim is valid as long as its worker lives: the worker holds a session lock on its claimant's
 * number, and whoever can take that lock knows that the worker is gone.  No time is involved, so
 * that a worker that was stopped and goes on finds its claims.
 *
 * Claims of one channel are made one after the other, under the lock of its row in channel_state.
 * A key of which something is claimed waits, so that messages of a key are sent in their order.  A
 * channel that fails sends one message at a time as a probe, by turns one that was tried before and
 * a new one, so that a message which the endpoint does not like holds up nobody for long.
 *
 * What a delivery sends is made here and kept, so that each attempt sends the same.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "sink/delivery.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/uuid.h"

#define AMONG 2 /* times as many messages are looked at as are wanted, at least 200 */
#define BATCH 1000 /* deliveries that are sent in one batch */
#define EXPRESSION_TIMEOUT 10000 /* ms that a channel's expression may take */
#define CLAIM_LOCK 0x6d72 /* in the field by which advisory locks of users are told apart */

static int64 claimant = 0;

/* The lock that says that a claimant lives. */
static bool
lock_claimant(int64 number, bool session)
{
	LOCKTAG tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) ((uint64) number >> 32), (uint32) number,
						 CLAIM_LOCK);
	return LockAcquire(&tag, ExclusiveLock, session, true) != LOCKACQUIRE_NOT_AVAIL;
}

void
mr_claim_init(void)
{
	bool taken = false;

	StartTransactionCommand();
	while (!taken)
	{
		if (!pg_strong_random(&claimant, sizeof(claimant)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random values")));
		claimant &= PG_INT64_MAX;
		taken = claimant != 0 && lock_claimant(claimant, true);
	}
	CommitTransactionCommand();
}

int64
mr_claimant(void)
{
	return claimant;
}

/* Takes over what workers have claimed that are gone. */
static void
release_orphans(const char *kinds)
{
	uint64 n = mr_sql("SELECT DISTINCT d.claimant FROM millrace.delivery d "
					  "JOIN millrace.channel c ON c.id = d.channel_id "
					  "WHERE d.state = 'claimed' AND d.claimant <> " INT64_FORMAT
					  " AND c.kind = ANY ('%s')",
					  claimant, kinds);
	int64 *others = palloc(sizeof(int64) * Max(n, 1));

	for (uint64 i = 0; i < n; i++)
	{
		bool isnull;

		others[i] = DatumGetInt64(mr_sql_value(i, 1, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	for (uint64 i = 0; i < n; i++)
	{
		if (lock_claimant(others[i], false))
			(void) mr_sql("SELECT millrace_internal.release_claims(" INT64_FORMAT ")", others[i]);
	}
}

/* ---- bodies ---------------------------------------------------------------------------------------------- */

/* What one delivery consists of. */
typedef struct Unit
{
	int64 id;
	int64 message_id; /* of the only message */
	char *key;
	bool alert;
	char *json; /* of the only message, or NULL */
	Datum messages; /* json[] */
	int64 count;
	TimestampTz created_at;
	TimestampTz not_after;
	bool expires;
	char *error; /* it is a dead letter from the start: why */
} Unit;

/* The body as the channel's kind has it. */
static char *
default_body(const MrChannel *channel, const Unit *unit)
{
	static const Oid types[] = {TEXTOID, BOOLOID, TEXTOID, JSONARRAYOID, INT8OID};
	Datum values[] = {CStringGetTextDatum(mr_channel_kinds[channel->kind]),
					  BoolGetDatum(unit->alert), CStringGetTextDatum(unit->key), unit->messages,
					  Int64GetDatum(unit->count)};
	static MrStatement *statement = NULL;
	char *body;

	/* A message of a sink is JSON already, and so is one that is sent to another program. */
	if (unit->count == 1 && unit->json && channel->kind != MR_CHANNEL_TELEGRAM &&
		!(unit->alert && channel->kind == MR_CHANNEL_WEBHOOK))
		return pstrdup(unit->json);
	(void) mr_statement_by_index(&statement,
								 "SELECT millrace_internal.delivery_body($1, $2, $3, $4, $5)",
								 lengthof(types), types, values);
	body = mr_sql_text(0, 1);
	SPI_freetuptable(SPI_tuptable);
	return body;
}

/*
 * The body that the channel's own expression makes, as its owner; its errors are the caller's
 * affair.
 */
static char *
own_body(const MrChannel *channel, const Unit *unit)
{
	static const Oid types[] = {JSONARRAYOID, TEXTOID, INT8OID, TIMESTAMPTZOID};
	Datum values[] = {unit->messages, CStringGetTextDatum(unit->key), Int64GetDatum(unit->count),
					  TimestampTzGetDatum(unit->created_at)};
	int nest_level = mr_settings_pin("UTC");
	/*
	 * A session's own time-out, when validate() is called under one, holds for all of its
	 * statement.
	 */
	bool limit = !get_timeout_active(STATEMENT_TIMEOUT);
	MrRunAs saved;
	char *body;

	mr_run_as_restricted(&saved, channel->owner);
	if (limit)
		enable_timeout_after(STATEMENT_TIMEOUT, EXPRESSION_TIMEOUT);
	(void) mr_sql_with(psprintf("SELECT millrace_def.channel_%d($1[1]::jsonb, $2, "
								"pg_catalog.array_to_json($1)::jsonb, $3, $4)",
								channel->id),
					   lengthof(types), types, values, NULL);
	if (limit)
		disable_timeout(STATEMENT_TIMEOUT, false);
	mr_run_back(&saved);
	mr_settings_unpin(nest_level);
	body = mr_sql_text(0, 1);
	SPI_freetuptable(SPI_tuptable);
	return body;
}

/*
 * What a unit sends, in one or more parts as char *.  An expression that fails on its data fails
 * for this unit only: then its error says why, and the parts hold the message itself.
 */
static List *
make_payloads(const MrChannel *channel, Unit *unit)
{
	ErrorData *volatile error = NULL;
	char *volatile body = NULL;
	MrAttempt attempt;

	if (!channel->has_message || unit->error)
		body = default_body(channel, unit);
	else
	{
		mr_attempt_begin(&attempt);
		PG_TRY();
		{
			body = own_body(channel, unit);
			mr_attempt_end(&attempt, true);
		}
		PG_CATCH();
		{
			disable_timeout(STATEMENT_TIMEOUT, false);
			error = mr_attempt_failed(&attempt);
		}
		PG_END_TRY();
		if (error != NULL && mr_error_class(error->sqlerrcode) != MR_ERROR_DATA)
			mr_rethrow(error);
		if (error != NULL)
			unit->error = psprintf("the channel's message expression fails: %s", error->message);
		if (unit->error)
			body = default_body(channel, unit);
		else if (body == NULL && channel->kind != MR_CHANNEL_KAFKA &&
				 channel->kind != MR_CHANNEL_REDIS)
			unit->error = "the channel's message expression gives NULL";
	}

	return body != NULL && channel->kind == MR_CHANNEL_TELEGRAM ? mr_text_split(body)
																: list_make1(body);
}

char *
mr_claim_test_body(const MrChannel *channel)
{
	Unit unit = {.key = "test", .alert = true, .count = 1};
	StringInfoData text;
	StringInfoData json;
	Datum message;
	bool isnull = false;
	int one = 1;

	initStringInfo(&text);
	initStringInfo(&json);
	appendStringInfo(&text, "A test of millrace's channel \"%s\".", channel->name);
	appendStringInfoString(&json, "{\"text\": ");
	escape_json(&json, text.data);
	appendStringInfoChar(&json, '}');
	message = CStringGetTextDatum(json.data);
	unit.messages = PointerGetDatum(
		construct_md_array(&message, &isnull, 1, &one, &one, JSONOID, -1, false, TYPALIGN_INT));
	unit.created_at = GetCurrentTimestamp();
	return channel->has_message ? own_body(channel, &unit) : default_body(channel, &unit);
}

/* ---- deliveries ------------------------------------------------------------------------------------------ */

/* Keeps the row of a delivery, columns as RETURNED names them. */
#define RETURNED \
	"d.id, d.key, d.part, cardinality(d.payloads), d.payloads[d.part], d.plain, d.attempts, " \
	"d.created_at, coalesce(d.send_no, 0)"

static MrDelivery *
read_delivery(MrChannel *channel, uint64 row)
{
	MrDelivery *delivery = palloc0(sizeof(MrDelivery));
	bool isnull;

	delivery->channel = channel;
	delivery->id = DatumGetInt64(mr_sql_value(row, 1, &isnull));
	delivery->key = mr_sql_text(row, 2);
	delivery->part = DatumGetInt32(mr_sql_value(row, 3, &isnull));
	delivery->parts = DatumGetInt32(mr_sql_value(row, 4, &isnull));
	delivery->payload = mr_sql_text(row, 5);
	delivery->plain = DatumGetBool(mr_sql_value(row, 6, &isnull));
	delivery->attempts = DatumGetInt32(mr_sql_value(row, 7, &isnull));
	delivery->created_at = DatumGetTimestampTz(mr_sql_value(row, 8, &isnull));
	delivery->send_no = DatumGetInt64(mr_sql_value(row, 9, &isnull));
	delivery->retry_after = -1;
	return delivery;
}

/* In the order of sending. */
static int
by_order(const ListCell *a, const ListCell *b)
{
	const MrDelivery *left = lfirst(a);
	const MrDelivery *right = lfirst(b);

	if (left->send_no != right->send_no)
		return left->send_no < right->send_no ? -1 : 1;
	return left->id < right->id ? -1 : left->id > right->id;
}

static bool
in_batches(const MrChannel *channel)
{
	return channel->kind >= MR_CHANNEL_KAFKA;
}

#define CLAIM_AGAIN(which) \
	"UPDATE millrace.delivery d SET state = 'claimed', claimant = $1, next_at = NULL " \
	"WHERE d.id = ANY (ARRAY(SELECT r.id FROM millrace.delivery r " \
	"WHERE r.channel_id = $2 AND r.state = 'ready' " which " LIMIT $3)) RETURNING " RETURNED

/* What was numbered last is kept with the claims that it was for. */
static void
keep_send_no(const MrChannel *channel)
{
	(void) mr_sql("UPDATE millrace.channel_state s SET send_no = " INT64_FORMAT
				  " WHERE s.channel_id = %d",
				  channel->send_no, channel->id);
}

/*
 * Numbers what has no number (any more), in its order: dead letters that are tried again, of which the first number would say that they
 * were sent, and what another message was sent with the number of.
 */
static void
number_again(MrChannel *channel, List *claimed)
{
	static const Oid types[] = {INT8ARRAYOID, INT8ARRAYOID};
	static MrStatement *number = NULL;
	MrArray *ids = mr_array_create(INT8OID, list_length(claimed));
	MrArray *send_nos = mr_array_create(INT8OID, list_length(claimed));
	Datum values[lengthof(types)];
	ListCell *cell;

	foreach(cell, claimed)
	{
		MrDelivery *delivery = lfirst(cell);

		if (delivery->send_no > 0)
			continue;
		delivery->send_no = ++channel->send_no;
		delivery->again = false;
		mr_array_add(ids, Int64GetDatum(delivery->id), false);
		mr_array_add(send_nos, Int64GetDatum(delivery->send_no), false);
	}
	if (mr_array_length(ids) == 0)
		return;
	values[0] = mr_array_datum(ids);
	values[1] = mr_array_datum(send_nos);
	(void) mr_statement_by_index(
		&number,
		"UPDATE millrace.delivery d SET send_no = u.send_no FROM unnest($1, $2) AS u (id, send_no) "
		"WHERE d.id = u.id",
		lengthof(types), types, values);
	keep_send_no(channel);
}

/* Claims deliveries that are to be tried again: those that are due; in batches all of them, in their order. */
static List *
claim_again(MrChannel *channel, int at_most)
{
	static const Oid types[] = {INT8OID, INT4OID, INT4OID, TIMESTAMPTZOID};
	static MrStatement *in_order = NULL;
	static MrStatement *due = NULL;
	Datum values[] = {Int64GetDatum(claimant), Int32GetDatum(channel->id), Int32GetDatum(at_most),
					  TimestampTzGetDatum(GetCurrentTimestamp())};
	List *claimed = NIL;
	uint64 n;

	if (in_batches(channel))
		n = mr_statement_by_index(&in_order, CLAIM_AGAIN("ORDER BY r.send_no, r.id"), 3, types,
								  values);
	else
		n = mr_statement_by_index(&due, CLAIM_AGAIN("AND r.next_at <= $4 ORDER BY r.next_at, r.id"),
								  lengthof(types), types, values);

	for (uint64 i = 0; i < n; i++)
	{
		MrDelivery *delivery = read_delivery(channel, i);

		delivery->again = true;
		claimed = lappend(claimed, delivery);
	}
	SPI_freetuptable(SPI_tuptable);
	list_sort(claimed, by_order);
	if (channel->kind == MR_CHANNEL_KAFKA)
	{
		number_again(channel, claimed);
		list_sort(claimed, by_order);
	}
	return claimed;
}

/* Writes new deliveries; returns those that are not dead letters from the start. */
static List *
add_deliveries(MrChannel *channel, Unit **units, int n)
{
	/* Parts of all of them stand in one array, of which each takes its own. */
	static const Oid types[] = {INT4OID,
								INT8OID,
								INT8ARRAYOID,
								TEXTARRAYOID,
								INT8ARRAYOID,
								INT4ARRAYOID,
								INT4ARRAYOID,
								TEXTARRAYOID,
								INT8ARRAYOID,
								TIMESTAMPTZARRAYOID,
								TIMESTAMPTZARRAYOID};
	static MrStatement *insert = NULL;
	MrArray *ids = mr_array_create(INT8OID, n);
	MrArray *keys = mr_array_create(TEXTOID, n);
	MrArray *counts = mr_array_create(INT8OID, n);
	MrArray *firsts = mr_array_create(INT4OID, n);
	MrArray *lasts = mr_array_create(INT4OID, n);
	MrArray *parts = mr_array_create(TEXTOID, n);
	MrArray *send_nos = mr_array_create(INT8OID, n);
	MrArray *created = mr_array_create(TIMESTAMPTZOID, n);
	MrArray *not_after = mr_array_create(TIMESTAMPTZOID, n);
	MrArray *dead = mr_array_create(INT8OID, 0);
	MrArray *errors = mr_array_create(TEXTOID, 0);
	List *claimed = NIL;
	Datum values[lengthof(types)];

	if (n == 0)
		return NIL;
	for (int i = 0; i < n; i++)
	{
		Unit *unit = units[i];
		MrDelivery *delivery = palloc0(sizeof(MrDelivery));
		List *payloads = make_payloads(channel, unit);
		ListCell *cell;

		delivery->channel = channel;
		delivery->id = unit->id;
		delivery->key = unit->key;
		delivery->part = 1;
		delivery->parts = list_length(payloads);
		delivery->payload = linitial(payloads);
		delivery->created_at = unit->created_at;
		delivery->retry_after = -1;
		if (channel->kind == MR_CHANNEL_KAFKA && unit->error == NULL)
			delivery->send_no = ++channel->send_no;

		mr_array_add(ids, Int64GetDatum(unit->id), false);
		mr_array_add(keys, CStringGetTextDatum(unit->key), false);
		mr_array_add(counts, Int64GetDatum(unit->count), false);
		mr_array_add(firsts, Int32GetDatum(mr_array_length(parts) + 1), false);
		foreach(cell, payloads)
			mr_array_add_text(parts, lfirst(cell));
		mr_array_add(lasts, Int32GetDatum(mr_array_length(parts)), false);
		mr_array_add(send_nos, Int64GetDatum(delivery->send_no), delivery->send_no == 0);
		mr_array_add(created, TimestampTzGetDatum(unit->created_at), false);
		mr_array_add(not_after, TimestampTzGetDatum(unit->not_after), !unit->expires);
		if (unit->error == NULL)
			claimed = lappend(claimed, delivery);
		else
		{
			mr_array_add(dead, Int64GetDatum(unit->id), false);
			mr_array_add_text(errors, unit->error);
		}
	}
	values[0] = Int32GetDatum(channel->id);
	values[1] = Int64GetDatum(claimant);
	values[2] = mr_array_datum(ids);
	values[3] = mr_array_datum(keys);
	values[4] = mr_array_datum(counts);
	values[5] = mr_array_datum(firsts);
	values[6] = mr_array_datum(lasts);
	values[7] = mr_array_datum(parts);
	values[8] = mr_array_datum(send_nos);
	values[9] = mr_array_datum(created);
	values[10] = mr_array_datum(not_after);
	(void) mr_statement_by_index(
		&insert,
		"INSERT INTO millrace.delivery (id, channel_id, key, messages, payloads, claimant, send_no, "
		"created_at, not_after) SELECT u.id, $1, u.key, u.messages, ($8)[u.first : u.last], $2, "
		"u.send_no, u.created_at, u.not_after FROM unnest($3, $4, $5, $6, $7, $9, $10, $11) "
		"AS u (id, key, messages, first, last, send_no, created_at, not_after)",
		lengthof(types), types, values);
	if (mr_array_length(dead) > 0)
	{
		static const Oid bury_types[] = {INT8ARRAYOID, TEXTARRAYOID};
		static MrStatement *bury = NULL;

		values[0] = mr_array_datum(dead);
		values[1] = mr_array_datum(errors);
		(void) mr_statement_by_index(&bury, "SELECT millrace_internal.bury_deliveries($1, $2)",
									 lengthof(bury_types), bury_types, values);
	}
	return claimed;
}

static int
by_message(const void *a, const void *b)
{
	int64 left = (*(Unit *const *) a)->message_id;
	int64 right = (*(Unit *const *) b)->message_id;

	return left < right ? -1 : left > right;
}

/* Takes messages, each for a delivery of its own; their units are in the order of the messages. */
static int
claim_messages(const MrArray *ids, Unit **units)
{
	static const Oid types[] = {INT8ARRAYOID};
	static MrStatement *update = NULL;
	Datum values[] = {mr_array_datum(ids)};
	uint64 n = mr_statement_by_index(&update,
									 "UPDATE millrace.outbox_message m SET state = 'claimed', "
									 "delivery_id = nextval('millrace.delivery_id_seq') "
									 "WHERE m.id = ANY ($1) RETURNING m.id, m.key, "
									 "m.alert_id IS NOT NULL, m.message, m.created_at, "
									 "m.not_after, m.delivery_id",
									 lengthof(types), types, values);

	for (uint64 i = 0; i < n; i++)
	{
		Unit *unit = units[i] = palloc0(sizeof(Unit));
		Datum message;
		bool isnull;
		int one = 1;

		unit->message_id = DatumGetInt64(mr_sql_value(i, 1, &isnull));
		unit->key = mr_sql_text(i, 2);
		unit->alert = DatumGetBool(mr_sql_value(i, 3, &isnull));
		message = mr_sql_value(i, 4, &isnull);
		if (!isnull)
		{
			message = PointerGetDatum(PG_DETOAST_DATUM_COPY(message));
			unit->json = TextDatumGetCString(message);
		}
		unit->messages = PointerGetDatum(
			construct_md_array(&message, &isnull, 1, &one, &one, JSONOID, -1, false, TYPALIGN_INT));
		unit->count = 1;
		unit->created_at = DatumGetTimestampTz(mr_sql_value(i, 5, &isnull));
		unit->not_after = DatumGetTimestampTz(mr_sql_value(i, 6, &isnull));
		unit->expires = !isnull;
		unit->id = DatumGetInt64(mr_sql_value(i, 7, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	qsort(units, n, sizeof(Unit *), by_message);
	return (int) n;
}

/* Takes what may be sent now of a group, for one delivery. */
static Unit *
claim_group(const MrChannel *channel, char *key, const char *group, bool alert)
{
	Unit *unit = palloc0(sizeof(Unit));
	bool isnull;

	(void) mr_sql("SELECT g.*, d.id FROM nextval('millrace.delivery_id_seq') AS d (id), "
				  "millrace_internal.claim_group(%d, %s, d.id, %d) AS g",
				  channel->id, quote_literal_cstr(group), channel->digest_above);
	unit->key = key;
	unit->alert = alert;
	unit->messages = PointerGetDatum(PG_DETOAST_DATUM_COPY(mr_sql_value(0, 1, &isnull)));
	unit->count = DatumGetInt64(mr_sql_value(0, 2, &isnull));
	unit->created_at = DatumGetTimestampTz(mr_sql_value(0, 3, &isnull));
	unit->not_after = DatumGetTimestampTz(mr_sql_value(0, 4, &isnull));
	unit->expires = !isnull;
	unit->id = DatumGetInt64(mr_sql_value(0, 5, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return unit;
}

/*
 * Makes deliveries of messages: those that SPI has just found, as next_messages() returns them.  With
 * an error they are dead letters.
 */
static List *
claim_found(MrChannel *channel, uint64 n, List *claimed, char *error)
{
	SPITupleTable *found = SPI_tuptable;
	Unit **units = palloc(sizeof(Unit *) * Max(n, 1));
	MrArray *ids = mr_array_create(INT8OID, (int) n);
	uint64 *grouped = palloc(sizeof(uint64) * Max(n, 1));
	int ngrouped = 0;
	int nunits = 0;

	if (n == 0)
	{
		SPI_freetuptable(found);
		return claimed;
	}
	for (uint64 i = 0; i < n; i++)
	{
		Datum id;
		bool isnull;

		(void) mr_sql_value(i, 3, &isnull);
		if (!isnull)
			grouped[ngrouped++] = i;
		else
		{
			id = mr_sql_value(i, 1, &isnull);
			mr_array_add(ids, id, false);
		}
	}
	if (mr_array_length(ids) > 0)
		nunits = claim_messages(ids, units);
	for (int i = 0; i < ngrouped; i++)
	{
		bool isnull;

		SPI_tuptable = found;
		units[nunits++] = claim_group(channel, mr_sql_text(grouped[i], 2),
									  mr_sql_text(grouped[i], 3),
									  DatumGetBool(mr_sql_value(grouped[i], 4, &isnull)));
	}
	SPI_freetuptable(found);
	for (int i = 0; i < nunits; i++)
		units[i]->error = error;
	claimed = list_concat(claimed, add_deliveries(channel, units, nunits));
	if (channel->kind == MR_CHANNEL_KAFKA)
		keep_send_no(channel);
	return claimed;
}

/* How many messages wait, at most so many. */
static uint64
find_waiting(const MrChannel *channel, int at_most)
{
	static const Oid types[] = {INT4OID, INT4OID};
	static MrStatement *statement = NULL;
	Datum values[] = {Int32GetDatum(channel->id), Int32GetDatum(at_most)};
	uint64 n = mr_statement_by_index(&statement,
									 "SELECT FROM millrace.outbox_message m "
									 "WHERE m.channel_id = $1 AND m.state = 'waiting' "
									 "ORDER BY m.id LIMIT $2",
									 lengthof(types), types, values);

	SPI_freetuptable(SPI_tuptable);
	return n;
}

/* Claims new messages. */
static List *
claim_new(MrChannel *channel, int at_most)
{
	static const Oid types[] = {INT4OID, INT4OID, INT4OID};
	static MrStatement *next = NULL;
	static HTAB *cursors = NULL; /* where next_keys() goes on, by channel */
	Datum values[] = {Int32GetDatum(channel->id), Int32GetDatum(at_most), 0};
	List *claimed;
	uint64 n;
	int among;

	if (at_most <= 0)
		return NIL;
	if (in_batches(channel))
	{
		static MrStatement *batch = NULL;

		n = mr_statement_by_index(
			&batch,
			"SELECT m.id, m.key, NULL::text, NULL::boolean FROM millrace.outbox_message m "
			"WHERE m.channel_id = $1 AND m.state = 'waiting' ORDER BY m.id LIMIT $2",
			2, types, values);
		return claim_found(channel, n, NIL, NULL);
	}
	among = Max(at_most * AMONG, 200);
	values[2] = Int32GetDatum(among);
	n = mr_statement_by_index(&next, "SELECT * FROM millrace_internal.next_messages($1, $2, $3)",
							  lengthof(types), types, values);
	claimed = claim_found(channel, n, NIL, NULL);
	if (n < at_most && find_waiting(channel, among) == among)
	{
		struct
		{
			int32 channel_id;
			char *key;
		} * cursor;
		bool found;

		if (cursors == NULL)
		{
			HASHCTL control = {.keysize = sizeof(int32), .entrysize = sizeof(*cursor)};

			cursors = hash_create("millrace keys", 16, &control, HASH_ELEM | HASH_BLOBS);
		}
		cursor = hash_search(cursors, &channel->id, HASH_ENTER, &found);
		if (!found)
			cursor->key = MemoryContextStrdup(TopMemoryContext, "");
		n = mr_sql("SELECT * FROM millrace_internal.next_keys(%d, %s, %d)", channel->id,
				   quote_literal_cstr(cursor->key), at_most - (int) n);
		pfree(cursor->key);
		cursor->key = MemoryContextStrdup(TopMemoryContext, n > 0 ? mr_sql_text(n - 1, 2) : "");
		claimed = claim_found(channel, n, claimed, NULL);
	}
	return claimed;
}

/*
 * What has waited behind a channel that fails for longer than its give_up is a dead letter although
 * nobody has tried it: an endpoint that is back after days gets what is new.  Not all at once; true
 * when there may be more.
 *
 * To Kafka what was claimed may have been sent with what was tried, and keeps its place.
 */
static bool
give_up(MrChannel *channel)
{
	static const Oid types[] = {INT4OID, TIMESTAMPTZOID, INT4OID, TEXTOID};
	static MrStatement *waiting = NULL;
	static MrStatement *ready = NULL;
	char *error = "it has waited for longer than the channel's give_up, while the channel failed";
	Datum values[] = {Int32GetDatum(channel->id),
					  TimestampTzGetDatum(GetCurrentTimestamp() - channel->give_up),
					  Int32GetDatum(BATCH), CStringGetTextDatum(error)};
	uint64 n;

	(void) mr_statement_by_index(
		&ready,
		"SELECT millrace_internal.bury_deliveries(array_agg(d.id), array_agg($4)) "
		"FROM millrace.delivery d WHERE d.channel_id = $1 AND d.state = 'ready' "
		"AND d.created_at < $2 AND d.attempts = 0 AND d.part = 1 AND d.send_no IS NULL "
		"HAVING count(*) > 0",
		lengthof(types), types, values);
	SPI_freetuptable(SPI_tuptable);
	n = mr_statement_by_index(
		&waiting,
		"SELECT o.id, o.key, NULL::text, NULL::boolean FROM (SELECT m.id, m.key, m.created_at "
		"FROM millrace.outbox_message m WHERE m.channel_id = $1 AND m.state = 'waiting' "
		"ORDER BY m.id LIMIT $3) AS o WHERE o.created_at < $2",
		3, types, values);
	(void) claim_found(channel, n, NIL, error);
	return n == BATCH;
}

/* Has the endpoint told all channels with this one's token to wait? */
static bool
is_paused(const MrChannel *channel, long *wait)
{
	static const Oid types[] = {INT4OID, UUIDOID};
	static MrStatement *statement = NULL;
	Datum values[] = {Int32GetDatum(channel->id), UUIDPGetDatum(&channel->sender)};
	TimestampTz until;
	bool isnull;

	if (!channel->has_sender ||
		mr_statement_by_index(&statement,
							  "UPDATE millrace.channel_state s SET not_before = p.not_before "
							  "FROM millrace.sender_pause p WHERE s.channel_id = $1 "
							  "AND p.sender = $2 AND p.not_before > clock_timestamp() "
							  "RETURNING s.not_before",
							  lengthof(types), types, values) == 0)
		return false;
	until = DatumGetTimestampTz(mr_sql_value(0, 1, &isnull));
	*wait = Min(*wait, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until) + 1);
	return true;
}

/*
 * Claims for one channel, of which `in_flight` deliveries are claimed already; the lock of its
 * state is held.
 */
static List *
claim_channel(MrChannel *channel, int in_flight, long *wait)
{
	int capacity;
	List *claimed;

	mr_channel_connect(channel);
	if (channel->problem)
		(void) mr_sql("UPDATE millrace.channel_state s SET problem = NULL WHERE s.channel_id = %d",
					  channel->id);
	if (is_paused(channel, wait))
		return NIL;
	/* What another one has claimed comes first. */
	if (in_batches(channel) && in_flight > 0)
		return NIL;
	mr_channel_thin_out(channel);
	if (channel->failures > 0 && give_up(channel))
	{
		*wait = 0;
		return NIL;
	}

	if (in_batches(channel))
	{
		/* What is tried again comes before what is new. */
		capacity = channel->failures > 0 ? 1 : BATCH;
		claimed = claim_again(channel, capacity);
		return claimed != NIL ? claimed : claim_new(channel, capacity);
	}
	capacity = (channel->failures > 0 ? 1 : channel->connections * MR_CLAIM_AHEAD) - in_flight;
	if (capacity <= 0)
		return NIL;
	if (channel->failures > 0 && channel->failures % 2 == 0)
	{
		claimed = claim_new(channel, capacity);
		return claimed != NIL ? claimed : claim_again(channel, capacity);
	}
	claimed = claim_again(channel, capacity);
	claimed = list_concat(claimed, claim_new(channel, capacity - list_length(claimed)));
	channel->more = find_waiting(channel, 1) > 0;
	return claimed;
}

/* Notes why a channel cannot be used, and says it once. */
static void
note_problem(const MrChannel *channel, const ErrorData *error)
{
	if (channel->problem == NULL || strcmp(channel->problem, error->message) != 0)
		ereport(LOG, (errcode(error->sqlerrcode),
					  errmsg("channel \"%s\" waits: %s", channel->name, error->message),
					  error->hint ? errhint("%s", error->hint) : 0));
	(void) mr_sql(
		"UPDATE millrace.channel_state s SET problem = %s, last_error_at = clock_timestamp(), "
		"not_before = clock_timestamp() + interval '%d ms' WHERE s.channel_id = %d",
		quote_literal_cstr(error->message), MR_PROBLEM_PAUSE, channel->id);
}

/*
 * Takes the right to claim for a channel, unless another one has it, and reads what may have
 * changed.
 */
static bool
lock_channel(MrChannel *channel, int *in_flight, TimestampTz *not_before)
{
	static const Oid types[] = {INT4OID};
	static MrStatement *lock = NULL;
	static MrStatement *count = NULL;
	Datum id = Int32GetDatum(channel->id);
	bool isnull;
	bool locked =
		mr_statement_by_index(&lock,
							  "SELECT s.failures, s.send_no, coalesce(s.not_before, '-infinity') "
							  "FROM millrace.channel_state s WHERE s.channel_id = $1 "
							  "FOR NO KEY UPDATE SKIP LOCKED",
							  lengthof(types), types, &id) > 0;

	if (locked)
	{
		channel->failures = DatumGetInt32(mr_sql_value(0, 1, &isnull));
		channel->send_no = DatumGetInt64(mr_sql_value(0, 2, &isnull));
		*not_before = DatumGetTimestampTz(mr_sql_value(0, 3, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	if (!locked)
		return false;
	(void) mr_statement_by_index(
		&count,
		"SELECT count(*)::integer FROM millrace.delivery d "
		"WHERE d.channel_id = $1 AND d.state = 'claimed' AND d.next_at IS NULL",
		lengthof(types), types, &id);
	*in_flight = DatumGetInt32(mr_sql_value(0, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return true;
}

/* Claims for one channel; what is wrong with it concerns no other. */
static List *
try_channel(MrChannel *channel, long *wait)
{
	List *volatile claimed = NIL;
	ErrorData *volatile error = NULL;
	volatile long soon = *wait;
	MrAttempt attempt;
	TimestampTz not_before;
	int in_flight;

	if (!lock_channel(channel, &in_flight, &not_before))
	{
		*wait = Min(*wait, 100);
		return NIL;
	}
	if (not_before > GetCurrentTimestamp())
	{
		*wait = Min(*wait, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), not_before) + 1);
		return NIL;
	}
	mr_attempt_begin(&attempt);
	PG_TRY();
	{
		long left = soon;

		claimed = claim_channel(channel, in_flight, &left);
		soon = left;
		mr_attempt_end(&attempt, true);
	}
	PG_CATCH();
	{
		error = mr_attempt_failed(&attempt);
		claimed = NIL;
	}
	PG_END_TRY();
	if (error)
		note_problem(channel, error);
	*wait = soon;
	return claimed;
}

/* Says each minute what may not be sent from here. */
static void
warn_of_fenced(const MrChannel *channel)
{
	ereport(WARNING,
			(errmsg("channel \"%s\" is fenced: its outbox is not sent from this instance",
					channel->name),
			 errdetail("The database was restored, copied or promoted, and the original may still "
					   "send."),
			 errhint("When it does not, call millrace.adopt().")));
}

/* Finds the channels of these kinds of which something waits; returns how many. */
static uint64
find_channels(const char *kinds)
{
	static const Oid types[] = {TEXTOID};
	static MrStatement *statement = NULL;
	static char *sql = NULL;
	Datum values[] = {CStringGetTextDatum(kinds)};

	if (sql == NULL)
		sql = MemoryContextStrdup(
			TopMemoryContext,
			psprintf(
				"SELECT %s, millrace_internal.may_send(c), w.waiting IS NOT NULL, "
				"coalesce(r.due, 'infinity') "
				"FROM millrace.channel c JOIN millrace.channel_state s ON s.channel_id = c.id "
				"CROSS JOIN LATERAL (SELECT min(m.id) AS waiting FROM millrace.outbox_message m "
				"WHERE m.channel_id = c.id AND m.state = 'waiting') AS w "
				"CROSS JOIN LATERAL (SELECT min(d.next_at) AS due FROM millrace.delivery d "
				"WHERE d.channel_id = c.id AND d.state = 'ready') AS r "
				"WHERE c.kind = ANY ($1::text[]) AND (w.waiting IS NOT NULL OR r.due IS NOT NULL) "
				"ORDER BY c.id",
				mr_channel_columns));
	return mr_statement_by_index(&statement, sql, lengthof(types), types, values);
}

List *
mr_claim(MrDeliveryClass class, long *wait)
{
	static TimestampTz looked_for_orphans = 0;
	static TimestampTz warned = 0;
	MemoryContext context = CurrentMemoryContext;
	const char *kinds = class == MR_DELIVERY_HTTP ? "{webhook, telegram}"
												  : "{kafka, redis, notify}";
	TimestampTz now = GetCurrentTimestamp();
	bool warn = TimestampDifferenceExceeds(warned, now, 60000);
	bool own_transaction = !IsTransactionState();
	List *claimed = NIL;
	List *channels = NIL;
	ListCell *cell;
	MrRunAs saved;
	uint64 n;

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
	if (TimestampDifferenceExceeds(looked_for_orphans, now, 1000))
	{
		release_orphans(kinds);
		looked_for_orphans = now;
	}
	n = find_channels(kinds);
	for (uint64 i = 0; i < n; i++)
	{
		MrChannel *channel = mr_channel_read(i);
		bool isnull;
		TimestampTz due;

		if (!DatumGetBool(mr_sql_value(i, 13, &isnull)))
		{
			if (warn)
				warn_of_fenced(channel);
			warned = now;
			continue;
		}
		due = DatumGetTimestampTz(mr_sql_value(i, 15, &isnull));
		if (DatumGetBool(mr_sql_value(i, 14, &isnull)) || due <= now || in_batches(channel))
			channels = lappend(channels, channel);
		if (due > now && !TIMESTAMP_IS_NOEND(due))
			*wait = Min(*wait, TimestampDifferenceMilliseconds(now, due) + 1);
	}
	SPI_freetuptable(SPI_tuptable);
	foreach(cell, channels)
		claimed = list_concat(claimed, try_channel(lfirst(cell), wait));
	PopActiveSnapshot();
	SPI_finish();
	mr_run_back(&saved);
	if (own_transaction)
	{
		CommitTransactionCommand();
		mr_debug_point("delivery_claimed");
	}
	MemoryContextSwitchTo(context);
	return claimed;
}
