/*
 * score.h
 *	  How items are scored for a profile; serving and judging do the same.
 *
 * The score of item j is the sum of these parts over the items of the profile, in ascending order, in double precision.
 * Items with a score above zero are recommended, in the order of best.h.
 */
#ifndef MR_MODEL_SCORE_H
#define MR_MODEL_SCORE_H

/* What an item of a profile adds to the score of an item that has it among its neighbours. */
static inline double
mr_score_part(double weight, float similarity)
{
	return weight * (double) similarity;
}

#endif /* MR_MODEL_SCORE_H */
