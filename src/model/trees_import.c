/*
 * trees_import.c
 *	  Models as XGBoost saves them, in JSON or UBJSON (its versions 1.6 to 3).
 *
 * A file may come from anybody.  Every number of a node is looked at before it is used, and only what is reached from a root is
 * taken, each node by one parent: so that what is walked later is trees.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "core/compat.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/trees_import.h"
#include "model/ubjson.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#define MOST_FEATURES 100000

PG_FUNCTION_INFO_V1(millrace_read_trees);

/* What is told in base_score is a prediction: what margin that is. */
typedef enum Base
{
	BASE_SAME,
	BASE_LOGIT,
	BASE_LOG
} Base;

static const struct
{
	const char *name;
	MrLink link;
	Base base;
} objectives[] = {
	{"binary:logistic", MR_LINK_LOGISTIC, BASE_LOGIT},
	{"reg:logistic", MR_LINK_LOGISTIC, BASE_LOGIT},
	{"binary:logitraw", MR_LINK_IDENTITY, BASE_SAME},
	{"reg:squarederror", MR_LINK_IDENTITY, BASE_SAME},
	{"reg:linear", MR_LINK_IDENTITY, BASE_SAME},
	{"reg:squaredlogerror", MR_LINK_IDENTITY, BASE_SAME},
	{"reg:pseudohubererror", MR_LINK_IDENTITY, BASE_SAME},
	{"reg:absoluteerror", MR_LINK_IDENTITY, BASE_SAME},
	{"count:poisson", MR_LINK_EXP, BASE_LOG},
	{"reg:gamma", MR_LINK_EXP, BASE_LOG},
	{"reg:tweedie", MR_LINK_EXP, BASE_LOG},
};

/* A tree as the file has it, by node. */
typedef struct FileTree
{
	uint32 nnodes;
	int64 *left;
	int64 *right;
	int64 *feature;
	int64 *default_left;
	float *condition;
	double *gain;
	double *cover;
} FileTree;

static void
refuse_model(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("the model has %s", what),
			 errdetail("Models of booster gbtree with one output and numerical splits are read.")));
}

static void
bad_file(const char *what)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("this is not a model as XGBoost saves it: %s", what)));
}

/* ---- values of JSON --------------------------------------------------------------------------------------- */

/* A member, or NULL. */
static JsonbValue *
find_member(JsonbContainer *object, const char *name)
{
	return getKeyJsonValueFromContainer(object, name, (int) strlen(name), NULL);
}

static JsonbContainer *
container(JsonbContainer *object, const char *name, bool is_array)
{
	JsonbValue *value = find_member(object, name);

	if (value == NULL || value->type != jbvBinary ||
		(is_array ? !JsonContainerIsArray(value->val.binary.data)
				  : !JsonContainerIsObject(value->val.binary.data)))
		bad_file(psprintf("\"%s\" is missing", name));
	return value->val.binary.data;
}

/* A scalar's text; XGBoost writes many numbers as strings. */
static char *
scalar_text(const JsonbValue *value, const char *name)
{
	if (value != NULL && value->type == jbvString)
		return pnstrdup(value->val.string.val, value->val.string.len);
	if (value != NULL && value->type == jbvNumeric)
		return DatumGetCString(
			DirectFunctionCall1(numeric_out, NumericGetDatum(value->val.numeric)));
	if (value != NULL && value->type == jbvBool)
		return value->val.boolean ? "1" : "0";
	bad_file(psprintf("\"%s\" is missing", name));
	return NULL;
}

static int64
integer_of(const JsonbValue *value, const char *name)
{
	char *text = scalar_text(value, name);
	char *end;
	long long number;

	errno = 0;
	number = strtoll(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0')
		bad_file(psprintf("\"%s\" is not a whole number", name));
	return number;
}

static float
float_of(const JsonbValue *value, const char *name)
{
	char *text = scalar_text(value, name);
	char *end;
	float number = strtof(text, &end);

	if (end == text || *end != '\0' || !isfinite(number))
		bad_file(psprintf("\"%s\" is not a number", name));
	return number;
}

/* An array of that many values of a tree. */
static JsonbContainer *
node_values(JsonbContainer *tree, const char *name, uint32 count)
{
	JsonbContainer *array = container(tree, name, true);

	if (JsonContainerSize(array) != count)
		bad_file(
			psprintf("\"%s\" has %u values of %u nodes", name, JsonContainerSize(array), count));
	return array;
}

static int64 *
node_integers(JsonbContainer *tree, const char *name, uint32 count)
{
	JsonbContainer *array = node_values(tree, name, count);
	int64 *numbers = palloc_extended(sizeof(int64) * count, MCXT_ALLOC_HUGE);

	for (uint32 n = 0; n < count; n++)
		numbers[n] = integer_of(getIthJsonbValueFromContainer(array, n), name);
	return numbers;
}

static float *
node_floats(JsonbContainer *tree, const char *name, uint32 count)
{
	JsonbContainer *array = node_values(tree, name, count);
	float *numbers = palloc_extended(sizeof(float) * count, MCXT_ALLOC_HUGE);

	for (uint32 n = 0; n < count; n++)
		numbers[n] = float_of(getIthJsonbValueFromContainer(array, n), name);
	return numbers;
}

/* ---- trees ------------------------------------------------------------------------------------------------ */

static void
read_tree(JsonbContainer *json, FileTree *tree)
{
	JsonbContainer *split_type;
	float *gain;
	float *cover;

	tree->nnodes = JsonContainerSize(container(json, "left_children", true));
	if (tree->nnodes == 0)
		bad_file("a tree has no node");
	if (find_member(json, "split_type") != NULL)
	{
		split_type = node_values(json, "split_type", tree->nnodes);
		for (uint32 n = 0; n < tree->nnodes; n++)
			if (integer_of(getIthJsonbValueFromContainer(split_type, n), "split_type") != 0)
				refuse_model("categorical splits");
	}
	tree->left = node_integers(json, "left_children", tree->nnodes);
	tree->right = node_integers(json, "right_children", tree->nnodes);
	tree->feature = node_integers(json, "split_indices", tree->nnodes);
	tree->default_left = node_integers(json, "default_left", tree->nnodes);
	tree->condition = node_floats(json, "split_conditions", tree->nnodes);
	gain = node_floats(json, "loss_changes", tree->nnodes);
	cover = node_floats(json, "sum_hessian", tree->nnodes);
	tree->gain = palloc_extended(sizeof(double) * tree->nnodes, MCXT_ALLOC_HUGE);
	tree->cover = palloc_extended(sizeof(double) * tree->nnodes, MCXT_ALLOC_HUGE);
	for (uint32 n = 0; n < tree->nnodes; n++)
	{
		tree->gain[n] = gain[n];
		tree->cover[n] = cover[n];
	}
}

/* Makes room for so many more nodes. */
static void
need_nodes(MrTrees *trees, Size *room, Size more)
{
	if (trees->nnodes + more <= *room)
		return;
	while (trees->nnodes + more > *room)
		*room *= 2;
	if (*room > PG_INT32_MAX / sizeof(MrNode))
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("the model has too many nodes to be stored")));
	trees->nodes = repalloc_huge(trees->nodes, *room * sizeof(MrNode));
}

/*
 * Takes over a tree, level by level: `from` has the file's number of each node that was made.  A node that has two parents, or is its
 * own descendant, would be reached twice.
 */
static void
take_tree(MrTreesFile *file, const FileTree *tree, MrTree *taken, Size *room)
{
	MrTrees *trees = file->trees;
	uint32 *from = palloc_extended(sizeof(uint32) * tree->nnodes, MCXT_ALLOC_HUGE);
	bool *reached = palloc_extended(tree->nnodes, MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	uint32 made = 1;
	uint32 level_end = 1;

	taken->root = trees->nnodes;
	taken->depth = 0;
	from[0] = 0;
	reached[0] = true;
	need_nodes(trees, room, tree->nnodes);
	for (uint32 n = 0; n < made; n++)
	{
		uint32 at = from[n];
		MrNode *node = &trees->nodes[taken->root + n];

		CHECK_FOR_INTERRUPTS();
		if (n == level_end)
		{
			taken->depth++;
			level_end = made;
		}
		if (tree->left[at] == -1 && tree->right[at] == -1)
		{
			node->condition = INFINITY;
			node->feature = MR_NODE_DEFAULT_LEFT;
			node->left = taken->root + n;
			node->leaf = tree->condition[at];
			continue;
		}
		if (tree->feature[at] < 0 || tree->feature[at] >= trees->nfeatures)
			bad_file("a node splits by a feature that there is not");
		node->condition = tree->condition[at];
		node->feature = (uint32) tree->feature[at] |
						(tree->default_left[at] != 0 ? MR_NODE_DEFAULT_LEFT : 0);
		node->left = taken->root + made;
		node->leaf = 0;
		for (int side = 0; side < 2; side++)
		{
			int64 child = side == 0 ? tree->left[at] : tree->right[at];

			if (child < 0 || child >= tree->nnodes || reached[child])
				bad_file("the nodes of a tree are no tree");
			reached[child] = true;
			from[made++] = (uint32) child;
		}
		file->gain[tree->feature[at]] += tree->gain[at];
		file->cover[tree->feature[at]] += tree->cover[at];
		file->splits[tree->feature[at]]++;
	}
	trees->nnodes += made;
}

static void
read_trees(MrTreesFile *file, JsonbContainer *array)
{
	MrTrees *trees = file->trees;
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext, "millrace tree",
												  ALLOCSET_DEFAULT_SIZES);
	Size room = 1024;

	trees->ntrees = JsonContainerSize(array);
	trees->trees = palloc_extended(sizeof(MrTree) * Max(trees->ntrees, 1), MCXT_ALLOC_HUGE);
	trees->nodes = palloc(sizeof(MrNode) * room);
	for (uint32 t = 0; t < trees->ntrees; t++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(array, t);
		MemoryContext old = MemoryContextSwitchTo(scratch);
		FileTree tree;

		if (value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
			bad_file("a tree is no object");
		read_tree(value->val.binary.data, &tree);
		take_tree(file, &tree, &trees->trees[t], &room);
		MemoryContextSwitchTo(old);
		MemoryContextReset(scratch);
	}
	MemoryContextDelete(scratch);
}

/* ---- the model -------------------------------------------------------------------------------------------- */

/*
 * XGBoost writes NaN where categories are split, which is no JSON: it becomes a text, which is no number.  So does the zero below
 * zero, whose sign numbers of JSON lose.
 */
static char *
replace_numbers(char *json)
{
	bool in_string = false;

	for (char *at = json; *at != '\0'; at++)
	{
		if (*at == '"')
			in_string = !in_string;
		else if (*at == '\\' && at[1] != '\0')
			at++;
		else if (!in_string && strncmp(at, "NaN", 3) == 0)
		{
			memcpy(at, "\"\" ", 3);
			at += 2;
		}
		else if (!in_string && (strncmp(at, "-0E0", 4) == 0 || strncmp(at, "-0.0", 4) == 0) &&
				 strchr(",] \n", at[4]) != NULL)
		{
			memcpy(at, "\"-0\"", 4);
			at += 3;
		}
	}
	return json;
}

/* The margin from which trees go on; version 3.1 writes the score of its one output as an array. */
static float
read_base_margin(const char *text, Base base)
{
	char *end;
	float score;
	bool in_array = *text == '[';

	if (in_array)
		text++;
	score = strtof(text, &end);
	if (in_array && *end == ',')
		refuse_model("several outputs");
	if (end == text || strcmp(end, in_array ? "]" : "") != 0 || !isfinite(score))
		bad_file("\"base_score\" is not a number");
	if (base == BASE_LOGIT)
	{
		if (!(score > 0 && score < 1))
			bad_file("\"base_score\" is not a probability");
		return -logf(1.0f / score - 1.0f);
	}
	if (base == BASE_LOG && !(score > 0))
		bad_file("\"base_score\" is not above zero");
	return base == BASE_LOG ? logf(score) : score;
}

static void
read_names(MrTreesFile *file, JsonbContainer *learner)
{
	JsonbContainer *names;

	if (find_member(learner, "feature_names") == NULL)
		return;
	names = container(learner, "feature_names", true);
	file->nnames = JsonContainerSize(names);
	if (file->nnames != 0 && file->nnames != file->trees->nfeatures)
		bad_file("not every feature has a name");
	file->names = palloc(sizeof(char *) * Max(file->nnames, 1));
	for (int i = 0; i < file->nnames; i++)
		file->names[i] = scalar_text(getIthJsonbValueFromContainer(names, i), "feature_names");
}

static char *
read_version(JsonbContainer *root)
{
	StringInfoData version;
	JsonbContainer *array = container(root, "version", true);

	initStringInfo(&version);
	for (uint32 i = 0; i < Min(JsonContainerSize(array), 3); i++)
		appendStringInfo(&version, "%s" INT64_FORMAT, i > 0 ? "." : "",
						 integer_of(getIthJsonbValueFromContainer(array, i), "version"));
	return version.data;
}

MrTreesFile *
mr_trees_import(const char *bytes, Size length)
{
	MrTreesFile *file = palloc0(sizeof(MrTreesFile));
	JsonbContainer *root;
	JsonbContainer *learner;
	JsonbContainer *params;
	JsonbContainer *booster;
	char *json;
	char *name;
	int64 nfeatures;
	int objective = 0;

	/* In UBJSON a key has the marker of its length first. */
	if (length > 1 && bytes[0] == '{' && strchr("iUIlL", bytes[1]) != NULL)
		json = mr_ubjson_to_json(bytes, length);
	else
		json = replace_numbers(pnstrdup(bytes, length));
	if (strlen(json) < length && json[0] != '{')
		bad_file("it is neither JSON nor UBJSON");
	root = &DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(json)))->root;
	if (!JsonContainerIsObject(root))
		bad_file("it is no object");
	learner = container(root, "learner", false);
	params = container(learner, "learner_model_param", false);
	booster = container(learner, "gradient_booster", false);
	file->version = read_version(root);

	name = scalar_text(find_member(booster, "name"), "name");
	if (strcmp(name, "gbtree") != 0)
		refuse_model(psprintf("booster \"%s\"", name));
	if (integer_of(find_member(params, "num_class"), "num_class") > 1 ||
		(find_member(params, "num_target") != NULL &&
		 integer_of(find_member(params, "num_target"), "num_target") > 1))
		refuse_model("several outputs");
	file->objective = scalar_text(find_member(container(learner, "objective", false), "name"),
								  "objective");
	while (objective < lengthof(objectives) &&
		   strcmp(objectives[objective].name, file->objective) != 0)
		objective++;
	if (objective == lengthof(objectives))
		refuse_model(psprintf("objective \"%s\"", file->objective));

	nfeatures = integer_of(find_member(params, "num_feature"), "num_feature");
	if (nfeatures < 1 || nfeatures > MOST_FEATURES)
		bad_file(psprintf("it has " INT64_FORMAT " features", nfeatures));
	file->trees = palloc0(sizeof(MrTrees));
	file->trees->nfeatures = (uint32) nfeatures;
	file->trees->link = objectives[objective].link;
	file->trees->base_margin = read_base_margin(
		scalar_text(find_member(params, "base_score"), "base_score"), objectives[objective].base);
	file->gain = palloc0(sizeof(double) * nfeatures);
	file->cover = palloc0(sizeof(double) * nfeatures);
	file->splits = palloc0(sizeof(int64) * nfeatures);
	read_names(file, learner);
	read_trees(file, container(container(booster, "model", false), "trees", true));
	return file;
}

/* ---- for SQL ---------------------------------------------------------------------------------------------- */

/* An array of `n` values of 8 bytes. */
static Datum
make_array(Oid type, Datum *values, int n)
{
	return PointerGetDatum(construct_array(values, n, type, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* What a file says: version of the library, objective, names, trees, and by feature what it does. */
Datum
millrace_read_trees(PG_FUNCTION_ARGS)
{
	bytea *content = PG_GETARG_BYTEA_PP(0);
	MrTreesFile *file = mr_trees_import(VARDATA_ANY(content), VARSIZE_ANY_EXHDR(content));
	int n = file->trees->nfeatures;
	Datum *column = palloc(n * sizeof(Datum));
	bool nulls[7] = {false};
	Datum values[7];
	TupleDesc desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(file->version);
	values[1] = CStringGetTextDatum(file->objective);
	for (int i = 0; i < file->nnames; i++)
		column[i] = CStringGetTextDatum(file->names[i]);
	values[2] =
		PointerGetDatum(construct_array(column, file->nnames, TEXTOID, -1, false, TYPALIGN_INT));
	values[3] = PointerGetDatum(mr_trees_pack(file->trees));
	for (int i = 0; i < n; i++)
		column[i] = Int64GetDatum(file->splits[i]);
	values[4] = make_array(INT8OID, column, n);
	for (int i = 0; i < n; i++)
		column[i] = Float8GetDatum(file->gain[i]);
	values[5] = make_array(FLOAT8OID, column, n);
	for (int i = 0; i < n; i++)
		column[i] = Float8GetDatum(file->cover[i]);
	values[6] = make_array(FLOAT8OID, column, n);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
