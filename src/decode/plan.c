/*
 * plan.c
 *	  Builds an extraction plan: a trie of all paths, whose nodes know the slots that they fill.
 *
 * A scope is a set of slots that repeats: the message is one, the elements of each [*] are one.
 * All paths hang in one trie for each JSON source (value, key, headers), so that a walk over the
 * source's tokens fills every slot in passing; the node of a [*] opens an element of its scope.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "core/compat.h"
#include "decode/trie.h"

/* Adds a scope to the plan. */
static int
add_scope(MrPlan *plan, MrNode *node, int parent)
{
	MrScope *scope;

	plan->scopes = plan->scopes ? repalloc(plan->scopes, (plan->nscopes + 1) * sizeof(MrScope))
								: palloc(sizeof(MrScope));
	scope = &plan->scopes[plan->nscopes];
	memset(scope, 0, sizeof(MrScope));
	scope->node = node;
	scope->parent = parent;
	return plan->nscopes++;
}

/* Makes a node whose slots belong to a scope. */
static MrNode *
make_node(int scope)
{
	MrNode *node = palloc0(sizeof(MrNode));

	node->scope = scope;
	node->slot = -1;
	return node;
}

/* Adds one to an array of nodes. */
static MrNode **
append_node(MrNode **nodes, int count, MrNode *node)
{
	nodes = nodes ? repalloc(nodes, (count + 1) * sizeof(MrNode *)) : palloc(sizeof(MrNode *));
	nodes[count] = node;
	return nodes;
}

/* Creates an empty plan. */
MrPlan *
mr_plan_create(void)
{
	MrPlan *plan = palloc0(sizeof(MrPlan));

	plan->context = CurrentMemoryContext;
	plan->scratch = AllocSetContextCreate(CurrentMemoryContext, "millrace decode",
										  ALLOCSET_DEFAULT_SIZES);
	plan->frame_capacity = 16;
	plan->frames = palloc(plan->frame_capacity * sizeof(MrFrame));
	plan->active_capacity = 32;
	plan->active = palloc(plan->active_capacity * sizeof(MrNode *));
	plan->roots[MR_ROOT_VALUE] = make_node(MR_SCOPE_MESSAGE);
	add_scope(plan, plan->roots[MR_ROOT_VALUE], -1);
	return plan;
}

/* The child of a node that one step leads to; made when it is not there yet. */
static MrNode *
child_node(MrPlan *plan, MrNode *node, const MrStep *step)
{
	MrNode *child;
	int i;

	switch (step->kind)
	{
		case MR_STEP_MEMBER:
			for (i = 0; i < node->nmembers; i++)
			{
				child = node->members[i];
				if (child->length == step->length &&
					memcmp(child->name, step->name, step->length) == 0)
					return child;
			}
			child = make_node(node->scope);
			child->name = pnstrdup(step->name, step->length);
			child->length = step->length;
			node->members = append_node(node->members, node->nmembers, child);
			node->tags = node->tags ? repalloc(node->tags, (node->nmembers + 1) * sizeof(uint32))
									: palloc(sizeof(uint32));
			node->tags[node->nmembers++] = mr_name_tag(step->name, step->length);
			return child;
		case MR_STEP_INDEX:
			for (i = 0; i < node->nindexes; i++)
			{
				if (node->indexes[i]->index == step->index)
					return node->indexes[i];
			}
			child = make_node(node->scope);
			child->index = step->index;
			node->indexes = append_node(node->indexes, node->nindexes++, child);
			return child;
		case MR_STEP_EACH:
			if (!node->each)
			{
				child = make_node(plan->nscopes);
				child->element = true;
				add_scope(plan, child, node->scope);
				node->each = child;
			}
			return node->each;
	}
	return NULL;
}

/* Follows steps from a node. */
static MrNode *
follow(MrPlan *plan, MrNode *node, const MrPath *path)
{
	int i;

	for (i = 0; i < path->nsteps; i++)
		node = child_node(plan, node, &path->steps[i]);
	return node;
}

/* Raises the error of a path that parses and still cannot stand where it does. */
static void
plan_error(const MrPath *path, const char *what, const char *hint)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("path \"%s\" %s", path->text, what), hint ? errhint("%s", hint) : 0));
}

/* Finds or adds the scope of a for_each path. */
int
mr_plan_scope(MrPlan *plan, const MrPath *for_each)
{
	MemoryContext caller;
	MrNode *node;

	if (!for_each)
		return MR_SCOPE_MESSAGE;
	if (for_each->root != MR_ROOT_VALUE || for_each->nsteps == 0 ||
		for_each->steps[for_each->nsteps - 1].kind != MR_STEP_EACH)
		plan_error(for_each, "is not one for for_each",
				   "It starts with \"$\" and ends with \"[*]\", like $.payload.items[*].");
	caller = MemoryContextSwitchTo(plan->context);
	node = follow(plan, plan->roots[MR_ROOT_VALUE], for_each);
	MemoryContextSwitchTo(caller);
	return node->scope;
}

/* Gives a scope one more slot, for a path. */
static int
add_slot(MrPlan *plan, int scope_number, const MrPath *path)
{
	MrScope *scope = &plan->scopes[scope_number];

	scope->paths = scope->paths
					   ? repalloc(scope->paths, (scope->nslots + 1) * sizeof(const MrPath *))
					   : palloc(sizeof(const MrPath *));
	scope->paths[scope->nslots] = mr_path_copy(path);
	return scope->nslots++;
}

/* The slot of a path that no walk fills, by its text. */
static int
find_or_add_slot(MrPlan *plan, int scope_number, const MrPath *path)
{
	MrScope *scope = &plan->scopes[scope_number];
	int i;

	for (i = 0; i < scope->nslots; i++)
	{
		if (scope->paths[i]->root == path->root && strcmp(scope->paths[i]->text, path->text) == 0)
			return i;
	}
	return add_slot(plan, scope_number, path);
}

/* Finds or adds the slot that a walk fills where the path leads. */
static MrSlot
node_slot(MrPlan *plan, MrNode *node, const MrPath *path)
{
	MrSlot slot;

	node = follow(plan, node, path);
	if (node->slot < 0)
		node->slot = add_slot(plan, node->scope, path);
	slot.scope = node->scope;
	slot.number = node->slot;
	return slot;
}

/* Finds or adds the slot of a path. */
MrSlot
mr_plan_slot(MrPlan *plan, int scope, const MrPath *path)
{
	MemoryContext caller = MemoryContextSwitchTo(plan->context);
	MrSlot slot = {MR_SCOPE_MESSAGE, 0};

	if (mr_path_has_each(path))
		plan_error(path, "stands for several values",
				   "Name the array in for_each and start the path with \"@\", the element.");
	if (path->root >= MR_ROOT_ELEMENT && scope == MR_SCOPE_MESSAGE)
		plan_error(path, "needs a for_each",
				   "\"@\" is the element of for_each; the message itself is \"$\".");
	if (path->root == MR_ROOT_OUTER && plan->scopes[scope].parent == MR_SCOPE_MESSAGE)
		plan_error(path, "has no element around it",
				   "for_each holds only one \"[*]\"; the message around it is \"$\".");

	if (path->root == MR_ROOT_KEY)
		plan->wants_key = true;
	if (path->root == MR_ROOT_ELEMENT)
		slot = node_slot(plan, plan->scopes[scope].node, path);
	else if (path->root == MR_ROOT_OUTER)
		slot = node_slot(plan, plan->scopes[plan->scopes[scope].parent].node, path);
	else if (path->root == MR_ROOT_ELEMENT_DICT)
	{
		slot.scope = scope;
		slot.number = find_or_add_slot(plan, scope, path);
	}
	else if (path->root == MR_ROOT_VALUE || path->root == MR_ROOT_HEADERS ||
			 path->root == MR_ROOT_BEFORE || path->root == MR_ROOT_SOURCE ||
			 (path->root == MR_ROOT_KEY && path->nsteps > 0))
	{
		if (!plan->roots[path->root])
			plan->roots[path->root] = make_node(MR_SCOPE_MESSAGE);
		slot = node_slot(plan, plan->roots[path->root], path);
	}
	else
		slot.number = find_or_add_slot(plan, MR_SCOPE_MESSAGE, path);
	MemoryContextSwitchTo(caller);
	return slot;
}

/* Asks for the message's whole value as jsonb. */
void
mr_plan_want_jsonb(MrPlan *plan)
{
	/* Of a change only a part is walked as the value. */
	plan->wants_jsonb = plan->debezium == NULL;
}

/* Has the plan read Debezium's messages. */
void
mr_plan_read_debezium(MrPlan *plan)
{
	MemoryContext caller = MemoryContextSwitchTo(plan->context);

	plan->debezium = mr_debezium_create();
	MemoryContextSwitchTo(caller);
}

/* How many slots a scope has. */
int
mr_plan_slots(const MrPlan *plan, int scope)
{
	return plan->scopes[scope].nslots;
}

/* The path that a slot was first asked for with. */
const MrPath *
mr_plan_path(const MrPlan *plan, MrSlot slot)
{
	return plan->scopes[slot.scope].paths[slot.number];
}
