/*
 * path.c
 *	  Parses paths: a root, then members, indexes and [*].
 */
#include "postgres.h"

#include "common/jsonapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/json.h"

#include "core/compat.h"
#include "decode/path.h"

typedef struct RootName
{
	const char *name;
	MrRoot root;
	bool steps; /* may members follow? */
} RootName;

static const RootName root_names[] = {
	{"$", MR_ROOT_VALUE, true},
	{"$key", MR_ROOT_KEY, true},
	{"$headers", MR_ROOT_HEADERS, true},
	{"$before", MR_ROOT_BEFORE, true},
	{"$source", MR_ROOT_SOURCE, true},
	{"$topic", MR_ROOT_TOPIC, false},
	{"$partition", MR_ROOT_PARTITION, false},
	{"$offset", MR_ROOT_OFFSET, false},
	{"$timestamp", MR_ROOT_TIMESTAMP, false},
	{"$op", MR_ROOT_OP, false},
	{"$table", MR_ROOT_TABLE, false},
	{"$dict", MR_ROOT_DICT, true},
	{"@", MR_ROOT_ELEMENT, true},
	{"@@", MR_ROOT_OUTER, true},
	{"@dict", MR_ROOT_ELEMENT_DICT, true},
};

/* Raises the error of a path that does not parse, at a place in it. */
static void
path_error(const char *text, const char *at, const char *hint)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("invalid path \"%s\" at character %d", text,
						   pg_mbstrlen_with_len(text, at - text) + 1),
					errhint("%s", hint)));
}

/* Can the byte stand in a name without quotes? */
static inline bool
is_name_byte(char c, bool first)
{
	if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || IS_HIGHBIT_SET(c))
		return true;
	return !first && ((c >= '0' && c <= '9') || c == '$');
}

/* Where the name ends that starts here. */
static const char *
name_end(const char *p)
{
	const char *start = p;

	while (is_name_byte(*p, p == start))
		p++;
	return p;
}

/* The root at the start of the text, and where it ends. */
static const RootName *
parse_root(const char *text, const char **end)
{
	const char *p = text;
	int i;

	if (*p != '$' && *p != '@')
		path_error(text, p,
				   "A path starts with \"$\" (the message) or \"@\" (the element of for_each).");
	p++;
	if (*text == '@' && *p == '@')
		p++;
	else
		p = name_end(p);
	for (i = 0; i < lengthof(root_names); i++)
	{
		if (strlen(root_names[i].name) == p - text &&
			memcmp(root_names[i].name, text, p - text) == 0)
		{
			*end = p;
			return &root_names[i];
		}
	}
	path_error(
		text, text + 1,
		"A path starts with $, $key, $headers, $topic, $partition, $offset, $timestamp, $op, "
		"$before, $source, $table, $dict, @, @@ or @dict; a member follows after a dot.");
	return NULL;
}

/* Reads a name in double quotes, with the escapes of JSON, and gives where it ends. */
static const char *
parse_quoted(const char *text, const char *p, MrStep *step)
{
	JsonLexContext *lex = mr_json_lexer(p, strlen(p));
	JsonParseErrorType error = json_lex(lex);

	if (error != JSON_SUCCESS)
		path_error(text, p,
				   "A name in double quotes is written like a string of JSON: \\\" for a quote, "
				   "\\\\ for a backslash.");
	step->kind = MR_STEP_MEMBER;
	step->name = pstrdup(lex->strval->data);
	step->length = lex->strval->len;
	return lex->token_terminator;
}

/* Reads a member after its dot. */
static const char *
parse_member(const char *text, const char *p, MrStep *step)
{
	const char *end;

	if (*p == '"')
		return parse_quoted(text, p, step);
	end = name_end(p);
	if (end == p)
		path_error(
			text, p,
			"A dot is followed by the name of a member, in double quotes where it holds anything "
			"but letters, digits and underscores.");
	step->kind = MR_STEP_MEMBER;
	step->name = pnstrdup(p, end - p);
	step->length = end - p;
	return end;
}

/* Reads what stands in brackets. */
static const char *
parse_brackets(const char *text, const char *p, MrStep *step)
{
	const char *start = p;

	if (*p == '*')
	{
		step->kind = MR_STEP_EACH;
		p++;
	}
	else if (*p == '"')
		p = parse_quoted(text, p, step);
	else
	{
		int64 n = 0;

		while (*p >= '0' && *p <= '9' && n <= PG_INT32_MAX)
			n = n * 10 + (*p++ - '0');
		if (p == start || n > PG_INT32_MAX)
			path_error(
				text, start,
				"Brackets hold the number of an element from 0, \"*\" for each element, or a name "
				"in double quotes.");
		step->kind = MR_STEP_INDEX;
		step->index = (int) n;
	}
	if (*p != ']')
		path_error(text, p, "A closing bracket is missing here.");
	return p + 1;
}

/* Writes a step in its one spelling. */
static void
append_step(StringInfo out, const MrStep *step)
{
	if (step->kind == MR_STEP_EACH)
		appendStringInfoString(out, "[*]");
	else if (step->kind == MR_STEP_INDEX)
		appendStringInfo(out, "[%d]", step->index);
	else
	{
		appendStringInfoChar(out, '.');
		if (step->length > 0 && name_end(step->name) == step->name + step->length)
			appendStringInfoString(out, step->name);
		else
			escape_json(out, step->name);
	}
}

/* Parses a path; reports where and how it is wrong. */
MrPath *
mr_path_parse(const char *text)
{
	MrPath *path = palloc0(sizeof(MrPath));
	const char *p;
	const RootName *root = parse_root(text, &p);
	int capacity = 4;
	StringInfoData spelling;

	path->root = root->root;
	path->steps = palloc0(capacity * sizeof(MrStep));
	initStringInfo(&spelling);
	appendStringInfoString(&spelling, root->name);
	if (*p != '\0' && !root->steps)
		path_error(text, p, psprintf("%s is a single value and has no members.", root->name));
	while (*p != '\0')
	{
		MrStep *step;

		if (path->nsteps == capacity)
		{
			capacity *= 2;
			path->steps = repalloc(path->steps, capacity * sizeof(MrStep));
		}
		step = &path->steps[path->nsteps++];
		memset(step, 0, sizeof(MrStep));
		if (*p == '.')
			p = parse_member(text, p + 1, step);
		else if (*p == '[')
			p = parse_brackets(text, p + 1, step);
		else
			path_error(
				text, p,
				"A root is followed by .member, .\"member\", [number] or [*]; a name with other "
				"characters than letters, digits and underscores is written in double quotes.");
		append_step(&spelling, step);
	}
	path->text = spelling.data;
	return path;
}

/* Copies a path to the current memory context. */
MrPath *
mr_path_copy(const MrPath *path)
{
	MrPath *copy = palloc(sizeof(MrPath));
	int i;

	*copy = *path;
	copy->text = pstrdup(path->text);
	copy->steps = palloc(Max(path->nsteps, 1) * sizeof(MrStep));
	for (i = 0; i < path->nsteps; i++)
	{
		copy->steps[i] = path->steps[i];
		if (path->steps[i].name)
			copy->steps[i].name = pstrdup(path->steps[i].name);
	}
	return copy;
}

/* Tells whether a path stands for several values. */
bool
mr_path_has_each(const MrPath *path)
{
	int i;

	for (i = 0; i < path->nsteps; i++)
	{
		if (path->steps[i].kind == MR_STEP_EACH)
			return true;
	}
	return false;
}
