/*
 * hash.h
 *	  Hash keys: uuid (version 8) from the first 16 bytes of SHA-256 over an injective encoding.
 *
 * The encoding is, for each column in declared order, a 4-byte big-endian length and the text output in
 * UTF-8 under fixed settings (ISO, UTC, extra_float_digits 1, bytea hex, numeric without trailing zeros, char
 * without its padding); NULL is length -1.  ('a||b','c') and ('a','b||c') differ; 1.0 and 1.00 do not.
 */
#ifndef MR_CORE_HASH_H
#define MR_CORE_HASH_H

#include "fmgr.h"
#include "utils/uuid.h"

/* How values of one type become text in a hash; compiled once, in CurrentMemoryContext. */
typedef struct MrHashColumn
{
	Oid type;
	FmgrInfo output;
	uint8 shortcut; /* how, for the types that need no output function */
} MrHashColumn;

typedef struct MrHasher MrHasher;

extern void mr_hash_column_init(MrHashColumn *column, Oid type);

/* One hasher is made in CurrentMemoryContext and used for any number of hashes. */
extern MrHasher *mr_hasher_create(void);
extern void mr_hasher_begin(MrHasher *hasher);
extern void mr_hasher_add(MrHasher *hasher, MrHashColumn *column, Datum value, bool isnull);
extern void mr_hasher_add_int32(MrHasher *hasher, int32 number); /* e.g. an attribute's number */
extern void mr_hasher_add_bytes(MrHasher *hasher, const char *bytes,
								int length); /* length, then bytes */
extern void mr_hasher_end(MrHasher *hasher, pg_uuid_t *result);
/*
 * The same, and in `check` the other half of SHA-256: what has one hash, but not the same value, is told apart by
 * it.
 */
extern void mr_hasher_end_checked(MrHasher *hasher, pg_uuid_t *result, pg_uuid_t *check);
/*
 * The same, and in `check` the other half of SHA-256, which tells values apart that have one hash: it is
 * equal only for equal values, whatever becomes of the first half.
 */
extern void mr_hasher_end_checked(MrHasher *hasher, pg_uuid_t *result, pg_uuid_t *check);

/* HMAC with SHA-256 of a text, in hexadecimal; in CurrentMemoryContext, outside any transaction or inside. */
extern char *mr_hmac(const char *key, const char *text);

/* The key that stands for NULL (zero key).  No hash equals it. */
extern const pg_uuid_t mr_zero_key;

/* What a delete has in the place of a hash of content: greater than any hash.  No hash equals it. */
extern const pg_uuid_t mr_deleted_hash;

#endif /* MR_CORE_HASH_H */
