/*
 * input.h
 *	  What a model is trained on: the rows of its query, as a sparse matrix.
 */
#ifndef MR_MODEL_INPUT_H
#define MR_MODEL_INPUT_H

#include "model/column.h"
#include "model/ids.h"

/* Products of two weights and their sums must be numbers. */
#define MR_LARGEST_WEIGHT 1e100

typedef struct MrInput
{
	MrIds *users;
	MrIds *items;
	bool weighted; /* the query gives weights */
	bool timed; /* it gives times */
	int64 rows; /* read */
	int64 skipped; /* because of a NULL */
	uint32 pairs; /* after the sums */
	uint32 nusers;
	uint32 nitems;
	uint32 *item_users; /* by item: how many users have it */
	uint32 *user_start; /* by user, and one more: where his pairs begin */
	/* Columns of the pairs, by user, each with his items in ascending order; all are numbers by the order of the ids. */
	MrColumn *user_items; /* uint32 */
	MrColumn *weights; /* double, when weighted */
	MrColumn *times; /* TimestampTz, when timed: the newest of the pair */
	/* When rows were cut by their times: which pairs have only late ones, and the same of the others' early ones. */
	MrColumn *late; /* bool */
	MrColumn *early_weights;
	MrColumn *early_times;
} MrInput;

/* How many items a user has. */
static inline uint32
mr_input_length(const MrInput *input, uint32 user)
{
	return input->user_start[user + 1] - input->user_start[user];
}

/* A column of a user's pairs, NULL when there is none; it is there until that of another user is read. */
static inline void *
mr_input_column(const MrInput *input, MrColumn *column, uint32 user)
{
	return column == NULL
			   ? NULL
			   : mr_column_read(column, input->user_start[user], mr_input_length(input, user));
}

/* From what time on rows are late: the given one, or the one that makes a share of them late. */
typedef struct MrCut
{
	bool is_given;
	TimestampTz at;
	double share;
} MrCut;

/* Runs the query of a model as its owner and sums it up; memory is of CurrentMemoryContext.  The cut may be NULL. */
extern MrInput *mr_input_read(int32 model_id, Oid owner, MrCut *cut);

/* The same of a statement that gives users and items of the model's types, and perhaps weights; nobody: as the current user. */
extern MrInput *mr_input_query(int32 model_id, Oid owner, const char *sql, bool weighted);

/* Makes the columns for so many pairs at most, which may have so much memory. */
extern void mr_input_columns(MrInput *input, bool is_cut, uint64 pairs, Size memory);

/* The pairs of which a bit of the mask is set, or none is, with numbers of their own; what early rows say of them. */
extern MrInput *mr_input_part(MrInput *input, const uint8 *flags, uint8 mask, bool is_set,
							  bool early);

/* Sets a bit of all pairs that are also in another input. */
extern void mr_input_mark(const MrInput *input, uint8 *flags, const MrInput *pairs, uint8 bit);

/* Where a user's item stands, or MR_UNKNOWN. */
extern uint32 mr_input_find(const MrInput *input, uint32 user, uint32 item);

/* Items by popularity, those of as many users by their numbers. */
extern uint32 *mr_input_popular(const MrInput *input);

/* A digest of all that a version is made of. */
extern uint64 mr_input_digest(const MrInput *input);

#endif /* MR_MODEL_INPUT_H */
