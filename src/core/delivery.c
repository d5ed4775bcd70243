/*
 * delivery.c
 *	  The manager's part: delivery workers run while there are channels for them.
 */
#include "postgres.h"

#include "core/delivery.h"
#include "core/millrace.h"
#include "core/worker.h"
#include "executor/spi.h"
#include "postmaster/bgworker.h"
#include "utils/snapmgr.h"

#define MOST 17 /* one for batches, and the most that millrace.delivery_workers may be */
#define STARTING_PATIENCE 30000 /* ms until a process that was registered counts as lost */
#define STOPPING_PATIENCE 10000 /* ms until a process that was asked to end is terminated */
#define STABLE 60000 /* ms of running after which earlier failures are forgotten */

/* Failures in a row of each, and until when it is not started because of them. */
static int failures[MOST];
static TimestampTz not_before[MOST];
static bool said_no_worker = false;

void
mr_delivery_wanted(MrDeliveryWanted *wanted)
{
	bool isnull;

	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_execute("SELECT coalesce(bool_or(c.kind NOT IN ('webhook', 'telegram')), false), "
					"coalesce(bool_or(c.kind IN ('webhook', 'telegram')), false) "
					"FROM millrace.channel c",
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read millrace.channel");
	wanted->batches =
		DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	wanted->http =
		DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull))
			? mr_delivery_workers
			: 0;
	PopActiveSnapshot();
	SPI_finish();
}

static bool
is_wanted(const MrDeliveryWanted *wanted, int worker)
{
	return worker == 0 ? wanted->batches : worker <= wanted->http;
}

/* Reads how a process ended. */
static void
take_end(const MrSlot *slot, TimestampTz now)
{
	int *count = &failures[slot->worker];

	if (slot->held || (slot->state == MR_SLOT_ENDED && slot->exit_code == 0))
	{
		*count = 0;
		not_before[slot->worker] = 0;
		return;
	}
	if (TimestampDifferenceExceeds(slot->started, slot->since, STABLE))
		*count = 0;
	(*count)++;
	not_before[slot->worker] = TimestampTzPlusMilliseconds(now, mr_worker_backoff(*count));
	ereport(LOG, (errmsg("millrace's delivery worker %d has ended and is started again: %s",
						 slot->worker,
						 slot->state == MR_SLOT_ENDED && slot->reason[0] ? slot->reason
																		 : "it said no word")));
}

/* Starts one; false when there is no room. */
static bool
start(Oid database, int worker)
{
	MrSlot slot = {0};
	char name[BGW_MAXLEN];

	slot.kind = MR_SLOT_DELIVERY;
	slot.database = database;
	slot.worker = worker;
	snprintf(name, sizeof(name), "millrace: delivery #%d", worker);
	if (mr_slot_start(&slot, "mr_delivery_worker_main", name, "millrace delivery worker"))
	{
		said_no_worker = false;
		return true;
	}
	if (!said_no_worker && !mr_database_held(database))
		ereport(LOG, (errmsg("millrace found no free background worker for its deliveries"),
					  errhint("Raise max_worker_processes; one is needed for the launcher, one for "
							  "each database, one for each worker of a stream and two for "
							  "deliveries.")));
	said_no_worker = true;
	return false;
}

long
mr_delivery_manage(Oid database, const MrDeliveryWanted *wanted, long wait)
{
	MrSlot *slots;
	int n = mr_slot_list(MR_SLOT_DELIVERY, database, &slots);
	TimestampTz now = GetCurrentTimestamp();
	bool present[MOST] = {false};

	for (int i = 0; i < n; i++)
	{
		MrSlot *slot = &slots[i];
		bool lost = slot->state == MR_SLOT_STARTING &&
					TimestampDifferenceExceeds(slot->since, now, STARTING_PATIENCE);

		if (slot->state == MR_SLOT_ENDED || lost)
		{
			take_end(slot, now);
			mr_slot_free(slot);
			continue;
		}
		present[slot->worker] = true;
		if (!is_wanted(wanted, slot->worker))
		{
			mr_slot_stop(slot, slot->stop &&
								   TimestampDifferenceExceeds(slot->since, now, STOPPING_PATIENCE));
			wait = Min(wait, 1000);
		}
	}
	pfree(slots);
	for (int worker = 0; worker < MOST; worker++)
	{
		if (present[worker] || !is_wanted(wanted, worker))
			continue;
		if (not_before[worker] > now)
			wait = Min(wait, TimestampDifferenceMilliseconds(now, not_before[worker]) + 1);
		else if (!start(database, worker))
			wait = Min(wait, 2000);
	}
	return wait;
}
