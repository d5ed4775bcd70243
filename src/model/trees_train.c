/*
 * trees_train.c
 *	  Training a version of trees, and judging versions.
 *
 * Rows that judge have the lowest hashes of their entities, those that decide when to stop the highest ones of the rest: an entity
 * is never on two sides.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "core/statement.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/booster.h"
#include "model/model.h"
#include "model/trees_import.h"
#include "model/trees_input.h"
#include "optimizer/optimizer.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(millrace_trees_train);
PG_FUNCTION_INFO_V1(millrace_trees_evaluate);

/* Some rows of an input. */
typedef struct Rows
{
	const MrTreesInput *input;
	uint64 *rows;
	uint64 n;
} Rows;

/* ---- which rows ------------------------------------------------------------------------------------------- */

/* No row is in two of these. */
#define ROW_JUDGES 1
#define ROW_IS_HELD 2

static Rows
choose_rows(const MrTreesInput *input, const uint8 *flags, uint8 mask, bool is_set)
{
	Rows chosen = {.input = input};

	chosen.rows = palloc_extended(Max(input->count, 1) * sizeof(uint64), MCXT_ALLOC_HUGE);
	for (uint64 row = 0; row < input->count; row++)
		if (((flags[row] & mask) != 0) == is_set)
			chosen.rows[chosen.n++] = row;
	return chosen;
}

static int
compare_chances(const void *a, const void *b)
{
	int64 x = *(const int64 *) a;
	int64 y = *(const int64 *) b;

	return x < y ? -1 : x > y;
}

/* The hash up to which a share of the rows is: at least one, and not all. */
static int64
find_chance(const Rows *rows, double share)
{
	int64 *chances = palloc_extended(rows->n * sizeof(int64), MCXT_ALLOC_HUGE);
	uint64 wanted = Max((uint64) floor(share * rows->n + 0.5), 1);
	int64 last;

	for (uint64 i = 0; i < rows->n; i++)
		chances[i] = rows->input->chances[rows->rows[i]];
	qsort(chances, rows->n, sizeof(int64), compare_chances);
	last = chances[Min(wanted, rows->n) - 1];
	if (last == chances[rows->n - 1])
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("there are too few entities to be split")));
	pfree(chances);
	return last;
}

/* Which entities some hashes are of. */
static HTAB *
make_set(const int64 *entities, uint64 n)
{
	HASHCTL control = {
		.keysize = sizeof(int64), .entrysize = sizeof(int64), .hcxt = CurrentMemoryContext};
	HTAB *set = hash_create("millrace entities", Max(n, 16), &control,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);

	for (uint64 i = 0; i < n; i++)
		(void) hash_search(set, &entities[i], HASH_ENTER, NULL);
	return set;
}

static void
mark_set(const MrTreesInput *input, uint8 *flags, HTAB *set, uint8 bit)
{
	for (uint64 row = 0; row < input->count; row++)
		if (hash_search(set, &input->entities[row], HASH_FIND, NULL) != NULL)
			flags[row] |= bit;
}

/* The model's evaluation set: entities that never train. */
static HTAB *
read_held(int32 model_id)
{
	int64 *entities;
	uint64 n;

	SPI_connect();
	n = mr_sql("SELECT entity FROM millrace_state.model_%d_test", model_id);
	/* in the caller's memory */
	entities = SPI_palloc(Max(n, 1) * sizeof(int64));
	for (uint64 i = 0; i < n; i++)
	{
		bool isnull;

		entities[i] = DatumGetInt64(mr_sql_value(i, 1, &isnull));
	}
	SPI_finish();
	return make_set(entities, n);
}

/* Adds entities to it. */
static void
hold(int32 model_id, const Rows *rows)
{
	MrArray *entities = mr_array_create(INT8OID, (int) Min(rows->n, 1000));
	Oid type = INT8ARRAYOID;
	Datum value;

	for (uint64 i = 0; i < rows->n; i++)
		mr_array_add(entities, Int64GetDatum(rows->input->entities[rows->rows[i]]), false);
	value = mr_array_datum(entities);
	SPI_connect();
	(void) mr_sql_with(psprintf("INSERT INTO millrace_state.model_%d_test SELECT DISTINCT e FROM "
								"unnest($1) AS e ON CONFLICT DO NOTHING",
								model_id),
					   1, &type, &value, NULL);
	SPI_finish();
}

/* ---- metrics ---------------------------------------------------------------------------------------------- */

typedef enum Metric
{
	METRIC_LOGLOSS,
	METRIC_ERROR,
	METRIC_RMSE,
	METRIC_MAE,
	METRIC_AUC
} Metric;

static const char *const metric_names[] = {"logloss", "error", "rmse", "mae", "auc"};

/* Logarithms of less would outweigh everything. */
#define LEAST_PROBABILITY 1e-16

static Metric *
read_metrics(ArrayType *names, int *n)
{
	Datum *values;
	Metric *metrics;

	deconstruct_array(names, TEXTOID, -1, false, TYPALIGN_INT, &values, NULL, n);
	metrics = palloc(Max(*n, 1) * sizeof(Metric));
	for (int i = 0; i < *n; i++)
	{
		char *name = TextDatumGetCString(values[i]);
		int metric = 0;

		while (metric < lengthof(metric_names) && strcmp(metric_names[metric], name) != 0)
			metric++;
		if (metric == lengthof(metric_names))
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("there is no metric \"%s\" of predictions", name),
							errhint("Known are: logloss, error, rmse, mae, auc.")));
		metrics[i] = metric;
	}
	return metrics;
}

/* A prediction and what was right. */
typedef struct Judged
{
	double predicted;
	double label;
} Judged;

static int
compare_judged(const void *a, const void *b)
{
	double x = ((const Judged *) a)->predicted;
	double y = ((const Judged *) b)->predicted;

	return x < y ? -1 : x > y;
}

/* How often one with the label is above one without it, a tie being half of it; sorts the rows. */
static double
area_under_curve(Judged *rows, uint64 n)
{
	double with = 0;
	double without = 0;
	double below = 0;

	qsort(rows, n, sizeof(Judged), compare_judged);
	for (uint64 i = 0; i < n;)
	{
		double here[2] = {0, 0};
		double value = rows[i].predicted;

		for (; i < n && rows[i].predicted == value; i++)
			here[rows[i].label > 0.5]++;
		below += here[1] * (without + here[0] / 2);
		with += here[1];
		without += here[0];
	}
	return with == 0 || without == 0 ? NAN : below / (with * without);
}

/* NaN: there is nothing to judge by. */
static double
compute_metric(Metric metric, Judged *rows, uint64 n)
{
	double sum = 0;

	if (n == 0)
		return NAN;
	if (metric == METRIC_AUC)
		return area_under_curve(rows, n);
	for (uint64 i = 0; i < n; i++)
	{
		double predicted = rows[i].predicted;
		double label = rows[i].label;
		double difference = predicted - label;

		if (metric == METRIC_LOGLOSS)
			sum -= label * log(Max(predicted, LEAST_PROBABILITY)) +
				   (1 - label) * log(Max(1 - predicted, LEAST_PROBABILITY));
		else if (metric == METRIC_ERROR)
			sum += predicted > 0.5 ? 1 - label : label;
		else
			sum += metric == METRIC_RMSE ? difference * difference : fabs(difference);
	}
	return metric == METRIC_RMSE ? sqrt(sum / n) : sum / n;
}

/* Is the first value better?  None is worse than any. */
static bool
is_better(Metric metric, double a, double b)
{
	return !isnan(a) && (isnan(b) || (metric == METRIC_AUC ? a > b : a < b));
}

/* Metrics of trees; of a constant when there are none. */
static void
judge(const Rows *rows, const MrTrees *trees, const MrTreesCodes *codes, double constant,
	  const Metric *metrics, int nmetrics, double *values)
{
	Judged *judged = palloc_extended(Max(rows->n, 1) * sizeof(Judged), MCXT_ALLOC_HUGE);
	float *row = palloc(rows->input->shape->nfeatures * sizeof(float));

	for (uint64 i = 0; i < rows->n; i++)
	{
		judged[i].predicted = constant;
		judged[i].label = rows->input->labels[rows->rows[i]];
		if (trees != NULL)
		{
			mr_trees_row(rows->input, codes, rows->rows[i], row);
			judged[i].predicted = mr_trees_predict(trees, mr_trees_margin(trees, row));
		}
		if (i % 10000 == 0)
			CHECK_FOR_INTERRUPTS();
	}
	for (int m = 0; m < nmetrics; m++)
		values[m] = compute_metric(metrics[m], judged, rows->n);
	pfree(judged);
	pfree(row);
}

/* The mean of the labels. */
static double
mean_label(const Rows *rows)
{
	double sum = 0;

	for (uint64 i = 0; i < rows->n; i++)
		sum += rows->input->labels[rows->rows[i]];
	return rows->n == 0 ? NAN : sum / rows->n;
}

static Datum
make_doubles(const double *values, int n)
{
	Datum *datums = palloc(Max(n, 1) * sizeof(Datum));

	for (int i = 0; i < n; i++)
		datums[i] = Float8GetDatum(values[i]);
	return PointerGetDatum(
		construct_array(datums, n, FLOAT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* ---- training --------------------------------------------------------------------------------------------- */

/* What a training has learnt. */
typedef struct Learnt
{
	MrTreesCodes *codes;
	bytea *content;
	uint32 rounds;
	double seconds;
} Learnt;

/* Where the program's rows come from. */
typedef struct Source
{
	const MrTreesInput *input;
	const MrTreesCodes *codes;
	const uint64 *rows;
} Source;

static void
give_row(void *context, uint64 row, float *values)
{
	const Source *source = context;

	mr_trees_row(source->input, source->codes, source->rows[row], values);
}

/* A member of a trial's parameters; 0 when it is not there. */
static double
number_of(JsonbContainer *params, const char *name)
{
	JsonbValue *value = getKeyJsonValueFromContainer(params, name, (int) strlen(name), NULL);

	if (value == NULL || value->type != jbvNumeric)
		return 0;
	return DatumGetFloat8(
		DirectFunctionCall1(numeric_float8_no_overflow, NumericGetDatum(value->val.numeric)));
}

/* The parameters that are the library's, as names and values by turns. */
static void
give_params(MrBoosting *boosting, JsonbContainer *params)
{
	JsonbIterator *iterator = JsonbIteratorInit(params);
	JsonbIteratorToken token;
	JsonbValue value;
	int n = 0;

	boosting->params = palloc((JsonContainerSize(params) + 2) * 2 * sizeof(char *));
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
		if (token == WJB_KEY)
			boosting->params[n++] = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE)
		{
			const char *name = boosting->params[n - 1];

			if (strcmp(name, "rounds") == 0 || strcmp(name, "early_stopping_rounds") == 0 ||
				strcmp(name, "validation") == 0)
				n--;
			else
				boosting->params[n++] = value.type == jbvString
											? pnstrdup(value.val.string.val, value.val.string.len)
											: DatumGetCString(DirectFunctionCall1(
												  numeric_out, NumericGetDatum(value.val.numeric)));
		}
	boosting->params[n++] = "nthread";
	boosting->params[n++] = psprintf("%d", max_parallel_maintenance_workers + 1);
	boosting->params[n++] = "verbosity";
	boosting->params[n++] = "0";
	boosting->nparams = n;
}

/* Trains with the parameters of a trial. */
static void
learn(Learnt *learnt, const Rows *rows, JsonbContainer *params)
{
	const MrTreesShape *shape = rows->input->shape;
	MrBoosting boosting = {.features = shape->names,
						   .nfeatures = shape->nfeatures,
						   .rounds = (uint32) number_of(params, "rounds"),
						   .patience = (uint32) number_of(params, "early_stopping_rounds"),
						   .rows = rows->n,
						   .row = give_row};
	uint64 *order = palloc_extended(Max(rows->n, 1) * sizeof(uint64), MCXT_ALLOC_HUGE);
	float *labels = palloc_extended(Max(rows->n, 1) * sizeof(float), MCXT_ALLOC_HUGE);
	Source source = {.input = rows->input, .rows = order};
	TimestampTz begun = GetCurrentTimestamp();
	uint64 n = 0;

	if (rows->n == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("there is no row with a label to train on")));
	learnt->codes = mr_trees_codes(rows->input, rows->rows, rows->n);
	source.codes = learnt->codes;
	memcpy(order, rows->rows, rows->n * sizeof(uint64));
	if (boosting.patience > 0)
	{
		int64 last = find_chance(rows, 1 - number_of(params, "validation"));

		for (int side = 0; side < 2; side++)
			for (uint64 i = 0; i < rows->n; i++)
				if ((rows->input->chances[rows->rows[i]] > last) == (side == 1))
				{
					order[n++] = rows->rows[i];
					boosting.rows_to_stop += side;
				}
	}
	for (uint64 i = 0; i < rows->n; i++)
		labels[i] = rows->input->labels[order[i]];
	boosting.labels = labels;
	boosting.context = &source;
	give_params(&boosting, params);
	learnt->content = mr_booster_train(&boosting, &learnt->rounds);
	learnt->seconds = (GetCurrentTimestamp() - begun) / (double) USECS_PER_SEC;
	pfree(order);
	pfree(labels);
}

/* What stands for texts that a version does not know. */
static void
read_unseen(MrTreesShape *shape, Jsonb *categories)
{
	for (int f = 0; f < shape->nfeatures; f++)
	{
		JsonbValue *value = getKeyJsonValueFromContainer(&categories->root, shape->names[f],
														 (int) strlen(shape->names[f]), NULL);

		shape->unseen[f] = value != NULL && value->type == jbvNumeric ? -1 : NAN;
	}
}

/* The arguments of a training, by their places. */
enum
{
	ARG_MODEL,
	ARG_OWNER,
	ARG_RELATION,
	ARG_NENTITY,
	ARG_CATEGORIES,
	ARG_PARAMS,
	ARG_QUERY,
	ARG_TRAIN,
	ARG_TEST,
	ARG_SHARE,
	ARG_REFIT,
	ARG_METRICS
};

/* A training while it goes on. */
typedef struct Training
{
	MrTreesShape *shape;
	MrTreesInput *input; /* all that the query gives */
	Rows part; /* trains what is judged */
	Rows whole; /* trains what is kept */
	Rows test; /* judges */
} Training;

static char *
text_argument(FunctionCallInfo fcinfo, int argument)
{
	return PG_ARGISNULL(argument) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(argument));
}

static uint8 *
make_flags(const MrTreesInput *input, HTAB *held)
{
	uint8 *flags = palloc_extended(Max(input->count, 1), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);

	mark_set(input, flags, held, ROW_IS_HELD);
	return flags;
}

/* Reads, and finds what trains and what judges. */
static void
prepare(Training *training, FunctionCallInfo fcinfo, bool is_judged)
{
	int32 model_id = PG_GETARG_INT32(ARG_MODEL);
	Oid owner = PG_GETARG_OID(ARG_OWNER);
	bool refit = PG_GETARG_BOOL(ARG_REFIT);
	bool is_split = !PG_ARGISNULL(ARG_SHARE) || !PG_ARGISNULL(ARG_TEST);
	char *train = text_argument(fcinfo, ARG_TRAIN);
	char *test = text_argument(fcinfo, ARG_TEST);
	HTAB *held = read_held(model_id);
	MrTreesInput *tested = NULL;
	MrTreesInput *trained;
	uint8 *flags;
	uint8 *train_flags;

	training->shape = mr_trees_shape(model_id, PG_GETARG_INT32(ARG_NENTITY));
	read_unseen(training->shape, PG_GETARG_JSONB_P(ARG_CATEGORIES));
	training->input = mr_trees_input_read(training->shape, text_argument(fcinfo, ARG_QUERY), owner);
	trained = train == NULL ? training->input : mr_trees_input_read(training->shape, train, owner);
	if (test != NULL)
		tested = mr_trees_input_read(training->shape, test, owner);
	mr_trees_shape_sort(training->shape);

	flags = make_flags(training->input, held);
	train_flags = train == NULL ? flags : make_flags(trained, held);
	if (tested != NULL)
	{
		HTAB *set = make_set(tested->entities, tested->count);

		mark_set(training->input, flags, set, ROW_JUDGES);
		mark_set(trained, train_flags, set, ROW_JUDGES);
		training->test = choose_rows(tested, make_flags(tested, held), 0, false);
	}
	else if (is_split)
	{
		Rows rest = choose_rows(training->input, flags, ROW_IS_HELD, false);
		int64 last = rest.n == 0 ? 0 : find_chance(&rest, PG_GETARG_FLOAT8(ARG_SHARE));

		for (uint64 i = 0; i < rest.n; i++)
			if (training->input->chances[rest.rows[i]] <= last)
				flags[rest.rows[i]] |= ROW_JUDGES;
		training->test = choose_rows(training->input, flags, ROW_JUDGES, true);
	}
	if (is_split && !refit)
		hold(model_id, &training->test);
	/* The evaluation set judges when it was added to, or when there is nothing else. */
	if (!is_split || (!refit && tested == NULL))
		training->test = choose_rows(training->input, flags, ROW_JUDGES | ROW_IS_HELD, true);
	if (is_judged && !is_split && training->test.n == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("the model has no evaluation set to compute metrics on"),
						errhint("Give a split.")));
	training->part = choose_rows(trained, train_flags, ROW_JUDGES | ROW_IS_HELD, false);
	training->whole = training->part;
	if (is_split && refit)
		training->whole = choose_rows(training->input, flags, ROW_IS_HELD, false);
}

/* The same for the same rows. */
static uint64
digest(const Rows *rows)
{
	uint64 hash = rows->n;

	for (uint64 i = 0; i < rows->n; i++)
		hash = hash * UINT64CONST(0x9e3779b97f4a7c15) + rows->input->contents[rows->rows[i]];
	return hash;
}

/* Judges the parameters of each trial, and trains with the best ones on all rows.  Returns what is noted of it. */
Datum
millrace_trees_train(PG_FUNCTION_ARGS)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace training",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Training training = {0};
	JsonbContainer *all = &PG_GETARG_JSONB_P(ARG_PARAMS)->root;
	int trials = JsonContainerSize(all);
	double *trial_seconds = palloc0(trials * sizeof(double));
	double *trial_values;
	double *baseline;
	Metric *metrics = NULL;
	Learnt learnt = {0};
	int nmetrics = 0;
	int best = 0;
	bool nulls[14] = {false};
	Datum values[14];
	TupleDesc desc;
	Datum result;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (!PG_ARGISNULL(ARG_METRICS))
		metrics = read_metrics(PG_GETARG_ARRAYTYPE_P(ARG_METRICS), &nmetrics);
	trial_values = palloc0(Max(trials * nmetrics, 1) * sizeof(double));
	baseline = palloc0(Max(nmetrics, 1) * sizeof(double));
	mr_progress_start(PG_GETARG_OID(ARG_RELATION));
	prepare(&training, fcinfo, nmetrics > 0);
	judge(&training.test, NULL, NULL, mean_label(&training.part), metrics, nmetrics, baseline);
	for (int t = 0; t < trials && nmetrics > 0; t++)
	{
		MemoryContext scratch = AllocSetContextCreate(context, "millrace judging",
													  ALLOCSET_DEFAULT_SIZES);
		TimestampTz begun = GetCurrentTimestamp();
		Learnt tried;

		MemoryContextSwitchTo(scratch);
		learn(&tried, &training.part, getIthJsonbValueFromContainer(all, t)->val.binary.data);
		mr_progress_phase(MR_TRAINING_JUDGING, 0);
		judge(&training.test,
			  mr_trees_import(VARDATA_ANY(tried.content), VARSIZE_ANY_EXHDR(tried.content))->trees,
			  tried.codes, 0, metrics, nmetrics, trial_values + t * nmetrics);
		MemoryContextSwitchTo(context);
		MemoryContextDelete(scratch);
		trial_seconds[t] = (GetCurrentTimestamp() - begun) / (double) USECS_PER_SEC;
		if (is_better(metrics[0], trial_values[t * nmetrics], trial_values[best * nmetrics]))
			best = t;
	}
	learn(&learnt, &training.whole, getIthJsonbValueFromContainer(all, best)->val.binary.data);
	mr_progress_phase(MR_TRAINING_WRITING, 0);
	values[0] = Int64GetDatum(training.input->rows);
	values[1] = Int64GetDatum(training.input->skipped);
	values[2] =
		CStringGetTextDatum(psprintf("%016llx", (unsigned long long) digest(&training.whole)));
	values[3] = PointerGetDatum(learnt.content);
	values[4] = DirectFunctionCall1(
		jsonb_in, CStringGetDatum(mr_trees_codes_json(training.shape, learnt.codes)));
	values[5] = Int32GetDatum(learnt.rounds);
	values[6] = Int32GetDatum(max_parallel_maintenance_workers + 1);
	values[7] = Float8GetDatum(learnt.seconds);
	values[8] = Int32GetDatum(best + 1);
	values[9] = Int64GetDatum(training.test.n);
	values[10] = make_doubles(trial_values, trials * nmetrics);
	values[11] = make_doubles(baseline, nmetrics);
	values[12] = make_doubles(trial_seconds, trials);
	MemoryContextSwitchTo(old);
	result = HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
	MemoryContextDelete(context);
	mr_progress_end();
	PG_RETURN_DATUM(result);
}

/* ---- judging ---------------------------------------------------------------------------------------------- */

/* Metrics of stored versions by the rows of one query, and of the mean of their labels. */
Datum
millrace_trees_evaluate(PG_FUNCTION_ARGS)
{
	int32 model_id = PG_GETARG_INT32(0);
	MrTreesShape *shape = mr_trees_shape(model_id, PG_GETARG_INT32(1));
	ArrayType *array = PG_GETARG_ARRAYTYPE_P(2);
	int nversions = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	const int32 *versions = (const int32 *) ARR_DATA_PTR(array);
	MrTreesInput *input;
	uint8 *flags;
	Rows rows;
	int nmetrics;
	Metric *metrics = read_metrics(PG_GETARG_ARRAYTYPE_P(5), &nmetrics);
	double *found = palloc0(Max(nversions * nmetrics, 1) * sizeof(double));
	double *baseline = palloc0(Max(nmetrics, 1) * sizeof(double));
	bool nulls[4] = {false};
	Datum values[4];
	TupleDesc desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	input = mr_trees_input_read(shape, text_to_cstring(PG_GETARG_TEXT_PP(4)), PG_GETARG_OID(3));
	mr_trees_shape_sort(shape);
	flags = palloc_extended(Max(input->count, 1), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	rows = choose_rows(input, flags, 0, false);
	if (rows.n == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("there is no row with a label to compute metrics on")));
	judge(&rows, NULL, NULL, mean_label(&rows), metrics, nmetrics, baseline);
	for (int v = 0; v < nversions; v++)
	{
		MrPredictor *predictor = mr_predictor_load(model_id, versions[v]);

		judge(&rows, predictor->trees, mr_trees_codes_of(shape, predictor), 0, metrics, nmetrics,
			  found + v * nmetrics);
		mr_predictor_release(predictor);
	}
	values[0] = make_doubles(found, nversions * nmetrics);
	values[1] = make_doubles(baseline, nmetrics);
	values[2] = Int64GetDatum(rows.n);
	values[3] = Int64GetDatum(input->skipped);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
