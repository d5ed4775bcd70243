/*
 * kafka_peek.c
 *	  The messages that a stream would read next, without reading them for it.
 *
 * A client of its own begins at the stored positions, or where the stream would begin.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "miscadmin.h"
#include "source/kafka_message.h"
#include "source/kafka_topic.h"
#include "source/server.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/* The broker's fault, in words. */
static void
fail(const MrStream *stream, const char *problem)
{
	ereport(ERROR, (errcode(ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION),
					errmsg("stream \"%s\" cannot be read: %s", stream->name,
						   problem != NULL ? problem : "the broker did not answer in time")));
}

/* The stored position of a partition; false when it has none. */
static bool
stored_position(const MrStream *stream, const char *topic, int32 partition, int64 *position)
{
	MrRunAs saved;
	bool isnull;
	uint64 count;

	mr_run_as(&saved, mr_extension_owner());
	count = mr_sql("SELECT position FROM millrace.stream_position "
				   "WHERE stream_id = %d AND topic = %s AND partition = %d",
				   stream->id, quote_literal_cstr(topic), partition);
	if (count > 0)
		*position = DatumGetInt64(mr_sql_value(0, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	mr_run_back(&saved);
	return count > 0;
}

/* Where to begin in all partitions that have something to read. */
static List *
find_begins(const MrStream *stream, MrKafkaClient *client, const MrKafkaOptions *options,
			int timeout_ms)
{
	List *begins = NIL;
	List *topics;
	ListCell *cell;

	if (!mr_kafka_find_topics(client, options, timeout_ms, &topics))
		fail(stream, mr_kafka_problem(client, NULL));
	foreach(cell, topics)
	{
		MrKafkaTopic *topic = lfirst(cell);

		for (int32 i = 0; i < topic->partitions; i++)
		{
			MrKafkaBegin *begin = palloc0(sizeof(MrKafkaBegin));
			int64 low;
			int64 high;

			if (!mr_kafka_wants(options, i))
				continue;
			if (!mr_kafka_watermarks(client, topic->name, i, timeout_ms, &low, &high) ||
				(!stored_position(stream, topic->name, i, &begin->offset) &&
				 !mr_kafka_first_offset(client, options, topic->name, i, timeout_ms,
										&begin->offset)))
				fail(stream, mr_kafka_problem(client, NULL));
			begin->topic = topic->name;
			begin->partition = i;
			begin->offset = Max(begin->offset, low);
			if (begin->offset < high)
				begins = lappend(begins, begin);
		}
	}
	return begins;
}

void
mr_kafka_peek(MrStream *stream, MrBatch *batch, int max_messages, Size max_bytes, int timeout_ms)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	MrKafkaOptions *options = mr_kafka_options(stream);
	List *properties = mr_server_properties(stream->server, stream->owner);
	MrProperty *group = palloc(sizeof(MrProperty));
	pgsocket descriptor = mr_kafka_descriptor();
	MrKafkaClient *client;
	MrKafkaRecord record;
	MrKafkaBegin *array;
	char *problem;
	List *begins;
	ListCell *cell;
	int left = 0;

	group->name = "group.id";
	group->value = psprintf("%s-preview", options->group);
	properties = lappend(list_concat(properties, options->properties), group);
	client = mr_kafka_connect(properties, descriptor, &problem);
	if (client == NULL)
		fail(stream, problem);
	begins = find_begins(stream, client, options, timeout_ms);
	array = palloc(sizeof(MrKafkaBegin) * Max(list_length(begins), 1));
	foreach(cell, begins)
		array[left++] = *(MrKafkaBegin *) lfirst(cell);
	if (left > 0 && !mr_kafka_assign(client, array, left))
		fail(stream, mr_kafka_problem(client, NULL));
	while (left > 0 && batch->nmessages < max_messages && batch->bytes < max_bytes)
	{
		MrKafkaEvent event = MR_KAFKA_NOTHING;

		mr_kafka_begin_poll(client);
		while (batch->nmessages < max_messages && batch->bytes < max_bytes &&
			   (event = mr_kafka_poll(client, &record)) != MR_KAFKA_NOTHING)
		{
			if (event == MR_KAFKA_END)
				left--;
			else if (event == MR_KAFKA_MESSAGE)
				(void) mr_kafka_message(batch, client, &record,
										MemoryContextStrdup(batch->context, record.topic),
										stream->epoch);
		}
		if (GetCurrentTimestamp() >= deadline)
			break;
		if (event == MR_KAFKA_NOTHING && left > 0)
			(void) mr_kafka_wait(client, 100);
	}
	problem = batch->nmessages == 0 && left > 0 ? (char *) mr_kafka_problem(client, NULL) : NULL;
	if (problem != NULL)
		fail(stream, pstrdup(problem));
	mr_kafka_disconnect(client);
}
