/*
 * dictionary.c
 *	  Dictionaries: JSON by id, from a Redis or from a table that a stream keeps.
 *
 * What was found is parsed once, and of it only the values that some mapping wants are remembered.  The cache is
 * bounded: those used least go first, at the beginning of a batch, so that nobody holds an entry that goes.  An id
 * that nothing is known of is not remembered: it may be known a moment later.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "fmgr.h"
#include "lib/ilist.h"
#include "portability/instr_time.h"
#include "stage/dictionary.h"
#include "stage/redis.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* A Redis that is down and need not be waited for is left alone so long. */
#define DOWN_PAUSE (USECS_PER_SEC)

typedef enum EntryState
{
	ENTRY_WANTED,
	ENTRY_RAW, /* found, and not read yet */
	ENTRY_KNOWN,
	ENTRY_UNKNOWN,
	ENTRY_BAD /* there is something that cannot be used */
} EntryState;

struct MrEntry
{
	const char *id; /* terminated */
	int length;
	uint32 hash;
	EntryState state;
	uint64 batch; /* for which it was last wanted */
	TimestampTz at; /* when it was found */
	Size size;
	char *raw;
	int raw_length;
	char *problem;
	int nelements;
	MrValue *values; /* for each element those that are wanted; in one piece with what follows */
	MrValue **keys; /* of elements, sorted; each stands before its values */
	dlist_node node; /* by use, the last one first */
};

typedef struct EntryCell
{
	MrEntry *entry;
	uint32 hash;
	char status;
} EntryCell;

#define SH_PREFIX entries
#define SH_ELEMENT_TYPE EntryCell
#define SH_KEY_TYPE MrEntry *
#define SH_KEY entry
#define SH_HASH_KEY(tb, key) ((key)->hash)
#define SH_EQUAL(tb, a, b) \
	((a)->length == (b)->length && memcmp((a)->id, (b)->id, (a)->length) == 0)
#define SH_SCOPE static inline
#define SH_STORE_HASH
#define SH_GET_HASH(tb, a) ((a)->hash)
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

struct MrDictionary
{
	MemoryContext context;
	int32 id;
	char *name;
	Oid owner;

	char *server; /* NULL: a table */
	MrRedis *redis;
	char *before; /* of the id in a key */
	char *after;
	bool hashes;
	int max_value;
	bool stage_when_down;
	TimestampTz down_until;

	Oid relid; /* of the table */
	char *key_column;
	Oid key_type;
	List *columns; /* of it, that mappings speak of; NIL: all */
	bool all_columns;
	MrStatement *select;

	int64 ttl; /* microseconds */
	Size cache_size;
	Size remembered;
	uint64 batch;
	entries_hash *entries;
	dlist_head used;

	MrPlan *plan;
	int scope;
	bool has_elements;
	MrSlot key; /* of an element */
	int nwanted;
	MrSlot *wanted;
	MemoryContext scratch;

	int nasked; /* entries of this batch that were not remembered */
	int capacity;
	MrEntry **asked;
	int nread; /* of them */
	bool told; /* of a complaint */
	MrDictionaryCounts counts;
};

int32
mr_dictionary_id(const MrDictionary *d)
{
	return d->id;
}

const char *
mr_dictionary_name(const MrDictionary *d)
{
	return d->name;
}

bool
mr_dictionary_has_elements(const MrDictionary *d)
{
	return d->has_elements;
}

const char *
mr_entry_id(const MrEntry *entry)
{
	return entry->id;
}

bool
mr_entry_is_known(const MrEntry *entry)
{
	return entry->state == ENTRY_KNOWN;
}

const char *
mr_entry_problem(const MrEntry *entry)
{
	return entry->problem;
}

MrDictionaryCounts
mr_dictionary_take_counts(MrDictionary *d)
{
	MrDictionaryCounts counts = d->counts;

	memset(&d->counts, 0, sizeof(d->counts));
	return counts;
}

/* ---- compiling ------------------------------------------------------------------------------------------- */

/* What stands before and after the id in a key. */
static void
split_lookup(MrDictionary *d, const char *lookup)
{
	const char *place = strstr(lookup, "<id>");

	if (place == NULL)
		elog(ERROR, "lookup \"%s\" of dictionary \"%s\" has no <id>", lookup, d->name);
	d->before = pnstrdup(lookup, place - lookup);
	d->after = pstrdup(place + strlen("<id>"));
}

/* The table must be there, and have the column that it is looked up by. */
static void
load_table(MrDictionary *d)
{
	AttrNumber attnum = get_attnum(d->relid, d->key_column);

	if (attnum == InvalidAttrNumber)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
						errmsg("the table of dictionary \"%s\" has no column \"%s\" any more",
							   d->name, d->key_column),
						errhint("Create the dictionary again with replace => true.")));
	d->key_type = get_atttype(d->relid, attnum);
}

MrDictionary *
mr_dictionary_load(int32 id)
{
	MrDictionary *d;
	char *lookup;
	char *for_each;
	char *entry_key;
	bool isnull;
	Datum relid;

	if (mr_sql("SELECT name, owner::oid, server::text, relation::oid, definition ->> 'lookup', "
			   "definition ->> 'type' = 'hash', definition ->> 'for_each', "
			   "definition ->> 'entry_key', (definition ->> 'ttl')::bigint, "
			   "(definition ->> 'cache_size')::bigint, (definition ->> 'max_value')::integer, "
			   "definition ->> 'on_down' = 'stage', definition ->> 'key' "
			   "FROM millrace.dictionary WHERE id = %d",
			   id) == 0)
	{
		SPI_freetuptable(SPI_tuptable);
		return NULL;
	}
	d = palloc0(sizeof(MrDictionary));
	d->context = CurrentMemoryContext;
	d->id = id;
	d->name = mr_sql_text(0, 1);
	d->owner = DatumGetObjectId(mr_sql_value(0, 2, &isnull));
	d->server = mr_sql_text(0, 3);
	relid = mr_sql_value(0, 4, &isnull);
	d->relid = isnull ? InvalidOid : DatumGetObjectId(relid);
	lookup = mr_sql_text(0, 5);
	d->hashes = DatumGetBool(mr_sql_value(0, 6, &isnull));
	for_each = mr_sql_text(0, 7);
	entry_key = mr_sql_text(0, 8);
	d->ttl = DatumGetInt64(mr_sql_value(0, 9, &isnull));
	d->cache_size = DatumGetInt64(mr_sql_value(0, 10, &isnull));
	d->max_value = DatumGetInt32(mr_sql_value(0, 11, &isnull));
	d->stage_when_down = DatumGetBool(mr_sql_value(0, 12, &isnull));
	d->key_column = mr_sql_text(0, 13);
	SPI_freetuptable(SPI_tuptable);

	if (d->server == NULL)
		load_table(d);
	else
	{
		split_lookup(d, lookup);
		d->redis = mr_redis_create(d->server, d->owner);
	}
	d->plan = mr_plan_create();
	if (for_each != NULL)
	{
		d->has_elements = true;
		d->scope = mr_plan_scope(d->plan, mr_path_parse(for_each));
		d->key = mr_plan_slot(d->plan, d->scope, mr_path_parse(entry_key));
	}
	d->scratch = AllocSetContextCreate(CurrentMemoryContext, "millrace dictionary entry",
									   ALLOCSET_DEFAULT_SIZES);
	d->entries = entries_create(CurrentMemoryContext, 256, NULL);
	dlist_init(&d->used);
	return d;
}

int
mr_dictionary_want(MrDictionary *d, const MrPath *path, int first)
{
	MrPath rest = *path;
	MrSlot slot;

	rest.root = d->has_elements ? MR_ROOT_ELEMENT : MR_ROOT_VALUE;
	rest.steps += first;
	rest.nsteps -= first;
	if (OidIsValid(d->relid))
	{
		if (rest.nsteps == 0)
			d->all_columns = true;
		else if (rest.steps[0].kind != MR_STEP_MEMBER ||
				 get_attnum(d->relid, rest.steps[0].name) <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("path \"%s\" names no column of %s, the table of dictionary \"%s\"",
							path->text, mr_relation_name(d->relid), d->name)));
		else
			d->columns = list_append_unique(d->columns, makeString(pstrdup(rest.steps[0].name)));
	}
	slot = mr_plan_slot(d->plan, d->scope, &rest);
	for (int i = 0; i < d->nwanted; i++)
	{
		if (d->wanted[i].scope == slot.scope && d->wanted[i].number == slot.number)
			return i;
	}
	d->wanted = d->wanted == NULL ? palloc(sizeof(MrSlot))
								  : repalloc(d->wanted, sizeof(MrSlot) * (d->nwanted + 1));
	d->wanted[d->nwanted] = slot;
	return d->nwanted++;
}

/* ---- the cache ------------------------------------------------------------------------------------------- */

/* Forgets what was found of an entry. */
static void
empty_entry(MrDictionary *d, MrEntry *entry)
{
	d->remembered -= entry->size;
	entry->size = 0;
	if (entry->values != NULL)
		pfree(entry->values);
	if (entry->raw != NULL)
		pfree(entry->raw);
	if (entry->problem != NULL)
		pfree(entry->problem);
	entry->values = NULL;
	entry->keys = NULL;
	entry->raw = NULL;
	entry->problem = NULL;
}

/* Takes an entry out of the cache. */
static void
forget_entry(MrDictionary *d, MrEntry *entry)
{
	empty_entry(d, entry);
	dlist_delete(&entry->node);
	(void) entries_delete(d->entries, entry);
	d->remembered -= sizeof(MrEntry) + entry->length;
	pfree(entry);
}

void
mr_dictionary_begin(MrDictionary *d)
{
	d->batch++;
	/* What is not known is not worth a place. */
	for (int i = 0; i < d->nasked; i++)
	{
		if (d->asked[i]->state != ENTRY_KNOWN)
			forget_entry(d, d->asked[i]);
	}
	d->nasked = d->nread = 0;
	d->told = false;
	while (d->remembered > d->cache_size && !dlist_is_empty(&d->used))
		forget_entry(d, dlist_container(MrEntry, node, dlist_tail_node(&d->used)));
}

/* The entry is to be asked for. */
static void
want_entry(MrDictionary *d, MrEntry *entry)
{
	entry->state = ENTRY_WANTED;
	if (d->nasked == d->capacity)
	{
		d->capacity = Max(256, d->capacity * 2);
		d->asked = d->asked == NULL
					   ? MemoryContextAlloc(d->context, sizeof(MrEntry *) * d->capacity)
					   : repalloc_huge(d->asked, sizeof(MrEntry *) * d->capacity);
	}
	d->asked[d->nasked++] = entry;
	d->counts.misses++;
}

MrEntry *
mr_dictionary_entry(MrDictionary *d, const char *id, int length, bool fresh)
{
	MrEntry sought = {.id = id, .length = length};
	EntryCell *cell;
	MrEntry *entry;
	char *copy;
	bool found;

	sought.hash = hash_bytes((const unsigned char *) id, length);
	cell = entries_lookup_hash(d->entries, &sought, sought.hash);
	if (cell != NULL)
	{
		entry = cell->entry;
		if (entry->batch != d->batch)
		{
			dlist_move_head(&d->used, &entry->node);
			if (fresh || entry->state != ENTRY_KNOWN || GetCurrentTimestamp() - entry->at >= d->ttl)
			{
				empty_entry(d, entry);
				want_entry(d, entry);
			}
			else
				d->counts.hits++;
		}
		else
			d->counts.hits++;
		entry->batch = d->batch;
		return entry;
	}
	entry = MemoryContextAllocZero(d->context, sizeof(MrEntry) + length + 1);
	copy = (char *) (entry + 1);
	memcpy(copy, id, length);
	entry->id = copy;
	entry->length = length;
	entry->hash = sought.hash;
	entry->batch = d->batch;
	(void) entries_insert_hash(d->entries, entry, entry->hash, &found);
	dlist_push_head(&d->used, &entry->node);
	d->remembered += sizeof(MrEntry) + length;
	want_entry(d, entry);
	return entry;
}

/* ---- asking ---------------------------------------------------------------------------------------------- */

/* The entries that are still wanted; what is asked twice for a batch is wanted only once. */
static MrEntry **
wanted_entries(const MrDictionary *d, int *count)
{
	MrEntry **wanted = palloc(sizeof(MrEntry *) * Max(d->nasked, 1));

	*count = 0;
	for (int i = 0; i < d->nasked; i++)
	{
		if (d->asked[i]->state == ENTRY_WANTED)
			wanted[(*count)++] = d->asked[i];
	}
	return wanted;
}

/* Something was found. */
static void
found_raw(MrDictionary *d, MrEntry *entry, const char *text, int length)
{
	entry->raw = MemoryContextAlloc(d->context, Max(length, 1));
	memcpy(entry->raw, text, length);
	entry->raw_length = length;
	entry->state = ENTRY_RAW;
	entry->at = GetCurrentTimestamp();
}

/* There is something that cannot be used. */
static void
refuse_entry(MrDictionary *d, MrEntry *entry, const char *why)
{
	empty_entry(d, entry);
	entry->state = ENTRY_BAD;
	entry->problem = MemoryContextStrdup(d->context, why);
}

typedef struct Asking
{
	MrDictionary *dictionary;
	MrEntry **wanted;
} Asking;

static void
receive_reply(void *argument, int n, const MrReply *reply)
{
	Asking *asking = argument;
	MrDictionary *d = asking->dictionary;
	MrEntry *entry = asking->wanted[n];

	switch (reply->kind)
	{
		case MR_REPLY_ABSENT:
			entry->state = ENTRY_UNKNOWN;
			d->counts.unknown++;
			break;
		case MR_REPLY_JSON:
			found_raw(d, entry, reply->text, reply->length);
			break;
		case MR_REPLY_BAD:
			refuse_entry(d, entry, reply->text);
			break;
	}
}

/* Nothing could be asked: what is wanted is not known for now. */
static void
go_without(MrDictionary *d, const char *problem)
{
	for (int i = 0; i < d->nasked; i++)
	{
		if (d->asked[i]->state == ENTRY_WANTED)
			refuse_entry(d, d->asked[i], problem);
	}
}

void
mr_dictionary_ask(MrDictionary *d)
{
	Asking asking = {d};
	const char *problem;
	instr_time start;
	instr_time end;
	int sqlstate;
	char **keys;
	int count;

	if (d->redis == NULL)
		return;
	asking.wanted = wanted_entries(d, &count);
	if (count == 0)
		return;
	if (GetCurrentTimestamp() < d->down_until)
	{
		go_without(d, "its Redis cannot be reached");
		return;
	}
	keys = palloc(sizeof(char *) * count);
	for (int i = 0; i < count; i++)
		keys[i] = d->before[0] == '\0' && d->after[0] == '\0'
					  ? (char *) asking.wanted[i]->id
					  : psprintf("%s%s%s", d->before, asking.wanted[i]->id, d->after);
	INSTR_TIME_SET_CURRENT(start);
	problem = mr_redis_ask(d->redis, d->hashes, count, keys, d->max_value, receive_reply, &asking,
						   &sqlstate);
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	d->counts.requests++;
	d->counts.seconds += INSTR_TIME_GET_DOUBLE(end);
	if (problem == NULL)
		return;
	if (!d->stage_when_down || mr_error_class(sqlstate) == MR_ERROR_CONFIGURATION)
		ereport(ERROR, (errcode(sqlstate),
						errmsg("dictionary \"%s\" cannot be asked: %s", d->name, problem)));
	d->down_until = GetCurrentTimestamp() + DOWN_PAUSE;
	go_without(d, problem);
}

/* The query for ids: what a table's key cannot be is not in it. */
static MrStatement *
table_query(MrDictionary *d)
{
	static const Oid types[] = {TEXTARRAYOID};
	MemoryContext previous = MemoryContextSwitchTo(d->context);
	const char *key = quote_identifier(d->key_column);
	const char *type = format_type_be_qualified(d->key_type);
	char *accepted = "";
	MrStatement *statement;
	StringInfoData columns;
	StringInfoData sql;
	ListCell *lc;

	if (d->key_type == UUIDOID)
		accepted = "WHERE i.id ~* '^[0-9a-f]{8}(-?[0-9a-f]{4}){4}[0-9a-f]{8}$' ";
	else if (d->key_type != TEXTOID && d->key_type != VARCHAROID)
	{
		int64 largest = PG_INT64_MAX >> (64 - 8 * get_typlen(d->key_type));

		/* Cast to a number of any size before it is compared with what the type takes. */
		accepted = psprintf("WHERE CASE WHEN i.id ~ '^-?[0-9]{1,19}$' THEN i.id::numeric "
							"BETWEEN " INT64_FORMAT " AND " INT64_FORMAT " END ",
							-largest - 1, largest);
	}
	initStringInfo(&columns);
	foreach(lc, d->columns)
		appendStringInfo(&columns, "%st.%s", columns.len == 0 ? "" : ", ",
						 quote_identifier(strVal(lfirst(lc))));
	initStringInfo(&sql);
	/* MATERIALIZED: no id is cast before it is looked at. */
	appendStringInfo(&sql,
					 "WITH ids AS MATERIALIZED (SELECT i.id, i.n FROM pg_catalog.unnest($1) "
					 "WITH ORDINALITY AS i (id, n) %s) "
					 "SELECT ids.n, pg_catalog.row_to_json(r.*)::text FROM ids "
					 "JOIN %s AS t ON t.%s = ids.id::%s CROSS JOIN LATERAL (SELECT %s) AS r",
					 accepted, mr_relation_name(d->relid), key, type,
					 d->all_columns || d->columns == NIL ? "t.*" : columns.data);
	statement = mr_statement_create(sql.data, lengthof(types), types);
	MemoryContextSwitchTo(previous);
	return statement;
}

void
mr_dictionary_select(MrDictionary *d)
{
	MrEntry **wanted;
	Datum *ids;
	Datum array;
	uint64 found;
	MrRunAs saved;
	instr_time start;
	instr_time end;
	int count;

	if (d->redis != NULL)
		return;
	wanted = wanted_entries(d, &count);
	if (count == 0)
		return;
	ids = palloc(sizeof(Datum) * count);
	for (int i = 0; i < count; i++)
	{
		ids[i] = PointerGetDatum(cstring_to_text_with_len(wanted[i]->id, wanted[i]->length));
		wanted[i]->state = ENTRY_UNKNOWN;
	}
	array = PointerGetDatum(construct_array(ids, count, TEXTOID, -1, false, TYPALIGN_INT));
	if (d->select == NULL)
		d->select = table_query(d);
	INSTR_TIME_SET_CURRENT(start);
	mr_run_as_restricted(&saved, d->owner);
	found = mr_statement_run(d->select, &array, NULL);
	mr_run_back(&saved);
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	for (uint64 i = 0; i < found; i++)
	{
		bool isnull;
		MrEntry *entry = wanted[DatumGetInt64(mr_sql_value(i, 1, &isnull)) - 1];
		text *json = DatumGetTextPP(mr_sql_value(i, 2, &isnull));

		if (entry->state == ENTRY_UNKNOWN)
			found_raw(d, entry, VARDATA_ANY(json), VARSIZE_ANY_EXHDR(json));
	}
	SPI_freetuptable(SPI_tuptable);
	d->counts.requests++;
	d->counts.seconds += INSTR_TIME_GET_DOUBLE(end);
	d->counts.unknown += count - found;
}

/* ---- reading --------------------------------------------------------------------------------------------- */

/* Orders the keys of elements: by length, then by bytes. */
static int
compare_texts(const char *left, int left_length, const char *right, int right_length)
{
	return left_length != right_length ? left_length - right_length
									   : memcmp(left, right, left_length);
}

static int
compare_keys(const void *left, const void *right)
{
	const MrValue *l = *(MrValue *const *) left;
	const MrValue *r = *(MrValue *const *) right;
	int order = compare_texts(l->text, l->length, r->text, r->length);

	/* Of two elements with one key the first counts. */
	return order != 0 ? order : (l > r) - (l < r);
}

/* How much room a value needs that outlives what it was read from. */
static Size
text_size(const MrValue *value)
{
	return mr_value_is_null(value) ? 0 : value->length + 2;
}

/* Copies a value, and puts its text where there is room for it; returns where the room goes on. */
static char *
copy_value(MrValue *to, const MrValue *from, char *room)
{
	*to = *from;
	if (mr_value_is_null(from))
		return room;
	/* A text that stands in JSON stands between its quotes. */
	if (from->form == MR_FORM_SLICE && from->kind == MR_STRING)
	{
		memcpy(room, from->text - 1, from->length + 2);
		to->text = room + 1;
		return room + from->length + 2;
	}
	memcpy(room, from->text, from->length);
	to->text = room;
	if (from->form == MR_FORM_UNESCAPED)
		to->form = MR_FORM_PLAIN;
	return room + from->length;
}

/* Keeps what is wanted of a document: for each element its key, then its values. */
static void
keep_values(MrDictionary *d, MrEntry *entry, const MrDocument *document)
{
	int count = d->has_elements ? mr_document_elements(document, d->scope) : 1;
	int width = d->nwanted + 1;
	Size size = (Size) count * (sizeof(MrValue) * width + sizeof(MrValue *));
	char *room;
	int nkeys = 0;

	for (int e = 0; e < count; e++)
	{
		if (d->has_elements)
			size += text_size(mr_document_value(document, d->scope, e, d->key));
		for (int w = 0; w < d->nwanted; w++)
			size += text_size(mr_document_value(document, d->scope, e, d->wanted[w]));
	}
	entry->values = MemoryContextAllocHuge(d->context, Max(size, 1));
	entry->keys = (MrValue **) (entry->values + (Size) count * width);
	room = (char *) (entry->keys + count);
	for (int e = 0; e < count; e++)
	{
		MrValue *values = entry->values + (Size) e * width;

		memset(values, 0, sizeof(MrValue));
		if (d->has_elements)
		{
			room = copy_value(values, mr_document_value(document, d->scope, e, d->key), room);
			if (!mr_value_is_null(values))
				entry->keys[nkeys++] = values;
		}
		for (int w = 0; w < d->nwanted; w++)
			room = copy_value(&values[w + 1],
							  mr_document_value(document, d->scope, e, d->wanted[w]), room);
	}
	entry->nelements = nkeys;
	qsort(entry->keys, nkeys, sizeof(MrValue *), compare_keys);
	entry->size = size;
	d->remembered += size;
}

void
mr_dictionary_read(MrDictionary *d)
{
	MemoryContext previous = CurrentMemoryContext;

	for (; d->nread < d->nasked; d->nread++)
	{
		MrEntry *entry = d->asked[d->nread];
		MrMessage message = {.value = entry->raw, .value_length = entry->raw_length};

		if (entry->state != ENTRY_RAW)
			continue;
		MemoryContextReset(d->scratch);
		MemoryContextSwitchTo(d->scratch);
		keep_values(d, entry, mr_plan_run(d->plan, &message));
		MemoryContextSwitchTo(previous);
		pfree(entry->raw);
		entry->raw = NULL;
		entry->state = ENTRY_KNOWN;
	}
}

void
mr_dictionary_refuse(MrDictionary *d, const char *why)
{
	if (d->nread < d->nasked)
		refuse_entry(d, d->asked[d->nread++], why);
}

const MrValue *
mr_dictionary_values(const MrDictionary *d, const MrEntry *entry, const char *element, int length)
{
	int low = 0;
	int high = entry->nelements;

	if (entry->state != ENTRY_KNOWN)
		return NULL;
	if (!d->has_elements)
		return entry->values + 1;
	while (low < high)
	{
		int middle = low + (high - low) / 2;
		const MrValue *key = entry->keys[middle];

		if (compare_texts(key->text, key->length, element, length) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == entry->nelements ||
		compare_texts(entry->keys[low]->text, entry->keys[low]->length, element, length) != 0)
		return NULL;
	return entry->keys[low] + 1;
}

char *
mr_dictionary_complaint(MrDictionary *d)
{
	for (int i = 0; i < d->nasked && !d->told; i++)
	{
		if (d->asked[i]->state != ENTRY_BAD)
			continue;
		d->told = true;
		return psprintf("entry \"%s\" of dictionary \"%s\" cannot be used: %s", d->asked[i]->id,
						d->name, d->asked[i]->problem);
	}
	return NULL;
}

PG_FUNCTION_INFO_V1(millrace_probe_dictionary);

/* probe_dictionary(id): looks up what is hardly there. */
Datum
millrace_probe_dictionary(PG_FUNCTION_ARGS)
{
	MemoryContext context;
	MrDictionary *d;

	SPI_connect();
	context = AllocSetContextCreate(CurrentMemoryContext, "millrace dictionary",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	d = mr_dictionary_load(PG_GETARG_INT32(0));
	if (d != NULL)
	{
		d->stage_when_down = false;
		mr_dictionary_begin(d);
		(void) mr_dictionary_entry(d, "0", 1, true);
		mr_dictionary_ask(d);
		mr_dictionary_select(d);
	}
	MemoryContextDelete(context);
	SPI_finish();
	PG_RETURN_VOID();
}
