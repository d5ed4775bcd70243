/*
 * kafka_topic.h
 *	  Which topics a stream reads, and where reading them begins.
 */
#ifndef MR_SOURCE_KAFKA_TOPIC_H
#define MR_SOURCE_KAFKA_TOPIC_H

#include "source/kafka_client.h"
#include "source/kafka_options.h"

/* A name of the options that begins with ^ is a pattern (a regular expression, as librdkafka takes it). */
extern bool mr_kafka_is_pattern(const char *name);
extern bool mr_kafka_has_pattern(const MrKafkaOptions *options);

/*
 * The topics of the options that are there, each once, as MrKafkaTopic * in CurrentMemoryContext.  False when the broker does
 * not answer, or a topic that is named is not there; that no topic matches a pattern is no error.
 */
extern bool mr_kafka_find_topics(MrKafkaClient *client, const MrKafkaOptions *options,
								 int timeout_ms, List **topics);

/* The offset at which a partition begins that has not been read yet. */
extern bool mr_kafka_first_offset(MrKafkaClient *client, const MrKafkaOptions *options,
								  const char *topic, int32 partition, int timeout_ms,
								  int64 *offset);

#endif /* MR_SOURCE_KAFKA_TOPIC_H */
