/*
 * online.h
 *	  What models keep up to date with a staging table: what users have, and of an online model item-item neighbours, as
 *	  integers.
 *
 *	  millrace_state.model_<id>_item    version (1), number, from 1, and id of every item that has come; as in store.h
 *	  millrace_state.model_<id>_user    id of a user, and his history
 *	  millrace_state.model_<id>_pair    number of an item, a list, whether its rows were put together into it
 *
 * A model that is trained, over one staging table, has the first two as model_<id>_current_item and _current_user.
 *
 * A history says in how many rows a user has an item, of a model with max_history by their times, of a weighted one by their
 * weights.  A list says of items how many users have them together with the item whose list it is.  An item has any number
 * of rows in the table of pairs, and what counts is their sum: so who finds a row that somebody else is changing adds another,
 * and nobody waits there.
 * Everybody has item 0: its list says how many users have an item.
 */
#ifndef MR_MODEL_ONLINE_H
#define MR_MODEL_ONLINE_H

#include "access/genam.h"
#include "access/relscan.h"
#include "core/writer.h"
#include "lib/stringinfo.h"
#include "model/ids.h"
#include "model/knn.h"
#include "model/served.h"
#include "nodes/parsenodes.h"
#include "stage/staging.h"

/* The item that everybody has. */
#define MR_EVERYBODY 0

/* Columns of the tables of users and pairs. */
#define MR_ONLINE_KEY 1
#define MR_ONLINE_VALUE 2

extern const MrTargetKind mr_model_kind;

/* The table of histories of such a target. */
extern char *mr_online_users(const MrTarget *target);

/* ---- online_query.c --------------------------------------------------------------------------------------- */

/* The query of a model, over what its plain sub-selects are over; and the one table that such a query is over, or 0. */
extern Query *mr_online_query(int32 model_id);
extern Index mr_online_source(const Query *query);

/* ---- numbers of 1 to 10 bytes ----------------------------------------------------------------------------- */

#define MR_NUMBER_BYTES 10

static inline uint8 *
mr_number_put(uint8 *at, uint64 value)
{
	while (value >= 0x80)
	{
		*at++ = (uint8) value | 0x80;
		value >>= 7;
	}
	*at++ = (uint8) value;
	return at;
}

/* The next number; nothing is read at or after the end. */
static inline uint64
mr_number_get(const uint8 **at, const uint8 *end)
{
	uint64 value = 0;

	if (likely(*at < end && **at < 0x80))
		return *(*at)++;
	for (int shift = 0; *at < end && shift < 64; shift += 7)
	{
		uint8 byte = *(*at)++;

		value |= (uint64) (byte & 0x7f) << shift;
		if (byte < 0x80)
			break;
	}
	return value;
}

/* Small negative numbers as small ones. */
static inline uint64
mr_number_fold(int64 value)
{
	return ((uint64) value << 1) ^ (uint64) (value >> 63);
}

static inline int64
mr_number_unfold(uint64 value)
{
	return (int64) (value >> 1) ^ -(int64) (value & 1);
}

/* ---- pairs.c ---------------------------------------------------------------------------------------------- */

/* What changes in the counts of pairs; lives in CurrentMemoryContext. */
typedef struct MrPairs MrPairs;

extern MrPairs *mr_pairs_create(void);

/* So many more users have b together with a; the list of b is not touched. */
extern void mr_pairs_add(MrPairs *pairs, uint32 a, uint32 b, int32 n);

/* Are there so many that they should be written? */
extern bool mr_pairs_are_many(const MrPairs *pairs);

/* Writes all of it, and begins anew, as the extension's owner. */
extern void mr_pairs_write(MrPairs *pairs, MrTable *table, Oid relid, Oid index);

/* One row of a list that is being read. */
typedef struct MrListRow
{
	const uint8 *at;
	const uint8 *end;
	uint32 number;
} MrListRow;

extern void mr_list_begin(MrListRow *row, Datum list);

/* The next entry of the row; false at its end. */
static inline bool
mr_list_next(MrListRow *row, uint32 *number, int32 *n)
{
	uint64 folded;

	if (row->at >= row->end)
		return false;
	/* most of them have a byte for each */
	if (likely(row->end - row->at >= 2 && ((row->at[0] | row->at[1]) & 0x80) == 0))
	{
		row->number += row->at[0];
		folded = row->at[1];
		row->at += 2;
	}
	else
	{
		row->number += (uint32) mr_number_get(&row->at, row->end);
		folded = mr_number_get(&row->at, row->end);
	}
	*number = row->number;
	*n = (int32) mr_number_unfold(folded);
	return true;
}

/* ---- history.c -------------------------------------------------------------------------------------------- */

/* In how many rows a user has an item with a detail: their time, their weight, or 0. */
typedef struct MrEvent
{
	uint32 number;
	int32 n;
	int64 detail;
} MrEvent;

/* From the type bytea; ascending by number and detail. */
extern MrEvent *mr_history_read(Datum history, bool detailed, int *nevents);
extern Datum mr_history_make(const MrEvent *events, int nevents, bool detailed);

/* A weight as a detail, of which the order is the same, and back. */
extern int64 mr_weight_detail(double weight);
extern double mr_detail_weight(int64 detail);

struct SortSupportData;

/* The id of an item. */
typedef Datum (*MrItemId)(void *context, uint32 number);

/*
 * What counts of a history: the numbers of its items, ascending, but only the newest `most` (0: all), those of one time by their
 * ids, which `compare` orders.  Returns how many there are; `items` has room for all events.
 */
extern int mr_history_cut(const MrEvent *events, int nevents, int most, MrItemId id,
						  struct SortSupportData *compare, void *context, uint32 *items);

/* ---- number.c --------------------------------------------------------------------------------------------- */

/* The numbers of items of a model's histories; under SPI, as the extension's owner. */
typedef struct MrNumbers MrNumbers;

/* Of which the names of tables begin with that. */
extern MrNumbers *mr_numbers_create(int32 model_id, const char *prefix, Oid type);

/* The numbers of the items of a batch, which are sorted; what is new gets one. */
extern uint32 *mr_numbers_find(MrNumbers *numbers, const MrIds *items);

/* The id of an item, an MrItemId; it is remembered until the next batch, in the memory that mr_numbers_find() was called in. */
extern Datum mr_numbers_id(void *numbers, uint32 number);

/* ---- online_serve.c --------------------------------------------------------------------------------------- */

/* What is counted, while a model answers. */
typedef struct MrCounted
{
	MemoryContext context; /* of its arrays and rows, and itself */
	struct MrCountedGuard *guard;
	MrServed *served;
	MrCounting counting;
	Relation pairs;
	Relation pairs_item; /* its index, with a scan for all lists */
	IndexScanDesc scan;
	TupleTableSlot *slot;
	StringInfoData rows; /* of the list that was read last */
	StringInfoData everybody; /* those that sizes are from */
	uint32 items; /* more than any number of an item */
	double *sizes; /* by number: as the measure takes how many have it, 0 when nobody does */
	double *scores; /* by number: 0 at first */
	int32 *common; /* by number: with the item whose list is being read; 0 when none is */
	uint32 *said; /* of which items that list speaks */
	Size room;
} MrCounted;

/* Reads from the parameters of a model how it counts. */
extern void mr_counted_learn(MrCounting *counting, Datum params);

extern MrCounted *mr_counted_open(MrServed *served);
extern void mr_counted_close(MrCounted *counted);

/*
 * The list of an item, in no order: all that have users in common with it; their similarities before they are rounded go to their
 * numbers in `exact`, unless it is NULL.
 */
extern const MrListed *mr_counted_list(MrCounted *counted, uint32 item, double *exact, int *length);

/* Adds what an item of a profile says of others to their scores. */
extern void mr_counted_add(MrCounted *counted, uint32 item, double weight);

/* What a user has, first the items that count. */
extern uint32 *mr_counted_profile(MrCounted *counted, char *user, int *count, int *counting);

#endif /* MR_MODEL_ONLINE_H */
