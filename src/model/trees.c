/*
 * trees.c
 *	  The margin of a row in boosted trees, and how these are kept.
 */
#include "postgres.h"

#include <math.h>

#include "core/compat.h"
#include "libpq/pqformat.h"
#include "model/trees.h"

/* So many trees are walked in step: their loads from memory overlap. */
#define IN_STEP 16

/* Deeper trees are walked alone: in step all go as far as the deepest. */
#define DEEPEST_IN_STEP 12

#define FORMAT 1

/* One step down; from a leaf to itself.  A row that has all values needs no second look at them. */
static inline uint32
step(const MrNode *nodes, uint32 at, const float *row, bool may_miss)
{
	const MrNode *node = &nodes[at];
	float value = row[node->feature & MR_NODE_FEATURE];
	uint32 goes_right = !(value < node->condition);

	if (may_miss)
		goes_right &= !(isnan(value) & (node->feature >> 31));
	return node->left + goes_right;
}

/* Adds the leaves of some trees, one after the other. */
static float
add_alone(const MrTrees *trees, uint32 first, uint32 end, const float *row, float margin)
{
	for (uint32 t = first; t < end; t++)
	{
		uint32 at = trees->trees[t].root;
		uint32 next;

		while ((next = step(trees->nodes, at, row, true)) != at)
			at = next;
		margin += trees->nodes[at].leaf;
	}
	return margin;
}

/* Adds the leaves of all trees. */
static pg_attribute_always_inline float
add_all(const MrTrees *trees, const float *row, float margin, bool may_miss)
{
	const MrNode *nodes = trees->nodes;
	uint32 t = 0;

	for (; t + IN_STEP <= trees->ntrees; t += IN_STEP)
	{
		uint32 at[IN_STEP];
		uint32 depth = 0;

		for (int i = 0; i < IN_STEP; i++)
		{
			at[i] = trees->trees[t + i].root;
			depth = Max(depth, trees->trees[t + i].depth);
		}
		if (depth > DEEPEST_IN_STEP)
		{
			margin = add_alone(trees, t, t + IN_STEP, row, margin);
			continue;
		}
		for (uint32 d = 0; d < depth; d++)
			for (int i = 0; i < IN_STEP; i++)
				at[i] = step(nodes, at[i], row, may_miss);
		for (int i = 0; i < IN_STEP; i++)
			margin += nodes[at[i]].leaf;
	}
	return add_alone(trees, t, trees->ntrees, row, margin);
}

float
mr_trees_margin(const MrTrees *trees, const float *row)
{
	bool may_miss = false;

	for (uint32 f = 0; f < trees->nfeatures; f++)
		may_miss |= isnan(row[f]) != 0;
	return may_miss ? add_all(trees, row, trees->base_margin, true)
					: add_all(trees, row, trees->base_margin, false);
}

float
mr_trees_predict(const MrTrees *trees, float margin)
{
	switch (trees->link)
	{
		case MR_LINK_LOGISTIC:
			return 1.0f / (expf(Min(-margin, 88.7f)) + 1.0f);
		case MR_LINK_EXP:
			return expf(margin);
		default:
			return margin;
	}
}

bytea *
mr_trees_pack(const MrTrees *trees)
{
	StringInfoData to;

	pq_begintypsend(&to);
	pq_sendint32(&to, FORMAT);
	pq_sendint32(&to, trees->link);
	pq_sendfloat4(&to, trees->base_margin);
	pq_sendint32(&to, trees->nfeatures);
	pq_sendint32(&to, trees->ntrees);
	pq_sendint32(&to, trees->nnodes);
	for (uint32 t = 0; t < trees->ntrees; t++)
	{
		pq_sendint32(&to, trees->trees[t].root);
		pq_sendint32(&to, trees->trees[t].depth);
	}
	for (uint32 n = 0; n < trees->nnodes; n++)
	{
		pq_sendfloat4(&to, trees->nodes[n].condition);
		pq_sendint32(&to, trees->nodes[n].feature);
		pq_sendint32(&to, trees->nodes[n].left);
		pq_sendfloat4(&to, trees->nodes[n].leaf);
	}
	return pq_endtypsend(&to);
}

Size
mr_trees_size(const MrTrees *trees)
{
	return MAXALIGN(sizeof(MrTrees)) + (Size) trees->nnodes * sizeof(MrNode) +
		   (Size) trees->ntrees * sizeof(MrTree);
}

void
mr_trees_find(MrTrees *found, char *chunk)
{
	*found = *(const MrTrees *) chunk;
	found->nodes = (MrNode *) (chunk + MAXALIGN(sizeof(MrTrees)));
	found->trees = (MrTree *) (found->nodes + found->nnodes);
}

/* Memory is one chunk.  What was stored is trusted as far as PostgreSQL's pages are, but no further than the bytes go. */
MrTrees *
mr_trees_unpack(bytea *packed)
{
	StringInfoData from = {.data = VARDATA_ANY(packed), .len = VARSIZE_ANY_EXHDR(packed)};
	MrTrees head;
	MrTrees *trees;

	if (pq_getmsgint(&from, 4) != FORMAT)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("the model was stored by another version of millrace")));
	head.link = pq_getmsgint(&from, 4);
	head.base_margin = pq_getmsgfloat4(&from);
	head.nfeatures = pq_getmsgint(&from, 4);
	head.ntrees = pq_getmsgint(&from, 4);
	head.nnodes = pq_getmsgint(&from, 4);
	if (mr_trees_size(&head) - MAXALIGN(sizeof(MrTrees)) != (Size) (from.len - from.cursor))
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("a stored model is not whole")));
	trees = MemoryContextAllocHuge(CurrentMemoryContext, mr_trees_size(&head));
	*trees = head;
	mr_trees_find(trees, (char *) trees);
	for (uint32 t = 0; t < head.ntrees; t++)
	{
		trees->trees[t].root = pq_getmsgint(&from, 4);
		trees->trees[t].depth = pq_getmsgint(&from, 4);
	}
	for (uint32 n = 0; n < head.nnodes; n++)
	{
		trees->nodes[n].condition = pq_getmsgfloat4(&from);
		trees->nodes[n].feature = pq_getmsgint(&from, 4);
		trees->nodes[n].left = pq_getmsgint(&from, 4);
		trees->nodes[n].leaf = pq_getmsgfloat4(&from);
	}
	return trees;
}
