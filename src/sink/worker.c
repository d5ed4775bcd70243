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
	int active; /* requests */
	int queued; /* deliveries that wait for a connection */
	bool halted; /* it has failed: nothing more is sent of what was claimed before */
} Traffic;

static List *queue = NIL; /* MrDelivery *, in the order of sending */
static List *done = NIL; /* MrDelivery *, to be recorded */
static List *traffic = NIL; /* Traffic * */
static int active = 0; /* requests, of all channels */
static MemoryContext worker_context;

/* Everything that the process is told from outside. */
static void
obey(void)
{
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
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
	{
		MrDelivery *delivery = lfirst(cell);

		delivery->round = round;
		find_traffic(delivery->channel->id)->queued++;
	}
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

/* Sends what the channels take now; what is queued for one that has failed is given back. */
static void
send_queued(bool stopping)
{
	List *rest = NIL;
	ListCell *cell;

	foreach(cell, queue)
	{
		MrDelivery *delivery = lfirst(cell);
		Round *round = delivery->round;
		Traffic *channel = find_traffic(delivery->channel->id);
		MemoryContext old;

		if (channel->halted || stopping)
		{
			done = lappend(done, delivery);
			channel->queued--;
			continue;
		}
		if (channel->active >= delivery->channel->connections)
		{
			rest = lappend(rest, delivery);
			continue;
		}
		old = MemoryContextSwitchTo(round->context);
		delivery->at = GetCurrentTimestamp();
		mr_http_start(mr_request_build(delivery));
		MemoryContextSwitchTo(old);
		channel->queued--;
		channel->active++;
		active++;
	}
	list_free(queue);
	queue = rest;
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
		if (delivery->outcome == MR_OUTCOME_RETRY || delivery->not_allowed)
			channel->halted = true;
		done = lappend(done, delivery);
		mr_debug_point("delivery_sent");
	}
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

		room |= channel->queued < delivery->channel->connections;
		if (!list_member_ptr(more, delivery))
		{
			leave(delivery);
			continue;
		}
		channel->queued++;
		delivery->payload = MemoryContextStrdup(round->context, delivery->payload);
		queue = lcons(delivery, queue);
	}
	list_free(done);
	done = NIL;
	foreach(cell, traffic)
		((Traffic *) lfirst(cell))->halted = false;
	MemoryContextDelete(context);
	return room;
}

/* Removes a little of what is older than its channel keeps it. */
static void
trim(MrDeliveryClass class)
{
	static TimestampTz trimmed = 0;
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
		(void) mr_sql("SELECT millrace_internal.trim_outbox(c, %d) FROM millrace.channel c "
					  "WHERE (c.kind IN ('webhook', 'telegram')) = %s",
					  TRIM_AT_ONCE, class == MR_DELIVERY_HTTP ? "true" : "false");
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
	if (active == 0)
		pgstat_report_activity(STATE_IDLE, NULL);
	pgstat_report_stat(active == 0);
	ready = WaitLatchOrSocket(MyLatch, events, descriptor, wait, PG_WAIT_EXTENSION);
	if (ready & WL_LATCH_SET)
		ResetLatch(MyLatch);
	return (ready & WL_LATCH_SET) != 0;
}

/* Delivers over HTTP. */
static void
deliver_requests(void)
{
	TimestampTz next_claim = 0;
	bool stopping = false;

	for (;;)
	{
		obey();
		stopping = mr_slot_stopping();
		if (stopping && active == 0 && queue == NIL && done == NIL)
			return;
		if (!stopping && next_claim <= GetCurrentTimestamp())
		{
			List *claimed;
			long wait;

			pgstat_report_activity(STATE_RUNNING, "delivering");
			wait = claim(MR_DELIVERY_HTTP, &claimed);
			queue = list_concat(queue, claimed);
			next_claim = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), wait);
		}
		send_queued(stopping);
		take_answers();
		if (done != NIL)
		{
			/* While these are recorded the next ones are on their way. */
			send_queued(stopping);
			if (record())
				next_claim = 0;
			continue;
		}
		trim(MR_DELIVERY_HTTP);
		if (sleep_until_something(
				Max(0, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next_claim))))
			next_claim = 0;
	}
}

/* Delivers in batches. */
static void
deliver_batches(void)
{
	while (!mr_slot_stopping())
	{
		List *claimed;
		ListCell *cell;
		long wait;

		obey();
		pgstat_report_activity(STATE_RUNNING, "delivering");
		wait = claim(MR_DELIVERY_BATCHES, &claimed);
		while (claimed != NIL)
		{
			MrChannel *channel = ((MrDelivery *) linitial(claimed))->channel;
			Round *round = ((MrDelivery *) linitial(claimed))->round;
			List *batch = NIL;
			List *others = NIL;

			MemoryContextSwitchTo(round->context);
			foreach(cell, claimed)
			{
				if (((MrDelivery *) lfirst(cell))->channel == channel)
					batch = lappend(batch, lfirst(cell));
				else
					others = lappend(others, lfirst(cell));
			}
			mr_batch_deliver(batch);
			MemoryContextSwitchTo(worker_context);
			round->left -= list_length(batch);
			claimed = others;
			if (others == NIL)
				MemoryContextDelete(round->context);
			wait = 0;
		}
		if (wait == 0)
			continue;
		trim(MR_DELIVERY_BATCHES);
		(void) sleep_until_something(wait);
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
