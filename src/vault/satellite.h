/*
 * satellite.h
 *	  What satellites of all kinds share: attributes, and how their statements run.
 */
#ifndef MR_VAULT_SATELLITE_H
#define MR_VAULT_SATELLITE_H

#include "vault/vault.h"

/* One attribute: its number is part of the hash and never used again. */
typedef struct MrAttribute
{
	int32 number;
	Oid type;
	int32 typmod;
	MrHashColumn hash;
} MrAttribute;

/* Those that are still written, by number. */
typedef struct MrAttributes
{
	int n;
	MrAttribute *items;
	bool any_removed; /* some have been taken away: hashes of older rows were made with them */
} MrAttributes;

/* From which columns of a source they are read. */
typedef struct MrAttributeReader
{
	AttrNumber *attnums; /* 0: not from this source */
	MrFarColumns far; /* those of them that are */
	MrCast **casts;
} MrAttributeReader;

/* The attributes of a satellite; attnums (may be NULL) gets the table's columns. */
extern void mr_attributes_load(MrAttributes *attributes, const MrVaultTable *table,
							   Jsonb *definition, AttrNumber *attnums);
extern void mr_attribute_reader_init(MrAttributeReader *reader, const MrAttributes *attributes,
									 const MrStaging *staging, Jsonb *columns);
extern Datum mr_attribute_value(const MrAttributeReader *reader, int i, const MrRow *row,
								bool *isnull);

/* The hash of what a row says: of the number and value of each attribute that is not NULL. */
extern void mr_attributes_hash(MrAttributes *attributes, MrHasher *hasher,
							   const MrAttributeReader *reader, const MrRow *row, pg_uuid_t *hash);
/* The same of values that are in the table. */
extern void mr_attributes_hash_values(MrAttributes *attributes, MrHasher *hasher,
									  const Datum *values, const bool *nulls, pg_uuid_t *hash);

/* A column of a source by its declared name; an error when it is gone. */
extern AttrNumber mr_satellite_column(const MrStaging *staging, const char *name);

/*
 * Runs a statement as the owner.  Its plan is generic and goes through the unique index whatever the
 * statistics of a young table say.
 */
extern uint64 mr_satellite_run(MrStatement *statement, Oid owner, Datum *arrays);

/* Arrays for statements. */
extern Datum mr_satellite_int_array(Datum *elements, int n);
extern Datum mr_satellite_uuid_array(Datum *elements, int n);
extern Datum mr_satellite_time_array(Datum *elements, int n);

/* Kinds with sets of rows; satellite.c loads the kind that a definition names. */
extern MrTarget *mr_multi_active_load(const MrTarget *base);
extern MrTarget *mr_effectivity_load(const MrTarget *base);

#endif /* MR_VAULT_SATELLITE_H */
