/*
 * session.h
 *	  What a session knows of models: one entry for each that it has asked, which every kind of model adds its own to.
 */
#ifndef MR_MODEL_SESSION_H
#define MR_MODEL_SESSION_H

#include "model/lookup.h"

typedef enum MrModelKind
{
	MR_MODEL_NEIGHBOURS,
	MR_MODEL_ONLINE, /* neighbours that are kept up to date */
	MR_MODEL_TREES
} MrModelKind;

/* The tables that a kind reads, at most, each with an index. */
#define MR_MODEL_TABLES 10

typedef struct MrModel
{
	Oid relation; /* key */
	uint64 changes; /* that may have been made to it */
	uint64 learnt; /* of them: 0 nothing yet */
	int32 id;
	MrModelKind kind;
	Oid owner;
	MrIndexed aliases;
	MrIndexed tables[MR_MODEL_TABLES]; /* which, the kind says */
	TimestampTz asked; /* for a copy that was not there */
	void *kept; /* what the kind keeps */
} MrModel;

/* How a kind keeps something of its models. */
typedef struct MrModelKeeping
{
	Size size; /* of what is kept, zeros at first */
	void (*learn)(MrModel *model, HeapTuple row, TupleDesc desc); /* again, after a change */
	void (*forget)(void *kept); /* another model has the place of this one; may be NULL */
} MrModelKeeping;

extern const MrModelKeeping mr_neighbours_keeping; /* served.c */
extern const MrModelKeeping mr_trees_keeping; /* predict.c */

/* A model that predicts, or recommends, for the current user, who must be allowed to read it.  It is not dropped in this transaction. */
extern MrModel *mr_model_open(Oid relation, bool predicts);

/* The version that is in production. */
extern int32 mr_model_served(const MrModel *model);

#endif /* MR_MODEL_SESSION_H */
