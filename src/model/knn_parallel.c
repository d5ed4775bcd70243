/*
 * knn_parallel.c
 *	  The kernel in parallel workers.
 *
 * Workers only compute: the session that trains reads the query before they start and writes the version when they have
 * ended, in its own transaction.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "model/knn.h"

#define KEY_SEGMENT UINT64CONST(1)

/* One worker: participant 0 is the session. */
void
mr_knn_worker_main(dsm_segment *segment, shm_toc *toc)
{
	dsm_handle *handle = shm_toc_lookup(toc, KEY_SEGMENT, false);
	dsm_segment *shared = dsm_attach(*handle);
	MrKnn knn;

	if (shared == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("could not map dynamic shared memory segment")));
	mr_knn_attach(&knn, dsm_segment_address(shared));
	mr_knn_work(&knn, ParallelWorkerNumber + 1, false);
	dsm_detach(shared);
}

void
mr_knn_run(MrKnn *knn, dsm_segment *segment, int workers)
{
	ParallelContext *context;
	dsm_handle *handle;

	if (segment == NULL || workers == 0)
	{
		mr_knn_work(knn, 0, true);
		return;
	}

	EnterParallelMode();
	context = CreateParallelContext("millrace", "mr_knn_worker_main", workers);
	shm_toc_estimate_chunk(&context->estimator, sizeof(dsm_handle));
	shm_toc_estimate_keys(&context->estimator, 1);
	InitializeParallelDSM(context);
	handle = shm_toc_allocate(context->toc, sizeof(dsm_handle));
	*handle = dsm_segment_handle(segment);
	shm_toc_insert(context->toc, KEY_SEGMENT, handle);
	LaunchParallelWorkers(context);
	mr_knn_work(knn, 0, true);
	WaitForParallelWorkersToFinish(context);
	DestroyParallelContext(context);
	ExitParallelMode();
}
