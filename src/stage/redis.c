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
	bool busy; /* a pipeline is on its way: else somebody was interrupted */
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
	redis->busy = false;
	return false;
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

/* The next reply, or NULL. */
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
			(void) give_up(redis, ERRCODE_CONNECTION_FAILURE, mr_socket_problem(redis->socket));
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

/* Sends one command of the beginning and wants no more of it than that it is not refused. */
static bool
greet(MrRedis *redis, int nwords, const char *const *words)
{
	StringInfoData command;
	redisReply *reply;
	char *error = NULL;

	initStringInfo(&command);
	append_command(&command, nwords, words);
	if (!mr_socket_send(redis->socket, command.data, command.len))
		return give_up(redis, ERRCODE_CONNECTION_FAILURE, mr_socket_problem(redis->socket));
	reply = next_reply(redis);
	if (reply == NULL)
		return false;
	if (reply->type == REDIS_REPLY_ERROR)
		error = pstrdup(reply->str);
	freeReplyObject(reply);
	return error == NULL ? true : refused(redis, error);
}

/* Connects, unless there is a connection in order. */
static bool
be_connected(MrRedis *redis)
{
	if (redis->busy)
		mr_socket_close(redis->socket);
	if (mr_socket_is_open(redis->socket))
		return true;
	free_reader(redis);
	if (!mr_socket_open(redis->socket, redis->host, redis->port, redis->timeout_ms) ||
		(redis->tls && !mr_socket_secure(redis->socket, redis->host, redis->ca_file)))
		return give_up(redis, ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
					   mr_socket_problem(redis->socket));
	redis->reader = redisReaderCreate();
	if (redis->reader == NULL)
		return give_up(redis, ERRCODE_OUT_OF_MEMORY, "out of memory");
	redis->busy = true;
	if (redis->password != NULL)
	{
		const char *with_name[] = {"AUTH", redis->username, redis->password};
		const char *without[] = {"AUTH", redis->password};

		if (!(redis->username != NULL ? greet(redis, 3, with_name) : greet(redis, 2, without)))
			return false;
	}
	if (redis->database != NULL)
	{
		const char *words[] = {"SELECT", redis->database};

		if (!greet(redis, 2, words))
			return false;
	}
	redis->busy = false;
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
	bool answered = be_connected(redis);

	for (int from = 0; answered && from < nkeys; from += PIPELINE)
		answered = ask_some(redis, hashes, from, Min(from + PIPELINE, nkeys), keys, limit, receive,
							argument);
	*sqlstate = redis->sqlstate;
	return answered ? NULL : redis->problem;
}

const char *
mr_redis_transact(MrRedis *redis, int ncommands, const MrRedisCommand *commands)
{
	static const char *const begin[] = {"MULTI"};
	static const char *const end[] = {"EXEC"};
	StringInfoData pipeline;
	char *error = NULL;
	bool sent;

	if (!be_connected(redis))
		return redis->problem;
	initStringInfo(&pipeline);
	append_command(&pipeline, 1, begin);
	for (int i = 0; i < ncommands; i++)
		append_command(&pipeline, commands[i].nwords, commands[i].words);
	append_command(&pipeline, 1, end);
	redis->busy = true;
	sent = mr_socket_send(redis->socket, pipeline.data, pipeline.len);
	pfree(pipeline.data);
	if (!sent)
	{
		(void) give_up(redis, ERRCODE_CONNECTION_FAILURE, mr_socket_problem(redis->socket));
		return redis->problem;
	}
	/* Of the errors the first one says what is wrong; the last reply holds what each command has given. */
	for (int i = 0; i < ncommands + 2; i++)
	{
		redisReply *reply = next_reply(redis);

		if (reply == NULL)
			return redis->problem;
		if (reply->type == REDIS_REPLY_ERROR && error == NULL)
			error = pstrdup(reply->str);
		for (size_t j = 0; reply->type == REDIS_REPLY_ARRAY && j < reply->elements; j++)
		{
			if (reply->element[j]->type == REDIS_REPLY_ERROR && error == NULL)
				error = pstrdup(reply->element[j]->str);
		}
		freeReplyObject(reply);
	}
	redis->busy = false;
	if (error == NULL)
		return NULL;
	(void) refused(redis, error);
	return redis->problem;
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

const char *
mr_redis_transact(MrRedis *redis, int ncommands, const MrRedisCommand *commands)
{
	elog(ERROR, "this build of millrace has no client for Redis");
	return NULL;
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
