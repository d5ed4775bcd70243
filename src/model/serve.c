/*
 * serve.c
 *	  Answers of a model: similar items, and recommendations for a user or a basket.
 *
 * The score of an item j for a profile is the sum over its items i, in ascending order, of the weight of i and the similarity of
 * i to j, where i is among the neighbours of j.  Profiles have few items and each is a source of some hundreds of targets, so that
 * a call looks up a few rows by their keys.  Nothing is written, and any snapshot will do: answers work on a standby.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "core/compat.h"
#include "core/statement.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/best.h"
#include "model/score.h"
#include "model/store.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

/* Columns of the tables; all have the version first. */
#define ITEM_NUMBER 2
#define ITEM_ID 3
#define ITEM_PLACE 5
#define USER_ID 2
#define LIST_ITEM 2
#define LIST_NUMBERS 4
#define LIST_VALUES 5

PG_FUNCTION_INFO_V1(millrace_similar);
PG_FUNCTION_INFO_V1(millrace_recommend);
PG_FUNCTION_INFO_V1(millrace_recommend_basket);

/* A model while it answers. */
typedef struct Model
{
	int32 id;
	int32 version;
	Relation items;
	Relation by_number; /* index of items, with a scan for all look-ups of an answer */
	IndexScanDesc scan;
	TupleTableSlot *slot;
	FmgrInfo output; /* of the type of items */
	ReturnSetInfo *result;
	int32 rank; /* of the last row */
} Model;

/* What is known of an item that may be recommended. */
typedef struct Candidate
{
	uint32 number;
	bool is_given; /* in the profile, or an answer already */
	double score;
	double largest; /* contribution to it */
	uint32 source; /* of that */
	char status;
} Candidate;

#define SH_PREFIX candidates
#define SH_ELEMENT_TYPE Candidate
#define SH_KEY_TYPE uint32
#define SH_KEY number
#define SH_HASH_KEY(table, key) murmurhash32(key)
#define SH_EQUAL(table, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* One item of a profile. */
typedef struct Had
{
	uint32 number;
	double weight;
} Had;

typedef struct Profile
{
	Had *items;
	int count;
	int room;
} Profile;

/* A column's value must be this. */
static void
equals(ScanKey key, Relation relation, AttrNumber attnum, Datum value)
{
	Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(relation), attnum - 1);
	TypeCacheEntry *type = lookup_type_cache(attribute->atttypid, TYPECACHE_EQ_OPR_FINFO);

	ScanKeyEntryInitializeWithInfo(key, 0, attnum, BTEqualStrategyNumber, InvalidOid,
								   attribute->attcollation, &type->eq_opr_finfo, value);
}

/* Rows by an index of which the first columns are given; in its order. */
static SysScanDesc
scan(Relation relation, Oid index, int nkeys, AttrNumber a, Datum first, AttrNumber b, Datum second)
{
	ScanKeyData keys[2];

	equals(&keys[0], relation, a, first);
	if (nkeys > 1)
		equals(&keys[1], relation, b, second);
	return systable_beginscan(relation, index, true, GetActiveSnapshot(), nkeys, keys);
}

/* A table of configuration, its only row with such values, as a copy; NULL: there is none. */
static HeapTuple
find_row(const char *table, const char *index, TupleDesc *desc, int nkeys, AttrNumber a,
		 Datum first, AttrNumber b, Datum second)
{
	Oid schema = get_namespace_oid("millrace", false);
	Relation relation = table_open(get_relname_relid(table, schema), AccessShareLock);
	SysScanDesc rows = scan(relation, get_relname_relid(index, schema), nkeys, a, first, b, second);
	HeapTuple row = systable_getnext(rows);

	if (HeapTupleIsValid(row))
		row = heap_copytuple(row);
	systable_endscan(rows);
	*desc = CreateTupleDescCopy(RelationGetDescr(relation));
	table_close(relation, AccessShareLock);
	return row;
}

/* A value that is never NULL. */
static Datum
column(HeapTuple row, AttrNumber attnum, TupleDesc desc)
{
	bool isnull;
	Datum value = heap_getattr(row, attnum, desc, &isnull);

	if (isnull)
		elog(ERROR, "column %d is null", attnum);
	return value;
}

/* Opens the version of a model that is in production, for a user who may read the model. */
static void
model_open(Model *model, FunctionCallInfo fcinfo, int n_argument)
{
	Oid relid;
	AclResult allowed;
	TupleDesc desc;
	HeapTuple row;
	Oid output;
	bool is_varlena;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(n_argument))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("%s must not be NULL", PG_ARGISNULL(0) ? "model" : "n")));
	if (PG_GETARG_INT32(n_argument) < 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("n must not be negative, but is %d", PG_GETARG_INT32(n_argument))));
	relid = PG_GETARG_OID(0);
	row = find_row("model", "model_relation_key", &desc, 1, 2, ObjectIdGetDatum(relid), 0, 0);
	if (row == NULL)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("%s is not a model", DatumGetCString(DirectFunctionCall1(
														regclassout, ObjectIdGetDatum(relid))))));
	allowed = pg_class_aclcheck(relid, GetUserId(), ACL_SELECT);
	if (allowed != ACLCHECK_OK)
		aclcheck_error(allowed, OBJECT_VIEW, get_rel_name(relid));
	model->id = DatumGetInt32(column(row, 1, desc));
	row = find_row("model_alias", "model_alias_pkey", &desc, 2, 1, Int32GetDatum(model->id), 2,
				   CStringGetTextDatum("production"));
	if (row == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("model %s has no version yet", mr_relation_name(relid)),
						errhint("Call millrace.train().")));
	model->version = DatumGetInt32(column(row, 3, desc));
	model->items = table_open(mr_store_table(model->id, "item"), AccessShareLock);
	model->by_number = index_open(mr_store_table(model->id, "item_pkey"), AccessShareLock);
	model->slot = table_slot_create(model->items, NULL);
	model->scan = mr_index_beginscan(model->items, model->by_number, GetActiveSnapshot(), 2);
	getTypeOutputInfo(TupleDescAttr(RelationGetDescr(model->items), ITEM_ID - 1)->atttypid, &output,
					  &is_varlena);
	fmgr_info(output, &model->output);
	InitMaterializedSRF(fcinfo, 0);
	model->result = (ReturnSetInfo *) fcinfo->resultinfo;
	model->rank = 0;
}

static void
model_close(Model *model)
{
	index_endscan(model->scan);
	ExecDropSingleTupleTableSlot(model->slot);
	index_close(model->by_number, AccessShareLock);
	table_close(model->items, AccessShareLock);
}

/* An id from its text; one that is too long for its column is not known, and no error. */
static Datum
read_id(Relation relation, AttrNumber attnum, char *text)
{
	Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(relation), attnum - 1);
	Oid input;
	Oid parameter;

	getTypeInputInfo(attribute->atttypid, &input, &parameter);
	return OidInputFunctionCall(input, text, parameter, -1);
}

/* The number of an item; false when the version does not know it. */
static bool
find_item(Model *model, char *text, uint32 *number)
{
	SysScanDesc rows = scan(model->items, mr_store_table(model->id, "item_item"), 2, 1,
							Int32GetDatum(model->version), ITEM_ID,
							read_id(model->items, ITEM_ID, text));
	HeapTuple row = systable_getnext(rows);

	if (HeapTupleIsValid(row))
		*number = DatumGetInt32(column(row, ITEM_NUMBER, RelationGetDescr(model->items)));
	systable_endscan(rows);
	return HeapTupleIsValid(row);
}

/* The id of an item as text. */
static Datum
id_text(Model *model, Datum id)
{
	return CStringGetTextDatum(OutputFunctionCall(&model->output, id));
}

/* The same of an item's number.  Its key's columns have the same numbers in table and index. */
static Datum
number_text(Model *model, uint32 number)
{
	ScanKeyData keys[2];
	bool isnull;
	Datum text;

	equals(&keys[0], model->items, 1, Int32GetDatum(model->version));
	equals(&keys[1], model->items, ITEM_NUMBER, Int32GetDatum((int32) number));
	index_rescan(model->scan, keys, 2, NULL, 0);
	if (!index_getnext_slot(model->scan, ForwardScanDirection, model->slot))
		elog(ERROR, "model %d, version %d has no item %u", model->id, model->version, number);
	text = id_text(model, slot_getattr(model->slot, ITEM_ID, &isnull));
	ExecClearTuple(model->slot);
	return text;
}

/* One row of the answer; score and reason may be left out. */
static void
answer(Model *model, Datum item, Datum score, bool has_score, Datum reason, bool has_reason)
{
	Datum values[5] = {Int32GetDatum(++model->rank), item, score, reason,
					   Int32GetDatum(model->version)};
	bool nulls[5] = {false, false, !has_score, !has_reason, false};

	tuplestore_putvalues(model->result->setResult, model->result->setDesc, values, nulls);
}

/* A block of a list: how many entries, and where they are. */
static int
read_block(HeapTuple row, TupleDesc desc, const int32 **numbers, ArrayType **values)
{
	ArrayType *array = DatumGetArrayTypeP(column(row, LIST_NUMBERS, desc));
	bool isnull;
	Datum other = heap_getattr(row, LIST_VALUES, desc, &isnull);
	int n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));

	*numbers = (const int32 *) ARR_DATA_PTR(array);
	*values = isnull ? NULL : DatumGetArrayTypeP(other);
	if (*values != NULL && ArrayGetNItems(ARR_NDIM(*values), ARR_DIMS(*values)) != n)
		elog(ERROR, "the lists of a block differ in length");
	return n;
}

/* The neighbours of an item, best first; an item that is not known has none. */
Datum
millrace_similar(PG_FUNCTION_ARGS)
{
	Model model;
	uint32 number;
	int32 n;

	model_open(&model, fcinfo, 2);
	n = PG_GETARG_INT32(2);
	if (n > 0 && !PG_ARGISNULL(1) &&
		find_item(&model, text_to_cstring(PG_GETARG_TEXT_PP(1)), &number))
	{
		Relation targets = table_open(mr_store_table(model.id, "target"), AccessShareLock);
		SysScanDesc rows = scan(targets, mr_store_table(model.id, "target_pkey"), 2, 1,
								Int32GetDatum(model.version), LIST_ITEM,
								Int32GetDatum((int32) number));
		HeapTuple row;

		while (model.rank < n && HeapTupleIsValid(row = systable_getnext(rows)))
		{
			const int32 *numbers;
			ArrayType *values;
			int length = read_block(row, RelationGetDescr(targets), &numbers, &values);

			for (int i = 0; i < length && model.rank < n; i++)
				answer(&model, number_text(&model, numbers[i]),
					   Float4GetDatum(((float *) ARR_DATA_PTR(values))[i]), true, (Datum) 0, false);
		}
		systable_endscan(rows);
		table_close(targets, AccessShareLock);
	}
	model_close(&model);
	return (Datum) 0;
}

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
	Relation users = table_open(mr_store_table(model->id, "user"), AccessShareLock);
	SysScanDesc rows = scan(users, mr_store_table(model->id, "user_pkey"), 2, 1,
							Int32GetDatum(model->version), USER_ID, read_id(users, USER_ID, user));
	HeapTuple row;

	while (HeapTupleIsValid(row = systable_getnext(rows)))
	{
		const int32 *numbers;
		ArrayType *values;
		int length = read_block(row, RelationGetDescr(users), &numbers, &values);

		for (int i = 0; i < length; i++)
			profile_add(profile, numbers[i],
						values == NULL ? 1 : ((double *) ARR_DATA_PTR(values))[i]);
	}
	systable_endscan(rows);
	table_close(users, AccessShareLock);
}

/* Adds up what the items of a profile say of others. */
static void
add_up(Model *model, candidates_hash *candidates, const Profile *profile)
{
	Relation sources = table_open(mr_store_table(model->id, "source"), AccessShareLock);
	Oid index = mr_store_table(model->id, "source_pkey");

	for (int p = 0; p < profile->count; p++)
	{
		const Had *had = &profile->items[p];
		SysScanDesc rows = scan(sources, index, 2, 1, Int32GetDatum(model->version), LIST_ITEM,
								Int32GetDatum((int32) had->number));
		HeapTuple row;

		CHECK_FOR_INTERRUPTS();
		while (HeapTupleIsValid(row = systable_getnext(rows)))
		{
			const int32 *numbers;
			ArrayType *values;
			int length = read_block(row, RelationGetDescr(sources), &numbers, &values);
			const float *scores = (const float *) ARR_DATA_PTR(values);

			for (int i = 0; i < length; i++)
			{
				double part = mr_score_part(had->weight, scores[i]);
				bool found;
				Candidate *candidate = candidates_insert(candidates, numbers[i], &found);

				if (!found)
				{
					candidate->is_given = false;
					candidate->score = 0;
					candidate->largest = 0;
				}
				candidate->score += part;
				if (part > candidate->largest)
				{
					candidate->largest = part;
					candidate->source = had->number;
				}
			}
		}
		systable_endscan(rows);
	}
	table_close(sources, AccessShareLock);
}

/* Notes that an item is not to be recommended (again). */
static void
mark_given(candidates_hash *candidates, uint32 number)
{
	bool found;
	Candidate *candidate = candidates_insert(candidates, number, &found);

	if (!found)
	{
		candidate->score = 0;
		candidate->largest = 0;
	}
	candidate->is_given = true;
}

/* The n best candidates; true when there was no other one. */
static void
answer_personal(Model *model, candidates_hash *candidates, uint32 n, bool explain)
{
	MrNeighbour *best;
	uint32 length = 0;
	uint32 count;
	candidates_iterator iterator;
	Candidate *candidate;

	n = Min(n, candidates->members);
	if (n == 0)
		return;
	best = palloc(n * sizeof(MrNeighbour));
	candidates_start_iterate(candidates, &iterator);
	while ((candidate = candidates_iterate(candidates, &iterator)) != NULL)
	{
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
	for (uint32 i = 0; i < count; i++)
	{
		candidate = candidates_lookup(candidates, best[i].number);
		candidate->is_given = true;
		answer(model, number_text(model, best[i].number), Float8GetDatum(best[i].score), true,
			   explain ? number_text(model, candidate->source) : (Datum) 0, explain);
	}
}

/* Goes on with what most users have. */
static void
answer_popular(Model *model, candidates_hash *candidates, int32 n)
{
	Datum reason = CStringGetTextDatum("popular");
	SysScanDesc rows;
	HeapTuple row;

	if (model->rank >= n)
		return;
	rows = scan(model->items, mr_store_table(model->id, "item_place"), 1, 1,
				Int32GetDatum(model->version), 0, 0);
	while (model->rank < n && HeapTupleIsValid(row = systable_getnext(rows)))
	{
		Candidate *candidate = candidates_lookup(
			candidates, DatumGetInt32(column(row, ITEM_NUMBER, RelationGetDescr(model->items))));

		if (candidate == NULL || !candidate->is_given)
			answer(model, id_text(model, column(row, ITEM_ID, RelationGetDescr(model->items))),
				   (Datum) 0, false, reason, true);
	}
	systable_endscan(rows);
}

/* The answer to a profile; arguments from n on are the same for all that have one. */
static void
recommend(Model *model, const Profile *profile, FunctionCallInfo fcinfo)
{
	candidates_hash *candidates = candidates_create(CurrentMemoryContext, 1024, NULL);
	bool exclude_seen = PG_ARGISNULL(3) || PG_GETARG_BOOL(3);
	bool explain = !PG_ARGISNULL(4) && PG_GETARG_BOOL(4);
	bool fallback = PG_ARGISNULL(5) || PG_GETARG_BOOL(5);
	int32 n = PG_GETARG_INT32(2);

	if (n > 0)
		add_up(model, candidates, profile);
	if (exclude_seen)
		for (int i = 0; i < profile->count; i++)
			mark_given(candidates, profile->items[i].number);
	answer_personal(model, candidates, (uint32) n, explain);
	if (fallback)
		answer_popular(model, candidates, n);
	candidates_destroy(candidates);
}

/* For a user: who asks must be allowed to see profiles. */
Datum
millrace_recommend(PG_FUNCTION_ARGS)
{
	Profile profile = {0};
	Model model;

	model_open(&model, fcinfo, 2);
	if (pg_class_aclcheck(mr_store_table(model.id, "user"), GetUserId(), ACL_SELECT) != ACLCHECK_OK)
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

static int
compare_had(const void *a, const void *b)
{
	uint32 x = ((const Had *) a)->number;
	uint32 y = ((const Had *) b)->number;

	return x < y ? -1 : x > y;
}

/* For the items of a basket, each once; those that are not known say nothing. */
Datum
millrace_recommend_basket(PG_FUNCTION_ARGS)
{
	Profile profile = {0};
	Model model;

	model_open(&model, fcinfo, 2);
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
