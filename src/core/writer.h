/*
 * writer.h
 *	  The bulk writer: puts many rows into a table, each table visited once a batch, sorted by key.
 *
 * The verbs are few: insert what is new, replace the rows of objects.  Each has a direct implementation
 * through the table access method for plain local tables and a set-based SPI twin for everything else.
 */
#ifndef MR_CORE_WRITER_H
#define MR_CORE_WRITER_H

#include "access/attnum.h"
#include "access/htup.h"
#include "access/tupdesc.h"

typedef struct MrTable MrTable;

/* Rows to be written, by column: values[c][r] belongs to column c as given to mr_table_create. */
typedef struct MrRows
{
	int nrows;
	Datum **values;
	bool **nulls; /* nulls[c] may be NULL: no null in that column */
} MrRows;

/* Which of these columns of a table lead to their values, because they are not in the row itself. */
extern bool *mr_rows_far(TupleDesc desc, int ncolumns, const AttrNumber *attnums);

/* How many rows ahead memory is asked for: they are taken in the order of keys, and lie in that of arrival. */
#define MR_ROWS_AHEAD 8

/*
 * Asks for the columns of a row that comes a while after the i-th of n in an order, and, where a column is `far`, for what its value
 * leads to of one that comes sooner.
 */
static pg_attribute_always_inline void
mr_rows_prefetch(const MrRows *rows, int ncolumns, const bool *far, const int *order, int i, int n)
{
	if (i + 2 * MR_ROWS_AHEAD < n)
	{
		for (int c = 0; c < ncolumns; c++)
			__builtin_prefetch(&rows->values[c][order[i + 2 * MR_ROWS_AHEAD]]);
	}
	if (i + MR_ROWS_AHEAD < n)
	{
		for (int c = 0; c < ncolumns; c++)
		{
			if (far[c])
				__builtin_prefetch(DatumGetPointer(rows->values[c][order[i + MR_ROWS_AHEAD]]));
		}
	}
}

/*
 * A table to write into, as its owner-to-be `role`: `attnums` are the written columns, of which the first
 * `nkeys` are the unique key that conflicts are judged by (in that order).
 */
extern MrTable *mr_table_create(Oid relid, Oid role, int ncolumns, const AttrNumber *attnums,
								int nkeys);

/* Rows for `capacity` rows in CurrentMemoryContext. */
extern MrRows *mr_rows_create(const MrTable *table, int capacity);
extern void mr_rows_free(const MrTable *table, MrRows *rows);

/*
 * Inserts the rows whose key is not there yet; the caller has made keys unique within `rows`.  The rows
 * are sorted by key first (in place).  Returns how many were new; of the others, `different` (may be NULL) tells
 * which may differ from the row that is there in one of the first `ncompared` columns.
 */
extern int64 mr_table_insert_new(MrTable *table, MrRows *rows, int ncompared, bool *different);

/*
 * Of the marked rows, one that differs from the row with its key in the table in one of the first `ncolumns`
 * columns, or -1.  Then SPI_tuptable has these columns of the table's row, without the key, from its second on.
 */
extern int mr_table_find_different(MrTable *table, const MrRows *rows, const bool *marked,
								   int ncolumns);

/* The type of a column as given to mr_table_create. */
extern Oid mr_table_column_type(const MrTable *table, int column);

/*
 * The same, and tells by row which were there already: what to do with these is the caller's business.  When others
 * may insert the same keys and then lock such rows, all of them have to do so in this order, each in that of keys, and
 * with `look_first`, which makes no rows that would be in the way for a moment: then nobody waits in a circle.  False,
 * and nothing inserted, when the table takes no direct inserts.
 */
extern bool mr_table_insert_free(MrTable *table, MrRows *rows, bool look_first, bool *conflicts);

/*
 * The first columns of chosen rows as arrays, for statements of the
 * caller's own.
 */
extern void mr_table_arrays(const MrTable *table, const MrRows *rows, const int *chosen,
							int nchosen, int ncolumns, Datum *arrays);

/* Plain append: a key that is there already is an error. */
extern void mr_table_append(MrTable *table, MrRows *rows);

/*
 * Deletes all rows whose first `nkeys_given` key columns equal a row of `keys` and returns them in
 * CurrentMemoryContext as heap tuples of the table's descriptor.
 */
extern HeapTuple *mr_table_delete_returning(MrTable *table, int nkeys_given, MrRows *keys,
											int *ndeleted);

#endif /* MR_CORE_WRITER_H */
