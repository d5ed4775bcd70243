/*
 * trees_evaluate.h
 *	  How well trees predict what is known.
 */
#ifndef MR_MODEL_TREES_EVALUATE_H
#define MR_MODEL_TREES_EVALUATE_H

#include "model/trees_split.h"
#include "utils/array.h"

typedef enum MrTreesMetric
{
	MR_TREES_LOGLOSS,
	MR_TREES_ERROR,
	MR_TREES_RMSE,
	MR_TREES_MAE,
	MR_TREES_AUC
} MrTreesMetric;

/* Reads names of metrics; an error names the one that is not known. */
extern MrTreesMetric *mr_trees_metrics(ArrayType *names, int *n);

/* Metrics of trees by some rows; of a constant when there are none.  NaN: there is nothing to judge by. */
extern void mr_trees_judge(const MrTreesRows *rows, const MrTrees *trees, const MrTreesCodes *codes,
						   double constant, const MrTreesMetric *metrics, int nmetrics,
						   double *values);

/* The mean of the labels. */
extern double mr_trees_mean_label(const MrTreesRows *rows);

/* An array for SQL. */
extern Datum mr_trees_doubles(const double *values, int n);

#endif /* MR_MODEL_TREES_EVALUATE_H */
