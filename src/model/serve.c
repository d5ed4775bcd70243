/*
 * serve.c
 *	  Answers of a model: similar items, and recommendations for a user or a basket.
 *
 * The score of an item j for a profile is the sum over its items i, in ascending order, of the weight of i and the similarity of
 * i to j, where i is among the neighbours of j.  Profiles have few items and each is a source of some hundreds of targets.  Where lists
 * lie (served.h) makes no difference to the result.  Nothing is written, and any snapshot will do: answers work on a standby.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "core/statement.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/best.h"
#include "model/online.h"
#include "model/score.h"
#include "model/served.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"

PG_FUNCTION_INFO_V1(millrace_similar);
PG_FUNCTION_INFO_V1(millrace_recommend);
PG_FUNCTION_INFO_V1(millrace_recommend_basket);

/* How many lists before its turn one is fetched into the caches. */
#define PREFETCH_AHEAD 2

/* How many items are looked up in a catalogue at once: at first, and at most. */
#define FIRST_OFFERS 32
#define MOST_OFFERS 4096

/* One item of a profile. */
typedef struct Had
{
	uint32 number;
	double weight;
} Had;

typedef struct Profile
{
	Had *items; /* ascending */
	int count;
	int room;
} Profile;

/* Why an item is answered. */
typedef enum Origin
{
	SIMILAR,
	PERSONAL,
	POPULAR
} Origin;

/* An item that may be answered, if the catalogue has it. */
typedef struct Offer
{
	uint32 number;
	Origin origin;
	double score;
} Offer;

/* A model while it answers. */
typedef struct Model
{
	MrServed served;
	ReturnSetInfo *result;
	int32 rank; /* of the last row */
	int32 n; /* how many are wanted */
	const Profile *explain; /* what reasons come from; NULL: none are wanted */
	MrCatalogue *catalogue; /* NULL: all items are answered */
	Offer *offers; /* to be looked up in the catalogue */
	int noffers;
	int room;
	bool has_new; /* an item that the version does not know was answered: the last one */
	Datum last_new;
} Model;

/* What is known of an item that may be recommended. */
typedef struct Candidate
{
	double score;
	uint32 number;
	bool is_given; /* in the profile, or offered already */
} Candidate;

/* Where the candidate of a number stands. */
typedef struct Place
{
	uint32 number;
	uint32 place;
	char status;
} Place;

#define SH_PREFIX places
#define SH_ELEMENT_TYPE Place
#define SH_KEY_TYPE uint32
#define SH_KEY number
#define SH_HASH_KEY(table, key) murmurhash32(key)
#define SH_EQUAL(table, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

typedef struct Candidates
{
	places_hash *places;
	Candidate *all; /* in the order in which they came */
	uint32 count;
	uint32 room;
} Candidates;

/* Opens a model for the arguments of a call, of which the third is how many items are wanted. */
static void
model_open(Model *model, FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(0) || PG_ARGISNULL(2))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("%s must not be NULL", PG_ARGISNULL(0) ? "model" : "n")));
	memset(model, 0, sizeof(Model));
	model->n = PG_GETARG_INT32(2);
	if (model->n < 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("n must not be negative, but is %d", model->n)));
	mr_served_open(&model->served, PG_GETARG_OID(0));
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	model->result = (ReturnSetInfo *) fcinfo->resultinfo;
}

/* Has what is answered looked up in the catalogue, when there is one or a filter over it. */
static void
model_filter(Model *model, const char *filter)
{
	if (model->served.known->has_catalogue || filter != NULL)
		model->catalogue = mr_catalogue_open(&model->served.known->catalogue,
											 model->served.known->relation, model->served.known->id,
											 model->served.known->owner, filter);
}

static void
model_close(Model *model)
{
	if (model->catalogue != NULL)
		mr_catalogue_close(model->catalogue);
	mr_served_close(&model->served);
}

static int
compare_had(const void *a, const void *b)
{
	uint32 x = ((const Had *) a)->number;
	uint32 y = ((const Had *) b)->number;

	return x < y ? -1 : x > y;
}

/* The item of the profile that adds most to the score of another one; of several the first. */
static uint32
find_reason(Model *model, uint32 number)
{
	const Profile *profile = model->explain;
	double largest = 0;
	uint32 reason = 0;
	MrReading reading;

	mr_reading_begin(&reading, &model->served, true, number);
	while (mr_reading_next(&reading))
		for (int i = 0; i < reading.length; i++)
		{
			Had wanted = {.number = reading.entries[i].number};
			const Had *had = bsearch(&wanted, profile->items, profile->count, sizeof(Had),
									 compare_had);
			double part = had == NULL ? 0 : mr_score_part(had->weight, reading.entries[i].score);

			if (part > largest || (part == largest && part > 0 && wanted.number < reason))
			{
				largest = part;
				reason = wanted.number;
			}
		}
	mr_reading_end(&reading);
	return reason;
}

/* One row of the answer. */
static void
answer(Model *model, Datum id, const Offer *offer)
{
	Datum values[5] = {Int32GetDatum(++model->rank), mr_served_id_text(&model->served, id),
					   (Datum) 0, (Datum) 0, Int32GetDatum(model->served.version)};
	bool nulls[5] = {false, false, offer->origin == POPULAR, true, false};

	values[2] = offer->origin == SIMILAR ? Float4GetDatum((float) offer->score)
										 : Float8GetDatum(offer->score);
	if (offer->origin == POPULAR || (offer->origin == PERSONAL && model->explain != NULL))
	{
		nulls[3] = false;
		values[3] = offer->origin == POPULAR
						? CStringGetTextDatum("popular")
						: mr_served_id_text(
							  &model->served,
							  mr_served_id(&model->served, find_reason(model, offer->number)));
	}
	tuplestore_putvalues(model->result->setResult, model->result->setDesc, values, nulls);
}

/* Answers those of the offers that the catalogue has. */
static void
take_offers(Model *model)
{
	Datum *ids = palloc(Max(model->noffers, 1) * sizeof(Datum));
	bool *taken;

	for (int i = 0; i < model->noffers; i++)
		ids[i] = datumCopy(mr_served_id(&model->served, model->offers[i].number),
						   model->served.known->by_value, model->served.known->length);
	taken = mr_catalogue_check(model->catalogue, ids, model->noffers);
	for (int i = 0; i < model->noffers && model->rank < model->n; i++)
		if (taken[i])
			answer(model, ids[i], &model->offers[i]);
	model->noffers = 0;
}

/* Answers an item if the catalogue has it, which may turn out later. */
static void
offer(Model *model, uint32 number, Origin origin, double score)
{
	Offer made = {.number = number, .origin = origin, .score = score};

	if (model->catalogue == NULL)
	{
		answer(model, mr_served_id(&model->served, number), &made);
		return;
	}
	if (model->noffers == model->room)
	{
		if (model->noffers > 0)
			take_offers(model);
		if (model->rank >= model->n)
			return;
		/* where few items pass, many are asked about at once */
		model->room = Min(Max(model->room * 4, FIRST_OFFERS), MOST_OFFERS);
		model->offers = model->offers == NULL
							? palloc(model->room * sizeof(Offer))
							: repalloc(model->offers, model->room * sizeof(Offer));
	}
	model->offers[model->noffers++] = made;
}

/* The neighbours of an item, best first; an item that is not known has none. */
Datum
millrace_similar(PG_FUNCTION_ARGS)
{
	MrReading reading;
	uint32 number;
	Model model;

	if (mr_online_similar(fcinfo))
		return (Datum) 0;
	model_open(&model, fcinfo);
	model_filter(&model, NULL);
	if (model.n > 0 && !PG_ARGISNULL(1) &&
		mr_served_find_item(&model.served, text_to_cstring(PG_GETARG_TEXT_PP(1)), &number))
	{
		mr_reading_begin(&reading, &model.served, true, number);
		while (model.rank < model.n && mr_reading_next(&reading))
		{
			for (int i = 0; i < Min(reading.length, model.n - model.rank); i++)
				mr_served_prefetch_id(&model.served, reading.entries[i].number);
			for (int i = 0; i < reading.length && model.rank < model.n; i++)
				offer(&model, reading.entries[i].number, SIMILAR, reading.entries[i].score);
		}
		mr_reading_end(&reading);
		if (model.noffers > 0)
			take_offers(&model);
	}
	model_close(&model);
	return (Datum) 0;
}

/* ---- recommendations -------------------------------------------------------------------------------------- */

static void
profile_add(Profile *profile, uint32 number, double weight)
{
	if (profile->count == profile->room)
	{
		profile->room = Max(profile->room * 2, 64);
		profile->items = profile->items == NULL
							 ? palloc(profile->room * sizeof(Had))
							 : repalloc_huge(profile->items, profile->room * sizeof(Had));
	}
	profile->items[profile->count].number = number;
	profile->items[profile->count++].weight = weight;
}

/* What a user had when the version was trained. */
static void
read_profile(Model *model, Profile *profile, char *user)
{
	Relation users = table_open(model->served.known->users.table, AccessShareLock);
	SysScanDesc rows = mr_lookup(
		users, model->served.known->users.index, 1, Int32GetDatum(model->served.version),
		MR_USER_ID, mr_served_read_id(get_atttype(RelationGetRelid(users), MR_USER_ID), user));
	HeapTuple row;

	while (HeapTupleIsValid(row = systable_getnext(rows)))
	{
		MrBlock block = mr_lookup_block(row, RelationGetDescr(users));
		const double *weights = block.values;

		for (int i = 0; i < block.length; i++)
			profile_add(profile, block.numbers[i], weights == NULL ? 1 : weights[i]);
	}
	systable_endscan(rows);
	table_close(users, AccessShareLock);
}

/* Makes room for about so many. */
static void
candidates_start(Candidates *candidates, uint32 expected)
{
	candidates->room = Max(expected, 64);
	candidates->places = places_create(CurrentMemoryContext, candidates->room, NULL);
	candidates->all = palloc_extended(candidates->room * sizeof(Candidate), MCXT_ALLOC_HUGE);
	candidates->count = 0;
}

/* The candidate of a number, a new one if it was none. */
static inline Candidate *
find_candidate(Candidates *candidates, uint32 number)
{
	bool found;
	Place *place = places_insert(candidates->places, number, &found);

	if (!found)
	{
		if (candidates->count == candidates->room)
		{
			candidates->room *= 2;
			candidates->all = repalloc_huge(candidates->all, candidates->room * sizeof(Candidate));
		}
		candidates->all[candidates->count].score = 0;
		candidates->all[candidates->count].number = number;
		candidates->all[candidates->count].is_given = false;
		place->place = candidates->count++;
	}
	return &candidates->all[place->place];
}

/* How many candidates a profile may have; a guess when its lists are in tables. */
static uint32
expect_candidates(const Model *model, const Profile *profile)
{
	uint64 sum = 0;

	if (model->served.copy == NULL)
		return 1024;
	for (int p = 0; p < profile->count; p++)
	{
		const uint64 *start = &model->served.copy->sources.start[profile->items[p].number];

		sum += start[1] - start[0];
	}
	return (uint32) Min(sum, model->served.copy->items);
}

/* Adds up what the items of a profile say of others. */
static void
add_up(Model *model, Candidates *candidates, const Profile *profile)
{
	for (int p = 0; p < profile->count; p++)
	{
		const Had *had = &profile->items[p];
		MrReading reading;

		CHECK_FOR_INTERRUPTS();
		if (model->served.copy != NULL && p + PREFETCH_AHEAD < profile->count)
			mr_served_prefetch_list(&model->served, profile->items[p + PREFETCH_AHEAD].number);
		mr_reading_begin(&reading, &model->served, false, had->number);
		while (mr_reading_next(&reading))
			for (int i = 0; i < reading.length; i++)
				find_candidate(candidates, reading.entries[i].number)->score +=
					mr_score_part(had->weight, reading.entries[i].score);
		mr_reading_end(&reading);
	}
}

/* The best candidates; with a catalogue, which may have few of them, all in their order. */
static void
offer_personal(Model *model, Candidates *candidates)
{
	uint32 n = candidates->count;
	MrNeighbour *best;
	uint32 length = 0;
	uint32 count;

	if (model->catalogue == NULL)
		n = Min(n, (uint32) model->n);
	if (n == 0 || model->n == 0)
		return;
	best = palloc_extended(n * sizeof(MrNeighbour), MCXT_ALLOC_HUGE);
	for (uint32 i = 0; i < candidates->count; i++)
	{
		const Candidate *candidate = &candidates->all[i];
		MrNeighbour found = {.score = candidate->score, .number = candidate->number};

		if (!candidate->is_given && candidate->score > 0)
			mr_best_offer(best, &length, n, &found);
	}
	count = length;
	while (length > 0)
	{
		MrNeighbour worst = mr_best_take_worst(best, &length);

		best[length] = worst;
	}
	for (uint32 i = 0; i < Min(count, 32); i++)
		mr_served_prefetch_id(&model->served, best[i].number);
	for (uint32 i = 0; i < count && model->rank < model->n; i++)
	{
		find_candidate(candidates, best[i].number)->is_given = true;
		offer(model, best[i].number, PERSONAL, best[i].score);
	}
}

/* An item that most users have, unless it was offered already. */
static void
offer_next(Model *model, const Candidates *candidates, uint32 number)
{
	const Place *place = places_lookup(candidates->places, number);

	if (place == NULL || !candidates->all[place->place].is_given)
		offer(model, number, POPULAR, 0);
}

/* Goes on with what most users have. */
static void
offer_popular(Model *model, const Candidates *candidates)
{
	SysScanDesc rows;
	HeapTuple row;

	if (model->served.copy != NULL)
	{
		for (uint32 i = 0; model->rank < model->n && i < model->served.copy->items; i++)
			offer_next(model, candidates, model->served.copy->places[i]);
		return;
	}
	if (model->rank >= model->n)
		return;
	rows = mr_lookup(model->served.items, model->served.known->by_place.index, 1,
					 Int32GetDatum(model->served.version), 0, (Datum) 0);
	while (model->rank < model->n && HeapTupleIsValid(row = systable_getnext(rows)))
		offer_next(model, candidates,
				   (uint32) DatumGetInt32(mr_lookup_column(row, MR_ITEM_NUMBER,
														   RelationGetDescr(model->served.items))));
	systable_endscan(rows);
}

/* An item of the catalogue that the version does not know, unless it is the one before. */
static bool
answer_new(void *context, Datum id)
{
	static const Offer made = {.origin = POPULAR};
	Model *model = context;
	MrKnown *known = model->served.known;

	if (model->has_new && DatumGetInt32(FunctionCall2Coll(&known->compare, known->collation,
														  model->last_new, id)) == 0)
		return true;
	model->has_new = true;
	model->last_new = datumCopy(id, known->by_value, known->length);
	answer(model, id, &made);
	return model->rank < model->n;
}

/* The answer to a profile; arguments from n on are the same for all that have one. */
static void
recommend(Model *model, const Profile *profile, FunctionCallInfo fcinfo)
{
	Candidates candidates;
	bool exclude_seen = PG_ARGISNULL(4) || PG_GETARG_BOOL(4);
	bool fallback = PG_ARGISNULL(6) || PG_GETARG_BOOL(6);

	model_filter(model, PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3)));
	if (!PG_ARGISNULL(5) && PG_GETARG_BOOL(5))
		model->explain = profile;
	candidates_start(&candidates, expect_candidates(model, profile));
	if (model->n > 0)
		add_up(model, &candidates, profile);
	if (exclude_seen)
		for (int i = 0; i < profile->count; i++)
			find_candidate(&candidates, profile->items[i].number)->is_given = true;
	offer_personal(model, &candidates);
	if (fallback)
		offer_popular(model, &candidates);
	if (model->noffers > 0)
		take_offers(model);
	if (fallback && model->served.known->has_catalogue && model->rank < model->n)
		mr_catalogue_unknown(model->catalogue, model->served.version, answer_new, model);
	places_destroy(candidates.places);
	pfree(candidates.all);
}

/* For a user: who asks must be allowed to see profiles. */
Datum
millrace_recommend(PG_FUNCTION_ARGS)
{
	Profile profile = {0};
	Model model;

	if (mr_online_recommend(fcinfo, PG_ARGISNULL(4) || PG_GETARG_BOOL(4),
							!PG_ARGISNULL(5) && PG_GETARG_BOOL(5),
							PG_ARGISNULL(6) || PG_GETARG_BOOL(6)))
		return (Datum) 0;
	model_open(&model, fcinfo);
	if (pg_class_aclcheck(model.served.known->users.table, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied for the profiles of model %s",
							   mr_relation_name(PG_GETARG_OID(0))),
						errhint("The model's owner may give it with millrace.grant_profiles().")));
	if (!PG_ARGISNULL(1))
		read_profile(&model, &profile, text_to_cstring(PG_GETARG_TEXT_PP(1)));
	recommend(&model, &profile, fcinfo);
	model_close(&model);
	return (Datum) 0;
}

/* For the items of a basket, each once; those that are not known say nothing. */
Datum
millrace_recommend_basket(PG_FUNCTION_ARGS)
{
	Profile profile = {0};
	Model model;

	if (mr_online_recommend_basket(fcinfo, PG_ARGISNULL(4) || PG_GETARG_BOOL(4),
								   !PG_ARGISNULL(5) && PG_GETARG_BOOL(5),
								   PG_ARGISNULL(6) || PG_GETARG_BOOL(6)))
		return (Datum) 0;
	model_open(&model, fcinfo);
	if (!PG_ARGISNULL(1))
	{
		Datum *ids;
		bool *nulls;
		int nids;
		int kept = 0;

		deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &ids, &nulls,
						  &nids);
		for (int i = 0; i < nids; i++)
		{
			uint32 number;

			if (!nulls[i] &&
				mr_served_find_item(&model.served, TextDatumGetCString(ids[i]), &number))
				profile_add(&profile, number, 1);
		}
		if (profile.count > 1)
			qsort(profile.items, profile.count, sizeof(Had), compare_had);
		for (int i = 0; i < profile.count; i++)
			if (kept == 0 || profile.items[kept - 1].number != profile.items[i].number)
				profile.items[kept++] = profile.items[i];
		profile.count = kept;
	}
	recommend(&model, &profile, fcinfo);
	model_close(&model);
	return (Datum) 0;
}
