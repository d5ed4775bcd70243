/*
 * retention.h
 *	  What the manager does about replication slots that nobody reads.
 */
#ifndef MR_CORE_RETENTION_H
#define MR_CORE_RETENTION_H

#include "postgres.h"

/* Of which streams (stream_id) nobody reads the slot now: a FROM clause and its conditions. */
#define MR_UNREAD_SLOTS \
	"FROM millrace.replication r JOIN millrace.stream s ON s.id = r.stream_id " \
	"WHERE r.state = 'ready' AND s.fence = millrace_internal.fence() AND NOT EXISTS " \
	"(SELECT FROM millrace.worker w WHERE w.stream_id = s.id AND w.pid IS NOT NULL " \
	"AND w.state = 'running')"

/* Is there one, and was it not looked at lately?  In a transaction. */
extern bool mr_retention_due(void);

/* Starts the process that looks at them, when it is due, and frees the slot of one that has ended. */
extern void mr_retention_manage(Oid database, bool due);

#endif /* MR_CORE_RETENTION_H */
