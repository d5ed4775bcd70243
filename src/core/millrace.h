/*
 * millrace.h
 *	  What every file of millrace may use: settings, identities, classes of errors.
 */
#ifndef MR_CORE_MILLRACE_H
#define MR_CORE_MILLRACE_H

#include "core/compat.h"
#include "fmgr.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#define MR_VERSION "0.1"

/* Settings; docs/reference.md describes them. */
extern char *mr_databases;
extern char *mr_instance;
extern char *mr_secrets_directory;
extern char *mr_allowed_hosts;
extern int mr_delivery_workers;
extern int mr_worker_memory; /* kB */
extern int mr_backfill_rows;
extern int mr_rule_timeout; /* ms; 0: none */
extern int mr_model_cache; /* kB; 0: none */
extern int mr_online_model_size; /* kB; -1: any */

/*
 * Three classes of errors (C10): data goes to the dead letters, configuration stops the stream until
 * somebody changes something, everything else is tried again.
 */
typedef enum MrErrorClass
{
	MR_ERROR_DATA,
	MR_ERROR_CONFIGURATION,
	MR_ERROR_ENVIRONMENT
} MrErrorClass;

extern MrErrorClass mr_error_class(int sqlstate);

/* A subtransaction around PG_TRY that leaves memory context and resource owner as they were. */
typedef struct MrAttempt
{
	MemoryContext context;
	ResourceOwner owner;
} MrAttempt;

extern void mr_attempt_begin(MrAttempt *attempt);
/* At the end of PG_TRY; without `keep` it is rolled back. */
extern void mr_attempt_end(const MrAttempt *attempt, bool keep);
/* In PG_CATCH: rolls it back and returns the error, which lives where the attempt began. */
extern ErrorData *mr_attempt_failed(const MrAttempt *attempt);
/* Raises an error again that was copied into memory which may go before it is reported. */
extern void mr_rethrow(ErrorData *error) __attribute__((noreturn));

/* Who the current user was, to go back to him. */
typedef struct MrRunAs
{
	Oid user;
	int sec_context;
	int nest_level; /* of settings, or 0 */
} MrRunAs;

extern void mr_run_as(MrRunAs *saved, Oid role);
extern void mr_run_as_restricted(MrRunAs *saved, Oid role);
extern void mr_run_back(const MrRunAs *saved);

extern Oid mr_extension_owner(void);
extern bool mr_extension_exists(void);

/* Pins the settings under which expressions mean the same everywhere (C9); undone by mr_settings_unpin. */
extern int mr_settings_pin(const char *timezone);
extern void mr_settings_unpin(int nest_level);
/* The same for good, with UTC: for a process of ours. */
extern void mr_settings_pin_session(void);

/*
 * Makes plans that are kept go through indexes, one row after the other, whatever the statistics of
 * young tables say; undone by mr_settings_unpin.
 */
extern int mr_settings_prefer_indexes(void);

/* Becomes the search_path under which the declaring function was called, until AtEOXact_GUC(…, level). */
extern int mr_enter_declaring_path(void);

/* Named debug points: in test builds the setting millrace.debug_point makes one kill the process or, after '~', wait. */
#ifdef MR_DEBUG_POINTS
extern void mr_debug_point_init(void);
extern void mr_debug_point(const char *name);
#else
#define mr_debug_point_init() ((void) 0)
#define mr_debug_point(name) ((void) 0)
#endif

#endif /* MR_CORE_MILLRACE_H */
