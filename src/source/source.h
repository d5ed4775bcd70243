/*
 * source.h
 *	  Where messages come from, and how far a stream has read.
 */
#ifndef MR_SOURCE_SOURCE_H
#define MR_SOURCE_SOURCE_H

#include "core/batch.h"
#include "nodes/pg_list.h"

typedef enum MrOnError
{
	MR_ON_ERROR_DEAD_LETTER,
	MR_ON_ERROR_SKIP,
	MR_ON_ERROR_STOP
} MrOnError;

/* A stream as its row says; `stagings` and `targets` are compiled by flow. */
typedef struct MrStream
{
	MemoryContext context;
	int32 id;
	char *name;
	Oid owner;
	char *server; /* NULL: an inbox */
	char *wrapper; /* of the server: millrace_kafka, millrace_postgres */
	char *format;
	char *options; /* JSON text */
	int workers;
	MrOnError on_error;
	int32 epoch;
	bool enabled;
	int64 config_version;
	char *fence;
	double max_dead_letter_share; /* negative: none */
	char *stop_reason; /* why it has stopped itself, or NULL */
	char *start; /* JSON text: where reset_stream said to begin; NULL: as the options say */
	List *stagings; /* MrStaging *, by ordinal */
	List *targets; /* MrTarget *, in the order of phases, then relid */
	struct MrEnrichment *enrichment; /* NULL: no mapping reads what a dictionary knows */
} MrStream;

/* The stream of that name or id as it is now, in a new child of `parent`; NULL when there is none. */
extern MrStream *mr_stream_load(MemoryContext parent, int32 id);
extern int32 mr_stream_id(const char *name); /* 0 when there is none */
extern int64 mr_stream_config_version(int32 id, bool *enabled); /* 0 when it is gone */

/* An error when the stream came here with a dump or a copy and nobody has adopted it (C15). */
extern void mr_stream_check_fence(const MrStream *stream);

/*
 * A stream's heavyweight lock (C11): batches take it shared, whatever changes their plan or reads everything
 * takes it exclusive.  Held to the end of the transaction.
 */
extern void mr_stream_lock(int32 id, bool exclusive);

/* Gives it up in the middle of a transaction, which has done nothing under it. */
extern void mr_stream_unlock(int32 id, bool exclusive);

/* What validate() finds out goes here. */
typedef struct MrReport
{
	const char *subject;
	int timeout_ms;
	bool sample; /* look at messages, too */
	bool debezium; /* the stream's format, whose tombstones need no care */
	struct ReturnSetInfo *result;
} MrReport;

/* One finding: severity is error, warning or info; hint may be NULL. */
extern void mr_report(MrReport *to, const char *severity, const char *message, const char *hint);

/* An open feed.  Kinds: the inbox, Kafka, PostgreSQL. */
typedef struct MrSource MrSource;

typedef struct MrSourceKind
{
	const char *name;

	/*
	 * Opens the feed for worker `worker` of the stream's `workers`, at the stored positions, and takes its
	 * partitions over (raises their generation).  Runs in a transaction of the caller, who has connected to
	 * SPI.  The result lives in CurrentMemoryContext and is closed when that is reset or deleted.  An endpoint
	 * that cannot be reached is no error: see mr_source_problem.
	 */
	MrSource *(*open)(MrStream *stream, int worker, int workers);

	/*
	 * The descriptor that becomes readable when there is something to fetch, or PGINVALID_SOCKET.  It may be another one
	 * after each fetch.
	 */
	pgsocket (*descriptor)(MrSource *source);

	/*
	 * Adds what is there now to the batch, until it holds `max_messages` or `max_bytes`; waits at most
	 * `wait_ms` for the first message.  Outside a transaction for a remote source, inside for the inbox (see in_transaction).
	 */
	void (*fetch)(MrSource *source, MrBatch *batch, int max_messages, Size max_bytes, int wait_ms);
	bool in_transaction;

	/*
	 * Does it keep what it gave, so that it gives it again when a crash of this server, or a failover to a standby, has taken the
	 * newest transactions, and the position with them?  Then no commit needs to wait for the disk.
	 */
	bool lasting;

	/*
	 * Does the batch that was fetched last end within a transaction of the source?  Then the next one belongs to the same
	 * local transaction, in which it is fetched and processed; the position moves once, after the last one.  NULL: never.
	 */
	bool (*unfinished)(MrSource *source, const MrBatch *batch);

	/* Moves the position past the batch under the fence, in the batch's transaction; an error when fenced. */
	void (*advance)(MrSource *source, MrBatch *batch);

	/* The batch's transaction has committed (remote positions for lag tools, and so on). */
	void (*committed)(MrSource *source, MrBatch *batch);

	/*
	 * What is done between batches: new partitions, watermarks, incidents.  Called about once a second, idle
	 * or not, in a transaction of its own of which the caller has connected to SPI.
	 */
	void (*tick)(MrSource *source);

	/* Has everything been fetched that was there when the feed was opened?  Ends run_stream. */
	bool (*drained)(MrSource *source);

	/* Did the last fetch leave nothing behind, as far as the source knows? */
	bool (*caught_up)(MrSource *source);

	void (*close)(MrSource *source);

	/*
	 * Adds what the stream would read next to the batch without taking it: nothing is opened, moved or locked.  Waits at
	 * most `timeout_ms`; an endpoint that cannot be reached is an error.
	 */
	void (*peek)(MrStream *stream, MrBatch *batch, int max_messages, Size max_bytes,
				 int timeout_ms);

	/* Connects to the endpoint and tells what is wrong; an error is told by the caller. */
	void (*validate)(MrReport *to, MrStream *stream);
} MrSourceKind;

struct MrSource
{
	const MrSourceKind *kind;
	MrStream *stream;
	int worker;
	int workers;
	char *problem; /* see mr_source_problem */
	bool wants_tick; /* before the second is over */
	bool in_caller; /* all of it is in a transaction that its caller may roll back */
};

extern const MrSourceKind mr_inbox_source;
extern const MrSourceKind mr_kafka_source;
extern const MrSourceKind mr_postgres_source;

/* The kind that serves a stream. */
extern const MrSourceKind *mr_source_kind(const MrStream *stream);

/* Why nothing comes although the stream runs (broker down, wrong password, unknown topic), or NULL. */
extern const char *mr_source_problem(const MrSource *source);

/* Says it, for the kinds: the text is copied to where the source lives.  NULL: no reason. */
extern void mr_source_set_problem(MrSource *source, const char *problem);

/* Records that something happened which loses or may lose messages, or needs somebody's attention. */
extern void mr_incident(int32 stream_id, const char *kind, const char *detail);

#endif /* MR_SOURCE_SOURCE_H */
