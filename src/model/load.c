/*
 * load.c
 *	  Judging versions that are stored, or counted: their tables are read whole.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/statement.h"
#include "funcapi.h"
#include "model/store.h"
#include "tcop/dest.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(millrace_model_evaluate);

/* Takes the rows of a table.  How many elements there are in all is known of the version. */
typedef struct Loading
{
	DestReceiver receiver;
	void (*take)(struct Loading *loading, const Datum *values);
	MemoryContext context; /* of a row */
	MrJudged *judged;
	Size count; /* elements so far */
	Size most;
} Loading;

static void
start_loading(DestReceiver *self, int operation, TupleDesc desc)
{
}

static void
end_loading(DestReceiver *self)
{
}

/* An array of a row, of so many elements. */
static const void *
array_column(Datum value, uint32 *length)
{
	ArrayType *array = DatumGetArrayTypeP(value);

	*length = (uint32) ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	return ARR_DATA_PTR(array);
}

/* Counts the elements of the next block. */
static void
count_block(Loading *loading, uint32 length, uint32 number, uint32 numbers)
{
	if (number >= numbers || length > loading->most - loading->count)
		elog(ERROR, "a table of the model has more than its version");
	loading->count += length;
}

/* An item, and how many users have it: they come in the order of their numbers. */
static void
take_item(Loading *loading, const Datum *values)
{
	MrInput *input = loading->judged->input;
	uint32 item = mr_ids_number(input->items, values[0]);

	if (item >= input->nitems || (uint32) DatumGetInt32(values[1]) > input->nusers)
		elog(ERROR, "a table of the model has more than its version");
	input->item_users[item] = DatumGetInt32(values[1]);
}

/* A block of what a user has: they come in the order of the ids, which is that of their numbers. */
static void
take_user(Loading *loading, const Datum *values)
{
	MrInput *input = loading->judged->input;
	uint32 length;
	uint32 user;
	const void *items;

	user = mr_ids_number(input->users, values[0]);
	items = array_column(values[1], &length);
	count_block(loading, length, user, input->nusers);
	mr_column_append(input->user_items, items, length);
	if (input->weighted)
		mr_column_append(input->weights, array_column(values[2], &length), length);
	input->user_start[user + 1] = loading->count;
}

/* A block of the list of an item: they come in the order of the items. */
static void
take_source(Loading *loading, const Datum *values)
{
	MrJudged *judged = loading->judged;
	uint32 item;
	uint32 length;
	const void *targets;

	item = DatumGetInt32(values[0]);
	targets = array_column(values[1], &length);
	count_block(loading, length, item, judged->input->nitems);
	mr_column_append(judged->targets, targets, length);
	mr_column_append(judged->scores, array_column(values[2], &length), length);
	judged->start[item + 1] = loading->count;
}

static bool
take_row(TupleTableSlot *slot, DestReceiver *self)
{
	Loading *loading = (Loading *) self;
	MemoryContext old = MemoryContextSwitchTo(loading->context);

	slot_getallattrs(slot);
	loading->take(loading, slot->tts_values);
	MemoryContextSwitchTo(old);
	MemoryContextReset(loading->context);
	return true;
}

/* Gives the rows of a query to a function. */
static void
load_rows(MrJudged *judged, Size most, void (*take)(Loading *, const Datum *), char *sql)
{
	Loading loading = {.take = take, .judged = judged, .most = most};
	SPIExecuteOptions options = {.read_only = true, .dest = &loading.receiver};
	int result;

	loading.context = AllocSetContextCreate(CurrentMemoryContext, "millrace row",
											ALLOCSET_DEFAULT_SIZES);
	loading.receiver.receiveSlot = take_row;
	loading.receiver.rStartup = start_loading;
	loading.receiver.rShutdown = end_loading;
	loading.receiver.rDestroy = end_loading;
	loading.receiver.mydest = DestNone;
	SPI_connect();
	result = SPI_execute_extended(sql, &options);
	if (result < 0)
		elog(ERROR, "cannot run \"%s\": %s", sql, SPI_result_code_string(result));
	SPI_finish();
	MemoryContextDelete(loading.context);
	if (loading.count != most)
		elog(ERROR, "the tables of the model have less than its version");
}

/* Statements that give what a version is judged by. */
typedef struct Sources
{
	char *sizes; /* how many users, items, pairs and neighbours follow */
	char *items;
	char *users;
	char *lists;
} Sources;

/* Of a version that is stored. */
static Sources
stored_sources(int32 model_id, int32 version)
{
	Sources sources = {
		psprintf("SELECT v.users::bigint, v.items::bigint, v.pairs, v.neighbours FROM "
				 "millrace.model_version v WHERE v.model_id = %d AND v.version = %d",
				 model_id, version),
		psprintf("SELECT item, users FROM millrace_state.model_%d_item WHERE version = %d "
				 "ORDER BY version, number",
				 model_id, version),
		psprintf("SELECT user_id, items, weights FROM millrace_state.model_%d_user "
				 "WHERE version = %d ORDER BY version, user_id, block",
				 model_id, version),
		psprintf("SELECT item, targets, scores FROM millrace_state.model_%d_source "
				 "WHERE version = %d ORDER BY version, item, block",
				 model_id, version)};

	return sources;
}

/* Of an online model, from what is counted now; what a user has and does not count weighs nothing. */
static Sources
counted_sources(int32 model_id, int max_history)
{
	char *numbered = psprintf(
		"WITH numbered AS MATERIALIZED (SELECT i.number AS at, i.item, c.users, "
		"(row_number() OVER (ORDER BY i.item) - 1)::integer AS number FROM "
		"(SELECT l.number, sum(l.n)::integer AS users FROM millrace_state.model_%d_pair "
		"AS p CROSS JOIN LATERAL millrace_state.online_list(p.list) AS l "
		"WHERE p.item = 0 GROUP BY l.number HAVING sum(l.n) > 0) AS c "
		"JOIN millrace_state.model_%d_item AS i ON i.version = 1 AND i.number = c.number) ",
		model_id, model_id);
	Sources sources = {
		NULL, psprintf("%sSELECT item, users FROM numbered ORDER BY number", numbered),
		psprintf("%sSELECT h.user_id, array_agg(h.number ORDER BY h.number) AS list, "
				 "array_agg(h.weight ORDER BY h.number) FROM (SELECT u.user_id, n.number, "
				 "(row_number() OVER (PARTITION BY u.user_id ORDER BY max(e.seen_at) DESC, "
				 "n.number) <= %d)::integer::double precision AS weight "
				 "FROM millrace_state.model_%d_user AS u CROSS JOIN LATERAL "
				 "millrace_state.online_history(u.history, %s) AS e "
				 "JOIN numbered AS n ON n.at = e.number GROUP BY u.user_id, n.number) AS h "
				 "GROUP BY h.user_id ORDER BY h.user_id",
				 numbered, max_history > 0 ? max_history : PG_INT32_MAX, model_id,
				 max_history > 0 ? "'time'" : "NULL"),
		psprintf(
			"%sSELECT i.number, array_agg(o.number ORDER BY o.number) AS list, "
			"array_agg(n.score ORDER BY o.number) "
			"FROM millrace_state.model_%d_neighbour AS n JOIN numbered AS i ON i.item = n.item "
			"JOIN numbered AS o ON o.item = n.neighbour GROUP BY i.number ORDER BY i.number",
			numbered, model_id)};

	sources.sizes = psprintf(
		"SELECT u.n, (SELECT count(*) FROM (%s) AS i), u.pairs::bigint, (SELECT "
		"coalesce(sum(cardinality(l.list)), 0)::bigint FROM (%s) AS l) FROM (SELECT count(*) AS n, "
		"coalesce(sum(cardinality(h.list)), 0) AS pairs FROM (%s) AS h) AS u",
		sources.items, sources.lists, sources.users);
	return sources;
}

/* Runs a statement that gives a row, by the snapshot that all others have. */
static void
load_sizes(const char *sql, int64 *sizes, int n)
{
	SPI_connect();
	if (SPI_execute(sql, true, 0) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "the model has no such version");
	for (int i = 0; i < n; i++)
	{
		bool isnull;

		sizes[i] = DatumGetInt64(mr_sql_value(0, i + 1, &isnull));
	}
	SPI_finish();
}

void
mr_judged_load(MrJudged *judged, int32 model_id, int32 version)
{
	Oid view = mr_definition_view("model", model_id);
	MrInput *input = palloc0(sizeof(MrInput));
	int64 max_history; /* -1: it is not online */
	int64 sizes[4];
	Sources sources;

	load_sizes(psprintf("SELECT CASE WHEN NOT m.is_online THEN -1 ELSE "
						"(m.params ->> 'max_history')::bigint END FROM millrace.model AS m "
						"WHERE m.id = %d",
						model_id),
			   &max_history, 1);
	sources = max_history < 0 ? stored_sources(model_id, version)
							  : counted_sources(model_id, (int) max_history);
	load_sizes(sources.sizes, sizes, lengthof(sizes));

	judged->input = input;
	input->weighted = max_history > 0 || get_attnum(view, "weight") != InvalidAttrNumber;
	input->users = mr_ids_create(get_atttype(view, 1), "user");
	input->items = mr_ids_create(get_atttype(view, 2), "item");
	input->nusers = sizes[0];
	input->nitems = sizes[1];
	input->pairs = sizes[2];
	input->user_start = mr_zeros((Size) input->nusers + 1, sizeof(uint32));
	mr_input_columns(input, false, input->pairs, mr_memory_left() / 4);
	input->item_users = mr_zeros(input->nitems, sizeof(uint32));
	judged->start = mr_zeros((Size) input->nitems + 1, sizeof(Size));
	mr_judged_columns(judged, sizes[3], mr_memory_left() / 2);

	load_rows(judged, 0, take_item, sources.items);
	load_rows(judged, input->pairs, take_user, sources.users);
	load_rows(judged, sizes[3], take_source, sources.lists);
	if (mr_ids_count(input->users) != input->nusers || mr_ids_count(input->items) != input->nitems)
		elog(ERROR, "the tables of the model have less than its version");
	(void) mr_ids_sort(input->users);
	(void) mr_ids_sort(input->items);
	for (uint32 i = 0; i < input->nitems; i++)
		judged->start[i + 1] = Max(judged->start[i + 1], judged->start[i]);
}

MrTest *
mr_test_kept(int32 model_id)
{
	Oid view = mr_definition_view("model", model_id);
	bool weighted = get_attnum(view, "weight") != InvalidAttrNumber;
	const char *select = psprintf("SELECT user_id, item%s FROM millrace_state.model_%d_test WHERE",
								  weighted ? ", weight" : "", model_id);
	MrInput *asked = mr_input_query(model_id, InvalidOid, psprintf("%s NOT is_given", select),
									weighted);
	MrInput *given = mr_input_query(model_id, InvalidOid, psprintf("%s is_given", select),
									weighted);

	return asked->pairs + given->pairs == 0 ? NULL : mr_test_create(asked, given);
}

/*
 * Judges versions of a model by the same pairs: those that none of them was trained on.  Model, versions, owner, statement
 * that gives users and items (NULL: the model's evaluation set), metrics → values by version and metric, those of
 * popular items, how many pairs count, how many do not.
 */
Datum
millrace_model_evaluate(PG_FUNCTION_ARGS)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace judging",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	int32 model_id = PG_GETARG_INT32(0);
	Datum *versions;
	int nversions;
	int nmetrics;
	MrMetric *metrics = mr_metrics_parse(PG_GETARG_ARRAYTYPE_P(4), &nmetrics);
	MrJudgement judgement = {0};
	MrJudged *judged;
	MrTest *test;
	Datum *found;
	Datum *popular;
	Datum values[4];
	bool nulls[4] = {false};
	TupleDesc desc;
	Datum result;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), INT4OID, 4, true, TYPALIGN_INT, &versions, NULL,
					  &nversions);
	if (PG_ARGISNULL(3))
		test = mr_test_kept(model_id);
	else
		test = mr_test_create(mr_input_query(model_id, PG_GETARG_OID(2),
											 text_to_cstring(PG_GETARG_TEXT_PP(3)), false),
							  NULL);
	if (test == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("the model has no evaluation set"),
						errhint("Train with a split and refit => false, or give a test.")));
	judged = palloc0(nversions * sizeof(MrJudged));
	for (int v = 0; v < nversions; v++)
	{
		mr_judged_load(&judged[v], model_id, DatumGetInt32(versions[v]));
		mr_test_place(test, judged[v].input);
		mr_test_skip(test, judged[v].input);
	}
	found = palloc(Max(nversions * nmetrics, 1) * sizeof(Datum));
	popular = palloc(Max(nversions * nmetrics, 1) * sizeof(Datum));
	for (int v = 0; v < nversions; v++)
	{
		mr_test_place(test, judged[v].input);
		mr_evaluate(&judged[v], test, metrics, nmetrics, &judgement);
		for (int m = 0; m < nmetrics; m++)
		{
			found[v * nmetrics + m] = Float8GetDatum(judgement.values[m]);
			popular[v * nmetrics + m] = Float8GetDatum(judgement.popular[m]);
		}
	}
	MemoryContextSwitchTo(old);
	values[0] = PointerGetDatum(construct_array(found, nversions * nmetrics, FLOAT8OID, 8,
												FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[1] = PointerGetDatum(construct_array(popular, nversions * nmetrics, FLOAT8OID, 8,
												FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[2] = Int64GetDatum(judgement.pairs);
	values[3] = Int64GetDatum(test->asked->pairs - judgement.pairs);
	result = HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
	MemoryContextDelete(context);
	PG_RETURN_DATUM(result);
}
