/*
 * trie.h
 *	  The inside of an extraction plan; only plan.c, walk.c and document.c use it.
 */
#ifndef MR_DECODE_TRIE_H
#define MR_DECODE_TRIE_H

#include "common/jsonapi.h"
#include "decode/plan.h"

/* A place in a message that some path leads to or through. */
typedef struct MrNode
{
	/* Its children: by name, by number, and the one for all elements. */
	int nmembers;
	int next; /* the member that probably comes next */
	uint32 *tags; /* of the members' names, to compare before the names */
	struct MrNode **members;
	int nindexes;
	struct MrNode **indexes;
	struct MrNode *each;

	const char *name;
	int length;
	int index;
	bool element; /* it is the [*] that its scope is of */
	int scope; /* whose slots are here */
	int slot; /* -1: no path ends here */
	uint64 seen; /* the last container which had this member; a second time is a duplicate */
} MrNode;

/* The message, or the elements of one for_each. */
typedef struct MrScope
{
	MrNode *node;
	int parent; /* -1: it is the message */
	int nslots;
	const MrPath **paths; /* of the slots */

	/* While a message is walked: its elements so far. */
	bool unchanged;
	int count;
	int capacity; /* in elements */
	int width; /* the slots that the capacity was made for */
	MrValue *values;
	int32 *outer;
} MrScope;

/* An object, array or scalar that the walk is in and that a path leads to or through. */
typedef struct MrFrame
{
	const char *start; /* of its text */
	uint64 serial; /* unique among the containers of a plan */
	int first; /* its nodes in the plan's stack of them */
	int count;
	int elements; /* of it, seen so far */
	bool skipping; /* nothing inside is asked for */
} MrFrame;

typedef struct MrDebezium MrDebezium;

struct MrPlan
{
	MemoryContext context;
	MemoryContext scratch; /* what the parser allocates; reset for each message */
	int nscopes;
	MrScope *scopes;
	MrNode *roots[MR_ROOT_SOURCE +
				  1]; /* the sources that are JSON; NULL when no path needs one parsed */
	MrDebezium *debezium; /* NULL: the value is the message's */

	/* For walk.c. */
	uint64 serial;
	int depth;
	int frame_capacity;
	MrFrame *frames;
	int nactive;
	int active_capacity;
	MrNode **active; /* nodes of all open frames, a stack */
	bool wants_jsonb; /* of the value */
	bool wants_key; /* some path starts with $key */
	struct varlena *jsonb; /* made by the last walk over the value, or NULL */

	struct MrRowMap *maps; /* private to row.c */

	/* What becomes the document's: see plan.h. */
	const char *op;
	const char *table;
	bool deleted;
	bool unchanged;
	bool ignored;
};

/* What makes two names differ at once. */
static inline uint32
mr_name_tag(const char *name, int length)
{
	if (length == 0)
		return 0;
	return ((uint32) length << 16) | ((uint32) (unsigned char) name[0] << 8) |
		   (unsigned char) name[length - 1];
}

/* Is it what JSON takes for white space? */
static inline bool
mr_json_space(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* What stands before an unescaped text: the JSON that it was. */
typedef struct MrUnescaped
{
	const char *json;
	int length;
} MrUnescaped;

/* Opens the next element of a scope, with nothing in it. */
extern void mr_scope_add(MrPlan *plan, MrScope *scope);

/*
 * Walks over a part of the message, which has to be JSON, and fills the slots of the scopes.
 * `part` is its name for errors; unescaped texts go to `result`.
 */
extern void mr_walk_json(MrPlan *plan, MemoryContext result, MrRoot root, const char *part,
						 const char *text, int length);

/* The same from a node of the trie on, for a part of a message that is UTF-8. */
extern void mr_walk_node(MrPlan *plan, MemoryContext result, MrNode *node, const char *part,
						 const char *text, int length);

/* What is asked for at a node and below was not sent, because it has not changed. */
extern void mr_mark_unchanged(MrPlan *plan, const MrNode *node);

/*
 * Fills the slots from the rows of a change (row.c): texts point into the message, what has to be made goes to
 * `result`.
 */
extern void mr_fill_from_rows(MrPlan *plan, MemoryContext result, const MrMessage *message);

/* The same for the columns of a changed row which became JSON. */
extern void mr_mark_unsent(MrPlan *plan, const MrMessage *message);

/*
 * Messages as Debezium writes them (debezium.c): fills the slots that they have values for, and says
 * what the change is.
 */
extern MrDebezium *mr_debezium_create(void);
extern void mr_debezium_prepare(MrPlan *plan); /* before the scopes are emptied */
extern void mr_debezium_walk(MrPlan *plan, MemoryContext result, const MrMessage *message);

/*
 * Makes jsonb from the parser's calls, in the current memory context (jsonb.c).  Names and strings stay where they
 * are until then, and need not be terminated; other scalars are.  mr_jsonb_end returns NULL when jsonb might refuse it.
 */
typedef struct MrJsonbMaker MrJsonbMaker;

extern MrJsonbMaker *mr_jsonb_begin(int length);
extern void mr_jsonb_container(MrJsonbMaker *maker, bool object, bool begins);
extern void mr_jsonb_name(MrJsonbMaker *maker, const char *name, int length);
extern void mr_jsonb_scalar(MrJsonbMaker *maker, const char *token, int length, JsonTokenType type);
extern struct varlena *mr_jsonb_end(MrJsonbMaker *maker);

/* Raises an error unless the part is UTF-8. */
extern void mr_walk_text(const char *part, const char *text, int length);

#endif /* MR_DECODE_TRIE_H */
