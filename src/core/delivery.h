/*
 * delivery.h
 *	  What the manager does about delivery workers.
 */
#ifndef MR_CORE_DELIVERY_H
#define MR_CORE_DELIVERY_H

#include "postgres.h"

/* Which of them should run; in a transaction. */
typedef struct MrDeliveryWanted
{
	bool batches; /* number 0 */
	int http; /* numbers 1 and on */
} MrDeliveryWanted;

extern void mr_delivery_wanted(MrDeliveryWanted *wanted);

/*
 * Starts those that are missing, stops those that are too many, reads how they ended; returns how
 * long to wait, in ms at most `wait`.
 */
extern long mr_delivery_manage(Oid database, const MrDeliveryWanted *wanted, long wait);

#endif /* MR_CORE_DELIVERY_H */
