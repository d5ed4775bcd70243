/*
 * retention.c
 *	  The manager's part in watching what sources keep for streams that nobody reads.
 *
 * A stream that runs asks its source itself.  For the others a process is started every half a minute, which looks at all
 * of them and ends (source/postgres_watch.c): a source that does not answer must not keep the manager from its workers.
 */
#include "core/retention.h"

#include "core/worker.h"
#include "executor/spi.h"
#include "utils/snapmgr.h"

#define INTERVAL 30000 /* ms between two looks */

static TimestampTz next_look = 0;

bool
mr_retention_due(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool due;

	/* Workers that start with us come first. */
	if (next_look == 0)
		next_look = TimestampTzPlusMilliseconds(now, INTERVAL);
	if (now < next_look)
		return false;
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_execute("SELECT " MR_UNREAD_SLOTS " LIMIT 1", true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read millrace.replication");
	due = SPI_processed > 0;
	PopActiveSnapshot();
	SPI_finish();
	return due;
}

void
mr_retention_manage(Oid database, bool due)
{
	MrSlot wanted = {.kind = MR_SLOT_WATCH, .database = database};

	/* With no process free it is tried again by the next turn. */
	if (mr_slot_start_only(&wanted, due, "mr_watch_main", "millrace: unread slots",
						   "millrace slot watcher"))
		next_look = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), INTERVAL);
}
