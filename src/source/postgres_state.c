/*
 * postgres_state.c
 *	  What is stored of a feed from PostgreSQL: options, the slot's state, rounds of the snapshot, descriptions of tables.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "lib/stringinfo.h"
#include "source/postgres_source.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

/* So many rows that are to be read again are kept in memory, of those that are stored. */
#define REREADS_KEPT 10000

/* What a feed that had to be closed has left to the next one: how mirrors follow a description within a transaction. */
static struct
{
	int32 stream_id;
	int32 epoch; /* of the position */
	XLogRecPtr commit; /* of the transaction */
	char *statement; /* NULL: nothing is left */
	char *fingerprint;
} left_over;

/* The elements of a text array in a column of SPI_tuptable. */
static List *
text_list(uint64 row, int column)
{
	List *list = NIL;
	bool isnull;
	Datum value = mr_sql_value(row, column, &isnull);
	Datum *elements;
	int count;

	if (isnull)
		return NIL;
	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL,
					  &count);
	for (int i = 0; i < count; i++)
		list = lappend(list, TextDatumGetCString(elements[i]));
	return list;
}

void
mr_pg_read_options(MrPgOptions *options, const MrStream *stream)
{
	MrRunAs saved;
	bool isnull;

	mr_run_as(&saved, mr_extension_owner());
	(void) mr_sql("SELECT o.tables, o.publication, o.slot, o.snapshot, o.truncate, o.on_lost, "
				  "o.snapshot_chunk, o.snapshot_parallel, o.wal_budget, o.publication_named "
				  "FROM millrace_internal.postgres_options(%d) AS o",
				  stream->id);
	options->tables = text_list(0, 1);
	options->publication = mr_sql_text(0, 2);
	options->slot = mr_sql_text(0, 3);
	options->snapshot = mr_sql_text(0, 4);
	options->truncate = mr_sql_text(0, 5);
	options->resnapshot = strcmp(mr_sql_text(0, 6), "resnapshot") == 0;
	options->chunk = DatumGetInt32(mr_sql_value(0, 7, &isnull));
	options->parallel = DatumGetInt32(mr_sql_value(0, 8, &isnull));
	options->budget = DatumGetInt64(mr_sql_value(0, 9, &isnull));
	options->default_publication = !DatumGetBool(mr_sql_value(0, 10, &isnull));
	SPI_freetuptable(SPI_tuptable);
	mr_run_back(&saved);
}

/* The tables that are to be copied. */
static void
read_tasks(MrPgSource *source)
{
	uint64 count =
		mr_sql("SELECT s.source_table, s.filter, s.sweep, s.started_at, s.leaf::oid, "
			   "s.file::oid, s.page, s.pages, s.pages_read, s.rows, s.state = 'sweeping', "
			   "coalesce(s.first_position, 0), coalesce(s.last_position, 0) "
			   "FROM millrace.snapshot s WHERE s.stream_id = %d AND s.state <> 'done' "
			   "ORDER BY s.started_at, s.source_table",
			   source->base.stream->id);

	source->tasks = NIL;
	for (uint64 i = 0; i < count; i++)
	{
		MrPgTask *task = palloc0(sizeof(MrPgTask));
		bool isnull;

		task->table = mr_sql_text(i, 1);
		task->filter = mr_sql_text(i, 2);
		task->sweep = DatumGetBool(mr_sql_value(i, 3, &isnull));
		task->started = DatumGetTimestampTz(mr_sql_value(i, 4, &isnull));
		task->leaf = DatumGetObjectId(mr_sql_value(i, 5, &isnull));
		task->file = DatumGetObjectId(mr_sql_value(i, 6, &isnull));
		task->page = DatumGetInt64(mr_sql_value(i, 7, &isnull));
		task->pages = DatumGetInt64(mr_sql_value(i, 8, &isnull));
		task->read = DatumGetInt64(mr_sql_value(i, 9, &isnull));
		task->rows = DatumGetInt64(mr_sql_value(i, 10, &isnull));
		task->copied = DatumGetBool(mr_sql_value(i, 11, &isnull));
		task->first = (XLogRecPtr) DatumGetInt64(mr_sql_value(i, 12, &isnull));
		task->last = (XLogRecPtr) DatumGetInt64(mr_sql_value(i, 13, &isnull));
		source->tasks = lappend(source->tasks, task);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Fetches more of the rows that are to be read again. */
static void
read_rereads(MrPgSource *source)
{
	uint64 count = mr_sql("SELECT k.id, k.source_table, k.condition FROM millrace.snapshot_key k "
						  "WHERE k.stream_id = %d AND k.id > " INT64_FORMAT
						  " ORDER BY k.id LIMIT %d",
						  source->base.stream->id, source->last_reread, REREADS_KEPT);
	MemoryContext old = MemoryContextSwitchTo(source->context);

	for (uint64 i = 0; i < count; i++)
	{
		MrPgReread *reread = palloc(sizeof(MrPgReread));
		bool isnull;

		reread->id = source->last_reread = DatumGetInt64(mr_sql_value(i, 1, &isnull));
		reread->table = mr_sql_text(i, 2);
		reread->condition = mr_sql_text(i, 3);
		source->rereads = lappend(source->rereads, reread);
	}
	source->more_rereads = count == REREADS_KEPT;
	MemoryContextSwitchTo(old);
	SPI_freetuptable(SPI_tuptable);
}

/* Reads anew which rows are to be read again; all of them are stored. */
static void
forget_rereads(MrPgSource *source)
{
	ListCell *cell;

	foreach(cell, source->rereads)
		mr_pg_forget_reread(lfirst(cell));
	list_free(source->rereads);
	source->rereads = NIL;
	source->last_reread = 0;
	read_rereads(source);
}

/* The rounds that the position has not passed. */
static void
read_rounds(MrPgSource *source)
{
	uint64 count = mr_sql("SELECT r.position, r.snapshot, r.clock FROM millrace.snapshot_round r "
						  "JOIN millrace.stream_position p USING (stream_id) "
						  "WHERE r.stream_id = %d AND r.position >= p.position ORDER BY 1",
						  source->base.stream->id);

	source->live = NIL;
	for (uint64 i = 0; i < count; i++)
	{
		MrPgRound *round = mr_pg_parse_snapshot(mr_sql_text(i, 2));
		bool isnull;

		round->position = (XLogRecPtr) DatumGetInt64(mr_sql_value(i, 1, &isnull));
		round->clock = DatumGetTimestampTz(mr_sql_value(i, 3, &isnull));
		source->live = lappend(source->live, round);
		source->last_round = round->position;
	}
	SPI_freetuptable(SPI_tuptable);
}

void
mr_pg_read_state(MrPgSource *source)
{
	int32 id = source->base.stream->id;
	MrRunAs saved;
	bool isnull;

	mr_run_as(&saved, mr_extension_owner());
	if (mr_sql("SELECT r.state, r.system, r.made_publication, r.made_slot, r.beginning, r.paused, "
			   "r.published "
			   "FROM millrace.replication r WHERE r.stream_id = %d",
			   id) != 1)
		elog(ERROR, "stream %d has no row in millrace.replication", id);
	source->state = mr_sql_text(0, 1);
	source->system = mr_sql_text(0, 2);
	source->made_publication = DatumGetBool(mr_sql_value(0, 3, &isnull));
	source->made_slot = DatumGetBool(mr_sql_value(0, 4, &isnull));
	source->beginning = (XLogRecPtr) DatumGetInt64(mr_sql_value(0, 5, &isnull));
	source->paused = DatumGetBool(mr_sql_value(0, 6, &isnull));
	source->published = text_list(0, 7);
	SPI_freetuptable(SPI_tuptable);
	read_tasks(source);
	read_rounds(source);
	read_rereads(source);
	(void) mr_sql("SELECT pg_catalog.array_agg(d.description) FROM millrace.replication_table d "
				  "WHERE d.stream_id = %d",
				  id);
	source->known = text_list(0, 1);
	SPI_freetuptable(SPI_tuptable);
	mr_run_back(&saved);
}

char *
mr_pg_fingerprint(const MrRelation *relation)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, relation->name);
	for (int i = 0; i < relation->ncolumns; i++)
		appendStringInfo(&text, ", %s %u %d%s", quote_identifier(relation->columns[i].name),
						 relation->columns[i].type, relation->columns[i].typmod,
						 relation->columns[i].key && !relation->whole ? " key" : "");
	return text.data;
}

bool
mr_pg_known(MrPgSource *source, const MrRelation *relation)
{
	char *fingerprint = mr_pg_fingerprint(relation);
	ListCell *cell;
	bool known = false;

	foreach(cell, source->known)
		known = known || strcmp(lfirst(cell), fingerprint) == 0;
	pfree(fingerprint);
	return known;
}

/* The type of a source's column as one says it here: one that is not here becomes text. */
static char *
type_text(const MrPgSource *source, const MrColumn *column)
{
	ListCell *cell;

	if (column->type < FirstNormalObjectId)
		return SearchSysCacheExists1(TYPEOID, ObjectIdGetDatum(column->type))
				   ? format_type_with_typemod(column->type, column->typmod)
				   : pstrdup("text");
	foreach(cell, source->types)
	{
		const MrPgType *type = lfirst(cell);

		if (type->oid == column->type)
			return mr_pg_quoted(type->name);
	}
	return pstrdup("text");
}

/* The statement that lets mirrors follow a table's description. */
static char *
follow_statement(const MrPgSource *source, const MrRelation *relation)
{
	StringInfoData columns;

	initStringInfo(&columns);
	for (int i = 0; i < relation->ncolumns; i++)
	{
		appendStringInfoString(&columns, i > 0 ? ", {\"name\": " : "[{\"name\": ");
		escape_json(&columns, relation->columns[i].name);
		appendStringInfoString(&columns, ", \"type\": ");
		escape_json(&columns, type_text(source, &relation->columns[i]));
		appendStringInfo(&columns, ", \"key\": %s}",
						 relation->columns[i].key && !relation->whole ? "true" : "false");
	}
	appendStringInfoString(&columns, relation->ncolumns > 0 ? "]" : "[]");
	return psprintf("SELECT millrace_internal.follow_source(%d, %s, %s, %s)",
					source->base.stream->id, quote_literal_cstr(relation->name),
					quote_literal_cstr(columns.data),
					quote_literal_cstr(mr_pg_fingerprint(relation)));
}

/* Lets mirrors follow a table's description, and remembers it. */
static void
follow(MrPgSource *source)
{
	char *statement = left_over.statement;
	char *fingerprint = left_over.fingerprint;
	MemoryContext old;

	if (source->follow != NULL)
	{
		statement = follow_statement(source, source->follow);
		fingerprint = mr_pg_fingerprint(source->follow);
	}
	left_over.statement = NULL;
	(void) mr_sql("%s", statement);
	old = MemoryContextSwitchTo(source->context);
	source->known = lappend(source->known, pstrdup(fingerprint));
	MemoryContextSwitchTo(old);
}

void
mr_pg_take_left_over(MrPgSource *source)
{
	ListCell *cell;

	/* What has been consumed or followed meanwhile, by another process, is over. */
	if (left_over.stream_id != source->base.stream->id || !source->has_position ||
		left_over.epoch != source->position.epoch ||
		left_over.commit < (XLogRecPtr) source->position.position)
		left_over.statement = NULL;
	foreach(cell, source->known)
	{
		if (left_over.statement != NULL && strcmp(lfirst(cell), left_over.fingerprint) == 0)
			left_over.statement = NULL;
	}
	if (left_over.statement == NULL)
		return;
	source->due |= MR_PG_DUE_FOLLOW;
	source->base.wants_tick = true;
}

void
mr_pg_follow_next_time(const MrPgSource *source, const MrRelation *relation)
{
	left_over.stream_id = source->base.stream->id;
	left_over.epoch = source->position.epoch;
	left_over.commit = source->commit;
	left_over.statement = MemoryContextStrdup(TopMemoryContext, follow_statement(source, relation));
	left_over.fingerprint = MemoryContextStrdup(TopMemoryContext, mr_pg_fingerprint(relation));
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("table %s has changed within a transaction of which a part has been taken",
					relation->name),
			 errdetail(
				 "The transaction is taken from its beginning again when mirrors have followed.")));
}

/* A text array as SQL. */
static char *
array_text(const List *texts)
{
	StringInfoData sql;
	ListCell *cell;

	initStringInfo(&sql);
	foreach(cell, texts)
		appendStringInfo(&sql, "%s%s", sql.len > 0 ? ", " : "", quote_literal_cstr(lfirst(cell)));
	return psprintf("ARRAY[%s]::text[]", sql.data);
}

/* The slot is there: the stream begins where it does. */
static void
store_ready(MrPgSource *source)
{
	MrStream *stream = source->base.stream;
	MemoryContext old = MemoryContextSwitchTo(source->context);
	MrPosition *positions;
	int count;

	if (source->system == NULL && source->found_system != NULL)
		source->system = pstrdup(source->found_system);
	(void) mr_sql("UPDATE millrace.replication SET state = 'ready', system = %s, "
				  "made_publication = made_publication OR %s, made_slot = %s, published = %s, "
				  "beginning = " INT64_FORMAT " WHERE stream_id = %d",
				  source->system == NULL ? "NULL" : quote_literal_cstr(source->system),
				  source->made_publication ? "true" : "false", source->made_slot ? "true" : "false",
				  array_text(source->published), (int64) source->beginning, stream->id);
	mr_position_insert(stream, "", 0, (int64) source->beginning);
	positions = mr_positions_take(stream, 0, 1, false, &count);
	source->position = positions[0];
	source->has_position = true;
	source->received = source->acknowledged = (XLogRecPtr) source->position.position;
	source->state = pstrdup("ready");
	if (strcmp(source->options.snapshot, "never") != 0)
	{
		(void) mr_sql("SELECT millrace_internal.begin_snapshot(%d, %s)", stream->id,
					  array_text(source->published));
		read_tasks(source);
	}
	MemoryContextSwitchTo(old);
}

/* Stores the progress of tasks that have moved. */
static void
store_tasks(MrPgSource *source)
{
	ListCell *cell;

	/* Whoever has had a table copied again meanwhile has begun it anew. */
	foreach(cell, source->tasks)
	{
		MrPgTask *task = lfirst(cell);
		bool sweeping = task->sweep && task != (source->swept ? source->sweeping : NULL);

		if (!task->changed && !(source->swept && task == source->sweeping))
			continue;
		(void) mr_sql("UPDATE millrace.snapshot SET leaf = %u, file = %u, page = " INT64_FORMAT
					  ", pages = " INT64_FORMAT ", pages_read = " INT64_FORMAT
					  ", rows = " INT64_FORMAT ", first_position = " INT64_FORMAT
					  ", last_position = " INT64_FORMAT ", state = '%s', finished_at = %s "
					  "WHERE stream_id = %d AND source_table = %s AND started_at = '%s'",
					  task->leaf, task->file, task->page, task->pages, task->read, task->rows,
					  (int64) task->first, (int64) task->last,
					  !task->copied ? "copying"
					  : sweeping    ? "sweeping"
									: "done",
					  task->copied && !sweeping ? "pg_catalog.clock_timestamp()" : "NULL",
					  source->base.stream->id, quote_literal_cstr(task->table),
					  timestamptz_to_str(task->started));
		task->changed = false;
	}
}

void
mr_pg_forget_reread(MrPgReread *reread)
{
	pfree(reread->table);
	pfree(reread->condition);
	pfree(reread);
}

void
mr_pg_store_rereads(MrPgSource *source)
{
	Oid types[] = {INT4OID, TEXTARRAYOID, TEXTARRAYOID};
	Datum values[lengthof(types)];
	MrArray *tables = mr_array_create(TEXTOID, 0);
	MrArray *conditions = mr_array_create(TEXTOID, 0);
	int stored = list_length(source->rereads);
	uint64 count;
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	/* The new ones are the last ones. */
	while (stored > 0 && ((MrPgReread *) list_nth(source->rereads, stored - 1))->id == 0)
		stored--;
	for (int i = stored; i < list_length(source->rereads); i++)
	{
		const MrPgReread *reread = list_nth(source->rereads, i);

		mr_array_add_text(tables, reread->table);
		mr_array_add_text(conditions, reread->condition);
	}
	if (stored < list_length(source->rereads))
	{
		values[0] = Int32GetDatum(source->base.stream->id);
		values[1] = mr_array_datum(tables);
		values[2] = mr_array_datum(conditions);
		count =
			mr_sql_with("INSERT INTO millrace.snapshot_key (stream_id, source_table, condition) "
						"SELECT $1, u.t, u.c FROM unnest($2, $3) AS u (t, c) RETURNING id",
						lengthof(types), types, values, NULL);
		for (uint64 i = 0; i < count; i++)
		{
			MrPgReread *reread = list_nth(source->rereads, stored + (int) i);
			bool isnull;

			reread->id = DatumGetInt64(mr_sql_value(i, 1, &isnull));
			/* Those beyond come back when it is their turn: memory is bounded. */
			source->more_rereads = source->more_rereads || stored + (int) i >= REREADS_KEPT;
			if (!source->more_rereads)
				source->last_reread = reread->id;
		}
		SPI_freetuptable(SPI_tuptable);
	}
	while (source->rereads != NIL &&
		   ((MrPgReread *) llast(source->rereads))->id > source->last_reread)
	{
		mr_pg_forget_reread(llast(source->rereads));
		source->rereads = list_delete_last(source->rereads);
	}
	if (source->rereads == NIL && source->more_rereads)
		read_rereads(source);
	mr_run_back(&saved);
}

void
mr_pg_store_round(MrPgSource *source)
{
	MrPgRound *round = source->round;
	ListCell *cell;
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	(void) mr_sql(
		"DELETE FROM millrace.snapshot_round WHERE stream_id = %d AND position < " INT64_FORMAT,
		source->base.stream->id, source->position.position);
	(void) mr_sql("INSERT INTO millrace.snapshot_round (stream_id, position, snapshot, clock) "
				  "VALUES (%d, " INT64_FORMAT ", %s, '%s')",
				  source->base.stream->id, (int64) round->position, quote_literal_cstr(round->text),
				  timestamptz_to_str(round->clock));
	store_tasks(source);
	if (source->reading != NIL)
	{
		Oid type = INT8ARRAYOID;
		MrArray *ids = mr_array_create(INT8OID, list_length(source->reading));
		Datum value;

		foreach(cell, source->reading)
			mr_array_add(ids, Int64GetDatum(((MrPgReread *) lfirst(cell))->id), false);
		value = mr_array_datum(ids);
		(void) mr_sql_with("DELETE FROM millrace.snapshot_key WHERE id = ANY ($1)", 1, &type,
						   &value, NULL);
	}
	/* Nothing else is due for it. */
	source->due &= ~MR_PG_DUE_ROUND;
	mr_run_back(&saved);
}

/* Writes what is due; it is forgotten at once, because an error makes everything be done anew. */
void
mr_pg_store(MrPgSource *source)
{
	int32 id = source->base.stream->id;
	int due = source->due;
	MrRunAs saved;

	source->due &= MR_PG_DUE_POSITION;
	mr_run_as(&saved, mr_extension_owner());
	if (source->swept)
		store_tasks(source);
	if (due & MR_PG_DUE_MAKING)
	{
		(void) mr_sql("UPDATE millrace.replication SET state = 'making' WHERE stream_id = %d", id);
		source->state = MemoryContextStrdup(source->context, "making");
		source->next_try = 0;
	}
	if (due & MR_PG_DUE_READY)
	{
		store_ready(source);
		source->next_try = 0;
	}
	if (due & MR_PG_DUE_LOST)
		(void) mr_sql("SELECT millrace_internal.replication_lost(%d, %s, %s)", id,
					  quote_literal_cstr(source->lost),
					  source->options.resnapshot ? "true" : "false");
	if (due & MR_PG_DUE_ADDED)
	{
		MemoryContext old = MemoryContextSwitchTo(source->context);

		(void) mr_sql(
			"SELECT millrace_internal.add_tables(%d, %s, %s)", id, array_text(source->added),
			source->added_reason == NULL ? "NULL" : quote_literal_cstr(source->added_reason));
		read_tasks(source);
		forget_rereads(source);
		MemoryContextSwitchTo(old);
		source->has_barrier = false;
		source->next_try = 0;
	}
	if (due & MR_PG_DUE_PUBLISHED)
	{
		MemoryContext old = MemoryContextSwitchTo(source->context);

		(void) mr_sql("SELECT millrace_internal.note_published(%d, %s)", id,
					  array_text(source->published));
		read_tasks(source);
		forget_rereads(source);
		MemoryContextSwitchTo(old);
		source->has_barrier = false;
		source->next_try = 0;
	}
	if (due & MR_PG_DUE_FOLLOW)
	{
		follow(source);
		source->next_try = 0;
	}
	if (due & MR_PG_DUE_STATUS)
		(void) mr_sql("%s", source->status);
	if (due & MR_PG_DUE_FINISHED)
	{
		(void) mr_sql("UPDATE millrace.replication SET state = 'finished' WHERE stream_id = %d",
					  id);
		source->state = MemoryContextStrdup(source->context, "finished");
		source->next_try = 0;
	}
	if (due & MR_PG_DUE_DROPPED)
	{
		(void) mr_sql("SELECT millrace_internal.finish_snapshot(%d)", id);
		source->dropped = true;
	}
	mr_run_back(&saved);
	if (due & MR_PG_DUE_ROUND)
	{
		mr_pg_store_round(source);
		mr_pg_store_rereads(source);
		mr_pg_round_end(source);
	}
}
