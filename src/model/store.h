/*
 * store.h
 *	  How a version of item-item neighbours lies in tables.
 *
 * Four tables for each model, all of them led by the version:
 *	  millrace_state.model_<id>_item     number by the ids' order, the id, its users, its place by popularity
 *	  millrace_state.model_<id>_user     the id, block, items and, of a weighted model, weights
 *	  millrace_state.model_<id>_target   the neighbours of an item, best first
 *	  millrace_state.model_<id>_source   of what items it is a neighbour of, ascending
 * and one without versions:
 *	  millrace_state.model_<id>_test     pairs that never train, because versions are judged by them
 * Lists are cut into blocks so that a row stays on a page of its table.
 */
#ifndef MR_MODEL_STORE_H
#define MR_MODEL_STORE_H

#include "model/evaluate.h"
#include "model/knn.h"

/* Columns of the tables; all have the version first, and the lists of user, target and source lie in the same ones. */
#define MR_ITEM_NUMBER 2
#define MR_ITEM_ID 3
#define MR_ITEM_PLACE 5
#define MR_USER_ID 2
#define MR_LIST_ITEM 2

/* Entries of a block: TOAST would begin at 2,032 bytes. */
#define MR_NEIGHBOURS_BLOCK 220
#define MR_ITEMS_BLOCK 440
#define MR_WEIGHTS_BLOCK 150

extern void mr_store_version(int32 model_id, int32 version, const MrInput *input, const MrKnn *knn);

/* What is needed to judge a version that is not stored. */
extern void mr_judged_knn(MrJudged *judged, MrInput *input, const MrKnn *knn);

/* Makes the columns of so many neighbours in all, which may have so much memory. */
extern void mr_judged_columns(MrJudged *judged, uint64 neighbours, Size memory);

/* Adds pairs to the model's evaluation set; one that is in it stays as it is. */
extern void mr_store_test(int32 model_id, const MrInput *pairs, bool is_given);

/* A table of a model, or an index of one. */
extern Oid mr_store_table(int32 model_id, const char *name);

#endif /* MR_MODEL_STORE_H */
