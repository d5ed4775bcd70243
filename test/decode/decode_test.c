/*
 * decode_test.c
 *	  SQL functions over the decode stage, for tests and measurements.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "parser/parse_type.h"
#include "portability/instr_time.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "core/compat.h"
#include "decode/value.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(decode_test_decode);
PG_FUNCTION_INFO_V1(decode_test_decode_after);
PG_FUNCTION_INFO_V1(decode_test_convert_json);
PG_FUNCTION_INFO_V1(decode_test_convert_plain);
PG_FUNCTION_INFO_V1(decode_test_path_text);
PG_FUNCTION_INFO_V1(decode_test_bench);

extern PGDLLEXPORT Datum decode_test_decode(PG_FUNCTION_ARGS);
extern PGDLLEXPORT Datum decode_test_decode_after(PG_FUNCTION_ARGS);
extern PGDLLEXPORT Datum decode_test_convert_json(PG_FUNCTION_ARGS);
extern PGDLLEXPORT Datum decode_test_convert_plain(PG_FUNCTION_ARGS);
extern PGDLLEXPORT Datum decode_test_path_text(PG_FUNCTION_ARGS);
extern PGDLLEXPORT Datum decode_test_bench(PG_FUNCTION_ARGS);

/* The plan of a test and the slots of its paths. */
typedef struct TestPlan
{
	MrPlan *plan;
	int scope;
	int nslots;
	char **paths;
	MrSlot *slots;
} TestPlan;

/* The strings of a text[]. */
static char **
text_array(ArrayType *array, int *count)
{
	Datum *datums;
	char **texts;
	int i;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &datums, NULL, count);
	texts = palloc(*count * sizeof(char *));
	for (i = 0; i < *count; i++)
		texts[i] = TextDatumGetCString(datums[i]);
	return texts;
}

/* Compiles the paths of a test. */
static TestPlan
make_plan(ArrayType *paths, const char *for_each)
{
	TestPlan test;
	int i;

	test.plan = mr_plan_create();
	test.scope = mr_plan_scope(test.plan, for_each ? mr_path_parse(for_each) : NULL);
	test.paths = text_array(paths, &test.nslots);
	test.slots = palloc(test.nslots * sizeof(MrSlot));
	for (i = 0; i < test.nslots; i++)
		test.slots[i] = mr_plan_slot(test.plan, test.scope, mr_path_parse(test.paths[i]));
	return test;
}

/*
 * A copy of a bytea that ends where valgrind and malloc would notice a read behind it; NULL for a
 * null.
 */
static char *
bytes_argument(FunctionCallInfo fcinfo, int n, int *length)
{
	bytea *bytes;
	char *copy;

	*length = 0;
	if (PG_ARGISNULL(n))
		return NULL;
	bytes = PG_GETARG_BYTEA_PP(n);
	*length = VARSIZE_ANY_EXHDR(bytes);
	copy = palloc(Max(*length, 1));
	memcpy(copy, VARDATA_ANY(bytes), *length);
	return copy;
}

/* A text argument, or NULL. */
static char *
text_argument(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

/* Returns every slot of every element of a document as rows. */
static void
return_document(ReturnSetInfo *result, TestPlan *test, MrDocument *document)
{
	static const char *const kinds[] = {"absent", "null",    "unchanged", "string",
										"number", "boolean", "container"};
	int element;
	int i;

	for (element = 0; element < mr_document_elements(document, test->scope); element++)
	{
		for (i = 0; i < test->nslots; i++)
		{
			MrValue *value = mr_document_value(document, test->scope, element, test->slots[i]);
			Datum values[6];
			bool nulls[6] = {false};
			const char *json = NULL;
			int length = 0;

			values[0] = Int32GetDatum(element);
			values[1] = Int32GetDatum(document->scopes[test->scope].outer[element]);
			values[2] = CStringGetTextDatum(test->paths[i]);
			values[3] = CStringGetTextDatum(kinds[value->kind]);
			nulls[4] = mr_value_is_null(value);
			if (!nulls[4])
			{
				values[4] = PointerGetDatum(cstring_to_text_with_len(value->text, value->length));
				json = mr_value_json(value, &length);
			}
			nulls[5] = json == NULL;
			if (json)
				values[5] = PointerGetDatum(cstring_to_text_with_len(json, length));
			tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
		}
	}
}

/* decode(value, paths, for_each, key, headers) */
Datum
decode_test_decode(PG_FUNCTION_ARGS)
{
	MrMessage message = {0};
	TestPlan test;

	InitMaterializedSRF(fcinfo, 0);
	test = make_plan(PG_GETARG_ARRAYTYPE_P(1), text_argument(fcinfo, 2));
	message.topic = "topic";
	message.partition = 3;
	message.position = INT64CONST(1234567890123);
	message.time = INT64CONST(820454400123456);
	message.value = bytes_argument(fcinfo, 0, &message.value_length);
	message.key = bytes_argument(fcinfo, 3, &message.key_length);
	message.headers = text_argument(fcinfo, 4);
	return_document((ReturnSetInfo *) fcinfo->resultinfo, &test, mr_plan_run(test.plan, &message));
	return (Datum) 0;
}

/* decode_after(first, value, paths, for_each) */
Datum
decode_test_decode_after(PG_FUNCTION_ARGS)
{
	MrMessage first = {0};
	MrMessage second = {0};
	TestPlan test;

	InitMaterializedSRF(fcinfo, 0);
	test = make_plan(PG_GETARG_ARRAYTYPE_P(2), text_argument(fcinfo, 3));
	first.value = bytes_argument(fcinfo, 0, &first.value_length);
	second.value = bytes_argument(fcinfo, 1, &second.value_length);
	(void) mr_plan_run(test.plan, &first);
	return_document((ReturnSetInfo *) fcinfo->resultinfo, &test, mr_plan_run(test.plan, &second));
	return (Datum) 0;
}

/* Converts a value and shows what came out. */
static Datum
convert_and_show(FunctionCallInfo fcinfo, const MrValue *value)
{
	char *format = text_argument(fcinfo, 2);
	Oid type;
	int32 typmod;
	Oid output;
	bool varlena;
	Datum datum;

	parseTypeString(text_argument(fcinfo, 1), &type, &typmod, false);
	getTypeOutputInfo(type, &output, &varlena);
	datum = mr_convert(mr_converter_create(type, typmod, format), value);
	return CStringGetTextDatum(OidOutputFunctionCall(output, datum));
}

/* convert_json(value, type, format) */
Datum
decode_test_convert_json(PG_FUNCTION_ARGS)
{
	MrPlan *plan = mr_plan_create();
	MrSlot slot = mr_plan_slot(plan, MR_SCOPE_MESSAGE, mr_path_parse("$"));
	MrMessage message = {0};
	MrValue *value;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	message.value = bytes_argument(fcinfo, 0, &message.value_length);
	value = mr_document_value(mr_plan_run(plan, &message), MR_SCOPE_MESSAGE, 0, slot);
	if (mr_value_is_null(value))
		PG_RETURN_NULL();
	return convert_and_show(fcinfo, value);
}

/* convert_plain(value, type, format) */
Datum
decode_test_convert_plain(PG_FUNCTION_ARGS)
{
	MrValue value = {0};

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	value.text = bytes_argument(fcinfo, 0, &value.length);
	value.kind = MR_STRING;
	value.form = MR_FORM_PLAIN;
	return convert_and_show(fcinfo, &value);
}

/* path_text(path) */
Datum
decode_test_path_text(PG_FUNCTION_ARGS)
{
	return CStringGetTextDatum(mr_path_parse(text_argument(fcinfo, 0))->text);
}

/* Converts all slots of all elements of a document; the sum is there for the compiler. */
static int64
convert_document(TestPlan *test, MrConverter **converters, MrDocument *document)
{
	int64 sum = 0;
	int element;
	int i;

	for (element = 0; element < mr_document_elements(document, test->scope); element++)
	{
		for (i = 0; i < test->nslots; i++)
		{
			MrValue *value = mr_document_value(document, test->scope, element, test->slots[i]);

			if (!mr_value_is_null(value) && (element == 0 || test->slots[i].scope == test->scope))
				sum += (int64) mr_convert(converters[i], value);
		}
	}
	return sum;
}

/* decode_bench(messages, loops, paths, for_each, types) */
Datum
decode_test_bench(PG_FUNCTION_ARGS)
{
	ArrayType *array = PG_GETARG_ARRAYTYPE_P(0);
	int loops = PG_GETARG_INT32(1);
	TestPlan test = make_plan(PG_GETARG_ARRAYTYPE_P(2), text_argument(fcinfo, 3));
	MrConverter **converters = NULL;
	MemoryContext batch;
	MemoryContext caller;
	Datum *messages;
	int nmessages;
	int64 sum = 0;
	instr_time start;
	instr_time end;
	int i;
	int loop;

	deconstruct_array(array, BYTEAOID, -1, false, TYPALIGN_INT, &messages, NULL, &nmessages);
	if (!PG_ARGISNULL(4))
	{
		int ntypes;
		char **types = text_array(PG_GETARG_ARRAYTYPE_P(4), &ntypes);

		Assert(ntypes == test.nslots);
		converters = palloc(ntypes * sizeof(MrConverter *));
		for (i = 0; i < ntypes; i++)
		{
			Oid type;
			int32 typmod;

			parseTypeString(types[i], &type, &typmod, false);
			converters[i] = mr_converter_create(type, typmod, NULL);
		}
	}
	batch = AllocSetContextCreate(CurrentMemoryContext, "batch", ALLOCSET_DEFAULT_SIZES);
	INSTR_TIME_SET_CURRENT(start);
	for (loop = 0; loop < loops; loop++)
	{
		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(batch);
		caller = MemoryContextSwitchTo(batch);
		for (i = 0; i < nmessages; i++)
		{
			MrMessage message = {0};
			MrDocument *document;

			message.value = VARDATA_ANY(DatumGetPointer(messages[i]));
			message.value_length = VARSIZE_ANY_EXHDR(DatumGetPointer(messages[i]));
			document = mr_plan_run(test.plan, &message);
			if (converters)
				sum += convert_document(&test, converters, document);
		}
		MemoryContextSwitchTo(caller);
	}
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	elog(DEBUG1, "sum " INT64_FORMAT, sum);
	PG_RETURN_FLOAT8(INSTR_TIME_GET_DOUBLE(end) * 1e6 / ((double) loops * nmessages));
}
