/*
 * postgres_client.h
 *	  Connections to other PostgreSQL servers, through libpq without blocking.
 *
 * Waiting is for the latch, too: interrupts are served, and an error leaves nothing open, because a connection ends
 * with the memory context that it was made in.  What goes wrong at the other side is no error here: a function returns
 * false, and mr_pg_problem says why.
 */
#ifndef MR_SOURCE_POSTGRES_CLIENT_H
#define MR_SOURCE_POSTGRES_CLIENT_H

#include "nodes/pg_list.h"

typedef struct MrPgClient MrPgClient;

/* Rows of a result, as text; NULL for nulls. */
typedef struct MrPgRows
{
	int nrows;
	int ncolumns;
	char ***values;
} MrPgRows;

/*
 * Connects with a server's properties (mr_server_properties), for replication or not; never NULL: mr_pg_connected tells
 * whether it went well.  Lives in CurrentMemoryContext.
 */
extern MrPgClient *mr_pg_connect(List *properties, bool must_use_password, const char *application,
								 bool replication, int timeout_ms);
extern bool mr_pg_connected(const MrPgClient *client);
extern void mr_pg_close(MrPgClient *client);

/* What went wrong last, and its SQLSTATE ("" when it did not come from the server). */
extern const char *mr_pg_problem(const MrPgClient *client);
extern const char *mr_pg_sqlstate(const MrPgClient *client);

/* The role's name at the source. */
extern const char *mr_pg_user(const MrPgClient *client);

extern int mr_pg_version(const MrPgClient *client);
extern int mr_pg_backend(const MrPgClient *client);
extern pgsocket mr_pg_socket(const MrPgClient *client);

/* Runs a statement; its rows are made in CurrentMemoryContext (`rows` may be NULL). */
extern bool mr_pg_run(MrPgClient *client, const char *sql, int timeout_ms, MrPgRows *rows);

/* The same in parts: sends it; is there no answer yet?; takes the answer. */
extern bool mr_pg_send(MrPgClient *client, const char *sql);
extern bool mr_pg_busy(MrPgClient *client);
extern bool mr_pg_result(MrPgClient *client, int timeout_ms, MrPgRows *rows);

/* Sends a statement that begins a COPY, and waits for it to begin. */
extern bool mr_pg_copy(MrPgClient *client, const char *sql, int timeout_ms);

/*
 * The next piece of a COPY: its length, and its bytes until the next call; 0 when nothing is there now; -1 at the end;
 * -2 when it has failed.
 */
extern int mr_pg_receive(MrPgClient *client, const char **bytes);

/* Has what comes read into memory by somebody else, up to some megabytes, until the client is used again. */
extern void mr_pg_read_ahead(MrPgClient *client);

/* Sends a piece of a COPY in both directions. */
extern bool mr_pg_reply(MrPgClient *client, const char *bytes, int length);

/* Waits until something can be received, the latch is set or the time is over. */
extern void mr_pg_wait(MrPgClient *client, int timeout_ms);

#endif /* MR_SOURCE_POSTGRES_CLIENT_H */
