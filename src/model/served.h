/*
 * served.h
 *	  The version of a model that is served: which one, its items and its lists, from memory or from its tables.
 */
#ifndef MR_MODEL_SERVED_H
#define MR_MODEL_SERVED_H

#include "fmgr.h"
#include "model/catalogue.h"
#include "model/lists.h"
#include "model/store.h"

/* What a session knows of a model. */
typedef struct MrKnown
{
	Oid relation; /* key */
	bool valid;
	int32 id;
	MrIndexed aliases;
	MrIndexed by_number; /* the four tables, and what they are read by */
	MrIndexed by_item;
	MrIndexed by_place;
	MrIndexed users;
	MrIndexed targets;
	MrIndexed sources;
	FmgrInfo output; /* of the type of items */
	FmgrInfo compare;
	Oid type;
	Oid collation;
	bool by_value;
	int16 length;
	Oid owner;
	bool has_catalogue;
	MrCatalogueKept catalogue;
	dsm_segment *segment; /* of a version, or NULL */
	int32 copied;
	MrCopy copy;
	TimestampTz used; /* the transaction that has used it last began then */
	TimestampTz asked; /* for a copy that was not there */
} MrKnown;

/* A model while it answers. */
typedef struct MrServed
{
	MrKnown *known;
	int32 version;
	const MrCopy *copy; /* NULL: tables are read */
	Relation items; /* when they are */
	Relation by_number; /* index of items, with a scan for all look-ups of an answer */
	IndexScanDesc scan;
	TupleTableSlot *slot;
} MrServed;

/* Opens the version of a model that is in production, for the current user, who must be allowed to read the model. */
extern void mr_served_open(MrServed *served, Oid relation);
extern void mr_served_close(MrServed *served);

/* An id from its text; one that is too long for its column is not known, and no error. */
extern Datum mr_served_read_id(Oid type, char *text);

/* The number of an item by the text of its id; false when the version does not know it. */
extern bool mr_served_find_item(MrServed *served, char *text, uint32 *number);

/* The id of an item by its number, good until the next one is asked for; and as text. */
extern Datum mr_served_id(MrServed *served, uint32 number);
extern Datum mr_served_id_text(MrServed *served, Datum id);

/* A list that is being read. */
typedef struct MrReading
{
	Relation table; /* NULL: from the copy */
	SysScanDesc rows;
	bool at_end; /* of the copy */
	const MrListed *entries; /* of the present block */
	int length;
	MrListed read[MR_NEIGHBOURS_BLOCK]; /* those from the table */
} MrReading;

/* Reads the list of an item, its targets or its sources, block by block. */
extern void mr_reading_begin(MrReading *reading, const MrServed *served, bool targets,
							 uint32 number);
extern bool mr_reading_next(MrReading *reading);
extern void mr_reading_end(MrReading *reading);

/* How much of a list is fetched before it is read. */
#define MR_PREFETCH_LINES 6

/* Has memory fetched that is about to be read: a copy is larger than the caches, and all of it is random access. */
static inline void
mr_served_prefetch_id(const MrServed *served, uint32 number)
{
	const MrCopy *copy = served->copy;

	if (copy == NULL)
		return;
	if (copy->id_start != NULL)
		__builtin_prefetch(&copy->id_start[number]);
	else
		__builtin_prefetch(&((const Datum *) copy->ids)[number]);
}

/* Of its sources. */
static inline void
mr_served_prefetch_list(const MrServed *served, uint32 number)
{
	const MrLists *lists = &served->copy->sources;
	const char *entries = (const char *) (lists->entries + lists->start[number]);

	for (int i = 0; i < MR_PREFETCH_LINES; i++)
		__builtin_prefetch(entries + i * 64);
}

#endif /* MR_MODEL_SERVED_H */
