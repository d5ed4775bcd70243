/*
 * online.c
 *	  Keeping what users have, and online models: the target kind "model".
 *
 * Each batch's old and new rows say how often users have items more or less than before; expressions are evaluated as the
 * model's owner.  New items get numbers, then users are visited in the order of their ids, each locked or inserted before the
 * next (C4): so two workers wait for each other, and never in a circle.  What a user has before and after the batch says which
 * pairs of items more or fewer users have.  It is exact: whatever came, in whatever order, tables say what they would say of
 * the rows that are staged now.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "core/catalog.h"
#include "core/expression.h"
#include "core/merge.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "model/ids.h"
#include "model/online.h"
#include "model/store.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/sortsupport.h"
#include "utils/typcache.h"

/* Columns of the definition. */
enum
{
	USER,
	ITEM,
	DETAIL, /* the time of a model with max_history, the weight of a weighted one */
	AT, /* another time: rows without it do not count */
	COLUMNS
};

typedef struct MrOnline
{
	MrTarget base;
	int32 model_id;
	bool is_online; /* else only what users have is kept */
	int max_history; /* 0: all */
	bool detailed;
	bool weighted;
	Query *definition; /* for privileges */
	MrStaging *staging; /* NULL: another stream's */
	MrExpression *where; /* or NULL */
	MrExpression *columns[COLUMNS]; /* NULL: the query has none */
	ExprContext *econtext;
	TupleTableSlot *row;
	Oid types[ITEM + 1];
	Oid pairs_id;
	Oid pairs_item;
	MrMerge *users;
	MrTable *pairs; /* NULL: none are counted */
	MrNumbers *numbers;
} MrOnline;

/* A user has an item with a detail in so many rows more. */
typedef struct Difference
{
	uint32 user; /* by arrival, then by the order of ids */
	uint32 item; /* by arrival, then its number */
	int64 detail;
	int32 n;
} Difference;

/* A look at one batch. */
typedef struct Keeping
{
	MrOnline *model;
	MrIds *users;
	MrIds *items;
	Difference *differences;
	int count;
	int room;
	int *starts; /* by user, and one more */
	SortSupportData by_id; /* the order of items */
	uint32 *changed; /* users, by the rows that are written */
	Datum *before; /* what these rows had, if pairs are counted; 0: nothing */
	MrPairs *pairs; /* NULL: none are counted */
	MemoryContext context;
} Keeping;

/* ---- loading ---------------------------------------------------------------------------------------------- */

/* The columns of the staging table that the model reads make a difference between old and new rows. */
static void
compare_columns(const Query *definition, MrStaging *staging)
{
	Bitmapset *read = NULL;
	int member = -1;

	pull_varattnos((Node *) definition->targetList, mr_online_source(definition), &read);
	pull_varattnos((Node *) definition->jointree, mr_online_source(definition), &read);
	while ((member = bms_next_member(read, member)) >= 0)
		mr_staging_compare(staging, member + FirstLowInvalidHeapAttributeNumber);
}

/* The beginning of the names of the tables that histories are kept in. */
static const char *
tables_of(const MrOnline *model)
{
	return psprintf("model_%d_%s", model->model_id, model->is_online ? "" : "current_");
}

/* Tables of the state. */
static void
prepare(MrOnline *model)
{
	static const AttrNumber attnums[] = {1, 2, 3};
	static const MrMergeColumn user_columns[] = {MR_MERGE_KEY, MR_MERGE_VALUE};
	const char *prefix = model->is_online ? "" : "current_";

	model->users = mr_merge_create(mr_store_table(model->model_id, psprintf("%suser", prefix)),
								   mr_extension_owner(), 2, attnums, user_columns, 1);
	model->numbers = mr_numbers_create(model->model_id, prefix, model->types[ITEM]);
	if (model->is_online)
	{
		model->pairs_id = mr_store_table(model->model_id, "pair");
		model->pairs_item = mr_store_table(model->model_id, "pair_item");
		model->pairs = mr_table_create(model->pairs_id, mr_extension_owner(), 3, attnums, 1);
	}
}

/* Compiles a column of the query, as the model's owner. */
static void
compile_column(MrOnline *model, const TargetEntry *entry)
{
	int column = entry->resno - 1;

	if (column == DETAIL && !model->detailed)
		column = AT;
	model->columns[column] = mr_expression_compile((Node *) entry->expr);
}

char *
mr_online_users(const MrTarget *target)
{
	return psprintf("millrace_state.%suser", tables_of((const MrOnline *) target));
}

static MrTarget *
online_load(const MrTarget *base)
{
	MemoryContext context = CurrentMemoryContext;
	MrOnline *model = palloc0(sizeof(MrOnline));
	ListCell *lc;
	MrRunAs saved;
	bool isnull;

	model->base = *base;
	SPI_connect();
	MemoryContextSwitchTo(context);
	if (mr_sql("SELECT id, coalesce((params ->> 'max_history')::integer, 0), is_online "
			   "FROM millrace.model WHERE target_id = %d",
			   base->id) != 1)
		elog(ERROR, "model of target %d is gone", base->id);
	model->model_id = DatumGetInt32(mr_sql_value(0, 1, &isnull));
	model->max_history = DatumGetInt32(mr_sql_value(0, 2, &isnull));
	model->is_online = DatumGetBool(mr_sql_value(0, 3, &isnull));
	SPI_freetuptable(SPI_tuptable);
	for (int i = 0; i < base->nsources; i++)
		if (base->sources[i].staging != NULL)
			model->staging = base->sources[i].staging;
	model->definition = mr_online_query(model->model_id);
	model->weighted = get_attnum(mr_definition_view("model", model->model_id), "weight") !=
					  InvalidAttrNumber;
	model->detailed = model->weighted || model->max_history > 0;
	foreach(lc, model->definition->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (!entry->resjunk && entry->resno <= ITEM + 1)
			model->types[entry->resno - 1] = getBaseType(exprType((Node *) entry->expr));
	}
	prepare(model);
	if (model->staging != NULL)
	{
		compare_columns(model->definition, model->staging);
		mr_run_as_restricted(&saved, base->owner);
		foreach(lc, model->definition->targetList)
		{
			if (!lfirst_node(TargetEntry, lc)->resjunk)
				compile_column(model, lfirst_node(TargetEntry, lc));
		}
		if (model->definition->jointree->quals != NULL)
			model->where = mr_expression_compile(model->definition->jointree->quals);
		mr_run_back(&saved);
		model->econtext = CreateStandaloneExprContext();
		model->row = MakeSingleTupleTableSlot(model->staging->desc, &TTSOpsVirtual);
		model->econtext->ecxt_scantuple = model->row;
	}
	SPI_finish();
	return &model->base;
}

/* ---- what a batch says ------------------------------------------------------------------------------------ */

/* Counts the row that stands in model->row. */
static void
count_row(Keeping *keeping, int sign)
{
	MrOnline *model = keeping->model;
	ExprContext *econtext = model->econtext;
	Datum values[COLUMNS];
	bool isnull = false;
	Difference *difference;

	ResetExprContext(econtext);
	if (model->where != NULL && !mr_expression_true(model->where, econtext))
		return;
	for (int c = 0; c < COLUMNS && !isnull; c++)
	{
		if (model->columns[c] != NULL)
			values[c] = ExecEvalExprSwitchContext(model->columns[c]->state, econtext, &isnull);
	}
	if (isnull)
		return;
	if (keeping->count == keeping->room)
	{
		keeping->room *= 2;
		keeping->differences = repalloc_huge(keeping->differences,
											 sizeof(Difference) * keeping->room);
	}
	difference = &keeping->differences[keeping->count++];
	difference->user = mr_ids_number(keeping->users, values[USER]);
	difference->item = mr_ids_number(keeping->items, values[ITEM]);
	difference->detail = !model->detailed  ? 0
						 : model->weighted ? mr_weight_detail(DatumGetFloat8(values[DETAIL]))
										   : DatumGetTimestampTz(values[DETAIL]);
	difference->n = sign;
}

/* Counts new rows, and old ones back. */
static void
count_rows(Keeping *keeping, const MrStaged *staged)
{
	MrOnline *model = keeping->model;
	TupleTableSlot *slot = model->row;
	Datum *values = slot->tts_values;
	bool *nulls = slot->tts_isnull;

	for (int i = 0; i < staged->nnew; i++)
	{
		if (i + MR_AHEAD < staged->nnew)
			mr_row_prefetch(staged->new_rows[i + MR_AHEAD]);
		ExecClearTuple(slot);
		slot->tts_values = staged->new_rows[i]->values;
		slot->tts_isnull = staged->new_rows[i]->nulls;
		ExecStoreVirtualTuple(slot);
		count_row(keeping, 1);
	}
	slot->tts_values = values;
	slot->tts_isnull = nulls;
	for (int i = 0; i < staged->nold; i++)
	{
		ExecClearTuple(slot);
		heap_deform_tuple(staged->old_rows[i], model->staging->desc, values, nulls);
		ExecStoreVirtualTuple(slot);
		count_row(keeping, -1);
	}
	ExecClearTuple(slot);
}

static int
compare_differences(const void *left, const void *right)
{
	const Difference *l = left;
	const Difference *r = right;

	if (l->user != r->user)
		return l->user < r->user ? -1 : 1;
	if (l->item != r->item)
		return l->item < r->item ? -1 : 1;
	return l->detail < r->detail ? -1 : l->detail > r->detail;
}

/* Puts what the rows said in order: by user, in the order of ids, and by the numbers of items. */
static void
sum_up(Keeping *keeping)
{
	uint32 *user_places = mr_ids_sort(keeping->users);
	uint32 *item_places = mr_ids_sort(keeping->items);
	uint32 *numbers = mr_numbers_find(keeping->model->numbers, keeping->items);
	uint32 nusers = mr_ids_count(keeping->users);
	Difference *differences = keeping->differences;
	int kept = 0;

	for (int i = 0; i < keeping->count; i++)
	{
		differences[i].user = user_places[differences[i].user];
		differences[i].item = numbers[item_places[differences[i].item]];
	}
	qsort(differences, keeping->count, sizeof(Difference), compare_differences);
	for (int i = 0; i < keeping->count;)
	{
		Difference sum = differences[i];

		while (++i < keeping->count && compare_differences(&differences[i], &sum) == 0)
			sum.n += differences[i].n;
		if (sum.n != 0)
			differences[kept++] = sum;
	}
	keeping->count = kept;
	keeping->starts = palloc0(sizeof(int) * (nusers + 1));
	for (int i = 0; i < kept; i++)
		keeping->starts[differences[i].user + 1] = i + 1;
	for (uint32 u = 0; u < nusers; u++)
		keeping->starts[u + 1] = Max(keeping->starts[u + 1], keeping->starts[u]);
}

/* ---- users ------------------------------------------------------------------------------------------------ */

/* More or fewer users have an item, alone and with each of others. */
static void
add_pairs(MrPairs *pairs, uint32 item, const uint32 *others, int nothers, bool both, int n)
{
	for (int i = 0; i < nothers; i++)
	{
		if (others[i] == item)
			continue;
		mr_pairs_add(pairs, item, others[i], n);
		if (both)
			mr_pairs_add(pairs, others[i], item, n);
	}
}

/* What is in both of two ascending rows of numbers, and what in one only. */
static void
compare_items(const uint32 *before, int nbefore, const uint32 *after, int nafter, uint32 *kept,
			  int *nkept, uint32 *gone, int *ngone, uint32 *come, int *ncome)
{
	int b = 0;
	int a = 0;

	*nkept = *ngone = *ncome = 0;
	while (b < nbefore || a < nafter)
	{
		if (a == nafter || (b < nbefore && before[b] < after[a]))
			gone[(*ngone)++] = before[b++];
		else if (b == nbefore || after[a] < before[b])
			come[(*ncome)++] = after[a++];
		else
		{
			kept[(*nkept)++] = after[a++];
			b++;
		}
	}
}

static void
write_pairs(Keeping *keeping)
{
	MrOnline *model = keeping->model;

	if (keeping->pairs != NULL)
		mr_pairs_write(keeping->pairs, model->pairs, model->pairs_id, model->pairs_item);
}

/* Notes which pairs a user has now, and had before, by histories. */
static void
count_pairs(Keeping *keeping, const MrEvent *old, int nold, const MrEvent *new, int nnew)
{
	MrNumbers *numbers = keeping->model->numbers;
	int most = keeping->model->max_history;
	uint32 *before = palloc(sizeof(uint32) * (nold + 1));
	uint32 *after = palloc(sizeof(uint32) * (nnew + 1));
	uint32 *kept = palloc(sizeof(uint32) * (nold + 1));
	uint32 *gone = palloc(sizeof(uint32) * (nold + 1));
	uint32 *come = palloc(sizeof(uint32) * (nnew + 1));
	int nkept;
	int ngone;
	int ncome;

	nold = mr_history_cut(old, nold, most, mr_numbers_id, &keeping->by_id, numbers, before);
	nnew = mr_history_cut(new, nnew, most, mr_numbers_id, &keeping->by_id, numbers, after);
	compare_items(before, nold, after, nnew, kept, &nkept, gone, &ngone, come, &ncome);
	for (int i = 0; i < ngone; i++)
	{
		mr_pairs_add(keeping->pairs, MR_EVERYBODY, gone[i], -1);
		add_pairs(keeping->pairs, gone[i], kept, nkept, true, -1);
		add_pairs(keeping->pairs, gone[i], gone, ngone, false, -1);
		if (mr_pairs_are_many(keeping->pairs))
			write_pairs(keeping);
	}
	for (int i = 0; i < ncome; i++)
	{
		mr_pairs_add(keeping->pairs, MR_EVERYBODY, come[i], 1);
		add_pairs(keeping->pairs, come[i], kept, nkept, true, 1);
		add_pairs(keeping->pairs, come[i], come, ncome, false, 1);
		if (mr_pairs_are_many(keeping->pairs))
			write_pairs(keeping);
	}
	pfree(before);
	pfree(after);
	pfree(kept);
	pfree(gone);
	pfree(come);
}

static void
does_not_fit(const Keeping *keeping)
{
	ereport(ERROR, (errcode(ERRCODE_SQL_ROUTINE_EXCEPTION),
					errmsg("the state of model %s does not fit its staging table",
						   keeping->model->base.name),
					errdetail("A user would have an item in fewer than no rows."),
					errhint("Compute it anew with millrace.rebuild().")));
}

/* A history with what the batch says of the user. */
static MrEvent *
merge_history(const Keeping *keeping, uint32 user, const MrEvent *old, int nold, int *nnew)
{
	int next = keeping->starts[user];
	int end = keeping->starts[user + 1];
	MrEvent *new = MemoryContextAllocHuge(CurrentMemoryContext,
										  sizeof(MrEvent) * ((Size) nold + end - next + 1));
	int n = 0;

	for (int o = 0; o < nold || next < end;)
	{
		const Difference *difference = &keeping->differences[next];
		int order = next == end ? -1
					: o == nold ? 1
					: old[o].number != difference->item
						? (old[o].number < difference->item ? -1 : 1)
						: (old[o].detail < difference->detail ? -1
															  : old[o].detail > difference->detail);
		MrEvent event = {0};

		if (order <= 0)
			event = old[o++];
		if (order >= 0)
		{
			event.number = difference->item;
			event.detail = difference->detail;
			event.n += difference->n;
			next++;
		}
		if (event.n < 0)
			does_not_fit(keeping);
		if (event.n > 0)
			new[n++] = event;
	}
	*nnew = n;
	return new;
}

/* What the batch makes of the history of a user. */
static bool
change_history(void *context, int row, const Datum *old, Datum *value)
{
	Keeping *keeping = context;
	bool detailed = keeping->model->detailed;
	MrEvent *before = NULL;
	int nbefore = 0;
	MrEvent *after;
	int nafter;

	keeping->before[row] = (Datum) 0;
	if (old != NULL)
	{
		/* Pairs are counted when it is known that it was the newest one. */
		if (keeping->pairs != NULL)
		{
			MemoryContext previous = MemoryContextSwitchTo(keeping->context);

			keeping->before[row] = PointerGetDatum(PG_DETOAST_DATUM_COPY(*old));
			MemoryContextSwitchTo(previous);
			old = &keeping->before[row];
		}
		before = mr_history_read(*old, detailed, &nbefore);
	}
	after = merge_history(keeping, keeping->changed[row], before, nbefore, &nafter);
	*value = mr_history_make(after, nafter, detailed);
	if (before != NULL)
		pfree(before);
	pfree(after);
	return nafter > 0;
}

/* Notes which pairs a user has now, and had before. */
static void
count_changed(Keeping *keeping, int row)
{
	Datum old = keeping->before[row];
	int nbefore = 0;
	MrEvent *before = old == (Datum) 0 ? NULL
									   : mr_history_read(old, keeping->model->detailed, &nbefore);
	int nafter;
	MrEvent *after = merge_history(keeping, keeping->changed[row], before, nbefore, &nafter);

	count_pairs(keeping, before, nbefore, after, nafter);
	if (before != NULL)
		pfree(before);
	pfree(after);
}

/* Writes what users have, and notes what that means for pairs. */
static void
write_users(Keeping *keeping)
{
	MrOnline *model = keeping->model;
	Size nusers = Max(mr_ids_count(keeping->users), 1);
	Datum *ids = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(Datum) * nusers);
	bool *nulls = mr_zeros(nusers, sizeof(bool));
	MrRows rows = {.values = &ids, .nulls = &nulls};

	keeping->changed = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(uint32) * nusers);
	keeping->before = mr_zeros(nusers, sizeof(Datum));
	for (uint32 u = 0; u < mr_ids_count(keeping->users); u++)
	{
		if (keeping->starts[u] == keeping->starts[u + 1])
			continue;
		keeping->changed[rows.nrows] = u;
		ids[rows.nrows++] = mr_ids_value(keeping->users, u);
	}
	model->base.written += rows.nrows;
	if (!mr_merge_is_plain(model->users))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the tables in millrace_state of model %s have triggers, rules, policies, "
						"constraints or unique indexes of others",
						model->base.name),
				 errhint("Remove them, or create the model again.")));
	mr_merge_values(model->users, &rows, change_history, keeping);
	for (int r = 0; r < rows.nrows && keeping->pairs != NULL; r++)
		count_changed(keeping, r);
}

/* ---- batches ---------------------------------------------------------------------------------------------- */

/* Keeps the model by what a batch has staged; under SPI, in memory that goes with the batch. */
static void
maintain(MrOnline *model, const MrStaged *staged)
{
	Keeping keeping = {.model = model, .room = 1024, .context = CurrentMemoryContext};
	MrRunAs saved;
	int nest_level;

	keeping.users = mr_ids_create(model->types[USER], "user");
	keeping.items = mr_ids_create(model->types[ITEM], "item");
	keeping.differences = palloc(sizeof(Difference) * keeping.room);
	mr_run_as_restricted(&saved, model->base.owner);
	mr_check_privileges(model->definition);
	count_rows(&keeping, staged);
	mr_run_back(&saved);
	if (keeping.count == 0)
		return;
	mr_ids_check(keeping.users);
	mr_ids_check(keeping.items);

	keeping.by_id.ssup_cxt = CurrentMemoryContext;
	keeping.by_id.ssup_collation = mr_ids_collation(model->types[ITEM]);
	PrepareSortSupportFromOrderingOp(
		lookup_type_cache(model->types[ITEM], TYPECACHE_LT_OPR)->lt_opr, &keeping.by_id);
	if (model->is_online)
		keeping.pairs = mr_pairs_create();
	mr_run_as(&saved, mr_extension_owner());
	nest_level = mr_settings_prefer_indexes();
	sum_up(&keeping);
	write_users(&keeping);
	mr_debug_point("users_counted");
	write_pairs(&keeping);
	mr_settings_unpin(nest_level);
	mr_run_back(&saved);
}

static void
online_apply(MrTarget *target, MrBatch *batch)
{
	MrOnline *model = (MrOnline *) target;
	MemoryContext previous = CurrentMemoryContext;
	MemoryContext context;
	MrStaged *staged;
	int nest_level;

	if (model->staging == NULL)
		return;
	staged = &batch->staged[model->staging->ordinal];
	if (staged->nold == 0 && staged->nnew == 0)
		return;
	context = AllocSetContextCreate(previous, "millrace model", ALLOCSET_DEFAULT_SIZES);
	/* A training reads under UTC. */
	nest_level = mr_settings_pin(model->is_online ? model->staging->timezone : "UTC");
	SPI_connect();
	MemoryContextSwitchTo(context);
	maintain(model, staged);
	SPI_finish();
	mr_settings_unpin(nest_level);
	MemoryContextSwitchTo(previous);
	MemoryContextDelete(context);
}

/* Everything goes but the numbers of items, which may be known to a batch that waits. */
static void
online_clear(MrTarget *target, const char *filter, char **condition)
{
	MrOnline *model = (MrOnline *) target;
	MrRunAs saved;

	if (filter != NULL)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("model %s cannot be rebuilt in part", target->name),
						errhint("Rebuild it whole, without a filter.")));
	mr_run_as(&saved, mr_extension_owner());
	/* Not TRUNCATE: who reads under an older snapshot must go on seeing the model. */
	(void) mr_sql("DELETE FROM millrace_state.%suser", tables_of(model));
	if (model->is_online)
		(void) mr_sql("DELETE FROM millrace_state.model_%d_pair", model->model_id);
	mr_run_back(&saved);
	*condition = NULL;
}

const MrTargetKind mr_model_kind = {
	.name = "model",
	.phase = MR_PHASE_MODEL,
	.stage = MR_STAGE_MART,
	.load = online_load,
	.apply = online_apply,
	.filled_from = MR_FILLED_FROM_ROWS,
	.clear = online_clear,
};
