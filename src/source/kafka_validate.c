/*
 * kafka_validate.c
 *	  What is wrong with the brokers of a stream, or its topics.
 *
 * Connects with a client of its own, looks at each topic and at a few messages, and moves no position.
 */
#include "postgres.h"

#include "core/millrace.h"
#include "source/kafka_client.h"
#include "source/kafka_message.h"
#include "source/kafka_options.h"
#include "source/kafka_topic.h"
#include "source/server.h"
#include "source/source.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* How many messages of a partition, and how many partitions of a topic, are looked at. */
#define SAMPLE_MESSAGES 20
#define SAMPLE_PARTITIONS 8

/* How many of the topics that match a pattern. */
#define SAMPLE_TOPICS 20

/* What somebody may do about a problem. */
static const char *
hint_for(const char *code, List *properties)
{
	const char *mechanism = mr_property(properties, "sasl.mechanism");
	const char *protocol = mr_property(properties, "security.protocol");

	if (strcmp(code, "authentication") == 0)
	{
		if (mechanism != NULL && pg_strncasecmp(mechanism, "SCRAM", 5) == 0 &&
			mr_kafka_scram_is_broken())
			return psprintf("Check sasl_username and sasl_password of the user mapping. librdkafka "
							"%s fails SCRAM against Kafka 4 and later even with the right "
							"password; librdkafka 2.6.1 fixed that. Until then use PLAIN over TLS.",
							mr_kafka_library_version());
		return "Check sasl_username and sasl_password (or sasl_password_file) of the user mapping, "
			   "and sasl_mechanism of the server.";
	}
	if (strcmp(code, "tls") == 0)
		return "Check ssl_ca_location of the server: the authority that signed the broker's "
			   "certificate.";
	if (strcmp(code, "unreachable") == 0)
		return protocol == NULL || pg_strcasecmp(protocol, "PLAINTEXT") == 0
				   ? "Check bootstrap_servers; a broker that expects TLS or a password closes plain "
					 "connections (security_protocol)."
				   : "Check bootstrap_servers and security_protocol.";
	if (strcmp(code, "topic") == 0)
		return "The stream waits for the topic. Create it, or correct option \"topic\".";
	if (strcmp(code, "denied") == 0)
		return "The broker's access rules (ACL) must allow READ and DESCRIBE.";
	return NULL;
}

static void
report_problem(MrReport *to, MrKafkaClient *client, List *properties)
{
	const char *code = NULL;
	const char *problem = mr_kafka_problem(client, &code);

	if (problem == NULL)
		mr_report(to, "error", "the broker did not answer in time", NULL);
	else
		mr_report(to, "error", problem, hint_for(code, properties));
}

/* Looks at the last messages of a topic for what a user should know before he declares a staging table. */
static void
sample_messages(MrReport *to, List *properties, pgsocket descriptor, const char *topic,
				MrKafkaBegin *begins, int count)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   Min(to->timeout_ms, 3000));
	MrKafkaClient *client;
	MrKafkaRecord record;
	char *problem;
	int ended = 0;
	int seen = 0;
	int keyless = 0;
	int tombstones = 0;
	int not_json = 0;

	client = mr_kafka_connect(properties, descriptor, &problem);
	if (client == NULL || !mr_kafka_assign(client, begins, count))
		return;
	while (ended < count && GetCurrentTimestamp() < deadline)
	{
		MrKafkaEvent event;

		mr_kafka_begin_poll(client);
		while ((event = mr_kafka_poll(client, &record)) != MR_KAFKA_NOTHING)
		{
			if (event == MR_KAFKA_END)
				ended++;
			if (event != MR_KAFKA_MESSAGE)
				continue;
			seen++;
			keyless += record.key == NULL;
			if (record.value == NULL ||
				(to->debezium && record.value_length == 4 && memcmp(record.value, "null", 4) == 0))
				tombstones++;
			else
			{
				size_t i = 0;

				while (i < record.value_length && strchr(" \t\r\n", record.value[i]) != NULL)
					i++;
				if (i >= record.value_length || strchr("{[", record.value[i]) == NULL)
					not_json++;
			}
		}
		(void) mr_kafka_wait(client, 100);
	}
	mr_kafka_disconnect(client);

	if (keyless > 0)
		mr_report(
			to, "warning",
			psprintf("%d of %d messages looked at in topic \"%s\" have no key", keyless, seen,
					 topic),
			"Messages about one object may then lie in several partitions, where only their times "
			"tell which is newer: declare a version from the message, and take the staging's key "
			"from the payload.");
	if (not_json > 0)
		mr_report(
			to, "warning",
			psprintf("%d of %d messages looked at in topic \"%s\" are neither a JSON object nor an "
					 "array",
					 not_json, seen, topic),
			"They will become dead letters.");
	if (tombstones > 0 && !to->debezium)
		mr_report(
			to, "info",
			psprintf("%d of %d messages looked at in topic \"%s\" are tombstones", tombstones, seen,
					 topic),
			"They delete objects by the message's key: the staging's key must be found in $key.");
}

/* One topic: is it there, can it be read, what is in it. */
static bool
validate_topic(MrReport *to, MrKafkaClient *client, MrKafkaOptions *options, List *properties,
			   pgsocket descriptor, const char *topic)
{
	MrKafkaBegin begins[SAMPLE_PARTITIONS];
	int64 messages = 0;
	int nbegins = 0;
	int count;
	ListCell *cell;

	if (!mr_kafka_partitions(client, topic, to->timeout_ms, &count))
	{
		report_problem(to, client, properties);
		return false;
	}
	foreach(cell, options->partitions)
	{
		if (lfirst_int(cell) >= count)
			mr_report(to, "error",
					  psprintf("topic \"%s\" has no partition %d, only 0 to %d", topic,
							   lfirst_int(cell), count - 1),
					  NULL);
	}
	for (int32 i = 0; i < count; i++)
	{
		int64 low;
		int64 high;

		if (!mr_kafka_wants(options, i))
			continue;
		if (!mr_kafka_watermarks(client, topic, i, to->timeout_ms, &low, &high))
		{
			report_problem(to, client, properties);
			return false;
		}
		messages += high - low;
		if (high > low && nbegins < SAMPLE_PARTITIONS)
		{
			begins[nbegins].topic = topic;
			begins[nbegins].partition = i;
			begins[nbegins++].offset = Max(low, high - SAMPLE_MESSAGES);
		}
	}
	mr_report(to, "info",
			  psprintf("topic \"%s\" has %d partition%s, about " INT64_FORMAT " messages", topic,
					   count, count == 1 ? "" : "s", messages),
			  NULL);
	if (nbegins > 0 && to->sample)
		sample_messages(to, properties, descriptor, topic, begins, nbegins);
	return true;
}

/* Connects and looks; errors are of configuration. */
void
mr_kafka_validate(MrReport *to, MrStream *stream)
{
	MrKafkaOptions *options = mr_kafka_options(stream);
	List *properties = mr_server_properties(stream->server, stream->owner);
	const char *mechanism = mr_property(properties, "sasl.mechanism");
	MrProperty *group = palloc(sizeof(MrProperty));
	pgsocket descriptor = mr_kafka_descriptor();
	MrKafkaClient *client;
	List *topics;
	List *found;
	char *problem;
	ListCell *cell;
	int partitions = 0;

	group->name = "group.id";
	group->value = psprintf("%s-validate", options->group);
	properties = lappend(list_concat(properties, options->properties), group);
	client = mr_kafka_connect(properties, descriptor, &problem);
	if (client == NULL)
	{
		mr_report(to, "error", problem, "Check the options of the server and its user mapping.");
		return;
	}
	topics = options->topics;
	if (mr_kafka_has_pattern(options))
	{
		if (!mr_kafka_find_topics(client, options, to->timeout_ms, &found))
		{
			report_problem(to, client, properties);
			mr_kafka_disconnect(client);
			return;
		}
		mr_report(to, found == NIL ? "warning" : "info",
				  psprintf("%d topic%s the options' names and patterns", list_length(found),
						   list_length(found) == 1 ? " fits" : "s fit"),
				  found == NIL
					  ? "The stream waits for a topic that matches; it looks for one every "
						"\"refresh\" interval."
					  : NULL);
		topics = NIL;
		foreach(cell, found)
		{
			if (list_length(topics) < SAMPLE_TOPICS)
				topics = lappend(topics, (char *) ((MrKafkaTopic *) lfirst(cell))->name);
		}
	}
	foreach(cell, topics)
	{
		if (!validate_topic(to, client, options, properties, descriptor, lfirst(cell)))
		{
			const char *code = NULL;

			/* What is wrong with the connection is wrong for every topic. */
			(void) mr_kafka_problem(client, &code);
			if (code == NULL || strcmp(code, "topic") != 0)
				break;
		}
		else
			partitions++;
	}
	if (partitions > 0 && mechanism != NULL && pg_strncasecmp(mechanism, "SCRAM", 5) == 0 &&
		mr_kafka_scram_is_broken())
		mr_report(
			to, "info",
			psprintf("librdkafka %s fails SCRAM against Kafka 4 and later, even with the right "
					 "password",
					 mr_kafka_library_version()),
			"Upgrade to librdkafka 2.6.1 or later before the brokers are upgraded.");
	mr_kafka_disconnect(client);
}
