/*
 * batches.c
 *	  Channels whose messages are sent in batches, in their order: Kafka, Redis, NOTIFY.
 *
 * To Kafka a batch is one transaction that also keeps the number of its last message (send_no).
 * When it is not known whether a transaction was committed, the producer is thrown away; the next
 * one reads the number, and what lies at or below it has been sent.
 *
 * An endpoint that does not answer holds up no other channel: each that is sending has its slice of
 * time, one after the other.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/async.h"
#include "core/millrace.h"
#include "miscadmin.h"
#include "sink/delivery.h"
#include "source/kafka_producer.h"
#include "source/server.h"
#include "stage/redis.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define NOTIFY_LIMIT 8000 /* bytes that a payload has to have less than */
#define KAFKA_TIMEOUT 5000 /* ms to begin, and twice as many to write a batch */
#define SLICE 20 /* ms that a channel which waits holds up the others */
#define KEY_PLACE "<key>"

/*
 * What is kept open to a channel, as long as the server's properties are the same, and what is
 * being sent over it.
 */
typedef struct Connection
{
	int32 channel_id;
	MemoryContext context;
	char *properties;
	MrRedis *redis;
	MrKafkaProducer *producer;
	bool producing; /* the producer has begun */
	int64 kept; /* send_no of the last message that Kafka has */

	MemoryContext work; /* of what is being sent */
	List *deliveries; /* all of it, NIL: nothing */
	List *rest; /* what has no outcome yet: deliveries, of Kafka lists of them */
	MrKafkaOut *messages; /* Kafka: the first of these lists, when it is being written */
} Connection;

static List *connections = NIL; /* Connection *, in TopMemoryContext */

static void
disconnect(Connection *connection)
{
	connections = list_delete_ptr(connections, connection);
	MemoryContextDelete(connection->context);
}

/* The properties as one text, to be compared only. */
static char *
properties_text(const MrChannel *channel)
{
	StringInfoData text;
	ListCell *cell;

	initStringInfo(&text);
	appendStringInfo(&text, "%s\n%s\n%s", channel->server ? channel->server : "", channel->origin,
					 channel->topic ? channel->topic : "");
	foreach(cell, channel->properties)
	{
		const MrProperty *property = lfirst(cell);

		appendStringInfo(&text, "\n%s=%s", property->name, property->value);
	}
	return text.data;
}

/* The connection of a channel, made when there is none that is as the channel says. */
static Connection *
connection_of(const MrChannel *channel)
{
	char *properties = properties_text(channel);
	Connection *connection;
	MemoryContext context;
	MemoryContext old;
	ListCell *cell;

	foreach(cell, connections)
	{
		connection = lfirst(cell);
		if (connection->channel_id != channel->id)
			continue;
		/* One that an error has left in the middle is of no more use. */
		if (strcmp(connection->properties, properties) == 0 && connection->deliveries == NIL)
			return connection;
		disconnect(connection);
		break;
	}
	context = AllocSetContextCreate(TopMemoryContext, "millrace connection", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	connection = palloc0(sizeof(Connection));
	connection->channel_id = channel->id;
	connection->context = context;
	connection->properties = pstrdup(properties);
	MemoryContextSwitchTo(TopMemoryContext);
	connections = lappend(connections, connection);
	MemoryContextSwitchTo(old);
	return connection;
}

static void
end_attempt(MrDelivery *delivery, MrOutcome outcome, const char *error)
{
	delivery->outcome = outcome;
	delivery->error = error ? pstrdup(error) : NULL;
	delivery->seconds = (GetCurrentTimestamp() - delivery->at) / (double) USECS_PER_SEC;
}

/*
 * ---- NOTIFY
 * -------------------------------------------------------------------------------------------------
 */

static void
notify(MrDelivery *delivery)
{
	if (strlen(delivery->payload) >= NOTIFY_LIMIT)
	{
		end_attempt(delivery, MR_OUTCOME_DEAD,
					psprintf("NOTIFY takes less than %d bytes, and the message has %zu",
							 NOTIFY_LIMIT, strlen(delivery->payload)));
		return;
	}
	Async_Notify(delivery->channel->notify, delivery->payload);
	end_attempt(delivery, MR_OUTCOME_SENT, NULL);
}

/*
 * Within the transaction that records them: what is told is recorded, and what is recorded is told.
 */
static void
deliver_notify(List *deliveries)
{
	MemoryContext context = CurrentMemoryContext;
	ListCell *cell;

	StartTransactionCommand();
	MemoryContextSwitchTo(context);
	foreach(cell, deliveries)
		notify(lfirst(cell));
	(void) mr_record(deliveries);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	mr_debug_point("delivery_recorded");
}

/*
 * ---- Redis --------------------------------------------------------------------------------------
 * ------------
 */

/* A key of the options, with the message's key in its place. */
static char *
redis_key(const char *pattern, const char *key)
{
	const char *place = strstr(pattern, KEY_PLACE);

	if (place == NULL)
		return pstrdup(pattern);
	return psprintf("%.*s%s%s", (int) (place - pattern), pattern, key, place + strlen(KEY_PLACE));
}

/* {"deleted": key} */
static char *
deletion(const char *key)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"deleted\": ");
	escape_json(&json, key);
	appendStringInfoChar(&json, '}');
	return json.data;
}

/*
 * Sets or deletes the keys, then publishes, in one transaction: whoever hears of it finds the keys.
 * False while it waits.
 */
static bool
send_to_redis(MrRedis *redis, const MrDelivery *delivery, const char **problem)
{
	const MrChannel *channel = delivery->channel;
	MrRedisCommand *commands = palloc0(sizeof(MrRedisCommand) * (list_length(channel->set) + 1));
	int n = 0;
	ListCell *cell;

	foreach(cell, channel->set)
	{
		const MrRedisKey *set = lfirst(cell);
		MrRedisCommand *command = &commands[n++];
		char *key = redis_key(set->key, delivery->key);

		command->nwords = delivery->payload ? 5 : 2;
		command->words[0] = delivery->payload ? "SET" : "DEL";
		command->words[1] = key;
		command->words[2] = delivery->payload;
		command->words[3] = "EX";
		command->words[4] = set->seconds;
	}
	if (channel->publish)
	{
		MrRedisCommand *command = &commands[n++];

		command->nwords = 3;
		command->words[0] = "PUBLISH";
		command->words[1] = channel->publish;
		command->words[2] = delivery->payload ? delivery->payload : deletion(delivery->key);
	}
	return mr_redis_transact(redis, n, commands, SLICE, problem);
}

/* One after the other, while it is our turn; after the first that fails none is sent. */
static bool
go_on_with_redis(Connection *connection, const MrChannel *channel)
{
	TimestampTz began = GetCurrentTimestamp();

	if (connection->redis == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(connection->context);

		connection->redis = mr_redis_create_with(channel->server, channel->properties);
		MemoryContextSwitchTo(old);
	}
	while (connection->rest != NIL)
	{
		MrDelivery *delivery = linitial(connection->rest);
		const char *problem;

		if (!send_to_redis(connection->redis, delivery, &problem))
			return false;
		end_attempt(delivery, problem ? MR_OUTCOME_RETRY : MR_OUTCOME_SENT, problem);
		if (problem)
			break;
		mr_debug_point("delivery_sent");
		connection->rest = list_delete_first(connection->rest);
		if (connection->rest == NIL)
			break;
		((MrDelivery *) linitial(connection->rest))->at = GetCurrentTimestamp();
		if (TimestampDifferenceExceeds(began, GetCurrentTimestamp(), SLICE))
			return false;
	}
	return true;
}

/*
 * ---- Kafka --------------------------------------------------------------------------------------
 * ------------
 */

/* The producer fails, or has done something it cannot go on from; returns why. */
static char *
give_up_producer(Connection *connection)
{
	char *problem = pstrdup(mr_kafka_producer_problem(connection->producer));

	mr_kafka_producer_close(connection->producer);
	connection->producer = NULL;
	connection->producing = false;
	connection->messages = NULL;
	return problem;
}

/* Opens the producer, and learns what the last one has sent. */
static MrKafkaVerdict
be_producing(Connection *connection, const MrChannel *channel, char **problem)
{
	MrKafkaVerdict verdict;

	if (connection->producing)
		return MR_KAFKA_DONE;
	if (connection->producer == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(connection->context);

		connection->producer = mr_kafka_producer_open(
			channel->properties, psprintf("millrace-%s-%d", channel->origin, channel->id),
			channel->topic, problem);
		MemoryContextSwitchTo(old);
		if (connection->producer == NULL)
			return MR_KAFKA_FAILED;
	}
	verdict = mr_kafka_producer_begin(connection->producer, KAFKA_TIMEOUT, &connection->kept);
	connection->producing = verdict == MR_KAFKA_DONE;
	if (verdict == MR_KAFKA_FAILED)
		*problem = give_up_producer(connection);
	return verdict;
}

/*
 * Leaves out what an earlier transaction has sent already.  What nobody can have sent, and has such a number all the same, needs another
 * one: the database has gone back, to a backup or a standby that was behind.
 */
static List *
leave_out_sent(List *deliveries, const Connection *connection)
{
	const MrChannel *channel = ((MrDelivery *) linitial(deliveries))->channel;
	List *rest = NIL;
	/* No number that was given here is as high. */
	bool gone_back = connection->kept > channel->send_no;
	int doubtful = 0;
	ListCell *cell;

	foreach(cell, deliveries)
	{
		MrDelivery *delivery = lfirst(cell);

		/* With what comes after it, to keep their order. */
		gone_back |= !delivery->again && delivery->send_no <= connection->kept;
		if (gone_back)
			delivery->passed_by = connection->kept;
		else if (delivery->send_no <= connection->kept)
			end_attempt(delivery, MR_OUTCOME_SENT, NULL);
		else
			rest = lappend(rest, delivery);
		if (delivery->again && delivery->send_no > 1 && connection->kept < 0)
			doubtful++;
	}
	if (doubtful > 0)
		ereport(WARNING,
				(errmsg("channel \"%s\" may send %d messages twice", channel->name, doubtful),
				 errdetail("The broker does not know any more which message was the last one.")));
	return rest;
}

/* Messages as the producer takes them. */
static MrKafkaOut *
make_messages(List *deliveries)
{
	MrKafkaOut *messages = palloc0(sizeof(MrKafkaOut) * list_length(deliveries));
	ListCell *cell;

	foreach(cell, deliveries)
	{
		MrDelivery *delivery = lfirst(cell);
		MrKafkaOut *message = &messages[foreach_current_index(cell)];

		delivery->handed_over = true;
		message->key = delivery->key;
		message->value = delivery->payload;
	}
	return messages;
}

/* A transaction was committed. */
static void
end_transaction(Connection *connection, List *deliveries)
{
	ListCell *cell;

	connection->kept = ((MrDelivery *) llast(deliveries))->send_no;
	connection->messages = NULL;
	connection->rest = list_delete_first(connection->rest);
	foreach(cell, deliveries)
		end_attempt(lfirst(cell), MR_OUTCOME_SENT, NULL);
	mr_debug_point("delivery_sent");
}

/*
 * A transaction has failed.  A broker that refuses a message refuses those as well that came with
 * it: which one it is is found by halves.  False: it was not because of a message.
 */
static bool
find_refused(Connection *connection, List *deliveries)
{
	int n = list_length(deliveries);
	bool refused = false;

	for (int i = 0; i < n; i++)
		refused |= connection->messages[i].refused;
	if (!refused)
		return false;
	connection->rest = list_delete_first(connection->rest);
	if (n == 1)
		end_attempt(linitial(deliveries), MR_OUTCOME_DEAD, connection->messages[0].error);
	else
	{
		connection->rest = lcons(list_copy_tail(deliveries, n / 2), connection->rest);
		connection->rest = lcons(list_truncate(deliveries, n / 2), connection->rest);
	}
	return true;
}

/* Sends in transactions; when the channel fails, that was an attempt of the first that is left. */
static bool
go_on_with_kafka(Connection *connection, const MrChannel *channel)
{
	while (connection->rest != NIL)
	{
		List *deliveries = linitial(connection->rest);
		char *problem = NULL;
		bool refused = false;
		MrKafkaVerdict verdict = be_producing(connection, channel, &problem);

		if (verdict == MR_KAFKA_DONE && connection->messages == NULL)
		{
			deliveries = leave_out_sent(deliveries, connection);
			if (deliveries == NIL)
			{
				connection->rest = list_delete_first(connection->rest);
				continue;
			}
			linitial(connection->rest) = deliveries;
			connection->messages = make_messages(deliveries);
		}
		if (verdict == MR_KAFKA_DONE)
		{
			verdict = mr_kafka_producer_write(
				connection->producer, connection->messages, list_length(deliveries),
				((MrDelivery *) llast(deliveries))->send_no, KAFKA_TIMEOUT * 2);
			if (verdict == MR_KAFKA_FAILED)
			{
				refused = find_refused(connection, deliveries);
				problem = give_up_producer(connection);
			}
		}
		if (verdict == MR_KAFKA_AGAIN)
			return false;
		if (verdict == MR_KAFKA_DONE)
			end_transaction(connection, deliveries);
		else if (!refused)
		{
			end_attempt(linitial(deliveries), MR_OUTCOME_RETRY, problem);
			return true;
		}
	}
	return true;
}

/*
 * -------------------------------------------------------------------------------------------------
 * ------------
 */

/* Deliveries of one channel are to be sent, in CurrentMemoryContext. */
static Connection *
begin(List *deliveries)
{
	const MrChannel *channel = ((MrDelivery *) linitial(deliveries))->channel;
	Connection *connection = connection_of(channel);
	ListCell *cell;

	connection->work = CurrentMemoryContext;
	connection->deliveries = deliveries;
	connection->rest = channel->kind == MR_CHANNEL_KAFKA ? list_make1(list_copy(deliveries))
														 : list_copy(deliveries);
	foreach(cell, deliveries)
		((MrDelivery *) lfirst(cell))->at = GetCurrentTimestamp();
	return connection;
}

/* Goes on with what is being sent, for a while; true when it is over. */
static bool
go_on(Connection *connection)
{
	const MrChannel *channel = ((MrDelivery *) linitial(connection->deliveries))->channel;

	if (channel->kind == MR_CHANNEL_KAFKA)
		return go_on_with_kafka(connection, channel);
	if (channel->kind == MR_CHANNEL_REDIS)
		return go_on_with_redis(connection, channel);
	elog(ERROR, "channel \"%s\" is not sent in batches", channel->name);
}

/* It is over: returns the deliveries. */
static List *
end(Connection *connection)
{
	List *deliveries = connection->deliveries;

	connection->deliveries = connection->rest = NIL;
	return deliveries;
}

void
mr_batch_begin(List *deliveries)
{
	(void) begin(deliveries);
}

bool
mr_batch_under_way(void)
{
	ListCell *cell;

	foreach(cell, connections)
	{
		if (((Connection *) lfirst(cell))->deliveries != NIL)
			return true;
	}
	return false;
}

List *
mr_batch_go_on(void)
{
	MemoryContext context = CurrentMemoryContext;
	List *over = NIL;
	ListCell *cell;

	foreach(cell, connections)
	{
		Connection *connection = lfirst(cell);
		List *deliveries = connection->deliveries;
		bool notifies;

		if (deliveries == NIL)
			continue;
		notifies = ((MrDelivery *) linitial(deliveries))->channel->kind == MR_CHANNEL_NOTIFY;
		MemoryContextSwitchTo(connection->work);
		if (notifies)
			deliver_notify(deliveries);
		else if (!go_on(connection))
			continue;
		else
			(void) mr_record(deliveries);
		MemoryContextSwitchTo(context);
		over = list_concat(over, list_copy(end(connection)));
	}
	MemoryContextSwitchTo(context);
	return over;
}

void
mr_batch_send_one(MrDelivery *delivery)
{
	Connection *connection;

	delivery->at = GetCurrentTimestamp();
	if (delivery->channel->kind == MR_CHANNEL_NOTIFY)
	{
		notify(delivery);
		return;
	}
	connection = begin(list_make1(delivery));
	while (!go_on(connection))
		CHECK_FOR_INTERRUPTS();
	(void) end(connection);
}
