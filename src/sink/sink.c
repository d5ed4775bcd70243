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
#include "sink/sink.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "vault/vault.h"

/* Rows whose messages one statement makes. */
#define CHUNK 1000

/* Rows that one tick sends at most, in chunks. */
#define TICK_CHUNKS 50

/* Both stand in indexes. */
#define LONGEST_KEY 2000

/* Of a sink that fails for so many rows at once, not each row's failure is recorded: it is suspended. */
#define MANY_FAILURES 1000

/* The phases of looking at all rows: a place begins with one of them. */
#define PLACE_ROWS 'r' /* rows of the source */
#define PLACE_KNOWN 'k' /* rows that the sink knows, which may be gone */

typedef struct MrSink
{
	MrTarget base;
	char *sink_name;
	MrStaging *staging; /* where its rows come from; NULL: another stream's */
	int32 mart_id; /* whose groups are its rows; 0: the staging table's are */
	MrTarget *mart; /* NULL: its stream does not keep it */
	bool delayed; /* at_most_every */
	bool suspended; /* it sends nothing, which is noted in millrace.sink */
	char *reason; /* it sends nothing, which is still to be noted: why */
	int sqlstate;
	Query *definition;

	int nkeys;
	Oid *types; /* of the source's key */
	AttrNumber *attnums; /* and where it is in the source's rows */
	FmgrInfo *outputs;
	MrExpression *key; /* of messages, over the source's key */
	ExprContext *context;
	TupleTableSlot *slot; /* what the expression sees */

	MrStatement *build; /* see sink_statements() */
	MrStatement *build_null;
	MrStatement *gone;
	MrStatement *gone_null;
	MrStatement *first;
	MrStatement *next; /* NULL: first lists all */
} MrSink;

/* Rows by the values of their keys. */
typedef struct Keys
{
	int n;
	int capacity;
	Datum **values;
	bool **nulls;
} Keys;

/* A row by its key as text. */
typedef struct Row
{
	char *object; /* a JSON list */
	char *key; /* of its messages */
	bool has_null;
} Row;

typedef struct Failure
{
	char *object;
	int sqlstate;
	char *text;
} Failure;

/* Rows as they are now. */
typedef struct Found
{
	int n;
	int capacity;
	char **objects;
	char **keys;
	bool *there;
	char **messages; /* JSON; NULL: none is to be sent */
} Found;

/* ---- errors -------------------------------------------------------------------------------------------- */

static void
suspend(MrSink *sink, const char *reason, int sqlstate)
{
	sink->reason = MemoryContextStrdup(GetMemoryChunkContext(sink), reason);
	sink->sqlstate = sqlstate;
}

/* Runs a statement of ours whose rows nobody reads; as the extension's owner. */
static void
run_quietly(MrStatement *statement, Datum *arguments)
{
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	(void) mr_statement_run(statement, arguments, NULL);
	SPI_finish();
	mr_run_back(&saved);
}

static MrStatement *
lasting_statement(const char *sql, int nargs, const Oid *types)
{
	MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);
	MrStatement *statement = mr_statement_create(sql, nargs, types);

	MemoryContextSwitchTo(previous);
	return statement;
}

/* Does the sink send?  Notes why it does not, when that is not known yet. */
static bool
is_sending(MrSink *sink)
{
	static const Oid types[] = {INT4OID, TEXTOID, TEXTOID};
	static MrStatement *statement = NULL;
	Datum arguments[lengthof(types)];

	if (sink->suspended || sink->staging == NULL)
		return false;
	if (sink->reason == NULL)
		return true;
	if (statement == NULL)
		statement = lasting_statement("SELECT millrace_internal.suspend_sink($1, $2, $3)",
									  lengthof(types), types);
	/* Each time: this transaction may have to be done again. */
	arguments[0] = Int32GetDatum(sink->base.id);
	arguments[1] = CStringGetTextDatum(sink->reason);
	arguments[2] = CStringGetTextDatum(unpack_sql_state(sink->sqlstate));
	run_quietly(statement, arguments);
	return false;
}

/* Adds a row that has an error; false when it is not the row's fault, or there are too many: the sink is suspended. */
static bool
note_failure(MrSink *sink, List **failures, char *object, const ErrorData *error)
{
	Failure *failure;

	if (object == NULL || !mr_rule_error_of_data(error) || list_length(*failures) >= MANY_FAILURES)
	{
		suspend(sink, error->message, error->sqlerrcode);
		return false;
	}
	failure = palloc(sizeof(Failure));
	failure->object = object;
	failure->sqlstate = error->sqlerrcode;
	failure->text = pstrdup(error->message);
	*failures = lappend(*failures, failure);
	return true;
}

static void
write_failures(const MrSink *sink, const List *failures)
{
	static const Oid types[] = {INT4OID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID};
	static MrStatement *statement = NULL;
	int n = list_length(failures);
	char **objects = palloc(sizeof(char *) * Max(n, 1));
	char **states = palloc(sizeof(char *) * Max(n, 1));
	char **texts = palloc(sizeof(char *) * Max(n, 1));
	Datum arguments[lengthof(types)];
	ListCell *lc;

	if (n == 0)
		return;
	if (statement == NULL)
		statement = lasting_statement("SELECT millrace_internal.sink_fail($1, $2, $3, $4)",
									  lengthof(types), types);
	foreach(lc, failures)
	{
		const Failure *failure = lfirst(lc);
		int i = foreach_current_index(lc);

		objects[i] = failure->object;
		states[i] = pstrdup(unpack_sql_state(failure->sqlstate));
		texts[i] = failure->text;
	}
	arguments[0] = Int32GetDatum(sink->base.id);
	arguments[1] = mr_rule_text_array(objects, n);
	arguments[2] = mr_rule_text_array(states, n);
	arguments[3] = mr_rule_text_array(texts, n);
	run_quietly(statement, arguments);
}

/* ---- keys ---------------------------------------------------------------------------------------------- */

static void
add_key(Keys *keys, Datum *values, bool *nulls)
{
	if (keys->n == keys->capacity)
	{
		keys->capacity = Max(keys->capacity * 2, 64);
		keys->values = keys->values == NULL
						   ? palloc(sizeof(Datum *) * keys->capacity)
						   : repalloc_huge(keys->values, sizeof(Datum *) * keys->capacity);
		keys->nulls = keys->nulls == NULL
						  ? palloc(sizeof(bool *) * keys->capacity)
						  : repalloc_huge(keys->nulls, sizeof(bool *) * keys->capacity);
	}
	keys->values[keys->n] = values;
	keys->nulls[keys->n++] = nulls;
}

/* Adds the key of a row of the staging table. */
static void
add_row(const MrSink *sink, Keys *keys, const Datum *values, const bool *nulls)
{
	Datum *key = palloc(sizeof(Datum) * Max(sink->nkeys, 1));
	bool *null = palloc(Max(sink->nkeys, 1));

	for (int k = 0; k < sink->nkeys; k++)
	{
		key[k] = values[sink->attnums[k] - 1];
		null[k] = nulls[sink->attnums[k] - 1];
	}
	add_key(keys, key, null);
}

/* The keys of rows that a batch has changed in the staging table. */
static void
collect_staged(const MrSink *sink, const MrStaged *staged, Keys *keys)
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
collect_groups(const MrSink *sink, const MrRows *groups, Keys *keys)
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
		add_key(keys, key, null);
	}
}

/* One attempt to name rows. */
typedef struct Naming
{
	MrSink *sink;
	const Keys *keys;
	int at; /* which key it is */
	int n;
	Row *rows;
	char *object; /* of the key that it is, once it is known */
} Naming;

/* The key's values as a JSON list of texts; numbers that are equal are one, however many zeros they have. */
static char *
object_text(MrSink *sink, const Datum *values, const bool *nulls, bool *has_null)
{
	StringInfoData text;

	*has_null = false;
	initStringInfo(&text);
	appendStringInfoChar(&text, '[');
	for (int k = 0; k < sink->nkeys; k++)
	{
		Datum value = values[k];

		if (k > 0)
			appendStringInfoString(&text, ", ");
		*has_null |= nulls[k];
		if (nulls[k])
		{
			appendStringInfoString(&text, "null");
			continue;
		}
		if (sink->types[k] == NUMERICOID)
			value = DirectFunctionCall1(numeric_trim_scale, value);
		escape_json(&text, OutputFunctionCall(&sink->outputs[k], value));
	}
	appendStringInfoChar(&text, ']');
	return text.data;
}

static void
check_length(const char *what, const char *text)
{
	if (strlen(text) > LONGEST_KEY)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("%s has %zu bytes, more than %d", what, strlen(text), LONGEST_KEY)));
}

/* As the sink's owner; goes on where it is. */
static void
name_step(void *argument)
{
	Naming *naming = argument;
	MrSink *sink = naming->sink;

	for (; naming->at < naming->keys->n; naming->at++)
	{
		const Datum *values = naming->keys->values[naming->at];
		const bool *nulls = naming->keys->nulls[naming->at];
		Row *row = &naming->rows[naming->n];

		mr_rule_progress();
		naming->object = NULL;
		naming->object = row->object = object_text(sink, values, nulls, &row->has_null);
		ResetExprContext(sink->context);
		ExecClearTuple(sink->slot);
		memset(sink->slot->tts_isnull, true, sink->slot->tts_tupleDescriptor->natts);
		for (int k = 0; k < sink->nkeys; k++)
		{
			sink->slot->tts_values[sink->attnums[k] - 1] = values[k];
			sink->slot->tts_isnull[sink->attnums[k] - 1] = nulls[k];
		}
		ExecStoreVirtualTuple(sink->slot);
		row->key = mr_rule_evaluate_text(sink->key, sink->context);
		if (row->key == NULL)
			ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
							errmsg("the key of the message is NULL")));
		check_length("the key of the message", row->key);
		check_length("the key of the row", row->object);
		naming->n++;
	}
}

static int
compare_rows(const void *left, const void *right)
{
	return strcmp(((const Row *) left)->object, ((const Row *) right)->object);
}

/* Rows by their keys as texts, sorted, each once; *last is the object of the last key.  -1: the sink is suspended. */
static int
name_rows(MrSink *sink, const Keys *keys, Row **rows, char **last)
{
	Naming naming = {.sink = sink, .keys = keys};
	List *failures = NIL;
	ErrorData *error;
	int n = 0;

	naming.rows = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(Row) * (keys->n + 1));
	while ((error = mr_rule_try(name_step, &naming, sink->base.owner, sink->staging->timezone)) !=
		   NULL)
	{
		if (!note_failure(sink, &failures, naming.object, error))
			return -1;
		naming.at++;
	}
	ExecClearTuple(sink->slot);
	write_failures(sink, failures);
	qsort(naming.rows, naming.n, sizeof(Row), compare_rows);
	for (int i = 0; i < naming.n; i++)
	{
		if (i == 0 || compare_rows(&naming.rows[n - 1], &naming.rows[i]) != 0)
			naming.rows[n++] = naming.rows[i];
	}
	*rows = naming.rows;
	if (last != NULL)
		*last = naming.object;
	return n;
}

/* Has an object a NULL in it?  Texts stand in quotes. */
static bool
object_has_null(const char *object)
{
	bool quoted = false;

	for (const char *p = object; *p != '\0'; p++)
	{
		if (quoted && *p == '\\')
			p++;
		else if (*p == '"')
			quoted = !quoted;
		else if (!quoted && *p == 'n')
			return true;
	}
	return false;
}

/* ---- messages ------------------------------------------------------------------------------------------ */

static void
add_found(Found *found, char *object, char *key, bool there, char *message)
{
	if (found->n == found->capacity)
	{
		found->capacity = Max(found->capacity * 2, CHUNK);
#define ENLARGE(array) \
	((array) = (array) == NULL ? palloc(sizeof(*(array)) * found->capacity) \
							   : repalloc(array, sizeof(*(array)) * found->capacity))
		ENLARGE(found->objects);
		ENLARGE(found->keys);
		ENLARGE(found->there);
		ENLARGE(found->messages);
#undef ENLARGE
	}
	found->objects[found->n] = object;
	found->keys[found->n] = key;
	found->there[found->n] = there;
	found->messages[found->n++] = message;
}

/* One attempt to read rows. */
typedef struct Reading
{
	MrSink *sink;
	const Row *rows;
	int n;
	bool gone; /* which are not there any more; else all with their messages */
	Found *found;
} Reading;

/* Reads those rows that have a NULL in their keys, or those that have none. */
static void
read_some(const Reading *reading, bool with_null, MemoryContext context)
{
	const MrSink *sink = reading->sink;
	char **objects = palloc(sizeof(char *) * reading->n);
	char **keys = palloc(sizeof(char *) * reading->n);
	Datum arguments[2];
	uint64 count;
	int n = 0;

	for (int i = 0; i < reading->n; i++)
	{
		if (reading->rows[i].has_null != with_null)
			continue;
		objects[n] = reading->rows[i].object;
		keys[n++] = reading->rows[i].key;
	}
	if (n == 0)
		return;
	arguments[0] = mr_rule_text_array(objects, n);
	arguments[1] = mr_rule_text_array(keys, n);
	count = mr_statement_run(reading->gone ? (with_null ? sink->gone_null : sink->gone)
										   : (with_null ? sink->build_null : sink->build),
							 arguments, NULL);
	MemoryContextSwitchTo(context);
	for (uint64 r = 0; r < count; r++)
	{
		bool isnull;
		bool there = !reading->gone && DatumGetBool(mr_sql_value(r, 3, &isnull));

		add_found(reading->found, mr_sql_text(r, 1), mr_sql_text(r, 2), there,
				  there ? mr_sql_text(r, 4) : NULL);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* As the sink's owner. */
static void
read_step(void *argument)
{
	MemoryContext context = CurrentMemoryContext;

	mr_rule_progress();
	SPI_connect();
	MemoryContextSwitchTo(context);
	read_some(argument, false, context);
	read_some(argument, true, context);
	SPI_finish();
	MemoryContextSwitchTo(context);
}

/* Reads rows; one that raises an error is found by halves, and left out.  False: the sink is suspended. */
static bool
read_rows(MrSink *sink, const Row *rows, int n, Found *found, List **failures)
{
	Reading reading = {sink, rows, n, false, found};
	int before = found->n;
	ErrorData *error = mr_rule_try(read_step, &reading, sink->base.owner, sink->staging->timezone);

	if (error == NULL)
		return true;
	found->n = before;
	/* Also when they took too long together. */
	if (n > 1 && (mr_rule_error_of_data(error) || error->sqlerrcode == ERRCODE_QUERY_CANCELED))
		return read_rows(sink, rows, n / 2, found, failures) &&
			   read_rows(sink, rows + n / 2, n - n / 2, found, failures);
	return note_failure(sink, failures, rows->object, error);
}

/* ---- sending ------------------------------------------------------------------------------------------- */

/* Why rows are looked at. */
typedef enum Cause
{
	CAUSE_CHANGE, /* a batch has changed them, or it is time */
	CAUSE_LOOK /* they may differ from what was sent */
} Cause;

/* Rows on their way. */
typedef struct Sending
{
	MrSink *sink;
	Found *found;
	Cause cause;
} Sending;

/* Notes how rows are, and puts what is to be sent into the outbox. */
static void
take_step(void *argument)
{
	static const Oid types[] = {INT4OID,      TEXTARRAYOID, TEXTARRAYOID,
								BOOLARRAYOID, TEXTARRAYOID, BOOLOID};
	static MrStatement *take = NULL;
	static MrStatement *compare = NULL;
	Sending *sending = argument;
	Found *found = sending->found;
	Datum *there = palloc(sizeof(Datum) * found->n);
	Datum arguments[lengthof(types)];

	if (take == NULL)
		take = lasting_statement("SELECT channel_id, key, group_by, alert_id, message, not_after "
								 "FROM millrace_internal.sink_take($1, $2, $3, $4, $5, $6)",
								 lengthof(types), types);
	if (compare == NULL)
		compare =
			lasting_statement("SELECT millrace_internal.sink_compare($1, $2, $3, $4, $5) WHERE $6",
							  lengthof(types), types);
	for (int i = 0; i < found->n; i++)
		there[i] = BoolGetDatum(found->there[i]);
	arguments[0] = Int32GetDatum(sending->sink->base.id);
	arguments[1] = mr_rule_text_array(found->objects, found->n);
	arguments[2] = mr_rule_text_array(found->keys, found->n);
	arguments[3] = PointerGetDatum(
		construct_array(there, found->n, BOOLOID, sizeof(bool), true, TYPALIGN_CHAR));
	arguments[4] = mr_rule_text_array(found->messages, found->n);
	if (sending->cause == CAUSE_LOOK && sending->sink->delayed)
	{
		arguments[5] = BoolGetDatum(true);
		run_quietly(compare, arguments);
		return;
	}
	arguments[5] = BoolGetDatum(sending->cause == CAUSE_CHANGE);
	mr_rule_send(take, arguments);
	sending->sink->base.written += found->n;
}

/* Whatever cannot be written suspends the sink. */
static bool
take(MrSink *sink, Found *found, Cause cause)
{
	Sending sending = {sink, found, cause};
	ErrorData *error = NULL;

	if (found->n > 0)
		error = mr_rule_try(take_step, &sending, InvalidOid, NULL);
	if (error != NULL)
		suspend(sink, error->message, error->sqlerrcode);
	return error == NULL;
}

/* Makes the messages of rows, chunk by chunk. */
static void
send_rows(MrSink *sink, const Row *rows, int n, Cause cause)
{
	MemoryContext previous = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(previous, "millrace sink",
												  ALLOCSET_DEFAULT_SIZES);
	bool going = true;

	MemoryContextSwitchTo(context);
	for (int from = 0; going && from < n; from += CHUNK)
	{
		Found found = {0};
		List *failures = NIL;

		CHECK_FOR_INTERRUPTS();
		going = read_rows(sink, rows + from, Min(CHUNK, n - from), &found, &failures) &&
				take(sink, &found, cause);
		write_failures(sink, failures);
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
	(void) is_sending(sink);
}

/* Notes that rows were changed. */
static void
delay_rows(const MrSink *sink, const Row *rows, int n)
{
	static const Oid types[] = {INT4OID, TEXTARRAYOID, TEXTARRAYOID};
	static MrStatement *statement = NULL;
	char **objects = palloc(sizeof(char *) * Max(n, 1));
	char **keys = palloc(sizeof(char *) * Max(n, 1));
	Datum arguments[lengthof(types)];

	if (statement == NULL)
		statement = lasting_statement("SELECT millrace_internal.sink_wait($1, $2, $3)",
									  lengthof(types), types);
	for (int i = 0; i < n; i++)
	{
		objects[i] = rows[i].object;
		keys[i] = rows[i].key;
	}
	arguments[0] = Int32GetDatum(sink->base.id);
	arguments[1] = mr_rule_text_array(objects, n);
	arguments[2] = mr_rule_text_array(keys, n);
	run_quietly(statement, arguments);
}

/* ---- looking at all rows ------------------------------------------------------------------------------- */

/* One attempt to list rows. */
typedef struct Listing
{
	MrSink *sink;
	const char *after; /* NULL: from the beginning */
	int limit;
	Keys *keys;
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
		add_key(listing->keys, values, nulls);
	}
	SPI_freetuptable(SPI_tuptable);
	SPI_finish();
	MemoryContextSwitchTo(context);
}

/* The next rows of the source; the place after them. */
static char *
look_at_rows(MrSink *sink, const char *after, int limit, int64 *nkeys)
{
	Keys keys = {0};
	Listing listing = {sink, after, limit, &keys};
	ErrorData *error = mr_rule_try(list_step, &listing, sink->base.owner, sink->staging->timezone);
	char *last = NULL;
	Row *rows;
	int n;

	if (error != NULL)
	{
		suspend(sink, error->message, error->sqlerrcode);
		(void) is_sending(sink);
		return NULL;
	}
	n = name_rows(sink, &keys, &rows, &last);
	send_rows(sink, rows, n, CAUSE_LOOK);
	if (sink->reason != NULL)
		return NULL;
	*nkeys = keys.n;
	if (sink->next != NULL && keys.n == limit)
		return psprintf("%c%s", PLACE_ROWS, last);
	return psprintf("%c", PLACE_KNOWN);
}

/* Rows that a statement of ours names by object and key, which stand in SPI_tuptable. */
static Row *
take_rows(uint64 count)
{
	Row *rows = palloc(sizeof(Row) * Max(count, 1));

	for (uint64 r = 0; r < count; r++)
	{
		rows[r].object = mr_sql_text(r, 1);
		rows[r].key = mr_sql_text(r, 2);
		rows[r].has_null = object_has_null(rows[r].object);
	}
	SPI_freetuptable(SPI_tuptable);
	return rows;
}

/* Runs a statement of ours that names rows; as the extension's owner. */
static Row *
our_rows(MrStatement *statement, Datum *arguments, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	MrRunAs saved;
	Row *rows;

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
	Found found = {0};
	ErrorData *error = NULL;
	Reading reading = {.sink = sink, .gone = true, .found = &found};
	Row *rows;
	int n;

	if (known == NULL)
		known = lasting_statement("SELECT r.object, r.key FROM millrace.sink_row r "
								  "WHERE r.sink_id = $1 AND r.object > $2 "
								  "ORDER BY r.object LIMIT $3",
								  lengthof(types), types);
	if (complete == NULL)
		complete = lasting_statement("UPDATE millrace.sink s SET complete = true "
									 "WHERE s.target_id = $1 AND NOT s.complete",
									 1, types);
	rows = our_rows(known, arguments, &n);
	for (int from = 0; error == NULL && from < n; from += CHUNK)
	{
		reading.rows = rows + from;
		reading.n = Min(CHUNK, n - from);
		error = mr_rule_try(read_step, &reading, sink->base.owner, sink->staging->timezone);
	}
	if (error != NULL)
		suspend(sink, error->message, error->sqlerrcode);
	if (error != NULL || !take(sink, &found, CAUSE_LOOK))
	{
		(void) is_sending(sink);
		return NULL;
	}
	if (n == limit)
		return psprintf("%c%s", PLACE_KNOWN, rows[n - 1].object);
	run_quietly(complete, arguments);
	return NULL;
}

static char *
sink_fill(MrTarget *target, const char *after, int limit, int64 *nkeys)
{
	MrSink *sink = (MrSink *) target;

	*nkeys = 0;
	/* A mart that is being filled is looked at when it is. */
	if (!is_sending(sink) || (sink->mart_id != 0 && (sink->mart == NULL || sink->mart->filling)))
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
		place = sink_fill(&sink->base, place, CHUNK, &nkeys);
	while (place != NULL);
}

static void
sink_apply(MrTarget *target, MrBatch *batch)
{
	MrSink *sink = (MrSink *) target;
	Keys keys = {0};
	Row *rows;
	int n;

	if (!is_sending(sink))
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
		if (sink->nkeys == 0)
			add_key(&keys, NULL, NULL);
		else if (known)
			collect_groups(sink, groups, &keys);
		else
		{
			look_at_mart(sink);
			return;
		}
	}
	if (keys.n == 0)
		return;
	n = name_rows(sink, &keys, &rows, NULL);
	if (n > 0 && sink->delayed)
		delay_rows(sink, rows, n);
	else if (n > 0)
		send_rows(sink, rows, n, CAUSE_CHANGE);
	(void) is_sending(sink);
}

static void
sink_tick(MrTarget *target, bool caught_up)
{
	static const Oid types[] = {INT4OID, INT4OID};
	static MrStatement *due = NULL;
	MrSink *sink = (MrSink *) target;
	Datum arguments[] = {Int32GetDatum(target->id), Int32GetDatum(CHUNK)};
	int n = CHUNK;

	if (!sink->delayed)
		return;
	if (due == NULL)
		due = lasting_statement("SELECT object, key FROM millrace_internal.sink_due($1, $2)",
								lengthof(types), types);
	for (int chunk = 0; chunk < TICK_CHUNKS && n == CHUNK && is_sending(sink); chunk++)
	{
		Row *rows = our_rows(due, arguments, &n);

		send_rows(sink, rows, n, CAUSE_CHANGE);
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
		suspend(sink, "its owner does not exist any more", ERRCODE_UNDEFINED_OBJECT);
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
		suspend(sink, error->message, error->sqlerrcode);
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
