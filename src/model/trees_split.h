/*
 * trees_split.h
 *	  Which rows of trees train, and which judge.
 */
#ifndef MR_MODEL_TREES_SPLIT_H
#define MR_MODEL_TREES_SPLIT_H

#include "model/trees_input.h"

/* Some rows of an input. */
typedef struct MrTreesRows
{
	const MrTreesInput *input;
	uint64 *rows;
	uint64 n;
} MrTreesRows;

/* Hashes of entities, ascending. */
typedef struct MrEntities
{
	int64 *hashes;
	uint64 n;
} MrEntities;

/* What rows are flagged as.  No row is in two of these. */
#define MR_ROW_JUDGES 1
#define MR_ROW_IS_HELD 2
#define MR_ROW_HAS_TRAINED 4 /* a version that is judged */
#define MR_ROW_IS_LATE 8 /* of an entity that trains by its earlier rows */

/* Flags of all rows, by which those of some entities are held. */
extern uint8 *mr_trees_flags(const MrTreesInput *input, const MrEntities *held);

/* Rows that have some of the flags, or none of them. */
extern MrTreesRows mr_trees_choose(const MrTreesInput *input, const uint8 *flags, uint8 mask,
								   bool is_set);

/* The hash up to which a share of the rows is: at least one, and not all. */
extern int64 mr_trees_chance(const MrTreesRows *rows, double share);

/* The time from which on a share of the rows is late, one at least. */
extern TimestampTz mr_trees_time(const MrTreesRows *rows, double share);

/* Flags rows from a time on: those of entities that have no earlier row judge. */
extern void mr_trees_mark_late(const MrTreesInput *input, uint8 *flags, TimestampTz since);

/* The entities of some rows, each one time; and those of the model's evaluation set, which never train. */
extern MrEntities mr_entities_find(const MrTreesRows *rows);
extern MrEntities mr_entities_held(int32 model_id);

/* Hashes that a statement gives as arrays, in ascending order. */
extern MrEntities mr_entities_read(const char *sql);

/* Gives them to a statement, some at a time, as $1; $2 is which ones these are, from 0. */
extern void mr_entities_write(const MrEntities *entities, const char *sql);

/* Flags all rows of some entities. */
extern void mr_entities_mark(const MrTreesInput *input, uint8 *flags, const MrEntities *entities,
							 uint8 bit);

#endif /* MR_MODEL_TREES_SPLIT_H */
