/*
 * predict.c
 *	  predict() and predict_for(): what trees say of a row.
 *
 * A session keeps the version of each model that it has asked last: in shared memory, or in its own while there is no copy.  A call keeps the one that it uses: which version is served, and
 * whether the caller may ask, is looked up again only when the snapshot is another one, which is once for a statement.
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/copies.h"
#include "core/statement.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/catalogue.h"
#include "model/model.h"
#include "model/predictor.h"
#include "parser/parse_coerce.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(millrace_predict);
PG_FUNCTION_INFO_V1(millrace_predict_for);

/* The table that a model reads. */
enum
{
	TREES /* SELECT on it lets one ask for entities */
};

/* What a session keeps of a model. */
typedef struct Kept
{
	int nentity;
	MrPredictor *predictor; /* the version that was asked last, or NULL */
	SPIPlanPtr features; /* of an entity; NULL until it is needed */
} Kept;

/* How a column's values become a feature's. */
typedef struct Column
{
	int attnum; /* from 0 */
	Oid type;
	FmgrInfo function; /* to real, or to text */
	bool by_text; /* the latter */
} Column;

/* What a call site keeps. */
typedef struct Call
{
	MemoryContextCallback release;
	Oid relation;
	Oid user;
	SnapshotData seen; /* of it only what tells snapshots apart */
	MrModel *model;
	MrPredictor *predictor;
	float *row;
	/* Of rows of one type: */
	uint64 identifier;
	TupleDesc desc;
	Column *columns;
	Datum *values;
	bool *nulls;
} Call;

/* ---- models ----------------------------------------------------------------------------------------------- */

/* Reads what a session keeps of a model. */
static void
learn(MrModel *model, HeapTuple row, TupleDesc desc)
{
	Kept *kept = model->kept;
	bool isnull;

	model->tables[TREES] = mr_lookup_state(model->id, "trees", "trees_pkey");
	kept->nentity = ArrayGetNItems(
		1, ARR_DIMS(DatumGetArrayTypeP(mr_lookup_named(row, desc, "entity", &isnull))));
}

/* Lets go of the trees of a model that is gone.  Its statement may be running: that is left alone. */
static void
forget(void *kept)
{
	if (((Kept *) kept)->predictor != NULL)
		mr_predictor_release(((Kept *) kept)->predictor);
}

const MrModelKeeping mr_trees_keeping = {sizeof(Kept), learn, forget};

/* Has the session keep a version; in shared memory, if there is a copy. */
static MrPredictor *
keep_version(MrModel *model, int32 version)
{
	Kept *kept = model->kept;
	MrPredictor *predictor = kept->predictor;
	bool is_kept = predictor != NULL && predictor->version == version;

	if (is_kept && predictor->segment != NULL && mr_copies_enabled())
	{
		mr_copy_touch(predictor->segment);
		return predictor;
	}
	predictor = mr_predictor_attach(model, version);
	if (predictor == NULL && is_kept && kept->predictor->segment == NULL)
		return kept->predictor;
	if (predictor == NULL)
		predictor = mr_predictor_load(model->id, version);
	if (!mr_copies_enabled())
		mr_copy_forget(model->relation, 0);
	if (kept->predictor != NULL)
		mr_predictor_release(kept->predictor);
	kept->predictor = predictor;
	return predictor;
}

/* ---- calls ------------------------------------------------------------------------------------------------ */

static void
release_call(void *arg)
{
	Call *call = arg;

	if (call->predictor != NULL)
		mr_predictor_release(call->predictor);
}

/* Do both snapshots see the same?  While xmax is the same, transactions in progress only become fewer. */
static bool
same_snapshot(const SnapshotData *a, const SnapshotData *b)
{
	return a->xmin == b->xmin && a->xmax == b->xmax && a->xcnt == b->xcnt &&
		   a->subxcnt == b->subxcnt && a->suboverflowed == b->suboverflowed &&
		   a->curcid == b->curcid;
}

/* Lets the call use the version that is served. */
static void
use_served(Call *call, MemoryContext context)
{
	MrPredictor *predictor = keep_version(call->model, mr_model_served(call->model));

	if (call->predictor == predictor)
		return;
	if (call->predictor != NULL)
		mr_predictor_release(call->predictor);
	call->predictor = predictor;
	predictor->uses++;
	call->identifier = 0;
	call->row = MemoryContextAlloc(context, predictor->nfeatures * sizeof(float));
}

/* What the call site keeps, with the version that is served to the current user. */
static Call *
prepare_call(FmgrInfo *function, Oid relation)
{
	Call *call = function->fn_extra;
	Snapshot snapshot = GetActiveSnapshot();

	if (call == NULL)
	{
		call = MemoryContextAllocZero(function->fn_mcxt, sizeof(Call));
		call->release.func = release_call;
		call->release.arg = call;
		MemoryContextRegisterResetCallback(function->fn_mcxt, &call->release);
		function->fn_extra = call;
	}
	/* Somebody who fetches from a cursor may have dropped the model meanwhile. */
	if (call->relation == relation && call->user == GetUserId() &&
		call->model->learnt == call->model->changes && same_snapshot(&call->seen, snapshot))
		return call;
	call->relation = InvalidOid;
	call->model = mr_model_open(relation, true);
	use_served(call, function->fn_mcxt);
	call->user = GetUserId();
	call->seen = *snapshot;
	call->relation = relation;
	return call;
}

/* ---- features --------------------------------------------------------------------------------------------- */

/* Finds how a column becomes a feature. */
static void
prepare_column(Column *column, const MrFeature *feature, TupleDesc desc, MemoryContext context)
{
	CoercionPathType path;
	bool is_varlena;
	Oid function;

	column->attnum = 0;
	while (column->attnum < desc->natts &&
		   (TupleDescAttr(desc, column->attnum)->attisdropped ||
			strcmp(NameStr(TupleDescAttr(desc, column->attnum)->attname), feature->name) != 0))
		column->attnum++;
	if (column->attnum == desc->natts)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
						errmsg("the row has no column \"%s\"", feature->name),
						errhint("The model has this feature.")));
	column->type = getBaseType(TupleDescAttr(desc, column->attnum)->atttypid);
	path = find_coercion_pathway(FLOAT4OID, column->type, COERCION_EXPLICIT, &function);
	column->by_text = feature->is_category || path == COERCION_PATH_COERCEVIAIO;
	if (column->by_text)
		getTypeOutputInfo(column->type, &function, &is_varlena);
	else if (path == COERCION_PATH_NONE && column->type != BOOLOID)
		ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
						errmsg("column \"%s\" of type %s cannot be cast to real", feature->name,
							   format_type_be(column->type))));
	if (OidIsValid(function))
		fmgr_info_cxt(function, &column->function, context);
}

/* Finds how rows of a kind become features, unless the last one was of this kind. */
static void
prepare_columns(Call *call, TupleDesc desc, uint64 identifier, MemoryContext context)
{
	int n = call->predictor->nfeatures;
	MemoryContext old;

	if (call->identifier == identifier)
		return;
	call->identifier = 0;
	old = MemoryContextSwitchTo(context);
	call->desc = CreateTupleDescCopy(desc);
	call->columns = palloc0(n * sizeof(Column));
	call->values = palloc(Max(desc->natts, 1) * sizeof(Datum));
	call->nulls = palloc(Max(desc->natts, 1) * sizeof(bool));
	for (int i = 0; i < n; i++)
		prepare_column(&call->columns[i], &call->predictor->features[i], desc, context);
	MemoryContextSwitchTo(old);
	call->identifier = identifier;
}

/* The text of a value, as in a training. */
static float
value_by_text(const MrFeature *feature, Column *column, Datum value)
{
	bool is_text = column->type == TEXTOID || column->type == VARCHAROID;
	char *shown;

	if (is_text && feature->is_category)
	{
		struct varlena *bytes = PG_DETOAST_DATUM_PACKED(value);

		return mr_feature_code(feature, VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes));
	}
	if (is_text)
		shown = TextDatumGetCString(value);
	else
	{
		int nest_level = mr_settings_pin("UTC");

		shown = OutputFunctionCall(&column->function, value);
		mr_settings_unpin(nest_level);
	}
	if (feature->is_category)
		return mr_feature_code(feature, shown, (int) strlen(shown));
	return DatumGetFloat4(DirectFunctionCall1(float4in, CStringGetDatum(shown)));
}

static float
column_value(const MrFeature *feature, Column *column, Datum value)
{
	if (column->by_text)
		return value_by_text(feature, column, value);
	switch (column->type)
	{
		case FLOAT4OID:
			return DatumGetFloat4(value);
		case INT4OID:
			return (float) DatumGetInt32(value);
		case BOOLOID:
			return DatumGetBool(value);
		default:
			return DatumGetFloat4(FunctionCall1(&column->function, value));
	}
}

/* Takes the features from a row, whose columns are prepared. */
static void
take_row(Call *call, HeapTuple tuple)
{
	const MrPredictor *predictor = call->predictor;

	heap_deform_tuple(tuple, call->desc, call->values, call->nulls);
	for (int i = 0; i < predictor->nfeatures; i++)
	{
		Column *column = &call->columns[i];
		const MrFeature *feature = &predictor->features[i];

		if (call->nulls[column->attnum])
			call->row[i] = NAN;
		else
			call->row[i] = mr_feature_checked(
				feature, column_value(feature, column, call->values[column->attnum]));
	}
}

static void
take_composite(Call *call, Datum value, MemoryContext context)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(value);
	Oid type = HeapTupleHeaderGetTypeId(header);
	int32 typmod = HeapTupleHeaderGetTypMod(header);
	uint64 identifier = assign_record_type_identifier(type, typmod);
	HeapTupleData tuple = {.t_len = HeapTupleHeaderGetDatumLength(header), .t_data = header};

	if (call->identifier != identifier)
	{
		TupleDesc desc = lookup_rowtype_tupdesc(type, typmod);

		prepare_columns(call, desc, identifier, context);
		ReleaseTupleDesc(desc);
	}
	take_row(call, &tuple);
}

/* The error of a JSON object that has a member which is no feature. */
static void
refuse_member(const MrPredictor *predictor, JsonbContainer *object)
{
	JsonbIterator *iterator = JsonbIteratorInit(object);
	JsonbIteratorToken token;
	JsonbValue value;

	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
		if (token == WJB_KEY &&
			mr_predictor_find(predictor, value.val.string.val, value.val.string.len) < 0)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("the model has no feature \"%.*s\"", value.val.string.len,
								   value.val.string.val)));
	elog(ERROR, "no member is unknown");
}

/* A scalar of JSON. */
static float
json_value(const MrFeature *feature, const JsonbValue *value)
{
	const char *text;
	int length;

	switch (value->type)
	{
		case jbvNull:
			return NAN;
		case jbvNumeric:
			if (!feature->is_category)
				return DatumGetFloat4(
					DirectFunctionCall1(numeric_float4, NumericGetDatum(value->val.numeric)));
			text = DatumGetCString(
				DirectFunctionCall1(numeric_out, NumericGetDatum(value->val.numeric)));
			length = (int) strlen(text);
			break;
		case jbvBool:
			if (!feature->is_category)
				return value->val.boolean;
			text = value->val.boolean ? "true" : "false";
			length = (int) strlen(text);
			break;
		case jbvString:
			text = value->val.string.val;
			length = value->val.string.len;
			if (!feature->is_category)
				return DatumGetFloat4(
					DirectFunctionCall1(float4in, CStringGetDatum(pnstrdup(text, length))));
			break;
		default:
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("feature \"%s\" is no scalar", feature->name)));
	}
	return mr_feature_code(feature, text, length);
}

/* Takes the features from a JSON object: one that is not there is missing. */
static void
take_json(Call *call, JsonbContainer *object)
{
	const MrPredictor *predictor = call->predictor;
	uint32 known = 0;

	if (!JsonContainerIsObject(object))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("features must be a JSON object")));
	for (int i = 0; i < predictor->nfeatures; i++)
	{
		const MrFeature *feature = &predictor->features[i];
		JsonbValue value;

		call->row[i] = NAN;
		if (getKeyJsonValueFromContainer(object, feature->name, (int) strlen(feature->name),
										 &value) == NULL)
			continue;
		known++;
		call->row[i] = mr_feature_checked(feature, json_value(feature, &value));
	}
	if (known < JsonContainerSize(object))
		refuse_member(predictor, object);
}

/* Takes the features from an array, and returns them. */
static const float *
take_array(Call *call, ArrayType *array)
{
	const MrPredictor *predictor = call->predictor;
	int n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	const float *values = (const float *) ARR_DATA_PTR(array);
	bool is_infinite = false;

	if (n != predictor->nfeatures)
		ereport(ERROR, (errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
						errmsg("the array has %d values, and the model %d features", n,
							   predictor->nfeatures)));
	if (ARR_HASNULL(array))
	{
		Datum *elements;
		bool *nulls;

		deconstruct_array(array, FLOAT4OID, 4, true, TYPALIGN_INT, &elements, &nulls, &n);
		for (int i = 0; i < n; i++)
			call->row[i] = nulls[i] ? NAN : DatumGetFloat4(elements[i]);
		values = call->row;
	}
	for (int i = 0; i < n; i++)
		is_infinite |= isinf(values[i]) != 0;
	for (int i = 0; is_infinite && i < n; i++)
		(void) mr_feature_checked(&predictor->features[i], values[i]);
	return values;
}

/* What the served version says of a row, an object of JSON, or an array. */
Datum
millrace_predict(PG_FUNCTION_ARGS)
{
	Oid type = get_fn_expr_argtype(fcinfo->flinfo, 1);
	bool output_margin = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2);
	const float *row;
	float margin;
	Call *call;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	call = prepare_call(fcinfo->flinfo, PG_GETARG_OID(0));
	row = call->row;
	switch (type)
	{
		case FLOAT4ARRAYOID:
			row = take_array(call, PG_GETARG_ARRAYTYPE_P(1));
			break;
		case JSONBOID:
			take_json(call, &PG_GETARG_JSONB_P(1)->root);
			break;
		case JSONOID:
		case UNKNOWNOID:
			take_json(call, &DatumGetJsonbP(DirectFunctionCall1(
												jsonb_in, type == JSONOID
															  ? CStringGetDatum(TextDatumGetCString(
																	PG_GETARG_DATUM(1)))
															  : PG_GETARG_DATUM(1)))
								 ->root);
			break;
		default:
			if (!type_is_rowtype(type))
				ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
								errmsg("features must be a row, jsonb, json or real[], not %s",
									   format_type_be(type))));
			take_composite(call, PG_GETARG_DATUM(1), fcinfo->flinfo->fn_mcxt);
	}
	margin = mr_trees_margin(&call->predictor->trees, row);
	PG_RETURN_FLOAT4(output_margin ? margin : mr_trees_predict(&call->predictor->trees, margin));
}

/* ---- entities --------------------------------------------------------------------------------------------- */

/* A type by its name; what "character" and "bit" mean in SQL is a length of 1. */
static char *
type_name(Oid type)
{
	return format_type_extended(type, -1, FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY);
}

/* The operator by which values of an entity's column are the same. */
static Oid
equality(Oid type, const char *column)
{
	Oid equals = lookup_type_cache(type, TYPECACHE_EQ_OPR)->eq_opr;

	if (!OidIsValid(equals))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_FUNCTION),
						errmsg("column \"%s\" of the entity has type %s, which has no equality",
							   column, format_type_be(type))));
	return equals;
}

/* The statement that gives the features of an entity.  SPI is connected, as the owner. */
static SPIPlanPtr
prepare_features(const MrModel *model)
{
	int nentity = ((const Kept *) model->kept)->nentity;
	Oid view = mr_definition_view("model", model->id);
	Oid type = JSONOID;
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (AttrNumber a = nentity + 2; get_attname(view, a, true) != NULL; a++)
		appendStringInfo(&sql, "%sv.%s", a > nentity + 2 ? ", " : "",
						 quote_identifier(get_attname(view, a, false)));
	appendStringInfo(&sql, " FROM millrace_def.model_%d AS v WHERE ", model->id);
	for (AttrNumber a = 1; a <= nentity; a++)
	{
		char *name = get_attname(view, a, false);
		Oid column = get_atttype(view, a);

		appendStringInfoString(&sql, a > 1 ? " AND " : "");
		/* By the type's own equality, which need not be in pg_catalog: an index on the column may serve. */
		generate_operator_clause(
			&sql, psprintf("v.%s", quote_identifier(name)), column, equality(column, name),
			psprintf("($1 ->> %s)::%s", quote_literal_cstr(name), type_name(column)), column);
	}
	appendStringInfoString(&sql, " LIMIT 2");
	return mr_sql_prepare(sql.data, 1, &type);
}

/* An entity must have the columns of the model's, and no other. */
static void
check_entity(const MrModel *model, text *entity)
{
	JsonbContainer *object =
		&DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text_to_cstring(entity))))
			 ->root;
	int nentity = ((const Kept *) model->kept)->nentity;
	Oid view = mr_definition_view("model", model->id);
	bool is_object = JsonContainerIsObject(object);

	if (!OidIsValid(view))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("the query of model %s is gone", mr_relation_name(model->relation)),
						errdetail("Something that it needs was dropped with CASCADE."),
						errhint("Drop the model with millrace.drop_model() and create it again.")));
	for (AttrNumber a = 1; is_object && a <= nentity; a++)
	{
		char *name = get_attname(view, a, true);

		if (name != NULL &&
			getKeyJsonValueFromContainer(object, name, (int) strlen(name), NULL) == NULL)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("the entity has no \"%s\"", name)));
	}
	if (!is_object || JsonContainerSize(object) != (uint32) nentity)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("the entity must be a JSON object of %d members", nentity)));
}

/* What the served version says of an entity, by what the model's query gives of it now. */
Datum
millrace_predict_for(PG_FUNCTION_ARGS)
{
	MemoryContext context = fcinfo->flinfo->fn_mcxt;
	Datum entity;
	MrAsOwner as;
	float margin;
	MrModel *model;
	Kept *kept;
	Call *call;
	int result;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	call = prepare_call(fcinfo->flinfo, PG_GETARG_OID(0));
	model = call->model;
	kept = model->kept;
	if (pg_class_aclcheck(model->tables[TREES].table, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied for the entities of model %s",
							   mr_relation_name(model->relation)),
						errhint("The model's owner may give it with millrace.grant_profiles().")));
	entity = PG_GETARG_DATUM(1);
	check_entity(model, DatumGetTextPP(entity));

	mr_become_owner(&as, model->owner);
	SPI_connect();
	if (kept->features == NULL)
		kept->features = prepare_features(model);
	result = SPI_execute_plan(kept->features, &entity, NULL, true, 2);
	if (result != SPI_OK_SELECT)
		elog(ERROR, "cannot read an entity: %s", SPI_result_code_string(result));
	if (SPI_processed > 1)
		ereport(ERROR, (errcode(ERRCODE_CARDINALITY_VIOLATION),
						errmsg("the query of model %s gives the entity more than once",
							   mr_relation_name(model->relation))));
	if (SPI_processed == 1)
	{
		/* Its rows are always of the same kind: any number that no type has. */
		prepare_columns(call, SPI_tuptable->tupdesc, PG_UINT64_MAX, context);
		take_row(call, SPI_tuptable->vals[0]);
	}
	result = SPI_processed == 1;
	SPI_finish();
	mr_become_caller(&as);
	if (!result)
		PG_RETURN_NULL();
	margin = mr_trees_margin(&call->predictor->trees, call->row);
	PG_RETURN_FLOAT4(mr_trees_predict(&call->predictor->trees, margin));
}
