/*
 * progress.c
 *	  How far trainings are.
 *
 * PostgreSQL keeps the progress of a command in the session's entry of its statistics, of which millrace uses its own kind:
 * so it needs no shared memory of ours, and goes with the session.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/progress.h"
#include "core/compat.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/model.h"
#include "utils/backend_progress.h"
#include "utils/builtins.h"
#include "utils/backend_status.h"

/* No command of PostgreSQL's own has this number: its views do not show us. */
#define COMMAND_TRAINING ((ProgressCommandType) 0x6d72)

#define PARAMETER_PHASE 0
#define PARAMETER_DONE 1
#define PARAMETER_TOTAL 2

PG_FUNCTION_INFO_V1(millrace_training_progress);

void
mr_progress_start(Oid model)
{
	pgstat_progress_start_command(COMMAND_TRAINING, model);
}

void
mr_progress_phase(MrTrainingPhase phase, int64 total)
{
	const int parameters[] = {PARAMETER_PHASE, PARAMETER_DONE, PARAMETER_TOTAL};
	const int64 values[] = {phase, 0, total};

	pgstat_progress_update_multi_param(3, parameters, values);
}

void
mr_progress_done(int64 done)
{
	pgstat_progress_update_param(PARAMETER_DONE, done);
}

void
mr_progress_end(void)
{
	pgstat_progress_end_command();
}

/* One row for each training of this database: process, model, phase, how much is done of what. */
Datum
millrace_training_progress(PG_FUNCTION_ARGS)
{
	static const char *const phases[] = {"starting",  "reading", "sorting",
										 "computing", "judging", "writing"};
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	int n = pgstat_fetch_stat_numbackends();

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 1; i <= n; i++)
	{
		PgBackendStatus *entry = &mr_backend_status(i)->backendStatus;
		int64 phase = entry->st_progress_param[PARAMETER_PHASE];
		Datum values[5];
		bool nulls[5] = {false};

		if (entry->st_progress_command != COMMAND_TRAINING || entry->st_databaseid != MyDatabaseId)
			continue;
		values[0] = Int32GetDatum(entry->st_procpid);
		values[1] = ObjectIdGetDatum(entry->st_progress_command_target);
		values[2] = CStringGetTextDatum(phases[phase > 0 && phase < lengthof(phases) ? phase : 0]);
		values[3] = Int64GetDatum(entry->st_progress_param[PARAMETER_DONE]);
		values[4] = Int64GetDatum(entry->st_progress_param[PARAMETER_TOTAL]);
		nulls[4] = entry->st_progress_param[PARAMETER_TOTAL] <= 0;
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
