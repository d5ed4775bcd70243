/*
 * kafka_topic.c
 *	  Which topics a stream reads, and where reading them begins.
 *
 * Topics are named, or found by patterns.  A pattern is matched here against the broker's list and not by librdkafka, which knows
 * patterns for consumers of a group only; what it means is the same: POSIX extended regular expressions.
 */
#include "postgres.h"

#include <regex.h>

#include "core/millrace.h"
#include "source/kafka_topic.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(millrace_check_topic_pattern);

bool
mr_kafka_is_pattern(const char *name)
{
	return name[0] == '^';
}

bool
mr_kafka_has_pattern(const MrKafkaOptions *options)
{
	ListCell *cell;

	foreach(cell, options->topics)
	{
		if (mr_kafka_is_pattern(lfirst(cell)))
			return true;
	}
	return false;
}

/* Kafka's own topics are meant only by patterns that say so. */
static bool
is_internal(const char *topic, const char *pattern)
{
	return strncmp(topic, "__", 2) == 0 && strncmp(pattern, "^__", 3) != 0;
}

static bool
has_topic(const List *topics, const char *name)
{
	ListCell *cell;

	foreach(cell, topics)
	{
		if (strcmp(((MrKafkaTopic *) lfirst(cell))->name, name) == 0)
			return true;
	}
	return false;
}

/* Adds the topics of the broker's list that match a pattern. */
static List *
add_matching(List *topics, const List *all, const char *pattern)
{
	regex_t compiled;
	ListCell *cell;

	/* It was checked when the stream was declared. */
	if (regcomp(&compiled, pattern, REG_EXTENDED | REG_NOSUB) != 0)
		return topics;
	PG_TRY();
	{
		foreach(cell, all)
		{
			MrKafkaTopic *topic = lfirst(cell);

			if (!is_internal(topic->name, pattern) &&
				regexec(&compiled, topic->name, 0, NULL, 0) == 0 && !has_topic(topics, topic->name))
				topics = lappend(topics, topic);
		}
	}
	PG_FINALLY();
	{
		regfree(&compiled);
	}
	PG_END_TRY();
	return topics;
}

bool
mr_kafka_find_topics(MrKafkaClient *client, const MrKafkaOptions *options, int timeout_ms,
					 List **topics)
{
	List *all = NIL;
	ListCell *cell;

	*topics = NIL;
	foreach(cell, options->topics)
	{
		MrKafkaTopic *topic;

		if (mr_kafka_is_pattern(lfirst(cell)) || has_topic(*topics, lfirst(cell)))
			continue;
		topic = palloc0(sizeof(MrKafkaTopic));
		topic->name = lfirst(cell);
		if (!mr_kafka_partitions(client, topic->name, timeout_ms, &topic->partitions))
			return false;
		*topics = lappend(*topics, topic);
	}
	if (!mr_kafka_has_pattern(options))
		return true;
	if (!mr_kafka_topics(client, timeout_ms, &all))
		return false;
	foreach(cell, all)
		((MrKafkaTopic *) lfirst(cell))->matched = true;
	foreach(cell, options->topics)
	{
		if (mr_kafka_is_pattern(lfirst(cell)))
			*topics = add_matching(*topics, all, lfirst(cell));
	}
	return true;
}

bool
mr_kafka_first_offset(MrKafkaClient *client, const MrKafkaOptions *options, const char *topic,
					  int32 partition, int timeout_ms, int64 *offset)
{
	int64 low;
	int64 high;

	if (options->start == MR_START_OFFSETS &&
		mr_kafka_start_offset(options, topic, partition, offset))
		return true;
	if (!mr_kafka_watermarks(client, topic, partition, timeout_ms, &low, &high))
		return false;
	switch (options->start)
	{
		case MR_START_LATEST:
			*offset = high;
			return true;
		case MR_START_TIME:
			if (!mr_kafka_offset_at(client, topic, partition, options->start_time, timeout_ms,
									offset))
				return false;
			if (*offset < 0)
				*offset = high;
			return true;
		default:
			*offset = low;
			return true;
	}
}

/* millrace_internal.check_topic_pattern(text) */
Datum
millrace_check_topic_pattern(PG_FUNCTION_ARGS)
{
	char *pattern = text_to_cstring(PG_GETARG_TEXT_PP(0));
	regex_t compiled;
	int error = regcomp(&compiled, pattern, REG_EXTENDED | REG_NOSUB);

	if (error != 0)
	{
		char reason[256];

		(void) regerror(error, &compiled, reason, sizeof(reason));
		ereport(ERROR, (errcode(ERRCODE_INVALID_REGULAR_EXPRESSION),
						errmsg("invalid topic pattern \"%s\": %s", pattern, reason),
						errhint("A topic that begins with ^ is a POSIX extended regular "
								"expression, such as \"^orders-.*\".")));
	}
	regfree(&compiled);
	PG_RETURN_VOID();
}
