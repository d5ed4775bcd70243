/*
 * message.h
 *	  Rows of a sink on their way into the outbox.  Private to the sink.
 */
#ifndef MR_SINK_MESSAGE_H
#define MR_SINK_MESSAGE_H

#include "core/expression.h"
#include "core/statement.h"
#include "stage/staging.h"

/* Rows whose messages one statement makes. */
#define MR_SINK_CHUNK 1000

typedef struct MrSink
{
	MrTarget base;
	char *sink_name;
	MrStaging *staging; /* where its rows come from; NULL: another stream's */
	int32 mart_id; /* whose groups are its rows; 0: the staging table's are */
	MrTarget *mart; /* NULL: its stream does not keep it */
	bool delayed; /* at_most_every */
	bool suspended; /* it sends nothing, which is noted in millrace.sink */
	char *reason; /* it sends nothing, which is still to be noted: why */
	int sqlstate;
	Query *definition;

	int nkeys;
	Oid *types; /* of the source's key */
	AttrNumber *attnums; /* and where it is in the source's rows */
	FmgrInfo *outputs;
	MrExpression *key; /* of messages, over the source's key */
	ExprContext *context;
	TupleTableSlot *slot; /* what the expression sees */

	MrStatement *build; /* see sink_statements() */
	MrStatement *build_null;
	MrStatement *gone;
	MrStatement *gone_null;
	MrStatement *first;
	MrStatement *next; /* NULL: first lists all */
} MrSink;

/* Rows by the values of their keys. */
typedef struct MrSinkKeys
{
	int n;
	int capacity;
	Datum **values;
	bool **nulls;
} MrSinkKeys;

/* A row by its key as text. */
typedef struct MrSinkRow
{
	char *object; /* a JSON list */
	char *key; /* of its messages */
	bool has_null;
} MrSinkRow;

/* Rows as they are now. */
typedef struct MrSinkFound
{
	int n;
	int capacity;
	char **objects;
	char **keys;
	bool *there;
	char **messages; /* JSON; NULL: none is to be sent */
} MrSinkFound;

/* Why rows are looked at. */
typedef enum MrSinkCause
{
	MR_SINK_CHANGED, /* a batch has changed them, or it is time */
	MR_SINK_SEEN /* they may differ from what was sent */
} MrSinkCause;

/* From now on it sends nothing. */
extern void mr_sink_suspend(MrSink *sink, const char *reason, int sqlstate);

/* Does the sink send?  Notes why it does not, when that is not known yet. */
extern bool mr_sink_is_sending(MrSink *sink);

/* A statement that lives as long as the process. */
extern MrStatement *mr_sink_statement(const char *sql, int nargs, const Oid *types);

/* Runs a statement of ours whose rows nobody reads, as the extension's owner. */
extern void mr_sink_run(MrStatement *statement, Datum *arguments);

extern void mr_sink_add_key(MrSinkKeys *keys, Datum *values, bool *nulls);

/*
 * Rows by their keys as texts, sorted, each once, without those that have an error, which is noted; *last is the object
 * of the last key.  -1: the sink is suspended.
 */
extern int mr_sink_name_rows(MrSink *sink, const MrSinkKeys *keys, MrSinkRow **rows, char **last);
extern bool mr_sink_object_has_null(const char *object);

/* Makes the messages of rows, and puts them into the outbox. */
extern void mr_sink_send(MrSink *sink, const MrSinkRow *rows, int n, MrSinkCause cause);

/* Notes that rows were changed, which are sent later. */
extern void mr_sink_delay(const MrSink *sink, const MrSinkRow *rows, int n);

/* Notes that nothing that was said of rows until now is to stay. */
extern void mr_sink_erase(const MrSink *sink, const MrSinkRow *rows, int n);

/* Adds those rows that are not there any more; an error is of the sink. */
extern ErrorData *mr_sink_find_gone(MrSink *sink, const MrSinkRow *rows, int n, MrSinkFound *found);

/* Notes how rows are, and puts what is to be sent into the outbox; false: the sink is suspended. */
extern bool mr_sink_take(MrSink *sink, MrSinkFound *found, MrSinkCause cause);

#endif /* MR_SINK_MESSAGE_H */
