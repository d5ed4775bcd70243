/*
 * verify.c
 *	  Comparing a derived table with the query that it should equal.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(millrace_compare);

/*
 * The columns of a relation as they are compared: by value, so that NULL equals NULL and 1.0 equals 1.00; types
 * without equality by their text.
 */
static char *
compared_columns(Oid relid)
{
	Relation relation = table_open(relid, AccessShareLock);
	TupleDesc desc = RelationGetDescr(relation);
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		const char *name = quote_identifier(NameStr(attribute->attname));
		bool equality;

		if (attribute->attisdropped)
			continue;
		equality = OidIsValid(lookup_type_cache(attribute->atttypid, TYPECACHE_EQ_OPR)->eq_opr);
		appendStringInfo(&list, "%s%s%s AS c%d", list.len == 0 ? "" : ", ", name,
						 equality ? "" : "::text", i + 1);
	}
	table_close(relation, NoLock);
	return list.data;
}

/*
 * compare(role regrole, timezone text, wanted regclass, found regclass, OUT missing bigint, OUT unexpected
 * bigint, OUT example text): in one statement, as the role, under the settings pinned for expressions.
 */
Datum
millrace_compare(PG_FUNCTION_ARGS)
{
	Oid role = PG_GETARG_OID(0);
	char *timezone = text_to_cstring(PG_GETARG_TEXT_PP(1));
	Oid wanted = PG_GETARG_OID(2);
	Oid found = PG_GETARG_OID(3);
	MemoryContext context = CurrentMemoryContext;
	int nest_level = mr_settings_pin(timezone);
	MrRunAs saved;
	TupleDesc desc;
	Datum values[3];
	bool nulls[3];

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(desc);
	SPI_connect();
	mr_run_as_restricted(&saved, role);
	(void) mr_sql(
		"WITH wanted AS MATERIALIZED (SELECT %s FROM %s), found AS MATERIALIZED (SELECT %s FROM %s), "
		"missing AS MATERIALIZED (SELECT * FROM wanted EXCEPT ALL SELECT * FROM found), "
		"unexpected AS MATERIALIZED (SELECT * FROM found EXCEPT ALL SELECT * FROM wanted) "
		"SELECT (SELECT count(*) FROM missing), (SELECT count(*) FROM unexpected), "
		"coalesce((SELECT 'missing: ' || m::text FROM missing AS m LIMIT 1), "
		"(SELECT 'unexpected: ' || u::text FROM unexpected AS u LIMIT 1))",
		compared_columns(wanted), mr_relation_name(wanted), compared_columns(found),
		mr_relation_name(found));
	mr_run_back(&saved);
	for (int i = 0; i < 3; i++)
	{
		values[i] = mr_sql_value(0, i + 1, &nulls[i]);
		if (i == 2 && !nulls[i])
		{
			MemoryContext spi = MemoryContextSwitchTo(context);

			values[i] = CStringGetTextDatum(mr_sql_text(0, 3));
			MemoryContextSwitchTo(spi);
		}
	}
	SPI_finish();
	mr_settings_unpin(nest_level);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
