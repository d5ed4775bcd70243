/*
 * ids.c
 *	  The ids of users and items.
 */
#include "postgres.h"

#include "access/nbtree.h"
#include "catalog/pg_collation.h"
#include "core/compat.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "model/ids.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/sortsupport.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(millrace_can_hash);

/* Two of them fit into a row of an index. */
#define LONGEST_ID 1300

/* How much of one that is too long an error shows. */
#define SHOWN_CHARACTERS 40

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
	known_hash *known; /* until they are sorted */
	MemoryContext context;
	MemoryContext scratch; /* NULL: equal ids are the same */
	Datum *values; /* by arrival; by place, when sorted */
	SortSupportData order;
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

bool
mr_ids_vary(Oid type)
{
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_BTREE_OPFAMILY);
	Oid same = InvalidOid;

	if (OidIsValid(entry->btree_opf))
		same = get_opfamily_proc(entry->btree_opf, entry->btree_opintype, entry->btree_opintype,
								 BTEQUALIMAGE_PROC);
	return !OidIsValid(same) ||
		   !DatumGetBool(OidFunctionCall1Coll(same, mr_ids_collation(type),
											  ObjectIdGetDatum(entry->btree_opintype)));
}

/* can_hash(type regtype) */
Datum
millrace_can_hash(PG_FUNCTION_ARGS)
{
	TypeCacheEntry *type = lookup_type_cache(PG_GETARG_OID(0), TYPECACHE_HASH_EXTENDED_PROC);

	PG_RETURN_BOOL(OidIsValid(type->hash_extended_proc));
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
	if (mr_ids_vary(type))
		ids->scratch = AllocSetContextCreate(CurrentMemoryContext, "millrace id",
											 ALLOCSET_SMALL_SIZES);
	ids->known = known_create(CurrentMemoryContext, 1024, ids);
	ids->room = 1024;
	ids->values = palloc(sizeof(Datum) * ids->room);
	return ids;
}

static char *
id_text(const MrIds *ids, Datum value)
{
	Oid output;
	bool is_varlena;

	getTypeOutputInfo(ids->type->type_id, &output, &is_varlena);
	return OidOutputFunctionCall(output, value);
}

/* A copy of an id that stays. */
static Datum
copy_id(const MrIds *ids, Datum value)
{
	MemoryContext old = MemoryContextSwitchTo(ids->context);
	Datum copy = ids->type->typlen == -1 ? PointerGetDatum(PG_DETOAST_DATUM_COPY(value))
										 : datumCopy(value, ids->type->typbyval, ids->type->typlen);

	MemoryContextSwitchTo(old);
	return copy;
}

/* The number of an id by arrival, a new one for a new id. */
static uint32
find_number(MrIds *ids, Datum value)
{
	bool found;
	Id *id;

	if (ids->count > 0 && same_id(ids, ids->last, value))
		return ids->last_number;
	id = known_insert(ids->known, value, &found);
	if (!found)
	{
		if (ids->count == PG_INT32_MAX)
			ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
							errmsg("the query has more than %d %ss", PG_INT32_MAX, ids->what)));
		if (ids->count == ids->room)
		{
			ids->room *= 2;
			ids->values = repalloc_huge(ids->values, sizeof(Datum) * ids->room);
		}
		id->value = copy_id(ids, value);
		id->number = ids->count;
		ids->values[ids->count++] = id->value;
	}
	ids->last = id->value;
	ids->last_number = id->number;
	return id->number;
}

/* Of ids that are equal but differ, the one stays whose bytes come first. */
static void
keep_first(MrIds *ids, uint32 number, Datum value)
{
	Datum kept = ids->values[number];
	int16 length = ids->type->typlen;
	Size size;
	Size other;
	int order;

	if (ids->type->typbyval)
	{
		if (value < kept)
			ids->values[number] = value;
		return;
	}
	if (length == -1)
		value = PointerGetDatum(PG_DETOAST_DATUM(value));
	size = datumGetSize(value, false, length);
	other = datumGetSize(kept, false, length);
	order = memcmp(DatumGetPointer(value), DatumGetPointer(kept), Min(size, other));
	if (order < 0 || (order == 0 && size < other))
		ids->values[number] = copy_id(ids, value);
}

uint32
mr_ids_number(MrIds *ids, Datum value)
{
	MemoryContext old;
	uint32 number;

	if (ids->scratch == NULL)
		return find_number(ids, value);
	old = MemoryContextSwitchTo(ids->scratch);
	number = find_number(ids, value);
	keep_first(ids, number, value);
	MemoryContextSwitchTo(old);
	MemoryContextReset(ids->scratch);
	return number;
}

void
mr_ids_check(const MrIds *ids)
{
	if (ids->type->typlen != -1)
		return;
	for (uint32 i = 0; i < ids->count; i++)
	{
		Size size = VARSIZE_ANY_EXHDR(DatumGetPointer(ids->values[i]));
		char *shown;

		if (size <= LONGEST_ID)
			continue;
		shown = id_text(ids, ids->values[i]);
		shown[pg_mbcliplen(shown, (int) strlen(shown), SHOWN_CHARACTERS)] = '\0';
		ereport(
			ERROR,
			(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
			 errmsg("%s \"%s…\" is longer than %d bytes", ids->what, shown, LONGEST_ID),
			 errhint("Leave such rows out in the query of the model, or give an md5() of them.")));
	}
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

static int
compare_ids(const void *a, const void *b, void *arg)
{
	MrIds *ids = arg;

	CHECK_FOR_INTERRUPTS();
	return ApplySortComparator(ids->values[*(const uint32 *) a], false,
							   ids->values[*(const uint32 *) b], false, &ids->order);
}

uint32 *
mr_ids_sort(MrIds *ids)
{
	Size room = Max(ids->count, 1);
	uint32 *places = MemoryContextAllocHuge(ids->context, sizeof(uint32) * room);
	uint32 *arrivals = MemoryContextAllocHuge(ids->context, sizeof(uint32) * room);
	Datum *values = MemoryContextAllocHuge(ids->context, sizeof(Datum) * room);

	ids->order.ssup_cxt = ids->context;
	ids->order.ssup_collation = ids->collation;
	PrepareSortSupportFromOrderingOp(ids->type->lt_opr, &ids->order);
	for (uint32 i = 0; i < ids->count; i++)
		arrivals[i] = i;
	qsort_arg(arrivals, ids->count, sizeof(uint32), compare_ids, ids);
	for (uint32 i = 0; i < ids->count; i++)
	{
		places[arrivals[i]] = i;
		values[i] = ids->values[arrivals[i]];
	}
	pfree(arrivals);
	pfree(ids->values);
	ids->values = values;
	known_destroy(ids->known);
	ids->known = NULL;
	return places;
}

uint32 *
mr_ids_places(const MrIds *ids, const MrIds *others)
{
	uint32 *places = mr_zeros(ids->count, sizeof(uint32));
	SortSupport order = (SortSupport) &ids->order;
	uint32 place = 0;

	for (uint32 i = 0; i < ids->count; i++)
	{
		int compared = -1;

		CHECK_FOR_INTERRUPTS();
		while (place < others->count &&
			   (compared = ApplySortComparator(others->values[place], false, ids->values[i], false,
											   order)) < 0)
			place++;
		places[i] = compared == 0 ? place : MR_UNKNOWN;
	}
	return places;
}

Datum
mr_ids_value(const MrIds *ids, uint32 place)
{
	return ids->values[place];
}

char *
mr_ids_text(const MrIds *ids, uint32 place)
{
	return id_text(ids, mr_ids_value(ids, place));
}
