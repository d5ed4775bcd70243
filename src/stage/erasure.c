/*
 * erasure.c
 *	  What was erased does not come back.
 *
 * A person that was erased may be in messages that nobody has read yet, or that are read again.  Each erasure
 * leaves digests of values in millrace.erasure: of the columns by which the person was named, and of the key of
 * each object that went.  A message whose mapped values have such a digest, in whichever staging table it is
 * routed to, never came.  Digests are all that is remembered.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/hash.h"
#include "core/millrace.h"
#include "stage/mapping.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/uuid.h"

/* Digests of values of the same columns. */
typedef struct ErasedColumns
{
	int ncolumns;
	int *mapped; /* places in MrStagingPlan.mapped */
	MrHashColumn *hashes;
	int ndigests;
	pg_uuid_t *digests; /* in order */
} ErasedColumns;

struct MrErasures
{
	int nsets;
	ErasedColumns *sets;
	MrHasher *hasher;
};

PG_FUNCTION_INFO_V1(millrace_erasure_digest);

static int
compare_digests(const void *left, const void *right)
{
	return memcmp(left, right, sizeof(pg_uuid_t));
}

/* The place of a mapped column; -1 when it is mapped no longer. */
static int
mapped_place(const MrStagingPlan *plan, const char *name)
{
	for (int i = 0; i < plan->nmapped; i++)
	{
		if (strcmp(plan->mapped[i].name, name) == 0)
			return i;
	}
	return -1;
}

/* The digests of one set of columns from row `row` of SPI_tuptable; false when a column is gone. */
static bool
load_set(const MrStagingPlan *plan, uint64 row, ErasedColumns *set)
{
	bool isnull;
	Datum *names;
	Datum *digests;

	deconstruct_array(DatumGetArrayTypeP(mr_sql_value(row, 1, &isnull)), TEXTOID, -1, false,
					  TYPALIGN_INT, &names, NULL, &set->ncolumns);
	set->mapped = palloc(sizeof(int) * set->ncolumns);
	set->hashes = palloc(sizeof(MrHashColumn) * set->ncolumns);
	for (int i = 0; i < set->ncolumns; i++)
	{
		set->mapped[i] = mapped_place(plan, TextDatumGetCString(names[i]));
		if (set->mapped[i] < 0)
			return false;
		mr_hash_column_init(&set->hashes[i], plan->mapped[set->mapped[i]].type);
	}
	deconstruct_array(DatumGetArrayTypeP(mr_sql_value(row, 2, &isnull)), UUIDOID, UUID_LEN, false,
					  TYPALIGN_CHAR, &digests, NULL, &set->ndigests);
	set->digests = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(pg_uuid_t) * set->ndigests);
	for (int i = 0; i < set->ndigests; i++)
		set->digests[i] = *DatumGetUUIDP(digests[i]);
	pg_qsort(set->digests, set->ndigests, sizeof(pg_uuid_t), compare_digests);
	return true;
}

MrErasures *
mr_erasures_load(const MrStaging *staging)
{
	MrErasures *erasures = NULL;
	uint64 count = mr_sql("SELECT columns, array_agg(digest) FROM millrace.erasure "
						  "WHERE staging_id = %d GROUP BY columns",
						  staging->id);

	if (count > 0)
	{
		erasures = palloc0(sizeof(MrErasures));
		erasures->sets = palloc(sizeof(ErasedColumns) * count);
		erasures->hasher = mr_hasher_create();
		for (uint64 i = 0; i < count; i++)
			erasures->nsets += load_set(staging->plan, i, &erasures->sets[erasures->nsets]);
	}
	SPI_freetuptable(SPI_tuptable);
	return erasures;
}

void
mr_erasures_mark(const MrErasures *erasures, bool *mapped)
{
	for (int s = 0; s < erasures->nsets; s++)
	{
		for (int i = 0; i < erasures->sets[s].ncolumns; i++)
			mapped[erasures->sets[s].mapped[i]] = true;
	}
}

bool
mr_erasures_match(const MrErasures *erasures, const Datum *values, const bool *nulls)
{
	for (int s = 0; s < erasures->nsets; s++)
	{
		ErasedColumns *set = &erasures->sets[s];
		pg_uuid_t digest;
		bool whole = true;

		mr_hasher_begin(erasures->hasher);
		for (int i = 0; i < set->ncolumns && whole; i++)
		{
			whole = !nulls[set->mapped[i]];
			if (whole)
				mr_hasher_add(erasures->hasher, &set->hashes[i], values[set->mapped[i]], false);
		}
		if (!whole)
			continue;
		mr_hasher_end(erasures->hasher, &digest);
		if (bsearch(&digest, set->digests, set->ndigests, sizeof(pg_uuid_t), compare_digests) !=
			NULL)
			return true;
	}
	return false;
}

/* erasure_digest(VARIADIC "any"): of values in the types of their columns; none of them is null. */
Datum
millrace_erasure_digest(PG_FUNCTION_ARGS)
{
	MrHasher *hasher = mr_hasher_create();
	pg_uuid_t *digest = palloc(sizeof(pg_uuid_t));

	mr_hasher_begin(hasher);
	for (int i = 0; i < PG_NARGS(); i++)
	{
		MrHashColumn column;

		if (PG_ARGISNULL(i))
			PG_RETURN_NULL();
		mr_hash_column_init(&column, get_fn_expr_argtype(fcinfo->flinfo, i));
		mr_hasher_add(hasher, &column, PG_GETARG_DATUM(i), false);
	}
	mr_hasher_end(hasher, digest);
	PG_RETURN_UUID_P(digest);
}
