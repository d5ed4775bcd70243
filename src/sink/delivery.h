/*
 * delivery.h
 *	  What delivery workers do: claim, send, record.
 */
#ifndef MR_SINK_DELIVERY_H
#define MR_SINK_DELIVERY_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

typedef enum MrChannelKind
{
	MR_CHANNEL_WEBHOOK,
	MR_CHANNEL_TELEGRAM,
	MR_CHANNEL_KAFKA,
	MR_CHANNEL_REDIS,
	MR_CHANNEL_NOTIFY
} MrChannelKind;

#define MR_CHANNEL_KINDS (MR_CHANNEL_NOTIFY + 1)

/* As millrace.channel names them. */
extern const char *const mr_channel_kinds[MR_CHANNEL_KINDS];

#define MR_PROBLEM_PAUSE 10000 /* ms until a channel that cannot be used is looked at again */

/* A channel as a worker uses it. */
typedef struct MrChannel
{
	int32 id;
	char *name;
	Oid owner;
	MrChannelKind kind;
	char *server; /* NULL: NOTIFY */
	char *options; /* JSON */
	bool has_message; /* an expression of its own makes the body */
	int64 give_up; /* microseconds */
	int digest_above;
	int connections; /* at the same time */
	List *properties; /* MrProperty *, of server and user mapping */
	List *headers; /* char *, of options */
	char *origin; /* tells our deliveries from another instance's */
	char *url; /* of HTTP */
	char *topic; /* of Kafka */
	char *chat; /* of Telegram, as JSON */
	char *thread; /* of Telegram, as JSON, or NULL */
	char *publish; /* of Redis, or NULL */
	List *set; /* of Redis: MrRedisKey * */
	char *notify; /* what sessions listen to */
	bool has_sender;
	pg_uuid_t sender; /* what pauses are kept by */
	int failures;
	char *problem; /* as recorded */
	int64 send_no;
	bool more; /* something waits that was not claimed with the others */
} MrChannel;

typedef struct MrRedisKey
{
	char *key;
	char *seconds;
} MrRedisKey;

typedef enum MrOutcome
{
	MR_OUTCOME_UNSENT = 0, /* given back without an attempt */
	MR_OUTCOME_SENT,
	MR_OUTCOME_RETRY,
	MR_OUTCOME_PLAIN, /* again at once, without markup */
	MR_OUTCOME_DEAD
} MrOutcome;

/* A claimed delivery, and what became of one attempt. */
typedef struct MrDelivery
{
	MrChannel *channel;
	int64 id;
	char *key;
	int part; /* from 1 */
	int parts;
	char *payload; /* of this part; NULL: deleted */
	bool plain;
	int attempts; /* of this part, before this one */
	TimestampTz created_at;
	int64 send_no;
	bool again; /* an earlier claim may have sent it */
	bool handed_over; /* to Kafka: it may be there */
	int64 passed_by; /* another one has been sent with this number, and all up to that; or 0 */

	MrOutcome outcome;
	TimestampTz at;
	double seconds;
	int status; /* of HTTP; 0: none */
	char *error;
	bool ours; /* while it is recorded: it is claimed by us */
	void *round; /* of the worker: with what it was claimed */
	int retry_after; /* seconds that the endpoint asks for; -1: none */
	bool not_allowed; /* unsent, because something has to be changed before: `error` says what */
} MrDelivery;

/*
 * Which channels a worker serves: over HTTP many requests at once, over the others one batch after
 * the other.
 */
typedef enum MrDeliveryClass
{
	MR_DELIVERY_BATCHES,
	MR_DELIVERY_HTTP
} MrDeliveryClass;

/*
 * ---- channel.c: the caller is in a transaction
 * --------------------------------------------------------------
 */

/*
 * Fills a channel from SPI's row of mr_channel_columns; what can be wrong with its server is an
 * error.
 */
extern const char *const mr_channel_columns;
extern MrChannel *mr_channel_read(uint64 row);
extern void mr_channel_connect(MrChannel *channel);

/* Takes out of the outbox what is not to be sent over it any more. */
extern void mr_channel_thin_out(const MrChannel *channel);
extern MrChannel *mr_channel_by_name(const char *name);

/*
 * ---- claim.c
 * ------------------------------------------------------------------------------------------------
 */

#define MR_CLAIM_AHEAD 16 /* deliveries for each connection that are claimed at the most */

/* Takes a number, and its lock for the life of the process, that says whose claims are ours. */
extern void mr_claim_init(void);
extern int64 mr_claimant(void);

/*
 * Claims what can be sent now, in a transaction of its own, or in the caller's when there is one, as
 * MrDelivery * in CurrentMemoryContext.  *wait is lowered to the time in ms until there may be more by itself.
 */
extern List *mr_claim(MrDeliveryClass class, long *wait);

/* What a test of a channel sends, in the caller's transaction. */
extern char *mr_claim_test_body(const MrChannel *channel);

/*
 * ---- record.c
 * -----------------------------------------------------------------------------------------------
 */

/*
 * Records attempts in a transaction of its own, or in the caller's when there is one.  Those of
 * which another part is to be sent now are returned, with that part.
 */
extern List *mr_record(List *deliveries);

/*
 * ---- request.c: over HTTP
 * -----------------------------------------------------------------------------------
 */

struct MrHttpRequest;
extern struct MrHttpRequest *mr_request_build(MrDelivery *delivery);
extern void mr_request_judge(MrDelivery *delivery, const struct MrHttpRequest *request);

/*
 * ---- text.c: Telegram's texts
 * -------------------------------------------------------------------------------
 */

/* A text for HTML. */
extern char *mr_text_escape(const char *text);

/* A text in parts that are under Telegram's limit when they are escaped, as char *. */
extern List *mr_text_split(const char *text);

/*
 * ---- batches.c: Kafka, Redis, NOTIFY
 * -------------------------------------------------------------------------
 */

/*
 * Outside any transaction.  Deliveries of one channel, of which nothing else is under way, are to be
 * sent in their order; they and CurrentMemoryContext stay until they are over.
 */
extern void mr_batch_begin(List *deliveries);
extern bool mr_batch_under_way(void);

/* Goes on with all channels, and returns the deliveries that are over and recorded. */
extern List *mr_batch_go_on(void);

/* Sends one without recording it; NOTIFY in the caller's transaction. */
extern void mr_batch_send_one(MrDelivery *delivery);

#endif /* MR_SINK_DELIVERY_H */
