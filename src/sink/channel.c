/*
 * channel.c
 *	  Channels as a worker uses them.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/hash.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "sink/delivery.h"
#include "source/server.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#define THIN_AMONG 5000 /* messages of which are looked for newer ones when some are claimed */
#define THIN_ALL_EVERY 60000 /* ms: of all that wait */

#define TELEGRAM_URL "https://api.telegram.org"
#define WEBHOOK_CONNECTIONS 8

const char *const mr_channel_columns =
	"c.id, c.name, c.owner::oid, c.kind, c.server::text, c.options::text, c.message IS NOT NULL, "
	"(1000000 * extract(epoch FROM c.give_up))::bigint, c.digest_above, s.failures, s.problem, "
	"s.send_no";

const char *const mr_channel_kinds[MR_CHANNEL_KINDS] = {"webhook", "telegram", "kafka", "redis",
														"notify"};

static MrChannelKind
kind_of(const char *word)
{
	for (int i = 0; i < lengthof(mr_channel_kinds); i++)
	{
		if (strcmp(mr_channel_kinds[i], word) == 0)
			return (MrChannelKind) i;
	}
	elog(ERROR, "unknown kind of channel: %s", word);
}

MrChannel *
mr_channel_read(uint64 row)
{
	MrChannel *channel = palloc0(sizeof(MrChannel));
	bool isnull;

	channel->id = DatumGetInt32(mr_sql_value(row, 1, &isnull));
	channel->name = mr_sql_text(row, 2);
	channel->owner = DatumGetObjectId(mr_sql_value(row, 3, &isnull));
	channel->kind = kind_of(mr_sql_text(row, 4));
	channel->server = mr_sql_text(row, 5);
	channel->options = mr_sql_text(row, 6);
	channel->has_message = DatumGetBool(mr_sql_value(row, 7, &isnull));
	channel->give_up = DatumGetInt64(mr_sql_value(row, 8, &isnull));
	channel->digest_above = DatumGetInt32(mr_sql_value(row, 9, &isnull));
	channel->failures = DatumGetInt32(mr_sql_value(row, 10, &isnull));
	channel->problem = mr_sql_text(row, 11);
	channel->send_no = DatumGetInt64(mr_sql_value(row, 12, &isnull));
	return channel;
}

MrChannel *
mr_channel_by_name(const char *name)
{
	MrChannel *channel = NULL;

	if (mr_sql(
			"SELECT %s FROM millrace.channel c JOIN millrace.channel_state s ON s.channel_id = c.id "
			"WHERE c.name = %s",
			mr_channel_columns, quote_literal_cstr(name)) > 0)
		channel = mr_channel_read(0);
	SPI_freetuptable(SPI_tuptable);
	return channel;
}

/* A scalar as text, or as JSON. */
static char *
scalar(const JsonbValue *value, bool as_json)
{
	if (value->type == jbvNumeric)
		return numeric_normalize(value->val.numeric);
	if (value->type != jbvString)
		return NULL;
	return as_json ? psprintf("\"%.*s\"", value->val.string.len, value->val.string.val)
				   : pnstrdup(value->val.string.val, value->val.string.len);
}

static char *
option(Jsonb *options, const char *name, bool as_json)
{
	JsonbValue value;
	JsonbValue *found = getKeyJsonValueFromContainer(&options->root, name, (int) strlen(name),
													 &value);

	return found ? scalar(found, as_json) : NULL;
}

/* The members of an option that is an object, through `add`. */
static void
members(Jsonb *options, const char *name, MrChannel *channel,
		void (*add)(MrChannel *channel, char *key, char *value))
{
	JsonbValue value;
	JsonbValue *found = getKeyJsonValueFromContainer(&options->root, name, (int) strlen(name),
													 &value);
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue element;
	char *key = NULL;

	if (found == NULL || found->type != jbvBinary)
		return;
	iterator = JsonbIteratorInit(found->val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &element, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			key = scalar(&element, false);
		else if (token == WJB_VALUE)
			add(channel, key, scalar(&element, false));
	}
}

static void
add_header(MrChannel *channel, char *key, char *value)
{
	channel->headers = lappend(channel->headers, psprintf("%s: %s", key, value));
}

static void
add_key(MrChannel *channel, char *key, char *value)
{
	MrRedisKey *set = palloc(sizeof(MrRedisKey));

	set->key = key;
	set->seconds = value;
	channel->set = lappend(channel->set, set);
}

/* Whom an endpoint takes the requests to be from; nothing in it tells the token. */
static void
set_sender(MrChannel *channel, const char *url, const char *token)
{
	MrHasher *hasher = mr_hasher_create();

	mr_hasher_begin(hasher);
	mr_hasher_add_bytes(hasher, url, (int) strlen(url));
	if (token)
		mr_hasher_add_bytes(hasher, token, (int) strlen(token));
	mr_hasher_end(hasher, &channel->sender);
	channel->has_sender = true;
}

/* Where the requests of a channel over HTTP go. */
static void
set_url(MrChannel *channel, const char *path)
{
	const char *url = mr_property(channel->properties, "url");
	const char *token = mr_property(channel->properties, "token");
	int length;

	if (url == NULL)
		url = TELEGRAM_URL;
	length = (int) strlen(url);
	while (length > 0 && url[length - 1] == '/')
		length--;
	set_sender(channel, url, token);
	if (channel->kind == MR_CHANNEL_WEBHOOK)
	{
		channel->url = psprintf("%.*s%s", length, url, path ? path : "");
		return;
	}
	if (token == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("there is no token for server \"%s\"", channel->server),
				 errhint("CREATE USER MAPPING FOR the channel's owner with option token_file.")));
	if (strspn(token, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:_-") !=
		strlen(token))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("the token for server \"%s\" is none of Telegram's", channel->server)));
	channel->url = psprintf("%.*s/bot%s/sendMessage", length, url, token);
}

void
mr_channel_connect(MrChannel *channel)
{
	Jsonb *options =
		DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(channel->options)));
	char *connections = option(options, "connections", false);
	static MrStatement *origin = NULL;

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(channel->owner)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the owner of channel \"%s\" does not exist any more", channel->name),
				 errhint("Drop the channel and create it again as another role.")));
	if (channel->server)
		channel->properties = mr_server_properties(channel->server, channel->owner);
	(void) mr_statement_by_index(&origin, "SELECT left(md5(millrace_internal.fence()), 16)", 0,
								 NULL, NULL);
	channel->origin = mr_sql_text(0, 1);
	SPI_freetuptable(SPI_tuptable);
	channel->connections = connections ? pg_strtoint32(connections) : WEBHOOK_CONNECTIONS;
	switch (channel->kind)
	{
		case MR_CHANNEL_WEBHOOK:
			members(options, "headers", channel, add_header);
			set_url(channel, option(options, "path", false));
			break;
		case MR_CHANNEL_TELEGRAM:
			/* A chat wants one message after the other. */
			channel->connections = 1;
			channel->chat = option(options, "chat_id", true);
			channel->thread = option(options, "message_thread_id", true);
			set_url(channel, NULL);
			break;
		case MR_CHANNEL_KAFKA:
			channel->topic = option(options, "topic", false);
			break;
		case MR_CHANNEL_REDIS:
			channel->publish = option(options, "publish", false);
			members(options, "set", channel, add_key);
			break;
		case MR_CHANNEL_NOTIFY:
			channel->notify = option(options, "channel", false);
			if (channel->notify == NULL)
				channel->notify = pstrdup(channel->name);
			break;
	}
}

/* Is it time to look at all that waits?  A channel that stands still keeps no more than the newest of each key, either. */
static bool
thins_all(int32 channel_id)
{
	typedef struct Thinned
	{
		int32 channel_id;
		TimestampTz at;
	} Thinned;
	static HTAB *channels = NULL;
	TimestampTz now = GetCurrentTimestamp();
	Thinned *entry;
	bool found;

	if (channels == NULL)
	{
		HASHCTL control = {.keysize = sizeof(int32), .entrysize = sizeof(Thinned)};

		channels = hash_create("millrace channels", 16, &control, HASH_ELEM | HASH_BLOBS);
	}
	entry = hash_search(channels, &channel_id, HASH_ENTER, &found);
	if (found && !TimestampDifferenceExceeds(entry->at, now, THIN_ALL_EVERY))
		return false;
	entry->at = now;
	return true;
}

void
mr_channel_thin_out(const MrChannel *channel)
{
	static const Oid types[] = {INT4OID, TEXTOID, INT4OID};
	static MrStatement *statement = NULL;
	Datum values[] = {Int32GetDatum(channel->id),
					  CStringGetTextDatum(mr_channel_kinds[channel->kind]),
					  Int32GetDatum(thins_all(channel->id) ? PG_INT32_MAX : THIN_AMONG)};

	(void) mr_statement_by_index(&statement, "SELECT millrace_internal.thin_out($1, $2, $3)",
								 lengthof(types), types, values);
}
