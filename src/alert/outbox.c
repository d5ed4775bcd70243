/*
 * outbox.c
 *	  The outbox: what waits to be sent.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "alert/outbox.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "core/worker.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#define COLUMNS 8 /* of each row; its time is that of all */

PG_FUNCTION_INFO_V1(millrace_timeline);
PG_FUNCTION_INFO_V1(millrace_wake_delivery);

Datum
millrace_timeline(PG_FUNCTION_ARGS)
{
	/* A standby has none of its own; what is asked there is not about sending. */
	PG_RETURN_INT64(RecoveryInProgress() ? 0 : (int64) GetWALInsertionTimeLine());
}

Datum
millrace_wake_delivery(PG_FUNCTION_ARGS)
{
	mr_delivery_wake_at_commit();
	mr_manager_wake_at_commit();
	PG_RETURN_VOID();
}

/* By channel and key, else as they came: they stand in one array. */
static int
compare_rows(const void *a, const void *b)
{
	const MrOutboxRow *left = *(const MrOutboxRow *const *) a;
	const MrOutboxRow *right = *(const MrOutboxRow *const *) b;
	int order;

	if (left->channel_id != right->channel_id)
		return left->channel_id < right->channel_id ? -1 : 1;
	order = strcmp(left->key, right->key);
	if (order != 0)
		return order;
	return left < right ? -1 : left > right;
}

static Datum
text_or_null(const char *text, bool *isnull)
{
	*isnull = text == NULL;
	return text == NULL ? (Datum) 0 : CStringGetTextDatum(text);
}

static Datum
make_array(Datum *values, bool *nulls, int n, Oid type)
{
	int dims = n;
	int lower = 1;
	int16 length;
	bool byval;
	char align;

	get_typlenbyvalalign(type, &length, &byval, &align);
	return PointerGetDatum(
		construct_md_array(values, nulls, 1, &dims, &lower, type, length, byval, align));
}

void
mr_outbox_add(const MrOutboxRow *rows, int nrows)
{
	static const Oid types[COLUMNS + 1] = {INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
										   INT8ARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID,
										   INT4ARRAYOID, TEXTARRAYOID, TIMESTAMPTZOID};
	static MrStatement *insert = NULL;
	MemoryContext context = CurrentMemoryContext;
	MemoryContext work;
	const MrOutboxRow **sorted;
	Datum *values[COLUMNS];
	bool *nulls[COLUMNS];
	Datum arguments[COLUMNS + 1];
	MrRunAs saved;

	if (nrows == 0)
		return;
	if (insert == NULL)
	{
		MemoryContextSwitchTo(TopMemoryContext);
		insert = mr_statement_create(
			"INSERT INTO millrace.outbox_message (channel_id, key, group_by, alert_id, message, "
			"not_after, sink_id, object, created_at) "
			"SELECT c, k, g, a, m::json, t, s, o, $9 "
			"FROM unnest($1, $2, $3, $4, $5, $6, $7, $8) AS u (c, k, g, a, m, t, s, o)",
			lengthof(types), types);
	}
	work = AllocSetContextCreate(context, "millrace outbox", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(work);
	sorted = palloc(sizeof(*sorted) * nrows);
	for (int i = 0; i < nrows; i++)
		sorted[i] = &rows[i];
	qsort(sorted, nrows, sizeof(*sorted), compare_rows);

	for (int i = 0; i < COLUMNS; i++)
	{
		values[i] = palloc(sizeof(Datum) * nrows);
		nulls[i] = palloc0(sizeof(bool) * nrows);
	}
	for (int i = 0; i < nrows; i++)
	{
		const MrOutboxRow *row = sorted[i];

		values[0][i] = Int32GetDatum(row->channel_id);
		values[1][i] = CStringGetTextDatum(row->key);
		values[2][i] = text_or_null(row->group_by, &nulls[2][i]);
		values[3][i] = Int64GetDatum(row->alert_id);
		nulls[3][i] = row->alert_id == 0;
		values[4][i] = text_or_null(row->message, &nulls[4][i]);
		values[5][i] = TimestampTzGetDatum(row->not_after);
		nulls[5][i] = TIMESTAMP_IS_NOEND(row->not_after);
		values[6][i] = Int32GetDatum(row->sink_id);
		nulls[6][i] = row->sink_id == 0;
		values[7][i] = text_or_null(row->object, &nulls[7][i]);
	}
	arguments[0] = make_array(values[0], nulls[0], nrows, INT4OID);
	arguments[1] = make_array(values[1], nulls[1], nrows, TEXTOID);
	arguments[2] = make_array(values[2], nulls[2], nrows, TEXTOID);
	arguments[3] = make_array(values[3], nulls[3], nrows, INT8OID);
	arguments[4] = make_array(values[4], nulls[4], nrows, TEXTOID);
	arguments[5] = make_array(values[5], nulls[5], nrows, TIMESTAMPTZOID);
	arguments[6] = make_array(values[6], nulls[6], nrows, INT4OID);
	arguments[7] = make_array(values[7], nulls[7], nrows, TEXTOID);
	arguments[8] = TimestampTzGetDatum(GetCurrentTimestamp());

	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	(void) mr_statement_run(insert, arguments, NULL);
	SPI_finish();
	mr_run_back(&saved);
	mr_delivery_wake_at_commit();
	MemoryContextSwitchTo(context);
	MemoryContextDelete(work);
}
