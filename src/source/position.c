/*
 * position.c
 *	  Positions and their fence.
 *
 * A position moves only from where this process left it, in the generation that it took over, in the epoch
 * that it read messages under.  Whoever opens a feed raises the generation, so an older reader of the same
 * partitions fails at its next commit, whatever it was doing.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "source/position.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

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

void
mr_positions_advance(const MrStream *stream, MrPosition **moved, int count)
{
	static MrStatement *statement = NULL;
	const Oid element[] = {TEXTOID, INT4OID, INT8OID, INT8OID, INT4OID,
						   INT8OID, INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID};
	const Oid types[] = {INT4OID,      TEXTARRAYOID, INT4ARRAYOID,       INT8ARRAYOID,
						 INT8ARRAYOID, INT4ARRAYOID, INT8ARRAYOID,       INT8ARRAYOID,
						 INT8ARRAYOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID};
	Datum values[lengthof(types)];
	Datum *columns[lengthof(element)];

	if (count == 0)
		return;
	for (int c = 0; c < lengthof(element); c++)
		columns[c] = palloc(sizeof(Datum) * count);
	for (int i = 0; i < count; i++)
	{
		MrPosition *position = moved[i];

		columns[0][i] = CStringGetTextDatum(position->topic);
		columns[1][i] = Int32GetDatum(position->partition);
		columns[2][i] = Int64GetDatum(position->position);
		columns[3][i] = Int64GetDatum(position->generation);
		columns[4][i] = Int32GetDatum(position->epoch);
		columns[5][i] = Int64GetDatum(position->next);
		columns[6][i] = Int64GetDatum(position->high_watermark);
		columns[7][i] = Int64GetDatum(position->reached);
		columns[8][i] = Int64GetDatum(position->last_checksum);
		columns[9][i] = TimestampTzGetDatum(position->last_time);
	}
	values[0] = Int32GetDatum(stream->id);
	for (int c = 0; c < lengthof(element); c++)
	{
		bool by_value = element[c] != TEXTOID;
		int length = element[c] == TEXTOID ? -1 : element[c] == INT4OID ? 4 : 8;
		char alignment = length == 8 ? TYPALIGN_DOUBLE : TYPALIGN_INT;

		values[c + 1] = PointerGetDatum(construct_array(columns[c], count, element[c], length,
														length == 8 ? FLOAT8PASSBYVAL : by_value,
														alignment));
	}

	if (run(&statement,
			"UPDATE millrace.stream_position p SET position = m.next,"
			" high_watermark = CASE WHEN m.high < 0 THEN p.high_watermark ELSE m.high END,"
			" seen_at = CASE WHEN m.high < 0 THEN p.seen_at ELSE pg_catalog.clock_timestamp() END,"
			" reached = CASE WHEN m.reached < 0 THEN p.reached ELSE m.reached END,"
			" last_time = CASE WHEN m.next = m.start THEN p.last_time ELSE m.time END,"
			" last_checksum = CASE WHEN m.next = m.start THEN p.last_checksum ELSE m.checksum END"
			" FROM unnest($2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
			" m (topic, partition, start, generation, epoch, next, high, reached, checksum, time)"
			" WHERE p.stream_id = $1 AND p.topic = m.topic AND p.partition = m.partition"
			" AND p.position = m.start AND p.generation = m.generation AND p.epoch = m.epoch",
			lengthof(types), types, values, NULL) != count)
		report_lost_fence(stream);
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
