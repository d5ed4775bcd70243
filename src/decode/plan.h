/*
 * plan.h
 *	  One extraction plan for all paths of a stream, and what it takes out of a message.
 *
 * Build: mr_plan_create, then mr_plan_scope for each for_each path and mr_plan_slot for each path
 * of a staging table.  Run: mr_plan_run parses the message once and gives a document, which is read
 * by slots:
 *
 *		scope = mr_plan_scope(plan, mr_path_parse("$.orders[*].items[*]"));
 *		slot = mr_plan_slot(plan, scope, mr_path_parse("@.id"));
 *		document = mr_plan_run(plan, message);
 *		for (i = 0; i < mr_document_elements(document, scope); i++)
 *			value = mr_document_value(document, scope, i, slot);
 */
#ifndef MR_DECODE_PLAN_H
#define MR_DECODE_PLAN_H

#include "core/batch.h"
#include "decode/path.h"

/* Deepest nesting of objects and arrays that a message may have. */
#define MR_MAX_DEPTH 1000

/* Most values (elements times slots) that one for_each may take out of a message: 64 MB of them. */
#define MR_MAX_ELEMENT_VALUES (4 * 1024 * 1024)

/* The scope of the message itself. */
#define MR_SCOPE_MESSAGE 0

typedef enum MrKind
{
	MR_ABSENT, /* the message has no such member */
	MR_NULL,
	MR_UNCHANGED, /* the source did not send it because it is what it was */
	MR_STRING, /* the text has no escapes left */
	MR_NUMBER, /* the text as it was sent */
	MR_BOOLEAN, /* true or false */
	MR_CONTAINER /* an object or array: the text is its JSON as it was sent */
} MrKind;

/* Where the text of a value stands; see mr_value_json. */
typedef enum MrForm
{
	MR_FORM_SLICE, /* in the message */
	MR_FORM_UNESCAPED, /* in memory of its own, after a note of its JSON */
	MR_FORM_PLAIN, /* it did not come from JSON */
	MR_FORM_TYPED /* nor does it need a format: it is written as PostgreSQL writes it */
} MrForm;

/*
 * One value.  The text is not terminated; it points into the message's bytes where it can, so these
 * have to outlive the document.
 */
typedef struct MrValue
{
	const char *text;
	int32 length;
	uint8 kind; /* MrKind */
	uint8 form; /* MrForm */
} MrValue;

/* A slot of a scope. */
typedef struct MrSlot
{
	int scope;
	int number;
} MrSlot;

/* The elements of one scope in one message, in order. */
typedef struct MrElements
{
	int parent; /* the scope around it */
	int nslots;
	int count;
	MrValue *values; /* nslots for each element */
	bool unchanged; /* there are none because the source did not send them: see MR_UNCHANGED */
	int32 *outer; /* for each element, the number of its element in the scope around it */
} MrElements;

typedef struct MrDocument
{
	const char *op; /* what $op gives: MR_OP_... as text, or NULL */
	const char *table; /* what $table gives: schema.table of the source, or NULL */
	bool deleted; /* the message removes its object: a tombstone, or a delete */
	bool unchanged; /* some slot may be MR_UNCHANGED */
	bool ignored; /* the message is no change of a row: nobody's */
	int nscopes;
	MrElements *scopes; /* [MR_SCOPE_MESSAGE] has exactly one element */
	struct varlena *
		jsonb; /* the whole value, if the plan wants it and it was easily made; until the next run */
} MrDocument;

typedef struct MrPlan MrPlan;

/* An empty plan in the current memory context. */
extern MrPlan *mr_plan_create(void);

/* The messages are changes as Debezium writes them (debezium.c); said before slots are asked for. */
extern void mr_plan_read_debezium(MrPlan *plan);

/*
 * The scope of a for_each path, which ends with [*]; MR_SCOPE_MESSAGE for NULL.  Each distinct path
 * is one scope, and so is what stands before each [*] in it.
 */
extern int mr_plan_scope(MrPlan *plan, const MrPath *for_each);

/*
 * The slot of a path which is written for that scope: $… of the message, @… of its elements, @@…
 * around them.
 */
extern MrSlot mr_plan_slot(MrPlan *plan, int scope, const MrPath *path);

/* Asks for the message's whole value as jsonb. */
extern void mr_plan_want_jsonb(MrPlan *plan);

/*
 * How many slots a scope has, and the path of each: enrichment finds the slots of $dict and @dict
 * by them, and fills them with mr_document_put.
 */
extern int mr_plan_slots(const MrPlan *plan, int scope);
extern const MrPath *mr_plan_path(const MrPlan *plan, MrSlot slot);

/*
 * Takes out of a message what the plan asks for, into the current memory context.  A message which
 * is not what JSON, UTF-8 or our limits allow is an error of class 22.  A tombstone has nothing but
 * its metadata; another delete may have its key, or its old row, as the value.
 */
extern MrDocument *mr_plan_run(MrPlan *plan, const MrMessage *message);

/* How many elements a scope has in the document. */
static inline int
mr_document_elements(const MrDocument *document, int scope)
{
	return document->scopes[scope].count;
}

/* Are there none because the source did not send what has not changed? */
static inline bool
mr_document_elements_unchanged(const MrDocument *document, int scope)
{
	return document->scopes[scope].unchanged;
}

/* The value of a slot as the given element (from 0) of the given scope sees it. */
static inline MrValue *
mr_document_value(const MrDocument *document, int scope, int element, MrSlot slot)
{
	const MrElements *elements;

	if (slot.scope == MR_SCOPE_MESSAGE)
		return &document->scopes[MR_SCOPE_MESSAGE].values[slot.number];
	elements = &document->scopes[scope];
	while (scope != slot.scope)
	{
		element = elements->outer[element];
		scope = elements->parent;
		elements = &document->scopes[scope];
	}
	return &elements->values[(Size) element * elements->nslots + slot.number];
}

/* Sets a slot to a text that did not come from the message's JSON; NULL for a null. */
static inline void
mr_document_put(const MrDocument *document, int scope, int element, MrSlot slot, const char *text,
				int length)
{
	MrValue *value = mr_document_value(document, scope, element, slot);

	value->text = text;
	value->length = text ? length : 0;
	value->kind = text ? MR_STRING : MR_NULL;
	value->form = MR_FORM_PLAIN;
}

/* Is there nothing to convert?  What is unchanged counts as null for those who cannot know it. */
static inline bool
mr_value_is_null(const MrValue *value)
{
	return value->kind <= MR_UNCHANGED;
}

/* The JSON that a value was sent as, not terminated; NULL when it did not come from JSON. */
extern const char *mr_value_json(const MrValue *value, int *length);

#endif /* MR_DECODE_PLAN_H */
