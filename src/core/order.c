/*
 * order.c
 *	  Sorting rows by their key.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/compat.h"
#include "core/order.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/memutils.h"
#include "utils/pg_locale.h"
#include "utils/sortsupport.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

struct MrOrder
{
	Oid first; /* type of the first column */
	bool first_is_c; /* whose bytes are its order */
	SortSupport sort; /* by column */
};

/* A row to be sorted, with a number that orders most rows without a look at the row. */
typedef struct SortItem
{
	uint64 prefix;
	int row;
} SortItem;

typedef struct Sorting
{
	const MrOrder *order;
	const MrRows *rows;
	int nkeys;
} Sorting;

static int
compare_rows(int left, int right, const Sorting *sorting)
{
	for (int i = 0; i < sorting->nkeys; i++)
	{
		const Datum *values = sorting->rows->values[i];
		const bool *nulls = sorting->rows->nulls == NULL ? NULL : sorting->rows->nulls[i];
		int order = ApplySortComparator(values[left], nulls != NULL && nulls[left], values[right],
										nulls != NULL && nulls[right], &sorting->order->sort[i]);

		if (order != 0)
			return order;
	}
	return left - right;
}

#define ST_SORT sort_items
#define ST_ELEMENT_TYPE SortItem
#define ST_COMPARE(a, b, argument) \
	((a)->prefix != (b)->prefix ? ((a)->prefix < (b)->prefix ? -1 : 1) \
								: compare_rows((a)->row, (b)->row, argument))
#define ST_COMPARE_ARG_TYPE const Sorting
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

MrOrder *
mr_order_create(int nkeys, const Oid *types, const Oid *collations)
{
	MrOrder *order = palloc0(sizeof(MrOrder));

	order->sort = palloc0(sizeof(SortSupportData) * Max(nkeys, 1));
	for (int i = 0; i < nkeys; i++)
	{
		SortSupport sort = &order->sort[i];
		TypeCacheEntry *type = lookup_type_cache(types[i], TYPECACHE_LT_OPR);

		if (!OidIsValid(type->lt_opr))
			ereport(ERROR, (errcode(ERRCODE_UNDEFINED_FUNCTION),
							errmsg("type %s cannot be part of a key: it has no order",
								   format_type_be(types[i]))));
		sort->ssup_cxt = CurrentMemoryContext;
		sort->ssup_collation = collations[i];
		sort->ssup_attno = i + 1;
		PrepareSortSupportFromOrderingOp(type->lt_opr, sort);
	}
	if (nkeys > 0)
	{
		order->first = types[0];
		order->first_is_c = (types[0] == TEXTOID || types[0] == VARCHAROID) &&
							mr_collate_is_c(collations[0]);
	}
	return order;
}

/* A number that never contradicts the order of the first column. */
static uint64
prefix_of(const MrOrder *order, Datum value)
{
	const uint64 sign = UINT64CONST(1) << 63;
	uint64 bytes = 0;

	switch (order->first)
	{
		case INT2OID:
			return (uint64) (int64) DatumGetInt16(value) ^ sign;
		case INT4OID:
		case DATEOID:
			return (uint64) (int64) DatumGetInt32(value) ^ sign;
		case INT8OID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return (uint64) DatumGetInt64(value) ^ sign;
		case UUIDOID:
			memcpy(&bytes, DatumGetUUIDP(value)->data, sizeof(bytes));
			return pg_ntoh64(bytes);
		case TEXTOID:
		case VARCHAROID:
			if (order->first_is_c)
			{
				text *packed = DatumGetTextPP(value);

				memcpy(&bytes, VARDATA_ANY(packed), Min(VARSIZE_ANY_EXHDR(packed), sizeof(bytes)));
			}
			return pg_ntoh64(bytes);
		default:
			return 0;
	}
}

int *
mr_order_rows(const MrOrder *order, const MrRows *rows, int nkeys)
{
	Sorting sorting = {order, rows, nkeys};
	int *numbers = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(int) * Max(rows->nrows, 1));
	const bool *nulls;
	SortItem *items;

	for (int i = 0; i < rows->nrows; i++)
		numbers[i] = i;
	if (nkeys == 0)
		return numbers;
	items = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(SortItem) * Max(rows->nrows, 1));
	nulls = rows->nulls == NULL ? NULL : rows->nulls[0];
	for (int i = 0; i < rows->nrows; i++)
	{
		items[i].prefix = nulls != NULL && nulls[i] ? PG_UINT64_MAX
													: prefix_of(order, rows->values[0][i]);
		items[i].row = i;
	}
	sort_items(items, rows->nrows, &sorting);
	for (int i = 0; i < rows->nrows; i++)
		numbers[i] = items[i].row;
	pfree(items);
	return numbers;
}
