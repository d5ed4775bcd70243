/*
 * batch.h
 *	  A batch: what moves through the stages.
 *
 * raw messages with their metadata → versions of objects per staging table → old and new rows.  Each stage
 * is one function from this struct to itself.  Everything in it lives in the batch's memory context.
 */
#ifndef MR_CORE_BATCH_H
#define MR_CORE_BATCH_H

#include "access/attnum.h"
#include "access/htup.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

struct MrStream;
struct MrStaging;
struct MrFailure;
struct MrRelation;
struct List;

/* What a change does to its row; a message that is no change has no op. */
#define MR_OP_INSERT 'I'
#define MR_OP_UPDATE 'U'
#define MR_OP_DELETE 'D'
#define MR_OP_READ 'R' /* a snapshot has read the row */
#define MR_OP_SWEEP 'T' /* removes rows of the table: see MrMessage.sweep_before */

/* A message as it came. */
typedef struct MrMessage
{
	const char *topic; /* NULL: the source has none */
	int32 partition;
	int32 epoch; /* raised when a topic, slot or inbox is re-created or reset */
	int64 position; /* offset, commit LSN or push number */
	pg_uuid_t place; /* orders, as bytes, messages of one position; zero where each has its own */
	uint64 transaction; /* of the source, whose changes others saw at once; 0: one of its own */
	char op; /* what a change does, when the source says it beside the value; else 0 */
	TimestampTz time; /* the source's: record timestamp, commit or push time */
	char *key; /* NULL: none; not terminated */
	int key_length;
	char *value; /* NULL: a tombstone; not terminated */
	int value_length;
	const struct MrRelation
		*relation; /* value and before are rows of that table: see source/change.h */
	char *before; /* a change's old row, or NULL */
	int before_length;
	/* Of a changed row that became JSON: the columns that were not sent, as a JSON array; else NULL. */
	char *unsent;
	bool moved; /* the row had another key: the message before this one deletes that */
	bool reread; /* what it leaves out is not known: the source is to read the row again */
	bool unknown; /* no version comes of it in the staging table for which it is being mapped */
	TimestampTz
		sweep_before; /* MR_OP_SWEEP, of declared versions: all that was loaded before then */
	int64 sweep_position; /* in the source's own order: all before that; 0: before the message */
	char *headers; /* a JSON object as text, or NULL */
	bool retried; /* a dead letter that is tried again */
	int64 letter; /* its id */
	bool late; /* it leaves out what is not known any more: its object has gone on */
	bool erased; /* it speaks of something that was erased: it never came */
	int32 rule_id; /* the letter is of that rule, which is to judge it; else 0 */
	bool unjudged; /* it could not, or it came without what was sent */
	bool waits; /* a staging table lacks what a dictionary does not know yet */
	struct MrFailure *failures; /* what in it cannot be taken, the last first */
} MrMessage;

/* One element of one version: a row for the staging table, values by attribute number - 1. */
typedef struct MrRow
{
	int32 element; /* from 1; 0 without for_each */
	Datum *values;
	bool *nulls;
} MrRow;

/* One version of one object, as one message tells it to one staging table. */
typedef struct MrVersion
{
	MrMessage *message;
	Datum *key; /* the key's values, in the order of MrStaging.key; never null */
	Datum version; /* of the staging's version type */
	bool version_null;
	TimestampTz event_time;
	bool event_time_null;
	TimestampTz loaded_at;
	bool deleted;
	bool read; /* by a snapshot: it says what is there; see MrStaging.each_version */
	bool incomplete; /* it lacks what a dictionary does not know yet */
	bool repeated; /* it has come before and been complete then: that stays */
	bool held_back; /* it has elements, but none of them passes: that ends nothing */
	bool always; /* a tombstone without a version that wins over every version before it */
	Datum beaten; /* of such a one: the greatest of these, as the fence has found it */
	bool has_beaten;
	/* Such a one that came before it, for when this one is not newer than what is staged; or NULL. */
	struct MrVersion *instead;
	bool unseen; /* a later one of the same transaction of the source has taken its place */
	pg_uuid_t digest; /* breaks ties: of the raw value, or without a declared version its place */
	int nrows; /* rows that pass filter and expectations */
	MrRow *rows;
	bool stale; /* not newer than what was staged before this batch; see MrStaging.each_version */
	bool newest; /* of its object in this batch */
	bool accepted; /* newest, and newer than what is staged */
	bool known; /* accepted, and the object had been seen before this batch */
} MrVersion;

/*
 * How far ahead memory is asked for where all rows are visited: a batch is larger than a processor's caches.  What asks is always
 * inlined, because a function that does nothing else has no effect in the compiler's eyes, and goes.
 */
#define MR_AHEAD 4

/* Asks for what is read of a row: its nulls and the first of its values. */
static pg_attribute_always_inline void
mr_row_prefetch(const MrRow *row)
{
	__builtin_prefetch(row->nulls);
	__builtin_prefetch(row->values);
	__builtin_prefetch(row->values + 8);
}

static pg_attribute_always_inline void
mr_version_prefetch(const MrVersion *version)
{
	for (int r = 0; r < version->nrows; r++)
		mr_row_prefetch(&version->rows[r]);
}

/* What a batch holds for one staging table. */
typedef struct MrStaged
{
	struct MrStaging *staging;
	int nversions;
	int capacity;
	MrVersion *versions; /* every routed version, in order of arrival */

	/*
	 * The difference that the batch makes: when anything of an object changed, all its rows.  Old ones are
	 * tuples of the staging table's descriptor.  SQL reads both through mr_staged_register.
	 */
	int nold;
	HeapTuple *old_rows;
	int nnew;
	MrRow **new_rows;
	struct Tuplestorestate
		*old_store; /* the same for ephemeral relations; see mr_staged_register */
	struct Tuplestorestate *new_store;
	int naccepted; /* versions that were accepted, sorted by key */
	MrVersion **accepted;
	struct List *key_hashes; /* what several targets want of the rows; see vault/key.c */
	struct List *judged; /* what rules have found in the versions; see alert/judge.c */
} MrStaged;

/* Asks for the rows of the versions that come some way after number `v`. */
static pg_attribute_always_inline void
mr_staged_prefetch(const MrStaged *staged, int v)
{
	if (v + 2 * MR_AHEAD < staged->nversions)
		__builtin_prefetch(staged->versions[v + 2 * MR_AHEAD].rows);
	if (v + MR_AHEAD < staged->nversions)
		mr_version_prefetch(&staged->versions[v + MR_AHEAD]);
}

/* Columns of a staging table whose values are not in the row itself. */
typedef struct MrFarColumns
{
	int n;
	AttrNumber *attnums;
} MrFarColumns;

/* Asks for what these columns of a row lead to. */
static pg_attribute_always_inline void
mr_columns_prefetch(const MrFarColumns *columns, const MrRow *row)
{
	for (int i = 0; i < columns->n; i++)
	{
		int attribute = columns->attnums[i] - 1;

		if (!row->nulls[attribute])
			__builtin_prefetch(DatumGetPointer(row->values[attribute]));
	}
}

/* The same as mr_staged_prefetch, then for what these columns lead to. */
static pg_attribute_always_inline void
mr_staged_prefetch_columns(const MrStaged *staged, int v, const MrFarColumns *columns)
{
	mr_staged_prefetch(staged, v);
	if (v + MR_AHEAD / 2 < staged->nversions)
	{
		const MrVersion *version = &staged->versions[v + MR_AHEAD / 2];

		for (int r = 0; r < version->nrows; r++)
			mr_columns_prefetch(columns, &version->rows[r]);
	}
}

typedef struct MrBatch
{
	struct MrStream *stream;
	MemoryContext context;
	TimestampTz loaded_at; /* one time for all rows of the batch */
	int nmessages;
	int capacity;
	MrMessage *messages;
	Size bytes; /* of raw messages */
	int nstaged;
	MrStaged *staged; /* by MrStaging.ordinal */
	struct MrUnchanged **known; /* by MrStaging.ordinal, once a message leaves something out */
	struct List *failures; /* MrFailure *, what becomes dead letters */
	bool waits; /* some message does; see MrMessage.waits */
	struct MrLookedUp **looked_up; /* by message; see stage/enrich.h */
	bool again; /* it is filled from what the stream keeps, not by messages that have come */
	bool counted; /* of rows that are skipped it is known how many: a target is rebuilt */
	bool erasing; /* what it deletes is to leave nothing behind */
	int64 swept; /* objects that its MR_OP_SWEEP has removed; there may be more */
} MrBatch;

extern MrBatch *mr_batch_create(MemoryContext parent);
extern void mr_batch_reset(MrBatch *batch);

/* Room for one more message, zeroed. */
extern MrMessage *mr_batch_add(MrBatch *batch);
/* A copy of bytes in the batch's memory, and its length counted. */
extern char *mr_batch_copy(MrBatch *batch, const char *bytes, int length);

/* Where the time of a batch goes: accumulated per stage, shown in millrace.stage_stats. */
typedef enum MrStage
{
	MR_STAGE_FETCH,
	MR_STAGE_DECODE,
	MR_STAGE_ENRICH,
	MR_STAGE_MAP,
	MR_STAGE_STAGING,
	MR_STAGE_VAULT,
	MR_STAGE_MART,
	MR_STAGE_ALERT,
	MR_STAGE_POSITION,
	MR_STAGE_COMMIT,
	MR_STAGES
} MrStage;

#endif /* MR_CORE_BATCH_H */
