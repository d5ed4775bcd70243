/*
 * online_serve.c
 *	  Answers of online models, from what is counted now.
 *
 * Similarities are computed when they are asked for, over all items that have a user in common, by the kernel's own expression,
 * and rounded to real as trained ones are: so answers are those of a model trained at the same moment.  Numbers of items say
 * nothing about the order of their ids: profiles are sorted by id before they are summed up, and ties are broken by looking
 * ids up, of those alone that may be among the answers.
 */
#include "postgres.h"

#include <math.h>

#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "core/compat.h"
#include "core/statement.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/ids.h"
#include "model/online.h"
#include "model/store.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/sortsupport.h"
#include "utils/typcache.h"

/* What a session keeps of a model; it cannot change while the model is there. */
typedef struct Known
{
	Oid relation; /* key */
	bool valid;
	bool is_online;
	int32 id;
	int max_history; /* 0: all */
	MrMeasure measure;
	double shrink;
} Known;

static HTAB *models = NULL;

/* A table that is looked up in by one column. */
typedef struct Lookup
{
	Relation table;
	Relation index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
} Lookup;

/* An item that may be an answer. */
typedef struct Candidate
{
	uint32 number;
	double score;
	Datum id; /* when it has been looked up */
} Candidate;

/* A model while it answers. */
typedef struct Answering
{
	const Known *model;
	Oid type; /* of items */
	SortSupportData by_id;
	FmgrInfo output;
	Lookup by_number;
	Lookup by_item;
	Lookup pairs;
	uint32 nitems; /* more than any number of an item that has users */
	int32 *users; /* by number: of how many users */
	double *sizes; /* by number: as the measure takes them */
	int32 *
		common; /* by number: with the item whose list was read, if that was the last one to touch it */
	uint32 *touched_by;
	uint32 nlists; /* read so far */
	uint32 *touched; /* numbers that are in that list */
	uint32 ntouched;
	ReturnSetInfo *result;
	int32 rank; /* of the last row */
	int32 n;
} Answering;

/* ---- looking up ------------------------------------------------------------------------------------------- */

static void
lookup_open(Lookup *lookup, Oid table, Oid index)
{
	lookup->table = table_open(table, AccessShareLock);
	lookup->index = index_open(index, AccessShareLock);
	lookup->slot = table_slot_create(lookup->table, NULL);
	lookup->scan = mr_index_beginscan(lookup->table, lookup->index, GetActiveSnapshot(), 1);
}

static void
lookup_close(Lookup *lookup)
{
	index_endscan(lookup->scan);
	ExecDropSingleTupleTableSlot(lookup->slot);
	index_close(lookup->index, AccessShareLock);
	table_close(lookup->table, AccessShareLock);
}

/* Begins to read the rows with a value. */
static void
lookup_start(Lookup *lookup, Datum value)
{
	Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(lookup->index), 0);
	TypeCacheEntry *type = lookup_type_cache(attribute->atttypid, TYPECACHE_EQ_OPR_FINFO);
	ScanKeyData key;

	ScanKeyEntryInitializeWithInfo(&key, 0, 1, BTEqualStrategyNumber, InvalidOid,
								   attribute->attcollation, &type->eq_opr_finfo, value);
	index_rescan(lookup->scan, &key, 1, NULL, 0);
}

/* The next of them: a column that is never NULL; it lives until the one after it. */
static bool
lookup_next(Lookup *lookup, AttrNumber attnum, Datum *value)
{
	bool isnull;

	if (!index_getnext_slot(lookup->scan, ForwardScanDirection, lookup->slot))
		return false;
	*value = slot_getattr(lookup->slot, attnum, &isnull);
	return true;
}

/* An id from its text; one that is too long for its column is not known, and no error. */
static Datum
read_id(const Lookup *lookup, char *text)
{
	Oid input;
	Oid parameter;

	getTypeInputInfo(TupleDescAttr(RelationGetDescr(lookup->index), 0)->atttypid, &input,
					 &parameter);
	return OidInputFunctionCall(input, text, parameter, -1);
}

/* The id of an item. */
static Datum
find_id(void *context, uint32 number)
{
	Answering *answering = context;
	Lookup *lookup = &answering->by_number;
	Datum id;

	lookup_start(lookup, Int32GetDatum((int32) number));
	if (!lookup_next(lookup, MR_ONLINE_VALUE, &id))
		elog(ERROR, "model %d has no item %u", answering->model->id, number);
	return datumCopy(id, get_typbyval(answering->type), get_typlen(answering->type));
}

/* The number of an item that somebody has; 0: there is no such item. */
static uint32
find_number(Answering *answering, char *text)
{
	Datum value;
	uint32 number;

	lookup_start(&answering->by_item, read_id(&answering->by_item, text));
	if (!lookup_next(&answering->by_item, MR_ONLINE_KEY, &value))
		return 0;
	number = (uint32) DatumGetInt32(value);
	return number < answering->nitems && answering->users[number] > 0 ? number : 0;
}

/* ---- models ----------------------------------------------------------------------------------------------- */

/* The relation may be another model by now. */
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

/* A member of the parameters, which is there. */
static char *
parameter(Datum params, const char *name)
{
	return TextDatumGetCString(
		DirectFunctionCall2(json_object_field_text, params, CStringGetTextDatum(name)));
}

/* Reads what is declared of a model; false when it is none. */
static bool
learn(Known *known)
{
	Oid schema = get_namespace_oid("millrace", false);
	Oid table = get_relname_relid("model", schema);
	Lookup models_by_relation;
	Datum value;
	bool found;
	bool isnull;

	lookup_open(&models_by_relation, table, get_relname_relid("model_relation_key", schema));
	lookup_start(&models_by_relation, ObjectIdGetDatum(known->relation));
	found = lookup_next(&models_by_relation, get_attnum(table, "id"), &value);
	if (found)
	{
		known->id = DatumGetInt32(value);
		(void) slot_getattr(models_by_relation.slot, get_attnum(table, "target_id"), &isnull);
		known->is_online = !isnull;
	}
	if (found && known->is_online)
	{
		Datum params = slot_getattr(models_by_relation.slot, get_attnum(table, "params"), &isnull);
		char *measure = parameter(params, "similarity");

		known->measure = strcmp(measure, "dice") == 0      ? MR_MEASURE_DICE
						 : strcmp(measure, "jaccard") == 0 ? MR_MEASURE_JACCARD
														   : MR_MEASURE_COSINE;
		known->shrink = strtod(parameter(params, "shrink"), NULL);
		known->max_history = pg_strtoint32(parameter(params, "max_history"));
	}
	lookup_close(&models_by_relation);
	known->valid = found;
	return found;
}

/* The model of that name, when it is an online one. */
static const Known *
find_model(Oid relation)
{
	Known *known;
	bool found;

	if (models == NULL)
	{
		HASHCTL control = {.keysize = sizeof(Oid), .entrysize = sizeof(Known)};

		models = hash_create("millrace online models", 16, &control, HASH_ELEM | HASH_BLOBS);
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	}
	known = hash_search(models, &relation, HASH_ENTER, &found);
	if (!found)
		known->valid = false;
	if (!known->valid && !learn(known))
		return NULL;
	return known->is_online ? known : NULL;
}

/* How many users each item has: the list of the item that everybody has. */
static void
read_users(Answering *answering)
{
	uint32 room = 1024;
	Datum list;

	answering->users = palloc0(sizeof(int32) * room);
	lookup_start(&answering->pairs, Int32GetDatum(MR_EVERYBODY));
	while (lookup_next(&answering->pairs, MR_ONLINE_VALUE, &list))
	{
		MrListRow row;
		uint32 number;
		int32 n;

		mr_list_begin(&row, list);
		while (mr_list_next(&row, &number, &n))
		{
			if (number >= room)
			{
				uint32 more = Max(room * 2, number + 1);

				answering->users = repalloc_huge(answering->users, sizeof(int32) * more);
				memset(answering->users + room, 0, sizeof(int32) * (more - room));
				room = more;
			}
			answering->users[number] += n;
			answering->nitems = Max(answering->nitems, number + 1);
		}
	}
}

/* Opens a model for one who may read it; false when it is not an online one. */
static bool
answering_begin(Answering *answering, FunctionCallInfo fcinfo)
{
	const Known *model = PG_ARGISNULL(0) || PG_ARGISNULL(2) ? NULL : find_model(PG_GETARG_OID(0));
	AclResult allowed;
	Oid output;
	bool is_varlena;
	Size n;

	if (model == NULL || PG_GETARG_INT32(2) < 0)
		return false;
	allowed = pg_class_aclcheck(model->relation, GetUserId(), ACL_SELECT);
	if (allowed != ACLCHECK_OK)
		aclcheck_error(allowed, OBJECT_VIEW, get_rel_name(model->relation));
	memset(answering, 0, sizeof(Answering));
	answering->model = model;
	answering->n = PG_GETARG_INT32(2);
	lookup_open(&answering->by_number, mr_store_table(model->id, "item"),
				mr_store_table(model->id, "item_pkey"));
	lookup_open(&answering->by_item, mr_store_table(model->id, "item"),
				mr_store_table(model->id, "item_item"));
	lookup_open(&answering->pairs, mr_store_table(model->id, "pair"),
				mr_store_table(model->id, "pair_item"));
	answering->type =
		TupleDescAttr(RelationGetDescr(answering->by_number.table), MR_ONLINE_VALUE - 1)->atttypid;
	answering->by_id.ssup_cxt = CurrentMemoryContext;
	answering->by_id.ssup_collation = mr_ids_collation(answering->type);
	PrepareSortSupportFromOrderingOp(lookup_type_cache(answering->type, TYPECACHE_LT_OPR)->lt_opr,
									 &answering->by_id);
	getTypeOutputInfo(answering->type, &output, &is_varlena);
	fmgr_info(output, &answering->output);
	read_users(answering);
	n = answering->nitems + 1;
	answering->sizes = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(double) * n);
	for (uint32 i = 0; i < answering->nitems; i++)
		answering->sizes[i] = model->measure == MR_MEASURE_COSINE
								  ? sqrt((double) answering->users[i])
								  : (double) answering->users[i];
	answering->common = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(int32) * n);
	answering->touched_by = MemoryContextAllocExtended(CurrentMemoryContext, sizeof(uint32) * n,
													   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	answering->touched = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(uint32) * n);
	InitMaterializedSRF(fcinfo, 0);
	answering->result = (ReturnSetInfo *) fcinfo->resultinfo;
	return true;
}

static void
answering_end(Answering *answering)
{
	lookup_close(&answering->by_number);
	lookup_close(&answering->by_item);
	lookup_close(&answering->pairs);
}

/* ---- similar items ---------------------------------------------------------------------------------------- */

/* Reads the list of an item. */
static void
read_list(Answering *answering, uint32 item)
{
	uint32 this = ++answering->nlists;
	uint32 ntouched = 0;
	Datum list;

	CHECK_FOR_INTERRUPTS();
	lookup_start(&answering->pairs, Int32GetDatum((int32) item));
	while (lookup_next(&answering->pairs, MR_ONLINE_VALUE, &list))
	{
		MrListRow row;
		uint32 number;
		int32 n;

		mr_list_begin(&row, list);
		while (mr_list_next(&row, &number, &n))
		{
			/* One that has no users any more comes to 0. */
			if (number >= answering->nitems)
				continue;
			if (answering->touched_by[number] == this)
				answering->common[number] += n;
			else
			{
				answering->touched_by[number] = this;
				answering->common[number] = n;
				answering->touched[ntouched++] = number;
			}
		}
	}
	answering->ntouched = ntouched;
}

/* How similar another item is to the one whose list was read; 0: they have nothing in common. */
static inline double
similarity(const Answering *answering, uint32 item, uint32 other)
{
	if (answering->common[other] <= 0)
		return 0;
	return mr_knn_similarity(answering->model->measure, answering->common[other],
							 answering->sizes[item], answering->sizes[other],
							 answering->model->shrink);
}

static int
compare_candidates(const void *left, const void *right, void *answering)
{
	const Candidate *l = left;
	const Candidate *r = right;

	if (l->score != r->score)
		return l->score > r->score ? -1 : 1;
	return ApplySortComparator(l->id, false, r->id, false, &((Answering *) answering)->by_id);
}

/*
 * Puts the best n of the candidates first, in order, ties by their ids; returns how many these are.  The n-th best score, by any order
 * of those that are equal, says whose ids have to be looked up.
 */
static uint32
choose(Answering *answering, Candidate *candidates, uint32 count, uint32 n)
{
	MrNeighbour *best;
	uint32 length = 0;
	uint32 kept = 0;
	double last;

	n = Min(n, count);
	if (n == 0)
		return 0;
	best = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(MrNeighbour) * n);
	for (uint32 i = 0; i < count; i++)
	{
		MrNeighbour given = {.score = candidates[i].score, .number = candidates[i].number};

		mr_best_offer(best, &length, n, &given);
	}
	last = best[0].score;
	pfree(best);
	for (uint32 i = 0; i < count; i++)
	{
		if (candidates[i].score < last)
			continue;
		candidates[kept] = candidates[i];
		candidates[kept].id = find_id(answering, candidates[kept].number);
		kept++;
	}
	qsort_arg(candidates, kept, sizeof(Candidate), compare_candidates, answering);
	return n;
}

/* One row of the answer; score and reason may be left out. */
static void
answer(Answering *answering, Datum id, Datum score, bool has_score, Datum reason, bool has_reason)
{
	Datum values[5] = {Int32GetDatum(++answering->rank),
					   CStringGetTextDatum(OutputFunctionCall(&answering->output, id)), score,
					   reason, Int32GetDatum(1)};
	bool nulls[5] = {false, false, !has_score, !has_reason, false};

	tuplestore_putvalues(answering->result->setResult, answering->result->setDesc, values, nulls);
}

bool
mr_online_similar(FunctionCallInfo fcinfo)
{
	Answering answering;
	uint32 item;

	if (!answering_begin(&answering, fcinfo))
		return false;
	if (!PG_ARGISNULL(1) &&
		(item = find_number(&answering, text_to_cstring(PG_GETARG_TEXT_PP(1)))) != 0)
	{
		Candidate *candidates;
		uint32 count = 0;
		uint32 n;

		read_list(&answering, item);
		candidates = MemoryContextAllocHuge(CurrentMemoryContext,
											sizeof(Candidate) * (answering.ntouched + 1));
		for (uint32 i = 0; i < answering.ntouched; i++)
		{
			candidates[count].number = answering.touched[i];
			candidates[count].score = similarity(&answering, item, answering.touched[i]);
			count += candidates[count].score > 0;
		}
		n = choose(&answering, candidates, count, answering.n);
		for (uint32 i = 0; i < n; i++)
			answer(&answering, candidates[i].id, Float4GetDatum((float) candidates[i].score), true,
				   (Datum) 0, false);
	}
	answering_end(&answering);
	return true;
}

/* ---- recommendations -------------------------------------------------------------------------------------- */

/* What a user has: all of it, by number, and what counts of it. */
static void
read_profile(Answering *answering, char *user, uint32 **seen, int *nseen, uint32 **profile,
			 int *nprofile)
{
	Lookup users;
	Datum history;

	*nseen = *nprofile = 0;
	*seen = *profile = NULL;
	lookup_open(&users, mr_store_table(answering->model->id, "user"),
				mr_store_table(answering->model->id, "user_pkey"));
	lookup_start(&users, read_id(&users, user));
	if (lookup_next(&users, MR_ONLINE_VALUE, &history))
	{
		int nevents;
		MrEvent *events = mr_history_read(history, answering->model->max_history > 0, &nevents);

		*seen = palloc(sizeof(uint32) * (nevents + 1));
		*profile = palloc(sizeof(uint32) * (nevents + 1));
		*nseen = mr_history_cut(events, nevents, 0, NULL, NULL, NULL, *seen);
		*nprofile = mr_history_cut(events, nevents, answering->model->max_history, find_id,
								   &answering->by_id, answering, *profile);
	}
	lookup_close(&users);
}

/* Sums are made in the order of ids. */
static void
sort_profile(Answering *answering, uint32 *profile, int n)
{
	Candidate *items = palloc(sizeof(Candidate) * (n + 1));

	for (int i = 0; i < n; i++)
	{
		items[i].number = profile[i];
		items[i].score = 0;
		items[i].id = find_id(answering, profile[i]);
	}
	qsort_arg(items, n, sizeof(Candidate), compare_candidates, answering);
	for (int i = 0; i < n; i++)
		profile[i] = items[i].number;
	pfree(items);
}

/* Recommends what the items of a profile, in the order of their ids, say; then what is popular.  None of `seen` if it is given. */
static void
recommend(Answering *answering, uint32 *profile, int nprofile, const uint32 *seen, int nseen,
		  bool explain, bool fallback)
{
	Size size = answering->nitems + 1;
	double *scores = MemoryContextAllocExtended(CurrentMemoryContext, sizeof(double) * size,
												MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	float *largest = NULL;
	uint32 *sources = NULL;
	Candidate *candidates = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(Candidate) * size);
	bool *given = palloc0(size);
	uint32 count = 0;
	uint32 n;

	if (explain)
	{
		largest = MemoryContextAllocExtended(CurrentMemoryContext, sizeof(float) * size,
											 MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
		sources = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(uint32) * size);
	}
	for (int p = 0; p < nprofile; p++)
	{
		read_list(answering, profile[p]);
		for (uint32 t = 0; t < answering->ntouched; t++)
		{
			uint32 other = answering->touched[t];
			float part = (float) similarity(answering, profile[p], other);

			scores[other] += (double) part;
			if (explain && part > largest[other])
			{
				largest[other] = part;
				sources[other] = profile[p];
			}
		}
	}
	for (int i = 0; i < nseen; i++)
		if (seen[i] < answering->nitems)
			given[seen[i]] = true;
	for (uint32 i = 0; i < answering->nitems; i++)
	{
		if (scores[i] <= 0 || given[i])
			continue;
		candidates[count].number = i;
		candidates[count++].score = scores[i];
	}
	n = choose(answering, candidates, count, answering->n);
	for (uint32 i = 0; i < n; i++)
	{
		Datum reason = (Datum) 0;

		if (explain)
			reason = CStringGetTextDatum(OutputFunctionCall(
				&answering->output, find_id(answering, sources[candidates[i].number])));
		answer(answering, candidates[i].id, Float8GetDatum(candidates[i].score), true, reason,
			   explain);
		given[candidates[i].number] = true;
	}

	if (!fallback || (int32) n >= answering->n)
		return;
	count = 0;
	for (uint32 i = 0; i < answering->nitems; i++)
	{
		if (answering->users[i] <= 0 || given[i])
			continue;
		candidates[count].number = i;
		candidates[count++].score = answering->users[i];
	}
	n = choose(answering, candidates, count, answering->n - n);
	for (uint32 i = 0; i < n; i++)
		answer(answering, candidates[i].id, (Datum) 0, false, CStringGetTextDatum("popular"), true);
}

/* A filter is over a catalogue, and there is none. */
static void
refuse_filter(FunctionCallInfo fcinfo)
{
	if (!PG_ARGISNULL(3))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("online model %s has no filter", mr_relation_name(PG_GETARG_OID(0)))));
}

bool
mr_online_recommend(FunctionCallInfo fcinfo, bool exclude_seen, bool explain, bool fallback)
{
	Answering answering;
	uint32 *seen = NULL;
	uint32 *profile = NULL;
	int nseen = 0;
	int nprofile = 0;

	if (!answering_begin(&answering, fcinfo))
		return false;
	refuse_filter(fcinfo);
	if (pg_class_aclcheck(mr_store_table(answering.model->id, "user"), GetUserId(), ACL_SELECT) !=
		ACLCHECK_OK)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied for the profiles of model %s",
							   mr_relation_name(PG_GETARG_OID(0))),
						errhint("The model's owner may give it with millrace.grant_profiles().")));
	if (!PG_ARGISNULL(1))
		read_profile(&answering, text_to_cstring(PG_GETARG_TEXT_PP(1)), &seen, &nseen, &profile,
					 &nprofile);
	sort_profile(&answering, profile, nprofile);
	recommend(&answering, profile, nprofile, seen, exclude_seen ? nseen : 0, explain, fallback);
	answering_end(&answering);
	return true;
}

bool
mr_online_recommend_basket(FunctionCallInfo fcinfo, bool exclude_seen, bool explain, bool fallback)
{
	Answering answering;
	uint32 *profile = NULL;
	int nprofile = 0;
	int kept = 0;

	if (!answering_begin(&answering, fcinfo))
		return false;
	refuse_filter(fcinfo);
	if (!PG_ARGISNULL(1))
	{
		Datum *ids;
		bool *nulls;
		int nids;

		deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &ids, &nulls,
						  &nids);
		profile = palloc(sizeof(uint32) * (nids + 1));
		for (int i = 0; i < nids; i++)
		{
			uint32 number = nulls[i] ? 0 : find_number(&answering, TextDatumGetCString(ids[i]));

			if (number != 0)
				profile[nprofile++] = number;
		}
	}
	sort_profile(&answering, profile, nprofile);
	/* Each once. */
	for (int i = 0; i < nprofile; i++)
		if (kept == 0 || profile[kept - 1] != profile[i])
			profile[kept++] = profile[i];
	recommend(&answering, profile, kept, profile, exclude_seen ? kept : 0, explain, fallback);
	answering_end(&answering);
	return true;
}
