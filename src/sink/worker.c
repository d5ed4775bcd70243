/*
 * worker.c
 *	  The delivery worker: claims, sends outside any transaction, records.
 *
 * There are two kinds.  Number 0 serves channels to Kafka, Redis and NOTIFY, one batch after the
 * other.  Those from 1 on serve channels over HTTP, with many requests on their way at once:
 *
 *	  claim ──▶ queue ──▶ requests ──▶ record ──▶ (next part) queue
 *
 * The first failure of a channel empties its queue: what has not been sent is given back, and from
 * then on claims are probes.
 *
 * After an error the process ends, and the manager starts another one.  What this one has claimed
 * is taken over then: it may be sent once more, with the same key, when the error came between
 * sending and recording.
 */
#include "postgres.h"

#include "access/xact.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "sink/delivery.h"
#include "sink/http.h"
#include "sink/worker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define TICK 1000 /* ms: a safety net while there is nothing to do */
#define RECORD_WITHIN 10 /* ms that an answer may wait for others to be recorded with it */
#define TRIM_EVERY 60000 /* ms */
#define TRIM_AT_ONCE 5000 /* rows */

/* What was claimed together: its memory goes when all of it is done. */
typedef struct Round
{
	MemoryContext context;
	int left;
} Round;

/* What is on its way to a channel. */
typedef struct Traffic
{
	int32 channel_id;
	int connections;
	List *queue; /* MrDelivery *, in the order of sending, that wait for a connection */
	int active; /* requests */
	int answered; /* answers that are not recorded */
	bool more; /* something waits that was not claimed with the others */
	bool halted; /* it has failed: nothing more is sent of what was claimed before */
} Traffic;

static List *traffic = NIL; /* Traffic * */
static List *done = NIL; /* MrDelivery *, to be recorded */
static TimestampTz done_since; /* of the first of them that is an answer */
static int active = 0; /* requests, of all channels */
static MemoryContext worker_context;

/* What was claimed is on disk before it is sent (C21), whatever anybody has set. */
static void
keep_commits_durable(void)
{
	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
		SetConfigOption("synchronous_commit", "local", PGC_USERSET, PGC_S_OVERRIDE);
}

/* Everything that the process is told from outside. */
static void
obey(void)
{
	if (mr_worker_obey())
		keep_commits_durable();
}

static Traffic *
find_traffic(int32 channel_id)
{
	Traffic *found;
	ListCell *cell;

	foreach(cell, traffic)
	{
		found = lfirst(cell);
		if (found->channel_id == channel_id)
			return found;
	}
	found = palloc0(sizeof(Traffic));
	found->channel_id = channel_id;
	traffic = lappend(traffic, found);
	return found;
}

/* Takes more work; returns how long to wait for the next time, in ms. */
static long
claim(MrDeliveryClass class, List **claimed)
{
	MemoryContext context = AllocSetContextCreate(worker_context, "millrace round",
												  ALLOCSET_DEFAULT_SIZES);
	long wait = TICK;
	Round *round;
	ListCell *cell;

	MemoryContextSwitchTo(context);
	*claimed = mr_claim(class, &wait);
	round = palloc(sizeof(Round));
	round->context = context;
	round->left = list_length(*claimed);
	MemoryContextSwitchTo(worker_context);
	foreach(cell, *claimed)
		((MrDelivery *) lfirst(cell))->round = round;
	if (*claimed == NIL)
		MemoryContextDelete(context);
	return wait;
}

/* A delivery is done with. */
static void
leave(MrDelivery *delivery)
{
	Round *round = delivery->round;

	if (--round->left == 0)
		MemoryContextDelete(round->context);
}

/*
 * Does the channel take another request?  With one connection each message is recorded before the
 * next is sent, so that a kill repeats one at most.
 */
static bool
has_room(const Traffic *channel)
{
	return channel->active < channel->connections &&
		   (channel->connections > 1 || channel->answered == 0);
}

/* Begins a request. */
static void
start(MrDelivery *delivery, Traffic *channel)
{
	MemoryContext old = MemoryContextSwitchTo(((Round *) delivery->round)->context);

	delivery->at = GetCurrentTimestamp();
	mr_http_start(mr_request_build(delivery));
	MemoryContextSwitchTo(old);
	channel->active++;
	active++;
}

/* Sends what the channels take now; what is queued for one that has failed is given back. */
static void
send_queued(bool stopping)
{
	ListCell *cell;

	foreach(cell, traffic)
	{
		Traffic *channel = lfirst(cell);

		if (channel->halted || stopping)
		{
			done = list_concat(done, channel->queue);
			list_free(channel->queue);
			channel->queue = NIL;
		}
		while (channel->queue != NIL && has_room(channel))
		{
			start(linitial(channel->queue), channel);
			channel->queue = list_delete_first(channel->queue);
		}
	}
}

/* Takes what has come back. */
static void
take_answers(void)
{
	MrHttpRequest *request;

	while ((request = mr_http_finished()) != NULL)
	{
		MrDelivery *delivery = request->argument;
		Round *round = delivery->round;
		Traffic *channel = find_traffic(delivery->channel->id);
		MemoryContext old = MemoryContextSwitchTo(round->context);

		mr_request_judge(delivery, request);
		delivery->seconds = (GetCurrentTimestamp() - delivery->at) / (double) USECS_PER_SEC;
		pfree(request);
		MemoryContextSwitchTo(old);
		active--;
		channel->active--;
		channel->answered++;
		if (delivery->outcome == MR_OUTCOME_RETRY || delivery->not_allowed)
			channel->halted = true;
		if (done == NIL)
			done_since = GetCurrentTimestamp();
		done = lappend(done, delivery);
		mr_debug_point("delivery_sent");
	}
}

/*
 * How long answers may wait for others, or for the next claim, to be recorded with them, in ms.  None
 * waits when its channel has failed, or waits itself for what is recorded.
 */
static long
record_wait(bool stopping)
{
	ListCell *cell;

	foreach(cell, traffic)
	{
		const Traffic *channel = lfirst(cell);

		if (stopping || channel->halted ||
			(channel->answered > 0 && channel->active == 0 &&
			 (channel->more || channel->connections == 1)))
			return 0;
	}
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
										   TimestampTzPlusMilliseconds(done_since, RECORD_WITHIN));
}

/* Records what is done, and queues what is to be sent on; true when a channel has room for more. */
static bool
record(void)
{
	MemoryContext context = AllocSetContextCreate(worker_context, "millrace record",
												  ALLOCSET_DEFAULT_SIZES);
	bool room = false;
	List *more;
	ListCell *cell;

	MemoryContextSwitchTo(context);
	more = mr_record(done);
	MemoryContextSwitchTo(worker_context);
	foreach(cell, done)
	{
		MrDelivery *delivery = lfirst(cell);
		Round *round = delivery->round;
		Traffic *channel = find_traffic(delivery->channel->id);

		room |= list_length(channel->queue) < channel->connections * MR_CLAIM_AHEAD / 2;
		if (!list_member_ptr(more, delivery))
		{
			leave(delivery);
			continue;
		}
		delivery->payload = MemoryContextStrdup(round->context, delivery->payload);
		channel->queue = lcons(delivery, channel->queue);
	}
	list_free(done);
	done = NIL;
	foreach(cell, traffic)
	{
		Traffic *channel = lfirst(cell);

		channel->halted = false;
		channel->answered = 0;
	}
	MemoryContextDelete(context);
	return room;
}

/* Removes a little of what is older than its channel keeps it. */
static void
trim(MrDeliveryClass class)
{
	static TimestampTz trimmed = 0;
	bool isnull;
	MrRunAs saved;

	if (!TimestampDifferenceExceeds(trimmed, GetCurrentTimestamp(), TRIM_EVERY))
		return;
	trimmed = GetCurrentTimestamp();
	StartTransactionCommand();
	if (mr_extension_exists())
	{
		mr_run_as(&saved, mr_extension_owner());
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		(void) mr_sql("SELECT coalesce(bool_or(millrace_internal.trim_outbox(c, %d) >= %d), false) "
					  "FROM millrace.channel c WHERE (c.kind IN ('webhook', 'telegram')) = %s",
					  TRIM_AT_ONCE, TRIM_AT_ONCE, class == MR_DELIVERY_HTTP ? "true" : "false");
		/* There is more, perhaps as much as is sent: the next turn goes on. */
		if (DatumGetBool(mr_sql_value(0, 1, &isnull)))
			trimmed = 0;
		(void) mr_sql("DELETE FROM millrace.sender_pause p WHERE p.not_before < clock_timestamp()");
		PopActiveSnapshot();
		SPI_finish();
		mr_run_back(&saved);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(worker_context);
}

/* Sleeps until something has come, the latch is set, or the time is over. */
static bool
sleep_until_something(long wait)
{
	pgsocket descriptor = mr_http_descriptor();
	int events = WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH;
	long timeout = mr_http_timeout();
	int ready;

	if (descriptor != PGINVALID_SOCKET)
		events |= WL_SOCKET_READABLE;
	if (timeout >= 0)
		wait = Min(wait, timeout);
	if (active == 0 && wait > 0)
		pgstat_report_activity(STATE_IDLE, NULL);
	pgstat_report_stat(active == 0 && wait > 0);
	ready = WaitLatchOrSocket(MyLatch, events, descriptor, wait, PG_WAIT_EXTENSION);
	if (ready & WL_LATCH_SET)
		ResetLatch(MyLatch);
	return (ready & WL_LATCH_SET) != 0;
}

/*
 * Records what is done and claims more, in one transaction, which waits for the disk once.  Returns
 * when to claim again; 0 says at once.
 */
static TimestampTz
exchange(bool stopping, TimestampTz next_claim)
{
	bool recorded = done != NIL;
	List *claimed = NIL;
	ListCell *cell;
	bool claims;

	pgstat_report_activity(STATE_RUNNING, "delivering");
	StartTransactionCommand();
	MemoryContextSwitchTo(worker_context);
	claims = (recorded && record()) || next_claim <= GetCurrentTimestamp();
	if (claims && !stopping)
	{
		long wait = claim(MR_DELIVERY_HTTP, &claimed);

		next_claim = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), wait);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(worker_context);
	if (recorded)
		mr_debug_point("delivery_recorded");
	if (claims)
		mr_debug_point("delivery_claimed");
	foreach(cell, claimed)
	{
		MrDelivery *delivery = lfirst(cell);
		Traffic *channel = find_traffic(delivery->channel->id);

		channel->connections = delivery->channel->connections;
		channel->more = delivery->channel->more;
		channel->queue = lappend(channel->queue, delivery);
	}
	list_free(claimed);
	return next_claim;
}

/* Delivers over HTTP. */
static void
deliver_requests(void)
{
	TimestampTz next_claim = 0;

	for (;;)
	{
		bool stopping = mr_slot_stopping();
		TimestampTz now;
		long wait;

		obey();
		take_answers();
		/* While answers are recorded the next requests are on their way. */
		send_queued(stopping);
		if (stopping && active == 0 && done == NIL)
			return;
		now = GetCurrentTimestamp();
		if ((done != NIL && record_wait(stopping) == 0) || (!stopping && next_claim <= now))
		{
			next_claim = exchange(stopping, next_claim);
			continue;
		}
		trim(MR_DELIVERY_HTTP);
		wait = stopping ? TICK : TimestampDifferenceMilliseconds(now, next_claim);
		if (done != NIL)
			wait = Min(wait, record_wait(stopping));
		if (sleep_until_something(wait))
			next_claim = 0;
	}
}

/* Begins to send what was claimed, by channels. */
static void
begin_batches(List *claimed)
{
	while (claimed != NIL)
	{
		MrDelivery *first = linitial(claimed);
		Round *round = first->round;
		MemoryContext old = MemoryContextSwitchTo(round->context);
		List *batch = NIL;
		List *others = NIL;
		ListCell *cell;

		foreach(cell, claimed)
		{
			MrDelivery *delivery = lfirst(cell);

			if (delivery->channel == first->channel)
				batch = lappend(batch, delivery);
			else
				others = lappend(others, delivery);
		}
		mr_batch_begin(batch);
		MemoryContextSwitchTo(old);
		claimed = others;
	}
}

/* Delivers in batches. */
static void
deliver_batches(void)
{
	TimestampTz next_claim = 0;

	for (;;)
	{
		bool stopping = mr_slot_stopping();
		List *over;
		ListCell *cell;
		long wait;

		obey();
		if (stopping && !mr_batch_under_way())
			return;
		if (!stopping && next_claim <= GetCurrentTimestamp())
		{
			List *claimed;

			pgstat_report_activity(STATE_RUNNING, "delivering");
			wait = claim(MR_DELIVERY_BATCHES, &claimed);
			begin_batches(claimed);
			next_claim = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), wait);
		}
		over = mr_batch_go_on();
		foreach(cell, over)
			leave(lfirst(cell));
		if (over != NIL)
			next_claim = 0;
		list_free(over);
		trim(MR_DELIVERY_BATCHES);
		wait = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next_claim);
		if (sleep_until_something(mr_batch_under_way() ? 0 : wait))
			next_claim = 0;
	}
}

/* The delivery worker's main function. */
void
mr_delivery_worker_main(Datum index)
{
	MrSlot *my = mr_slot_attach(index, MR_SLOT_DELIVERY);

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(my->database, InvalidOid, 0);
	mr_worker_pin_settings();
	keep_commits_durable();
	SetConfigOption("application_name", MyBgworkerEntry->bgw_name, PGC_SUSET, PGC_S_OVERRIDE);
	worker_context = AllocSetContextCreate(TopMemoryContext, "millrace delivery",
										   ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(worker_context);
	mr_claim_init();
	MemoryContextSwitchTo(worker_context);

	if (my->worker == 0)
		deliver_batches();
	else
		deliver_requests();
	proc_exit(0);
}
