/*
 * enrich.h
 *	  Enrichment: what dictionaries know of the ids in messages, before these are mapped (C20).
 *
 *		begin → collect → ask → select → read → resolve, then fill for each message that is mapped
 *
 * Ids are collected from all messages of a batch and asked for together.  Nothing up to `ask` needs the batch's
 * transaction, and `ask` needs none at all: a Redis may hang.
 */
#ifndef MR_STAGE_ENRICH_H
#define MR_STAGE_ENRICH_H

#include "decode/plan.h"
#include "nodes/bitmapset.h"
#include "source/source.h"
#include "stage/staging.h"

typedef struct MrEnrichment MrEnrichment;

/* What a message lacks: an entry that its dictionary does not know yet. */
typedef struct MrLack
{
	int32 dictionary_id;
	const char *dictionary;
	const char *id;
	const char *element; /* NULL: the whole entry */
	const char *problem; /* why what is there cannot be used, or NULL */
} MrLack;

/*
 * What the stream's `enrich` says, as far as some mapping reads it; NULL when none does.  Sets `enriched` of the
 * staging tables' plans.  Adds to the extraction plan; the caller has connected to SPI.
 */
extern MrEnrichment *mr_enrich_load(MrStream *stream, MrPlan *extraction, List *stagings);

extern void mr_enrich_begin(MrEnrichment *enrichment);

/*
 * Collects the ids of messages from number `from` on.  A message that cannot be decoded raises an error; it is
 * number mr_enrich_place().
 */
extern void mr_enrich_collect(MrBatch *batch, int from);
extern int mr_enrich_place(void);

extern void mr_enrich_ask(MrEnrichment *enrichment);
extern void mr_enrich_select(MrEnrichment *enrichment);
/* Raises an error for an entry that cannot be read; refused, the others can. */
extern void mr_enrich_read(MrEnrichment *enrichment);
extern void mr_enrich_refuse(MrEnrichment *enrichment, const char *why);
/* What was found, for each message of the batch. */
extern void mr_enrich_resolve(MrBatch *batch);

/* Puts what was found for a message into the slots of $dict and @dict. */
extern void mr_enrich_fill(const MrBatch *batch, const MrMessage *message, MrDocument *document);

/* Does a message lack something that a staging table maps?  As MrLack *, each once. */
extern bool mr_enrich_lacks(const MrBatch *batch, const MrMessage *message,
							const Bitmapset *enriched);
extern List *mr_enrich_lacking(const MrBatch *batch, const MrMessage *message,
							   const Bitmapset *enriched);

/* An id that messages wait for is to be asked for again. */
extern void mr_enrich_want(MrEnrichment *enrichment, int32 dictionary_id, const char *id);
/*
 * Is it known now, or (whatever element of it) its entry?  What no mapping reads any more counts as known: nobody waits
 * for it.
 */
extern bool mr_enrich_knows_entry(MrEnrichment *enrichment, int32 dictionary_id, const char *id);
extern bool mr_enrich_knows(MrEnrichment *enrichment, int32 dictionary_id, const char *id,
							const char *element);

/* Adds the figures of dictionaries to millrace.dictionary_stats. */
extern void mr_enrich_write_stats(MrEnrichment *enrichment, int32 stream_id, int worker);

#endif /* MR_STAGE_ENRICH_H */
