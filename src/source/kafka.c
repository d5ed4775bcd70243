/*
 * kafka.c
 *	  Kafka as a source (C5).
 *
 * The position of each partition is a row of ours, and the only truth.  A feed goes through these states:
 *
 *	connecting	no partition is assigned; each tick tries to find the topics, to add rows for partitions that
 *				have none, to compare positions with what the broker holds, and to assign
 *	reading		messages come; one below the position is a duplicate, a gap is normal (control records,
 *				compaction, aborted transactions)
 *	look again	reading has met something that only a new look can judge: an offset that is not there, another
 *				message than the one that was read last, a new partition.  The next tick starts over with a
 *				new client from the stored positions
 *	stopped		messages were lost and the stream's policy is to stop: somebody has to decide
 *
 * To see that a topic was re-created and has grown past the position, reading begins with the message before
 * the position: its time and checksum must be those stored with the position.
 */
#include "postgres.h"

#include "core/millrace.h"
#include "datatype/timestamp.h"
#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "source/kafka_client.h"
#include "source/kafka_message.h"
#include "source/kafka_options.h"
#include "source/kafka_topic.h"
#include "source/position.h"
#include "source/server.h"
#include "source/source.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

/* How long opening waits for the broker, and how long a tick does. */
#define OPEN_TIMEOUT_MS 5000
#define TICK_TIMEOUT_MS 1000

typedef struct KafkaPartition
{
	MrPosition position;
	const char *topic; /* lives as long as the source */
	bool verify; /* the message before the position is still to be compared */
	bool suspect; /* it was another one */
	bool at_end;
	int64 end; /* when the feed was opened */
	int last; /* the partition's last message in the batch, -1: none */
	int64 stored_high; /* as the row has them */
	int64 stored_reached;
	int64 told; /* to the broker */
} KafkaPartition;

typedef struct KafkaTopic
{
	const char *name; /* lives as long as the source */
	int count; /* of its partitions */
	bool matched; /* by a pattern */
} KafkaTopic;

/* A partition whose last message was not what it had been. */
typedef struct Suspect
{
	const char *topic;
	int32 partition;
} Suspect;

typedef struct KafkaSource
{
	MrSource base;
	MemoryContext context; /* the source's */
	MemoryContext reading; /* of one client's life */
	MrKafkaOptions *options;
	pgsocket descriptor; /* the same for all clients: whoever waits on it need not know of them */
	List *names; /* of all topics there have been: messages refer to them */
	KafkaTopic *topics; /* of one client's life */
	int ntopics;
	MrKafkaClient *client;
	KafkaPartition *partitions;
	int npartitions;
	KafkaPartition *recent; /* of the message before */
	List *suspects;
	bool assigned;
	bool look_again;
	bool emptied; /* the last fetch has left nothing in the queue */
	bool stopped;
	int failures; /* tries to assign since the last success */
	TimestampTz next_try;
	TimestampTz next_refresh;
	TimestampTz next_store;
} KafkaSource;

/* The client's problem is the source's. */
static void
copy_problem(KafkaSource *source)
{
	const char *problem;

	if (source->stopped || source->client == NULL)
		return;
	problem = mr_kafka_problem(source->client, NULL);
	if (problem == NULL && source->assigned && source->ntopics == 0)
		problem = "no topic matches the pattern of the stream";
	mr_source_set_problem(&source->base, problem);
}

/* Ends the client and forgets its partitions. */
static void
stop_reading(KafkaSource *source)
{
	if (source->client != NULL)
		mr_kafka_disconnect(source->client);
	source->client = NULL;
	source->topics = NULL;
	source->ntopics = 0;
	source->partitions = NULL;
	source->npartitions = 0;
	source->recent = NULL;
	source->assigned = false;
	MemoryContextReset(source->reading);
}

/* A new client, with the server's options and secrets as they are now. */
static bool
connect_client(KafkaSource *source)
{
	MrStream *stream = source->base.stream;
	MemoryContext old = MemoryContextSwitchTo(source->reading);
	MrProperty *group = palloc(sizeof(MrProperty));
	List *properties = mr_server_properties(stream->server, stream->owner);
	char *problem;

	group->name = "group.id";
	group->value = source->options->group;
	properties = lappend(list_concat(properties, source->options->properties), group);
	source->client = mr_kafka_connect(properties, source->descriptor, &problem);
	if (source->client == NULL)
		mr_source_set_problem(&source->base, problem);
	MemoryContextSwitchTo(old);
	return source->client != NULL;
}

/* ---- where to begin -------------------------------------------------------------------------------- */

/*
 * Gives every partition of a topic a row, whichever worker's it is, so that all begin by the same rule.  A
 * topic that has rows already is being read: a partition without one was added since, and is read from its
 * first message on.  So is a topic that has come to match a pattern since the stream began (`later`).
 */
static bool
add_rows(KafkaSource *source, const KafkaTopic *topic, bool later, int timeout_ms)
{
	MrStream *stream = source->base.stream;
	bool known = mr_positions_known(stream, topic->name);
	int64 *offsets = palloc0(sizeof(int64) * topic->count);
	int64 high;

	for (int32 i = 0; i < topic->count && !known; i++)
	{
		if (!mr_kafka_wants(source->options, i))
			continue;
		if (later && topic->matched)
		{
			if (!mr_kafka_watermarks(source->client, topic->name, i, timeout_ms, &offsets[i],
									 &high))
				return false;
		}
		else if (!mr_kafka_first_offset(source->client, source->options, topic->name, i, timeout_ms,
										&offsets[i]))
			return false;
	}
	for (int32 i = 0; i < topic->count; i++)
	{
		if (mr_kafka_wants(source->options, i))
			mr_position_insert(stream, topic->name, i, offsets[i]);
	}
	pfree(offsets);
	return true;
}

/* ---- lost messages --------------------------------------------------------------------------------- */

static bool
is_suspect(KafkaSource *source, const MrPosition *position)
{
	ListCell *cell;

	foreach(cell, source->suspects)
	{
		Suspect *suspect = lfirst(cell);

		if (suspect->partition == position->partition &&
			strcmp(suspect->topic, position->topic) == 0)
			return true;
	}
	return false;
}

/*
 * Judges a position by what the broker holds, and puts it where the policy says.  `raise` is set when the
 * topic is another one than it was.  False when the policy is to stop.
 */
static bool
judge(KafkaSource *source, MrPosition *position, int64 low, int64 high, bool *raise)
{
	MrStream *stream = source->base.stream;
	MrOnLost on_lost = source->options->on_lost;
	int64 target = on_lost == MR_ON_LOST_LATEST ? high : low;
	const char *kind;
	char *what;

	if (position->position > high)
	{
		kind = "topic_recreated";
		what = psprintf("topic \"%s\", partition %d: the next message is number " INT64_FORMAT
						", but the partition ends at " INT64_FORMAT
						": the topic has been created again or truncated",
						position->topic, position->partition, position->position, high);
	}
	else if (is_suspect(source, position))
	{
		kind = "topic_recreated";
		what = psprintf("topic \"%s\", partition %d: message " INT64_FORMAT
						" is not the one that was read: the topic has been created again",
						position->topic, position->partition, position->position - 1);
	}
	else if (position->position < low)
	{
		kind = "messages_lost";
		what = psprintf("topic \"%s\", partition %d: messages " INT64_FORMAT " to " INT64_FORMAT
						" were deleted before they were read",
						position->topic, position->partition, position->position, target - 1);
	}
	else
		return true;

	if (on_lost == MR_ON_LOST_STOP)
	{
		mr_incident(stream->id, kind, psprintf("%s; reading has stopped", what));
		mr_source_set_problem(
			&source->base,
			psprintf("%s; reset the stream, or declare it with on_lost \"earliest\" or "
					 "\"latest\"",
					 what));
		return false;
	}
	mr_incident(stream->id, kind, psprintf("%s; reading goes on at " INT64_FORMAT, what, target));
	ereport(LOG, (errmsg("stream \"%s\": %s; reading goes on at " INT64_FORMAT, stream->name, what,
						 target)));
	if (strcmp(kind, "topic_recreated") == 0)
		*raise = true;
	mr_position_put(stream, position, target);
	return true;
}

/* ---- topics ---------------------------------------------------------------------------------------- */

/* The name of a topic, kept as long as the source. */
static const char *
keep_name(KafkaSource *source, const char *name)
{
	MemoryContext old;
	ListCell *cell;
	char *kept;

	foreach(cell, source->names)
	{
		if (strcmp(lfirst(cell), name) == 0)
			return lfirst(cell);
	}
	old = MemoryContextSwitchTo(source->context);
	kept = pstrdup(name);
	source->names = lappend(source->names, kept);
	MemoryContextSwitchTo(old);
	return kept;
}

/* Finds the stream's topics; false when the broker does not answer or there is none. */
static bool
find_topics(KafkaSource *source, int timeout_ms)
{
	List *found;
	ListCell *cell;

	if (!mr_kafka_find_topics(source->client, source->options, timeout_ms, &found))
		return false;
	source->topics = palloc0(sizeof(KafkaTopic) * Max(list_length(found), 1));
	source->ntopics = 0;
	foreach(cell, found)
	{
		MrKafkaTopic *topic = lfirst(cell);
		KafkaTopic *known = &source->topics[source->ntopics++];

		known->name = keep_name(source, topic->name);
		known->count = topic->partitions;
		known->matched = topic->matched;
	}
	return true;
}

static KafkaTopic *
find_topic(KafkaSource *source, const char *name)
{
	for (int i = 0; i < source->ntopics; i++)
	{
		if (strcmp(source->topics[i].name, name) == 0)
			return &source->topics[i];
	}
	return NULL;
}

/* Are the topics and their partitions others than they were? */
static bool
topics_changed(KafkaSource *source, const List *found)
{
	ListCell *cell;

	if (list_length(found) != source->ntopics)
		return true;
	foreach(cell, found)
	{
		MrKafkaTopic *topic = lfirst(cell);
		KafkaTopic *known = find_topic(source, topic->name);

		if (known == NULL || known->count != topic->partitions)
			return true;
	}
	return false;
}

/* ---- assigning ------------------------------------------------------------------------------------- */

/*
 * Takes this worker's partitions over and judges them; `partitions` are those that can be read.  False when
 * the broker did not answer or reading has stopped; `raise` as in judge.
 */
static bool
take_partitions(KafkaSource *source, int timeout_ms, bool *raise)
{
	MrStream *stream = source->base.stream;
	MrPosition *positions;
	bool stop = false;
	int count;

	*raise = false;
	positions = mr_positions_take(stream, source->base.worker, source->base.workers,
								  mr_kafka_has_pattern(source->options), &count);
	source->partitions = palloc0(sizeof(KafkaPartition) * Max(count, 1));
	source->npartitions = 0;
	for (int i = 0; i < count; i++)
	{
		MrPosition *position = &positions[i];
		KafkaTopic *topic = find_topic(source, position->topic);
		KafkaPartition *partition = &source->partitions[source->npartitions];
		int64 low;
		int64 high;

		if (topic == NULL || !mr_kafka_wants(source->options, position->partition))
			continue;
		if (position->partition >= topic->count)
		{
			mr_incident(stream->id, "partition_gone",
						psprintf("topic \"%s\" has no partition %d any more", position->topic,
								 position->partition));
			continue;
		}
		if (!mr_kafka_watermarks(source->client, topic->name, position->partition, timeout_ms, &low,
								 &high))
			return false;
		if (!judge(source, position, low, high, raise))
		{
			stop = true;
			continue;
		}
		partition->position = *position;
		partition->topic = topic->name;
		partition->verify = position->has_last && position->position > low;
		partition->end = high;
		partition->last = -1;
		partition->stored_high = -1;
		partition->stored_reached = -1;
		partition->told = -1;
		partition->position.high_watermark = high;
		source->npartitions++;
	}
	if (stop)
		source->stopped = true;
	return !stop;
}

/*
 * From connecting to reading, as far as the broker lets us.  Whatever is written here belongs to the caller's
 * transaction.
 */
static void
try_to_assign(KafkaSource *source, int timeout_ms)
{
	MemoryContext old;
	const char *code = NULL;
	MrKafkaBegin *begins;
	bool later;
	bool raise;

	/* Secrets and addresses may have been corrected since. */
	if (source->client != NULL && mr_kafka_problem(source->client, &code) != NULL &&
		(strcmp(code, "authentication") == 0 || strcmp(code, "tls") == 0 ||
		 source->failures % 5 == 4))
		stop_reading(source);
	if (source->client != NULL && (source->assigned || source->look_again))
		stop_reading(source);
	if (source->client == NULL && !connect_client(source))
		return;

	old = MemoryContextSwitchTo(source->reading);
	if (!find_topics(source, timeout_ms))
		goto failed;
	later = mr_positions_any(source->base.stream);
	for (int i = 0; i < source->ntopics; i++)
	{
		if (!add_rows(source, &source->topics[i], later, timeout_ms))
			goto failed;
	}
	if (!take_partitions(source, timeout_ms, &raise))
		goto failed;
	source->suspects = NIL;
	if (raise)
	{
		/* Everybody of this stream begins in the new epoch, we too. */
		mr_stream_raise_epoch(source->base.stream);
		if (!take_partitions(source, timeout_ms, &raise))
			goto failed;
	}

	begins = palloc(sizeof(MrKafkaBegin) * Max(source->npartitions, 1));
	for (int i = 0; i < source->npartitions; i++)
	{
		KafkaPartition *partition = &source->partitions[i];

		begins[i].topic = partition->topic;
		begins[i].partition = partition->position.partition;
		begins[i].offset = partition->position.position - (partition->verify ? 1 : 0);
	}
	if (!mr_kafka_assign(source->client, begins, source->npartitions))
		goto failed;
	source->assigned = true;
	source->look_again = false;
	source->failures = 0;
	source->next_refresh = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   source->options->refresh_ms);
	MemoryContextSwitchTo(old);
	copy_problem(source);
	return;

failed:
	MemoryContextSwitchTo(old);
	copy_problem(source);
	if (source->stopped)
		stop_reading(source);
}

static MrSource *
kafka_open(MrStream *stream, int worker, int workers)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace kafka",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	KafkaSource *source = palloc0(sizeof(KafkaSource));

	source->base.kind = &mr_kafka_source;
	source->base.stream = stream;
	source->base.worker = worker;
	source->base.workers = workers;
	source->context = context;
	source->reading = AllocSetContextCreate(context, "millrace kafka client",
											ALLOCSET_DEFAULT_SIZES);
	source->descriptor = mr_kafka_descriptor();
	source->options = mr_kafka_options(stream);
	MemoryContextSwitchTo(old);

	try_to_assign(source, OPEN_TIMEOUT_MS);
	return &source->base;
}

static pgsocket
kafka_descriptor(MrSource *base)
{
	return ((KafkaSource *) base)->descriptor;
}

/* ---- reading --------------------------------------------------------------------------------------- */

static KafkaPartition *
find_partition(KafkaSource *source, const char *topic, int32 number)
{
	KafkaPartition *recent = source->recent;

	if (recent != NULL && recent->position.partition == number && strcmp(recent->topic, topic) == 0)
		return recent;
	for (int i = 0; i < source->npartitions; i++)
	{
		KafkaPartition *partition = &source->partitions[i];

		if (partition->position.partition == number && strcmp(partition->topic, topic) == 0)
		{
			source->recent = partition;
			return partition;
		}
	}
	return NULL;
}

/* What is remembered of a message, to know it again. */
static int64
checksum(const char *key, int key_length, const char *value, int value_length)
{
	int32 lengths[2];
	pg_crc32c crc;

	lengths[0] = key == NULL ? -1 : key_length;
	lengths[1] = value == NULL ? -1 : value_length;
	INIT_CRC32C(crc);
	COMP_CRC32C(crc, lengths, sizeof(lengths));
	if (key != NULL)
		COMP_CRC32C(crc, key, key_length);
	if (value != NULL)
		COMP_CRC32C(crc, value, value_length);
	FIN_CRC32C(crc);
	return (int64) crc;
}

/* The message before the position has come: is it still the one that was read? */
static void
verify_last(KafkaSource *source, KafkaPartition *partition, const MrKafkaRecord *record)
{
	MrPosition *position = &partition->position;
	MemoryContext old;
	Suspect *suspect;

	if (mr_kafka_time(record->time) == position->last_time &&
		checksum(record->key, record->key_length, record->value, record->value_length) ==
			position->last_checksum)
		return;

	old = MemoryContextSwitchTo(source->context);
	suspect = palloc(sizeof(Suspect));
	suspect->topic = partition->topic;
	suspect->partition = position->partition;
	source->suspects = lappend(source->suspects, suspect);
	MemoryContextSwitchTo(old);
	partition->suspect = true;
	source->look_again = true;
}

/* Adds a message to the batch unless it is a duplicate. */
static void
take_message(KafkaSource *source, MrBatch *batch, const MrKafkaRecord *record)
{
	KafkaPartition *partition = find_partition(source, record->topic, record->partition);

	if (partition == NULL || partition->suspect)
		return;
	if (partition->verify)
	{
		/* Compaction may have removed it; then there is nothing to compare. */
		partition->verify = false;
		if (record->offset == partition->position.position - 1)
			verify_last(source, partition, record);
	}
	if (partition->suspect || record->offset < partition->position.next)
		return;

	(void) mr_kafka_message(batch, source->client, record, partition->topic,
							partition->position.epoch);
	partition->position.next = record->offset + 1;
	partition->last = batch->nmessages - 1;
	partition->at_end = false;
}

/* Takes what has come; true when the batch is full, that is, more may be there. */
static bool
take_messages(KafkaSource *source, MrBatch *batch, int max_messages, Size max_bytes)
{
	MrKafkaRecord record;
	KafkaPartition *partition;

	mr_kafka_begin_poll(source->client);
	for (int polled = 1;; polled++)
	{
		if (batch->nmessages >= max_messages || batch->bytes >= max_bytes)
			return true;
		if (polled % 1024 == 0)
			CHECK_FOR_INTERRUPTS();
		switch (mr_kafka_poll(source->client, &record))
		{
			case MR_KAFKA_NOTHING:
				return false;
			case MR_KAFKA_MESSAGE:
				take_message(source, batch, &record);
				break;
			case MR_KAFKA_END:
				partition = find_partition(source, record.topic, record.partition);
				if (partition != NULL)
				{
					partition->at_end = true;
					partition->position.reached = record.offset;
				}
				break;
			case MR_KAFKA_LOST:
				source->look_again = true;
				break;
		}
	}
}

/* Was a batch fetched and neither committed nor followed by closing?  Then its messages must come again. */
static bool
was_abandoned(KafkaSource *source)
{
	for (int i = 0; i < source->npartitions; i++)
	{
		if (source->partitions[i].position.next != source->partitions[i].position.position)
			return true;
	}
	return false;
}

static void
kafka_fetch(MrSource *base, MrBatch *batch, int max_messages, Size max_bytes, int wait_ms)
{
	KafkaSource *source = (KafkaSource *) base;
	bool more = false;

	source->emptied = false;
	if (batch->nmessages == 0 && was_abandoned(source))
		source->look_again = true;
	if (source->client != NULL && source->assigned && !source->look_again)
	{
		more = take_messages(source, batch, max_messages, max_bytes);
		if (batch->nmessages == 0 && wait_ms > 0 && !source->look_again &&
			mr_kafka_wait(source->client, wait_ms))
			more = take_messages(source, batch, max_messages, max_bytes);
		if (more)
			mr_kafka_nudge(source->client); /* The queue has room now. */
		source->emptied = !more;
		copy_problem(source);
	}
	else if (wait_ms > 0)
	{
		/* Nothing can come before the next tick. */
		if (WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, wait_ms,
					  PG_WAIT_EXTENSION) &
			WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
	}
}

/* ---- positions ------------------------------------------------------------------------------------- */

/* Does the row lack something of the partition's end that is worth storing? */
static bool
end_has_moved(KafkaSource *source, KafkaPartition *partition)
{
	MrPosition *position = &partition->position;
	int64 end = mr_kafka_known_end(source->client, partition->topic, position->partition);

	if (end >= 0)
		position->high_watermark = end;
	return position->high_watermark != partition->stored_high ||
		   (position->reached > position->next && position->reached != partition->stored_reached);
}

/* Stores positions that have moved; ends that have, too, at most once a second while batches come. */
static void
store(KafkaSource *source, MrBatch *batch)
{
	MrPosition **moved = palloc(sizeof(MrPosition *) * Max(source->npartitions, 1));
	TimestampTz now = GetCurrentTimestamp();
	bool ends = batch == NULL || now >= source->next_store;
	int count = 0;

	for (int i = 0; i < source->npartitions; i++)
	{
		KafkaPartition *partition = &source->partitions[i];
		MrPosition *position = &partition->position;

		if (position->next != position->position)
		{
			MrMessage *last = &batch->messages[partition->last];

			position->last_time = last->time;
			position->last_checksum = checksum(last->key, last->key_length, last->value,
											   last->value_length);
			(void) end_has_moved(source, partition);
		}
		else if (!ends || !end_has_moved(source, partition))
			continue;
		moved[count++] = position;
		partition->stored_high = position->high_watermark;
		partition->stored_reached = position->reached;
	}
	if (ends)
		source->next_store = TimestampTzPlusMilliseconds(now, 1000);
	mr_positions_advance(source->base.stream, moved, count);
	pfree(moved);
}

static void
kafka_advance(MrSource *base, MrBatch *batch)
{
	store((KafkaSource *) base, batch);
}

static void
kafka_committed(MrSource *base, MrBatch *batch)
{
	KafkaSource *source = (KafkaSource *) base;

	for (int i = 0; i < source->npartitions; i++)
	{
		source->partitions[i].position.position = source->partitions[i].position.next;
		source->partitions[i].last = -1;
	}
}

/* Tells the broker, for lag tools. */
static void
tell_broker(KafkaSource *source)
{
	MrKafkaBegin *offsets;
	int count = 0;

	if (!source->options->commit)
		return;
	offsets = palloc(sizeof(MrKafkaBegin) * Max(source->npartitions, 1));
	for (int i = 0; i < source->npartitions; i++)
	{
		KafkaPartition *partition = &source->partitions[i];

		if (partition->told == partition->position.position)
			continue;
		offsets[count].topic = partition->topic;
		offsets[count].partition = partition->position.partition;
		offsets[count++].offset = partition->position.position;
		partition->told = partition->position.position;
	}
	if (count > 0)
		mr_kafka_commit(source->client, offsets, count);
	pfree(offsets);
}

/* Looks for new topics and partitions; asking also finds out whether the broker answers again. */
static void
refresh(KafkaSource *source)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace kafka topics",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	List *found;

	if (mr_kafka_find_topics(source->client, source->options, TICK_TIMEOUT_MS, &found) &&
		topics_changed(source, found))
		source->look_again = true;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

static void
kafka_tick(MrSource *base)
{
	KafkaSource *source = (KafkaSource *) base;
	TimestampTz now = GetCurrentTimestamp();
	const char *code = NULL;

	if (source->stopped)
		return;
	if (source->assigned && !source->look_again &&
		mr_kafka_problem(source->client, &code) != NULL &&
		(strcmp(code, "authentication") == 0 || strcmp(code, "tls") == 0))
		source->look_again = true;

	if (!source->assigned || source->look_again)
	{
		if (now < source->next_try)
			return;
		try_to_assign(source, TICK_TIMEOUT_MS);
		if (!source->assigned)
			source->failures++;
		source->next_try = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   Min(5000, 500 * (source->failures + 1)));
		return;
	}

	if (code != NULL || now >= source->next_refresh)
	{
		refresh(source);
		source->next_refresh = TimestampTzPlusMilliseconds(now, source->options->refresh_ms);
	}
	copy_problem(source);
	tell_broker(source);
	if (!was_abandoned(source))
		store(source, NULL);
}

/* Everything that was there when the feed was opened; control records at the end count as read. */
static bool
kafka_drained(MrSource *base)
{
	KafkaSource *source = (KafkaSource *) base;

	if (!source->assigned || source->look_again)
		return false;
	for (int i = 0; i < source->npartitions; i++)
	{
		KafkaPartition *partition = &source->partitions[i];

		if (!partition->at_end && partition->position.next < partition->end)
			return false;
	}
	return true;
}

/*
 * The library's queue was empty.  It fetches while the queue has room, which it has where one batch empties it, and each answer
 * tells where the partition ends: further on when the broker has more.
 */
static bool
kafka_caught_up(MrSource *base)
{
	KafkaSource *source = (KafkaSource *) base;

	if (!source->emptied || !source->assigned || source->look_again)
		return false;
	for (int i = 0; i < source->npartitions; i++)
	{
		KafkaPartition *partition = &source->partitions[i];

		int64 reached = partition->at_end ? partition->position.reached : partition->position.next;

		if (reached <
			mr_kafka_known_end(source->client, partition->topic, partition->position.partition))
			return false;
	}
	return true;
}

static void
kafka_close(MrSource *base)
{
	KafkaSource *source = (KafkaSource *) base;

	stop_reading(source);
	MemoryContextDelete(source->context);
}

const MrSourceKind mr_kafka_source = {
	.name = "kafka",
	.open = kafka_open,
	.descriptor = kafka_descriptor,
	.fetch = kafka_fetch,
	.in_transaction = false,
	.lasting = true,
	.advance = kafka_advance,
	.committed = kafka_committed,
	.tick = kafka_tick,
	.drained = kafka_drained,
	.caught_up = kafka_caught_up,
	.close = kafka_close,
	.peek = mr_kafka_peek,
	.validate = mr_kafka_validate,
};
