/*
 * reader.h
 *	  What was staged, read again in chunks, in the shape in which a batch brings it.
 *
 * A log is read in the order of its pages, a staging table in the order of its objects' keys.  Both give an
 * MrStaged of which nothing is old, so that whatever hangs on the staging table is filled by the code that
 * keeps it.
 */
#ifndef MR_STAGE_READER_H
#define MR_STAGE_READER_H

#include "stage/staging.h"
#include "storage/itemptr.h"
#include "utils/array.h"

/*
 * Adds about `limit` rows of a log (or of one of its partitions) from the place `*from` on, up to the page
 * `until`, as versions; no version is taken in parts.  Moves `*from` to the first row that is left; false when
 * none is.  *nrows says how many rows were taken.
 */
extern bool mr_log_read(MrStaged *staged, Oid relation, ItemPointer from, BlockNumber until,
						int limit, int64 *nrows);

/* A place in the order of keys: the key of the last object that was read. */
typedef struct MrKeyPlace
{
	bool beginning; /* nothing was read yet */
	Datum *values; /* in the order of MrStaging.key */
} MrKeyPlace;

/*
 * Adds about `limit` staged rows of objects whose key comes after the place, as new rows and as versions; no
 * object is taken in parts.  `condition` over the rows "r", evaluated as `role`, may leave some out (NULL:
 * none).  Moves the place; false when nothing is left.  The caller is connected to SPI.
 */
extern bool mr_rows_read(MrStaged *staged, MrKeyPlace *place, Oid role, const char *condition,
						 int limit, int64 *nrows);

/* A place as text and back: the key's values as their types write them. */
extern ArrayType *mr_key_place_text(const MrStaging *staging, const MrKeyPlace *place);
extern MrKeyPlace *mr_key_place_read(const MrStaging *staging, ArrayType *written);

/* Does the object with that key lie at or before the place? */
extern bool mr_key_place_covers(const MrStaging *staging, const MrKeyPlace *place,
								const Datum *key);

#endif /* MR_STAGE_READER_H */
