/*
 * waiting.c
 *	  Messages that wait for what dictionaries do not know yet.
 *
 * They are letters in state "waiting", one for each staging table that lacks something, kept as they came; letter_wait says for
 * what.  From time to time the ids are asked for again; a letter that waits for nothing any more is mapped again with
 * its version and position.  An id that comes to be known between being asked for and being written down here is found
 * the next time.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "stage/mapping.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* A statement for the life of the backend. */
static MrStatement *
keep_statement(MrStatement **statement, const char *sql, int nargs, const Oid *types)
{
	if (*statement == NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);

		*statement = mr_statement_create(sql, nargs, types);
		MemoryContextSwitchTo(previous);
	}
	return *statement;
}

/* Why a version is not complete, in words. */
static char *
describe_lack(const MrLack *lack)
{
	if (lack->problem != NULL)
		return psprintf("entry \"%s\" of dictionary \"%s\" cannot be used: %s", lack->id,
						lack->dictionary, lack->problem);
	if (lack->element != NULL)
		return psprintf("dictionary \"%s\" knows no \"%s\" in \"%s\"", lack->dictionary,
						lack->element, lack->id);
	return psprintf("dictionary \"%s\" does not know \"%s\"", lack->dictionary, lack->id);
}

void
mr_waiting_write(MrStream *stream, MrBatch *batch)
{
	List *waiting = NIL;

	for (int s = 0; s < batch->nstaged; s++)
	{
		const MrStaged *staged = &batch->staged[s];

		for (int i = 0; i < staged->nversions; i++)
		{
			const MrVersion *version = &staged->versions[i];
			MrFailure *lacking;

			/* What the source reads again comes whole, and waits then. */
			if (!version->incomplete || version->unseen || version->message->reread ||
				mr_message_left_out(batch, version->message, staged->staging))
				continue;
			lacking = palloc0(sizeof(MrFailure));
			lacking->message = version->message;
			lacking->staging = staged->staging;
			lacking->sqlstate = ERRCODE_NO_DATA_FOUND;
			lacking->lacks = mr_enrich_lacking(batch, version->message,
											   staged->staging->plan->enriched);
			lacking->text = describe_lack(linitial(lacking->lacks));
			version->message->waits = true;
			waiting = lappend(waiting, lacking);
		}
	}
	batch->waits = waiting != NIL;
	if (batch->waits)
		(void) mr_letter_write(stream, waiting);
}

MrWaitingIds *
mr_waiting_want(MrStream *stream, MrWaitingPlace *place, int limit)
{
	static const Oid types[] = {INT4OID, INT4OID, TEXTOID, INT4OID};
	static MrStatement *select = NULL;
	Datum values[] = {Int32GetDatum(stream->id), Int32GetDatum(place->dictionary_id),
					  CStringGetTextDatum(place->id == NULL ? "" : place->id),
					  Int32GetDatum(limit)};
	MrWaitingIds *ids = palloc(sizeof(MrWaitingIds));
	MrRunAs saved;

	(void) keep_statement(
		&select,
		/* From each id to the next: thousands of messages may wait for one. */
		"WITH RECURSIVE next (dictionary_id, id, n) AS ("
		"SELECT $2, $3 COLLATE \"C\", 0 UNION ALL "
		"SELECT f.dictionary_id, f.id, n.n + 1 FROM next n, LATERAL ("
		"SELECT w.dictionary_id, w.id FROM millrace.letter_wait w "
		"WHERE w.stream_id = $1 AND (w.dictionary_id, w.id) > (n.dictionary_id, n.id) "
		"ORDER BY w.dictionary_id, w.id LIMIT 1) AS f WHERE n.n < $4) "
		"SELECT n.dictionary_id, n.id FROM next n WHERE n.n > 0 ORDER BY n.n",
		lengthof(types), types);
	mr_run_as(&saved, mr_extension_owner());
	ids->count = (int) mr_statement_run(select, values, NULL);
	mr_run_back(&saved);
	ids->dictionary_ids = palloc(sizeof(int32) * Max(ids->count, 1));
	ids->ids = palloc(sizeof(char *) * Max(ids->count, 1));
	for (int i = 0; i < ids->count; i++)
	{
		bool isnull;

		ids->dictionary_ids[i] = DatumGetInt32(mr_sql_value(i, 1, &isnull));
		ids->ids[i] = mr_sql_text(i, 2);
		if (stream->enrichment != NULL)
			mr_enrich_want(stream->enrichment, ids->dictionary_ids[i], ids->ids[i]);
	}
	SPI_freetuptable(SPI_tuptable);
	if (place->id != NULL)
		pfree(place->id);
	place->id = NULL;
	place->dictionary_id = 0;
	/* After the last ones comes the beginning. */
	if (ids->count == limit)
	{
		place->dictionary_id = ids->dictionary_ids[limit - 1];
		place->id = MemoryContextStrdup(place->context, ids->ids[limit - 1]);
	}
	return ids;
}

/* Three arrays: dictionaries, ids, elements. */
static void
make_arrays(int count, Datum *dictionaries, Datum *ids, Datum *elements, bool *no_element,
			Datum *arrays)
{
	int lower = 1;

	arrays[0] = PointerGetDatum(
		construct_array(dictionaries, count, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	arrays[1] = PointerGetDatum(construct_array(ids, count, TEXTOID, -1, false, TYPALIGN_INT));
	arrays[2] = PointerGetDatum(construct_md_array(elements, no_element, 1, &count, &lower, TEXTOID,
												   -1, false, TYPALIGN_INT));
}

/* What is waited for of these ids and is known now, as three arrays; false when nothing is. */
static bool
find_known(const MrStream *stream, const MrWaitingIds *wanted, Datum *arrays)
{
	static const Oid types[] = {INT4OID, INT4ARRAYOID, TEXTARRAYOID};
	static MrStatement *select = NULL;
	Datum *dictionaries = palloc(sizeof(Datum) * wanted->count);
	Datum *ids = palloc(sizeof(Datum) * wanted->count);
	Datum *elements;
	bool *no_element;
	Datum values[lengthof(types)];
	uint64 count;
	int known = 0;

	for (int i = 0; i < wanted->count; i++)
	{
		/* Many messages may wait for an id: they are not looked at each time. */
		if (!mr_enrich_knows_entry(stream->enrichment, wanted->dictionary_ids[i], wanted->ids[i]))
			continue;
		dictionaries[known] = Int32GetDatum(wanted->dictionary_ids[i]);
		ids[known++] = CStringGetTextDatum(wanted->ids[i]);
	}
	if (known == 0)
		return false;
	values[0] = Int32GetDatum(stream->id);
	values[1] = PointerGetDatum(
		construct_array(dictionaries, known, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	values[2] = PointerGetDatum(construct_array(ids, known, TEXTOID, -1, false, TYPALIGN_INT));
	(void) keep_statement(&select,
						  "SELECT DISTINCT w.dictionary_id, w.id, w.element "
						  "FROM unnest($2, $3) AS a (dictionary_id, id) "
						  "JOIN millrace.letter_wait w ON w.stream_id = $1 "
						  "AND w.dictionary_id = a.dictionary_id AND w.id = a.id",
						  lengthof(types), types);
	count = mr_statement_run(select, values, NULL);
	known = 0;
	dictionaries = palloc(sizeof(Datum) * Max(count, 1));
	ids = palloc(sizeof(Datum) * Max(count, 1));
	elements = palloc0(sizeof(Datum) * Max(count, 1));
	no_element = palloc(sizeof(bool) * Max(count, 1));
	for (uint64 i = 0; i < count; i++)
	{
		bool isnull;
		char *id = mr_sql_text(i, 2);
		char *element = mr_sql_text(i, 3);

		dictionaries[known] = mr_sql_value(i, 1, &isnull);
		if (!mr_enrich_knows(stream->enrichment, DatumGetInt32(dictionaries[known]), id, element))
			continue;
		ids[known] = CStringGetTextDatum(id);
		no_element[known] = element == NULL;
		if (element != NULL)
			elements[known] = CStringGetTextDatum(element);
		known++;
	}
	SPI_freetuptable(SPI_tuptable);
	if (known > 0)
		make_arrays(known, dictionaries, ids, elements, no_element, arrays);
	return known > 0;
}

/* A column of SPI_tuptable, numbers, as an array. */
static ArrayType *
take_numbers(uint64 count, int column)
{
	Datum *numbers = palloc(sizeof(Datum) * Max(count, 1));

	for (uint64 i = 0; i < count; i++)
	{
		bool isnull;

		numbers[i] = Int64GetDatum(DatumGetInt64(mr_sql_value(i, column, &isnull)));
	}
	return construct_array(numbers, (int) count, INT8OID, sizeof(int64), FLOAT8PASSBYVAL,
						   TYPALIGN_DOUBLE);
}

/* Whoever strikes out the last thing that a letter waits for must see that it is: letters are locked before. */
static ArrayType *
strike(Datum waits, Datum letters)
{
	static const Oid types[] = {INT8ARRAYOID};
	static MrStatement *lock = NULL;
	static MrStatement *strike = NULL;
	static MrStatement *ready = NULL;
	ArrayType *result;
	uint64 count;

	(void) keep_statement(&lock,
						  "SELECT FROM millrace.letter WHERE id = ANY ($1) ORDER BY id FOR UPDATE",
						  lengthof(types), types);
	(void) mr_statement_run(lock, &letters, NULL);
	SPI_freetuptable(SPI_tuptable);
	(void) keep_statement(&strike, "DELETE FROM millrace.letter_wait WHERE no = ANY ($1)",
						  lengthof(types), types);
	(void) mr_statement_run(strike, &waits, NULL);
	(void) keep_statement(&ready,
						  "SELECT l.id FROM millrace.letter l WHERE l.id = ANY ($1) "
						  "AND l.state = 'waiting' AND NOT EXISTS "
						  "(SELECT FROM millrace.letter_wait w WHERE w.letter_id = l.id)",
						  lengthof(types), types);
	count = mr_statement_run(ready, &letters, NULL);
	result = count == 0 ? NULL : take_numbers(count, 1);
	SPI_freetuptable(SPI_tuptable);
	return result;
}

ArrayType *
mr_waiting_strike(MrStream *stream, const MrWaitingIds *wanted, int limit)
{
	static const Oid types[] = {INT4ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT4OID, INT4OID};
	static MrStatement *select = NULL;
	Datum values[lengthof(types)];
	ArrayType *letters = NULL;
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	if (wanted->count > 0 && find_known(stream, wanted, values))
	{
		uint64 count;
		Datum waits;
		Datum waiting;

		values[3] = Int32GetDatum(stream->id);
		values[4] = Int32GetDatum(limit);
		(void) keep_statement(&select,
							  "SELECT w.no, w.letter_id "
							  "FROM unnest($1, $2, $3) AS a (dictionary_id, id, element) "
							  "JOIN millrace.letter_wait w ON w.stream_id = $4 "
							  "AND w.dictionary_id = a.dictionary_id AND w.id = a.id "
							  "AND w.element IS NOT DISTINCT FROM a.element LIMIT $5",
							  lengthof(types), types);
		count = mr_statement_run(select, values, NULL);
		waits = PointerGetDatum(take_numbers(count, 1));
		waiting = PointerGetDatum(take_numbers(count, 2));
		SPI_freetuptable(SPI_tuptable);
		letters = strike(waits, waiting);
	}
	mr_run_back(&saved);
	return letters;
}
