/*
 * judge.c
 *	  Judging rows: which of them make which rule's predicate true.
 *
 * Rules of one owner over one staging table are judged together: one expression says of a row whether any of their
 * predicates is true, which it seldom is.  So a row is visited once however many rules there are.  What is found stays with
 * the batch's versions until each rule's turn comes.  When a row raises an error its rules are judged one by one, so that it is
 * known whose error it is; the pass goes on behind that pair.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "alert/rule.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "executor/spi.h"
#include "nodes/makefuncs.h"
#include "stage/mapping.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

typedef struct MrJudge
{
	const MrStaging *staging;
	Oid owner;
	int nrules;
	MrRule **rules; /* those of one group together, in the order of ordinals */
	MrExpression *any; /* is one of them true?  NULL: not known */
	ExprContext *context;
	TupleTableSlot *row;
} MrJudge;

/* What a judge has found in a batch. */
typedef struct Judged
{
	const MrJudge *judge;
	MrFound *found; /* by rule */
} Judged;

/* One pass over a batch, and where it is. */
typedef struct Pass
{
	MrJudge *judge;
	MrBatch *batch;
	const MrStaged *staged;
	MrFound *found;
	bool any; /* is judge->any to be believed? */
	int version;
	int row;
	int rule; /* -1: all at once */
	bool hit; /* by a row of the version */
} Pass;

/* ---- making judges ------------------------------------------------------------------------------------- */

/* The predicate as it was analysed. */
static Node *
predicate_of(const MrRule *rule)
{
	ListCell *lc;

	foreach(lc, rule->definition->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (!entry->resjunk && strcmp(entry->resname, ":predicate") == 0)
			return (Node *) entry->expr;
	}
	elog(ERROR, "rule %s has no predicate", rule->rule_name);
}

static void
compile_any(void *argument)
{
	MrJudge *judge = argument;
	List *predicates = NIL;

	for (int i = 0; i < judge->nrules; i++)
		predicates = lappend(predicates, predicate_of(judge->rules[i]));
	judge->any = mr_expression_compile(list_length(predicates) == 1
										   ? linitial(predicates)
										   : (Node *) makeBoolExpr(OR_EXPR, predicates, -1));
}

static int
compare_rules(const ListCell *left, const ListCell *right)
{
	const MrRule *l = lfirst(left);
	const MrRule *r = lfirst(right);
	int order = strcmp(l->group != NULL ? l->group : "", r->group != NULL ? r->group : "");

	if (order == 0)
		order = l->ordinal - r->ordinal;
	return order != 0 ? order : l->base.id - r->base.id;
}

static bool
can_be_judged(const MrRule *rule)
{
	return !rule->suspended && rule->reason == NULL && rule->predicate != NULL &&
		   rule->base.kind == &mr_match_kind;
}

/* A judge of these rules (MrRule *), which have one owner and one staging table. */
static MrJudge *
make_judge(List *rules)
{
	MrJudge *judge = palloc0(sizeof(MrJudge));
	MrRule *first = linitial(rules);
	ListCell *lc;

	list_sort(rules, compare_rules);
	judge->staging = first->staging;
	judge->owner = first->base.owner;
	judge->rules = palloc(sizeof(MrRule *) * list_length(rules));
	foreach(lc, rules)
		judge->rules[judge->nrules++] = lfirst(lc);
	judge->context = CreateStandaloneExprContext();
	judge->row = MakeSingleTupleTableSlot(judge->staging->desc, &TTSOpsVirtual);
	judge->context->ecxt_scantuple = judge->row;
	/* Their parts have been compiled each: what fails is only that they are too many. */
	if (mr_rule_try(compile_any, judge, judge->owner, judge->staging->timezone) != NULL)
		judge->any = NULL;
	return judge;
}

static MrRule *
as_rule(MrTarget *target)
{
	return target->kind->phase == MR_PHASE_RULE ? (MrRule *) target : NULL;
}

void
mr_rule_arrange_alone(MrTarget *target, const List *companions)
{
	MrRule *rule = as_rule(target);
	List *rules;
	ListCell *lc;

	if (rule == NULL || !can_be_judged(rule))
		return;
	rules = list_make1(rule);
	/* Those before it in its group may be true instead. */
	foreach(lc, companions)
	{
		MrRule *other = as_rule(lfirst(lc));

		if (other != NULL && rule->group != NULL && other->group != NULL &&
			strcmp(other->group, rule->group) == 0 && other->ordinal < rule->ordinal &&
			can_be_judged(other))
			rules = lappend(rules, other);
	}
	rule->alone = make_judge(rules);
}

void
mr_rules_arrange(List *targets)
{
	ListCell *lc;
	ListCell *lc2;

	foreach(lc, targets)
	{
		MrRule *rule = as_rule(lfirst(lc));
		List *rules = NIL;
		MrJudge *judge;

		if (rule == NULL || !can_be_judged(rule) || rule->judge != NULL)
			continue;
		foreach(lc2, targets)
		{
			MrRule *other = as_rule(lfirst(lc2));

			if (other != NULL && can_be_judged(other) && other->staging == rule->staging &&
				other->base.owner == rule->base.owner)
				rules = lappend(rules, other);
		}
		judge = make_judge(rules);
		foreach(lc2, rules)
			((MrRule *) lfirst(lc2))->judge = judge;
		mr_rule_arrange_alone(&rule->base, targets);
	}
	foreach(lc, targets)
	{
		MrRule *rule = as_rule(lfirst(lc));

		if (rule != NULL && rule->alone == NULL)
			mr_rule_arrange_alone(&rule->base, targets);
		if (rule != NULL && rule->threshold != NULL)
			mr_threshold_find_mart(rule, targets);
	}
}

/* ---- judging ------------------------------------------------------------------------------------------- */

static MrHit *
add_hit(MrFound *found, MemoryContext context)
{
	MrHit *hit;

	if (found->nhits == found->capacity)
	{
		int capacity = Max(16, found->capacity * 2);
		MrHit *grown = MemoryContextAllocHuge(context, sizeof(MrHit) * capacity);

		if (found->nhits > 0)
			memcpy(grown, found->hits, sizeof(MrHit) * found->nhits);
		found->hits = grown;
		found->capacity = capacity;
	}
	hit = &found->hits[found->nhits];
	memset(hit, 0, sizeof(MrHit));
	return hit;
}

/* Notes that the row makes the rule's predicate true, or that its object is deleted. */
static void
note_hit(Pass *pass, MrRule *rule, MrFound *found, const MrVersion *version, bool deleted)
{
	MemoryContext previous = MemoryContextSwitchTo(pass->batch->context);
	ExprContext *context = pass->judge->context;
	MrHit *hit = add_hit(found, pass->batch->context);

	hit->version = version;
	hit->deleted = deleted;
	hit->key = mr_rule_key_text(rule->key, context);
	if (hit->key == NULL)
		hit->key = "[null]";
	hit->history = mr_rule_is_history(rule, pass->batch, version);
	if (!deleted)
	{
		hit->time = mr_rule_row_time(rule, version, context, NULL);
		hit->details = mr_rule_evaluate_text(rule->details, context);
		hit->group_by = mr_rule_evaluate_text(rule->group_by, context);
		hit->objects = mr_rule_one_object(mr_rule_evaluate_text(rule->object, context));
	}
	MemoryContextSwitchTo(previous);
	/* Only now: an error has left nothing behind. */
	found->nhits++;
}

/* Judges the rules from pass->rule on, one by one. */
static void
judge_one_by_one(Pass *pass, const MrVersion *version)
{
	MrJudge *judge = pass->judge;

	for (; pass->rule < judge->nrules; pass->rule++)
	{
		MrRule *rule = judge->rules[pass->rule];

		if (rule->reason == NULL && mr_expression_true(rule->predicate, judge->context))
			note_hit(pass, rule, &pass->found[pass->rule], version, false);
	}
	pass->rule = -1;
}

static bool
found_in(const MrFound *found, const MrVersion *version)
{
	return found->nhits > 0 && found->hits[found->nhits - 1].version == version;
}

/* Of the rules of a group the first one that is true of any row of the version counts. */
static void
settle_groups(Pass *pass, const MrVersion *version)
{
	MrJudge *judge = pass->judge;
	int first = -1;

	for (int i = 0; i < judge->nrules; i++)
	{
		if (judge->rules[i]->group == NULL || !found_in(&pass->found[i], version))
			continue;
		if (first < 0 || strcmp(judge->rules[first]->group, judge->rules[i]->group) != 0)
		{
			first = i;
			continue;
		}
		while (found_in(&pass->found[i], version))
			pass->found[i].nhits--;
	}
}

static void
judge_deleted(Pass *pass, const MrVersion *version)
{
	MrRow empty = mr_version_empty_row(pass->judge->staging, version);

	mr_rule_show_row(pass->judge->row, pass->judge->context, empty.values, empty.nulls);
	for (pass->rule = Max(pass->rule, 0); pass->rule < pass->judge->nrules; pass->rule++)
	{
		MrRule *rule = pass->judge->rules[pass->rule];

		if (rule->of_objects && rule->reason == NULL)
			note_hit(pass, rule, &pass->found[pass->rule], version, true);
	}
	pass->rule = -1;
}

/* Goes on from the place at which the pass is. */
static void
judge_step(void *argument)
{
	Pass *pass = argument;
	MrJudge *judge = pass->judge;
	const MrStaged *staged = pass->staged;

	for (; pass->version < staged->nversions; pass->version++, pass->row = 0)
	{
		const MrVersion *version = &staged->versions[pass->version];

		mr_staged_prefetch(staged, pass->version);
		for (; pass->row < version->nrows; pass->row++)
		{
			mr_rule_progress();
			mr_rule_show_row(judge->row, judge->context, version->rows[pass->row].values,
							 version->rows[pass->row].nulls);
			if (pass->rule < 0)
			{
				if (pass->any && !mr_expression_true(judge->any, judge->context))
					continue;
				pass->rule = 0;
			}
			pass->hit = true;
			judge_one_by_one(pass, version);
		}
		if (pass->hit)
			settle_groups(pass, version);
		pass->hit = false;
		if (version->deleted && version->nrows == 0)
			judge_deleted(pass, version);
	}
}

/* Puts an error where it belongs, and the pass behind it. */
static void
note_error(Pass *pass, const ErrorData *error)
{
	MrJudge *judge = pass->judge;
	const MrVersion *version = &pass->staged->versions[pass->version];
	MemoryContext previous;
	MrRule *rule;

	if (pass->rule < 0)
	{
		/* It is not known whose it is: one by one. */
		pass->rule = 0;
		return;
	}
	rule = judge->rules[pass->rule];
	previous = MemoryContextSwitchTo(pass->batch->context);
	if (!mr_rule_note_failure(&pass->found[pass->rule].failures, version,
							  version->nrows > 0 ? version->rows[pass->row].element : 0, error))
	{
		mr_rule_suspend(rule, error);
		/* Else each row would raise it again. */
		pass->any = false;
	}
	MemoryContextSwitchTo(previous);
	pass->rule++;
}

/* Are the rules those that have been compiled together? */
static bool
all_judged(const MrJudge *judge)
{
	for (int i = 0; i < judge->nrules; i++)
	{
		if (judge->rules[i]->reason != NULL)
			return false;
	}
	return true;
}

static Judged *
judge_batch(MrJudge *judge, MrBatch *batch, const MrStaged *staged)
{
	MemoryContext previous = MemoryContextSwitchTo(batch->context);
	Judged *judged = palloc0(sizeof(Judged));
	Pass pass = {.judge = judge, .batch = batch, .staged = staged, .rule = -1};
	Datum *values = judge->row->tts_values;
	bool *nulls = judge->row->tts_isnull;
	ErrorData *error;

	judged->judge = judge;
	judged->found = pass.found = palloc0(sizeof(MrFound) * judge->nrules);
	for (int i = 0; i < judge->nrules; i++)
	{
		if (judge->rules[i]->reason != NULL)
			continue;
		error = mr_rule_check_privileges(judge->rules[i]);
		if (error != NULL)
			mr_rule_suspend(judge->rules[i], error);
	}
	pass.any = judge->any != NULL && all_judged(judge);
	while ((error = mr_rule_try(judge_step, &pass, judge->owner, judge->staging->timezone)) != NULL)
	{
		note_error(&pass, error);
		FreeErrorData(error);
	}
	ExecClearTuple(judge->row);
	judge->row->tts_values = values;
	judge->row->tts_isnull = nulls;
	MemoryContextReset(judge->context->ecxt_per_tuple_memory);
	MemoryContextSwitchTo(previous);
	return judged;
}

MrFound *
mr_rule_judge(MrRule *rule, MrBatch *batch)
{
	MrStaged *staged = &batch->staged[rule->staging->ordinal];
	MrJudge *judge = batch->again ? rule->alone : rule->judge;
	Judged *judged = NULL;
	ListCell *lc;

	if (judge == NULL || staged->nversions == 0)
		return NULL;
	foreach(lc, staged->judged)
	{
		if (((Judged *) lfirst(lc))->judge == judge)
			judged = lfirst(lc);
	}
	if (judged == NULL)
	{
		MemoryContext previous;

		judged = judge_batch(judge, batch, staged);
		previous = MemoryContextSwitchTo(batch->context);
		staged->judged = lappend(staged->judged, judged);
		MemoryContextSwitchTo(previous);
	}
	for (int i = 0; i < judge->nrules; i++)
	{
		if (judge->rules[i] == rule)
			return &judged->found[i];
	}
	elog(ERROR, "rule %s is not among those that are judged", rule->rule_name);
}

void
mr_rule_write_failures(const MrRule *rule, List *failures)
{
	MemoryContext context = CurrentMemoryContext;
	ListCell *lc;

	if (failures == NIL)
		return;
	foreach(lc, failures)
	{
		MrFailure *failure = lfirst(lc);

		failure->staging = rule->staging;
		failure->rule_id = rule->base.id;
		failure->message->unjudged |= failure->message->rule_id == rule->base.id;
	}
	SPI_connect();
	MemoryContextSwitchTo(context);
	(void) mr_letter_write(NULL, failures);
	SPI_finish();
}
