/*
 * stats.c
 *	  Where the time of batches goes, by stage of the flow.
 *
 * Counted in the process, and added to millrace.stage_time about once a second, within a batch's transaction
 * or the tick's, so that counting does not cost a small batch its speed.
 */
#include "postgres.h"

#include "core/millrace.h"
#include "core/statement.h"
#include "flow/plan.h"
#include "portability/instr_time.h"

static const char *const stage_names[MR_STAGES] = {
	"fetch", "decode", "enrich", "map", "staging", "vault", "mart", "alert", "position", "commit"};

static MrStageTime counted[MR_STAGES];
static TimestampTz written_at;

void
mr_flow_stats_add(MrStage stage, instr_time start, int64 rows)
{
	instr_time now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, start);
	counted[stage].batches++;
	counted[stage].rows += rows;
	counted[stage].seconds += INSTR_TIME_GET_DOUBLE(now);
}

/* What was not meant seriously is not counted. */
void
mr_flow_stats_forget(void)
{
	memset(counted, 0, sizeof(counted));
}

void
mr_flow_stats_write(MrStream *stream, int worker, bool now)
{
	TimestampTz moment = GetCurrentTimestamp();
	MrRunAs saved;

	if (!now && moment - written_at < USECS_PER_SEC)
		return;
	mr_run_as(&saved, mr_extension_owner());
	for (int i = 0; i < MR_STAGES; i++)
	{
		if (counted[i].batches == 0)
			continue;
		(void) mr_sql(
			"INSERT INTO millrace.stage_time AS t (stream_id, worker, stage, batches, rows, "
			"seconds) VALUES (%d, %d, '%s', " INT64_FORMAT ", " INT64_FORMAT ", %.6f) "
			"ON CONFLICT (stream_id, worker, stage) DO UPDATE SET "
			"batches = t.batches + EXCLUDED.batches, rows = t.rows + EXCLUDED.rows, "
			"seconds = t.seconds + EXCLUDED.seconds",
			stream->id, worker, stage_names[i], counted[i].batches, counted[i].rows,
			counted[i].seconds);
	}
	if (stream->enrichment != NULL)
		mr_enrich_write_stats(stream->enrichment, stream->id, worker);
	memset(counted, 0, sizeof(counted));
	written_at = moment;
	mr_run_back(&saved);
}
