/*
 * row.c
 *	  Fills the slots of a plan from the rows of a change: each column's text becomes a value as it is, without JSON in
 *	  between.
 *
 * Which column leads to which slots is found once for each description of a table.  A path that goes on behind a
 * column (a member of a json column, its elements) is walked in that column alone.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

#include "core/compat.h"
#include "decode/trie.h"
#include "source/change.h"

/* Where one column's value goes. */
typedef struct ColumnMap
{
	int slot; /* of the message's scope, -1: none */
	MrNode *inside; /* paths go on behind the column; NULL: none */
} ColumnMap;

typedef struct MrRowMap
{
	struct MrRowMap *next;
	uint64 serial; /* of the table's description */
	ColumnMap *value;
	ColumnMap *before; /* NULL: nothing of the old row is asked for */
} MrRowMap;

/* Where the columns of a table go that hang under a root of the plan. */
static ColumnMap *
map_columns(const MrRelation *relation, const MrNode *root)
{
	ColumnMap *columns = palloc(sizeof(ColumnMap) * Max(relation->ncolumns, 1));

	for (int c = 0; c < relation->ncolumns; c++)
	{
		columns[c].slot = -1;
		columns[c].inside = NULL;
		for (int m = 0; m < root->nmembers; m++)
		{
			MrNode *node = root->members[m];

			if (strcmp(node->name, relation->columns[c].name) != 0)
				continue;
			columns[c].slot = node->slot;
			if (node->nmembers > 0 || node->nindexes > 0 || node->each != NULL)
				columns[c].inside = node;
		}
	}
	return columns;
}

/* The map of the message's table; the one that was used last stands first. */
static MrRowMap *
find_map(MrPlan *plan, const MrRelation *relation)
{
	MrRowMap **link = &plan->maps;
	MrRowMap *map;
	MemoryContext caller;

	for (map = *link; map != NULL && map->serial != relation->serial; map = *link)
		link = &map->next;
	if (map != NULL)
	{
		*link = map->next;
		map->next = plan->maps;
		plan->maps = map;
		return map;
	}
	caller = MemoryContextSwitchTo(plan->context);
	map = palloc0(sizeof(MrRowMap));
	map->serial = relation->serial;
	map->value = map_columns(relation, plan->roots[MR_ROOT_VALUE]);
	if (plan->roots[MR_ROOT_BEFORE] != NULL)
		map->before = map_columns(relation, plan->roots[MR_ROOT_BEFORE]);
	map->next = plan->maps;
	plan->maps = map;
	MemoryContextSwitchTo(caller);
	return map;
}

/* Has a JSON object such a member, or an array such a string? */
static bool
has_name(Datum json, const char *name)
{
	return DatumGetBool(DirectFunctionCall2(jsonb_exists, json, CStringGetTextDatum(name)));
}

void
mr_mark_unsent(MrPlan *plan, const MrMessage *message)
{
	const MrNode *root = plan->roots[MR_ROOT_VALUE];
	bool listed = message->unsent != NULL;
	Datum names = DirectFunctionCall1(
		jsonb_in, CStringGetDatum(listed ? message->unsent
										 : pnstrdup(message->value, message->value_length)));

	for (int i = 0; i < root->nmembers; i++)
	{
		/* Who gives a row to preview() does not name what was not sent. */
		if (has_name(names, root->members[i]->name) == listed)
			mr_mark_unchanged(plan, root->members[i]);
	}
}

/* Sets a slot to a column's text. */
static void
set_column(MrValue *value, Oid type, const MrRowValue *column)
{
	static const char *const words[] = {"false", "true"};

	value->form = MR_FORM_PLAIN;
	if (type == BOOLOID)
	{
		value->text = words[column->text[0] == 't'];
		value->length = strlen(value->text);
		value->kind = MR_BOOLEAN;
		return;
	}
	value->text = column->text;
	value->length = column->length;
	value->kind = MR_STRING;
}

/* Fills what one row leads to; of an old row that is not whole, only the replica identity's columns count. */
static void
fill_row(MrPlan *plan, MemoryContext result, const MrRelation *relation, const ColumnMap *map,
		 const char *row, const char *old, bool key_only)
{
	MrRowReader reader;
	MrRowReader old_reader = {0};
	MrRowValue value;
	MrRowValue old_value = {0};

	mr_row_begin(&reader, row);
	if (old != NULL)
		mr_row_begin(&old_reader, old);
	for (int c = 0; c < relation->ncolumns && mr_row_next(&reader, &value); c++)
	{
		if (old != NULL)
			(void) mr_row_next(&old_reader, &old_value);
		if ((map[c].slot < 0 && map[c].inside == NULL) || (key_only && !relation->columns[c].key))
			continue;
		if (value.kind == MR_COLUMN_UNCHANGED && old != NULL &&
			(relation->whole || relation->columns[c].key))
			value = old_value;
		if (value.kind == MR_COLUMN_TEXT)
		{
			if (map[c].inside != NULL)
				mr_walk_node(plan, result, map[c].inside, relation->columns[c].name, value.text,
							 value.length);
			if (map[c].slot >= 0)
				set_column(&plan->scopes[MR_SCOPE_MESSAGE].values[map[c].slot],
						   relation->columns[c].type, &value);
		}
		else if (value.kind == MR_COLUMN_NULL)
		{
			if (map[c].slot >= 0)
				plan->scopes[MR_SCOPE_MESSAGE].values[map[c].slot].kind = MR_NULL;
		}
		else
		{
			if (map[c].inside != NULL)
				mr_mark_unchanged(plan, map[c].inside);
			if (map[c].slot >= 0)
			{
				plan->scopes[MR_SCOPE_MESSAGE].values[map[c].slot].kind = MR_UNCHANGED;
				plan->unchanged = true;
			}
		}
	}
}

/* A path that is the whole row: its JSON. */
static void
fill_whole(MrPlan *plan, MemoryContext result, const MrNode *root, const MrRelation *relation,
		   const char *row, bool key_only)
{
	MemoryContext caller = MemoryContextSwitchTo(result);
	MrValue *value = &plan->scopes[MR_SCOPE_MESSAGE].values[root->slot];
	int length;

	value->text = mr_row_json(relation, row, key_only, &length);
	value->length = length;
	value->kind = MR_CONTAINER;
	value->form = MR_FORM_SLICE;
	MemoryContextSwitchTo(caller);
}

void
mr_fill_from_rows(MrPlan *plan, MemoryContext result, const MrMessage *message)
{
	const MrRelation *relation = message->relation;
	MrRowMap *map = find_map(plan, relation);
	bool deleted = message->op == MR_OP_DELETE;

	/* What a delete has as its value is the old row. */
	if (message->value != NULL)
	{
		fill_row(plan, result, relation, map->value, message->value,
				 deleted ? NULL : message->before, deleted && !relation->whole);
		if (plan->roots[MR_ROOT_VALUE]->slot >= 0)
			fill_whole(plan, result, plan->roots[MR_ROOT_VALUE], relation, message->value,
					   deleted && !relation->whole);
	}
	if (message->before != NULL && map->before != NULL)
	{
		fill_row(plan, result, relation, map->before, message->before, NULL, !relation->whole);
		if (plan->roots[MR_ROOT_BEFORE]->slot >= 0)
			fill_whole(plan, result, plan->roots[MR_ROOT_BEFORE], relation, message->before,
					   !relation->whole);
	}
}
