/*
 * ids.c
 *	  The ids of users and items.
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "core/compat.h"
#include "miscadmin.h"
#include "model/ids.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/sortsupport.h"
#include "utils/typcache.h"

typedef struct Id
{
	Datum value;
	uint32 number;
	uint32 hash;
	char status;
} Id;

static uint32 hash_id(MrIds *ids, Datum value);
static bool same_id(MrIds *ids, Datum a, Datum b);

#define SH_PREFIX known
#define SH_ELEMENT_TYPE Id
#define SH_KEY_TYPE Datum
#define SH_KEY value
#define SH_HASH_KEY(table, key) hash_id((table)->private_data, key)
#define SH_EQUAL(table, a, b) same_id((table)->private_data, a, b)
#define SH_STORE_HASH
#define SH_GET_HASH(table, id) (id)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

struct MrIds
{
	TypeCacheEntry *type;
	Oid collation;
	const char *what;
	known_hash *known;
	MemoryContext context;
	uint32 *order; /* arrival by place, when sorted */
	uint32 *places; /* and the other way round */
	Datum *values; /* by arrival */
	uint32 count;
	uint32 room;
	Datum last; /* rows of one id often stand together */
	uint32 last_number;
};

static uint32
hash_id(MrIds *ids, Datum value)
{
	return DatumGetUInt32(FunctionCall1Coll(&ids->type->hash_proc_finfo, ids->collation, value));
}

static bool
same_id(MrIds *ids, Datum a, Datum b)
{
	return DatumGetBool(FunctionCall2Coll(&ids->type->eq_opr_finfo, ids->collation, a, b));
}

Oid
mr_ids_collation(Oid type)
{
	return OidIsValid(get_typcollation(type)) ? C_COLLATION_OID : InvalidOid;
}

MrIds *
mr_ids_create(Oid type, const char *what)
{
	MrIds *ids = palloc0(sizeof(MrIds));

	ids->type = lookup_type_cache(type, TYPECACHE_EQ_OPR_FINFO | TYPECACHE_HASH_PROC_FINFO |
											TYPECACHE_LT_OPR);
	if (!OidIsValid(ids->type->eq_opr_finfo.fn_oid) ||
		!OidIsValid(ids->type->hash_proc_finfo.fn_oid) || !OidIsValid(ids->type->lt_opr))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("type %s of %s cannot be hashed and sorted", format_type_be(type), what)));
	ids->collation = mr_ids_collation(type);
	ids->what = what;
	ids->context = CurrentMemoryContext;
	ids->known = known_create(CurrentMemoryContext, 1024, ids);
	ids->room = 1024;
	ids->values = palloc(sizeof(Datum) * ids->room);
	return ids;
}

uint32
mr_ids_number(MrIds *ids, Datum value)
{
	bool found;
	Id *id;

	if (ids->count > 0 && same_id(ids, ids->last, value))
		return ids->last_number;
	id = known_insert(ids->known, value, &found);
	if (!found)
	{
		MemoryContext old = MemoryContextSwitchTo(ids->context);

		if (ids->count == PG_INT32_MAX)
			ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
							errmsg("the query has more than %d %ss", PG_INT32_MAX, ids->what)));
		if (ids->count == ids->room)
		{
			ids->room *= 2;
			ids->values = repalloc_huge(ids->values, sizeof(Datum) * ids->room);
		}
		id->value = ids->type->typlen == -1
						? PointerGetDatum(PG_DETOAST_DATUM_COPY(value))
						: datumCopy(value, ids->type->typbyval, ids->type->typlen);
		id->number = ids->count;
		ids->values[ids->count++] = id->value;
		MemoryContextSwitchTo(old);
	}
	ids->last = id->value;
	ids->last_number = id->number;
	return id->number;
}

uint32
mr_ids_count(const MrIds *ids)
{
	return ids->count;
}

Oid
mr_ids_type(const MrIds *ids)
{
	return ids->type->type_id;
}

typedef struct Sorting
{
	const MrIds *ids;
	SortSupportData support;
} Sorting;

static int
compare_ids(const void *a, const void *b, void *arg)
{
	Sorting *sorting = arg;

	CHECK_FOR_INTERRUPTS();
	return ApplySortComparator(sorting->ids->values[*(const uint32 *) a], false,
							   sorting->ids->values[*(const uint32 *) b], false, &sorting->support);
}

uint32 *
mr_ids_sort(MrIds *ids)
{
	uint32 *places = MemoryContextAllocHuge(ids->context, sizeof(uint32) * Max(ids->count, 1));
	Sorting sorting = {.ids = ids};

	sorting.support.ssup_cxt = ids->context;
	sorting.support.ssup_collation = ids->collation;
	PrepareSortSupportFromOrderingOp(ids->type->lt_opr, &sorting.support);
	ids->order = MemoryContextAllocHuge(ids->context, sizeof(uint32) * Max(ids->count, 1));
	for (uint32 i = 0; i < ids->count; i++)
		ids->order[i] = i;
	qsort_arg(ids->order, ids->count, sizeof(uint32), compare_ids, &sorting);
	for (uint32 i = 0; i < ids->count; i++)
		places[ids->order[i]] = i;
	ids->places = places;
	return places;
}

bool
mr_ids_place(MrIds *ids, Datum value, uint32 *place)
{
	Id *id = known_lookup(ids->known, value);

	if (id != NULL)
		*place = ids->places[id->number];
	return id != NULL;
}

Datum
mr_ids_value(const MrIds *ids, uint32 place)
{
	return ids->values[ids->order[place]];
}

char *
mr_ids_text(const MrIds *ids, uint32 place)
{
	Oid output;
	bool is_varlena;

	getTypeOutputInfo(ids->type->type_id, &output, &is_varlena);
	return OidOutputFunctionCall(output, mr_ids_value(ids, place));
}
