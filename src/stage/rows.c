/*
 * rows.c
 *	  Reading a staging table in the order of its objects' keys.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "lib/stringinfo.h"
#include "stage/mapping.h"
#include "stage/reader.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/* "r.k1, r.k2, …", as the columns are called now. */
static char *
key_list(const MrStaging *staging, bool with_element)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int k = 0; k < staging->nkeys; k++)
		appendStringInfo(&list, "%sr.%s", k == 0 ? "" : ", ",
						 quote_identifier(get_attname(staging->relid, staging->key[k], false)));
	if (with_element && staging->element != InvalidAttrNumber)
		appendStringInfo(&list, ", r.%s",
						 quote_identifier(get_attname(staging->relid, staging->element, false)));
	return list.data;
}

/* All columns by attribute number, with something in the places of dropped ones. */
static char *
column_list(const MrStaging *staging)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int a = 0; a < staging->desc->natts; a++)
		appendStringInfo(
			&list, "%s%s", a == 0 ? "" : ", ",
			TupleDescAttr(staging->desc, a)->attisdropped
				? "NULL"
				: psprintf("r.%s", quote_identifier(get_attname(staging->relid, a + 1, false))));
	return list.data;
}

/* Selects what comes after the place; its rows stand in SPI_tuptable. */
static uint64
select_rows(const MrStaging *staging, const MrKeyPlace *place, const char *condition, int limit)
{
	MemoryContext context = CurrentMemoryContext;
	int nargs = place->beginning ? 0 : staging->nkeys;
	Oid *types = palloc(sizeof(Oid) * Max(nargs, 1));
	StringInfoData sql;
	int result;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT %s FROM %s AS r", column_list(staging), staging->name);
	for (int k = 0; k < nargs; k++)
	{
		types[k] = TupleDescAttr(staging->desc, staging->key[k] - 1)->atttypid;
		if (k == 0)
			appendStringInfo(&sql, " WHERE (%s) > (", key_list(staging, false));
		appendStringInfo(&sql, "%s$%d", k == 0 ? "" : ", ", k + 1);
	}
	if (nargs > 0)
		appendStringInfoChar(&sql, ')');
	if (condition != NULL)
		appendStringInfo(&sql, "%s (%s)", nargs > 0 ? " AND" : " WHERE", condition);
	appendStringInfo(&sql, " ORDER BY %s LIMIT %d", key_list(staging, true), limit);
	result = SPI_execute_with_args(sql.data, nargs, types, place->values, NULL, false, 0);
	if (result != SPI_OK_SELECT)
		elog(ERROR, "cannot run \"%s\": %s", sql.data, SPI_result_code_string(result));
	MemoryContextSwitchTo(context);
	return SPI_processed;
}

static bool
same_object(const MrStaging *staging, const MrRow *left, const MrRow *right)
{
	for (int k = 0; k < staging->nkeys; k++)
	{
		int attribute = staging->key[k] - 1;

		if (ApplySortComparator(left->values[attribute], false, right->values[attribute], false,
								&staging->plan->key_sort[k]) != 0)
			return false;
	}
	return true;
}

/* The rows of one object as a version: what it was when it was staged. */
static void
make_version(const MrStaging *staging, MrRow *rows, int nrows, MrVersion *version)
{
	const MrStagingPlan *plan = staging->plan;
	const MrRow *row = &rows[0];

	memset(version, 0, sizeof(MrVersion));
	version->message = palloc0(sizeof(MrMessage));
	version->message->partition = DatumGetInt32(row->values[plan->partition - 1]);
	version->message->position = DatumGetInt64(row->values[plan->position - 1]);
	version->key = palloc(sizeof(Datum) * staging->nkeys);
	for (int k = 0; k < staging->nkeys; k++)
		version->key[k] = row->values[staging->key[k] - 1];
	version->version = row->values[staging->version - 1];
	version->version_null = row->nulls[staging->version - 1];
	version->event_time_null = row->nulls[staging->event_time - 1];
	if (!version->event_time_null)
		version->event_time = DatumGetTimestampTz(row->values[staging->event_time - 1]);
	/* The nearest to the message's own time, which is not staged. */
	version->message->time = version->event_time_null
								 ? DatumGetTimestampTz(row->values[plan->loaded_at - 1])
								 : version->event_time;
	version->loaded_at = DatumGetTimestampTz(row->values[plan->loaded_at - 1]);
	version->rows = rows;
	version->nrows = nrows;
}

/*
 * Marks versions that a snapshot has read, and leaves out those that lack what a dictionary does not know: whoever only
 * appends takes them when they are complete.  They stay among the new rows, which others count.
 */
static void
read_flags(MrStaged *staged)
{
	const MrStaging *staging = staged->staging;
	Oid *types = palloc(sizeof(Oid) * staging->nkeys);
	MrStatement *select;
	StringInfoData sql;
	int kept = 0;
	MrRunAs saved;

	if (staging->plan->enriched == NULL && !staging->each_version)
		return;
	initStringInfo(&sql);
	appendStringInfo(&sql,
					 "SELECT flags & 2 <> 0 FROM millrace_state.object_%d WHERE flags & 6 <> 0",
					 staging->id);
	for (int k = 0; k < staging->nkeys; k++)
	{
		types[k] = TupleDescAttr(staging->desc, staging->key[k] - 1)->atttypid;
		appendStringInfo(&sql, " AND k%d = $%d", k + 1, k + 1);
	}
	select = mr_statement_create(sql.data, staging->nkeys, types);
	mr_run_as(&saved, mr_extension_owner());
	for (int i = 0; i < staged->nversions; i++)
	{
		bool isnull;

		staged->versions[i].read = mr_statement_run(select, staged->versions[i].key, NULL) > 0;
		if (!staged->versions[i].read || !DatumGetBool(mr_sql_value(0, 1, &isnull)))
			staged->versions[kept++] = staged->versions[i];
		SPI_freetuptable(SPI_tuptable);
	}
	mr_run_back(&saved);
	staged->nversions = kept;
}

bool
mr_rows_read(MrStaged *staged, MrKeyPlace *place, Oid role, const char *condition, int limit,
			 int64 *nrows)
{
	const MrStaging *staging = staged->staging;
	int natts = staging->desc->natts;
	SPITupleTable *table;
	MrRunAs saved;
	MrRow *rows;
	uint64 found;
	uint64 taken;
	int first = 0;

	limit = Max(limit, 1);
	for (;;)
	{
		int nest_level;

		mr_run_as_restricted(&saved, role);
		nest_level = mr_settings_pin(staging->timezone);
		found = select_rows(staging, place, condition, limit);
		mr_settings_unpin(nest_level);
		mr_run_back(&saved);
		table = SPI_tuptable;
		rows = palloc0(sizeof(MrRow) * Max(found, 1));
		for (uint64 i = 0; i < found; i++)
		{
			rows[i].values = palloc(sizeof(Datum) * natts);
			rows[i].nulls = palloc(natts);
			heap_deform_tuple(table->vals[i], table->tupdesc, rows[i].values, rows[i].nulls);
			if (staging->element != InvalidAttrNumber && !rows[i].nulls[staging->element - 1])
				rows[i].element = DatumGetInt32(rows[i].values[staging->element - 1]);
		}
		taken = found;
		if (found < (uint64) limit)
			break;
		/* The last object may have more rows: it is left to the next chunk. */
		while (taken > 0 && same_object(staging, &rows[taken - 1], &rows[found - 1]))
			taken--;
		if (taken > 0)
			break;
		SPI_freetuptable(table);
		limit *= 2;
	}

	staged->new_rows = palloc(sizeof(MrRow *) * Max(taken, 1));
	staged->nnew = (int) taken;
	staged->versions = palloc(sizeof(MrVersion) * Max(taken, 1));
	staged->nversions = 0;
	for (int i = 0; i < (int) taken; i++)
	{
		staged->new_rows[i] = &rows[i];
		if (i + 1 == (int) taken || !same_object(staging, &rows[i], &rows[i + 1]))
		{
			make_version(staging, &rows[first], i + 1 - first,
						 &staged->versions[staged->nversions++]);
			first = i + 1;
		}
	}
	if (taken > 0)
	{
		place->beginning = false;
		place->values = staged->versions[staged->nversions - 1].key;
		read_flags(staged);
	}
	*nrows = (int64) taken;
	/* The rows' values live in SPI's memory until the caller disconnects. */
	return taken < found;
}

ArrayType *
mr_key_place_text(const MrStaging *staging, const MrKeyPlace *place)
{
	Datum *texts = palloc(sizeof(Datum) * staging->nkeys);
	int nest_level = mr_settings_pin("UTC");

	for (int k = 0; k < staging->nkeys; k++)
	{
		Oid output;
		bool varlena;

		getTypeOutputInfo(TupleDescAttr(staging->desc, staging->key[k] - 1)->atttypid, &output,
						  &varlena);
		texts[k] = CStringGetTextDatum(OidOutputFunctionCall(output, place->values[k]));
	}
	mr_settings_unpin(nest_level);
	return construct_array(texts, staging->nkeys, TEXTOID, -1, false, TYPALIGN_INT);
}

MrKeyPlace *
mr_key_place_read(const MrStaging *staging, ArrayType *written)
{
	MrKeyPlace *place = palloc0(sizeof(MrKeyPlace));
	Datum *texts;
	int ntexts;
	int nest_level;

	place->beginning = written == NULL;
	if (written == NULL)
		return place;
	deconstruct_array(written, TEXTOID, -1, false, TYPALIGN_INT, &texts, NULL, &ntexts);
	if (ntexts != staging->nkeys)
		elog(ERROR, "a place in %s has %d values instead of %d", staging->name, ntexts,
			 staging->nkeys);
	place->values = palloc(sizeof(Datum) * staging->nkeys);
	nest_level = mr_settings_pin("UTC");
	for (int k = 0; k < staging->nkeys; k++)
	{
		Form_pg_attribute attribute = TupleDescAttr(staging->desc, staging->key[k] - 1);
		int32 typmod = attribute->atttypmod;
		Oid input;
		Oid parameter;

		/* It has met the constraints of its domain, whose functions are not ours to call. */
		getTypeInputInfo(getBaseTypeAndTypmod(attribute->atttypid, &typmod), &input, &parameter);
		place->values[k] = OidInputFunctionCall(input, TextDatumGetCString(texts[k]), parameter,
												typmod);
	}
	mr_settings_unpin(nest_level);
	return place;
}

bool
mr_key_place_covers(const MrStaging *staging, const MrKeyPlace *place, const Datum *key)
{
	if (place->beginning)
		return false;
	for (int k = 0; k < staging->nkeys; k++)
	{
		int order = ApplySortComparator(key[k], false, place->values[k], false,
										&staging->plan->key_sort[k]);

		if (order != 0)
			return order < 0;
	}
	return true;
}
