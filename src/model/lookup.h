/*
 * lookup.h
 *	  Reading rows of models' tables, one by one, through an index.
 */
#ifndef MR_MODEL_LOOKUP_H
#define MR_MODEL_LOOKUP_H

#include "access/genam.h"
#include "utils/array.h"
#include "utils/rel.h"

/* A table and the index that it is read by. */
typedef struct MrIndexed
{
	Oid table;
	Oid index;
} MrIndexed;

/* A table of millrace's configuration; and of a model. */
extern MrIndexed mr_lookup_configuration(const char *table, const char *index);
extern MrIndexed mr_lookup_state(int32 model_id, const char *table, const char *index);

/* A column's value must be this. */
extern void mr_lookup_key(ScanKey key, Relation relation, AttrNumber attnum, Datum value);

/*
 * Rows of which one column or two (attnum 0: none) have such values, which the index begins with; in the index's order, as the
 * active snapshot has them.
 */
extern SysScanDesc mr_lookup(Relation relation, Oid index, AttrNumber a, Datum first, AttrNumber b,
							 Datum second);

/* The only such row, as a copy; NULL: there is none. */
extern HeapTuple mr_lookup_row(MrIndexed indexed, AttrNumber a, Datum first, AttrNumber b,
							   Datum second, TupleDesc *desc);

/* A value that is never NULL. */
extern Datum mr_lookup_column(HeapTuple row, AttrNumber attnum, TupleDesc desc);

/* A value by its column's name. */
extern Datum mr_lookup_named(HeapTuple row, TupleDesc desc, const char *name, bool *isnull);

/* Some entries of a list: numbers, and what belongs to each. */
typedef struct MrBlock
{
	const uint32 *numbers;
	const void *values; /* NULL: none */
	int length;
} MrBlock;

/* What a row has of a list. */
extern MrBlock mr_lookup_block(HeapTuple row, TupleDesc desc);

#endif /* MR_MODEL_LOOKUP_H */
