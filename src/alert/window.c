/*
 * window.c
 *	  The events of a key, in the order of time, and how they are kept.
 *
 * A key that is busy has thousands of them, which are read and written with each batch in which it occurs: they are packed.  Numbers
 * are written in groups of seven bits, the lowest first, of which all but the last have the eighth bit set; times as the
 * difference to the one before; texts end with a zero byte.
 *
 *	number of ends of windows that have fired, and those
 *	for each event: time, twice the element (and 1, when it has a value), object, value
 */
#include "postgres.h"

#include "alert/rule.h"
#include "alert/window.h"
#include "catalog/pg_type.h"
#include "core/compat.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "utils/array.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(millrace_rule_events);
PG_FUNCTION_INFO_V1(millrace_events_without);

/* ---- packing ------------------------------------------------------------------------------------------- */

static void
put_number(StringInfo to, uint64 number)
{
	while (number >= 0x80)
	{
		appendStringInfoCharMacro(to, (char) (number | 0x80));
		number >>= 7;
	}
	appendStringInfoCharMacro(to, (char) number);
}

/* Where unpacking is. */
typedef struct Unpacking
{
	const char *next;
	const char *end;
} Unpacking;

static void
damaged(void)
{
	ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
					errmsg("the events of a key in millrace.rule_state are damaged")));
}

static uint64
get_number(Unpacking *from)
{
	uint64 number = 0;

	for (int shift = 0; shift < 64; shift += 7)
	{
		unsigned char byte;

		if (from->next == from->end)
			break;
		byte = (unsigned char) *from->next++;
		number |= (uint64) (byte & 0x7f) << shift;
		if (byte < 0x80)
			return number;
	}
	damaged();
	return 0;
}

static const char *
get_text(Unpacking *from)
{
	const char *text = from->next;
	const char *end = memchr(text, '\0', from->end - text);

	if (end == NULL)
		damaged();
	from->next = end + 1;
	return text;
}

bytea *
mr_events_pack(const MrEvents *events)
{
	StringInfoData packed;
	uint64 before = 0;

	initStringInfo(&packed);
	appendStringInfoSpaces(&packed, VARHDRSZ);
	put_number(&packed, events->nalerted);
	for (int i = 0; i < events->nalerted; i++)
	{
		put_number(&packed, (uint64) events->alerted[i] - before);
		before = events->alerted[i];
	}
	before = 0;
	for (int i = 0; i < events->count; i++)
	{
		const MrEvent *event = &events->events[i];

		put_number(&packed, (uint64) event->time - before);
		before = event->time;
		put_number(&packed, (uint64) event->element * 2 + (event->value != NULL ? 1 : 0));
		appendBinaryStringInfo(&packed, event->object, strlen(event->object) + 1);
		if (event->value != NULL)
			appendBinaryStringInfo(&packed, event->value, strlen(event->value) + 1);
	}
	SET_VARSIZE(packed.data, packed.len);
	return (bytea *) packed.data;
}

static MrEvent *
add_place(MrEvents *events)
{
	if (events->count == events->capacity)
	{
		events->capacity = Max(16, events->capacity * 2);
		events->events = events->events == NULL
							 ? palloc(sizeof(MrEvent) * events->capacity)
							 : repalloc_huge(events->events, sizeof(MrEvent) * events->capacity);
	}
	return &events->events[events->count++];
}

void
mr_events_unpack(MrEvents *events, const bytea *packed)
{
	Unpacking from = {VARDATA_ANY(packed), VARDATA_ANY(packed) + VARSIZE_ANY_EXHDR(packed)};
	uint64 time = 0;
	uint64 nalerted;

	memset(events, 0, sizeof(MrEvents));
	nalerted = get_number(&from);
	for (uint64 i = 0; i < nalerted; i++)
		mr_events_add_alerted(events, (TimestampTz) (time += get_number(&from)));
	time = 0;
	while (from.next < from.end)
	{
		MrEvent *event = add_place(events);
		uint64 element;

		event->time = (TimestampTz) (time += get_number(&from));
		element = get_number(&from);
		event->element = (int32) (element / 2);
		event->object = get_text(&from);
		event->value = element % 2 == 1 ? get_text(&from) : NULL;
		event->amount = NULL;
	}
}

/* ---- events -------------------------------------------------------------------------------------------- */

static int
compare_events(const MrEvent *l, const MrEvent *r)
{
	int order;

	if (l->time != r->time)
		return l->time < r->time ? -1 : 1;
	order = strcmp(l->object, r->object);
	return order != 0 ? order : l->element - r->element;
}

int
mr_events_after(const MrEvents *events, TimestampTz time)
{
	int low = 0;
	int high = events->count;

	while (low < high)
	{
		int middle = low + (high - low) / 2;

		if (events->events[middle].time <= time)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

int
mr_events_insert(MrEvents *events, const MrEvent *event)
{
	int place;

	(void) add_place(events);
	place = events->count - 1;
	/* Most come in the order of time. */
	while (place > 0 && compare_events(event, &events->events[place - 1]) < 0)
		place--;
	memmove(&events->events[place + 1], &events->events[place],
			sizeof(MrEvent) * (events->count - 1 - place));
	events->events[place] = *event;
	return place;
}

const MrEvent *
mr_events_find(const MrEvents *events, const char *object, int32 element)
{
	for (int i = 0; i < events->count; i++)
	{
		if (events->events[i].element == element && strcmp(events->events[i].object, object) == 0)
			return &events->events[i];
	}
	return NULL;
}

bool
mr_events_remove(MrEvents *events, const char *object)
{
	int kept = 0;
	int before = events->count;

	for (int i = 0; i < before; i++)
	{
		if (strcmp(events->events[i].object, object) != 0)
			events->events[kept++] = events->events[i];
	}
	events->count = kept;
	return kept < before;
}

void
mr_events_forget(MrEvents *events, TimestampTz horizon, TimestampTz end)
{
	int first = mr_events_after(events, horizon);
	int kept = 0;

	if (first > 0)
		memmove(events->events, &events->events[first], sizeof(MrEvent) * (events->count - first));
	events->count -= first;
	for (int i = 0; i < events->nalerted; i++)
	{
		if (events->alerted[i] > end)
			events->alerted[kept++] = events->alerted[i];
	}
	events->nalerted = kept;
}

void
mr_events_add_alerted(MrEvents *events, TimestampTz end)
{
	if (events->nalerted == events->alerted_capacity)
	{
		events->alerted_capacity = Max(4, events->alerted_capacity * 2);
		events->alerted = events->alerted == NULL
							  ? palloc(sizeof(TimestampTz) * events->alerted_capacity)
							  : repalloc(events->alerted,
										 sizeof(TimestampTz) * events->alerted_capacity);
	}
	events->alerted[events->nalerted++] = end;
}

/* ---- for SQL ------------------------------------------------------------------------------------------- */

/* rule_events(events bytea): TABLE (time timestamptz, object text, element integer, value text). */
Datum
millrace_rule_events(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result;
	MrEvents events;

	InitMaterializedSRF(fcinfo, 0);
	result = (ReturnSetInfo *) fcinfo->resultinfo;
	mr_events_unpack(&events, PG_GETARG_BYTEA_PP(0));
	for (int i = 0; i < events.count; i++)
	{
		const MrEvent *event = &events.events[i];
		Datum values[] = {TimestampTzGetDatum(event->time), CStringGetTextDatum(event->object),
						  Int32GetDatum(event->element),
						  event->value == NULL ? (Datum) 0 : CStringGetTextDatum(event->value)};
		bool nulls[] = {false, false, event->element == 0, event->value == NULL};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Takes out the end of a window that has fired; false when there is none. */
static bool
remove_alerted(MrEvents *events, TimestampTz end)
{
	int kept = 0;
	int all = events->nalerted;

	for (int i = 0; i < all; i++)
	{
		if (events->alerted[i] != end)
			events->alerted[kept++] = events->alerted[i];
	}
	events->nalerted = kept;
	return kept < all;
}

/* events_without(events bytea, objects text[], ends bigint[]): bytea */
Datum
millrace_events_without(PG_FUNCTION_ARGS)
{
	bytea *packed = PG_GETARG_BYTEA_PP(0);
	MrEvents events;
	Datum *objects;
	Datum *ends;
	int nobjects;
	int nends;
	bool removed = false;

	mr_events_unpack(&events, packed);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &objects, NULL,
					  &nobjects);
	for (int i = 0; i < nobjects; i++)
		removed |= mr_events_remove(&events, TextDatumGetCString(objects[i]));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), INT8OID, sizeof(int64), FLOAT8PASSBYVAL,
					  TYPALIGN_DOUBLE, &ends, NULL, &nends);
	for (int i = 0; i < nends; i++)
		removed |= remove_alerted(&events, DatumGetInt64(ends[i]));
	PG_RETURN_BYTEA_P(removed ? mr_events_pack(&events) : packed);
}
