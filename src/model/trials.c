/*
 * trials.c
 *	  Trials of a search for the parameters of item-item neighbours.
 *
 * Most of a trial is to judge, which one process does.  So trials run at once, each alone in a process, as many as there
 * are workers, and memory for what each has to itself; what they read lies in shared memory.  A trial gives the same
 * values to the last bit however it runs.  When there is one, or memory for one, it learns with all workers.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "model/copied.h"
#include "model/store.h"
#include "model/trials.h"
#include "optimizer/optimizer.h"
#include "port/atomics.h"
#include "utils/timestamp.h"

/* With fewer pairs a worker costs more than it does. */
#define PAIRS_PER_WORKER 2000

/* What a process knows of a block, which begins with the same without arrays. */
typedef struct Work
{
	Size memory; /* that each process may have */
	int ntrials;
	int nmetrics;
	bool is_given;
	MrInput input;
	MrInput asked;
	MrInput given;
	MrTest test;
	MrTrial *trials;
	MrMetric *metrics;
	double *values; /* by trial and metric */
	double *popular; /* by metric */
	MrJudgement *judgement; /* but for its arrays */
	pg_atomic_uint32 *next; /* trial */
} Work;

/* The next array of a block, with what is to be copied into it, if anything. */
static void *
place(char *block, Size *size, const void *from, uint64 count, Size width)
{
	void *array = mr_copied_place(block, size, count, width);

	if (array != NULL && from != NULL)
		memcpy(array, from, count * width);
	return array;
}

static MrColumn *
place_column(char *block, Size *size, const MrColumn *from, uint64 count, Size width)
{
	return mr_column_over(place(block, size, from == NULL ? NULL : from->memory, count, width),
						  width, count);
}

#define PLACE(array, count) (array) = place(block, size, array, count, sizeof(*(array)))

static void
place_input(MrInput *input, char *block, Size *size)
{
	PLACE(input->user_start, (uint64) input->nusers + 1);
	input->user_items = place_column(block, size, input->user_items, input->pairs, sizeof(uint32));
	if (input->weighted)
		input->weights = place_column(block, size, input->weights, input->pairs, sizeof(double));
}

/* Finds the way around in a block, and fills it with the arrays that there are; without one finds only its size. */
static Size
lay_out(Work *work, char *block)
{
	Size total = MAXALIGN(sizeof(Work));
	Size *size = &total;

	place_input(&work->input, block, size);
	place_input(&work->asked, block, size);
	place_input(&work->given, block, size);
	PLACE(work->input.item_users, work->input.nitems);
	PLACE(work->test.skipped, work->asked.pairs);
	PLACE(work->test.users, work->asked.nusers);
	PLACE(work->test.items, work->asked.nitems);
	PLACE(work->test.given_users, work->is_given ? work->asked.nusers : 0);
	PLACE(work->test.given_items, work->given.nitems);
	PLACE(work->trials, work->ntrials);
	PLACE(work->metrics, work->nmetrics);
	PLACE(work->values, (uint64) work->ntrials * work->nmetrics);
	PLACE(work->popular, work->nmetrics);
	PLACE(work->judgement, 1);
	PLACE(work->next, 1);
	work->test.asked = &work->asked;
	work->test.given = work->is_given ? &work->given : NULL;
	return total;
}

/* An input without arrays. */
static MrInput
sizes_of(const MrInput *input)
{
	MrInput sizes = {.weighted = input->weighted,
					 .pairs = input->pairs,
					 .nusers = input->nusers,
					 .nitems = input->nitems};

	return sizes;
}

/* Learns with the parameters of a trial, and judges that. */
static void
judge_trial(MrTrial *trial, MrInput *input, const MrTest *test, int workers,
			const MrMetric *metrics, int nmetrics, MrLearnt *learnt, MrJudgement *judgement)
{
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext, "millrace judging",
												  ALLOCSET_DEFAULT_SIZES);
	TimestampTz begun = GetCurrentTimestamp();
	MemoryContext old;
	MrJudged judged;

	mr_learn(learnt, input, &trial->params, workers);
	old = MemoryContextSwitchTo(scratch);
	mr_judged_knn(&judged, input, &learnt->knn);
	mr_evaluate(&judged, test, metrics, nmetrics, judgement);
	MemoryContextSwitchTo(old);
	memcpy(trial->values, judgement->values, nmetrics * sizeof(double));
	judgement->popular = memcpy(palloc(nmetrics * sizeof(double)), judgement->popular,
								nmetrics * sizeof(double));
	MemoryContextDelete(scratch);
	trial->seconds += (GetCurrentTimestamp() - begun) / (double) USECS_PER_SEC;
}

/* What each process does: the next trial, until there is none. */
static void
work_on(void *arg)
{
	Work *work = arg;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace trials",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Size left = mr_memory_left();
	uint32 t;

	mr_memory_take(left - Min(left, work->memory));
	while ((t = pg_atomic_fetch_add_u32(work->next, 1)) < work->ntrials)
	{
		MrTrial trial = work->trials[t];
		MrJudgement judgement;
		MrLearnt learnt;

		trial.values = work->values + (Size) t * work->nmetrics;
		judge_trial(&trial, &work->input, &work->test, 0, work->metrics, work->nmetrics, &learnt,
					&judgement);
		mr_forget(&learnt);
		work->trials[t].seconds = trial.seconds;
		/* what is the same for all */
		if (t == 0)
		{
			*work->judgement = judgement;
			memcpy(work->popular, judgement.popular, work->nmetrics * sizeof(double));
		}
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

void
mr_trials_worker_main(dsm_segment *segment, shm_toc *toc)
{
	dsm_segment *shared = mr_parallel_segment(toc);
	char *block = dsm_segment_address(shared);
	Work work = *(Work *) block;

	(void) lay_out(&work, block);
	work_on(&work);
	dsm_detach(shared);
}

static bool
is_in_memory(const MrInput *input)
{
	return input == NULL || input->user_items->file == NULL;
}

/* How many trials can run at once, when they share so many bytes. */
static int
count_at_once(const MrInput *input, const MrTest *test, const MrTrial *trials, int ntrials,
			  Size shared)
{
	Size left = mr_memory_left();
	Size most = 1;

	if (!is_in_memory(input) || !is_in_memory(test->asked) || !is_in_memory(test->given))
		return 1;
	for (int t = 0; t < ntrials; t++)
		most = Max(most, mr_learn_memory(input, &trials[t].params));
	return (int) Min(Min(ntrials, 1 + max_parallel_maintenance_workers),
					 Min(1 + input->pairs / PAIRS_PER_WORKER, (left - Min(left, shared)) / most));
}

void
mr_trials_judge(MrInput *input, MrTest *test, MrTrial *trials, int ntrials, const MrMetric *metrics,
				int nmetrics, MrLearnt *learnt, MrJudgement *judgement)
{
	Work shared = {.ntrials = ntrials,
				   .nmetrics = nmetrics,
				   .is_given = test->given != NULL,
				   .input = sizes_of(input),
				   .asked = sizes_of(test->asked)};
	dsm_segment *segment = NULL;
	Work work;
	Size size;
	int at_once;

	shared.asked.weighted = false;
	if (shared.is_given)
		shared.given = sizes_of(test->given);
	work = shared;
	size = lay_out(&work, NULL);
	at_once = count_at_once(input, test, trials, ntrials, size);
	if (at_once > 1)
		segment = mr_knn_segment(size);
	if (segment == NULL)
	{
		for (int t = 0; t < ntrials; t++)
		{
			judge_trial(&trials[t], input, test, max_parallel_maintenance_workers, metrics,
						nmetrics, learnt, judgement);
			if (ntrials > 1)
				mr_forget(learnt);
		}
		return;
	}

	shared.memory = (mr_memory_left() - size) / at_once;
	work = shared;
	*(Work *) dsm_segment_address(segment) = shared;
	work.input = *input;
	work.asked = *test->asked;
	work.asked.weighted = false;
	if (work.is_given)
		work.given = *test->given;
	work.test = *test;
	work.trials = trials;
	work.metrics = (MrMetric *) metrics;
	(void) lay_out(&work, dsm_segment_address(segment));
	pg_atomic_init_u32(work.next, 0);
	mr_parallel_run("mr_trials_worker_main", segment, at_once - 1, work_on, &work);
	for (int t = 0; t < ntrials; t++)
	{
		memcpy(trials[t].values, work.values + (Size) t * nmetrics, nmetrics * sizeof(double));
		trials[t].seconds = work.trials[t].seconds;
	}
	*judgement = *work.judgement;
	judgement->popular = memcpy(palloc(nmetrics * sizeof(double)), work.popular,
								nmetrics * sizeof(double));
	dsm_detach(segment);
}
