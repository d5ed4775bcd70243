/*
 * vault.h
 *	  What hubs, links and satellites share: keys, what is known to exist, what was skipped.
 *
 * A key consists of parts, one for each hub: a hub's key has one part, a link's as many as it has hubs, a
 * satellite's is its parent's.
 */
#ifndef MR_VAULT_VAULT_H
#define MR_VAULT_VAULT_H

#include "core/cast.h"
#include "core/hash.h"
#include "core/statement.h"
#include "core/writer.h"
#include "nodes/parsenodes.h"
#include "stage/staging.h"
#include "utils/jsonb.h"

extern const MrTargetKind mr_hub_kind;
extern const MrTargetKind mr_link_kind;
extern const MrTargetKind mr_satellite_kind;
extern const MrTargetKind mr_pit_kind;

/* ---- keys (key.c) ------------------------------------------------------------------------------------ */

/* A hub's business key: the types belong to the hub. */
typedef struct MrKeyPart
{
	int32 hub_id;
	int ncolumns;
	Oid *types;
	int32 *typmods;
	MrHashColumn *columns;
} MrKeyPart;

typedef struct MrKey
{
	int nparts;
	MrKeyPart *parts;
	int ncolumns; /* of all parts */
	MrHasher *hasher;
} MrKey;

/* The key of a hub; of the hubs that the definition of a link names; of a satellite's parent. */
extern MrKey *mr_key_of_hub(int32 hub_id);
extern MrKey *mr_key_of_hubs(Jsonb *link_definition);
extern MrKey *mr_key_of_parent(Jsonb *parent);
/* The key that some parts of another make. */
extern MrKey *mr_key_of_parts(const MrKey *whole, const int *parts, int nparts);

/* The hash of a key, and the rest of its digest, which tells two keys with one hash apart. */
typedef struct MrKeyHash
{
	pg_uuid_t hash;
	pg_uuid_t check;
} MrKeyHash;

/* Which columns of a staging table a key is read from, and how they become the hub's types. */
typedef struct MrKeyReader
{
	MrKey *key;
	AttrNumber *attnums; /* of all parts' columns */
	MrFarColumns far; /* those of them that are */
	MrCast **casts;
	Datum *values; /* what was read last; a part with a NULL column is NULL as a whole */
	bool *nulls;
	bool *part_nulls;
	MrKeyHash **shared; /* by part: its hashes in all rows of what is being read */
	int place; /* of the row that was read last, if it is one of these, or -1 */
} MrKeyReader;

/* `columns` is millrace.target_source.columns: {"key": [["declared name", …], …], …}. */
extern MrKeyReader *mr_key_reader_create(MrKey *key, const MrStaging *staging, Jsonb *columns);

/* Reads some parts of what another reader reads. */
extern MrKeyReader *mr_key_reader_of_parts(const MrKeyReader *whole, MrKey *key, const int *parts);

/* One for each source of a target; NULL for those of other streams. */
extern MrKeyReader **mr_key_readers_create(MrKey *key, const MrTarget *target);

/* Reads the key of a row; returns how many parts are not NULL. */
extern int mr_key_read(MrKeyReader *reader, const Datum *values, const bool *nulls);

/*
 * The same for all rows of a batch one after the other, by their place among them: hashes of hubs' keys are made
 * once for all targets.  mr_key_row returns false when all parts are NULL; mr_key_row_read is for those whose `values` and
 * hashes of parts are wanted, too.
 */
extern void mr_key_begin(MrKeyReader *reader, const MrBatch *batch, MrStaged *staged);
extern bool mr_key_row(MrKeyReader *reader, int place, const MrRow *row, MrKeyHash *hash);
extern void mr_key_row_read(MrKeyReader *reader, int place, const MrRow *row);

/* Is the staging's own key in it, so that no two objects have the same? */
extern bool mr_key_has_object(const MrKeyReader *reader, const MrStaging *staging);

/* Is a satellite's parent keyed by the staging's own key: do deletes name it? */
extern bool mr_key_is_object(const MrKeyReader *reader, const MrStaging *staging);

/* Hashes of what was read last: of one part (its hub's key), of the whole. */
extern void mr_key_part_hash(MrKeyReader *reader, int part, pg_uuid_t *result);
extern void mr_key_hash(MrKeyReader *reader, pg_uuid_t *result);
/* The same with the check of mr_hasher_end_checked. */
extern void mr_key_hash_checked(MrKeyReader *reader, MrKeyHash *result);

/* ---- known keys (known.c) ---------------------------------------------------------------------------- */

/*
 * A bounded cache of keys that are in a table for good.  It knows them by their checks, not by the hashes in the
 * table: a key that is another one under the same hash is not known, and meets the row in the table.  Keys are noted when a batch has inserted or met
 * them, and believed once its transaction has committed; forgotten when somebody truncates, deletes or
 * alters.
 */
typedef struct MrKnownKeys MrKnownKeys;

extern MrKnownKeys *mr_known_create(Oid relid);
/* Before a batch: takes over what the last one noted if it has committed, looks whether somebody deleted. */
extern void mr_known_refresh(MrKnownKeys *known);
extern bool mr_known_contains(const MrKnownKeys *known, const pg_uuid_t *key);
/* It will be asked for soon. */
extern void mr_known_prefetch(const MrKnownKeys *known, const pg_uuid_t *key);
/* After the insert: so many keys, of which some were new, are in the table if this transaction commits. */
extern void mr_known_note(MrKnownKeys *known, const pg_uuid_t *keys, int nkeys, int64 inserted);

/* ---- common to the kinds (vault.c) ------------------------------------------------------------------- */

/* A vault table as its definition shows it: where the columns are now. */
typedef struct MrVaultTable
{
	Oid relid;
	TupleDesc desc;
	Query *definition;
} MrVaultTable;

extern void mr_vault_table_open(MrVaultTable *table, const MrTarget *target);
/* The attribute that the definition calls `name`; an error when it is gone. */
extern AttrNumber mr_vault_attribute(const MrVaultTable *table, const char *name);

/* A JSON text of the configuration, and what is in it; NULL when it is not there. */
extern Jsonb *mr_vault_json(const char *text);
extern Jsonb *mr_vault_json_member(Jsonb *object, const char *name);
extern Jsonb *mr_vault_json_element(Jsonb *array, int i);
extern int mr_vault_json_length(Jsonb *array);
extern char *mr_vault_json_text(Jsonb *scalar);
extern bool mr_vault_json_true(Jsonb *scalar);

/* What is written as record_source: the source's own, the target's, or the stream's name. */
extern Datum mr_vault_record_source(const char *of_source, const char *of_target,
									const MrBatch *batch);

/* How many rows of its sources a batch holds, those without an object's rows (deletes) not counted. */
extern int mr_vault_count_rows(const MrTarget *target, const MrBatch *batch);

/* Counts rows that were skipped for a NULL key, in the batch's transaction. */
extern void mr_vault_count_skipped(int32 target_id, const MrBatch *batch, int64 rows);

/* The set of keys of one batch. */
typedef struct MrKeySet MrKeySet;

extern MrKeySet *mr_key_set_create(int capacity);
/* True when it was not there yet. */
extern bool mr_key_set_add(MrKeySet *set, const pg_uuid_t *key);

/* ---- making again (clear.c) -------------------------------------------------------------------------- */

extern void mr_vault_clear(MrTarget *target, const char *filter, char **condition);

#endif /* MR_VAULT_VAULT_H */
