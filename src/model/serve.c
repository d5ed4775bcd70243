/*
 * serve.c
 *	  Answers of a model: similar items, and recommendations for a user or a basket.
 *
 * The score of an item j for a profile is the sum over its items i, in ascending order, of the weight of i and the similarity of
 * i to j, where i is among the neighbours of j.  Profiles have few items and each is a source of some hundreds of targets.  Lists
 * are read from a copy in shared memory (lists.h), or row by row from the tables while there is none; with the same result.
 * Nothing is written, and any snapshot will do: answers work on a standby.
 *
 * A session remembers what cannot change while the model is there: which tables it has.  Whether the caller may ask and which
 * version is served is looked up at each call.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "core/compat.h"
#include "core/copies.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/best.h"
#include "model/catalogue.h"
#include "model/ids.h"
#include "model/lists.h"
#include "model/store.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(millrace_similar);
PG_FUNCTION_INFO_V1(millrace_recommend);
PG_FUNCTION_INFO_V1(millrace_recommend_basket);
PG_FUNCTION_INFO_V1(millrace_model_copies);
PG_FUNCTION_INFO_V1(millrace_forget_copies);

/* How long a session reads tables, when there is no copy, until it asks for one again (ms). */
#define ASK_AGAIN 1000

/* How many items are looked up in a catalogue at once: at first, and at most. */
#define FIRST_OFFERS 32
#define MOST_OFFERS 4096

/* How many lists before its turn one is fetched, and how much of it. */
#define PREFETCH_AHEAD 2
#define PREFETCH_LINES 6

/* What a session knows of a model. */
typedef struct Known
{
	Oid relation; /* key */
	bool valid;
	int32 id;
	MrIndexed aliases;
	MrIndexed by_number; /* the four tables, and what they are read by */
	MrIndexed by_item;
	MrIndexed by_place;
	MrIndexed users;
	MrIndexed targets;
	MrIndexed sources;
	FmgrInfo output; /* of the type of items */
	FmgrInfo compare;
	Oid type;
	Oid collation;
	bool by_value;
	int16 length;
	Oid owner;
	bool has_catalogue;
	MrCatalogueKept catalogue;
	dsm_segment *segment; /* of a version, or NULL */
	int32 copied;
	MrVersion copy;
	TimestampTz used; /* the transaction that has used it last began then */
	TimestampTz asked; /* for a copy that was not there */
} Known;

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
	Known *known;
	int32 version;
	const MrVersion *copy; /* NULL: tables are read */
	Relation items; /* when they are */
	Relation by_number; /* index of items, with a scan for all look-ups of an answer */
	IndexScanDesc scan;
	TupleTableSlot *slot;
	ReturnSetInfo *result;
	int32 rank; /* of the last row */
	int32 n; /* how many are wanted */
	const Profile *explain; /* what reasons come from; NULL: none are wanted */
	MrCatalogue *catalogue; /* NULL: all items are answered */
	Offer *offers; /* to be looked up in the catalogue */
	int noffers;
	int room;
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

/* A list that is being read. */
typedef struct Reading
{
	Relation table; /* NULL: from the copy */
	SysScanDesc rows;
	bool at_end; /* of the copy */
	const MrListed *entries; /* of the present block */
	int length;
	MrListed read[MR_NEIGHBOURS_BLOCK]; /* those from the table */
} Reading;

static HTAB *models = NULL;

/* ---- models ----------------------------------------------------------------------------------------------- */

/* A model may be another one by now; one that is answering goes on with what it has. */
static void
relation_changed(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS all;
	Known *known;

	hash_seq_init(&all, models);
	while ((known = hash_seq_search(&all)) != NULL)
		if (!OidIsValid(relid) || relid == known->relation)
			known->valid = false;
}

/* Reads what a session keeps of a model. */
static void
learn(Known *known)
{
	TupleDesc desc;
	HeapTuple row = mr_lookup_row(mr_lookup_configuration("model", "model_relation_key"), 2,
								  ObjectIdGetDatum(known->relation), 0, (Datum) 0, &desc);
	bool is_varlena;
	bool isnull;
	Oid output;

	if (row == NULL)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("%s is not a model",
							   DatumGetCString(DirectFunctionCall1(
								   regclassout, ObjectIdGetDatum(known->relation))))));
	known->id = DatumGetInt32(mr_lookup_column(row, 1, desc));
	known->aliases = mr_lookup_configuration("model_alias", "model_alias_pkey");
	known->by_number = mr_lookup_state(known->id, "item", "item_pkey");
	known->by_item = mr_lookup_state(known->id, "item", "item_item");
	known->by_place = mr_lookup_state(known->id, "item", "item_place");
	known->users = mr_lookup_state(known->id, "user", "user_pkey");
	known->targets = mr_lookup_state(known->id, "target", "target_pkey");
	known->sources = mr_lookup_state(known->id, "source", "source_pkey");
	known->type = get_atttype(known->by_number.table, MR_ITEM_ID);
	known->collation = mr_ids_collation(known->type);
	fmgr_info_cxt(lookup_type_cache(known->type, TYPECACHE_CMP_PROC)->cmp_proc, &known->compare,
				  CacheMemoryContext);
	get_typlenbyval(known->type, &known->length, &known->by_value);
	getTypeOutputInfo(known->type, &output, &is_varlena);
	fmgr_info_cxt(output, &known->output, CacheMemoryContext);
	known->owner = DatumGetObjectId(mr_lookup_named(row, desc, "owner", &isnull));
	(void) mr_lookup_named(row, desc, "catalogue", &isnull);
	known->has_catalogue = !isnull;
	known->valid = true;
}

/* What the session knows of a model. */
static Known *
find_model(Oid relation)
{
	Known *known;
	bool found;

	if (models == NULL)
	{
		HASHCTL control = {.keysize = sizeof(Oid), .entrysize = sizeof(Known)};

		models = hash_create("millrace models", 16, &control, HASH_ELEM | HASH_BLOBS);
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	}
	known = hash_search(models, &relation, HASH_ENTER, &found);
	if (!found)
		memset((char *) known + sizeof(Oid), 0, sizeof(Known) - sizeof(Oid));
	if (!known->valid)
		learn(known);
	return known;
}

/*
 * The copy of a version, or NULL.  What a transaction has used it keeps to its end: a function that the caller's query calls may
 * ask again, and see another version.
 */
static const MrVersion *
find_copy(Known *known, int32 version)
{
	TimestampTz transaction = GetCurrentTransactionStartTimestamp();

	if (known->segment != NULL && (known->copied != version || !mr_copies_enabled()))
	{
		if (known->used == transaction)
			return NULL;
		dsm_detach(known->segment);
		known->segment = NULL;
		if (!mr_copies_enabled())
			mr_copy_forget(known->relation, 0);
	}
	if (known->segment == NULL && mr_copies_enabled() &&
		TimestampDifferenceExceeds(known->asked, GetCurrentStatementStartTimestamp(), ASK_AGAIN))
	{
		known->segment = mr_version_attach(known->relation, known->id, version, &known->copy);
		known->copied = version;
		known->asked = known->segment == NULL ? GetCurrentStatementStartTimestamp() : 0;
	}
	if (known->segment == NULL)
		return NULL;
	known->used = transaction;
	mr_copy_touch(known->segment);
	return &known->copy;
}

/* Opens the version of a model that is in production, for a user who may read the model. */
static void
model_open(Model *model, FunctionCallInfo fcinfo)
{
	Oid relation = PG_GETARG_OID(0);
	AclResult allowed;
	TupleDesc desc;
	HeapTuple row;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(2))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("%s must not be NULL", PG_ARGISNULL(0) ? "model" : "n")));
	memset(model, 0, sizeof(Model));
	model->n = PG_GETARG_INT32(2);
	if (model->n < 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("n must not be negative, but is %d", model->n)));
	allowed = pg_class_aclcheck(relation, GetUserId(), ACL_SELECT);
	if (allowed != ACLCHECK_OK)
		aclcheck_error(allowed, get_relkind_objtype(get_rel_relkind(relation)),
					   get_rel_name(relation));
	/* Nobody drops the model meanwhile. */
	LockRelationOid(relation, AccessShareLock);
	model->known = find_model(relation);
	row = mr_lookup_row(model->known->aliases, 1, Int32GetDatum(model->known->id), 2,
						CStringGetTextDatum("production"), &desc);
	if (row == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("model %s has no version yet", mr_relation_name(relation)),
						errhint("Call millrace.train().")));
	model->version = DatumGetInt32(mr_lookup_column(row, 3, desc));
	model->copy = find_copy(model->known, model->version);
	if (model->copy == NULL)
	{
		model->items = table_open(model->known->by_number.table, AccessShareLock);
		model->by_number = index_open(model->known->by_number.index, AccessShareLock);
		model->slot = table_slot_create(model->items, NULL);
		model->scan = mr_index_beginscan(model->items, model->by_number, GetActiveSnapshot(), 2);
	}
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	model->result = (ReturnSetInfo *) fcinfo->resultinfo;
}

/* Has what is answered looked up in the catalogue, when there is one or a filter over it. */
static void
model_filter(Model *model, const char *filter)
{
	if (model->known->has_catalogue || filter != NULL)
		model->catalogue = mr_catalogue_open(&model->known->catalogue, model->known->id,
											 model->known->owner, filter);
}

static void
model_close(Model *model)
{
	if (model->catalogue != NULL)
		mr_catalogue_close(model->catalogue);
	if (model->copy != NULL)
		return;
	index_endscan(model->scan);
	ExecDropSingleTupleTableSlot(model->slot);
	index_close(model->by_number, AccessShareLock);
	table_close(model->items, AccessShareLock);
}

/* ---- items ------------------------------------------------------------------------------------------------ */

/* An id from its text; one that is too long for its column is not known, and no error. */
static Datum
read_id(Oid type, char *text)
{
	Oid input;
	Oid parameter;

	getTypeInputInfo(type, &input, &parameter);
	return OidInputFunctionCall(input, text, parameter, -1);
}

/* The number of an item in a copy: numbers have the order of ids. */
static bool
search_item(const Known *known, const MrVersion *copy, Datum id, uint32 *number)
{
	uint32 low = 0;
	uint32 high = copy->items;

	while (low < high)
	{
		uint32 middle = low + (high - low) / 2;
		int32 order = DatumGetInt32(FunctionCall2Coll(
			(FmgrInfo *) &known->compare, known->collation, mr_version_id(copy, middle), id));

		if (order == 0)
		{
			*number = middle;
			return true;
		}
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return false;
}

/* The number of an item; false when the version does not know it. */
static bool
find_item(Model *model, char *text, uint32 *number)
{
	Datum id = read_id(model->known->type, text);
	SysScanDesc rows;
	HeapTuple row;
	bool found;

	if (model->copy != NULL)
		return search_item(model->known, model->copy, id, number);
	rows = mr_lookup(model->items, model->known->by_item.index, 1, Int32GetDatum(model->version),
					 MR_ITEM_ID, id);
	row = systable_getnext(rows);
	found = HeapTupleIsValid(row);
	if (found)
		*number =
			DatumGetInt32(mr_lookup_column(row, MR_ITEM_NUMBER, RelationGetDescr(model->items)));
	systable_endscan(rows);
	return found;
}

/* The id of an item by its number; good until the next one is asked for. */
static Datum
find_id(Model *model, uint32 number)
{
	ScanKeyData keys[2];
	bool isnull;

	if (model->copy != NULL)
		return mr_version_id(model->copy, number);
	/* the columns of the key have the same numbers in table and index */
	mr_lookup_key(&keys[0], model->items, 1, Int32GetDatum(model->version));
	mr_lookup_key(&keys[1], model->items, MR_ITEM_NUMBER, Int32GetDatum((int32) number));
	index_rescan(model->scan, keys, 2, NULL, 0);
	if (!index_getnext_slot(model->scan, ForwardScanDirection, model->slot))
		elog(ERROR, "model %d, version %d has no item %u", model->known->id, model->version,
			 number);
	return slot_getattr(model->slot, MR_ITEM_ID, &isnull);
}

static Datum
id_text(Model *model, Datum id)
{
	return CStringGetTextDatum(OutputFunctionCall(&model->known->output, id));
}

/* Has memory fetched that is about to be read: a copy is larger than the caches, and all of it is random access. */
static inline void
prefetch_id(const MrVersion *copy, uint32 number)
{
	if (copy->id_start != NULL)
		__builtin_prefetch(&copy->id_start[number]);
	else
		__builtin_prefetch(&((const Datum *) copy->ids)[number]);
}

static inline void
prefetch_list(const MrLists *lists, uint32 number)
{
	const char *entries = (const char *) (lists->entries + lists->start[number]);

	for (int i = 0; i < PREFETCH_LINES; i++)
		__builtin_prefetch(entries + i * 64);
}

/* Begins to read the list of an item: its targets, or its sources. */
static void
reading_begin(Reading *reading, const Model *model, bool targets, uint32 number)
{
	MrIndexed indexed = targets ? model->known->targets : model->known->sources;

	reading->table = NULL;
	if (model->copy != NULL)
	{
		const MrLists *lists = targets ? &model->copy->targets : &model->copy->sources;

		reading->at_end = false;
		reading->entries = lists->entries + lists->start[number];
		reading->length = (int) (lists->start[number + 1] - lists->start[number]);
		return;
	}
	reading->table = table_open(indexed.table, AccessShareLock);
	reading->rows = mr_lookup(reading->table, indexed.index, 1, Int32GetDatum(model->version),
							  MR_LIST_ITEM, Int32GetDatum((int32) number));
}

/* Goes to the next block; false at the end. */
static bool
reading_next(Reading *reading)
{
	HeapTuple row;
	MrBlock block;

	if (reading->table == NULL)
	{
		bool has_block = !reading->at_end;

		reading->at_end = true;
		return has_block;
	}
	CHECK_FOR_INTERRUPTS();
	row = systable_getnext(reading->rows);
	if (!HeapTupleIsValid(row))
		return false;
	block = mr_lookup_block(row, RelationGetDescr(reading->table));
	if (block.length > MR_NEIGHBOURS_BLOCK)
		elog(ERROR, "a block has %d entries", block.length);
	for (int i = 0; i < block.length; i++)
	{
		reading->read[i].number = block.numbers[i];
		reading->read[i].score = ((const float *) block.values)[i];
	}
	reading->entries = reading->read;
	reading->length = block.length;
	return true;
}

static void
reading_end(Reading *reading)
{
	if (reading->table == NULL)
		return;
	systable_endscan(reading->rows);
	table_close(reading->table, AccessShareLock);
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
	Reading reading;

	reading_begin(&reading, model, true, number);
	while (reading_next(&reading))
		for (int i = 0; i < reading.length; i++)
		{
			Had wanted = {.number = reading.entries[i].number};
			const Had *had = bsearch(&wanted, profile->items, profile->count, sizeof(Had),
									 compare_had);
			double part = had == NULL ? 0 : had->weight * (double) reading.entries[i].score;

			if (part > largest || (part == largest && part > 0 && wanted.number < reason))
			{
				largest = part;
				reason = wanted.number;
			}
		}
	reading_end(&reading);
	return reason;
}

/* One row of the answer. */
static void
answer(Model *model, Datum id, const Offer *offer)
{
	Datum values[5] = {Int32GetDatum(++model->rank), id_text(model, id), (Datum) 0, (Datum) 0,
					   Int32GetDatum(model->version)};
	bool nulls[5] = {false, false, offer->origin == POPULAR, true, false};

	values[2] = offer->origin == SIMILAR ? Float4GetDatum((float) offer->score)
										 : Float8GetDatum(offer->score);
	if (offer->origin == POPULAR || (offer->origin == PERSONAL && model->explain != NULL))
	{
		nulls[3] = false;
		values[3] = offer->origin == POPULAR
						? CStringGetTextDatum("popular")
						: id_text(model, find_id(model, find_reason(model, offer->number)));
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
		ids[i] = datumCopy(find_id(model, model->offers[i].number), model->known->by_value,
						   model->known->length);
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
		answer(model, find_id(model, number), &made);
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
	Reading reading;
	uint32 number;
	Model model;

	model_open(&model, fcinfo);
	model_filter(&model, NULL);
	if (model.n > 0 && !PG_ARGISNULL(1) &&
		find_item(&model, text_to_cstring(PG_GETARG_TEXT_PP(1)), &number))
	{
		reading_begin(&reading, &model, true, number);
		while (model.rank < model.n && reading_next(&reading))
		{
			if (model.copy != NULL)
				for (int i = 0; i < Min(reading.length, model.n - model.rank); i++)
					prefetch_id(model.copy, reading.entries[i].number);
			for (int i = 0; i < reading.length && model.rank < model.n; i++)
				offer(&model, reading.entries[i].number, SIMILAR, reading.entries[i].score);
		}
		reading_end(&reading);
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
	Relation users = table_open(model->known->users.table, AccessShareLock);
	SysScanDesc rows = mr_lookup(users, model->known->users.index, 1, Int32GetDatum(model->version),
								 MR_USER_ID,
								 read_id(get_atttype(RelationGetRelid(users), MR_USER_ID), user));
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

	if (model->copy == NULL)
		return 1024;
	for (int p = 0; p < profile->count; p++)
	{
		const uint64 *start = &model->copy->sources.start[profile->items[p].number];

		sum += start[1] - start[0];
	}
	return (uint32) Min(sum, model->copy->items);
}

/* Adds up what the items of a profile say of others. */
static void
add_up(Model *model, Candidates *candidates, const Profile *profile)
{
	for (int p = 0; p < profile->count; p++)
	{
		const Had *had = &profile->items[p];
		Reading reading;

		CHECK_FOR_INTERRUPTS();
		if (model->copy != NULL && p + PREFETCH_AHEAD < profile->count)
			prefetch_list(&model->copy->sources, profile->items[p + PREFETCH_AHEAD].number);
		reading_begin(&reading, model, false, had->number);
		while (reading_next(&reading))
			for (int i = 0; i < reading.length; i++)
				find_candidate(candidates, reading.entries[i].number)->score +=
					had->weight * (double) reading.entries[i].score;
		reading_end(&reading);
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

	if (model->catalogue == NULL || model->n == 0)
		n = Min(n, (uint32) model->n);
	if (n == 0)
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
	if (model->copy != NULL)
		for (uint32 i = 0; i < Min(count, 32); i++)
			prefetch_id(model->copy, best[i].number);
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

	if (model->copy != NULL)
	{
		for (uint32 i = 0; model->rank < model->n && i < model->copy->items; i++)
			offer_next(model, candidates, model->copy->places[i]);
		return;
	}
	if (model->rank >= model->n)
		return;
	rows = mr_lookup(model->items, model->known->by_place.index, 1, Int32GetDatum(model->version),
					 0, (Datum) 0);
	while (model->rank < model->n && HeapTupleIsValid(row = systable_getnext(rows)))
		offer_next(model, candidates,
				   (uint32) DatumGetInt32(
					   mr_lookup_column(row, MR_ITEM_NUMBER, RelationGetDescr(model->items))));
	systable_endscan(rows);
}

/* An item of the catalogue that the version does not know. */
static bool
answer_new(void *context, Datum id)
{
	static const Offer made = {.origin = POPULAR};
	Model *model = context;

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
	if (fallback && model->known->has_catalogue && model->rank < model->n)
		mr_catalogue_unknown(model->catalogue, model->version, answer_new, model);
	places_destroy(candidates.places);
	pfree(candidates.all);
}

/* For a user: who asks must be allowed to see profiles. */
Datum
millrace_recommend(PG_FUNCTION_ARGS)
{
	Profile profile = {0};
	Model model;

	model_open(&model, fcinfo);
	if (pg_class_aclcheck(model.known->users.table, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
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

			if (!nulls[i] && find_item(&model, TextDatumGetCString(ids[i]), &number))
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

/* ---- copies ----------------------------------------------------------------------------------------------- */

/* The copies in shared memory: model, version, whether it is there, bytes. */
Datum
millrace_model_copies(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	MrCopyInfo *copies;
	int n = mr_copy_list(&copies);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		Datum values[4] = {
			ObjectIdGetDatum(copies[i].key.relation), Int32GetDatum(copies[i].key.version),
			BoolGetDatum(copies[i].state == MR_COPY_READY), Int64GetDatum(copies[i].size)};
		bool nulls[4] = {false};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Lets go of the copies of a model, of one version or (0) of all. */
Datum
millrace_forget_copies(PG_FUNCTION_ARGS)
{
	mr_copy_forget(PG_GETARG_OID(0), PG_GETARG_INT32(1));
	PG_RETURN_VOID();
}
