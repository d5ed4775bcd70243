/*
 * threshold.c
 *	  Rules of kind "threshold": on groups of marts, at the edges; and what those of kind "health" share with them.
 *
 * The mart says which groups a batch has touched; how they are now is read from its view as the rule's owner, in one statement.
 * What is known of a group is whether it holds: so a batch makes at most one edge of it, whatever came and went between.  The row of a
 * group in the mart's state is locked by whoever has merged something into it, so that edges of one group have the order of commits.
 */
#include "postgres.h"

#include "alert/rule.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "mart/mart.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* What a statement over groups returns. */
enum
{
	GROUP = 1,
	THERE,
	PREDICATE,
	KEY,
	RESOLVE,
	DETAILS,
	GROUP_BY
};

typedef struct MrThreshold
{
	int32 mart_id; /* 0: of kind health */
	MrTarget *mart; /* NULL: its stream does not keep it */
	int ngroups; /* columns; 0: a mart without GROUP BY */
	Oid *types;
	MrStatement *some; /* groups without NULL; parameters are arrays, one for each column */
	MrStatement *some_null;
	MrStatement *whole;
} MrThreshold;

/* Groups as they have been found. */
typedef struct Found
{
	int n;
	int capacity;
	char **texts[GROUP_BY + 1]; /* by column of the statement */
} Found;

/* One attempt to read groups. */
typedef struct Reading
{
	MrThreshold *threshold;
	const MrRows *groups; /* NULL: all */
	int from;
	int to;
	Found *found;
} Reading;

/* ---- reading ------------------------------------------------------------------------------------------- */

static void
take_rows(Found *found, uint64 count)
{
	if (found->n + (int) count > found->capacity)
	{
		found->capacity = Max(found->n + (int) count, found->capacity * 2);
		for (int c = GROUP; c <= GROUP_BY; c++)
			found->texts[c] = found->texts[c] == NULL
								  ? palloc(sizeof(char *) * found->capacity)
								  : repalloc_huge(found->texts[c],
												  sizeof(char *) * found->capacity);
	}
	for (uint64 r = 0; r < count; r++)
	{
		for (int c = GROUP; c <= GROUP_BY; c++)
			found->texts[c][found->n] = c == GROUP || c == KEY
											? mr_rule_short_text(mr_sql_text(r, c))
											: mr_sql_text(r, c);
		found->n++;
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Groups [from, to) that have a NULL, or that have none. */
static void
read_some(Reading *reading, bool with_null, MemoryContext context)
{
	MrThreshold *threshold = reading->threshold;
	Datum *arguments = palloc(sizeof(Datum) * threshold->ngroups);
	int capacity = reading->to - reading->from;
	Datum *values = palloc(sizeof(Datum) * capacity);
	bool *nulls = palloc(capacity);
	int n = 0;

	for (int c = 0; c < threshold->ngroups; c++)
	{
		int lower = 1;
		int16 length;
		bool by_value;
		char align;

		n = 0;
		for (int r = reading->from; r < reading->to; r++)
		{
			bool has_null = false;

			for (int i = 0; i < threshold->ngroups; i++)
				has_null |= reading->groups->nulls[i][r];
			if (has_null != with_null)
				continue;
			values[n] = reading->groups->values[c][r];
			nulls[n++] = reading->groups->nulls[c][r];
		}
		get_typlenbyvalalign(threshold->types[c], &length, &by_value, &align);
		arguments[c] = PointerGetDatum(construct_md_array(
			values, nulls, 1, &n, &lower, threshold->types[c], length, by_value, align));
	}
	if (n == 0)
		return;
	{
		uint64 count = mr_statement_run(with_null ? threshold->some_null : threshold->some,
										arguments, NULL);

		MemoryContextSwitchTo(context);
		take_rows(reading->found, count);
	}
}

/* As the rule's owner. */
static void
read_step(void *argument)
{
	Reading *reading = argument;
	MemoryContext context = CurrentMemoryContext;

	mr_rule_progress();
	SPI_connect();
	MemoryContextSwitchTo(context);
	if (reading->groups == NULL)
	{
		uint64 count = mr_statement_run(reading->threshold->whole, NULL, NULL);

		MemoryContextSwitchTo(context);
		take_rows(reading->found, count);
	}
	else
	{
		read_some(reading, false, context);
		read_some(reading, true, context);
	}
	SPI_finish();
	MemoryContextSwitchTo(context);
}

/* There is no message that the group is of. */
static void
write_failure(MrRule *rule, const ErrorData *error)
{
	MrMessage message = {.time = GetCurrentTimestamp()};
	MrVersion version = {.message = &message};
	List *failures = NIL;

	(void) mr_rule_note_failure(&failures, &version, 0, error);
	mr_rule_write_failures(rule, failures);
}

/* Reads groups; the one that raises an error of data is found by halves, and left out.  False: the rule is suspended. */
static bool
read_groups(MrRule *rule, const MrRows *groups, int from, int to, Found *found)
{
	Reading reading = {rule->threshold, groups, from, to, found};
	int before = found->n;
	ErrorData *error = mr_rule_try(read_step, &reading, rule->base.owner, rule->staging->timezone);

	if (error == NULL)
		return true;
	found->n = before;
	if (!mr_rule_error_of_data(error) || groups == NULL)
	{
		mr_rule_suspend(rule, error);
		return false;
	}
	if (to - from == 1)
	{
		write_failure(rule, error);
		return true;
	}
	return read_groups(rule, groups, from, from + (to - from) / 2, found) &&
		   read_groups(rule, groups, from + (to - from) / 2, to, found);
}

/* ---- following ----------------------------------------------------------------------------------------- */

/* What was found of a rule's groups. */
typedef struct Following
{
	MrRule *rule;
	Found *found;
	bool whole; /* all groups that there are */
	bool history; /* what holds did so before */
} Following;

/* Tells it, and puts what is to be sent into the outbox. */
static void
follow_step(void *argument)
{
	const Following *following = argument;
	const Found *found = following->found;
	static const Oid types[] = {INT4OID,      TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
								TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
								BOOLOID,      BOOLOID};
	static MrStatement *statement = NULL;
	static MrStatement *on_health = NULL;
	Datum arguments[lengthof(types)];

	if (statement == NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);

		on_health = mr_statement_create(
			"SELECT channel_id, key, group_by, alert_id, message, not_after FROM "
			"millrace_internal.follow_health($1, $2, $3::boolean[], $4::boolean[], $5, "
			"$6::boolean[], $7, $8)",
			lengthof(types) - 2, types);
		statement = mr_statement_create(
			"SELECT channel_id, key, group_by, alert_id, message, not_after FROM "
			"millrace_internal.follow_groups($1, $2, $3::boolean[], $4::boolean[], $5, "
			"$6::boolean[], $7, $8, $9, $10)",
			lengthof(types), types);
		MemoryContextSwitchTo(previous);
	}
	arguments[0] = Int32GetDatum(following->rule->base.id);
	for (int c = GROUP; c <= GROUP_BY; c++)
		arguments[c] = mr_rule_text_array(found->texts[c], found->n);
	arguments[lengthof(types) - 2] = BoolGetDatum(following->whole);
	arguments[lengthof(types) - 1] = BoolGetDatum(following->history);
	mr_rule_send(following->rule->threshold->mart_id == 0 ? on_health : statement, arguments);
	following->rule->base.written += found->n;
}

static void
follow(MrRule *rule, const MrBatch *batch, Found *found, bool whole, bool history)
{
	Following following = {rule, found, whole, history};

	mr_rule_write(rule, batch, follow_step, &following);
}

/* Of groups that an erasure has touched nothing stays that was said of them until now. */
static void
erase_groups(MrRule *rule, const Found *found)
{
	static const Oid types[] = {INT4OID, TEXTARRAYOID, TEXTARRAYOID};
	Datum arguments[] = {Int32GetDatum(rule->base.id),
						 mr_rule_text_array(found->texts[GROUP], found->n),
						 mr_rule_text_array(found->texts[THERE], found->n)};
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	(void) mr_sql_with("SELECT millrace_internal.erase_groups($1, $2, $3::boolean[])",
					   lengthof(types), types, arguments, NULL);
	SPI_finish();
	mr_run_back(&saved);
}

/*
 * Whoever reads all groups takes those for gone that he does not find: what is known of them is not to change before he has
 * looked.
 */
static void
lock_groups(const MrRule *rule)
{
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	(void) mr_sql("SELECT FROM millrace.rule WHERE target_id = %d FOR NO KEY UPDATE",
				  rule->base.id);
	SPI_finish();
	mr_run_back(&saved);
}

static void
threshold_apply(MrTarget *target, MrBatch *batch)
{
	MrRule *rule = (MrRule *) target;
	MrThreshold *threshold = rule->threshold;
	const MrRows *groups = NULL;
	Found found = {0};
	bool known;

	/* What is being filled is looked at as a whole when it is. */
	if (!mr_rule_is_judged(rule, batch) || target->filling || threshold->mart == NULL ||
		threshold->mart->filling)
		return;
	known = mr_mart_touched(threshold->mart, &groups);
	if (known && (groups == NULL || groups->nrows == 0))
		return;
	if (threshold->ngroups == 0)
		known = false;
	else if (!known)
		lock_groups(rule);
	if (!read_groups(rule, known ? groups : NULL, 0, known ? groups->nrows : 1, &found))
	{
		(void) mr_rule_is_judged(rule, batch);
		return;
	}
	if (batch->erasing)
		erase_groups(rule, &found);
	follow(rule, batch, &found, !known, false);
}

/* All groups; returns how many there are. */
static int64
look_at_all(MrRule *rule, bool history)
{
	Found found = {0};

	if (!mr_rule_is_judged(rule, NULL))
		return 0;
	if (read_groups(rule, NULL, 0, 1, &found))
		follow(rule, NULL, &found, true, history);
	else
		(void) mr_rule_is_judged(rule, NULL);
	return found.n;
}

/* What is true of groups now was so before, unless the rule knew how they were when it was suspended. */
static char *
threshold_fill(MrTarget *target, const char *after, int limit, int64 *nkeys)
{
	MrRule *rule = (MrRule *) target;

	*nkeys = look_at_all(rule, !rule->resumed);
	return NULL;
}

static void
threshold_clear(MrTarget *target, const char *filter, char **condition)
{
	mr_rule_clear(target, filter, condition);
	(void) look_at_all((MrRule *) target, true);
}

static void
tick_step(void *argument)
{
	static const Oid types[] = {INT4OID};
	static MrStatement *statement = NULL;
	Datum id = Int32GetDatum(((MrTarget *) argument)->id);

	if (statement == NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);

		statement =
			mr_statement_create("SELECT channel_id, key, group_by, alert_id, message, not_after "
								"FROM millrace_internal.threshold_tick($1)",
								lengthof(types), types);
		MemoryContextSwitchTo(previous);
	}
	mr_rule_send(statement, &id);
}

static void
threshold_tick(MrTarget *target, TimestampTz caught_up)
{
	MrRule *rule = (MrRule *) target;

	if (!target->filling && mr_rule_is_judged(rule, NULL))
		mr_rule_write(rule, NULL, tick_step, target);
}

void
mr_threshold_look(MrRule *rule)
{
	(void) look_at_all(rule, false);
}

/* ---- loading ------------------------------------------------------------------------------------------- */

void
mr_threshold_load(MrRule *rule)
{
	MrThreshold *threshold = palloc0(sizeof(MrThreshold));
	char *mart = mr_rule_text(rule, "mart");

	rule->base.kind = &mr_threshold_kind;
	rule->threshold = threshold;
	if (mart != NULL)
		threshold->mart_id = (int32) strtol(mart, NULL, 10);
}

void
mr_threshold_prepare(MrRule *rule)
{
	MrThreshold *threshold = rule->threshold;
	ArrayType *types;
	Datum value;
	bool isnull;
	Oid *arrays;

	(void) mr_sql("SELECT chosen, chosen_null, whole, types FROM "
				  "millrace_internal.threshold_statements(%d)",
				  rule->base.id);
	value = mr_sql_value(0, 4, &isnull);
	if (!isnull)
	{
		types = DatumGetArrayTypePCopy(value);
		threshold->ngroups = ArrayGetNItems(ARR_NDIM(types), ARR_DIMS(types));
		threshold->types = (Oid *) ARR_DATA_PTR(types);
	}
	arrays = palloc(sizeof(Oid) * Max(threshold->ngroups, 1));
	for (int i = 0; i < threshold->ngroups; i++)
		arrays[i] = get_array_type(threshold->types[i]);
	threshold->whole = mr_statement_create(mr_sql_text(0, 3), 0, NULL);
	if (threshold->ngroups > 0)
	{
		threshold->some = mr_statement_create(mr_sql_text(0, 1), threshold->ngroups, arrays);
		threshold->some_null = mr_statement_create(mr_sql_text(0, 2), threshold->ngroups, arrays);
	}
	SPI_freetuptable(SPI_tuptable);
}

void
mr_threshold_find_mart(MrRule *rule, const List *targets)
{
	ListCell *lc;

	foreach(lc, targets)
	{
		MrTarget *target = lfirst(lc);

		if (target->kind == &mr_mart_kind && target->id == rule->threshold->mart_id)
		{
			rule->threshold->mart = target;
			mr_mart_watch(target);
		}
	}
}

const MrTargetKind mr_threshold_kind = {
	.name = "rule",
	.phase = MR_PHASE_RULE,
	.stage = MR_STAGE_ALERT,
	.apply = threshold_apply,
	.filled_from = MR_FILLED_BY_ITSELF,
	.fill = threshold_fill,
	.clear = threshold_clear,
	.tick = threshold_tick,
};
