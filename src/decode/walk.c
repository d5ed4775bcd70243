/*
 * walk.c
 *	  Runs an extraction plan over a message.
 *
 * PostgreSQL's JSON parser calls us for each member, each element and each scalar.  We keep a stack
 * of frames, one for each open value, with the nodes of the trie that stand for that value: usually
 * one, more where [n] and [*] meet, none where no path leads.  Inside a value that has no nodes
 * with children the callbacks are taken away until it ends, so that it costs nothing but lexing:
 * the parser reads them anew for each value, and calls the end of a value with what it read at its
 * start.
 *
 * A value is a slice of the message wherever it can be.  Only a string with a backslash needs
 * memory, so the callback for scalars, for which the parser copies each of them, is set only in
 * messages with a backslash.  In the others unescaping is off, and names are slices, too; it may not
 * be where there are backslashes, because the parser finds a \u0000 only when it unescapes.
 *
 * A member that comes twice counts the last time: whatever the first filled below itself is
 * cleared.
 */
#include "postgres.h"

#include "common/jsonapi.h"
#include "mb/pg_wchar.h"
#include "utils/json.h"
#include "utils/jsonfuncs.h"
#include "utils/memutils.h"

#include "core/compat.h"
#include "decode/trie.h"

typedef struct Walk
{
	MrPlan *plan;
	MemoryContext result;
	JsonLexContext *lex;
	JsonSemAction actions;
	bool escapes; /* there is a backslash somewhere */
	MrJsonbMaker *jsonb; /* when the whole is wanted as jsonb, too */
	const char *scalar; /* the last one, unescaped */
} Walk;

/* Where we are, for the context of an error. */
typedef struct WalkContext
{
	const char *part;
	int byte; /* 0: the parser says it */
} WalkContext;

static MrJsonResult object_start(void *state);
static MrJsonResult object_end(void *state);
static MrJsonResult array_start(void *state);
static MrJsonResult array_end(void *state);
static MrJsonResult field_start(void *state, char *name, bool isnull);
static MrJsonResult field_end(void *state, char *name, bool isnull);
static MrJsonResult element_start(void *state, bool isnull);
static MrJsonResult element_end(void *state, bool isnull);
static MrJsonResult scalar(void *state, char *token, JsonTokenType type);
static MrJsonResult skipped_field_start(void *state, char *name, bool isnull);

/* Says which part of the message an error is in. */
static void
walk_error_context(void *arg)
{
	WalkContext *context = arg;

	if (context->byte > 0)
		errcontext("%s of the message, byte %d", context->part, context->byte);
	else
		errcontext("%s of the message", context->part);
}

/* Switches the callbacks for everything inside a value on or off. */
static void
set_callbacks(Walk *walk, bool on)
{
	walk->actions.object_field_start = on                    ? field_start
									   : walk->jsonb != NULL ? skipped_field_start
															 : NULL;
	walk->actions.object_field_end = on ? field_end : NULL;
	walk->actions.array_element_start = on ? element_start : NULL;
	walk->actions.array_element_end = on ? element_end : NULL;
	walk->actions.scalar = walk->jsonb != NULL || (on && walk->escapes) ? scalar : NULL;
}

/*
 * The string that the lexer has read before `end`, where the quote after it stands.  What the parser has
 * unescaped is given; else it is what the quotes hold.
 */
static inline const char *
string_before(const char *unescaped, const char *end, int *length)
{
	const char *start = end;

	if (unescaped != NULL)
	{
		*length = strlen(unescaped);
		return unescaped;
	}
	while (start[-1] != '"')
		start--;
	*length = end - start;
	return start;
}

/* The name of the member whose value is the lexer's current token. */
static inline const char *
member_name(const Walk *walk, const char *unescaped, int *length)
{
	const char *end = walk->lex->prev_token_terminator - 1;

	/* Before the value there is a colon, before that perhaps white space, then the name's last quote. */
	if (unescaped == NULL)
	{
		while (*end != '"')
			end--;
	}
	return string_before(unescaped, end, length);
}

/* Drops the elements at the end of a scope whose outer element is `outer` or later. */
static void
drop_elements(MrScope *scope, int outer)
{
	while (scope->count > 0 && scope->outer[scope->count - 1] >= outer)
		scope->count--;
}

/*
 * Clears what was found at a node and below.  `outer` is the number of the first element of the
 * node's scope which is concerned.
 */
static void
clear_node(MrPlan *plan, MrNode *node, int outer)
{
	MrScope *scope = &plan->scopes[node->scope];
	int i;

	if (node->slot >= 0 && outer < scope->count)
		memset(&scope->values[(Size) outer * scope->nslots + node->slot], 0, sizeof(MrValue));
	for (i = 0; i < node->nmembers; i++)
		clear_node(plan, node->members[i], outer);
	for (i = 0; i < node->nindexes; i++)
		clear_node(plan, node->indexes[i], outer);
	if (node->each)
	{
		MrScope *inner = &plan->scopes[node->each->scope];

		drop_elements(inner, outer);
		clear_node(plan, node->each, inner->count);
	}
}

/* Marks everything that is asked for at a node and below as not sent. */
void
mr_mark_unchanged(MrPlan *plan, const MrNode *node)
{
	if (node->slot >= 0 && node->scope == MR_SCOPE_MESSAGE)
	{
		plan->scopes[MR_SCOPE_MESSAGE].values[node->slot].kind = MR_UNCHANGED;
		plan->unchanged = true;
	}
	for (int i = 0; i < node->nmembers; i++)
		mr_mark_unchanged(plan, node->members[i]);
	for (int i = 0; i < node->nindexes; i++)
		mr_mark_unchanged(plan, node->indexes[i]);
	if (node->each != NULL)
	{
		plan->scopes[node->each->scope].unchanged = true;
		plan->unchanged = true;
		mr_mark_unchanged(plan, node->each);
	}
}

/* Notes that the value which comes next is one that a node stands for. */
static inline void
activate(MrPlan *plan, MrNode *node)
{
	if (plan->nactive == plan->active_capacity)
	{
		plan->active_capacity *= 2;
		plan->active = repalloc(plan->active, plan->active_capacity * sizeof(MrNode *));
	}
	plan->active[plan->nactive++] = node;
}

/* The frame of a new value; the nodes that were activated since `first` stand for it. */
static inline MrFrame *
push_frame(MrPlan *plan, int first, const char *start)
{
	MrFrame *frame;

	if (plan->depth == plan->frame_capacity)
	{
		plan->frame_capacity *= 2;
		plan->frames = repalloc(plan->frames, plan->frame_capacity * sizeof(MrFrame));
	}
	frame = &plan->frames[plan->depth++];
	frame->start = start;
	frame->serial = ++plan->serial;
	frame->first = first;
	frame->count = plan->nactive - first;
	frame->elements = 0;
	frame->skipping = false;
	return frame;
}

/* Does any path lead into the value of a frame? */
static inline bool
frame_has_children(MrPlan *plan, MrFrame *frame)
{
	int i;

	for (i = frame->first; i < frame->first + frame->count; i++)
	{
		MrNode *node = plan->active[i];

		if (node->nmembers > 0 || node->nindexes > 0 || node->each)
			return true;
	}
	return false;
}

/* Begins a value, at the lexer's current token. */
static inline void
open_value(Walk *walk, int first)
{
	JsonTokenType token = walk->lex->token_type;
	MrFrame *frame = push_frame(walk->plan, first, walk->lex->token_start);

	if ((token == JSON_TOKEN_OBJECT_START || token == JSON_TOKEN_ARRAY_START) &&
		!frame_has_children(walk->plan, frame))
	{
		frame->skipping = true;
		set_callbacks(walk, false);
	}
}

/* Makes the value of a string whose slice, quotes included, holds a backslash. */
static void
set_unescaped(Walk *walk, MrValue *value, const char *json, int length)
{
	int text_length = strlen(walk->scalar);
	MrUnescaped *source = MemoryContextAlloc(walk->result, sizeof(MrUnescaped) + text_length + 1);

	source->json = json;
	source->length = length;
	memcpy(source + 1, walk->scalar, text_length + 1);
	value->text = (const char *) (source + 1);
	value->length = text_length;
	value->form = MR_FORM_UNESCAPED;
}

/* Makes a value of a slice of JSON. */
static void
set_value(Walk *walk, MrValue *value, const char *json, int length)
{
	value->text = json;
	value->length = length;
	value->form = MR_FORM_SLICE;
	switch (json[0])
	{
		case '"':
			value->kind = MR_STRING;
			if (walk->escapes && memchr(json, '\\', length))
				set_unescaped(walk, value, json, length);
			else
			{
				value->text = json + 1;
				value->length = length - 2;
			}
			break;
		case '{':
		case '[':
			value->kind = MR_CONTAINER;
			break;
		case 't':
		case 'f':
			value->kind = MR_BOOLEAN;
			break;
		case 'n':
			value->kind = MR_NULL;
			break;
		default:
			value->kind = MR_NUMBER;
			break;
	}
}

/* Ends the innermost value and fills the slots that it is asked for in. */
static inline void
close_value(Walk *walk, const char *end)
{
	MrPlan *plan = walk->plan;
	MrFrame *frame = &plan->frames[--plan->depth];
	int i;

	if (frame->skipping)
		set_callbacks(walk, true);
	for (i = frame->first; i < frame->first + frame->count; i++)
	{
		MrNode *node = plan->active[i];

		if (node->slot >= 0)
		{
			MrScope *scope = &plan->scopes[node->scope];

			set_value(walk, &scope->values[(Size) (scope->count - 1) * scope->nslots + node->slot],
					  frame->start, end - frame->start);
		}
	}
	plan->nactive = frame->first;
}

/* Begins an object or array: bounds the depth. */
static void
container_start(Walk *walk, bool object)
{
	if (walk->lex->lex_level >= MR_MAX_DEPTH)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_JSON_TEXT), errmsg("message is nested too deeply"),
				 errdetail("Objects and arrays may be nested %d levels deep.", MR_MAX_DEPTH)));
	if (walk->jsonb != NULL)
		mr_jsonb_container(walk->jsonb, object, true);
}

static MrJsonResult
object_start(void *state)
{
	container_start(state, true);
	MR_JSON_DONE;
}

static MrJsonResult
array_start(void *state)
{
	container_start(state, false);
	MR_JSON_DONE;
}

/* The ends of objects and arrays matter to jsonb alone. */
static MrJsonResult
object_end(void *state)
{
	mr_jsonb_container(((Walk *) state)->jsonb, true, false);
	MR_JSON_DONE;
}

static MrJsonResult
array_end(void *state)
{
	mr_jsonb_container(((Walk *) state)->jsonb, false, false);
	MR_JSON_DONE;
}

/* Begins a member of an object in which no path leads anywhere. */
static MrJsonResult
skipped_field_start(void *state, char *name, bool isnull)
{
	Walk *walk = state;
	int length;
	const char *text = member_name(walk, name, &length);

	mr_jsonb_name(walk->jsonb, text, length);
	MR_JSON_DONE;
}

/* The member of a node with that name, or NULL. */
static inline MrNode *
find_member(MrNode *node, const char *name, int length, uint32 tag)
{
	int i;

	/* Messages of one stream have their members in one order: try the one after the last. */
	i = node->next;
	if (i < node->nmembers && node->tags[i] == tag)
	{
		MrNode *child = node->members[i];

		if (child->length == length && memcmp(child->name, name, length) == 0)
		{
			node->next = i + 1;
			return child;
		}
	}
	for (i = 0; i < node->nmembers; i++)
	{
		if (node->tags[i] == tag)
		{
			MrNode *child = node->members[i];

			if (child->length == length && memcmp(child->name, name, length) == 0)
			{
				node->next = i + 1;
				return child;
			}
		}
	}
	return NULL;
}

/* Begins a member of an object. */
static MrJsonResult
field_start(void *state, char *name, bool isnull)
{
	Walk *walk = state;
	MrPlan *plan = walk->plan;
	MrFrame *frame = &plan->frames[plan->depth - 1];
	int first = plan->nactive;
	int length;
	const char *text = member_name(walk, name, &length);
	uint32 tag = mr_name_tag(text, length);
	int i;

	if (walk->jsonb != NULL)
		mr_jsonb_name(walk->jsonb, text, length);
	for (i = frame->first; i < frame->first + frame->count; i++)
	{
		MrNode *child = find_member(plan->active[i], text, length, tag);

		if (child)
		{
			if (child->seen == frame->serial)
				clear_node(plan, child, plan->scopes[child->scope].count - 1);
			child->seen = frame->serial;
			activate(plan, child);
		}
	}
	open_value(walk, first);
	MR_JSON_DONE;
}

/* Ends a member of an object. */
static MrJsonResult
field_end(void *state, char *name, bool isnull)
{
	Walk *walk = state;

	close_value(walk, walk->lex->prev_token_terminator);
	MR_JSON_DONE;
}

/* Begins an element of an array. */
static MrJsonResult
element_start(void *state, bool isnull)
{
	Walk *walk = state;
	MrPlan *plan = walk->plan;
	MrFrame *frame = &plan->frames[plan->depth - 1];
	int first = plan->nactive;
	int number = frame->elements++;
	int i;
	int j;

	for (i = frame->first; i < frame->first + frame->count; i++)
	{
		MrNode *node = plan->active[i];

		if (node->each)
		{
			mr_scope_add(plan, &plan->scopes[node->each->scope]);
			activate(plan, node->each);
		}
		for (j = 0; j < node->nindexes; j++)
		{
			if (node->indexes[j]->index == number)
				activate(plan, node->indexes[j]);
		}
	}
	open_value(walk, first);
	MR_JSON_DONE;
}

/* Ends an element of an array. */
static MrJsonResult
element_end(void *state, bool isnull)
{
	Walk *walk = state;

	close_value(walk, walk->lex->prev_token_terminator);
	MR_JSON_DONE;
}

/* Keeps a scalar for the end of its value, which follows at once. */
static MrJsonResult
scalar(void *state, char *token, JsonTokenType type)
{
	Walk *walk = state;

	walk->scalar = token;
	if (walk->jsonb != NULL)
	{
		int length;
		const char *text = type == JSON_TOKEN_STRING
							   ? string_before(token, walk->lex->prev_token_terminator - 1, &length)
							   : token;

		mr_jsonb_scalar(walk->jsonb, text, type == JSON_TOKEN_STRING ? length : strlen(token),
						type);
	}
	MR_JSON_DONE;
}

/* Raises an error unless the bytes are UTF-8. */
static void
check_encoding(WalkContext *context, const char *text, int length)
{
	int valid = pg_encoding_verifymbstr(PG_UTF8, text, length);

	if (valid != length)
	{
		context->byte = valid + 1;
		report_invalid_encoding(PG_UTF8, text + valid, length - valid);
	}
}

/* Walks over one JSON text from a root of the trie. */
static void
walk_json(MrPlan *plan, MemoryContext result, MrNode *root, const char *text, int length,
		  MrJsonbMaker *jsonb)
{
	Walk walk = {0};
	JsonParseErrorType error;
	const char *start = text;
	const char *end = text + length;
	MrFrame *frame;

	while (start < end && mr_json_space(*start))
		start++;
	while (start < end && mr_json_space(end[-1]))
		end--;
	walk.plan = plan;
	walk.result = result;
	walk.escapes = memchr(text, '\\', length) != NULL;
	walk.lex = mr_json_lexer(text, length);
	if (!walk.escapes)
		mr_json_keep_escapes(walk.lex);
	walk.actions.semstate = &walk;
	walk.jsonb = jsonb;
	walk.actions.object_start = object_start;
	walk.actions.array_start = array_start;
	walk.actions.object_end = jsonb != NULL ? object_end : NULL;
	walk.actions.array_end = jsonb != NULL ? array_end : NULL;
	set_callbacks(&walk, true);
	plan->depth = 0;
	plan->nactive = 0;
	activate(plan, root);
	frame = push_frame(plan, 0, start);
	if (!frame_has_children(plan, frame))
	{
		frame->skipping = true;
		set_callbacks(&walk, false);
		/* A text that is one string is still asked for. */
		if (walk.escapes && start < end && *start == '"')
			walk.actions.scalar = scalar;
	}
	error = pg_parse_json(walk.lex, &walk.actions);
	if (error != JSON_SUCCESS)
		mr_json_report(error, walk.lex);
	close_value(&walk, end);
}

/* Pushes the context that names a part of the message. */
static void
push_context(ErrorContextCallback *callback, WalkContext *context)
{
	callback->callback = walk_error_context;
	callback->arg = context;
	callback->previous = error_context_stack;
	error_context_stack = callback;
}

/* Walks over one part of the message, which has to be JSON. */
void
mr_walk_json(MrPlan *plan, MemoryContext result, MrRoot root, const char *part, const char *text,
			 int length)
{
	WalkContext context = {part, 0};
	ErrorContextCallback callback;
	MrJsonbMaker *jsonb = NULL;

	push_context(&callback, &context);
	if (length == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_TEXT_REPRESENTATION), errmsg("empty payload"),
						errdetail("An empty text is not JSON; only a payload that is absent is a "
								  "tombstone.")));
	check_encoding(&context, text, length);
	if (root == MR_ROOT_VALUE && plan->wants_jsonb)
		jsonb = mr_jsonb_begin(length);
	walk_json(plan, result, plan->roots[root], text, length, jsonb);
	if (jsonb != NULL)
		plan->jsonb = mr_jsonb_end(jsonb);
	error_context_stack = callback.previous;
}

/* Walks over a JSON text which stands for a node of the trie. */
void
mr_walk_node(MrPlan *plan, MemoryContext result, MrNode *node, const char *part, const char *text,
			 int length)
{
	WalkContext context = {part, 0};
	ErrorContextCallback callback;

	push_context(&callback, &context);
	walk_json(plan, result, node, text, length, NULL);
	error_context_stack = callback.previous;
}

/* Checks a part of the message that is any text. */
void
mr_walk_text(const char *part, const char *text, int length)
{
	WalkContext context = {part, 0};
	ErrorContextCallback callback;

	push_context(&callback, &context);
	check_encoding(&context, text, length);
	error_context_stack = callback.previous;
}
