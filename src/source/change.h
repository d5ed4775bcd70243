/*
 * change.h
 *	  Rows of a source's table, as changes bring them.
 *
 * A row is kept as the bytes in which pgoutput sends it: the number of columns, then for each one a letter (n: null, u: not
 * sent because it has not changed, t: text) and for t the length and the text.  A message whose `relation` is set has
 * such a row as its value, and as `before` the old row, or of it the columns of the replica identity only.
 */
#ifndef MR_SOURCE_CHANGE_H
#define MR_SOURCE_CHANGE_H

#include "core/batch.h"
#include "lib/stringinfo.h"
#include "port/pg_bswap.h"

#define MR_COLUMN_NULL 'n'
#define MR_COLUMN_UNCHANGED 'u'
#define MR_COLUMN_TEXT 't'

typedef struct MrColumn
{
	const char *name;
	Oid type; /* at the source; those of PostgreSQL itself are the same here */
	int32 typmod;
	bool key; /* of the replica identity */
} MrColumn;

/* A table of the source as it described itself; lives as long as the feed. */
typedef struct MrRelation
{
	Oid oid; /* at the source */
	uint64 serial; /* another one for each description */
	const char *name; /* schema.table */
	bool whole; /* the replica identity is the whole row */
	int ncolumns;
	MrColumn *columns;
	int names_length; /* of the columns' names in a row as JSON */
} MrRelation;

/* Reads the columns of a row in order; the row has been checked when it came. */
typedef struct MrRowReader
{
	const char *next;
	int left;
} MrRowReader;

typedef struct MrRowValue
{
	char kind; /* MR_COLUMN_... */
	const char *text;
	int length;
} MrRowValue;

static inline void
mr_row_begin(MrRowReader *reader, const char *row)
{
	uint16 count;

	memcpy(&count, row, sizeof(count));
	reader->left = pg_ntoh16(count);
	reader->next = row + sizeof(count);
}

static inline bool
mr_row_next(MrRowReader *reader, MrRowValue *value)
{
	uint32 length;

	if (reader->left == 0)
		return false;
	reader->left--;
	value->kind = *reader->next++;
	if (value->kind != MR_COLUMN_TEXT)
	{
		value->text = NULL;
		value->length = 0;
		return true;
	}
	memcpy(&length, reader->next, sizeof(length));
	value->length = (int) pg_ntoh32(length);
	value->text = reader->next + sizeof(length);
	reader->next = value->text + value->length;
	return true;
}

/* Where a row ends that begins here; an error of the connection when it is not one of `ncolumns` columns. */
extern const char *mr_row_check(const char *row, const char *end, int ncolumns);

/* Writes a row: the number of columns first, then each value (text NULL: a null). */
extern void mr_row_write_count(StringInfo row, int ncolumns);
extern void mr_row_write(StringInfo row, const char *text, int length);

/*
 * A copy of rows that have come, in the batch's memory.  They count as their JSON would, so that a batch of changes is as
 * large as one of messages that say the same.
 */
extern char *mr_row_copy(MrBatch *batch, const MrRelation *relation, const char *bytes, int length);

/* A row as a JSON object, without what was not sent; of the replica identity's columns only, or of all. */
extern char *mr_row_json(const MrRelation *relation, const char *row, bool key_only, int *length);

/* Do two rows differ in the replica identity's columns?  What was not sent does not. */
extern bool mr_row_key_differs(const MrRelation *relation, const char *left, const char *right);

/* The names of the columns that were not sent, as a JSON array. */
extern char *mr_row_unsent(const MrRelation *relation, const char *row);

/* The condition that finds the row at the source, by its replica identity. */
extern char *mr_row_condition(const MrRelation *relation, const char *row);

/* Gives a change the key that a message of its kind has: the replica identity's columns as JSON.  Not for other messages. */
extern void mr_change_set_key(MrMessage *message);

/* The message as it is kept: a change's row becomes JSON, in CurrentMemoryContext. */
extern MrMessage mr_message_readable(const MrMessage *message);

#endif /* MR_SOURCE_CHANGE_H */
