/*
 * catalogue.h
 *	  What may be recommended: the catalogue of a model, and the caller's filter over its columns.
 */
#ifndef MR_MODEL_CATALOGUE_H
#define MR_MODEL_CATALOGUE_H

#include "core/expression.h"
#include "core/millrace.h"
#include "executor/spi.h"

/* Statements run as the owner of a model, who may change nothing by them. */
typedef struct MrAsOwner
{
	MrRunAs saved;
	int nest_level;
	bool read_only;
} MrAsOwner;

extern void mr_become_owner(MrAsOwner *as, Oid owner);
extern void mr_become_caller(MrAsOwner *as);

/* What a session keeps of a catalogue: its statements. */
typedef struct MrCatalogueKept
{
	int32 model_id; /* 0: nothing yet */
	Oid owner;
	Oid view;
	SPIPlanPtr known; /* rows of given items */
	SPIPlanPtr unknown; /* rows of items that a version does not know, in their order */
} MrCatalogueKept;

/* A catalogue while a model answers. */
typedef struct MrCatalogue MrCatalogue;

/* For one answer to the current user, whose filter may be NULL. */
extern MrCatalogue *mr_catalogue_open(MrCatalogueKept *kept, Oid model, int32 model_id, Oid owner,
									  const char *filter);
extern void mr_catalogue_close(MrCatalogue *catalogue);

/* Which of some items it has, available and passing the filter. */
extern bool *mr_catalogue_check(MrCatalogue *catalogue, Datum *ids, int n);

/*
 * Calls back with items that it has so, which the version does not know, in their order, until that returns false.  An item of
 * several rows may come again.  What has a number of the array, it does not know any more.
 */
extern void mr_catalogue_unknown(MrCatalogue *catalogue, int32 version, Datum unused,
								 bool (*offer)(void *context, Datum id), void *context);

#endif /* MR_MODEL_CATALOGUE_H */
