/*
 * owner.c
 *	  Who runs what, under which settings, what an error means, and how it is caught.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "core/millrace.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/pg_locale.h"
#include "utils/rls.h"

PG_FUNCTION_INFO_V1(millrace_has_row_security);

/* Becomes `role`; the transaction's abort would also go back. */
void
mr_run_as(MrRunAs *saved, Oid role)
{
	saved->nest_level = 0;
	GetUserIdAndSecContext(&saved->user, &saved->sec_context);
	SetUserIdAndSecContext(role, saved->sec_context | SECURITY_LOCAL_USERID_CHANGE);
}

/*
 * Becomes `role` for expressions, triggers and statements that it wrote: they may change no session state, and
 * what they set, the search_path above all, does not outlast them.
 */
void
mr_run_as_restricted(MrRunAs *saved, Oid role)
{
	saved->nest_level = NewGUCNestLevel();
	GetUserIdAndSecContext(&saved->user, &saved->sec_context);
	SetUserIdAndSecContext(role, saved->sec_context | SECURITY_LOCAL_USERID_CHANGE |
									 SECURITY_RESTRICTED_OPERATION);
}

void
mr_run_back(const MrRunAs *saved)
{
	if (saved->nest_level > 0)
		AtEOXact_GUC(false, saved->nest_level);
	SetUserIdAndSecContext(saved->user, saved->sec_context);
}

Datum
millrace_has_row_security(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(check_enable_rls(PG_GETARG_OID(1), PG_GETARG_OID(0), true) == RLS_ENABLED);
}

bool
mr_extension_exists(void)
{
	return OidIsValid(get_extension_oid("millrace", true));
}

/* The role to which config and state belong. */
Oid
mr_extension_owner(void)
{
	Relation extensions = table_open(ExtensionRelationId, AccessShareLock);
	Oid owner = InvalidOid;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("millrace"));
	scan = systable_beginscan(extensions, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
	systable_endscan(scan);
	table_close(extensions, AccessShareLock);

	if (!OidIsValid(owner))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("extension \"millrace\" is not installed in this database"),
						errhint("Run CREATE EXTENSION millrace.")));
	return owner;
}

/* What results of expressions may depend on beside the time zone, and what would make their evaluation slow. */
static const char *const pinned[][2] = {
	{"search_path", "pg_catalog, pg_temp"},
	{"DateStyle", "ISO, YMD"},
	{"IntervalStyle", "postgres"},
	{"timezone_abbreviations", "Default"},
	{"extra_float_digits", "1"},
	{"bytea_output", "hex"},
	{"xmlbinary", "base64"},
	{"xmloption", "content"},
	{"lc_monetary", "C"},
	{"lc_numeric", "C"},
	{"lc_time", "C"},
	{"default_text_search_config", "pg_catalog.simple"},
	{"array_nulls", "on"},
	{"transform_null_equals", "off"},
	{"standard_conforming_strings", "on"},
	{"backslash_quote", "safe_encoding"},
	{"quote_all_identifiers", "off"},
	/* Compiling takes longer than most of our statements. */
	{"jit", "off"},
};

/* This process has them for good: what others write changes no setting beyond itself (mr_run_as_restricted). */
static bool session_is_pinned = false;

/* Sets one of them.  A value that is there already is skipped: it would cost more than a small batch. */
static void
pin(const char *name, const char *value)
{
	if (strcmp(GetConfigOption(name, false, false), value) != 0)
		(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
}

int
mr_settings_pin(const char *timezone)
{
	int nest_level = NewGUCNestLevel();

	pin("TimeZone", timezone);
	for (int i = 0; i < lengthof(pinned) && !session_is_pinned; i++)
		pin(pinned[i][0], pinned[i][1]);
	return nest_level;
}

void
mr_settings_pin_session(void)
{
	SetConfigOption("TimeZone", "UTC", PGC_SUSET, PGC_S_OVERRIDE);
	for (int i = 0; i < lengthof(pinned); i++)
		SetConfigOption(pinned[i][0], pinned[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	session_is_pinned = true;
}

int
mr_settings_prefer_indexes(void)
{
	static const char *const planning[][2] = {
		{"enable_seqscan", "off"},  {"enable_bitmapscan", "off"},
		{"enable_hashjoin", "off"}, {"enable_mergejoin", "off"},
		{"enable_material", "off"}, {"plan_cache_mode", "force_generic_plan"}};
	int nest_level = NewGUCNestLevel();

	for (int i = 0; i < lengthof(planning); i++)
		(void) set_config_option(planning[i][0], planning[i][1], PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	return nest_level;
}

void
mr_settings_unpin(int nest_level)
{
	AtEOXact_GUC(false, nest_level);
}

/* Which of the three classes (C10) an SQLSTATE belongs to. */
MrErrorClass
mr_error_class(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case MAKE_SQLSTATE('2', '2', '0', '0', '0'):
		case MAKE_SQLSTATE('2', '3', '0', '0', '0'):
		/* A value that is too large for an index is as bad as one that does not fit its type. */
		case MAKE_SQLSTATE('5', '4', '0', '0', '0'):
		/* What functions in PL/pgSQL and other languages say of a value that they were not made for. */
		case MAKE_SQLSTATE('2', '0', '0', '0', '0'):
		case MAKE_SQLSTATE('2', '1', '0', '0', '0'):
		case MAKE_SQLSTATE('3', '8', '0', '0', '0'):
		case MAKE_SQLSTATE('3', '9', '0', '0', '0'):
		case MAKE_SQLSTATE('P', '0', '0', '0', '0'):
			return MR_ERROR_DATA;
		case MAKE_SQLSTATE('4', '2', '0', '0', '0'):
		case MAKE_SQLSTATE('3', 'F', '0', '0', '0'):
		case MAKE_SQLSTATE('2', '8', '0', '0', '0'):
		case MAKE_SQLSTATE('0', 'A', '0', '0', '0'):
		case MAKE_SQLSTATE('2', 'F', '0', '0', '0'):
			return MR_ERROR_CONFIGURATION;
		default:
			return MR_ERROR_ENVIRONMENT;
	}
}

void
mr_attempt_begin(MrAttempt *attempt)
{
	attempt->context = CurrentMemoryContext;
	attempt->owner = CurrentResourceOwner;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(attempt->context);
}

void
mr_attempt_end(const MrAttempt *attempt, bool keep)
{
	if (keep)
		ReleaseCurrentSubTransaction();
	else
		RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(attempt->context);
	CurrentResourceOwner = attempt->owner;
}

ErrorData *
mr_attempt_failed(const MrAttempt *attempt)
{
	ErrorData *error;

	MemoryContextSwitchTo(attempt->context);
	error = CopyErrorData();
	FlushErrorState();
	mr_attempt_end(attempt, false);
	return error;
}

/* Copies a word of an error's origin to where the error itself is. */
static const char *
keep_origin(const char *word)
{
	return word == NULL ? NULL : MemoryContextStrdup(ErrorContext, word);
}

/*
 * What a copy of an error says of its origin may be a copy, too, but ReThrowError() takes it for a constant: it would be gone with the memory
 * that is given back on the way to whoever reports the error.
 */
void
mr_rethrow(ErrorData *error)
{
	error->filename = keep_origin(error->filename);
	error->funcname = keep_origin(error->funcname);
	error->domain = keep_origin(error->domain);
	error->context_domain = keep_origin(error->context_domain);
	error->message_id = keep_origin(error->message_id);
	ReThrowError(error);
}

#ifdef MR_DEBUG_POINTS
static char *debug_point = NULL;

/* Test builds only: which named point kills the process that reaches it or, after '~', makes it wait for advisory lock 0. */
void
mr_debug_point_init(void)
{
	DefineCustomStringVariable("millrace.debug_point",
							   "Named point that kills the process, or makes it wait.", NULL,
							   &debug_point, "", PGC_SUSET, 0, NULL, NULL, NULL);
}

void
mr_debug_point(const char *name)
{
	if (debug_point == NULL)
		return;
	if (strcmp(debug_point, name) == 0)
		kill(MyProcPid, SIGKILL);
	if (debug_point[0] == '~' && strcmp(debug_point + 1, name) == 0)
		(void) DirectFunctionCall1(pg_advisory_xact_lock_int8, Int64GetDatum(0));
}
#endif
