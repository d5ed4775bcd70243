/*
 * train.c
 *	  Training a version of item-item neighbours: read, compute, write.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "core/compat.h"
#include "core/statement.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/evaluate.h"
#include "model/knn.h"
#include "model/split.h"
#include "model/store.h"
#include "model/trials.h"
#include "optimizer/optimizer.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define BM25_K1 1.2
#define BM25_B 0.75

/* Below so many items a worker costs more than it does. */
#define ITEMS_PER_WORKER 64

/* What it costs to keep the list of another item, for each of its neighbours. */
#define ADDITIONS_PER_OFFER 32

/* Fewer users than that say nothing of a trial. */
#define FEWEST_USERS 100

PG_FUNCTION_INFO_V1(millrace_model_train);

/* The weight by which the measure counts a pair: sum is that of the item's weights. */
static double
pair_weight(const MrInput *input, MrMeasure measure, uint32 user, double weight, double sum,
			double average)
{
	uint32 items = mr_input_length(input, user);
	double rarity;

	if (measure == MR_MEASURE_COSINE)
		return weight;
	rarity = log((double) input->nitems / (1 + (double) items));
	if (measure == MR_MEASURE_TFIDF)
		return sqrt(weight) * rarity;
	/* weights that are all zero count for nothing, and have no average */
	if (average == 0)
		return 0;
	return weight * (BM25_K1 + 1) / (BM25_K1 * (1 - BM25_B + BM25_B * sum / average) + weight) *
		   rarity;
}

/* The sum of the weights of each item, and their average. */
static double *
sum_items(const MrInput *input, double *average)
{
	double *sums = mr_zeros(input->nitems, sizeof(double));
	double total = 0;

	for (uint32 user = 0; user < input->nusers; user++)
	{
		const uint32 *items = mr_input_column(input, input->user_items, user);
		const double *weights = mr_input_column(input, input->weights, user);

		for (uint32 p = 0; p < mr_input_length(input, user); p++)
			sums[items[p]] += weights != NULL ? weights[p] : 1;
	}
	for (uint32 i = 0; i < input->nitems; i++)
		total += sums[i];
	*average = input->nitems > 0 ? total / input->nitems : 0;
	return sums;
}

/* Puts the matrix into the block, by labels. */
static void
fill_matrix(MrKnn *knn, const MrInput *input, const uint32 *numbers)
{
	uint32 items = input->nitems;
	uint32 *labels = MemoryContextAllocHuge(CurrentMemoryContext, Max(items, 1) * sizeof(uint32));
	uint32 *next = MemoryContextAllocHuge(CurrentMemoryContext,
										  ((Size) items + 1) * sizeof(uint32));
	uint32 *user_next = MemoryContextAllocHuge(CurrentMemoryContext,
											   Max(input->nusers, 1) * sizeof(uint32));
	double average = 0;
	double *sums = NULL;

	if (knn->shape.params.measure == MR_MEASURE_BM25)
		sums = sum_items(input, &average);
	knn->item_start[0] = 0;
	for (uint32 i = 0; i < items; i++)
	{
		knn->numbers[i] = numbers[i];
		labels[numbers[i]] = i;
		knn->item_start[i + 1] = knn->item_start[i] + input->item_users[numbers[i]];
	}

	/* By label, users ascending; then from there by user, labels ascending. */
	memcpy(next, knn->item_start, ((Size) items + 1) * sizeof(uint32));
	for (uint32 user = 0; user < input->nusers; user++)
	{
		const uint32 *user_items = mr_input_column(input, input->user_items, user);

		for (uint32 p = 0; p < mr_input_length(input, user); p++)
		{
			uint32 at = next[labels[user_items[p]]]++;

			knn->item_users[at] = user;
			knn->item_places[at] = input->user_start[user] + p;
		}
	}
	memcpy(knn->user_start, input->user_start, ((Size) input->nusers + 1) * sizeof(uint32));
	memcpy(user_next, input->user_start, (Size) input->nusers * sizeof(uint32));
	for (uint32 i = 0; i < items; i++)
		for (uint32 at = knn->item_start[i]; at < knn->item_start[i + 1]; at++)
		{
			uint32 user = knn->item_users[at];
			uint32 place = user_next[user]++;

			if (knn->shape.weighted)
				knn->user_weights[place] = pair_weight(
					input, knn->shape.params.measure, user,
					input->weighted
						? *(double *) mr_column_read(input->weights, knn->item_places[at], 1)
						: 1,
					sums == NULL ? 0 : sums[numbers[i]], average);
			knn->user_items[place] = i;
			knn->item_places[at] = place;
		}
	pfree(labels);
	pfree(next);
	pfree(user_next);
	if (sums != NULL)
		pfree(sums);
}

/* The weights by which the measure counts the pairs. */
static MrColumn *
weigh(const MrInput *input, MrMeasure measure)
{
	MrColumn *weighed;
	double average = 0;
	double *sums = NULL;

	if (measure == MR_MEASURE_COSINE)
		return input->weights;
	if (measure == MR_MEASURE_BM25)
		sums = sum_items(input, &average);
	weighed = mr_column_create(sizeof(double), input->pairs, mr_memory_left() / 4 / sizeof(double));
	for (uint32 user = 0; user < input->nusers; user++)
	{
		const uint32 *items = mr_input_column(input, input->user_items, user);
		const double *weights = mr_input_column(input, input->weights, user);

		CHECK_FOR_INTERRUPTS();
		for (uint32 p = 0; p < mr_input_length(input, user); p++)
			*(double *) mr_column_add(weighed) =
				pair_weight(input, measure, user, weights != NULL ? weights[p] : 1,
							sums == NULL ? 0 : sums[items[p]], average);
	}
	if (sums != NULL)
		pfree(sums);
	return weighed;
}

/* How many additions all rows need, by row. */
static double
average_work(const MrInput *input)
{
	double work = 0;

	for (uint32 user = 0; user < input->nusers; user++)
	{
		double items = mr_input_length(input, user);

		work += items * items;
	}
	return work / Max(input->nitems, 1);
}

/*
 * How the neighbours are found: by as many processes as allowed; each pair of items once when there is memory for
 * lists of all items in each process, and when rows are long: to offer a pair to the list of another item, which is
 * far away, costs more than some additions.
 */
static void
choose_shape(MrKnnShape *shape, const MrInput *input, int *workers)
{
	*workers = (int) Min((uint32) *workers, shape->items / ITEMS_PER_WORKER);
	shape->participants = *workers + 1;
	shape->symmetric = true;
	if (mr_knn_memory(shape) > mr_memory_left() ||
		average_work(input) < (double) ADDITIONS_PER_OFFER * shape->params.k)
		shape->symmetric = false;
}

/* Is there no memory for a block? */
static bool
is_short(const MrKnnShape *shape, const MrInput *input)
{
	return input->user_items->file != NULL || mr_knn_memory(shape) > mr_memory_left();
}

/* What the input and the parameters say of a block, for one process. */
static MrKnnShape
shape_of(const MrInput *input, const MrKnnParams *params)
{
	MrKnnShape shape = {.params = *params, .participants = 1};

	shape.users = input->nusers;
	shape.items = input->nitems;
	shape.pairs = input->pairs;
	shape.params.k = Max(Min(shape.params.k, (int) input->nitems - 1), 0);
	shape.weighted = shape.params.measure == MR_MEASURE_TFIDF ||
					 shape.params.measure == MR_MEASURE_BM25 ||
					 (shape.params.measure == MR_MEASURE_COSINE && input->weighted);
	return shape;
}

Size
mr_learn_memory(const MrInput *input, const MrKnnParams *params)
{
	MrKnnShape shape = shape_of(input, params);
	Size neighbours = mul_size(shape.items, shape.params.k);

	/* to be judged they are turned round, once in parts and once as a whole */
	return add_size(mr_knn_memory(&shape),
					mul_size(neighbours, 2 * (sizeof(int32) + sizeof(float))));
}

void
mr_learn(MrLearnt *learnt, const MrInput *input, const MrKnnParams *params, int workers)
{
	MrKnnShape shape = shape_of(input, params);
	MemoryContext old;
	TimestampTz begun;
	Size size;

	learnt->context = AllocSetContextCreate(CurrentMemoryContext, "millrace neighbours",
											ALLOCSET_DEFAULT_SIZES);
	learnt->segment = NULL;
	old = MemoryContextSwitchTo(learnt->context);
	choose_shape(&shape, input, &workers);
	if (is_short(&shape, input))
	{
		begun = GetCurrentTimestamp();
		memset(&learnt->knn, 0, sizeof(MrKnn));
		learnt->knn.shape = shape;
		learnt->knn.numbers = mr_input_popular(input);
		mr_knn_run_passes(&learnt->knn, input,
						  shape.weighted ? weigh(input, shape.params.measure) : NULL);
		learnt->seconds = (GetCurrentTimestamp() - begun) / (double) USECS_PER_SEC;
		MemoryContextSwitchTo(old);
		return;
	}
	size = mr_knn_size(&shape);
	if (workers > 0)
		learnt->segment = mr_knn_segment(size);
	mr_knn_init(&learnt->knn,
				learnt->segment != NULL ? dsm_segment_address(learnt->segment)
										: MemoryContextAllocHuge(CurrentMemoryContext, size),
				&shape);
	fill_matrix(&learnt->knn, input, mr_input_popular(input));
	mr_knn_measure(&learnt->knn);
	mr_progress_phase(MR_TRAINING_COMPUTING, shape.items);
	begun = GetCurrentTimestamp();
	mr_knn_run(&learnt->knn, learnt->segment, workers);
	learnt->seconds = (GetCurrentTimestamp() - begun) / (double) USECS_PER_SEC;
	MemoryContextSwitchTo(old);
}

void
mr_forget(MrLearnt *learnt)
{
	if (learnt->segment != NULL)
		dsm_detach(learnt->segment);
	MemoryContextDelete(learnt->context);
}

/* The arguments of a training, by their places. */
enum
{
	ARG_MODEL,
	ARG_VERSION,
	ARG_OWNER,
	ARG_RELATION,
	ARG_SIMILARITY, /* this and the next two by trial */
	ARG_K,
	ARG_SHRINK,
	ARG_SPLIT,
	ARG_SHARE,
	ARG_SEED,
	ARG_SINCE,
	ARG_TRAIN,
	ARG_TEST,
	ARG_REFIT,
	ARG_METRICS,
	ARG_HALVING
};

/* All trials. */
static MrTrial *
read_trials(FunctionCallInfo fcinfo, int *n, int nmetrics)
{
	static const char *const measures[] = {"cosine", "tfidf", "bm25", "dice", "jaccard"};
	Datum *similarities;
	Datum *ks;
	Datum *shrinks;
	MrTrial *trials;
	int nks;
	int nshrinks;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(ARG_SIMILARITY), TEXTOID, -1, false, TYPALIGN_INT,
					  &similarities, NULL, n);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(ARG_K), INT4OID, 4, true, TYPALIGN_INT, &ks, NULL,
					  &nks);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(ARG_SHRINK), FLOAT8OID, 8, FLOAT8PASSBYVAL,
					  TYPALIGN_DOUBLE, &shrinks, NULL, &nshrinks);
	if (nks != *n || nshrinks != *n || *n == 0)
		elog(ERROR, "the parameters of trials differ in number");
	trials = palloc0(*n * sizeof(MrTrial));
	for (int t = 0; t < *n; t++)
	{
		for (int m = 0; m < lengthof(measures); m++)
			if (strcmp(TextDatumGetCString(similarities[t]), measures[m]) == 0)
				trials[t].params.measure = m;
		trials[t].params.k = DatumGetInt32(ks[t]);
		trials[t].params.shrink = DatumGetFloat8(shrinks[t]);
		trials[t].number = t;
		trials[t].values = palloc0(Max(nmetrics, 1) * sizeof(double));
	}
	return trials;
}

/* A training while it goes on. */
typedef struct Training
{
	int32 model_id;
	Oid owner;
	MrSplitKind split;
	char *train; /* statements of a split by tables, or NULL */
	char *test;
	bool refit;
	MrInput *input; /* all that the query gives */
	uint8 *flags; /* of its pairs */
	MrInput *part; /* what versions are judged on that are trained on it */
	MrTest *judge; /* NULL: they are not judged */
} Training;

/* Finds what trains and what judges. */
static void
prepare(Training *training, FunctionCallInfo fcinfo, bool is_judged)
{
	MrCut cut = {.is_given = !PG_ARGISNULL(ARG_SINCE)};
	bool by_time = training->split == MR_SPLIT_TIME;
	bool holds = training->split != MR_SPLIT_NONE && !training->refit;
	MrInput *source;
	MrInput *asked = NULL;
	MrInput *given = NULL;
	MrTest *kept;
	uint8 *flags;

	if (cut.is_given)
		cut.at = PG_GETARG_TIMESTAMPTZ(ARG_SINCE);
	cut.share = PG_GETARG_FLOAT8(ARG_SHARE);
	source = training->input = mr_input_read(training->model_id, training->owner,
											 by_time ? &cut : NULL);
	flags = training->flags = mr_zeros(source->pairs, sizeof(uint8));
	if (training->split != MR_SPLIT_NONE)
		mr_split(source, training->split, cut.share, PG_GETARG_INT64(ARG_SEED), flags);
	if (training->test != NULL)
	{
		asked = mr_input_query(training->model_id, training->owner, training->test, false);
		mr_input_mark(source, flags, asked, MR_PAIR_ASKED);
	}
	else if (training->split != MR_SPLIT_NONE)
	{
		asked = mr_input_part(source, flags, MR_PAIR_ASKED, true, false);
		given = mr_input_part(source, flags, MR_PAIR_GIVEN, true, false);
	}
	if (holds)
	{
		mr_store_test(training->model_id, asked, false);
		if (given != NULL)
			mr_store_test(training->model_id, given, true);
		CommandCounterIncrement();
	}

	/* What is kept never trains; it judges when it was added to, or when there is nothing else. */
	kept = mr_test_kept(training->model_id);
	if (kept != NULL)
	{
		mr_input_mark(source, flags, kept->asked, MR_PAIR_HELD);
		mr_input_mark(source, flags, kept->given, MR_PAIR_HELD);
	}
	if (training->train != NULL)
	{
		MrInput *table = mr_input_query(training->model_id, training->owner, training->train,
										source->weighted);
		uint8 *held = mr_zeros(table->pairs, sizeof(uint8));

		mr_input_mark(table, held, asked, MR_PAIR_ASKED);
		if (kept != NULL)
		{
			mr_input_mark(table, held, kept->asked, MR_PAIR_HELD);
			mr_input_mark(table, held, kept->given, MR_PAIR_HELD);
		}
		training->part = mr_input_part(table, held, MR_PAIR_ASKED | MR_PAIR_HELD, false, false);
	}
	else
		training->part = mr_input_part(source, flags, PG_UINT8_MAX, false, by_time);
	if (is_judged)
	{
		training->judge = holds || asked == NULL ? kept : mr_test_create(asked, given);
		if (training->judge == NULL && asked == NULL)
			ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
							errmsg("the model has no evaluation set to compute metrics on"),
							errhint("Give a split.")));
		if (training->judge == NULL)
			training->judge = mr_test_create(asked, given);
	}
}

/* Trials by the first metric, the best first; those without a value last. */
static int
compare_trials(const void *a, const void *b)
{
	const MrTrial *x = a;
	const MrTrial *y = b;

	if (isnan(x->values[0]) || isnan(y->values[0]))
	{
		if (isnan(x->values[0]) != isnan(y->values[0]))
			return isnan(x->values[0]) ? 1 : -1;
	}
	else if (x->values[0] != y->values[0])
		return x->values[0] > y->values[0] ? -1 : 1;
	return x->number - y->number;
}

/* Users of the part who take part in a rung, of which each has twice as many as the one before; the last has all. */
static uint32
rung_users(const Training *training, int rung, int rungs)
{
	uint32 all = training->part->nusers;

	return Min(Max(all >> (rungs - 1 - rung), FEWEST_USERS), all);
}

/*
 * Judges trials, and puts the best one first.  With synchronous halving (Jamieson and Talwalkar, "Non-stochastic Best Arm
 * Identification and Hyperparameter Optimization", 2016) all are tried on few users; the better half of them is tried on
 * twice as many, and so on, until one is left that is tried on all.  What a single trial has learnt stays.
 */
static void
judge_trials(const Training *training, MrTrial *trials, int ntrials, bool halving,
			 const MrMetric *metrics, int nmetrics, MrLearnt *learnt, MrJudgement *judgement)
{
	int rungs = 1;
	int alive = ntrials;

	while (halving && (ntrials + (1 << (rungs - 1)) - 1) >> (rungs - 1) > 1)
		rungs++;
	for (int rung = 0; rung < rungs; rung++, alive = (alive + 1) / 2)
	{
		MrInput *part = training->part;
		MrTest *judge = training->judge;

		if (rung + 1 < rungs)
		{
			int64 bound = mr_split_bound(part, rung_users(training, rung, rungs));

			part = mr_split_sample(part, bound);
			judge = mr_test_create(mr_split_sample(judge->asked, bound),
								   judge->given == NULL ? NULL
														: mr_split_sample(judge->given, bound));
		}
		mr_test_place(judge, part);
		mr_test_skip(judge, part);
		mr_trials_judge(part, judge, trials, alive, metrics, nmetrics, learnt, judgement);
		if (alive == 1 && ntrials > 1)
			mr_forget(learnt);
		for (int t = 0; t < alive; t++)
			trials[t].rung = rung + 1;
		qsort(trials, alive, sizeof(MrTrial), compare_trials);
	}
}

/* Arrays of what is known of trials, in the order they were given: values by trial and metric, rungs, seconds. */
static void
trial_arrays(const MrTrial *trials, int ntrials, int nmetrics, Datum *arrays)
{
	Datum *values = palloc(Max(ntrials * nmetrics, 1) * sizeof(Datum));
	Datum *rungs = palloc(ntrials * sizeof(Datum));
	Datum *seconds = palloc(ntrials * sizeof(Datum));

	for (int t = 0; t < ntrials; t++)
	{
		for (int m = 0; m < nmetrics; m++)
			values[trials[t].number * nmetrics + m] = Float8GetDatum(trials[t].values[m]);
		rungs[trials[t].number] = Int32GetDatum(trials[t].rung);
		seconds[trials[t].number] = Float8GetDatum(trials[t].seconds);
	}
	arrays[0] = PointerGetDatum(construct_array(values, ntrials * nmetrics, FLOAT8OID, 8,
												FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	arrays[1] = PointerGetDatum(construct_array(rungs, ntrials, INT4OID, 4, true, TYPALIGN_INT));
	arrays[2] = PointerGetDatum(
		construct_array(seconds, ntrials, FLOAT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* Between what times the newest rows of pairs are. */
static void
find_range(const MrInput *input, Datum *range, bool *nulls)
{
	TimestampTz first = DT_NOEND;
	TimestampTz last = DT_NOBEGIN;

	for (uint32 user = 0; input->timed && user < input->nusers; user++)
	{
		const TimestampTz *times = mr_input_column(input, input->times, user);

		for (uint32 p = 0; p < mr_input_length(input, user); p++)
		{
			first = Min(first, times[p]);
			last = Max(last, times[p]);
		}
	}
	range[0] = TimestampTzGetDatum(first);
	range[1] = TimestampTzGetDatum(last);
	nulls[0] = nulls[1] = !input->timed || input->pairs == 0;
}

/*
 * Trains: splits, judges the parameters of each trial, trains with the best ones on all rows, writes that as a version.
 * Returns what is noted of it.
 */
Datum
millrace_model_train(PG_FUNCTION_ARGS)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace training",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Training training = {.model_id = PG_GETARG_INT32(ARG_MODEL),
						 .owner = PG_GETARG_OID(ARG_OWNER),
						 .split = mr_split_kind(text_to_cstring(PG_GETARG_TEXT_PP(ARG_SPLIT))),
						 .refit = PG_GETARG_BOOL(ARG_REFIT)};
	int32 version = PG_GETARG_INT32(ARG_VERSION);
	MrMetric *metrics = NULL;
	MrJudgement judgement = {0};
	int nmetrics = 0;
	MrTrial *trials;
	int ntrials;
	uint64 stored = 0;
	MrInput *whole;
	MrLearnt learnt;
	Datum values[17];
	bool nulls[17] = {false};
	Datum *popular;
	TimestampTz begun;
	TupleDesc desc;
	Datum result;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (!PG_ARGISNULL(ARG_METRICS))
		metrics = mr_metrics_parse(PG_GETARG_ARRAYTYPE_P(ARG_METRICS), &nmetrics);
	trials = read_trials(fcinfo, &ntrials, nmetrics);
	if (!PG_ARGISNULL(ARG_TRAIN))
		training.train = text_to_cstring(PG_GETARG_TEXT_PP(ARG_TRAIN));
	if (!PG_ARGISNULL(ARG_TEST))
		training.test = text_to_cstring(PG_GETARG_TEXT_PP(ARG_TEST));

	mr_progress_start(PG_GETARG_OID(ARG_RELATION));
	prepare(&training, fcinfo, nmetrics > 0);
	/* What is held back for good is not in the whole either: the pairs of the split are in the set by now. */
	whole = training.part;
	if (training.split != MR_SPLIT_NONE && (training.refit || training.train != NULL))
		whole = mr_input_part(training.input, training.flags, MR_PAIR_HELD, false, false);

	if (nmetrics > 0)
		judge_trials(&training, trials, ntrials, PG_GETARG_BOOL(ARG_HALVING), metrics, nmetrics,
					 &learnt, &judgement);
	/* What a single trial has learnt is what is stored, when it is that. */
	if (nmetrics == 0 || ntrials > 1 || whole != training.part)
	{
		if (nmetrics > 0 && ntrials == 1)
			mr_forget(&learnt);
		mr_learn(&learnt, whole, &trials[0].params, max_parallel_maintenance_workers);
	}

	begun = GetCurrentTimestamp();
	mr_store_version(training.model_id, version, whole, &learnt.knn);
	for (uint32 i = 0; i < learnt.knn.shape.items; i++)
		stored += learnt.knn.found[i];
	values[0] = Int64GetDatum(training.input->rows);
	values[1] = Int64GetDatum(training.input->skipped);
	values[2] = Int64GetDatum(whole->pairs);
	values[3] = Int32GetDatum(whole->nusers);
	values[4] = Int32GetDatum(whole->nitems);
	values[5] = Int64GetDatum(stored);
	find_range(whole, &values[7], &nulls[7]);
	values[9] = Float8GetDatum(learnt.seconds);
	values[10] = Float8GetDatum((GetCurrentTimestamp() - begun) / (double) USECS_PER_SEC);
	values[11] = Int32GetDatum(trials[0].number + 1);
	values[12] = Int64GetDatum(judgement.pairs);
	trial_arrays(trials, ntrials, nmetrics, &values[13]);
	popular = palloc(Max(nmetrics, 1) * sizeof(Datum));
	for (int m = 0; m < nmetrics; m++)
		popular[m] = Float8GetDatum(judgement.popular[m]);
	values[16] = PointerGetDatum(
		construct_array(popular, nmetrics, FLOAT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[6] =
		CStringGetTextDatum(psprintf("%016llx", (unsigned long long) mr_input_digest(whole)));
	mr_forget(&learnt);
	MemoryContextSwitchTo(old);
	result = HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
	MemoryContextDelete(context);
	mr_progress_end();
	PG_RETURN_DATUM(result);
}
