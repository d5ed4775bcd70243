/*
 * trees_train.c
 *	  Training a version of trees, with parameters that are given or searched for.
 */
#include "postgres.h"

#include <math.h>

#include "funcapi.h"
#include "miscadmin.h"
#include "model/booster.h"
#include "model/model.h"
#include "model/trees_evaluate.h"
#include "model/trees_import.h"
#include "model/trees_split.h"
#include "optimizer/optimizer.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(millrace_trees_train);

/* A trial of a search, or the only one there is. */
typedef struct Trial
{
	JsonbContainer *params;
	int number; /* from 0 */
	int rung; /* how far it came, from 1 */
	double *values; /* by metric */
	double loss; /* the smaller the better; NaN: nobody knows */
	TimestampTz begun;
	double seconds;
} Trial;

/* Trials that are trained on the same rows. */
typedef struct Fitting
{
	const MrTreesRows *rows;
	MrTreesCodes *codes; /* of these rows */
	Trial *trials;
	int halvings; /* of the rounds */
	int threads; /* of each program */
	const MrTreesRows *test;
	const MrTreesMetric *metrics;
	int nmetrics;
	bytea *content; /* when there is nothing to judge: what was trained */
	uint32 rounds;
} Fitting;

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
give_params(MrBoosting *boosting, JsonbContainer *params, int threads)
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
	boosting->params[n++] = psprintf("%d", threads);
	boosting->params[n++] = "verbosity";
	boosting->params[n++] = "0";
	boosting->nparams = n;
}

/* How many rounds a trial is trained for. */
static uint32
rounds_of(const Fitting *fitting, int trial)
{
	return Max((uint32) number_of(fitting->trials[trial].params, "rounds") >> fitting->halvings, 1);
}

/* What is trained with the parameters of a trial: those that decide when to stop are the last rows. */
static void
give_trial(void *context, int trial, MrBoosting *boosting)
{
	const Fitting *fitting = context;
	const MrTreesRows *rows = fitting->rows;
	JsonbContainer *params = fitting->trials[trial].params;
	uint64 *order = palloc_extended(rows->n * sizeof(uint64), MCXT_ALLOC_HUGE);
	float *labels = palloc_extended(rows->n * sizeof(float), MCXT_ALLOC_HUGE);
	Source *source = palloc(sizeof(Source));

	*source = (Source){.input = rows->input, .codes = fitting->codes, .rows = order};
	*boosting = (MrBoosting){.features = rows->input->shape->names,
							 .nfeatures = rows->input->shape->nfeatures,
							 .rounds = rounds_of(fitting, trial),
							 .patience = (uint32) number_of(params, "early_stopping_rounds"),
							 .rows = rows->n,
							 .labels = labels,
							 .row = give_row,
							 .context = source};
	fitting->trials[trial].begun = GetCurrentTimestamp();
	memcpy(order, rows->rows, rows->n * sizeof(uint64));
	if (boosting->patience > 0)
	{
		int64 last = mr_trees_chance(rows, 1 - number_of(params, "validation"));
		uint64 n = 0;

		for (int side = 0; side < 2; side++)
			for (uint64 i = 0; i < rows->n; i++)
				if ((rows->input->chances[rows->rows[i]] > last) == (side == 1))
				{
					order[n++] = rows->rows[i];
					boosting->rows_to_stop += side;
				}
	}
	for (uint64 i = 0; i < rows->n; i++)
		labels[i] = rows->input->labels[order[i]];
	give_params(boosting, params, fitting->threads);
}

/* Judges what was trained with them, or keeps it. */
static void
take_trial(void *context, int number, bytea *model, uint32 rounds)
{
	Fitting *fitting = context;
	Trial *trial = &fitting->trials[number];
	MemoryContext scratch;
	MemoryContext old;

	if (fitting->nmetrics == 0)
	{
		fitting->content = memcpy(palloc_extended(VARSIZE(model), MCXT_ALLOC_HUGE), model,
								  VARSIZE(model));
		fitting->rounds = rounds;
	}
	else
	{
		scratch = AllocSetContextCreate(CurrentMemoryContext, "millrace judging",
										ALLOCSET_DEFAULT_SIZES);
		old = MemoryContextSwitchTo(scratch);
		mr_trees_judge(fitting->test,
					   mr_trees_import(VARDATA(model), VARSIZE(model) - VARHDRSZ)->trees,
					   fitting->codes, 0, fitting->metrics, fitting->nmetrics, trial->values);
		trial->loss = trial->values[0] * (fitting->metrics[0] == MR_TREES_AUC ? -1 : 1);
		MemoryContextSwitchTo(old);
		MemoryContextDelete(scratch);
	}
	trial->seconds += (GetCurrentTimestamp() - trial->begun) / (double) USECS_PER_SEC;
}

/* Trains so many of the trials, each in a program of its own. */
static void
fit(Fitting *fitting, int ntrials)
{
	int threads = max_parallel_maintenance_workers + 1;
	MrBoosterWork work = {.trainings = ntrials,
						  .at_once = Min(ntrials, threads),
						  .give = give_trial,
						  .take = take_trial,
						  .context = fitting};

	if (fitting->rows->n == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("there is no row with a label to train on")));
	/* What is compared must not depend on how many are trained at once. */
	fitting->threads = ntrials > 1 ? 1 : threads;
	for (int t = 0; t < ntrials; t++)
		work.rounds += rounds_of(fitting, t);
	mr_booster_train(&work);
}

/* Trials by what they lose; those of which nothing is known last. */
static int
compare_trials(const void *a, const void *b)
{
	const Trial *x = a;
	const Trial *y = b;

	if (isnan(x->loss) != isnan(y->loss))
		return isnan(x->loss) ? 1 : -1;
	if (x->loss < y->loss || x->loss > y->loss)
		return x->loss < y->loss ? -1 : 1;
	return x->number - y->number;
}

/*
 * Judges trials, and puts the best one first.  With synchronous halving, as of neighbours, all are tried with few rounds, the
 * better half of them with twice as many, and so on, until one is left that has all of its rounds.
 */
static void
judge_trials(Fitting *fitting, int ntrials, bool halving)
{
	int rungs = 1;

	while (halving && (ntrials + (1 << (rungs - 1)) - 1) >> (rungs - 1) > 1)
		rungs++;
	for (int rung = 0, alive = ntrials; rung < rungs; rung++, alive = (alive + 1) / 2)
	{
		fitting->halvings = rungs - 1 - rung;
		fit(fitting, alive);
		for (int t = 0; t < alive; t++)
			fitting->trials[t].rung = rung + 1;
		qsort(fitting->trials, alive, sizeof(Trial), compare_trials);
	}
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
	ARG_VERSION,
	ARG_OWNER,
	ARG_RELATION,
	ARG_NENTITY,
	ARG_CATEGORIES,
	ARG_PARAMS,
	ARG_QUERY,
	ARG_TRAIN,
	ARG_TEST,
	ARG_SHARE,
	ARG_BY_TIME,
	ARG_SINCE,
	ARG_REFIT,
	ARG_METRICS,
	ARG_HALVING
};

/* A training while it goes on. */
typedef struct Training
{
	MrTreesShape *shape;
	MrTreesInput *input; /* all that the query gives */
	MrTreesRows part; /* trains what is judged */
	MrTreesRows whole; /* trains what is kept */
	MrTreesRows test; /* judges */
} Training;

static char *
text_argument(FunctionCallInfo fcinfo, int argument)
{
	return PG_ARGISNULL(argument) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(argument));
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
	MrEntities held = mr_entities_held(model_id);
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

	flags = mr_trees_flags(training->input, &held);
	train_flags = train == NULL ? flags : mr_trees_flags(trained, &held);
	if (tested != NULL)
	{
		MrEntities asked;

		training->test = mr_trees_choose(tested, mr_trees_flags(tested, &held), 0, false);
		asked = mr_entities_find(&training->test);
		mr_entities_mark(training->input, flags, &asked, MR_ROW_JUDGES);
		mr_entities_mark(trained, train_flags, &asked, MR_ROW_JUDGES);
	}
	else if (PG_GETARG_BOOL(ARG_BY_TIME))
	{
		MrTreesRows rest = mr_trees_choose(training->input, flags, MR_ROW_IS_HELD, false);

		mr_trees_mark_late(training->input, flags,
						   PG_ARGISNULL(ARG_SINCE)
							   ? mr_trees_time(&rest, PG_GETARG_FLOAT8(ARG_SHARE))
							   : PG_GETARG_TIMESTAMPTZ(ARG_SINCE));
		training->test = mr_trees_choose(training->input, flags, MR_ROW_JUDGES, true);
	}
	else if (is_split)
	{
		MrTreesRows rest = mr_trees_choose(training->input, flags, MR_ROW_IS_HELD, false);
		int64 last = rest.n == 0 ? 0 : mr_trees_chance(&rest, PG_GETARG_FLOAT8(ARG_SHARE));

		for (uint64 i = 0; i < rest.n; i++)
			if (training->input->chances[rest.rows[i]] <= last)
				flags[rest.rows[i]] |= MR_ROW_JUDGES;
		training->test = mr_trees_choose(training->input, flags, MR_ROW_JUDGES, true);
	}
	if (is_split && !refit)
	{
		MrEntities judging = mr_entities_find(&training->test);

		mr_entities_write(&judging,
						  psprintf("INSERT INTO millrace_state.model_%d_test SELECT e FROM "
								   "unnest($1) AS e WHERE $2 >= 0 ON CONFLICT DO NOTHING",
								   model_id));
	}
	/* The evaluation set judges when it was added to, or when there is nothing else. */
	if (!is_split || (!refit && tested == NULL))
		training->test = mr_trees_choose(training->input, flags, MR_ROW_JUDGES | MR_ROW_IS_HELD,
										 true);
	if (is_judged && !is_split && training->test.n == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("the model has no evaluation set to compute metrics on"),
						errhint("Give a split.")));
	training->part = mr_trees_choose(trained, train_flags,
									 MR_ROW_JUDGES | MR_ROW_IS_HELD | MR_ROW_IS_LATE, false);
	training->whole = training->part;
	if (is_split && refit)
		training->whole = mr_trees_choose(training->input, flags, MR_ROW_IS_HELD, false);
}

/* The same for the same rows. */
static uint64
digest(const MrTreesRows *rows)
{
	uint64 hash = rows->n;

	for (uint64 i = 0; i < rows->n; i++)
		hash = hash * UINT64CONST(0x9e3779b97f4a7c15) + rows->input->contents[rows->rows[i]];
	return hash;
}

/* All trials. */
static Trial *
read_trials(Jsonb *params, int *n, int nmetrics)
{
	Trial *trials;

	*n = JsonContainerSize(&params->root);
	trials = palloc0(*n * sizeof(Trial));
	for (int t = 0; t < *n; t++)
	{
		trials[t].params = getIthJsonbValueFromContainer(&params->root, t)->val.binary.data;
		trials[t].number = t;
		trials[t].values = palloc0(Max(nmetrics, 1) * sizeof(double));
	}
	return trials;
}

/* Arrays of what is known of trials, in the order they were given: values by trial and metric, rungs, seconds. */
static void
trial_arrays(const Trial *trials, int ntrials, int nmetrics, Datum *arrays)
{
	double *values = palloc(Max(ntrials * nmetrics, 1) * sizeof(double));
	double *rungs = palloc(ntrials * sizeof(double));
	double *seconds = palloc(ntrials * sizeof(double));

	for (int t = 0; t < ntrials; t++)
	{
		memcpy(values + trials[t].number * nmetrics, trials[t].values, nmetrics * sizeof(double));
		rungs[trials[t].number] = trials[t].rung;
		seconds[trials[t].number] = trials[t].seconds;
	}
	arrays[0] = mr_trees_doubles(values, ntrials * nmetrics);
	arrays[1] = mr_trees_doubles(rungs, ntrials);
	arrays[2] = mr_trees_doubles(seconds, ntrials);
}

/* Judges the parameters of each trial, and trains with the best ones on all rows.  Returns what is noted of it. */
Datum
millrace_trees_train(PG_FUNCTION_ARGS)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace training",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Training training = {0};
	MrTreesMetric *metrics = NULL;
	int nmetrics = 0;
	Trial *trials;
	int ntrials;
	double *baseline;
	Fitting trying;
	Fitting best;
	MrEntities entities;
	Datum values[14];
	bool nulls[14] = {false};
	TupleDesc desc;
	Datum result;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (!PG_ARGISNULL(ARG_METRICS))
		metrics = mr_trees_metrics(PG_GETARG_ARRAYTYPE_P(ARG_METRICS), &nmetrics);
	trials = read_trials(PG_GETARG_JSONB_P(ARG_PARAMS), &ntrials, nmetrics);
	baseline = palloc0(Max(nmetrics, 1) * sizeof(double));
	mr_progress_start(PG_GETARG_OID(ARG_RELATION));
	prepare(&training, fcinfo, nmetrics > 0);
	mr_trees_judge(&training.test, NULL, NULL, mr_trees_mean_label(&training.part), metrics,
				   nmetrics, baseline);
	trying = (Fitting){.rows = &training.part,
					   .trials = trials,
					   .test = &training.test,
					   .metrics = metrics,
					   .nmetrics = nmetrics};
	if (nmetrics > 0)
	{
		trying.codes = mr_trees_codes(trying.rows->input, trying.rows->rows, trying.rows->n);
		judge_trials(&trying, ntrials, PG_GETARG_BOOL(ARG_HALVING));
	}
	best = (Fitting){.rows = &training.whole, .trials = &(Trial){.params = trials[0].params}};
	best.codes = mr_trees_codes(best.rows->input, best.rows->rows, best.rows->n);
	fit(&best, 1);
	mr_progress_phase(MR_TRAINING_WRITING, 0);
	entities = mr_entities_find(&training.whole);
	mr_entities_write(&entities,
					  psprintf("INSERT INTO millrace_state.model_%d_entity VALUES (%d, $2, $1)",
							   PG_GETARG_INT32(ARG_MODEL), PG_GETARG_INT32(ARG_VERSION)));
	values[0] = Int64GetDatum(training.input->rows);
	values[1] = Int64GetDatum(training.input->skipped);
	values[2] =
		CStringGetTextDatum(psprintf("%016llx", (unsigned long long) digest(&training.whole)));
	values[3] = PointerGetDatum(best.content);
	values[4] = DirectFunctionCall1(
		jsonb_in, CStringGetDatum(mr_trees_codes_json(training.shape, best.codes)));
	values[5] = Int32GetDatum(best.rounds);
	values[6] = Int32GetDatum(best.threads);
	values[7] = Float8GetDatum(best.trials->seconds);
	values[8] = Int32GetDatum(trials[0].number + 1);
	values[9] = Int64GetDatum(training.test.n);
	values[10] = mr_trees_doubles(baseline, nmetrics);
	trial_arrays(trials, ntrials, nmetrics, &values[11]);
	MemoryContextSwitchTo(old);
	result = HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
	MemoryContextDelete(context);
	mr_progress_end();
	PG_RETURN_DATUM(result);
}
