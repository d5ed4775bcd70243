/*
 * mapping.h
 *	  How messages map to the rows of a staging table: what the files of this stage share.
 */
#ifndef MR_STAGE_MAPPING_H
#define MR_STAGE_MAPPING_H

#include "core/expression.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "core/writer.h"
#include "decode/plan.h"
#include "decode/value.h"
#include "source/source.h"
#include "stage/enrich.h"
#include "stage/staging.h"
#include "utils/array.h"
#include "utils/sortsupport.h"

/* A column that is filled from a path. */
typedef struct MrMapped
{
	char *name;
	AttrNumber attnum; /* 0: not of the table (version, event time) */
	Oid type; /* of the mapped value; `computed` may replace it by another type */
	int32 typmod;
	int16 length;
	bool by_value;
	bool same_type; /* the table's column has the mapped type */
	bool of_element; /* some path starts at the element of for_each */
	bool for_route; /* route speaks of it: it is mapped before */
	bool enriched; /* some path asks a dictionary */
	bool is_domain; /* or has elements of one: expressions judge what is read */
	int nslots;
	MrSlot *slots; /* the first that is not null counts */
	MrConverter *converter;
} MrMapped;

/* A column that is computed, or an expectation. */
typedef struct MrComputed
{
	char *name;
	AttrNumber attnum;
	MrExpression *expression;
} MrComputed;

typedef enum MrTombstone
{
	MR_TOMBSTONE_TIMESTAMP,
	MR_TOMBSTONE_REFUSE,
	MR_TOMBSTONE_ALWAYS,
	MR_TOMBSTONE_IGNORE
} MrTombstone;

typedef enum MrPayload
{
	MR_PAYLOAD_NONE,
	MR_PAYLOAD_JSON,
	MR_PAYLOAD_JSONB
} MrPayload;

/* What was erased from a staging table (erasure.c). */
typedef struct MrErasures MrErasures;

/* What stage alone knows of a staging table. */
typedef struct MrStagingPlan
{
	int scope; /* of for_each in the extraction plan */
	int nmapped;
	MrMapped *mapped; /* the key's columns first, in the order of the key */
	MrMapped *version; /* NULL: the source's own order */
	MrMapped *event_time; /* NULL: the message's time */
	TupleTableSlot *row; /* what expressions see */
	TupleTableSlot *raw; /* the mapped values, as raw.x */
	ExprContext *context;
	MrExpression *route;
	MrExpression *deleted;
	MrExpression *filter;
	int ncomputed;
	MrComputed *computed;
	int nexpected;
	MrComputed *expected;
	MrTombstone tombstone;
	MrPayload payload;
	int64 max_ahead; /* microseconds */
	int definition_no;
	const char *source_table; /* changes of another table are not routed here; NULL: all are */
	Bitmapset *enriched; /* look-ups of the stream's enrichment that columns come from */

	AttrNumber partition;
	AttrNumber position;
	AttrNumber loaded_at;
	AttrNumber payload_attnum;
	bool *compared; /* by attribute: a technical column that something reads */

	Oid version_type;
	int16 version_length;
	bool version_by_value;
	SortSupportData version_sort;
	SortSupportData *key_sort;
	int16 *key_length;
	bool *key_by_value;

	MrTable *objects; /* the table of objects */
	MrStatement *fence; /* the upsert into it, whose parameters are its columns */
	int fence_nargs;
	MrStatement
		*stale; /* finds versions that are not newer than what is there; NULL until it is asked */
	MrStatement *repeated; /* finds versions that are there and complete; NULL without enrichment */
	MrStatement *beaten; /* finds what unconditional deletes take away; NULL until it is asked */
	int mostly_known; /* for so many batches, do not try objects as new ones */
	int ncolumns;
	AttrNumber *columns; /* that are written: key, element, then the others */
	MrTable *table;
	MrErasures *erasures; /* NULL: nothing was ever erased */
	bool *erasable; /* by mapped column: they are judged by it */
	MrTable *log; /* the same columns, _rows and _deleted; NULL without one */
	bool log_in_days; /* it is partitioned by the day of _loaded_at */
	TimestampTz log_until; /* until when there are partitions, as far as is known */
} MrStagingPlan;

/*
 * All staging tables of a stream, compiled into CurrentMemoryContext, and the one extraction plan for them.
 * The caller is in a transaction and connected to SPI.
 */
extern List *mr_staging_load(MrStream *stream, MrPlan **extraction);

/* What could not be taken: it becomes a dead letter, and the batch goes on without it. */
typedef struct MrFailure
{
	MrMessage *message;
	struct MrFailure *next; /* of the same message */
	MrStaging *staging; /* NULL: the message cannot be read at all */
	bool silent; /* no letter: the message is only left out */
	int32 element; /* of a row that fails an expectation, else 0 */
	const char *expectation;
	int sqlstate;
	char *text;
	char *detail;
	char *hint;
	List *lacks; /* MrLack *: nothing is wrong, the message waits for them */
	int32 rule_id; /* of a row that was taken: that could not judge it; else 0 */
} MrFailure;

/*
 * Decodes and maps the messages from number `from` on: adds to the versions of each staging table.  Bad data
 * is raised as an error; mr_map_place tells where, mr_map_error_class, once, what it is.  Failed expectations go to the
 * batch's failures.
 */
extern void mr_map_messages(MrBatch *batch, MrPlan *extraction, int from);
extern void mr_map_place(int *message, MrStaging **staging);
extern MrErrorClass mr_map_error_class(int sqlstate);

/* Forgets what was mapped of message number `from`, the last one that was mapped. */
extern void mr_map_forget(MrBatch *batch, int from);

/* One more reason why a message, or a part of it, is left out. */
extern void mr_failure_add(MrBatch *batch, MrFailure *failure);

/*
 * What the batch and the staging table know of objects, for changes that leave out what has not changed: in the
 * batch's memory.  Both functions are called with the key's values; `whole` says that nothing was left out.
 */
typedef struct MrUnchanged MrUnchanged;

extern MrUnchanged *mr_unchanged_create(MrBatch *batch, const MrStaging *staging);

/*
 * The value of a mapped column before the message.  When it cannot be known the message's `unknown` is set if the source
 * can read the row again, or has done so, else that is an error.
 */
extern Datum mr_unchanged_value(MrUnchanged *objects, const MrStaged *staged, Datum *key,
								MrMessage *message, int column, bool *isnull);

/* Has the change, of which something was left out, come before, as far as is known of its object? */
extern bool mr_unchanged_said_before(MrUnchanged *objects, const MrVersion *version, bool update);

/* Notes what a version, which is mapped in the raw row, tells of its object. */
extern void mr_unchanged_note(MrUnchanged *objects, const MrVersion *version, bool whole,
							  bool deleted);

/*
 * The keys of objects that a sweep removes, at most `limit` of them, in CurrentMemoryContext; returns how
 * many.
 */
extern int mr_sweep_keys(const MrStaging *staging, const MrMessage *message, int limit,
						 Datum ***keys);

/* The version by which others are judged: what comes after an unconditional delete has to beat what that takes away. */
extern Datum mr_version_compared(const MrVersion *version, bool *isnull);

/* Compares versions of one object: which is newer.  NULL versions first; see C1. */
extern int mr_version_compare(const MrStaging *staging, const MrVersion *left,
							  const MrVersion *right);

/* A row that stands for a version without rows: its key and technical columns. */
extern MrRow mr_version_empty_row(const MrStaging *staging, const MrVersion *version);

/* Is the message left out, for this staging table or (NULL) altogether? */
extern bool mr_message_left_out(const MrBatch *batch, const MrMessage *message,
								const MrStaging *staging);

/*
 * Makes the partitions of a log that is to be written at that time, and those of the days after it.  The caller is connected to SPI.
 */
extern void mr_log_extend(const MrStaging *staging, TimestampTz at);

/* The digests of what was erased, or NULL; the caller is connected to SPI. */
extern MrErasures *mr_erasures_load(const MrStaging *staging);

/* Marks the mapped columns that matter. */
extern void mr_erasures_mark(const MrErasures *erasures, bool *mapped);

/* Do the mapped values speak of something that was erased? */
extern bool mr_erasures_match(const MrErasures *erasures, const Datum *values, const bool *nulls);

/*
 * Marks those messages from number `from` on that speak of something erased; their versions have a key and nothing
 * else.  Errors as from mr_map_messages.
 */
extern void mr_map_erased(MrBatch *batch, MrPlan *extraction, int from);

/*
 * Takes the objects whose keys stand in the versions out of the staging table, as if they had been deleted; old
 * rows are what is to be told to those who count rows.  Neither the log nor the table of objects is touched.
 */
extern void mr_stage_erase(MrStaged *staged);

/* All versions, which are of different objects, as accepted ones in the order of keys. */
extern void mr_object_accept_all(MrStaged *staged);

/* Puts what was mapped into the staging tables and their logs, and finds old and new rows; *writing_for is what it is at. */
extern void mr_stage_apply(MrBatch *batch, MrStaging **writing_for);

/* Marks MrVersion.newest of each object, then .accepted and .known by the table of objects. */
extern void mr_object_fence(MrBatch *batch, MrStaged *staged);
/* Accepts those versions that are what is staged now, as if they had come first. */
extern void mr_object_accept_staged(MrStaged *staged);
extern void mr_object_prepare(const MrStaging *staging);

/*
 * Writes what failed as dead letters, or as the stream's on_error says.  Returns how many.  The caller is
 * connected to SPI.  stream may be NULL for what rules could not judge.
 */
extern int64 mr_letter_write(MrStream *stream, const List *failures);

/* Closes what a sweep has overtaken: a row of it is not to come back. */
extern void mr_letter_sweep(const MrStream *stream, const MrStaging *staging,
							const MrMessage *sweep);

/*
 * Fills the batch with the messages of those letters of the stream that are still open (or waiting), to be tried
 * again by the staging tables that had refused them, and locks them.  Of a rule (0: of none): to be judged again.
 */
extern void mr_letter_read(MrBatch *batch, ArrayType *ids, bool waiting, int32 rule_id);

/* Where asking again for ids has come to. */
typedef struct MrWaitingPlace
{
	int32 dictionary_id;
	char *id;
	MemoryContext context; /* of the id */
} MrWaitingPlace;

/* Keeps the messages of versions that are not complete, with what they wait for.  The caller is connected to SPI. */
extern void mr_waiting_write(MrStream *stream, MrBatch *batch);

/* Ids that messages wait for. */
typedef struct MrWaitingIds
{
	int count;
	int32 *dictionary_ids;
	char **ids;
} MrWaitingIds;

/*
 * The next ids that messages of the stream wait for, at most `limit`, which their dictionaries are to be asked for
 * again.  After the last ones come the first.  The caller is connected to SPI.
 */
extern MrWaitingIds *mr_waiting_want(MrStream *stream, MrWaitingPlace *place, int limit);

/*
 * Strikes out what of them is known now, for about `limit` letters; returns the ids of those that wait for nothing any
 * more, or NULL.
 */
extern ArrayType *mr_waiting_strike(MrStream *stream, const MrWaitingIds *wanted, int limit);

/* After the batch was applied: letters that did not fail again are deleted, or closed as superseded. */
extern void mr_letter_close(MrBatch *batch, int64 *taken, int64 *superseded);

#endif /* MR_STAGE_MAPPING_H */
