/*
 * position.c
 *	  Positions and their fence.
 *
 * A position moves only from where this process left it, in the generation that it took over, in the epoch
 * that it read messages under.  Whoever opens a feed raises the generation, so an older reader of the same
 * partitions fails at its next commit, whatever it was doing.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "core/compat.h"
#include "core/indexes.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "executor/executor.h"
#include "source/position.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* Columns of millrace.stream_position. */
enum
{
	STREAM_ID = 1,
	TOPIC,
	PARTITION,
	EPOCH,
	POSITION,
	GENERATION,
	LAST_TIME,
	LAST_CHECKSUM,
	HIGH_WATERMARK,
	REACHED,
	SEEN_AT
};

/* Runs a statement as the extension's owner; kept for the life of the backend. */
static uint64
run(MrStatement **statement, const char *sql, int nargs, const Oid *types, Datum *values,
	const char *nulls)
{
	MrRunAs saved;
	uint64 nrows;

	if (*statement == NULL)
	{
		MemoryContext context = MemoryContextSwitchTo(TopMemoryContext);

		*statement = mr_statement_create(sql, nargs, types);
		MemoryContextSwitchTo(context);
	}
	mr_run_as(&saved, mr_extension_owner());
	nrows = mr_statement_run(*statement, values, nulls);
	mr_run_back(&saved);
	return nrows;
}

/* An error said so, and nobody has asked yet. */
static bool fence_lost = false;

static void
report_lost_fence(const MrStream *stream)
{
	fence_lost = true;
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("stream \"%s\" has been taken over", stream->name),
			 errdetail("Another worker, run_stream() or reset_stream() has moved its position.")));
}

bool
mr_position_was_lost(void)
{
	bool lost = fence_lost;

	fence_lost = false;
	return lost;
}

MrPosition *
mr_positions_take(const MrStream *stream, int worker, int workers, bool spread, int *count)
{
	static MrStatement *statement = NULL;
	const Oid types[] = {INT4OID, INT4OID, INT4OID, BOOLOID};
	Datum values[] = {Int32GetDatum(stream->id), Int32GetDatum(worker), Int32GetDatum(workers),
					  BoolGetDatum(spread)};
	uint64 n =
		run(&statement,
			"WITH taken AS (UPDATE millrace.stream_position p SET generation = p.generation + 1"
			" WHERE p.stream_id = $1 AND (p.partition + CASE WHEN $4 THEN"
			" pg_catalog.hashtext(p.topic) & 65535 ELSE 0 END) % $3 = $2 RETURNING p.*)"
			" SELECT t.topic, t.partition, t.epoch, t.position, t.generation, t.last_time,"
			" t.last_checksum FROM taken t ORDER BY t.topic, t.partition",
			lengthof(types), types, values, NULL);
	MrPosition *positions = palloc0(sizeof(MrPosition) * Max(n, 1));

	for (uint64 i = 0; i < n; i++)
	{
		MrPosition *position = &positions[i];
		bool no_time;
		bool isnull;

		position->topic = mr_sql_text(i, 1);
		position->partition = DatumGetInt32(mr_sql_value(i, 2, &isnull));
		position->epoch = DatumGetInt32(mr_sql_value(i, 3, &isnull));
		position->position = DatumGetInt64(mr_sql_value(i, 4, &isnull));
		position->generation = DatumGetInt64(mr_sql_value(i, 5, &isnull));
		position->last_time = DatumGetTimestampTz(mr_sql_value(i, 6, &no_time));
		position->last_checksum = DatumGetInt64(mr_sql_value(i, 7, &isnull));
		position->has_last = !isnull && !no_time;
		position->next = position->position;
		position->high_watermark = -1;
		position->reached = -1;
	}
	SPI_freetuptable(SPI_tuptable);
	*count = (int) n;
	return positions;
}

bool
mr_positions_are_ours(const MrStream *stream)
{
	static MrStatement *statement = NULL;
	const Oid types[] = {INT4OID};
	Datum values[] = {Int32GetDatum(stream->id)};
	uint64 n = run(&statement,
				   "SELECT p.xmin FROM millrace.stream_position p WHERE p.stream_id = $1",
				   lengthof(types), types, values, NULL);
	bool ours = false;

	for (uint64 i = 0; i < n && !ours; i++)
	{
		bool isnull;

		ours =
			TransactionIdIsCurrentTransactionId(DatumGetTransactionId(mr_sql_value(i, 1, &isnull)));
	}
	SPI_freetuptable(SPI_tuptable);
	return ours;
}

bool
mr_positions_any(const MrStream *stream)
{
	static MrStatement *statement = NULL;
	const Oid types[] = {INT4OID};
	Datum values[] = {Int32GetDatum(stream->id)};
	bool any = run(&statement,
				   "SELECT FROM millrace.stream_position p WHERE p.stream_id = $1 LIMIT 1",
				   lengthof(types), types, values, NULL) > 0;

	SPI_freetuptable(SPI_tuptable);
	return any;
}

bool
mr_positions_known(const MrStream *stream, const char *topic)
{
	static MrStatement *statement = NULL;
	const Oid types[] = {INT4OID, TEXTOID};
	Datum values[] = {Int32GetDatum(stream->id), CStringGetTextDatum(topic)};
	bool known =
		run(&statement,
			"SELECT FROM millrace.stream_position p WHERE p.stream_id = $1 AND p.topic = $2"
			" LIMIT 1",
			lengthof(types), types, values, NULL) > 0;

	SPI_freetuptable(SPI_tuptable);
	return known;
}

/* The epoch is read here: the stream may have been reset since it was loaded. */
void
mr_position_insert(const MrStream *stream, const char *topic, int32 partition, int64 position)
{
	static MrStatement *statement = NULL;
	const Oid types[] = {INT4OID, TEXTOID, INT4OID, INT8OID};
	Datum values[] = {Int32GetDatum(stream->id), CStringGetTextDatum(topic),
					  Int32GetDatum(partition), Int64GetDatum(position)};

	(void) run(&statement,
			   "INSERT INTO millrace.stream_position (stream_id, topic, partition, epoch, position)"
			   " SELECT s.id, $2, $3, s.epoch, $4 FROM millrace.stream s WHERE s.id = $1"
			   " ON CONFLICT DO NOTHING",
			   lengthof(types), types, values, NULL);
}

void
mr_position_claim(const MrStream *stream, const MrPosition *position)
{
	static MrStatement *statement = NULL;
	const Oid types[] = {INT4OID, TEXTOID, INT4OID, INT8OID, INT8OID, INT4OID};
	Datum values[] = {Int32GetDatum(stream->id),           CStringGetTextDatum(position->topic),
					  Int32GetDatum(position->partition),  Int64GetDatum(position->position),
					  Int64GetDatum(position->generation), Int32GetDatum(position->epoch)};

	if (run(&statement,
			"SELECT FROM millrace.stream_position p WHERE p.stream_id = $1 AND p.topic = $2"
			" AND p.partition = $3 AND p.position = $4 AND p.generation = $5 AND p.epoch = $6"
			" FOR UPDATE",
			lengthof(types), types, values, NULL) != 1)
		report_lost_fence(stream);
	SPI_freetuptable(SPI_tuptable);
}

static const char *const column_names[] = {
	"stream_id", "topic",         "partition",      "epoch",   "position", "generation",
	"last_time", "last_checksum", "high_watermark", "reached", "seen_at"};

/* Is an index one whose entries need nothing but a row's columns? */
static bool
is_plain_index(Relation index, const IndexInfo *info)
{
	return info->ii_Expressions == NIL && info->ii_Predicate == NIL &&
		   info->ii_ExclusionOps == NULL && index->rd_index->indimmediate;
}

/* The primary key's index of the table; an error when that has become one that may not be written to like this. */
static Relation
primary_key(const MrIndexes *indexes)
{
	Relation relation = indexes->table;
	TupleDesc desc = RelationGetDescr(relation);
	bool as_made = desc->natts == lengthof(column_names) && relation->rd_rules == NULL;
	Relation key = NULL;

	for (int i = 0; as_made && i < desc->natts; i++)
		as_made = strcmp(NameStr(TupleDescAttr(desc, i)->attname), column_names[i]) == 0;
	for (int i = 0; relation->trigdesc != NULL && i < relation->trigdesc->numtriggers; i++)
		as_made = as_made && relation->trigdesc->triggers[i].tgisinternal;
	for (int i = 0; i < indexes->count; i++)
	{
		Relation index = indexes->relations[i];

		as_made = as_made && is_plain_index(index, indexes->infos[i]);
		if (index->rd_index->indisprimary)
			key = index;
	}
	if (!as_made || key == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("the table millrace.stream_position is not as millrace has made it"),
						errhint("Take away the columns, rules, triggers, and indexes over "
								"expressions or parts that were added to it.")));
	return key;
}

/* The row of a position as it is to be, or NULL: it is not where this process left it. */
static HeapTuple
advanced(const MrPosition *position, Relation relation, TupleTableSlot *found)
{
	bool replaces[lengthof(column_names)] = {0};
	bool nulls[lengthof(column_names)] = {0};
	Datum values[lengthof(column_names)] = {0};

	slot_getallattrs(found);
	if (DatumGetInt32(found->tts_values[EPOCH - 1]) != position->epoch ||
		DatumGetInt64(found->tts_values[POSITION - 1]) != position->position ||
		DatumGetInt64(found->tts_values[GENERATION - 1]) != position->generation)
		return NULL;
	values[POSITION - 1] = Int64GetDatum(position->next);
	values[LAST_TIME - 1] = TimestampTzGetDatum(position->last_time);
	values[LAST_CHECKSUM - 1] = Int64GetDatum(position->last_checksum);
	values[HIGH_WATERMARK - 1] = Int64GetDatum(position->high_watermark);
	values[REACHED - 1] = Int64GetDatum(position->reached);
	values[SEEN_AT - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
	replaces[POSITION - 1] = true;
	replaces[LAST_TIME - 1] = replaces[LAST_CHECKSUM - 1] = position->next != position->position;
	replaces[HIGH_WATERMARK - 1] = replaces[SEEN_AT - 1] = position->high_watermark >= 0;
	replaces[REACHED - 1] = position->reached >= 0;
	return heap_modify_tuple(ExecFetchSlotHeapTuple(found, false, NULL), RelationGetDescr(relation),
							 values, nulls, replaces);
}

/* Each small batch does this: straight through the index it takes a quarter of what a statement does. */
void
mr_positions_advance(const MrStream *stream, MrPosition **moved, int count)
{
	Oid namespace = get_namespace_oid("millrace", false);
	Relation relation;
	Relation key;
	MrIndexes indexes;
	TupleTableSlot *found;
	TupleTableSlot *changed;
	IndexScanDesc scan;
	Snapshot snapshot;
	ScanKeyData wanted[PARTITION];

	if (count == 0)
		return;
	relation = table_open(get_relname_relid("stream_position", namespace), RowExclusiveLock);
	mr_indexes_open(&indexes, relation);
	key = primary_key(&indexes);
	found = table_slot_create(relation, NULL);
	changed = MakeSingleTupleTableSlot(RelationGetDescr(relation), &TTSOpsHeapTuple);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = mr_index_beginscan(relation, key, snapshot, lengthof(wanted));
	ScanKeyInit(&wanted[0], STREAM_ID, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(stream->id));
	ScanKeyInit(&wanted[1], TOPIC, BTEqualStrategyNumber, F_TEXTEQ, (Datum) 0);
	ScanKeyInit(&wanted[2], PARTITION, BTEqualStrategyNumber, F_INT4EQ, (Datum) 0);
	wanted[1].sk_collation = key->rd_indcollation[1];
	for (int i = 0; i < count; i++)
	{
		HeapTuple row = NULL;
		ItemPointerData place;

		wanted[1].sk_argument = CStringGetTextDatum(moved[i]->topic);
		wanted[2].sk_argument = Int32GetDatum(moved[i]->partition);
		index_rescan(scan, wanted, lengthof(wanted), NULL, 0);
		if (index_getnext_slot(scan, ForwardScanDirection, found))
			row = advanced(moved[i], relation, found);
		if (row == NULL)
			report_lost_fence(stream);
		place = found->tts_tid;
		ExecStoreHeapTuple(row, changed, true);
		if (mr_indexes_update(&indexes, &place, changed, GetCurrentCommandId(true), snapshot, true,
							  UNIQUE_CHECK_YES) != TM_Ok)
			report_lost_fence(stream);
	}
	index_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(changed);
	ExecDropSingleTupleTableSlot(found);
	mr_indexes_close(&indexes);
	table_close(relation, NoLock);
	/* What comes next in the transaction sees them. */
	CommandCounterIncrement();
}

void
mr_position_put(const MrStream *stream, MrPosition *position, int64 value)
{
	static MrStatement *statement = NULL;
	const Oid types[] = {INT4OID, TEXTOID, INT4OID, INT8OID, INT8OID, INT8OID};
	Datum values[] = {Int32GetDatum(stream->id),           CStringGetTextDatum(position->topic),
					  Int32GetDatum(position->partition),  Int64GetDatum(position->position),
					  Int64GetDatum(position->generation), Int64GetDatum(value)};

	if (run(&statement,
			"UPDATE millrace.stream_position p SET position = $6, last_time = NULL,"
			" last_checksum = NULL, high_watermark = NULL, reached = NULL, seen_at = NULL"
			" WHERE p.stream_id = $1 AND p.topic = $2 AND p.partition = $3 AND p.position = $4"
			" AND p.generation = $5",
			lengthof(types), types, values, NULL) != 1)
		report_lost_fence(stream);
	position->position = value;
	position->next = value;
	position->has_last = false;
}

void
mr_stream_raise_epoch(const MrStream *stream)
{
	static MrStatement *statement = NULL;
	const Oid types[] = {INT4OID};
	Datum values[] = {Int32GetDatum(stream->id)};

	(void) run(
		&statement,
		"WITH raised AS (UPDATE millrace.stream s SET epoch = s.epoch + 1 WHERE s.id = $1"
		" RETURNING s.id, s.epoch)"
		" UPDATE millrace.stream_position p SET epoch = r.epoch, generation = p.generation + 1"
		" FROM raised r WHERE p.stream_id = r.id",
		lengthof(types), types, values, NULL);
}
