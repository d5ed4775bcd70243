/*
 * health.c
 *	  Rules of kind "health": on what millrace's own views say.
 *
 * They are judged by the manager, about once a second, each in a transaction of its own, and so while no stream runs.  The
 * rows of a view are to them what groups of a mart are to a rule of kind "threshold".
 *
 * Nobody may be there who looks at a rule that is suspended, so that one is tried again after a minute.
 */
#include "postgres.h"

#include "alert/rule.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "vault/vault.h"

PG_FUNCTION_INFO_V1(millrace_health_tick);

/* There is no staging table; expressions see UTC. */
static MrStaging nowhere = {.name = "millrace", .timezone = "UTC"};

/* As the extension's owner: the definition may be gone. */
static void
prepare_step(void *argument)
{
	mr_threshold_prepare(argument);
}

/* Reads a rule, and takes its suspension away for now: `reason` is why it was suspended, or NULL.  NULL: it is gone. */
static MrRule *
load(int32 id, char **reason)
{
	MrRule *rule = palloc0(sizeof(MrRule));
	bool isnull;

	if (mr_sql("SELECT t.owner::oid, r.name, t.definition::text, r.reason "
			   "FROM millrace.rule r JOIN millrace.target t ON t.id = r.target_id "
			   "WHERE r.target_id = %d AND r.kind = 'health'",
			   id) == 0)
		return NULL;
	rule->base.id = id;
	rule->base.owner = DatumGetObjectId(mr_sql_value(0, 1, &isnull));
	rule->rule_name = mr_sql_text(0, 2);
	rule->base.name = rule->rule_name;
	rule->declared = mr_vault_json(mr_sql_text(0, 3));
	*reason = mr_sql_text(0, 4);
	rule->staging = &nowhere;
	mr_threshold_load(rule);
	if (*reason != NULL)
		(void) mr_sql(
			"UPDATE millrace.rule SET suspended_at = NULL, reason = NULL, sqlstate = NULL "
			"WHERE target_id = %d",
			id);
	return rule;
}

/* Looks at its view, and writes what it finds. */
static void
judge(MrRule *rule)
{
	ErrorData *error;

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(rule->base.owner)))
	{
		rule->reason = "its owner does not exist any more";
		rule->sqlstate = ERRCODE_UNDEFINED_OBJECT;
	}
	else if ((error = mr_rule_try(prepare_step, rule, GetUserId(), nowhere.timezone)) != NULL)
		mr_rule_suspend(rule, error);
	mr_threshold_look(rule);
}

/* health_tick(id): judges a rule. */
Datum
millrace_health_tick(PG_FUNCTION_ARGS)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace health",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext previous;
	MrRule *rule;
	char *before = NULL;
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	previous = MemoryContextSwitchTo(context);
	rule = load(PG_GETARG_INT32(0), &before);
	if (rule != NULL)
	{
		judge(rule);
		/* Whoever does not look at rule_status finds it in the log, once. */
		if (rule->reason != NULL && (before == NULL || strcmp(before, rule->reason) != 0))
			ereport(WARNING, (errmsg("rule \"%s\" on millrace itself is suspended: %s",
									 rule->rule_name, rule->reason),
							  errdetail("It is tried again each minute.")));
	}
	MemoryContextSwitchTo(previous);
	SPI_finish();
	mr_run_back(&saved);
	MemoryContextDelete(context);
	PG_RETURN_VOID();
}
