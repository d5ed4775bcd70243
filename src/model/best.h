/*
 * best.h
 *	  The first K of a total order: higher scores first, equal ones by number.  Kept as a heap with the worst on top.
 */
#ifndef MR_MODEL_BEST_H
#define MR_MODEL_BEST_H

typedef struct MrNeighbour
{
	double score;
	uint32 number;
} MrNeighbour;

/* Does a come after b in the order of neighbours? */
static inline bool
mr_best_is_worse(const MrNeighbour *a, const MrNeighbour *b)
{
	return a->score < b->score || (a->score == b->score && a->number > b->number);
}

/* Puts a neighbour into a heap at or below a free place, so that the worst is on top. */
static inline void
mr_best_sift_down(MrNeighbour *heap, uint32 length, uint32 at, const MrNeighbour *given)
{
	for (;;)
	{
		uint32 child = 2 * at + 1;

		if (child >= length)
			break;
		if (child + 1 < length && mr_best_is_worse(&heap[child + 1], &heap[child]))
			child++;
		if (!mr_best_is_worse(&heap[child], given))
			break;
		heap[at] = heap[child];
		at = child;
	}
	heap[at] = *given;
}

/* Offers a neighbour to a list of at most k. */
static inline void
mr_best_offer(MrNeighbour *heap, uint32 *length, uint32 k, const MrNeighbour *given)
{
	uint32 at;

	if (*length == k)
	{
		if (mr_best_is_worse(&heap[0], given))
			mr_best_sift_down(heap, k, 0, given);
		return;
	}
	at = (*length)++;
	while (at > 0 && mr_best_is_worse(given, &heap[(at - 1) / 2]))
	{
		heap[at] = heap[(at - 1) / 2];
		at = (at - 1) / 2;
	}
	heap[at] = *given;
}

/* Takes the worst one out. */
static inline MrNeighbour
mr_best_take_worst(MrNeighbour *heap, uint32 *length)
{
	MrNeighbour worst = heap[0];

	(*length)--;
	mr_best_sift_down(heap, *length, 0, &heap[*length]);
	return worst;
}

#endif /* MR_MODEL_BEST_H */
