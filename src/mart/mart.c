/*
 * mart.c
 *	  Keeping marts: the target kind "mart".
 *
 * Each batch's delta is computed by the mart's owner, whose expressions it evaluates, and written by the
 * extension's owner, who touches nothing else (C13).  Between the two stands a tuplestore.  Deltas reach the
 * state by upserts only, sorted by group; a group without rows is deleted at the place where the upsert has
 * just locked it.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "core/writer.h"
#include "executor/executor.h"
#include "executor/tstoreReceiver.h"
#include "mart/mart.h"
#include "miscadmin.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "utils/array.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/acl.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

/* From so many changed rows on a batch has plans of its own. */
#define LARGE_BATCH 1000

/* kB, at least: the groups of a batch are sorted in memory. */
#define DELTA_WORK_MEM (32 * 1024)

typedef enum DeltaSize
{
	SMALL,
	LARGE,
	WHOLE,
	SIZES
} DeltaSize;

/* One of the tables of the state: the mart's own or that of a distinct count. */
typedef struct StateTable
{
	char *name; /* qualified */
	char *input; /* name of the ephemeral relation that is written */
	char *output; /* name of what comes of it, or NULL */
	MrSaved *delta[SIZES];
	MrSaved *write;
	MrStatement *remove; /* deletes the rows at the given places */
} StateTable;

typedef struct MrMart
{
	MrTarget base;
	Query *definition; /* for privileges */
	char *timezone;
	bool global;
	bool is_striped;
	MrMergeEmpty empty;
	int ngroups;
	char *empty_row;
	int ntables;
	StateTable *tables; /* the mart's own is the last */
	MrMartDelta *delta; /* NULL: batches are read by SQL */
	MrMerge **merges; /* by table */
	MrMartResults *results; /* NULL: none */
	MemoryContext watched; /* NULL: nobody asks which groups were touched */
	MrRows *touched; /* there; NULL: none */
	bool touched_known;
} MrMart;

/* ---- loading ---------------------------------------------------------------------------------- */

static StateTable
make_table(char *state, char *input, char *output, char *changes, char *whole, char *upsert)
{
	Oid types[1] = {TIDARRAYOID};
	StateTable table = {.name = state, .input = input, .output = output};

	table.delta[SMALL] = mr_saved_create(changes);
	table.delta[LARGE] = mr_saved_create(changes);
	table.delta[WHOLE] = mr_saved_create(whole);
	table.write = mr_saved_create(upsert);
	table.remove = mr_statement_create(psprintf("DELETE FROM %s WHERE ctid = ANY ($1)", state), 1,
									   types);
	return table;
}

/* Tells the staging table which of its columns the mart reads. */
static void
compare_columns(const Query *definition, MrStaging *staging)
{
	Bitmapset *read = NULL;
	int member = -1;

	for (Index rti = 1; rti <= list_length(definition->rtable); rti++)
	{
		if (rt_fetch(rti, definition->rtable)->relid != staging->relid)
			continue;
		pull_varattnos((Node *) definition->targetList, rti, &read);
		pull_varattnos((Node *) definition->jointree, rti, &read);
		pull_varattnos(definition->havingQual, rti, &read);
	}
	while ((member = bms_next_member(read, member)) >= 0)
		mr_staging_compare(staging, member + FirstLowInvalidHeapAttributeNumber);
}

/* A table of the state as differences are merged into it. */
static MrMerge *
make_merge(MrMart *mart, MrMartQuery *query, const StateTable *table, const MrMartSide *side)
{
	Oid relid = RangeVarGetRelid(makeRangeVarFromNameList(mr_qualified_name_list(table->name)),
								 NoLock, false);
	List *counters = side != NULL ? NIL : mr_mart_counters(query);
	int capacity = mart->ngroups + 1 + list_length(query->extras) + list_length(counters) +
				   (side != NULL ? list_length(side->values) + 2 : 0);
	AttrNumber *attnums = palloc(sizeof(AttrNumber) * capacity);
	MrMergeColumn *columns = palloc(sizeof(MrMergeColumn) * capacity);
	int counter;
	int n = 0;
	ListCell *lc;

#define ADD(kind, name) (columns[n] = (kind), attnums[n++] = get_attnum(relid, name))
	for (int i = 1; i <= mart->ngroups; i++)
		ADD(MR_MERGE_KEY, psprintf("g%d", i));
	if (side != NULL)
	{
		for (int i = 1; i <= list_length(side->values); i++)
			ADD(MR_MERGE_KEY, psprintf("v%d", i));
		ADD(MR_MERGE_INT8, "n");
		ADD(MR_MERGE_FIXED, "d");
		return mr_merge_create(relid, mr_extension_owner(), n, attnums, columns, n - 2);
	}
	if (query->stripes > 1)
		ADD(MR_MERGE_KEY, "stripe");
	for (int i = 1; i <= list_length(query->extras); i++)
		ADD(MR_MERGE_FIXED, psprintf("e%d", i));
	counter = n;
	foreach(lc, counters)
	{
		const MrMartCounter *column = lfirst(lc);

		ADD(column->what == MR_SUM_NUMERIC  ? MR_MERGE_NUMERIC
			: mr_mart_is_rare(column->what) ? MR_MERGE_RARE_INT8
											: MR_MERGE_INT8,
			column->name);
	}
#undef ADD
	return mr_merge_create(relid, mr_extension_owner(), n, attnums, columns, counter);
}

MrMartQuery *
mr_mart_load_query(Query *definition, int32 target_id, Oid owner)
{
	MrMartQuery *mart = mr_mart_analyze(definition, NULL, owner);
	bool isnull;

	if (mr_sql("SELECT coalesce((definition ->> 'stripes')::integer, 1) FROM millrace.target "
			   "WHERE id = %d",
			   target_id) == 1)
		mr_mart_stripe(mart, DatumGetInt32(mr_sql_value(0, 1, &isnull)));
	SPI_freetuptable(SPI_tuptable);
	return mart;
}

/* Whoever the mart's view belongs to now must be able to read the state. */
static void
follow_owner(const MrTarget *base, MrMart *mart)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(base->relid));
	MrRunAs saved;
	Oid owner;

	if (!HeapTupleIsValid(tuple))
		return;
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	for (int i = 0; i < mart->ntables; i++)
	{
		Oid relid = mr_merge_relation(mart->merges[i]);

		if (pg_class_aclcheck(relid, owner, ACL_SELECT) == ACLCHECK_OK)
			continue;
		mr_run_as(&saved, mr_extension_owner());
		(void) mr_sql("SELECT millrace_internal.mart_grant('%s', '{%u,%u}'::regrole[])",
					  mr_mart_base(base->id), base->owner, owner);
		mr_run_back(&saved);
		break;
	}
}

/* Compiles a mart from its definition. */
static MrTarget *
mart_load(const MrTarget *base)
{
	MemoryContext context = CurrentMemoryContext;
	MrMart *mart = palloc0(sizeof(MrMart));
	MrMartQuery *query;
	ListCell *lc;
	char *state = mr_mart_base(base->id);
	int nest_level;

	mart->base = *base;
	SPI_connect();
	MemoryContextSwitchTo(context);
	/* Names in the statements are as short as the search_path under which they run allows. */
	nest_level = mr_settings_pin("UTC");
	mart->definition = mr_definition_query("mart", base->id);
	query = mr_mart_load_query(copyObject(mart->definition), base->id, base->owner);
	mart->empty = query->global        ? MR_EMPTY_STAYS
				  : query->stripes > 1 ? MR_EMPTY_GOES_IF_ALL_ARE
									   : MR_EMPTY_GOES;
	mart->is_striped = query->stripes > 1;
	for (int i = 0; i < base->nsources; i++)
	{
		if (base->sources[i].staging != NULL)
			compare_columns(mart->definition, base->sources[i].staging);
	}
	mart->timezone = query->timezone;
	mart->global = query->global;
	mart->ngroups = list_length(query->groups);
	mart->empty_row = mr_mart_empty_row(query, state);

	mart->tables = palloc0(sizeof(StateTable) * (list_length(query->sides) + 1));
	foreach(lc, query->sides)
	{
		MrMartSide *side = lfirst(lc);

		mart->tables[mart->ntables++] = make_table(
			mr_mart_state_name(state, side), psprintf("mr_side_%d_%d", base->id, side->number),
			psprintf("mr_appeared_%d_%d", base->id, side->number),
			mr_mart_side_delta(query, side, false), mr_mart_side_delta(query, side, true),
			mr_mart_side_upsert(query, base->id, side));
	}
	mart->tables[mart->ntables++] =
		make_table(mr_mart_state_name(state, NULL), psprintf("mr_delta_%d", base->id), NULL,
				   mr_mart_delta(query, base->id, false), mr_mart_delta(query, base->id, true),
				   mr_mart_upsert(query, base->id));
	mart->merges = palloc(sizeof(MrMerge *) * mart->ntables);
	for (int i = 0; i < mart->ntables; i++)
		mart->merges[i] = make_merge(mart, query, &mart->tables[i],
									 i < mart->ntables - 1 ? list_nth(query->sides, i) : NULL);
	follow_owner(base, mart);
	mart->results = mr_mart_results_create(query, base->id);
	for (int i = 0; i < base->nsources; i++)
	{
		if (base->sources[i].staging != NULL)
			mart->delta = mr_mart_delta_compile(query, base->sources[i].staging, base->owner);
	}
	mr_settings_unpin(nest_level);
	SPI_finish();
	return (MrTarget *) mart;
}

/* ---- maintaining ------------------------------------------------------------------------------ */

void
mr_mart_check_count(const char *name, int64 n)
{
	if (n < 0)
		ereport(ERROR, (errcode(ERRCODE_SQL_ROUTINE_EXCEPTION),
						errmsg("the state of mart %s does not fit its staging table", name),
						errdetail("A group would count %lld rows.", (long long) n),
						errhint("Compute it anew with millrace.rebuild().")));
}

/* Deletes the rows of the state that count nothing any more; their places came back from the upsert. */
static void
remove_empty(MrMart *mart, StateTable *table, Tuplestorestate *written, TupleDesc desc)
{
	TupleTableSlot *slot;
	Datum *places;
	Datum array;
	int nplaces = 0;

	if (tuplestore_tuple_count(written) == 0)
		return;
	places = palloc(sizeof(Datum) * tuplestore_tuple_count(written));
	slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	tuplestore_select_read_pointer(written, 0);
	tuplestore_rescan(written);
	while (tuplestore_gettupleslot(written, true, true, slot))
	{
		bool isnull;
		int64 n = DatumGetInt64(slot_getattr(slot, 2, &isnull));

		mr_mart_check_count(mart->base.name, n);
		if (n == 0)
			places[nplaces++] = datumCopy(slot_getattr(slot, 1, &isnull), false,
										  sizeof(ItemPointerData));
	}
	ExecDropSingleTupleTableSlot(slot);
	if (nplaces == 0)
		return;
	array = PointerGetDatum(
		construct_array(places, nplaces, TIDOID, sizeof(ItemPointerData), false, TYPALIGN_SHORT));
	(void) mr_statement_run(table->remove, &array, NULL);
}

/* Computes each table's delta as the mart's owner and writes it as the extension's. */
static void
write_deltas(MrMart *mart, DeltaSize size)
{
	List *stores = NIL;
	ListCell *lc;
	MrRunAs saved;
	TupleDesc desc;

	for (int i = 0; i < mart->ntables; i++)
	{
		StateTable *table = &mart->tables[i];
		Tuplestorestate *delta;
		Tuplestorestate *written;

		mr_run_as_restricted(&saved, mart->base.owner);
		mr_check_privileges(mart->definition);
		delta = mr_saved_run(table->delta[size], &desc);
		stores = lappend(stores, delta);
		mr_run_back(&saved);
		if (i == mart->ntables - 1)
			mart->base.written += tuplestore_tuple_count(delta);
		if (tuplestore_tuple_count(delta) == 0 && table->output == NULL)
			continue;

		mr_run_as(&saved, mr_extension_owner());
		mr_saved_publish(table->input, delta, desc);
		written = mr_saved_run(table->write, &desc);
		if (table->output != NULL)
			mr_saved_publish(table->output, written, desc);
		stores = lappend(stores, written);
		if (table->output != NULL || !mart->global)
			remove_empty(mart, table, written, desc);
		mr_run_back(&saved);
	}
	if (mart->results != NULL)
		mr_mart_results_compute(mart->results, mart->base.owner, NULL, NULL, NULL);
	/* They may have files. */
	foreach(lc, stores)
		tuplestore_end(lfirst(lc));
}

/*
 * An error of the data in a mart's expression is one of its configuration: no letter would help (C10).  But a value that is
 * too long for the indexes of the state is that of a message.
 */
static void
rethrow_as_configuration(MrMart *mart, MemoryContext context)
{
	ErrorData *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (mr_error_class(error->sqlerrcode) == MR_ERROR_DATA)
	{
		if (error->sqlerrcode != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
			error->sqlerrcode = ERRCODE_SQL_ROUTINE_EXCEPTION;
		error->message = psprintf("cannot maintain mart %s: %s", mart->base.name, error->message);
	}
	FlushErrorState();
	mr_rethrow(error);
}

/* Are all tables of the state such as differences can be merged into directly? */
static bool
is_plain(const MrMart *mart)
{
	for (int i = 0; i < mart->ntables; i++)
	{
		if (!mr_merge_is_plain(mart->merges[i]))
			return false;
	}
	return true;
}

/* The same by SQL, for all that is staged or for what the direct way does not take. */
static void
maintain_by_sql(MrMart *mart, MrBatch *batch, MrStaged *staged)
{
	SPI_connect();
	if (work_mem < DELTA_WORK_MEM)
		(void) set_config_option("work_mem", psprintf("%dkB", DELTA_WORK_MEM), PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (staged == NULL)
		write_deltas(mart, WHOLE);
	else
	{
		/* The rows are copied once for all marts of the batch. */
		MemoryContext spi = MemoryContextSwitchTo(batch->context);

		mr_staged_register(staged);
		MemoryContextSwitchTo(spi);
		write_deltas(mart, staged->nold + staged->nnew < LARGE_BATCH ? SMALL : LARGE);
	}
	SPI_finish();
}

/* Adds what a batch changed, or with NULL all that is staged, to the state. */
static void
maintain(MrMart *mart, MrBatch *batch, MrStaged *staged)
{
	MemoryContext context = CurrentMemoryContext;
	int nest_level = mr_settings_pin(mart->timezone);
	MrRunAs saved;

	PG_TRY();
	{
		bool direct = staged != NULL && mart->delta != NULL && is_plain(mart);

		/* By SQL a row of the state stands for its whole group, which is in several with stripes. */
		if (!direct && staged != NULL && (mart->results != NULL || mart->is_striped))
			ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
							errmsg("the tables in millrace_state of mart %s have triggers, rules, "
								   "policies, constraints or unique indexes of others",
								   mart->base.name),
							errhint("Remove them, or create the mart again.")));
		mart->touched_known = direct;
		if (!direct)
			maintain_by_sql(mart, batch, staged);
		else
		{
			mr_run_as_restricted(&saved, mart->base.owner);
			mr_check_privileges(mart->definition);
			mr_run_back(&saved);
			mart->touched = mr_mart_delta_apply(mart->delta, staged, mart->base.owner, mart->merges,
												mart->results, mart->empty, mart->base.name,
												mart->watched, &mart->base.written);
		}
	}
	PG_CATCH();
	{
		rethrow_as_configuration(mart, context);
	}
	PG_END_TRY();
	mr_settings_unpin(nest_level);
}

void
mr_mart_watch(MrTarget *target)
{
	MrMart *mart = (MrMart *) target;

	if (mart->watched == NULL)
		mart->watched = AllocSetContextCreate(GetMemoryChunkContext(mart),
											  "millrace touched groups", ALLOCSET_DEFAULT_SIZES);
	mart->touched = NULL;
	mart->touched_known = true;
}

bool
mr_mart_touched(MrTarget *target, const MrRows **groups)
{
	*groups = ((MrMart *) target)->touched;
	return ((MrMart *) target)->touched_known;
}

static void
mart_apply(MrTarget *target, MrBatch *batch)
{
	MrMart *mart = (MrMart *) target;

	mart->touched = NULL;
	mart->touched_known = true;
	if (mart->watched != NULL)
		MemoryContextReset(mart->watched);
	for (int i = 0; i < target->nsources; i++)
	{
		MrStaging *staging = target->sources[i].staging;
		MrStaged *staged;

		if (staging == NULL)
			continue;
		staged = &batch->staged[staging->ordinal];
		if (staged->nold > 0 || staged->nnew > 0)
			maintain(mart, batch, staged);
	}
}

const MrTargetKind mr_mart_kind = {
	.name = "mart",
	.phase = MR_PHASE_MART,
	.stage = MR_STAGE_MART,
	.load = mart_load,
	.apply = mart_apply,
	.filled_from = MR_FILLED_FROM_ROWS,
	.clear = mr_mart_clear,
};

/* ---- rebuilding ------------------------------------------------------------------------------- */

/* A mart by the id of its target, outside the flow; under SPI.  NULL when there is none. */
MrTarget *
mr_mart_open(int32 target_id)
{
	MrTarget base = {.kind = &mr_mart_kind, .id = target_id, .nsources = 1};
	bool isnull;

	if (mr_sql("SELECT t.relation::oid, t.owner::oid, t.definition::text, s.staging_id "
			   "FROM millrace.target AS t JOIN millrace.target_source AS s ON s.target_id = t.id "
			   "WHERE t.id = %d AND t.kind = 'mart'",
			   target_id) == 0)
		return NULL;
	base.sources = palloc0(sizeof(MrTargetSource));
	base.relid = DatumGetObjectId(mr_sql_value(0, 1, &isnull));
	base.owner = DatumGetObjectId(mr_sql_value(0, 2, &isnull));
	base.definition = mr_sql_text(0, 3);
	base.sources[0].staging_id = DatumGetInt32(mr_sql_value(0, 4, &isnull));
	SPI_freetuptable(SPI_tuptable);
	base.name = mr_relation_name(base.relid);
	return mart_load(&base);
}

/* Empties the state and fills it, under the exclusive lock of the stream and SPI; counts groups. */
void
mr_mart_rebuild(MrTarget *target, int64 *before, int64 *after)
{
	MrMart *mart = (MrMart *) target;
	const char *state = mart->tables[mart->ntables - 1].name;
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	/* Not TRUNCATE: who reads under an older snapshot must go on seeing the mart. */
	for (int i = 0; i < mart->ntables; i++)
		*before = (int64) mr_sql("DELETE FROM %s", mart->tables[i].name);
	if (mart->empty_row != NULL)
		(void) mr_sql("%s", mart->empty_row);
	mr_run_back(&saved);

	maintain(mart, NULL, NULL);

	mr_run_as(&saved, mr_extension_owner());
	(void) mr_sql("SELECT count(*)::text FROM %s", state);
	*after = strtoll(mr_sql_text(0, 1), NULL, 10);
	SPI_freetuptable(SPI_tuptable);
	mr_run_back(&saved);
}
