/*
 * document.c
 *	  What an extraction plan takes out of one message: the walk over its JSON, and its metadata.
 *
 * The plan keeps the elements of each scope in arrays that are used again for every message; what
 * is found is copied into one piece of memory at the end, so that a document costs one allocation.
 */
#include "postgres.h"

#include "datatype/timestamp.h"
#include "miscadmin.h"
#include "utils/datetime.h"
#include "utils/memutils.h"

#include "core/compat.h"
#include "decode/trie.h"
#include "source/change.h"

/* Makes room in a scope for one more element. */
static void
grow_scope(MrPlan *plan, MrScope *scope)
{
	Size capacity = scope->capacity ? (Size) scope->capacity * 2 : 8;
	Size width = Max(scope->nslots, 1);

	if ((Size) scope->count * width >= MR_MAX_ELEMENT_VALUES)
		ereport(ERROR, (errcode(ERRCODE_TOO_MANY_JSON_ARRAY_ELEMENTS),
						errmsg("message has too many elements"),
						errdetail("More than %d elements of %d values each do not fit.",
								  scope->count, scope->nslots)));
	if (!scope->values)
	{
		scope->values = MemoryContextAllocHuge(plan->context, capacity * width * sizeof(MrValue));
		scope->outer = MemoryContextAllocHuge(plan->context, capacity * sizeof(int32));
	}
	else
	{
		scope->values = repalloc_huge(scope->values, capacity * width * sizeof(MrValue));
		scope->outer = repalloc_huge(scope->outer, capacity * sizeof(int32));
	}
	scope->capacity = (int) capacity;
}

/* Opens the next element of a scope, with nothing in it. */
void
mr_scope_add(MrPlan *plan, MrScope *scope)
{
	if (scope->count >= scope->capacity)
		grow_scope(plan, scope);
	memset(&scope->values[(Size) scope->count * scope->nslots], 0, scope->nslots * sizeof(MrValue));
	scope->outer[scope->count] = scope->parent < 0 ? 0 : plan->scopes[scope->parent].count - 1;
	scope->count++;
}

/* The raw key as text. */
static void
set_key(MrValue *value, const MrMessage *message)
{
	if (!message->key)
	{
		value->kind = MR_NULL;
		return;
	}
	mr_walk_text("key", message->key, message->key_length);
	value->text = message->key;
	value->length = message->key_length;
	value->kind = MR_STRING;
}

/* A text, absent when it is NULL. */
static void
set_text(MrValue *value, const char *text)
{
	if (!text)
		return;
	value->text = text;
	value->length = strlen(text);
	value->kind = MR_STRING;
}

/* A time as ISO 8601 has it, in UTC; whatever the session's DateStyle and TimeZone. */
static void
set_time(MrValue *value, TimestampTz time)
{
	struct pg_tm tm;
	fsec_t fsec;
	char *text;

	if (TIMESTAMP_IS_NOBEGIN(time))
		text = pstrdup("-infinity");
	else if (TIMESTAMP_IS_NOEND(time))
		text = pstrdup("infinity");
	else
	{
		if (timestamp2tm(time, NULL, &tm, &fsec, NULL, NULL) != 0)
			ereport(ERROR, (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
							errmsg("time of the message is out of range")));
		/* Without this the zone is left out. */
		tm.tm_isdst = 0;
		text = palloc(MAXDATELEN + 1);
		EncodeDateTime(&tm, fsec, true, 0, NULL, USE_ISO_DATES, text);
	}
	value->text = text;
	value->length = strlen(text);
	value->kind = MR_STRING;
}

/* Fills the slots that come from beside the JSON. */
static void
set_metadata(MrPlan *plan, const MrMessage *message)
{
	MrScope *scope = &plan->scopes[MR_SCOPE_MESSAGE];
	int i;

	for (i = 0; i < scope->nslots; i++)
	{
		MrValue *value = &scope->values[i];

		switch (scope->paths[i]->root)
		{
			case MR_ROOT_KEY:
				if (scope->paths[i]->nsteps > 0)
					continue;
				set_key(value, message);
				break;
			case MR_ROOT_TOPIC:
				set_text(value, message->topic);
				break;
			case MR_ROOT_PARTITION:
				value->text = psprintf("%d", message->partition);
				value->length = strlen(value->text);
				value->kind = MR_NUMBER;
				break;
			case MR_ROOT_OFFSET:
				value->text = psprintf(INT64_FORMAT, message->position);
				value->length = strlen(value->text);
				value->kind = MR_NUMBER;
				break;
			case MR_ROOT_TIMESTAMP:
				set_time(value, message->time);
				break;
			case MR_ROOT_OP:
				set_text(value, plan->op);
				break;
			case MR_ROOT_TABLE:
				set_text(value, plan->table);
				break;
			default:
				/* Walked, or absent until enrichment fills it: $dict, @dict. */
				continue;
		}
		value->form = MR_FORM_PLAIN;
	}
}

/* Empties the scopes for the next message. */
static void
reset_scopes(MrPlan *plan)
{
	int i;

	for (i = 0; i < plan->nscopes; i++)
	{
		MrScope *scope = &plan->scopes[i];

		/* Slots were added, or one giant message made it large: begin anew. */
		if (scope->values &&
			(scope->width != scope->nslots || scope->capacity > MR_MAX_ELEMENT_VALUES / 64))
		{
			pfree(scope->values);
			pfree(scope->outer);
			scope->values = NULL;
			scope->outer = NULL;
			scope->capacity = 0;
		}
		scope->width = scope->nslots;
		scope->count = 0;
		scope->unchanged = false;
	}
	mr_scope_add(plan, &plan->scopes[MR_SCOPE_MESSAGE]);
}

/* Copies what the scopes hold into one piece of memory of its size. */
static MrDocument *
make_document(MrPlan *plan)
{
	Size header = MAXALIGN(sizeof(MrDocument) + plan->nscopes * sizeof(MrElements));
	Size size = header;
	MrDocument *document;
	char *p;
	int i;

	for (i = 0; i < plan->nscopes; i++)
		size += plan->scopes[i].count *
				((Size) plan->scopes[i].nslots * sizeof(MrValue) + sizeof(int32));
	document = MemoryContextAllocHuge(CurrentMemoryContext, size);
	document->op = plan->op;
	document->table = plan->table;
	document->deleted = plan->deleted;
	document->unchanged = plan->unchanged;
	document->ignored = plan->ignored;
	document->nscopes = plan->nscopes;
	document->jsonb = plan->jsonb;
	document->scopes = (MrElements *) (document + 1);
	p = (char *) document + header;
	/* All values first, for their alignment. */
	for (i = 0; i < plan->nscopes; i++)
	{
		MrScope *scope = &plan->scopes[i];
		MrElements *elements = &document->scopes[i];
		Size bytes = (Size) scope->count * scope->nslots * sizeof(MrValue);

		elements->parent = scope->parent;
		elements->nslots = scope->nslots;
		elements->count = scope->count;
		elements->unchanged = scope->unchanged;
		elements->values = (MrValue *) p;
		if (bytes > 0)
			memcpy(p, scope->values, bytes);
		p += bytes;
	}
	for (i = 0; i < plan->nscopes; i++)
	{
		MrScope *scope = &plan->scopes[i];

		document->scopes[i].outer = (int32 *) p;
		if (scope->count > 0)
			memcpy(p, scope->outer, scope->count * sizeof(int32));
		p += scope->count * sizeof(int32);
	}
	return document;
}

/* What a change does, as $op gives it. */
static const char *
op_text(char op)
{
	switch (op)
	{
		case MR_OP_INSERT:
			return "I";
		case MR_OP_UPDATE:
			return "U";
		case MR_OP_DELETE:
			return "D";
		case MR_OP_READ:
			return "R";
		default:
			return NULL;
	}
}

/* Walks over a message whose parts are JSON. */
static void
walk_json_message(MrPlan *plan, MemoryContext result, const MrMessage *message)
{
	if (message->value)
		mr_walk_json(plan, result, MR_ROOT_VALUE, "value", message->value, message->value_length);
	if (message->before && plan->roots[MR_ROOT_BEFORE])
		mr_walk_json(plan, result, MR_ROOT_BEFORE, "before", message->before,
					 message->before_length);
	/* A row that became JSON. */
	if (message->op == MR_OP_UPDATE)
		mr_mark_unsent(plan, message);
}

/* Takes out of a message what the plan asks for. */
MrDocument *
mr_plan_run(MrPlan *plan, const MrMessage *message)
{
	MemoryContext caller = CurrentMemoryContext;
	MrMessage with_key;

	if (message->relation && plan->wants_key)
	{
		with_key = *message;
		mr_change_set_key(&with_key);
		message = &with_key;
	}
	MemoryContextReset(plan->scratch);
	if (plan->debezium)
		mr_debezium_prepare(plan);
	reset_scopes(plan);
	plan->jsonb = NULL;
	plan->op = op_text(message->op);
	plan->table = message->op ? message->topic : NULL;
	plan->deleted = message->value == NULL || message->op == MR_OP_DELETE;
	plan->unchanged = false;
	plan->ignored = false;
	MemoryContextSwitchTo(plan->scratch);
	if (plan->debezium)
		mr_debezium_walk(plan, caller, message);
	else if (message->relation)
		mr_fill_from_rows(plan, caller, message);
	else
		walk_json_message(plan, caller, message);
	if (!plan->debezium && message->key && plan->roots[MR_ROOT_KEY])
		mr_walk_json(plan, caller, MR_ROOT_KEY, "key", message->key, message->key_length);
	if (message->headers && plan->roots[MR_ROOT_HEADERS])
		mr_walk_json(plan, caller, MR_ROOT_HEADERS, "headers", message->headers,
					 strlen(message->headers));
	MemoryContextSwitchTo(caller);
	set_metadata(plan, message);
	return make_document(plan);
}

/* The JSON that a value was sent as. */
const char *
mr_value_json(const MrValue *value, int *length)
{
	switch (value->form)
	{
		case MR_FORM_SLICE:
			if (value->kind == MR_STRING)
			{
				*length = value->length + 2;
				return value->text - 1;
			}
			*length = value->length;
			return value->text;
		case MR_FORM_UNESCAPED:
			{
				const MrUnescaped *source = (const MrUnescaped *) value->text - 1;

				*length = source->length;
				return source->json;
			}
		default:
			return NULL;
	}
}
