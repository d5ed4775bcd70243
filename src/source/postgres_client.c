/*
 * postgres_client.c
 *	  libpq, driven by the latch of this process.
 */
#include "postgres.h"

#include "libpq-fe.h"
#include "miscadmin.h"
#include "source/ahead.h"
#include "source/postgres_client.h"
#include "source/server.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

/* Values are text in this form at every source; and rows that a policy hides from us are an error, because the stream brings them. */
#define SESSION_OPTIONS \
	"-c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 -c timezone=UTC " \
	"-c bytea_output=hex -c lc_monetary=C -c statement_timeout=0 -c lock_timeout=0 " \
	"-c idle_in_transaction_session_timeout=0 -c search_path=pg_catalog -c row_security=off"

/* So much is read ahead at most: some ten thousand changes. */
#define AHEAD_BYTES (8 * 1024 * 1024)

struct MrPgClient
{
	MemoryContext context; /* of the problem's text */
	MemoryContextCallback callback;
	PGconn *connection; /* NULL: closed; used through own() */
	MrAhead *ahead; /* who may be reading it; NULL: nobody has yet */
	char *piece; /* of a COPY, libpq's */
	char *problem;
	char *user;
	char sqlstate[6];
};

/* The connection, which nobody else reads from here on. */
static PGconn *
own(const MrPgClient *client)
{
	if (client->ahead != NULL)
		mr_ahead_end(client->ahead);
	return client->connection;
}

/* Ends the connection with its memory context. */
static void
release(void *arg)
{
	mr_pg_close(arg);
}

void
mr_pg_close(MrPgClient *client)
{
	if (client->ahead != NULL)
		mr_ahead_free(client->ahead);
	client->ahead = NULL;
	if (client->piece != NULL)
		PQfreemem(client->piece);
	client->piece = NULL;
	if (client->connection != NULL)
		PQfinish(client->connection);
	client->connection = NULL;
}

/* Remembers what went wrong, without the newline that libpq ends it with. */
static bool
fail(MrPgClient *client, const char *message, const char *sqlstate)
{
	size_t length = strlen(message);

	while (length > 0 && (message[length - 1] == '\n' || message[length - 1] == ' '))
		length--;
	client->problem = MemoryContextAlloc(client->context, length + 1);
	memcpy(client->problem, message, length);
	client->problem[length] = '\0';
	strlcpy(client->sqlstate, sqlstate != NULL ? sqlstate : "", sizeof(client->sqlstate));
	return false;
}

/* Waits for an event of the socket; false when the time was over. */
static bool
wait_for(MrPgClient *client, int event, TimestampTz deadline)
{
	long left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
	int events;

	CHECK_FOR_INTERRUPTS();
	if (left <= 0)
		return false;
	events = WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH | event,
							   PQsocket(own(client)), left, PG_WAIT_EXTENSION);
	if (events & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

static TimestampTz
deadline_in(int timeout_ms)
{
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
}

/* The keywords of a connection. */
static PGconn *
start_connection(List *properties, const char *application, bool replication)
{
	const char **keywords = palloc(sizeof(char *) * (list_length(properties) + 8));
	const char **values = palloc(sizeof(char *) * (list_length(properties) + 8));
	int n = 0;
	ListCell *cell;

#define ADD(keyword, value) (keywords[n] = (keyword), values[n++] = (value))
	foreach(cell, properties)
	{
		MrProperty *property = lfirst(cell);

		ADD(property->name, property->value);
	}
	ADD("application_name", application);
	ADD("client_encoding", "UTF8");
	ADD("options", SESSION_OPTIONS);
	/* Nothing that happens to lie in the server's home directory: this cannot be a file. */
	ADD("passfile", "/dev/null/none");
	if (replication)
		ADD("replication", "database");
	keywords[n] = values[n] = NULL;
#undef ADD
	return PQconnectStartParams(keywords, values, 0);
}

MrPgClient *
mr_pg_connect(List *properties, bool must_use_password, const char *application, bool replication,
			  int timeout_ms)
{
	MrPgClient *client = palloc0(sizeof(MrPgClient));
	TimestampTz deadline = deadline_in(timeout_ms);
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;

	client->context = CurrentMemoryContext;
	client->callback.func = release;
	client->callback.arg = client;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &client->callback);
	client->connection = start_connection(properties, application, replication);
	if (own(client) == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	client->user = pstrdup(PQuser(client->connection) != NULL ? PQuser(client->connection) : "");
	while (PQstatus(own(client)) != CONNECTION_BAD && status != PGRES_POLLING_OK &&
		   status != PGRES_POLLING_FAILED)
	{
		if (!wait_for(client,
					  status == PGRES_POLLING_READING ? WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE,
					  deadline))
		{
			(void) fail(client, "the source does not answer", NULL);
			mr_pg_close(client);
			return client;
		}
		status = PQconnectPoll(own(client));
	}
	if (PQstatus(own(client)) != CONNECTION_OK)
	{
		(void) fail(client, PQerrorMessage(own(client)), NULL);
		mr_pg_close(client);
	}
	else if (must_use_password && !PQconnectionUsedPassword(own(client)))
	{
		(void) fail(client,
					"the source has not asked for the password, which a non-superuser's "
					"server must use",
					NULL);
		mr_pg_close(client);
	}
	return client;
}

bool
mr_pg_connected(const MrPgClient *client)
{
	return own(client) != NULL && PQstatus(own(client)) == CONNECTION_OK;
}

const char *
mr_pg_problem(const MrPgClient *client)
{
	return client->problem != NULL ? client->problem : "the connection was lost";
}

const char *
mr_pg_sqlstate(const MrPgClient *client)
{
	return client->sqlstate;
}

const char *
mr_pg_user(const MrPgClient *client)
{
	return client->user;
}

int
mr_pg_version(const MrPgClient *client)
{
	return PQserverVersion(own(client));
}

int
mr_pg_backend(const MrPgClient *client)
{
	return PQbackendPID(own(client));
}

pgsocket
mr_pg_socket(const MrPgClient *client)
{
	return client != NULL && own(client) != NULL ? PQsocket(own(client)) : PGINVALID_SOCKET;
}

bool
mr_pg_send(MrPgClient *client, const char *sql)
{
	if (!mr_pg_connected(client))
		return fail(client, "the connection was lost", NULL);
	if (!PQsendQuery(own(client), sql))
		return fail(client, PQerrorMessage(own(client)), NULL);
	return true;
}

bool
mr_pg_busy(MrPgClient *client)
{
	return PQconsumeInput(own(client)) && PQisBusy(own(client));
}

/* The next result; false at the deadline.  *result is NULL when there is none left. */
static bool
next_result(MrPgClient *client, TimestampTz deadline, PGresult **result)
{
	while (mr_pg_busy(client))
	{
		if (!wait_for(client, WL_SOCKET_READABLE, deadline))
			return false;
	}
	*result = PQgetResult(own(client));
	return true;
}

/* The rows of a result as palloc'd text. */
static void
copy_rows(const PGresult *result, MrPgRows *rows)
{
	rows->nrows = PQntuples(result);
	rows->ncolumns = PQnfields(result);
	rows->values = palloc(sizeof(char **) * Max(rows->nrows, 1));
	for (int r = 0; r < rows->nrows; r++)
	{
		rows->values[r] = palloc(sizeof(char *) * Max(rows->ncolumns, 1));
		for (int c = 0; c < rows->ncolumns; c++)
			rows->values[r][c] = PQgetisnull(result, r, c) ? NULL
														   : pstrdup(PQgetvalue(result, r, c));
	}
}

/* Takes a result's error, and its detail, which may be what says why. */
static bool
fail_result(MrPgClient *client, const PGresult *result)
{
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	const char *detail = PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL);

	if (message == NULL)
		message = PQresultErrorMessage(result);
	return fail(client, detail == NULL ? message : psprintf("%s (%s)", message, detail),
				PQresultErrorField(result, PG_DIAG_SQLSTATE));
}

bool
mr_pg_result(MrPgClient *client, int timeout_ms, MrPgRows *rows)
{
	TimestampTz deadline = deadline_in(timeout_ms);
	bool done = true;
	PGresult *result;

	if (rows != NULL)
		memset(rows, 0, sizeof(MrPgRows));
	for (;;)
	{
		ExecStatusType status;

		if (!next_result(client, deadline, &result))
		{
			/* What it will still answer must not be taken for the answer to something else. */
			mr_pg_close(client);
			return fail(client, "the source does not answer", NULL);
		}
		if (result == NULL)
			break;
		status = PQresultStatus(result);
		if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK)
			done = fail_result(client, result);
		else if (rows != NULL && status == PGRES_TUPLES_OK)
			copy_rows(result, rows);
		PQclear(result);
	}
	if (done && !mr_pg_connected(client))
		return fail(client, PQerrorMessage(own(client)), NULL);
	return done;
}

bool
mr_pg_run(MrPgClient *client, const char *sql, int timeout_ms, MrPgRows *rows)
{
	return mr_pg_send(client, sql) && mr_pg_result(client, timeout_ms, rows);
}

bool
mr_pg_copy(MrPgClient *client, const char *sql, int timeout_ms)
{
	TimestampTz deadline = deadline_in(timeout_ms);
	ExecStatusType status;
	PGresult *result;

	if (!mr_pg_send(client, sql))
		return false;
	if (!next_result(client, deadline, &result))
	{
		mr_pg_close(client);
		return fail(client, "the source does not answer", NULL);
	}
	status = PQresultStatus(result);
	if (status == PGRES_COPY_BOTH || status == PGRES_COPY_OUT)
	{
		PQclear(result);
		return true;
	}
	(void) fail_result(client, result);
	PQclear(result);
	while (next_result(client, deadline, &result) && result != NULL)
		PQclear(result);
	return false;
}

/* The end of a COPY: -1, or -2 with what went wrong. */
static int
end_copy(MrPgClient *client)
{
	TimestampTz deadline = deadline_in(10000);
	int code = -1;
	PGresult *result;

	while (next_result(client, deadline, &result) && result != NULL)
	{
		ExecStatusType status = PQresultStatus(result);

		if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
		{
			(void) fail_result(client, result);
			code = -2;
		}
		PQclear(result);
		if (status == PGRES_COPY_BOTH || status == PGRES_COPY_IN)
			break;
	}
	return code;
}

int
mr_pg_receive(MrPgClient *client, const char **bytes)
{
	int length;

	if (client->piece != NULL)
		PQfreemem(client->piece);
	client->piece = NULL;
	if (own(client) == NULL)
		return -2;
	length = PQgetCopyData(own(client), &client->piece, 1);
	if (length == 0)
	{
		if (!PQconsumeInput(own(client)))
		{
			(void) fail(client, PQerrorMessage(own(client)), NULL);
			return -2;
		}
		length = PQgetCopyData(own(client), &client->piece, 1);
	}
	if (length == -1)
		return end_copy(client);
	if (length < 0)
		(void) fail(client, PQerrorMessage(own(client)), NULL);
	*bytes = client->piece;
	return length;
}

bool
mr_pg_reply(MrPgClient *client, const char *bytes, int length)
{
	if (own(client) == NULL || PQputCopyData(own(client), bytes, length) <= 0 ||
		PQflush(own(client)) < 0)
		return fail(client,
					own(client) != NULL ? PQerrorMessage(own(client)) : "the connection was lost",
					NULL);
	return true;
}

void
mr_pg_wait(MrPgClient *client, int timeout_ms)
{
	(void) wait_for(client, WL_SOCKET_READABLE, deadline_in(timeout_ms));
}

/* What the other thread calls. */
static int
consume_input(void *connection)
{
	return PQconsumeInput(connection);
}

void
mr_pg_read_ahead(MrPgClient *client)
{
	if (!mr_pg_connected(client))
		return;
	if (client->ahead == NULL)
		client->ahead = mr_ahead_create(PQsocket(client->connection), consume_input,
										client->connection);
	if (client->ahead != NULL)
		mr_ahead_begin(client->ahead, AHEAD_BYTES);
}
