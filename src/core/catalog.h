/*
 * catalog.h
 *	  What definitions kept as views in millrace_def tell (C14).
 *
 * A definition names every column that we use of a table; PostgreSQL keeps the view's analysed query right
 * through renames and refuses what would break it.  So the current attribute numbers are read from there.
 */
#ifndef MR_CORE_CATALOG_H
#define MR_CORE_CATALOG_H

#include "nodes/parsenodes.h"

/* The analysed query of millrace_def.<kind>_<id>; an error of class configuration when it is gone. */
extern Query *mr_definition_query(const char *kind, int32 id);

/* The view's OID, or InvalidOid. */
extern Oid mr_definition_view(const char *kind, int32 id);

/*
 * The attribute of `relid` that the definition selects under the declared name, or 0 when the name is not
 * there or is not a plain column.
 */
extern AttrNumber mr_definition_attribute(const Query *query, Oid relid, const char *declared);

/*
 * The sub-select of a staging table's definition that is over the table: its expressions are named ":…", its
 * plain columns by their declared names.  Definitions without such a sub-select are returned as they are.
 */
extern Query *mr_definition_expressions(Query *query);

#endif /* MR_CORE_CATALOG_H */
