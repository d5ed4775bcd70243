/*
 * statement.h
 *	  Saved SQL statements: prepared when first run, kept for the life of their owner.
 */
#ifndef MR_CORE_STATEMENT_H
#define MR_CORE_STATEMENT_H

#include "executor/spi.h"

typedef struct MrStatement MrStatement;

/*
 * A statement of `nargs` parameters.  Lives in CurrentMemoryContext (its plan in CacheMemoryContext until
 * that context is deleted).  It is prepared under pg_catalog, pg_temp when it runs first.
 */
extern MrStatement *mr_statement_create(const char *sql, int nargs, const Oid *types);

/*
 * Runs it under SPI (the caller has connected) in a new snapshot, as the current user.  nulls may be NULL.
 * Returns the number of rows; rows of a SELECT or RETURNING stand in SPI_tuptable, which the caller frees.
 * CurrentMemoryContext is what it was.
 */
extern uint64 mr_statement_run(MrStatement *statement, Datum *values, const char *nulls);

/*
 * The same of a statement that the process keeps: it is created when it runs first.  It goes through
 * indexes, because its plan is made when the tables may be empty still, and has to be right for long
 * ones as well.
 */
extern uint64 mr_statement_by_index(MrStatement **statement, const char *sql, int nargs,
									const Oid *types, Datum *values);

/* An array that grows, to be given to a statement; lives in CurrentMemoryContext. */
typedef struct MrArray MrArray;
extern MrArray *mr_array_create(Oid type, int expected);
extern void mr_array_add(MrArray *array, Datum value, bool isnull);
extern void mr_array_add_text(MrArray *array, const char *text); /* NULL is null */
extern int mr_array_length(const MrArray *array);
extern Datum mr_array_datum(const MrArray *array);

/* Runs SQL one time, from a format as in psprintf (quote identifiers and literals yourself). */
extern uint64 mr_sql(const char *format, ...) pg_attribute_printf(1, 2);

/* The same with parameters. */
extern uint64 mr_sql_with(const char *sql, int nargs, const Oid *types, Datum *values,
						  const char *nulls);

/* Prepares a statement for as long as the session, or until SPI_freeplan(). */
extern SPIPlanPtr mr_sql_prepare(const char *sql, int nargs, Oid *types);

/* Column `column` (from 1) of row `row` (from 0) of SPI_tuptable. */
extern Datum mr_sql_value(uint64 row, int column, bool *isnull);
extern char *mr_sql_text(uint64 row, int column); /* palloc'd, NULL when null */

/* The first column of the `count` rows of SPI_tuptable, which is freed, as integers. */
extern List *mr_sql_ids(uint64 count);

/* "schema"."table", quoted where needed. */
extern char *mr_relation_name(Oid relid);

#endif /* MR_CORE_STATEMENT_H */
