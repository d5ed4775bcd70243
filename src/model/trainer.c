/*
 * trainer.c
 *	  The process that trains models in the background.
 *
 * The manager starts it while trainings wait.  It does one after the other, each in a transaction of its own, and ends when there
 * is none.  What fails is noted by a transaction after it.  When the process is killed, the next one finds a training that
 * runs in no process, and notes that.
 */
#include "postgres.h"

#include "access/xact.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "core/worker.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

extern PGDLLEXPORT void mr_trainer_main(Datum index);

/* The next training; 0: there is none. */
static int64
claim(void)
{
	MrRunAs saved;
	bool isnull;
	int64 id;

	mr_worker_begin(&saved);
	(void) mr_sql("SELECT millrace_internal.claim_training()");
	id = DatumGetInt64(mr_sql_value(0, 1, &isnull));
	mr_worker_commit(&saved);
	return isnull ? 0 : id;
}

/* Notes that a training has failed. */
static void
note_failure(int64 id, const ErrorData *error)
{
	Oid types[] = {INT8OID, TEXTOID, TEXTOID};
	Datum values[] = {Int64GetDatum(id),
					  CStringGetTextDatum(error->detail == NULL
											  ? error->message
											  : psprintf("%s (%s)", error->message, error->detail)),
					  CStringGetTextDatum(unpack_sql_state(error->sqlerrcode))};
	MrRunAs saved;

	mr_worker_begin(&saved);
	(void) mr_sql_with("UPDATE millrace.model_training SET state = 'failed', pid = NULL,"
					   " ended_at = clock_timestamp(), error = $2, sqlstate = $3 WHERE id = $1",
					   3, types, values, NULL);
	mr_worker_commit(&saved);
}

/* Trains; an error fails this training alone. */
static void
train(int64 id, MemoryContext context)
{
	PG_TRY();
	{
		MrRunAs saved;

		mr_worker_begin(&saved);
		(void) mr_sql("SELECT millrace_internal.run_training(%lld)", (long long) id);
		mr_worker_commit(&saved);
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(context);
		ereport(LOG, (errmsg("a training of millrace has failed: %s", error->message)));
		note_failure(id, error);
	}
	PG_END_TRY();
}

/* The trainer's main function. */
void
mr_trainer_main(Datum index)
{
	MrSlot *my = mr_slot_attach(index, MR_SLOT_TRAINER);
	MemoryContext context;
	int64 id;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(my->database, InvalidOid, 0);
	mr_worker_pin_settings();
	SetConfigOption("application_name", "millrace trainer", PGC_SUSET, PGC_S_OVERRIDE);
	context = AllocSetContextCreate(TopMemoryContext, "millrace trainer", ALLOCSET_DEFAULT_SIZES);
	while (!mr_slot_stopping())
	{
		(void) mr_worker_obey();
		MemoryContextSwitchTo(context);
		MemoryContextReset(context);
		pgstat_report_activity(STATE_RUNNING, "training a model");
		id = claim();
		if (id == 0)
			break;
		train(id, context);
	}
	proc_exit(0);
}
