/*
 * trace.c
 *	  Rows of a query that somebody else's rights are needed for.
 */
#include "postgres.h"

#include "access/tupconvert.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#define ROWS_AT_ONCE 1000

PG_FUNCTION_INFO_V1(millrace_rows_as);

/* rows_as(role regrole, timezone text, query text) → setof record, under the settings pinned for expressions. */
Datum
millrace_rows_as(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	char *timezone = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char *query = text_to_cstring(PG_GETARG_TEXT_PP(2));
	int nest_level;
	SPIPlanPtr plan;
	Portal portal;
	MrRunAs saved;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	nest_level = mr_settings_pin(timezone);
	mr_run_as_restricted(&saved, PG_GETARG_OID(0));
	SPI_connect();
	plan = SPI_prepare(query, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "cannot prepare \"%s\": %s", query, SPI_result_code_string(SPI_result));
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, true);
	do
	{
		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(portal, true, ROWS_AT_ONCE);
		(void) convert_tuples_by_position(
			SPI_tuptable->tupdesc, result->setDesc,
			"the rows do not have the types that are expected of them");
		for (uint64 i = 0; i < SPI_processed; i++)
			tuplestore_puttuple(result->setResult, SPI_tuptable->vals[i]);
		SPI_freetuptable(SPI_tuptable);
	} while (SPI_processed > 0);
	SPI_cursor_close(portal);
	SPI_finish();
	mr_run_back(&saved);
	mr_settings_unpin(nest_level);
	return (Datum) 0;
}
