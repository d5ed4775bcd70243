/*
 * postgres_snapshot.c
 *	  Copying tables in rounds of chunks while their changes stream (C19).
 *
 * A round is one REPEATABLE READ transaction at the source, which takes its snapshot S, then the place L to which the log is
 * flushed, greater than that of the round before (what is not flushed may be lost, and its places and transaction ids given
 * to others); n connections share S and each copies a range of pages.  The rows count as read at L,
 * and all of them, with the progress, are one transaction here.
 *
 * A streamed change beats a round's row if and only if S does not see its transaction.  That a commit lies before L does
 * not say so: its record is written before others see it.  So a change that S does not see counts as no earlier than L,
 * and what was applied before a round is read must be visible in S: then whatever the round brings is no older.  A round
 * is live until the stream has passed its L.
 *
 * Rows may move between pages while they are copied.  Then their transaction is one that an earlier round has not seen,
 * and the change comes with the stream.
 */
#include "postgres.h"

#include "core/millrace.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "source/postgres_source.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

/* How long a round waits, at once, for transactions to become visible: so often, and ms each time. */
#define VISIBLE_TRIES 20
#define VISIBLE_PAUSE 5
/* Who calls run_stream() has nothing else to do: half a minute. */
#define CALLER_TRIES 6000

/* So many rows are read again at once. */
#define REREADS 500

/* So many transactions are remembered one by one. */
#define APPLIED 65536

/* ms until another attempt, and so much more at most after those that failed. */
#define ROUND_PAUSE 200
#define FAILED_PAUSE 5000

MrPgRound *
mr_pg_parse_snapshot(const char *text)
{
	MrPgRound *round = palloc0(sizeof(MrPgRound));
	char *end;

	round->text = pstrdup(text);
	round->xmin = strtou64(text, &end, 10);
	round->xmax = strtou64(end + 1, &end, 10);
	round->running = palloc(sizeof(uint64) * (strlen(end) / 2 + 1));
	while (*end != '\0' && end[1] != '\0')
		round->running[round->nrunning++] = strtou64(end + 1, &end, 10);
	return round;
}

/* Does the snapshot see a transaction, of whose number the stream tells the lower half? */
static bool
sees(const MrPgRound *round, uint32 xid)
{
	/* The other half is that which brings it near to the snapshot's. */
	uint64 full = round->xmax + (int64) (int32) (xid - (uint32) round->xmax);

	if (full < round->xmin)
		return true;
	if (full >= round->xmax)
		return false;
	for (int i = 0; i < round->nrunning; i++)
	{
		if (round->running[i] == full)
			return false;
	}
	return true;
}

void
mr_pg_raise(MrPgSource *source, XLogRecPtr *position, TimestampTz *time)
{
	ListCell *cell;

	foreach(cell, source->live)
	{
		MrPgRound *round = lfirst(cell);

		if (round->position < source->received)
		{
			source->live = foreach_delete_current(source->live, cell);
			pfree(round->text);
			pfree(round->running);
			pfree(round);
			continue;
		}
		if (sees(round, source->xid))
			continue;
		*position = Max(*position, round->position);
		*time = Max(*time, round->clock);
	}
}

void
mr_pg_note_applied(MrPgSource *source, uint32 xid)
{
	if (source->applied == NULL)
		source->applied = MemoryContextAlloc(source->context, sizeof(uint32) * APPLIED);
	/* Where no round forgets what is old, the next one waits for all that had begun before. */
	if (source->napplied == APPLIED)
	{
		source->napplied = 0;
		source->has_barrier = false;
	}
	source->applied[source->napplied++] = xid;
}

/* The first table that is still to be copied. */
static MrPgTask *
next_task(MrPgSource *source)
{
	ListCell *cell;

	foreach(cell, source->tasks)
	{
		MrPgTask *task = lfirst(cell);

		if (!task->copied)
			return task;
	}
	return NULL;
}

bool
mr_pg_snapshot_left(MrPgSource *source)
{
	return source->rereads != NIL || (!source->paused && next_task(source) != NULL);
}

bool
mr_pg_snapshot_due(MrPgSource *source)
{
	return mr_pg_snapshot_left(source) && GetCurrentTimestamp() >= source->next_round;
}

bool
mr_pg_snapshot_done(const MrPgSource *source)
{
	ListCell *cell;

	foreach(cell, source->tasks)
	{
		const MrPgTask *task = lfirst(cell);

		if (!task->copied || task->sweep)
			return false;
	}
	foreach(cell, source->live)
	{
		if (((const MrPgRound *) lfirst(cell))->position > source->received)
			return false;
	}
	return source->rereads == NIL && source->reading == NIL && source->round == NULL;
}

MrPgTask *
mr_pg_sweep_due(MrPgSource *source)
{
	ListCell *cell;

	foreach(cell, source->tasks)
	{
		MrPgTask *task = lfirst(cell);

		/* All that the rounds have not seen has come. */
		if (task->copied && task->sweep && source->received >= task->last)
			return task;
	}
	return NULL;
}

/* Why a round cannot begin; it is tried again. */
static bool
postpone(MrPgSource *source, const char *problem)
{
	mr_source_set_problem(&source->base, problem);
	source->next_round = TimestampTzPlusMilliseconds(
		GetCurrentTimestamp(),
		ROUND_PAUSE + Min(FAILED_PAUSE, ROUND_PAUSE * source->failed_rounds));
	return false;
}

/* A reader's connection. */
static bool
connect_reader(MrPgSource *source, int number)
{
	MrPgReader *reader = &source->readers[number];
	MemoryContext old;

	if (reader->client != NULL && mr_pg_connected(reader->client))
		return true;
	reader->client = NULL;
	if (reader->context == NULL)
		reader->context = AllocSetContextCreate(source->connected, "millrace postgres reader",
												ALLOCSET_SMALL_SIZES);
	MemoryContextReset(reader->context);
	old = MemoryContextSwitchTo(reader->context);
	reader->client = mr_pg_connect(source->properties, source->must_use_password,
								   source->application, false, MR_PG_TIMEOUT);
	MemoryContextSwitchTo(old);
	return mr_pg_connected(reader->client);
}

/* Is all that was applied visible in the snapshot? What is so for ever is forgotten. */
static bool
sees_applied(MrPgSource *source, const MrPgRound *round)
{
	int kept = 0;
	bool all = true;

	for (int i = 0; i < source->napplied; i++)
	{
		uint32 xid = source->applied[i];

		all = all && sees(round, xid);
		if ((int32) (xid - (uint32) round->xmin) >= 0)
			source->applied[kept++] = xid;
	}
	source->napplied = kept;
	return all;
}

/* The oldest transaction that runs in a snapshot, but for one that is to be overlooked. */
static uint64
oldest_running(const MrPgRound *round, TransactionId overlooked)
{
	uint64 oldest = round->xmax;

	for (int i = 0; i < round->nrunning; i++)
	{
		if ((TransactionId) round->running[i] != overlooked)
			oldest = Min(oldest, round->running[i]);
	}
	return oldest;
}

/* Takes a snapshot that sees all that was applied, on the first reader; *name is what the others share it by. */
static MrPgRound *
take_snapshot(MrPgSource *source, char **name)
{
	MrPgClient *client = source->readers[0].client;
	TransactionId own = mr_pg_own_transaction(client);
	uint64 oldest;
	MrPgRound *round;
	MrPgRows rows;

	int tries = source->base.in_caller ? CALLER_TRIES : VISIBLE_TRIES;

	for (int try = 0; try < tries; try++)
	{
		XLogRecPtr position;

		if (!mr_pg_run(client, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", MR_PG_TIMEOUT,
					   NULL) ||
			!mr_pg_run(client,
					   "SELECT pg_catalog.pg_current_snapshot(), "
					   "pg_catalog.pg_current_wal_flush_lsn(), pg_catalog.pg_export_snapshot(), "
					   "(1000000 * extract(epoch FROM pg_catalog.clock_timestamp()))::bigint",
					   MR_PG_TIMEOUT, &rows) ||
			!mr_pg_parse_lsn(rows.values[0][1], &position))
		{
			(void) postpone(source, mr_pg_problem(client));
			return NULL;
		}
		round = mr_pg_parse_snapshot(rows.values[0][0]);
		round->clock = (TimestampTz) strtoi64(rows.values[0][3], NULL, 10) -
					   (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
		*name = rows.values[0][2];
		if (!source->has_barrier)
		{
			/*
			 * What was applied before this feed was opened is not known one by one.  What a transaction did before its
			 * table was published does not come, nor does one whose commit was logged before the slot began and that
			 * others did not see yet, as it waited for a standby.
			 */
			source->barrier = round->xmax;
			source->has_barrier = true;
		}
		/* The caller's own transaction has not ended: nothing of it was applied. */
		oldest = oldest_running(round, own);
		if (oldest >= source->barrier && sees_applied(source, round))
		{
			round->position = Max(position, source->last_round + 1);
			/* What is there now is all that the copy has seen, too. */
			source->end = Max(source->end, position);
			return round;
		}
		(void) mr_pg_run(client, "ROLLBACK", MR_PG_TIMEOUT, NULL);
		if (oldest < source->barrier && (!source->base.in_caller || try == tries - 1))
		{
			(void) postpone(source, psprintf("the snapshot waits until transactions of the source "
											 "before " UINT64_FORMAT
											 " have ended; the oldest is " UINT64_FORMAT,
											 source->barrier, oldest));
			return NULL;
		}
		(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, VISIBLE_PAUSE,
						 PG_WAIT_EXTENSION);
		CHECK_FOR_INTERRUPTS();
	}
	(void) postpone(source, NULL);
	return NULL;
}

/* Describes a table as it is in the round's snapshot, with the columns that are published; NULL: it is gone. */
static const MrRelation *
describe(MrPgSource *source, char *table)
{
	MrPgClient *client = source->readers[0].client;
	MrRelation relation = {0};
	MrPgRows rows;

	if (!mr_pg_run(
			client,
			psprintf(
				"SELECT c.oid, c.relreplident, a.attname, a.atttypid, a.atttypmod, "
				"coalesce((i.indkey::smallint[])[0:i.indnkeyatts - 1] @> ARRAY[a.attnum], false) "
				"OR c.relreplident = 'f', "
				"n.nspname || '.' || t.typname, a.atttypid < 16384 "
				"FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid "
				"JOIN pg_catalog.pg_type t ON t.oid = a.atttypid "
				"JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace "
				"LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND "
				"CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident "
				"ELSE false END "
				"WHERE c.oid = %s AND a.attnum > 0 AND NOT a.attisdropped "
				"AND a.attgenerated = '' ORDER BY a.attnum",
				mr_pg_table_oid(table)),
			MR_PG_TIMEOUT, &rows) ||
		rows.nrows == 0)
		return NULL;
	relation.oid = (Oid) strtoul(rows.values[0][0], NULL, 10);
	relation.name = table;
	relation.whole = rows.values[0][1][0] == 'f';
	relation.ncolumns = rows.nrows;
	relation.columns = palloc0(sizeof(MrColumn) * rows.nrows);
	for (int i = 0; i < rows.nrows; i++)
	{
		MrColumn *column = &relation.columns[i];

		column->name = rows.values[i][2];
		column->type = (Oid) strtoul(rows.values[i][3], NULL, 10);
		column->typmod = (int32) strtol(rows.values[i][4], NULL, 10);
		column->key = rows.values[i][5][0] == 't';
		if (rows.values[i][7][0] != 't')
			mr_pg_note_type(source, column->type, rows.values[i][6]);
	}
	return mr_pg_keep_relation(source, &relation);
}

/* A range of pages of one leaf of a table. */
typedef struct Range
{
	char *leaf; /* as SQL */
	int64 from;
	int64 to; /* -1: to the end, and beyond */
} Range;

/*
 * The next ranges of a table, at most `limit`, and where the table is afterwards.  The last range of a leaf is open: the
 * leaf may have grown.
 */
static int
next_ranges(MrPgSource *source, MrPgTask *task, int limit, Range *ranges)
{
	MrPgClient *client = source->readers[0].client;
	int count = 0;
	int64 pages = 0;
	MrPgRows rows;

	if (!mr_pg_run(client,
				   psprintf("SELECT c.oid, c.oid::regclass, "
							"pg_catalog.pg_relation_size(c.oid) / "
							"pg_catalog.current_setting('block_size')::bigint, "
							"greatest(c.reltuples / nullif(c.relpages, 0), 1)::bigint, "
							"coalesce(pg_catalog.pg_relation_filenode(c.oid), 0) "
							"FROM (SELECT %s AS root) AS r, "
							"LATERAL (SELECT p.relid FROM pg_catalog.pg_partition_tree(r.root) p "
							"WHERE p.isleaf UNION SELECT r.root WHERE NOT EXISTS (SELECT FROM "
							"pg_catalog.pg_partition_tree(r.root))) AS l (oid) "
							"JOIN pg_catalog.pg_class c ON c.oid = l.oid ORDER BY c.oid",
							mr_pg_table_oid(task->table)),
				   MR_PG_TIMEOUT, &rows))
		return -1;
	task->copied = true;
	for (int i = 0; i < rows.nrows; i++)
	{
		Oid leaf = (Oid) strtoul(rows.values[i][0], NULL, 10);
		int64 size = strtoi64(rows.values[i][2], NULL, 10);
		int64 density = rows.values[i][3] == NULL ? 60 : strtoi64(rows.values[i][3], NULL, 10);
		Oid file = (Oid) strtoul(rows.values[i][4], NULL, 10);
		int64 step = Max(1, source->options.chunk / density);

		pages += size;
		if (leaf < task->leaf)
			continue;
		if (leaf > task->leaf || (file != task->file && task->page >= 0))
		{
			if (leaf == task->leaf)
				task->read -= task->page;
			task->leaf = leaf;
			task->file = file;
			task->page = 0;
		}
		while (task->page >= 0 && count < limit)
		{
			Range *range = &ranges[count++];

			range->leaf = rows.values[i][1];
			range->from = task->page;
			range->to = task->page + step >= size ? -1 : task->page + step;
			task->read += range->to < 0 ? size - range->from : step;
			task->page = range->to;
		}
		if (task->page >= 0)
		{
			/* The limit is reached within this leaf. */
			task->copied = false;
			break;
		}
		if (count == limit && i < rows.nrows - 1)
		{
			task->copied = false;
			break;
		}
	}
	task->pages = Max(pages, task->read);
	task->changed = true;
	return count;
}

/* How a statement begins that copies rows of a table. */
static void
append_columns(StringInfo sql, const MrRelation *relation)
{
	appendStringInfoString(sql, "COPY (SELECT ");
	for (int i = 0; i < relation->ncolumns; i++)
		appendStringInfo(sql, "%st.%s", i > 0 ? ", " : "",
						 quote_identifier(relation->columns[i].name));
}

/* The statement that copies a range of pages. */
static char *
copy_statement(const MrPgTask *task, const MrRelation *relation, const Range *range)
{
	StringInfoData sql;

	initStringInfo(&sql);
	append_columns(&sql, relation);
	appendStringInfo(&sql, " FROM ONLY %s AS t WHERE t.ctid >= '(" INT64_FORMAT ",0)'", range->leaf,
					 range->from);
	if (range->to >= 0)
		appendStringInfo(&sql, " AND t.ctid < '(" INT64_FORMAT ",0)'", range->to);
	if (task->filter != NULL)
		appendStringInfo(&sql, " AND (%s\n)", task->filter);
	appendStringInfoString(&sql, ") TO STDOUT");
	return sql.data;
}

/* The statement that reads rows of one table again, and takes them over from the list. */
static char *
reread_statement(MrPgSource *source, const MrRelation *relation, const char *table)
{
	MemoryContext old = MemoryContextSwitchTo(source->context);
	List *others = NIL;
	StringInfoData sql;
	ListCell *cell;

	foreach(cell, source->rereads)
	{
		MrPgReread *reread = lfirst(cell);

		if (strcmp(reread->table, table) == 0 && list_length(source->reading) < REREADS)
			source->reading = lappend(source->reading, reread);
		else
			others = lappend(others, reread);
	}
	list_free(source->rereads);
	source->rereads = others;
	MemoryContextSwitchTo(old);
	initStringInfo(&sql);
	append_columns(&sql, relation);
	appendStringInfo(&sql, " FROM %s AS t WHERE", mr_pg_quoted(table));
	foreach(cell, source->reading)
		appendStringInfo(&sql, "%s (%s)", sql.data[sql.len - 1] == ')' ? " OR" : "",
						 ((MrPgReread *) lfirst(cell))->condition);
	appendStringInfoString(&sql, ") TO STDOUT");
	return sql.data;
}

/* Is the table described as mirrors know it?  Else they follow it first. */
static bool
is_known(MrPgSource *source, const MrRelation *relation)
{
	if (mr_pg_known(source, relation))
		return true;
	source->follow = (MrRelation *) relation;
	source->due |= MR_PG_DUE_FOLLOW;
	source->base.wants_tick = true;
	return postpone(source, NULL);
}

/* A table cannot be read: why, and what an administrator runs. */
static bool
refuse_table(MrPgSource *source, const MrPgReader *reader, const char *format, const char *table)
{
	const char *unreadable = mr_pg_unreadable(source, table);

	return postpone(
		source,
		psprintf(format, table, unreadable != NULL ? unreadable : mr_pg_problem(reader->client)));
}

/* Reads rows again, by the first reader. */
static bool
begin_rereads(MrPgSource *source)
{
	MrPgReader *reader = &source->readers[0];
	char *table = ((MrPgReread *) linitial(source->rereads))->table;
	ListCell *cell;

	/* One that cannot be read keeps no other one waiting. */
	foreach(cell, source->rereads)
	{
		if (source->unreadable != NULL &&
			strcmp(((MrPgReread *) lfirst(cell))->table, source->unreadable) != 0)
		{
			table = ((MrPgReread *) lfirst(cell))->table;
			break;
		}
	}
	if (source->unreadable != NULL)
		pfree(source->unreadable);
	source->unreadable = MemoryContextStrdup(source->connected, table);
	reader->relation = describe(source, table);
	if (reader->relation == NULL)
		return postpone(
			source,
			psprintf("rows of table %s cannot be read: it does not exist at the source", table));
	if (!is_known(source, reader->relation))
		return false;
	if (!mr_pg_copy(reader->client, reread_statement(source, reader->relation, table),
					MR_PG_TIMEOUT * 6))
		return refuse_table(source, reader, "rows of table %s cannot be read: %s", table);
	pfree(source->unreadable);
	source->unreadable = NULL;
	reader->task = NULL;
	reader->reading = true;
	return true;
}

/* Gives each reader a range; false when something at the source is not as it has to be. */
static bool
begin_copies(MrPgSource *source, MrPgTask *task, const char *snapshot)
{
	Range *ranges = palloc(sizeof(Range) * source->nreaders);
	const MrRelation *relation = describe(source, task->table);
	int count;

	if (relation == NULL)
		return postpone(
			source,
			psprintf("table %s cannot be copied: it does not exist at the source", task->table));
	/* Mirrors have to be able to take its rows. */
	if (!is_known(source, relation))
		return false;
	count = next_ranges(source, task, source->nreaders, ranges);
	if (count < 0)
		return postpone(source, mr_pg_problem(source->readers[0].client));
	for (int i = 0; i < count; i++)
	{
		MrPgReader *reader = &source->readers[i];

		if (i > 0 &&
			(!connect_reader(source, i) ||
			 !mr_pg_run(reader->client, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
						MR_PG_TIMEOUT, NULL) ||
			 !mr_pg_run(reader->client,
						psprintf("SET TRANSACTION SNAPSHOT %s", quote_literal_cstr(snapshot)),
						MR_PG_TIMEOUT, NULL)))
			return postpone(source, mr_pg_problem(reader->client));
		if (!mr_pg_copy(reader->client, copy_statement(task, relation, &ranges[i]),
						MR_PG_TIMEOUT * 6))
			return refuse_table(source, reader, "table %s cannot be copied: %s", task->table);
		reader->task = task;
		reader->relation = relation;
		reader->reading = true;
	}
	return true;
}

/* A round that cannot be read is as if it had not begun; the table it copied from is again what it was. */
static void
give_up_round(MrPgSource *source)
{
	if (source->copied != NULL)
		*source->copied = source->copied_before;
	mr_pg_read_again(source);
	source->round = NULL;
	source->failed_rounds++;
	/* What was begun there ends with the connections. */
	for (int i = 0; i < source->nreaders; i++)
	{
		if (source->readers[i].client != NULL)
			mr_pg_close(source->readers[i].client);
		source->readers[i].reading = false;
	}
}

bool
mr_pg_round_begin(MrPgSource *source)
{
	MemoryContext old = CurrentMemoryContext;
	MrPgTask *task = source->paused ? NULL : next_task(source);
	char *snapshot;
	bool begun = false;

	/* Those that are to be read again take turns with those that have not been read. */
	source->reread = source->rereads != NIL && (task == NULL || !source->reread);
	if (source->reread)
		task = NULL;
	source->copied = task;
	if (task != NULL)
		source->copied_before = *task;
	if (source->readers == NULL)
	{
		source->nreaders = source->options.parallel;
		source->readers = MemoryContextAllocZero(source->connected,
												 sizeof(MrPgReader) * source->nreaders);
	}
	if (source->of_round != NULL)
		MemoryContextDelete(source->of_round);
	source->of_round = AllocSetContextCreate(source->connected, "millrace postgres round",
											 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(source->of_round);
	if (!connect_reader(source, 0))
		(void) postpone(source, mr_pg_problem(source->readers[0].client));
	else if ((source->round = take_snapshot(source, &snapshot)) != NULL)
	{
		begun = task == NULL ? begin_rereads(source) : begin_copies(source, task, snapshot);
		if (!begun)
			give_up_round(source);
		else
		{
			source->round_read = false;
			source->last_round = source->round->position;
			if (task != NULL)
			{
				if (task->first == 0)
					task->first = source->round->position;
				task->last = source->round->position;
			}
			mr_source_set_problem(&source->base, NULL);
		}
	}
	MemoryContextSwitchTo(old);
	return begun;
}

/* A column of a line of COPY: to the next tab, its escapes undone in place; false at the end of the line. */
static bool
next_column(char **line, char *end, char **text, int *length)
{
	char *in = *line;
	char *out = in;

	if (in > end)
		return false;
	*text = in;
	if (end - in >= 2 && in[0] == '\\' && in[1] == 'N' && (in + 2 == end || in[2] == '\t'))
	{
		*text = NULL;
		*length = 0;
		*line = in + 3;
		return true;
	}
	while (in < end && *in != '\t')
	{
		char c = *in++;

		if (c == '\\' && in < end)
		{
			c = *in++;
			switch (c)
			{
				case 'b':
					c = '\b';
					break;
				case 'f':
					c = '\f';
					break;
				case 'n':
					c = '\n';
					break;
				case 'r':
					c = '\r';
					break;
				case 't':
					c = '\t';
					break;
				case 'v':
					c = '\v';
					break;
				default:
					break;
			}
		}
		*out++ = c;
	}
	*length = (int) (out - *text);
	*line = in + 1;
	return true;
}

/* A row that a round has read. */
static void
add_row(MrPgSource *source, MrBatch *batch, const MrPgReader *reader, StringInfo row,
		const char *bytes, int length)
{
	const MrRelation *relation = reader->relation;
	char *line = pnstrdup(bytes, length);
	char *next = line;
	char *end = line + length - (length > 0 && line[length - 1] == '\n' ? 1 : 0);
	MrMessage *message;
	uint64 place[2] = {0};
	int columns = 0;
	char *text;
	int size;

	resetStringInfo(row);
	mr_row_write_count(row, relation->ncolumns);
	while (relation->ncolumns > 0 && next_column(&next, end, &text, &size))
	{
		mr_row_write(row, text, size);
		columns++;
	}
	pfree(line);
	if (columns != relation->ncolumns)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("the source has sent a row of %d columns instead of %d", columns,
							   relation->ncolumns)));
	message = mr_batch_add(batch);
	message->topic = relation->name;
	message->epoch = source->position.epoch;
	message->position = (int64) source->round->position;
	/* Before every change that counts as of that position. */
	place[1] = pg_hton64(++source->round->nrows);
	memcpy(&message->place, place, sizeof(place));
	message->time = source->round->clock;
	message->op = MR_OP_READ;
	message->relation = relation;
	message->value = mr_row_copy(batch, relation, row->data, row->len);
	message->value_length = row->len;
	if (reader->task != NULL)
		reader->task->rows++;
}

/* The round is read: its transactions end. */
static void
finish_round(MrPgSource *source)
{
	for (int i = 0; i < source->nreaders; i++)
	{
		if (source->readers[i].client != NULL &&
			!mr_pg_run(source->readers[i].client, "ROLLBACK", MR_PG_TIMEOUT, NULL))
			mr_pg_close(source->readers[i].client);
	}
	source->round_read = true;
}

void
mr_pg_round_fetch(MrPgSource *source, MrBatch *batch, int max_messages, Size max_bytes)
{
	StringInfoData row;

	initStringInfo(&row);
	for (int i = 0; i < source->nreaders; i++)
	{
		MrPgReader *reader = &source->readers[i];

		while (reader->reading)
		{
			const char *bytes;
			int length;

			if (batch->nmessages >= max_messages || batch->bytes >= max_bytes)
			{
				pfree(row.data);
				return;
			}
			length = mr_pg_receive(reader->client, &bytes);
			if (length > 0)
				add_row(source, batch, reader, &row, bytes, length);
			else if (length == 0)
				mr_pg_wait(reader->client, MR_PG_TIMEOUT);
			else if (length == -1)
				reader->reading = false;
			else
			{
				char *problem = psprintf("table %s cannot be copied: %s", reader->relation->name,
										 mr_pg_problem(reader->client));

				/* What a batch before this one has got is taken back by its transaction. */
				if (source->round_taken)
					ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE), errmsg("%s", problem)));
				batch->nmessages = 0;
				give_up_round(source);
				(void) postpone(source, problem);
				return;
			}
		}
	}
	pfree(row.data);
	finish_round(source);
	if (batch->nmessages == 0 && !source->round_taken)
	{
		/* Nothing will be processed: the progress is stored by itself. */
		source->due |= MR_PG_DUE_ROUND;
		source->base.wants_tick = true;
	}
}

void
mr_pg_round_end(MrPgSource *source)
{
	MemoryContext old = MemoryContextSwitchTo(source->context);
	MrPgRound *live = mr_pg_parse_snapshot(source->round->text);
	ListCell *cell;

	live->position = source->round->position;
	live->clock = source->round->clock;
	source->live = lappend(source->live, live);
	source->round = NULL;
	source->round_taken = false;
	source->failed_rounds = 0;
	foreach(cell, source->reading)
		mr_pg_forget_reread(lfirst(cell));
	list_free(source->reading);
	source->reading = NIL;
	MemoryContextSwitchTo(old);
}
