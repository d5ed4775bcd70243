/*
 * online.h
 *	  Online models: item-item neighbours that are kept up to date with a staging table, as integers.
 *
 *	  millrace_state.model_<id>_item    number, from 1, and id of every item that has come
 *	  millrace_state.model_<id>_user    id of a user, and his history
 *	  millrace_state.model_<id>_pair    number of an item, a list, whether its rows were put together into it
 *
 * A history says in how many rows a user has an item, of a model with max_history by their times.  A list says of items how
 * many users have them together with the item whose list it is.  An item has any number of rows in the table of pairs, and
 * what counts is their sum: so who finds a row that somebody else is changing adds another, and nobody waits there.
 * Everybody has item 0: its list says how many users have an item.
 */
#ifndef MR_MODEL_ONLINE_H
#define MR_MODEL_ONLINE_H

#include "access/genam.h"
#include "access/relscan.h"
#include "core/writer.h"
#include "model/knn.h"
#include "stage/staging.h"

/* The item that everybody has. */
#define MR_EVERYBODY 0

/* Columns of the tables. */
#define MR_ONLINE_KEY 1
#define MR_ONLINE_VALUE 2

extern const MrTargetKind mr_model_kind;

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
	if (row->at >= row->end)
		return false;
	row->number += (uint32) mr_number_get(&row->at, row->end);
	*number = row->number;
	*n = (int32) mr_number_unfold(mr_number_get(&row->at, row->end));
	return true;
}

/* ---- history.c -------------------------------------------------------------------------------------------- */

/* In how many rows a user has an item at a time; without max_history all times are 0. */
typedef struct MrEvent
{
	uint32 number;
	int32 n;
	int64 time;
} MrEvent;

/* From the type bytea; ascending by number and time. */
extern MrEvent *mr_history_read(Datum history, bool timed, int *nevents);
extern Datum mr_history_make(const MrEvent *events, int nevents, bool timed);

/* The id of an item. */
typedef Datum (*MrItemId)(void *context, uint32 number);

/*
 * What counts of a history: the numbers of its items, ascending, but only the newest `most` (0: all), those of one time by their
 * ids, which `compare` orders.  Returns how many there are; `items` has room for all events.
 */
extern int mr_history_cut(const MrEvent *events, int nevents, int most, MrItemId id,
						  struct SortSupportData *compare, void *context, uint32 *items);

/* ---- online_serve.c --------------------------------------------------------------------------------------- */

/* The functions that users call, of an online model; false when the model is none, or there is an error to be told. */
extern bool mr_online_similar(FunctionCallInfo fcinfo);
extern bool mr_online_recommend(FunctionCallInfo fcinfo, bool exclude_seen, bool explain,
								bool fallback);
extern bool mr_online_recommend_basket(FunctionCallInfo fcinfo, bool exclude_seen, bool explain,
									   bool fallback);

#endif /* MR_MODEL_ONLINE_H */
