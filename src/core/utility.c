/*
 * utility.c
 *	  Commands before which our processes have to leave a database (C16), and those after which something is somebody else's.
 *
 * DROP DATABASE, ALTER DATABASE ... RENAME and SET TABLESPACE and CREATE DATABASE ... TEMPLATE refuse to work
 * on a database that somebody is connected to; DROP EXTENSION would wait for batches and pull the tables from
 * under the workers.  So they leave first and are kept away until the command's transaction ends, whatever
 * its end.  Nobody stops anything by a command that he is not allowed to give.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "core/compat.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "core/worker.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

static ProcessUtility_hook_type previous_process_utility = NULL;

/* The value of an option of CREATE or ALTER DATABASE, or a default. */
static const char *
database_option(List *options, const char *name, const char *otherwise)
{
	ListCell *cell;

	foreach(cell, options)
	{
		DefElem *option = lfirst(cell);

		if (strcmp(option->defname, name) == 0 && option->arg)
			return defGetString(option);
	}
	return otherwise;
}

/* May the current user take the database as a template? */
static bool
may_copy(Oid database)
{
	HeapTuple tuple;
	bool allowed = superuser();

	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		allowed |= ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	if (!allowed || object_ownercheck(DatabaseRelationId, database, GetUserId()))
		return allowed;

	allowed = false;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (HeapTupleIsValid(tuple))
	{
		allowed = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	return allowed;
}

/* Makes our processes leave a database that is going to be dropped, changed or copied. */
static void
leave_database(const char *name, bool copied)
{
	Oid database = name ? get_database_oid(name, true) : InvalidOid;

	if (!OidIsValid(database) || (database == MyDatabaseId && !copied))
		return; /* the command itself says what is wrong */
	if (copied ? may_copy(database) : object_ownercheck(DatabaseRelationId, database, GetUserId()))
		mr_database_hold(database);
}

/* Makes the workers leave this database when its extension is going to be dropped. */
static void
leave_extension(DropStmt *stmt)
{
	ListCell *cell;

	foreach(cell, stmt->objects)
	{
		const char *name = strVal(lfirst(cell));
		Oid extension;

		if (strcmp(name, "millrace") != 0)
			continue;
		extension = get_extension_oid(name, true);
		if (OidIsValid(extension) && object_ownercheck(ExtensionRelationId, extension, GetUserId()))
			mr_database_hold(MyDatabaseId);
	}
}

/* Sees to it that our processes are not in the way of a command. */
static void
prepare_for(Node *parsetree, ProcessUtilityContext context)
{
	bool alone = context == PROCESS_UTILITY_TOPLEVEL && !IsTransactionBlock();

	switch (nodeTag(parsetree))
	{
		case T_DropdbStmt:
			if (alone)
				leave_database(((DropdbStmt *) parsetree)->dbname, false);
			break;
		case T_CreatedbStmt:
			if (alone)
				leave_database(
					database_option(((CreatedbStmt *) parsetree)->options, "template", "template1"),
					true);
			mr_launcher_wake_at_commit();
			break;
		case T_AlterDatabaseStmt:
			if (alone &&
				database_option(((AlterDatabaseStmt *) parsetree)->options, "tablespace", NULL))
				leave_database(((AlterDatabaseStmt *) parsetree)->dbname, false);
			mr_launcher_wake_at_commit(); /* ALLOW_CONNECTIONS */
			break;
		case T_RenameStmt:
			if (((RenameStmt *) parsetree)->renameType == OBJECT_DATABASE)
			{
				leave_database(((RenameStmt *) parsetree)->subname, false);
				mr_launcher_wake_at_commit();
			}
			break;
		case T_DropStmt:
			if (((DropStmt *) parsetree)->removeType == OBJECT_EXTENSION)
				leave_extension((DropStmt *) parsetree);
			break;
		case T_CreateExtensionStmt:
			if (strcmp(((CreateExtensionStmt *) parsetree)->extname, "millrace") == 0)
				mr_manager_wake_at_commit();
			break;
		case T_AlterRoleStmt:
		case T_DropRoleStmt:
			mr_manager_wake_at_commit(); /* LOGIN, owners */
			break;
		default:
			break;
	}
}

/* Does a command give relations to another role? */
static bool
gives_away(Node *parsetree)
{
	ListCell *cell;

	if (IsA(parsetree, AlterTableStmt))
		foreach(cell, ((AlterTableStmt *) parsetree)->cmds)
			if (lfirst_node(AlterTableCmd, cell)->subtype == AT_ChangeOwner)
				return true;
	return IsA(parsetree, ReassignOwnedStmt);
}

/* What is kept of relations becomes their owners'; REASSIGN OWNED has no event trigger. */
static void
follow_owners(void)
{
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	(void) mr_sql("SELECT millrace_internal.follow_owners()");
	SPI_finish();
	mr_run_back(&saved);
}

/* The hook. */
static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *environment,
				DestReceiver *dest, QueryCompletion *completion)
{
	bool has_given = gives_away(pstmt->utilityStmt);

	if (!IsAbortedTransactionBlockState())
		prepare_for(pstmt->utilityStmt, context);
	if (previous_process_utility)
		previous_process_utility(pstmt, query, read_only_tree, context, params, environment, dest,
								 completion);
	else
		standard_ProcessUtility(pstmt, query, read_only_tree, context, params, environment, dest,
								completion);
	/* pg_upgrade makes tables before functions. */
	if (has_given && !IsBinaryUpgrade && mr_extension_exists())
		follow_owners();
}

/* Installs the hook; from _PG_init of the preloaded library. */
void
mr_utility_init(void)
{
	previous_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
