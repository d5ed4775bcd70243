/*
 * evaluate.c
 *	  Metrics of recommendations.
 *
 * Each user of the test is recommended the best items by score, as recommend() would without its fallback, and the ranks
 * of those that he has in the test are looked at.  Beside it the same for the items that most users have, without
 * those that he has already.  Sums go over users in the order of their ids.  docs/models.md defines each metric.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "model/best.h"
#include "model/evaluate.h"
#include "model/score.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define LARGEST_K 10000

PG_FUNCTION_INFO_V1(millrace_check_metrics);

typedef enum Kind
{
	PRECISION,
	PRECISION_RETURNED,
	RECALL,
	MAP,
	NDCG,
	NDCG_UNTRUNCATED,
	HIT_RATE,
	MRR_AT,
	CATALOG_COVERAGE,
	MRR,
	USER_COVERAGE,
	ITEM_COVERAGE,
	COVERAGE
} Kind;

static const struct
{
	const char *name;
	Kind kind;
	bool has_k;
} known[] = {{"precision", PRECISION, true},
			 {"precision_returned", PRECISION_RETURNED, true},
			 {"recall", RECALL, true},
			 {"map", MAP, true},
			 {"ndcg", NDCG, true},
			 {"ndcg_untruncated", NDCG_UNTRUNCATED, true},
			 {"hit_rate", HIT_RATE, true},
			 {"mrr", MRR_AT, true},
			 {"catalog_coverage", CATALOG_COVERAGE, true},
			 {"mrr", MRR, false},
			 {"user_coverage", USER_COVERAGE, false},
			 {"item_coverage", ITEM_COVERAGE, false},
			 {"coverage", COVERAGE, false}};

/* What one way to recommend returns to one user. */
typedef struct Answer
{
	uint32 *items; /* best first */
	uint32 length;
	uint32 first_hit; /* rank of the best item that is asked, however far down; 0: none */
	uint32 *best_rank; /* by item, from 0: the best that it ever had; of all users */
	double *sums; /* by metric; of all users */
} Answer;

/* What judging needs. */
typedef struct Judging
{
	const MrJudged *judged;
	const MrMetric *metrics;
	int n;
	uint32 most; /* the largest k */
	double *discounts; /* by rank from 1: the sum of 1 / log2(rank + 1) up to it */
	uint32 *popular; /* items, those that most users have first */
	uint32 *places; /* by item: its place among them, from 0 */
	double *sums; /* by item: its score */
	uint32 *touched;
	uint32 ntouched;
	uint32 *seen; /* by item: the last user, from 1, who has it */
	uint32 *wanted; /* by item: the last user, from 1, of whom it is asked */
	uint32 user; /* the present one, from 1 */
	uint32 nasked;
	MrNeighbour *list;
	Answer ours;
	Answer most_had;
} Judging;

MrMetric *
mr_metrics_parse(ArrayType *names, int *n)
{
	Datum *values;
	bool *nulls;
	MrMetric *metrics;

	deconstruct_array(names, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, n);
	metrics = palloc(Max(*n, 1) * sizeof(MrMetric));
	for (int m = 0; m < *n; m++)
	{
		char *name = nulls[m] ? pstrdup("NULL") : TextDatumGetCString(values[m]);
		char *at = strchr(name, '@');
		char *end = NULL;
		long k = at == NULL ? 0 : strtol(at + 1, &end, 10);
		int i;

		/* the number as it is written in names: that of a column for a gate */
		if (at != NULL && (k < 1 || k > LARGEST_K || strcmp(psprintf("%ld", k), at + 1) != 0))
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("invalid metric \"%s\"", name),
							errdetail("What follows @ must be a number from 1 to %d.", LARGEST_K)));
		for (i = 0; i < lengthof(known); i++)
			if (known[i].has_k == (at != NULL) &&
				strlen(known[i].name) == (at == NULL ? strlen(name) : (Size) (at - name)) &&
				strncmp(known[i].name, name, strlen(known[i].name)) == 0)
				break;
		if (i == lengthof(known))
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("unknown metric \"%s\"", name),
				 errhint("Known are precision@k, precision_returned@k, recall@k, map@k, ndcg@k, "
						 "ndcg_untruncated@k, hit_rate@k, mrr@k, catalog_coverage@k, mrr, "
						 "user_coverage, item_coverage and coverage, with a number for k.")));
		metrics[m].kind = known[i].kind;
		metrics[m].k = (int) k;
		for (int other = 0; other < m; other++)
			if (metrics[other].kind == metrics[m].kind && metrics[other].k == metrics[m].k)
				ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
								errmsg("metric \"%s\" is given more than once", name)));
	}
	return metrics;
}

/* millrace_internal.check_metrics(metrics) */
Datum
millrace_check_metrics(PG_FUNCTION_ARGS)
{
	int n;

	(void) mr_metrics_parse(PG_GETARG_ARRAYTYPE_P(0), &n);
	PG_RETURN_VOID();
}

MrTest *
mr_test_create(MrInput *asked, MrInput *given)
{
	MrTest *test = palloc0(sizeof(MrTest));

	test->asked = asked;
	test->given = given;
	test->skipped = mr_zeros(asked->pairs, sizeof(bool));
	return test;
}

void
mr_test_place(MrTest *test, const MrInput *input)
{
	test->users = mr_ids_places(test->asked->users, input->users);
	test->items = mr_ids_places(test->asked->items, input->items);
	if (test->given == NULL)
		return;
	test->given_users = mr_ids_places(test->asked->users, test->given->users);
	test->given_items = mr_ids_places(test->given->items, input->items);
}

void
mr_test_skip(MrTest *test, const MrInput *input)
{
	const MrInput *asked = test->asked;

	for (uint32 user = 0; user < asked->nusers; user++)
	{
		const uint32 *user_items = mr_input_column(asked, asked->user_items, user);

		CHECK_FOR_INTERRUPTS();
		for (uint32 p = 0; p < mr_input_length(asked, user); p++)
		{
			uint32 item = test->items[user_items[p]];

			if (test->users[user] != MR_UNKNOWN && item != MR_UNKNOWN &&
				mr_input_find(input, test->users[user], item) != MR_UNKNOWN)
				test->skipped[asked->user_start[user] + p] = true;
		}
	}
}

/* Memory for one way to recommend. */
static void
answer_init(Answer *answer, const Judging *judging)
{
	uint32 items = judging->judged->input->nitems;

	answer->items = mr_zeros(judging->most, sizeof(uint32));
	answer->best_rank = mr_zeros(items, sizeof(uint32));
	memset(answer->best_rank, 0xff, (Size) items * sizeof(uint32));
	answer->sums = mr_zeros(judging->n, sizeof(double));
}

static void
judging_init(Judging *judging, const MrJudged *judged, const MrTest *test, const MrMetric *metrics,
			 int n)
{
	Size items = judged->input->nitems;
	Size longest = 0;

	memset(judging, 0, sizeof(Judging));
	judging->judged = judged;
	judging->metrics = metrics;
	judging->n = n;
	for (int m = 0; m < n; m++)
		judging->most = Max(judging->most, (uint32) metrics[m].k);
	judging->most = Min(judging->most, judged->input->nitems);

	for (uint32 user = 0; user < test->asked->nusers; user++)
		longest = Max(longest, mr_input_length(test->asked, user));
	longest = Max(longest, judging->most);
	judging->discounts = mr_zeros(longest + 1, sizeof(double));
	for (Size rank = 1; rank <= longest; rank++)
		judging->discounts[rank] = judging->discounts[rank - 1] + 1 / log2((double) rank + 1);

	judging->popular = mr_input_popular(judged->input);
	judging->places = mr_zeros(items, sizeof(uint32));
	for (uint32 place = 0; place < items; place++)
		judging->places[judging->popular[place]] = place;
	judging->sums = mr_zeros(items, sizeof(double));
	judging->touched = mr_zeros(items, sizeof(uint32));
	judging->seen = mr_zeros(items, sizeof(uint32));
	judging->wanted = mr_zeros(items, sizeof(uint32));
	judging->list = mr_zeros(judging->most, sizeof(MrNeighbour));
	answer_init(&judging->ours, judging);
	answer_init(&judging->most_had, judging);
}

/* Adds what an item of the user's profile says of others. */
static void
add_item(Judging *judging, uint32 item, double weight)
{
	const MrJudged *judged = judging->judged;
	Size first = judged->start[item];
	Size length = judged->start[item + 1] - first;
	const int32 *targets = mr_column_read(judged->targets, first, length);
	const float *scores = mr_column_read(judged->scores, first, length);

	judging->seen[item] = judging->user;
	for (Size p = 0; p < length; p++)
	{
		uint32 target = targets[p];
		double part = mr_score_part(weight, scores[p]);

		if (judging->sums[target] == 0 && part > 0)
			judging->touched[judging->ntouched++] = target;
		judging->sums[target] += part;
	}
}

/* What a user has; nothing if he is not known. */
typedef struct Profile
{
	const uint32 *items;
	const double *weights;
	uint32 length;
} Profile;

static Profile
find_profile(const MrInput *input, uint32 user)
{
	Profile profile = {0};

	if (user != MR_UNKNOWN)
	{
		profile.items = mr_input_column(input, input->user_items, user);
		profile.weights = mr_input_column(input, input->weights, user);
		profile.length = mr_input_length(input, user);
	}
	return profile;
}

/*
 * Adds the whole profile, in ascending order of items: what the version knows of the user, and what is given beside it.
 * Either may be missing.
 */
static void
add_profile(Judging *judging, uint32 known_user, const MrInput *given, uint32 given_user,
			const uint32 *given_items)
{
	Profile ours = find_profile(judging->judged->input, known_user);
	Profile theirs = find_profile(given, given_user);
	uint32 p = 0;
	uint32 q = 0;

	while (p < ours.length || q < theirs.length)
	{
		uint32 item = p < ours.length ? ours.items[p] : MR_UNKNOWN;
		uint32 other = q < theirs.length ? given_items[theirs.items[q]] : MR_UNKNOWN;

		if (q < theirs.length && other == MR_UNKNOWN)
			q++;
		else if (item <= other)
		{
			add_item(judging, item, ours.weights != NULL ? ours.weights[p] : 1);
			p++;
			q += item == other;
		}
		else
		{
			add_item(judging, other, theirs.weights != NULL ? theirs.weights[q] : 1);
			q++;
		}
	}
}

/* The best items by score, and the rank of the first one that is asked. */
static void
find_ours(Judging *judging)
{
	Answer *answer = &judging->ours;
	MrNeighbour best = {.number = MR_UNKNOWN};
	uint32 length = 0;
	bool is_hit = false;

	answer->first_hit = 0;
	for (uint32 t = 0; t < judging->ntouched; t++)
	{
		MrNeighbour found = {.score = judging->sums[judging->touched[t]],
							 .number = judging->touched[t]};

		if (judging->seen[found.number] == judging->user)
			continue;
		if (judging->most > 0)
			mr_best_offer(judging->list, &length, judging->most, &found);
		if (judging->wanted[found.number] == judging->user &&
			(!is_hit || mr_best_is_worse(&best, &found)))
		{
			best = found;
			is_hit = true;
		}
	}
	if (is_hit)
		answer->first_hit = 1;
	for (uint32 t = 0; t < judging->ntouched; t++)
	{
		MrNeighbour other = {.score = judging->sums[judging->touched[t]],
							 .number = judging->touched[t]};

		judging->sums[other.number] = 0;
		if (is_hit && judging->seen[other.number] != judging->user &&
			mr_best_is_worse(&best, &other))
			answer->first_hit++;
	}
	judging->ntouched = 0;
	answer->length = length;
	while (length > 0)
	{
		MrNeighbour worst = mr_best_take_worst(judging->list, &length);

		answer->items[length] = worst.number;
	}
}

/* The items that most users have, without those of this user. */
static void
find_popular(Judging *judging)
{
	Answer *answer = &judging->most_had;
	uint32 items = judging->judged->input->nitems;

	answer->length = 0;
	for (uint32 place = 0; place < items && answer->length < judging->most; place++)
		if (judging->seen[judging->popular[place]] != judging->user)
			answer->items[answer->length++] = judging->popular[place];
}

/* The rank of the first popular item that is asked: all items are returned, but those that the user has. */
static uint32
first_popular(const Judging *judging, uint32 known_user, const MrInput *given, uint32 given_user,
			  const uint32 *given_items, uint32 first_place)
{
	const MrInput *input = judging->judged->input;
	Profile ours = find_profile(input, known_user);
	Profile theirs = find_profile(given, given_user);
	uint32 rank = first_place + 1;

	for (uint32 p = 0; p < ours.length; p++)
		rank -= judging->places[ours.items[p]] < first_place;
	for (uint32 q = 0; q < theirs.length; q++)
	{
		uint32 item = given_items[theirs.items[q]];

		if (item != MR_UNKNOWN && judging->places[item] < first_place &&
			(known_user == MR_UNKNOWN || mr_input_find(input, known_user, item) == MR_UNKNOWN))
			rank--;
	}
	return rank;
}

/* Adds what an answer is worth to the sums. */
static void
judge_answer(const Judging *judging, Answer *answer)
{
	for (uint32 r = 0; r < answer->length; r++)
		answer->best_rank[answer->items[r]] = Min(answer->best_rank[answer->items[r]], r);
	for (int m = 0; m < judging->n; m++)
	{
		uint32 k = judging->metrics[m].k;
		uint32 returned = Min(k, answer->length);
		uint32 asked = judging->nasked;
		uint32 hits = 0;
		double precisions = 0;
		double gain = 0;
		double value = 0;

		for (uint32 r = 0; r < returned; r++)
			if (judging->wanted[answer->items[r]] == judging->user)
			{
				hits++;
				precisions += (double) hits / (r + 1);
				gain += 1 / log2((double) r + 2);
			}
		switch ((Kind) judging->metrics[m].kind)
		{
			case PRECISION:
				value = (double) hits / k;
				break;
			case PRECISION_RETURNED:
				value = returned > 0 ? (double) hits / returned : 0;
				break;
			case RECALL:
				value = (double) hits / asked;
				break;
			case MAP:
				value = precisions / Min(asked, k);
				break;
			case NDCG:
				value = gain / judging->discounts[Min(asked, k)];
				break;
			case NDCG_UNTRUNCATED:
				value = gain / judging->discounts[asked];
				break;
			case HIT_RATE:
				value = hits > 0;
				break;
			case MRR_AT:
			case MRR:
				if (answer->first_hit > 0 && (k == 0 || answer->first_hit <= k))
					value = 1 / (double) answer->first_hit;
				break;
			case CATALOG_COVERAGE:
			case USER_COVERAGE:
			case ITEM_COVERAGE:
			case COVERAGE:
				break;
		}
		answer->sums[m] += value;
	}
}

/* The metrics of an answer to all users. */
static double *
judge_all(const Judging *judging, const Answer *answer, uint32 users, double user_coverage,
		  double item_coverage)
{
	uint32 items = judging->judged->input->nitems;
	double *values = mr_zeros(judging->n, sizeof(double));

	for (int m = 0; m < judging->n; m++)
	{
		uint32 covered = 0;

		switch ((Kind) judging->metrics[m].kind)
		{
			case CATALOG_COVERAGE:
				for (uint32 i = 0; i < items; i++)
					covered += answer->best_rank[i] < (uint32) judging->metrics[m].k;
				values[m] = items > 0 ? (double) covered / items : 0;
				break;
			case USER_COVERAGE:
				values[m] = user_coverage;
				break;
			case ITEM_COVERAGE:
				values[m] = item_coverage;
				break;
			case COVERAGE:
				values[m] = (user_coverage + item_coverage) / 2;
				break;
			default:
				values[m] = answer->sums[m] / users;
		}
		if (users == 0)
			values[m] = NAN;
	}
	return values;
}

void
mr_evaluate(const MrJudged *judged, const MrTest *test, const MrMetric *metrics, int n,
			MrJudgement *judgement)
{
	const MrInput *asked = test->asked;
	const uint32 *users = test->users;
	const uint32 *items = test->items;
	int64 known_users = 0;
	int64 known_items = 0;
	Judging judging;

	judging_init(&judging, judged, test, metrics, n);
	memset(judgement, 0, sizeof(MrJudgement));
	mr_progress_phase(MR_TRAINING_JUDGING, asked->nusers);
	for (uint32 user = 0; user < asked->nusers; user++)
	{
		uint32 given_user = test->given == NULL ? MR_UNKNOWN : test->given_users[user];
		uint32 first_place = MR_UNKNOWN;
		const uint32 *user_items = mr_input_column(asked, asked->user_items, user);

		CHECK_FOR_INTERRUPTS();
		if (user % 1024 == 0)
			mr_progress_done(user);
		judging.user = user + 1;
		judging.nasked = 0;
		for (uint32 p = 0; p < mr_input_length(asked, user); p++)
		{
			uint32 item = items[user_items[p]];

			if (test->skipped[asked->user_start[user] + p])
				continue;
			judging.nasked++;
			known_users += users[user] != MR_UNKNOWN;
			if (item == MR_UNKNOWN)
				continue;
			known_items++;
			judging.wanted[item] = judging.user;
			first_place = Min(first_place, judging.places[item]);
		}
		if (judging.nasked == 0)
			continue;
		judgement->users++;
		judgement->pairs += judging.nasked;
		add_profile(&judging, users[user], test->given, given_user, test->given_items);
		find_ours(&judging);
		judge_answer(&judging, &judging.ours);
		find_popular(&judging);
		judging.most_had.first_hit = first_place == MR_UNKNOWN
										 ? 0
										 : first_popular(&judging, users[user], test->given,
														 given_user, test->given_items,
														 first_place);
		judge_answer(&judging, &judging.most_had);
	}
	judgement->values = judge_all(&judging, &judging.ours, judgement->users,
								  (double) known_users / judgement->pairs,
								  (double) known_items / judgement->pairs);
	judgement->popular = judge_all(&judging, &judging.most_had, judgement->users,
								   (double) known_users / judgement->pairs,
								   (double) known_items / judgement->pairs);
}
