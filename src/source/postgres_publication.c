/*
 * postgres_publication.c
 *	  The publication of a stream: what it sends, whether that is all that the stream is to read, and what mends it.
 *
 * A publication that an administrator has made may leave out operations, rows and columns, and may send partitions by
 * their own names.  Then what is copied and what is streamed would not be the same table, so that nothing is read before
 * it is mended.  It is looked at whenever the stream connects, and as often as the slot is: what was left out meanwhile
 * does not come any more, and the table is copied again.
 *
 * Names are compared with the catalog's, never looked up: looking up needs privileges, and what is missing of them is
 * told by statements.
 */
#include "postgres.h"

#include "core/millrace.h"
#include "source/postgres_source.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* What a publication does for a stream. */
typedef struct Publication
{
	bool exists;
	List *tables; /* char *: of those that the stream reads, what it has */
	List *missing; /* and what it has not, but could */
	List *partial; /* what it sends only in part */
	char *problem; /* the first; NULL: nothing has to be mended */
	char *help;
	bool gone; /* it is that a table does not exist */
} Publication;

/* Columns of what is asked for each table. */
enum
{
	TABLE_NAME,
	TABLE_EXISTS,
	TABLE_PUBLISHED,
	TABLE_PARTITIONED,
	TABLE_ANCESTOR, /* as which its changes are sent */
	TABLE_FILTER,
	TABLE_HIDDEN /* columns that are left out */
};

/* Two names as a row of SQL. */
static char *
name_row(const char *table)
{
	const char *dot = strchr(table, '.');

	return psprintf("(%s, %s)", quote_literal_cstr(pnstrdup(table, dot - table)),
					quote_literal_cstr(dot + 1));
}

char *
mr_pg_table_oid(const char *table)
{
	return psprintf("(SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n "
					"ON n.oid = c.relnamespace WHERE (n.nspname, c.relname) = %s)",
					name_row(table));
}

/* "schema"."table", … */
static char *
table_list(const List *tables)
{
	StringInfoData list;
	ListCell *cell;

	initStringInfo(&list);
	foreach(cell, tables)
		appendStringInfo(&list, "%s%s", list.len > 0 ? ", " : "", mr_pg_quoted(lfirst(cell)));
	return list.data;
}

/* Is one of the names not among the others? */
static bool
any_other(const List *names, const List *others)
{
	ListCell *cell;
	ListCell *other;

	foreach(cell, names)
	{
		bool found = false;

		foreach(other, others)
			found = found || strcmp(lfirst(cell), lfirst(other)) == 0;
		if (!found)
			return true;
	}
	return false;
}

/* The tables that the stream reads, as SQL with columns schema and name. */
static char *
wanted_tables(const MrPgOptions *options)
{
	StringInfoData rows;
	ListCell *cell;

	if (options->tables == NIL)
		return psprintf("SELECT t.schemaname, t.tablename FROM pg_catalog.pg_publication_tables t "
						"WHERE t.pubname = %s",
						quote_literal_cstr(options->publication));
	initStringInfo(&rows);
	foreach(cell, options->tables)
		appendStringInfo(&rows, "%s%s", rows.len > 0 ? ", " : "VALUES ", name_row(lfirst(cell)));
	return rows.data;
}

/* What there is to say of each table; row filters and column lists came with PostgreSQL 15. */
static char *
tables_query(const MrPgOptions *options, int version)
{
	bool parts = version >= 150000;

	return psprintf(
		"SELECT w.schema || '.' || w.name, c.oid IS NOT NULL, t.tablename IS NOT NULL, "
		"c.relkind = 'p', "
		"(SELECT p.schemaname || '.' || p.tablename FROM pg_catalog.pg_partition_ancestors(c.oid) "
		"a JOIN pg_catalog.pg_class r ON r.oid = a.relid JOIN pg_catalog.pg_namespace m ON m.oid = "
		"r.relnamespace JOIN pg_catalog.pg_publication_tables p ON p.pubname = %s AND "
		"p.schemaname = m.nspname AND p.tablename = r.relname WHERE a.relid <> c.oid LIMIT 1), "
		"%s, %s FROM (%s) AS w (schema, name) "
		"LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema "
		"LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name "
		"LEFT JOIN pg_catalog.pg_publication_tables t ON t.pubname = %s AND t.schemaname = "
		"w.schema AND t.tablename = w.name ORDER BY 1",
		quote_literal_cstr(options->publication), parts ? "t.rowfilter" : "NULL",
		parts ? "(SELECT pg_catalog.string_agg(a.attname, ', ' ORDER BY a.attnum) FROM "
				"pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT "
				"a.attisdropped AND a.attgenerated = '' AND a.attname <> ALL (t.attnames))"
			  : "NULL",
		wanted_tables(options), quote_literal_cstr(options->publication));
}

/* Notes what has to be mended first; what comes after it is told when that is done. */
static void
note_problem(Publication *found, char *problem, char *help)
{
	if (found->problem != NULL)
		return;
	found->problem = problem;
	found->help = help;
}

/* Does the publication send all operations?  *viaroot: changes of partitions come as those of their root. */
static void
examine_operations(const MrPgOptions *options, char **row, Publication *found)
{
	static const char *const names[] = {"insert", "update", "delete", "truncate"};
	StringInfoData lacking;

	initStringInfo(&lacking);
	for (int i = 0; i < lengthof(names); i++)
	{
		/* One that is ignored need not come. */
		if (row[i][0] == 't' || (i == 3 && strcmp(options->truncate, "ignore") == 0))
			continue;
		appendStringInfo(&lacking, "%s%s", lacking.len > 0 ? ", " : "", names[i]);
	}
	if (lacking.len > 0)
		note_problem(found,
					 psprintf("publication %s does not publish %s",
							  quote_identifier(options->publication), lacking.data),
					 psprintf("ALTER PUBLICATION %s SET (publish = 'insert, update, delete, "
							  "truncate')",
							  quote_identifier(options->publication)));
}

/* Is a table published, whole and by its name? */
static void
examine_table(const MrPgOptions *options, char **row, bool viaroot, Publication *found)
{
	const char *publication = quote_identifier(options->publication);
	char *table = row[TABLE_NAME];

	if (row[TABLE_EXISTS][0] != 't')
	{
		found->gone = found->problem == NULL;
		note_problem(found, psprintf("table %s does not exist at the source", table), NULL);
		return;
	}
	if (row[TABLE_PUBLISHED][0] != 't')
	{
		if (row[TABLE_PARTITIONED][0] == 't' && !viaroot)
			note_problem(
				found,
				psprintf("table %s is partitioned, and publication %s sends changes of its "
						 "partitions by their own names",
						 table, publication),
				psprintf("ALTER PUBLICATION %s SET (publish_via_partition_root = true)",
						 publication));
		else if (row[TABLE_ANCESTOR] != NULL)
			note_problem(found,
						 psprintf("publication %s sends changes of table %s as those of %s, of "
								  "which it is a partition: name that one in the stream's tables",
								  publication, table, row[TABLE_ANCESTOR]),
						 NULL);
		else
			found->missing = lappend(found->missing, table);
		return;
	}
	found->tables = lappend(found->tables, table);
	if (row[TABLE_FILTER] == NULL && row[TABLE_HIDDEN] == NULL)
		return;
	found->partial = lappend(found->partial, table);
	note_problem(found,
				 row[TABLE_FILTER] != NULL
					 ? psprintf("publication %s sends only rows of table %s WHERE %s", publication,
								table, row[TABLE_FILTER])
					 : psprintf("publication %s sends table %s without its columns %s", publication,
								table, row[TABLE_HIDDEN]),
				 psprintf("BEGIN; ALTER PUBLICATION %s DROP TABLE %s; ALTER PUBLICATION %s ADD "
						  "TABLE %s; COMMIT",
						  publication, mr_pg_quoted(table), publication, mr_pg_quoted(table)));
}

/* Looks at the publication; false: the source has not answered. */
static bool
examine(MrPgClient *client, const MrPgOptions *options, Publication *found)
{
	MrPgRows publication;
	MrPgRows tables;

	memset(found, 0, sizeof(*found));
	if (!mr_pg_run(client,
				   psprintf("SELECT p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, "
							"p.pubviaroot FROM pg_catalog.pg_publication p WHERE p.pubname = %s",
							quote_literal_cstr(options->publication)),
				   MR_PG_TIMEOUT, &publication) ||
		!mr_pg_run(client, tables_query(options, mr_pg_version(client)), MR_PG_TIMEOUT, &tables))
		return false;
	found->exists = publication.nrows > 0;
	if (found->exists)
		examine_operations(options, publication.values[0], found);
	for (int i = 0; i < tables.nrows; i++)
		examine_table(options, tables.values[i],
					  found->exists && publication.values[0][4][0] == 't', found);
	/* What is missing of the operations is missing of every table. */
	if (found->problem != NULL && found->partial == NIL)
		found->partial = found->tables;
	return true;
}

/* Makes the publication, or adds what it lacks of the tables. */
static bool
change_publication(MrPgSource *source, const char *sql)
{
	if (mr_pg_run(source->stream, sql, MR_PG_TIMEOUT * 2, NULL))
		return true;
	/* What is refused for another reason is refused to everybody. */
	return mr_pg_refuse(source, source->stream,
						strcmp(mr_pg_sqlstate(source->stream), "42501") == 0
							? psprintf("run at the source, as the owner of the tables: %s", sql)
							: NULL);
}

/* A copy of the names that lives as long as the feed. */
static List *
keep_names(MrPgSource *source, const List *names)
{
	MemoryContext old = MemoryContextSwitchTo(source->context);
	List *kept = NIL;
	ListCell *cell;

	foreach(cell, names)
		kept = lappend(kept, pstrdup(lfirst(cell)));
	MemoryContextSwitchTo(old);
	return kept;
}

/* Changes of tables have not been sent; the next tick notes it, and that they are copied. */
static bool
note_added(MrPgSource *source, const List *tables, const char *reason)
{
	source->added = keep_names(source, tables);
	source->added_reason = reason == NULL ? NULL : MemoryContextStrdup(source->context, reason);
	source->due |= MR_PG_DUE_ADDED;
	source->base.wants_tick = true;
	return false;
}

/* There is no publication. */
static bool
make_publication(MrPgSource *source)
{
	const MrPgOptions *options = &source->options;
	const char *name = quote_identifier(options->publication);
	const char *tables = options->tables == NIL ? "…" : table_list(options->tables);
	char *sql = psprintf("CREATE PUBLICATION %s FOR TABLE %s WITH (publish_via_partition_root = "
						 "true)",
						 name, tables);

	/* The slot stands before a publication that is made now, and cannot be read with it. */
	if (strcmp(source->state, "ready") == 0)
		mr_source_set_problem(&source->base,
							  psprintf("publication %s does not exist at the source any more; %s%s"
									   "call millrace.reset_stream(%s), which copies the tables "
									   "again",
									   name, options->tables == NIL ? "run there: " : "",
									   options->tables == NIL ? psprintf("%s, and ", sql) : "",
									   quote_literal_cstr(source->base.stream->name)));
	else if (options->tables == NIL)
		mr_source_set_problem(&source->base,
							  psprintf("publication %s does not exist at the source, and the "
									   "stream's options name no tables",
									   name));
	else
	{
		source->made_publication = change_publication(source, sql);
		return source->made_publication;
	}
	return false;
}

/* Something has to be mended at the source; what the publication has left out is copied afterwards. */
static bool
tell_problem(MrPgSource *source, const Publication *found)
{
	const char *help = found->help;
	bool ready = strcmp(source->state, "ready") == 0;

	if (ready && any_other(found->partial, source->added))
		return note_added(source, found->partial, found->problem);
	if (help != NULL)
		help = psprintf("run at the source: %s", help);
	else if (ready && found->gone)
		help = psprintf("it was dropped or renamed: create it again, or declare the stream without "
						"it (millrace.create_stream(%s, …, replace => true))",
						quote_literal_cstr(source->base.stream->name));
	mr_source_set_problem(&source->base,
						  help == NULL ? found->problem : psprintf("%s; %s", found->problem, help));
	return false;
}

bool
mr_pg_check_publication(MrPgSource *source)
{
	const MrPgOptions *options = &source->options;
	const char *name = quote_identifier(options->publication);
	bool ready = strcmp(source->state, "ready") == 0;
	Publication found;

	if (!examine(source->stream, options, &found))
		return mr_pg_refuse(source, source->stream, NULL);
	if (!found.exists)
		return make_publication(source);
	if (found.problem != NULL)
		return tell_problem(source, &found);
	if (found.missing != NIL)
	{
		/* What has happened to them before they are added is not sent: it is noted first that they are copied. */
		if (ready && any_other(found.missing, source->added))
			return note_added(source, found.missing, NULL);
		if (!change_publication(source, psprintf("ALTER PUBLICATION %s ADD TABLE %s", name,
												 table_list(found.missing))))
			return false;
	}
	/* One that is missing once more is copied once more. */
	source->added = NIL;
	if (options->tables != NIL)
		return true;
	if (found.tables == NIL && !ready)
	{
		mr_source_set_problem(&source->base,
							  psprintf("publication %s has no table; run at the source: ALTER "
									   "PUBLICATION %s ADD TABLE …",
									   name, name));
		return false;
	}
	if (!any_other(found.tables, source->published) && !any_other(source->published, found.tables))
		return true;
	source->published = keep_names(source, found.tables);
	if (!ready)
		return true;
	source->due |= MR_PG_DUE_PUBLISHED;
	source->base.wants_tick = true;
	return false;
}

bool
mr_pg_publication_changed(MrPgSource *source, MrPgClient *side)
{
	Publication found;

	return mr_pg_connected(side) && examine(side, &source->options, &found) &&
		   (!found.exists || found.problem != NULL || found.missing != NIL ||
			(source->options.tables == NIL && (any_other(found.tables, source->published) ||
											   any_other(source->published, found.tables))));
}

void
mr_pg_validate_publication(MrReport *to, MrPgClient *client, const MrPgOptions *options)
{
	Publication found;

	if (!examine(client, options, &found))
		mr_report(to, "error", mr_pg_problem(client), NULL);
	else if (!found.exists && options->tables == NIL)
		mr_report(to, "error",
				  psprintf("publication %s does not exist at the source",
						   quote_identifier(options->publication)),
				  "Without \"tables\" the stream cannot make it.");
	else if (!found.exists)
		mr_report(to, "info",
				  psprintf("publication %s is not there yet: the stream makes it when it starts",
						   options->publication),
				  psprintf("The role needs CREATE on the database and must own the tables; else an "
						   "administrator runs: CREATE PUBLICATION %s FOR TABLE %s WITH "
						   "(publish_via_partition_root = true)",
						   quote_identifier(options->publication), table_list(options->tables)));
	else if (found.problem != NULL && !found.gone)
		mr_report(to, "error", found.problem,
				  found.help == NULL ? NULL : psprintf("Run at the source: %s", found.help));
}

char *
mr_pg_unreadable(MrPgSource *source, const char *table)
{
	MrPgClient *side = mr_pg_side(source);
	MrPgRows rows;

	if (!mr_pg_connected(side) ||
		!mr_pg_run(side,
				   psprintf("SELECT f.* FROM (VALUES (%s, %s)) AS t (name, oid), LATERAL "
							"(" MR_PG_UNREADABLE ") AS f (severity, message, hint)",
							quote_literal_cstr(table), mr_pg_table_oid(table)),
				   MR_PG_TIMEOUT, &rows) ||
		rows.nrows == 0)
		return NULL;
	return rows.values[0][2] == NULL
			   ? rows.values[0][1]
			   : psprintf("%s; r%s", rows.values[0][1], rows.values[0][2] + 1);
}
