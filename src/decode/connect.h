/*
 * connect.h
 *	  What Kafka Connect's types mean: values that JSON alone does not tell.
 */
#ifndef MR_DECODE_CONNECT_H
#define MR_DECODE_CONNECT_H

#include "decode/plan.h"

/* How a field's value is written, where that is not how PostgreSQL writes it. */
typedef enum MrConnectKind
{
	MR_CONNECT_PLAIN, /* it is */
	MR_CONNECT_DATE, /* days since 1970-01-01 */
	MR_CONNECT_TIME, /* since midnight */
	MR_CONNECT_TIMESTAMP, /* since 1970-01-01 00:00, without a zone */
	MR_CONNECT_DURATION,
	MR_CONNECT_DECIMAL, /* base64 of the big-endian unscaled value */
	MR_CONNECT_VARIABLE_DECIMAL, /* the same in an object, beside its scale */
	MR_CONNECT_BYTES, /* base64 */
	MR_CONNECT_BITS /* base64, the lowest bits first */
} MrConnectKind;

typedef struct MrConnectType
{
	MrConnectKind kind;
	int parameter; /* a time's MrTimeUnit, a decimal's scale, the number of bits */
} MrConnectType;

/* The fields of a struct that are not plain. */
typedef struct MrConnectField
{
	char *name;
	int length;
	MrConnectType type;
} MrConnectField;

typedef struct MrConnectStruct
{
	int nfields;
	MrConnectField *fields;
} MrConnectStruct;

/* What reads schemas and values; in the current memory context. */
typedef struct MrConnect MrConnect;

extern MrConnect *mr_connect_create(void);

/* The fields of a row, by its schema or by that of the change around it; in the current memory context. */
extern MrConnectStruct *mr_connect_schema_read(MrConnect *connect, const char *text, int length);

/* The type of a field; plain when nothing else is said. */
extern MrConnectType mr_connect_field_type(const MrConnectStruct *fields, const char *name,
										   int length);

/* Makes a value the text that PostgreSQL would write, in the current memory context. */
extern void mr_connect_normalize(MrConnect *connect, MrConnectType type, MrValue *value);

/*
 * A decimal in base64 with that many digits after the point, or one in an object {"scale": …, "value": …}, as a number;
 * the bytes that base64 stands for.
 */
extern char *mr_connect_decimal(const char *text, int length, int scale);
extern char *mr_connect_variable_decimal(MrConnect *connect, const MrValue *value);
extern char *mr_connect_bytes(const char *text, int length, int *nbytes);

#endif /* MR_DECODE_CONNECT_H */
