/*
 * enrich.c
 *	  Enrichment of messages from dictionaries.
 *
 * A look-up ("user": ["users", "$.payload.user.id"]) says which dictionary is asked for which id, once for a message or
 * once for each element of a for_each.  Ids are taken out of messages by a small plan of their own, since the
 * whole message is decoded only when it is mapped.  What a dictionary does not know is remembered with the message, so
 * that mapping can say that a version is not complete yet.
 */
#include "postgres.h"

#include "core/millrace.h"
#include "core/statement.h"
#include "stage/dictionary.h"
#include "stage/enrich.h"
#include "stage/mapping.h"
#include "utils/memutils.h"

/* A member of `enrich`. */
typedef struct LookUp
{
	char *name;
	MrDictionary *dictionary;
	char *for_each; /* NULL: once for a message */
	int scope; /* in the plan of ids */
	MrSlot id;
	bool by_element;
	MrSlot element; /* key of an element of the entry */
	bool read; /* some mapping speaks of it */
} LookUp;

/* A slot of the extraction plan that is filled from a look-up. */
typedef struct Filled
{
	MrSlot slot;
	int look_up;
	int wanted; /* number of the dictionary's value */
} Filled;

struct MrEnrichment
{
	int nlook_ups;
	LookUp *look_ups;
	int nfilled;
	Filled *filled;
	int ndictionaries;
	MrDictionary **dictionaries;
	MrPlan *ids;
	int32 stream_id;
};

/* One id that was looked up. */
typedef struct Found
{
	MrEntry *entry; /* NULL: the message has no id */
	const char *element;
	int element_length;
	const MrValue *values; /* NULL: nothing is known */
	bool unchanged; /* the source did not send the id, because it is what it was */
} Found;

/* What was looked up for a message: for each look-up one, or one for each element. */
typedef struct MrLookedUp
{
	int count;
	Found *found;
} MrLookedUp;

static int current_message;

int
mr_enrich_place(void)
{
	return current_message;
}

/* ---- compiling ------------------------------------------------------------------------------------------- */

/* The dictionary of that id, loaded once. */
static MrDictionary *
dictionary_of(MrEnrichment *e, int32 id)
{
	for (int i = 0; i < e->ndictionaries; i++)
	{
		if (mr_dictionary_id(e->dictionaries[i]) == id)
			return e->dictionaries[i];
	}
	return e->dictionaries[e->ndictionaries++] = mr_dictionary_load(id);
}

/* A look-up from row `row` of SPI_tuptable, whose paths are added to the plan of ids. */
static void
load_look_up(MrEnrichment *e, LookUp *l, uint64 row)
{
	SPITupleTable *rows = SPI_tuptable;
	char *id = mr_sql_text(row, 3);
	char *element = mr_sql_text(row, 5);
	bool isnull;
	Datum dictionary = mr_sql_value(row, 2, &isnull);

	l->name = mr_sql_text(row, 1);
	l->for_each = mr_sql_text(row, 4);
	if (isnull)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("the dictionary of \"%s\" does not exist any more", l->name),
						errhint("Create it again, or the stream with replace => true and another "
								"\"enrich\".")));
	l->dictionary = dictionary_of(e, DatumGetInt32(dictionary));
	SPI_tuptable = rows;
	if (l->for_each != NULL)
	{
		MrPath *path = mr_path_parse(l->for_each);

		l->for_each = pstrdup(path->text);
		l->scope = mr_plan_scope(e->ids, path);
	}
	l->id = mr_plan_slot(e->ids, l->scope, mr_path_parse(id));
	l->by_element = element != NULL;
	if (element != NULL)
		l->element = mr_plan_slot(e->ids, l->scope, mr_path_parse(element));
}

/* The members of the stream's `enrich`. */
static void
load_look_ups(MrEnrichment *e, const MrStream *stream)
{
	e->nlook_ups = (int) mr_sql(
		"SELECT m.key, d.id, "
		"coalesce(m.value ->> 'lookup', m.value ->> 1), m.value ->> 'for_each', m.value ->> 'entry' "
		"FROM millrace.stream s CROSS JOIN json_each(s.enrich) m "
		"LEFT JOIN millrace.dictionary d ON d.name = coalesce(m.value ->> 'dictionary', m.value ->> 0) "
		"WHERE s.id = %d",
		stream->id);
	e->look_ups = palloc0(sizeof(LookUp) * Max(e->nlook_ups, 1));
	e->dictionaries = palloc(sizeof(MrDictionary *) * Max(e->nlook_ups, 1));
	for (int i = 0; i < e->nlook_ups; i++)
		load_look_up(e, &e->look_ups[i], i);
	SPI_freetuptable(SPI_tuptable);
}

/* The look-up that a path's first member names. */
static int
look_up_of(const MrEnrichment *e, const MrPath *path)
{
	const char *name = path->nsteps > 0 && path->steps[0].kind == MR_STEP_MEMBER
						   ? path->steps[0].name
						   : NULL;
	StringInfoData known;

	initStringInfo(&known);
	for (int i = 0; i < e->nlook_ups; i++)
	{
		if (name != NULL && strcmp(e->look_ups[i].name, name) == 0)
			return i;
		appendStringInfo(&known, "%s\"%s\"", i > 0 ? ", " : "", e->look_ups[i].name);
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("path \"%s\" names nothing that the stream looks up", path->text),
			 e->nlook_ups > 0 ? errhint("The stream's \"enrich\" has: %s.", known.data)
							  : errhint("Say what is looked up with create_stream(…, enrich => "
										"…).")));
	return -1;
}

/* The paths of mappings begin with $dict where the look-up is one for a message, with @dict where it is for each element. */
static void
check_root(const MrEnrichment *e, const MrPath *path, const LookUp *l, bool same_scope)
{
	if (path->root == MR_ROOT_DICT && l->for_each != NULL)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("path \"%s\" speaks of one value, but \"%s\" is looked up for each "
							   "element",
							   path->text, l->name),
						errhint("Begin it with @dict in a staging table with for_each => '%s'.",
								l->for_each)));
	if (path->root != MR_ROOT_ELEMENT_DICT)
		return;
	if (l->for_each == NULL)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("path \"%s\" speaks of an element, but \"%s\" is looked up once for "
							   "the message",
							   path->text, l->name),
						errhint("Begin it with $dict.")));
	if (!same_scope)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("\"%s\" is looked up for each element of another array than path "
							   "\"%s\" is about",
							   l->name, path->text),
						errhint("It is looked up for each of %s.", l->for_each)));
}

/* Adds the slot, if it is one that enrichment fills; returns its look-up, or -1. */
static int
add_filled(MrEnrichment *e, MrPlan *extraction, MrSlot slot)
{
	const MrPath *path = mr_plan_path(extraction, slot);
	int number;
	LookUp *l;
	Filled *filled;
	bool same_scope = true;

	if (path->root != MR_ROOT_DICT && path->root != MR_ROOT_ELEMENT_DICT)
		return -1;
	number = look_up_of(e, path);
	l = &e->look_ups[number];
	if (l->for_each != NULL && path->root == MR_ROOT_ELEMENT_DICT)
		same_scope = mr_plan_scope(extraction, mr_path_parse(l->for_each)) == slot.scope;
	check_root(e, path, l, same_scope);
	l->read = true;
	for (int i = 0; i < e->nfilled; i++)
	{
		if (e->filled[i].slot.scope == slot.scope && e->filled[i].slot.number == slot.number)
			return number;
	}
	e->filled = e->filled == NULL ? palloc(sizeof(Filled))
								  : repalloc(e->filled, sizeof(Filled) * (e->nfilled + 1));
	filled = &e->filled[e->nfilled++];
	filled->slot = slot;
	filled->look_up = number;
	filled->wanted = mr_dictionary_want(l->dictionary, path, 1);
	return number;
}

/* What decides which object and which version a message tells of has to stand in it. */
static void
check_place(const MrStaging *staging, const MrMapped *mapped, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s of staging table %s cannot come from a dictionary", what, staging->name),
			 errdetail("\"%s\" may become known after the message has been staged.", mapped->name),
			 errhint("Only columns beside the key may that route does not read.")));
}

/* Adds the slots of one mapped value; false when none comes from a dictionary. */
static bool
add_mapped(MrEnrichment *e, MrPlan *extraction, MrStaging *staging, MrMapped *mapped)
{
	bool any = false;

	for (int i = 0; mapped != NULL && i < mapped->nslots; i++)
	{
		int look_up = add_filled(e, extraction, mapped->slots[i]);

		if (look_up < 0)
			continue;
		any = true;
		mapped->enriched = true;
		staging->plan->enriched = bms_add_member(staging->plan->enriched, look_up);
	}
	return any;
}

MrEnrichment *
mr_enrich_load(MrStream *stream, MrPlan *extraction, List *stagings)
{
	MrEnrichment *e = palloc0(sizeof(MrEnrichment));
	ListCell *lc;

	e->stream_id = stream->id;
	e->ids = mr_plan_create();
	if (strcmp(stream->format, "debezium") == 0)
		mr_plan_read_debezium(e->ids);
	load_look_ups(e, stream);
	foreach(lc, stagings)
	{
		MrStaging *staging = lfirst(lc);
		MrStagingPlan *plan = staging->plan;

		for (int i = 0; i < plan->nmapped; i++)
		{
			if (!add_mapped(e, extraction, staging, &plan->mapped[i]))
				continue;
			if (i < staging->nkeys)
				check_place(staging, &plan->mapped[i], "the key");
			if (plan->mapped[i].for_route)
				check_place(staging, &plan->mapped[i], "a column that route reads");
		}
		if (add_mapped(e, extraction, staging, plan->version))
			check_place(staging, plan->version, "the version");
		if (add_mapped(e, extraction, staging, plan->event_time))
			check_place(staging, plan->event_time, "the event time");
	}
	return e->nfilled > 0 ? e : NULL;
}

/* ---- looking up ------------------------------------------------------------------------------------------ */

void
mr_enrich_begin(MrEnrichment *e)
{
	for (int i = 0; i < e->ndictionaries; i++)
		mr_dictionary_begin(e->dictionaries[i]);
}

/* What is looked up for one element, or for the message. */
static void
look_up_one(const LookUp *l, const MrDocument *document, int element, Found *found)
{
	const MrValue *id = mr_document_value(document, l->scope, element, l->id);
	const MrValue *key = NULL;

	memset(found, 0, sizeof(Found));
	found->unchanged = id->kind == MR_UNCHANGED;
	if (mr_value_is_null(id) || id->kind == MR_CONTAINER)
		return;
	if (l->by_element)
	{
		key = mr_document_value(document, l->scope, element, l->element);
		found->unchanged = key->kind == MR_UNCHANGED;
		if (mr_value_is_null(key) || key->kind == MR_CONTAINER)
			return;
		/* What had escapes is gone with the document. */
		found->element = key->form == MR_FORM_SLICE ? key->text : pnstrdup(key->text, key->length);
		found->element_length = key->length;
	}
	found->entry = mr_dictionary_entry(l->dictionary, id->text, id->length, false);
}

/* Collects what one message asks for; `document` is gone afterwards. */
static MrLookedUp *
collect_message(const MrEnrichment *e, const MrDocument *document)
{
	MrLookedUp *looked_up = palloc(sizeof(MrLookedUp) * e->nlook_ups);

	for (int i = 0; i < e->nlook_ups; i++)
	{
		const LookUp *l = &e->look_ups[i];
		int count = l->read ? mr_document_elements(document, l->scope) : 0;

		looked_up[i].count = count;
		looked_up[i].found = palloc(sizeof(Found) * Max(count, 1));
		for (int element = 0; element < count; element++)
			look_up_one(l, document, element, &looked_up[i].found[element]);
	}
	return looked_up;
}

void
mr_enrich_collect(MrBatch *batch, int from)
{
	const MrEnrichment *e = batch->stream->enrichment;
	MemoryContext previous = MemoryContextSwitchTo(batch->context);
	MemoryContext document_context = AllocSetContextCreate(batch->context, "millrace ids",
														   ALLOCSET_DEFAULT_SIZES);

	if (batch->looked_up == NULL)
		batch->looked_up = MemoryContextAllocExtended(
			batch->context, sizeof(MrLookedUp *) * Max(batch->nmessages, 1),
			MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (current_message = from; current_message < batch->nmessages; current_message++)
	{
		const MrMessage *message = &batch->messages[current_message];
		MrDocument *document;

		if (message->value == NULL || mr_message_left_out(batch, message, NULL))
			continue;
		MemoryContextReset(document_context);
		MemoryContextSwitchTo(document_context);
		document = mr_plan_run(e->ids, message);
		MemoryContextSwitchTo(batch->context);
		/* A delete tells nothing but its key. */
		if (!document->deleted)
			batch->looked_up[current_message] = collect_message(e, document);
	}
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(document_context);
}

void
mr_enrich_ask(MrEnrichment *e)
{
	for (int i = 0; i < e->ndictionaries; i++)
		mr_dictionary_ask(e->dictionaries[i]);
}

void
mr_enrich_select(MrEnrichment *e)
{
	for (int i = 0; i < e->ndictionaries; i++)
		mr_dictionary_select(e->dictionaries[i]);
}

/* Which dictionary is being read, for whoever refuses an entry. */
static MrDictionary *reading;

void
mr_enrich_read(MrEnrichment *e)
{
	for (int i = 0; i < e->ndictionaries; i++)
	{
		reading = e->dictionaries[i];
		mr_dictionary_read(reading);
	}
}

void
mr_enrich_refuse(MrEnrichment *e, const char *why)
{
	mr_dictionary_refuse(reading, why);
}

void
mr_enrich_resolve(MrBatch *batch)
{
	const MrEnrichment *e = batch->stream->enrichment;

	for (int m = 0; m < batch->nmessages; m++)
	{
		MrLookedUp *looked_up = batch->looked_up[m];

		for (int i = 0; looked_up != NULL && i < e->nlook_ups; i++)
		{
			for (int f = 0; f < looked_up[i].count; f++)
			{
				Found *found = &looked_up[i].found[f];

				if (found->entry != NULL)
					found->values = mr_dictionary_values(e->look_ups[i].dictionary, found->entry,
														 found->element, found->element_length);
			}
		}
	}
	for (int i = 0; i < e->ndictionaries; i++)
	{
		char *complaint = mr_dictionary_complaint(e->dictionaries[i]);

		if (complaint != NULL)
			mr_incident(e->stream_id, "dictionary_entry", complaint);
	}
}

/* ---- mapping --------------------------------------------------------------------------------------------- */

/* What was looked up for a message, or NULL. */
static const MrLookedUp *
looked_up_of(const MrBatch *batch, const MrMessage *message)
{
	return batch->looked_up == NULL ? NULL : batch->looked_up[message - batch->messages];
}

void
mr_enrich_fill(const MrBatch *batch, const MrMessage *message, MrDocument *document)
{
	const MrEnrichment *e = batch->stream->enrichment;
	const MrLookedUp *looked_up = looked_up_of(batch, message);

	if (looked_up == NULL)
		return;
	for (int i = 0; i < e->nfilled; i++)
	{
		const Filled *filled = &e->filled[i];
		const MrLookedUp *found = &looked_up[filled->look_up];

		for (int f = 0; f < found->count; f++)
		{
			MrValue *value = mr_document_value(document, filled->slot.scope, f, filled->slot);

			if (found->found[f].values != NULL)
				*value = found->found[f].values[filled->wanted];
			else if (found->found[f].unchanged)
			{
				/* So is what the dictionary has said of it. */
				value->kind = MR_UNCHANGED;
				document->unchanged = true;
			}
		}
	}
}

bool
mr_enrich_lacks(const MrBatch *batch, const MrMessage *message, const Bitmapset *enriched)
{
	const MrLookedUp *looked_up = looked_up_of(batch, message);
	int i = -1;

	if (looked_up == NULL)
		return false;
	while ((i = bms_next_member(enriched, i)) >= 0)
	{
		for (int f = 0; f < looked_up[i].count; f++)
		{
			if (looked_up[i].found[f].entry != NULL && looked_up[i].found[f].values == NULL)
				return true;
		}
	}
	return false;
}

/* Is it in the list? */
static bool
already_lacking(const List *lacking, const MrLack *lack)
{
	ListCell *lc;

	foreach(lc, lacking)
	{
		const MrLack *other = lfirst(lc);

		if (other->dictionary_id == lack->dictionary_id && strcmp(other->id, lack->id) == 0 &&
			(lack->element == NULL || strcmp(other->element, lack->element) == 0))
			return true;
	}
	return false;
}

List *
mr_enrich_lacking(const MrBatch *batch, const MrMessage *message, const Bitmapset *enriched)
{
	const MrEnrichment *e = batch->stream->enrichment;
	const MrLookedUp *looked_up = looked_up_of(batch, message);
	List *lacking = NIL;
	int i = -1;

	while ((i = bms_next_member(enriched, i)) >= 0)
	{
		const MrDictionary *dictionary = e->look_ups[i].dictionary;

		for (int f = 0; f < looked_up[i].count; f++)
		{
			const Found *found = &looked_up[i].found[f];
			MrLack *lack;

			if (found->entry == NULL || found->values != NULL)
				continue;
			lack = palloc(sizeof(MrLack));
			lack->dictionary_id = mr_dictionary_id(dictionary);
			lack->dictionary = mr_dictionary_name(dictionary);
			lack->id = mr_entry_id(found->entry);
			lack->element = found->element == NULL
								? NULL
								: pnstrdup(found->element, found->element_length);
			lack->problem = mr_entry_problem(found->entry);
			if (!already_lacking(lacking, lack))
				lacking = lappend(lacking, lack);
		}
	}
	return lacking;
}

/* ---- what messages wait for ------------------------------------------------------------------------------ */

/* The dictionary of that id that some mapping reads, or NULL. */
static MrDictionary *
read_dictionary(const MrEnrichment *e, int32 id)
{
	for (int i = 0; e != NULL && i < e->nlook_ups; i++)
	{
		const LookUp *l = &e->look_ups[i];

		if (l->read && mr_dictionary_id(l->dictionary) == id)
			return l->dictionary;
	}
	return NULL;
}

void
mr_enrich_want(MrEnrichment *e, int32 dictionary_id, const char *id)
{
	MrDictionary *dictionary = read_dictionary(e, dictionary_id);

	if (dictionary != NULL)
		(void) mr_dictionary_entry(dictionary, id, strlen(id), true);
}

bool
mr_enrich_knows_entry(MrEnrichment *e, int32 dictionary_id, const char *id)
{
	MrDictionary *dictionary = read_dictionary(e, dictionary_id);

	return dictionary == NULL ||
		   mr_entry_is_known(mr_dictionary_entry(dictionary, id, strlen(id), false));
}

bool
mr_enrich_knows(MrEnrichment *e, int32 dictionary_id, const char *id, const char *element)
{
	MrDictionary *dictionary = read_dictionary(e, dictionary_id);
	MrEntry *entry;

	if (dictionary == NULL || (element == NULL) == mr_dictionary_has_elements(dictionary))
		return true;
	entry = mr_dictionary_entry(dictionary, id, strlen(id), false);
	return mr_dictionary_values(dictionary, entry, element,
								element == NULL ? 0 : strlen(element)) != NULL;
}

void
mr_enrich_write_stats(MrEnrichment *e, int32 stream_id, int worker)
{
	for (int i = 0; i < e->ndictionaries; i++)
	{
		MrDictionaryCounts counts = mr_dictionary_take_counts(e->dictionaries[i]);

		if (counts.hits == 0 && counts.misses == 0)
			continue;
		(void) mr_sql(
			"INSERT INTO millrace.dictionary_stats AS t (dictionary_id, stream_id, "
			"worker, hits, misses, unknown, requests, seconds) VALUES (%d, %d, %d, " INT64_FORMAT
			", " INT64_FORMAT ", " INT64_FORMAT ", " INT64_FORMAT
			", %.6f) ON CONFLICT (dictionary_id, stream_id, worker) DO UPDATE SET "
			"hits = t.hits + EXCLUDED.hits, misses = t.misses + EXCLUDED.misses, "
			"unknown = t.unknown + EXCLUDED.unknown, "
			"requests = t.requests + EXCLUDED.requests, "
			"seconds = t.seconds + EXCLUDED.seconds",
			mr_dictionary_id(e->dictionaries[i]), stream_id, worker, counts.hits, counts.misses,
			counts.unknown, counts.requests, counts.seconds);
	}
}
