/*
 * kafka_client.h
 *	  What we use of librdkafka, as PostgreSQL code can stand it.
 *
 * Nothing here raises an error because of a broker: calls say false, and mr_kafka_problem says why in words.
 * Waiting is done in slices, between which interrupts are served.
 */
#ifndef MR_SOURCE_KAFKA_CLIENT_H
#define MR_SOURCE_KAFKA_CLIENT_H

#include "nodes/pg_list.h"
#include "source/server.h"

typedef struct MrKafkaClient MrKafkaClient;

typedef enum MrKafkaEvent
{
	MR_KAFKA_NOTHING,
	MR_KAFKA_MESSAGE,
	MR_KAFKA_END, /* of the partition: `offset` is what would be read next */
	MR_KAFKA_LOST /* the partition cannot be read on from where it is: look again */
} MrKafkaEvent;

/* A message or what happened to a partition; valid until the next poll. */
typedef struct MrKafkaRecord
{
	const char *topic;
	int32 partition;
	int64 offset;
	int64 time; /* ms since 1970, -1: none */
	const char *key; /* NULL: none */
	size_t key_length;
	const char *value; /* NULL: a tombstone */
	size_t value_length;
} MrKafkaRecord;

/* Where to begin reading a partition. */
typedef struct MrKafkaBegin
{
	const char *topic;
	int32 partition;
	int64 offset;
} MrKafkaBegin;

/*
 * A descriptor that becomes readable when something has come; closed with CurrentMemoryContext.  It may serve
 * several clients, one after the other, and must live longer than they.
 */
extern pgsocket mr_kafka_descriptor(void);

/*
 * A client in CurrentMemoryContext, ended when that context goes; NULL, with the reason in `problem`, when the
 * properties do not do.  Connecting goes on in the background.
 */
extern MrKafkaClient *mr_kafka_connect(List *properties, pgsocket descriptor, char **problem);
extern void mr_kafka_disconnect(MrKafkaClient *client);

/* Why nothing comes, or NULL; `code` is a word for it: unreachable, authentication, tls, topic, denied, other. */
extern const char *mr_kafka_problem(const MrKafkaClient *client, const char **code);

/* A topic that the broker has. */
typedef struct MrKafkaTopic
{
	const char *name;
	int partitions;
	bool matched; /* found by a pattern */
} MrKafkaTopic;

/* All topics that can be read, as MrKafkaTopic * in CurrentMemoryContext. */
extern bool mr_kafka_topics(MrKafkaClient *client, int timeout_ms, List **topics);

/* The number of a topic's partitions. */
extern bool mr_kafka_partitions(MrKafkaClient *client, const char *topic, int timeout_ms,
								int *count);

/* The first offset that is there and the first that is not. */
extern bool mr_kafka_watermarks(MrKafkaClient *client, const char *topic, int32 partition,
								int timeout_ms, int64 *low, int64 *high);

/* The first offset at or after a time (ms since 1970); *offset = -1 when there is none. */
extern bool mr_kafka_offset_at(MrKafkaClient *client, const char *topic, int32 partition,
							   int64 time, int timeout_ms, int64 *offset);

/* Begins to read; once in a client's life. */
extern bool mr_kafka_assign(MrKafkaClient *client, const MrKafkaBegin *begins, int count);

/* Before polling until nothing is left: what comes from now on makes the descriptor readable again. */
extern void mr_kafka_begin_poll(MrKafkaClient *client);

/* What has come, without waiting. */
extern MrKafkaEvent mr_kafka_poll(MrKafkaClient *client, MrKafkaRecord *record);

/* The headers of the polled message as the text of a JSON object, or NULL. */
extern char *mr_kafka_headers(MrKafkaClient *client);

/* Waits until something has come, the latch is set or the time is over; true when something may have come. */
extern bool mr_kafka_wait(MrKafkaClient *client, int timeout_ms);

/* The end of a partition as the last answer of the broker told it, -1 when none has come. */
extern int64 mr_kafka_known_end(MrKafkaClient *client, const char *topic, int32 partition);

/*
 * Makes the library look whether its queue has room: by itself it looks once a second.
 */
extern void mr_kafka_nudge(MrKafkaClient *client);

/* Tells the broker how far the group is, without waiting for an answer. */
extern void mr_kafka_commit(MrKafkaClient *client, const MrKafkaBegin *offsets, int count);

/* "2.0.2", and whether that version fails SCRAM against Kafka 4 and later. */
extern const char *mr_kafka_library_version(void);
extern bool mr_kafka_scram_is_broken(void);

#endif /* MR_SOURCE_KAFKA_CLIENT_H */
