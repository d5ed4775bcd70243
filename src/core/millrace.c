/*
 * millrace.c
 *	  Entry point and settings.
 */
#include "postgres.h"

#include <limits.h>

#include "core/copies.h"
#include "core/millrace.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "utils/guc.h"

PG_MODULE_MAGIC;

char *mr_databases = NULL;
char *mr_instance = NULL;
char *mr_secrets_directory = NULL;
char *mr_allowed_hosts = NULL;
int mr_delivery_workers = 1;
int mr_worker_memory = 256 * 1024;
int mr_backfill_rows = 5000;
int mr_rule_timeout = 1000;
int mr_model_cache = 512 * 1024;
int mr_online_model_size = 10 * 1024 * 1024;

extern PGDLLEXPORT void _PG_init(void);

/* Defines the settings; when preloaded also asks for shared memory and the launcher. */
void
_PG_init(void)
{
	DefineCustomStringVariable("millrace.databases",
							   "Databases in which streams run in the background.",
							   "A comma-separated list of names.", &mr_databases, "postgres",
							   PGC_SIGHUP, GUC_LIST_INPUT, NULL, NULL, NULL);
	DefineCustomStringVariable("millrace.instance",
							   "Name of this copy of the data, part of what fences a restored or "
							   "cloned database.",
							   NULL, &mr_instance, "", PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("millrace.secrets_directory",
							   "Directory in which files with passwords and certificates lie.",
							   "Relative to the data directory, or absolute.",
							   &mr_secrets_directory, "millrace_secrets", PGC_SIGHUP,
							   GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomIntVariable("millrace.worker_memory",
							"Memory of one stream worker, the queue of its source included.", NULL,
							&mr_worker_memory, 256 * 1024, 64 * 1024, MAX_KILOBYTES, PGC_SIGHUP,
							GUC_UNIT_KB, NULL, NULL, NULL);

	DefineCustomIntVariable("millrace.backfill_rows",
							"Rows that one chunk reads when a table is filled in the background.",
							NULL, &mr_backfill_rows, 5000, 1, 1000000, PGC_USERSET, 0, NULL, NULL,
							NULL);

	DefineCustomIntVariable("millrace.rule_timeout",
							"How long a rule may take for one row before it is suspended.",
							"0 lets it take as long as it takes.", &mr_rule_timeout, 1000, 0,
							INT_MAX, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"millrace.online_model_size",
		"How large an online model may become by what is staged when it is created.",
		"It is estimated from above; -1 does not limit it.", &mr_online_model_size,
		10 * 1024 * 1024, -1, MAX_KILOBYTES, PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomStringVariable(
		"millrace.allowed_hosts", "Hosts to which requests over HTTP may go.",
		"A comma-separated list of names, patterns such as *.example.com, "
		"addresses and networks; private addresses only when they are listed.",
		&mr_allowed_hosts, "api.telegram.org, hooks.slack.com", PGC_SIGHUP,
		GUC_LIST_INPUT | GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomIntVariable("millrace.delivery_workers",
							"Processes that send over webhooks and Telegram in each database.",
							NULL, &mr_delivery_workers, 1, 1, 16, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("millrace.model_cache",
							"Shared memory for copies of the models that are served.",
							"0 has them read from their tables.", &mr_model_cache, 512 * 1024, 0,
							MAX_KILOBYTES, PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);

	if (process_shared_preload_libraries_in_progress)
	{
		mr_worker_shmem_init();
		mr_copies_shmem_init();
		mr_launcher_register();
		mr_utility_init();
	}
	mr_debug_point_init();

	MarkGUCPrefixReserved("millrace");
}
