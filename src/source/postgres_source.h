/*
 * postgres_source.h
 *	  A feed from PostgreSQL, from inside.  Private to src/source/postgres*.c.
 */
#ifndef MR_SOURCE_POSTGRES_SOURCE_H
#define MR_SOURCE_POSTGRES_SOURCE_H

#include "access/xlogdefs.h"
#include "source/change.h"
#include "source/position.h"
#include "source/postgres_client.h"
#include "source/source.h"

/* How long the source may take to answer a question. */
#define MR_PG_TIMEOUT 5000

/* What the stream's options say. */
typedef struct MrPgOptions
{
	List *tables; /* char *, schema.table; NIL: all of the publication */
	char *publication;
	char *slot;
	bool default_publication; /* the options do not name one */
	char *snapshot; /* initial, never, only */
	char *truncate; /* apply, ignore, stop */
	bool resnapshot; /* when the slot is lost; else stop */
	int chunk; /* rows */
	int parallel;
	int64 budget; /* of retained WAL, in bytes; 0: none */
} MrPgOptions;

/* Where the feed is. */
typedef enum MrPgPhase
{
	MR_PG_OFFLINE,
	MR_PG_MAKING_SLOT, /* the source waits for transactions that run */
	MR_PG_SETTLING_SLOT, /* and again, for another one */
	MR_PG_MOVING_SLOT, /* the slot is moved to where that one begins */
	MR_PG_STREAMING,
	MR_PG_STOPPED /* somebody has to decide */
} MrPgPhase;

/* What is to be written by the next tick. */
typedef enum MrPgDue
{
	MR_PG_DUE_MAKING = 1, /* a slot is going to be made */
	MR_PG_DUE_READY = 2, /* it is there, and the position is its own */
	MR_PG_DUE_LOST = 4, /* it is not what it was */
	MR_PG_DUE_FOLLOW = 8, /* a table has described itself anew */
	MR_PG_DUE_POSITION = 16, /* nothing came, but the log went on */
	MR_PG_DUE_ROUND = 32, /* a round of the snapshot has brought no row */
	MR_PG_DUE_STATUS = 64, /* how much the slot retains */
	MR_PG_DUE_FINISHED = 128, /* snapshot "only" is done: the slot is not needed any more */
	MR_PG_DUE_DROPPED = 256, /* and it is gone */
	MR_PG_DUE_ADDED =
		512, /* tables are not in the publication, or not whole: they are new, or others than they were */
	MR_PG_DUE_PUBLISHED = 1024 /* the publication, which says what is read, has other tables */
} MrPgDue;

/* A snapshot of the source: which transactions a round of chunks has seen, and what it counts as. */
typedef struct MrPgRound
{
	XLogRecPtr position;
	TimestampTz clock;
	uint64 xmin;
	uint64 xmax;
	int nrunning;
	uint64 *running;
	char *text; /* as pg_current_snapshot() writes it */
	uint64 nrows; /* read so far: each has a place of its own */
} MrPgRound;

/* A table that is being copied. */
typedef struct MrPgTask
{
	char *table; /* schema.table */
	char *filter; /* SQL of the source, or NULL */
	bool sweep; /* afterwards, remove what it did not bring */
	TimestampTz started; /* by our clock */
	Oid leaf; /* the partition, or the table itself, that is being read */
	Oid file; /* of which file its pages are */
	int64 page; /* the next one of it */
	int64 pages; /* of all leaves */
	int64 read; /* of them */
	int64 rows;
	bool copied;
	bool changed; /* since it was stored */
	XLogRecPtr first; /* of the first round; 0: none yet */
	XLogRecPtr last; /* of the last round */
} MrPgTask;

/* A row that is to be read again, because a change of it left out what is not known here. */
typedef struct MrPgReread
{
	int64 id; /* of its row in millrace.snapshot_key; 0: it is not stored yet */
	char *table;
	char *condition; /* SQL of the source */
} MrPgReread;

/* One reader of a round. */
typedef struct MrPgReader
{
	MemoryContext context; /* of its connection; NULL before the first */
	MrPgClient *client;
	MrPgTask *task;
	const MrRelation *relation;
	bool reading;
} MrPgReader;

typedef struct MrPgSource
{
	MrSource base;
	MemoryContext context; /* the feed's */
	MemoryContext connected; /* of one connection's life */
	MemoryContext of_round; /* of a round of the snapshot, in it; NULL before the first */
	MemoryContext described; /* of the server's options and secrets, as they are read again */
	MrPgOptions options;
	List *properties;
	bool must_use_password;
	char *application;

	MrPgPhase phase;
	int due; /* MR_PG_DUE_... */
	TimestampTz next_try;
	int failures;
	char *state; /* new, making, ready, finished: as stored */
	char *system; /* identifier of the source's cluster, as stored; NULL: none yet */
	char *found_system; /* of the source that is connected */
	bool made_publication;
	bool made_slot;
	XLogRecPtr beginning; /* of the slot */
	char *lost; /* what has become of the slot */
	bool dropped; /* nothing is left to be done for snapshot "only" */

	MrPosition position;
	bool has_position;

	MrPgClient *stream;
	MrPgClient *side; /* for questions while the stream is read */
	TimestampTz next_reply;
	TimestampTz next_status;
	char *status; /* SQL that notes what the slot retains */

	/* Reading. */
	XLogRecPtr received; /* everything before has come and been fetched */
	XLogRecPtr acknowledged;
	XLogRecPtr waiting; /* fetched and committed here, flushed when our own log is */
	XLogRecPtr waiting_local; /* flushed so far */
	bool caught_up; /* the source has sent all that is in its log */
	bool emptied; /* the last fetch has left nothing behind */
	TimestampTz came_at; /* something, the last time that all was read */
	bool within; /* a transaction of the source */
	bool skipping; /* it has been consumed before */
	bool taken; /* some of it has been given to a batch before this one */
	uint32 xid;
	XLogRecPtr commit;
	XLogRecPtr raised; /* the commit, or the round that has not seen it */
	TimestampTz raised_time;
	int64 ordinal; /* of its changes */
	int whole; /* messages of the batch that are of whole transactions */
	TimestampTz last_time;
	List *published; /* char *: tables of the publication, where the options name none */
	List *
		added; /* char *: tables that are going to be added to the publication, or are sent in part */
	char *added_reason; /* why, when they are in it */
	List *sweeps; /* char *: tables that are being emptied */
	MrPgTask *sweeping; /* what was not found when it was copied is removed */
	bool fetching_sweep; /* the batch is part of one */
	bool swept; /* the last one has found nothing more */
	bool urgent; /* the source waits for the position */
	bool ask_status;
	XLogRecPtr end; /* of the source's log when it was connected, or copied from last */
	List *current; /* const MrRelation *, of this connection */
	const MrRelation *recent;

	MrRelation **relations; /* by serial - 1 */
	int nrelations;
	List *types; /* MrPgType * */
	List *known; /* char *: descriptions that have been followed */
	MrRelation *follow; /* is to be followed */

	/* The snapshot. */
	List *tasks; /* MrPgTask * */
	bool paused;
	List *rereads; /* MrPgReread *: rows to be read again, as many as are kept here */
	int64 last_reread; /* that has been here; others have greater ids */
	bool more_rereads; /* there are such */
	bool reread; /* the last round was of these */
	char *unreadable; /* the table of which they could not be read the last time, or NULL */
	List *reading; /* those that the round reads */
	List *live; /* MrPgRound *, whose positions have not been passed */
	MrPgRound *round; /* that is being read, or not stored yet */
	MrPgTask *copied; /* what it copies, or NULL */
	MrPgTask copied_before; /* that, as it was before the round */
	bool round_read;
	bool round_taken; /* some of it has been given to a batch */
	XLogRecPtr last_round; /* position of the last one */
	bool turn; /* the stream has had its turn since the last round */
	TimestampTz next_round;
	int failed_rounds; /* in a row */
	MrPgReader *readers;
	int nreaders;
	uint64 barrier; /* what was assigned before this feed was opened */
	bool has_barrier;
	uint32 *applied; /* transactions that the next round must see */
	int napplied;
} MrPgSource;

/* A type of a source's that is not PostgreSQL's own. */
typedef struct MrPgType
{
	Oid oid;
	char *name;
} MrPgType;

/* Ends all connections; the next attempt comes soon, or after some failures later. */
extern void mr_pg_disconnect(MrPgSource *source);

/* Puts the rows that a round was to read again back among those that are left. */
extern void mr_pg_read_again(MrPgSource *source);

/* Remembers, for as long as the feed is open, what a type is called that is not PostgreSQL's own. */
extern void mr_pg_note_type(MrPgSource *source, Oid oid, const char *name);

/* "X/X" as a position, and back. */
extern bool mr_pg_parse_lsn(const char *text, XLogRecPtr *lsn);
extern char *mr_pg_lsn_text(XLogRecPtr lsn);

/* A table's name as SQL. */
extern char *mr_pg_quoted(const char *table);

/* ---- postgres_setup.c ---- */

/*
 * Connects and brings publication and slot to where the stream can be read; false when it has to wait: for the next tick
 * (`due`), or for what the problem says.
 */
extern bool mr_pg_prepare(MrPgSource *source);
extern void mr_pg_poll_slot(MrPgSource *source);
extern void mr_pg_validate(MrReport *to, MrStream *stream);

/* A connection for questions. */
extern MrPgClient *mr_pg_side(MrPgSource *source);

/* The transaction that we are in, if it runs at the source as well, because that is this very server. */
extern TransactionId mr_pg_own_transaction(MrPgClient *client);

/* Asks what the slot retains; and the statement that notes the answer, NULL when there is none. */
extern void mr_pg_ask_status(MrPgSource *source);
extern char *mr_pg_retained(MrPgClient *client, int32 stream_id, const MrPgOptions *options);

/* ---- postgres_watch.c ---- */
extern PGDLLEXPORT void mr_watch_main(Datum slot);

/* Sets the problem to what the source has answered, with what might help (or NULL); false. */
extern bool mr_pg_refuse(MrPgSource *source, const MrPgClient *client, const char *help);

/* ---- postgres_publication.c ---- */

/* Is there a publication with all tables?  Else it is made or mended, or the problem says what an administrator has to do. */
extern bool mr_pg_check_publication(MrPgSource *source);
extern bool mr_pg_publication_changed(MrPgSource *source, MrPgClient *side);
extern void mr_pg_validate_publication(MrReport *to, MrPgClient *client,
									   const MrPgOptions *options);

/* A table's OID as SQL of the source, whatever privileges there are. */
extern char *mr_pg_table_oid(const char *table);

/* Why a table cannot be read, with the statement that an administrator runs; NULL: nothing is known against it. */
extern char *mr_pg_unreadable(MrPgSource *source, const char *table);

/* That as SQL (severity, message, hint) of one row t (name, oid). */
#define MR_PG_UNREADABLE \
	"SELECT 'error', 'table ' || t.name || ' does not exist at the source', NULL " \
	"WHERE t.oid IS NULL UNION ALL " \
	"SELECT 'error', 'the source does not let us use the schema of table ' || t.name, " \
	"'Run at the source: GRANT USAGE ON SCHEMA ' || u.relnamespace::regnamespace || ' TO ' || " \
	"quote_ident(current_user) FROM pg_class u WHERE u.oid = t.oid AND NOT " \
	"has_schema_privilege(u.relnamespace, 'USAGE') UNION ALL " \
	"SELECT 'error', 'the source does not let us read table ' || t.name, 'Run at the source: " \
	"GRANT SELECT ON ' || t.oid::regclass || ' TO ' || quote_ident(current_user) " \
	"WHERE t.oid IS NOT NULL AND NOT has_table_privilege(t.oid, 'SELECT')"

/* ---- postgres_state.c ---- */
extern void mr_pg_read_options(MrPgOptions *options, const MrStream *stream);
extern void mr_pg_read_state(MrPgSource *source);

/* The second half of the following; the position is known. */
extern void mr_pg_take_left_over(MrPgSource *source);

/* An error, because mirrors would have to follow a description within a transaction; the next feed of the stream begins with that. */
extern void mr_pg_follow_next_time(const MrPgSource *source, const MrRelation *relation)
	pg_attribute_noreturn();
extern void mr_pg_store(MrPgSource *source);
extern void mr_pg_store_round(MrPgSource *source);

/* Stores the rows that are to be read again, as far as they are not yet. */
extern void mr_pg_store_rereads(MrPgSource *source);
extern void mr_pg_forget_reread(MrPgReread *reread);

/* Has a table been described like that before? */
extern bool mr_pg_known(MrPgSource *source, const MrRelation *relation);
extern char *mr_pg_fingerprint(const MrRelation *relation);

/* ---- postgres_snapshot.c ---- */

/* Is there anything to copy; and is it time for it? */
extern bool mr_pg_snapshot_left(MrPgSource *source);
extern bool mr_pg_snapshot_due(MrPgSource *source);

/* Begins a round; false when it has to wait. */
extern bool mr_pg_round_begin(MrPgSource *source);

/* Adds rows of the round to the batch until it is full or all have come. */
extern void mr_pg_round_fetch(MrPgSource *source, MrBatch *batch, int max_messages, Size max_bytes);

/* The round has been stored: it is live until the stream has passed it. */
extern void mr_pg_round_end(MrPgSource *source);

/* What a transaction counts as: not before the rounds that have not seen it. */
extern void mr_pg_raise(MrPgSource *source, XLogRecPtr *position, TimestampTz *time);
extern void mr_pg_note_applied(MrPgSource *source, uint32 xid);
extern MrPgRound *mr_pg_parse_snapshot(const char *text);

/* Has all been copied, and all come that the copies have not seen? */
extern bool mr_pg_snapshot_done(const MrPgSource *source);

/* The next table that is to be swept after it was copied, or NULL. */
extern MrPgTask *mr_pg_sweep_due(MrPgSource *source);

/* A description of a table, kept as long as the feed: the same one for the same. */
extern const MrRelation *mr_pg_keep_relation(MrPgSource *source, const MrRelation *relation);

#endif /* MR_SOURCE_POSTGRES_SOURCE_H */
