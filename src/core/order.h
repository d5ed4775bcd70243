/*
 * order.h
 *	  Sorting rows by their key.
 */
#ifndef MR_CORE_ORDER_H
#define MR_CORE_ORDER_H

#include "core/writer.h"

typedef struct MrOrder MrOrder;

/* By columns of these types, in the types' own order, nulls last. */
extern MrOrder *mr_order_create(int nkeys, const Oid *types, const Oid *collations);

/* The numbers of the rows in the order of their first `nkeys` columns, in CurrentMemoryContext. */
extern int *mr_order_rows(const MrOrder *order, const MrRows *rows, int nkeys);

#endif /* MR_CORE_ORDER_H */
