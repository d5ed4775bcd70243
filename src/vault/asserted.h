/*
 * asserted.h
 *	  The rows of a satellite, read and confirmed straight through the index and the heap.
 */
#ifndef MR_VAULT_ASSERTED_H
#define MR_VAULT_ASSERTED_H

#include "access/attnum.h"
#include "core/leaf.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

typedef struct MrAsserted MrAsserted;

/*
 * Opens a satellite's table for the current user; the columns are parent, applied_at, hashdiff, confirmed_at.
 * NULL when it is not a plain table with a unique index on the first three: then statements do the work.
 */
extern MrAsserted *mr_asserted_open(Oid relid, const AttrNumber attnums[4]);
extern void mr_asserted_close(MrAsserted *asserted);

/* Asks for what finding rows reads whose parents and times come after the i-th of n, as mr_leaf_look_ahead() does. */
extern void mr_asserted_look_ahead(MrAsserted *asserted, int i, int n, MrLeafBegin begin,
								   void *context);

/*
 * Finds the last row of a parent at or before (time, hash).  False when there is none, or when it has another
 * content.
 */
extern bool mr_asserted_find(MrAsserted *asserted, const pg_uuid_t *parent, TimestampTz time,
							 const pg_uuid_t *hash, TimestampTz *applied, TimestampTz *confirmed);

/*
 * Raises confirmed_at of the row that was found last.  False when somebody holds it or has changed it: nobody
 * waits for a satellite's row.
 */
extern bool mr_asserted_confirm(MrAsserted *asserted, TimestampTz time);

#endif /* MR_VAULT_ASSERTED_H */
