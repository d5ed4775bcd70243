/*
 * hash.c
 *	  Hash keys.
 *
 * The encoding of a key is collected in one buffer and hashed at the end.  OpenSSL is what PostgreSQL itself
 * links; of its interfaces the plain SHA256_* functions on a context of ours take a fifth of the time that
 * EVP takes for the few dozen bytes of a key (54 against 273 ns), because nothing is looked up or allocated.
 */
#include "postgres.h"

#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/sha.h>

#include "catalog/pg_type.h"
#include "common/shortest_dec.h"
#include "core/hash.h"
#include "core/millrace.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

typedef enum Shortcut
{
	OUTPUT_FUNCTION = 0,
	TEXT,
	PADDED_TEXT,
	INT2,
	INT4,
	INT8,
	UUID,
	NUMERIC,
	FLOAT4,
	FLOAT8,
	TIMESTAMP,
	TIMESTAMPTZ
} Shortcut;

struct MrHasher
{
	StringInfoData buffer;
};

const pg_uuid_t mr_zero_key = {{0}};
const pg_uuid_t mr_deleted_hash = {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
									0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};

/* Which way a type's values take into the buffer. */
static Shortcut
shortcut_of(Oid type)
{
	switch (type)
	{
		case TEXTOID:
		case VARCHAROID:
			return TEXT;
		case BPCHAROID:
			return PADDED_TEXT;
		case INT2OID:
			return INT2;
		case INT4OID:
			return INT4;
		case INT8OID:
			return INT8;
		case UUIDOID:
			return UUID;
		case NUMERICOID:
			return NUMERIC;
		case FLOAT4OID:
			return FLOAT4;
		case FLOAT8OID:
			return FLOAT8;
		case TIMESTAMPOID:
			return TIMESTAMP;
		case TIMESTAMPTZOID:
			return TIMESTAMPTZ;
		default:
			return OUTPUT_FUNCTION;
	}
}

void
mr_hash_column_init(MrHashColumn *column, Oid type)
{
	Oid output;
	bool is_varlena;

	column->type = getBaseType(type);
	column->shortcut = shortcut_of(column->type);
	getTypeOutputInfo(column->type, &output, &is_varlena);
	fmgr_info(output, &column->output);
}

MrHasher *
mr_hasher_create(void)
{
	MrHasher *hasher = palloc(sizeof(MrHasher));

	initStringInfo(&hasher->buffer);
	return hasher;
}

void
mr_hasher_begin(MrHasher *hasher)
{
	resetStringInfo(&hasher->buffer);
}

void
mr_hasher_add_int32(MrHasher *hasher, int32 number)
{
	uint32 swapped = pg_hton32((uint32) number);

	appendBinaryStringInfo(&hasher->buffer, (char *) &swapped, sizeof(swapped));
}

void
mr_hasher_add_bytes(MrHasher *hasher, const char *bytes, int length)
{
	mr_hasher_add_int32(hasher, length);
	appendBinaryStringInfo(&hasher->buffer, bytes, length);
}

/* Appends a text datum, without the padding of char(n) when `padded`. */
static void
add_text_datum(MrHasher *hasher, Datum value, bool padded)
{
	struct varlena *text = PG_DETOAST_DATUM_PACKED(value);
	int length = VARSIZE_ANY_EXHDR(text);

	if (padded)
	{
		while (length > 0 && VARDATA_ANY(text)[length - 1] == ' ')
			length--;
	}
	mr_hasher_add_bytes(hasher, VARDATA_ANY(text), length);
	if ((Pointer) text != DatumGetPointer(value))
		pfree(text);
}

/* Appends a time without, or with its zone, which is UTC. */
static void
add_timestamp(MrHasher *hasher, Timestamp value, bool with_zone)
{
	char buffer[MAXDATELEN + 1];
	struct pg_tm tm;
	fsec_t fraction;

	if (TIMESTAMP_NOT_FINITE(value))
		EncodeSpecialTimestamp(value, buffer);
	else if (timestamp2tm(value, NULL, &tm, &fraction, NULL, NULL) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE), errmsg("timestamp out of range")));
	else
	{
		tm.tm_isdst = 0; /* else no zone is written */
		EncodeDateTime(&tm, fraction, with_zone, 0, NULL, USE_ISO_DATES, buffer);
	}
	mr_hasher_add_bytes(hasher, buffer, strlen(buffer));
}

/* The shortest text of a floating-point number; both zeros are one. */
static void
add_float(MrHasher *hasher, char *text)
{
	if (strcmp(text, "-0") == 0)
		text++;
	mr_hasher_add_bytes(hasher, text, strlen(text));
}

void
mr_hasher_add(MrHasher *hasher, MrHashColumn *column, Datum value, bool isnull)
{
	char buffer[64];
	char *text;

	if (isnull)
	{
		mr_hasher_add_int32(hasher, -1);
		return;
	}

	switch ((Shortcut) column->shortcut)
	{
		case TEXT:
			add_text_datum(hasher, value, false);
			break;
		case PADDED_TEXT:
			add_text_datum(hasher, value, true);
			break;
		case INT2:
			mr_hasher_add_bytes(hasher, buffer, pg_ltoa(DatumGetInt16(value), buffer));
			break;
		case INT4:
			mr_hasher_add_bytes(hasher, buffer, pg_ltoa(DatumGetInt32(value), buffer));
			break;
		case INT8:
			mr_hasher_add_bytes(hasher, buffer, pg_lltoa(DatumGetInt64(value), buffer));
			break;
		case UUID:
			{
				static const char digits[] = "0123456789abcdef";
				pg_uuid_t *uuid = DatumGetUUIDP(value);
				char *p = buffer;

				for (int i = 0; i < UUID_LEN; i++)
				{
					if (i == 4 || i == 6 || i == 8 || i == 10)
						*p++ = '-';
					*p++ = digits[uuid->data[i] >> 4];
					*p++ = digits[uuid->data[i] & 0x0f];
				}
				mr_hasher_add_bytes(hasher, buffer, p - buffer);
				break;
			}
		case NUMERIC:
			text = numeric_normalize(DatumGetNumeric(value));
			mr_hasher_add_bytes(hasher, text, strlen(text));
			pfree(text);
			break;
		case FLOAT4:
			float_to_shortest_decimal_buf(DatumGetFloat4(value), buffer);
			add_float(hasher, buffer);
			break;
		case FLOAT8:
			double_to_shortest_decimal_buf(DatumGetFloat8(value), buffer);
			add_float(hasher, buffer);
			break;
		case TIMESTAMP:
			add_timestamp(hasher, DatumGetTimestamp(value), false);
			break;
		case TIMESTAMPTZ:
			add_timestamp(hasher, DatumGetTimestampTz(value), true);
			break;
		case OUTPUT_FUNCTION:
			{
				int nest_level = mr_settings_pin("UTC");

				text = OutputFunctionCall(&column->output, value);
				mr_settings_unpin(nest_level);
				mr_hasher_add_bytes(hasher, text, strlen(text));
				pfree(text);
				break;
			}
	}
}

void
mr_hasher_end_checked(MrHasher *hasher, pg_uuid_t *result, pg_uuid_t *check)
{
	unsigned char digest[SHA256_DIGEST_LENGTH];
	SHA256_CTX context;

	if (!SHA256_Init(&context) ||
		!SHA256_Update(&context, hasher->buffer.data, hasher->buffer.len) ||
		!SHA256_Final(digest, &context))
		elog(ERROR, "SHA-256 failed");

	memcpy(result->data, digest, UUID_LEN);
	result->data[6] = (result->data[6] & 0x0f) | 0x80; /* version 8 */
	result->data[8] = (result->data[8] & 0x3f) | 0x80; /* variant of RFC 9562 */
	memcpy(check->data, digest + UUID_LEN, UUID_LEN);
}

void
mr_hasher_end(MrHasher *hasher, pg_uuid_t *result)
{
	pg_uuid_t check;

	mr_hasher_end_checked(hasher, result, &check);
}

/* RFC 2104 over SHA-256; PostgreSQL's own needs a resource owner, and so a transaction. */
char *
mr_hmac(const char *key, const char *text)
{
	uint8 block[SHA256_CBLOCK] = {0};
	uint8 digest[SHA256_DIGEST_LENGTH];
	char *hex = palloc0(SHA256_DIGEST_LENGTH * 2 + 1);
	SHA256_CTX context;

	if (strlen(key) > sizeof(block))
		SHA256((const uint8 *) key, strlen(key), block);
	else
		memcpy(block, key, strlen(key));
	for (int i = 0; i < SHA256_CBLOCK; i++)
		block[i] ^= 0x36;
	SHA256_Init(&context);
	SHA256_Update(&context, block, sizeof(block));
	SHA256_Update(&context, text, strlen(text));
	SHA256_Final(digest, &context);
	for (int i = 0; i < SHA256_CBLOCK; i++)
		block[i] ^= 0x36 ^ 0x5c;
	SHA256_Init(&context);
	SHA256_Update(&context, block, sizeof(block));
	SHA256_Update(&context, digest, sizeof(digest));
	SHA256_Final(digest, &context);
	hex_encode((const char *) digest, sizeof(digest), hex);
	return hex;
}
