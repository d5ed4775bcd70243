/*
 * stream.c
 *	  Streams as their rows say, their lock, and incidents.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "source/source.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(millrace_lock_stream);
PG_FUNCTION_INFO_V1(millrace_wake);
PG_FUNCTION_INFO_V1(millrace_fence);
PG_FUNCTION_INFO_V1(millrace_note_change);

/* Runs a statement that is kept for the life of the backend as the extension's owner. */
static uint64
run_as_owner(MrStatement **statement, const char *sql, int nargs, const Oid *types, Datum *values)
{
	MrRunAs saved;
	uint64 nrows;

	if (*statement == NULL)
	{
		MemoryContext context = MemoryContextSwitchTo(TopMemoryContext);

		*statement = mr_statement_create(sql, nargs, types);
		MemoryContextSwitchTo(context);
	}
	mr_run_as(&saved, mr_extension_owner());
	nrows = mr_statement_run(*statement, values, NULL);
	mr_run_back(&saved);
	return nrows;
}

static MrOnError
on_error_of(const char *word)
{
	if (strcmp(word, "skip") == 0)
		return MR_ON_ERROR_SKIP;
	if (strcmp(word, "stop") == 0)
		return MR_ON_ERROR_STOP;
	return MR_ON_ERROR_DEAD_LETTER;
}

/* Reads a stream's row; NULL when it is gone. */
MrStream *
mr_stream_load(MemoryContext parent, int32 id)
{
	static MrStatement *statement = NULL;
	const Oid types[] = {INT4OID};
	Datum values[] = {Int32GetDatum(id)};
	MemoryContext context;
	MemoryContext old;
	MrStream *stream;
	bool isnull;

	if (run_as_owner(&statement,
					 "SELECT s.name, s.owner::oid, s.server::text, s.format, s.options::text,"
					 " s.workers, s.on_error, s.epoch, s.enabled, s.config_version, s.fence,"
					 " s.start::text, coalesce(s.max_dead_letter_share, -1), s.stop_reason,"
					 " (SELECT w.fdwname::text FROM pg_catalog.pg_foreign_server f"
					 " JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = f.srvfdw"
					 " WHERE f.srvname = s.server)"
					 " FROM millrace.stream s WHERE s.id = $1",
					 lengthof(types), types, values) == 0)
	{
		SPI_freetuptable(SPI_tuptable);
		return NULL;
	}

	context = AllocSetContextCreate(parent, "millrace stream", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	stream = palloc0(sizeof(MrStream));
	stream->context = context;
	stream->id = id;
	stream->name = mr_sql_text(0, 1);
	stream->owner = DatumGetObjectId(mr_sql_value(0, 2, &isnull));
	stream->server = mr_sql_text(0, 3);
	stream->format = mr_sql_text(0, 4);
	stream->options = mr_sql_text(0, 5);
	stream->workers = DatumGetInt32(mr_sql_value(0, 6, &isnull));
	stream->on_error = on_error_of(mr_sql_text(0, 7));
	stream->epoch = DatumGetInt32(mr_sql_value(0, 8, &isnull));
	stream->enabled = DatumGetBool(mr_sql_value(0, 9, &isnull));
	stream->config_version = DatumGetInt64(mr_sql_value(0, 10, &isnull));
	stream->fence = mr_sql_text(0, 11);
	stream->start = mr_sql_text(0, 12);
	stream->max_dead_letter_share = DatumGetFloat8(mr_sql_value(0, 13, &isnull));
	stream->stop_reason = mr_sql_text(0, 14);
	stream->wrapper = mr_sql_text(0, 15);
	MemoryContextSwitchTo(old);
	SPI_freetuptable(SPI_tuptable);
	return stream;
}

/* The id of the stream of that name, or 0. */
int32
mr_stream_id(const char *name)
{
	static MrStatement *statement = NULL;
	const Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(name)};
	int32 id = 0;
	bool isnull;

	if (run_as_owner(&statement, "SELECT s.id FROM millrace.stream s WHERE s.name = $1",
					 lengthof(types), types, values) > 0)
		id = DatumGetInt32(mr_sql_value(0, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return id;
}

/* The version of the stream's declaration now, 0 when it is gone. */
int64
mr_stream_config_version(int32 id, bool *enabled)
{
	static MrStatement *statement = NULL;
	const Oid types[] = {INT4OID};
	Datum values[] = {Int32GetDatum(id)};
	int64 version = 0;
	bool isnull;

	*enabled = false;
	if (run_as_owner(&statement,
					 "SELECT s.config_version, s.enabled FROM millrace.stream s WHERE s.id = $1",
					 lengthof(types), types, values) > 0)
	{
		version = DatumGetInt64(mr_sql_value(0, 1, &isnull));
		*enabled = DatumGetBool(mr_sql_value(0, 2, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	return version;
}

/* The stream's row as an object: pg_locks shows it as one. */
static LOCKTAG
lock_tag(int32 id)
{
	Oid namespace = get_namespace_oid("millrace", false);
	Oid table = get_relname_relid("stream", namespace);
	LOCKTAG tag;

	if (!OidIsValid(table))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("relation \"%s\" does not exist", "millrace.stream")));
	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, table, (Oid) id, 0);
	return tag;
}

void
mr_stream_lock(int32 id, bool exclusive)
{
	LOCKTAG tag = lock_tag(id);

	(void) LockAcquire(&tag, exclusive ? ExclusiveLock : ShareLock, false, false);
	/* What was decided by whoever held the lock is to be seen. */
	AcceptInvalidationMessages();
}

void
mr_stream_unlock(int32 id, bool exclusive)
{
	LOCKTAG tag = lock_tag(id);

	(void) LockRelease(&tag, exclusive ? ExclusiveLock : ShareLock, false);
}

const MrSourceKind *
mr_source_kind(const MrStream *stream)
{
	if (stream->server == NULL)
		return &mr_inbox_source;
	if (stream->wrapper != NULL && strcmp(stream->wrapper, "millrace_postgres") == 0)
		return &mr_postgres_source;
	return &mr_kafka_source;
}

const char *
mr_source_problem(const MrSource *source)
{
	return source->problem;
}

void
mr_source_set_problem(MrSource *source, const char *problem)
{
	if (source->problem != NULL && problem != NULL && strcmp(source->problem, problem) == 0)
		return;
	if (source->problem != NULL)
		pfree(source->problem);
	source->problem = problem == NULL ? NULL
									  : MemoryContextStrdup(GetMemoryChunkContext(source), problem);
}

/* Records an incident; one that has been recorded with the same words in the last hour is not repeated. */
void
mr_incident(int32 stream_id, const char *kind, const char *detail)
{
	static MrStatement *statement = NULL;
	const Oid types[] = {INT4OID, TEXTOID, TEXTOID};
	Datum values[] = {Int32GetDatum(stream_id), CStringGetTextDatum(kind),
					  CStringGetTextDatum(detail)};

	(void) run_as_owner(
		&statement,
		"INSERT INTO millrace.stream_incident (stream_id, kind, detail)"
		" SELECT $1, $2, $3 WHERE NOT EXISTS (SELECT FROM millrace.stream_incident i"
		" WHERE i.stream_id = $1 AND i.kind = $2 AND i.detail = $3"
		" AND i.at > pg_catalog.clock_timestamp() - interval '1 hour')",
		lengthof(types), types, values);
}

/* millrace_internal.lock_stream(id, exclusive) */
Datum
millrace_lock_stream(PG_FUNCTION_ARGS)
{
	mr_stream_lock(PG_GETARG_INT32(0), PG_GETARG_BOOL(1));
	PG_RETURN_VOID();
}

/* millrace_internal.wake(id): the stream's workers and the manager look again when this commits. */
Datum
millrace_wake(PG_FUNCTION_ARGS)
{
	mr_worker_wake_at_commit(PG_GETARG_INT32(0));
	mr_manager_wake_at_commit();
	PG_RETURN_VOID();
}

/* Which instance this is (C15): the cluster, the database, and the name that the administrator gave. */
static char *
instance_fence(void)
{
	return psprintf(UINT64_FORMAT "/%u/%s", GetSystemIdentifier(), MyDatabaseId,
					mr_instance == NULL ? "" : mr_instance);
}

void
mr_stream_check_fence(const MrStream *stream)
{
	if (strcmp(stream->fence, instance_fence()) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("stream \"%s\" belongs to another database or server", stream->name),
				 errdetail("It came here with a dump or a copy, and its original may still run."),
				 errhint("Call millrace.adopt() to make it run here.")));
}

/* millrace_internal.fence() */
Datum
millrace_fence(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(instance_fence()));
}

/* Trigger: what backends remember of the table's rows is forgotten. */
Datum
millrace_note_change(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
						errmsg("function \"%s\" was not called by a trigger", "note_change")));
	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	return PointerGetDatum(NULL);
}
