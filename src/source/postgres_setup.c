/*
 * postgres_setup.c
 *	  Publication, slot and privileges at a source: looking at them, making them, or saying what an administrator has to run.
 *
 * A slot is made in two steps, so that nobody's slot is dropped and none of ours is forgotten: first the row of
 * millrace.replication says that one is being made, then it is made, then the row says so, with the position where it
 * begins.
 *
 * Until then it is also settled.  While a slot is made PostgreSQL overlooks changes of the catalog that are committed
 * before it has seen two records of running transactions, and what comes then is decoded without them: with the columns
 * that a table had, or not at all ("could not map filenode").  A slot that restarts behind that place is well.  So
 *
 *	making slot		the slot is made; it waits for older transactions
 *	settling slot	a temporary one is made: this writes such records, and waits for those that ours may decode wrongly
 *	moving slot		ours is moved to where the temporary one begins, which is where the stream begins
 *
 * The temporary slot goes with the connection, and ours is made anew when any of this is interrupted.  A source that has
 * no room for one more slot, or does not let us move ours, is read without that: a stream that needs no more than its
 * slot goes on working, and only tables that are changed at that moment are in danger.
 */
#include "postgres.h"

#include "access/xact.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "miscadmin.h"
#include "source/postgres_source.h"
#include "source/server.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* So often one looks whom the making of a slot waits for, in ms. */
#define WHOM_INTERVAL 1000

bool
mr_pg_refuse(MrPgSource *source, const MrPgClient *client, const char *help)
{
	const char *problem = mr_pg_problem(client);

	mr_source_set_problem(&source->base,
						  help == NULL ? problem : psprintf("%s; %s", problem, help));
	return false;
}

/* What helps somebody whose connection was refused. */
static const char *
connection_help(const MrPgClient *client)
{
	const char *problem = mr_pg_problem(client);

	/* From PostgreSQL 16 on: "permission denied to start WAL sender". */
	if (strstr(problem, "replication role") != NULL || strstr(problem, "WAL sender") != NULL)
		return psprintf("run at the source: ALTER ROLE %s REPLICATION",
						quote_identifier(mr_pg_user(client)));
	if (strstr(problem, "number of requested standby connections") != NULL ||
		strstr(problem, "max_wal_senders") != NULL)
		return "raise max_wal_senders at the source";
	return NULL;
}

MrPgClient *
mr_pg_side(MrPgSource *source)
{
	if (source->side == NULL || !mr_pg_connected(source->side))
	{
		MemoryContext old = MemoryContextSwitchTo(source->connected);

		source->side = mr_pg_connect(source->properties, source->must_use_password,
									 source->application, false, MR_PG_TIMEOUT);
		MemoryContextSwitchTo(old);
	}
	return source->side;
}

TransactionId
mr_pg_own_transaction(MrPgClient *client)
{
	TransactionId own = GetTopTransactionIdIfAny();
	MrPgRows rows;

	/* A worker connects between its transactions. */
	if (!TransactionIdIsValid(own) ||
		!mr_pg_run(client,
				   psprintf("SELECT FROM pg_catalog.pg_locks l WHERE l.pid = %d AND "
							"l.transactionid = '%u' AND l.mode = 'ExclusiveLock'",
							MyProcPid, own),
				   MR_PG_TIMEOUT, &rows) ||
		rows.nrows == 0)
		return InvalidTransactionId;
	return own;
}

/* Which server is it, and can it decode? */
static bool
check_server(MrPgSource *source)
{
	MrPgRows rows;

	if (!mr_pg_run(source->stream, "IDENTIFY_SYSTEM", MR_PG_TIMEOUT, &rows) || rows.nrows != 1)
		return mr_pg_refuse(source, source->stream, NULL);
	source->found_system = MemoryContextStrdup(source->connected, rows.values[0][0]);
	if (mr_pg_version(source->stream) < 140000)
	{
		mr_source_set_problem(&source->base, "the source is older than PostgreSQL 14");
		return false;
	}
	if (!mr_pg_run(source->stream,
				   "SELECT pg_catalog.current_setting('wal_level'), pg_catalog.pg_is_in_recovery()",
				   MR_PG_TIMEOUT, &rows))
		return mr_pg_refuse(source, source->stream, NULL);
	if (strcmp(rows.values[0][0], "logical") != 0)
	{
		mr_source_set_problem(&source->base,
							  psprintf("wal_level of the source is %s, not logical; run there: "
									   "ALTER SYSTEM SET wal_level = logical, and restart it",
									   rows.values[0][0]));
		return false;
	}
	if (rows.values[0][1][0] == 't')
	{
		mr_source_set_problem(&source->base, "the source is a standby; read from its primary");
		return false;
	}
	return true;
}

/* The slot is not what was read: the stream stops, or begins anew, as its options say. */
static bool
report_lost(MrPgSource *source, char *what)
{
	source->lost = MemoryContextStrdup(source->context, what);
	source->due |= MR_PG_DUE_LOST;
	source->base.wants_tick = true;
	mr_source_set_problem(
		&source->base, psprintf("%s; changes since %s cannot be read any more: call "
								"reset_stream(), or declare the stream with on_lost \"resnapshot\"",
								what, mr_pg_lsn_text((XLogRecPtr) source->position.position)));
	if (!source->options.resnapshot)
		source->phase = MR_PG_STOPPED;
	return false;
}

/* What the slot is: state 'ready' and the source has another one, or none. */
static bool
check_known_slot(MrPgSource *source, const MrPgRows *rows)
{
	const char *slot = source->options.slot;
	XLogRecPtr confirmed;

	if (source->system != NULL && strcmp(source->system, source->found_system) != 0)
		return report_lost(source, psprintf("the source is another server than it was (system "
											"identifier %s instead of %s)",
											source->found_system, source->system));
	if (rows->nrows == 0)
		return report_lost(source,
						   psprintf("replication slot \"%s\" does not exist any more", slot));
	if (rows->values[0][4] != NULL && strcmp(rows->values[0][4], "lost") == 0)
		return report_lost(source, psprintf("replication slot \"%s\" has lost the log that it "
											"needs, because it kept more than "
											"max_slot_wal_keep_size allows",
											slot));
	if (mr_pg_parse_lsn(rows->values[0][3], &confirmed) &&
		confirmed > (XLogRecPtr) source->position.position)
		return report_lost(source, psprintf("replication slot \"%s\" was created again or moved by "
											"somebody else: it begins at %s",
											slot, rows->values[0][3]));
	return true;
}

/* Sends the command of a step in the making of a slot; mr_pg_poll_slot takes the answer, or finds that none was sent. */
static void
begin_step(MrPgSource *source, MrPgPhase step, const char *command)
{
	(void) mr_pg_send(source->stream, command);
	source->phase = step;
	source->next_status = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WHOM_INTERVAL);
}

/* Somebody made the slot before: it is read from where it stands. */
static bool
adopt_slot(MrPgSource *source, const MrPgRows *rows)
{
	if (!mr_pg_parse_lsn(rows->values[0][3], &source->beginning))
	{
		mr_source_set_problem(
			&source->base,
			psprintf("replication slot \"%s\" is not ready to be read", source->options.slot));
		return false;
	}
	source->made_slot = false;
	source->due |= MR_PG_DUE_READY;
	source->base.wants_tick = true;
	return false;
}

/* Is the slot there, and ours? */
static bool
check_slot(MrPgSource *source)
{
	const char *slot = source->options.slot;
	MrPgRows rows;

	if (!mr_pg_run(source->stream,
				   psprintf("SELECT s.plugin, s.database = pg_catalog.current_database(), "
							"s.active_pid, s.confirmed_flush_lsn, s.wal_status, a.application_name "
							"FROM pg_catalog.pg_replication_slots s "
							"LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid "
							"WHERE s.slot_name = %s",
							quote_literal_cstr(slot)),
				   MR_PG_TIMEOUT, &rows))
		return mr_pg_refuse(source, source->stream, NULL);
	if (rows.nrows > 0 &&
		(rows.values[0][0] == NULL || strcmp(rows.values[0][0], "pgoutput") != 0 ||
		 rows.values[0][1] == NULL || rows.values[0][1][0] != 't'))
	{
		mr_source_set_problem(&source->base,
							  psprintf("replication slot \"%s\" is of another plug-in or "
									   "database; name another one in the stream's options",
									   slot));
		return false;
	}
	if (rows.nrows > 0 && rows.values[0][2] != NULL)
	{
		mr_source_set_problem(&source->base,
							  psprintf("replication slot \"%s\" is in use by process %s of the "
									   "source (%s)",
									   slot, rows.values[0][2],
									   rows.values[0][5] != NULL ? rows.values[0][5] : ""));
		return false;
	}
	if (strcmp(source->state, "ready") == 0)
		return check_known_slot(source, &rows);
	if ((rows.nrows == 0 || strcmp(source->state, "making") == 0) &&
		TransactionIdIsValid(mr_pg_own_transaction(source->stream)))
	{
		mr_source_set_problem(&source->base,
							  "its replication slot cannot be made here, because the source is "
							  "this very server and would wait for the end of this transaction; "
							  "call start_stream(), which lets a worker make it");
		return false;
	}
	if (strcmp(source->state, "new") == 0)
	{
		if (rows.nrows > 0)
			return adopt_slot(source, &rows);
		source->due |= MR_PG_DUE_MAKING;
		source->base.wants_tick = true;
		return false;
	}
	/* We were interrupted. */
	if (rows.nrows > 0 &&
		!mr_pg_run(source->stream, psprintf("DROP_REPLICATION_SLOT %s", quote_identifier(slot)),
				   MR_PG_TIMEOUT, NULL))
		return mr_pg_refuse(source, source->stream, NULL);
	begin_step(source, MR_PG_MAKING_SLOT,
			   psprintf("CREATE_REPLICATION_SLOT %s LOGICAL pgoutput NOEXPORT_SNAPSHOT",
						quote_identifier(slot)));
	return false;
}

/* Begins to read. */
static bool
start_stream(MrPgSource *source)
{
	MrPgRows rows;

	if (!mr_pg_run(source->stream, "SELECT pg_catalog.pg_current_wal_lsn()", MR_PG_TIMEOUT,
				   &rows) ||
		!mr_pg_parse_lsn(rows.values[0][0], &source->end))
		return mr_pg_refuse(source, source->stream, NULL);
	/* It would skip what it has committed since then. */
	if (source->end < (XLogRecPtr) source->position.position)
		return report_lost(
			source, psprintf("the source has gone back to an earlier state: its log ends at %s",
							 mr_pg_lsn_text(source->end)));
	if (!mr_pg_copy(source->stream,
					psprintf("START_REPLICATION SLOT %s LOGICAL %s (proto_version '1', "
							 "publication_names %s)",
							 quote_identifier(source->options.slot),
							 mr_pg_lsn_text((XLogRecPtr) source->position.position),
							 quote_literal_cstr(quote_identifier(source->options.publication))),
					MR_PG_TIMEOUT * 6))
		return mr_pg_refuse(source, source->stream, NULL);
	return true;
}

/* All has been copied, and that was all: a slot that we have made goes. */
static void
finish(MrPgSource *source)
{
	char *slot = quote_literal_cstr(source->options.slot);

	if (source->made_slot &&
		!mr_pg_run(source->stream,
				   psprintf("SELECT pg_catalog.pg_drop_replication_slot(s.slot_name) FROM "
							"pg_catalog.pg_replication_slots s WHERE s.slot_name = %s",
							slot),
				   MR_PG_TIMEOUT, NULL))
	{
		(void) mr_pg_refuse(source, source->stream, NULL);
		return;
	}
	source->due |= MR_PG_DUE_DROPPED;
	source->base.wants_tick = true;
}

bool
mr_pg_prepare(MrPgSource *source)
{
	MemoryContext old = MemoryContextSwitchTo(source->connected);
	bool prepared = false;

	source->stream = mr_pg_connect(source->properties, source->must_use_password,
								   source->application, true, MR_PG_TIMEOUT);
	if (!mr_pg_connected(source->stream))
		(void) mr_pg_refuse(source, source->stream, connection_help(source->stream));
	else if (strcmp(source->state, "finished") == 0)
		finish(source);
	else
		prepared = check_server(source) && mr_pg_check_publication(source) && check_slot(source) &&
				   start_stream(source);
	MemoryContextSwitchTo(old);
	if (!prepared && source->phase != MR_PG_MAKING_SLOT)
		mr_pg_disconnect(source);
	return prepared;
}

/* Whom the making of the slot waits for. */
static void
tell_whom(MrPgSource *source)
{
	MemoryContext old = MemoryContextSwitchTo(source->connected);
	MrPgClient *side = mr_pg_side(source);
	MrPgRows rows;

	if (mr_pg_connected(side) &&
		mr_pg_run(side,
				  psprintf("SELECT pg_catalog.string_agg(pg_catalog.format('process %%s (%%s, "
						   "since %%s, transaction %%s)', a.pid, a.usename, a.xact_start, "
						   "coalesce(a.backend_xid::text, '?')), ', ') "
						   "FROM pg_catalog.pg_stat_activity a "
						   "WHERE a.pid = ANY (pg_catalog.pg_blocking_pids(%d))",
						   mr_pg_backend(source->stream)),
				  MR_PG_TIMEOUT, &rows) &&
		rows.nrows == 1 && rows.values[0][0] != NULL)
		mr_source_set_problem(&source->base,
							  psprintf("the replication slot is being made; the source waits "
									   "for the end of transactions that began before: %s",
									   rows.values[0][0]));
	MemoryContextSwitchTo(old);
}

/* Is a slot that was made to be read although it could not be settled? */
static bool
unsettled(const MrPgSource *source)
{
	const char *sqlstate = mr_pg_sqlstate(source->stream);

	/* There is no room for one more slot, or the role may not move its own. */
	if (source->phase == MR_PG_MAKING_SLOT ||
		(strcmp(sqlstate, "53400") != 0 && strcmp(sqlstate, "42501") != 0))
		return false;
	ereport(LOG,
			(errmsg("replication slot \"%s\" is read from where it was made: %s",
					source->options.slot, mr_pg_problem(source->stream)),
			 errdetail("Changes of the source's tables that were committed while it was made may "
					   "be unknown to it.")));
	return true;
}

void
mr_pg_poll_slot(MrPgSource *source)
{
	XLogRecPtr lsn;
	MrPgRows rows;

	if (mr_pg_busy(source->stream))
	{
		TimestampTz now = GetCurrentTimestamp();

		if (now >= source->next_status)
		{
			tell_whom(source);
			source->next_status = TimestampTzPlusMilliseconds(now, WHOM_INTERVAL);
		}
		return;
	}
	if (mr_pg_result(source->stream, MR_PG_TIMEOUT, &rows) && rows.nrows == 1 &&
		mr_pg_parse_lsn(rows.values[0][1], &lsn))
	{
		if (source->phase == MR_PG_MAKING_SLOT)
		{
			source->beginning = lsn;
			mr_debug_point("slot_made");
			begin_step(source, MR_PG_SETTLING_SLOT,
					   psprintf("CREATE_REPLICATION_SLOT millrace_settling_%d TEMPORARY LOGICAL "
								"pgoutput NOEXPORT_SNAPSHOT",
								mr_pg_backend(source->stream)));
			return;
		}
		if (source->phase == MR_PG_SETTLING_SLOT)
		{
			begin_step(source, MR_PG_MOVING_SLOT,
					   psprintf("SELECT * FROM pg_catalog.pg_replication_slot_advance(%s, '%s')",
								quote_literal_cstr(source->options.slot), mr_pg_lsn_text(lsn)));
			return;
		}
		source->beginning = lsn;
		mr_debug_point("slot_settled");
	}
	else if (!unsettled(source))
	{
		(void) mr_pg_refuse(source, source->stream,
							strcmp(mr_pg_sqlstate(source->stream), "53400") == 0
								? "raise max_replication_slots at the source"
								: NULL);
		mr_pg_disconnect(source);
		return;
	}
	source->made_slot = true;
	source->due |= MR_PG_DUE_READY;
	source->base.wants_tick = true;
	mr_source_set_problem(&source->base, NULL);
	source->system = MemoryContextStrdup(source->context, source->found_system);
	mr_pg_disconnect(source);
	source->failures = 0;
	source->next_try = 0;
}

char *
mr_pg_retained(MrPgClient *client, int32 stream_id, const MrPgOptions *options)
{
	MrPgRows rows;
	char **row;

	if (!mr_pg_connected(client) ||
		!mr_pg_run(client,
				   psprintf("SELECT s.wal_status, pg_catalog.pg_current_wal_lsn() - s.restart_lsn, "
							"s.confirmed_flush_lsn, s.restart_lsn, pg_catalog.pg_current_wal_lsn() "
							"FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = %s",
							quote_literal_cstr(options->slot)),
				   MR_PG_TIMEOUT, &rows) ||
		rows.nrows != 1)
		return NULL;
	row = rows.values[0];
	return psprintf("SELECT millrace_internal.note_replication(%d, %s, %s::bigint, %s, %s, "
					"%s, " INT64_FORMAT ")",
					stream_id, row[0] == NULL ? "NULL" : quote_literal_cstr(row[0]),
					row[1] == NULL ? "0" : row[1],
					row[2] == NULL ? "NULL" : quote_literal_cstr(row[2]),
					row[3] == NULL ? "NULL" : quote_literal_cstr(row[3]),
					quote_literal_cstr(row[4]), options->budget);
}

void
mr_pg_ask_status(MrPgSource *source)
{
	MrPgClient *side = mr_pg_side(source);
	MemoryContext asking = AllocSetContextCreate(CurrentMemoryContext, "millrace postgres status",
												 ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(asking);
	char *status = mr_pg_retained(side, source->base.stream->id, &source->options);
	bool changed;

	source->ask_status = false;
	if (status != NULL)
	{
		if (source->status != NULL)
			pfree(source->status);
		source->status = MemoryContextStrdup(source->context, status);
		source->due |= MR_PG_DUE_STATUS;
	}
	changed = mr_pg_publication_changed(source, side);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(asking);
	/* To connect anew is to look at it, and to do what has to be done. */
	if (changed)
	{
		mr_pg_disconnect(source);
		source->next_try = 0;
	}
}

/* ---- validate -------------------------------------------------------------------------------------- */

/* One finding for each row (severity, message, hint) of a query at the source. */
static bool
report_query(MrReport *to, MrPgClient *client, const char *sql)
{
	MrPgRows rows;

	if (!mr_pg_run(client, sql, to->timeout_ms, &rows))
	{
		mr_report(to, "error", mr_pg_problem(client), NULL);
		return false;
	}
	for (int i = 0; i < rows.nrows; i++)
		mr_report(to, rows.values[i][0], rows.values[i][1], rows.values[i][2]);
	return true;
}

/*
 * The tables as a VALUES list for queries at the source: their names, OIDs there, and which staging tables may not have
 * what a change of one leaves out.
 */
static char *
table_values(const MrStream *stream, const List *tables)
{
	StringInfoData list;
	ListCell *cell;
	MrRunAs saved;

	initStringInfo(&list);
	mr_run_as(&saved, mr_extension_owner());
	foreach(cell, tables)
	{
		char *lacking;

		(void) mr_sql("SELECT pg_catalog.string_agg(g.relation::text, ', ' ORDER BY g.id) "
					  "FROM millrace.staging g WHERE g.stream_id = %d "
					  "AND g.definition ->> 'source_table' = %s AND (g.definition ->> 'filter' "
					  "IS NOT NULL OR EXISTS (SELECT FROM "
					  "json_array_elements(g.definition -> 'computed') c JOIN "
					  "json_array_elements(g.definition -> 'columns') m ON m ->> 'name' = c ->> "
					  "'name'))",
					  stream->id, quote_literal_cstr(lfirst(cell)));
		lacking = mr_sql_text(0, 1);
		appendStringInfo(&list, "%s(%s, %s, %s::text)", list.len > 0 ? ", " : "",
						 quote_literal_cstr(lfirst(cell)), mr_pg_table_oid(lfirst(cell)),
						 lacking == NULL ? "NULL" : quote_literal_cstr(lacking));
		SPI_freetuptable(SPI_tuptable);
	}
	mr_run_back(&saved);
	return list.data;
}

void
mr_pg_validate(MrReport *to, MrStream *stream)
{
	List *properties = mr_server_properties(stream->server, stream->owner);
	MemoryContext context = CurrentMemoryContext;
	MrPgOptions options;
	MrPgClient *client;
	char *values;

	SPI_connect();
	MemoryContextSwitchTo(context);
	mr_pg_read_options(&options, stream);
	MemoryContextSwitchTo(context);
	values = table_values(stream, options.tables);
	SPI_finish();
	MemoryContextSwitchTo(context);
	client = mr_pg_connect(properties, mr_server_must_use_password(stream->server),
						   "millrace validate", false, to->timeout_ms);
	if (!mr_pg_connected(client))
	{
		mr_report(to, "error", mr_pg_problem(client),
				  "Check the options of the server and its user mapping.");
		return;
	}
	if (!report_query(
			to, client,
			psprintf(
				"SELECT 'error', 'wal_level of the source is ' || current_setting('wal_level') || "
				"', not logical', 'Run there: ALTER SYSTEM SET wal_level = logical, and restart "
				"it.' WHERE current_setting('wal_level') <> 'logical' UNION ALL "
				"SELECT 'error', 'role ' || current_user || ' may not replicate', 'Run at the "
				"source: ALTER ROLE ' || quote_ident(current_user) || ' REPLICATION' "
				"WHERE NOT (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = "
				"current_user) UNION ALL "
				"SELECT 'warning', 'all ' || current_setting('max_replication_slots') || "
				"' replication slots of the source are taken', 'Raise max_replication_slots there.' "
				"WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s) AND "
				"(SELECT count(*) FROM pg_replication_slots) >= "
				"current_setting('max_replication_slots')::integer UNION ALL "
				"SELECT 'warning', 'all ' || current_setting('max_wal_senders') || ' WAL senders of "
				"the source are taken', 'Raise max_wal_senders there.' WHERE (SELECT count(*) FROM "
				"pg_stat_replication) >= current_setting('max_wal_senders')::integer UNION ALL "
				"SELECT 'info', 'the source keeps as much log as the slot needs, until its disk is "
				"full', 'max_slot_wal_keep_size there sets a limit, beyond which the slot is lost.' "
				"WHERE current_setting('max_slot_wal_keep_size') = '-1' UNION ALL "
				"SELECT 'error', 'replication slot has lost its log', 'Call reset_stream().' FROM "
				"pg_replication_slots WHERE slot_name = %s AND wal_status = 'lost'",
				quote_literal_cstr(options.slot), quote_literal_cstr(options.slot))))
		return;
	if (options.tables != NIL)
		(void) report_query(
			to, client,
			psprintf(
				"SELECT f.* FROM (VALUES %s) AS t (name, oid, lacking) LEFT JOIN pg_class c ON c.oid = t.oid, "
				"LATERAL (" MR_PG_UNREADABLE " UNION ALL "
				"SELECT 'error', 'updates and deletes of table ' || t.name || ' cannot be "
				"replicated: it has no replica identity', 'Run at the source: ALTER TABLE ' || "
				"t.oid::regclass || ' REPLICA IDENTITY FULL, or give it a primary key' "
				"WHERE c.relreplident = 'n' OR (c.relreplident = 'd' AND NOT EXISTS (SELECT FROM "
				"pg_index i WHERE i.indrelid = t.oid AND i.indisprimary)) UNION ALL "
				"SELECT 'info', format('table %%s has columns whose large values are not sent when "
				"an update leaves them as they are (%%s), and %%s has a filter or computes one of its "
				"columns anew: such a row is read again from the source', t.name, "
				"string_agg(a.attname, ', ' ORDER BY a.attnum), t.lacking), 'That takes longer. It "
				"is never needed after, at the source: ALTER TABLE ' || t.oid::regclass || ' REPLICA "
				"IDENTITY FULL' FROM pg_attribute a WHERE a.attrelid = t.oid AND t.lacking IS NOT "
				"NULL AND a.attnum > 0 AND NOT a.attisdropped AND a.attlen = -1 AND a.attstorage <> "
				"'p' AND c.relreplident <> 'f' HAVING count(*) > 0) AS f",
				values));
	mr_pg_validate_publication(to, client, &options);
	mr_pg_close(client);
}
