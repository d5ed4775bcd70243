/*
 * postgres_declare.c
 *	  What declarations ask of a PostgreSQL source: the columns of a mirror, and to drop what a stream has made there.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/event_trigger.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "source/postgres_source.h"
#include "source/server.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"
#include "utils/wait_event.h"

PG_FUNCTION_INFO_V1(millrace_source_columns);
PG_FUNCTION_INFO_V1(millrace_drop_replication);
PG_FUNCTION_INFO_V1(millrace_guard_slots);

/* ---- mirrors --------------------------------------------------------------------------------------- */

/* Connects to the source of a stream as its owner. */
static MrPgClient *
connect_to(const char *server, Oid owner, const char *application)
{
	return mr_pg_connect(mr_server_properties(server, owner), mr_server_must_use_password(server),
						 application, false, MR_PG_TIMEOUT);
}

/* millrace_internal.source_columns(stream_id, source_table) */
Datum
millrace_source_columns(PG_FUNCTION_ARGS)
{
	char *table = text_to_cstring(PG_GETARG_TEXT_PP(1));
	MemoryContext context;
	ReturnSetInfo *result;
	MrPgClient *client;
	MrStream *stream;
	MrPgRows rows;
	bool keyed = false;

	InitMaterializedSRF(fcinfo, 0);
	result = (ReturnSetInfo *) fcinfo->resultinfo;
	context = CurrentMemoryContext;
	SPI_connect();
	stream = mr_stream_load(context, PG_GETARG_INT32(0));
	SPI_finish();
	MemoryContextSwitchTo(context);
	client = connect_to(stream->server, stream->owner, "millrace declare");
	if (!mr_pg_connected(client) ||
		!mr_pg_run(
			client,
			/* What tells of a row that is deleted; columns that an index only includes are not in it. */
			psprintf("SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), "
					 "coalesce((i.indkey::smallint[])[0:i.indnkeyatts - 1] @> ARRAY[a.attnum], "
					 "false) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON "
					 "a.attrelid = c.oid LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid "
					 "AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary "
					 "END WHERE c.oid = %s AND a.attnum > 0 AND NOT "
					 "a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum",
					 mr_pg_table_oid(table)),
			MR_PG_TIMEOUT, &rows))
		ereport(ERROR, (errcode(ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION),
						errmsg("the columns of table %s cannot be read from server \"%s\": %s",
							   table, stream->server, mr_pg_problem(client)),
						errhint("Without them a mirror cannot be made: try again when the source "
								"can be reached, or give key and columns.")));
	if (rows.nrows == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("table %s does not exist on server \"%s\"", table, stream->server),
						errhint("It is written as it is called there, schema.table, without "
								"quotes.")));
	for (int i = 0; i < rows.nrows; i++)
	{
		Datum values[3];
		bool nulls[3] = {false};

		values[0] = CStringGetTextDatum(rows.values[i][0]);
		values[1] = CStringGetTextDatum(rows.values[i][1]);
		values[2] = BoolGetDatum(rows.values[i][2][0] == 't');
		keyed = keyed || rows.values[i][2][0] == 't';
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	mr_pg_close(client);
	if (!keyed)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
			 errmsg("table %s of server \"%s\" has no primary key", table, stream->server),
			 errdetail("A mirror keeps the newest version of each row, and has to know which "
					   "columns identify one."),
			 errhint("Give it a primary key there, or ALTER TABLE … REPLICA IDENTITY USING INDEX; "
					 "or give key and columns here.")));
	return (Datum) 0;
}

/* ---- dropping -------------------------------------------------------------------------------------- */

/* What is to be dropped at a source when the transaction commits. */
typedef struct Drop
{
	char *server;
	Oid owner;
	char *stream;
	char *slot; /* NULL: it is not ours */
	char *publication;
	int level; /* of the subtransaction that has asked for it */
} Drop;

static List *drops = NIL; /* in TopTransactionContext */

/* Waits until nobody reads the slot, and drops it; the worker of the stream ends with its connection. */
static bool
drop_slot(MrPgClient *client, const char *slot)
{
	char *literal = quote_literal_cstr(slot);

	for (int try = 0; try < 100; try++)
	{
		MrPgRows rows;

		if (!mr_pg_run(client,
					   psprintf("SELECT pg_catalog.pg_terminate_backend(s.active_pid) FROM "
								"pg_catalog.pg_replication_slots s WHERE s.slot_name = %s",
								literal),
					   MR_PG_TIMEOUT, &rows))
			return false;
		if (rows.nrows == 0)
			return true;
		if (rows.values[0][0] == NULL)
			return mr_pg_run(client,
							 psprintf("SELECT pg_catalog.pg_drop_replication_slot(%s)", literal),
							 MR_PG_TIMEOUT, NULL);
		(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 50, PG_WAIT_EXTENSION);
		CHECK_FOR_INTERRUPTS();
	}
	return false;
}

/* Drops what one stream has made; what cannot be dropped is told. */
static void
drop_made(const Drop *drop)
{
	MrPgClient *client = connect_to(drop->server, drop->owner, "millrace drop");
	const char *problem = NULL;
	StringInfoData left;

	initStringInfo(&left);
	if (drop->slot != NULL && (!mr_pg_connected(client) || !drop_slot(client, drop->slot)))
	{
		problem = mr_pg_problem(client);
		appendStringInfo(&left, "SELECT pg_drop_replication_slot(%s);",
						 quote_literal_cstr(drop->slot));
	}
	if (drop->publication != NULL &&
		(!mr_pg_connected(client) ||
		 !mr_pg_run(client,
					psprintf("DROP PUBLICATION IF EXISTS %s", quote_identifier(drop->publication)),
					MR_PG_TIMEOUT, NULL)))
	{
		problem = mr_pg_problem(client);
		appendStringInfo(&left, "%sDROP PUBLICATION %s;", left.len > 0 ? " " : "",
						 quote_identifier(drop->publication));
	}
	if (problem != NULL)
		ereport(
			WARNING,
			(errmsg("stream \"%s\" is dropped, but not what it has made at its source: %s",
					drop->stream, problem),
			 errdetail("A replication slot that nobody reads makes the source keep its log until "
					   "its disk is full."),
			 errhint("Run there: %s", left.data)));
	mr_pg_close(client);
}

/* At the end of the transaction: does what it has asked for, when it is about to commit. */
static void
end_transaction(XactEvent event, void *arg)
{
	List *asked = drops;
	ListCell *cell;

	if (event == XACT_EVENT_PRE_COMMIT)
	{
		drops = NIL;
		foreach(cell, asked)
			drop_made(lfirst(cell));
	}
	else if (event != XACT_EVENT_PARALLEL_PRE_COMMIT)
		drops = NIL;
}

/* What a subtransaction has asked for is forgotten with it. */
static void
end_subtransaction(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	int level = GetCurrentTransactionNestLevel();
	ListCell *cell;

	foreach(cell, drops)
	{
		Drop *drop = lfirst(cell);

		if (drop->level < level)
			continue;
		if (event == SUBXACT_EVENT_ABORT_SUB)
			drops = foreach_delete_current(drops, cell);
		else if (event == SUBXACT_EVENT_COMMIT_SUB)
			drop->level = level - 1;
	}
}

/* millrace_internal.drop_replication(stream_id) */
Datum
millrace_drop_replication(PG_FUNCTION_ARGS)
{
	static bool registered = false;
	MemoryContext old;
	bool isnull;

	if (!registered)
	{
		RegisterXactCallback(end_transaction, NULL);
		RegisterSubXactCallback(end_subtransaction, NULL);
		registered = true;
	}
	SPI_connect();
	if (mr_sql(
			"SELECT s.name, s.server::text, s.owner::oid, CASE WHEN r.made_slot OR r.state = 'making' THEN o.slot END, "
			"CASE WHEN r.made_publication THEN o.publication END "
			"FROM millrace.replication r JOIN millrace.stream s ON s.id = r.stream_id, "
			"LATERAL millrace_internal.postgres_options(s.id) o "
			"WHERE r.stream_id = %d AND (r.made_slot OR r.made_publication OR r.state = 'making') "
			"AND s.fence = millrace_internal.fence()",
			PG_GETARG_INT32(0)) > 0)
	{
		Drop *drop;
		char *texts[4] = {mr_sql_text(0, 1), mr_sql_text(0, 2), mr_sql_text(0, 4),
						  mr_sql_text(0, 5)};

		old = MemoryContextSwitchTo(TopTransactionContext);
		drop = palloc0(sizeof(Drop));
		drop->stream = pstrdup(texts[0]);
		drop->server = pstrdup(texts[1]);
		drop->owner = DatumGetObjectId(mr_sql_value(0, 3, &isnull));
		drop->slot = texts[2] == NULL ? NULL : pstrdup(texts[2]);
		drop->publication = texts[3] == NULL ? NULL : pstrdup(texts[3]);
		drop->level = GetCurrentTransactionNestLevel();
		drops = lappend(drops, drop);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * Event trigger at the start of DROP EXTENSION: a slot that nobody would read any more makes its server keep log until the
 * disk is full, so streams that have made one are dropped first.
 */
Datum
millrace_guard_slots(PG_FUNCTION_ARGS)
{
	DropStmt *statement;
	ListCell *cell;
	MrRunAs saved;
	bool ours = false;

	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		elog(ERROR, "not called as an event trigger");
	statement = (DropStmt *) ((EventTriggerData *) fcinfo->context)->parsetree;
	foreach(cell, IsA(statement, DropStmt) ? statement->objects : NIL)
		ours = ours || strcmp(strVal(lfirst(cell)), "millrace") == 0;
	if (!ours)
		PG_RETURN_NULL();
	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	if (mr_sql("SELECT s.name, o.slot FROM millrace.replication r "
			   "JOIN millrace.stream s ON s.id = r.stream_id, "
			   "LATERAL millrace_internal.postgres_options(s.id) o "
			   "WHERE (r.made_slot OR r.state = 'making') AND s.fence = millrace_internal.fence() "
			   "ORDER BY s.name LIMIT 1") > 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
			 errmsg("cannot drop extension millrace because stream \"%s\" owns replication slot "
					"\"%s\"",
					mr_sql_text(0, 1), mr_sql_text(0, 2)),
			 errdetail("A slot that nobody reads makes its server keep log until the disk is "
					   "full."),
			 errhint("Call millrace.drop_stream(%s, cascade => true) first; it drops the slot, "
					 "too.",
					 quote_literal_cstr(mr_sql_text(0, 1)))));
	SPI_finish();
	mr_run_back(&saved);
	PG_RETURN_NULL();
}
