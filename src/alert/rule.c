/*
 * rule.c
 *	  Loading rules, and running their owners' expressions so that these harm nobody.
 *
 * An error of the data is about one row: the batch goes on without the pair of rule and row, which is recorded.  Any
 * other error that an expression can raise, or one row that takes too long, suspends the rule.  Only what has nothing to
 * do with the rule, such as a lock or memory, is the batch's error.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "alert/rule.h"
#include "catalog/pg_authid.h"
#include "common/hashfn.h"
#include "core/catalog.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "stage/mapping.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "vault/vault.h"

/* Of a rule that fails for so many rows of one batch, not each row's failure is recorded: it is suspended. */
#define MANY_FAILURES 1000

/* Longer keys are cut, and end with a hash: they stand in indexes. */
#define LONGEST_KEY 500

/* Microseconds from 2000, some 36,000 years. */
#define FARTHEST_TIME (INT64CONST(1) << 60)

/* ---- the clock ----------------------------------------------------------------------------------------- */

static TimeoutId row_timeout = MAX_TIMEOUTS;
static volatile uint32 progress; /* counts rows */
static volatile uint32 progress_seen; /* at the last look */
static volatile sig_atomic_t judging = false;
static volatile sig_atomic_t too_long = false;

void
mr_rule_progress(void)
{
	progress++;
}

/* Once in a while: the row that was being judged the last time should be over. */
static void
look_at_clock(void)
{
	if (!judging)
		return;
	if (progress == progress_seen)
	{
		too_long = true;
		QueryCancelPending = true;
		InterruptPending = true;
		SetLatch(MyLatch);
	}
	progress_seen = progress;
}

static void
start_clock(void)
{
	if (mr_rule_timeout == 0)
		return;
	if (row_timeout == MAX_TIMEOUTS)
		row_timeout = RegisterTimeout(USER_TIMEOUT, look_at_clock);
	progress_seen = progress - 1;
	too_long = false;
	judging = true;
	enable_timeout_every(row_timeout,
						 TimestampTzPlusMilliseconds(GetCurrentTimestamp(), mr_rule_timeout),
						 mr_rule_timeout);
}

static void
stop_clock(void)
{
	if (mr_rule_timeout == 0)
		return;
	judging = false;
	disable_timeout(row_timeout, false);
}

/* ---- errors -------------------------------------------------------------------------------------------- */

bool
mr_rule_error_of_data(const ErrorData *error)
{
	return mr_error_class(error->sqlerrcode) == MR_ERROR_DATA;
}

/* Who runs a step, and how. */
typedef struct Footing
{
	Oid owner; /* InvalidOid: as we are, however long it takes */
	const char *timezone;
} Footing;

static ErrorData *
try_step(void (*step)(void *), void *argument, Footing footing)
{
	ErrorData *volatile error = NULL;
	bool timed_out = false;
	MrAttempt attempt;

	mr_attempt_begin(&attempt);
	PG_TRY();
	{
		if (!OidIsValid(footing.owner))
			step(argument);
		else
		{
			MrRunAs saved;
			int nest_level;

			mr_run_as_restricted(&saved, footing.owner);
			nest_level = mr_settings_pin(footing.timezone);
			start_clock();
			step(argument);
			stop_clock();
			mr_settings_unpin(nest_level);
			mr_run_back(&saved);
		}
		mr_attempt_end(&attempt, true);
	}
	PG_CATCH();
	{
		stop_clock();
		error = mr_attempt_failed(&attempt);
	}
	PG_END_TRY();
	if (too_long)
	{
		timed_out = error != NULL && error->sqlerrcode == ERRCODE_QUERY_CANCELED;
		/* It came when the last row was over: nothing is to be cancelled any more. */
		if (!timed_out)
			QueryCancelPending = false;
		else
			error->message = psprintf("a row took longer than %d ms", mr_rule_timeout);
		too_long = false;
	}
	if (error != NULL && !timed_out && !mr_rule_error_of_data(error) &&
		ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_TO_CATEGORY(ERRCODE_INTERNAL_ERROR) &&
		mr_error_class(error->sqlerrcode) != MR_ERROR_CONFIGURATION)
		mr_rethrow(error);
	return error;
}

ErrorData *
mr_rule_try(void (*step)(void *), void *argument, Oid owner, const char *timezone)
{
	return try_step(step, argument, (Footing){owner, timezone});
}

void
mr_rule_write(MrRule *rule, const MrBatch *batch, void (*step)(void *), void *argument)
{
	ErrorData *error = try_step(step, argument, (Footing){InvalidOid, NULL});

	if (error == NULL)
		return;
	mr_rule_suspend(rule, error);
	(void) mr_rule_is_judged(rule, batch);
}

void
mr_rule_suspend(MrRule *rule, const ErrorData *error)
{
	rule->reason = MemoryContextStrdup(GetMemoryChunkContext(rule), error->message);
	rule->sqlstate = error->sqlerrcode;
}

bool
mr_rule_is_judged(MrRule *rule, const MrBatch *batch)
{
	Oid types[] = {INT4OID, TEXTOID, TEXTOID, TIMESTAMPTZOID};
	Datum values[lengthof(types)];
	/* One that is being filled has not judged all that came before. */
	char nulls[] = {' ', ' ', ' ', rule->base.filling ? 'n' : ' '};
	MrRunAs saved;

	if (rule->suspended || rule->staging == NULL)
		return false;
	if (rule->reason == NULL)
		return true;
	/* Each time: this transaction may have to be done again. */
	values[0] = Int32GetDatum(rule->base.id);
	values[1] = CStringGetTextDatum(rule->reason);
	values[2] = CStringGetTextDatum(unpack_sql_state(rule->sqlstate));
	values[3] = TimestampTzGetDatum(batch == NULL ? GetCurrentTimestamp() : batch->loaded_at);
	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	if (SPI_execute_with_args("SELECT millrace_internal.suspend_rule($1, $2, $3, $4)",
							  lengthof(types), types, values, nulls, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "cannot suspend rule %s", rule->rule_name);
	SPI_finish();
	mr_run_back(&saved);
	return false;
}

static void
privileges_step(void *argument)
{
	mr_check_privileges(((MrRule *) argument)->definition);
}

ErrorData *
mr_rule_check_privileges(MrRule *rule)
{
	return mr_rule_try(privileges_step, rule, rule->base.owner, rule->staging->timezone);
}

bool
mr_rule_note_failure(List **failures, const MrVersion *version, int32 element,
					 const ErrorData *error)
{
	MrFailure *failure;

	if (!mr_rule_error_of_data(error) || list_length(*failures) >= MANY_FAILURES)
		return false;
	failure = palloc0(sizeof(MrFailure));
	failure->message = version->message;
	failure->element = element;
	failure->sqlstate = error->sqlerrcode;
	failure->text = pstrdup(error->message != NULL ? error->message : "");
	*failures = lappend(*failures, failure);
	return true;
}

/* ---- rows ---------------------------------------------------------------------------------------------- */

void
mr_rule_show_row(TupleTableSlot *slot, ExprContext *context, Datum *values, bool *nulls)
{
	ResetExprContext(context);
	ExecClearTuple(slot);
	slot->tts_values = values;
	slot->tts_isnull = nulls;
	ExecStoreVirtualTuple(slot);
}

void
mr_rule_hide_row(MrRule *rule)
{
	ExecClearTuple(rule->row);
	rule->row->tts_values = rule->row_values;
	rule->row->tts_isnull = rule->row_nulls;
	MemoryContextReset(rule->context->ecxt_per_tuple_memory);
}

TimestampTz
mr_rule_row_time(const MrRule *rule, const MrVersion *version, ExprContext *context, bool *known)
{
	bool isnull = true;
	TimestampTz time = version->message->time;

	if (known != NULL)
		*known = !version->read;
	if (rule->time != NULL)
	{
		Datum value = ExecEvalExprSwitchContext(rule->time->state, context, &isnull);

		if (!isnull && !TIMESTAMP_NOT_FINITE(DatumGetTimestampTz(value)))
		{
			time = DatumGetTimestampTz(value);
			if (known != NULL)
				*known = true;
		}
	}
	/* Lengths of time are added to it. */
	return Min(Max(time, -FARTHEST_TIME), FARTHEST_TIME);
}

char *
mr_rule_key_text(MrExpression *expression, ExprContext *context)
{
	return mr_rule_short_text(mr_rule_evaluate_text(expression, context));
}

char *
mr_rule_short_text(char *text)
{
	int length = text == NULL ? 0 : (int) strlen(text);

	if (length <= LONGEST_KEY)
		return text;
	return psprintf("%.*s…%08x%08x", pg_mbcliplen(text, length, LONGEST_KEY / 2), text,
					hash_bytes((unsigned char *) text, length),
					hash_bytes((unsigned char *) text + length / 2, length - length / 2));
}

bool
mr_rule_is_history(const MrRule *rule, const MrBatch *batch, const MrVersion *version)
{
	/* What an erasure makes visible was told of before, together with what is erased. */
	return batch->erasing || version->read ||
		   (batch->again ? version->loaded_at < rule->filled_since
						 : version->message->time < rule->since);
}

void
mr_rule_clear(MrTarget *target, const char *filter, char **condition)
{
	if (filter != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a rule is judged again as a whole"), errhint("Leave out the filter.")));
	(void) mr_sql("DELETE FROM millrace.rule_state WHERE rule_id = %d", target->id);
}

/* ---- loading ------------------------------------------------------------------------------------------- */

char *
mr_rule_text(const MrRule *rule, const char *member)
{
	Jsonb *value = mr_vault_json_member(rule->declared, member);

	return value == NULL ? NULL : mr_vault_json_text(value);
}

char *
mr_rule_evaluate_text(MrExpression *expression, ExprContext *context)
{
	bool isnull;
	Datum value;
	Oid output;
	bool varlena;

	if (expression == NULL)
		return NULL;
	value = ExecEvalExprSwitchContext(expression->state, context, &isnull);
	if (isnull)
		return NULL;
	if (expression->type == TEXTOID)
		return TextDatumGetCString(value);
	getTypeOutputInfo(expression->type, &output, &varlena);
	return OidOutputFunctionCall(output, value);
}

/* The expression that the definition has under a name, or NULL. */
static MrExpression *
compile(const Query *definition, const char *name)
{
	ListCell *lc;

	foreach(lc, definition->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (!entry->resjunk && strcmp(entry->resname, name) == 0)
			return mr_expression_compile((Node *) entry->expr);
	}
	return NULL;
}

/* Old and new rows are a difference when a column differs that the rule reads, technical ones included. */
static void
compare_columns(const MrRule *rule)
{
	Bitmapset *read = NULL;
	int member = -1;

	for (Index rti = 1; rti <= list_length(rule->definition->rtable); rti++)
	{
		if (rt_fetch(rti, rule->definition->rtable)->relid == rule->staging->relid)
			pull_varattnos((Node *) rule->definition->targetList, rti, &read);
	}
	while ((member = bms_next_member(read, member)) >= 0)
		mr_staging_compare(rule->staging, member + FirstLowInvalidHeapAttributeNumber);
}

/* Compiles a rule's expressions; as its owner. */
static void
compile_step(void *argument)
{
	MrRule *rule = argument;

	mr_check_privileges(rule->definition);
	/* Groups are read by statements. */
	if (rule->threshold != NULL)
		return;
	rule->key = compile(rule->definition, ":key");
	rule->predicate = compile(rule->definition, ":predicate");
	rule->time = compile(rule->definition, ":time");
	rule->details = compile(rule->definition, ":details");
	rule->group_by = compile(rule->definition, ":group");
	rule->object = compile(rule->definition, ":object");
	rule->value = compile(rule->definition, ":value");
}

/* Reads the definition, which may be gone; as the extension's owner. */
static void
read_definition_step(void *argument)
{
	MrRule *rule = argument;

	rule->definition = mr_definition_query("rule", rule->base.id);
	if (rule->threshold != NULL)
		mr_threshold_prepare(rule);
}

static bool
role_exists(Oid role)
{
	return SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role));
}

/* Reads millrace.rule. */
static void
load_row(MrRule *rule, char **kind)
{
	bool isnull;

	if (mr_sql("SELECT r.name, r.kind, r.since, r.rule_group, coalesce(r.ordinal, 0), "
			   "r.suspended_at IS NOT NULL, greatest(r.judged_until, r.since), "
			   "r.judged_until IS NOT NULL FROM millrace.rule r WHERE r.target_id = %d",
			   rule->base.id) != 1)
		elog(ERROR, "rule %d is gone", rule->base.id);
	rule->rule_name = mr_sql_text(0, 1);
	*kind = mr_sql_text(0, 2);
	rule->since = DatumGetTimestampTz(mr_sql_value(0, 3, &isnull));
	rule->group = mr_sql_text(0, 4);
	rule->ordinal = DatumGetInt32(mr_sql_value(0, 5, &isnull));
	rule->suspended = DatumGetBool(mr_sql_value(0, 6, &isnull));
	rule->filled_since = DatumGetTimestampTz(mr_sql_value(0, 7, &isnull));
	rule->resumed = DatumGetBool(mr_sql_value(0, 8, &isnull));
	SPI_freetuptable(SPI_tuptable);
}

static MrTarget *
rule_load(const MrTarget *base)
{
	MrRule *rule = palloc0(sizeof(MrRule));
	ErrorData *error;
	char *kind;

	rule->base = *base;
	rule->declared = mr_vault_json(base->definition);
	load_row(rule, &kind);
	rule->base.name = rule->rule_name;
	for (int s = 0; s < base->nsources; s++)
		rule->staging = base->sources[s].staging;
	if (rule->staging != NULL)
	{
		rule->context = CreateStandaloneExprContext();
		rule->row = MakeSingleTupleTableSlot(rule->staging->desc, &TTSOpsVirtual);
		rule->row_values = rule->row->tts_values;
		rule->row_nulls = rule->row->tts_isnull;
		rule->context->ecxt_scantuple = rule->row;
	}
	if (strcmp(kind, "frequency") == 0)
		mr_frequency_load(rule);
	else if (strcmp(kind, "threshold") == 0)
		mr_threshold_load(rule);
	else if (strcmp(kind, "absence") == 0)
		rule->base.kind = &mr_absence_kind;
	else if (mr_vault_json_true(mr_vault_json_member(rule->declared, "again")))
		rule->base.kind = &mr_again_kind;
	else
		mr_match_load(rule);
	if (rule->suspended || rule->staging == NULL)
		return &rule->base;
	if (!role_exists(base->owner))
	{
		rule->reason = "its owner does not exist any more";
		rule->sqlstate = ERRCODE_UNDEFINED_OBJECT;
		return &rule->base;
	}
	error = mr_rule_try(read_definition_step, rule, GetUserId(), "UTC");
	if (error == NULL)
		error = mr_rule_try(compile_step, rule, base->owner, rule->staging->timezone);
	if (error != NULL)
		mr_rule_suspend(rule, error);
	else if (rule->base.kind == &mr_again_kind)
		compare_columns(rule);
	return &rule->base;
}

const MrTargetKind mr_rule_kind = {
	.name = "rule",
	.phase = MR_PHASE_RULE,
	.stage = MR_STAGE_ALERT,
	.load = rule_load,
};
