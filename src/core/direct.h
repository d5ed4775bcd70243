/*
 * direct.h
 *	  Inserting straight through the table access method, for plain local tables (C12).
 *
 * Heap tuples go in by the page; then index entries, one by one in the order of the key.  A unique index is
 * asked without waiting: a row whose key may be there already is taken back, and looked at more closely.
 */
#ifndef MR_CORE_DIRECT_H
#define MR_CORE_DIRECT_H

#include "core/writer.h"
#include "utils/relcache.h"

/* What becomes of a row whose key is in the unique index. */
typedef enum MrConflict
{
	MR_CONFLICT_ERROR, /* it is an error, as for any INSERT */
	MR_CONFLICT_SKIP /* it is left out when the other row stays; for that we wait */
} MrConflict;

typedef struct MrDirect MrDirect;

/*
 * Is it a heap table whose rows nothing else has a say in: partitions, triggers, rules, row security, generated
 * columns, check constraints?
 */
extern bool mr_direct_is_plain(Relation relation);

/*
 * Opens the table for direct inserts of those columns by the current user.  NULL when the table is not plain
 * enough: partitioned, with triggers, rules, row security, generated columns, check constraints, defaults for
 * columns that are not given, indexes over expressions or parts, or a unique index on anything but the key.
 * With `probe_first` keys are looked up before they are inserted: worth it when many of them are there.
 */
extern MrDirect *mr_direct_open(Oid relid, int ncolumns, const AttrNumber *attnums, int nkeys,
								bool probe_first);
extern void mr_direct_close(MrDirect *direct);

/*
 * Inserts the rows in the given order, which is that of their keys: so two of us that insert the same keys never wait for
 * each other in a circle.  conflicts (may be NULL) tells by row which were left out; with `ncompared`, only those of
 * which one of so many first columns differs from the row that is there.  Returns how many were inserted.
 */
extern int64 mr_direct_insert(MrDirect *direct, const MrRows *rows, const int *order,
							  MrConflict mode, int ncompared, bool *conflicts);

/* Were so many of the rows left out that it is better to look first, next time? */
extern bool mr_direct_many_conflicts(const MrDirect *direct, int nrows);

#endif /* MR_CORE_DIRECT_H */
