/*
 * predictor.c
 *	  A version of a model of trees in memory.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "core/compat.h"
#include "model/lookup.h"
#include "model/predictor.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

static int
compare_bytes(const char *a, int a_length, const char *b, int b_length)
{
	int order = memcmp(a, b, Min(a_length, b_length));

	return order != 0 ? order : a_length - b_length;
}

static int
compare_codes(const void *a, const void *b)
{
	const MrCode *x = a;
	const MrCode *y = b;

	return compare_bytes(x->text, x->length, y->text, y->length);
}

/* Reads what is stored of a category: {"unseen": …, "values": […]}. */
static void
read_category(MrFeature *feature, JsonbContainer *category)
{
	JsonbValue *unseen = getKeyJsonValueFromContainer(category, "unseen", strlen("unseen"), NULL);
	JsonbValue *values = getKeyJsonValueFromContainer(category, "values", strlen("values"), NULL);
	JsonbContainer *array;

	if (unseen == NULL || values == NULL || values->type != jbvBinary)
		elog(ERROR, "the codes of category \"%s\" are not whole", feature->name);
	array = values->val.binary.data;
	feature->is_category = true;
	feature->unseen = unseen->type == jbvNumeric ? -1 : NAN;
	feature->ncodes = JsonContainerSize(array);
	feature->codes = palloc(Max(feature->ncodes, 1) * sizeof(MrCode));
	for (int i = 0; i < feature->ncodes; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(array, i);

		if (value->type != jbvString)
			elog(ERROR, "a value of category \"%s\" is no text", feature->name);
		feature->codes[i].text = value->val.string.val;
		feature->codes[i].length = value->val.string.len;
		feature->codes[i].code = i;
	}
	qsort(feature->codes, feature->ncodes, sizeof(MrCode), compare_codes);
}

MrPredictor *
mr_predictor_load(int32 model_id, int32 version)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace predictor",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	MrPredictor *predictor = palloc0(sizeof(MrPredictor));
	TupleDesc desc;
	HeapTuple row = mr_lookup_row(mr_lookup_state(model_id, "trees", "trees_pkey"), 1,
								  Int32GetDatum(version), 0, (Datum) 0, &desc);
	JsonbContainer *codes;
	Datum *names;
	bool isnull;

	if (row == NULL)
		elog(ERROR, "the trees of version %d of model %d are not there", version, model_id);
	predictor->context = context;
	predictor->uses = 1;
	predictor->version = version;
	predictor->trees =
		mr_trees_unpack(DatumGetByteaP(mr_lookup_named(row, desc, "trees", &isnull)));
	codes = &DatumGetJsonbPCopy(mr_lookup_named(row, desc, "codes", &isnull))->root;
	deconstruct_array(DatumGetArrayTypeP(mr_lookup_named(row, desc, "features", &isnull)), TEXTOID,
					  -1, false, TYPALIGN_INT, &names, NULL, &predictor->nfeatures);
	if (predictor->nfeatures != (int) predictor->trees->nfeatures)
		elog(ERROR, "the trees of version %d of model %d have other features", version, model_id);
	predictor->features = palloc0(predictor->nfeatures * sizeof(MrFeature));
	for (int i = 0; i < predictor->nfeatures; i++)
	{
		MrFeature *feature = &predictor->features[i];
		JsonbValue *category;

		feature->name = TextDatumGetCString(names[i]);
		category = getKeyJsonValueFromContainer(codes, feature->name, strlen(feature->name), NULL);
		if (category != NULL)
			read_category(feature, category->val.binary.data);
	}
	MemoryContextSwitchTo(old);
	MemoryContextSetParent(context, CacheMemoryContext);
	return predictor;
}

void
mr_predictor_release(MrPredictor *predictor)
{
	if (--predictor->uses == 0)
		MemoryContextDelete(predictor->context);
}

int
mr_predictor_find(const MrPredictor *predictor, const char *name, int length)
{
	for (int i = 0; i < predictor->nfeatures; i++)
		if (strncmp(predictor->features[i].name, name, length) == 0 &&
			predictor->features[i].name[length] == '\0')
			return i;
	return -1;
}

float
mr_feature_code(const MrFeature *feature, const char *text, int length)
{
	MrCode key = {.text = text, .length = length};
	MrCode *found = bsearch(&key, feature->codes, feature->ncodes, sizeof(MrCode), compare_codes);

	return found == NULL ? feature->unseen : found->code;
}

float
mr_feature_checked(const MrFeature *feature, float value)
{
	if (isinf(value))
		ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						errmsg("feature \"%s\" is infinite", feature->name)));
	return value;
}
