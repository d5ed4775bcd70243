/*
 * redis.h
 *	  What dictionaries ask of a Redis: many keys at once.
 */
#ifndef MR_STAGE_REDIS_H
#define MR_STAGE_REDIS_H

#include "postgres.h"

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

/*
 * Asks for many keys in pipelines and hands over each reply, in order; no value of more than `limit` bytes is
 * read.  NULL when all were answered, else why not: then nothing further comes, and *sqlstate says what class of
 * error that is.  Outside any transaction or inside.
 */
extern const char *mr_redis_ask(MrRedis *redis, bool hashes, int nkeys, char *const *keys,
								int limit, MrReplyReceiver receive, void *argument, int *sqlstate);

#endif /* MR_STAGE_REDIS_H */
