/*
 * input.h
 *	  What a model is trained on: the rows of its query, as a sparse matrix.
 */
#ifndef MR_MODEL_INPUT_H
#define MR_MODEL_INPUT_H

#include "model/ids.h"

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
	/* By user, each with his items in ascending order; all are numbers by the order of the ids. */
	uint32 *user_start; /* one more than there are users */
	uint32 *user_items;
	double *weights; /* when weighted */
	TimestampTz *times; /* when timed: the newest of the pair */
	uint32 *item_users; /* by item: how many users have it */
	/* When rows were cut by their times: which pairs have only late ones, and the same of the others' early ones. */
	bool *late;
	double *early_weights;
	TimestampTz *early_times;
} MrInput;

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

/* The pairs of which a bit of the mask is set, or none is, with numbers of their own; what early rows say of them. */
extern MrInput *mr_input_part(MrInput *input, const uint8 *flags, uint8 mask, bool is_set,
							  bool early);

/* Sets a bit of all pairs that are also in another input. */
extern void mr_input_mark(const MrInput *input, uint8 *flags, const MrInput *pairs, uint8 bit);

/* For each id of some, its place among others, or MR_UNKNOWN. */
#define MR_UNKNOWN PG_UINT32_MAX
extern uint32 *mr_input_places(const MrIds *ids, MrIds *others);

/* Where a user's item stands, or MR_UNKNOWN. */
extern uint32 mr_input_find(const MrInput *input, uint32 user, uint32 item);

/* Items by popularity, those of as many users by their numbers. */
extern uint32 *mr_input_popular(const MrInput *input);

/* A digest of all that a version is made of. */
extern uint64 mr_input_digest(const MrInput *input);

#endif /* MR_MODEL_INPUT_H */
