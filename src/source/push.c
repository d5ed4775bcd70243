/*
 * push.c
 *	  millrace.push(): appends a message to an inbox in the caller's transaction.
 *
 * Who may push is looked up once for each stream and role, and remembered until a stream, a grant or a
 * membership changes.  Rows go straight through the heap, so that a set-based push costs little more than an
 * INSERT.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "commands/sequence.h"
#include "common/hashfn.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "source/inbox.h"
#include "source/source.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(millrace_push_text);
PG_FUNCTION_INFO_V1(millrace_push_jsonb);
PG_FUNCTION_INFO_V1(millrace_push_bytea);

typedef struct InboxKey
{
	NameData name;
	Oid role;
} InboxKey;

/* What is remembered of a stream that a role may push to. */
typedef struct Inbox
{
	InboxKey key;
	int32 stream_id;
} Inbox;

static HTAB *inboxes = NULL;
static bool inboxes_valid = false;
static Oid stream_table = InvalidOid;
static Oid grant_table = InvalidOid;
static Oid inbox_table = InvalidOid;
static Oid push_sequence = InvalidOid;

static void
forget_inboxes_rel(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == stream_table || relid == grant_table ||
		relid == inbox_table || relid == push_sequence)
		inboxes_valid = false;
}

static void
forget_inboxes_sys(Datum arg, int cacheid, uint32 hashvalue)
{
	inboxes_valid = false;
}

/* Empties the memory and finds our tables. */
static void
begin_inboxes(void)
{
	Oid namespace = get_namespace_oid("millrace", false);
	HASHCTL control = {0};

	if (inboxes != NULL)
		hash_destroy(inboxes);
	else
	{
		CacheRegisterRelcacheCallback(forget_inboxes_rel, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHOID, forget_inboxes_sys, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, forget_inboxes_sys, (Datum) 0);
	}
	control.keysize = sizeof(InboxKey);
	control.entrysize = sizeof(Inbox);
	inboxes = hash_create("millrace inboxes", 64, &control, HASH_ELEM | HASH_BLOBS);

	stream_table = get_relname_relid("stream", namespace);
	grant_table = get_relname_relid("stream_grant", namespace);
	inbox_table = get_relname_relid("inbox", namespace);
	push_sequence = get_relname_relid("inbox_push_no_seq", namespace);
	if (!OidIsValid(stream_table) || !OidIsValid(grant_table) || !OidIsValid(inbox_table) ||
		!OidIsValid(push_sequence))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("tables of extension \"millrace\" are missing")));
	inboxes_valid = true;
}

/* The stream of that name if it is an inbox and `role` may push to it, else an error. */
static int32
check_inbox(const char *name, Oid role)
{
	MemoryContext context = CurrentMemoryContext;
	bool allowed = superuser_arg(role);
	char *server = NULL;
	int32 id = 0;
	Oid owner = InvalidOid;
	MrRunAs saved;
	bool isnull;
	int nest_level;

	SPI_connect();
	/* The caller's search_path must not decide what the extension's owner runs. */
	nest_level = mr_settings_pin("UTC");
	mr_run_as(&saved, mr_extension_owner());
	if (mr_sql("SELECT s.id, s.owner::oid, s.server::text FROM millrace.stream s WHERE s.name = %s",
			   quote_literal_cstr(name)) > 0)
	{
		id = DatumGetInt32(mr_sql_value(0, 1, &isnull));
		owner = DatumGetObjectId(mr_sql_value(0, 2, &isnull));
		server = mr_sql_text(0, 3);
		allowed = allowed || has_privs_of_role(role, owner);
		if (server != NULL)
			server = MemoryContextStrdup(context, server);
	}
	if (id != 0 && !allowed)
	{
		uint64 n = mr_sql("SELECT g.role::oid FROM millrace.stream_grant g WHERE g.stream_id = %d",
						  id);

		for (uint64 i = 0; i < n && !allowed; i++)
		{
			Oid granted = DatumGetObjectId(mr_sql_value(i, 1, &isnull));

			/* PUBLIC is granted as no role at all. */
			allowed = granted == ACL_ID_PUBLIC || has_privs_of_role(role, granted);
		}
	}
	mr_run_back(&saved);
	mr_settings_unpin(nest_level);
	SPI_finish();

	if (id == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("stream \"%s\" does not exist", name)));
	if (!allowed)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied to push to stream \"%s\"", name),
						errhint("Its owner can allow it with millrace.grant_push().")));
	if (server != NULL)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("stream \"%s\" reads from server \"%s\" and takes no messages", name,
							   server),
						errhint("Only a stream without a server is an inbox.")));
	return id;
}

/* The id of an inbox that the current user may push to. */
static int32
find_inbox(text *name)
{
	Size length = VARSIZE_ANY_EXHDR(name);
	Oid role = GetUserId();
	InboxKey key;
	Inbox *inbox;
	bool found;
	int32 id;

	if (length >= NAMEDATALEN)
		return check_inbox(text_to_cstring(name), role);

	if (!inboxes_valid)
		begin_inboxes();
	MemSet(&key, 0, sizeof(key));
	memcpy(NameStr(key.name), VARDATA_ANY(name), length);
	key.role = role;
	inbox = hash_search(inboxes, &key, HASH_FIND, NULL);
	if (inbox != NULL)
		return inbox->stream_id;

	id = check_inbox(text_to_cstring(name), role);
	/* The look-up itself may have heard of a change. */
	if (!inboxes_valid)
		begin_inboxes();
	inbox = hash_search(inboxes, &key, HASH_ENTER, &found);
	inbox->stream_id = id;
	return id;
}

/* Appends one message; `value` NULL is a tombstone. */
static Datum
push(FunctionCallInfo fcinfo, bytea *value)
{
	Datum values[MR_INBOX_COLUMNS] = {0};
	bool nulls[MR_INBOX_COLUMNS] = {0};
	int32 stream_id;
	int64 push_no;
	uint32 bucket;
	Relation inbox;
	HeapTuple tuple;

	PreventCommandIfReadOnly("millrace.push()");
	PreventCommandIfParallelMode("millrace.push()");
	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("the stream to push to must not be null")));
	stream_id = find_inbox(PG_GETARG_TEXT_PP(0));

	inbox = table_open(inbox_table, RowExclusiveLock);
	push_no = nextval_internal(push_sequence, false);
	values[MR_INBOX_PUSH_NO] = Int64GetDatum(push_no);
	values[MR_INBOX_STREAM_ID] = Int32GetDatum(stream_id);
	if (PG_ARGISNULL(2))
	{
		/* Without a key any worker will do. */
		nulls[MR_INBOX_KEY] = true;
		bucket = hash_bytes_uint32((uint32) push_no);
	}
	else
	{
		bytea *key = PG_GETARG_TEXT_PP(2);

		values[MR_INBOX_KEY] = PointerGetDatum(key);
		bucket = hash_bytes((unsigned char *) VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key));
	}
	values[MR_INBOX_BUCKET] = Int32GetDatum((int32) (bucket & PG_INT32_MAX));
	values[MR_INBOX_VALUE] = PointerGetDatum(value);
	nulls[MR_INBOX_VALUE] = value == NULL;
	if (PG_ARGISNULL(3))
		nulls[MR_INBOX_HEADERS] = true;
	else
	{
		text *headers = PG_GETARG_TEXT_PP(3);
		int i = 0;

		while (i < VARSIZE_ANY_EXHDR(headers) && isspace((unsigned char) VARDATA_ANY(headers)[i]))
			i++;
		if (i >= VARSIZE_ANY_EXHDR(headers) || VARDATA_ANY(headers)[i] != '{')
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("headers must be a JSON object")));
		values[MR_INBOX_HEADERS] = PointerGetDatum(headers);
	}
	values[MR_INBOX_MESSAGE_TIME] = PG_ARGISNULL(4) ? TimestampTzGetDatum(GetCurrentTimestamp())
													: PG_GETARG_DATUM(4);

	tuple = heap_form_tuple(RelationGetDescr(inbox), values, nulls);
	CatalogTupleInsert(inbox, tuple);
	heap_freetuple(tuple);
	table_close(inbox, RowExclusiveLock);

	mr_worker_wake_at_commit(stream_id);
	PG_RETURN_INT64(push_no);
}

/* push(stream, payload text or json, ...) */
Datum
millrace_push_text(PG_FUNCTION_ARGS)
{
	return push(fcinfo, PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1));
}

/* push(stream, payload jsonb, ...) */
Datum
millrace_push_jsonb(PG_FUNCTION_ARGS)
{
	Jsonb *payload;
	char *json;

	if (PG_ARGISNULL(1))
		return push(fcinfo, NULL);
	payload = PG_GETARG_JSONB_P(1);
	json = JsonbToCString(NULL, &payload->root, VARSIZE(payload));
	return push(fcinfo, cstring_to_text(json));
}

/* push(stream, payload bytea, ...): bytes as they are */
Datum
millrace_push_bytea(PG_FUNCTION_ARGS)
{
	return push(fcinfo, PG_ARGISNULL(1) ? NULL : PG_GETARG_BYTEA_PP(1));
}
