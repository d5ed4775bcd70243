/*
 * times.c
 *	  Dates and times of messages.
 */
#include "postgres.h"

#include "common/int.h"
#include "pgtime.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "decode/times.h"

/* What a text in the ISO shape says. */
typedef struct IsoTime
{
	struct pg_tm tm;
	fsec_t fsec;
	bool has_zone;
	int zone; /* seconds west of Greenwich, as PostgreSQL counts them */
} IsoTime;

/* Reads digits; -1 when there is something else. */
static inline int
digits(const char *p, int count)
{
	int n = 0;

	while (count-- > 0)
	{
		unsigned int d = (unsigned char) *p++ - '0';

		if (d > 9)
			return -1;
		n = n * 10 + (int) d;
	}
	return n;
}

/* Reads YYYY-MM-DD. */
static bool
iso_date(const char *p, struct pg_tm *tm)
{
	tm->tm_year = digits(p, 4);
	tm->tm_mon = digits(p + 5, 2);
	tm->tm_mday = digits(p + 8, 2);
	return p[4] == '-' && p[7] == '-' && tm->tm_year >= 1 && tm->tm_mon >= 1 && tm->tm_mon <= 12 &&
		   tm->tm_mday >= 1 && tm->tm_mday <= day_tab[isleap(tm->tm_year)][tm->tm_mon - 1];
}

/* Reads .f to .ffffff and moves past it; more digits are left to PostgreSQL, which rounds. */
static bool
iso_fraction(const char **p, const char *end, fsec_t *fsec)
{
	int count = 0;
	int value = 0;

	(*p)++;
	while (*p < end && **p >= '0' && **p <= '9')
	{
		if (++count > 6)
			return false;
		value = value * 10 + (*(*p)++ - '0');
	}
	if (count == 0)
		return false;
	for (; count < 6; count++)
		value *= 10;
	*fsec = value;
	return true;
}

/* Reads Z, ±hh or ±hh:mm up to the end. */
static bool
iso_zone(const char *p, const char *end, int *zone)
{
	int length = end - p;
	int hours;
	int minutes = 0;

	if (length == 1 && *p == 'Z')
	{
		*zone = 0;
		return true;
	}
	if ((length != 3 && length != 6) || (*p != '+' && *p != '-'))
		return false;
	hours = digits(p + 1, 2);
	if (length == 6)
		minutes = p[3] == ':' ? digits(p + 4, 2) : -1;
	if (hours < 0 || hours > MAX_TZDISP_HOUR || minutes < 0 || minutes >= MINS_PER_HOUR)
		return false;
	*zone = (hours * MINS_PER_HOUR + minutes) * SECS_PER_MINUTE;
	if (*p == '+')
		*zone = -*zone;
	return true;
}

/* Reads the ISO shape; false for any other. */
static bool
parse_iso(const char *text, int length, IsoTime *iso)
{
	const char *p = text + 10;
	const char *end = text + length;
	struct pg_tm *tm = &iso->tm;

	if (length < 10 || !iso_date(text, tm))
		return false;
	tm->tm_hour = tm->tm_min = tm->tm_sec = 0;
	iso->fsec = 0;
	iso->has_zone = false;
	iso->zone = 0;
	if (p == end)
		return true;
	if (length < 19 || (*p != ' ' && *p != 'T') || p[3] != ':' || p[6] != ':')
		return false;
	tm->tm_hour = digits(p + 1, 2);
	tm->tm_min = digits(p + 4, 2);
	tm->tm_sec = digits(p + 7, 2);
	/* 24:00:00 and leap seconds are PostgreSQL's to judge. */
	if (tm->tm_hour < 0 || tm->tm_hour > 23 || tm->tm_min < 0 || tm->tm_min > 59 ||
		tm->tm_sec < 0 || tm->tm_sec > 59)
		return false;
	p += 9;
	if (p < end && *p == '.' && !iso_fraction(&p, end, &iso->fsec))
		return false;
	if (p == end)
		return true;
	iso->has_zone = true;
	return iso_zone(p, end, &iso->zone);
}

/* The instant that a text in the ISO shape names; without a zone in the session's. */
bool
mr_time_iso_timestamptz(const char *text, int length, TimestampTz *result)
{
	IsoTime iso;

	if (!parse_iso(text, length, &iso))
		return false;
	if (!iso.has_zone)
		iso.zone = DetermineTimeZoneOffset(&iso.tm, session_timezone);
	return tm2timestamp(&iso.tm, iso.fsec, &iso.zone, result) == 0;
}

/* The time that a text in the ISO shape names; its zone does not matter, as in PostgreSQL. */
bool
mr_time_iso_timestamp(const char *text, int length, Timestamp *result)
{
	IsoTime iso;

	return parse_iso(text, length, &iso) && tm2timestamp(&iso.tm, iso.fsec, NULL, result) == 0;
}

/* The day that a text in the ISO shape names. */
bool
mr_time_iso_date(const char *text, int length, DateADT *result)
{
	IsoTime iso;

	if (!parse_iso(text, length, &iso))
		return false;
	*result = date2j(iso.tm.tm_year, iso.tm.tm_mon, iso.tm.tm_mday) - POSTGRES_EPOCH_JDATE;
	return true;
}

/* The unit of a name. */
MrTimeUnit
mr_time_unit(const char *name)
{
	static const struct
	{
		const char *name;
		MrTimeUnit unit;
	} units[] = {
		{"s", MR_UNIT_SECONDS},      {"ms", MR_UNIT_MILLISECONDS}, {"us", MR_UNIT_MICROSECONDS},
		{"ns", MR_UNIT_NANOSECONDS}, {"days", MR_UNIT_DAYS},
	};
	int i;

	for (i = 0; i < lengthof(units); i++)
	{
		if (strcmp(units[i].name, name) == 0)
			return units[i].unit;
	}
	return MR_UNIT_NONE;
}

/* Raises the error of a number that is no time that PostgreSQL has. */
static void
out_of_range(const char *text, int length)
{
	ereport(ERROR, (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
					errmsg("timestamp out of range: \"%s\"", pnstrdup(text, Min(length, 100)))));
}

/* Microseconds since 1970 of a whole number of units; false when it is not one, or too large. */
static bool
whole_microseconds(const char *text, int length, MrTimeUnit unit, int64 *result)
{
	static const int64 factors[] = {0, USECS_PER_SEC, 1000, 1, 1, USECS_PER_DAY};
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
	if (unit == MR_UNIT_NANOSECONDS)
		n = (n + 500) / 1000;
	if (negative)
		n = -n;
	return !pg_mul_s64_overflow(n, factors[unit], result);
}

/* The same of any number, through numeric. */
static int64
numeric_microseconds(const char *text, int length, MrTimeUnit unit)
{
	static const char *const factors[] = {"0", "1000000", "1000", "1", "0.001", "86400000000"};
	char *copy = pnstrdup(text, length);
	Datum number;
	Datum factor;
	Datum limit;

	/* NaN and Infinity are numeric's, not ours. */
	if (length == 0 || strspn(copy, "0123456789.eE+- ") != length)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_DATETIME_FORMAT),
				 errmsg("invalid number for a time: \"%s\"", pnstrdup(text, Min(length, 100)))));
	number = DirectFunctionCall3(numeric_in, CStringGetDatum(copy), ObjectIdGetDatum(InvalidOid),
								 Int32GetDatum(-1));
	factor = DirectFunctionCall3(numeric_in, CStringGetDatum(factors[unit]),
								 ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
	number = DirectFunctionCall2(numeric_mul, number, factor);
	limit = NumericGetDatum(int64_to_numeric(PG_INT64_MAX));
	if (DatumGetBool(
			DirectFunctionCall2(numeric_gt, DirectFunctionCall1(numeric_abs, number), limit)))
		out_of_range(text, length);
	return DatumGetInt64(DirectFunctionCall1(numeric_int8, number));
}

/* The instant that is a number of units since 1970-01-01 00:00 UTC. */
TimestampTz
mr_time_since_epoch(const char *text, int length, MrTimeUnit unit)
{
	const int64 epoch = (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
	int64 since;
	TimestampTz result;

	if (!whole_microseconds(text, length, unit, &since))
		since = numeric_microseconds(text, length, unit);
	if (pg_sub_s64_overflow(since, epoch, &result) || !IS_VALID_TIMESTAMP(result))
		out_of_range(text, length);
	return result;
}
