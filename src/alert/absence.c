/*
 * absence.c
 *	  Rules of kind "absence": nothing has been heard of a key, or of anything at all, for some time.
 *
 * A batch notes when each key was heard of last; time passes on the tick, and only until the stream had consumed all that was
 * there, with all of its workers: what has not been read yet is not absent.
 */
#include "postgres.h"

#include "alert/rule.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

typedef struct Heard
{
	char *key;
	TimestampTz time;
} Heard;

/* A look at one batch. */
typedef struct Hearing
{
	MrRule *rule;
	const MrStaged *staged;
	bool erasing;
	int version;
	int row;
	int n;
	int capacity;
	Heard *heard;
	List *failures;
} Hearing;

static void
hear(Hearing *hearing, char *key, TimestampTz time)
{
	if (hearing->n == hearing->capacity)
	{
		hearing->capacity = Max(256, hearing->capacity * 2);
		hearing->heard = hearing->heard == NULL
							 ? palloc(sizeof(Heard) * hearing->capacity)
							 : repalloc_huge(hearing->heard, sizeof(Heard) * hearing->capacity);
	}
	hearing->heard[hearing->n].key = key;
	hearing->heard[hearing->n++].time = time;
}

static void
hear_step(void *argument)
{
	Hearing *hearing = argument;
	MrRule *rule = hearing->rule;

	for (; hearing->version < hearing->staged->nversions; hearing->version++, hearing->row = 0)
	{
		const MrVersion *version = &hearing->staged->versions[hearing->version];

		mr_staged_prefetch(hearing->staged, hearing->version);
		for (; hearing->row < version->nrows; hearing->row++)
		{
			const MrRow *row = &version->rows[hearing->row];
			TimestampTz time;
			char *key;

			mr_rule_progress();
			mr_rule_show_row(rule->row, rule->context, row->values, row->nulls);
			if (rule->predicate != NULL && !mr_expression_true(rule->predicate, rule->context))
				continue;
			time = mr_rule_row_time(rule, version, rule->context, NULL);
			key = mr_rule_key_text(rule->key, rule->context);
			if (key == NULL)
				continue;
			/* Rows one after another are often of one key. */
			if (hearing->n > 0 && strcmp(hearing->heard[hearing->n - 1].key, key) == 0)
				hearing->heard[hearing->n - 1].time = Max(hearing->heard[hearing->n - 1].time,
														  time);
			else
				hear(hearing, key, time);
		}
	}
}

static int
compare_heard(const void *left, const void *right)
{
	const Heard *l = left;
	const Heard *r = right;
	int order = strcmp(l->key, r->key);

	if (order != 0)
		return order;
	return l->time < r->time ? -1 : l->time > r->time;
}

/* Notes the last time of each key, and sends what is over by that. */
static void
note_heard(void *argument)
{
	Hearing *hearing = argument;
	static const Oid types[] = {INT4OID, TEXTARRAYOID, TIMESTAMPTZARRAYOID, BOOLOID};
	static MrStatement *statement = NULL;
	char **keys = palloc(sizeof(char *) * hearing->n);
	Datum *times = palloc(sizeof(Datum) * hearing->n);
	Datum arguments[lengthof(types)];
	int n = 0;

	if (statement == NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);

		statement =
			mr_statement_create("SELECT channel_id, key, group_by, alert_id, message, not_after "
								"FROM millrace_internal.heard($1, $2, $3, $4)",
								lengthof(types), types);
		MemoryContextSwitchTo(previous);
	}
	qsort(hearing->heard, hearing->n, sizeof(Heard), compare_heard);
	for (int i = 0; i < hearing->n; i++)
	{
		if (i + 1 < hearing->n && strcmp(hearing->heard[i].key, hearing->heard[i + 1].key) == 0)
			continue;
		keys[n] = hearing->heard[i].key;
		times[n++] = TimestampTzGetDatum(hearing->heard[i].time);
	}
	arguments[0] = Int32GetDatum(hearing->rule->base.id);
	arguments[1] = mr_rule_text_array(keys, n);
	arguments[2] = PointerGetDatum(
		construct_array(times, n, TIMESTAMPTZOID, sizeof(TimestampTz), true, TYPALIGN_DOUBLE));
	arguments[3] = BoolGetDatum(hearing->erasing);
	mr_rule_send(statement, arguments);
	hearing->rule->base.written += n;
}

static void
absence_apply(MrTarget *target, MrBatch *batch)
{
	MrRule *rule = (MrRule *) target;
	Hearing hearing = {.rule = rule, .erasing = batch->erasing};
	const char *timezone;
	ErrorData *error;

	if (!mr_rule_is_judged(rule, batch))
		return;
	hearing.staged = &batch->staged[rule->staging->ordinal];
	if (hearing.staged->nversions == 0)
		return;
	timezone = rule->staging->timezone;
	error = mr_rule_check_privileges(rule);
	while (error == NULL &&
		   (error = mr_rule_try(hear_step, &hearing, rule->base.owner, timezone)) != NULL)
	{
		const MrVersion *version = &hearing.staged->versions[hearing.version];

		if (!mr_rule_note_failure(&hearing.failures, version, version->rows[hearing.row].element,
								  error))
			break;
		error = NULL;
		hearing.row++;
	}
	mr_rule_hide_row(rule);
	if (!hearing.erasing)
		mr_rule_write_failures(rule, hearing.failures);
	if (error != NULL)
	{
		mr_rule_suspend(rule, error);
		(void) mr_rule_is_judged(rule, batch);
	}
	else if (hearing.n > 0)
		mr_rule_write(rule, batch, note_heard, &hearing);
}

/* What time has brought until the stream had consumed all that was there. */
typedef struct Passing
{
	int32 id;
	TimestampTz until;
} Passing;

static void
tick_step(void *argument)
{
	const Passing *passing = argument;
	static const Oid types[] = {INT4OID, TIMESTAMPTZOID};
	static MrStatement *statement = NULL;
	Datum arguments[] = {Int32GetDatum(passing->id), TimestampTzGetDatum(passing->until)};

	if (statement == NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);

		statement =
			mr_statement_create("SELECT channel_id, key, group_by, alert_id, message, not_after "
								"FROM millrace_internal.absence_tick($1, $2)",
								lengthof(types), types);
		MemoryContextSwitchTo(previous);
	}
	mr_rule_send(statement, arguments);
}

static void
absence_tick(MrTarget *target, TimestampTz caught_up)
{
	MrRule *rule = (MrRule *) target;
	Passing passing = {.id = target->id, .until = caught_up};

	if (!TIMESTAMP_IS_NOBEGIN(caught_up) && !target->filling && mr_rule_is_judged(rule, NULL))
		mr_rule_write(rule, NULL, tick_step, &passing);
}

const MrTargetKind mr_absence_kind = {
	.name = "rule",
	.phase = MR_PHASE_RULE,
	.stage = MR_STAGE_ALERT,
	.apply = absence_apply,
	.filled_from = MR_FILLED_FROM_VERSIONS,
	.filled_from_staged = true,
	.clear = mr_rule_clear,
	.tick = absence_tick,
};
