/*
 * serve.c
 *	  Answers of a model: similar items, and recommendations for a user or a basket.
 *
 * The score of an item j for a profile is the sum over its items i, in ascending order, of the weight of i and the similarity of
 * i to j, where i is among the neighbours of j.  Profiles have few items and each is a source of some hundreds of targets.  Where lists
 * lie (served.h), or that they are made from what is counted (online.h), makes no difference to the result.  Nothing is written, and
 * any snapshot will do: answers work on a standby.
 */
#include "postgres.h"

#include <math.h>

#include "access/table.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "core/statement.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/best.h"
#include "model/online.h"
#include "model/profile.h"
#include "model/score.h"
#include "model/served.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"

PG_FUNCTION_INFO_V1(millrace_similar);
PG_FUNCTION_INFO_V1(millrace_recommend);
PG_FUNCTION_INFO_V1(millrace_recommend_basket);

/* Scores are added up in an array for so many numbers of items: few ranges, in the second cache. */
#define RANGE 32768

/* How many items are looked up in a catalogue at once: at first, and at most. */
#define FIRST_OFFERS 32
#define MOST_OFFERS 4096

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
	Datum id; /* when the version does not know it */
} Offer;

#define NO_NUMBER PG_UINT32_MAX

/* A model while it answers. */
typedef struct Model
{
	MrServed served;
	ReturnSetInfo *result;
	int32 rank; /* of the last row */
	int32 n; /* how many are wanted */
	const MrProfile *explain; /* what reasons come from; NULL: none are wanted */
	MrCatalogue *catalogue; /* NULL: all items are answered */
	Offer *offers; /* to be looked up in the catalogue */
	int noffers;
	int room;
	const MrProfile *seen; /* what is not answered; NULL: all is */
	bool has_new; /* an item that the version does not know was answered: the last one */
	Datum last_new;
} Model;

/* What an item of a profile says of others. */
typedef struct Said
{
	double weight;
	const MrListed *first; /* of the range that is looked at */
	const MrListed *next; /* after it; numbers ascend */
	const MrListed *end;
} Said;

/* A set of items. */
typedef struct Member
{
	uint32 number;
	char status;
} Member;

#define SH_PREFIX members
#define SH_ELEMENT_TYPE Member
#define SH_KEY_TYPE uint32
#define SH_KEY number
#define SH_HASH_KEY(table, key) murmurhash32(key)
#define SH_EQUAL(table, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* What is offered of a profile, best first. */
typedef struct Personal
{
	MrNeighbour *items;
	uint32 count;
} Personal;

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
	if (model->served.kept->has_catalogue || filter != NULL)
		model->catalogue = mr_catalogue_open(&model->served.kept->catalogue,
											 model->served.model->relation, model->served.model->id,
											 model->served.model->owner, filter);
}

static void
model_close(Model *model)
{
	if (model->catalogue != NULL)
		mr_catalogue_close(model->catalogue);
	mr_served_close(&model->served);
}

/* ---- the order of answers --------------------------------------------------------------------------------- */

/* What was found, with its id. */
typedef struct Identified
{
	Datum id;
	MrNeighbour found;
} Identified;

static int
compare_ids(const void *a, const void *b, void *arg)
{
	MrKept *kept = arg;

	return DatumGetInt32(FunctionCall2Coll(&kept->compare, kept->collation,
										   ((const Identified *) a)->id,
										   ((const Identified *) b)->id));
}

static int
compare_found(const void *a, const void *b)
{
	return mr_best_is_worse(a, b) ? 1 : -1;
}

/* Puts what was found in order: higher scores first, equal ones by their ids. */
static void
sort_found(Model *model, MrNeighbour *found, uint32 count)
{
	uint32 end;

	qsort(found, count, sizeof(MrNeighbour), compare_found);
	for (uint32 start = 0; model->served.counted != NULL && start < count; start = end)
	{
		Identified *equal;

		for (end = start + 1; end < count && found[end].score == found[start].score;)
			end++;
		if (end - start == 1)
			continue;
		equal = palloc_extended((end - start) * sizeof(Identified), MCXT_ALLOC_HUGE);
		for (uint32 i = start; i < end; i++)
		{
			equal[i - start].found = found[i];
			equal[i - start].id = mr_served_id_copy(&model->served, found[i].number);
		}
		qsort_arg(equal, end - start, sizeof(Identified), compare_ids, model->served.kept);
		for (uint32 i = start; i < end; i++)
			found[i] = equal[i - start].found;
		pfree(equal);
	}
}

/* ---- answering -------------------------------------------------------------------------------------------- */

/* The item of the profile that adds most to the score of another one; of several the first. */
static uint32
find_reason(Model *model, uint32 number)
{
	const MrProfile *profile = model->explain;
	const MrHad *reason = NULL;
	double largest = 0;
	MrReading reading;

	mr_reading_begin(&reading, &model->served, true, number);
	while (mr_reading_next(&reading))
		for (int i = 0; i < reading.length; i++)
		{
			const MrHad *had = mr_profile_find(profile, reading.entries[i].number);
			double part = had == NULL ? 0 : mr_score_part(had->weight, reading.entries[i].score);

			if (part > largest || (part == largest && part > 0 && had->place < reason->place))
			{
				largest = part;
				reason = had;
			}
		}
	mr_reading_end(&reading);
	return reason->number;
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

static Datum
offered_id(Model *model, const Offer *offer)
{
	return offer->number == NO_NUMBER ? offer->id : mr_served_id(&model->served, offer->number);
}

/* Answers those of the offers that the catalogue has. */
static void
take_offers(Model *model)
{
	Datum *ids = palloc(Max(model->noffers, 1) * sizeof(Datum));
	bool *taken;

	for (int i = 0; i < model->noffers; i++)
		ids[i] = datumCopy(offered_id(model, &model->offers[i]), model->served.kept->by_value,
						   model->served.kept->length);
	taken = mr_catalogue_check(model->catalogue, ids, model->noffers);
	for (int i = 0; i < model->noffers && model->rank < model->n; i++)
		if (taken[i])
			answer(model, ids[i], &model->offers[i]);
	model->noffers = 0;
}

/* Answers an item if the catalogue has it, which may turn out later. */
static void
make_offer(Model *model, const Offer *made)
{
	if (model->catalogue == NULL)
	{
		answer(model, offered_id(model, made), made);
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
	model->offers[model->noffers++] = *made;
}

/* The same of an item that the version knows. */
static void
offer(Model *model, uint32 number, Origin origin, double score)
{
	Offer made = {.number = number, .origin = origin, .score = score};

	make_offer(model, &made);
}

/* ---- candidates ------------------------------------------------------------------------------------------- */

/*
 * Answers the best of what is counted by their scores, in order; those with none are left out.  As many are put in order at once as are
 * wanted, and all that are as good as the last of them; a catalogue that has few of them has more put in order.
 */
static void
offer_best(Model *model, Origin origin)
{
	const double *scores = model->served.counted->scores;
	uint32 count = model->served.counted->items;
	uint32 most = Max((uint32) model->n, model->catalogue == NULL ? 1 : FIRST_OFFERS);
	double before = INFINITY;

	while (model->rank < model->n)
	{
		uint32 room = Max(Min(most, count), 1);
		MrNeighbour *found = palloc_extended(room * sizeof(MrNeighbour), MCXT_ALLOC_HUGE);
		uint32 length = 0;
		double last = 0;

		for (uint32 i = 0; i < count; i++)
			if (scores[i] > last && scores[i] < before)
			{
				MrNeighbour given = {.score = scores[i], .number = i};

				mr_best_offer(found, &length, room, &given);
				if (length == room)
					last = found[0].score;
			}
		if (length == 0)
			break;
		last = found[0].score;
		length = 0;
		for (uint32 i = 0; i < count; i++)
		{
			if (scores[i] < last || scores[i] >= before)
				continue;
			if (length == room)
			{
				room *= 2;
				found = repalloc_huge(found, room * sizeof(MrNeighbour));
			}
			found[length].score = scores[i];
			found[length++].number = i;
		}
		sort_found(model, found, length);
		for (uint32 i = 0; i < length && model->rank < model->n; i++)
			offer(model, found[i].number, origin, found[i].score);
		pfree(found);
		before = last;
		most = most > PG_UINT32_MAX / 4 ? most : most * 4;
	}
}

/* ---- similar items ---------------------------------------------------------------------------------------- */

/* The neighbours of an item in a list that is made: the order is that of similarities before they are rounded. */
static void
offer_counted(Model *model, uint32 number)
{
	MrCounted *counted = model->served.counted;
	int length;

	(void) mr_counted_list(counted, number, counted->scores, &length);
	offer_best(model, SIMILAR);
}

/* The neighbours of an item, best first, in a list that is stored. */
static void
offer_stored(Model *model, uint32 number)
{
	MrReading reading;

	mr_reading_begin(&reading, &model->served, true, number);
	while (model->rank < model->n && mr_reading_next(&reading))
	{
		for (int i = 0; i < Min(reading.length, model->n - model->rank); i++)
			mr_served_prefetch_id(&model->served, reading.entries[i].number);
		for (int i = 0; i < reading.length && model->rank < model->n; i++)
			offer(model, reading.entries[i].number, SIMILAR, reading.entries[i].score);
	}
	mr_reading_end(&reading);
}

/* The neighbours of an item; one that is not known has none. */
Datum
millrace_similar(PG_FUNCTION_ARGS)
{
	uint32 number;
	Model model;

	model_open(&model, fcinfo);
	model_filter(&model, NULL);
	if (model.n > 0 && !PG_ARGISNULL(1) &&
		mr_served_find_item(&model.served, text_to_cstring(PG_GETARG_TEXT_PP(1)), &number))
	{
		if (model.served.counted != NULL)
			offer_counted(&model, number);
		else
			offer_stored(&model, number);
		if (model.noffers > 0)
			take_offers(&model);
	}
	model_close(&model);
	return (Datum) 0;
}

/* ---- recommendations -------------------------------------------------------------------------------------- */

/* Puts a profile in the order of ids, in which parts of scores are added up. */
static void
profile_sort(Model *model, MrProfile *profile)
{
	MrNeighbour *items = palloc_extended(Max(profile->count, 1) * sizeof(MrNeighbour),
										 MCXT_ALLOC_HUGE);

	for (int i = 0; i < profile->count; i++)
	{
		items[i].number = profile->items[i].number;
		items[i].score = profile->items[i].weight;
	}
	sort_found(model, items, profile->count);
	for (int i = 0; i < profile->count; i++)
	{
		profile->items[i].number = items[i].number;
		profile->items[i].place = i;
		profile->items[i].weight = items[i].score;
	}
	pfree(items);
}

/* Finds what the items of a profile say; returns of how many items at most. */
static uint64
listen(Model *model, const MrProfile *profile, Said *said)
{
	uint64 sum = 0;

	for (int p = 0; p < profile->count; p++)
		mr_served_prefetch_start(&model->served, profile->items[p].number);
	for (int p = 0; p < profile->count; p++)
	{
		uint64 length;

		said[p].weight = profile->items[p].weight;
		said[p].next = mr_served_sources(&model->served, profile->items[p].number, &length);
		said[p].end = said[p].next + length;
		sum += length;
	}
	return sum;
}

/* The lowest number that is still to be heard of. */
static bool
lowest_number(const Said *said, int count, uint32 *lowest)
{
	bool found = false;

	for (int p = 0; p < count; p++)
		if (said[p].next < said[p].end && (!found || said[p].next->number < *lowest))
		{
			*lowest = said[p].next->number;
			found = true;
		}
	return found;
}

/*
 * Takes the best n items of which is said something, but those of the profile if they were seen.  Lists are ascending: for one range
 * of numbers after the other the parts of all of them are added up, in their order, and then looked through again.
 */
static void
choose(Personal *personal, uint32 n, const MrServed *served, Said *said, const MrProfile *profile,
	   bool exclude_seen)
{
	/* Zeros, but while a range is looked through, which nothing ends early. */
	static double sums[RANGE];
	MrNeighbour *best = personal->items;
	int seen = 0;
	uint32 base = 0;

	while (lowest_number(said, profile->count, &base))
	{
		CHECK_FOR_INTERRUPTS();
		for (int p = 0; p < profile->count; p++)
		{
			const MrListed *entry = said[p].next;
			const MrListed *end = said[p].end;
			double weight = said[p].weight;

			said[p].first = entry;
			for (; entry < end && entry->number - base < RANGE; entry++)
				sums[entry->number - base] += mr_score_part(weight, entry->score);
			said[p].next = entry;
		}
		for (; exclude_seen && seen < profile->count; seen++)
		{
			uint32 number = profile->items[seen].number;

			if (number >= base && number - base >= RANGE)
				break;
			if (number >= base)
				sums[number - base] = 0;
		}
		for (int p = 0; p < profile->count; p++)
			for (const MrListed *entry = said[p].first; entry < said[p].next; entry++)
			{
				MrNeighbour found = {.score = sums[entry->number - base], .number = entry->number};

				if (found.score > 0 && (personal->count < n || mr_best_is_worse(&best[0], &found)))
				{
					mr_served_prefetch_id(served, found.number);
					mr_best_offer(best, &personal->count, n, &found);
				}
				sums[entry->number - base] = 0;
			}
	}
}

/* Sorts a heap, best first. */
static void
sort_best(MrNeighbour *best, uint32 length)
{
	while (length > 0)
	{
		MrNeighbour worst = mr_best_take_worst(best, &length);

		best[length] = worst;
	}
}

/* The best items for a profile; with a catalogue, which may have few of them, all in their order. */
static void
offer_personal(Model *model, Personal *personal, const MrProfile *profile, bool exclude_seen)
{
	Said *said = palloc_extended(Max(profile->count, 1) * sizeof(Said), MCXT_ALLOC_HUGE);
	uint64 sum;
	uint32 n;

	if (model->n == 0)
		return;
	sum = listen(model, profile, said);
	n = (uint32) Min(sum, model->catalogue == NULL ? model->n : PG_INT32_MAX);
	if (n == 0)
		return;
	personal->items = palloc_extended(n * sizeof(MrNeighbour), MCXT_ALLOC_HUGE);
	choose(personal, n, &model->served, said, profile, exclude_seen);
	sort_best(personal->items, personal->count);
	for (uint32 i = 0; i < personal->count && model->rank < model->n; i++)
		offer(model, personal->items[i].number, PERSONAL, personal->items[i].score);
}

/* An item that most users have, unless it is among those that are not to be offered. */
static void
offer_next(Model *model, members_hash *given, uint32 number)
{
	if (members_lookup(given, number) == NULL)
		offer(model, number, POPULAR, 0);
}

/* What is not to be offered any more. */
static members_hash *
find_given(const Model *model, const Personal *personal)
{
	const MrCounted *counted = model->served.counted;
	int seen = model->seen == NULL ? 0 : model->seen->count;
	members_hash *given = members_create(CurrentMemoryContext, personal->count + seen, NULL);
	bool found;

	for (uint32 i = 0; i < personal->count; i++)
		(void) members_insert(given, personal->items[i].number, &found);
	for (uint32 i = 0; counted != NULL && i < counted->items; i++)
		if (counted->scores[i] > 0)
			(void) members_insert(given, i, &found);
	for (int i = 0; i < seen; i++)
		(void) members_insert(given, model->seen->items[i].number, &found);
	return given;
}

/* Goes on with what most users have. */
static void
offer_popular(Model *model, members_hash *given)
{
	SysScanDesc rows;
	HeapTuple row;

	if (model->served.copy != NULL)
	{
		for (uint32 i = 0; model->rank < model->n && i < model->served.copy->items; i++)
			offer_next(model, given, model->served.copy->places[i]);
		return;
	}
	rows = mr_lookup(model->served.items, model->served.model->tables[MR_BY_PLACE].index, 1,
					 Int32GetDatum(model->served.version), 0, (Datum) 0);
	while (model->rank < model->n && HeapTupleIsValid(row = systable_getnext(rows)))
		offer_next(model, given,
				   (uint32) DatumGetInt32(mr_lookup_column(row, MR_ITEM_NUMBER,
														   RelationGetDescr(model->served.items))));
	systable_endscan(rows);
}

/* What is popular by the owner's query, while it is read. */
typedef struct Listing
{
	Model *model;
	members_hash *given;
} Listing;

/* An item of it, which may be given already. */
static bool
offer_listed(void *context, Datum id)
{
	Listing *listing = context;
	Model *model = listing->model;
	const MrKept *kept = model->served.kept;
	Offer made = {.number = NO_NUMBER, .origin = POPULAR};
	bool is_given = false;

	if (mr_served_find_id(&model->served, id, &made.number))
		(void) members_insert(listing->given, made.number, &is_given);
	else if (model->seen != NULL)
		is_given = mr_profile_has_unknown(model->seen, &model->served, id);
	if (is_given)
		return true;
	if (made.number == NO_NUMBER)
		made.id = datumCopy(id, kept->by_value, kept->length);
	make_offer(model, &made);
	return model->rank < model->n;
}

/* Goes on with what the owner's query lists. */
static void
offer_list(Model *model, members_hash *given, char *group)
{
	const MrModel *asked = model->served.model;
	Listing listing = {model, given};

	mr_popular_read(&model->served.kept->popular, asked->relation, asked->id, asked->owner, group,
					offer_listed, &listing);
}

/* What is not to be answered has no score. */
static void
leave_seen(Model *model)
{
	for (int i = 0; model->seen != NULL && i < model->seen->count; i++)
		model->served.counted->scores[model->seen->items[i].number] = 0;
}

/* The best items for a profile by what is counted; parts of scores are added up in the order of ids. */
static void
offer_counted_personal(Model *model, MrProfile *profile)
{
	profile_sort(model, profile);
	for (int p = 0; model->n > 0 && p < profile->count; p++)
		if (profile->items[p].weight != 0)
			mr_counted_add(model->served.counted, profile->items[p].number,
						   profile->items[p].weight);
	/* It is searched by numbers. */
	mr_profile_sort(profile);
	leave_seen(model);
	offer_best(model, PERSONAL);
}

/* Goes on with what most users have by what is counted: the order of sizes is that of how many have an item. */
static void
offer_counted_popular(Model *model)
{
	MrCounted *counted = model->served.counted;

	for (uint32 i = 0; i < counted->items; i++)
		counted->scores[i] = counted->scores[i] > 0 ? 0 : counted->sizes[i];
	leave_seen(model);
	offer_best(model, POPULAR);
}

/* An item of the catalogue that the version does not know, unless it is the one before. */
static bool
answer_new(void *context, Datum id)
{
	static const Offer made = {.origin = POPULAR};
	Model *model = context;
	MrKept *kept = model->served.kept;

	if (model->has_new &&
		DatumGetInt32(FunctionCall2Coll(&kept->compare, kept->collation, model->last_new, id)) == 0)
		return true;
	if (model->seen != NULL && mr_profile_has_unknown(model->seen, &model->served, id))
		return true;
	model->has_new = true;
	model->last_new = datumCopy(id, kept->by_value, kept->length);
	answer(model, id, &made);
	return model->rank < model->n;
}

/* Answers what the catalogue has, and nobody. */
static void
offer_new(Model *model)
{
	const MrCounted *counted = model->served.counted;
	MrArray *unused = mr_array_create(INT4OID, 8);

	for (uint32 i = 0; counted != NULL && i < counted->items; i++)
		if (counted->sizes[i] <= 0 &&
			(model->seen == NULL || mr_profile_find(model->seen, i) == NULL))
			mr_array_add(unused, Int32GetDatum((int32) i), false);
	mr_catalogue_unknown(model->catalogue, model->served.version, mr_array_datum(unused),
						 answer_new, model);
}

/* The answer to a profile; arguments from n on are the same for all that have one. */
static void
recommend(Model *model, MrProfile *profile, FunctionCallInfo fcinfo)
{
	const MrKept *kept = model->served.kept;
	bool exclude_seen = PG_ARGISNULL(4) || PG_GETARG_BOOL(4);
	bool fallback = PG_ARGISNULL(6) || PG_GETARG_BOOL(6);
	char *group = PG_ARGISNULL(7) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(7));
	Personal personal = {0};

	if (group != NULL && !kept->has_popular)
		mr_popular_refuse_group(model->served.model->relation);
	model_filter(model, PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3)));
	if (!PG_ARGISNULL(5) && PG_GETARG_BOOL(5))
		model->explain = profile;
	model->seen = exclude_seen ? profile : NULL;
	if (model->served.counted != NULL)
		offer_counted_personal(model, profile);
	else
		offer_personal(model, &personal, profile, exclude_seen);
	/* A query is not read before it is certain that it is needed. */
	if (kept->has_popular && model->noffers > 0)
		take_offers(model);
	if (fallback && model->rank < model->n)
	{
		if (kept->has_popular)
			offer_list(model, find_given(model, &personal), group);
		else if (model->served.counted != NULL)
			offer_counted_popular(model);
		else
			offer_popular(model, find_given(model, &personal));
	}
	if (model->noffers > 0)
		take_offers(model);
	if (fallback && kept->has_catalogue && !kept->has_popular && model->rank < model->n)
		offer_new(model);
}

/* For a user: who asks must be allowed to see profiles. */
Datum
millrace_recommend(PG_FUNCTION_ARGS)
{
	MrProfile profile = {0};
	Model model;

	model_open(&model, fcinfo);
	if (pg_class_aclcheck(model.served.model->tables[MR_USERS].table, GetUserId(), ACL_SELECT) !=
		ACLCHECK_OK)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied for the profiles of model %s",
							   mr_relation_name(PG_GETARG_OID(0))),
						errhint("The model's owner may give it with millrace.grant_profiles().")));
	if (!PG_ARGISNULL(1))
		mr_profile_read(&profile, &model.served, text_to_cstring(PG_GETARG_TEXT_PP(1)));
	recommend(&model, &profile, fcinfo);
	model_close(&model);
	return (Datum) 0;
}

/* For the items of a basket, each once; those that are not known say nothing. */
Datum
millrace_recommend_basket(PG_FUNCTION_ARGS)
{
	MrProfile profile = {0};
	Model model;

	model_open(&model, fcinfo);
	if (!PG_ARGISNULL(1))
	{
		Datum *ids;
		bool *nulls;
		int nids;

		deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &ids, &nulls,
						  &nids);
		for (int i = 0; i < nids; i++)
		{
			uint32 number;

			if (!nulls[i] &&
				mr_served_find_item(&model.served, TextDatumGetCString(ids[i]), &number))
				mr_profile_add(&profile, number, 1);
		}
		mr_profile_sort(&profile);
	}
	recommend(&model, &profile, fcinfo);
	model_close(&model);
	return (Datum) 0;
}
