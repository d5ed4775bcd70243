/*
 * indexes.c
 *	  The indexes of a table that is written to straight through its access method.
 */
#include "postgres.h"

#include "catalog/index.h"
#include "core/compat.h"
#include "core/indexes.h"
#include "executor/executor.h"

void
mr_indexes_open(MrIndexes *indexes, Relation table)
{
	List *oids = RelationGetIndexList(table);
	ListCell *lc;

	memset(indexes, 0, sizeof(MrIndexes));
	indexes->table = table;
	indexes->relations = palloc(sizeof(Relation) * Max(list_length(oids), 1));
	indexes->infos = palloc(sizeof(IndexInfo *) * Max(list_length(oids), 1));
	foreach(lc, oids)
	{
		Relation index = index_open(lfirst_oid(lc), RowExclusiveLock);
		IndexInfo *info;

		if (!index->rd_index->indisready)
		{
			index_close(index, NoLock);
			continue;
		}
		info = BuildIndexInfo(index);
		if (info->ii_Expressions != NIL && indexes->estate == NULL)
			indexes->estate = CreateExecutorState();
		indexes->relations[indexes->count] = index;
		indexes->infos[indexes->count++] = info;
	}
	list_free(oids);
}

void
mr_indexes_close(MrIndexes *indexes)
{
	for (int i = 0; i < indexes->count; i++)
	{
		mr_index_insert_cleanup(indexes->relations[i], indexes->infos[i]);
		index_close(indexes->relations[i], NoLock);
	}
	if (indexes->estate != NULL)
		FreeExecutorState(indexes->estate);
	indexes->count = 0;
}

bool
mr_indexes_insert(MrIndexes *indexes, int i, TupleTableSlot *slot, IndexUniqueCheck check)
{
	IndexInfo *info = indexes->infos[i];
	Datum values[INDEX_MAX_KEYS];
	bool nulls[INDEX_MAX_KEYS];

	if (info->ii_Expressions != NIL)
	{
		ResetPerTupleExprContext(indexes->estate);
		GetPerTupleExprContext(indexes->estate)->ecxt_scantuple = slot;
	}
	FormIndexDatum(info, slot, indexes->estate, values, nulls);
	return index_insert(indexes->relations[i], values, nulls, &slot->tts_tid, indexes->table, check,
						false, info);
}

TM_Result
mr_indexes_update(MrIndexes *indexes, ItemPointer place, TupleTableSlot *slot, CommandId command,
				  Snapshot snapshot, bool wait, IndexUniqueCheck unique)
{
	TM_FailureData failure;
	LockTupleMode lock_mode;
	MrUpdateIndexes update_indexes;
	TM_Result result = table_tuple_update(indexes->table, place, slot, command, snapshot,
										  InvalidSnapshot, wait, &failure, &lock_mode,
										  &update_indexes);

	for (int i = 0; i < indexes->count && result == TM_Ok; i++)
	{
		bool is_unique = indexes->relations[i]->rd_index->indisunique;

		if (mr_updates_indexes(update_indexes, indexes->infos[i]))
			(void) mr_indexes_insert(indexes, i, slot, is_unique ? unique : UNIQUE_CHECK_NO);
	}
	return result;
}
