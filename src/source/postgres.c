/*
 * postgres.c
 *	  Tables of a PostgreSQL server as a source: change data capture by logical replication (C18, C19).
 *
 *	offline		nothing is open; each attempt connects, looks at publication and slot, and makes them (postgres_setup.c)
 *	making slot	the source waits for transactions that were running there; so it does in settling and moving slot
 *	streaming	changes come; between batches, rounds of the snapshot are read (postgres_snapshot.c)
 *	stopped		the slot is not what it was, and the stream's policy is to stop
 *
 * Nothing connects, and nothing waits for the source, inside a transaction of ours, but for the rest of a transaction
 * of the source that is too large for one batch.  What is to be written between batches is noted in `due`, and written
 * by the next tick.
 *
 * The position is the end of the last transaction that was consumed, and moves with its rows.  The source is told of
 * it when our own log is flushed that far, and never of more: a slot that has been confirmed beyond the position is
 * not the one that was read.  So when nothing comes while the source's log grows, the position has to move, too: once
 * a megabyte, by which a slot in this same cluster cannot feed itself.
 *
 * A change's position is the commit of its transaction; `place` orders the changes of one position: the commit again
 * (rounds of the snapshot may have raised the position), then the number of the change.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "core/millrace.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "source/pgoutput.h"
#include "source/postgres_source.h"
#include "source/server.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

/* So often the source is told how far we are, in ms. */
#define REPLY_INTERVAL 1000

/* So often the source is asked what the slot retains, in ms. */
#define STATUS_INTERVAL 10000

/* So much of the source's log may pass until an idle position moves. */
#define IDLE_BYTES (1024 * 1024)

/*
 * While the source is behind its own log, a batch is not closed before the source has been silent for so long, or
 * before it has been gathered for so long, in ms.
 */
#define SILENCE 5
#define GATHER 500

/*
 * A source that is behind sends every change by itself, and pays more for waking a reader than for the change: it gets so
 * many µs to fill the socket's buffer first.
 */
#define NAP 200

/* ms after which a source that sends nothing has nothing, though it does not say so. */
#define QUIET 1000

bool
mr_pg_parse_lsn(const char *text, XLogRecPtr *lsn)
{
	unsigned int high;
	unsigned int low;

	if (text == NULL || sscanf(text, "%X/%X", &high, &low) != 2)
		return false;
	*lsn = ((uint64) high << 32) | low;
	return true;
}

char *
mr_pg_lsn_text(XLogRecPtr lsn)
{
	return psprintf("%X/%X", LSN_FORMAT_ARGS(lsn));
}

char *
mr_pg_quoted(const char *table)
{
	const char *dot = strchr(table, '.');

	return quote_qualified_identifier(pnstrdup(table, dot - table), dot + 1);
}

void
mr_pg_read_again(MrPgSource *source)
{
	MemoryContext old = MemoryContextSwitchTo(source->context);

	/* They stay in the order of their ids. */
	source->reading = list_concat(source->reading, source->rereads);
	list_free(source->rereads);
	source->rereads = source->reading;
	source->reading = NIL;
	MemoryContextSwitchTo(old);
}

void
mr_pg_disconnect(MrPgSource *source)
{
	MemoryContextReset(source->connected);
	source->of_round = NULL;
	source->stream = source->side = NULL;
	source->readers = NULL;
	source->unreadable = NULL;
	source->nreaders = 0;
	source->round = NULL;
	source->current = source->sweeps = NIL;
	source->recent = NULL;
	source->sweeping = NULL;
	source->fetching_sweep = source->swept = false;
	mr_pg_read_again(source);
	source->caught_up = source->within = source->taken = false;
	source->found_system = NULL;
	if (source->phase != MR_PG_STOPPED)
		source->phase = MR_PG_OFFLINE;
	source->failures++;
	source->next_try = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												   Min(5000, 250 * source->failures));
}

/* Reads the server's options and secrets, as they are now. */
static void
read_properties(MrPgSource *source)
{
	const MrStream *stream = source->base.stream;
	MemoryContext old = MemoryContextSwitchTo(source->described);

	source->properties = NIL;
	MemoryContextReset(source->described);
	source->properties = mr_server_properties(stream->server, stream->owner);
	MemoryContextSwitchTo(old);
}

static MrSource *
pg_open(MrStream *stream, int worker, int workers)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace postgres",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	MrPgSource *source = palloc0(sizeof(MrPgSource));
	MrPosition *positions;
	int npositions;
	bool ours = mr_positions_are_ours(stream);

	source->base.kind = &mr_postgres_source;
	source->base.stream = stream;
	source->base.worker = worker;
	source->base.workers = workers;
	source->context = context;
	source->connected = AllocSetContextCreate(context, "millrace postgres connection",
											  ALLOCSET_DEFAULT_SIZES);
	source->described = AllocSetContextCreate(context, "millrace postgres server",
											  ALLOCSET_SMALL_SIZES);
	source->application = psprintf("millrace %s", stream->name);
	mr_pg_read_options(&source->options, stream);
	mr_pg_read_state(source);
	positions = mr_positions_take(stream, worker, workers, false, &npositions);
	if (npositions > 0)
	{
		source->position = positions[0];
		source->has_position = true;
		source->received = (XLogRecPtr) source->position.position;
		/* It is told when it is sure to stay: run_stream() has not told it, and who committed may not have waited for the disk. */
		if (!ours)
		{
			source->waiting = source->received;
			source->waiting_local = GetXLogInsertRecPtr();
		}
	}
	mr_pg_take_left_over(source);
	read_properties(source);
	source->must_use_password = mr_server_must_use_password(stream->server);
	MemoryContextSwitchTo(old);
	return &source->base;
}

static pgsocket
pg_descriptor(MrSource *base)
{
	return mr_pg_socket(((MrPgSource *) base)->stream);
}

/* ---- replies --------------------------------------------------------------------------------------- */

/* Which of what was committed here is flushed by now? */
static void
look_at_flush(MrPgSource *source)
{
	if (source->waiting == InvalidXLogRecPtr || GetFlushRecPtr(NULL) < source->waiting_local)
		return;
	source->acknowledged = Max(source->acknowledged, source->waiting);
	source->waiting = InvalidXLogRecPtr;
}

/* The position has been committed here by the transaction that ended last, unless that is its caller's. */
static void
note_committed(MrPgSource *source)
{
	if (source->base.in_caller)
		return;
	look_at_flush(source);
	/* The one before is waited for first. */
	if (source->waiting != InvalidXLogRecPtr)
		return;
	source->waiting = (XLogRecPtr) source->position.position;
	source->waiting_local = XactLastCommitEnd;
	look_at_flush(source);
}

/* Tells the source how far we are. */
static void
reply(MrPgSource *source)
{
	char bytes[34];
	uint64 number;

	look_at_flush(source);
	bytes[0] = 'r';
#define PUT(at, value) (number = pg_hton64(value), memcpy(bytes + (at), &number, sizeof(number)))
	PUT(1, source->acknowledged); /* written */
	PUT(9, source->acknowledged); /* flushed */
	PUT(17, source->acknowledged); /* applied */
	PUT(25, (uint64) GetCurrentTimestamp());
#undef PUT
	bytes[33] = 0;
	(void) mr_pg_reply(source->stream, bytes, sizeof(bytes));
	source->next_reply = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), REPLY_INTERVAL);
}

/* The source gives up who has said nothing for wal_sender_timeout, however much it has sent him to do. */
static void
reply_when_due(MrPgSource *source)
{
	if (GetCurrentTimestamp() >= source->next_reply)
		reply(source);
}

/* ---- reading --------------------------------------------------------------------------------------- */

const MrRelation *
mr_pg_keep_relation(MrPgSource *source, const MrRelation *relation)
{
	MemoryContext old;
	MrRelation *kept;

	for (int i = source->nrelations - 1; i >= 0; i--)
	{
		kept = source->relations[i];
		if (kept->oid == relation->oid && kept->whole == relation->whole &&
			strcmp(kept->name, relation->name) == 0 &&
			strcmp(mr_pg_fingerprint(kept), mr_pg_fingerprint(relation)) == 0)
			return kept;
	}
	old = MemoryContextSwitchTo(source->context);
	kept = palloc(sizeof(MrRelation));
	*kept = *relation;
	kept->name = pstrdup(relation->name);
	kept->names_length = 0;
	kept->columns = palloc(sizeof(MrColumn) * Max(relation->ncolumns, 1));
	for (int i = 0; i < relation->ncolumns; i++)
	{
		kept->columns[i] = relation->columns[i];
		kept->columns[i].name = pstrdup(relation->columns[i].name);
		/* And what stands around it. */
		kept->names_length += (int) strlen(kept->columns[i].name) + (int) strlen("\"\": , ");
	}
	source->relations = source->relations == NULL
							? palloc(sizeof(MrRelation *))
							: repalloc(source->relations,
									   sizeof(MrRelation *) * (source->nrelations + 1));
	source->relations[source->nrelations++] = kept;
	kept->serial = (uint64) source->nrelations;
	MemoryContextSwitchTo(old);
	return kept;
}

/* The table of a change, as it has described itself last. */
static const MrRelation *
find_relation(MrPgSource *source, Oid oid)
{
	ListCell *cell;

	if (source->recent != NULL && source->recent->oid == oid)
		return source->recent;
	foreach(cell, source->current)
	{
		source->recent = lfirst(cell);
		if (source->recent->oid == oid)
			return source->recent;
	}
	source->recent = NULL;
	ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
					errmsg("the source has sent a change of a table that it has not described"),
					errdetail("Its OID there is %u.", oid)));
}

/* Is it one of the stream's tables?  A publication may have more. */
static bool
wanted(const MrPgSource *source, const MrRelation *relation)
{
	ListCell *cell;

	foreach(cell, source->options.tables)
	{
		if (strcmp(lfirst(cell), relation->name) == 0)
			return true;
	}
	return source->options.tables == NIL;
}

/* Leaves a transaction that has begun to come out of the batch: it will come again. */
static void
forget_transaction(MrPgSource *source, MrBatch *batch)
{
	bool taken = source->taken;

	batch->nmessages = source->whole;
	mr_pg_disconnect(source);
	if (taken)
		ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
						errmsg("the source did not send the rest of a transaction")));
}

/*
 * A table describes itself.  What mirrors have to follow is followed by the next tick, before any row of the new
 * description is taken.
 */
static bool
take_relation(MrPgSource *source, MrBatch *batch, const MrRelation *described)
{
	const MrRelation *relation = mr_pg_keep_relation(source, described);
	MemoryContext old;
	ListCell *cell;

	foreach(cell, source->current)
	{
		if (((const MrRelation *) lfirst(cell))->oid == relation->oid)
			source->current = foreach_delete_current(source->current, cell);
	}
	old = MemoryContextSwitchTo(source->connected);
	source->current = lappend(source->current, (void *) relation);
	MemoryContextSwitchTo(old);
	source->recent = NULL;
	if (!wanted(source, relation) || mr_pg_known(source, relation))
		return true;
	if (source->taken)
		mr_pg_follow_next_time(source, relation);
	source->follow = (MrRelation *) relation;
	source->due |= MR_PG_DUE_FOLLOW;
	source->base.wants_tick = true;
	forget_transaction(source, batch);
	return false;
}

void
mr_pg_note_type(MrPgSource *source, Oid oid, const char *name)
{
	MemoryContext old = MemoryContextSwitchTo(source->context);
	MrPgType *type = NULL;
	ListCell *cell;

	foreach(cell, source->types)
	{
		if (((MrPgType *) lfirst(cell))->oid == oid)
			type = lfirst(cell);
	}
	if (type == NULL)
	{
		type = palloc(sizeof(MrPgType));
		type->oid = oid;
		source->types = lappend(source->types, type);
	}
	else
		pfree(type->name);
	type->name = pstrdup(name);
	MemoryContextSwitchTo(old);
}

/* One more message of the transaction that comes. */
static MrMessage *
add_message(MrPgSource *source, MrBatch *batch, const char *table)
{
	MrMessage *message = mr_batch_add(batch);
	uint64 place[2];

	message->topic = table;
	message->epoch = source->position.epoch;
	message->position = (int64) source->raised;
	message->time = source->raised_time;
	message->transaction = source->commit;
	place[0] = pg_hton64(source->commit);
	place[1] = pg_hton64((uint64) ++source->ordinal);
	memcpy(&message->place, place, sizeof(place));
	return message;
}

/* A change of a row; one that gives it another key is two messages. */
static void
take_change(MrPgSource *source, MrBatch *batch, MrPgoutput *change, const char *bytes, int length)
{
	const MrRelation *relation = find_relation(source, change->oid);
	MrMessage *message;
	const char *before;
	const char *after;
	char *copy;

	if (!wanted(source, relation))
		return;
	copy = mr_row_copy(batch, relation, bytes, length);
	change->rows = copy + (change->rows - bytes);
	change->rows_end = copy + length;
	mr_pgoutput_rows(change, relation->ncolumns, &before, &after);
	if (change->op == MR_OP_DELETE || (change->op == MR_OP_UPDATE && before != NULL &&
									   mr_row_key_differs(relation, before, after)))
	{
		message = add_message(source, batch, relation->name);
		message->op = MR_OP_DELETE;
		message->relation = relation;
		message->value = (char *) before;
		message->value_length = (int) (change->rows_end - before);
	}
	if (change->op == MR_OP_DELETE)
		return;
	message = add_message(source, batch, relation->name);
	message->op = change->op;
	message->relation = relation;
	message->value = (char *) after;
	message->value_length = (int) (change->rows_end - after);
	if (before != NULL)
	{
		message->before = (char *) before;
		message->before_length = (int) (after - before);
		message->moved = batch->nmessages > 1 && message[-1].op == MR_OP_DELETE &&
						 message[-1].value == before;
	}
}

/* A transaction that has to come without others before it, because it is not going to be taken: where it commits. */
static XLogRecPtr alone = InvalidXLogRecPtr;

/* Tables are emptied: all that is staged from them goes, when what came before has been processed. */
static void
take_truncate(MrPgSource *source, MrBatch *batch, const MrPgoutput *message)
{
	MemoryContext old;

	if (strcmp(source->options.truncate, "ignore") == 0)
		return;
	for (int i = 0; i < message->ntruncated; i++)
	{
		const MrRelation *relation = find_relation(source, message->truncated[i]);

		if (!wanted(source, relation))
			continue;
		if (strcmp(source->options.truncate, "stop") == 0)
		{
			/* What was committed before is taken first: then this transaction comes again, alone. */
			if (source->whole > 0)
			{
				forget_transaction(source, batch);
				return;
			}
			alone = source->commit;
			ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
							errmsg("table %s of the source was truncated", relation->name),
							errhint("Declare the stream with truncate \"apply\" or \"ignore\" to "
									"go on.")));
		}
		old = MemoryContextSwitchTo(source->connected);
		source->sweeps = lappend(source->sweeps, (void *) relation->name);
		MemoryContextSwitchTo(old);
	}
}

/* Takes one message of pgoutput; false when reading has to end here. */
static bool
take_message(MrPgSource *source, MrBatch *batch, const char *bytes, int length)
{
	MemoryContext old = MemoryContextSwitchTo(batch->context);
	MrPgoutput message;
	bool go_on = true;

	mr_pgoutput_parse(bytes, length, &message);
	MemoryContextSwitchTo(old);
	switch (message.kind)
	{
		case MR_PGOUTPUT_BEGIN:
			if (message.commit == alone && batch->nmessages > 0)
			{
				source->whole = batch->nmessages;
				forget_transaction(source, batch);
				go_on = false;
				break;
			}
			source->within = true;
			source->taken = false;
			source->whole = batch->nmessages;
			source->xid = message.xid;
			source->commit = message.commit;
			source->ordinal = 0;
			/* The position is the end of a commit: what begins before it has been consumed. */
			source->skipping = message.commit < (XLogRecPtr) source->position.position;
			source->raised = message.commit;
			source->raised_time = message.time;
			if (source->live != NIL)
				mr_pg_raise(source, &source->raised, &source->raised_time);
			break;
		case MR_PGOUTPUT_COMMIT:
			source->within = source->taken = false;
			source->whole = batch->nmessages;
			source->last_time = message.time;
			source->received = Max(source->received, message.end);
			if (!source->skipping)
			{
				source->position.next = (int64) message.end;
				mr_pg_note_applied(source, source->xid);
			}
			break;
		case MR_PGOUTPUT_RELATION:
			go_on = take_relation(source, batch, message.relation);
			break;
		case MR_PGOUTPUT_TYPE:
			mr_pg_note_type(source, message.oid, message.type);
			break;
		case MR_PGOUTPUT_CHANGE:
			if (!source->skipping)
				take_change(source, batch, &message, bytes, length);
			break;
		case MR_PGOUTPUT_TRUNCATE:
			if (!source->skipping)
				take_truncate(source, batch, &message);
			go_on = source->sweeps == NIL && source->phase == MR_PG_STREAMING;
			break;
		case MR_PGOUTPUT_OTHER:
			break;
	}
	return go_on;
}

static uint64
read_number(const char *bytes)
{
	uint64 number;

	memcpy(&number, bytes, sizeof(number));
	return pg_ntoh64(number);
}

/* Takes what the walsender has sent; false when reading has to end here. */
static bool
take_piece(MrPgSource *source, MrBatch *batch, const char *bytes, int length)
{
	/* Before it waits for its log, it says how far it has come. */
	source->caught_up = bytes[0] == 'k';
	if (bytes[0] == 'w' && length >= 25)
		return take_message(source, batch, bytes + 25, length - 25);
	if (bytes[0] == 'k' && length >= 18)
	{
		/* Everything before it has been sent. */
		if (!source->within)
			source->received = Max(source->received, read_number(bytes + 1));
		/* It wants to know when it is about to go: then it waits for all it has sent. */
		if (bytes[17] != 0)
		{
			source->next_reply = 0;
			source->urgent = true;
		}
	}
	return true;
}

/* The stream has ended or failed. */
static void
lose_connection(MrPgSource *source, MrBatch *batch, int code)
{
	char *problem = pstrdup(code == -1 ? "the source has ended the connection"
									   : mr_pg_problem(source->stream));

	/* What is to be read comes from before it was made. */
	if (code == -2 && strcmp(mr_pg_sqlstate(source->stream), "42704") == 0)
		problem = psprintf("%s; call millrace.reset_stream(%s), which copies the tables again",
						   problem, quote_literal_cstr(source->base.stream->name));

	source->failures = Min(source->failures, 1);
	mr_source_set_problem(&source->base, problem);
	forget_transaction(source, batch);
}

/*
 * Is a batch of whole transactions to be processed now that nothing more has come?  More is on its way while the source
 * has not caught up, and one large batch costs less than many small ones.
 */
static bool
gathered(const MrPgSource *source, bool silent, TimestampTz started)
{
	return source->caught_up || silent ||
		   TimestampDifferenceExceeds(started, GetCurrentTimestamp(), GATHER);
}

/*
 * Adds what comes to the batch until it is full, or nothing more is to be waited for.  What is left of a transaction that the batch
 * before ends within comes alone: with the next transactions the batch would be full within another one, and so on, and all
 * that has piled up would be one transaction here.
 */
static void
read_stream(MrPgSource *source, MrBatch *batch, int max_messages, Size max_bytes, int wait_ms)
{
	TimestampTz started = GetCurrentTimestamp();
	bool remainder = source->within;
	bool rested = false;
	bool silent = false;
	bool late = false;
	const char *bytes;
	int polled = 0;

	source->whole = 0;
	while (batch->nmessages < max_messages && batch->bytes < max_bytes)
	{
		int length = mr_pg_receive(source->stream, &bytes);

		if (length < 0)
		{
			lose_connection(source, batch, length);
			return;
		}
		if (length > 0)
		{
			if (!take_piece(source, batch, bytes, length) || (remainder && !source->within))
				return;
			rested = silent = false;
			if (++polled % 1024 == 0)
			{
				CHECK_FOR_INTERRUPTS();
				reply_when_due(source);
				late = TimestampDifferenceExceeds(started, GetCurrentTimestamp(), GATHER);
			}
			/* What is there already does not wait while changes come of tables that are not ours. */
			if (late && batch->nmessages > 0 && !source->within)
				return;
			continue;
		}
		reply_when_due(source);
		if (!source->caught_up && !rested && (source->within || batch->nmessages > 0))
		{
			pg_usleep(NAP);
			rested = true;
			continue;
		}
		if (source->within)
		{
			mr_pg_wait(source->stream, REPLY_INTERVAL);
			continue;
		}
		if (batch->nmessages == 0 ? wait_ms == 0 : gathered(source, silent, started))
		{
			TimestampTz now = GetCurrentTimestamp();

			if (polled > 0)
				source->came_at = now;
			source->emptied = source->caught_up ||
							  TimestampDifferenceExceeds(source->came_at, now, QUIET);
			return;
		}
		mr_pg_wait(source->stream, batch->nmessages == 0 ? wait_ms : SILENCE);
		silent = true;
		wait_ms = 0;
	}
}

/* A message that removes what is staged from a table: all, or what a copy of it did not bring. */
static void
add_sweep(MrPgSource *source, MrBatch *batch, const char *table, const MrPgTask *copied)
{
	MrMessage *message = add_message(source, batch, table);

	message->op = MR_OP_SWEEP;
	message->sweep_before = copied == NULL ? DT_NOEND : copied->started;
	message->sweep_position = copied == NULL ? 0 : (int64) copied->first;
	source->fetching_sweep = true;
}

/* What a table was not found to have when it was copied is removed, too. */
static bool
sweep_copied(MrPgSource *source, MrBatch *batch)
{
	MrPgTask *task = source->within ? NULL : mr_pg_sweep_due(source);

	if (task == NULL)
		return false;
	source->commit = source->raised = task->last;
	source->raised_time = GetCurrentTimestamp();
	source->ordinal = 0;
	source->sweeping = task;
	add_sweep(source, batch, task->table, task);
	return true;
}

/* Was the stream to copy its tables only, and has it? */
static bool
finished(const MrPgSource *source)
{
	return source->phase == MR_PG_STREAMING && source->due == 0 && !source->within &&
		   source->sweeps == NIL && strcmp(source->options.snapshot, "only") == 0 &&
		   mr_pg_snapshot_done(source);
}

static void
pg_fetch(MrSource *base, MrBatch *batch, int max_messages, Size max_bytes, int wait_ms)
{
	MrPgSource *source = (MrPgSource *) base;
	/* What comes first belongs to the transaction that is open here; a round of the snapshot does not. */
	bool remainder = source->within;

	source->emptied = false;
	if (source->due & MR_PG_DUE_POSITION)
	{
		/* The tick that has moved it is over. */
		source->due &= ~MR_PG_DUE_POSITION;
		source->position.position = source->position.next;
		note_committed(source);
	}
	if (source->phase == MR_PG_OFFLINE && source->due == 0 &&
		GetCurrentTimestamp() >= source->next_try && mr_pg_prepare(source))
	{
		source->phase = MR_PG_STREAMING;
		source->came_at = GetCurrentTimestamp();
		source->failures = 0;
		mr_source_set_problem(&source->base, NULL);
	}
	if (source->phase == MR_PG_MAKING_SLOT || source->phase == MR_PG_SETTLING_SLOT ||
		source->phase == MR_PG_MOVING_SLOT)
		mr_pg_poll_slot(source);
	if (finished(source))
	{
		mr_pg_disconnect(source);
		source->due |= MR_PG_DUE_FINISHED;
		source->base.wants_tick = true;
	}
	if (source->phase != MR_PG_STREAMING || source->due & (MR_PG_DUE_FOLLOW | MR_PG_DUE_ROUND))
	{
		if (wait_ms > 0)
		{
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 Min(wait_ms, 100), PG_WAIT_EXTENSION);
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
		return;
	}

	reply_when_due(source);
	if (source->ask_status && !source->within && source->round == NULL && source->sweeps == NIL)
	{
		mr_pg_ask_status(source);
		source->next_status = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), STATUS_INTERVAL);
		if (source->phase != MR_PG_STREAMING)
			return;
	}
	if (source->sweeps != NIL)
		add_sweep(source, batch, linitial(source->sweeps), NULL);
	else if (source->sweeping != NULL)
		add_sweep(source, batch, source->sweeping->table, source->sweeping);
	else if (source->round != NULL && !source->round_read)
		mr_pg_round_fetch(source, batch, max_messages, max_bytes);
	else if (!sweep_copied(source, batch))
	{
		/* Stream and snapshot take turns. */
		if (source->within || !source->turn || !mr_pg_snapshot_due(source))
			read_stream(source, batch, max_messages, max_bytes,
						mr_pg_snapshot_due(source) ? 0 : wait_ms);
		/* More is on its way: it comes while the batch is processed. */
		if (batch->nmessages > 0 && !source->caught_up && source->phase == MR_PG_STREAMING)
			mr_pg_read_ahead(source->stream);
		source->turn = remainder || batch->nmessages > 0;
		if (!source->turn && source->phase == MR_PG_STREAMING && !source->within &&
			source->sweeps == NIL && mr_pg_snapshot_due(source) && mr_pg_round_begin(source))
			mr_pg_round_fetch(source, batch, max_messages, max_bytes);
	}
}

/* Notes the rows that are to be read again. */
static void
note_rereads(MrPgSource *source, const MrBatch *batch)
{
	MemoryContext old = MemoryContextSwitchTo(source->context);

	for (int i = 0; i < batch->nmessages; i++)
	{
		const MrMessage *message = &batch->messages[i];
		MrPgReread *reread;

		if (!message->reread)
			continue;
		reread = palloc0(sizeof(MrPgReread));
		reread->table = pstrdup(message->topic);
		reread->condition = mr_row_condition(message->relation, message->value);
		source->rereads = lappend(source->rereads, reread);
	}
	MemoryContextSwitchTo(old);
}

static bool
pg_unfinished(MrSource *base, const MrBatch *batch)
{
	MrPgSource *source = (MrPgSource *) base;

	note_rereads(source, batch);

	if (source->fetching_sweep)
	{
		source->fetching_sweep = false;
		/* There may be more of it, unless it is a dead letter. */
		if (batch->swept > 0 && batch->messages[0].failures == NULL)
			return true;
		if (source->sweeps != NIL)
			source->sweeps = list_delete_first(source->sweeps);
		else
			source->swept = true;
	}
	if (source->round != NULL)
	{
		source->round_taken = true;
		return !source->round_read;
	}
	source->taken = source->within;
	return source->within;
}

/* ---- positions ------------------------------------------------------------------------------------- */

static void
pg_advance(MrSource *base, MrBatch *batch)
{
	MrPgSource *source = (MrPgSource *) base;
	MrPosition *position = &source->position;

	if (source->round != NULL)
		mr_pg_store_round(source);
	else if (source->swept)
		mr_pg_store(source);
	mr_pg_store_rereads(source);
	if (source->last_time != 0)
		position->last_time = source->last_time;
	position->high_watermark = (int64) Max(source->received, (XLogRecPtr) position->next);
	mr_positions_advance(source->base.stream, &position, 1);
}

static void
pg_committed(MrSource *base, MrBatch *batch)
{
	MrPgSource *source = (MrPgSource *) base;

	source->position.position = source->position.next;
	if (source->round != NULL)
		mr_pg_round_end(source);
	if (source->swept)
	{
		source->sweeping->sweep = source->swept = false;
		source->sweeping = NULL;
	}
	note_committed(source);
	if (source->stream != NULL)
		reply_when_due(source);
}

/*
 * Moves the position where nothing has come for a while; at once when the source is about to go, because it waits for
 * that.
 */
static void
move_idle(MrPgSource *source)
{
	MrPosition *position = &source->position;
	XLogRecPtr left = source->received - (XLogRecPtr) position->position;

	if (source->phase != MR_PG_STREAMING || source->within || source->round != NULL ||
		source->due & MR_PG_DUE_POSITION || source->received <= (XLogRecPtr) position->position ||
		(left < IDLE_BYTES && !source->urgent))
		return;
	source->urgent = false;
	position->next = position->high_watermark = (int64) source->received;
	position->last_time = GetCurrentTimestamp();
	mr_positions_advance(source->base.stream, &position, 1);
	source->due |= MR_PG_DUE_POSITION;
}

static void
pg_tick(MrSource *base)
{
	MrPgSource *source = (MrPgSource *) base;

	source->base.wants_tick = false;
	/* Addresses and secrets may have been corrected. */
	if (source->phase == MR_PG_OFFLINE)
		read_properties(source);
	if (source->due != 0)
		mr_pg_store(source);
	move_idle(source);
	if (source->phase == MR_PG_STREAMING && GetCurrentTimestamp() >= source->next_status)
		source->ask_status = true;
}

static bool
pg_drained(MrSource *base)
{
	MrPgSource *source = (MrPgSource *) base;

	if (strcmp(source->options.snapshot, "only") == 0)
		return source->dropped;
	return source->phase == MR_PG_STREAMING && source->due == 0 && !source->within &&
		   source->received >= source->end && !mr_pg_snapshot_left(source) &&
		   mr_pg_sweep_due(source) == NULL;
}

static bool
pg_caught_up(MrSource *base)
{
	return ((MrPgSource *) base)->emptied;
}

static void
pg_close(MrSource *base)
{
	MrPgSource *source = (MrPgSource *) base;

	MemoryContextDelete(source->context);
}

/* What would come next cannot be looked at: reading the slot takes it from the stream. */
static void
pg_peek(MrStream *stream, MrBatch *batch, int max_messages, Size max_bytes, int timeout_ms)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("changes of a PostgreSQL server cannot be looked at before they are taken"),
			 errhint("Give preview() a payload: a row as a JSON object.")));
}

const MrSourceKind mr_postgres_source = {
	.name = "postgres",
	.open = pg_open,
	.descriptor = pg_descriptor,
	.fetch = pg_fetch,
	.in_transaction = false,
	/* A slot keeps what is not flushed here, but not what a standby has not got yet. */
	.lasting = false,
	.unfinished = pg_unfinished,
	.advance = pg_advance,
	.committed = pg_committed,
	.tick = pg_tick,
	.drained = pg_drained,
	.caught_up = pg_caught_up,
	.close = pg_close,
	.peek = pg_peek,
	.validate = mr_pg_validate,
};
