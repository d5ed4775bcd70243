/*
 * column.h
 *	  Long columns: in memory as far as they may be, then in a temporary file.
 *
 * Elements are appended, and then read in pieces, fastest in ascending order.  A column goes with the memory context that
 * it was made in, and its file with it, also when an error ends the transaction.
 */
#ifndef MR_MODEL_COLUMN_H
#define MR_MODEL_COLUMN_H

#include "storage/buffile.h"

typedef struct MrColumn
{
	Size width; /* of an element */
	uint64 count;
	uint64 most; /* elements that may be in memory */
	BufFile *file; /* NULL: all are in memory */
	uint64 written; /* elements in the file */
	char *memory; /* elements from first on */
	Size room; /* for so many */
	uint64 first;
	Size held; /* so many are there */
	MemoryContext context;
	MemoryContextCallback callback;
} MrColumn;

/* Bytes of maintenance_work_mem that this process does not have yet. */
extern Size mr_memory_left(void);

/* Takes so many of them, for as long as CurrentMemoryContext is there. */
extern void mr_memory_take(Size bytes);

/* A column that is going to have about so many elements; lives in CurrentMemoryContext. */
extern MrColumn *mr_column_create(Size width, uint64 expected, uint64 most);

/* A column that is there already, in memory that is not its own. */
extern MrColumn *mr_column_over(void *memory, Size width, uint64 count);

/* Writes all of it to its file. */
extern void mr_column_spill(MrColumn *column);

/* Gives memory and file back. */
extern void mr_column_free(MrColumn *column);

extern void mr_column_make_room(MrColumn *column);
extern void mr_column_load(MrColumn *column, uint64 first, Size n);

/* The place of another element. */
static inline void *
mr_column_add(MrColumn *column)
{
	if (column->held == column->room)
		mr_column_make_room(column);
	column->count++;
	return column->memory + column->held++ * column->width;
}

extern void mr_column_append(MrColumn *column, const void *elements, Size n);

/* Some elements that stand one after the other; they are there until others are read.  Nothing is appended any more. */
static inline void *
mr_column_read(MrColumn *column, uint64 first, Size n)
{
	if (first < column->first || first + n > column->first + column->held)
		mr_column_load(column, first, n);
	return column->memory + (first - column->first) * column->width;
}

#endif /* MR_MODEL_COLUMN_H */
