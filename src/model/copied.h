/*
 * copied.h
 *	  Versions of models in shared memory.
 */
#ifndef MR_MODEL_COPIED_H
#define MR_MODEL_COPIED_H

#include "model/session.h"
#include "storage/dsm.h"
#include "storage/shmem.h"

/*
 * The copy of a version, as its kind has laid it out (lists.h, predictor.h); NULL: there is none (yet), and the tables are read.  One
 * that the current transaction has made has none.  It is mapped until it is detached.
 */
extern dsm_segment *mr_copied_attach(MrModel *model, int32 version);

/* The next array of a copy that is being laid out; counts only when there is no block. */
static inline void *
mr_copied_place(char *block, Size *size, uint64 count, Size width)
{
	Size at = *size;

	*size = add_size(at, MAXALIGN(mul_size(count, width)));
	return block == NULL ? NULL : block + at;
}

extern PGDLLEXPORT void mr_copied_main(Datum slot);

#endif /* MR_MODEL_COPIED_H */
