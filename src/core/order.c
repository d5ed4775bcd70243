/*
 * order.c
 *	  Sorting rows by their key.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/compat.h"
#include "core/order.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_locale.h"
#include "utils/sortsupport.h"
#include "utils/typcache.h"

struct MrOrder
{
	MrPrefix prefix; /* of the first column */
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

void
mr_prefix_init(MrPrefix *prefix, Oid type, Oid collation)
{
	prefix->type = type;
	/* Only then are the bytes of a text its order. */
	if ((type == TEXTOID || type == VARCHAROID) && !mr_collate_is_c(collation))
		prefix->type = InvalidOid;
}

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
		mr_prefix_init(&order->prefix, types[0], collations[0]);
	return order;
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
		items[i].prefix = nulls != NULL && nulls[i]
							  ? PG_UINT64_MAX
							  : mr_prefix_of(&order->prefix, rows->values[0][i]);
		items[i].row = i;
	}
	sort_items(items, rows->nrows, &sorting);
	for (int i = 0; i < rows->nrows; i++)
		numbers[i] = items[i].row;
	pfree(items);
	return numbers;
}
