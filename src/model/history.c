/*
 * history.c
 *	  Histories: what users have now.
 *
 * A history is a row of numbers: for each event the item's number less that of the one before it, the time when the model has
 * max_history or the weight when it has weights, and in how many rows it is.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "core/compat.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/online.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/sortsupport.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(millrace_online_history);

MrEvent *
mr_history_read(Datum history, bool detailed, int *nevents)
{
	bytea *packed = DatumGetByteaPP(history);
	const uint8 *at = (const uint8 *) VARDATA_ANY(packed);
	const uint8 *end = at + VARSIZE_ANY_EXHDR(packed);
	MrEvent *events = MemoryContextAllocHuge(CurrentMemoryContext,
											 sizeof(MrEvent) * (end - at + 1));
	uint32 number = 0;
	int n = 0;

	while (at < end)
	{
		MrEvent *event = &events[n++];

		number += (uint32) mr_number_get(&at, end);
		event->number = number;
		event->detail = detailed ? mr_number_unfold(mr_number_get(&at, end)) : 0;
		event->n = (int32) mr_number_get(&at, end);
	}
	*nevents = n;
	return events;
}

Datum
mr_history_make(const MrEvent *events, int nevents, bool detailed)
{
	bytea *packed = MemoryContextAllocHuge(CurrentMemoryContext,
										   VARHDRSZ + (Size) nevents * 3 * MR_NUMBER_BYTES);
	uint8 *at = (uint8 *) VARDATA(packed);
	uint32 before = 0;

	for (int i = 0; i < nevents; i++)
	{
		at = mr_number_put(at, events[i].number - before);
		if (detailed)
			at = mr_number_put(at, mr_number_fold(events[i].detail));
		at = mr_number_put(at, (uint32) events[i].n);
		before = events[i].number;
	}
	SET_VARSIZE(packed, at - (uint8 *) packed);
	return PointerGetDatum(packed);
}

/* Negative numbers have the order of their bits turned round. */
int64
mr_weight_detail(double weight)
{
	int64 bits;

	/* One zero, and one NaN. */
	if (weight == 0)
		weight = 0;
	if (isnan(weight))
		weight = get_float8_nan();
	memcpy(&bits, &weight, sizeof(bits));
	return bits < 0 ? bits ^ PG_INT64_MAX : bits;
}

double
mr_detail_weight(int64 detail)
{
	int64 bits = detail < 0 ? detail ^ PG_INT64_MAX : detail;
	double weight;

	memcpy(&weight, &bits, sizeof(weight));
	return weight;
}

typedef struct Cutting
{
	MrItemId id;
	SortSupport compare;
	void *context;
} Cutting;

/* The newest first, those of one time by their ids. */
static int
compare_events(const void *left, const void *right, void *arg)
{
	const MrEvent *l = left;
	const MrEvent *r = right;
	Cutting *cutting = arg;

	if (l->detail != r->detail)
		return l->detail > r->detail ? -1 : 1;
	return ApplySortComparator(cutting->id(cutting->context, l->number), false,
							   cutting->id(cutting->context, r->number), false, cutting->compare);
}

static int
compare_numbers(const void *left, const void *right)
{
	uint32 l = *(const uint32 *) left;
	uint32 r = *(const uint32 *) right;

	return l < r ? -1 : l > r;
}

int
mr_history_cut(const MrEvent *events, int nevents, int most, MrItemId id, SortSupport compare,
			   void *context, uint32 *items)
{
	Cutting cutting = {.id = id, .compare = compare, .context = context};
	MrEvent *last; /* of each item */
	int n = 0;

	for (int i = 0; i < nevents; i++)
	{
		if (i + 1 == nevents || events[i + 1].number != events[i].number)
			items[n++] = events[i].number;
	}
	if (most == 0 || n <= most)
		return n;
	last = palloc(sizeof(MrEvent) * n);
	n = 0;
	for (int i = 0; i < nevents; i++)
	{
		if (i + 1 == nevents || events[i + 1].number != events[i].number)
			last[n++] = events[i];
	}
	qsort_arg(last, n, sizeof(MrEvent), compare_events, &cutting);
	for (int i = 0; i < most; i++)
		items[i] = last[i].number;
	pfree(last);
	qsort(items, most, sizeof(uint32), compare_numbers);
	return most;
}

/*
 * online_history(history bytea, detail text) → (number integer, seen_at timestamptz, weight double precision, n integer) of each
 * event; the detail is "time", "weight" or NULL.
 */
Datum
millrace_online_history(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	char *detail = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	bool weighted = detail != NULL && strcmp(detail, "weight") == 0;
	int nevents;
	MrEvent *events = mr_history_read(PG_GETARG_DATUM(0), detail != NULL, &nevents);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < nevents; i++)
	{
		Datum values[4] = {
			Int32GetDatum((int32) events[i].number), TimestampTzGetDatum(events[i].detail),
			Float8GetDatum(mr_detail_weight(events[i].detail)), Int32GetDatum(events[i].n)};
		bool nulls[4] = {false, detail == NULL || weighted, !weighted, false};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
