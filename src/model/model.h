/*
 * model.h
 *	  What the files of this stage have in common.
 */
#ifndef MR_MODEL_MODEL_H
#define MR_MODEL_MODEL_H

#include "core/millrace.h"
#include "utils/memutils.h"

/* How far a training is; shown by millrace.training_progress. */
typedef enum MrTrainingPhase
{
	MR_TRAINING_READING = 1,
	MR_TRAINING_SORTING,
	MR_TRAINING_COMPUTING,
	MR_TRAINING_JUDGING,
	MR_TRAINING_WRITING
} MrTrainingPhase;

/* An array of so many zeros, however large. */
static inline void *
mr_zeros(Size count, Size width)
{
	return MemoryContextAllocExtended(CurrentMemoryContext, Max(count, 1) * width,
									  MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
}

extern void mr_progress_start(Oid model);
extern void mr_progress_phase(MrTrainingPhase phase, int64 total);
extern void mr_progress_done(int64 done);
extern void mr_progress_end(void);

#endif /* MR_MODEL_MODEL_H */
