/*
 * change.c
 *	  Rows of a source's table: checking them, and writing them as JSON.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/jsonapi.h"
#include "source/change.h"
#include "utils/builtins.h"
#include "utils/json.h"

/* Raises the error of a row that is none; whoever sent it is asked again. */
static void
report_broken(void)
{
	ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
					errmsg("the source has sent a row that cannot be read")));
}

const char *
mr_row_check(const char *row, const char *end, int ncolumns)
{
	uint16 count;

	if (end - row < (ptrdiff_t) sizeof(count))
		report_broken();
	memcpy(&count, row, sizeof(count));
	if (pg_ntoh16(count) != ncolumns)
		report_broken();
	row += sizeof(count);
	for (int i = 0; i < ncolumns; i++)
	{
		uint32 length;

		if (row >= end)
			report_broken();
		switch (*row++)
		{
			case MR_COLUMN_NULL:
			case MR_COLUMN_UNCHANGED:
				break;
			case MR_COLUMN_TEXT:
				if (end - row < (ptrdiff_t) sizeof(length))
					report_broken();
				memcpy(&length, row, sizeof(length));
				length = pg_ntoh32(length);
				row += sizeof(length);
				if (length > (size_t) (end - row))
					report_broken();
				row += length;
				break;
			default:
				report_broken();
		}
	}
	return row;
}

void
mr_row_write_count(StringInfo row, int ncolumns)
{
	uint16 count = pg_hton16((uint16) ncolumns);

	appendBinaryStringInfo(row, (char *) &count, sizeof(count));
}

void
mr_row_write(StringInfo row, const char *text, int length)
{
	uint32 written = pg_hton32((uint32) length);

	appendStringInfoCharMacro(row, text == NULL ? MR_COLUMN_NULL : MR_COLUMN_TEXT);
	if (text == NULL)
		return;
	appendBinaryStringInfo(row, (char *) &written, sizeof(written));
	appendBinaryStringInfo(row, text, length);
}

/* A value as JSON has it: numbers and booleans as such, JSON as it is, everything else as a string. */
static void
append_value(StringInfo json, Oid type, const MrRowValue *value)
{
	char *text;

	switch (type)
	{
		case BOOLOID:
			appendStringInfoString(json, value->text[0] == 't' ? "true" : "false");
			return;
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case FLOAT4OID:
		case FLOAT8OID:
		case NUMERICOID:
			/* Some of them are no numbers. */
			if (IsValidJsonNumber(value->text, value->length))
			{
				appendBinaryStringInfo(json, value->text, value->length);
				return;
			}
			break;
		case JSONOID:
		case JSONBOID:
			appendBinaryStringInfo(json, value->text, value->length);
			return;
		default:
			break;
	}
	text = pnstrdup(value->text, value->length);
	escape_json(json, text);
	pfree(text);
}

char *
mr_row_copy(MrBatch *batch, const MrRelation *relation, const char *bytes, int length)
{
	batch->bytes += relation->names_length;
	return mr_batch_copy(batch, bytes, length);
}

char *
mr_row_json(const MrRelation *relation, const char *row, bool key_only, int *length)
{
	StringInfoData json;
	MrRowReader reader;
	MrRowValue value;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	mr_row_begin(&reader, row);
	for (int i = 0; i < relation->ncolumns && mr_row_next(&reader, &value); i++)
	{
		if (value.kind == MR_COLUMN_UNCHANGED || (key_only && !relation->columns[i].key))
			continue;
		if (json.len > 1)
			appendStringInfoString(&json, ", ");
		escape_json(&json, relation->columns[i].name);
		appendStringInfoString(&json, ": ");
		if (value.kind == MR_COLUMN_NULL)
			appendStringInfoString(&json, "null");
		else
			append_value(&json, relation->columns[i].type, &value);
	}
	appendStringInfoChar(&json, '}');
	*length = json.len;
	return json.data;
}

char *
mr_row_unsent(const MrRelation *relation, const char *row)
{
	StringInfoData json;
	MrRowReader reader;
	MrRowValue value;

	initStringInfo(&json);
	appendStringInfoChar(&json, '[');
	mr_row_begin(&reader, row);
	for (int i = 0; i < relation->ncolumns && mr_row_next(&reader, &value); i++)
	{
		if (value.kind != MR_COLUMN_UNCHANGED)
			continue;
		if (json.len > 1)
			appendStringInfoString(&json, ", ");
		escape_json(&json, relation->columns[i].name);
	}
	appendStringInfoChar(&json, ']');
	return json.data;
}

bool
mr_row_key_differs(const MrRelation *relation, const char *left, const char *right)
{
	MrRowReader left_reader;
	MrRowReader right_reader;
	MrRowValue l = {0};
	MrRowValue r = {0};

	mr_row_begin(&left_reader, left);
	mr_row_begin(&right_reader, right);
	for (int i = 0; i < relation->ncolumns; i++)
	{
		(void) mr_row_next(&left_reader, &l);
		(void) mr_row_next(&right_reader, &r);
		if (!relation->columns[i].key || l.kind == MR_COLUMN_UNCHANGED ||
			r.kind == MR_COLUMN_UNCHANGED)
			continue;
		if (l.kind != r.kind || l.length != r.length || memcmp(l.text, r.text, l.length) != 0)
			return true;
	}
	return false;
}

char *
mr_row_condition(const MrRelation *relation, const char *row)
{
	StringInfoData sql;
	MrRowReader reader;
	MrRowValue value;

	initStringInfo(&sql);
	mr_row_begin(&reader, row);
	for (int i = 0; i < relation->ncolumns && mr_row_next(&reader, &value); i++)
	{
		if (!relation->columns[i].key || value.kind != MR_COLUMN_TEXT)
			continue;
		appendStringInfo(&sql, "%st.%s = %s", sql.len > 0 ? " AND " : "",
						 quote_identifier(relation->columns[i].name),
						 quote_literal_cstr(pnstrdup(value.text, value.length)));
	}
	return sql.data;
}

void
mr_change_set_key(MrMessage *message)
{
	if (message->relation == NULL || message->key != NULL || message->value == NULL)
		return;
	message->key = mr_row_json(message->relation, message->value, true, &message->key_length);
}

MrMessage
mr_message_readable(const MrMessage *message)
{
	MrMessage readable = *message;

	if (message->relation == NULL)
		return readable;
	mr_change_set_key(&readable);
	if (message->before != NULL)
		readable.before = mr_row_json(message->relation, message->before, !message->relation->whole,
									  &readable.before_length);
	if (message->op == MR_OP_UPDATE)
		readable.unsent = mr_row_unsent(message->relation, message->value);
	if (message->value != NULL)
		readable.value = mr_row_json(message->relation, message->value,
									 message->op == 'D' && !message->relation->whole,
									 &readable.value_length);
	readable.relation = NULL;
	return readable;
}
