/*
 * backfill.c
 *	  Filling targets that were declared over what is there already, chunk by chunk (C11).
 *
 * Each chunk is what a batch would have brought: versions from the log, or rows from the staging table.  It is
 * applied by the target's own code, in a short transaction under the exclusive lock of all streams that feed the
 * target, in which the place that has been reached is stored, too.  So a chunk is done or it is not, wherever
 * the server was killed, and batches go on between chunks.
 *
 * What is made from versions only grows, and takes a version twice without harm: batches bring it all that comes
 * from its activation on, and chunks walk the pages that the log had then.  What is made from rows has to
 * count each row once: batches bring it the objects up to the key that has been reached, chunks the next ones.
 *
 * What is made from other targets computes its own chunks, after a place that it names.
 *
 * The walk is stored in parts, one for each table that is to be read: millrace.backfill_part.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "flow/backfill.h"
#include "flow/plan.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "stage/mapping.h"
#include "stage/reader.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* A table that is being read for a target. */
typedef struct Part
{
	int32 number;
	MrStaging *staging;
	Oid relation;
	bool by_key;
	ArrayType *position; /* by_key: the last object's key, or the target's own place; NULL: none */
	ItemPointerData place; /* of a log: the next row */
	BlockNumber until;
} Part;

bool
mr_backfill_begin(const MrTarget *target)
{
	int32 staging_id = 0;
	bool isnull;
	bool parts;

	/* The stream that activates a target that fills itself does that, too. */
	for (int s = 0; s < target->nsources && target->kind->filled_from == MR_FILLED_BY_ITSELF; s++)
	{
		if (target->sources[s].staging != NULL)
			staging_id = target->sources[s].staging_id;
	}
	(void) mr_sql("SELECT millrace_internal.backfill_begin(%d, %s, %s, %d)", target->id,
				  target->kind->filled_from == MR_FILLED_FROM_ROWS ? "true" : "false",
				  target->kind->filled_from_staged ? "true" : "false", staging_id);
	parts = DatumGetBool(mr_sql_value(0, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return parts;
}

bool
mr_backfill_pending(const MrStream *stream)
{
	ListCell *lc;

	foreach(lc, stream->targets)
	{
		if (((MrTarget *) lfirst(lc))->filling)
			return true;
	}
	return false;
}

/* ---- batches of a target that is being filled ------------------------------------------------------------- */

static MrStaging *
staging_of(const MrTarget *target, int32 staging_id)
{
	for (int s = 0; s < target->nsources; s++)
	{
		if (target->sources[s].staging_id == staging_id)
			return target->sources[s].staging;
	}
	return NULL;
}

/* Reads up to which object each source of the target has been read. */
static void
read_reached(MrTarget *target)
{
	uint64 count;

	for (int s = 0; s < target->nsources; s++)
		target->sources[s].reached = NULL;
	count = mr_sql("SELECT p.staging_id, p.position FROM millrace.backfill_part p "
				   "WHERE p.target_id = %d AND p.by_key",
				   target->id);
	for (uint64 i = 0; i < count; i++)
	{
		bool isnull;
		int32 staging_id = DatumGetInt32(mr_sql_value(i, 1, &isnull));
		Datum position = mr_sql_value(i, 2, &isnull);
		MrStaging *staging = staging_of(target, staging_id);
		MrKeyPlace *place;

		if (staging == NULL)
			continue;
		place = mr_key_place_read(staging, isnull ? NULL : DatumGetArrayTypeP(position));
		for (int s = 0; s < target->nsources; s++)
		{
			if (target->sources[s].staging_id == staging_id)
				target->sources[s].reached = place;
		}
	}
	SPI_freetuptable(SPI_tuptable);
}

void
mr_backfill_refresh(MrStream *stream)
{
	ListCell *lc;
	MrRunAs saved;

	foreach(lc, stream->targets)
	{
		MrTarget *target = lfirst(lc);

		if (!target->filling || target->kind->filled_from != MR_FILLED_FROM_ROWS)
			continue;
		mr_run_as(&saved, mr_extension_owner());
		read_reached(target);
		mr_run_back(&saved);
	}
}

/* The key of a row, in the order of the staging table's key. */
static const Datum *
key_of(const MrStaging *staging, const Datum *values, Datum *key)
{
	for (int k = 0; k < staging->nkeys; k++)
		key[k] = values[staging->key[k] - 1];
	return key;
}

/* Leaves only what belongs to objects that have been reached. */
static void
restrict_staged(MrStaged *staged, const MrKeyPlace *reached)
{
	const MrStaging *staging = staged->staging;
	Datum *key = palloc(sizeof(Datum) * staging->nkeys);
	Datum *values = palloc(sizeof(Datum) * staging->desc->natts);
	bool *nulls = palloc(staging->desc->natts);
	HeapTuple *old_rows = palloc(sizeof(HeapTuple) * Max(staged->nold, 1));
	MrRow **new_rows = palloc(sizeof(MrRow *) * Max(staged->nnew, 1));
	MrVersion *versions = MemoryContextAllocHuge(CurrentMemoryContext,
												 sizeof(MrVersion) * Max(staged->nversions, 1));
	int nversions = 0;
	int nold = 0;
	int nnew = 0;

	for (int i = 0; i < staged->nold; i++)
	{
		heap_deform_tuple(staged->old_rows[i], staging->desc, values, nulls);
		if (mr_key_place_covers(staging, reached, key_of(staging, values, key)))
			old_rows[nold++] = staged->old_rows[i];
	}
	for (int i = 0; i < staged->nnew; i++)
	{
		if (mr_key_place_covers(staging, reached,
								key_of(staging, staged->new_rows[i]->values, key)))
			new_rows[nnew++] = staged->new_rows[i];
	}
	for (int v = 0; v < staged->nversions; v++)
	{
		if (mr_key_place_covers(staging, reached, staged->versions[v].key))
			versions[nversions++] = staged->versions[v];
	}
	staged->versions = versions;
	staged->nversions = nversions;
	staged->judged = NIL;
	staged->old_rows = old_rows;
	staged->nold = nold;
	staged->new_rows = new_rows;
	staged->nnew = nnew;
	staged->old_store = NULL;
	staged->new_store = NULL;
}

MrBatch *
mr_backfill_restrict(const MrTarget *target, MrBatch *batch)
{
	MrBatch *part = NULL;

	for (int s = 0; s < target->nsources; s++)
	{
		const MrTargetSource *source = &target->sources[s];

		if (source->reached == NULL || source->staging == NULL)
			continue;
		if (part == NULL)
		{
			part = palloc(sizeof(MrBatch));
			*part = *batch;
			/* Rows that are copied for SQL go with what this target needs. */
			part->context = CurrentMemoryContext;
			part->staged = palloc(sizeof(MrStaged) * Max(batch->nstaged, 1));
			memcpy(part->staged, batch->staged, sizeof(MrStaged) * batch->nstaged);
		}
		restrict_staged(&part->staged[source->staging->ordinal], source->reached);
	}
	return part == NULL ? batch : part;
}

/* ---- chunks --------------------------------------------------------------------------------------------- */

/* The first target that is being filled from what the stream keeps, and fulfils a condition; or 0. */
static int32
next_where(int32 stream_id, const char *condition)
{
	int32 id = 0;
	bool isnull;
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	if (mr_sql("SELECT b.target_id FROM millrace.backfill b "
			   "JOIN millrace.target t ON t.id = b.target_id "
			   "WHERE t.state = 'filling' AND NOT b.paused AND %s "
			   "AND EXISTS (SELECT FROM millrace.backfill_part p "
			   "JOIN millrace.staging g ON g.id = p.staging_id "
			   "WHERE p.target_id = b.target_id AND g.stream_id = %d) "
			   "ORDER BY b.since, b.target_id LIMIT 1",
			   condition, stream_id) > 0)
		id = DatumGetInt32(mr_sql_value(0, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	mr_run_back(&saved);
	return id;
}

int32
mr_backfill_next_due(int32 stream_id)
{
	return next_where(stream_id,
					  "(b.retry_at IS NULL OR b.retry_at <= pg_catalog.clock_timestamp())");
}

int32
mr_backfill_next(int32 stream_id, const List *except)
{
	StringInfoData condition;
	ListCell *lc;

	initStringInfo(&condition);
	appendStringInfoString(&condition, "true");
	foreach(lc, except)
		appendStringInfo(&condition, " AND b.target_id <> %d", lfirst_int(lc));
	return next_where(stream_id, condition.data);
}

List *
mr_backfill_lock(int32 target_id)
{
	List *streams = NIL;
	List *locked;
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	do
	{
		ListCell *lc;

		locked = streams;
		/* Streams that feed a target together are locked in one order. */
		streams = mr_sql_ids(mr_sql("SELECT DISTINCT g.stream_id FROM millrace.target_source s "
									"JOIN millrace.staging g ON g.id = s.staging_id "
									"WHERE s.target_id = %d ORDER BY 1",
									target_id));
		foreach(lc, list_difference_int(streams, locked))
			mr_stream_lock(lfirst_int(lc), true);
		/* While we waited, it may have got another one. */
	} while (list_difference_int(streams, locked) != NIL);
	mr_run_back(&saved);
	return streams;
}

/* The next table that this stream's worker has to read for the target; false when there is none. */
static bool
next_part(const MrStream *stream, const MrTarget *target, Part *part)
{
	bool isnull;
	bool found;

	/* Pages of a log that was written anew, or came with a dump, are others: they are read from the beginning. */
	found =
		mr_sql(
			"SELECT p.number, p.staging_id, p.relation::oid, p.by_key, p.position, "
			"CASE WHEN NOT p.by_key THEN (p.position)[1]::tid END, p.until FROM millrace_internal.backfill_next_part(%d, %d) p "
			"WHERE p.number IS NOT NULL",
			target->id, stream->id) > 0;
	if (found)
	{
		Datum value;

		part->number = DatumGetInt32(mr_sql_value(0, 1, &isnull));
		part->staging = staging_of(target, DatumGetInt32(mr_sql_value(0, 2, &isnull)));
		part->relation = DatumGetObjectId(mr_sql_value(0, 3, &isnull));
		part->by_key = DatumGetBool(mr_sql_value(0, 4, &isnull));
		value = mr_sql_value(0, 5, &isnull);
		part->position = isnull ? NULL : DatumGetArrayTypePCopy(value);
		ItemPointerSet(&part->place, 0, 1);
		if (!part->by_key)
		{
			value = mr_sql_value(0, 6, &isnull);
			if (!isnull)
				part->place = *(ItemPointer) DatumGetPointer(value);
			part->until = (BlockNumber) DatumGetInt64(mr_sql_value(0, 7, &isnull));
		}
	}
	SPI_freetuptable(SPI_tuptable);
	return found && part->staging != NULL;
}

MrBatch *
mr_backfill_batch(MrStream *stream, MrStaging *staging, MrStaged **staged)
{
	MrBatch *batch = palloc0(sizeof(MrBatch));
	ListCell *lc;

	batch->context = CurrentMemoryContext;
	batch->stream = stream;
	batch->again = true;
	batch->loaded_at = GetCurrentTimestamp();
	batch->nstaged = list_length(stream->stagings);
	batch->staged = palloc0(sizeof(MrStaged) * batch->nstaged);
	foreach(lc, stream->stagings)
	{
		MrStaging *each = lfirst(lc);

		batch->staged[each->ordinal].staging = each;
	}
	*staged = &batch->staged[staging->ordinal];
	return batch;
}

/* Stores how far the part has come; without `more` it is done. */
static void
store_progress(const MrTarget *target, const Part *part, Datum position, bool more, int64 nrows)
{
	if (more)
	{
		Oid types[] = {INT4OID, INT4OID, TEXTARRAYOID};
		Datum values[] = {Int32GetDatum(target->id), Int32GetDatum(part->number), position};

		if (SPI_execute_with_args("UPDATE millrace.backfill_part SET position = $3 "
								  "WHERE target_id = $1 AND number = $2",
								  lengthof(types), types, values, NULL, false, 0) != SPI_OK_UPDATE)
			elog(ERROR, "cannot store the progress of %s", target->name);
	}
	else
		(void) mr_sql("DELETE FROM millrace.backfill_part WHERE target_id = %d AND number = %d",
					  target->id, part->number);
	(void) mr_sql("UPDATE millrace.backfill SET chunks = chunks + 1, "
				  "rows = rows + " INT64_FORMAT ", failures = 0, retry_at = NULL "
				  "WHERE target_id = %d",
				  nrows, target->id);
	if (!more)
	{
		(void) mr_sql("SELECT millrace_internal.backfill_end(%d) WHERE NOT EXISTS "
					  "(SELECT FROM millrace.backfill_part WHERE target_id = %d)",
					  target->id, target->id);
		SPI_freetuptable(SPI_tuptable);
	}
}

static Datum
text_position(const char *text)
{
	Datum element = CStringGetTextDatum(text);

	return PointerGetDatum(construct_array(&element, 1, TEXTOID, -1, false, TYPALIGN_INT));
}

/* Lets a target fill its next chunk by itself; what it has to go on from, or NULL. */
static char *
fill_itself(MrTarget *target, const Part *part, int64 *nkeys)
{
	char *after = NULL;

	if (part->position != NULL)
	{
		Datum *elements;
		int n;

		deconstruct_array(part->position, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &n);
		after = TextDatumGetCString(elements[0]);
	}
	return target->kind->fill(target, after, mr_backfill_rows, nkeys);
}

/* Reads a chunk of the part and applies it. */
static void
fill_part(MrStream *stream, MrTarget *target, Part *part)
{
	MrStaged *staged;
	MrBatch *batch = mr_backfill_batch(stream, part->staging, &staged);
	Datum position = (Datum) 0;
	int64 nrows;
	bool more;
	MrRunAs saved;

	if (target->kind->filled_from == MR_FILLED_BY_ITSELF)
	{
		char *reached = fill_itself(target, part, &nrows);

		more = reached != NULL;
		if (more)
			position = text_position(reached);
	}
	else if (part->by_key)
	{
		MrKeyPlace *place = mr_key_place_read(part->staging, part->position);

		more = mr_rows_read(staged, place, part->staging->owner, NULL, mr_backfill_rows, &nrows);
		if (more)
			position = PointerGetDatum(mr_key_place_text(part->staging, place));
	}
	else
	{
		more = mr_log_read(staged, part->relation, &part->place, part->until, mr_backfill_rows,
						   &nrows);
		if (more)
			position = text_position(psprintf("(%u,%u)", ItemPointerGetBlockNumber(&part->place),
											  ItemPointerGetOffsetNumber(&part->place)));
	}
	if (nrows > 0 && target->kind->filled_from != MR_FILLED_BY_ITSELF)
		mr_flow_apply(target, batch);
	mr_debug_point("in_chunk");

	mr_run_as(&saved, mr_extension_owner());
	store_progress(target, part, position, more, nrows);
	mr_run_back(&saved);
}

bool
mr_backfill_chunk(MrStream *stream, int32 target_id)
{
	MemoryContext previous = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(previous, "millrace chunk",
												  ALLOCSET_DEFAULT_SIZES);
	MrTarget *target = NULL;
	Part part = {0};
	ListCell *lc;
	MrRunAs saved;
	bool found;

	foreach(lc, stream->targets)
	{
		if (((MrTarget *) lfirst(lc))->id == target_id)
			target = lfirst(lc);
	}
	if (target == NULL)
		return false;

	/* Rows that were read live as long as this connection. */
	SPI_connect();
	MemoryContextSwitchTo(context);
	mr_run_as(&saved, mr_extension_owner());
	found = next_part(stream, target, &part);
	mr_run_back(&saved);
	if (found)
		fill_part(stream, target, &part);
	SPI_finish();
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
	return found;
}

void
mr_backfill_failed(int32 target_id, const ErrorData *error)
{
	Oid types[] = {INT4OID, TEXTOID, TEXTOID};
	Datum values[] = {
		Int32GetDatum(target_id),
		CStringGetTextDatum(error->message != NULL ? error->message : "unknown error"),
		CStringGetTextDatum(unpack_sql_state(error->sqlerrcode))};
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	(void) SPI_execute_with_args(
		"UPDATE millrace.backfill SET failures = failures + 1, last_error = $2, sqlstate = $3, "
		"last_error_at = pg_catalog.clock_timestamp(), "
		"retry_at = pg_catalog.clock_timestamp() + "
		"least(interval '1 s' * 2 ^ least(failures, 6), interval '1 min') WHERE target_id = $1",
		lengthof(types), types, values, NULL, false, 0);
	mr_run_back(&saved);
}
