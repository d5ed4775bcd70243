/*
 * online_serve.c
 *	  What online models answer from: lists that are made from what is counted now.
 *
 * Similarities are computed when they are asked for, over all items that have a user in common, by the kernel's own expression,
 * and rounded to real as trained ones are: so answers are those of a model trained at the same moment.
 */
#include "postgres.h"

#include <math.h>

#include "access/table.h"
#include "access/tableam.h"
#include "core/compat.h"
#include "core/statement.h"
#include "miscadmin.h"
#include "model/ids.h"
#include "model/model.h"
#include "model/online.h"
#include "model/score.h"
#include "model/store.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/sortsupport.h"
#include "utils/typcache.h"

/*
 * What a call needs, memory above all: the session keeps it for the next one, as long as work_mem has room for it.  NULL: there was no
 * call yet, or one is going on.
 */
static MrCounted *idle = NULL;

/* For the case that a call does not come to its end. */
struct MrCountedGuard
{
	MemoryContextCallback callback;
	MrCounted *counted; /* NULL: it has */
};

/* A member of the parameters, which is there. */
static char *
parameter(Datum params, const char *name)
{
	return TextDatumGetCString(
		DirectFunctionCall2(json_object_field_text, params, CStringGetTextDatum(name)));
}

void
mr_counted_learn(MrCounting *counting, Datum params)
{
	char *measure = parameter(params, "similarity");

	counting->measure = strcmp(measure, "dice") == 0      ? MR_MEASURE_DICE
						: strcmp(measure, "jaccard") == 0 ? MR_MEASURE_JACCARD
														  : MR_MEASURE_COSINE;
	counting->shrink = strtod(parameter(params, "shrink"), NULL);
	counting->max_history = pg_strtoint32(parameter(params, "max_history"));
}

/* ---- lists ------------------------------------------------------------------------------------------------ */

/* Reads the rows of an item's list: of each its length and its bytes. */
static void
read_rows(MrCounted *counted, uint32 item)
{
	StringInfo rows = &counted->rows;
	ScanKeyData key;

	CHECK_FOR_INTERRUPTS();
	resetStringInfo(rows);
	mr_lookup_key(&key, counted->pairs, MR_ONLINE_KEY, Int32GetDatum((int32) item));
	index_rescan(counted->scan, &key, 1, NULL, 0);
	while (index_getnext_slot(counted->scan, ForwardScanDirection, counted->slot))
	{
		bool isnull;
		bytea *row = DatumGetByteaPP(slot_getattr(counted->slot, MR_ONLINE_VALUE, &isnull));
		uint32 length = VARSIZE_ANY_EXHDR(row);

		appendBinaryStringInfo(rows, (char *) &length, sizeof(length));
		appendBinaryStringInfo(rows, VARDATA_ANY(row), (int) length);
	}
}

/*
 * Adds up what the rows say of others.  Unless it is NULL, `said` gets whom they speak of, some of them perhaps more than once; returns
 * how many these are.
 */
static pg_attribute_always_inline Size
add_rows(const MrCounted *counted, uint32 *said)
{
	const uint8 *at = (const uint8 *) counted->rows.data;
	const uint8 *end = at + counted->rows.len;
	int32 *common = counted->common;
	uint32 items = counted->items;
	Size count = 0;

	while (at < end)
	{
		MrListRow row = {.number = 0};
		uint32 length;
		uint32 number;
		int32 n;

		memcpy(&length, at, sizeof(length));
		row.at = at + sizeof(length);
		row.end = at = row.at + length;
		while (mr_list_next(&row, &number, &n) && number < items)
		{
			if (said != NULL)
			{
				/* one whose sum was 0 in between is noted again */
				said[count] = number;
				count += common[number] == 0;
			}
			common[number] += n;
		}
	}
	return count;
}

/* Adds up what was read, and notes of whom. */
static Size
note_rows(MrCounted *counted)
{
	/* An entry has two bytes at least, and where the next one goes is written to before it is known. */
	Size most = counted->rows.len / 2 + 1;

	if (most > counted->room)
	{
		counted->room = 2 * most;
		if (counted->said != NULL)
			pfree(counted->said);
		counted->said = MemoryContextAllocHuge(counted->context, counted->room * sizeof(uint32));
	}
	return add_rows(counted, counted->said);
}

/* How similar two items are, 0 when no user has both any more; what they have in common is forgotten. */
static pg_attribute_always_inline double
take_similarity(const MrCounted *counted, uint32 item, uint32 other)
{
	int32 common = counted->common[other];

	counted->common[other] = 0;
	return common <= 0 ? 0
					   : mr_knn_similarity(counted->counting.measure, common, counted->sizes[item],
										   counted->sizes[other], counted->counting.shrink);
}

const MrListed *
mr_counted_list(MrCounted *counted, uint32 item, double *exact, int *length)
{
	MrListed *list;
	Size count;

	read_rows(counted, item);
	count = note_rows(counted);
	list = palloc_extended(Max(count, 1) * sizeof(MrListed), MCXT_ALLOC_HUGE);
	*length = 0;
	for (Size i = 0; i < count; i++)
	{
		uint32 other = counted->said[i];
		double score = take_similarity(counted, item, other);

		if (score <= 0)
			continue;
		if (exact != NULL)
			exact[other] = score;
		list[*length].number = other;
		list[(*length)++].score = (float) score;
	}
	return list;
}

/* Adds what an item says to the scores of all; of those that it does not speak of it says 0. */
static pg_attribute_always_inline void
add_all(MrCounted *counted, MrMeasure measure, double size, double weight)
{
	const double *restrict sizes = counted->sizes;
	double *restrict scores = counted->scores;
	int32 *restrict common = counted->common;
	double shrink = counted->counting.shrink;
	uint32 items = counted->items;

	for (uint32 i = 0; i < items; i++)
	{
		scores[i] += mr_score_part(
			weight, (float) mr_knn_similarity(measure, common[i], size, sizes[i], shrink));
		common[i] = 0;
	}
}

/* One loop for each measure, which the compiler has several items go through at once. */
static void
add_dense(MrCounted *counted, double size, double weight)
{
	switch (counted->counting.measure)
	{
		case MR_MEASURE_DICE:
			add_all(counted, MR_MEASURE_DICE, size, weight);
			break;
		case MR_MEASURE_JACCARD:
			add_all(counted, MR_MEASURE_JACCARD, size, weight);
			break;
		default:
			add_all(counted, MR_MEASURE_COSINE, size, weight);
	}
}

void
mr_counted_add(MrCounted *counted, uint32 item, double weight)
{
	Size count;

	read_rows(counted, item);
	/* To look at all items is faster than to note those that a long list speaks of. */
	if (counted->rows.len > counted->items)
	{
		(void) add_rows(counted, NULL);
		add_dense(counted, counted->sizes[item], weight);
		return;
	}
	count = note_rows(counted);
	for (Size i = 0; i < count; i++)
	{
		uint32 other = counted->said[i];

		counted->scores[other] += mr_score_part(weight,
												(float) take_similarity(counted, item, other));
	}
}

/* More than any number of an item. */
static uint32
end_of_numbers(const MrServed *served)
{
	uint32 end = MR_EVERYBODY + 1;
	SysScanDesc rows;
	ScanKeyData key;
	HeapTuple row;

	mr_lookup_key(&key, served->items, 1, Int32GetDatum(served->version));
	rows = systable_beginscan_ordered(served->items, served->by_number, GetActiveSnapshot(), 1,
									  &key);
	row = systable_getnext_ordered(rows, BackwardScanDirection);
	if (HeapTupleIsValid(row))
		end += (uint32) DatumGetInt32(
			mr_lookup_column(row, MR_ITEM_NUMBER, RelationGetDescr(served->items)));
	systable_endscan_ordered(rows);
	return end;
}

/* Makes room for so many items; nothing is known of them yet. */
static void
make_room(MrCounted *counted, uint32 items)
{
	if (counted->scores != NULL)
		pfree(counted->scores);
	counted->scores = MemoryContextAllocExtended(counted->context,
												 items * (2 * sizeof(double) + sizeof(int32)),
												 MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	counted->sizes = counted->scores + items;
	counted->common = (int32 *) (counted->sizes + items);
	counted->items = items;
	resetStringInfo(&counted->everybody);
}

/* Finds sizes, unless they are those of the last call: what everybody has says how many users have an item. */
static void
find_sizes(MrCounted *counted)
{
	MrMeasure measure = counted->served->kept->counting.measure;
	StringInfo known = &counted->everybody;

	read_rows(counted, MR_EVERYBODY);
	if (counted->counting.measure == measure && known->len == counted->rows.len &&
		memcmp(known->data, counted->rows.data, known->len) == 0)
		return;
	(void) add_rows(counted, NULL);
	for (uint32 i = 0; i < counted->items; i++)
	{
		counted->sizes[i] = measure == MR_MEASURE_COSINE ? sqrt((double) counted->common[i])
														 : (double) counted->common[i];
		counted->common[i] = 0;
	}
	resetStringInfo(known);
	appendBinaryStringInfo(known, counted->rows.data, counted->rows.len);
}

/* What an error has left. */
static void
let_go(void *guard)
{
	MrCounted *counted = ((struct MrCountedGuard *) guard)->counted;

	if (counted != NULL)
		MemoryContextDelete(counted->context);
}

/* What the last call left, or a new one. */
static MrCounted *
take_counted(void)
{
	MrCounted *counted = idle;
	struct MrCountedGuard *guard = palloc0(sizeof(struct MrCountedGuard));

	idle = NULL;
	if (counted == NULL)
	{
		MemoryContext context = AllocSetContextCreate(TopMemoryContext, "millrace counts",
													  ALLOCSET_DEFAULT_SIZES);
		MemoryContext previous = MemoryContextSwitchTo(context);

		counted = palloc0(sizeof(MrCounted));
		counted->context = context;
		initStringInfo(&counted->rows);
		initStringInfo(&counted->everybody);
		MemoryContextSwitchTo(previous);
	}
	guard->counted = counted;
	guard->callback.func = let_go;
	guard->callback.arg = guard;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &guard->callback);
	counted->guard = guard;
	return counted;
}

MrCounted *
mr_counted_open(MrServed *served)
{
	MrCounted *counted = take_counted();
	MrIndexed pairs = served->model->tables[MR_PAIRS];
	uint32 items = end_of_numbers(served);

	counted->served = served;
	counted->pairs = table_open(pairs.table, AccessShareLock);
	counted->pairs_item = index_open(pairs.index, AccessShareLock);
	counted->slot = table_slot_create(counted->pairs, NULL);
	counted->scan = mr_index_beginscan(counted->pairs, counted->pairs_item, GetActiveSnapshot(), 1);
	if (items != counted->items)
		make_room(counted, items);
	find_sizes(counted);
	counted->counting = served->kept->counting;
	memset(counted->scores, 0, items * sizeof(double));
	return counted;
}

void
mr_counted_close(MrCounted *counted)
{
	index_endscan(counted->scan);
	ExecDropSingleTupleTableSlot(counted->slot);
	index_close(counted->pairs_item, AccessShareLock);
	table_close(counted->pairs, AccessShareLock);
	counted->guard->counted = NULL;
	if (idle == NULL && MemoryContextMemAllocated(counted->context, true) <= work_mem * (Size) 1024)
		idle = counted;
	else
		MemoryContextDelete(counted->context);
}

/* ---- users ------------------------------------------------------------------------------------------------ */

/* The id of an item. */
static Datum
find_id(void *context, uint32 number)
{
	return mr_served_id_copy(context, number);
}

uint32 *
mr_counted_profile(MrCounted *counted, char *user, int *count, int *counting)
{
	MrKept *kept = counted->served->kept;
	MrIndexed users = counted->served->model->tables[MR_USERS];
	TupleDesc desc;
	HeapTuple row = mr_lookup_row(users, MR_ONLINE_KEY, mr_served_read_id(&kept->users, user), 0,
								  (Datum) 0, &desc);
	SortSupportData by_id = {.ssup_cxt = CurrentMemoryContext, .ssup_collation = kept->collation};
	MrEvent *events;
	uint32 *items;
	uint32 *had;
	int nevents;
	int nhad;

	*count = *counting = 0;
	if (row == NULL)
		return NULL;
	events = mr_history_read(mr_lookup_column(row, MR_ONLINE_VALUE, desc),
							 counted->counting.max_history > 0, &nevents);
	items = palloc(2 * sizeof(uint32) * (nevents + 1));
	PrepareSortSupportFromOrderingOp(lookup_type_cache(kept->type, TYPECACHE_LT_OPR)->lt_opr,
									 &by_id);
	*counting = mr_history_cut(events, nevents, counted->counting.max_history, find_id, &by_id,
							   counted->served, items);
	/* The rest he has, and that is all. */
	had = items + nevents + 1;
	nhad = mr_history_cut(events, nevents, 0, NULL, NULL, NULL, had);
	*count = *counting;
	for (int h = 0, i = 0; h < nhad; h++)
	{
		if (i < *counting && items[i] == had[h])
			i++;
		else
			items[(*count)++] = had[h];
	}
	return items;
}
