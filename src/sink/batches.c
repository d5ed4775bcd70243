/*
 * batches.c
 *	  Channels whose messages are sent in batches, in their order.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/async.h"
#include "core/millrace.h"
#include "sink/delivery.h"
#include "utils/snapmgr.h"

#define NOTIFY_LIMIT 8000 /* bytes that a payload has to have less than */

/*
 * Within the transaction that records them: what is told is recorded, and what is recorded is told.
 */
static void
deliver_notify(List *deliveries)
{
	ListCell *cell;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	foreach(cell, deliveries)
	{
		MrDelivery *delivery = lfirst(cell);

		delivery->at = GetCurrentTimestamp();
		if (strlen(delivery->payload) >= NOTIFY_LIMIT)
		{
			delivery->outcome = MR_OUTCOME_DEAD;
			delivery->error = psprintf("NOTIFY takes less than %d bytes, and the message has %zu",
									   NOTIFY_LIMIT, strlen(delivery->payload));
			continue;
		}
		Async_Notify(delivery->channel->notify, delivery->payload);
		delivery->outcome = MR_OUTCOME_SENT;
	}
	PopActiveSnapshot();
	(void) mr_record(deliveries);
	CommitTransactionCommand();
	mr_debug_point("delivery_recorded");
}

void
mr_batch_deliver(List *deliveries)
{
	MrChannel *channel = ((MrDelivery *) linitial(deliveries))->channel;

	switch (channel->kind)
	{
		case MR_CHANNEL_NOTIFY:
			deliver_notify(deliveries);
			break;
		default:
			elog(ERROR, "channel \"%s\" is not sent in batches", channel->name);
	}
}
