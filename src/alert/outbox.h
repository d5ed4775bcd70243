/*
 * outbox.h
 *	  Messages on their way into the outbox, from which delivery workers send them.
 */
#ifndef MR_ALERT_OUTBOX_H
#define MR_ALERT_OUTBOX_H

#include "postgres.h"

#include "utils/timestamp.h"

/* One message on its way into the outbox, in the transaction of its cause. */
typedef struct MrOutboxRow
{
	int32 channel_id;
	const char *key; /* messages of one key are delivered in order */
	const char *group_by; /* those waiting with the same become one message; or NULL */
	int64 alert_id; /* millrace.alert.id, or 0: of a sink */
	const char *message; /* JSON text; NULL: the row was deleted */
	TimestampTz not_after; /* older than that it is not sent any more, or DT_NOEND */
	int32 sink_id; /* 0: of an alert */
	const char *object; /* the sink's row, or NULL */
} MrOutboxRow;

/*
 * Adds messages, ordered by channel and key and else as they are given, and wakes the delivery
 * workers when the transaction commits.  Numbers are taken here: the caller holds the lock of the
 * object that a key names, to the end of the transaction, and then messages of that key have the
 * order of their causes.  SPI may be connected or not; CurrentMemoryContext is kept.
 */
extern void mr_outbox_add(const MrOutboxRow *rows, int nrows);

#endif /* MR_ALERT_OUTBOX_H */
