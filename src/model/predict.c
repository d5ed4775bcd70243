/*
 * predict.c
 *	  predict() and predict_for(): what trees say of a row.
 *
 * A session keeps the version of each model that it has asked last.  A call keeps the one that it uses: which version is served, and
 * whether the caller may ask, is looked up again only when the snapshot is another one, which is once for a statement.
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/statement.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/catalogue.h"
#include "model/lookup.h"
#include "model/model.h"
#include "model/predictor.h"
#include "model/store.h"
#include "parser/parse_coerce.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(millrace_predict);
PG_FUNCTION_INFO_V1(millrace_predict_for);

/* What a session knows of a model. */
typedef struct Known
{
	Oid relation; /* key */
	bool valid;
	int32 id;
	Oid owner;
	Oid trees; /* the table: SELECT on it lets one ask for entities */
	int nentity;
	MrIndexed aliases;
	MrPredictor *predictor; /* the version that was asked last, or NULL */
	SPIPlanPtr features; /* of an entity; NULL until it is needed */
} Known;

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
	Known *known;
	MrPredictor *predictor;
	float *row;
	/* Of rows of one type: */
	uint64 identifier;
	TupleDesc desc;
	Column *columns;
	Datum *values;
	bool *nulls;
} Call;

static HTAB *models = NULL;

/* ---- models ----------------------------------------------------------------------------------------------- */

static void
relation_changed(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS all;
	Known *known;

	hash_seq_init(&all, models);
	while ((known = hash_seq_search(&all)) != NULL)
		if (!OidIsValid(relid) || relid == known->relation)
			known->valid = false;
}

/* Reads what a session keeps of a model.  Its trees stay, if it is the same one. */
static void
learn(Known *known)
{
	TupleDesc desc;
	HeapTuple row = mr_lookup_row(mr_lookup_configuration("model", "model_relation_key"), 2,
								  ObjectIdGetDatum(known->relation), 0, (Datum) 0, &desc);
	bool isnull;
	int32 id;

	if (row == NULL ||
		strcmp(TextDatumGetCString(mr_lookup_named(row, desc, "kind", &isnull)), "xgboost") != 0)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("%s is not a model%s",
							   DatumGetCString(DirectFunctionCall1(
								   regclassout, ObjectIdGetDatum(known->relation))),
							   row == NULL ? "" : " that predicts")));
	id = DatumGetInt32(mr_lookup_column(row, 1, desc));
	if (known->id != id)
	{
		if (known->predictor != NULL)
			mr_predictor_release(known->predictor);
		known->predictor = NULL;
		/* the old one may be running: it is left alone */
		known->features = NULL;
	}
	known->id = id;
	known->owner = DatumGetObjectId(mr_lookup_named(row, desc, "owner", &isnull));
	known->nentity = ArrayGetNItems(
		1, ARR_DIMS(DatumGetArrayTypeP(mr_lookup_named(row, desc, "entity", &isnull))));
	known->trees = mr_store_table(id, "trees");
	known->aliases = mr_lookup_configuration("model_alias", "model_alias_pkey");
	known->valid = true;
}

static Known *
find_model(Oid relation)
{
	Known *known;
	bool found;

	if (models == NULL)
	{
		HASHCTL control = {.keysize = sizeof(Oid), .entrysize = sizeof(Known)};

		models = hash_create("millrace trees", 16, &control, HASH_ELEM | HASH_BLOBS);
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	}
	known = hash_search(models, &relation, HASH_ENTER, &found);
	if (!found)
		memset((char *) known + sizeof(Oid), 0, sizeof(Known) - sizeof(Oid));
	if (!known->valid)
		learn(known);
	return known;
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
	Known *known = call->known;
	TupleDesc desc;
	HeapTuple row = mr_lookup_row(known->aliases, 1, Int32GetDatum(known->id), 2,
								  CStringGetTextDatum("production"), &desc);
	int32 version;

	if (row == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("model %s has no version yet", mr_relation_name(known->relation)),
						errhint("Call millrace.train().")));
	version = DatumGetInt32(mr_lookup_column(row, 3, desc));
	if (known->predictor == NULL || known->predictor->version != version)
	{
		MrPredictor *loaded = mr_predictor_load(known->id, version);

		if (known->predictor != NULL)
			mr_predictor_release(known->predictor);
		known->predictor = loaded;
	}
	if (call->predictor == known->predictor)
		return;
	if (call->predictor != NULL)
		mr_predictor_release(call->predictor);
	call->predictor = known->predictor;
	call->predictor->uses++;
	call->identifier = 0;
	call->row = MemoryContextAlloc(context, call->predictor->nfeatures * sizeof(float));
}

/* What the call site keeps, with the version that is served to the current user. */
static Call *
prepare_call(FmgrInfo *function, Oid relation)
{
	Call *call = function->fn_extra;
	Snapshot snapshot = GetActiveSnapshot();
	AclResult allowed;

	if (call == NULL)
	{
		call = MemoryContextAllocZero(function->fn_mcxt, sizeof(Call));
		call->release.func = release_call;
		call->release.arg = call;
		MemoryContextRegisterResetCallback(function->fn_mcxt, &call->release);
		function->fn_extra = call;
	}
	if (call->relation == relation && call->user == GetUserId() &&
		same_snapshot(&call->seen, snapshot))
		return call;
	call->relation = InvalidOid;
	allowed = pg_class_aclcheck(relation, GetUserId(), ACL_SELECT);
	if (allowed != ACLCHECK_OK)
		aclcheck_error(allowed, get_relkind_objtype(get_rel_relkind(relation)),
					   get_rel_name(relation));
	/* Nobody drops the model meanwhile. */
	LockRelationOid(relation, AccessShareLock);
	call->known = find_model(relation);
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
	margin = mr_trees_margin(call->predictor->trees, row);
	PG_RETURN_FLOAT4(output_margin ? margin : mr_trees_predict(call->predictor->trees, margin));
}

/* ---- entities --------------------------------------------------------------------------------------------- */

/* The statement that gives the features of an entity.  SPI is connected, as the owner. */
static SPIPlanPtr
prepare_features(const Known *known)
{
	Oid view = mr_definition_view("model", known->id);
	Oid type = JSONOID;
	StringInfoData sql;
	SPIPlanPtr plan;

	if (!OidIsValid(view))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("the query millrace_def.model_%d is gone", known->id),
						errdetail("Something that it needs was dropped with CASCADE."),
						errhint("Drop the model with millrace.drop_model() and create it again.")));
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (AttrNumber a = known->nentity + 2; get_attname(view, a, true) != NULL; a++)
		appendStringInfo(&sql, "%sv.%s", a > known->nentity + 2 ? ", " : "",
						 quote_identifier(get_attname(view, a, false)));
	appendStringInfo(&sql, " FROM millrace_def.model_%d AS v WHERE ", known->id);
	for (AttrNumber a = 1; a <= known->nentity; a++)
	{
		char *name = get_attname(view, a, false);

		appendStringInfo(&sql, "%sv.%s = ($1 ->> %s)::%s", a > 1 ? " AND " : "",
						 quote_identifier(name), quote_literal_cstr(name),
						 format_type_be_qualified(get_atttype(view, a)));
	}
	appendStringInfoString(&sql, " LIMIT 2");
	plan = SPI_prepare(sql.data, 1, &type);
	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "cannot prepare \"%s\": %s", sql.data, SPI_result_code_string(SPI_result));
	return plan;
}

/* An entity must have the columns of the model's, and no other. */
static void
check_entity(const Known *known, text *entity)
{
	JsonbContainer *object =
		&DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text_to_cstring(entity))))
			 ->root;
	Oid view = mr_definition_view("model", known->id);
	bool is_object = JsonContainerIsObject(object);

	for (AttrNumber a = 1; is_object && a <= known->nentity; a++)
	{
		char *name = get_attname(view, a, true);

		if (name != NULL &&
			getKeyJsonValueFromContainer(object, name, (int) strlen(name), NULL) == NULL)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("the entity has no \"%s\"", name)));
	}
	if (!is_object || JsonContainerSize(object) != (uint32) known->nentity)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("the entity must be a JSON object of %d members", known->nentity)));
}

/* What the served version says of an entity, by what the model's query gives of it now. */
Datum
millrace_predict_for(PG_FUNCTION_ARGS)
{
	MemoryContext context = fcinfo->flinfo->fn_mcxt;
	Datum entity;
	MrAsOwner as;
	float margin;
	Known *known;
	Call *call;
	int result;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	call = prepare_call(fcinfo->flinfo, PG_GETARG_OID(0));
	known = call->known;
	if (pg_class_aclcheck(known->trees, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied for the entities of model %s",
							   mr_relation_name(known->relation)),
						errhint("The model's owner may give it with millrace.grant_profiles().")));
	entity = PG_GETARG_DATUM(1);
	check_entity(known, DatumGetTextPP(entity));

	mr_become_owner(&as, known->owner);
	SPI_connect();
	if (known->features == NULL)
		known->features = prepare_features(known);
	result = SPI_execute_plan(known->features, &entity, NULL, true, 2);
	if (result != SPI_OK_SELECT)
		elog(ERROR, "cannot read an entity: %s", SPI_result_code_string(result));
	if (SPI_processed > 1)
		ereport(ERROR, (errcode(ERRCODE_CARDINALITY_VIOLATION),
						errmsg("the query of model %s gives the entity more than once",
							   mr_relation_name(known->relation))));
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
	margin = mr_trees_margin(call->predictor->trees, call->row);
	PG_RETURN_FLOAT4(mr_trees_predict(call->predictor->trees, margin));
}
