/*
 * served.h
 *	  The version of a model that is served: which one, its items and its lists, from memory or from its tables.
 */
#ifndef MR_MODEL_SERVED_H
#define MR_MODEL_SERVED_H

#include "fmgr.h"
#include "model/catalogue.h"
#include "model/knn.h"
#include "model/lists.h"
#include "model/popular.h"
#include "model/session.h"
#include "model/store.h"

/* The tables of a model, and what they are read by. */
enum
{
	MR_BY_NUMBER,
	MR_BY_ITEM,
	MR_BY_PLACE,
	MR_USERS,
	MR_TARGETS,
	MR_SOURCES,
	MR_PAIRS, /* of an online model, which has no others but those of items and users */
	/* Of one that is trained and keeps what users have: the table of targets, and those of histories. */
	MR_KEEPING,
	MR_CURRENT_USERS,
	MR_CURRENT_ITEMS
};

/* How an id is read. */
typedef struct MrIdInput
{
	FmgrInfo function;
	Oid parameter;
} MrIdInput;

/* How an online model counts. */
typedef struct MrCounting
{
	MrMeasure measure;
	double shrink;
	int max_history; /* 0: all */
} MrCounting;

/* What a session keeps of a model. */
typedef struct MrKept
{
	MrIdInput users;
	MrIdInput items;
	MrCounting counting; /* of an online model */
	MemoryContext ids; /* of its items: those that were asked for, by number */
	struct named_hash *named;
	int32 target_id; /* of a trained model that keeps what users have; else 0 */
	bool weighted;
	uint32 *places; /* what numbers of histories are in a version; see profile.c */
	uint32 nplaces;
	int32 placed; /* the version; 0: none */
	FmgrInfo output; /* of the type of items */
	FmgrInfo compare;
	Oid type;
	Oid collation;
	bool by_value;
	int16 length;
	bool has_catalogue;
	MrCatalogueKept catalogue;
	bool has_popular;
	MrPopularKept popular;
	dsm_segment *segment; /* of a version, or NULL */
	int32 copied;
	MrCopy copy;
	TimestampTz used; /* the transaction that has used it last began then */
} MrKept;

/* A model while it answers. */
typedef struct MrServed
{
	const MrModel *model;
	MrKept *kept;
	int32 version;
	const MrCopy *copy; /* NULL: tables are read */
	struct MrCounted *
		counted; /* of an online model: what lists are made from; its numbers say nothing of the order of ids */
	Relation items; /* when they are */
	Relation by_number; /* index of items, with a scan for all look-ups of an answer */
	IndexScanDesc scan;
	TupleTableSlot *slot;
} MrServed;

/* Opens the version of a model that is in production, for the current user, who must be allowed to read the model. */
extern void mr_served_open(MrServed *served, Oid relation);
extern void mr_served_close(MrServed *served);

/* An id from its text; one that is too long for its column is not known, and no error. */
extern Datum mr_served_read_id(MrIdInput *input, char *text);

/* The number of an item by its id; by its text only when somebody has it; false when the version does not know it. */
extern bool mr_served_find_id(MrServed *served, Datum id, uint32 *number);
extern bool mr_served_find_item(MrServed *served, char *text, uint32 *number);

/* The id of an item by its number, good until the next one is asked for; a copy; and as text. */
extern Datum mr_served_id(MrServed *served, uint32 number);
extern Datum mr_served_id_copy(MrServed *served, uint32 number);
extern Datum mr_served_id_text(MrServed *served, Datum id);

/* A list that is being read. */
typedef struct MrReading
{
	Relation table; /* NULL: from the copy, or made */
	SysScanDesc rows;
	bool at_end; /* when there is no table */
	const MrListed *entries; /* of the present block */
	int length;
	MrListed read[MR_NEIGHBOURS_BLOCK]; /* those from the table */
} MrReading;

/* Reads the list of an item, its targets or its sources, block by block. */
extern void mr_reading_begin(MrReading *reading, const MrServed *served, bool targets,
							 uint32 number);
extern bool mr_reading_next(MrReading *reading);
extern void mr_reading_end(MrReading *reading);

/* The whole list of sources of an item; it lives as long as the current memory context. */
extern const MrListed *mr_served_sources(const MrServed *served, uint32 number, uint64 *length);

/*
 * Has memory fetched that is about to be read: a copy is larger than the caches, and all of it is random access.  (What does nothing
 * else the compiler takes for nothing, unless it is always inlined.)
 */
static pg_attribute_always_inline void
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

/* Where its sources are. */
static pg_attribute_always_inline void
mr_served_prefetch_start(const MrServed *served, uint32 number)
{
	if (served->copy != NULL)
		__builtin_prefetch(&served->copy->sources.start[number]);
}

#endif /* MR_MODEL_SERVED_H */
