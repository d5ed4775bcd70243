/*
 * map.c
 *	  From messages to versions of objects: paths, types, and the expressions in their order.
 *
 *		route → key, version, event time → deleted → computed → filter → expect
 *
 * Nothing here writes to the database, so that bad data may be found and left out by trying: an error is
 * raised out of mr_map_messages, which remembers where it was.
 */
#include "postgres.h"

#include "core/hash.h"
#include "core/millrace.h"
#include "nodes/pg_list.h"
#include "source/change.h"
#include "stage/mapping.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

/* A sweep removes no more objects of a staging table than this at once. */
#define SWEEP_OBJECTS 50000

/* Where mapping is, for whoever catches its errors. */
static int current_message;
static MrStaging *current_staging;
static bool reading; /* what the message says, before any expression */

/* As whom and under which settings expressions are evaluated now; switched only when the next differ. */
typedef struct Evaluation
{
	MrBatch *batch;
	MemoryContext document_context; /* reset for each message */
	MrDocument *document;
	MrHasher *hasher;
	bool keys_only; /* of messages that speak of something erased */
	bool incomplete; /* the version that is mapped lacks what a dictionary does not know yet */
	MrMessage *message;
	const MrStaged *staged; /* it is being mapped for that; as far as it was filled before */
	MrUnchanged **known; /* by staging.ordinal; NULL while no message needs completing */
	bool entered;
	Oid owner;
	const char *timezone;
	int nest_level;
	MrRunAs saved;
} Evaluation;

void
mr_map_place(int *message, MrStaging **staging)
{
	*message = current_message;
	*staging = current_staging;
}

/*
 * Input functions and parsers have their own ideas of what is wrong with a text: 42601, 42704, XX000.  Nothing is wrong
 * but the text, unless it is the server that cannot go on.
 */
MrErrorClass
mr_map_error_class(int sqlstate)
{
	bool read = reading;

	reading = false;
	if (!read || sqlstate == ERRCODE_DATA_CORRUPTED || sqlstate == ERRCODE_INDEX_CORRUPTED)
		return mr_error_class(sqlstate);
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case MAKE_SQLSTATE('0', '8', '0', '0', '0'):
		case MAKE_SQLSTATE('4', '0', '0', '0', '0'):
		case MAKE_SQLSTATE('5', '3', '0', '0', '0'):
		case MAKE_SQLSTATE('5', '5', '0', '0', '0'):
		case MAKE_SQLSTATE('5', '7', '0', '0', '0'):
		case MAKE_SQLSTATE('5', '8', '0', '0', '0'):
			return mr_error_class(sqlstate);
		default:
			return MR_ERROR_DATA;
	}
}

static void
leave(Evaluation *e)
{
	if (!e->entered)
		return;
	mr_run_back(&e->saved);
	mr_settings_unpin(e->nest_level);
	e->entered = false;
}

static void
enter(Evaluation *e, const MrStaging *staging)
{
	if (e->entered && e->owner == staging->owner && strcmp(e->timezone, staging->timezone) == 0)
		return;
	leave(e);
	e->owner = staging->owner;
	e->timezone = staging->timezone;
	e->nest_level = mr_settings_pin(staging->timezone);
	mr_run_as_restricted(&e->saved, staging->owner);
	e->entered = true;
}

/* The value of the first path that is not null, or NULL. */
static const MrValue *
first_value(const Evaluation *e, const MrStagingPlan *plan, const MrMapped *mapped, int element)
{
	for (int i = 0; i < mapped->nslots; i++)
	{
		MrSlot slot = mapped->slots[i];
		const MrValue *value;

		/* Before elements are looked at, what is of an element is not there. */
		if (element < 0 && slot.scope != MR_SCOPE_MESSAGE)
			continue;
		value = mr_document_value(e->document, plan->scope, element, slot);
		/* What was left out because it has not changed is no null. */
		if (!mr_value_is_null(value) || value->kind == MR_UNCHANGED)
			return value;
	}
	return NULL;
}

/* What the message says as a value of the column's type.  A domain is asked by expressions, whose errors are their own. */
static Datum
convert(const MrMapped *mapped, const MrValue *value)
{
	Datum result;

	reading = !mapped->is_domain;
	result = mr_convert(mapped->converter, value);
	reading = false;
	return result;
}

/* The mapped value; null when it is not known. */
static Datum
mapped_value(const Evaluation *e, const MrStagingPlan *plan, const MrMapped *mapped, int element,
			 bool *isnull)
{
	const MrValue *value = first_value(e, plan, mapped, element);

	*isnull = value == NULL || mr_value_is_null(value);
	return *isnull ? (Datum) 0 : convert(mapped, value);
}

/* Puts mapped column i into the rows that expressions see. */
static void
map_column(const Evaluation *e, const MrStaging *staging, int i, int element)
{
	const MrStagingPlan *plan = staging->plan;
	const MrMapped *mapped = &plan->mapped[i];
	const MrValue *found = first_value(e, plan, mapped, element);
	bool isnull = found == NULL || mr_value_is_null(found);
	Datum value = (Datum) 0;

	if (!isnull)
		value = convert(mapped, found);
	else if (found != NULL && e->known != NULL && i >= staging->nkeys)
		/* The key stands first in the raw row. */
		value = mr_unchanged_value(e->known[staging->ordinal], e->staged, plan->raw->tts_values,
								   e->message, i, &isnull);

	plan->raw->tts_values[i] = value;
	plan->raw->tts_isnull[i] = isnull;
	if (mapped->same_type)
	{
		plan->row->tts_values[mapped->attnum - 1] = value;
		plan->row->tts_isnull[mapped->attnum - 1] = isnull;
	}
}

/* What the extraction plan finds in the message, and dictionaries know of it; until the next one. */
static MrDocument *
decode(Evaluation *e, MrPlan *extraction)
{
	MemoryContext previous;
	MrDocument *document;

	MemoryContextReset(e->document_context);
	previous = MemoryContextSwitchTo(e->document_context);
	reading = true;
	document = mr_plan_run(extraction, e->message);
	reading = false;
	MemoryContextSwitchTo(previous);
	if (e->batch->looked_up != NULL)
		mr_enrich_fill(e->batch, e->message, document);
	return document;
}

/* Empties the rows that expressions see. */
static void
clear_rows(const MrStagingPlan *plan)
{
	ExecClearTuple(plan->row);
	ExecClearTuple(plan->raw);
	memset(plan->row->tts_isnull, true, plan->row->tts_tupleDescriptor->natts);
	memset(plan->raw->tts_isnull, true, plan->raw->tts_tupleDescriptor->natts);
	ExecStoreVirtualTuple(plan->row);
	ExecStoreVirtualTuple(plan->raw);
}

/* Readies the rows for a message, as that staging table is about to map it. */
static void
begin(Evaluation *e, const MrStaged *staged, MrMessage *message)
{
	enter(e, staged->staging);
	e->staged = staged;
	e->message = message;
	message->unknown = false;
	clear_rows(staged->staging->plan);
}

/*
 * Does the change come from the staging table's source table?  Where only the topic tells, it may have a prefix, as
 * in server.schema.table.
 */
static bool
of_source_table(const Evaluation *e, const MrStagingPlan *plan, const MrMessage *message)
{
	const char *table = e->document->table;
	Size topic;
	Size name;

	if (plan->source_table == NULL)
		return true;
	if (table != NULL || message->topic == NULL)
		return table != NULL && strcmp(table, plan->source_table) == 0;
	topic = strlen(message->topic);
	name = strlen(plan->source_table);
	return topic >= name && strcmp(message->topic + topic - name, plan->source_table) == 0 &&
		   (topic == name || message->topic[topic - name - 1] == '.');
}

/* One more version of the staging table. */
static MrVersion *
add_version(MrBatch *batch, MrStaged *staged)
{
	MrVersion *version;

	if (staged->nversions == staged->capacity)
	{
		int capacity = Max(batch->nmessages, staged->capacity * 2);
		MrVersion *grown = MemoryContextAllocHuge(batch->context, sizeof(MrVersion) * capacity);

		if (staged->nversions > 0)
			memcpy(grown, staged->versions, sizeof(MrVersion) * staged->nversions);
		if (staged->versions != NULL)
			pfree(staged->versions);
		staged->versions = grown;
		staged->capacity = capacity;
	}
	version = &staged->versions[staged->nversions++];
	memset(version, 0, sizeof(MrVersion));
	return version;
}

/* Which state of the object it is: the declared version, or the source's own order. */
static void
map_version(const Evaluation *e, const MrStaging *staging, MrVersion *version)
{
	const MrStagingPlan *plan = staging->plan;
	MrMessage *message = version->message;

	if (plan->version == NULL)
	{
		version->version = Int64GetDatum(message->position);
		return;
	}
	version->version = mapped_value(e, plan, plan->version, -1, &version->version_null);
	if (e->document->deleted && version->version_null)
	{
		version->version_null = false;
		if (plan->tombstone == MR_TOMBSTONE_ALWAYS)
		{
			version->version_null = true;
			version->always = true;
			return;
		}
		if (plan->tombstone == MR_TOMBSTONE_REFUSE || !staging->version_is_time)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_EXCEPTION), errmsg("a tombstone has no version"),
					 errdetail("The version of %s comes from the payload, and cannot be compared "
							   "with the time of a message without one.",
							   staging->name),
					 errhint("Declare the staging table with tombstone => 'always' when a "
							 "tombstone removes its object whatever its version.")));
		version->version = TimestampTzGetDatum(message->time);
		return;
	}
	if (!version->version_null && staging->version_is_time &&
		DatumGetTimestampTz(version->version) - e->batch->loaded_at > plan->max_ahead)
		ereport(ERROR, (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
						errmsg("version %s lies further ahead than max_ahead allows",
							   timestamptz_to_str(DatumGetTimestampTz(version->version))),
						errdetail("It would win over every later version of its object.")));
}

/*
 * Has the change, of which something was left out, come before?  Maps the key, by which the rest of it is completed.
 */
static bool
said_before(const Evaluation *e, const MrStaging *staging)
{
	const MrStagingPlan *plan = staging->plan;
	MrVersion version = {.message = e->message, .key = plan->raw->tts_values};

	for (int i = 0; i < staging->nkeys; i++)
	{
		map_column(e, staging, i, -1);
		if (plan->raw->tts_isnull[i])
			return false;
	}
	/* A PostgreSQL sends a change once, and can be asked for what is not known. */
	if (e->known == NULL || e->message->relation != NULL)
		return false;
	map_version(e, staging, &version);
	return mr_unchanged_said_before(e->known[staging->ordinal], &version,
									e->document->op != NULL && e->document->op[0] == MR_OP_UPDATE);
}

/*
 * Is the message of this staging table?  A delete may have no payload to judge by: only a route that is false
 * for it, by its topic for example, keeps it out.
 */
static bool
routed(const Evaluation *e, const MrStaging *staging, const MrMessage *message)
{
	const MrStagingPlan *plan = staging->plan;
	bool isnull;
	Datum value;

	if (!of_source_table(e, plan, message))
		return false;
	if (plan->tombstone == MR_TOMBSTONE_IGNORE && e->document->deleted && e->document->op == NULL)
		return false;
	if (e->document->unchanged && said_before(e, staging))
		return false;
	if (plan->route == NULL)
		return true;
	for (int i = 0; i < plan->nmapped; i++)
	{
		if (plan->mapped[i].for_route && !plan->mapped[i].of_element)
			map_column(e, staging, i, -1);
	}
	value = mr_expression_value(plan->route, plan->context, &isnull);
	return isnull ? e->document->deleted : DatumGetBool(value);
}

/* A row that fails an expectation goes to the dead letters alone. */
static void
fail_expectation(MrBatch *batch, const MrStaging *staging, MrMessage *message, int32 element,
				 const char *expectation)
{
	MrFailure *failure = palloc0(sizeof(MrFailure));

	failure->message = message;
	failure->staging = (MrStaging *) staging;
	failure->element = element;
	failure->expectation = expectation;
	failure->sqlstate = ERRCODE_CHECK_VIOLATION;
	failure->text = psprintf("row of %s does not meet expectation \"%s\"", staging->name,
							 expectation);
	mr_failure_add(batch, failure);
}

/* Computes, filters and checks the row that the slots hold; true when it is kept. */
static bool
evaluate_row(const Evaluation *e, const MrStaging *staging, MrMessage *message, int32 element)
{
	const MrStagingPlan *plan = staging->plan;

	for (int i = 0; i < plan->ncomputed; i++)
	{
		const MrComputed *computed = &plan->computed[i];
		int attribute = computed->attnum - 1;

		plan->row->tts_values[attribute] = mr_expression_value(computed->expression, plan->context,
															   &plan->row->tts_isnull[attribute]);
	}
	if (plan->filter != NULL && !mr_expression_true(plan->filter, plan->context))
		return false;
	/* What is not known yet cannot be expected: it is judged when it is. */
	for (int i = 0; i < plan->nexpected && !e->incomplete; i++)
	{
		if (!mr_expression_true(plan->expected[i].expression, plan->context))
		{
			fail_expectation(e->batch, staging, message, element, plan->expected[i].name);
			return false;
		}
	}
	return true;
}

/* The payload as it came.  What making jsonb of it leaves behind goes with the document. */
static Datum
payload_value(const Evaluation *e, const MrStagingPlan *plan, const MrMessage *message)
{
	MemoryContext previous;
	MrMessage readable;
	Datum jsonb;

	if (message->relation != NULL)
	{
		readable = mr_message_readable(message);
		message = &readable;
	}
	if (plan->payload == MR_PAYLOAD_JSON)
		return PointerGetDatum(cstring_to_text_with_len(message->value, message->value_length));
	if (e->document->jsonb != NULL)
		return datumCopy(PointerGetDatum(e->document->jsonb), false, -1);
	previous = MemoryContextSwitchTo(e->document_context);
	reading = true;
	jsonb = DirectFunctionCall1(jsonb_in,
								CStringGetDatum(pnstrdup(message->value, message->value_length)));
	reading = false;
	MemoryContextSwitchTo(previous);
	return datumCopy(jsonb, false, -1);
}

/* Keeps the row that the slots hold, with its technical columns. */
static void
keep_row(const MrStaging *staging, MrVersion *version, int32 element, Datum payload)
{
	const MrStagingPlan *plan = staging->plan;
	int natts = staging->desc->natts;
	MrRow *row = &version->rows[version->nrows++];

	row->element = element;
	row->values = palloc(sizeof(Datum) * natts);
	row->nulls = palloc(natts);
	memcpy(row->values, plan->row->tts_values, sizeof(Datum) * natts);
	memcpy(row->nulls, plan->row->tts_isnull, natts);
#define SET(attnum, value) (row->values[(attnum) -1] = (value), row->nulls[(attnum) -1] = false)
	if (staging->element != InvalidAttrNumber)
		SET(staging->element, Int32GetDatum(element));
	if (!version->version_null)
		SET(staging->version, version->version);
	if (!version->event_time_null)
		SET(staging->event_time, TimestampTzGetDatum(version->event_time));
	SET(plan->partition, Int32GetDatum(version->message->partition));
	SET(plan->position, Int64GetDatum(version->message->position));
	SET(plan->loaded_at, TimestampTzGetDatum(version->loaded_at));
	if (plan->payload != MR_PAYLOAD_NONE)
		SET(plan->payload_attnum, payload);
#undef SET
}

/*
 * A message needs what came before it: from now on the batch's messages are remembered, those that are mapped
 * already, too.
 */
static void
know_objects(Evaluation *e, MrPlan *extraction)
{
	MrBatch *batch = e->batch;
	MrMessage *message = e->message;

	e->known = palloc0(sizeof(MrUnchanged *) * batch->nstaged);
	for (int s = 0; s < batch->nstaged; s++)
	{
		MrStaged *staged = &batch->staged[s];
		MrStaging *staging = staged->staging;
		MrStaged past = *staged;

		e->known[s] = mr_unchanged_create(batch, staging);
		for (int v = 0; v < staged->nversions; v++)
		{
			MrVersion *version = &staged->versions[v];

			past.nversions = v;
			begin(e, &past, version->message);
			e->document = decode(e, extraction);
			for (int i = 0; i < staging->plan->nmapped; i++)
			{
				if (!staging->plan->mapped[i].of_element &&
					(i < staging->nkeys || !e->document->deleted))
					map_column(e, staging, i, -1);
			}
			mr_unchanged_note(e->known[s], version, !e->document->unchanged, e->document->deleted);
		}
	}
	e->message = message;
}

/* The rows of a version: one, or one for each element. */
static void
map_rows(const Evaluation *e, const MrStaging *staging, MrVersion *version)
{
	const MrStagingPlan *plan = staging->plan;
	bool for_each = plan->scope != MR_SCOPE_MESSAGE;
	int nelements = for_each ? mr_document_elements(e->document, plan->scope) : 1;
	Datum payload = (Datum) 0;

	if (for_each && nelements == 0 && e->document->unchanged &&
		mr_document_elements_unchanged(e->document, plan->scope))
	{
		if (version->message->relation != NULL)
		{
			version->message->reread = version->message->unknown = true;
			return;
		}
		ereport(
			ERROR,
			(errcode(ERRCODE_DATA_EXCEPTION),
			 errmsg("the elements of %s were not sent, because they have not changed",
					staging->name),
			 errhint("Run ALTER TABLE … REPLICA IDENTITY FULL at the source, and update the row "
					 "there once more.")));
	}

	if (nelements == 0)
		return;
	if (plan->payload != MR_PAYLOAD_NONE)
		payload = payload_value(e, plan, version->message);
	version->rows = palloc(sizeof(MrRow) * nelements);
	for (int i = 0; i < nelements; i++)
	{
		if (for_each)
		{
			for (int c = staging->nkeys; c < plan->nmapped; c++)
			{
				if (plan->mapped[c].of_element)
					map_column(e, staging, c, i);
				else if (plan->mapped[c].same_type && plan->ncomputed > 0)
				{
					/* What the element before has computed is not this one's. */
					plan->row->tts_values[plan->mapped[c].attnum - 1] = plan->raw->tts_values[c];
					plan->row->tts_isnull[plan->mapped[c].attnum - 1] = plan->raw->tts_isnull[c];
				}
			}
			/* Expressions may look at the element's number. */
			plan->row->tts_values[staging->element - 1] = Int32GetDatum(i + 1);
			plan->row->tts_isnull[staging->element - 1] = false;
		}
		if (evaluate_row(e, staging, version->message, for_each ? i + 1 : 0))
			keep_row(staging, version, for_each ? i + 1 : 0, payload);
		ResetExprContext(plan->context);
	}
	version->held_back = version->nrows == 0;
}

/*
 * A row got another key at the source.  Where the staging table's key has stayed the same, that is no delete: the message
 * before, which says so, is forgotten.
 */
static void
forget_move(MrStaged *staged, const MrMessage *message, const Datum *key)
{
	const MrStaging *staging = staged->staging;
	const MrVersion *before = &staged->versions[staged->nversions - 1];

	if (staged->nversions == 0 || before->message != message - 1)
		return;
	for (int k = 0; k < staging->nkeys; k++)
	{
		if (ApplySortComparator(before->key[k], false, key[k], false,
								&staging->plan->key_sort[k]) != 0)
			return;
	}
	staged->nversions--;
}

/*
 * The version has no rows until its row comes again.  Where messages wait for dictionaries it has to be there all the same:
 * an older one that is completed must not be taken for what the object is.
 */
static void
hold_back(MrVersion *version)
{
	version->incomplete = true;
	version->held_back = true;
	version->nrows = 0;
}

/* One message as one staging table takes it. */
static void
map_message(Evaluation *e, MrStaged *staged, MrMessage *message)
{
	MrStaging *staging = staged->staging;
	const MrStagingPlan *plan = staging->plan;
	MrVersion *version;
	Datum *key;

	begin(e, staged, message);
	if (!routed(e, staging, message))
		return;
	for (int i = 0; i < plan->nmapped; i++)
	{
		/* A delete tells nothing but its key. */
		if (!plan->mapped[i].of_element && (i < staging->nkeys || !e->document->deleted))
			map_column(e, staging, i, -1);
	}

	/* The row comes again, with all that this message has left out, or has come. */
	if (message->unknown && (plan->enriched == NULL || !message->reread))
		return;

	key = palloc(sizeof(Datum) * staging->nkeys);
	for (int i = 0; i < staging->nkeys; i++)
	{
		if (plan->raw->tts_isnull[i])
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("the message has no key: \"%s\" of %s is missing", plan->mapped[i].name,
							staging->name),
					 message->value != NULL
						 ? 0
						 : errhint("A tombstone has no payload: let the key come from $key, too, "
								   "as in [[\"$.id\", \"$key\"], \"bigint\"].")));
		key[i] = plan->raw->tts_values[i];
	}
	if (message->moved)
		forget_move(staged, message, key);
	version = add_version(e->batch, staged);
	version->message = message;
	version->loaded_at = e->batch->loaded_at;
	version->key = key;
	map_version(e, staging, version);
	version->incomplete = e->incomplete = !e->document->deleted &&
										  mr_enrich_lacks(e->batch, message, plan->enriched);
	/* When it is complete, what it leaves out may not be known any more. */
	if (version->incomplete && e->document->unchanged && message->relation != NULL)
		message->reread = true;
	if (e->known != NULL && !message->unknown)
		mr_unchanged_note(e->known[staging->ordinal], version, !e->document->unchanged,
						  e->document->deleted);
	if (plan->version == NULL)
		version->digest = message->place;
	else
	{
		mr_hasher_begin(e->hasher);
		mr_hasher_add_bytes(e->hasher, message->value, message->value_length);
		mr_hasher_end(e->hasher, &version->digest);
	}

	version->event_time = message->time;
	version->read = e->document->op != NULL && e->document->op[0] == MR_OP_READ;
	if (e->document->deleted)
	{
		version->deleted = true;
		return;
	}
	if (message->unknown)
	{
		hold_back(version);
		return;
	}
	if (plan->event_time != NULL)
		version->event_time = DatumGetTimestampTz(
			mapped_value(e, plan, plan->event_time, -1, &version->event_time_null));
	version->deleted = plan->deleted != NULL && mr_expression_true(plan->deleted, plan->context);
	if (version->deleted)
		version->incomplete = false;
	else
		map_rows(e, staging, version);
	if (message->unknown && plan->enriched == NULL)
		staged->nversions--;
	else if (message->unknown)
		hold_back(version);
	ResetExprContext(plan->context);
}

/* Deletes objects of every staging table of that source table, as if each had been deleted there. */
static void
sweep(Evaluation *e, MrMessage *message)
{
	MrBatch *batch = e->batch;

	for (int s = 0; s < batch->nstaged; s++)
	{
		MrStaged *staged = &batch->staged[s];
		MrStaging *staging = staged->staging;
		const MrStagingPlan *plan = staging->plan;
		Datum **keys;
		int count;

		current_staging = staging;
		if (plan->source_table == NULL || strcmp(plan->source_table, message->topic) != 0)
			continue;
		enter(e, staging);
		mr_letter_sweep(batch->stream, staging, message);
		count = mr_sweep_keys(staging, message, SWEEP_OBJECTS, &keys);
		for (int i = 0; i < count; i++)
		{
			MrVersion *version = add_version(batch, staged);

			version->message = message;
			version->key = keys[i];
			version->loaded_at = batch->loaded_at;
			version->event_time = message->time;
			version->deleted = true;
			version->digest = message->place;
			/* The table says that they are gone, whatever a declared version says. */
			if (plan->version == NULL)
				version->version = Int64GetDatum(message->position);
			else
				version->version_null = version->always = true;
		}
		batch->swept += count;
	}
}

bool
mr_message_left_out(const MrBatch *batch, const MrMessage *message, const MrStaging *staging)
{
	if (message->erased)
		return true;
	for (const MrFailure *failure = message->failures; failure != NULL; failure = failure->next)
	{
		if (failure->element == 0 && failure->expectation == NULL &&
			(failure->staging == NULL || failure->staging == staging))
			return true;
	}
	return false;
}

void
mr_failure_add(MrBatch *batch, MrFailure *failure)
{
	failure->next = failure->message->failures;
	failure->message->failures = failure;
	batch->failures = lappend(batch->failures, failure);
}

/* Do the values of one element, or (-1) of the whole message, speak of something erased? */
static bool
element_erased(const Evaluation *e, const MrStaging *staging, const MrMessage *message, int element)
{
	const MrStagingPlan *plan = staging->plan;

	for (int i = 0; i < plan->nmapped; i++)
	{
		if (plan->erasable[i] && (i < staging->nkeys || !e->document->deleted) &&
			(element >= 0 || !plan->mapped[i].of_element))
			map_column(e, staging, i, element);
	}
	return mr_erasures_match(plan->erasures, plan->raw->tts_values, plan->raw->tts_isnull);
}

/* Has a staging table raised an error at the message before?  Then it has been asked already, or cannot be. */
static bool
has_failed(const MrMessage *message, const MrStaging *staging)
{
	for (const MrFailure *failure = message->failures; failure != NULL; failure = failure->next)
	{
		if (failure->staging == staging && !failure->silent)
			return true;
	}
	return false;
}

/* Adds a version that is no more than the key of its object. */
static void
add_key(Evaluation *e, MrStaged *staged, MrMessage *message)
{
	const MrStagingPlan *plan = staged->staging->plan;
	MemoryContext previous = MemoryContextSwitchTo(e->batch->context);
	MrVersion *version;
	Datum *key = palloc(sizeof(Datum) * staged->staging->nkeys);
	bool whole = true;

	for (int i = 0; i < staged->staging->nkeys; i++)
	{
		map_column(e, staged->staging, i, -1);
		whole = whole && !plan->raw->tts_isnull[i];
		key[i] = plan->raw->tts_values[i];
	}
	if (whole)
	{
		version = add_version(e->batch, staged);
		version->message = message;
		version->key = key;
	}
	MemoryContextSwitchTo(previous);
}

/*
 * Marks the message when it speaks of something that was erased from one of the staging tables it is routed to: then it is
 * for none of them.
 */
static void
mark_erased(Evaluation *e, MrMessage *message)
{
	for (int s = 0; s < e->batch->nstaged; s++)
	{
		MrStaging *staging = e->batch->staged[s].staging;
		const MrStagingPlan *plan = staging->plan;
		int nelements;
		bool erased;

		if (plan->erasures == NULL || has_failed(message, staging))
			continue;
		current_staging = staging;
		begin(e, &e->batch->staged[s], message);
		if (!routed(e, staging, message))
			continue;
		erased = element_erased(e, staging, message, -1);
		nelements = plan->scope == MR_SCOPE_MESSAGE
						? 0
						: mr_document_elements(e->document, plan->scope);
		for (int i = 0; i < nelements && !erased; i++)
			erased = element_erased(e, staging, message, i);
		if (erased)
		{
			message->erased = true;
			/* That it could not be taken elsewhere is nobody's business any more. */
			for (MrFailure *failure = message->failures; failure != NULL; failure = failure->next)
				failure->silent = true;
			if (e->keys_only)
				add_key(e, &e->batch->staged[s], message);
			return;
		}
		ResetExprContext(plan->context);
	}
}

/* Was anything ever erased from a staging table of the batch? */
static bool
any_erasures(const MrBatch *batch)
{
	for (int s = 0; s < batch->nstaged; s++)
	{
		if (batch->staged[s].staging->plan->erasures != NULL)
			return true;
	}
	return false;
}

/* Maps messages, or only the keys of erased ones. */
static void
map_messages(MrBatch *batch, MrPlan *extraction, int from, bool keys_only)
{
	MemoryContext previous = MemoryContextSwitchTo(batch->context);
	bool erasures = any_erasures(batch);
	Evaluation e = {0};

	e.batch = batch;
	e.document_context = AllocSetContextCreate(batch->context, "millrace document",
											   ALLOCSET_DEFAULT_SIZES);
	e.hasher = mr_hasher_create();
	e.keys_only = keys_only;
	e.known = batch->known;
	for (int i = from; i < batch->nmessages; i++)
	{
		MrMessage *message = &batch->messages[i];

		current_message = i;
		current_staging = NULL;
		if (mr_message_left_out(batch, message, NULL))
			continue;
		e.message = message;
		if (message->op == MR_OP_SWEEP)
		{
			if (!keys_only)
				sweep(&e, message);
			continue;
		}
		e.document = decode(&e, extraction);
		/* Who looks for what was erased finds it by what was sent. */
		if (e.document->unchanged && e.known == NULL && !keys_only)
		{
			know_objects(&e, extraction);
			batch->known = e.known;
			e.document = decode(&e, extraction);
		}
		if (e.document->ignored)
			continue;
		if (erasures)
		{
			MemoryContextSwitchTo(e.document_context);
			mark_erased(&e, message);
			MemoryContextSwitchTo(batch->context);
		}
		for (int s = 0; s < batch->nstaged && !keys_only; s++)
		{
			current_staging = batch->staged[s].staging;
			if (!mr_message_left_out(batch, message, current_staging))
				map_message(&e, &batch->staged[s], message);
		}
	}
	leave(&e);
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(e.document_context);
}

void
mr_map_messages(MrBatch *batch, MrPlan *extraction, int from)
{
	map_messages(batch, extraction, from, false);
}

void
mr_map_erased(MrBatch *batch, MrPlan *extraction, int from)
{
	map_messages(batch, extraction, from, true);
}

void
mr_map_forget(MrBatch *batch, int from)
{
	MrMessage *message = &batch->messages[from];

	for (int s = 0; s < batch->nstaged; s++)
	{
		MrStaged *staged = &batch->staged[s];

		while (staged->nversions > 0 && staged->versions[staged->nversions - 1].message == message)
		{
			staged->nversions--;
			/* What is known of objects may come from it; most messages that fail have told nothing yet. */
			batch->known = NULL;
		}
	}
	/* Expectations will be judged again; what was noted of them since the message's last error comes last. */
	while (message->failures != NULL && message->failures->expectation != NULL)
	{
		message->failures = message->failures->next;
		batch->failures = list_truncate(batch->failures, list_length(batch->failures) - 1);
	}
}
