/*
 * inbox.c
 *	  The inbox as a source: rows of millrace.inbox, deleted as they are consumed.
 *
 * A batch deletes the rows of its worker's buckets in the order of push_no, in its own transaction, without
 * waiting for rows that somebody else is deleting.  Nothing remembers "up to where": a row whose transaction
 * commits late is found by the next batch.  Each worker has a lane, a row of millrace.stream_position with
 * partition = worker number, which only serves as its fence; a message's partition is always 0.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "executor/tuptable.h"
#include "source/inbox.h"
#include "source/position.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

typedef struct InboxSource
{
	MrSource base;
	MrPosition lane;
	bool claimed; /* in the current batch */
	bool drained;
} InboxSource;

/* Takes the lanes of this worker over, its own one made when it is not there. */
static MrSource *
inbox_open(MrStream *stream, int worker, int workers)
{
	InboxSource *source = palloc0(sizeof(InboxSource));
	MrPosition *lanes;
	int nlanes;

	source->base.kind = &mr_inbox_source;
	source->base.stream = stream;
	source->base.worker = worker;
	source->base.workers = workers;

	mr_position_insert(stream, "", worker, 0);
	lanes = mr_positions_take(stream, worker, workers, false, &nlanes);
	for (int i = 0; i < nlanes; i++)
	{
		if (lanes[i].partition == worker && lanes[i].topic[0] == '\0')
			source->lane = lanes[i];
	}
	if (source->lane.topic == NULL)
		elog(ERROR, "no position of stream \"%s\" for worker %d", stream->name, worker);
	return &source->base;
}

static pgsocket
inbox_descriptor(MrSource *base)
{
	return PGINVALID_SOCKET;
}

/* Copies a row into the batch as a message. */
static void
add_message(InboxSource *source, MrBatch *batch, TupleTableSlot *slot)
{
	MrMessage *message = mr_batch_add(batch);

	message->epoch = source->lane.epoch;
	message->position = DatumGetInt64(slot->tts_values[MR_INBOX_PUSH_NO]);
	message->time = DatumGetTimestampTz(slot->tts_values[MR_INBOX_MESSAGE_TIME]);
	if (!slot->tts_isnull[MR_INBOX_KEY])
	{
		bytea *key = DatumGetByteaPP(slot->tts_values[MR_INBOX_KEY]);

		message->key_length = VARSIZE_ANY_EXHDR(key);
		message->key = mr_batch_copy(batch, VARDATA_ANY(key), message->key_length);
	}
	if (!slot->tts_isnull[MR_INBOX_VALUE])
	{
		bytea *value = DatumGetByteaPP(slot->tts_values[MR_INBOX_VALUE]);

		message->value_length = VARSIZE_ANY_EXHDR(value);
		message->value = mr_batch_copy(batch, VARDATA_ANY(value), message->value_length);
		if ((Pointer) value != DatumGetPointer(slot->tts_values[MR_INBOX_VALUE]))
			pfree(value);
	}
	if (!slot->tts_isnull[MR_INBOX_HEADERS])
		message->headers = MemoryContextStrdup(
			batch->context, TextDatumGetCString(slot->tts_values[MR_INBOX_HEADERS]));
}

/*
 * Deletes and adds rows until the batch is full.  The rows of this very transaction count: run_stream may
 * follow push.
 */
static void
inbox_fetch(MrSource *base, MrBatch *batch, int max_messages, Size max_bytes, int wait_ms)
{
	InboxSource *source = (InboxSource *) base;
	Oid namespace = get_namespace_oid("millrace", false);
	Relation inbox = table_open(get_relname_relid("inbox", namespace), RowExclusiveLock);
	Relation index = index_open(get_relname_relid("inbox_pkey", namespace), RowExclusiveLock);
	TupleTableSlot *slot = table_slot_create(inbox, NULL);
	bool more = false;
	IndexScanDesc scan;
	Snapshot snapshot;
	ScanKeyData key;

	if (batch->nmessages == 0)
		source->claimed = false;

	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	PushActiveSnapshot(snapshot);
	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(base->stream->id));
	scan = mr_index_beginscan(inbox, index, snapshot, 1);
	index_rescan(scan, &key, 1, NULL, 0);
	while (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		TM_FailureData failure;

		slot_getallattrs(slot);
		if (DatumGetInt32(slot->tts_values[MR_INBOX_BUCKET]) % base->workers != base->worker)
			continue;
		if (batch->nmessages >= max_messages || batch->bytes >= max_bytes)
		{
			more = true;
			break;
		}
		if (!source->claimed)
		{
			/* An idle look at an empty inbox writes nothing; the first row takes the fence. */
			mr_position_claim(base->stream, &source->lane);
			source->claimed = true;
		}
		if (table_tuple_delete(inbox, &slot->tts_tid, GetCurrentCommandId(true), snapshot,
							   InvalidSnapshot, false, &failure, false) == TM_Ok)
			add_message(source, batch, slot);
		ExecClearTuple(slot);
	}
	index_endscan(scan);
	PopActiveSnapshot();
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, RowExclusiveLock);
	table_close(inbox, RowExclusiveLock);
	CommandCounterIncrement();

	source->drained = !more;
}

/* The lane's position only grows: it says how far the newest message was, for those who watch. */
static void
inbox_advance(MrSource *base, MrBatch *batch)
{
	InboxSource *source = (InboxSource *) base;
	MrPosition *lane = &source->lane;

	if (batch->nmessages == 0)
		return;
	lane->next = lane->position;
	for (int i = 0; i < batch->nmessages; i++)
	{
		if (batch->messages[i].position >= lane->next)
		{
			lane->next = batch->messages[i].position + 1;
			lane->last_time = batch->messages[i].time;
		}
	}
	mr_positions_advance(base->stream, &lane, 1);
}

static void
inbox_committed(MrSource *base, MrBatch *batch)
{
	InboxSource *source = (InboxSource *) base;

	source->lane.position = source->lane.next;
}

static void
inbox_tick(MrSource *base)
{
}

static bool
inbox_drained(MrSource *base)
{
	return ((InboxSource *) base)->drained;
}

static void
inbox_close(MrSource *base)
{
}

/* The oldest rows, whichever worker's they are. */
static void
inbox_peek(MrStream *stream, MrBatch *batch, int max_messages, Size max_bytes, int timeout_ms)
{
	MrRunAs saved;
	uint64 count;

	mr_run_as(&saved, mr_extension_owner());
	count = mr_sql("SELECT push_no, message_time, key, value, headers::text FROM millrace.inbox "
				   "WHERE stream_id = %d ORDER BY push_no LIMIT %d",
				   stream->id, max_messages);
	mr_run_back(&saved);
	for (uint64 i = 0; i < count && batch->bytes < max_bytes; i++)
	{
		MrMessage *message = mr_batch_add(batch);
		bool isnull;
		Datum value;

		message->epoch = stream->epoch;
		message->position = DatumGetInt64(mr_sql_value(i, 1, &isnull));
		message->time = DatumGetTimestampTz(mr_sql_value(i, 2, &isnull));
		value = mr_sql_value(i, 3, &isnull);
		if (!isnull)
		{
			message->key_length = VARSIZE_ANY_EXHDR(DatumGetByteaPP(value));
			message->key = mr_batch_copy(batch, VARDATA_ANY(DatumGetByteaPP(value)),
										 message->key_length);
		}
		value = mr_sql_value(i, 4, &isnull);
		if (!isnull)
		{
			bytea *bytes = DatumGetByteaPP(value);

			message->value_length = VARSIZE_ANY_EXHDR(bytes);
			message->value = mr_batch_copy(batch, VARDATA_ANY(bytes), message->value_length);
		}
		message->headers = mr_sql_text(i, 5);
	}
	SPI_freetuptable(SPI_tuptable);
}

const MrSourceKind mr_inbox_source = {
	.name = "inbox",
	.open = inbox_open,
	.descriptor = inbox_descriptor,
	.fetch = inbox_fetch,
	.in_transaction = true,
	.lasting = true,
	.advance = inbox_advance,
	.committed = inbox_committed,
	.tick = inbox_tick,
	.drained = inbox_drained,
	.caught_up = inbox_drained,
	.close = inbox_close,
	.peek = inbox_peek,
};
