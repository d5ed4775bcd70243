/*
 * staging.h
 *	  A staging table as the stages after it see it, and what may hang on one.
 */
#ifndef MR_STAGE_STAGING_H
#define MR_STAGE_STAGING_H

#include "access/tupdesc.h"
#include "core/batch.h"
#include "nodes/pg_list.h"

/* A column as it was declared, and which attribute it is now: renames are followed (C14). */
typedef struct MrDeclaredName
{
	char *declared;
	AttrNumber attnum;
} MrDeclaredName;

typedef struct MrStaging
{
	int32 id; /* millrace.staging.id */
	int ordinal; /* position in MrBatch.staged */
	Oid relid;
	Oid log; /* or InvalidOid */
	Oid owner; /* the declaring role: rows are written and expressions evaluated as it */
	char *name; /* schema-qualified and quoted */
	char *timezone;
	TupleDesc desc; /* of the table; columns are found with mr_staging_attribute */
	int nkeys;
	AttrNumber *key; /* attribute numbers of the object's key, without _element */
	AttrNumber element; /* of _element, or 0 */
	AttrNumber version; /* of _version */
	AttrNumber event_time;
	bool each_version; /* something asks whether a version is stale, or read by a snapshot */
	bool version_is_time; /* _version is a timestamptz: satellites' applied_at is it */
	int nnames;
	MrDeclaredName *names; /* of all columns that millrace knows */
	struct MrStagingPlan *plan; /* private to stage */
} MrStaging;

/* The attribute that was declared as `name` (renames are followed through millrace_def), or 0. */
extern AttrNumber mr_staging_attribute(const MrStaging *staging, const char *name);

/*
 * Technical columns make no difference between old and new rows, unless what hangs on the table reads them and says so
 * when it is loaded: one by its attribute, or all with InvalidAttrNumber.
 */
extern void mr_staging_compare(MrStaging *staging, AttrNumber attnum);

/*
 * The column of the table's log that has the values of one of its columns: made under the declared name, and perhaps
 * renamed together with it; or 0.
 */
extern AttrNumber mr_staging_log_attribute(const MrStaging *staging, Oid log, AttrNumber attnum);

/* The time of a version for those after it: the declared version when it is a time, else the message's. */
extern TimestampTz mr_version_time(const MrStaging *staging, const MrVersion *version);

/* ------------------------------------------------------------------------------------------------ */

/*
 * What hangs on staging tables: a hub, link, satellite, mart, model, rule, sink.  One struct and one small interface, so that a
 * new kind is a new file.  The order in which a batch takes locks (C3) is that of phases, and by relid within one;
 * targets whose rows objects share come after those whose rows are of one object.
 */
typedef enum MrPhase
{
	MR_PHASE_HUB,
	MR_PHASE_LINK,
	MR_PHASE_SATELLITE,
	MR_PHASE_PIT,
	MR_PHASE_MART,
	MR_PHASE_MODEL,
	MR_PHASE_RULE,
	MR_PHASE_SINK
} MrPhase;

struct MrTarget;

/* What a kind is made from, and so what it is filled from: each chunk is a batch of that to its apply. */
typedef enum MrFilledFrom
{
	MR_FILLED_BY_ITSELF, /* other targets: by its own fill */
	MR_FILLED_FROM_VERSIONS, /* every version: the log, or what is staged when there is none */
	MR_FILLED_FROM_ROWS /* old and new rows: what is staged */
} MrFilledFrom;

typedef struct MrTargetKind
{
	const char *name; /* as in millrace.target.kind */
	MrPhase phase;
	MrStage stage; /* under which its time is counted */

	/* Compiles a target from its configuration; `base` is filled, the result starts with a copy of it. */
	struct MrTarget *(*load)(const struct MrTarget *base);

	/* Writes what a batch means for it. */
	void (*apply)(struct MrTarget *target, MrBatch *batch);

	MrFilledFrom filled_from;

	/*
	 * Filled from versions: without a log of all of them, what is staged is better than nothing.
	 */
	bool filled_from_staged;

	/*
	 * MR_FILLED_BY_ITSELF: makes the next chunk anew, of at most so many keys, and says how many there were.  A chunk
	 * comes after the place that the one before has returned (NULL: the beginning); NULL when nothing is left.
	 */
	char *(*fill)(struct MrTarget *target, const char *after, int limit, int64 *nkeys);

	/*
	 * What time brings, about once a second, in a transaction of its own under the stream's shared lock; only one worker
	 * asks.  `caught_up`: when the stream had consumed all that was there; or DT_NOBEGIN.  May be NULL.
	 */
	void (*tick)(struct MrTarget *target, TimestampTz caught_up);

	/*
	 * Removes what a filter over the target's columns selects (NULL: everything), to be made again by applying
	 * what the sources hold; *condition says of which staged rows "r", or NULL: of all.  NULL when it cannot be
	 * rebuilt.
	 */
	void (*clear)(struct MrTarget *target, const char *filter, char **condition);
} MrTargetKind;

/* One source of a target. */
typedef struct MrTargetSource
{
	MrStaging *staging; /* NULL when it belongs to another stream: not this worker's */
	int32 staging_id;
	char *columns; /* JSON of millrace.target_source.columns, or NULL */
	struct MrKeyPlace
		*reached; /* being filled: objects after it are not the target's yet; else NULL */
} MrTargetSource;

typedef struct MrTarget
{
	const MrTargetKind *kind;
	int32 id; /* millrace.target.id */
	Oid relid; /* the user's table, or a mart's view */
	Oid owner; /* the declaring role */
	char *name;
	char *definition; /* JSON, its shape is the kind's own */
	bool filling; /* chunk by chunk; see flow/backfill.c */
	bool shared; /* several objects insert one row: workers may have to wait for each other */
	int64 written; /* rows that apply has written so far: stage_stats counts them */
	int nsources;
	MrTargetSource *sources;
} MrTarget;

/*
 * Makes the batch's old and new rows of a staging table readable for SQL run through SPI by the caller,
 * under the names mr_old_<staging id> and mr_new_<staging id> (ephemeral named relations, as transition
 * tables are).  The caller is connected to SPI; registration ends with that connection, but the copies of the
 * rows are made in CurrentMemoryContext once for the batch and must live as long as it.
 */
extern void mr_staged_register(MrStaged *staged);

#endif /* MR_STAGE_STAGING_H */
