/*
 * load.c
 *	  Judging versions that are stored: their tables are read whole.
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
array_column(TupleTableSlot *slot, int column, uint32 *length)
{
	ArrayType *array = DatumGetArrayTypeP(slot->tts_values[column]);

	*length = (uint32) ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	return ARR_DATA_PTR(array);
}

/* Where the elements of the next block begin. */
static Size
next_block(Loading *loading, uint32 length, uint32 number, uint32 numbers)
{
	Size first = loading->count;

	if (number >= numbers || length > loading->most - first)
		elog(ERROR, "a table of the model has more than its version");
	loading->count += length;
	return first;
}

/* An item: they come in the order of their numbers. */
static bool
take_item(TupleTableSlot *slot, DestReceiver *self)
{
	slot_getallattrs(slot);
	(void) mr_ids_number(((Loading *) self)->judged->input->items, slot->tts_values[0]);
	return true;
}

/* A block of what a user has: they come in the order of the ids, which is that of their numbers. */
static bool
take_user(TupleTableSlot *slot, DestReceiver *self)
{
	Loading *loading = (Loading *) self;
	MrInput *input = loading->judged->input;
	uint32 length;
	uint32 user;
	const int32 *items;
	Size first;

	slot_getallattrs(slot);
	user = mr_ids_number(input->users, slot->tts_values[0]);
	items = array_column(slot, 1, &length);
	first = next_block(loading, length, user, input->nusers);
	memcpy(input->user_items + first, items, length * sizeof(uint32));
	if (input->weighted)
		memcpy(input->weights + first, array_column(slot, 2, &length), length * sizeof(double));
	for (uint32 i = 0; i < length; i++)
		input->item_users[items[i]]++;
	input->user_start[user + 1] = loading->count;
	return true;
}

/* A block of the list of an item: they come in the order of the items. */
static bool
take_source(TupleTableSlot *slot, DestReceiver *self)
{
	Loading *loading = (Loading *) self;
	MrJudged *judged = loading->judged;
	uint32 item;
	uint32 length;
	const void *targets;
	Size first;

	slot_getallattrs(slot);
	item = DatumGetInt32(slot->tts_values[0]);
	targets = array_column(slot, 1, &length);
	first = next_block(loading, length, item, judged->input->nitems);
	memcpy(judged->targets + first, targets, length * sizeof(int32));
	memcpy(judged->scores + first, array_column(slot, 2, &length), length * sizeof(float));
	judged->start[item + 1] = loading->count;
	return true;
}

/* Gives the rows of a query to a function. */
static void
load_rows(MrJudged *judged, Size most, bool (*take)(TupleTableSlot *, DestReceiver *), char *sql)
{
	Loading loading = {.judged = judged, .most = most};
	SPIExecuteOptions options = {.read_only = true, .dest = &loading.receiver};
	int result;

	loading.receiver.receiveSlot = take;
	loading.receiver.rStartup = start_loading;
	loading.receiver.rShutdown = end_loading;
	loading.receiver.rDestroy = end_loading;
	loading.receiver.mydest = DestNone;
	SPI_connect();
	result = SPI_execute_extended(sql, &options);
	if (result < 0)
		elog(ERROR, "cannot run \"%s\": %s", sql, SPI_result_code_string(result));
	SPI_finish();
	if (loading.count != most)
		elog(ERROR, "the tables of the model have less than its version");
}

void
mr_judged_load(MrJudged *judged, int32 model_id, int32 version)
{
	Oid view = mr_definition_view("model", model_id);
	MrInput *input = palloc0(sizeof(MrInput));
	int64 sizes[4];

	SPI_connect();
	if (mr_sql("SELECT v.users::bigint, v.items::bigint, v.pairs, v.neighbours"
			   " FROM millrace.model_version v WHERE v.model_id = %d AND v.version = %d",
			   model_id, version) != 1)
		elog(ERROR, "model %d has no version %d", model_id, version);
	for (int i = 0; i < lengthof(sizes); i++)
	{
		bool isnull;

		sizes[i] = DatumGetInt64(mr_sql_value(0, i + 1, &isnull));
	}
	SPI_finish();

	judged->input = input;
	input->weighted = get_attnum(view, "weight") != InvalidAttrNumber;
	input->users = mr_ids_create(get_atttype(view, 1), "user");
	input->items = mr_ids_create(get_atttype(view, 2), "item");
	input->nusers = sizes[0];
	input->nitems = sizes[1];
	input->pairs = sizes[2];
	input->user_start = mr_zeros((Size) input->nusers + 1, sizeof(uint32));
	input->user_items = mr_zeros(input->pairs, sizeof(uint32));
	input->weights = input->weighted ? mr_zeros(input->pairs, sizeof(double)) : NULL;
	input->item_users = mr_zeros(input->nitems, sizeof(uint32));
	judged->start = mr_zeros((Size) input->nitems + 1, sizeof(Size));
	judged->targets = mr_zeros(sizes[3], sizeof(int32));
	judged->scores = mr_zeros(sizes[3], sizeof(float));

	load_rows(judged, 0, take_item,
			  psprintf("SELECT item FROM millrace_state.model_%d_item WHERE version = %d"
					   " ORDER BY version, number",
					   model_id, version));
	load_rows(judged, input->pairs, take_user,
			  psprintf("SELECT user_id, items, weights FROM millrace_state.model_%d_user"
					   " WHERE version = %d ORDER BY version, user_id, block",
					   model_id, version));
	load_rows(judged, sizes[3], take_source,
			  psprintf("SELECT item, targets, scores FROM millrace_state.model_%d_source"
					   " WHERE version = %d ORDER BY version, item, block",
					   model_id, version));
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
		mr_test_skip(test, &judged[v]);
	}
	found = palloc(Max(nversions * nmetrics, 1) * sizeof(Datum));
	popular = palloc(Max(nversions * nmetrics, 1) * sizeof(Datum));
	for (int v = 0; v < nversions; v++)
	{
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
