/*
 * verify.c
 *	  Comparing a derived table with what it is made from.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(millrace_comparable);
PG_FUNCTION_INFO_V1(millrace_compare);
PG_FUNCTION_INFO_V1(millrace_rebuild_rows);

/*
 * comparable(expression text, type oid): the expression as it is compared: by value, so that 1.0 equals 1.00, or, of a
 * type without equality, by its text.
 */
Datum
millrace_comparable(PG_FUNCTION_ARGS)
{
	TypeCacheEntry *type = lookup_type_cache(getBaseType(PG_GETARG_OID(1)), TYPECACHE_EQ_OPR);

	if (OidIsValid(type->eq_opr))
		PG_RETURN_DATUM(PG_GETARG_DATUM(0));
	PG_RETURN_TEXT_P(cstring_to_text(psprintf("%s::text", text_to_cstring(PG_GETARG_TEXT_PP(0)))));
}

/*
 * compare(role regrole, timezone text, sources text, missing text, unexpected text, OUT missing_rows bigint, OUT
 * unexpected_rows bigint, OUT example text): counts what two queries over common table expressions find, in one
 * statement, as the role, under the settings pinned for expressions.
 */
Datum
millrace_compare(PG_FUNCTION_ARGS)
{
	Oid role = PG_GETARG_OID(0);
	char *timezone = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char *sources = text_to_cstring(PG_GETARG_TEXT_PP(2));
	char *missing = text_to_cstring(PG_GETARG_TEXT_PP(3));
	char *unexpected = text_to_cstring(PG_GETARG_TEXT_PP(4));
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
		"WITH %s, missing AS MATERIALIZED (%s), unexpected AS MATERIALIZED (%s) "
		"SELECT (SELECT count(*) FROM missing), (SELECT count(*) FROM unexpected), "
		"coalesce((SELECT 'missing: ' || row_to_json(m.*)::text FROM missing AS m LIMIT 1), "
		"(SELECT 'unexpected: ' || row_to_json(u.*)::text FROM unexpected AS u LIMIT 1))",
		sources, missing, unexpected);
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

/*
 * rebuild_rows(role regrole, timezone text, sources text, names text, keys text, relation regclass, short text,
 * selected text): puts the rows "newest" of the common table expressions into the place of those "found", for the
 * objects of which the condition selects a row on either side.
 */
Datum
millrace_rebuild_rows(PG_FUNCTION_ARGS)
{
	char *arguments[8];
	char *relation = mr_relation_name(PG_GETARG_OID(5));
	int nest_level;
	MrRunAs saved;

	for (int i = 1; i < 8; i++)
		arguments[i] = i == 5 ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(i));
	nest_level = mr_settings_pin(arguments[1]);
	SPI_connect();
	mr_run_as_restricted(&saved, PG_GETARG_OID(0));
	/* What is deleted counts no more for unique indexes, once it is. */
	(void) mr_sql(
		"WITH %s, chosen AS MATERIALIZED (SELECT DISTINCT %s FROM "
		"(SELECT * FROM wanted UNION ALL SELECT * FROM found) AS %s WHERE %s), "
		"removed AS (DELETE FROM %s AS t WHERE (%s) IN (SELECT * FROM chosen) RETURNING 1) "
		"INSERT INTO %s (%s) SELECT n.* FROM newest AS n (%s) "
		"WHERE (%s) IN (SELECT * FROM chosen) AND (SELECT count(*) FROM removed) >= 0",
		arguments[2], arguments[4], arguments[6], arguments[7], relation, arguments[4], relation,
		arguments[3], arguments[3], arguments[4]);
	mr_run_back(&saved);
	SPI_finish();
	mr_settings_unpin(nest_level);
	PG_RETURN_VOID();
}
