/*
 * path.h
 *	  Paths into a message: the SQL/JSON subset of the mapping grammar.
 */
#ifndef MR_DECODE_PATH_H
#define MR_DECODE_PATH_H

/* What a path starts from. */
typedef enum MrRoot
{
	MR_ROOT_VALUE, /* $ */
	MR_ROOT_KEY, /* $key: the raw key; with members, the key as JSON */
	MR_ROOT_HEADERS, /* $headers */
	MR_ROOT_BEFORE, /* $before: a change's old row */
	MR_ROOT_SOURCE, /* $source: what a change says of where it was made */
	MR_ROOT_TOPIC,
	MR_ROOT_PARTITION,
	MR_ROOT_OFFSET,
	MR_ROOT_TIMESTAMP,
	MR_ROOT_OP,
	MR_ROOT_TABLE,
	MR_ROOT_DICT, /* $dict: what enrichment found for the message */
	MR_ROOT_ELEMENT, /* @ */
	MR_ROOT_OUTER, /* @@: the element around @ */
	MR_ROOT_ELEMENT_DICT /* @dict: what enrichment found for the element */
} MrRoot;

typedef enum MrStepKind
{
	MR_STEP_MEMBER, /* .name, ."name", ["name"] */
	MR_STEP_INDEX, /* [n], from 0 */
	MR_STEP_EACH /* [*] */
} MrStepKind;

typedef struct MrStep
{
	MrStepKind kind;
	int index;
	const char *name; /* terminated; no escapes left */
	int length;
} MrStep;

typedef struct MrPath
{
	MrRoot root;
	int nsteps;
	MrStep *steps;
	const char *text; /* in one spelling: equal paths have equal texts */
} MrPath;

/* The path that a text spells; an error that names the place when it spells none. */
extern MrPath *mr_path_parse(const char *text);

/* A copy in the current memory context. */
extern MrPath *mr_path_copy(const MrPath *path);

/* Does the path hold [*]? */
extern bool mr_path_has_each(const MrPath *path);

#endif /* MR_DECODE_PATH_H */
