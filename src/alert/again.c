/*
 * again.c
 *	  Rules of kind "match" that fire again: each time the newest version of an object makes them true that were not.
 *
 * Old and new rows say what changed, so nothing is remembered.  Versions that are superseded before they are staged are not
 * seen: which edges there are depends on the order of arrival and the borders of batches.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "alert/rule.h"
#include "core/millrace.h"
#include "utils/memutils.h"

/* A look at one batch. */
typedef struct Comparing
{
	MrRule *rule;
	MrBatch *batch;
	const MrStaged *staged;
	int old_row; /* where it is */
	int new_row;
	int version; /* of the new row, among those that have rows there */
	char **before; /* keys of objects that made it true; then sorted */
	int nbefore;
	MrHit *hits;
	int nhits;
	List *failures;
} Comparing;

static int
compare_keys(const void *left, const void *right)
{
	return strcmp(*(char *const *) left, *(char *const *) right);
}

static void
old_rows_step(void *argument)
{
	Comparing *comparing = argument;
	MrRule *rule = comparing->rule;
	TupleDesc desc = rule->staging->desc;
	Datum *values = palloc(sizeof(Datum) * desc->natts);
	bool *nulls = palloc(desc->natts);

	for (; comparing->old_row < comparing->staged->nold; comparing->old_row++)
	{
		mr_rule_progress();
		heap_deform_tuple(comparing->staged->old_rows[comparing->old_row], desc, values, nulls);
		mr_rule_show_row(rule->row, rule->context, values, nulls);
		if (mr_expression_true(rule->predicate, rule->context))
			comparing->before[comparing->nbefore++] = mr_rule_key_text(rule->key, rule->context);
	}
}

/* The version that a new row is of: both stand in the order of keys. */
static const MrVersion *
version_of(Comparing *comparing, const MrRow *row)
{
	const MrStaged *staged = comparing->staged;
	int n = comparing->batch->again ? staged->nversions : staged->naccepted;

	for (; comparing->version < n; comparing->version++)
	{
		const MrVersion *version = comparing->batch->again ? &staged->versions[comparing->version]
														   : staged->accepted[comparing->version];

		if (row >= version->rows && row < version->rows + version->nrows)
			return version;
	}
	return NULL;
}

static void
new_rows_step(void *argument)
{
	Comparing *comparing = argument;
	MrRule *rule = comparing->rule;

	for (; comparing->new_row < comparing->staged->nnew; comparing->new_row++)
	{
		MrRow *row = comparing->staged->new_rows[comparing->new_row];
		MrHit *hit = &comparing->hits[comparing->nhits];

		mr_rule_progress();
		mr_rule_show_row(rule->row, rule->context, row->values, row->nulls);
		memset(hit, 0, sizeof(MrHit));
		hit->version = version_of(comparing, row);
		if (hit->version == NULL || !mr_expression_true(rule->predicate, rule->context))
			continue;
		hit->key = mr_rule_key_text(rule->key, rule->context);
		if ((comparing->nhits > 0 && hit[-1].version == hit->version) ||
			bsearch(&hit->key, comparing->before, comparing->nbefore, sizeof(char *),
					compare_keys) != NULL)
			continue;
		hit->occurrence = psprintf("%s@%s", hit->key,
								   mr_rule_version_text(rule->staging, hit->version));
		hit->time = mr_rule_row_time(rule, hit->version, rule->context, NULL);
		hit->details = mr_rule_evaluate_text(rule->details, rule->context);
		hit->group_by = mr_rule_evaluate_text(rule->group_by, rule->context);
		hit->objects = mr_rule_one_object(mr_rule_evaluate_text(rule->object, rule->context));
		hit->history = mr_rule_is_history(rule, comparing->batch, hit->version);
		comparing->nhits++;
	}
}

/* False when the rule is suspended by what is compared. */
static bool
compare(Comparing *comparing)
{
	MrRule *rule = comparing->rule;
	const char *timezone = rule->staging->timezone;
	ErrorData *error = mr_rule_check_privileges(rule);

	if (error == NULL)
	{
		/* A row that could not be judged was not true. */
		while ((error = mr_rule_try(old_rows_step, comparing, rule->base.owner, timezone)) !=
				   NULL &&
			   mr_rule_error_of_data(error))
			comparing->old_row++;
		qsort(comparing->before, comparing->nbefore, sizeof(char *), compare_keys);
	}
	while (error == NULL &&
		   (error = mr_rule_try(new_rows_step, comparing, rule->base.owner, timezone)) != NULL)
	{
		const MrRow *row = comparing->staged->new_rows[comparing->new_row];

		if (!mr_rule_note_failure(&comparing->failures, version_of(comparing, row), row->element,
								  error))
			break;
		error = NULL;
		comparing->new_row++;
	}
	if (error != NULL)
		mr_rule_suspend(rule, error);
	return error == NULL;
}

static void
fire_step(void *argument)
{
	Comparing *comparing = argument;
	MrHit **hits = palloc(sizeof(MrHit *) * comparing->nhits);

	for (int i = 0; i < comparing->nhits; i++)
		hits[i] = &comparing->hits[i];
	mr_rule_fire(comparing->rule, hits, comparing->nhits);
}

static void
again_apply(MrTarget *target, MrBatch *batch)
{
	MrRule *rule = (MrRule *) target;
	Comparing comparing = {.rule = rule, .batch = batch};
	bool compared;

	if (!mr_rule_is_judged(rule, batch))
		return;
	comparing.staged = &batch->staged[rule->staging->ordinal];
	if (comparing.staged->nnew == 0)
		return;
	comparing.before = palloc(sizeof(char *) * Max(comparing.staged->nold, 1));
	comparing.hits = MemoryContextAllocHuge(CurrentMemoryContext,
											sizeof(MrHit) * comparing.staged->nnew);
	compared = compare(&comparing);
	mr_rule_hide_row(rule);
	mr_rule_write_failures(rule, comparing.failures);
	if (!compared)
	{
		(void) mr_rule_is_judged(rule, batch);
		return;
	}
	if (comparing.nhits > 0)
		mr_rule_write(rule, batch, fire_step, &comparing);
}

const MrTargetKind mr_again_kind = {
	.name = "rule",
	.phase = MR_PHASE_RULE,
	.stage = MR_STAGE_ALERT,
	.apply = again_apply,
	.filled_from = MR_FILLED_FROM_ROWS,
	.clear = mr_rule_clear,
};
