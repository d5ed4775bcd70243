/*
 * online.c
 *	  Keeping online models: the target kind "model".
 *
 * Each batch's old and new rows say how often users have items more or less than before; expressions are evaluated as the
 * model's owner.  New items get numbers, then users are visited in the order of their ids, each locked or inserted before the
 * next (C4): so two workers wait for each other, and never in a circle.  What a user has before and after the batch says which
 * pairs of items more or fewer users have.  It is exact: whatever came, in whatever order, tables say what they would say of
 * the rows that are staged now.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "core/catalog.h"
#include "core/expression.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "model/ids.h"
#include "model/online.h"
#include "model/store.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/sortsupport.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(millrace_online_check);
PG_FUNCTION_INFO_V1(millrace_online_estimate);

/* A pair of items takes at most so much, both of its directions and indexes counted. */
#define PAIR_BYTES 20

/* Columns of the definition. */
enum
{
	USER,
	ITEM,
	TIME,
	COLUMNS
};

typedef struct MrOnline
{
	MrTarget base;
	int32 model_id;
	int max_history; /* 0: all */
	Query *definition; /* for privileges */
	MrStaging *staging; /* NULL: another stream's */
	MrExpression *where; /* or NULL */
	MrExpression *columns[COLUMNS]; /* the last one with max_history only */
	ExprContext *econtext;
	TupleTableSlot *row;
	Oid types[COLUMNS];
	Oid pairs_id;
	Oid pairs_item;
	MrTable *users;
	MrTable *pairs;
	MrStatement *find_items;
	MrStatement *insert_items;
	MrStatement *find_item;
	MrStatement *lock_users;
	MrStatement *update_users;
	MrStatement *delete_users;
} MrOnline;

/* A user has an item at a time in so many rows more. */
typedef struct Difference
{
	uint32 user; /* by arrival, then by the order of ids */
	uint32 item; /* by arrival, then its number */
	int64 time;
	int32 n;
} Difference;

/* The id of an item, while a batch lasts. */
typedef struct Named
{
	uint32 number;
	Datum id;
	char status;
} Named;

#define SH_PREFIX named
#define SH_ELEMENT_TYPE Named
#define SH_KEY_TYPE uint32
#define SH_KEY number
#define SH_HASH_KEY(table, key) murmurhash32(key)
#define SH_EQUAL(table, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

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
	named_hash *named; /* ids of items by number */
	SortSupportData by_id; /* the order of items */
	MrPairs *pairs;
} Keeping;

/* ---- loading ---------------------------------------------------------------------------------------------- */

/* The one table that the query of a model is over, or 0. */
static Index
source_of(const Query *definition)
{
	List *from = definition->jointree->fromlist;

	return list_length(from) == 1 && IsA(linitial(from), RangeTblRef)
			   ? (Index) linitial_node(RangeTblRef, from)->rtindex
			   : 0;
}

/* The columns of the staging table that the model reads make a difference between old and new rows. */
static void
compare_columns(const Query *definition, MrStaging *staging)
{
	Bitmapset *read = NULL;
	int member = -1;

	pull_varattnos((Node *) definition->targetList, source_of(definition), &read);
	pull_varattnos((Node *) definition->jointree, source_of(definition), &read);
	while ((member = bms_next_member(read, member)) >= 0)
		mr_staging_compare(staging, member + FirstLowInvalidHeapAttributeNumber);
}

static MrStatement *
statement(const MrOnline *model, const char *sql, int nargs, Oid first, Oid second)
{
	Oid types[2] = {first, second};

	return mr_statement_create(psprintf(sql, model->model_id), nargs, types);
}

/* Statements and tables of the state. */
static void
prepare(MrOnline *model)
{
	static const AttrNumber attnums[] = {1, 2, 3};
	Oid users = get_array_type(model->types[USER]);
	Oid items = get_array_type(model->types[ITEM]);

	model->pairs_id = mr_store_table(model->model_id, "pair");
	model->pairs_item = mr_store_table(model->model_id, "pair_item");
	model->users = mr_table_create(mr_store_table(model->model_id, "user"), mr_extension_owner(), 2,
								   attnums, 1);
	model->pairs = mr_table_create(model->pairs_id, mr_extension_owner(), 3, attnums, 1);
	model->find_items =
		statement(model,
				  "SELECT u.n, i.number FROM unnest($1) WITH ORDINALITY AS u (id, n) "
				  "JOIN millrace_state.model_%d_item AS i ON i.item = u.id",
				  1, items, InvalidOid);
	model->insert_items = statement(model,
									"INSERT INTO millrace_state.model_%d_item (item) "
									"SELECT u FROM unnest($1) AS u ON CONFLICT DO NOTHING",
									1, items, InvalidOid);
	model->find_item = statement(model,
								 "SELECT i.item FROM millrace_state.model_%d_item AS i "
								 "WHERE i.number = $1",
								 1, INT4OID, InvalidOid);
	model->lock_users = statement(model,
								  "SELECT u.n, s.ctid, s.history "
								  "FROM unnest($1) WITH ORDINALITY AS u (id, n) "
								  "JOIN millrace_state.model_%d_user AS s ON s.user_id = u.id "
								  "ORDER BY u.n FOR UPDATE OF s",
								  1, users, InvalidOid);
	model->update_users =
		statement(model,
				  "UPDATE millrace_state.model_%d_user AS s "
				  "SET history = u.history FROM unnest($1, $2) AS u (place, history) "
				  "WHERE s.ctid = u.place",
				  2, TIDARRAYOID, BYTEAARRAYOID);
	model->delete_users =
		statement(model, "DELETE FROM millrace_state.model_%d_user WHERE ctid = ANY ($1)", 1,
				  TIDARRAYOID, InvalidOid);
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
	if (mr_sql("SELECT id, coalesce((params ->> 'max_history')::integer, 0) FROM millrace.model "
			   "WHERE target_id = %d",
			   base->id) != 1)
		elog(ERROR, "model of target %d is gone", base->id);
	model->model_id = DatumGetInt32(mr_sql_value(0, 1, &isnull));
	model->max_history = DatumGetInt32(mr_sql_value(0, 2, &isnull));
	SPI_freetuptable(SPI_tuptable);
	for (int i = 0; i < base->nsources; i++)
		if (base->sources[i].staging != NULL)
			model->staging = base->sources[i].staging;
	model->definition = mr_definition_query("model", model->model_id);
	foreach(lc, model->definition->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (!entry->resjunk)
			model->types[entry->resno - 1] = getBaseType(exprType((Node *) entry->expr));
	}
	prepare(model);
	if (model->staging != NULL)
	{
		compare_columns(model->definition, model->staging);
		mr_run_as_restricted(&saved, base->owner);
		foreach(lc, model->definition->targetList)
		{
			TargetEntry *entry = lfirst_node(TargetEntry, lc);

			if (!entry->resjunk)
				model->columns[entry->resno - 1] = mr_expression_compile((Node *) entry->expr);
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
	difference->time = model->columns[TIME] == NULL ? 0 : DatumGetTimestampTz(values[TIME]);
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
	return l->time < r->time ? -1 : l->time > r->time;
}

/* Some ids by the order of ids, as an array. */
static Datum
id_array(const MrIds *ids, const uint32 *places, int n, Oid type)
{
	MrArray *array = mr_array_create(type, n);

	for (int i = 0; i < n; i++)
		mr_array_add(array, mr_ids_value(ids, places[i]), false);
	return mr_array_datum(array);
}

/* Looks for the numbers of items that have none yet; returns how many are left. */
static int
find_items(Keeping *keeping, uint32 *missing, int nmissing, uint32 *numbers)
{
	MrOnline *model = keeping->model;
	Datum ids = id_array(keeping->items, missing, nmissing, model->types[ITEM]);
	uint64 found = mr_statement_run(model->find_items, &ids, NULL);
	int left = 0;

	for (uint64 r = 0; r < found; r++)
	{
		bool isnull;
		int64 n = DatumGetInt64(mr_sql_value(r, 1, &isnull));

		numbers[missing[n - 1]] = (uint32) DatumGetInt32(mr_sql_value(r, 2, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	for (int i = 0; i < nmissing; i++)
		if (numbers[missing[i]] == 0)
			missing[left++] = missing[i];
	return left;
}

/* The numbers of the items of a batch, by the order of their ids; what is new gets one. */
static uint32 *
number_items(Keeping *keeping)
{
	int count = (int) mr_ids_count(keeping->items);
	uint32 *numbers = palloc0(sizeof(uint32) * count);
	uint32 *missing = palloc(sizeof(uint32) * count);
	int nmissing = count;

	for (int i = 0; i < count; i++)
		missing[i] = i;
	nmissing = find_items(keeping, missing, nmissing, numbers);
	/* One that somebody has just put there is waited for, and found then. */
	if (nmissing > 0)
	{
		Datum ids = id_array(keeping->items, missing, nmissing, keeping->model->types[ITEM]);

		(void) mr_statement_run(keeping->model->insert_items, &ids, NULL);
		nmissing = find_items(keeping, missing, nmissing, numbers);
	}
	if (nmissing > 0)
		elog(ERROR, "an item of model %s has no number", keeping->model->base.name);
	return numbers;
}

/* Puts what the rows said in order: by user, in the order of ids, and by the numbers of items. */
static void
sum_up(Keeping *keeping)
{
	uint32 *user_places = mr_ids_sort(keeping->users);
	uint32 *item_places = mr_ids_sort(keeping->items);
	uint32 *numbers = number_items(keeping);
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

/* The id of an item that a history has; those of the batch are there already. */
static Datum
item_id(void *context, uint32 number)
{
	Keeping *keeping = context;
	MrOnline *model = keeping->model;
	Datum argument = Int32GetDatum((int32) number);
	bool found;
	Named *named = named_insert(keeping->named, number, &found);
	bool isnull;

	if (found)
		return named->id;
	if (mr_statement_run(model->find_item, &argument, NULL) != 1)
		elog(ERROR, "item %u of model %s is gone", number, model->base.name);
	named->id = datumCopy(mr_sql_value(0, 1, &isnull), get_typbyval(model->types[ITEM]),
						  get_typlen(model->types[ITEM]));
	SPI_freetuptable(SPI_tuptable);
	return named->id;
}

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

	mr_pairs_write(keeping->pairs, model->pairs, model->pairs_id, model->pairs_item);
}

/* Notes which pairs a user has now, and had before. */
static void
count_pairs(Keeping *keeping, const MrEvent *old, int nold, const MrEvent *new, int nnew)
{
	int most = keeping->model->max_history;
	uint32 *before = palloc(sizeof(uint32) * (nold + 1));
	uint32 *after = palloc(sizeof(uint32) * (nnew + 1));
	uint32 *kept = palloc(sizeof(uint32) * (nold + 1));
	uint32 *gone = palloc(sizeof(uint32) * (nold + 1));
	uint32 *come = palloc(sizeof(uint32) * (nnew + 1));
	int nkept;
	int ngone;
	int ncome;

	nold = mr_history_cut(old, nold, most, item_id, &keeping->by_id, keeping, before);
	nnew = mr_history_cut(new, nnew, most, item_id, &keeping->by_id, keeping, after);
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
						: (old[o].time < difference->time ? -1 : old[o].time > difference->time);
		MrEvent event = {0};

		if (order <= 0)
			event = old[o++];
		if (order >= 0)
		{
			event.number = difference->item;
			event.time = difference->time;
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

/* Does the batch only add to what the user has? */
static bool
only_adds(const Keeping *keeping, uint32 user)
{
	for (int i = keeping->starts[user]; i < keeping->starts[user + 1]; i++)
		if (keeping->differences[i].n < 0)
			return false;
	return true;
}

/* Inserts those users who are new; returns how many are left. */
static int
insert_users(Keeping *keeping, uint32 *users, int nusers)
{
	MrOnline *model = keeping->model;
	MrRows *rows = mr_rows_create(model->users, nusers);
	bool *conflicts = palloc0(sizeof(bool) * nusers);
	uint32 *tried = palloc(sizeof(uint32) * nusers);
	int left = 0;

	rows->nrows = 0;
	for (int i = 0; i < nusers; i++)
	{
		MrEvent *events;
		int n;

		if (!only_adds(keeping, users[i]))
			continue;
		events = merge_history(keeping, users[i], NULL, 0, &n);
		rows->values[0][rows->nrows] = mr_ids_value(keeping->users, users[i]);
		rows->values[1][rows->nrows] = mr_history_make(events, n, model->max_history > 0);
		tried[rows->nrows++] = users[i];
		pfree(events);
	}
	if (!mr_table_insert_free(model->users, rows, true, conflicts))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the tables in millrace_state of model %s have triggers, rules, policies, "
						"constraints or unique indexes of others",
						model->base.name),
				 errhint("Remove them, or create the model again.")));
	for (int i = 0, t = 0; i < nusers; i++)
	{
		if (t < rows->nrows && tried[t] == users[i] && !conflicts[t++])
		{
			MrEvent *events;
			int n;

			events = merge_history(keeping, users[i], NULL, 0, &n);
			count_pairs(keeping, NULL, 0, events, n);
			pfree(events);
		}
		else
			users[left++] = users[i];
	}
	CommandCounterIncrement();
	return left;
}

/* Locks the users who are there, and changes what they have; returns how many are left, who have gone meanwhile. */
static int
change_users(Keeping *keeping, uint32 *users, int nusers)
{
	MrOnline *model = keeping->model;
	bool timed = model->max_history > 0;
	Datum ids = id_array(keeping->users, users, nusers, model->types[USER]);
	uint64 found = mr_statement_run(model->lock_users, &ids, NULL);
	SPITupleTable *locked = SPI_tuptable;
	MrArray *changed = mr_array_create(TIDOID, (int) found);
	MrArray *histories = mr_array_create(BYTEAOID, (int) found);
	MrArray *empty = mr_array_create(TIDOID, 8);
	int left = 0;
	int next = 0;

	for (uint64 r = 0; r < found; r++)
	{
		bool isnull;
		int n = (int) DatumGetInt64(SPI_getbinval(locked->vals[r], locked->tupdesc, 1, &isnull));
		Datum place = SPI_getbinval(locked->vals[r], locked->tupdesc, 2, &isnull);
		Datum history = SPI_getbinval(locked->vals[r], locked->tupdesc, 3, &isnull);
		MrEvent *old;
		MrEvent *new;
		int nold;
		int nnew;

		while (next < n - 1)
			users[left++] = users[next++];
		old = mr_history_read(history, timed, &nold);
		new = merge_history(keeping, users[next++], old, nold, &nnew);
		count_pairs(keeping, old, nold, new, nnew);
		if (nnew == 0)
			mr_array_add(empty, place, false);
		else
		{
			mr_array_add(changed, place, false);
			mr_array_add(histories, mr_history_make(new, nnew, timed), false);
		}
		pfree(old);
		pfree(new);
	}
	while (next < nusers)
		users[left++] = users[next++];
	if (mr_array_length(changed) > 0)
	{
		Datum arguments[] = {mr_array_datum(changed), mr_array_datum(histories)};

		(void) mr_statement_run(model->update_users, arguments, NULL);
	}
	if (mr_array_length(empty) > 0)
	{
		Datum argument = mr_array_datum(empty);

		(void) mr_statement_run(model->delete_users, &argument, NULL);
	}
	SPI_freetuptable(locked);
	return left;
}

/* Writes what users have, and notes what that means for pairs. */
static void
write_users(Keeping *keeping)
{
	int nusers = (int) mr_ids_count(keeping->users);
	uint32 *users = palloc(sizeof(uint32) * Max(nusers, 1));
	int left = 0;

	for (int u = 0; u < nusers; u++)
		if (keeping->starts[u] < keeping->starts[u + 1])
			users[left++] = u;
	keeping->model->base.written += left;
	while (left > 0)
	{
		left = insert_users(keeping, users, left);
		if (left > 0)
			left = change_users(keeping, users, left);
		for (int i = 0; i < left; i++)
			if (!only_adds(keeping, users[i]))
				does_not_fit(keeping);
	}
}

/* ---- batches ---------------------------------------------------------------------------------------------- */

/* Keeps the model by what a batch has staged; under SPI, in memory that goes with the batch. */
static void
maintain(MrOnline *model, const MrStaged *staged)
{
	Keeping keeping = {.model = model, .room = 1024};
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

	keeping.named = named_create(CurrentMemoryContext, 128, NULL);
	keeping.by_id.ssup_cxt = CurrentMemoryContext;
	keeping.by_id.ssup_collation = mr_ids_collation(model->types[ITEM]);
	PrepareSortSupportFromOrderingOp(
		lookup_type_cache(model->types[ITEM], TYPECACHE_LT_OPR)->lt_opr, &keeping.by_id);
	keeping.pairs = mr_pairs_create();
	mr_run_as(&saved, mr_extension_owner());
	nest_level = mr_settings_prefer_indexes();
	sum_up(&keeping);
	write_users(&keeping);
	write_pairs(&keeping);
	mr_settings_unpin(nest_level);
	mr_run_back(&saved);
}

/* Whose error it is. */
static void
model_error_context(void *model)
{
	errcontext("online model %s", ((MrOnline *) model)->base.name);
}

static void
online_apply(MrTarget *target, MrBatch *batch)
{
	MrOnline *model = (MrOnline *) target;
	MemoryContext previous = CurrentMemoryContext;
	ErrorContextCallback callback = {
		.previous = error_context_stack, .callback = model_error_context, .arg = model};
	MemoryContext context;
	MrStaged *staged;
	int nest_level;

	if (model->staging == NULL)
		return;
	staged = &batch->staged[model->staging->ordinal];
	if (staged->nold == 0 && staged->nnew == 0)
		return;
	context = AllocSetContextCreate(previous, "millrace online model", ALLOCSET_DEFAULT_SIZES);
	error_context_stack = &callback;
	nest_level = mr_settings_pin(model->staging->timezone);
	SPI_connect();
	MemoryContextSwitchTo(context);
	maintain(model, staged);
	SPI_finish();
	mr_settings_unpin(nest_level);
	error_context_stack = callback.previous;
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
	(void) mr_sql("DELETE FROM millrace_state.model_%d_user", model->model_id);
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

/* ---- declaring -------------------------------------------------------------------------------------------- */

/* online_check(model integer) → the relation that the query of a model is over; refuses what cannot be kept up to date. */
Datum
millrace_online_check(PG_FUNCTION_ARGS)
{
	Query *query = mr_definition_query("model", PG_GETARG_INT32(0));
	Index source = source_of(query);

	if (source == 0 || rt_fetch(source, query->rtable)->rtekind != RTE_RELATION || query->hasAggs ||
		query->hasWindowFuncs || query->hasTargetSRFs || query->hasSubLinks ||
		query->distinctClause != NIL || query->groupClause != NIL || query->groupingSets != NIL ||
		query->havingQual != NULL || query->limitCount != NULL || query->limitOffset != NULL ||
		query->setOperations != NULL || query->cteList != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the query of an online model must be SELECT … FROM staging [WHERE …]"),
				 errhint("What is not so simple is trained: leave online away.")));
	mr_expression_check_stable((Node *) query->targetList, "the query of an online model");
	mr_expression_check_stable(query->jointree->quals, "the query of an online model");
	PG_RETURN_OID(rt_fetch(source, query->rtable)->relid);
}

/*
 * online_estimate(model integer, owner regrole, max_history integer) → pairs of items at most, of what is staged now: no more
 * than all users have together, and than there are of so many items.
 */
Datum
millrace_online_estimate(PG_FUNCTION_ARGS)
{
	int32 model_id = PG_GETARG_INT32(0);
	int32 most = PG_GETARG_INT32(2);
	MrRunAs saved;
	int64 pairs;
	bool isnull;

	SPI_connect();
	mr_run_as_restricted(&saved, PG_GETARG_OID(1));
	(void) mr_sql("SELECT least(u.pairs, i.n::numeric * (i.n - 1) / 2, 9e18)::bigint FROM "
				  "(SELECT coalesce(sum(h.n::numeric * (h.n - 1) / 2), 0) AS pairs FROM "
				  "(SELECT least(count(DISTINCT d.item), %d) AS n FROM millrace_def.model_%d AS d "
				  "GROUP BY d.user_id) AS h) AS u, "
				  "(SELECT count(DISTINCT d.item) AS n FROM millrace_def.model_%d AS d) AS i",
				  most > 0 ? most : PG_INT32_MAX, model_id, model_id);
	mr_run_back(&saved);
	pairs = DatumGetInt64(mr_sql_value(0, 1, &isnull));
	SPI_finish();
	if (mr_online_model_size >= 0 && pairs > mr_online_model_size * INT64CONST(1024) / PAIR_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the online model may have %lld pairs of items, more than "
						"millrace.online_model_size allows",
						(long long) pairs),
				 errdetail("A pair takes up to %d bytes.", PAIR_BYTES),
				 errhint("\"max_history\" in params limits what of a user's history counts.")));
	ereport(
		NOTICE,
		(errmsg("the online model will have up to %lld pairs of items, %lld kB", (long long) pairs,
				(long long) (pairs / 1024 * PAIR_BYTES + pairs % 1024 * PAIR_BYTES / 1024))));
	PG_RETURN_INT64(pairs);
}
