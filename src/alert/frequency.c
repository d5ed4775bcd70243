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
 *
 * What a version means for one key depends on that key only: first it is found which versions count, then keys are taken some at a
 * time, so that what is known of them need not be in memory together.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "alert/rule.h"
#include "alert/window.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "lib/stringinfo.h"
#include "stage/mapping.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "vault/vault.h"

/* So many keys are taken at once, and fewer when more than so many bytes are known of them. */
#define KEYS_AT_ONCE 100
#define BYTES_AT_ONCE (1024 * 1024)

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
	int keys_at_once; /* as many as have been right so far */
} MrWindow;

/* A key of the batch. */
typedef struct Key
{
	char *name; /* of the hash table */
	List *changes; /* Change *, in the order in which they come */
} Key;

/* An object of the batch. */
typedef struct Object
{
	char *name; /* of the hash table */
	bool accepted; /* its newest version of the batch is newer than what was staged */
	bool known; /* it may have events from before */
	const MrVersion *last; /* the newest one that has been taken so far */
	List *keys; /* Key *: under which it may have events */
} Object;

/* An event that a version tells. */
typedef struct Told
{
	MrEvent event;
	bool timed; /* else it is the event that is known of its object already, or none */
	Key *key;
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

/* What a version changes of a key. */
typedef struct Change
{
	const Telling *telling;
	Told *told; /* an event that is added; NULL: those of the object are removed */
} Change;

/* What is known of a key while it is being changed. */
typedef struct KeyState
{
	const Key *key;
	MrEvents known;
	TimestampTz watermark;
	bool changed;
} KeyState;

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
	MemoryContext context; /* of what is found */
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

static Key *
get_key(Looking *looking, char *name)
{
	bool found;
	Key *key = hash_search(looking->keys, &name, HASH_ENTER, &found);

	if (!found)
	{
		key->name = name;
		key->changes = NIL;
	}
	return key;
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

/* NaN and infinities would be all that a sum says from then on. */
static void
check_amount(const char *text)
{
	if (strpbrk(text, "NI") != NULL)
		ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						errmsg("%s cannot be summed up", text)));
}

/* The event of the row, if it makes one. */
static Told *
read_row(Looking *looking, const MrVersion *version, const MrRow *row)
{
	MrRule *rule = looking->rule;
	ExprContext *context = rule->context;
	Told *told;
	char *name;

	if (rule->predicate != NULL && !mr_expression_true(rule->predicate, context))
		return NULL;
	name = mr_rule_key_text(rule->key, context);
	/* Those who are not named are not one and the same. */
	if (name == NULL)
		return NULL;
	told = palloc0(sizeof(Told));
	told->key = get_key(looking, name);
	told->event.value = mr_rule_evaluate_text(rule->value, context);
	if (rule->value != NULL && told->event.value == NULL)
		return NULL;
	if (rule->window->measure == SUM)
		check_amount(told->event.value);
	told->event.time = mr_rule_row_time(rule, version, context, &told->timed);
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
			telling->object->keys = list_append_unique_ptr(telling->object->keys, told->key);
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
		name = mr_rule_evaluate_text(looking->rule->object, context);
		object = hash_search(looking->objects, &name, HASH_FIND, NULL);
		if (key != NULL && object != NULL)
			object->keys = list_append_unique_ptr(object->keys, get_key(looking, key));
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

/* Locks the rows of keys, which are in order, and reads what others have written there (C4); returns how many bytes that is. */
static Size
read_states(Looking *looking, KeyState *states, int n)
{
	static const Oid types[] = {INT4OID, TEXTARRAYOID};
	static MrStatement *insert = NULL;
	static MrStatement *select = NULL;
	MrArray *keys = mr_array_create(TEXTOID, n);
	Datum arguments[lengthof(types)];
	Size bytes = 0;
	uint64 found;
	int i = 0;

	for (int k = 0; k < n; k++)
		mr_array_add_text(keys, states[k].key->name);
	arguments[0] = Int32GetDatum(looking->rule->base.id);
	arguments[1] = mr_array_datum(keys);
	/* One worker alone need not hold the place of a new key. */
	if (looking->batch->stream->workers > 1)
		(void) mr_statement_by_index(&insert,
									 "INSERT INTO millrace.rule_state (rule_id, key) "
									 "SELECT $1, k FROM unnest($2) AS u (k) ON CONFLICT DO NOTHING",
									 lengthof(types), types, arguments);
	found = mr_statement_by_index(&select,
								  "SELECT key, events, at FROM millrace.rule_state "
								  "WHERE rule_id = $1 AND key = ANY ($2) "
								  "ORDER BY key FOR NO KEY UPDATE",
								  lengthof(types), types, arguments);
	for (uint64 r = 0; r < found; r++, i++)
	{
		char *key = mr_sql_text(r, 1);
		bytea *packed;
		Datum value;
		bool isnull;

		while (strcmp(states[i].key->name, key) != 0)
			i++;
		value = mr_sql_value(r, 2, &isnull);
		if (isnull)
			continue;
		packed = DatumGetByteaPP(value);
		bytes += VARSIZE_ANY_EXHDR(packed);
		mr_events_unpack(&states[i].known, packed);
		states[i].watermark = DatumGetTimestampTz(mr_sql_value(r, 3, &isnull));
	}
	return bytes;
}

static void
write_states(const Looking *looking, const KeyState *states, int n)
{
	static const Oid types[] = {INT4OID, TEXTARRAYOID, BYTEAARRAYOID, TIMESTAMPTZARRAYOID};
	static MrStatement *upsert = NULL;
	MrArray *keys = mr_array_create(TEXTOID, n);
	MrArray *events = mr_array_create(BYTEAOID, n);
	MrArray *times = mr_array_create(TIMESTAMPTZOID, n);
	Datum arguments[lengthof(types)];

	for (int k = 0; k < n; k++)
	{
		if (!states[k].changed)
			continue;
		mr_array_add_text(keys, states[k].key->name);
		mr_array_add(events, PointerGetDatum(mr_events_pack(&states[k].known)), false);
		mr_array_add(times, TimestampTzGetDatum(states[k].watermark), false);
	}
	if (mr_array_length(keys) == 0)
		return;
	arguments[0] = Int32GetDatum(looking->rule->base.id);
	arguments[1] = mr_array_datum(keys);
	arguments[2] = mr_array_datum(events);
	arguments[3] = mr_array_datum(times);
	(void) mr_statement_by_index(
		&upsert,
		"INSERT INTO millrace.rule_state AS r (rule_id, key, events, at) "
		"SELECT $1, u.* FROM unnest($2, $3, $4) AS u "
		"ON CONFLICT (rule_id, key) DO UPDATE SET events = EXCLUDED.events, at = EXCLUDED.at",
		lengthof(types), types, arguments);
}

/* ---- windows ------------------------------------------------------------------------------------------- */

static int
compare_texts(const void *left, const void *right)
{
	return strcmp(*(const char *const *) left, *(const char *const *) right);
}

/* Does the window of the events [first, last] hold enough?  *measured says how much, as JSON. */
static bool
is_enough(const MrWindow *window, const MrEvents *known, int first, int last, char **measured)
{
	int n = last - first + 1;
	bool enough;

	if (window->measure == COUNT_EVENTS)
	{
		if (n < window->count)
			return false;
		*measured = psprintf("\"count\": %d", n);
		return true;
	}
	if (window->measure == SUM)
	{
		Datum sum = NumericGetDatum(int64_to_numeric(0));

		for (int i = first; i <= last; i++)
		{
			MrEvent *event = &known->events[i];
			Datum before = sum;

			if (event->amount == NULL)
				event->amount = DatumGetNumeric(
					DirectFunctionCall3(numeric_in, CStringGetDatum(event->value),
										ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
			sum = DirectFunctionCall2(numeric_add, before, NumericGetDatum(event->amount));
			pfree(DatumGetPointer(before));
		}
		enough = DatumGetBool(DirectFunctionCall2(numeric_ge, sum, window->at_least));
		if (enough)
			*measured = psprintf("\"sum\": %s",
								 DatumGetCString(DirectFunctionCall1(numeric_out, sum)));
		pfree(DatumGetPointer(sum));
		return enough;
	}
	else
	{
		const char **values;
		int distinct = 0;

		if (n < window->count)
			return false;
		values = palloc(sizeof(char *) * n);
		for (int i = 0; i < n; i++)
			values[i] = known->events[first + i].value;
		qsort(values, n, sizeof(char *), compare_texts);
		for (int i = 0; i < n; i++)
			distinct += i == 0 || strcmp(values[i - 1], values[i]) != 0;
		pfree(values);
		enough = distinct >= window->count;
		if (enough)
			*measured = psprintf("\"distinct\": %d", distinct);
		return enough;
	}
}

/* Does a window that ends then overlap one that has fired? */
static bool
overlaps_alerted(const MrWindow *window, const MrEvents *known, TimestampTz end)
{
	for (int i = 0; i < known->nalerted; i++)
	{
		if (end - known->alerted[i] < window->within && known->alerted[i] - end < window->within)
			return true;
	}
	return false;
}

/* The objects of the events [first, last], as a JSON list. */
static char *
list_objects(const MrEvents *known, int first, int last)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = first; i <= last; i++)
	{
		const char *object = known->events[i].object;

		if (i > first && strcmp(object, known->events[i - 1].object) == 0)
			continue;
		appendStringInfoString(&list, i == first ? "[" : ", ");
		escape_json(&list, object);
	}
	appendStringInfoChar(&list, ']');
	return list.data;
}

static void
fire(Looking *looking, KeyState *state, int first, int last, const char *measured,
	 const Change *change)
{
	MemoryContext previous = MemoryContextSwitchTo(looking->context);
	const MrEvent *begin = &state->known.events[first];
	const Told *told = change->told;
	TimestampTz end = state->known.events[last].time;
	MrHit *hit = palloc0(sizeof(MrHit));

	hit->version = change->telling->version;
	hit->key = state->key->name;
	/* An object may come again at another time. */
	hit->occurrence = psprintf("%s@%s/%d@%s", hit->key, begin->object, begin->element,
							   timestamptz_to_str(begin->time));
	hit->time = end;
	hit->details = psprintf(
		"{%s, \"from\": \"%s\", \"to\": \"%s\"%s%s}", measured,
		pstrdup(timestamptz_to_str(begin->time)), pstrdup(timestamptz_to_str(end)),
		told->details == NULL ? "" : ", \"last\": ", told->details == NULL ? "" : told->details);
	hit->group_by = told->group_by;
	hit->objects = list_objects(&state->known, first, last);
	hit->history = mr_rule_is_history(looking->rule, looking->batch, hit->version);
	looking->hits = lappend(looking->hits, hit);
	MemoryContextSwitchTo(previous);
	mr_events_add_alerted(&state->known, end);
}

/* Looks at the windows in which the event at that place is. */
static void
look_at_windows(Looking *looking, KeyState *state, int place, const Change *change)
{
	const MrWindow *window = looking->rule->window;
	MrEvents *known = &state->known;
	TimestampTz time = known->events[place].time;
	int first = mr_events_after(known, time - window->within);

	for (int last = place; last < known->count && known->events[last].time < time + window->within;
		 last++)
	{
		TimestampTz end = known->events[last].time;
		char *measured;

		/* All events of one time are in. */
		if (last + 1 < known->count && known->events[last + 1].time == end)
			continue;
		while (known->events[first].time <= end - window->within)
			first++;
		if (!overlaps_alerted(window, known, end) &&
			is_enough(window, known, first, last, &measured))
			fire(looking, state, first, last, measured, change);
	}
}

static TimestampTz
horizon_of(const MrWindow *window, const KeyState *state)
{
	if (TIMESTAMP_IS_NOBEGIN(state->watermark))
		return DT_NOBEGIN;
	return state->watermark - window->within - window->lateness;
}

static void
add_event(Looking *looking, KeyState *state, const Change *change)
{
	const MrWindow *window = looking->rule->window;
	const MrEvent *event = &change->told->event;
	TimestampTz horizon = horizon_of(window, state);

	if (event->time <= horizon)
	{
		looking->late++;
		return;
	}
	state->changed = true;
	look_at_windows(looking, state, mr_events_insert(&state->known, event), change);
	state->watermark = Max(state->watermark,
						   Min(event->time, GetCurrentTimestamp() + window->max_ahead));
	horizon = horizon_of(window, state);
	mr_events_forget(&state->known, horizon, horizon - window->within);
}

/* A newer version takes the place of what the object's older ones have told. */
static void
remove_object(KeyState *state, const Telling *telling)
{
	ListCell *lc;

	/* What a snapshot has read of it happened when its event did that is known. */
	foreach(lc, telling->told)
	{
		Told *told = lfirst(lc);
		const MrEvent *event;

		if (told->timed || told->key != state->key)
			continue;
		event = mr_events_find(&state->known, told->event.object, told->event.element);
		if (event == NULL)
			continue;
		told->event.time = event->time;
		told->timed = true;
	}
	state->changed |= mr_events_remove(&state->known, telling->object->name);
}

static void
change_key(Looking *looking, KeyState *state)
{
	ListCell *lc;

	foreach(lc, state->key->changes)
	{
		const Change *change = lfirst(lc);

		if (change->told == NULL)
			remove_object(state, change->telling);
		else if (change->told->timed)
			add_event(looking, state, change);
	}
}

/* ---- a batch ------------------------------------------------------------------------------------------- */

static void
add_change(Key *key, const Telling *telling, Told *told)
{
	Change *change = palloc(sizeof(Change));

	change->telling = telling;
	change->told = told;
	key->changes = lappend(key->changes, change);
}

/* Takes the versions one by one, as if each were a batch of its own: notes what they change of their keys. */
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
		{
			foreach(lc, object->keys)
				add_change(lfirst(lc), telling, NULL);
		}
		object->last = telling->version;
		foreach(lc, telling->told)
			add_change(((Told *) lfirst(lc))->key, telling, lfirst(lc));
	}
}

static int
compare_keys(const void *left, const void *right)
{
	return strcmp((*(Key *const *) left)->name, (*(Key *const *) right)->name);
}

/* The keys of which something changes, in their order: in which all workers lock them. */
static Key **
changed_keys(const Looking *looking, int *n)
{
	Key **keys = palloc(sizeof(Key *) * Max(hash_get_num_entries(looking->keys), 1));
	HASH_SEQ_STATUS scan;
	Key *key;

	*n = 0;
	hash_seq_init(&scan, looking->keys);
	while ((key = hash_seq_search(&scan)) != NULL)
	{
		if (key->changes != NIL)
			keys[(*n)++] = key;
	}
	qsort(keys, *n, sizeof(Key *), compare_keys);
	return keys;
}

/* Changes what is known of keys; returns how many bytes that was. */
static Size
change_keys(Looking *looking, Key *const *keys, int n)
{
	KeyState *states = palloc0(sizeof(KeyState) * n);
	SPITupleTable *read;
	Size bytes;

	for (int k = 0; k < n; k++)
	{
		states[k].key = keys[k];
		states[k].watermark = DT_NOBEGIN;
	}
	bytes = read_states(looking, states, n);
	read = SPI_tuptable;
	for (int k = 0; k < n; k++)
		change_key(looking, &states[k]);
	write_states(looking, states, n);
	SPI_freetuptable(read);
	return bytes;
}

/* In the order of versions. */
static int
compare_hits(const ListCell *left, const ListCell *right)
{
	const MrHit *l = lfirst(left);
	const MrHit *r = lfirst(right);

	if (l->version != r->version)
		return l->version < r->version ? -1 : 1;
	return strcmp(l->occurrence, r->occurrence);
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
	MemoryContext portion;
	int *at_once = &looking->rule->window->keys_at_once;
	int nkeys;
	Key **keys;
	MrHit **hits;
	ListCell *lc;
	MrRunAs saved;
	int n = 0;

	looking->context = CurrentMemoryContext;
	portion = AllocSetContextCreate(CurrentMemoryContext, "millrace keys", ALLOCSET_DEFAULT_SIZES);
	take_versions(looking);
	keys = changed_keys(looking, &nkeys);
	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	MemoryContextSwitchTo(portion);
	for (int k = 0; k < nkeys; k += n)
	{
		n = Min(*at_once, nkeys - k);
		if (change_keys(looking, &keys[k], n) > BYTES_AT_ONCE)
			*at_once = Max(1, n / 2);
		else if (n == *at_once)
			*at_once = Min(KEYS_AT_ONCE, n * 2);
		MemoryContextReset(portion);
	}
	count_late(looking);
	SPI_finish();
	mr_run_back(&saved);
	MemoryContextSwitchTo(looking->context);
	MemoryContextDelete(portion);

	list_sort(looking->hits, compare_hits);
	hits = palloc(sizeof(MrHit *) * Max(list_length(looking->hits), 1));
	n = 0;
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

	if (!mr_rule_is_judged(rule, batch))
		return;
	looking.staged = &batch->staged[rule->staging->ordinal];
	if (looking.staged->nversions == 0)
		return;
	looking.objects = make_table("millrace objects", sizeof(Object), CurrentMemoryContext);
	looking.keys = make_table("millrace keys", sizeof(Key), CurrentMemoryContext);
	looking.tellings = MemoryContextAllocHuge(CurrentMemoryContext,
											  sizeof(Telling) * looking.staged->nversions);
	memset(looking.tellings, 0, sizeof(Telling) * looking.staged->nversions);
	read = read_batch(&looking);
	mr_rule_hide_row(rule);
	if (!read)
	{
		(void) mr_rule_is_judged(rule, batch);
		return;
	}
	mr_rule_write_failures(rule, looking.failures);
	/* Times are written as text. */
	nest_level = mr_settings_pin("UTC");
	mr_rule_write(rule, batch, take_batch, &looking);
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
	window->keys_at_once = KEYS_AT_ONCE;
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
