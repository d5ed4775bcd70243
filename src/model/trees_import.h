/*
 * trees_import.h
 *	  Models as XGBoost saves them.
 */
#ifndef MR_MODEL_TREES_IMPORT_H
#define MR_MODEL_TREES_IMPORT_H

#include "model/trees.h"

/* What a file says. */
typedef struct MrTreesFile
{
	MrTrees *trees;
	char *objective;
	char *version; /* of XGBoost */
	int nnames;
	char **names; /* of features; none are given when nnames is 0 */
	/* By feature: what its splits have gained, and how much they decide, in all; and how many there are. */
	double *gain;
	double *cover;
	int64 *splits;
} MrTreesFile;

/* Reads JSON or UBJSON; an error names what is wrong with it, or cannot be computed here. */
extern MrTreesFile *mr_trees_import(const char *bytes, Size length);

#endif /* MR_MODEL_TREES_IMPORT_H */
