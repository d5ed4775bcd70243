/*
 * kafka_options.c
 *	  Options of a stream that reads from Kafka, from JSON.
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "core/millrace.h"
#include "datatype/timestamp.h"
#include "miscadmin.h"
#include "source/kafka_options.h"
#include "source/server.h"
#include "utils/builtins.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

/* A member of a JSON object, or NULL. */
static JsonbValue *
member(JsonbContainer *container, const char *name)
{
	if (container == NULL || !JsonContainerIsObject(container))
		return NULL;
	return getKeyJsonValueFromContainer(container, name, strlen(name), NULL);
}

/* A scalar as text. */
static char *
scalar_text(JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvNumeric:
			return numeric_normalize(value->val.numeric);
		case jbvBool:
			return pstrdup(value->val.boolean ? "true" : "false");
		default:
			return NULL;
	}
}

static char *
member_text(JsonbContainer *container, const char *name)
{
	JsonbValue *value = member(container, name);

	return value == NULL ? NULL : scalar_text(value);
}

/* The elements of an array, or a scalar as one of one element, as char *. */
static List *
texts(JsonbValue *value)
{
	List *result = NIL;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue element;

	if (value == NULL)
		return NIL;
	if (value->type != jbvBinary)
		return list_make1(scalar_text(value));
	iterator = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &element, true)) != WJB_DONE)
	{
		if (token == WJB_ELEM)
			result = lappend(result, scalar_text(&element));
	}
	return result;
}

/* Where to begin: what reset_stream said, else the option. */
static void
read_start(MrKafkaOptions *options, const MrStream *stream, JsonbContainer *root)
{
	Jsonb *start = NULL;
	JsonbValue value;
	char *word;

	if (stream->start != NULL)
		start = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(stream->start)));
	else
	{
		JsonbValue *given = member(root, "start");

		if (given != NULL)
			start = JsonbValueToJsonb(given);
	}
	options->start = MR_START_EARLIEST;
	if (start == NULL)
		return;
	if (!JsonbExtractScalar(&start->root, &value))
	{
		options->start = MR_START_OFFSETS;
		options->start_offsets = start;
		return;
	}
	word = scalar_text(&value);
	if (strcmp(word, "earliest") == 0)
		return;
	if (strcmp(word, "latest") == 0)
		options->start = MR_START_LATEST;
	else
	{
		/* A time without a zone is UTC, whatever the session's is. */
		int nest_level = mr_settings_pin("UTC");
		TimestampTz time = DatumGetTimestampTz(
			DirectFunctionCall3(timestamptz_in, CStringGetDatum(word), ObjectIdGetDatum(InvalidOid),
								Int32GetDatum(-1)));

		mr_settings_unpin(nest_level);
		options->start = MR_START_TIME;
		options->start_time = time / 1000 + (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) *
												SECS_PER_DAY * INT64CONST(1000);
		if (options->start_time < 0)
			options->start = MR_START_EARLIEST;
	}
}

/* An interval in milliseconds. */
static int
milliseconds(const char *interval)
{
	Interval *span = DatumGetIntervalP(DirectFunctionCall3(
		interval_in, CStringGetDatum(interval), ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	int64 total = span->time / 1000 +
				  (span->day + span->month * INT64CONST(30)) * INT64CONST(86400000);

	return (int) Min(Max(total, 1000), PG_INT32_MAX);
}

MrKafkaOptions *
mr_kafka_options(const MrStream *stream)
{
	MrKafkaOptions *options = palloc0(sizeof(MrKafkaOptions));
	Jsonb *json = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(stream->options)));
	JsonbContainer *root = &json->root;
	JsonbValue *value;
	char *word;
	ListCell *cell;

	options->topics = texts(member(root, "topic"));
	foreach(cell, texts(member(root, "partitions")))
		options->partitions = lappend_int(options->partitions, pg_strtoint32(lfirst(cell)));
	read_start(options, stream, root);

	word = member_text(root, "on_lost");
	options->on_lost = word == NULL || strcmp(word, "stop") == 0 ? MR_ON_LOST_STOP
					   : strcmp(word, "earliest") == 0           ? MR_ON_LOST_EARLIEST
																 : MR_ON_LOST_LATEST;

	value = member(root, "group");
	options->commit = value == NULL || value->type == jbvString;
	options->group = value != NULL && value->type == jbvString
						 ? scalar_text(value)
						 : psprintf("millrace-%s-%s", get_database_name(MyDatabaseId),
									stream->name);

	word = member_text(root, "refresh");
	options->refresh_ms = word == NULL ? 10000 : milliseconds(word);

	value = member(root, "properties");
	if (value != NULL && value->type == jbvBinary)
	{
		JsonbIterator *iterator = JsonbIteratorInit(value->val.binary.data);
		MrProperty *property = NULL;
		JsonbIteratorToken token;
		JsonbValue element;

		while ((token = JsonbIteratorNext(&iterator, &element, true)) != WJB_DONE)
		{
			if (token == WJB_KEY)
			{
				property = palloc0(sizeof(MrProperty));
				property->name = scalar_text(&element);
			}
			else if (token == WJB_VALUE && (property->value = scalar_text(&element)) != NULL)
				options->properties = lappend(options->properties, property);
		}
	}
	return options;
}

bool
mr_kafka_start_offset(const MrKafkaOptions *options, const char *topic, int32 partition,
					  int64 *offset)
{
	JsonbContainer *offsets = &options->start_offsets->root;
	JsonbValue *value = member(offsets, topic);
	char *text;

	if (value != NULL && value->type == jbvBinary)
		offsets = value->val.binary.data;
	text = member_text(offsets, psprintf("%d", partition));
	if (text == NULL)
		return false;
	*offset = pg_strtoint64(text);
	return true;
}

bool
mr_kafka_wants(const MrKafkaOptions *options, int32 partition)
{
	return options->partitions == NIL || list_member_int(options->partitions, partition);
}
