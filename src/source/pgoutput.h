/*
 * pgoutput.h
 *	  The messages of PostgreSQL's output plug-in pgoutput, version 1 of its protocol.
 */
#ifndef MR_SOURCE_PGOUTPUT_H
#define MR_SOURCE_PGOUTPUT_H

#include "access/xlogdefs.h"
#include "source/change.h"

typedef enum MrPgoutputKind
{
	MR_PGOUTPUT_OTHER, /* nothing to us */
	MR_PGOUTPUT_BEGIN,
	MR_PGOUTPUT_COMMIT,
	MR_PGOUTPUT_RELATION,
	MR_PGOUTPUT_TYPE,
	MR_PGOUTPUT_CHANGE,
	MR_PGOUTPUT_TRUNCATE
} MrPgoutputKind;

typedef struct MrPgoutput
{
	MrPgoutputKind kind;

	/* begin and commit */
	XLogRecPtr commit; /* where the commit record begins, */
	XLogRecPtr end; /* and, of a commit, where it ends */
	TimestampTz time; /* of the commit */
	TransactionId xid;

	/* relation: a new description, without a serial, in CurrentMemoryContext */
	MrRelation *relation;

	/* type: of a column of tables described next */
	Oid oid; /* and of the changed table */
	const char *type; /* qualified, unquoted */

	/* change: rows within the bytes that were parsed, not checked yet */
	char op; /* MR_OP_... */
	char before_kind; /* K: the replica identity's columns, O: the whole old row, 0: none */
	const char *rows; /* the old row, if any, and the new one, if any, begin here */
	const char *rows_end;

	/* truncate */
	int ntruncated;
	Oid *truncated;
} MrPgoutput;

/* Parses one message; an error of the connection when it is none. */
extern void mr_pgoutput_parse(const char *bytes, int length, MrPgoutput *message);

/*
 * Checks the rows of a change of that table: sets where the old and the new one begin, NULL when there is none.
 */
extern void mr_pgoutput_rows(const MrPgoutput *message, int ncolumns, const char **before,
							 const char **after);

#endif /* MR_SOURCE_PGOUTPUT_H */
