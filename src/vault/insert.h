/*
 * insert.h
 *	  Tables of keys that are inserted once: what hubs and links have in common.
 */
#ifndef MR_VAULT_INSERT_H
#define MR_VAULT_INSERT_H

#include "vault/vault.h"

typedef struct MrKeyTable
{
	MrTarget base;
	char *record_source; /* NULL: the stream's name */
	MrKey *key;
	MrKeyReader **readers; /* by source; NULL for sources of other streams */
	char **record_sources; /* by source; NULL: the table's */
	int nmiddle; /* columns between the hash key and load_at */
	Datum (*middle)(MrKeyReader *reader, int i); /* their values, of the key that was read last */
	MrTable *table; /* hash key, the columns in the middle, load_at, record_source */
	MrKnownKeys *known;
} MrKeyTable;

/* The definition calls the columns in the middle <prefix>_1, <prefix>_2, …. */
extern void mr_key_table_load(MrKeyTable *table, const MrTarget *base, MrKey *key,
							  const char *prefix, int nmiddle);
extern void mr_key_table_apply(MrTarget *target, MrBatch *batch);

#endif /* MR_VAULT_INSERT_H */
