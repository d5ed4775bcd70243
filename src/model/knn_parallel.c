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
#include "utils/memutils.h"

#define KEY_SEGMENT UINT64CONST(1)

dsm_segment *
mr_parallel_segment(shm_toc *toc)
{
	dsm_handle *handle = shm_toc_lookup(toc, KEY_SEGMENT, false);
	dsm_segment *shared = dsm_attach(*handle);

	if (shared == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("could not map dynamic shared memory segment")));
	return shared;
}

/* One worker: participant 0 is the session. */
void
mr_knn_worker_main(dsm_segment *segment, shm_toc *toc)
{
	dsm_segment *shared = mr_parallel_segment(toc);
	MrKnn knn;

	mr_knn_attach(&knn, dsm_segment_address(shared));
	mr_knn_work(&knn, ParallelWorkerNumber + 1, false);
	dsm_detach(shared);
}

dsm_segment *
mr_knn_segment(Size size)
{
	dsm_segment *volatile segment = NULL;
	ErrorData *volatile error = NULL;
	MrAttempt attempt;

	mr_attempt_begin(&attempt);
	PG_TRY();
	{
		segment = dsm_create(size, DSM_CREATE_NULL_IF_MAXSEGMENTS);
		/* until it is the outer transaction's */
		if (segment != NULL)
			dsm_pin_mapping(segment);
		mr_attempt_end(&attempt, true);
	}
	PG_CATCH();
	{
		error = mr_attempt_failed(&attempt);
	}
	PG_END_TRY();
	if (segment != NULL)
		dsm_unpin_mapping(segment);
	/* what the directory of shared memory has no room for, this process may well have */
	if (error != NULL && ERRCODE_TO_CATEGORY(error->sqlerrcode) !=
							 ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES))
		mr_rethrow(error);
	return segment;
}

void
mr_parallel_run(const char *function, dsm_segment *segment, int workers, void (*work)(void *),
				void *arg)
{
	ParallelContext *context;
	dsm_handle *handle;

	EnterParallelMode();
	context = CreateParallelContext("millrace", function, workers);
	shm_toc_estimate_chunk(&context->estimator, sizeof(dsm_handle));
	shm_toc_estimate_keys(&context->estimator, 1);
	InitializeParallelDSM(context);
	handle = shm_toc_allocate(context->toc, sizeof(dsm_handle));
	*handle = dsm_segment_handle(segment);
	shm_toc_insert(context->toc, KEY_SEGMENT, handle);
	LaunchParallelWorkers(context);
	work(arg);
	WaitForParallelWorkersToFinish(context);
	DestroyParallelContext(context);
	ExitParallelMode();
}

/* The part of the session. */
static void
work_as_leader(void *knn)
{
	mr_knn_work(knn, 0, true);
}

void
mr_knn_run(MrKnn *knn, dsm_segment *segment, int workers)
{
	if (segment == NULL || workers == 0)
		work_as_leader(knn);
	else
		mr_parallel_run("mr_knn_worker_main", segment, workers, work_as_leader, knn);
}
