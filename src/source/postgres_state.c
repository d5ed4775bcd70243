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
	uint64 count = mr_sql("SELECT s.source_table, s.filter, s.sweep, s.started_at, s.leaf::oid, "
						  "s.page, s.pages, s.pages_read, s.rows, s.state = 'sweeping', "
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
		task->page = DatumGetInt64(mr_sql_value(i, 6, &isnull));
		task->pages = DatumGetInt64(mr_sql_value(i, 7, &isnull));
		task->read = DatumGetInt64(mr_sql_value(i, 8, &isnull));
		task->rows = DatumGetInt64(mr_sql_value(i, 9, &isnull));
		task->copied = DatumGetBool(mr_sql_value(i, 10, &isnull));
		task->first = (XLogRecPtr) DatumGetInt64(mr_sql_value(i, 11, &isnull));
		task->last = (XLogRecPtr) DatumGetInt64(mr_sql_value(i, 12, &isnull));
		source->tasks = lappend(source->tasks, task);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* The rows that are to be read again. */
static void
read_rereads(MrPgSource *source)
{
	uint64 count = mr_sql("SELECT k.source_table, k.condition FROM millrace.snapshot_key k "
						  "WHERE k.stream_id = %d",
						  source->base.stream->id);

	source->rereads = NIL;
	for (uint64 i = 0; i < count; i++)
	{
		MrPgReread *reread = palloc(sizeof(MrPgReread));

		reread->table = mr_sql_text(i, 1);
		reread->condition = mr_sql_text(i, 2);
		reread->stored = true;
		source->rereads = lappend(source->rereads, reread);
	}
	SPI_freetuptable(SPI_tuptable);
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

/* Lets mirrors follow a table's description, and remembers it. */
static void
follow(MrPgSource *source, const MrRelation *relation)
{
	StringInfoData columns;
	MemoryContext old;

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
	(void) mr_sql("SELECT millrace_internal.follow_source(%d, %s, %s, %s)", source->base.stream->id,
				  quote_literal_cstr(relation->name), quote_literal_cstr(columns.data),
				  quote_literal_cstr(mr_pg_fingerprint(relation)));
	old = MemoryContextSwitchTo(source->context);
	source->known = lappend(source->known, mr_pg_fingerprint(relation));
	MemoryContextSwitchTo(old);
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

	foreach(cell, source->tasks)
	{
		MrPgTask *task = lfirst(cell);
		bool sweeping = task->sweep && task != (source->swept ? source->sweeping : NULL);

		if (!task->changed && !(source->swept && task == source->sweeping))
			continue;
		(void) mr_sql("UPDATE millrace.snapshot SET leaf = %u, page = " INT64_FORMAT
					  ", pages = " INT64_FORMAT ", pages_read = " INT64_FORMAT
					  ", rows = " INT64_FORMAT ", first_position = " INT64_FORMAT
					  ", last_position = " INT64_FORMAT ", state = '%s', finished_at = %s "
					  "WHERE stream_id = %d AND source_table = %s",
					  task->leaf, task->page, task->pages, task->read, task->rows,
					  (int64) task->first, (int64) task->last,
					  !task->copied ? "copying"
					  : sweeping    ? "sweeping"
									: "done",
					  task->copied && !sweeping ? "pg_catalog.clock_timestamp()" : "NULL",
					  source->base.stream->id, quote_literal_cstr(task->table));
		task->changed = false;
	}
}

void
mr_pg_store_rereads(MrPgSource *source)
{
	ListCell *cell;
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	foreach(cell, source->rereads)
	{
		MrPgReread *reread = lfirst(cell);

		if (!reread->stored)
			(void) mr_sql("INSERT INTO millrace.snapshot_key (stream_id, source_table, condition) "
						  "VALUES (%d, %s, %s)",
						  source->base.stream->id, quote_literal_cstr(reread->table),
						  quote_literal_cstr(reread->condition));
		reread->stored = true;
	}
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
	foreach(cell, source->reading)
	{
		const MrPgReread *reread = lfirst(cell);

		(void) mr_sql("DELETE FROM millrace.snapshot_key WHERE stream_id = %d AND "
					  "source_table = %s AND condition = %s",
					  source->base.stream->id, quote_literal_cstr(reread->table),
					  quote_literal_cstr(reread->condition));
	}
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
		MemoryContextSwitchTo(old);
		source->grown = true;
		source->has_barrier = false;
		source->next_try = 0;
	}
	if (due & MR_PG_DUE_PUBLISHED)
	{
		MemoryContext old = MemoryContextSwitchTo(source->context);

		(void) mr_sql("SELECT millrace_internal.note_published(%d, %s)", id,
					  array_text(source->published));
		read_tasks(source);
		MemoryContextSwitchTo(old);
		source->grown = true;
		source->has_barrier = false;
		source->next_try = 0;
	}
	if (due & MR_PG_DUE_FOLLOW)
	{
		follow(source, source->follow);
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
		mr_pg_round_end(source);
	}
}
