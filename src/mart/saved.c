/*
 * saved.c
 *	  Saved statements whose result goes to a tuplestore, which the next one reads by name.
 */
#include "postgres.h"

#include "core/statement.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "executor/tstoreReceiver.h"
#include "mart/mart.h"
#include "miscadmin.h"
#include "utils/plancache.h"

struct MrSaved
{
	char *sql;
	SPIPlanPtr plan; /* NULL until it runs first */
	MemoryContextCallback release;
};

static void
release_saved(void *arg)
{
	MrSaved *saved = arg;

	if (saved->plan != NULL)
		(void) SPI_freeplan(saved->plan);
	saved->plan = NULL;
}

MrSaved *
mr_saved_create(char *sql)
{
	MrSaved *saved = palloc0(sizeof(MrSaved));

	saved->sql = sql;
	saved->release.func = release_saved;
	saved->release.arg = saved;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &saved->release);
	return saved;
}

/* Registers rows as an ephemeral relation. */
void
mr_saved_publish(char *name, Tuplestorestate *store, TupleDesc desc)
{
	EphemeralNamedRelation relation = palloc0(sizeof(EphemeralNamedRelationData));
	int result;

	relation->md.name = name;
	relation->md.reliddesc = InvalidOid;
	relation->md.tupdesc = desc;
	relation->md.enrtype = ENR_NAMED_TUPLESTORE;
	relation->md.enrtuples = (double) tuplestore_tuple_count(store);
	relation->reldata = store;
	result = SPI_register_relation(relation);
	if (result != SPI_OK_REL_REGISTER)
		elog(ERROR, "cannot register \"%s\": %s", name, SPI_result_code_string(result));
}

/* Runs it, and returns its result. */
Tuplestorestate *
mr_saved_run(MrSaved *saved, TupleDesc *desc)
{
	MemoryContext context = CurrentMemoryContext;
	Tuplestorestate *store = tuplestore_begin_heap(false, false, work_mem);
	DestReceiver *receiver = CreateTuplestoreDestReceiver();
	SPIExecuteOptions options = {.dest = receiver};
	CachedPlanSource *source;
	int result;

	SetTuplestoreDestReceiverParams(receiver, store, context, false, NULL, NULL);
	if (saved->plan == NULL)
		saved->plan = mr_sql_prepare(saved->sql, 0, NULL);
	result = SPI_execute_plan_extended(saved->plan, &options);
	if (result < 0)
		elog(ERROR, "cannot run \"%s\": %s", saved->sql, SPI_result_code_string(result));
	MemoryContextSwitchTo(context);
	receiver->rDestroy(receiver);

	source = (CachedPlanSource *) linitial(SPI_plan_get_plan_sources(saved->plan));
	*desc = CreateTupleDescCopy(source->resultDesc);
	return store;
}
