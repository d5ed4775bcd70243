/*
 * connect.c
 *	  What Kafka Connect's types mean.
 *
 * Connect writes a schema beside the payload, in which a field that is no plain number, string or
 * boolean has a name: org.apache.kafka.connect.data.Decimal, io.debezium.time.MicroTimestamp.  Such
 * values are rewritten as PostgreSQL would write them, so that they fit every type that a column may
 * have been given.  Without a schema the mapping's format says the same.
 */
#include "postgres.h"

#include "common/base64.h"
#include "datatype/timestamp.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"

#include "decode/connect.h"
#include "decode/times.h"

/* Longest decimal, in bytes: what numeric holds before its point is shorter. */
#define MAX_DECIMAL (64 * 1024)

/* Largest scale that numeric has. */
#define MAX_SCALE 16383

/* Digits of a decimal are kept in groups of nine. */
#define GROUP 1000000000
#define GROUP_DIGITS 9

/* What Debezium, by way of PostgreSQL's JDBC driver, makes of an infinite time. */
#define INFINITE "9223372036825200000"
#define MINUS_INFINITE "-9223372036832400000"

/* Where a schema says what its fields are. */
typedef struct FieldSlots
{
	int scope;
	MrSlot field; /* its name */
	MrSlot type;
	MrSlot type_name;
	MrSlot scale;
	MrSlot length;
} FieldSlots;

struct MrConnect
{
	MrPlan *schemas;
	FieldSlots fields;
	FieldSlots nested; /* those within them */
	MrSlot around; /* of a nested field: the name of the one that it is in */

	/* Of decimals that come with their scale. */
	MrPlan *decimals;
	MrSlot decimal_scale;
	MrSlot decimal_value;
};

/* Is the value that text? */
static bool
value_is(const MrValue *value, const char *text)
{
	int length = strlen(text);

	return value->kind == MR_STRING && value->length == length &&
		   memcmp(value->text, text, length) == 0;
}

/* The slots of a schema's fields. */
static FieldSlots
field_slots(MrPlan *plan, const char *fields)
{
	FieldSlots slots;

	slots.scope = mr_plan_scope(plan, mr_path_parse(fields));
	slots.field = mr_plan_slot(plan, slots.scope, mr_path_parse("@.field"));
	slots.type = mr_plan_slot(plan, slots.scope, mr_path_parse("@.type"));
	slots.type_name = mr_plan_slot(plan, slots.scope, mr_path_parse("@.name"));
	slots.scale = mr_plan_slot(plan, slots.scope, mr_path_parse("@.parameters.scale"));
	slots.length = mr_plan_slot(plan, slots.scope, mr_path_parse("@.parameters.length"));
	return slots;
}

/* Makes ready what reads types. */
MrConnect *
mr_connect_create(void)
{
	MrConnect *connect = palloc0(sizeof(MrConnect));

	connect->schemas = mr_plan_create();
	connect->fields = field_slots(connect->schemas, "$.fields[*]");
	connect->nested = field_slots(connect->schemas, "$.fields[*].fields[*]");
	connect->around = mr_plan_slot(connect->schemas, connect->nested.scope,
								   mr_path_parse("@@.field"));
	connect->decimals = mr_plan_create();
	connect->decimal_scale = mr_plan_slot(connect->decimals, MR_SCOPE_MESSAGE,
										  mr_path_parse("$.scale"));
	connect->decimal_value = mr_plan_slot(connect->decimals, MR_SCOPE_MESSAGE,
										  mr_path_parse("$.value"));
	return connect;
}

/* A small number, which Connect also writes as a string; 0 for anything else. */
static int
read_parameter(const MrValue *value)
{
	return mr_value_is_null(value) ? 0 : atoi(pnstrdup(value->text, Min(value->length, 9)));
}

/* The type of one of a schema's fields. */
static MrConnectType
read_type(const MrDocument *document, const FieldSlots *slots, int n)
{
	static const struct
	{
		const char *name;
		MrConnectType type;
	} names[] = {
		{"io.debezium.time.Date", {MR_CONNECT_DATE, MR_UNIT_DAYS}},
		{"io.debezium.time.Time", {MR_CONNECT_TIME, MR_UNIT_MILLISECONDS}},
		{"io.debezium.time.MicroTime", {MR_CONNECT_TIME, MR_UNIT_MICROSECONDS}},
		{"io.debezium.time.NanoTime", {MR_CONNECT_TIME, MR_UNIT_NANOSECONDS}},
		{"io.debezium.time.Timestamp", {MR_CONNECT_TIMESTAMP, MR_UNIT_MILLISECONDS}},
		{"io.debezium.time.MicroTimestamp", {MR_CONNECT_TIMESTAMP, MR_UNIT_MICROSECONDS}},
		{"io.debezium.time.NanoTimestamp", {MR_CONNECT_TIMESTAMP, MR_UNIT_NANOSECONDS}},
		{"io.debezium.time.MicroDuration", {MR_CONNECT_DURATION, MR_UNIT_MICROSECONDS}},
		{"io.debezium.data.VariableScaleDecimal", {MR_CONNECT_VARIABLE_DECIMAL, 0}},
		{"io.debezium.data.Bits", {MR_CONNECT_BITS, 0}},
		{"org.apache.kafka.connect.data.Date", {MR_CONNECT_DATE, MR_UNIT_DAYS}},
		{"org.apache.kafka.connect.data.Time", {MR_CONNECT_TIME, MR_UNIT_MILLISECONDS}},
		{"org.apache.kafka.connect.data.Timestamp", {MR_CONNECT_TIMESTAMP, MR_UNIT_MILLISECONDS}},
		{"org.apache.kafka.connect.data.Decimal", {MR_CONNECT_DECIMAL, 0}},
	};
	const MrValue *name = mr_document_value(document, slots->scope, n, slots->type_name);
	MrConnectType result = {MR_CONNECT_PLAIN, 0};
	int i;

	if (mr_value_is_null(name) &&
		value_is(mr_document_value(document, slots->scope, n, slots->type), "bytes"))
		result.kind = MR_CONNECT_BYTES;
	for (i = 0; i < lengthof(names); i++)
	{
		if (value_is(name, names[i].name))
			result = names[i].type;
	}
	if (result.kind == MR_CONNECT_DECIMAL)
		result.parameter =
			read_parameter(mr_document_value(document, slots->scope, n, slots->scale));
	if (result.kind == MR_CONNECT_BITS)
		result.parameter =
			read_parameter(mr_document_value(document, slots->scope, n, slots->length));
	return result;
}

/* Adds one of a schema's fields to a row, unless it is plain. */
static void
add_field(MrConnectStruct *row, const MrDocument *document, const FieldSlots *slots, int n)
{
	const MrValue *name = mr_document_value(document, slots->scope, n, slots->field);
	MrConnectType type = read_type(document, slots, n);
	MrConnectField *field;

	if (type.kind == MR_CONNECT_PLAIN || name->kind != MR_STRING)
		return;
	row->fields = row->fields ? repalloc(row->fields, (row->nfields + 1) * sizeof(MrConnectField))
							  : palloc(sizeof(MrConnectField));
	field = &row->fields[row->nfields++];
	field->name = pnstrdup(name->text, name->length);
	field->length = name->length;
	field->type = type;
}

/* Reads a schema: its fields are the row's, unless one of them, `after`, is the row. */
MrConnectStruct *
mr_connect_schema_read(MrConnect *connect, const char *text, int length)
{
	MrConnectStruct *row = palloc0(sizeof(MrConnectStruct));
	MrMessage message = {0};
	MrDocument *document;
	int i;

	message.value = (char *) text;
	message.value_length = length;
	document = mr_plan_run(connect->schemas, &message);
	for (i = 0; i < mr_document_elements(document, connect->nested.scope); i++)
	{
		if (value_is(mr_document_value(document, connect->nested.scope, i, connect->around),
					 "after"))
			add_field(row, document, &connect->nested, i);
	}
	for (i = 0; i < mr_document_elements(document, connect->fields.scope); i++)
		add_field(row, document, &connect->fields, i);
	return row;
}

/* The type of a field. */
MrConnectType
mr_connect_field_type(const MrConnectStruct *fields, const char *name, int length)
{
	MrConnectType plain = {MR_CONNECT_PLAIN, 0};
	int i;

	for (i = 0; i < fields->nfields; i++)
	{
		if (fields->fields[i].length == length && memcmp(fields->fields[i].name, name, length) == 0)
			return fields->fields[i].type;
	}
	return plain;
}

/* Raises the error of a value that is not what its type says. */
static void
invalid_value(const char *what, const char *text, int length)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
					errmsg("invalid %s: \"%s\"", what, pnstrdup(text, Min(length, 100)))));
}

/* The bytes that base64 stands for. */
char *
mr_connect_bytes(const char *text, int length, int *nbytes)
{
	int capacity = pg_b64_dec_len(length);
	char *bytes = palloc(capacity + 1);

	*nbytes = pg_b64_decode(text, length, (void *) bytes, capacity);
	if (*nbytes < 0)
		invalid_value("base64", text, length);
	return bytes;
}

/*
 * Writes the digits of the magnitude of a big-endian number in two's complement, right-aligned to `end`; returns
 * where they begin.
 */
static char *
write_digits(const unsigned char *bytes, int nbytes, bool negative, char *end)
{
	uint32 *groups = palloc0((nbytes / 3 + 2) * sizeof(uint32)); /* the lowest first */
	int ngroups = 1;
	int i = 0;
	int j;

	while (i < nbytes)
	{
		/* Four bytes at a time, the odd ones first. */
		int last = i + ((nbytes - i - 1) & 3) + 1;
		int shift = (last - i) * 8;
		uint64 carry = 0;

		for (; i < last; i++)
			carry = carry << 8 | (unsigned char) (negative ? ~bytes[i] : bytes[i]);
		/* The magnitude of a negative number is its complement plus one. */
		if (negative && i == nbytes)
			carry++;
		for (j = 0; j < ngroups || carry > 0; j++)
		{
			carry += (uint64) groups[j] << shift;
			groups[j] = carry % GROUP;
			carry /= GROUP;
		}
		ngroups = Max(ngroups, j);
		CHECK_FOR_INTERRUPTS();
	}
	for (j = 0; j < ngroups; j++)
	{
		uint32 group = groups[j];

		for (i = 0; j < ngroups - 1 ? i < GROUP_DIGITS : i == 0 || group > 0; i++)
		{
			*--end = '0' + group % 10;
			group /= 10;
		}
	}
	pfree(groups);
	return end;
}

/* A decimal as a number with that many digits after the point. */
char *
mr_connect_decimal(const char *text, int length, int scale)
{
	int nbytes;
	unsigned char *bytes = (unsigned char *) mr_connect_bytes(text, length, &nbytes);
	int capacity;
	char *buffer;
	char *end;
	char *start;
	bool negative;

	if (nbytes == 0 || nbytes > MAX_DECIMAL || scale > MAX_SCALE || scale < -MAX_SCALE)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("decimal of %d bytes with scale %d is out of range", nbytes, scale)));
	negative = (bytes[0] & 0x80) != 0;
	/* A sign, zeros before the digits, the point, zeros behind them, and the end. */
	capacity = (nbytes / 3 + 2) * GROUP_DIGITS + abs(scale) + 4;
	buffer = palloc(capacity);
	memset(buffer, '0', capacity);
	end = buffer + capacity - 1;
	*end = '\0';
	if (scale < 0)
		end += scale;
	start = write_digits(bytes, nbytes, negative, end);
	if (scale > 0)
	{
		start = Min(start, end - scale - 1);
		memmove(start - 1, start, end - scale - start);
		start--;
		end[-scale - 1] = '.';
	}
	if (negative)
		*--start = '-';
	return start;
}

/* A decimal in an object {"scale": …, "value": …}. */
char *
mr_connect_variable_decimal(MrConnect *connect, const MrValue *value)
{
	MrMessage message = {0};
	MrDocument *document;
	MrValue *scale;
	MrValue *unscaled;

	message.value = (char *) value->text;
	message.value_length = value->length;
	document = mr_plan_run(connect->decimals, &message);
	scale = mr_document_value(document, MR_SCOPE_MESSAGE, 0, connect->decimal_scale);
	unscaled = mr_document_value(document, MR_SCOPE_MESSAGE, 0, connect->decimal_value);
	if (scale->kind != MR_NUMBER || unscaled->kind != MR_STRING)
		invalid_value("decimal", value->text, value->length);
	return mr_connect_decimal(unscaled->text, unscaled->length, read_parameter(scale));
}

/* A number of units since midnight as a time of day. */
static char *
time_text(const MrValue *value, MrTimeUnit unit)
{
	const int64 epoch = (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
	int64 n = mr_time_since_epoch(value->text, value->length, unit) + epoch;
	struct pg_tm tm = {0};
	char *text = palloc(MAXDATELEN + 1);

	if (n < 0 || n > USECS_PER_DAY)
		invalid_value("time of day", value->text, value->length);
	tm.tm_hour = n / USECS_PER_HOUR;
	tm.tm_min = n / USECS_PER_MINUTE % MINS_PER_HOUR;
	tm.tm_sec = n / USECS_PER_SEC % SECS_PER_MINUTE;
	EncodeTimeOnly(&tm, n % USECS_PER_SEC, false, 0, USE_ISO_DATES, text);
	return text;
}

/* Is the value that number? */
static bool
number_is(const MrValue *value, const char *number)
{
	return value->length == strlen(number) && memcmp(value->text, number, value->length) == 0;
}

/* A number of units since 1970 as a date, or as a time without a zone. */
static char *
timestamp_text(const MrValue *value, MrTimeUnit unit)
{
	struct pg_tm tm;
	fsec_t fsec;
	char *text = palloc(MAXDATELEN + 1);

	if (number_is(value, INFINITE))
		return "infinity";
	if (number_is(value, MINUS_INFINITE))
		return "-infinity";
	if (timestamp2tm(mr_time_since_epoch(value->text, value->length, unit), NULL, &tm, &fsec, NULL,
					 NULL) != 0)
		invalid_value("time", value->text, value->length);
	if (unit == MR_UNIT_DAYS)
		EncodeDateOnly(&tm, USE_ISO_DATES, text);
	else
		EncodeDateTime(&tm, fsec, false, 0, NULL, USE_ISO_DATES, text);
	return text;
}

/* Bits, of which the first byte holds the lowest eight. */
static char *
bits_text(const MrValue *value, int nbits)
{
	int nbytes;
	char *bytes = mr_connect_bytes(value->text, value->length, &nbytes);
	char *text;
	int i;

	if (nbits <= 0 || nbits > nbytes * 8)
		nbits = nbytes * 8;
	text = palloc(nbits + 1);
	for (i = 0; i < nbits; i++)
		text[nbits - 1 - i] = (bytes[i / 8] >> i % 8) & 1 ? '1' : '0';
	text[nbits] = '\0';
	return text;
}

/* Bytes as bytea writes them. */
static char *
bytes_text(const MrValue *value)
{
	int nbytes;
	char *bytes = mr_connect_bytes(value->text, value->length, &nbytes);
	char *text = palloc(nbytes * 2 + 3);

	strcpy(text, "\\x");
	text[2 + hex_encode(bytes, nbytes, text + 2)] = '\0';
	return text;
}

/* Can the value be of the type?  What is not is left to the column's type to judge. */
static bool
is_written_so(MrConnectKind kind, const MrValue *value)
{
	switch (kind)
	{
		case MR_CONNECT_PLAIN:
			return false;
		case MR_CONNECT_DECIMAL:
		case MR_CONNECT_BYTES:
		case MR_CONNECT_BITS:
			return value->kind == MR_STRING;
		case MR_CONNECT_VARIABLE_DECIMAL:
			return value->kind == MR_CONTAINER;
		default:
			return value->kind == MR_NUMBER;
	}
}

/* Makes a value the text that PostgreSQL would write. */
void
mr_connect_normalize(MrConnect *connect, MrConnectType type, MrValue *value)
{
	char *text = NULL;

	if (!is_written_so(type.kind, value))
		return;
	switch (type.kind)
	{
		case MR_CONNECT_PLAIN:
			break;
		case MR_CONNECT_TIME:
			text = time_text(value, type.parameter);
			break;
		case MR_CONNECT_DATE:
		case MR_CONNECT_TIMESTAMP:
			text = timestamp_text(value, type.parameter);
			break;
		case MR_CONNECT_DURATION:
			text = psprintf("%.*s microseconds", value->length, value->text);
			break;
		case MR_CONNECT_DECIMAL:
			text = mr_connect_decimal(value->text, value->length, type.parameter);
			break;
		case MR_CONNECT_VARIABLE_DECIMAL:
			text = mr_connect_variable_decimal(connect, value);
			break;
		case MR_CONNECT_BYTES:
			text = bytes_text(value);
			break;
		case MR_CONNECT_BITS:
			text = bits_text(value, type.parameter);
			break;
	}
	value->text = text;
	value->length = strlen(text);
	value->kind = MR_STRING;
	value->form = MR_FORM_TYPED;
}
