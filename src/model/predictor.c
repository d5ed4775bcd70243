/*
 * predictor.c
 *	  A version of a model of trees in memory.
 *
 * It is one block, which lies in shared memory as it lies in a process's own: places in it are counted from where its parts begin.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "core/compat.h"
#include "core/copies.h"
#include "model/copied.h"
#include "model/predictor.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

/* Sizes of a block, at its beginning. */
typedef struct Shape
{
	uint64 tree_bytes;
	uint64 features;
	uint64 codes;
	uint64 text_bytes;
} Shape;

/* A feature in a block. */
typedef struct Feature
{
	uint32 name; /* where it begins in the texts */
	uint32 codes; /* the first one */
	uint32 ncodes;
	bool is_category;
	float unseen;
} Feature;

/* The parts of a block. */
typedef struct Parts
{
	char *trees;
	Feature *features;
	MrCode *codes; /* of each feature by their bytes */
	char *texts;
} Parts;

/* Finds the way around in a block, or (NULL) how large one is. */
static Size
lay_out(Parts *parts, char *block, const Shape *shape)
{
	Size size = MAXALIGN(sizeof(Shape));

	parts->trees = mr_copied_place(block, &size, shape->tree_bytes, 1);
	parts->features = mr_copied_place(block, &size, shape->features, sizeof(Feature));
	parts->codes = mr_copied_place(block, &size, shape->codes, sizeof(MrCode));
	parts->texts = mr_copied_place(block, &size, shape->text_bytes, 1);
	return size;
}

/* ---- from tables ------------------------------------------------------------------------------------------ */

/* A version that is being read. */
typedef struct Reading
{
	MrTrees *trees;
	Shape shape;
	Feature *features;
	MrCode *codes;
	StringInfoData texts;
} Reading;

static int
compare_bytes(const char *a, uint32 a_length, const char *b, uint32 b_length)
{
	int order = memcmp(a, b, Min(a_length, b_length));

	return order != 0 ? order : (a_length > b_length) - (a_length < b_length);
}

static int
compare_codes(const void *a, const void *b, void *texts)
{
	const MrCode *x = a;
	const MrCode *y = b;

	return compare_bytes((char *) texts + x->text, x->length, (char *) texts + y->text, y->length);
}

/* Appends a text, with a zero behind it; returns where. */
static uint32
add_text(Reading *reading, const char *text, int length)
{
	uint32 at = reading->texts.len;

	appendBinaryStringInfo(&reading->texts, text, length);
	appendStringInfoChar(&reading->texts, '\0');
	return at;
}

/* Reads what is stored of a category: {"unseen": …, "values": […]}. */
static void
read_category(Reading *reading, Feature *feature, JsonbContainer *category)
{
	JsonbValue *unseen = getKeyJsonValueFromContainer(category, "unseen", strlen("unseen"), NULL);
	JsonbValue *values = getKeyJsonValueFromContainer(category, "values", strlen("values"), NULL);
	JsonbContainer *array;
	MrCode *codes;

	if (unseen == NULL || values == NULL || values->type != jbvBinary)
		elog(ERROR, "the codes of a category are not whole");
	array = values->val.binary.data;
	feature->is_category = true;
	feature->unseen = unseen->type == jbvNumeric ? -1 : NAN;
	feature->codes = (uint32) reading->shape.codes;
	feature->ncodes = JsonContainerSize(array);
	reading->shape.codes += feature->ncodes;
	reading->codes = repalloc_huge(reading->codes, Max(reading->shape.codes, 1) * sizeof(MrCode));
	codes = reading->codes + feature->codes;
	for (uint32 i = 0; i < feature->ncodes; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(array, i);

		if (value->type != jbvString)
			elog(ERROR, "a value of a category is no text");
		codes[i].text = add_text(reading, value->val.string.val, value->val.string.len);
		codes[i].length = value->val.string.len;
		codes[i].code = i;
	}
	qsort_arg(codes, feature->ncodes, sizeof(MrCode), compare_codes, reading->texts.data);
}

/* Reads a version from its tables. */
static void
read_version(Reading *reading, int32 model_id, int32 version)
{
	TupleDesc desc;
	HeapTuple row = mr_lookup_row(mr_lookup_state(model_id, "trees", "trees_pkey"), 1,
								  Int32GetDatum(version), 0, (Datum) 0, &desc);
	JsonbContainer *codes;
	Datum *names;
	bool isnull;
	int n;

	if (row == NULL)
		elog(ERROR, "the trees of version %d of model %d are not there", version, model_id);
	memset(reading, 0, sizeof(Reading));
	reading->trees = mr_trees_unpack(DatumGetByteaP(mr_lookup_named(row, desc, "trees", &isnull)));
	codes = &DatumGetJsonbP(mr_lookup_named(row, desc, "codes", &isnull))->root;
	deconstruct_array(DatumGetArrayTypeP(mr_lookup_named(row, desc, "features", &isnull)), TEXTOID,
					  -1, false, TYPALIGN_INT, &names, NULL, &n);
	if (n != (int) reading->trees->nfeatures)
		elog(ERROR, "the trees of version %d of model %d have other features", version, model_id);
	reading->features = palloc0(Max(n, 1) * sizeof(Feature));
	reading->codes = palloc(sizeof(MrCode));
	initStringInfo(&reading->texts);
	for (int i = 0; i < n; i++)
	{
		char *name = TextDatumGetCString(names[i]);
		JsonbValue *category = getKeyJsonValueFromContainer(codes, name, (int) strlen(name), NULL);

		reading->features[i].name = add_text(reading, name, (int) strlen(name));
		if (category != NULL)
			read_category(reading, &reading->features[i], category->val.binary.data);
	}
	reading->shape.features = n;
	reading->shape.tree_bytes = mr_trees_size(reading->trees);
	reading->shape.text_bytes = reading->texts.len;
}

/* Writes what was read as a block. */
static void
write_block(const Reading *reading, char *block)
{
	const Shape *shape = &reading->shape;
	Parts parts;

	(void) lay_out(&parts, block, shape);
	memcpy(block, shape, sizeof(Shape));
	memcpy(parts.trees, reading->trees, shape->tree_bytes);
	memcpy(parts.features, reading->features, shape->features * sizeof(Feature));
	memcpy(parts.codes, reading->codes, shape->codes * sizeof(MrCode));
	memcpy(parts.texts, reading->texts.data, shape->text_bytes);
}

dsm_segment *
mr_predictor_copy(int32 model_id, int32 version)
{
	dsm_segment *segment;
	Reading reading;
	Parts parts;

	read_version(&reading, model_id, version);
	segment = mr_copy_create(lay_out(&parts, NULL, &reading.shape));
	if (segment != NULL)
		write_block(&reading, mr_copy_data(segment));
	return segment;
}

/* ---- predictors ------------------------------------------------------------------------------------------- */

/* A predictor of a block, in the current memory context, which becomes its own. */
static MrPredictor *
make_predictor(int32 version, char *block, dsm_segment *segment)
{
	const Shape *shape = (const Shape *) block;
	MrPredictor *predictor = palloc0(sizeof(MrPredictor));
	Parts parts;

	(void) lay_out(&parts, block, shape);
	predictor->context = CurrentMemoryContext;
	predictor->segment = segment;
	predictor->uses = 1;
	predictor->version = version;
	predictor->nfeatures = (int) shape->features;
	predictor->features = palloc(Max(shape->features, 1) * sizeof(MrFeature));
	for (uint64 i = 0; i < shape->features; i++)
	{
		const Feature *stored = &parts.features[i];
		MrFeature *feature = &predictor->features[i];

		feature->name = parts.texts + stored->name;
		feature->is_category = stored->is_category;
		feature->unseen = stored->unseen;
		feature->ncodes = stored->ncodes;
		feature->codes = parts.codes + stored->codes;
		feature->texts = parts.texts;
	}
	mr_trees_find(&predictor->trees, parts.trees);
	MemoryContextSetParent(CurrentMemoryContext, CacheMemoryContext);
	return predictor;
}

/* Begins a predictor's memory, which is the current one's until it is whole. */
static MemoryContext
begin_predictor(void)
{
	return MemoryContextSwitchTo(
		AllocSetContextCreate(CurrentMemoryContext, "millrace predictor", ALLOCSET_SMALL_SIZES));
}

MrPredictor *
mr_predictor_attach(MrModel *model, int32 version)
{
	dsm_segment *segment = mr_copied_attach(model, version);
	MrPredictor *predictor;
	MemoryContext old;

	if (segment == NULL)
		return NULL;
	old = begin_predictor();
	predictor = make_predictor(version, mr_copy_data(segment), segment);
	MemoryContextSwitchTo(old);
	return predictor;
}

MrPredictor *
mr_predictor_load(int32 model_id, int32 version)
{
	MemoryContext old = CurrentMemoryContext;
	MemoryContext reads = AllocSetContextCreate(old, "millrace reading of a predictor",
												ALLOCSET_DEFAULT_SIZES);
	MrPredictor *predictor;
	Reading reading;
	Parts parts;
	char *block;

	MemoryContextSwitchTo(reads);
	read_version(&reading, model_id, version);
	MemoryContextSwitchTo(old);
	(void) begin_predictor();
	block = MemoryContextAllocHuge(CurrentMemoryContext, lay_out(&parts, NULL, &reading.shape));
	write_block(&reading, block);
	MemoryContextDelete(reads);
	predictor = make_predictor(version, block, NULL);
	MemoryContextSwitchTo(old);
	return predictor;
}

void
mr_predictor_release(MrPredictor *predictor)
{
	if (--predictor->uses > 0)
		return;
	if (predictor->segment != NULL)
		dsm_detach(predictor->segment);
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
	uint32 low = 0;
	uint32 high = feature->ncodes;

	while (low < high)
	{
		uint32 middle = low + (high - low) / 2;
		const MrCode *code = &feature->codes[middle];
		int order = compare_bytes(feature->texts + code->text, code->length, text, length);

		if (order == 0)
			return code->code;
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return feature->unseen;
}

float
mr_feature_checked(const MrFeature *feature, float value)
{
	if (isinf(value))
		ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						errmsg("feature \"%s\" is infinite", feature->name)));
	return value;
}
