/*
 * ubjson.h
 *	  Universal Binary JSON, as XGBoost writes it.
 */
#ifndef MR_MODEL_UBJSON_H
#define MR_MODEL_UBJSON_H

#include "postgres.h"

/* The same as JSON; an error when it is not whole, or has what XGBoost does not write. */
extern char *mr_ubjson_to_json(const char *bytes, Size length);

#endif /* MR_MODEL_UBJSON_H */
