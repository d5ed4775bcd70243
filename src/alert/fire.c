/*
 * fire.c
 *	  Alerts, and their messages on the way to the outbox.
 */
#include "postgres.h"

#include "alert/outbox.h"
#include "alert/rule.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"

#define ARGUMENTS 8

Datum
mr_rule_text_array(char **texts, int n)
{
	Datum *values = palloc(sizeof(Datum) * n);
	bool *nulls = palloc(n);
	int dims = n;
	int lower = 1;

	for (int i = 0; i < n; i++)
	{
		nulls[i] = texts[i] == NULL;
		values[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(texts[i]);
	}
	return PointerGetDatum(
		construct_md_array(values, nulls, 1, &dims, &lower, TEXTOID, -1, false, TYPALIGN_INT));
}

char *
mr_rule_one_object(const char *object)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoChar(&text, '[');
	escape_json(&text, object);
	appendStringInfoChar(&text, ']');
	return text.data;
}

/* The arguments of millrace_internal.fire(). */
static void
make_arguments(const MrRule *rule, MrHit *const *hits, int n, Datum *arguments)
{
	char **keys = palloc(sizeof(char *) * n);
	char **occurrences = palloc(sizeof(char *) * n);
	char **details = palloc(sizeof(char *) * n);
	char **groups = palloc(sizeof(char *) * n);
	char **objects = palloc(sizeof(char *) * n);
	Datum *times = palloc(sizeof(Datum) * n);
	Datum *history = palloc(sizeof(Datum) * n);

	for (int i = 0; i < n; i++)
	{
		keys[i] = hits[i]->key;
		occurrences[i] = hits[i]->occurrence;
		details[i] = hits[i]->details;
		groups[i] = hits[i]->group_by;
		objects[i] = hits[i]->objects;
		times[i] = TimestampTzGetDatum(hits[i]->time);
		history[i] = BoolGetDatum(hits[i]->history);
	}
	arguments[0] = Int32GetDatum(rule->base.id);
	arguments[1] = mr_rule_text_array(keys, n);
	arguments[2] = mr_rule_text_array(occurrences, n);
	arguments[3] = PointerGetDatum(
		construct_array(times, n, TIMESTAMPTZOID, sizeof(TimestampTz), true, TYPALIGN_DOUBLE));
	arguments[4] = mr_rule_text_array(details, n);
	arguments[5] = mr_rule_text_array(groups, n);
	arguments[6] =
		PointerGetDatum(construct_array(history, n, BOOLOID, sizeof(bool), true, TYPALIGN_CHAR));
	arguments[7] = mr_rule_text_array(objects, n);
}

/* The messages that stand in SPI_tuptable. */
static MrOutboxRow *
read_messages(int n)
{
	MrOutboxRow *rows = palloc0(sizeof(MrOutboxRow) * Max(n, 1));
	bool of_sink = SPI_tuptable->tupdesc->natts > 6;

	for (int i = 0; i < n; i++)
	{
		bool isnull;

		rows[i].channel_id = DatumGetInt32(mr_sql_value(i, 1, &isnull));
		rows[i].key = mr_sql_text(i, 2);
		rows[i].group_by = mr_sql_text(i, 3);
		rows[i].alert_id = DatumGetInt64(mr_sql_value(i, 4, &isnull));
		rows[i].message = mr_sql_text(i, 5);
		rows[i].not_after = DatumGetTimestampTz(mr_sql_value(i, 6, &isnull));
		if (of_sink)
		{
			rows[i].sink_id = DatumGetInt32(mr_sql_value(i, 7, &isnull));
			rows[i].object = mr_sql_text(i, 8);
		}
	}
	SPI_freetuptable(SPI_tuptable);
	return rows;
}

void
mr_rule_send(MrStatement *statement, Datum *arguments)
{
	MemoryContext context = CurrentMemoryContext;
	MrOutboxRow *rows;
	int nrows;
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	MemoryContextSwitchTo(context);
	nrows = (int) mr_statement_run(statement, arguments, NULL);
	rows = read_messages(nrows);
	mr_outbox_add(rows, nrows);
	SPI_finish();
	mr_run_back(&saved);
	MemoryContextSwitchTo(context);
}

void
mr_rule_fire(MrRule *rule, MrHit *const *hits, int nhits)
{
	static const Oid types[ARGUMENTS] = {
		INT4OID,      TEXTARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID,
		TEXTARRAYOID, TEXTARRAYOID, BOOLARRAYOID, TEXTARRAYOID};
	static MrStatement *fire = NULL;
	Datum arguments[ARGUMENTS];

	if (nhits == 0)
		return;
	if (fire == NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);

		fire = mr_statement_create("SELECT channel_id, key, group_by, alert_id, message, not_after "
								   "FROM millrace_internal.fire($1, $2, $3, $4, $5, $6, $7, $8)",
								   ARGUMENTS, types);
		MemoryContextSwitchTo(previous);
	}
	make_arguments(rule, hits, nhits, arguments);
	mr_rule_send(fire, arguments);
	rule->base.written += nhits;
}
