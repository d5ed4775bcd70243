/*
 * named.h
 *	  Ids of items by their numbers: a hash table, made in each file that includes this.
 */
#ifndef MR_MODEL_NAMED_H
#define MR_MODEL_NAMED_H

#include "common/hashfn.h"

typedef struct Named
{
	uint32 number;
	char status;
	Datum id;
} Named;

#define SH_PREFIX named
#define SH_ELEMENT_TYPE Named
#define SH_KEY_TYPE uint32
#define SH_KEY number
#define SH_HASH_KEY(table, key) murmurhash32(key)
#define SH_EQUAL(table, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

#endif /* MR_MODEL_NAMED_H */
