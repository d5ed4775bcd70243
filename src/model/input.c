/*
 * input.c
 *	  Reading what a model is trained on.
 *
 * Rows are kept as pairs of numbers by arrival.  When all have come, ids are sorted and numbered by their order, and pairs by two
 * passes of a counting sort: so nothing depends on the order in which rows come.  The weights of a pair are summed in ascending
 * order, for the same reason.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "core/catalog.h"
#include "core/compat.h"
#include "core/statement.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "model/input.h"
#include "tcop/dest.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* Products of two weights and their sums must be numbers. */
#define LARGEST_WEIGHT 1e100

#define REPORT_ROWS 100000

/* Takes the rows of the query. */
typedef struct Reader
{
	DestReceiver receiver;
	MrInput *input;
	MemoryContext context;
	uint32 *users; /* numbers by arrival */
	uint32 *items;
	double *weights;
	TimestampTz *times;
	Size count;
	Size room;
} Reader;

static void
start_reading(DestReceiver *self, int operation, TupleDesc desc)
{
}

static void
end_reading(DestReceiver *self)
{
}

/* Makes room for more rows. */
static void
grow(Reader *reader)
{
	reader->room *= 2;
	reader->users = repalloc_huge(reader->users, reader->room * sizeof(uint32));
	reader->items = repalloc_huge(reader->items, reader->room * sizeof(uint32));
	if (reader->weights != NULL)
		reader->weights = repalloc_huge(reader->weights, reader->room * sizeof(double));
	if (reader->times != NULL)
		reader->times = repalloc_huge(reader->times, reader->room * sizeof(TimestampTz));
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
	if (reader->count == reader->room)
	{
		if (reader->room > PG_INT32_MAX / 2)
			ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
							errmsg("the query gives more than %zu rows", reader->room)));
		grow(reader);
	}
	reader->users[reader->count] = mr_ids_number(input->users, slot->tts_values[0]);
	reader->items[reader->count] = mr_ids_number(input->items, slot->tts_values[1]);
	if (input->weighted)
		reader->weights[reader->count] = DatumGetFloat8(slot->tts_values[2]);
	if (input->timed)
		reader->times[reader->count] = DatumGetTimestampTz(slot->tts_values[2 + input->weighted]);
	reader->count++;
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

static int
compare_weights(const void *a, const void *b)
{
	double x = *(const double *) a;
	double y = *(const double *) b;

	return x < y ? -1 : x > y;
}

static int
compare_times(const void *a, const void *b)
{
	TimestampTz x = *(const TimestampTz *) a;
	TimestampTz y = *(const TimestampTz *) b;

	return x < y ? -1 : x > y;
}

/* Finds the time from which on a share of the rows is late, one at least. */
static void
find_cut(const Reader *reader, MrCut *cut)
{
	Size late = Max((Size) floor(cut->share * reader->count + 0.5), 1);
	TimestampTz *times;

	if (cut->is_given || reader->count == 0)
		return;
	times = MemoryContextAllocHuge(CurrentMemoryContext, reader->count * sizeof(TimestampTz));
	memcpy(times, reader->times, reader->count * sizeof(TimestampTz));
	qsort(times, reader->count, sizeof(TimestampTz), compare_times);
	cut->at = times[reader->count - late];
	pfree(times);
}

/* The sum of the weights of some rows of a pair, which are in `weights` afterwards. */
static double
sum_weights(const Reader *reader, const uint32 *rows, Size count, const MrCut *cut, double *weights)
{
	const MrInput *input = reader->input;
	uint32 user = reader->users[rows[0]];
	uint32 item = reader->items[rows[0]];
	Size kept = 0;
	double sum = 0;

	for (Size i = 0; i < count; i++)
		if (cut == NULL || reader->times[rows[i]] < cut->at)
			weights[kept++] = reader->weights[rows[i]];
	count = kept;
	if (count > 1)
		qsort(weights, count, sizeof(double), compare_weights);
	for (Size i = 0; i < count; i++)
		sum += weights[i];
	if (isnan(sum) || sum < 0 || sum > LARGEST_WEIGHT)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("weight %g of user \"%s\" and item \"%s\" is not a number from 0 to %g",
						sum, mr_ids_text(input->users, user), mr_ids_text(input->items, item),
						LARGEST_WEIGHT),
				 errhint("Filter such rows out in the query of the model.")));
	return sum;
}

/* An array of so many elements. */
static void *
alloc_array(Size count, Size width)
{
	return MemoryContextAllocHuge(CurrentMemoryContext, Max(count, 1) * width);
}

/* The newest time of a pair's rows. */
static TimestampTz
newest_time(const Reader *reader, const uint32 *rows, Size count, const MrCut *cut)
{
	TimestampTz newest = DT_NOBEGIN;

	for (Size i = 0; i < count; i++)
		if (cut == NULL || reader->times[rows[i]] < cut->at)
			newest = Max(newest, reader->times[rows[i]]);
	return newest;
}

/* Has a pair only late rows? */
static bool
is_late(const Reader *reader, const uint32 *rows, Size count, const MrCut *cut)
{
	for (Size i = 0; i < count; i++)
		if (reader->times[rows[i]] < cut->at)
			return false;
	return true;
}

/* Makes the rows, in the order of users and items, one for each pair. */
static void
sum_up(Reader *reader, const uint32 *order, const uint32 *starts, const MrCut *cut)
{
	MrInput *input = reader->input;
	double *weights = NULL;
	Size room = 0;

	input->user_start = alloc_array((Size) input->nusers + 1, sizeof(uint32));
	input->user_items = alloc_array(reader->count, sizeof(uint32));
	if (input->weighted)
		input->weights = alloc_array(reader->count, sizeof(double));
	if (input->timed)
		input->times = alloc_array(reader->count, sizeof(TimestampTz));
	if (cut != NULL)
	{
		input->late = alloc_array(reader->count, sizeof(bool));
		input->early_times = alloc_array(reader->count, sizeof(TimestampTz));
	}
	if (cut != NULL && input->weighted)
		input->early_weights = alloc_array(reader->count, sizeof(double));
	input->item_users = MemoryContextAllocExtended(CurrentMemoryContext,
												   (Size) Max(input->nitems, 1) * sizeof(uint32),
												   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (uint32 user = 0; user < input->nusers; user++)
	{
		Size next;

		CHECK_FOR_INTERRUPTS();
		input->user_start[user] = input->pairs;
		for (Size r = starts[user]; r < starts[user + 1]; r = next)
		{
			uint32 item = reader->items[order[r]];
			const uint32 *rows = order + r;

			for (next = r + 1; next < starts[user + 1]; next++)
				if (reader->items[order[next]] != item)
					break;
			if (input->timed)
				input->times[input->pairs] = newest_time(reader, rows, next - r, NULL);
			if (cut != NULL)
			{
				input->late[input->pairs] = is_late(reader, rows, next - r, cut);
				input->early_times[input->pairs] = newest_time(reader, rows, next - r, cut);
			}
			if (input->weighted)
			{
				if (next - r > room)
				{
					room = (next - r) * 2;
					weights = weights == NULL ? MemoryContextAllocHuge(CurrentMemoryContext,
																	   room * sizeof(double))
											  : repalloc_huge(weights, room * sizeof(double));
				}
				input->weights[input->pairs] = sum_weights(reader, rows, next - r, NULL, weights);
				if (cut != NULL)
					input->early_weights[input->pairs] = sum_weights(reader, rows, next - r, cut,
																	 weights);
			}
			input->user_items[input->pairs++] = item;
			input->item_users[item]++;
		}
	}
	input->user_start[input->nusers] = input->pairs;
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

uint64
mr_input_digest(const MrInput *input)
{
	uint64 digest = digest_ids(input->items, digest_ids(input->users, 0));

	digest = digest_bytes(input->user_start, ((Size) input->nusers + 1) * sizeof(uint32), digest);
	digest = digest_bytes(input->user_items, (Size) input->pairs * sizeof(uint32), digest);
	if (input->weighted)
		digest = digest_bytes(input->weights, (Size) input->pairs * sizeof(double), digest);
	return digest;
}

/* Runs a query and sums it up. */
static MrInput *
read_input(int32 model_id, Oid owner, const char *sql, bool weighted, bool timed, MrCut *cut)
{
	Oid view = mr_definition_view("model", model_id);
	MrInput *input = palloc0(sizeof(MrInput));
	Reader reader = {.input = input, .room = 1024};
	uint32 *user_places;
	uint32 *item_places;
	uint32 *by_item;
	uint32 *order;
	uint32 *starts;

	input->weighted = weighted;
	input->timed = timed;
	input->users = mr_ids_create(get_atttype(view, 1), "user");
	input->items = mr_ids_create(get_atttype(view, 2), "item");
	reader.users = palloc(reader.room * sizeof(uint32));
	reader.items = palloc(reader.room * sizeof(uint32));
	reader.weights = weighted ? palloc(reader.room * sizeof(double)) : NULL;
	reader.times = timed ? palloc(reader.room * sizeof(TimestampTz)) : NULL;
	reader.receiver.receiveSlot = read_row;
	reader.receiver.rStartup = start_reading;
	reader.receiver.rShutdown = end_reading;
	reader.receiver.rDestroy = end_reading;
	reader.receiver.mydest = DestNone;

	mr_progress_phase(MR_TRAINING_READING, 0);
	run_query(&reader, sql, owner);

	mr_progress_phase(MR_TRAINING_SORTING, 0);
	if (cut != NULL)
		find_cut(&reader, cut);
	input->nusers = mr_ids_count(input->users);
	input->nitems = mr_ids_count(input->items);
	user_places = mr_ids_sort(input->users);
	item_places = mr_ids_sort(input->items);
	for (Size i = 0; i < reader.count; i++)
	{
		reader.users[i] = user_places[reader.users[i]];
		reader.items[i] = item_places[reader.items[i]];
	}
	by_item = alloc_array(reader.count, sizeof(uint32));
	order = alloc_array(reader.count, sizeof(uint32));
	pfree(counting_sort(reader.items, input->nitems, reader.count, NULL, by_item));
	starts = counting_sort(reader.users, input->nusers, reader.count, by_item, order);
	pfree(by_item);
	sum_up(&reader, order, starts, cut);
	pfree(order);
	pfree(starts);
	pfree(reader.users);
	pfree(reader.items);
	if (weighted)
		pfree(reader.weights);
	if (timed)
		pfree(reader.times);
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
