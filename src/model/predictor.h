/*
 * predictor.h
 *	  A version of a model of trees in memory: what its features are, and how values become theirs.
 */
#ifndef MR_MODEL_PREDICTOR_H
#define MR_MODEL_PREDICTOR_H

#include "model/session.h"
#include "model/trees.h"
#include "storage/dsm.h"

/* A value of a category, and its number. */
typedef struct MrCode
{
	uint32 text; /* where it begins in the texts */
	uint32 length;
	float code;
} MrCode;

typedef struct MrFeature
{
	const char *name;
	bool is_category;
	float unseen; /* what stands for a value that is not there */
	uint32 ncodes;
	const MrCode *codes; /* by their bytes */
	const char *texts;
} MrFeature;

/* A version, in shared memory or in this process's own; it is let go of when nobody uses it any more. */
typedef struct MrPredictor
{
	MemoryContext context;
	dsm_segment *segment; /* NULL: it is all in the context */
	int uses;
	int32 version;
	int nfeatures;
	MrFeature *features;
	MrTrees trees;
} MrPredictor;

/* The copy of a version in shared memory, which is used once; NULL: there is none (yet). */
extern MrPredictor *mr_predictor_attach(MrModel *model, int32 version);

/* Reads a version of a model into memory of its own; it is used once. */
extern MrPredictor *mr_predictor_load(int32 model_id, int32 version);
extern void mr_predictor_release(MrPredictor *predictor);

/* For the process that makes a copy; NULL: there is no room. */
extern dsm_segment *mr_predictor_copy(int32 model_id, int32 version);

/* The number of a feature, or -1. */
extern int mr_predictor_find(const MrPredictor *predictor, const char *name, int length);

/* What a value of a category becomes. */
extern float mr_feature_code(const MrFeature *feature, const char *text, int length);

/* An error when it is infinite. */
extern float mr_feature_checked(const MrFeature *feature, float value);

#endif /* MR_MODEL_PREDICTOR_H */
