/*
 * lookup.c
 *	  Reading rows of models' tables, one by one, through an index.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "core/compat.h"
#include "model/lookup.h"
#include "model/store.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

/* Columns of a block; see store.h. */
#define BLOCK_NUMBERS 4
#define BLOCK_VALUES 5

MrIndexed
mr_lookup_configuration(const char *table, const char *index)
{
	Oid schema = get_namespace_oid("millrace", false);
	MrIndexed indexed = {get_relname_relid(table, schema), get_relname_relid(index, schema)};

	return indexed;
}

MrIndexed
mr_lookup_state(int32 model_id, const char *table, const char *index)
{
	MrIndexed indexed = {mr_store_table(model_id, table), mr_store_table(model_id, index)};

	return indexed;
}

void
mr_lookup_key(ScanKey key, Relation relation, AttrNumber attnum, Datum value)
{
	Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(relation), attnum - 1);
	TypeCacheEntry *type = lookup_type_cache(attribute->atttypid, TYPECACHE_EQ_OPR_FINFO);

	ScanKeyEntryInitializeWithInfo(key, 0, attnum, BTEqualStrategyNumber, InvalidOid,
								   attribute->attcollation, &type->eq_opr_finfo, value);
}

SysScanDesc
mr_lookup(Relation relation, Oid index, AttrNumber a, Datum first, AttrNumber b, Datum second)
{
	ScanKeyData keys[2];

	mr_lookup_key(&keys[0], relation, a, first);
	if (b > 0)
		mr_lookup_key(&keys[1], relation, b, second);
	return systable_beginscan(relation, index, true, GetActiveSnapshot(), b > 0 ? 2 : 1, keys);
}

HeapTuple
mr_lookup_row(MrIndexed indexed, AttrNumber a, Datum first, AttrNumber b, Datum second,
			  TupleDesc *desc)
{
	Relation relation = table_open(indexed.table, AccessShareLock);
	SysScanDesc rows = mr_lookup(relation, indexed.index, a, first, b, second);
	HeapTuple row = systable_getnext(rows);

	if (HeapTupleIsValid(row))
	{
		row = heap_copytuple(row);
		*desc = CreateTupleDescCopy(RelationGetDescr(relation));
	}
	systable_endscan(rows);
	table_close(relation, AccessShareLock);
	return row;
}

Datum
mr_lookup_column(HeapTuple row, AttrNumber attnum, TupleDesc desc)
{
	bool isnull;
	Datum value = heap_getattr(row, attnum, desc, &isnull);

	if (isnull)
		elog(ERROR, "column %d is null", attnum);
	return value;
}

Datum
mr_lookup_named(HeapTuple row, TupleDesc desc, const char *name, bool *isnull)
{
	for (int i = 0; i < desc->natts; i++)
		if (!TupleDescAttr(desc, i)->attisdropped &&
			strcmp(NameStr(TupleDescAttr(desc, i)->attname), name) == 0)
			return heap_getattr(row, i + 1, desc, isnull);
	elog(ERROR, "there is no column \"%s\"", name);
	return (Datum) 0;
}

MrBlock
mr_lookup_block(HeapTuple row, TupleDesc desc)
{
	ArrayType *numbers = DatumGetArrayTypeP(mr_lookup_column(row, BLOCK_NUMBERS, desc));
	MrBlock block = {.numbers = (const uint32 *) ARR_DATA_PTR(numbers),
					 .length = ArrayGetNItems(ARR_NDIM(numbers), ARR_DIMS(numbers))};
	bool isnull;
	Datum value = heap_getattr(row, BLOCK_VALUES, desc, &isnull);

	if (!isnull)
	{
		ArrayType *values = DatumGetArrayTypeP(value);

		if (ArrayGetNItems(ARR_NDIM(values), ARR_DIMS(values)) != block.length)
			elog(ERROR, "the lists of a block differ in length");
		block.values = ARR_DATA_PTR(values);
	}
	return block;
}
