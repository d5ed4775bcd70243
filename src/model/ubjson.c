/*
 * ubjson.c
 *	  Universal Binary JSON (draft 12) as JSON.
 *
 * Bytes may come from anybody: nothing is read beyond their end, and what is written is no more than some times as long.
 */
#include "postgres.h"

#include <math.h>

#include "common/shortest_dec.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "model/ubjson.h"
#include "port/pg_bswap.h"
#include "utils/json.h"

typedef struct Reader
{
	const char *at;
	const char *end;
	StringInfo json;
} Reader;

static void write_value(Reader *reader, char type);

/* The next bytes. */
static const char *
take(Reader *reader, Size length)
{
	const char *taken = reader->at;

	if (length > (Size) (reader->end - reader->at))
		ereport(ERROR, (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
						errmsg("invalid UBJSON: it ends too early")));
	reader->at += length;
	return taken;
}

static void
refuse(char type)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
					errmsg("invalid UBJSON: unexpected marker %d", (unsigned char) type)));
}

/* How many bytes a number has; 0: it is no number. */
static int
number_width(char type)
{
	switch (type)
	{
		case 'i':
		case 'U':
			return 1;
		case 'I':
			return 2;
		case 'l':
		case 'd':
			return 4;
		case 'L':
		case 'D':
			return 8;
		default:
			return 0;
	}
}

static int64
take_integer(Reader *reader, char type)
{
	int width = number_width(type);
	const char *bytes;
	uint16 two;
	uint32 four;
	uint64 eight;

	if (width == 0 || type == 'd' || type == 'D')
		refuse(type);
	bytes = take(reader, width);
	switch (type)
	{
		case 'i':
			return (int8) bytes[0];
		case 'U':
			return (uint8) bytes[0];
		case 'I':
			memcpy(&two, bytes, sizeof(two));
			return (int16) pg_ntoh16(two);
		case 'l':
			memcpy(&four, bytes, sizeof(four));
			return (int32) pg_ntoh32(four);
		default:
			memcpy(&eight, bytes, sizeof(eight));
			return (int64) pg_ntoh64(eight);
	}
}

/* A length or count, with its marker. */
static Size
take_length(Reader *reader)
{
	int64 length = take_integer(reader, *take(reader, 1));

	if (length < 0 || length > reader->end - reader->at)
		ereport(ERROR, (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
						errmsg("invalid UBJSON: a length of " INT64_FORMAT, length)));
	return (Size) length;
}

static void
write_number(Reader *reader, char type)
{
	char text[DOUBLE_SHORTEST_DECIMAL_LEN];
	uint32 four;
	uint64 eight;
	float single;
	double value;

	if (type != 'd' && type != 'D')
	{
		appendStringInfo(reader->json, INT64_FORMAT, take_integer(reader, type));
		return;
	}
	if (type == 'd')
	{
		memcpy(&four, take(reader, sizeof(four)), sizeof(four));
		four = pg_ntoh32(four);
		memcpy(&single, &four, sizeof(four));
		value = single;
		float_to_shortest_decimal_buf(single, text);
	}
	else
	{
		memcpy(&eight, take(reader, sizeof(eight)), sizeof(eight));
		eight = pg_ntoh64(eight);
		memcpy(&value, &eight, sizeof(eight));
		double_to_shortest_decimal_buf(value, text);
	}
	/* XGBoost writes it where categories are split, which is refused by who reads what this stands for */
	if (isnan(value))
		strcpy(text, "null");
	/* whose sign a number of JSON would lose */
	if (value == 0 && signbit(value))
		strcpy(text, "\"-0\"");
	if (isinf(value))
		ereport(ERROR, (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
						errmsg("invalid UBJSON: a number is %s", text)));
	appendStringInfoString(reader->json, text);
}

static void
write_string(Reader *reader)
{
	Size length = take_length(reader);
	const char *bytes = take(reader, length);

	if (memchr(bytes, '\0', length) != NULL || !pg_verify_mbstr(PG_UTF8, bytes, (int) length, true))
		ereport(ERROR, (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
						errmsg("invalid UBJSON: a string is not UTF-8")));
	escape_json(reader->json, pnstrdup(bytes, length));
}

static void
write_array(Reader *reader)
{
	char type = 0;
	Size count = 0;
	bool counted = false;

	if (*take(reader, 1) == '$')
	{
		type = *take(reader, 1);
		/* Only what has bytes of its own: a count of others would be written without having been read. */
		if (number_width(type) == 0)
			refuse(type);
		if (*take(reader, 1) != '#')
			refuse('$');
		counted = true;
	}
	else if (reader->at[-1] == '#')
		counted = true;
	else
		reader->at--;
	if (counted)
		count = take_length(reader);
	appendStringInfoChar(reader->json, '[');
	for (Size n = 0; !counted || n < count; n++)
	{
		char next = type != 0 ? type : *take(reader, 1);

		if (!counted && next == ']')
			break;
		if (n > 0)
			appendStringInfoChar(reader->json, ',');
		write_value(reader, next);
	}
	appendStringInfoChar(reader->json, ']');
}

static void
write_object(Reader *reader)
{
	bool first = true;

	appendStringInfoChar(reader->json, '{');
	while (*take(reader, 1) != '}')
	{
		reader->at--;
		if (!first)
			appendStringInfoChar(reader->json, ',');
		first = false;
		write_string(reader);
		appendStringInfoChar(reader->json, ':');
		write_value(reader, *take(reader, 1));
	}
	appendStringInfoChar(reader->json, '}');
}

static void
write_value(Reader *reader, char type)
{
	check_stack_depth();
	CHECK_FOR_INTERRUPTS();
	switch (type)
	{
		case '{':
			write_object(reader);
			break;
		case '[':
			write_array(reader);
			break;
		case 'S':
			write_string(reader);
			break;
		case 'T':
			appendStringInfoString(reader->json, "true");
			break;
		case 'F':
			appendStringInfoString(reader->json, "false");
			break;
		case 'Z':
			appendStringInfoString(reader->json, "null");
			break;
		default:
			if (number_width(type) == 0)
				refuse(type);
			write_number(reader, type);
	}
}

char *
mr_ubjson_to_json(const char *bytes, Size length)
{
	Reader reader = {.at = bytes, .end = bytes + length, .json = makeStringInfo()};

	write_value(&reader, *take(&reader, 1));
	if (reader.at != reader.end)
		ereport(ERROR, (errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
						errmsg("invalid UBJSON: it goes on after its end")));
	return reader.json->data;
}
