/*
 * window.h
 *	  The events of a key, in the order of time, and how they are kept.
 */
#ifndef MR_ALERT_WINDOW_H
#define MR_ALERT_WINDOW_H

#include "utils/numeric.h"
#include "utils/timestamp.h"

/* Something that happened: an object, or an element of it, at its time. */
typedef struct MrEvent
{
	TimestampTz time;
	const char *object;
	int32 element;
	const char *value; /* or NULL */
	Numeric amount; /* what the value is, once somebody has asked */
} MrEvent;

/* What is known of a key. */
typedef struct MrEvents
{
	int count;
	int capacity;
	MrEvent *events; /* by time, object, element */
	int nalerted;
	int alerted_capacity;
	TimestampTz *alerted; /* ends of windows that have fired */
} MrEvents;

/* As it is stored, and back; what is read points into `packed`. */
extern bytea *mr_events_pack(const MrEvents *events);
extern void mr_events_unpack(MrEvents *events, const bytea *packed);

/* The place of the first event after a time. */
extern int mr_events_after(const MrEvents *events, TimestampTz time);

/* Puts an event where it belongs; returns its place.  Strings are not copied. */
extern int mr_events_insert(MrEvents *events, const MrEvent *event);

/* The event of an element of an object, or NULL. */
extern const MrEvent *mr_events_find(const MrEvents *events, const char *object, int32 element);

/* Takes out what an object has told; false when that was nothing. */
extern bool mr_events_remove(MrEvents *events, const char *object);

/* Takes out events that are not after `horizon`, and ends of windows not after `end`. */
extern void mr_events_forget(MrEvents *events, TimestampTz horizon, TimestampTz end);

/* Notes that a window which ends then has fired. */
extern void mr_events_add_alerted(MrEvents *events, TimestampTz end);

#endif /* MR_ALERT_WINDOW_H */
