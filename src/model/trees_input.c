/*
 * trees_input.c
 *	  Reading the rows that trees are trained on and judged by.
 *
 * Rows come sorted by entity and all columns, so that chance and plans change nothing.  Texts are numbered as they come, and by their
 * order among those that a version is trained on.
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "core/catalog.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "model/catalogue.h"
#include "model/trees_input.h"
#include "tcop/dest.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#define REPORT_ROWS 100000

/* Columns of the statement, from 0. */
#define COLUMN_ENTITY 0
#define COLUMN_CHANCE 1
#define COLUMN_LABEL 2
#define COLUMN_FEATURES 3

MrTreesShape *
mr_trees_shape(int32 model_id, int nentity)
{
	MrTreesShape *shape = palloc0(sizeof(MrTreesShape));
	Oid view = mr_definition_view("model", model_id);
	Oid type;

	if (!OidIsValid(view))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("the query millrace_def.model_%d is gone", model_id),
						errdetail("Something that it needs was dropped with CASCADE."),
						errhint("Drop the model with millrace.drop_model() and create it again.")));
	/* what comes after them is a time */
	while ((type = get_atttype(view, nentity + 2 + shape->nfeatures)) == FLOAT4OID ||
		   type == TEXTOID)
		shape->nfeatures++;
	shape->names = palloc(shape->nfeatures * sizeof(char *));
	shape->categories = palloc0(shape->nfeatures * sizeof(MrIds *));
	shape->unseen = palloc(shape->nfeatures * sizeof(float));
	shape->places = palloc0(shape->nfeatures * sizeof(uint32 *));
	for (int f = 0; f < shape->nfeatures; f++)
	{
		AttrNumber attnum = nentity + 2 + f;

		shape->names[f] = get_attname(view, attnum, false);
		shape->unseen[f] = NAN;
		if (get_atttype(view, attnum) == TEXTOID)
			shape->categories[f] = mr_ids_create(TEXTOID, shape->names[f]);
	}
	return shape;
}

void
mr_trees_shape_sort(MrTreesShape *shape)
{
	for (int f = 0; f < shape->nfeatures; f++)
		if (shape->categories[f] != NULL)
			shape->places[f] = mr_ids_sort(shape->categories[f]);
}

/* ---- reading ---------------------------------------------------------------------------------------------- */

/* Takes the rows of the statement. */
typedef struct Reader
{
	DestReceiver receiver;
	MrTreesInput *input;
	MemoryContext context;
} Reader;

static void
start_reading(DestReceiver *self, int operation, TupleDesc desc)
{
	Reader *reader = (Reader *) self;
	MrTreesInput *input = reader->input;

	if (desc->natts > COLUMN_FEATURES + input->shape->nfeatures)
		input->times = MemoryContextAlloc(reader->context, input->room * sizeof(TimestampTz));
}

static void
end_reading(DestReceiver *self)
{
}

/* Makes room for more rows. */
static void
grow(MrTreesInput *input)
{
	Size room = input->room * 2;

	input->entities = repalloc_huge(input->entities, room * sizeof(int64));
	input->chances = repalloc_huge(input->chances, room * sizeof(int64));
	input->contents = repalloc_huge(input->contents, room * sizeof(uint64));
	input->labels = repalloc_huge(input->labels, room * sizeof(float));
	if (input->times != NULL)
		input->times = repalloc_huge(input->times, room * sizeof(TimestampTz));
	input->values = repalloc_huge(input->values, room * input->shape->nfeatures * sizeof(uint32));
	input->room = room;
}

/* A number that is not infinite; its bits, those of zero also for negative zero. */
static uint32
take_number(float number, const char *column)
{
	uint32 bits;

	if (isinf(number))
		ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						errmsg("a value of column \"%s\" is infinite", column)));
	number = isnan(number) ? NAN : number + 0.0f;
	memcpy(&bits, &number, sizeof(bits));
	return bits;
}

/* What a feature has of a row; its hash is added. */
static uint32
take_feature(const MrTreesShape *shape, int feature, Datum value, bool isnull, uint64 *hash)
{
	uint32 taken;

	if (shape->categories[feature] == NULL)
	{
		taken = take_number(isnull ? NAN : DatumGetFloat4(value), shape->names[feature]);
		*hash = hash_combine64(*hash, taken);
		return taken;
	}
	if (isnull)
	{
		*hash = hash_combine64(*hash, 0);
		return MR_MISSING_TEXT;
	}
	value = PointerGetDatum(PG_DETOAST_DATUM_PACKED(value));
	taken = mr_ids_number(shape->categories[feature], value);
	*hash = hash_combine64(*hash, DatumGetUInt64(hash_any_extended(
									  (unsigned char *) VARDATA_ANY(DatumGetPointer(value)),
									  VARSIZE_ANY_EXHDR(DatumGetPointer(value)), 1)));
	return taken;
}

static bool
read_row(TupleTableSlot *slot, DestReceiver *self)
{
	Reader *reader = (Reader *) self;
	MrTreesInput *input = reader->input;
	const MrTreesShape *shape = input->shape;
	uint32 *values;
	uint32 label;
	uint64 hash;

	slot_getallattrs(slot);
	input->rows++;
	if (input->rows % REPORT_ROWS == 0)
		mr_progress_done(input->rows);
	if (!slot->tts_isnull[COLUMN_LABEL])
		label = take_number(DatumGetFloat4(slot->tts_values[COLUMN_LABEL]), "label");
	if (slot->tts_isnull[COLUMN_LABEL] || isnan(DatumGetFloat4(slot->tts_values[COLUMN_LABEL])))
	{
		input->skipped++;
		return true;
	}
	if (input->count == input->room)
		grow(input);
	input->entities[input->count] = DatumGetInt64(slot->tts_values[COLUMN_ENTITY]);
	input->chances[input->count] = DatumGetInt64(slot->tts_values[COLUMN_CHANCE]);
	memcpy(&input->labels[input->count], &label, sizeof(label));
	/* what has no time is older than all that has one */
	if (input->times != NULL)
		input->times[input->count] =
			slot->tts_isnull[COLUMN_FEATURES + shape->nfeatures]
				? DT_NOBEGIN
				: DatumGetTimestampTz(slot->tts_values[COLUMN_FEATURES + shape->nfeatures]);
	hash = hash_combine64(DatumGetUInt64(slot->tts_values[COLUMN_ENTITY]), label);
	values = input->values + input->count * shape->nfeatures;
	for (int f = 0; f < shape->nfeatures; f++)
		values[f] = take_feature(shape, f, slot->tts_values[COLUMN_FEATURES + f],
								 slot->tts_isnull[COLUMN_FEATURES + f], &hash);
	input->contents[input->count] = hash;
	input->count++;
	return true;
}

MrTreesInput *
mr_trees_input_read(const MrTreesShape *shape, const char *sql, Oid owner)
{
	MrTreesInput *input = palloc0(sizeof(MrTreesInput));
	Reader reader = {.input = input, .context = CurrentMemoryContext};
	SPIExecuteOptions options = {.read_only = true, .dest = &reader.receiver};
	MrAsOwner as;
	int result;

	input->shape = shape;
	input->room = 1024;
	input->entities = palloc(input->room * sizeof(int64));
	input->chances = palloc(input->room * sizeof(int64));
	input->contents = palloc(input->room * sizeof(uint64));
	input->labels = palloc(input->room * sizeof(float));
	input->values = palloc_extended(input->room * shape->nfeatures * sizeof(uint32),
									MCXT_ALLOC_HUGE);
	reader.receiver.receiveSlot = read_row;
	reader.receiver.rStartup = start_reading;
	reader.receiver.rShutdown = end_reading;
	reader.receiver.rDestroy = end_reading;
	reader.receiver.mydest = DestNone;

	mr_progress_phase(MR_TRAINING_READING, 0);
	mr_become_owner(&as, owner);
	SPI_connect();
	result = SPI_execute_extended(sql, &options);
	if (result < 0)
		elog(ERROR, "cannot run \"%s\": %s", sql, SPI_result_code_string(result));
	SPI_finish();
	mr_become_caller(&as);
	return input;
}

/* ---- codes ------------------------------------------------------------------------------------------------ */

MrTreesCodes *
mr_trees_codes(const MrTreesInput *input, const uint64 *rows, uint64 n)
{
	const MrTreesShape *shape = input->shape;
	MrTreesCodes *codes = palloc(sizeof(MrTreesCodes));

	codes->codes = palloc0(shape->nfeatures * sizeof(float *));
	for (int f = 0; f < shape->nfeatures; f++)
	{
		uint32 ntexts;
		uint32 next = 0;
		bool *known;
		uint32 *arrival;

		if (shape->categories[f] == NULL)
			continue;
		ntexts = mr_ids_count(shape->categories[f]);
		known = palloc0(Max(ntexts, 1));
		arrival = palloc(Max(ntexts, 1) * sizeof(uint32));
		codes->codes[f] = palloc(Max(ntexts, 1) * sizeof(float));
		for (uint64 i = 0; i < n; i++)
		{
			uint32 text = input->values[rows[i] * shape->nfeatures + f];

			if (text != MR_MISSING_TEXT)
				known[text] = true;
		}
		for (uint32 text = 0; text < ntexts; text++)
			arrival[shape->places[f][text]] = text;
		for (uint32 place = 0; place < ntexts; place++)
		{
			uint32 text = arrival[place];

			codes->codes[f][text] = known[text] ? (float) next++ : shape->unseen[f];
		}
	}
	return codes;
}

char *
mr_trees_codes_json(const MrTreesShape *shape, const MrTreesCodes *codes)
{
	StringInfoData json;
	const char *comma = "";

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	for (int f = 0; f < shape->nfeatures; f++)
	{
		uint32 ntexts;
		uint32 *arrival;
		uint32 n = 0;

		if (shape->categories[f] == NULL)
			continue;
		ntexts = mr_ids_count(shape->categories[f]);
		arrival = palloc(Max(ntexts, 1) * sizeof(uint32));
		for (uint32 text = 0; text < ntexts; text++)
			arrival[shape->places[f][text]] = text;
		appendStringInfoString(&json, comma);
		escape_json(&json, shape->names[f]);
		appendStringInfoString(&json, ": [");
		for (uint32 place = 0; place < ntexts; place++)
			if (codes->codes[f][arrival[place]] >= 0)
			{
				appendStringInfoString(&json, n++ > 0 ? ", " : "");
				escape_json(&json, mr_ids_text(shape->categories[f], place));
			}
		appendStringInfoChar(&json, ']');
		comma = ", ";
	}
	appendStringInfoChar(&json, '}');
	return json.data;
}

MrTreesCodes *
mr_trees_codes_of(const MrTreesShape *shape, const MrPredictor *predictor)
{
	MrTreesCodes *codes = palloc(sizeof(MrTreesCodes));

	codes->codes = palloc0(shape->nfeatures * sizeof(float *));
	for (int f = 0; f < shape->nfeatures; f++)
	{
		uint32 ntexts;

		if (shape->categories[f] == NULL)
			continue;
		ntexts = mr_ids_count(shape->categories[f]);
		codes->codes[f] = palloc(Max(ntexts, 1) * sizeof(float));
		for (uint32 text = 0; text < ntexts; text++)
		{
			char *value = mr_ids_text(shape->categories[f], shape->places[f][text]);

			codes->codes[f][text] = mr_feature_code(&predictor->features[f], value,
													(int) strlen(value));
		}
	}
	return codes;
}

void
mr_trees_row(const MrTreesInput *input, const MrTreesCodes *codes, uint64 row, float *values)
{
	const MrTreesShape *shape = input->shape;
	const uint32 *taken = input->values + row * shape->nfeatures;

	for (int f = 0; f < shape->nfeatures; f++)
		if (shape->categories[f] == NULL)
			memcpy(&values[f], &taken[f], sizeof(float));
		else
			values[f] = taken[f] == MR_MISSING_TEXT ? NAN : codes->codes[f][taken[f]];
}
