/*
 * trees.h
 *	  Boosted trees: a model of them in memory, the margin that it gives a row, and how it is kept.
 *
 * The margin is the sum, in float32, of the base margin and of the leaf that the row comes to in each tree, in their order: the
 * same bits as XGBoost's.
 */
#ifndef MR_MODEL_TREES_H
#define MR_MODEL_TREES_H

#include "postgres.h"

#include "lib/stringinfo.h"

/* What a margin becomes. */
typedef enum MrLink
{
	MR_LINK_IDENTITY,
	MR_LINK_LOGISTIC,
	MR_LINK_EXP
} MrLink;

#define MR_NODE_DEFAULT_LEFT 0x80000000U
#define MR_NODE_FEATURE 0x7fffffffU

/*
 * A node.  Its right child stands behind its left one.  A leaf is its own left child, and whatever the value, that is where one goes:
 * so several trees can be walked in step, whatever their depths.
 */
typedef struct MrNode
{
	float condition; /* below it one goes left; of a leaf infinity */
	uint32 feature; /* with MR_NODE_DEFAULT_LEFT: without a value one goes left */
	uint32 left;
	float leaf; /* of a leaf, what it adds */
} MrNode;

typedef struct MrTree
{
	uint32 root;
	uint32 depth; /* steps to the deepest leaf */
} MrTree;

typedef struct MrTrees
{
	MrLink link;
	float base_margin;
	uint32 nfeatures;
	uint32 ntrees;
	uint32 nnodes;
	MrTree *trees;
	MrNode *nodes;
} MrTrees;

/* The margin of a row: a value for each feature, NaN where there is none; infinity is not allowed. */
extern float mr_trees_margin(const MrTrees *trees, const float *row);

/* What a margin means. */
extern float mr_trees_predict(const MrTrees *trees, float margin);

/* As it is stored, and back; an error when the bytes are not what was stored. */
extern bytea *mr_trees_pack(const MrTrees *trees);
extern MrTrees *mr_trees_unpack(bytea *packed);

/* What was unpacked is one chunk, of this size; and the way around in one that was copied elsewhere. */
extern Size mr_trees_size(const MrTrees *trees);
extern void mr_trees_find(MrTrees *found, char *chunk);

#endif /* MR_MODEL_TREES_H */
