/*
 * message.c
 *	  Rows of a sink on their way into the outbox.
 *
 * A row is named by its key as text, which SQL turns back into values: so the rows of a batch, those for which it is time and those that
 * the sink has sent before are all asked for in one way.
 */
#include "postgres.h"

#include "alert/rule.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "miscadmin.h"
#include "sink/message.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"

/* Both stand in indexes. */
#define LONGEST_KEY 2000

/* Of a sink that fails for so many rows at once, not each row's failure is recorded: it is suspended. */
#define MANY_FAILURES 1000

typedef struct Failure
{
	char *object;
	int sqlstate;
	char *text;
} Failure;

/* ---- errors -------------------------------------------------------------------------------------------- */

void
mr_sink_suspend(MrSink *sink, const char *reason, int sqlstate)
{
	sink->reason = MemoryContextStrdup(GetMemoryChunkContext(sink), reason);
	sink->sqlstate = sqlstate;
}

/* Runs a statement of ours whose rows nobody reads; as the extension's owner. */
void
mr_sink_run(MrStatement *statement, Datum *arguments)
{
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	(void) mr_statement_run(statement, arguments, NULL);
	SPI_finish();
	mr_run_back(&saved);
}

MrStatement *
mr_sink_statement(const char *sql, int nargs, const Oid *types)
{
	MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);
	MrStatement *statement = mr_statement_create(sql, nargs, types);

	MemoryContextSwitchTo(previous);
	return statement;
}

/* Does the sink send?  Notes why it does not, when that is not known yet. */
bool
mr_sink_is_sending(MrSink *sink)
{
	static const Oid types[] = {INT4OID, TEXTOID, TEXTOID};
	static MrStatement *statement = NULL;
	Datum arguments[lengthof(types)];

	if (sink->suspended || sink->staging == NULL)
		return false;
	if (sink->reason == NULL)
		return true;
	if (statement == NULL)
		statement = mr_sink_statement("SELECT millrace_internal.suspend_sink($1, $2, $3)",
									  lengthof(types), types);
	/* Each time: this transaction may have to be done again. */
	arguments[0] = Int32GetDatum(sink->base.id);
	arguments[1] = CStringGetTextDatum(sink->reason);
	arguments[2] = CStringGetTextDatum(unpack_sql_state(sink->sqlstate));
	mr_sink_run(statement, arguments);
	return false;
}

/* Adds a row that has an error; false when it is not the row's fault, or there are too many: the sink is suspended. */
static bool
note_failure(MrSink *sink, List **failures, char *object, const ErrorData *error)
{
	Failure *failure;

	if (object == NULL || !mr_rule_error_of_data(error) || list_length(*failures) >= MANY_FAILURES)
	{
		mr_sink_suspend(sink, error->message, error->sqlerrcode);
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
		statement = mr_sink_statement("SELECT millrace_internal.sink_fail($1, $2, $3, $4)",
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
	mr_sink_run(statement, arguments);
}

/* ---- keys ---------------------------------------------------------------------------------------------- */

void
mr_sink_add_key(MrSinkKeys *keys, Datum *values, bool *nulls)
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

/* One attempt to name rows. */
typedef struct Naming
{
	MrSink *sink;
	const MrSinkKeys *keys;
	int at; /* which key it is */
	int n;
	MrSinkRow *rows;
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
		MrSinkRow *row = &naming->rows[naming->n];

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
	return strcmp(((const MrSinkRow *) left)->object, ((const MrSinkRow *) right)->object);
}

/* Rows by their keys as texts, sorted, each once; *last is the object of the last key.  -1: the sink is suspended. */
int
mr_sink_name_rows(MrSink *sink, const MrSinkKeys *keys, MrSinkRow **rows, char **last)
{
	Naming naming = {.sink = sink, .keys = keys};
	List *failures = NIL;
	ErrorData *error;
	int n = 0;

	naming.rows = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(MrSinkRow) * (keys->n + 1));
	while ((error = mr_rule_try(name_step, &naming, sink->base.owner, sink->staging->timezone)) !=
		   NULL)
	{
		if (!note_failure(sink, &failures, naming.object, error))
			return -1;
		naming.at++;
	}
	ExecClearTuple(sink->slot);
	write_failures(sink, failures);
	qsort(naming.rows, naming.n, sizeof(MrSinkRow), compare_rows);
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
bool
mr_sink_object_has_null(const char *object)
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
add_found(MrSinkFound *found, char *object, char *key, bool there, char *message)
{
	if (found->n == found->capacity)
	{
		found->capacity = Max(found->capacity * 2, MR_SINK_CHUNK);
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
	const MrSinkRow *rows;
	int n;
	bool gone; /* which are not there any more; else all with their messages */
	MrSinkFound *found;
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
read_rows(MrSink *sink, const MrSinkRow *rows, int n, MrSinkFound *found, List **failures)
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

ErrorData *
mr_sink_find_gone(MrSink *sink, const MrSinkRow *rows, int n, MrSinkFound *found)
{
	Reading reading = {sink, rows, n, true, found};

	return mr_rule_try(read_step, &reading, sink->base.owner, sink->staging->timezone);
}

/* ---- sending ------------------------------------------------------------------------------------------- */

/* Rows on their way. */
typedef struct Sending
{
	MrSink *sink;
	MrSinkFound *found;
	MrSinkCause cause;
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
	MrSinkFound *found = sending->found;
	Datum *there = palloc(sizeof(Datum) * found->n);
	Datum arguments[lengthof(types)];

	if (take == NULL)
		take = mr_sink_statement(
			"SELECT channel_id, key, group_by, alert_id, message, not_after, sink_id, object "
			"FROM millrace_internal.sink_take($1, $2, $3, $4, $5, $6)",
			lengthof(types), types);
	if (compare == NULL)
		compare =
			mr_sink_statement("SELECT millrace_internal.sink_compare($1, $2, $3, $4, $5) WHERE $6",
							  lengthof(types), types);
	for (int i = 0; i < found->n; i++)
		there[i] = BoolGetDatum(found->there[i]);
	arguments[0] = Int32GetDatum(sending->sink->base.id);
	arguments[1] = mr_rule_text_array(found->objects, found->n);
	arguments[2] = mr_rule_text_array(found->keys, found->n);
	arguments[3] = PointerGetDatum(
		construct_array(there, found->n, BOOLOID, sizeof(bool), true, TYPALIGN_CHAR));
	arguments[4] = mr_rule_text_array(found->messages, found->n);
	if (sending->cause == MR_SINK_SEEN && sending->sink->delayed)
	{
		arguments[5] = BoolGetDatum(true);
		mr_sink_run(compare, arguments);
		return;
	}
	arguments[5] = BoolGetDatum(sending->cause == MR_SINK_CHANGED);
	mr_rule_send(take, arguments);
	sending->sink->base.written += found->n;
}

/* Whatever cannot be written suspends the sink. */
bool
mr_sink_take(MrSink *sink, MrSinkFound *found, MrSinkCause cause)
{
	Sending sending = {sink, found, cause};
	ErrorData *error = NULL;

	if (found->n > 0)
		error = mr_rule_try(take_step, &sending, InvalidOid, NULL);
	if (error != NULL)
		mr_sink_suspend(sink, error->message, error->sqlerrcode);
	return error == NULL;
}

/* Makes the messages of rows, chunk by chunk. */
void
mr_sink_send(MrSink *sink, const MrSinkRow *rows, int n, MrSinkCause cause)
{
	MemoryContext previous = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(previous, "millrace sink",
												  ALLOCSET_DEFAULT_SIZES);
	bool going = true;

	MemoryContextSwitchTo(context);
	for (int from = 0; going && from < n; from += MR_SINK_CHUNK)
	{
		MrSinkFound found = {0};
		List *failures = NIL;

		CHECK_FOR_INTERRUPTS();
		going = read_rows(sink, rows + from, Min(MR_SINK_CHUNK, n - from), &found, &failures) &&
				mr_sink_take(sink, &found, cause);
		write_failures(sink, failures);
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
	(void) mr_sink_is_sending(sink);
}

/* Notes that rows were changed. */
void
mr_sink_delay(const MrSink *sink, const MrSinkRow *rows, int n)
{
	static const Oid types[] = {INT4OID, TEXTARRAYOID, TEXTARRAYOID};
	static MrStatement *statement = NULL;
	char **objects = palloc(sizeof(char *) * Max(n, 1));
	char **keys = palloc(sizeof(char *) * Max(n, 1));
	Datum arguments[lengthof(types)];

	if (statement == NULL)
		statement = mr_sink_statement("SELECT millrace_internal.sink_wait($1, $2, $3)",
									  lengthof(types), types);
	for (int i = 0; i < n; i++)
	{
		objects[i] = rows[i].object;
		keys[i] = rows[i].key;
	}
	arguments[0] = Int32GetDatum(sink->base.id);
	arguments[1] = mr_rule_text_array(objects, n);
	arguments[2] = mr_rule_text_array(keys, n);
	mr_sink_run(statement, arguments);
}

/* Notes what erase() is to take out of the outbox. */
void
mr_sink_erase(const MrSink *sink, const MrSinkRow *rows, int n)
{
	static const Oid types[] = {INT4OID, TEXTARRAYOID};
	static MrStatement *statement = NULL;
	char **objects = palloc(sizeof(char *) * n);
	Datum arguments[lengthof(types)];

	if (statement == NULL)
		statement = mr_sink_statement("SELECT millrace_internal.erase_rows($1, $2)",
									  lengthof(types), types);
	for (int i = 0; i < n; i++)
		objects[i] = rows[i].object;
	arguments[0] = Int32GetDatum(sink->base.id);
	arguments[1] = mr_rule_text_array(objects, n);
	mr_sink_run(statement, arguments);
}
