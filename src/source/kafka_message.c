/*
 * kafka_message.c
 *	  Records of Kafka as messages of a batch.
 */
#include "postgres.h"

#include "common/int.h"
#include "core/millrace.h"
#include "datatype/timestamp.h"
#include "source/kafka_message.h"
#include "utils/timestamp.h"

TimestampTz
mr_kafka_time(int64 milliseconds)
{
	const int64 epoch = (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY *
						INT64CONST(1000);
	int64 time;

	if (milliseconds == -1)
		return DT_NOBEGIN;
	if (pg_sub_s64_overflow(milliseconds, epoch, &time) || pg_mul_s64_overflow(time, 1000, &time) ||
		!IS_VALID_TIMESTAMP(time))
		return milliseconds < 0 ? DT_NOBEGIN : DT_NOEND;
	return time;
}

MrMessage *
mr_kafka_message(MrBatch *batch, MrKafkaClient *client, const MrKafkaRecord *record,
				 const char *topic, int32 epoch)
{
	MrMessage *message = mr_batch_add(batch);

	message->topic = topic;
	message->partition = record->partition;
	message->epoch = epoch;
	message->position = record->offset;
	message->time = mr_kafka_time(record->time);
	if (record->key != NULL)
	{
		message->key_length = (int) record->key_length;
		message->key = mr_batch_copy(batch, record->key, message->key_length);
	}
	if (record->value != NULL)
	{
		message->value_length = (int) record->value_length;
		message->value = mr_batch_copy(batch, record->value, message->value_length);
	}
	message->headers = mr_kafka_headers(client);
	if (message->headers != NULL)
	{
		char *headers = message->headers;

		message->headers = mr_batch_copy(batch, headers, strlen(headers));
		pfree(headers);
	}
	return message;
}
