/*
 * input.c
 *	  Reading what a model is trained on.
 *
 * Rows are kept as pairs of numbers by arrival.  When all have come, ids are sorted and numbered by their order, and pairs by two
 * passes of a counting sort; or by PostgreSQL's external sort, when maintenance_work_mem does not hold them all.  So nothing
 * depends on the order in which rows come.  The weights of a pair are summed in ascending order, for the same reason.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "catalog/pg_operator_d.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "core/catalog.h"
#include "core/compat.h"
#include "core/statement.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "model/input.h"
#include "tcop/dest.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/tuplesort.h"

#define REPORT_ROWS 100000

#define MOST_ROWS (1 << 30)

/* Elements of a column that are looked at together. */
#define PIECE 4096

/* A pair while its rows are summed up, which come by ascending weight. */
typedef struct Pair
{
	uint32 user;
	uint32 item;
	double weight;
	TimestampTz time;
	bool is_late; /* all of its rows */
	double early_weight;
	TimestampTz early_time;
} Pair;

/* Takes the rows of the query. */
typedef struct Reader
{
	DestReceiver receiver;
	MrInput *input;
	const MrCut *cut;
	MrColumn *users; /* numbers by arrival; columns of the rows, in the order in which they come */
	MrColumn *items;
	MrColumn *weights;
	MrColumn *times;
	Pair pair; /* the present one */
	bool has_pair;
} Reader;

static void
start_reading(DestReceiver *self, int operation, TupleDesc desc)
{
}

static void
end_reading(DestReceiver *self)
{
}

static bool
read_row(TupleTableSlot *slot, DestReceiver *self)
{
	Reader *reader = (Reader *) self;
	MrInput *input = reader->input;

	slot_getallattrs(slot);
	input->rows++;
	if (input->rows % REPORT_ROWS == 0)
		mr_progress_done(input->rows);
	if (slot->tts_isnull[0] || slot->tts_isnull[1] || (input->weighted && slot->tts_isnull[2]) ||
		(input->timed && slot->tts_isnull[2 + input->weighted]))
	{
		input->skipped++;
		return true;
	}
	if (reader->users->count == MOST_ROWS)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("the query gives more than %d rows", MOST_ROWS)));
	*(uint32 *) mr_column_add(reader->users) = mr_ids_number(input->users, slot->tts_values[0]);
	*(uint32 *) mr_column_add(reader->items) = mr_ids_number(input->items, slot->tts_values[1]);
	if (input->weighted)
		*(double *) mr_column_add(reader->weights) = DatumGetFloat8(slot->tts_values[2]);
	if (input->timed)
		*(TimestampTz *) mr_column_add(reader->times) =
			DatumGetTimestampTz(slot->tts_values[2 + input->weighted]);
	return true;
}

/* Runs a query as the model's owner, who may change nothing by it; or one of ours as who we are. */
static void
run_query(Reader *reader, const char *sql, Oid owner)
{
	SPIExecuteOptions options = {.read_only = true, .dest = &reader->receiver};
	int nest_level = mr_settings_pin("UTC");
	bool read_only = XactReadOnly;
	MrRunAs saved;
	int result;

	mr_run_as_restricted(&saved, OidIsValid(owner) ? owner : GetUserId());
	SPI_connect();
	/* As the setting would do, which cannot be made for a part of a transaction. */
	PG_TRY();
	{
		XactReadOnly = true;
		result = SPI_execute_extended(sql, &options);
	}
	PG_FINALLY();
	{
		XactReadOnly = read_only;
	}
	PG_END_TRY();
	if (result < 0)
		elog(ERROR, "cannot run \"%s\": %s", sql, SPI_result_code_string(result));
	SPI_finish();
	mr_run_back(&saved);
	mr_settings_unpin(nest_level);
}

/* Sorts rows by a number, keeping the order of equals; returns where each begins. */
static uint32 *
counting_sort(const uint32 *numbers, uint32 distinct, Size count, const uint32 *order,
			  uint32 *sorted)
{
	uint32 *start = MemoryContextAllocExtended(CurrentMemoryContext,
											   ((Size) distinct + 2) * sizeof(uint32),
											   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);

	for (Size i = 0; i < count; i++)
		start[numbers[i] + 2]++;
	for (uint32 n = 0; n < distinct; n++)
		start[n + 2] += start[n + 1];
	for (Size i = 0; i < count; i++)
	{
		uint32 row = order == NULL ? (uint32) i : order[i];

		sorted[start[numbers[row] + 1]++] = row;
	}
	return start;
}

/* Rows by their weights. */
static int
compare_weights(const void *a, const void *b, void *arg)
{
	const double *weights = arg;
	double x = weights[*(const uint32 *) a];
	double y = weights[*(const uint32 *) b];

	return x < y ? -1 : x > y;
}

/* How many of the times are up to one. */
static uint64
count_times(MrColumn *times, TimestampTz last)
{
	uint64 count = 0;

	for (uint64 first = 0; first < times->count; first += PIECE)
	{
		Size n = Min(PIECE, times->count - first);
		const TimestampTz *piece = mr_column_read(times, first, n);

		CHECK_FOR_INTERRUPTS();
		for (Size i = 0; i < n; i++)
			count += piece[i] <= last;
	}
	return count;
}

/* Finds the time from which on a share of the rows is late, one at least: by halves of all times that there can be. */
static void
find_cut(const Reader *reader, MrCut *cut)
{
	uint64 rows = reader->users->count;
	uint64 late = Max((uint64) floor(cut->share * rows + 0.5), 1);
	TimestampTz first = DT_NOBEGIN;
	TimestampTz last = DT_NOEND;

	if (cut->is_given || rows == 0)
		return;
	while (first < last)
	{
		TimestampTz middle = first + (TimestampTz) (((uint64) last - (uint64) first) / 2);

		if (count_times(reader->times, middle) > rows - late)
			last = middle;
		else
			first = middle + 1;
	}
	cut->at = first;
}

/* An error unless a weight is one. */
static void
check_weight(const MrInput *input, const Pair *pair, double weight)
{
	if (isnan(weight) || weight < 0 || weight > MR_LARGEST_WEIGHT)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("weight %g of user \"%s\" and item \"%s\" is not a number from 0 to %g",
						weight, mr_ids_text(input->users, pair->user),
						mr_ids_text(input->items, pair->item), MR_LARGEST_WEIGHT),
				 errhint("Filter such rows out in the query of the model.")));
}

/* Writes the present pair down. */
static void
end_pair(Reader *reader)
{
	MrInput *input = reader->input;
	const Pair *pair = &reader->pair;

	if (!reader->has_pair)
		return;
	*(uint32 *) mr_column_add(input->user_items) = pair->item;
	if (input->weighted)
	{
		check_weight(input, pair, pair->weight);
		*(double *) mr_column_add(input->weights) = pair->weight;
	}
	if (input->timed)
		*(TimestampTz *) mr_column_add(input->times) = pair->time;
	if (reader->cut != NULL)
	{
		*(bool *) mr_column_add(input->late) = pair->is_late;
		*(TimestampTz *) mr_column_add(input->early_times) = pair->early_time;
	}
	if (reader->cut != NULL && input->weighted)
	{
		check_weight(input, pair, pair->early_weight);
		*(double *) mr_column_add(input->early_weights) = pair->early_weight;
	}
	input->item_users[pair->item]++;
	input->pairs++;
}

/* The next row, in the order of users, items and weights. */
static pg_attribute_always_inline void
sum_row(Reader *reader, uint32 user, uint32 item, double weight, TimestampTz time)
{
	Pair *pair = &reader->pair;

	if (!reader->has_pair || pair->user != user || pair->item != item)
	{
		end_pair(reader);
		if (!reader->has_pair || pair->user != user)
		{
			CHECK_FOR_INTERRUPTS();
			reader->input->user_start[user] = reader->input->pairs;
		}
		reader->has_pair = true;
		*pair = (Pair){.user = user,
					   .item = item,
					   .time = DT_NOBEGIN,
					   .is_late = true,
					   .early_time = DT_NOBEGIN};
	}
	pair->weight += weight;
	pair->time = Max(pair->time, time);
	if (reader->cut != NULL && time < reader->cut->at)
	{
		pair->is_late = false;
		pair->early_weight += weight;
		pair->early_time = Max(pair->early_time, time);
	}
}

/* Makes the pairs of rows that are all in memory; places are those of the ids by arrival. */
static void
sum_memory(Reader *reader, const uint32 *user_places, const uint32 *item_places)
{
	MrInput *input = reader->input;
	Size count = reader->users->count;
	uint32 *users = mr_column_read(reader->users, 0, count);
	uint32 *items = mr_column_read(reader->items, 0, count);
	double *weights = input->weighted ? mr_column_read(reader->weights, 0, count) : NULL;
	TimestampTz *times = input->timed ? mr_column_read(reader->times, 0, count) : NULL;
	uint32 *by_item = MemoryContextAllocHuge(CurrentMemoryContext, Max(count, 1) * sizeof(uint32));
	uint32 *order = MemoryContextAllocHuge(CurrentMemoryContext, Max(count, 1) * sizeof(uint32));
	uint32 *starts;

	for (Size i = 0; i < count; i++)
	{
		users[i] = user_places[users[i]];
		items[i] = item_places[items[i]];
	}
	pfree(counting_sort(items, input->nitems, count, NULL, by_item));
	starts = counting_sort(users, input->nusers, count, by_item, order);
	pfree(by_item);
	for (uint32 user = 0; user < input->nusers; user++)
	{
		uint32 next = starts[user];

		for (uint32 r = starts[user]; r < starts[user + 1]; r++)
		{
			uint32 row = order[r];

			if (weights != NULL && r == next)
			{
				while (++next < starts[user + 1] && items[order[next]] == items[row])
					;
				if (next - r > 1)
					qsort_arg(order + r, next - r, sizeof(uint32), compare_weights, weights);
				row = order[r];
			}
			sum_row(reader, user, items[row], weights == NULL ? 1 : weights[row],
					times == NULL ? 0 : times[row]);
		}
	}
	pfree(order);
	pfree(starts);
}

/* The columns of rows that are sorted outside of memory. */
enum
{
	SORTED_PAIR, /* user and item in one number */
	SORTED_WEIGHT,
	SORTED_TIME,
	SORTED_COLUMNS
};

/* Gives the rows to a sort; places are those of the ids by arrival. */
static void
put_rows(Reader *reader, const uint32 *user_places, const uint32 *item_places, Tuplesortstate *sort,
		 TupleTableSlot *slot)
{
	uint64 count = reader->users->count;

	for (uint64 first = 0; first < count; first += PIECE)
	{
		Size n = Min(PIECE, count - first);
		const uint32 *users = mr_column_read(reader->users, first, n);
		const uint32 *items = mr_column_read(reader->items, first, n);
		const double *weights = NULL;
		const TimestampTz *times = NULL;

		CHECK_FOR_INTERRUPTS();
		mr_progress_done(first);
		if (reader->input->weighted)
			weights = mr_column_read(reader->weights, first, n);
		if (reader->input->timed)
			times = mr_column_read(reader->times, first, n);
		for (Size i = 0; i < n; i++)
		{
			ExecClearTuple(slot);
			slot->tts_values[SORTED_PAIR] = Int64GetDatum((int64) user_places[users[i]] << 32 |
														  item_places[items[i]]);
			slot->tts_isnull[SORTED_PAIR] = false;
			slot->tts_isnull[SORTED_WEIGHT] = weights == NULL;
			if (weights != NULL)
				slot->tts_values[SORTED_WEIGHT] = Float8GetDatum(weights[i]);
			slot->tts_isnull[SORTED_TIME] = times == NULL;
			if (times != NULL)
				slot->tts_values[SORTED_TIME] = Int64GetDatum(times[i]);
			ExecStoreVirtualTuple(slot);
			tuplesort_puttupleslot(sort, slot);
		}
	}
}

/* Makes the pairs of rows that are in files. */
static void
sum_files(Reader *reader, const uint32 *user_places, const uint32 *item_places)
{
	AttrNumber keys[] = {SORTED_PAIR + 1, SORTED_WEIGHT + 1};
	Oid operators[] = {Int8LessOperator, Float8LessOperator};
	Oid collations[] = {InvalidOid, InvalidOid};
	bool nulls_first[] = {false, false};
	TupleDesc desc = CreateTemplateTupleDesc(SORTED_COLUMNS);
	TupleTableSlot *row;
	TupleTableSlot *sorted;
	Tuplesortstate *sort;

	TupleDescInitEntry(desc, SORTED_PAIR + 1, "pair", INT8OID, -1, 0);
	TupleDescInitEntry(desc, SORTED_WEIGHT + 1, "weight", FLOAT8OID, -1, 0);
	TupleDescInitEntry(desc, SORTED_TIME + 1, "at", INT8OID, -1, 0);
	row = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);
	sorted = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	sort = tuplesort_begin_heap(desc, reader->input->weighted ? 2 : 1, keys, operators, collations,
								nulls_first, (int) Max(mr_memory_left() / 2 / 1024, 64), NULL,
								TUPLESORT_NONE);
	put_rows(reader, user_places, item_places, sort, row);
	tuplesort_performsort(sort);
	while (tuplesort_gettupleslot(sort, true, false, sorted, NULL))
	{
		uint64 pair;

		slot_getallattrs(sorted);
		pair = (uint64) DatumGetInt64(sorted->tts_values[SORTED_PAIR]);
		sum_row(reader, (uint32) (pair >> 32), (uint32) pair,
				reader->input->weighted ? DatumGetFloat8(sorted->tts_values[SORTED_WEIGHT]) : 1,
				reader->input->timed ? DatumGetInt64(sorted->tts_values[SORTED_TIME]) : 0);
	}
	ExecDropSingleTupleTableSlot(sorted);
	ExecDropSingleTupleTableSlot(row);
	tuplesort_end(sort);
}

/* The width of all columns of a pair. */
static Size
pair_width(const MrInput *input, bool is_cut)
{
	Size width = sizeof(uint32);

	if (input->weighted)
		width += sizeof(double) * (is_cut ? 2 : 1);
	if (input->timed)
		width += sizeof(TimestampTz) * (is_cut ? 2 : 1);
	return width + (is_cut ? sizeof(bool) : 0);
}

void
mr_input_columns(MrInput *input, bool is_cut, uint64 pairs, Size memory)
{
	uint64 most = memory / pair_width(input, is_cut);

	input->user_items = mr_column_create(sizeof(uint32), pairs, most);
	if (input->weighted)
		input->weights = mr_column_create(sizeof(double), pairs, most);
	if (input->timed)
		input->times = mr_column_create(sizeof(TimestampTz), pairs, most);
	if (is_cut)
	{
		input->late = mr_column_create(sizeof(bool), pairs, most);
		input->early_times = mr_column_create(sizeof(TimestampTz), pairs, most);
	}
	if (is_cut && input->weighted)
		input->early_weights = mr_column_create(sizeof(double), pairs, most);
}

/* A digest of some ids. */
static uint64
digest_ids(const MrIds *ids, uint64 digest)
{
	for (uint32 i = 0; i < mr_ids_count(ids); i++)
	{
		char *text = mr_ids_text(ids, i);

		/* the terminator keeps "a", "bc" and "ab", "c" apart */
		digest = DatumGetUInt64(
			hash_any_extended((unsigned char *) text, (int) strlen(text) + 1, digest));
		pfree(text);
	}
	return digest;
}

/* A digest of bytes, however many. */
static uint64
digest_bytes(const void *bytes, Size length, uint64 digest)
{
	const unsigned char *at = bytes;

	while (length > 0)
	{
		int piece = (int) Min(length, (Size) 1 << 30);

		digest = DatumGetUInt64(hash_any_extended(at, piece, digest));
		at += piece;
		length -= piece;
	}
	return digest;
}

/* A digest of a column. */
static uint64
digest_column(MrColumn *column, uint64 digest)
{
	for (uint64 first = 0; first < column->count; first += PIECE)
	{
		Size n = Min(PIECE, column->count - first);

		CHECK_FOR_INTERRUPTS();
		digest = digest_bytes(mr_column_read(column, first, n), n * column->width, digest);
	}
	return digest;
}

uint64
mr_input_digest(const MrInput *input)
{
	uint64 digest = digest_ids(input->items, digest_ids(input->users, 0));

	digest = digest_bytes(input->user_start, ((Size) input->nusers + 1) * sizeof(uint32), digest);
	digest = digest_column(input->user_items, digest);
	return input->weighted ? digest_column(input->weights, digest) : digest;
}

/* Runs a query and sums it up. */
static MrInput *
read_input(int32 model_id, Oid owner, const char *sql, bool weighted, bool timed, MrCut *cut)
{
	Oid view = mr_definition_view("model", model_id);
	MrInput *input = palloc0(sizeof(MrInput));
	Reader reader = {.input = input, .cut = cut};
	uint32 *user_places;
	uint32 *item_places;
	Size row_width = 2 * sizeof(uint32);
	uint64 most;
	uint64 rows;

	input->weighted = weighted;
	input->timed = timed;
	input->users = mr_ids_create(get_atttype(view, 1), "user");
	input->items = mr_ids_create(get_atttype(view, 2), "item");
	row_width += (weighted ? sizeof(double) : 0) + (timed ? sizeof(TimestampTz) : 0);
	/* beside the rows there are two orders of them while they are sorted, and then the pairs */
	most = mr_memory_left() / (row_width + 2 * sizeof(uint32) + pair_width(input, cut != NULL));
	reader.users = mr_column_create(sizeof(uint32), 0, most);
	reader.items = mr_column_create(sizeof(uint32), 0, most);
	if (weighted)
		reader.weights = mr_column_create(sizeof(double), 0, most);
	if (timed)
		reader.times = mr_column_create(sizeof(TimestampTz), 0, most);
	reader.receiver.receiveSlot = read_row;
	reader.receiver.rStartup = start_reading;
	reader.receiver.rShutdown = end_reading;
	reader.receiver.rDestroy = end_reading;
	reader.receiver.mydest = DestNone;

	mr_progress_phase(MR_TRAINING_READING, 0);
	run_query(&reader, sql, owner);

	rows = reader.users->count;
	mr_progress_phase(MR_TRAINING_SORTING, rows);
	if (cut != NULL)
		find_cut(&reader, cut);
	mr_ids_check(input->users);
	mr_ids_check(input->items);
	input->nusers = mr_ids_count(input->users);
	input->nitems = mr_ids_count(input->items);
	user_places = mr_ids_sort(input->users);
	item_places = mr_ids_sort(input->items);
	input->user_start = mr_zeros((Size) input->nusers + 1, sizeof(uint32));
	input->item_users = mr_zeros(input->nitems, sizeof(uint32));
	if (rows <= most)
	{
		mr_input_columns(input, cut != NULL, rows, MaxAllocHugeSize);
		sum_memory(&reader, user_places, item_places);
	}
	else
	{
		mr_column_spill(reader.users);
		mr_column_spill(reader.items);
		if (weighted)
			mr_column_spill(reader.weights);
		if (timed)
			mr_column_spill(reader.times);
		mr_input_columns(input, cut != NULL, rows, mr_memory_left() / 4);
		sum_files(&reader, user_places, item_places);
	}
	pfree(user_places);
	pfree(item_places);
	end_pair(&reader);
	input->user_start[input->nusers] = input->pairs;
	mr_column_free(reader.users);
	mr_column_free(reader.items);
	if (weighted)
		mr_column_free(reader.weights);
	if (timed)
		mr_column_free(reader.times);
	return input;
}

MrInput *
mr_input_read(int32 model_id, Oid owner, MrCut *cut)
{
	Oid view = mr_definition_view("model", model_id);

	return read_input(model_id, owner, psprintf("SELECT * FROM millrace_def.model_%d", model_id),
					  get_attnum(view, "weight") != InvalidAttrNumber,
					  get_attnum(view, "at") != InvalidAttrNumber, cut);
}

MrInput *
mr_input_query(int32 model_id, Oid owner, const char *sql, bool weighted)
{
	return read_input(model_id, owner, sql, weighted, false, NULL);
}
