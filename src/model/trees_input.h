/*
 * trees_input.h
 *	  The rows that trees are trained on and judged by.
 */
#ifndef MR_MODEL_TREES_INPUT_H
#define MR_MODEL_TREES_INPUT_H

#include "model/ids.h"
#include "model/predictor.h"
#include "utils/timestamp.h"

/* What all rows of a training have in common. */
typedef struct MrTreesShape
{
	int nfeatures;
	char **names;
	MrIds **categories; /* by feature: the texts of a category; NULL: it is a number */
	float *unseen; /* by feature: what stands for a text that a version does not know */
	uint32 **places; /* by feature and number by arrival, after sorting: the place in the order */
} MrTreesShape;

typedef struct MrTreesInput
{
	const MrTreesShape *shape;
	int64 rows; /* that the query gives */
	int64 skipped; /* without a label */
	uint64 count; /* the others, which are kept */
	uint64 room;
	int64 *entities; /* hashes of the entities */
	int64 *chances; /* the same, with the seed of the split */
	uint64 *contents; /* hashes of all that a row has */
	float *labels;
	TimestampTz *times; /* NULL: the statement gives none */
	uint32
		*values; /* by row and feature: the bits of a number, or the number of a text by arrival */
} MrTreesInput;

/* The value that is missing. */
#define MR_MISSING_TEXT PG_UINT32_MAX

/* The features of a model, by its definition, of which so many columns are the entity. */
extern MrTreesShape *mr_trees_shape(int32 model_id, int nentity);

/*
 * Reads a statement as the model's owner: it gives two hashes of the entity, the label, the features and, if wanted, a time, in an
 * order in which rows that are equal but for the time are neighbours.
 */
extern MrTreesInput *mr_trees_input_read(const MrTreesShape *shape, const char *sql, Oid owner);

/* When all is read: sorts the texts. */
extern void mr_trees_shape_sort(MrTreesShape *shape);

/* By feature, what the number of a text by arrival becomes. */
typedef struct MrTreesCodes
{
	float **codes;
} MrTreesCodes;

/* Texts that these rows have are numbered by their order; and as they are stored, in JSON. */
extern MrTreesCodes *mr_trees_codes(const MrTreesInput *input, const uint64 *rows, uint64 n);
extern char *mr_trees_codes_json(const MrTreesShape *shape, const MrTreesCodes *codes);

/* As a stored version numbers them. */
extern MrTreesCodes *mr_trees_codes_of(const MrTreesShape *shape, const MrPredictor *predictor);

/* What a row's features are. */
extern void mr_trees_row(const MrTreesInput *input, const MrTreesCodes *codes, uint64 row,
						 float *values);

#endif /* MR_MODEL_TREES_INPUT_H */
