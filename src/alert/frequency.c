/*
 * frequency.c
 *	  Rules of kind "frequency": much of something within a time, for one key.
 *
 * An event is an object at its time.  A new version of the object takes its place, a delete removes it; an alert that has
 * been made stays.  A window ends at an event and goes back for `within`, without its beginning.  It fires when it holds enough,
 * unless it overlaps a window of its key that has fired before.
 *
 * Versions are taken one by one as they come, also those that a later one of the same batch supersedes: so the borders of
 * batches change nothing.  Events that are older than the newest one of their key by more than within and lateness are forgotten; one that
 * comes later than that is counted, and changes nothing.  Two workers may hold events of one key: its row is locked first, and then read.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "alert/rule.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "stage/mapping.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "vault/vault.h"

/* What an event is in the state of its key: so many JSON values. */
#define EVENT_VALUES 4

typedef enum Measure
{
	COUNT_EVENTS,
	COUNT_DISTINCT,
	SUM
} Measure;

typedef struct MrWindow
{
	Measure measure;
	int64 count; /* that make it fire */
	Datum at_least; /* the sum that does */
	int64 within; /* microseconds */
	int64 lateness;
	int64 max_ahead;
} MrWindow;

typedef struct Event
{
	TimestampTz time;
	char *object;
	int element;
	char *value; /* or NULL */
} Event;

/* What is known of a key. */
typedef struct KeyState
{
	char *key; /* of the hash table */
	int nevents;
	int capacity;
	Event *events; /* by time, object, element */
	int nalerted;
	int alerted_capacity;
	TimestampTz *alerted; /* ends of windows */
	TimestampTz watermark;
	bool changed;
} KeyState;

/* An object of the batch. */
typedef struct Object
{
	char *name; /* of the hash table */
	bool accepted; /* its newest version of the batch is newer than what was staged */
	bool known; /* it may have events from before */
	const MrVersion *last; /* the newest one that has been taken so far */
	List *keys; /* char *: under which it may have events */
} Object;

/* An event that a version tells. */
typedef struct Told
{
	Event event;
	char *key;
	char *details;
	char *group_by;
} Told;

/* A version, and what it tells. */
typedef struct Telling
{
	const MrVersion *version;
	Object *object;
	List *told; /* Told * */
} Telling;

/* A look at one batch. */
typedef struct Looking
{
	MrRule *rule;
	MrBatch *batch;
	const MrStaged *staged;
	HTAB *objects;
	HTAB *keys;
	Telling *tellings;
	int version; /* where the first pass is */
	int row;
	int old_row; /* and the second */
	List *failures;
	List *hits; /* MrHit * */
	int64 late;
} Looking;

/* ---- hash tables by text ------------------------------------------------------------------------------- */

static uint32
hash_text(const void *key, Size size)
{
	const char *text = *(char *const *) key;

	return hash_bytes((const unsigned char *) text, (int) strlen(text));
}

static int
compare_text(const void *left, const void *right, Size size)
{
	return strcmp(*(char *const *) left, *(char *const *) right);
}

static HTAB *
make_table(const char *name, Size entry, MemoryContext context)
{
	HASHCTL control = {.keysize = sizeof(char *),
					   .entrysize = entry,
					   .hash = hash_text,
					   .match = compare_text,
					   .hcxt = context};

	return hash_create(name, 1024, &control,
					   HASH_ELEM | HASH_FUNCTION | HASH_COMPARE | HASH_CONTEXT);
}

static KeyState *
get_key(Looking *looking, char *key)
{
	bool found;
	KeyState *state = hash_search(looking->keys, &key, HASH_ENTER, &found);

	if (!found)
	{
		memset(state, 0, sizeof(KeyState));
		state->key = key;
		state->watermark = DT_NOBEGIN;
	}
	return state;
}

static Object *
get_object(Looking *looking, char *name)
{
	bool found;
	Object *object = hash_search(looking->objects, &name, HASH_ENTER, &found);

	if (!found)
	{
		memset(object, 0, sizeof(Object));
		object->name = name;
	}
	return object;
}

/* ---- what the batch tells ------------------------------------------------------------------------------ */

static void
show_row(Looking *looking, Datum *values, bool *nulls)
{
	mr_rule_show_row(looking->rule->row, looking->rule->context, values, nulls);
}

/* The event of the row, if it makes one. */
static Told *
read_row(Looking *looking, const MrVersion *version, const MrRow *row)
{
	MrRule *rule = looking->rule;
	ExprContext *context = rule->context;
	Told *told;

	if (rule->predicate != NULL && !mr_expression_true(rule->predicate, context))
		return NULL;
	told = palloc0(sizeof(Told));
	told->key = mr_rule_key_text(rule->key, context);
	/* Those who are not named are not one and the same. */
	if (told->key == NULL)
		return NULL;
	told->event.value = mr_rule_evaluate_text(rule->value, context);
	if (rule->value != NULL && told->event.value == NULL)
		return NULL;
	told->event.time = mr_rule_row_time(rule, version, context);
	told->event.element = row->element;
	told->details = mr_rule_evaluate_text(rule->details, context);
	told->group_by = mr_rule_evaluate_text(rule->group_by, context);
	return told;
}

/* Goes on over the versions from where it is. */
static void
read_versions_step(void *argument)
{
	Looking *looking = argument;
	const MrStaged *staged = looking->staged;

	for (; looking->version < staged->nversions; looking->version++, looking->row = 0)
	{
		const MrVersion *version = &staged->versions[looking->version];
		Telling *telling = &looking->tellings[looking->version];

		mr_rule_progress();
		if (telling->object == NULL)
		{
			MrRow empty;

			telling->version = version;
			if (version->nrows == 0)
				empty = mr_version_empty_row(staged->staging, version);
			else
				empty = version->rows[0];
			show_row(looking, empty.values, empty.nulls);
			telling->object = get_object(
				looking, mr_rule_evaluate_text(looking->rule->object, looking->rule->context));
			telling->object->accepted |= version->accepted || looking->batch->again;
			telling->object->known |= version->known || looking->batch->again;
		}
		for (; looking->row < version->nrows; looking->row++)
		{
			const MrRow *row = &version->rows[looking->row];
			Told *told;

			show_row(looking, row->values, row->nulls);
			told = read_row(looking, version, row);
			if (told == NULL)
				continue;
			told->event.object = telling->object->name;
			telling->told = lappend(telling->told, told);
			telling->object->keys = lappend(telling->object->keys, told->key);
		}
	}
}

/* Objects that had another key before have events there. */
static void
read_old_rows_step(void *argument)
{
	Looking *looking = argument;
	const MrStaged *staged = looking->staged;
	TupleDesc desc = staged->staging->desc;
	Datum *values = palloc(sizeof(Datum) * desc->natts);
	bool *nulls = palloc(desc->natts);

	for (; looking->old_row < staged->nold; looking->old_row++)
	{
		ExprContext *context = looking->rule->context;
		char *key;
		char *name;
		Object *object;

		mr_rule_progress();
		heap_deform_tuple(staged->old_rows[looking->old_row], desc, values, nulls);
		show_row(looking, values, nulls);
		key = mr_rule_key_text(looking->rule->key, context);
		name = mr_rule_key_text(looking->rule->object, context);
		object = hash_search(looking->objects, &name, HASH_FIND, NULL);
		if (key != NULL && object != NULL)
			object->keys = lappend(object->keys, key);
	}
}

/* Reads all of the batch; false when the rule is suspended by that. */
static bool
read_batch(Looking *looking)
{
	MrRule *rule = looking->rule;
	const char *timezone = rule->staging->timezone;
	ErrorData *error = mr_rule_check_privileges(rule);

	while (error == NULL &&
		   (error = mr_rule_try(read_versions_step, looking, rule->base.owner, timezone)) != NULL)
	{
		const MrVersion *version = &looking->staged->versions[looking->version];

		if (!mr_rule_note_failure(
				&looking->failures, version,
				looking->row < version->nrows ? version->rows[looking->row].element : 0, error))
			break;
		error = NULL;
		looking->row++;
	}
	/* An old row that cannot be judged has made no event. */
	while (error == NULL &&
		   (error = mr_rule_try(read_old_rows_step, looking, rule->base.owner, timezone)) != NULL &&
		   mr_rule_error_of_data(error))
	{
		error = NULL;
		looking->old_row++;
	}
	if (error != NULL)
		mr_rule_suspend(rule, error);
	return error == NULL;
}

/* ---- the state of keys --------------------------------------------------------------------------------- */

static int
compare_events(const Event *l, const Event *r)
{
	int order;

	if (l->time != r->time)
		return l->time < r->time ? -1 : 1;
	order = strcmp(l->object, r->object);
	return order != 0 ? order : l->element - r->element;
}

/* Puts an event where it belongs; returns its place. */
static int
insert_event(KeyState *state, const Event *event)
{
	int place = state->nevents;

	if (state->nevents == state->capacity)
	{
		state->capacity = Max(8, state->capacity * 2);
		state->events = state->events == NULL
							? palloc(sizeof(Event) * state->capacity)
							: repalloc_huge(state->events, sizeof(Event) * state->capacity);
	}
	while (place > 0 && compare_events(event, &state->events[place - 1]) < 0)
		place--;
	memmove(&state->events[place + 1], &state->events[place],
			sizeof(Event) * (state->nevents - place));
	state->events[place] = *event;
	state->nevents++;
	return place;
}

static void
add_alerted(KeyState *state, TimestampTz end)
{
	if (state->nalerted == state->alerted_capacity)
	{
		state->alerted_capacity = Max(4, state->alerted_capacity * 2);
		state->alerted = state->alerted == NULL
							 ? palloc(sizeof(TimestampTz) * state->alerted_capacity)
							 : repalloc(state->alerted,
										sizeof(TimestampTz) * state->alerted_capacity);
	}
	state->alerted[state->nalerted++] = end;
}

static void
read_state(KeyState *state, const char *text)
{
	Jsonb *json = mr_vault_json(text);
	Jsonb *events = mr_vault_json_member(json, "events");
	Jsonb *alerted = mr_vault_json_member(json, "alerted");
	char *watermark = mr_vault_json_text(mr_vault_json_member(json, "watermark"));
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	char *values[EVENT_VALUES];
	JsonbValue value;
	int n = 0;

	if (watermark != NULL)
		state->watermark = strtoll(watermark, NULL, 10);
	for (int i = 0; alerted != NULL && i < mr_vault_json_length(alerted); i++)
		add_alerted(state,
					strtoll(mr_vault_json_text(mr_vault_json_element(alerted, i)), NULL, 10));
	if (events == NULL)
		return;
	iterator = JsonbIteratorInit(&events->root);
	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		Event event;

		if (token != WJB_ELEM)
			continue;
		values[n++] = value.type == jbvString ? pnstrdup(value.val.string.val, value.val.string.len)
					  : value.type == jbvNumeric
						  ? DatumGetCString(DirectFunctionCall1(numeric_out,
																NumericGetDatum(value.val.numeric)))
						  : NULL;
		if (n < EVENT_VALUES)
			continue;
		n = 0;
		event.time = strtoll(values[0], NULL, 10);
		event.object = values[1];
		event.element = atoi(values[2]);
		event.value = values[3];
		(void) insert_event(state, &event);
	}
}

static char *
state_text(const KeyState *state)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfo(&text, "{\"watermark\": " INT64_FORMAT ", \"alerted\": [", state->watermark);
	for (int i = 0; i < state->nalerted; i++)
		appendStringInfo(&text, "%s" INT64_FORMAT, i > 0 ? ", " : "", state->alerted[i]);
	appendStringInfoString(&text, "], \"events\": [");
	for (int i = 0; i < state->nevents; i++)
	{
		const Event *event = &state->events[i];

		appendStringInfo(&text, "%s[" INT64_FORMAT ", ", i > 0 ? ", " : "", event->time);
		escape_json(&text, event->object);
		appendStringInfo(&text, ", %d, ", event->element);
		if (event->value != NULL)
			escape_json(&text, event->value);
		else
			appendStringInfoString(&text, "null");
		appendStringInfoChar(&text, ']');
	}
	appendStringInfoString(&text, "]}");
	return text.data;
}

static int
compare_keys(const void *left, const void *right)
{
	return strcmp(*(char *const *) left, *(char *const *) right);
}

/* Locks the rows of all keys, in their order, and reads what others have written there (C4). */
static void
lock_states(Looking *looking)
{
	static const Oid types[] = {INT4OID, TEXTARRAYOID};
	static MrStatement *insert = NULL;
	static MrStatement *select = NULL;
	int n = (int) hash_get_num_entries(looking->keys);
	char **keys = palloc(sizeof(char *) * Max(n, 1));
	Datum arguments[lengthof(types)];
	HASH_SEQ_STATUS scan;
	KeyState *state;
	uint64 found;
	int i = 0;

	if (n == 0)
		return;
	if (insert == NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);

		insert = mr_statement_create("INSERT INTO millrace.rule_state (rule_id, key, state) "
									 "SELECT $1, k, '{}' FROM unnest($2) AS u (k) "
									 "ON CONFLICT DO NOTHING",
									 lengthof(types), types);
		select = mr_statement_create("SELECT key, state::text FROM millrace.rule_state "
									 "WHERE rule_id = $1 AND key = ANY ($2) "
									 "ORDER BY key FOR NO KEY UPDATE",
									 lengthof(types), types);
		MemoryContextSwitchTo(previous);
	}
	hash_seq_init(&scan, looking->keys);
	while ((state = hash_seq_search(&scan)) != NULL)
		keys[i++] = state->key;
	qsort(keys, n, sizeof(char *), compare_keys);
	arguments[0] = Int32GetDatum(looking->rule->base.id);
	arguments[1] = mr_rule_text_array(keys, n);
	/* One worker alone need not hold the place of a new key. */
	if (looking->batch->stream->workers > 1)
		(void) mr_statement_run(insert, arguments, NULL);
	found = mr_statement_run(select, arguments, NULL);
	for (uint64 r = 0; r < found; r++)
	{
		char *key = mr_sql_text(r, 1);

		read_state(hash_search(looking->keys, &key, HASH_FIND, NULL), mr_sql_text(r, 2));
	}
	SPI_freetuptable(SPI_tuptable);
}

static void
write_states(Looking *looking)
{
	static const Oid types[] = {INT4OID, TEXTARRAYOID, TEXTARRAYOID, TIMESTAMPTZARRAYOID};
	static MrStatement *upsert = NULL;
	int n = (int) hash_get_num_entries(looking->keys);
	char **keys = palloc(sizeof(char *) * Max(n, 1));
	char **states = palloc(sizeof(char *) * Max(n, 1));
	Datum *times = palloc(sizeof(Datum) * Max(n, 1));
	Datum arguments[lengthof(types)];
	HASH_SEQ_STATUS scan;
	KeyState *state;

	if (upsert == NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);

		upsert = mr_statement_create(
			"INSERT INTO millrace.rule_state AS r (rule_id, key, state, at) SELECT $1, k, s::json, t "
			"FROM unnest($2, $3, $4) AS u (k, s, t) ORDER BY k COLLATE \"C\" "
			"ON CONFLICT (rule_id, key) DO UPDATE SET state = EXCLUDED.state, at = EXCLUDED.at",
			lengthof(types), types);
		MemoryContextSwitchTo(previous);
	}
	n = 0;
	hash_seq_init(&scan, looking->keys);
	while ((state = hash_seq_search(&scan)) != NULL)
	{
		if (!state->changed)
			continue;
		keys[n] = state->key;
		states[n] = state_text(state);
		times[n++] = TimestampTzGetDatum(state->watermark);
	}
	if (n == 0)
		return;
	arguments[0] = Int32GetDatum(looking->rule->base.id);
	arguments[1] = mr_rule_text_array(keys, n);
	arguments[2] = mr_rule_text_array(states, n);
	arguments[3] = PointerGetDatum(
		construct_array(times, n, TIMESTAMPTZOID, sizeof(TimestampTz), true, TYPALIGN_DOUBLE));
	(void) mr_statement_run(upsert, arguments, NULL);
}

/* ---- windows ------------------------------------------------------------------------------------------- */

/* Does the window of the events [first, last] hold enough?  *measured says how much, as JSON. */
static bool
is_enough(const MrWindow *window, const KeyState *state, int first, int last, char **measured)
{
	int n = last - first + 1;

	if (window->measure == COUNT_EVENTS)
	{
		*measured = psprintf("\"count\": %d", n);
		return n >= window->count;
	}
	if (window->measure == SUM)
	{
		Datum sum = NumericGetDatum(int64_to_numeric(0));

		for (int i = first; i <= last; i++)
			sum = DirectFunctionCall2(
				numeric_add, sum,
				DirectFunctionCall3(numeric_in, CStringGetDatum(state->events[i].value),
									ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
		*measured = psprintf("\"sum\": %s", DatumGetCString(DirectFunctionCall1(numeric_out, sum)));
		return DatumGetBool(DirectFunctionCall2(numeric_ge, sum, window->at_least));
	}
	else
	{
		char **values = palloc(sizeof(char *) * n);
		int distinct = 0;

		for (int i = 0; i < n; i++)
			values[i] = state->events[first + i].value;
		qsort(values, n, sizeof(char *), compare_keys);
		for (int i = 0; i < n; i++)
			distinct += i == 0 || strcmp(values[i - 1], values[i]) != 0;
		pfree(values);
		*measured = psprintf("\"distinct\": %d", distinct);
		return distinct >= window->count;
	}
}

/* Does a window that ends then overlap one that has fired? */
static bool
overlaps_alerted(const MrWindow *window, const KeyState *state, TimestampTz end)
{
	for (int i = 0; i < state->nalerted; i++)
	{
		if (end - state->alerted[i] < window->within && state->alerted[i] - end < window->within)
			return true;
	}
	return false;
}

static void
fire(Looking *looking, KeyState *state, int first, int last, const char *measured,
	 const Telling *telling, const Told *told)
{
	const Event *begin = &state->events[first];
	TimestampTz end = state->events[last].time;
	MrHit *hit = palloc0(sizeof(MrHit));

	hit->version = telling->version;
	hit->key = state->key;
	/* An object may come again at another time. */
	hit->occurrence = psprintf("%s@%s/%d@%s", state->key, begin->object, begin->element,
							   timestamptz_to_str(begin->time));
	hit->time = end;
	hit->details = psprintf(
		"{%s, \"from\": \"%s\", \"to\": \"%s\"%s%s}", measured,
		pstrdup(timestamptz_to_str(begin->time)), pstrdup(timestamptz_to_str(end)),
		told->details == NULL ? "" : ", \"last\": ", told->details == NULL ? "" : told->details);
	hit->group_by = told->group_by;
	for (int i = first; i <= last; i++)
	{
		if (i == first || strcmp(state->events[i].object, state->events[i - 1].object) != 0)
			hit->objects = mr_rule_add_object(hit->objects, state->events[i].object);
	}
	hit->history = mr_rule_is_history(looking->rule, looking->batch, telling->version);
	looking->hits = lappend(looking->hits, hit);
	add_alerted(state, end);
}

/* Looks at the windows in which the event at that place is. */
static void
look_at_windows(Looking *looking, KeyState *state, int place, const Telling *telling,
				const Told *told)
{
	const MrWindow *window = looking->rule->window;
	TimestampTz time = state->events[place].time;
	int first = place;

	while (first > 0 && state->events[first - 1].time > time - window->within)
		first--;
	for (int last = place;
		 last < state->nevents && state->events[last].time < time + window->within; last++)
	{
		TimestampTz end = state->events[last].time;
		char *measured;

		/* All events of one time are in. */
		if (last + 1 < state->nevents && state->events[last + 1].time == end)
			continue;
		while (state->events[first].time <= end - window->within)
			first++;
		if (!overlaps_alerted(window, state, end) &&
			is_enough(window, state, first, last, &measured))
			fire(looking, state, first, last, measured, telling, told);
	}
}

/* Forgets what is too old to matter. */
static void
forget_old(const MrWindow *window, KeyState *state, TimestampTz horizon)
{
	int first = 0;
	int kept = 0;

	while (first < state->nevents && state->events[first].time <= horizon)
		first++;
	if (first > 0)
		memmove(state->events, &state->events[first], sizeof(Event) * (state->nevents - first));
	state->nevents -= first;
	for (int i = 0; i < state->nalerted; i++)
	{
		if (state->alerted[i] > horizon - window->within)
			state->alerted[kept++] = state->alerted[i];
	}
	state->nalerted = kept;
}

static TimestampTz
horizon_of(const MrWindow *window, const KeyState *state)
{
	if (TIMESTAMP_IS_NOBEGIN(state->watermark))
		return DT_NOBEGIN;
	return state->watermark - window->within - window->lateness;
}

static void
add_event(Looking *looking, const Telling *telling, Told *told)
{
	const MrWindow *window = looking->rule->window;
	KeyState *state = get_key(looking, told->key);
	int place;

	if (told->event.time <= horizon_of(window, state))
	{
		looking->late++;
		return;
	}
	place = insert_event(state, &told->event);
	state->changed = true;
	look_at_windows(looking, state, place, telling, told);
	state->watermark = Max(state->watermark,
						   Min(told->event.time, GetCurrentTimestamp() + window->max_ahead));
	forget_old(window, state, horizon_of(window, state));
}

/* A newer version takes the place of what the object's older ones have told. */
static void
remove_object(Looking *looking, const Object *object)
{
	ListCell *lc;

	foreach(lc, object->keys)
	{
		KeyState *state = get_key(looking, lfirst(lc));
		int kept = 0;

		for (int i = 0; i < state->nevents; i++)
		{
			if (strcmp(state->events[i].object, object->name) != 0)
				state->events[kept++] = state->events[i];
		}
		state->changed |= kept < state->nevents;
		state->nevents = kept;
	}
}

/* Takes the versions one by one, as if each were a batch of its own. */
static void
take_versions(Looking *looking)
{
	const MrStaging *staging = looking->rule->staging;

	for (int v = 0; v < looking->staged->nversions; v++)
	{
		Telling *telling = &looking->tellings[v];
		Object *object = telling->object;
		ListCell *lc;

		if (object == NULL || !object->accepted || telling->version->stale ||
			(object->last != NULL &&
			 mr_version_compare(staging, telling->version, object->last) <= 0))
			continue;
		if (object->known || object->last != NULL)
			remove_object(looking, object);
		object->last = telling->version;
		foreach(lc, telling->told)
			add_event(looking, telling, lfirst(lc));
	}
}

static void
count_late(const Looking *looking)
{
	if (looking->late > 0)
		(void) mr_sql("UPDATE millrace.rule SET late_dropped = late_dropped + " INT64_FORMAT
					  " WHERE target_id = %d",
					  looking->late, looking->rule->base.id);
}

static void
take_batch(void *argument)
{
	Looking *looking = argument;
	MemoryContext context = CurrentMemoryContext;
	HASH_SEQ_STATUS scan;
	Object *object;
	MrHit **hits;
	ListCell *lc;
	MrRunAs saved;
	int n = 0;

	hash_seq_init(&scan, looking->objects);
	while ((object = hash_seq_search(&scan)) != NULL)
	{
		if (!object->accepted)
			continue;
		foreach(lc, object->keys)
			(void) get_key(looking, lfirst(lc));
	}
	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	MemoryContextSwitchTo(context);
	lock_states(looking);
	take_versions(looking);
	write_states(looking);
	count_late(looking);
	SPI_finish();
	mr_run_back(&saved);
	MemoryContextSwitchTo(context);

	hits = palloc(sizeof(MrHit *) * Max(list_length(looking->hits), 1));
	foreach(lc, looking->hits)
		hits[n++] = lfirst(lc);
	mr_rule_fire(looking->rule, hits, n);
}

static void
frequency_apply(MrTarget *target, MrBatch *batch)
{
	MrRule *rule = (MrRule *) target;
	Looking looking = {.rule = rule, .batch = batch};
	bool read;
	int nest_level;

	if (!mr_rule_is_judged(rule))
		return;
	looking.staged = &batch->staged[rule->staging->ordinal];
	if (looking.staged->nversions == 0)
		return;
	looking.objects = make_table("millrace objects", sizeof(Object), CurrentMemoryContext);
	looking.keys = make_table("millrace keys", sizeof(KeyState), CurrentMemoryContext);
	looking.tellings = MemoryContextAllocHuge(CurrentMemoryContext,
											  sizeof(Telling) * looking.staged->nversions);
	memset(looking.tellings, 0, sizeof(Telling) * looking.staged->nversions);
	read = read_batch(&looking);
	mr_rule_hide_row(rule);
	if (!read)
	{
		(void) mr_rule_is_judged(rule);
		return;
	}
	mr_rule_write_failures(rule, looking.failures);
	/* Times are written as text. */
	nest_level = mr_settings_pin("UTC");
	mr_rule_write(rule, take_batch, &looking);
	mr_settings_unpin(nest_level);
}

/* A length of time that was declared, in microseconds. */
static int64
declared_time(const MrRule *rule, const char *member)
{
	return strtoll(mr_rule_text(rule, member), NULL, 10);
}

void
mr_frequency_load(MrRule *rule)
{
	MrWindow *window = palloc0(sizeof(MrWindow));
	char *count = mr_rule_text(rule, "count");
	char *at_least = mr_rule_text(rule, "at_least");

	rule->base.kind = &mr_frequency_kind;
	rule->window = window;
	window->measure = at_least != NULL                                ? SUM
					  : mr_rule_text(rule, "distinct_values") != NULL ? COUNT_DISTINCT
																	  : COUNT_EVENTS;
	window->count = count == NULL ? 0 : strtoll(count, NULL, 10);
	if (at_least != NULL)
		window->at_least = DirectFunctionCall3(numeric_in, CStringGetDatum(at_least),
											   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
	window->within = declared_time(rule, "within");
	window->lateness = declared_time(rule, "lateness");
	window->max_ahead = declared_time(rule, "max_ahead");
	if (rule->staging != NULL)
		rule->staging->each_version = true;
}

const MrTargetKind mr_frequency_kind = {
	.name = "rule",
	.phase = MR_PHASE_RULE,
	.stage = MR_STAGE_ALERT,
	.apply = frequency_apply,
	.filled_from = MR_FILLED_FROM_ROWS,
	.clear = mr_rule_clear,
};
