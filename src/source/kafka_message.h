/*
 * kafka_message.h
 *	  Records of Kafka as messages of a batch.
 */
#ifndef MR_SOURCE_KAFKA_MESSAGE_H
#define MR_SOURCE_KAFKA_MESSAGE_H

#include "core/batch.h"
#include "source/kafka_client.h"
#include "source/source.h"

/* The record that was polled last as a message; the topic's name must live as long as the batch. */
extern MrMessage *mr_kafka_message(MrBatch *batch, MrKafkaClient *client,
								   const MrKafkaRecord *record, const char *topic, int32 epoch);

/* Kafka's milliseconds as a time; what is out of PostgreSQL's range is infinitely far. */
extern TimestampTz mr_kafka_time(int64 milliseconds);

/* MrSourceKind.peek */
extern void mr_kafka_peek(MrStream *stream, MrBatch *batch, int max_messages, Size max_bytes,
						  int timeout_ms);

/* MrSourceKind.validate */
extern void mr_kafka_validate(MrReport *to, MrStream *stream);

#endif /* MR_SOURCE_KAFKA_MESSAGE_H */
