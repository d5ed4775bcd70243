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
	if (slot->tts_isnull[0] || slot->tts_isnull[1] || (input->weighted && slot->tts_isnull[2]))
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
	reader->count++;
	return true;
}

/* Runs the query as its owner, who may change nothing by it. */
static void
run_query(Reader *reader, int32 model_id, Oid owner)
{
	SPIExecuteOptions options = {.read_only = true, .dest = &reader->receiver};
	char *sql = psprintf("SELECT * FROM millrace_def.model_%d", model_id);
	int nest_level = mr_settings_pin("UTC");
	bool read_only = XactReadOnly;
	MrRunAs saved;
	int result;

	mr_run_as_restricted(&saved, owner);
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

/* The sum of the weights of a pair. */
static double
sum_weights(const MrInput *input, double *weights, Size count, uint32 user, uint32 item)
{
	double sum = 0;

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

/* Makes the rows, in the order of users and items, one for each pair. */
static void
sum_up(Reader *reader, const uint32 *order, const uint32 *starts)
{
	MrInput *input = reader->input;
	double *weights = NULL;
	Size room = 0;

	input->user_start = MemoryContextAllocHuge(CurrentMemoryContext,
											   ((Size) input->nusers + 1) * sizeof(uint32));
	input->user_items = MemoryContextAllocHuge(CurrentMemoryContext,
											   Max(reader->count, 1) * sizeof(uint32));
	if (input->weighted)
		input->weights = MemoryContextAllocHuge(CurrentMemoryContext,
												Max(reader->count, 1) * sizeof(double));
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

			for (next = r + 1; next < starts[user + 1]; next++)
				if (reader->items[order[next]] != item)
					break;
			if (input->weighted)
			{
				if (next - r > room)
				{
					room = (next - r) * 2;
					weights = weights == NULL ? MemoryContextAllocHuge(CurrentMemoryContext,
																	   room * sizeof(double))
											  : repalloc_huge(weights, room * sizeof(double));
				}
				for (Size i = r; i < next; i++)
					weights[i - r] = reader->weights[order[i]];
				input->weights[input->pairs] = sum_weights(input, weights, next - r, user, item);
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

MrInput *
mr_input_read(int32 model_id, Oid owner)
{
	Oid view = mr_definition_view("model", model_id);
	MrInput *input = palloc0(sizeof(MrInput));
	Reader reader = {.input = input, .room = 1024};
	uint32 *user_places;
	uint32 *item_places;
	uint32 *by_item;
	uint32 *order;
	uint32 *starts;

	input->weighted = get_attnum(view, "weight") != InvalidAttrNumber;
	input->users = mr_ids_create(get_atttype(view, 1), "user");
	input->items = mr_ids_create(get_atttype(view, 2), "item");
	reader.users = palloc(reader.room * sizeof(uint32));
	reader.items = palloc(reader.room * sizeof(uint32));
	reader.weights = input->weighted ? palloc(reader.room * sizeof(double)) : NULL;
	reader.receiver.receiveSlot = read_row;
	reader.receiver.rStartup = start_reading;
	reader.receiver.rShutdown = end_reading;
	reader.receiver.rDestroy = end_reading;
	reader.receiver.mydest = DestNone;

	mr_progress_phase(MR_TRAINING_READING, 0);
	run_query(&reader, model_id, owner);

	mr_progress_phase(MR_TRAINING_SORTING, 0);
	input->nusers = mr_ids_count(input->users);
	input->nitems = mr_ids_count(input->items);
	user_places = mr_ids_sort(input->users);
	item_places = mr_ids_sort(input->items);
	for (Size i = 0; i < reader.count; i++)
	{
		reader.users[i] = user_places[reader.users[i]];
		reader.items[i] = item_places[reader.items[i]];
	}
	by_item = MemoryContextAllocHuge(CurrentMemoryContext, Max(reader.count, 1) * sizeof(uint32));
	order = MemoryContextAllocHuge(CurrentMemoryContext, Max(reader.count, 1) * sizeof(uint32));
	pfree(counting_sort(reader.items, input->nitems, reader.count, NULL, by_item));
	starts = counting_sort(reader.users, input->nusers, reader.count, by_item, order);
	pfree(by_item);
	sum_up(&reader, order, starts);
	pfree(order);
	pfree(starts);
	pfree(reader.users);
	pfree(reader.items);
	if (input->weighted)
		pfree(reader.weights);

	input->digest = digest_ids(input->items, digest_ids(input->users, 0));
	input->digest = digest_bytes(input->user_start, ((Size) input->nusers + 1) * sizeof(uint32),
								 input->digest);
	input->digest = digest_bytes(input->user_items, (Size) input->pairs * sizeof(uint32),
								 input->digest);
	if (input->weighted)
		input->digest = digest_bytes(input->weights, (Size) input->pairs * sizeof(double),
									 input->digest);
	return input;
}
