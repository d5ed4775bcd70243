/*
 * column.c
 *	  Long columns: in memory as far as they may be, then in a temporary file.
 *
 * Files are closed by their memory context, not by the transaction: of the two it is the one that is sure to come after the
 * last use.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "model/column.h"
#include "utils/memutils.h"

/* What is read or written at once of a column in a file. */
#define WINDOW_BYTES 65536

/* Bytes that this process has, in columns and elsewhere. */
static Size taken = 0;

Size
mr_memory_left(void)
{
	Size allowed = (Size) maintenance_work_mem * 1024;

	return allowed > taken ? allowed - taken : 0;
}

/* Gives back what goes with a context. */
static void
give_back(void *arg)
{
	taken -= *(Size *) arg;
}

void
mr_memory_take(Size bytes)
{
	MemoryContextCallback *callback = palloc0(sizeof(MemoryContextCallback));

	callback->func = give_back;
	callback->arg = palloc(sizeof(Size));
	*(Size *) callback->arg = bytes;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, callback);
	taken += bytes;
}

static Size
window(const MrColumn *column)
{
	return WINDOW_BYTES / column->width;
}

/* Gives a column memory for so many elements. */
static void
resize(MrColumn *column, Size room)
{
	if (column->memory == NULL)
		column->memory = MemoryContextAllocHuge(column->context, room * column->width);
	else
		column->memory = repalloc_huge(column->memory, room * column->width);
	taken += room * column->width;
	taken -= column->room * column->width;
	column->room = room;
}

/* Lets go of what is not the context's. */
static void
release(void *arg)
{
	MrColumn *column = arg;

	taken -= column->room * column->width;
	column->room = 0;
	if (column->file != NULL)
		BufFileClose(column->file);
	column->file = NULL;
}

MrColumn *
mr_column_create(Size width, uint64 expected, uint64 most)
{
	MrColumn *column = palloc0(sizeof(MrColumn));

	column->width = width;
	column->most = most;
	column->context = CurrentMemoryContext;
	column->callback.func = release;
	column->callback.arg = column;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &column->callback);
	resize(column, Max(expected <= most ? expected : 0, window(column)));
	return column;
}

MrColumn *
mr_column_over(void *memory, Size width, uint64 count)
{
	MrColumn *column = palloc0(sizeof(MrColumn));

	column->memory = memory;
	column->width = width;
	column->count = column->held = count;
	return column;
}

void
mr_column_free(MrColumn *column)
{
	release(column);
	pfree(column->memory);
	column->memory = NULL;
	column->count = column->first = column->held = 0;
}

/* Finds an element in the file. */
static void
seek(MrColumn *column, uint64 element)
{
	if (BufFileSeek(column->file, 0, (off_t) (element * column->width), SEEK_SET) != 0)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not seek in a temporary file: %m")));
}

/* Writes what the file does not have yet. */
static void
flush(MrColumn *column)
{
	Size done = column->written - column->first;

	CHECK_FOR_INTERRUPTS();
	if (column->file == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(column->context);

		column->file = BufFileCreateTemp(true);
		MemoryContextSwitchTo(old);
	}
	BufFileWrite(column->file, column->memory + done * column->width,
				 (column->held - done) * column->width);
	column->written = column->count;
}

void
mr_column_make_room(MrColumn *column)
{
	if (column->file == NULL && column->room < column->most)
	{
		resize(column, Min(column->room * 2, column->most));
		return;
	}
	flush(column);
	column->first = column->count;
	column->held = 0;
	if (column->room > window(column))
		resize(column, window(column));
}

void
mr_column_append(MrColumn *column, const void *elements, Size n)
{
	const char *from = elements;

	while (n > 0)
	{
		Size piece = Min(n, column->room - column->held);

		memcpy(column->memory + column->held * column->width, from, piece * column->width);
		column->held += piece;
		column->count += piece;
		from += piece * column->width;
		n -= piece;
		if (n > 0)
			mr_column_make_room(column);
	}
}

void
mr_column_spill(MrColumn *column)
{
	column->most = 0;
	mr_column_make_room(column);
}

void
mr_column_load(MrColumn *column, uint64 first, Size n)
{
	bool is_next = first >= column->first && first <= column->first + column->held;

	Assert(column->file != NULL && first + n <= column->count);
	if (column->written < column->count)
		flush(column);
	if (is_next)
		n = Min(Max(n, window(column)), column->count - first);
	if (n > column->room)
		resize(column, n);
	seek(column, first);
	if (BufFileRead(column->file, column->memory, n * column->width) != n * column->width)
		ereport(ERROR, (errcode_for_file_access(), errmsg("could not read a temporary file: %m")));
	column->first = first;
	column->held = n;
}
