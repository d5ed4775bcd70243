/*
 * order.h
 *	  Sorting rows by their key.
 */
#ifndef MR_CORE_ORDER_H
#define MR_CORE_ORDER_H

#include "catalog/pg_type.h"
#include "core/writer.h"
#include "port/pg_bswap.h"
#include "utils/date.h"
#include "utils/uuid.h"

/* Numbers for the values of a type that never contradict its order, and decide most comparisons. */
typedef struct MrPrefix
{
	Oid type; /* InvalidOid: all numbers are 0 */
} MrPrefix;

extern void mr_prefix_init(MrPrefix *prefix, Oid type, Oid collation);

static inline uint64
mr_prefix_of(const MrPrefix *prefix, Datum value)
{
	const uint64 sign = UINT64CONST(1) << 63;
	uint64 bytes = 0;

	switch (prefix->type)
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
			{
				text *packed = (text *) DatumGetPointer(value);

				/* What is in one piece needs no call. */
				if (VARATT_IS_EXTENDED(packed) && !VARATT_IS_SHORT(packed))
					packed = DatumGetTextPP(value);
				memcpy(&bytes, VARDATA_ANY(packed), Min(VARSIZE_ANY_EXHDR(packed), sizeof(bytes)));
				return pg_ntoh64(bytes);
			}
		default:
			return 0;
	}
}

/* Are two values with the same number the same?  False when in doubt. */
static inline bool
mr_prefix_is_same(const MrPrefix *prefix, Datum value, Datum other)
{
	switch (prefix->type)
	{
		case INT2OID:
		case INT4OID:
		case DATEOID:
		case INT8OID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return true;
		case UUIDOID:
			return memcmp(DatumGetUUIDP(value), DatumGetUUIDP(other), sizeof(pg_uuid_t)) == 0;
		case TEXTOID:
		case VARCHAROID:
			{
				const text *one = (const text *) DatumGetPointer(value);
				const text *two = (const text *) DatumGetPointer(other);

				return !VARATT_IS_COMPRESSED(one) && !VARATT_IS_EXTERNAL(one) &&
					   !VARATT_IS_COMPRESSED(two) && !VARATT_IS_EXTERNAL(two) &&
					   VARSIZE_ANY_EXHDR(one) == VARSIZE_ANY_EXHDR(two) &&
					   memcmp(VARDATA_ANY(one), VARDATA_ANY(two), VARSIZE_ANY_EXHDR(one)) == 0;
			}
		default:
			return false;
	}
}

typedef struct MrOrder MrOrder;

/* By columns of these types, in the types' own order, nulls last. */
extern MrOrder *mr_order_create(int nkeys, const Oid *types, const Oid *collations);

/* The numbers of the rows in the order of their first `nkeys` columns, in CurrentMemoryContext. */
extern int *mr_order_rows(const MrOrder *order, const MrRows *rows, int nkeys);

#endif /* MR_CORE_ORDER_H */
