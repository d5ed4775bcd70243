/*
 * postgres_watch.c
 *	  The process that looks at the replication slots which nobody reads: of streams that are stopped, wait or have failed.
 *
 * The manager starts it (core/retention.c).  It asks one source after the other what it keeps, notes the answers, and
 * ends.  A source that does not answer, or cannot be asked, is left to the next one: what was known of it stays, with its
 * time.
 */
#include "postgres.h"

#include "access/xact.h"
#include "core/millrace.h"
#include "core/retention.h"
#include "core/statement.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "source/postgres_source.h"
#include "source/server.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"

/* The streams whose slots nobody reads, in `context`. */
static List *
unread(MemoryContext context)
{
	MemoryContext previous;
	List *streams;
	MrRunAs saved;

	mr_worker_begin(&saved);
	previous = MemoryContextSwitchTo(context);
	streams =
		mr_sql_ids(mr_sql("SELECT s.id " MR_UNREAD_SLOTS " ORDER BY r.checked_at NULLS FIRST"));
	MemoryContextSwitchTo(previous);
	mr_worker_commit(&saved);
	return streams;
}

/* Asks the source of one stream, and notes what it says. */
static void
look_at(int32 stream_id, MemoryContext context)
{
	MrPgOptions options;
	List *properties = NIL;
	MrPgClient *client;
	MrStream *stream;
	MrRunAs saved;
	bool must_use_password = false;
	char *note;

	mr_worker_begin(&saved);
	MemoryContextSwitchTo(context);
	stream = mr_stream_load(context, stream_id);
	if (stream != NULL)
	{
		mr_pg_read_options(&options, stream);
		MemoryContextSwitchTo(context);
		properties = mr_server_properties(stream->server, stream->owner);
		must_use_password = mr_server_must_use_password(stream->server);
	}
	mr_worker_commit(&saved);
	MemoryContextSwitchTo(context);
	if (stream == NULL)
		return;
	client = mr_pg_connect(properties, must_use_password, "millrace watch", false, MR_PG_TIMEOUT);
	note = mr_pg_retained(client, stream_id, &options);
	mr_pg_close(client);
	if (note == NULL)
		return;
	mr_worker_begin(&saved);
	(void) mr_sql("%s", note);
	mr_worker_commit(&saved);
}

/* The same; what goes wrong is no reason not to look at the others. */
static void
try_to_look_at(int32 stream_id, MemoryContext context)
{
	PG_TRY();
	{
		look_at(stream_id, context);
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		ereport(DEBUG1, (errmsg_internal("the slot of stream %d cannot be looked at: %s", stream_id,
										 error->message)));
	}
	PG_END_TRY();
}

/* The watcher's main function. */
void
mr_watch_main(Datum index)
{
	MrSlot *my = mr_slot_attach(index, MR_SLOT_WATCH);
	MemoryContext context;
	List *streams = NIL;
	ListCell *cell;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(my->database, InvalidOid, 0);
	mr_worker_pin_settings();
	SetConfigOption("application_name", "millrace watch", PGC_SUSET, PGC_S_OVERRIDE);
	pgstat_report_activity(STATE_RUNNING, "looking at replication slots");

	context = AllocSetContextCreate(TopMemoryContext, "millrace watch", ALLOCSET_DEFAULT_SIZES);
	StartTransactionCommand();
	if (mr_extension_exists())
	{
		CommitTransactionCommand();
		streams = unread(TopMemoryContext);
	}
	foreach(cell, streams)
	{
		if (mr_slot_stopping())
			break;
		(void) mr_worker_obey();
		MemoryContextReset(context);
		try_to_look_at(lfirst_int(cell), context);
	}
	proc_exit(0);
}
