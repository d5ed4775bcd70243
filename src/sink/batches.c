/*
 * batches.c
 *	  Channels whose messages are sent in batches, in their order: Kafka, Redis, NOTIFY.
 *
 * To Kafka a batch is one transaction that also keeps the number of its last message (send_no).
 * When it is not known whether a transaction was committed, the producer is thrown away; the next
 * one reads the number, and what lies at or below it has been sent.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/async.h"
#include "core/millrace.h"
#include "sink/delivery.h"
#include "source/kafka_producer.h"
#include "source/server.h"
#include "stage/redis.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define NOTIFY_LIMIT 8000 /* bytes that a payload has to have less than */
#define KAFKA_TIMEOUT 5000 /* ms to begin, and as many again to write a batch */
#define KEY_PLACE "<key>"

/* What is kept open to a channel, as long as the server's properties are the same. */
typedef struct Connection
{
	int32 channel_id;
	MemoryContext context;
	char *properties;
	MrRedis *redis;
	MrKafkaProducer *producer;
	int64 kept; /* send_no of the last message that Kafka has */
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
	appendStringInfo(&text, "%s\n%s\n%s", channel->server, channel->origin,
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
		if (strcmp(connection->properties, properties) == 0)
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

/* An attempt of all of them begins. */
static void
begin_attempt(List *deliveries)
{
	ListCell *cell;

	foreach(cell, deliveries)
		((MrDelivery *) lfirst(cell))->at = GetCurrentTimestamp();
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
 */
static const char *
send_to_redis(MrRedis *redis, const MrDelivery *delivery)
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
	return mr_redis_transact(redis, n, commands);
}

/* One after the other; after the first that fails none is sent. */
static void
deliver_redis(List *deliveries)
{
	MrChannel *channel = ((MrDelivery *) linitial(deliveries))->channel;
	Connection *connection = connection_of(channel);
	ListCell *cell;

	if (connection->redis == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(connection->context);

		connection->redis = mr_redis_create_with(channel->server, channel->properties);
		MemoryContextSwitchTo(old);
	}
	foreach(cell, deliveries)
	{
		MrDelivery *delivery = lfirst(cell);
		const char *problem;

		delivery->at = GetCurrentTimestamp();
		problem = send_to_redis(connection->redis, delivery);
		end_attempt(delivery, problem ? MR_OUTCOME_RETRY : MR_OUTCOME_SENT, problem);
		if (problem)
			break;
		mr_debug_point("delivery_sent");
	}
}

/*
 * ---- Kafka --------------------------------------------------------------------------------------
 * ------------
 */

/* Opens the producer, and learns what the last one has sent. */
static bool
be_producing(Connection *connection, const MrChannel *channel, const char **problem)
{
	MemoryContext old;
	char *why = NULL;

	if (connection->producer)
		return true;
	old = MemoryContextSwitchTo(connection->context);
	connection->producer = mr_kafka_producer_open(
		channel->properties, psprintf("millrace-%s-%d", channel->origin, channel->id),
		channel->topic, &why);
	MemoryContextSwitchTo(old);
	if (connection->producer == NULL)
	{
		*problem = why;
		return false;
	}
	if (mr_kafka_producer_begin(connection->producer, KAFKA_TIMEOUT, &connection->kept))
		return true;
	*problem = pstrdup(mr_kafka_producer_problem(connection->producer));
	mr_kafka_producer_close(connection->producer);
	connection->producer = NULL;
	return false;
}

/* All that is left fails in one way; the first one is the attempt, the others were not tried. */
static void
fail_batch(List *deliveries, const char *problem)
{
	ListCell *cell;

	foreach(cell, deliveries)
		end_attempt(lfirst(cell),
					cell == list_head(deliveries) ? MR_OUTCOME_RETRY : MR_OUTCOME_UNSENT, problem);
}

/* Leaves out what an earlier transaction has sent already. */
static List *
leave_out_sent(List *deliveries, const Connection *connection)
{
	List *rest = NIL;
	int doubtful = 0;
	ListCell *cell;

	foreach(cell, deliveries)
	{
		MrDelivery *delivery = lfirst(cell);

		if (delivery->send_no <= connection->kept)
			end_attempt(delivery, MR_OUTCOME_SENT, NULL);
		else
			rest = lappend(rest, delivery);
		if (delivery->again && delivery->send_no > 1 && connection->kept < 0)
			doubtful++;
	}
	if (doubtful > 0)
		ereport(WARNING,
				(errmsg("channel \"%s\" may send %d messages twice",
						((MrDelivery *) linitial(deliveries))->channel->name, doubtful),
				 errdetail("The broker does not know any more which message was the last one.")));
	return rest;
}

/*
 * Sends in one transaction.  A broker that refuses a message refuses those as well that came with
 * it: which one it is is found by halves.  False when the channel fails.
 */
static bool
write_to_kafka(Connection *connection, const MrChannel *channel, List *deliveries)
{
	const char *problem;
	MrKafkaOut *messages;
	bool refused = false;
	ListCell *cell;
	int n;

	if (!be_producing(connection, channel, &problem))
	{
		fail_batch(deliveries, problem);
		return false;
	}
	deliveries = leave_out_sent(deliveries, connection);
	n = list_length(deliveries);
	if (n == 0)
		return true;
	messages = palloc0(sizeof(MrKafkaOut) * n);
	foreach(cell, deliveries)
	{
		const MrDelivery *delivery = lfirst(cell);
		MrKafkaOut *message = &messages[foreach_current_index(cell)];

		message->key = delivery->key;
		message->value = delivery->payload;
	}
	if (mr_kafka_producer_write(connection->producer, messages, n,
								((MrDelivery *) llast(deliveries))->send_no, KAFKA_TIMEOUT * 2))
	{
		connection->kept = ((MrDelivery *) llast(deliveries))->send_no;
		foreach(cell, deliveries)
			end_attempt(lfirst(cell), MR_OUTCOME_SENT, NULL);
		mr_debug_point("delivery_sent");
		return true;
	}
	problem = pstrdup(mr_kafka_producer_problem(connection->producer));
	mr_kafka_producer_close(connection->producer);
	connection->producer = NULL;
	for (int i = 0; i < n; i++)
		refused |= messages[i].refused;
	if (!refused)
	{
		fail_batch(deliveries, problem);
		return false;
	}
	if (n == 1)
	{
		end_attempt(linitial(deliveries), MR_OUTCOME_DEAD, messages[0].error);
		return true;
	}
	return write_to_kafka(connection, channel, list_truncate(list_copy(deliveries), n / 2)) &&
		   write_to_kafka(connection, channel, list_copy_tail(deliveries, n / 2));
}

static void
deliver_kafka(List *deliveries)
{
	MrChannel *channel = ((MrDelivery *) linitial(deliveries))->channel;

	begin_attempt(deliveries);
	(void) write_to_kafka(connection_of(channel), channel, deliveries);
}

/*
 * -------------------------------------------------------------------------------------------------
 * ------------
 */

/* Everything but NOTIFY. */
static void
send_batch(List *deliveries)
{
	MrChannel *channel = ((MrDelivery *) linitial(deliveries))->channel;

	if (channel->kind == MR_CHANNEL_KAFKA)
		deliver_kafka(deliveries);
	else if (channel->kind == MR_CHANNEL_REDIS)
		deliver_redis(deliveries);
	else
		elog(ERROR, "channel \"%s\" is not sent in batches", channel->name);
}

void
mr_batch_deliver(List *deliveries)
{
	if (((MrDelivery *) linitial(deliveries))->channel->kind == MR_CHANNEL_NOTIFY)
	{
		begin_attempt(deliveries);
		deliver_notify(deliveries);
		return;
	}
	send_batch(deliveries);
	(void) mr_record(deliveries);
}

void
mr_batch_send_one(MrDelivery *delivery)
{
	begin_attempt(list_make1(delivery));
	if (delivery->channel->kind == MR_CHANNEL_NOTIFY)
		notify(delivery);
	else
		send_batch(list_make1(delivery));
}
