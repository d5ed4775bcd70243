/*
 * kafka_options.h
 *	  Options of a stream that reads from Kafka.
 */
#ifndef MR_SOURCE_KAFKA_OPTIONS_H
#define MR_SOURCE_KAFKA_OPTIONS_H

#include "source/source.h"
#include "utils/jsonb.h"

/* What happens when messages were lost, or the topic is another one than it was. */
typedef enum MrOnLost
{
	MR_ON_LOST_STOP,
	MR_ON_LOST_EARLIEST,
	MR_ON_LOST_LATEST
} MrOnLost;

typedef enum MrStartKind
{
	MR_START_EARLIEST,
	MR_START_LATEST,
	MR_START_TIME,
	MR_START_OFFSETS
} MrStartKind;

typedef struct MrKafkaOptions
{
	List *topics; /* char * */
	List *partitions; /* of int; NIL: all */
	MrStartKind start;
	int64 start_time; /* ms since 1970 */
	Jsonb *start_offsets;
	MrOnLost on_lost;
	char *group;
	bool commit; /* tells the broker how far the group is */
	int refresh_ms; /* how often new partitions are looked for */
	List *properties; /* MrProperty *, the user's */
} MrKafkaOptions;

/* In CurrentMemoryContext.  They have been checked when the stream was declared. */
extern MrKafkaOptions *mr_kafka_options(const MrStream *stream);

/* The offset given for a partition; false when there is none. */
extern bool mr_kafka_start_offset(const MrKafkaOptions *options, const char *topic, int32 partition,
								  int64 *offset);

/* Is the partition one of those wanted? */
extern bool mr_kafka_wants(const MrKafkaOptions *options, int32 partition);

#endif /* MR_SOURCE_KAFKA_OPTIONS_H */
