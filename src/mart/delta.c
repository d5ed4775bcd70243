/*
 * delta.c
 *	  What a batch changes in each group, computed row by row in C.
 *
 * New rows count, old rows count back.  Groups stand in a hash table until the batch has been read, so neither SQL
 * nor a sort of rows is needed; what a side table keeps is counted by (group, value) beside them.  The rows of one
 * object follow one another, so that count(DISTINCT key) only remembers for each group which object it has
 * counted last.  Expressions are evaluated as the mart's owner.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "common/int.h"
#include "core/expression.h"
#include "executor/spi.h"
#include "core/millrace.h"
#include "core/worker.h"
#include "mart/mart.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/typcache.h"

/* A value by which rows are told apart: of a group, or one that a side table keeps. */
typedef struct Key
{
	MrExpression *expression; /* NULL: a constant */
	Oid collation;
	bool by_value;
	int16 length;
	FmgrInfo hash;
	FmgrInfo equal;
	bool by_bytes; /* text of a collation to which equal means the same bytes */
} Key;

/* A side table. */
typedef struct Side
{
	MrExpression *filter; /* or NULL */
	int nvalues;
	Key *values;
	int counter; /* of different first values, or -1 */
	bool results;
} Side;

/* What a counter of the state is computed from. */
typedef struct Argument
{
	MrMartSlotKind kind;
	bool by_object; /* one row of an object in a group counts for all */
	MrExpression *filter; /* or NULL */
	Key value; /* its expression NULL: rows */
	bool sum;
	bool truth;
	Oid type;
	int first; /* number of its first counter */
} Argument;

struct MrMartDelta
{
	const MrStaging *staging;
	ExprContext *econtext;
	TupleTableSlot *row;
	Datum *row_values; /* its own arrays: it borrows those of rows */
	bool *row_nulls;
	MrExpression *where;
	int nkeys;
	Key *keys;
	MrFarColumns far; /* of which keys are plainly made */
	int striped; /* 1 when groups are spread over stripes, else 0 */
	int stripe; /* into which this process writes */
	int nextras;
	Key *extras; /* over the columns of a group */
	TupleTableSlot *group_row;
	int narguments;
	Argument *arguments;
	int nsides;
	Side *sides;
	int ncounters;
	MrMartCount *counters;
};

/* A counter of a group. */
typedef union Counter
{
	int64 count;
	int128 integers;
	Datum sum; /* a numeric, or 0 */
} Counter;

typedef struct Tally
{
	uint32 hash;
	Datum *keys;
	bool *nulls;
	bool touched; /* results will be computed for it */
	int64 *objects; /* by argument: the object counted last */
	Counter *counters;
} Tally;

typedef struct TallyEntry
{
	Tally *group;
	uint32 hash;
	char status;
} TallyEntry;

/* A value in a group, for a side table. */
typedef struct Value
{
	Tally *group;
	Datum *values;
	bool *nulls;
	uint32 hash;
	int64 n;
} Value;

typedef struct ValueEntry
{
	Value *value;
	uint32 hash;
	char status;
} ValueEntry;

/* A look at one batch. */
typedef struct Counting
{
	MrMartDelta *delta;
	struct group_hash *groups;
	struct value_hash **values; /* by side table */
	Datum *keys; /* of the row */
	bool *nulls;
	int64 object; /* number of the object that the row is of */
} Counting;

static bool same_group(struct group_hash *table, const Tally *left, const Tally *right);
static bool same_value(struct value_hash *table, const Value *left, const Value *right);

#define SH_PREFIX group
#define SH_ELEMENT_TYPE TallyEntry
#define SH_KEY_TYPE Tally *
#define SH_KEY group
#define SH_HASH_KEY(table, key) (key)->hash
#define SH_EQUAL(table, a, b) same_group(table, a, b)
#define SH_SCOPE static inline
#define SH_STORE_HASH
#define SH_GET_HASH(table, entry) (entry)->hash
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

#define SH_PREFIX value
#define SH_ELEMENT_TYPE ValueEntry
#define SH_KEY_TYPE Value *
#define SH_KEY value
#define SH_HASH_KEY(table, key) (key)->hash
#define SH_EQUAL(table, a, b) same_value(table, a, b)
#define SH_SCOPE static inline
#define SH_STORE_HASH
#define SH_GET_HASH(table, entry) (entry)->hash
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* ---- keys ------------------------------------------------------------------------------------- */

/* False when the type cannot be hashed. */
static bool
compile_key(Key *key, Node *expression, Oid type, Oid collation)
{
	TypeCacheEntry *cache = lookup_type_cache(type,
											  TYPECACHE_HASH_PROC_FINFO | TYPECACHE_EQ_OPR_FINFO);

	if (!OidIsValid(cache->hash_proc) || !OidIsValid(cache->eq_opr_finfo.fn_oid))
		return false;
	key->expression = expression == NULL ? NULL : mr_expression_compile(expression);
	key->collation = collation;
	key->by_value = cache->typbyval;
	key->length = cache->typlen;
	fmgr_info(cache->hash_proc_finfo.fn_oid, &key->hash);
	fmgr_info(cache->eq_opr_finfo.fn_oid, &key->equal);
	key->by_bytes = key->equal.fn_oid == F_TEXTEQ && get_collation_isdeterministic(collation);
	return true;
}

static uint32
hash_value(Key *key, Datum value)
{
	if (key->by_bytes)
		return hash_bytes((unsigned char *) VARDATA_ANY(DatumGetPointer(value)),
						  VARSIZE_ANY_EXHDR(DatumGetPointer(value)));
	return DatumGetUInt32(FunctionCall1Coll(&key->hash, key->collation, value));
}

static bool
same(const Key *key, Datum left, Datum right)
{
	if (key->by_bytes)
	{
		Pointer l = DatumGetPointer(left);
		Pointer r = DatumGetPointer(right);

		return VARSIZE_ANY_EXHDR(l) == VARSIZE_ANY_EXHDR(r) &&
			   memcmp(VARDATA_ANY(l), VARDATA_ANY(r), VARSIZE_ANY_EXHDR(l)) == 0;
	}
	return DatumGetBool(FunctionCall2Coll((FmgrInfo *) &key->equal, key->collation, left, right));
}

static bool
same_group(struct group_hash *table, const Tally *left, const Tally *right)
{
	const MrMartDelta *delta = table->private_data;

	for (int i = 0; i < delta->nkeys; i++)
	{
		if (left->nulls[i] != right->nulls[i] ||
			(!left->nulls[i] && !same(&delta->keys[i], left->keys[i], right->keys[i])))
			return false;
	}
	return true;
}

static bool
same_value(struct value_hash *table, const Value *left, const Value *right)
{
	const Side *side = table->private_data;

	if (left->group != right->group)
		return false;
	for (int i = 0; i < side->nvalues; i++)
	{
		if (left->nulls[i] != right->nulls[i] ||
			(!left->nulls[i] && !same(&side->values[i], left->values[i], right->values[i])))
			return false;
	}
	return true;
}

/* The value of an expression over the row, where the row's memory lasts; varlena values are whole. */
static inline Datum
evaluate(MrMartDelta *delta, const Key *key, bool *isnull)
{
	Datum value = ExecEvalExprSwitchContext(key->expression->state, delta->econtext, isnull);

	if (!*isnull && key->length == -1)
	{
		MemoryContext previous = MemoryContextSwitchTo(delta->econtext->ecxt_per_tuple_memory);

		value = PointerGetDatum(PG_DETOAST_DATUM_PACKED(value));
		MemoryContextSwitchTo(previous);
	}
	return value;
}

/* ---- compiling -------------------------------------------------------------------------------- */

/* Groups within an expression become columns of the row that a group is. */
static Node *
group_columns_mutator(Node *node, void *context)
{
	List *groups = context;
	ListCell *lc;

	if (node == NULL)
		return NULL;
	foreach(lc, groups)
	{
		MrMartColumn *group = lfirst(lc);

		if (group->expression != NULL && equal(group->expression, node))
			return (Node *) makeVar(1, foreach_current_index(lc) + 1, group->type, group->typmod,
									group->collation, 0);
	}
	return expression_tree_mutator(node, group_columns_mutator, context);
}

static bool
compile_groups(MrMartDelta *delta, MrMartQuery *mart)
{
	TupleDesc desc = CreateTemplateTupleDesc(list_length(mart->groups));
	ListCell *lc;

	delta->keys = palloc0(sizeof(Key) * list_length(mart->groups));
	delta->far.attnums = palloc(sizeof(AttrNumber) * list_length(mart->groups));
	foreach(lc, mart->groups)
	{
		MrMartColumn *group = lfirst(lc);
		int i = delta->nkeys++;

		TupleDescInitEntry(desc, i + 1, NULL, group->type, group->typmod, 0);
		TupleDescInitEntryCollation(desc, i + 1, group->collation);
		if (!compile_key(&delta->keys[i], group->expression, group->type, group->collation))
			return false;
		if (group->expression != NULL && IsA(group->expression, Var) && !delta->keys[i].by_value &&
			((Var *) group->expression)->varattno > 0)
			delta->far.attnums[delta->far.n++] = ((Var *) group->expression)->varattno;
	}
	delta->group_row = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);
	delta->extras = palloc0(sizeof(Key) * Max(list_length(mart->extras), 1));
	foreach(lc, mart->extras)
	{
		MrMartColumn *extra = lfirst(lc);
		Key *key = &delta->extras[delta->nextras++];

		key->expression =
			mr_expression_compile(group_columns_mutator(extra->expression, mart->groups));
		get_typlenbyval(extra->type, &key->length, &key->by_value);
	}
	return true;
}

static void
compile_arguments(MrMartDelta *delta, MrMartQuery *mart)
{
	List *counters = mr_mart_counters(mart);
	ListCell *lc;

	delta->counters = palloc(sizeof(MrMartCount) * list_length(counters));
	foreach(lc, counters)
		delta->counters[delta->ncounters++] = ((MrMartCounter *) lfirst(lc))->what;
	delta->arguments = palloc0(sizeof(Argument) * Max(list_length(mart->slots), 1));
	foreach(lc, mart->slots)
	{
		MrMartSlot *slot = lfirst(lc);
		Argument *argument = &delta->arguments[delta->narguments++];
		ListCell *lc2;

		argument->kind = slot->kind;
		argument->by_object = slot->kind == MR_SLOT_OBJECTS && mart->many;
		argument->sum = slot->sum;
		argument->truth = slot->truth;
		argument->type = slot->type;
		if (slot->filter != NULL)
			argument->filter = mr_expression_compile(slot->filter);
		if (slot->kind == MR_SLOT_VALUES && slot->argument != NULL)
		{
			argument->value.expression = mr_expression_compile(slot->argument);
			get_typlenbyval(slot->type, &argument->value.length, &argument->value.by_value);
		}
		foreach(lc2, counters)
		{
			if (((MrMartCounter *) lfirst(lc2))->slot == slot)
			{
				argument->first = foreach_current_index(lc2);
				break;
			}
		}
	}
}

static bool
compile_sides(MrMartDelta *delta, MrMartQuery *mart)
{
	List *counters = mr_mart_counters(mart);
	ListCell *lc;

	delta->sides = palloc0(sizeof(Side) * Max(list_length(mart->sides), 1));
	foreach(lc, mart->sides)
	{
		const MrMartSide *declared = lfirst(lc);
		Side *side = &delta->sides[delta->nsides++];
		ListCell *lc2;

		side->results = declared->results;
		if (declared->filter != NULL)
			side->filter = mr_expression_compile(declared->filter);
		side->values = palloc0(sizeof(Key) * Max(list_length(declared->values), 1));
		foreach(lc2, declared->values)
		{
			MrMartColumn *value = lfirst(lc2);

			if (!compile_key(&side->values[side->nvalues++], value->expression, value->type,
							 value->collation))
				return false;
		}
		side->counter = -1;
		foreach(lc2, counters)
		{
			if (declared->distinct != NULL &&
				((MrMartCounter *) lfirst(lc2))->slot == declared->distinct)
				side->counter = foreach_current_index(lc2);
		}
	}
	return true;
}

MrMartDelta *
mr_mart_delta_compile(MrMartQuery *mart, const MrStaging *staging, Oid owner)
{
	MrMartDelta *delta = palloc0(sizeof(MrMartDelta));
	MrRunAs saved;
	bool possible;

	delta->staging = staging;
	delta->striped = mart->stripes > 1 ? 1 : 0;
	/* No two workers of a stream meet, as long as there are enough stripes; sessions take what comes. */
	delta->stripe = (mr_worker_number() >= 0 ? mr_worker_number() : MyProcPid) % mart->stripes;
	mr_run_as_restricted(&saved, owner);
	possible = compile_groups(delta, mart) && compile_sides(delta, mart);
	if (possible)
		compile_arguments(delta, mart);
	if (possible && mart->where != NULL)
		delta->where = mr_expression_compile(mart->where);
	mr_run_back(&saved);
	if (!possible)
		return NULL;
	delta->econtext = CreateStandaloneExprContext();
	delta->row = MakeSingleTupleTableSlot(staging->desc, &TTSOpsVirtual);
	delta->row_values = delta->row->tts_values;
	delta->row_nulls = delta->row->tts_isnull;
	delta->econtext->ecxt_scantuple = delta->row;
	return delta;
}

/* ---- counting --------------------------------------------------------------------------------- */

/* A group that has counted nothing, in one piece: there are many, and each is visited again and again. */
static Tally *
make_group(const MrMartDelta *delta)
{
	Size counters = MAXALIGN(sizeof(Tally));
	Size keys = counters + MAXALIGN(sizeof(Counter) * delta->ncounters);
	Size objects = keys + sizeof(Datum) * delta->nkeys;
	Size nulls = objects + sizeof(int64) * delta->narguments;
	char *piece = palloc0(nulls + delta->nkeys);
	Tally *group = (Tally *) piece;

	group->counters = (Counter *) (piece + counters);
	group->keys = (Datum *) (piece + keys);
	group->objects = (int64 *) (piece + objects);
	group->nulls = (bool *) (piece + nulls);
	return group;
}

/* The group of the row, made when it is the first one. */
static Tally *
find_group(Counting *counting)
{
	MrMartDelta *delta = counting->delta;
	Tally probe = {.keys = counting->keys, .nulls = counting->nulls};
	TallyEntry *entry;
	Tally *group;
	bool found;

	for (int i = 0; i < delta->nkeys; i++)
	{
		Key *key = &delta->keys[i];
		uint32 hash = 0;

		counting->nulls[i] = false;
		if (key->expression == NULL)
			counting->keys[i] = (Datum) 0;
		else
			counting->keys[i] = evaluate(delta, key, &counting->nulls[i]);
		if (!counting->nulls[i])
			hash = hash_value(key, counting->keys[i]);
		probe.hash = hash_combine(probe.hash, hash);
	}
	probe.hash = murmurhash32(probe.hash);
	entry = group_insert_hash(counting->groups, &probe, probe.hash, &found);
	if (found)
		return entry->group;

	group = make_group(delta);
	group->hash = probe.hash;
	for (int i = 0; i < delta->nkeys; i++)
	{
		group->nulls[i] = counting->nulls[i];
		group->keys[i] = group->nulls[i] ? (Datum) 0
										 : datumCopy(counting->keys[i], delta->keys[i].by_value,
													 delta->keys[i].length);
	}
	entry->group = group;
	return group;
}

/* Counts the row's values for a side table. */
static void
count_values(Counting *counting, int number, Tally *group, int sign)
{
	MrMartDelta *delta = counting->delta;
	Side *side = &delta->sides[number];
	Datum values[INDEX_MAX_KEYS];
	bool nulls[INDEX_MAX_KEYS];
	Value probe = {.group = group, .values = values, .nulls = nulls, .hash = group->hash};
	ValueEntry *entry;
	bool found;

	if (side->filter != NULL && !mr_expression_true(side->filter, delta->econtext))
		return;
	for (int i = 0; i < side->nvalues; i++)
	{
		values[i] = evaluate(delta, &side->values[i], &nulls[i]);
		probe.hash = hash_combine(probe.hash,
								  nulls[i] ? 0 : hash_value(&side->values[i], values[i]));
	}
	probe.hash = murmurhash32(probe.hash);
	entry = value_insert_hash(counting->values[number], &probe, probe.hash, &found);
	if (!found)
	{
		Value *value = palloc(sizeof(Value));

		*value = probe;
		value->values = palloc(sizeof(Datum) * Max(side->nvalues, 1));
		value->nulls = palloc(Max(side->nvalues, 1));
		for (int i = 0; i < side->nvalues; i++)
		{
			value->nulls[i] = nulls[i];
			value->values[i] = nulls[i] ? (Datum) 0
										: datumCopy(values[i], side->values[i].by_value,
													side->values[i].length);
		}
		entry->value = value;
	}
	entry->value->n += sign;
}

/* Adds to an exact sum. */
static void
add_numeric(Counter *counter, Datum number, int sign)
{
	Datum before = counter->sum;

	if (before == (Datum) 0)
		before = NumericGetDatum(int64_to_numeric(0));
	counter->sum = sign > 0 ? DirectFunctionCall2(numeric_add, before, number)
							: DirectFunctionCall2(numeric_sub, before, number);
	pfree(DatumGetPointer(before));
}

static void
add_value(const Argument *argument, Counter *counters, Datum value, int sign)
{
	int number = argument->first + 1;

	if (argument->truth)
		counters[number++].count += DatumGetBool(value) ? sign : 0;
	if (!argument->sum)
		return;
	switch (argument->type)
	{
		case INT2OID:
			counters[number].count += sign * DatumGetInt16(value);
			break;
		case INT4OID:
			counters[number].count += sign * (int64) DatumGetInt32(value);
			break;
		case INT8OID:
			counters[number].integers += sign * (int128) DatumGetInt64(value);
			break;
		default:
			if (numeric_is_nan(DatumGetNumeric(value)))
				counters[number + 1].count += sign;
			else if (!numeric_is_inf(DatumGetNumeric(value)))
				add_numeric(&counters[number], value, sign);
			else if (DatumGetInt32(DirectFunctionCall2(numeric_cmp, value,
													   NumericGetDatum(int64_to_numeric(0)))) > 0)
				counters[number + 2].count += sign;
			else
				counters[number + 3].count += sign;
			break;
	}
}

/* Counts the row in delta->row. */
static void
count_row(Counting *counting, int sign)
{
	MrMartDelta *delta = counting->delta;
	Tally *group;

	ResetExprContext(delta->econtext);
	if (delta->where != NULL && !mr_expression_true(delta->where, delta->econtext))
		return;
	group = find_group(counting);
	group->counters[0].count += sign;
	for (int a = 0; a < delta->narguments; a++)
	{
		Argument *argument = &delta->arguments[a];
		Datum value = (Datum) 0;
		bool isnull = false;

		if (argument->kind == MR_SLOT_DISTINCT || argument->kind == MR_SLOT_RESULT)
			continue;
		if (argument->filter != NULL && !mr_expression_true(argument->filter, delta->econtext))
			continue;
		if (argument->by_object)
		{
			if (group->objects[a] == counting->object)
				continue;
			group->objects[a] = counting->object;
		}
		if (argument->value.expression != NULL)
			value = evaluate(delta, &argument->value, &isnull);
		if (isnull)
			continue;
		group->counters[argument->first].count += sign;
		if (argument->kind == MR_SLOT_VALUES)
			add_value(argument, group->counters, value, sign);
	}
	for (int i = 0; i < delta->nsides; i++)
		count_values(counting, i, group, sign);
}

/* Are two rows of one object?  Rows of one version have the very same key. */
static bool
same_object(const MrStaging *staging, const Datum *left, const Datum *right)
{
	for (int k = 0; k < staging->nkeys; k++)
	{
		int i = staging->key[k] - 1;
		Form_pg_attribute attribute = TupleDescAttr(staging->desc, i);

		if (!datum_image_eq(left[i], right[i], attribute->attbyval, attribute->attlen))
			return false;
	}
	return true;
}

/* Counts rows one after another; those of one object are neighbours. */
static void
count_rows(Counting *counting, const MrStaged *staged, bool old)
{
	MrMartDelta *delta = counting->delta;
	const MrStaging *staging = delta->staging;
	TupleTableSlot *slot = delta->row;
	Datum *values = delta->row_values;
	bool *nulls = delta->row_nulls;
	int n = old ? staged->nold : staged->nnew;
	Datum *spare = palloc(sizeof(Datum) * staging->desc->natts);
	Datum *before = NULL;

	for (int i = 0; i < n; i++)
	{
		ExecClearTuple(slot);
		if (old)
		{
			/* The row before is looked at once more. */
			Datum *deformed = before == values ? spare : values;

			heap_deform_tuple(staged->old_rows[i], staging->desc, deformed, nulls);
			slot->tts_values = deformed;
			slot->tts_isnull = nulls;
		}
		else
		{
			if (i + 2 * MR_AHEAD < n)
				__builtin_prefetch(staged->new_rows[i + 2 * MR_AHEAD]);
			if (i + MR_AHEAD < n)
				mr_row_prefetch(staged->new_rows[i + MR_AHEAD]);
			if (i + MR_AHEAD / 2 < n)
				mr_columns_prefetch(&delta->far, staged->new_rows[i + MR_AHEAD / 2]);
			slot->tts_values = staged->new_rows[i]->values;
			slot->tts_isnull = staged->new_rows[i]->nulls;
		}
		if (before == NULL || !same_object(staging, before, slot->tts_values))
			counting->object++;
		before = slot->tts_values;
		ExecStoreVirtualTuple(slot);
		count_row(counting, old ? -1 : 1);
	}
	ExecClearTuple(slot);
	slot->tts_values = values;
	slot->tts_isnull = nulls;
}

/* ---- results ---------------------------------------------------------------------------------- */

static MrRows *
make_rows(int ncolumns, int capacity)
{
	MrRows *rows = palloc0(sizeof(MrRows));

	rows->values = palloc(sizeof(Datum *) * ncolumns);
	rows->nulls = palloc(sizeof(bool *) * ncolumns);
	for (int c = 0; c < ncolumns; c++)
	{
		rows->values[c] = MemoryContextAllocHuge(CurrentMemoryContext,
												 sizeof(Datum) * Max(capacity, 1));
		rows->nulls[c] = palloc0(Max(capacity, 1));
	}
	return rows;
}

/* A sum of bigints as the numeric that it is. */
static Datum
integers_numeric(int128 sum)
{
	const int64 part = INT64CONST(1000000000000000000);
	Datum high;

	if (sum >= PG_INT64_MIN && sum <= PG_INT64_MAX)
		return NumericGetDatum(int64_to_numeric((int64) sum));
	high = NumericGetDatum(int64_to_numeric((int64) (sum / part)));
	high = DirectFunctionCall2(numeric_mul, high, NumericGetDatum(int64_to_numeric(part)));
	return DirectFunctionCall2(numeric_add, high,
							   NumericGetDatum(int64_to_numeric((int64) (sum % part))));
}

/* The value of a counter as the state has it; is it other than 0? */
static bool
counter_value(const MrMartDelta *delta, const Argument *argument, MrMartCount what,
			  const Counter *counter, Datum *value, bool *isnull)
{
	*isnull = false;
	if (what != MR_SUM_NUMERIC)
	{
		*value = Int64GetDatum(counter->count);
		*isnull = counter->count == 0 && mr_mart_is_rare(what);
		return counter->count != 0;
	}
	if (argument->type == INT8OID)
	{
		*value = integers_numeric(counter->integers);
		return counter->integers != 0;
	}
	if (counter->sum == (Datum) 0)
	{
		*value = NumericGetDatum(int64_to_numeric(0));
		return false;
	}
	*value = counter->sum;
	return DatumGetInt32(DirectFunctionCall2(numeric_cmp, counter->sum,
											 NumericGetDatum(int64_to_numeric(0)))) != 0;
}

/* The argument that a counter belongs to, or NULL. */
static const Argument *
argument_of(const MrMartDelta *delta, int counter)
{
	const Argument *argument = NULL;

	for (int a = 0; a < delta->narguments; a++)
	{
		if (delta->arguments[a].kind != MR_SLOT_RESULT && delta->arguments[a].first <= counter)
			argument = &delta->arguments[a];
	}
	return argument;
}

/* Adds a group to the rows when the batch changed it. */
static void
add_group(MrMartDelta *delta, Tally *group, MrRows *rows)
{
	int r = rows->nrows;
	int column = delta->nkeys + delta->striped + delta->nextras;
	bool changed = group->touched;

	for (int c = 0; c < delta->ncounters; c++, column++)
		changed |= counter_value(delta, argument_of(delta, c), delta->counters[c],
								 &group->counters[c], &rows->values[column][r],
								 &rows->nulls[column][r]);
	if (!changed)
		return;
	for (int i = 0; i < delta->nkeys; i++)
	{
		rows->values[i][r] = group->keys[i];
		rows->nulls[i][r] = group->nulls[i];
	}
	if (delta->striped)
		rows->values[delta->nkeys][r] = Int16GetDatum(delta->stripe);
	if (delta->nextras > 0)
	{
		ExprContext *econtext = delta->econtext;

		ExecClearTuple(delta->group_row);
		memcpy(delta->group_row->tts_values, group->keys, sizeof(Datum) * delta->nkeys);
		memcpy(delta->group_row->tts_isnull, group->nulls, delta->nkeys);
		ExecStoreVirtualTuple(delta->group_row);
		ResetExprContext(econtext);
		econtext->ecxt_scantuple = delta->group_row;
		column = delta->nkeys + delta->striped;
		for (int e = 0; e < delta->nextras; e++, column++)
			rows->values[column][r] = mr_expression_value(delta->extras[e].expression, econtext,
														  &rows->nulls[column][r]);
		econtext->ecxt_scantuple = delta->row;
	}
	rows->nrows++;
}

/* What changes in a side table, in the columns g…, v…, n, d; *owners are the rows' groups. */
static MrRows *
side_rows(const MrMartDelta *delta, const Side *side, struct value_hash *values, Value ***found)
{
	MrRows *rows = make_rows(delta->nkeys + side->nvalues + 2, values->members);
	value_iterator iterator;
	ValueEntry *entry;

	*found = MemoryContextAllocHuge(CurrentMemoryContext,
									sizeof(Value *) * Max(values->members, 1));
	value_start_iterate(values, &iterator);
	while ((entry = value_iterate(values, &iterator)) != NULL)
	{
		Value *value = entry->value;
		int column = 0;
		int r = rows->nrows;

		if (value->n == 0)
			continue;
		for (int i = 0; i < delta->nkeys; i++, column++)
		{
			rows->values[column][r] = value->group->keys[i];
			rows->nulls[column][r] = value->group->nulls[i];
		}
		for (int i = 0; i < side->nvalues; i++, column++)
		{
			rows->values[column][r] = value->values[i];
			rows->nulls[column][r] = value->nulls[i];
		}
		rows->values[column][r] = Int64GetDatum(value->n);
		rows->values[column + 1][r] = Int64GetDatum(value->n);
		(*found)[r] = value;
		rows->nrows++;
	}
	return rows;
}

/* Merges what changed in a side table, and counts what appeared in or disappeared from the groups. */
static void
merge_values(const MrMartDelta *delta, const Side *side, struct value_hash *values, MrMerge *merge,
			 const char *name)
{
	Value **found;
	MrRows *rows = side_rows(delta, side, values, &found);
	int64 *after = MemoryContextAllocHuge(CurrentMemoryContext,
										  sizeof(int64) * Max(rows->nrows, 1));

	mr_merge_rows(merge, rows, MR_EMPTY_GOES, after, NULL);
	for (int r = 0; r < rows->nrows; r++)
	{
		Value *value = found[r];
		int64 before = after[r] - value->n;

		mr_mart_check_count(name, after[r]);
		if (side->counter >= 0 && !value->nulls[0])
			value->group->counters[side->counter].count += (after[r] > 0) - (before > 0);
		value->group->touched |= side->results;
	}
}

/* The keys of groups, in memory that stays. */
static MrRows *
copy_groups(const MrMartDelta *delta, const MrRows *rows, MemoryContext keep)
{
	MemoryContext previous = MemoryContextSwitchTo(keep);
	MrRows *copy = make_rows(delta->nkeys, rows->nrows);

	copy->nrows = rows->nrows;
	for (int i = 0; i < delta->nkeys; i++)
	{
		for (int r = 0; r < rows->nrows; r++)
		{
			copy->nulls[i][r] = rows->nulls[i][r];
			if (!rows->nulls[i][r])
				copy->values[i][r] = datumCopy(rows->values[i][r], delta->keys[i].by_value,
											   delta->keys[i].length);
		}
	}
	MemoryContextSwitchTo(previous);
	return copy;
}

/* Merges the groups themselves, and computes the results of those that need it. */
static MrRows *
merge_groups(MrMartDelta *delta, struct group_hash *groups, Oid owner, MrMerge *merge,
			 MrMartResults *results, MrMergeEmpty empty, const char *name, MemoryContext keep)
{
	int counter = delta->nkeys + delta->striped + delta->nextras;
	MrRows *rows = make_rows(counter + delta->ncounters, groups->members);
	bool *chosen = palloc0(Max(groups->members, 1));
	group_iterator iterator;
	TallyEntry *entry;
	ItemPointerData *places = NULL;
	int64 *after;
	MrRunAs saved;

	mr_run_as_restricted(&saved, owner);
	group_start_iterate(groups, &iterator);
	while ((entry = group_iterate(groups, &iterator)) != NULL)
	{
		chosen[rows->nrows] = entry->group->touched;
		add_group(delta, entry->group, rows);
	}
	mr_run_back(&saved);
	after = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(int64) * Max(rows->nrows, 1));
	if (results != NULL)
		places = MemoryContextAllocHuge(CurrentMemoryContext,
										sizeof(ItemPointerData) * Max(rows->nrows, 1));
	mr_merge_rows(merge, rows, empty, after, places);
	for (int r = 0; r < rows->nrows; r++)
	{
		/* That of a stripe may be negative. */
		if (!delta->striped)
			mr_mart_check_count(name, after[r]);
		/* A new group has results, too, if only of no values; so has one that stays without rows. */
		if (after[r] == 0)
			chosen[r] = empty == MR_EMPTY_STAYS;
		else
			chosen[r] = after[r] > 0 &&
						(chosen[r] || after[r] == DatumGetInt64(rows->values[counter][r]));
	}
	if (results != NULL && rows->nrows > 0)
	{
		MemoryContext context = CurrentMemoryContext;

		SPI_connect();
		mr_mart_results_compute(results, owner, rows, places, chosen);
		SPI_finish();
		MemoryContextSwitchTo(context);
	}
	return keep == NULL ? NULL : copy_groups(delta, rows, keep);
}

MrRows *
mr_mart_delta_apply(MrMartDelta *delta, const MrStaged *staged, Oid owner, MrMerge **merges,
					MrMartResults *results, MrMergeEmpty empty, const char *name,
					MemoryContext keep, int64 *written)
{
	Counting counting = {.delta = delta};
	MrRows *touched;
	MrRunAs saved;

	counting.groups = group_create(CurrentMemoryContext, 1024, delta);
	counting.keys = palloc(sizeof(Datum) * delta->nkeys);
	counting.nulls = palloc(delta->nkeys);
	counting.values = palloc0(sizeof(struct value_hash *) * Max(delta->nsides, 1));
	for (int i = 0; i < delta->nsides; i++)
		counting.values[i] = value_create(CurrentMemoryContext, 1024, &delta->sides[i]);
	mr_run_as_restricted(&saved, owner);
	count_rows(&counting, staged, false);
	count_rows(&counting, staged, true);
	mr_run_back(&saved);

	for (int i = 0; i < delta->nsides; i++)
		merge_values(delta, &delta->sides[i], counting.values[i], merges[i], name);
	touched = merge_groups(delta, counting.groups, owner, merges[delta->nsides], results, empty,
						   name, keep);
	MemoryContextReset(delta->econtext->ecxt_per_tuple_memory);
	*written += counting.groups->members;
	return touched;
}
