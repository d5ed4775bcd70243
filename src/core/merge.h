/*
 * merge.h
 *	  Adding differences to counters: the bulk writer's third verb, for tables that count.
 *
 * A row that is there gets the differences added, one that is not is inserted, one that counts nothing any more
 * goes.  Instead of counters, there may be one value that the caller computes.  Keys are visited in the order of the unique
 * index, each locked or inserted before the next, so that two writers of the same keys wait for each other and never in a
 * circle (C4).
 */
#ifndef MR_CORE_MERGE_H
#define MR_CORE_MERGE_H

#include "core/writer.h"
#include "storage/itemptr.h"

/* How a column follows. */
typedef enum MrMergeColumn
{
	MR_MERGE_KEY,
	MR_MERGE_FIXED, /* a function of the key: given when the row is inserted */
	MR_MERGE_INT8,
	MR_MERGE_RARE_INT8, /* NULL is 0 */
	MR_MERGE_NUMERIC,
	MR_MERGE_VALUE /* the caller computes it: the only column beside keys */
} MrMergeColumn;

/* What becomes of a row whose counter comes to 0. */
typedef enum MrMergeEmpty
{
	MR_EMPTY_GOES,
	MR_EMPTY_STAYS,
	MR_EMPTY_GOES_IF_ALL_ARE /* when every other column is 0, too */
} MrMergeEmpty;

typedef struct MrMerge MrMerge;

/*
 * What becomes of a row's value, `old` (NULL: there is no such row yet); false when nothing is left.  It is asked again when
 * somebody else was faster.
 */
typedef bool (*MrMergeValue)(void *context, int row, const Datum *old, Datum *value);

/*
 * The table is written as its owner-to-be `role`; `columns` of it are `attnums`, the keys first.  `counter` is
 * the number (from 0) of the bigint column that says whether there is anything left, or of the value.
 */
extern MrMerge *mr_merge_create(Oid relid, Oid role, int ncolumns, const AttrNumber *attnums,
								const MrMergeColumn *columns, int counter);

extern Oid mr_merge_relation(const MrMerge *merge);

/*
 * Is the table plain enough?  A heap of the role's own without triggers, rules and policies, with one unique index,
 * over the key.
 */
extern bool mr_merge_is_plain(const MrMerge *merge);

/*
 * Merges rows of different keys into a plain table.  after[r] (may be NULL) is the counter of row r afterwards, places[r] (may
 * be NULL) where the row stands now.  A row that was there keeps its key as it is written, and the given one becomes that.
 */
extern void mr_merge_rows(MrMerge *merge, const MrRows *rows, MrMergeEmpty empty, int64 *after,
						  ItemPointerData *places);

/* The same for rows with a value: only their keys are given. */
extern void mr_merge_values(MrMerge *merge, const MrRows *rows, MrMergeValue compute,
							void *context);

#endif /* MR_CORE_MERGE_H */
