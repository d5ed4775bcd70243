/*
 * writer.c
 *	  The bulk writer's verbs: directly where the table allows it (direct.c), else by saved statements.
 *
 * For statements, rows travel as one array per column through unnest(), so that a statement's plan does not depend on their
 * number and works on partitioned tables, tables with triggers, row security or generated columns alike.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tupdesc.h"
#include "catalog/pg_am.h"
#include "catalog/pg_type.h"
#include "core/direct.h"
#include "core/millrace.h"
#include "core/order.h"
#include "core/statement.h"
#include "core/writer.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/typcache.h"

typedef struct MrColumn
{
	AttrNumber attnum;
	char *name; /* quoted */
	Oid type;
	int32 typmod;
	Oid collation;
	Oid transport; /* element type of the array that carries it */
	int16 length;
	bool by_value;
	char alignment;
	bool as_text; /* arrays would be flattened by unnest(): they travel as text */
	FmgrInfo output;
} MrColumn;

struct MrTable
{
	MemoryContext context;
	Oid relid;
	Oid role;
	int ncolumns;
	int nkeys;
	MrColumn *columns;
	AttrNumber *attnums;
	bool probe_first; /* many keys were there already, last time */
	MrOrder *order; /* of keys */
	MrStatement *insert_new;
	MrStatement *append;
	MrStatement *find_different;
	MrStatement *delete_returning;
	int delete_nkeys;
};

/* How one column is carried. */
static void
column_init(MrColumn *column, TupleDesc desc, AttrNumber attnum)
{
	Form_pg_attribute attribute = TupleDescAttr(desc, attnum - 1);

	column->attnum = attnum;
	column->name = pstrdup(quote_identifier(NameStr(attribute->attname)));
	column->type = attribute->atttypid;
	column->typmod = attribute->atttypmod;
	column->collation = attribute->attcollation;
	column->transport = column->type;
	if (type_is_array_domain(column->type) || !OidIsValid(get_array_type(column->type)))
	{
		Oid output;
		bool is_varlena;

		getTypeOutputInfo(column->type, &output, &is_varlena);
		fmgr_info(output, &column->output);
		column->as_text = true;
		column->transport = TEXTOID;
	}
	get_typlenbyvalalign(column->transport, &column->length, &column->by_value, &column->alignment);
}

MrTable *
mr_table_create(Oid relid, Oid role, int ncolumns, const AttrNumber *attnums, int nkeys)
{
	MrTable *table = palloc0(sizeof(MrTable));
	Relation relation = table_open(relid, AccessShareLock);
	TupleDesc desc = RelationGetDescr(relation);
	Oid *types;
	Oid *collations;

	table->context = CurrentMemoryContext;
	table->relid = relid;
	table->role = role;
	table->ncolumns = ncolumns;
	table->nkeys = nkeys;
	table->columns = palloc0(sizeof(MrColumn) * ncolumns);
	table->attnums = palloc(sizeof(AttrNumber) * ncolumns);
	memcpy(table->attnums, attnums, sizeof(AttrNumber) * ncolumns);
	for (int i = 0; i < ncolumns; i++)
		column_init(&table->columns[i], desc, attnums[i]);
	table_close(relation, NoLock);

	types = palloc(sizeof(Oid) * Max(nkeys, 1));
	collations = palloc(sizeof(Oid) * Max(nkeys, 1));
	for (int i = 0; i < nkeys; i++)
	{
		types[i] = table->columns[i].type;
		collations[i] = table->columns[i].collation;
	}
	table->order = mr_order_create(nkeys, types, collations);
	return table;
}

bool *
mr_rows_far(TupleDesc desc, int ncolumns, const AttrNumber *attnums)
{
	bool *far = palloc(sizeof(bool) * ncolumns);

	for (int c = 0; c < ncolumns; c++)
		far[c] = !TupleDescAttr(desc, attnums[c] - 1)->attbyval;
	return far;
}

MrRows *
mr_rows_create(const MrTable *table, int capacity)
{
	MrRows *rows = palloc0(sizeof(MrRows));

	rows->values = palloc(sizeof(Datum *) * table->ncolumns);
	rows->nulls = palloc(sizeof(bool *) * table->ncolumns);
	for (int i = 0; i < table->ncolumns; i++)
	{
		rows->values[i] = MemoryContextAllocHuge(CurrentMemoryContext,
												 sizeof(Datum) * Max(capacity, 1));
		rows->nulls[i] = palloc0(Max(capacity, 1));
	}
	return rows;
}

/* Gives the room for rows back; what their values lead to stays. */
void
mr_rows_free(const MrTable *table, MrRows *rows)
{
	for (int i = 0; i < table->ncolumns; i++)
	{
		pfree(rows->values[i]);
		pfree(rows->nulls[i]);
	}
	pfree(rows->values);
	pfree(rows->nulls);
	pfree(rows);
}

/* One column of the rows, in the given order, as an array. */
static Datum
column_array(const MrColumn *column, const Datum *values, const bool *nulls, const int *order,
			 int nrows)
{
	Datum *ordered = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(Datum) * Max(nrows, 1));
	bool *ordered_nulls = palloc0(Max(nrows, 1));
	int dims[1] = {nrows};
	int lower[1] = {1};
	bool any_null = false;
	ArrayType *array;

	for (int i = 0; i < nrows; i++)
	{
		int row = order[i];

		if (nulls != NULL && nulls[row])
		{
			ordered_nulls[i] = true;
			any_null = true;
			ordered[i] = (Datum) 0;
		}
		else if (column->as_text)
			ordered[i] =
				CStringGetTextDatum(OutputFunctionCall((FmgrInfo *) &column->output, values[row]));
		else
			ordered[i] = values[row];
	}
	array = construct_md_array(ordered, any_null ? ordered_nulls : NULL, 1, dims, lower,
							   column->transport, column->length, column->by_value,
							   column->alignment);
	pfree(ordered);
	pfree(ordered_nulls);
	return PointerGetDatum(array);
}

/*
 * Appends "unnest($1, …) AS u(c1, …)" for the first n columns, on wish with the row's number n.  The name is not qualified: only so does the
 * grammar know the form with several arrays, which takes them in step.
 */
static void
append_unnest(StringInfo sql, const MrTable *table, int ncolumns, bool numbered)
{
	appendStringInfoString(sql, "unnest(");
	for (int i = 0; i < ncolumns; i++)
		appendStringInfo(sql, "%s$%d", i > 0 ? ", " : "", i + 1);
	appendStringInfoString(sql, numbered ? ") WITH ORDINALITY AS u(" : ") AS u(");
	for (int i = 0; i < ncolumns; i++)
		appendStringInfo(sql, "%sc%d", i > 0 ? ", " : "", i + 1);
	appendStringInfoString(sql, numbered ? ", n)" : ")");
}

/* The value of unnested column `i` in its own type. */
static void
append_value(StringInfo sql, const MrTable *table, int i)
{
	const MrColumn *column = &table->columns[i];

	appendStringInfo(sql, "u.c%d", i + 1);
	if (column->as_text)
		appendStringInfo(sql, "::%s", format_type_with_typemod(column->type, column->typmod));
}

static MrStatement *
statement_create(const MrTable *table, const char *sql, int ncolumns)
{
	MemoryContext previous = MemoryContextSwitchTo(table->context);
	Oid *types = palloc(sizeof(Oid) * ncolumns);
	MrStatement *statement;

	for (int i = 0; i < ncolumns; i++)
		types[i] = get_array_type(table->columns[i].transport);
	statement = mr_statement_create(sql, ncolumns, types);
	MemoryContextSwitchTo(previous);
	return statement;
}

/* INSERT … SELECT unnest(…), with or without ON CONFLICT (key) DO NOTHING. */
static MrStatement *
insert_statement(const MrTable *table, bool on_conflict)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "INSERT INTO %s (", mr_relation_name(table->relid));
	for (int i = 0; i < table->ncolumns; i++)
		appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "", table->columns[i].name);
	appendStringInfoString(&sql, ") SELECT ");
	for (int i = 0; i < table->ncolumns; i++)
	{
		appendStringInfoString(&sql, i > 0 ? ", " : "");
		append_value(&sql, table, i);
	}
	appendStringInfoString(&sql, " FROM ");
	append_unnest(&sql, table, table->ncolumns, false);
	if (on_conflict)
	{
		appendStringInfoString(&sql, " ON CONFLICT (");
		for (int i = 0; i < table->nkeys; i++)
			appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "", table->columns[i].name);
		appendStringInfoString(&sql, ") DO NOTHING");
	}
	return statement_create(table, sql.data, table->ncolumns);
}

/* DELETE … USING unnest(…) … RETURNING every column. */
static MrStatement *
delete_statement(const MrTable *table, int nkeys)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "DELETE FROM %s AS t USING ", mr_relation_name(table->relid));
	append_unnest(&sql, table, nkeys, false);
	appendStringInfoString(&sql, " WHERE ");
	for (int i = 0; i < nkeys; i++)
	{
		appendStringInfo(&sql, "%st.%s = ", i > 0 ? " AND " : "", table->columns[i].name);
		append_value(&sql, table, i);
	}
	appendStringInfoString(&sql, " RETURNING t.*");
	return statement_create(table, sql.data, nkeys);
}

void
mr_table_arrays(const MrTable *table, const MrRows *rows, const int *chosen, int nchosen,
				int ncolumns, Datum *arrays)
{
	for (int i = 0; i < ncolumns; i++)
		arrays[i] = column_array(&table->columns[i], rows->values[i],
								 rows->nulls != NULL ? rows->nulls[i] : NULL, chosen, nchosen);
}

/* Runs a statement whose parameters are the first n columns of the rows, as the table's role. */
static uint64
run_with_rows(const MrTable *table, MrStatement *statement, const MrRows *rows, int ncolumns)
{
	int *order = mr_order_rows(table->order, rows, Min(table->nkeys, ncolumns));
	Datum *arrays = palloc(sizeof(Datum) * ncolumns);
	MrRunAs saved;
	uint64 processed;

	mr_table_arrays(table, rows, order, rows->nrows, ncolumns, arrays);
	mr_run_as_restricted(&saved, table->role);
	processed = mr_statement_run(statement, arrays, NULL);
	mr_run_back(&saved);
	for (int i = 0; i < ncolumns; i++)
		pfree(DatumGetPointer(arrays[i]));
	pfree(arrays);
	pfree(order);
	return processed;
}

/* Inserts directly; -1 when the table is not plain enough for that. */
static int64
insert_directly(MrTable *table, MrRows *rows, MrConflict mode, int ncompared, bool *conflicts)
{
	int64 inserted = -1;
	MrDirect *direct;
	MrRunAs saved;
	int *order;

	mr_run_as_restricted(&saved, table->role);
	direct = mr_direct_open(table->relid, table->ncolumns, table->attnums, table->nkeys,
							table->probe_first);
	if (direct != NULL)
	{
		order = mr_order_rows(table->order, rows, table->nkeys);
		inserted = mr_direct_insert(direct, rows, order, mode, ncompared, conflicts);
		table->probe_first = mr_direct_many_conflicts(direct, rows->nrows);
		mr_direct_close(direct);
		pfree(order);
	}
	mr_run_back(&saved);
	return inserted;
}

int64
mr_table_insert_new(MrTable *table, MrRows *rows, int ncompared, bool *different)
{
	int64 inserted;

	if (rows->nrows == 0)
		return 0;
	inserted = insert_directly(table, rows, MR_CONFLICT_SKIP, ncompared, different);
	if (inserted >= 0)
		return inserted;
	if (table->insert_new == NULL)
		table->insert_new = insert_statement(table, true);
	inserted = run_with_rows(table, table->insert_new, rows, table->ncolumns);
	if (different != NULL)
		memset(different, inserted < rows->nrows, rows->nrows);
	return inserted;
}

Oid
mr_table_column_type(const MrTable *table, int column)
{
	return table->columns[column].type;
}

/* SELECT … FROM unnest(…) WITH ORDINALITY JOIN the table by its key, where other columns differ. */
static MrStatement *
different_statement(const MrTable *table, int ncolumns)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT u.n");
	for (int i = table->nkeys; i < ncolumns; i++)
		appendStringInfo(&sql, ", t.%s", table->columns[i].name);
	appendStringInfoString(&sql, " FROM ");
	append_unnest(&sql, table, ncolumns, true);
	appendStringInfo(&sql, " JOIN %s AS t ON ", mr_relation_name(table->relid));
	for (int i = 0; i < table->nkeys; i++)
	{
		appendStringInfo(&sql, "%st.%s = ", i > 0 ? " AND " : "", table->columns[i].name);
		append_value(&sql, table, i);
	}
	appendStringInfoString(&sql, " WHERE false");
	for (int i = table->nkeys; i < ncolumns; i++)
	{
		/* What cannot be compared is compared as text. */
		bool comparable =
			OidIsValid(lookup_type_cache(table->columns[i].type, TYPECACHE_EQ_OPR)->eq_opr);
		const char *cast = comparable ? "" : "::text";

		appendStringInfo(&sql, " OR t.%s%s IS DISTINCT FROM (", table->columns[i].name, cast);
		append_value(&sql, table, i);
		appendStringInfo(&sql, ")%s", cast);
	}
	appendStringInfoString(&sql, " LIMIT 1");
	return statement_create(table, sql.data, ncolumns);
}

int
mr_table_find_different(MrTable *table, const MrRows *rows, const bool *marked, int ncolumns)
{
	int *chosen = palloc(sizeof(int) * Max(rows->nrows, 1));
	Datum *arrays = palloc(sizeof(Datum) * ncolumns);
	int n = 0;
	int found = -1;
	bool isnull;
	MrRunAs saved;

	for (int i = 0; i < rows->nrows; i++)
	{
		if (marked[i])
			chosen[n++] = i;
	}
	if (n == 0)
		return -1;
	if (table->find_different == NULL)
		table->find_different = different_statement(table, ncolumns);
	mr_table_arrays(table, rows, chosen, n, ncolumns, arrays);
	mr_run_as_restricted(&saved, table->role);
	if (mr_statement_run(table->find_different, arrays, NULL) > 0)
		found = chosen[DatumGetInt64(mr_sql_value(0, 1, &isnull)) - 1];
	mr_run_back(&saved);
	return found;
}

bool
mr_table_insert_free(MrTable *table, MrRows *rows, bool look_first, bool *conflicts)
{
	table->probe_first |= look_first;
	return rows->nrows == 0 || insert_directly(table, rows, MR_CONFLICT_SKIP, 0, conflicts) >= 0;
}

void
mr_table_append(MrTable *table, MrRows *rows)
{
	if (rows->nrows == 0 || insert_directly(table, rows, MR_CONFLICT_ERROR, 0, NULL) >= 0)
		return;
	if (table->append == NULL)
		table->append = insert_statement(table, false);
	(void) run_with_rows(table, table->append, rows, table->ncolumns);
}

/* A copy of the table's descriptor. */
static TupleDesc
relation_descriptor(Oid relid)
{
	Relation relation = table_open(relid, AccessShareLock);
	TupleDesc desc = CreateTupleDescCopy(RelationGetDescr(relation));

	table_close(relation, NoLock);
	return desc;
}

/* A row as RETURNING gives it, which has no place for dropped columns, in the layout of the table. */
static HeapTuple
restore_layout(HeapTuple returned, TupleDesc returned_desc, TupleDesc desc)
{
	Datum *values;
	bool *nulls;
	HeapTuple tuple;
	int from = 0;

	if (returned_desc->natts == desc->natts)
		return heap_copytuple(returned);
	values = palloc0(sizeof(Datum) * desc->natts);
	nulls = palloc(desc->natts);
	memset(nulls, true, desc->natts);
	for (int i = 0; i < desc->natts; i++)
	{
		if (!TupleDescAttr(desc, i)->attisdropped)
			values[i] = heap_getattr(returned, ++from, returned_desc, &nulls[i]);
	}
	tuple = heap_form_tuple(desc, values, nulls);
	pfree(values);
	pfree(nulls);
	return tuple;
}

HeapTuple *
mr_table_delete_returning(MrTable *table, int nkeys_given, MrRows *keys, int *ndeleted)
{
	HeapTuple *deleted;
	TupleDesc desc;

	*ndeleted = 0;
	if (keys->nrows == 0)
		return NULL;
	if (table->delete_returning == NULL || table->delete_nkeys != nkeys_given)
	{
		table->delete_returning = delete_statement(table, nkeys_given);
		table->delete_nkeys = nkeys_given;
	}
	*ndeleted = (int) run_with_rows(table, table->delete_returning, keys, nkeys_given);
	deleted = palloc(sizeof(HeapTuple) * Max(*ndeleted, 1));
	desc = relation_descriptor(table->relid);
	for (int i = 0; i < *ndeleted; i++)
		deleted[i] = restore_layout(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, desc);
	SPI_freetuptable(SPI_tuptable);
	return deleted;
}
