/*
 * value.h
 *	  Values of a message as values of a column's type.
 */
#ifndef MR_DECODE_VALUE_H
#define MR_DECODE_VALUE_H

#include "decode/plan.h"

typedef struct MrConverter MrConverter;

/*
 * A converter to a type, in the current memory context.  The format is NULL or, for date, timestamp
 * and timestamptz: s, ms, us, ns (a number of those since 1970-01-01 00:00 UTC), days (since
 * 1970-01-01), or a pattern of to_timestamp(); for time s, ms, us, ns (since midnight); for bytea, and
 * for numeric as Kafka Connect writes decimals, base64.
 */
extern MrConverter *mr_converter_create(Oid type, int32 typmod, const char *format);

/*
 * The value as a datum in the current memory context: what the type's input function makes of its
 * text, or its JSON for json and jsonb.  The value must not be null.  The time zone, where one is
 * missing, is the session's.
 */
extern Datum mr_convert(MrConverter *converter, const MrValue *value);

#endif /* MR_DECODE_VALUE_H */
