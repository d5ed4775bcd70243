/*
 * fill.c
 *	  Filling vault tables from the logs of their sources.
 *
 * A log holds every version that came, so what a batch would have written for them is written by the same
 * code, from versions made of the log's rows.  A source without a log has nothing to fill from: a table on it
 * is complete from its declaration on (C7).
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "miscadmin.h"
#include "source/source.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "vault/vault.h"

#define ROWS_AT_ONCE 10000

/* Where the columns of a staging table stand in the rows read from its log. */
typedef struct LogReader
{
	MrStaging *staging;
	MrStream stream; /* no more than its name */
	Oid log;
	int *columns; /* by attribute number - 1, from 1; 0: not there */
	int rows;
	int deleted;
	int message_time;
	int partition;
	int position;
} LogReader;

/* Opens the log of a staging table; false when it has none. */
static bool
open_log(LogReader *reader, MrStaging *staging)
{
	bool isnull;
	Relation log;
	TupleDesc desc;

	memset(reader, 0, sizeof(LogReader));
	reader->staging = staging;
	(void) mr_sql("SELECT g.log::oid, s.name FROM millrace.staging g "
				  "JOIN millrace.stream s ON s.id = g.stream_id WHERE g.id = %d",
				  staging->id);
	reader->log = DatumGetObjectId(mr_sql_value(0, 1, &isnull));
	reader->stream.name = mr_sql_text(0, 2);
	SPI_freetuptable(SPI_tuptable);
	if (isnull)
		return false;

	log = table_open(reader->log, AccessShareLock);
	desc = RelationGetDescr(log);
	reader->columns = palloc0(sizeof(int) * staging->desc->natts);
	for (int i = 0, column = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		const char *name = NameStr(attribute->attname);

		if (attribute->attisdropped)
			continue;
		column++; /* as SELECT * numbers them */
		if (strcmp(name, "_rows") == 0)
			reader->rows = column;
		else if (strcmp(name, "_deleted") == 0)
			reader->deleted = column;
		else if (strcmp(name, "_message_time") == 0)
			reader->message_time = column;
		for (int a = 0; a < staging->desc->natts; a++)
		{
			Form_pg_attribute staged = TupleDescAttr(staging->desc, a);

			if (!staged->attisdropped && staged->atttypid == attribute->atttypid &&
				mr_staging_log_attribute(staging, reader->log, a + 1) == i + 1)
				reader->columns[a] = column;
		}
		if (strcmp(name, "_partition") == 0)
			reader->partition = column;
		else if (strcmp(name, "_position") == 0)
			reader->position = column;
	}
	table_close(log, NoLock);
	return true;
}

/* One row of the log as a version of its own. */
static void
read_version(const LogReader *reader, HeapTuple tuple, TupleDesc desc, MrVersion *version)
{
	const MrStaging *staging = reader->staging;
	int natts = staging->desc->natts;
	MrRow *row = palloc0(sizeof(MrRow));
	Datum *values = palloc(sizeof(Datum) * desc->natts);
	bool *nulls = palloc(desc->natts);

	heap_deform_tuple(tuple, desc, values, nulls);
	row->values = palloc0(sizeof(Datum) * natts);
	row->nulls = palloc(natts);
	for (int a = 0; a < natts; a++)
	{
		int column = reader->columns[a];

		row->nulls[a] = column == 0 || nulls[column - 1];
		if (!row->nulls[a])
			row->values[a] = values[column - 1];
	}

	memset(version, 0, sizeof(MrVersion));
	version->message = palloc0(sizeof(MrMessage));
	version->message->partition = DatumGetInt32(values[reader->partition - 1]);
	version->message->position = DatumGetInt64(values[reader->position - 1]);
	version->message->time = DatumGetTimestampTz(values[reader->message_time - 1]);
	version->key = palloc(sizeof(Datum) * staging->nkeys);
	for (int k = 0; k < staging->nkeys; k++)
		version->key[k] = row->values[staging->key[k] - 1];
	version->version = row->values[staging->version - 1];
	version->version_null = row->nulls[staging->version - 1];
	version->event_time_null = true;
	version->deleted = DatumGetBool(values[reader->deleted - 1]);
	if (DatumGetInt32(values[reader->rows - 1]) > 0)
	{
		version->nrows = 1;
		version->rows = row;
	}
}

/* Applies what the cursor has fetched. */
static void
apply_rows(MrTarget *target, LogReader *reader, SPITupleTable *rows, uint64 count)
{
	MrBatch batch = {0};
	MrStaged *staged;

	batch.stream = &reader->stream;
	batch.context = CurrentMemoryContext;
	batch.loaded_at = GetCurrentTimestamp();
	batch.nstaged = reader->staging->ordinal + 1;
	for (int s = 0; s < target->nsources; s++)
	{
		if (target->sources[s].staging != NULL)
			batch.nstaged = Max(batch.nstaged, target->sources[s].staging->ordinal + 1);
	}
	batch.staged = palloc0(sizeof(MrStaged) * batch.nstaged);
	staged = &batch.staged[reader->staging->ordinal];
	staged->staging = reader->staging;
	staged->versions = palloc(sizeof(MrVersion) * count);
	staged->nversions = (int) count;
	for (uint64 i = 0; i < count; i++)
		read_version(reader, rows->vals[i], rows->tupdesc, &staged->versions[i]);
	target->kind->apply(target, &batch);
}

/* Reads one source's log from beginning to end. */
static void
fill_from(MrTarget *target, LogReader *reader)
{
	MemoryContext previous = CurrentMemoryContext;
	MemoryContext chunk = AllocSetContextCreate(previous, "millrace fill", ALLOCSET_DEFAULT_SIZES);
	MrRunAs saved;
	SPIPlanPtr plan;
	Portal portal;

	mr_run_as_restricted(&saved, reader->staging->owner);
	plan = SPI_prepare(psprintf("SELECT * FROM %s", mr_relation_name(reader->log)), 0, NULL);
	if (plan == NULL)
		elog(ERROR, "cannot read the log of %s: %s", reader->staging->name,
			 SPI_result_code_string(SPI_result));
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, true);
	for (;;)
	{
		SPITupleTable *rows;

		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(portal, true, ROWS_AT_ONCE);
		rows = SPI_tuptable;
		if (SPI_processed == 0)
		{
			SPI_freetuptable(rows);
			break;
		}
		MemoryContextSwitchTo(chunk);
		apply_rows(target, reader, rows, SPI_processed);
		MemoryContextSwitchTo(previous);
		MemoryContextReset(chunk);
		SPI_freetuptable(rows);
	}
	SPI_cursor_close(portal);
	(void) SPI_freeplan(plan);
	mr_run_back(&saved);
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(chunk);
}

void
mr_vault_fill(MrTarget *target)
{
	for (int s = 0; s < target->nsources; s++)
	{
		LogReader reader;

		if (target->sources[s].staging != NULL && open_log(&reader, target->sources[s].staging))
			fill_from(target, &reader);
	}
}
