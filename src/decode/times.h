/*
 * times.h
 *	  Dates and times of messages: the ISO shape without PostgreSQL's general parser, numbers since
 *	  the epoch.
 */
#ifndef MR_DECODE_TIMES_H
#define MR_DECODE_TIMES_H

#include "utils/date.h"
#include "utils/timestamp.h"

/* How a number stands for a time. */
typedef enum MrTimeUnit
{
	MR_UNIT_NONE, /* it does not: a text or a pattern */
	MR_UNIT_SECONDS,
	MR_UNIT_MILLISECONDS,
	MR_UNIT_MICROSECONDS,
	MR_UNIT_NANOSECONDS,
	MR_UNIT_DAYS
} MrTimeUnit;

/*
 * The value of YYYY-MM-DD, or of that and [ T]HH:MM:SS[.ffffff][Z|±hh[:mm]], exactly as the type's
 * input function has it. False when the text has another shape, or one that the input function
 * should judge.
 */
extern bool mr_time_iso_timestamptz(const char *text, int length, TimestampTz *result);
extern bool mr_time_iso_timestamp(const char *text, int length, Timestamp *result);
extern bool mr_time_iso_date(const char *text, int length, DateADT *result);

/* The unit of that name; MR_UNIT_NONE for another name. */
extern MrTimeUnit mr_time_unit(const char *name);

/* The instant that is a number of units since 1970-01-01 00:00 UTC. */
extern TimestampTz mr_time_since_epoch(const char *text, int length, MrTimeUnit unit);

#endif /* MR_DECODE_TIMES_H */
