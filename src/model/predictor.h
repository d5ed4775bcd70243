/*
 * predictor.h
 *	  A version of a model of trees in memory: what its features are, and how values become theirs.
 */
#ifndef MR_MODEL_PREDICTOR_H
#define MR_MODEL_PREDICTOR_H

#include "model/trees.h"

/* A value of a category, and its number. */
typedef struct MrCode
{
	const char *text;
	int length;
	float code;
} MrCode;

typedef struct MrFeature
{
	char *name;
	bool is_category;
	float unseen; /* what stands for a value that is not there */
	int ncodes;
	MrCode *codes; /* by their bytes */
} MrFeature;

/* A version; it is freed when nobody uses it any more. */
typedef struct MrPredictor
{
	MemoryContext context;
	int uses;
	int32 version;
	int nfeatures;
	MrFeature *features;
	MrTrees *trees;
} MrPredictor;

/* Reads a version of a model into a context of its own below CacheMemoryContext; it is used once. */
extern MrPredictor *mr_predictor_load(int32 model_id, int32 version);
extern void mr_predictor_release(MrPredictor *predictor);

/* The number of a feature, or -1. */
extern int mr_predictor_find(const MrPredictor *predictor, const char *name, int length);

/* What a value of a category becomes. */
extern float mr_feature_code(const MrFeature *feature, const char *text, int length);

/* An error when it is infinite. */
extern float mr_feature_checked(const MrFeature *feature, float value);

#endif /* MR_MODEL_PREDICTOR_H */
