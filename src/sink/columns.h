/*
 * columns.h
 *	  What the expressions of a sink read.
 */
#ifndef MR_SINK_COLUMNS_H
#define MR_SINK_COLUMNS_H

#include "nodes/bitmapset.h"
#include "nodes/parsenodes.h"

/*
 * The columns of the source that the definition's expression of that name reads, also within sub-selects, as
 * pull_varattnos() numbers them.
 */
extern Bitmapset *mr_sink_columns(const Query *definition, Oid source, const char *name);

#endif /* MR_SINK_COLUMNS_H */
