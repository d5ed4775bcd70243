/*
 * sink.c
 *	  Sinks: the target kind "sink".
 *
 * A batch says which rows it has changed by their keys: those of the staging table's old and new rows, or the groups that its mart has
 * touched.  How the rows are now, and what message is made of them, is asked of the definition view as the sink's owner, in statements
 * over many keys each; a row that is not there was deleted.  Whoever changes a row holds the lock of its object or group to the
 * end of the transaction, so that messages of one row stand in the outbox in the order of its changes.
 *
 * What was sent of each row is remembered as a digest (millrace.sink_row).  So rows that were made anew are sent when they differ, and
 * of a deleted row only those hear who have heard of it.
 *
 * With at_most_every a batch only notes which rows it has changed.  A tick locks those for which it is time, then looks how they are:
 * whatever has been noted before the lock was taken is visible then, and what comes later is noted again.
 */
#include "postgres.h"

#include "access/relation.h"
#include "alert/rule.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "mart/mart.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "sink/columns.h"
#include "sink/message.h"
#include "sink/sink.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* Rows that one tick sends at most, in chunks. */
#define TICK_CHUNKS 50

/* The phases of looking at all rows: a place begins with one of them. */
#define PLACE_ROWS 'r' /* rows of the source */
#define PLACE_KNOWN 'k' /* rows that the sink knows, which may be gone */

/* ---- keys of changed rows ------------------------------------------------------------------------------ */

/* Adds the key of a row of the staging table. */
static void
add_row(const MrSink *sink, MrSinkKeys *keys, const Datum *values, const bool *nulls)
{
	Datum *key = palloc(sizeof(Datum) * Max(sink->nkeys, 1));
	bool *null = palloc(Max(sink->nkeys, 1));

	for (int k = 0; k < sink->nkeys; k++)
	{
		key[k] = values[sink->attnums[k] - 1];
		null[k] = nulls[sink->attnums[k] - 1];
	}
	mr_sink_add_key(keys, key, null);
}

/* The keys of rows that a batch has changed in the staging table. */
static void
collect_staged(const MrSink *sink, const MrStaged *staged, MrSinkKeys *keys)
{
	TupleDesc desc = sink->staging->desc;
	Datum *values = palloc(sizeof(Datum) * desc->natts);
	bool *nulls = palloc(desc->natts);

	for (int i = 0; i < staged->nold; i++)
	{
		heap_deform_tuple(staged->old_rows[i], desc, values, nulls);
		add_row(sink, keys, values, nulls);
	}
	for (int i = 0; i < staged->nnew; i++)
		add_row(sink, keys, staged->new_rows[i]->values, staged->new_rows[i]->nulls);
}

/* The keys of groups that a batch has touched. */
static void
collect_groups(const MrSink *sink, const MrRows *groups, MrSinkKeys *keys)
{
	for (int r = 0; r < groups->nrows; r++)
	{
		Datum *key = palloc(sizeof(Datum) * sink->nkeys);
		bool *null = palloc(sink->nkeys);

		for (int k = 0; k < sink->nkeys; k++)
		{
			key[k] = groups->values[k][r];
			null[k] = groups->nulls[k] != NULL && groups->nulls[k][r];
		}
		mr_sink_add_key(keys, key, null);
	}
}

/* ---- looking at all rows ------------------------------------------------------------------------------- */

/* One attempt to list rows. */
typedef struct Listing
{
	MrSink *sink;
	const char *after; /* NULL: from the beginning */
	int limit;
	MrSinkKeys *keys;
} Listing;

/* As the sink's owner. */
static void
list_step(void *argument)
{
	Listing *listing = argument;
	MrSink *sink = listing->sink;
	MemoryContext context = CurrentMemoryContext;
	Datum arguments[2];
	uint64 count;

	mr_rule_progress();
	arguments[0] = listing->after == NULL ? (Datum) 0 : CStringGetTextDatum(listing->after);
	arguments[1] = Int64GetDatum(listing->limit);
	SPI_connect();
	count = mr_statement_run(listing->after == NULL ? sink->first : sink->next, arguments,
							 listing->after == NULL ? "n " : NULL);
	MemoryContextSwitchTo(context);
	listing->keys->n = 0;
	for (uint64 r = 0; r < count; r++)
	{
		Datum *values = palloc(sizeof(Datum) * Max(sink->nkeys, 1));
		bool *nulls = palloc(Max(sink->nkeys, 1));

		for (int k = 0; k < sink->nkeys; k++)
		{
			int16 length;
			bool by_value;

			get_typlenbyval(sink->types[k], &length, &by_value);
			values[k] = mr_sql_value(r, k + 1, &nulls[k]);
			if (!nulls[k])
				values[k] = datumCopy(values[k], by_value, length);
		}
		mr_sink_add_key(listing->keys, values, nulls);
	}
	SPI_freetuptable(SPI_tuptable);
	SPI_finish();
	MemoryContextSwitchTo(context);
}

/* The next rows of the source; the place after them. */
static char *
look_at_rows(MrSink *sink, const char *after, int limit, int64 *nkeys)
{
	MrSinkKeys keys = {0};
	Listing listing = {sink, after, limit, &keys};
	ErrorData *error = mr_rule_try(list_step, &listing, sink->base.owner, sink->staging->timezone);
	char *last = NULL;
	MrSinkRow *rows;
	int n;

	if (error != NULL)
	{
		mr_sink_suspend(sink, error->message, error->sqlerrcode);
		(void) mr_sink_is_sending(sink);
		return NULL;
	}
	n = mr_sink_name_rows(sink, &keys, &rows, &last);
	mr_sink_send(sink, rows, n, MR_SINK_SEEN);
	if (sink->reason != NULL)
		return NULL;
	*nkeys = keys.n;
	if (sink->next != NULL && keys.n == limit)
		return psprintf("%c%s", PLACE_ROWS, last);
	return psprintf("%c", PLACE_KNOWN);
}

/* Rows that a statement of ours names by object and key, which stand in SPI_tuptable. */
static MrSinkRow *
take_rows(uint64 count)
{
	MrSinkRow *rows = palloc(sizeof(MrSinkRow) * Max(count, 1));

	for (uint64 r = 0; r < count; r++)
	{
		rows[r].object = mr_sql_text(r, 1);
		rows[r].key = mr_sql_text(r, 2);
		rows[r].has_null = mr_sink_object_has_null(rows[r].object);
	}
	SPI_freetuptable(SPI_tuptable);
	return rows;
}

/* Runs a statement of ours that names rows; as the extension's owner. */
static MrSinkRow *
our_rows(MrStatement *statement, Datum *arguments, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	MrRunAs saved;
	MrSinkRow *rows;

	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	*n = (int) mr_statement_run(statement, arguments, NULL);
	MemoryContextSwitchTo(context);
	rows = take_rows(*n);
	SPI_finish();
	mr_run_back(&saved);
	MemoryContextSwitchTo(context);
	return rows;
}

/* The next rows that the sink knows, of which some may be gone; the place after them, or NULL. */
static char *
look_at_known(MrSink *sink, const char *after, int limit)
{
	static const Oid types[] = {INT4OID, TEXTOID, INT8OID};
	static MrStatement *known = NULL;
	static MrStatement *complete = NULL;
	Datum arguments[] = {Int32GetDatum(sink->base.id), CStringGetTextDatum(after),
						 Int64GetDatum(limit)};
	MrSinkFound found = {0};
	ErrorData *error = NULL;
	MrSinkRow *rows;
	int n;

	if (known == NULL)
		known = mr_sink_statement("SELECT r.object, r.key FROM millrace.sink_row r "
								  "WHERE r.sink_id = $1 AND r.object > $2 "
								  "ORDER BY r.object LIMIT $3",
								  lengthof(types), types);
	if (complete == NULL)
		complete = mr_sink_statement("UPDATE millrace.sink s SET complete = true "
									 "WHERE s.target_id = $1 AND NOT s.complete",
									 1, types);
	rows = our_rows(known, arguments, &n);
	for (int from = 0; error == NULL && from < n; from += MR_SINK_CHUNK)
		error = mr_sink_find_gone(sink, rows + from, Min(MR_SINK_CHUNK, n - from), &found);
	if (error != NULL)
		mr_sink_suspend(sink, error->message, error->sqlerrcode);
	if (error != NULL || !mr_sink_take(sink, &found, MR_SINK_SEEN))
	{
		(void) mr_sink_is_sending(sink);
		return NULL;
	}
	if (n == limit)
		return psprintf("%c%s", PLACE_KNOWN, rows[n - 1].object);
	mr_sink_run(complete, arguments);
	return NULL;
}

static char *
sink_fill(MrTarget *target, const char *after, int limit, int64 *nkeys)
{
	MrSink *sink = (MrSink *) target;

	*nkeys = 0;
	/* A mart that is being filled is looked at when it is. */
	if (!mr_sink_is_sending(sink) ||
		(sink->mart_id != 0 && (sink->mart == NULL || sink->mart->filling)))
		return NULL;
	if (after == NULL || after[0] == PLACE_ROWS)
		return look_at_rows(sink, after == NULL ? NULL : after + 1, limit, nkeys);
	return look_at_known(sink, after + 1, limit);
}

/* ---- batches and ticks --------------------------------------------------------------------------------- */

/* The mart does not know which of its groups were touched. */
static void
look_at_mart(MrSink *sink)
{
	const char *place = NULL;
	int64 nkeys;

	do
		place = sink_fill(&sink->base, place, MR_SINK_CHUNK, &nkeys);
	while (place != NULL);
}

static void
sink_apply(MrTarget *target, MrBatch *batch)
{
	MrSink *sink = (MrSink *) target;
	MrSinkKeys keys = {0};
	MrSinkRow *rows;
	int n;

	if (!mr_sink_is_sending(sink))
		return;
	if (sink->mart_id == 0)
		collect_staged(sink, &batch->staged[sink->staging->ordinal], &keys);
	else
	{
		const MrRows *groups = NULL;
		bool known;

		if (sink->mart == NULL || sink->mart->filling)
			return;
		known = mr_mart_touched(sink->mart, &groups);
		if (known && (groups == NULL || groups->nrows == 0))
			return;
		if (!known)
		{
			look_at_mart(sink);
			return;
		}
		if (sink->nkeys == 0)
			mr_sink_add_key(&keys, NULL, NULL);
		else
			collect_groups(sink, groups, &keys);
	}
	if (keys.n == 0)
		return;
	n = mr_sink_name_rows(sink, &keys, &rows, NULL);
	if (n > 0 && batch->erasing)
		mr_sink_erase(sink, rows, n);
	if (n > 0 && sink->delayed && !batch->erasing)
		mr_sink_delay(sink, rows, n);
	else if (n > 0)
		mr_sink_send(sink, rows, n, MR_SINK_CHANGED);
	(void) mr_sink_is_sending(sink);
}

static void
sink_tick(MrTarget *target, TimestampTz caught_up)
{
	static const Oid types[] = {INT4OID, INT4OID};
	static MrStatement *due = NULL;
	MrSink *sink = (MrSink *) target;
	Datum arguments[] = {Int32GetDatum(target->id), Int32GetDatum(MR_SINK_CHUNK)};
	int n = MR_SINK_CHUNK;

	if (!sink->delayed)
		return;
	if (due == NULL)
		due = mr_sink_statement("SELECT object, key FROM millrace_internal.sink_due($1, $2)",
								lengthof(types), types);
	for (int chunk = 0; chunk < TICK_CHUNKS && n == MR_SINK_CHUNK && mr_sink_is_sending(sink);
		 chunk++)
	{
		MrSinkRow *rows = our_rows(due, arguments, &n);

		mr_sink_send(sink, rows, n, MR_SINK_CHANGED);
	}
}

/* ---- loading ------------------------------------------------------------------------------------------- */

/* Reads the definition, which may be gone, and makes the statements; as the extension's owner, under SPI. */
static void
prepare_step(void *argument)
{
	static const Oid texts[] = {TEXTARRAYOID, TEXTARRAYOID};
	static const Oid places[] = {TEXTOID, INT8OID};
	MrSink *sink = argument;
	ArrayType *types;
	Relation source;
	bool isnull;
	char *next;

	sink->definition = mr_definition_query("sink", sink->base.id);
	(void) mr_sql("SELECT source, types, build, build_null, gone, gone_null, first, next "
				  "FROM millrace_internal.sink_statements(%d)",
				  sink->base.id);
	source = relation_open(DatumGetObjectId(mr_sql_value(0, 1, &isnull)), AccessShareLock);
	sink->slot = MakeSingleTupleTableSlot(CreateTupleDescCopy(RelationGetDescr(source)),
										  &TTSOpsVirtual);
	types = DatumGetArrayTypePCopy(mr_sql_value(0, 2, &isnull));
	sink->nkeys = ArrayGetNItems(ARR_NDIM(types), ARR_DIMS(types));
	sink->types = (Oid *) ARR_DATA_PTR(types);
	sink->attnums = palloc(sizeof(AttrNumber) * Max(sink->nkeys, 1));
	sink->outputs = palloc(sizeof(FmgrInfo) * Max(sink->nkeys, 1));
	for (int k = 0; k < sink->nkeys; k++)
	{
		Oid output;
		bool varlena;

		getTypeOutputInfo(sink->types[k], &output, &varlena);
		fmgr_info(output, &sink->outputs[k]);
		sink->attnums[k] = mr_definition_attribute(sink->definition, RelationGetRelid(source),
												   psprintf(":k%d", k + 1));
		if (sink->attnums[k] == InvalidAttrNumber)
			elog(ERROR, "the definition of sink %s has no key", sink->sink_name);
	}
	relation_close(source, AccessShareLock);
	sink->build = mr_statement_create(mr_sql_text(0, 3), lengthof(texts), texts);
	sink->build_null = mr_statement_create(mr_sql_text(0, 4), lengthof(texts), texts);
	sink->gone = mr_statement_create(mr_sql_text(0, 5), lengthof(texts), texts);
	sink->gone_null = mr_statement_create(mr_sql_text(0, 6), lengthof(texts), texts);
	next = mr_sql_text(0, 8);
	sink->first = mr_statement_create(mr_sql_text(0, 7), next == NULL ? 0 : lengthof(places),
									  places);
	if (next != NULL)
		sink->next = mr_statement_create(next, lengthof(places), places);
	SPI_freetuptable(SPI_tuptable);
}

/* Compiles the key of messages; as the sink's owner. */
static void
compile_step(void *argument)
{
	MrSink *sink = argument;
	ListCell *lc;

	foreach(lc, sink->definition->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (!entry->resjunk && strcmp(entry->resname, ":key") == 0)
			sink->key = mr_expression_compile((Node *) entry->expr);
	}
	if (sink->key == NULL)
		elog(ERROR, "the definition of sink %s has no key of messages", sink->sink_name);
}

/* Old and new rows are a difference when a column differs that messages are made of, technical ones included. */
static void
compare_columns(const MrSink *sink)
{
	Bitmapset *read = mr_sink_columns(sink->definition, sink->staging->relid, ":message");
	int member = -1;

	while ((member = bms_next_member(read, member)) >= 0)
		mr_staging_compare(sink->staging, member + FirstLowInvalidHeapAttributeNumber);
}

static MrTarget *
sink_load(const MrTarget *base)
{
	MrSink *sink = palloc0(sizeof(MrSink));
	char *mart;
	ErrorData *error;
	bool isnull;

	sink->base = *base;
	for (int s = 0; s < base->nsources; s++)
		sink->staging = base->sources[s].staging;
	if (mr_sql("SELECT s.name, s.at_most_every IS NOT NULL, s.suspended_at IS NOT NULL, "
			   "t.definition ->> 'mart' FROM millrace.sink s "
			   "JOIN millrace.target t ON t.id = s.target_id WHERE s.target_id = %d",
			   base->id) != 1)
		elog(ERROR, "sink %d is gone", base->id);
	sink->base.name = sink->sink_name = mr_sql_text(0, 1);
	sink->delayed = DatumGetBool(mr_sql_value(0, 2, &isnull));
	sink->suspended = DatumGetBool(mr_sql_value(0, 3, &isnull));
	mart = mr_sql_text(0, 4);
	sink->mart_id = mart == NULL ? 0 : (int32) strtol(mart, NULL, 10);
	SPI_freetuptable(SPI_tuptable);
	if (sink->suspended || sink->staging == NULL)
		return &sink->base;
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(base->owner)))
	{
		mr_sink_suspend(sink, "its owner does not exist any more", ERRCODE_UNDEFINED_OBJECT);
		return &sink->base;
	}
	sink->context = CreateStandaloneExprContext();
	error = mr_rule_try(prepare_step, sink, GetUserId(), "UTC");
	if (error == NULL)
	{
		sink->context->ecxt_scantuple = sink->slot;
		error = mr_rule_try(compile_step, sink, base->owner, sink->staging->timezone);
	}
	if (error != NULL)
		mr_sink_suspend(sink, error->message, error->sqlerrcode);
	else if (sink->mart_id == 0)
		compare_columns(sink);
	return &sink->base;
}

void
mr_sinks_arrange(List *targets)
{
	ListCell *lc;
	ListCell *lc2;

	foreach(lc, targets)
	{
		MrSink *sink = lfirst(lc);

		if (sink->base.kind != &mr_sink_kind || sink->mart_id == 0)
			continue;
		foreach(lc2, targets)
		{
			MrTarget *target = lfirst(lc2);

			if (target->kind != &mr_mart_kind || target->id != sink->mart_id)
				continue;
			sink->mart = target;
			mr_mart_watch(target);
		}
	}
}

const MrTargetKind mr_sink_kind = {
	.name = "sink",
	.phase = MR_PHASE_SINK,
	.stage = MR_STAGE_ALERT,
	.load = sink_load,
	.apply = sink_apply,
	.filled_from = MR_FILLED_BY_ITSELF,
	.fill = sink_fill,
	.tick = sink_tick,
};
