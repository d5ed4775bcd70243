/*
 * worker.h
 *	  The delivery worker's process.
 */
#ifndef MR_SINK_WORKER_H
#define MR_SINK_WORKER_H

#include "postgres.h"

extern PGDLLEXPORT void mr_delivery_worker_main(Datum slot);

#endif /* MR_SINK_WORKER_H */
