/*
 * lifecycle.c
 *	  What starting a stream has to know of this server.
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "core/millrace.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(millrace_background);

/* millrace_internal.background(): why nothing runs in the background here: 'preload', 'databases', or NULL. */
Datum
millrace_background(PG_FUNCTION_ARGS)
{
	char *database = get_database_name(MyDatabaseId);
	ListCell *cell;

	if (!mr_worker_ready())
		PG_RETURN_TEXT_P(cstring_to_text("preload"));
	foreach(cell, mr_worker_databases())
	{
		if (strcmp(lfirst(cell), database) == 0)
			PG_RETURN_NULL();
	}
	PG_RETURN_TEXT_P(cstring_to_text("databases"));
}
