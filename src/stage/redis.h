/*
 * redis.h
 *	  What dictionaries ask of a Redis, many keys at once, and what channels tell it.
 */
#ifndef MR_STAGE_REDIS_H
#define MR_STAGE_REDIS_H

#include "postgres.h"

#include "nodes/pg_list.h"

typedef struct MrRedis MrRedis;

typedef enum MrReplyKind
{
	MR_REPLY_ABSENT, /* there is no such key */
	MR_REPLY_JSON, /* bytes as they are stored, or a hash as an object of strings */
	MR_REPLY_BAD /* there is one, but it cannot be used: the text says why */
} MrReplyKind;

typedef struct MrReply
{
	MrReplyKind kind;
	const char *text; /* until the receiver returns */
	int length;
} MrReply;

/* What receives the reply to key number `n`. */
typedef void (*MrReplyReceiver)(void *argument, int n, const MrReply *reply);

/*
 * A client of a server of millrace_redis as `role` may use it, in CurrentMemoryContext.  It connects when it is first
 * asked.  The caller is in a transaction.
 */
extern MrRedis *mr_redis_create(const char *server, Oid role);

/* The same from what mr_server_properties said, outside any transaction. */
extern MrRedis *mr_redis_create_with(const char *server, List *properties);

/*
 * Asks for many keys in pipelines and hands over each reply, in order; no value of more than `limit` bytes is
 * read.  NULL when all were answered, else why not: then nothing further comes, and *sqlstate says what class of
 * error that is.  Outside any transaction or inside.
 */
extern const char *mr_redis_ask(MrRedis *redis, bool hashes, int nkeys, char *const *keys,
								int limit, MrReplyReceiver receive, void *argument, int *sqlstate);

/* A command: its words, of which the first one says what to do. */
#define MR_REDIS_WORDS 5

typedef struct MrRedisCommand
{
	int nwords;
	const char *words[MR_REDIS_WORDS];
} MrRedisCommand;

/*
 * Runs commands in one MULTI/EXEC.  False: it still waits after so many ms (0: as long as it has to), and the same call
 * goes on.  True: it is over, and *problem says why not all were run, or NULL; in the first case it is not known
 * whether they were.
 */
extern bool mr_redis_transact(MrRedis *redis, int ncommands, const MrRedisCommand *commands,
							  int slice_ms, const char **problem);

#endif /* MR_STAGE_REDIS_H */
