/*
 * pgoutput.c
 *	  Reads what pgoutput writes.
 *
 * Core's readers (logicalproto.h) make a StringInfo of every column; here a row stays the bytes that came, which are
 * checked once and then read in place.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "source/pgoutput.h"

/* What is left of a message. */
typedef struct Reader
{
	const char *next;
	const char *end;
} Reader;

static void
report_broken(void)
{
	ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
					errmsg("the source has sent a message that cannot be read"),
					errdetail("It is none of pgoutput's, version 1.")));
}

static const char *
take(Reader *reader, int length)
{
	const char *taken = reader->next;

	if (reader->end - reader->next < length)
		report_broken();
	reader->next += length;
	return taken;
}

static uint8
take_byte(Reader *reader)
{
	return (uint8) *take(reader, 1);
}

static uint16
take_int16(Reader *reader)
{
	uint16 value;

	memcpy(&value, take(reader, sizeof(value)), sizeof(value));
	return pg_ntoh16(value);
}

static uint32
take_int32(Reader *reader)
{
	uint32 value;

	memcpy(&value, take(reader, sizeof(value)), sizeof(value));
	return pg_ntoh32(value);
}

static uint64
take_int64(Reader *reader)
{
	uint64 value;

	memcpy(&value, take(reader, sizeof(value)), sizeof(value));
	return pg_ntoh64(value);
}

static const char *
take_string(Reader *reader)
{
	const char *string = reader->next;
	const char *end = memchr(string, '\0', reader->end - string);

	if (end == NULL)
		report_broken();
	reader->next = end + 1;
	return string;
}

/* A table's description. */
static MrRelation *
take_relation(Reader *reader)
{
	MrRelation *relation = palloc0(sizeof(MrRelation));
	const char *schema;
	const char *name;

	relation->oid = take_int32(reader);
	schema = take_string(reader);
	name = take_string(reader);
	relation->name = psprintf("%s.%s", schema[0] == '\0' ? "pg_catalog" : schema, name);
	relation->whole = take_byte(reader) == 'f';
	relation->ncolumns = take_int16(reader);
	relation->columns = palloc0(sizeof(MrColumn) * Max(relation->ncolumns, 1));
	for (int i = 0; i < relation->ncolumns; i++)
	{
		MrColumn *column = &relation->columns[i];

		column->key = (take_byte(reader) & 1) != 0;
		column->name = pstrdup(take_string(reader));
		column->type = take_int32(reader);
		column->typmod = (int32) take_int32(reader);
	}
	return relation;
}

/* What comes before the rows of a change. */
static void
take_change(Reader *reader, char op, MrPgoutput *message)
{
	char kind;

	message->kind = MR_PGOUTPUT_CHANGE;
	message->op = op;
	message->oid = take_int32(reader);
	kind = (char) take_byte(reader);
	message->before_kind = 0;
	if (kind == 'K' || kind == 'O')
		message->before_kind = kind;
	else if (kind != 'N')
		report_broken();
	if ((op == MR_OP_INSERT && message->before_kind != 0) ||
		(op == MR_OP_DELETE && message->before_kind == 0))
		report_broken();
	message->rows = reader->next;
	message->rows_end = reader->end;
}

void
mr_pgoutput_parse(const char *bytes, int length, MrPgoutput *message)
{
	Reader reader = {bytes, bytes + length};
	char letter = (char) take_byte(&reader);

	switch (letter)
	{
		case 'B':
			message->kind = MR_PGOUTPUT_BEGIN;
			message->commit = take_int64(&reader);
			message->time = (TimestampTz) take_int64(&reader);
			message->xid = take_int32(&reader);
			break;
		case 'C':
			message->kind = MR_PGOUTPUT_COMMIT;
			(void) take_byte(&reader);
			message->commit = take_int64(&reader);
			message->end = take_int64(&reader);
			message->time = (TimestampTz) take_int64(&reader);
			break;
		case 'R':
			message->kind = MR_PGOUTPUT_RELATION;
			message->relation = take_relation(&reader);
			break;
		case 'Y':
			{
				const char *schema;

				message->kind = MR_PGOUTPUT_TYPE;
				message->oid = take_int32(&reader);
				schema = take_string(&reader);
				message->type = psprintf("%s.%s", schema[0] == '\0' ? "pg_catalog" : schema,
										 take_string(&reader));
				break;
			}
		case 'I':
			take_change(&reader, MR_OP_INSERT, message);
			break;
		case 'U':
			take_change(&reader, MR_OP_UPDATE, message);
			break;
		case 'D':
			take_change(&reader, MR_OP_DELETE, message);
			break;
		case 'T':
			message->kind = MR_PGOUTPUT_TRUNCATE;
			message->ntruncated = (int) take_int32(&reader);
			(void) take_byte(&reader);
			if (message->ntruncated < 0 || message->ntruncated > (reader.end - reader.next) / 4)
				report_broken();
			message->truncated = palloc(sizeof(Oid) * Max(message->ntruncated, 1));
			for (int i = 0; i < message->ntruncated; i++)
				message->truncated[i] = take_int32(&reader);
			break;
		case 'O': /* where a transaction came from first */
		case 'M': /* a message of an application */
			message->kind = MR_PGOUTPUT_OTHER;
			break;
		default:
			report_broken();
	}
}

void
mr_pgoutput_rows(const MrPgoutput *message, int ncolumns, const char **before, const char **after)
{
	const char *next = message->rows;

	*before = *after = NULL;
	if (message->before_kind != 0)
	{
		*before = next;
		next = mr_row_check(next, message->rows_end, ncolumns);
		if (message->op == MR_OP_DELETE)
			return;
		/* A new row has its letter, too. */
		if (next >= message->rows_end || *next++ != 'N')
			report_broken();
	}
	*after = next;
	(void) mr_row_check(next, message->rows_end, ncolumns);
}
