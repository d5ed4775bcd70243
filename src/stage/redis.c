/*
 * redis.c
 *	  The client of Redis: hiredis reads the protocol, core/socket.c carries it.
 *
 * Keys are asked for in pipelines of bounded size, so that neither side holds more than that many answers.  A string
 * is read with GETRANGE and not with GET, because that is the only way to say how much of it one is ready to take.
 * After an error, or when an interrupt has left a pipeline half read, the connection is closed and made anew next time.
 */
#include "postgres.h"

#include "core/millrace.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "source/server.h"
#include "stage/redis.h"

#ifdef MR_WITH_REDIS

#include <hiredis/hiredis.h>

#include "core/socket.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/memutils.h"

/* So many keys in one pipeline. */
#define PIPELINE 1000

#define TIMEOUT_MS 5000

/* How far a connection is. */
typedef enum Step
{
	STEP_CLOSED,
	STEP_CONNECTING,
	STEP_SECURING,
	STEP_GREETING,
	STEP_READY
} Step;

struct MrRedis
{
	char *server;
	char *host;
	int port;
	char *database; /* NULL: 0 */
	char *username;
	char *password;
	bool tls;
	char *ca_file;
	int timeout_ms;
	MrSocket *socket;
	redisReader *reader;
	Step step;
	bool busy; /* a pipeline is on its way, or somebody was interrupted */
	bool waits; /* whoever began it is to go on */
	StringInfoData out; /* of the pipeline, what is to be sent */
	int awaited; /* and the replies that have not come */
	char *error; /* and the first of them that was one */
	MemoryContextCallback callback;
	char *problem; /* of the last request */
	int sqlstate;
	MemoryContext context;
};

static void
free_reader(void *argument)
{
	MrRedis *redis = argument;

	if (redis->reader != NULL)
		redisReaderFree(redis->reader);
	redis->reader = NULL;
}

/* A copy of a property, or NULL. */
static char *
copy_property(List *properties, const char *name)
{
	const char *value = mr_property(properties, name);

	return value ? pstrdup(value) : NULL;
}

MrRedis *
mr_redis_create(const char *server, Oid role)
{
	return mr_redis_create_with(server, mr_server_properties(server, role));
}

MrRedis *
mr_redis_create_with(const char *server, List *options)
{
	MrRedis *redis = palloc0(sizeof(MrRedis));
	const char *timeout = mr_property(options, "timeout");
	const char *port = mr_property(options, "port");
	const char *tls = mr_property(options, "tls");

	redis->context = CurrentMemoryContext;
	redis->server = pstrdup(server);
	redis->host = pstrdup(mr_property(options, "host"));
	redis->port = port == NULL ? 6379 : atoi(port);
	redis->database = copy_property(options, "database");
	redis->username = copy_property(options, "username");
	redis->password = copy_property(options, "password");
	redis->tls = tls != NULL && pg_strcasecmp(tls, "on") == 0;
	redis->ca_file = copy_property(options, "ssl_ca_location");
	redis->timeout_ms = TIMEOUT_MS;
	if (timeout != NULL)
		(void) parse_int(timeout, &redis->timeout_ms, GUC_UNIT_MS, NULL);
	redis->socket = mr_socket_create();
	initStringInfo(&redis->out);
	redis->callback.func = free_reader;
	redis->callback.arg = redis;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &redis->callback);
	return redis;
}

/* Ends a request that failed: what is left of it must not be taken for the next one's. */
static bool
give_up(MrRedis *redis, int sqlstate, const char *why)
{
	if (redis->problem != NULL)
		pfree(redis->problem);
	redis->problem = MemoryContextStrdup(redis->context,
										 psprintf("Redis of server \"%s\" at %s:%d: %s",
												  redis->server, redis->host, redis->port, why));
	redis->sqlstate = sqlstate;
	mr_socket_close(redis->socket);
	free_reader(redis);
	redis->step = STEP_CLOSED;
	redis->busy = redis->waits = false;
	return false;
}

/* The socket has failed, or it waits for what will be called again. */
static bool
socket_failed(MrRedis *redis, int sqlstate)
{
	redis->waits = mr_socket_waits(redis->socket);
	return redis->waits ? false : give_up(redis, sqlstate, mr_socket_problem(redis->socket));
}

/* What Redis refuses: credentials and privileges somebody has to change, anything else passes. */
static bool
refused(MrRedis *redis, const char *error)
{
	bool access = strncmp(error, "NOAUTH", 6) == 0 || strncmp(error, "WRONGPASS", 9) == 0 ||
				  strncmp(error, "NOPERM", 6) == 0 || strstr(error, "AUTH") != NULL;

	return give_up(
		redis, access ? ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION : ERRCODE_CONNECTION_EXCEPTION,
		error);
}

/* The next reply, or NULL: it has failed, or waits. */
static redisReply *
next_reply(MrRedis *redis)
{
	char buffer[16384];
	void *reply = NULL;

	for (;;)
	{
		int received;

		if (redisReaderGetReply(redis->reader, &reply) != REDIS_OK)
		{
			(void) give_up(redis, ERRCODE_PROTOCOL_VIOLATION, redis->reader->errstr);
			return NULL;
		}
		if (reply != NULL)
			return reply;
		received = mr_socket_receive(redis->socket, buffer, sizeof(buffer));
		if (received == 0)
		{
			(void) socket_failed(redis, ERRCODE_CONNECTION_FAILURE);
			return NULL;
		}
		if (redisReaderFeed(redis->reader, buffer, received) != REDIS_OK)
		{
			(void) give_up(redis, ERRCODE_OUT_OF_MEMORY, redis->reader->errstr);
			return NULL;
		}
	}
}

/* Adds a command to a pipeline. */
static void
append_command(StringInfo out, int nwords, const char *const *words)
{
	appendStringInfo(out, "*%d\r\n", nwords);
	for (int i = 0; i < nwords; i++)
		appendStringInfo(out, "$%zu\r\n%s\r\n", strlen(words[i]), words[i]);
}

/* Begins a pipeline of which no more is wanted than that nothing is refused. */
static void
begin_pipeline(MrRedis *redis)
{
	resetStringInfo(&redis->out);
	redis->awaited = 0;
	if (redis->error != NULL)
		pfree(redis->error);
	redis->error = NULL;
	redis->busy = true;
}

static void
add_command(MrRedis *redis, int nwords, const char *const *words)
{
	append_command(&redis->out, nwords, words);
	redis->awaited++;
}

/* Notes the first error of a reply, or of what an EXEC has given. */
static void
note_error(MrRedis *redis, const redisReply *reply)
{
	if (redis->error == NULL && reply->type == REDIS_REPLY_ERROR)
		redis->error = MemoryContextStrdup(redis->context, reply->str);
	for (size_t i = 0; reply->type == REDIS_REPLY_ARRAY && i < reply->elements; i++)
		note_error(redis, reply->element[i]);
}

/* Runs the pipeline; false: it has failed, or waits. */
static bool
run_pipeline(MrRedis *redis)
{
	if (redis->out.len > 0 && !mr_socket_send(redis->socket, redis->out.data, redis->out.len))
		return socket_failed(redis, ERRCODE_CONNECTION_FAILURE);
	resetStringInfo(&redis->out);
	for (; redis->awaited > 0; redis->awaited--)
	{
		redisReply *reply = next_reply(redis);

		if (reply == NULL)
			return false;
		note_error(redis, reply);
		freeReplyObject(reply);
	}
	redis->busy = false;
	return redis->error == NULL ? true : refused(redis, redis->error);
}

/* What comes first on a connection. */
static void
begin_greeting(MrRedis *redis)
{
	const char *with_name[] = {"AUTH", redis->username, redis->password};
	const char *without[] = {"AUTH", redis->password};
	const char *select[] = {"SELECT", redis->database};

	begin_pipeline(redis);
	if (redis->password != NULL && redis->username != NULL)
		add_command(redis, lengthof(with_name), with_name);
	else if (redis->password != NULL)
		add_command(redis, lengthof(without), without);
	if (redis->database != NULL)
		add_command(redis, lengthof(select), select);
}

/* Connects, unless there is a connection in order; false: it has failed, or waits. */
static bool
be_connected(MrRedis *redis)
{
	if (redis->step == STEP_READY && !redis->busy)
		return true;
	if (!redis->waits)
	{
		mr_socket_close(redis->socket);
		redis->step = STEP_CLOSED;
	}
	redis->waits = false;
	switch (redis->step)
	{
		case STEP_CLOSED:
			free_reader(redis);
			redis->reader = redisReaderCreate();
			if (redis->reader == NULL)
				return give_up(redis, ERRCODE_OUT_OF_MEMORY, "out of memory");
			redis->busy = true;
			redis->step = STEP_CONNECTING;
			/* fall through */
		case STEP_CONNECTING:
			if (!mr_socket_open(redis->socket, redis->host, redis->port, redis->timeout_ms))
				return socket_failed(redis, ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION);
			redis->step = STEP_SECURING;
			/* fall through */
		case STEP_SECURING:
			if (redis->tls && !mr_socket_secure(redis->socket, redis->host, redis->ca_file))
				return socket_failed(redis, ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION);
			begin_greeting(redis);
			redis->step = STEP_GREETING;
			/* fall through */
		case STEP_GREETING:
			if (!run_pipeline(redis))
				return false;
			redis->step = STEP_READY;
			break;
		case STEP_READY:
			break;
	}
	return true;
}

/* The fields of a hash as a JSON object; false when one of them is no text. */
static bool
hash_as_json(const redisReply *reply, StringInfo json)
{
	appendStringInfoChar(json, '{');
	for (size_t i = 0; i < reply->elements; i++)
	{
		const redisReply *word = reply->element[i];

		if (word->type != REDIS_REPLY_STRING || strlen(word->str) != word->len ||
			!pg_verifymbstr(word->str, (int) word->len, true))
			return false;
		if (i > 0)
			appendStringInfoString(json, i % 2 == 0 ? ", " : ": ");
		escape_json(json, word->str);
	}
	appendStringInfoChar(json, '}');
	return true;
}

/* Hands one reply over. */
static void
hand_over(const redisReply *reply, int limit, int n, MrReplyReceiver receive, void *argument)
{
	MrReply given = {MR_REPLY_BAD, NULL, 0};
	StringInfoData json;

	initStringInfo(&json);
	if (reply->type == REDIS_REPLY_ERROR)
		given.text = reply->str;
	else if (reply->type == REDIS_REPLY_NIL ||
			 (reply->type == REDIS_REPLY_STRING && reply->len == 0) ||
			 (reply->type == REDIS_REPLY_ARRAY && reply->elements == 0))
		given.kind = MR_REPLY_ABSENT;
	else if (reply->type == REDIS_REPLY_STRING && reply->len <= (size_t) limit)
	{
		given.kind = MR_REPLY_JSON;
		given.text = reply->str;
		given.length = (int) reply->len;
	}
	else if (reply->type == REDIS_REPLY_ARRAY && !hash_as_json(reply, &json))
		given.text = "a field of the hash is not valid UTF-8 text";
	else if (reply->type == REDIS_REPLY_ARRAY && json.len <= limit)
	{
		given.kind = MR_REPLY_JSON;
		given.text = json.data;
		given.length = json.len;
	}
	else
		given.text = psprintf("it has more than the %d bytes that max_value allows", limit);
	receive(argument, n, &given);
	pfree(json.data);
}

/* Asks for some keys in one pipeline. */
static bool
ask_some(MrRedis *redis, bool hashes, int from, int to, char *const *keys, int limit,
		 MrReplyReceiver receive, void *argument)
{
	StringInfoData commands;
	char end[16];
	bool sent;

	snprintf(end, sizeof(end), "%d", limit);
	initStringInfo(&commands);
	for (int i = from; i < to; i++)
	{
		const char *hash[] = {"HGETALL", keys[i]};
		const char *string[] = {"GETRANGE", keys[i], "0", end};

		append_command(&commands, hashes ? 2 : 4, hashes ? hash : string);
	}
	redis->busy = true;
	sent = mr_socket_send(redis->socket, commands.data, commands.len);
	pfree(commands.data);
	if (!sent)
		return give_up(redis, ERRCODE_CONNECTION_FAILURE, mr_socket_problem(redis->socket));
	for (int i = from; i < to; i++)
	{
		redisReply *reply = next_reply(redis);

		if (reply == NULL)
			return false;
		/* Only what concerns the one key is its own affair. */
		if (reply->type == REDIS_REPLY_ERROR && strncmp(reply->str, "WRONGTYPE", 9) != 0)
		{
			char *error = pstrdup(reply->str);

			freeReplyObject(reply);
			return refused(redis, error);
		}
		hand_over(reply, limit, i, receive, argument);
		freeReplyObject(reply);
	}
	redis->busy = false;
	return true;
}

const char *
mr_redis_ask(MrRedis *redis, bool hashes, int nkeys, char *const *keys, int limit,
			 MrReplyReceiver receive, void *argument, int *sqlstate)
{
	bool answered;

	mr_socket_slice(redis->socket, 0);
	answered = be_connected(redis);
	for (int from = 0; answered && from < nkeys; from += PIPELINE)
		answered = ask_some(redis, hashes, from, Min(from + PIPELINE, nkeys), keys, limit, receive,
							argument);
	*sqlstate = redis->sqlstate;
	return answered ? NULL : redis->problem;
}

bool
mr_redis_transact(MrRedis *redis, int ncommands, const MrRedisCommand *commands, int slice_ms,
				  const char **problem)
{
	static const char *const begin[] = {"MULTI"};
	static const char *const end[] = {"EXEC"};

	mr_socket_slice(redis->socket, slice_ms);
	if (!redis->waits || redis->step != STEP_READY)
	{
		if (!be_connected(redis))
		{
			*problem = redis->problem;
			return !redis->waits;
		}
		begin_pipeline(redis);
		add_command(redis, 1, begin);
		for (int i = 0; i < ncommands; i++)
			add_command(redis, commands[i].nwords, commands[i].words);
		add_command(redis, 1, end);
	}
	redis->waits = false;
	*problem = run_pipeline(redis) ? NULL : redis->problem;
	return !redis->waits;
}

#else

MrRedis *
mr_redis_create_with(const char *server, List *options)
{
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					errmsg("this build of millrace has no client for Redis"),
					errhint("Build it with hiredis, without WITH_REDIS=0.")));
	return NULL;
}

bool
mr_redis_transact(MrRedis *redis, int ncommands, const MrRedisCommand *commands, int slice_ms,
				  const char **problem)
{
	elog(ERROR, "this build of millrace has no client for Redis");
	return false;
}

MrRedis *
mr_redis_create(const char *server, Oid role)
{
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					errmsg("this build of millrace has no client for Redis"),
					errhint("Build it with hiredis, without WITH_REDIS=0.")));
	return NULL;
}

const char *
mr_redis_ask(MrRedis *redis, bool hashes, int nkeys, char *const *keys, int limit,
			 MrReplyReceiver receive, void *argument, int *sqlstate)
{
	elog(ERROR, "this build of millrace has no client for Redis");
	return NULL;
}

#endif
