/*
 * set.h
 *	  Satellites that say sets of rows of their units: what multi-active and effectivity satellites have in common.
 *
 * The unit is what a set is said of: the parent, or the driving key.  A kind tells how a row of a source becomes
 * a member of a set, and which further columns a member has.
 */
#ifndef MR_VAULT_SET_H
#define MR_VAULT_SET_H

#include "vault/satellite.h"

/* A member of a set, as a row of a source names it. */
typedef struct MrSetMember
{
	pg_uuid_t unit;
	pg_uuid_t member; /* which one of the unit's */
	pg_uuid_t content; /* what is said of it */
	const MrRow *row; /* NULL: there is none, the set is empty */
} MrSetMember;

typedef struct MrSetSource
{
	MrStaging *staging; /* NULL: of another stream */
	char *record_source; /* NULL: the satellite's */
	bool
		is_object; /* an object's key names the unit (and the member, when each is alone): deletes end it */
	MrKeyReader *reader; /* of the parent's key */
	MrKeyReader *unit_reader; /* of the unit's */
	AttrNumber *sub_key;
	MrCast **sub_key_casts;
	MrAttributeReader attributes;
} MrSetSource;

typedef struct MrSetSatellite
{
	MrTarget base;
	char *record_source; /* NULL: the stream's name */
	MrKey *key; /* the parent's */
	MrKey *unit_key;
	bool whole; /* a version tells the whole set; else every member is a unit of its own */
	bool every; /* every assertion is stored: history => 'all' */
	int nsub_key;
	MrHashColumn *sub_key;
	Oid *sub_key_types;
	int32 *sub_key_typmods;
	MrAttributes attributes;
	MrSetSource *sources;
	MrTable *table;
	char *set; /* the columns that name a set, and the unit's, as SQL writes them */
	char *unit;
	MrStatement *find_predecessors;
	MrStatement *confirm;

	/* Reads a member from a row of a source; false when the row names no unit. */
	bool (*read)(struct MrSetSatellite *satellite, MrSetSource *source, MrSetMember *member);
	/* Puts the columns after the technical ones into row n; `rows` starts with the first of them. */
	void (*fill)(struct MrSetSatellite *satellite, MrSetSource *source, const MrSetMember *member,
				 Datum **values, bool **nulls, int n);
} MrSetSatellite;

/*
 * Loads what does not depend on the kind; the unit's column is called `unit` in the definition, the member's
 * `member`.  Then come `nfurther` further columns.
 */
extern void mr_set_load(MrSetSatellite *satellite, const MrVaultTable *table, const char *unit,
						const char *member, const AttrNumber *further, int nfurther);

/* What a loaded one is: base.kind. */
extern const MrTargetKind mr_set_kind;

#endif /* MR_VAULT_SET_H */
