/*
 * value.c
 *	  Converts values of a message to the types of columns.
 *
 * The type's input function says what a text means.  For the types that messages are full of, texts
 * of the usual shape are converted here, to exactly the datum that the input function gives;
 * whatever has another shape goes to the input function, which also raises the errors.
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/uuid.h"

#include "decode/connect.h"
#include "decode/times.h"
#include "decode/value.h"

/* Longest text that is terminated on the stack. */
#define SHORT_TEXT 256

typedef Datum (*ConvertFunction)(MrConverter *converter, const MrValue *value);

struct MrConverter
{
	ConvertFunction convert;
	ConvertFunction convert_typed; /* what needs no format */
	Oid type;
	Oid base; /* of a domain, else the type */
	int32 typmod;
	FmgrInfo input;
	Oid ioparam;
	MrTimeUnit unit;
	Datum pattern; /* of to_timestamp(), as text */
	MrConnect *connect; /* of base64 */
};

/* Calls the type's input function. */
static Datum
convert_text(MrConverter *converter, const char *text, int length)
{
	char buffer[SHORT_TEXT];
	char *copy = length < SHORT_TEXT ? buffer : palloc(length + 1);

	memcpy(copy, text, length);
	copy[length] = '\0';
	return InputFunctionCall(&converter->input, copy, converter->ioparam, converter->typmod);
}

/* Any type without a way of its own. */
static Datum
convert_any(MrConverter *converter, const MrValue *value)
{
	return convert_text(converter, value->text, value->length);
}

/* text, and varchar without a limit. */
static Datum
convert_to_text(MrConverter *converter, const MrValue *value)
{
	return PointerGetDatum(cstring_to_text_with_len(value->text, value->length));
}

/* varchar(n): as many bytes as characters are allowed always fit. */
static Datum
convert_to_varchar(MrConverter *converter, const MrValue *value)
{
	if (value->length <= converter->typmod - VARHDRSZ)
		return PointerGetDatum(cstring_to_text_with_len(value->text, value->length));
	return convert_text(converter, value->text, value->length);
}

/* Reads a number of at most 18 digits; false for anything else. */
static inline bool
read_integer(const char *text, int length, int64 *result)
{
	bool negative = length > 0 && *text == '-';
	const char *p = text + (negative ? 1 : 0);
	const char *end = text + length;
	int64 n = 0;

	if (p == end || end - p > 18)
		return false;
	for (; p < end; p++)
	{
		unsigned int d = (unsigned char) *p - '0';

		if (d > 9)
			return false;
		n = n * 10 + (int64) d;
	}
	*result = negative ? -n : n;
	return true;
}

/* An integer in another spelling: JSON has 5.0 and 1e3 for whole numbers. */
static Datum
convert_odd_integer(MrConverter *converter, const MrValue *value)
{
	if (value->kind == MR_NUMBER && value->form != MR_FORM_PLAIN)
	{
		char *copy = pnstrdup(value->text, value->length);

		if (strpbrk(copy, ".eE"))
		{
			Datum number = DirectFunctionCall3(numeric_in, CStringGetDatum(copy),
											   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
			Datum whole = DirectFunctionCall2(numeric_trunc, number, Int32GetDatum(0));

			if (DatumGetBool(DirectFunctionCall2(numeric_eq, number, whole)))
			{
				char digits[MAXINT8LEN + 1];
				int64 n = DatumGetInt64(DirectFunctionCall1(numeric_int8, whole));

				return convert_text(converter, digits,
									snprintf(digits, sizeof(digits), INT64_FORMAT, n));
			}
		}
	}
	return convert_text(converter, value->text, value->length);
}

/* smallint */
static Datum
convert_to_int2(MrConverter *converter, const MrValue *value)
{
	int64 n;

	if (read_integer(value->text, value->length, &n) && n >= PG_INT16_MIN && n <= PG_INT16_MAX)
		return Int16GetDatum((int16) n);
	return convert_odd_integer(converter, value);
}

/* integer */
static Datum
convert_to_int4(MrConverter *converter, const MrValue *value)
{
	int64 n;

	if (read_integer(value->text, value->length, &n) && n >= PG_INT32_MIN && n <= PG_INT32_MAX)
		return Int32GetDatum((int32) n);
	return convert_odd_integer(converter, value);
}

/* bigint */
static Datum
convert_to_int8(MrConverter *converter, const MrValue *value)
{
	int64 n;

	if (read_integer(value->text, value->length, &n))
		return Int64GetDatum(n);
	return convert_odd_integer(converter, value);
}

/* boolean */
static Datum
convert_to_bool(MrConverter *converter, const MrValue *value)
{
	if (value->kind == MR_BOOLEAN)
		return BoolGetDatum(value->text[0] == 't');
	return convert_text(converter, value->text, value->length);
}

/* The value of a hexadecimal digit; 16 or more for anything else. */
static inline unsigned int
hex_digit(unsigned char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return 16;
}

/* uuid, in its usual shape of 8-4-4-4-12 digits */
static Datum
convert_to_uuid(MrConverter *converter, const MrValue *value)
{
	const char *p = value->text;
	pg_uuid_t *uuid;
	int i;

	if (value->length != 36 || p[8] != '-' || p[13] != '-' || p[18] != '-' || p[23] != '-')
		return convert_text(converter, value->text, value->length);
	uuid = palloc(sizeof(pg_uuid_t));
	for (i = 0; i < UUID_LEN; i++)
	{
		unsigned int high;
		unsigned int low;

		if (i == 4 || i == 6 || i == 8 || i == 10)
			p++;
		high = hex_digit(*p++);
		low = hex_digit(*p++);
		if (high > 15 || low > 15)
			return convert_text(converter, value->text, value->length);
		uuid->data[i] = high << 4 | low;
	}
	return UUIDPGetDatum(uuid);
}

/* timestamptz in the ISO shape */
static Datum
convert_to_timestamptz(MrConverter *converter, const MrValue *value)
{
	TimestampTz result;

	if (mr_time_iso_timestamptz(value->text, value->length, &result))
		return TimestampTzGetDatum(result);
	return convert_text(converter, value->text, value->length);
}

/* timestamp in the ISO shape */
static Datum
convert_to_timestamp(MrConverter *converter, const MrValue *value)
{
	Timestamp result;

	if (mr_time_iso_timestamp(value->text, value->length, &result))
		return TimestampGetDatum(result);
	return convert_text(converter, value->text, value->length);
}

/* date in the ISO shape */
static Datum
convert_to_date(MrConverter *converter, const MrValue *value)
{
	DateADT result;

	if (mr_time_iso_date(value->text, value->length, &result))
		return DateADTGetDatum(result);
	return convert_text(converter, value->text, value->length);
}

/* json: the parser has already found it valid */
static Datum
convert_to_json(MrConverter *converter, const MrValue *value)
{
	int length;
	const char *json = mr_value_json(value, &length);

	if (json)
		return PointerGetDatum(cstring_to_text_with_len(json, length));
	return convert_text(converter, value->text, value->length);
}

/* jsonb, and domains over json and jsonb */
static Datum
convert_json_text(MrConverter *converter, const MrValue *value)
{
	int length;
	const char *json = mr_value_json(value, &length);

	if (json)
		return convert_text(converter, json, length);
	return convert_text(converter, value->text, value->length);
}

/* A number of units since midnight, which was counted from 1970. */
static Datum
time_of_day(MrConverter *converter, const MrValue *value, TimestampTz instant)
{
	int64 n = instant + (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;

	if (n < 0 || n > USECS_PER_DAY)
		ereport(ERROR, (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
						errmsg("time of day out of range: \"%s\"",
							   pnstrdup(value->text, Min(value->length, 100)))));
	return DirectFunctionCall2(time_scale, TimeADTGetDatum(n), Int32GetDatum(converter->typmod));
}

/*
 * A time in a declared format.  A number since the epoch and a pattern give an instant, which
 * becomes a timestamp or date as PostgreSQL casts it, in the session's time zone; a number of days
 * is a day wherever one is.
 */
static Datum
convert_formatted_time(MrConverter *converter, const MrValue *value)
{
	Datum instant;

	if (converter->unit == MR_UNIT_NONE)
		instant = DirectFunctionCall2Coll(
			to_timestamp, DEFAULT_COLLATION_OID,
			PointerGetDatum(cstring_to_text_with_len(value->text, value->length)),
			converter->pattern);
	else
		instant =
			TimestampTzGetDatum(mr_time_since_epoch(value->text, value->length, converter->unit));

	if (converter->base == TIMEOID)
		return time_of_day(converter, value, DatumGetTimestampTz(instant));
	/* A timestamp has the same representation: the day that was counted, without a zone. */
	if (converter->base == DATEOID)
		return DirectFunctionCall1(
			converter->unit == MR_UNIT_DAYS ? timestamp_date : timestamptz_date, instant);
	if (converter->base == TIMESTAMPOID)
	{
		if (converter->unit != MR_UNIT_DAYS)
			instant = DirectFunctionCall1(timestamptz_timestamp, instant);
		return DirectFunctionCall2(timestamp_scale, instant, Int32GetDatum(converter->typmod));
	}
	return DirectFunctionCall2(timestamptz_scale, instant, Int32GetDatum(converter->typmod));
}

/* The scale in a numeric's typmod. */
static int
typmod_scale(int32 typmod)
{
	return (((typmod - VARHDRSZ) & 0x7ff) ^ 1024) - 1024;
}

/* numeric, from Kafka Connect's bytes: of the declared scale, or with one of its own */
static Datum
convert_base64_numeric(MrConverter *converter, const MrValue *value)
{
	char *text;

	/* A connector that was told to write numbers does. */
	if (value->kind == MR_NUMBER)
		return converter->convert_typed(converter, value);
	if (value->kind == MR_CONTAINER)
		text = mr_connect_variable_decimal(converter->connect, value);
	else if (converter->typmod < (int32) VARHDRSZ)
		ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION),
						errmsg("decimal \"%s\" comes without a scale",
							   pnstrdup(value->text, Min(value->length, 100))),
						errhint("Declare the column as numeric(precision, scale), as it is at the "
								"source.")));
	else
		text = mr_connect_decimal(value->text, value->length, typmod_scale(converter->typmod));
	return InputFunctionCall(&converter->input, text, converter->ioparam, converter->typmod);
}

/* bytea from base64 */
static Datum
convert_base64_bytea(MrConverter *converter, const MrValue *value)
{
	int nbytes;
	char *bytes = mr_connect_bytes(value->text, value->length, &nbytes);

	return PointerGetDatum(cstring_to_text_with_len(bytes, nbytes));
}

/* The way to convert to a type that is no domain and has no format. */
static ConvertFunction
choose_function(Oid type, int32 typmod)
{
	switch (type)
	{
		case TEXTOID:
			return convert_to_text;
		case VARCHAROID:
			return typmod < (int32) VARHDRSZ ? convert_to_text : convert_to_varchar;
		case INT2OID:
			return convert_to_int2;
		case INT4OID:
			return convert_to_int4;
		case INT8OID:
			return convert_to_int8;
		case BOOLOID:
			return convert_to_bool;
		case UUIDOID:
			return convert_to_uuid;
		case DATEOID:
			return convert_to_date;
		/* Fewer digits of a second than six are rounded by the input function. */
		case TIMESTAMPOID:
			return typmod < 0 || typmod >= MAX_TIMESTAMP_PRECISION ? convert_to_timestamp
																   : convert_any;
		case TIMESTAMPTZOID:
			return typmod < 0 || typmod >= MAX_TIMESTAMP_PRECISION ? convert_to_timestamptz
																   : convert_any;
		case JSONOID:
			return convert_to_json;
		case JSONBOID:
			return convert_json_text;
		default:
			return convert_any;
	}
}

/*
 * The way to convert to a domain: its input function checks it, so only the text may be prepared.
 */
static ConvertFunction
choose_domain_function(Oid base)
{
	if (base == JSONOID || base == JSONBOID)
		return convert_json_text;
	if (base == INT2OID || base == INT4OID || base == INT8OID)
		return convert_odd_integer;
	return convert_any;
}

/* Can a format be of the type? */
static bool
format_fits(const char *format, Oid type)
{
	MrTimeUnit unit = mr_time_unit(format);

	switch (type)
	{
		case NUMERICOID:
		case BYTEAOID:
			return strcmp(format, "base64") == 0;
		case TIMEOID:
			return unit != MR_UNIT_NONE && unit != MR_UNIT_DAYS;
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return strcmp(format, "base64") != 0;
		default:
			return false;
	}
}

/* Takes a format into the converter. */
static void
set_format(MrConverter *converter, const char *format)
{
	if (!format_fits(format, converter->type))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("format \"%s\" does not go with type %s", format,
						format_type_be(converter->type)),
				 errhint("Formats are for date, timestamp and timestamptz; \"s\", \"ms\", \"us\" "
						 "and \"ns\" also for time; \"base64\" is for numeric and bytea.")));
	if (converter->type == NUMERICOID || converter->type == BYTEAOID)
	{
		converter->connect = mr_connect_create();
		converter->convert = converter->type == NUMERICOID ? convert_base64_numeric
														   : convert_base64_bytea;
		return;
	}
	converter->unit = mr_time_unit(format);
	/* A pattern without a year is a unit misspelt. */
	if (converter->unit == MR_UNIT_NONE && !strpbrk(format, "YyIiJj"))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown format \"%s\" of a time", format),
				 errhint("A format is \"s\", \"ms\", \"us\", \"ns\", \"days\", or a pattern of "
						 "to_timestamp() with a year, like \"YYYY-MM-DD\".")));
	if (converter->unit == MR_UNIT_NONE)
		converter->pattern = CStringGetTextDatum(format);
	converter->convert = convert_formatted_time;
}

/* Creates a converter to a type. */
MrConverter *
mr_converter_create(Oid type, int32 typmod, const char *format)
{
	MrConverter *converter = palloc0(sizeof(MrConverter));
	Oid input;

	converter->type = type;
	converter->base = getBaseType(type);
	converter->typmod = typmod;
	getTypeInputInfo(type, &input, &converter->ioparam);
	fmgr_info(input, &converter->input);
	if (converter->base == type)
		converter->convert = choose_function(type, typmod);
	else
		converter->convert = choose_domain_function(converter->base);
	converter->convert_typed = converter->convert;
	if (format)
		set_format(converter, format);
	return converter;
}

/* Converts a value that is not null. */
Datum
mr_convert(MrConverter *converter, const MrValue *value)
{
	Assert(!mr_value_is_null(value));
	if (value->form == MR_FORM_TYPED)
		return converter->convert_typed(converter, value);
	return converter->convert(converter, value);
}
