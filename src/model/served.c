/*
 * served.c
 *	  The version of a model that is served.
 *
 * A session remembers what cannot change while the model is there: which tables it has.  Whether the caller may ask and which
 * version is served is looked up at each call.  Lists are read from a copy in shared memory (lists.h), or row by row from the tables
 * while there is none.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/objectaddress.h"
#include "core/copies.h"
#include "core/statement.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "model/ids.h"
#include "model/served.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

/* How long a session reads tables, when there is no copy, until it asks for one again (ms). */
#define ASK_AGAIN 1000

static HTAB *models = NULL;

/* ---- models ----------------------------------------------------------------------------------------------- */

/* A model may be another one by now; one that is answering goes on with what it has. */
static void
relation_changed(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS all;
	MrKnown *known;

	hash_seq_init(&all, models);
	while ((known = hash_seq_search(&all)) != NULL)
		if (!OidIsValid(relid) || relid == known->relation)
			known->valid = false;
}

/* Reads what a session keeps of a model. */
static void
learn(MrKnown *known)
{
	TupleDesc desc;
	HeapTuple row = mr_lookup_row(mr_lookup_configuration("model", "model_relation_key"), 2,
								  ObjectIdGetDatum(known->relation), 0, (Datum) 0, &desc);
	bool is_varlena;
	bool isnull;
	Oid output;

	if (row == NULL ||
		strcmp(TextDatumGetCString(mr_lookup_named(row, desc, "kind", &isnull)), "item_knn") != 0)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("%s is not a model%s",
							   DatumGetCString(DirectFunctionCall1(
								   regclassout, ObjectIdGetDatum(known->relation))),
							   row == NULL ? "" : " that recommends")));
	known->id = DatumGetInt32(mr_lookup_column(row, 1, desc));
	known->aliases = mr_lookup_configuration("model_alias", "model_alias_pkey");
	known->by_number = mr_lookup_state(known->id, "item", "item_pkey");
	known->by_item = mr_lookup_state(known->id, "item", "item_item");
	known->by_place = mr_lookup_state(known->id, "item", "item_place");
	known->users = mr_lookup_state(known->id, "user", "user_pkey");
	known->targets = mr_lookup_state(known->id, "target", "target_pkey");
	known->sources = mr_lookup_state(known->id, "source", "source_pkey");
	known->type = get_atttype(known->by_number.table, MR_ITEM_ID);
	known->collation = mr_ids_collation(known->type);
	fmgr_info_cxt(lookup_type_cache(known->type, TYPECACHE_CMP_PROC)->cmp_proc, &known->compare,
				  CacheMemoryContext);
	get_typlenbyval(known->type, &known->length, &known->by_value);
	getTypeOutputInfo(known->type, &output, &is_varlena);
	fmgr_info_cxt(output, &known->output, CacheMemoryContext);
	known->owner = DatumGetObjectId(mr_lookup_named(row, desc, "owner", &isnull));
	(void) mr_lookup_named(row, desc, "catalogue", &isnull);
	known->has_catalogue = !isnull;
	known->valid = true;
}

/* What the session knows of a model. */
static MrKnown *
find_model(Oid relation)
{
	MrKnown *known;
	bool found;

	if (models == NULL)
	{
		HASHCTL control = {.keysize = sizeof(Oid), .entrysize = sizeof(MrKnown)};

		models = hash_create("millrace models", 16, &control, HASH_ELEM | HASH_BLOBS);
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	}
	known = hash_search(models, &relation, HASH_ENTER, &found);
	if (!found)
		memset((char *) known + sizeof(Oid), 0, sizeof(MrKnown) - sizeof(Oid));
	if (!known->valid)
		learn(known);
	return known;
}

/*
 * The copy of a version, or NULL.  What a transaction has used it keeps to its end: a function that the caller's query calls may
 * ask again, and see another version.
 */
static const MrCopy *
find_copy(MrKnown *known, int32 version)
{
	TimestampTz transaction = GetCurrentTransactionStartTimestamp();

	if (known->segment != NULL && (known->copied != version || !mr_copies_enabled()))
	{
		if (known->used == transaction)
			return NULL;
		dsm_detach(known->segment);
		known->segment = NULL;
		if (!mr_copies_enabled())
			mr_copy_forget(known->relation, 0);
	}
	if (known->segment == NULL && mr_copies_enabled() &&
		TimestampDifferenceExceeds(known->asked, GetCurrentStatementStartTimestamp(), ASK_AGAIN))
	{
		known->segment = mr_version_attach(known->relation, known->id, version, &known->copy);
		known->copied = version;
		known->asked = known->segment == NULL ? GetCurrentStatementStartTimestamp() : 0;
	}
	if (known->segment == NULL)
		return NULL;
	known->used = transaction;
	mr_copy_touch(known->segment);
	return &known->copy;
}

void
mr_served_open(MrServed *served, Oid relation)
{
	AclResult allowed;
	TupleDesc desc;
	HeapTuple row;

	memset(served, 0, sizeof(MrServed));
	allowed = pg_class_aclcheck(relation, GetUserId(), ACL_SELECT);
	if (allowed != ACLCHECK_OK)
		aclcheck_error(allowed, get_relkind_objtype(get_rel_relkind(relation)),
					   get_rel_name(relation));
	/* Nobody drops the model meanwhile. */
	LockRelationOid(relation, AccessShareLock);
	served->known = find_model(relation);
	row = mr_lookup_row(served->known->aliases, 1, Int32GetDatum(served->known->id), 2,
						CStringGetTextDatum("production"), &desc);
	if (row == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("model %s has no version yet", mr_relation_name(relation)),
						errhint("Call millrace.train().")));
	served->version = DatumGetInt32(mr_lookup_column(row, 3, desc));
	served->copy = find_copy(served->known, served->version);
	if (served->copy == NULL)
	{
		served->items = table_open(served->known->by_number.table, AccessShareLock);
		served->by_number = index_open(served->known->by_number.index, AccessShareLock);
		served->slot = table_slot_create(served->items, NULL);
		served->scan = mr_index_beginscan(served->items, served->by_number, GetActiveSnapshot(), 2);
	}
}

void
mr_served_close(MrServed *served)
{
	if (served->copy != NULL)
		return;
	index_endscan(served->scan);
	ExecDropSingleTupleTableSlot(served->slot);
	index_close(served->by_number, AccessShareLock);
	table_close(served->items, AccessShareLock);
}

/* ---- items ------------------------------------------------------------------------------------------------ */

Datum
mr_served_read_id(Oid type, char *text)
{
	Oid input;
	Oid parameter;

	getTypeInputInfo(type, &input, &parameter);
	return OidInputFunctionCall(input, text, parameter, -1);
}

/* The number of an item in a copy: numbers have the order of ids. */
static bool
search_item(const MrKnown *known, const MrCopy *copy, Datum id, uint32 *number)
{
	uint32 low = 0;
	uint32 high = copy->items;

	while (low < high)
	{
		uint32 middle = low + (high - low) / 2;
		int32 order = DatumGetInt32(FunctionCall2Coll(
			(FmgrInfo *) &known->compare, known->collation, mr_version_id(copy, middle), id));

		if (order == 0)
		{
			*number = middle;
			return true;
		}
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return false;
}

bool
mr_served_find_item(MrServed *served, char *text, uint32 *number)
{
	Datum id = mr_served_read_id(served->known->type, text);
	SysScanDesc rows;
	HeapTuple row;
	bool found;

	if (served->copy != NULL)
		return search_item(served->known, served->copy, id, number);
	rows = mr_lookup(served->items, served->known->by_item.index, 1, Int32GetDatum(served->version),
					 MR_ITEM_ID, id);
	row = systable_getnext(rows);
	found = HeapTupleIsValid(row);
	if (found)
		*number =
			DatumGetInt32(mr_lookup_column(row, MR_ITEM_NUMBER, RelationGetDescr(served->items)));
	systable_endscan(rows);
	return found;
}

Datum
mr_served_id(MrServed *served, uint32 number)
{
	ScanKeyData keys[2];
	bool isnull;

	if (served->copy != NULL)
		return mr_version_id(served->copy, number);
	/* the columns of the key have the same numbers in table and index */
	mr_lookup_key(&keys[0], served->items, 1, Int32GetDatum(served->version));
	mr_lookup_key(&keys[1], served->items, MR_ITEM_NUMBER, Int32GetDatum((int32) number));
	index_rescan(served->scan, keys, 2, NULL, 0);
	if (!index_getnext_slot(served->scan, ForwardScanDirection, served->slot))
		elog(ERROR, "model %d, version %d has no item %u", served->known->id, served->version,
			 number);
	return slot_getattr(served->slot, MR_ITEM_ID, &isnull);
}

Datum
mr_served_id_text(MrServed *served, Datum id)
{
	return CStringGetTextDatum(OutputFunctionCall(&served->known->output, id));
}

void
mr_reading_begin(MrReading *reading, const MrServed *served, bool targets, uint32 number)
{
	MrIndexed indexed = targets ? served->known->targets : served->known->sources;

	reading->table = NULL;
	if (served->copy != NULL)
	{
		const MrLists *lists = targets ? &served->copy->targets : &served->copy->sources;

		reading->at_end = false;
		reading->entries = lists->entries + lists->start[number];
		reading->length = (int) (lists->start[number + 1] - lists->start[number]);
		return;
	}
	reading->table = table_open(indexed.table, AccessShareLock);
	reading->rows = mr_lookup(reading->table, indexed.index, 1, Int32GetDatum(served->version),
							  MR_LIST_ITEM, Int32GetDatum((int32) number));
}

bool
mr_reading_next(MrReading *reading)
{
	HeapTuple row;
	MrBlock block;

	if (reading->table == NULL)
	{
		bool has_block = !reading->at_end;

		reading->at_end = true;
		return has_block;
	}
	CHECK_FOR_INTERRUPTS();
	row = systable_getnext(reading->rows);
	if (!HeapTupleIsValid(row))
		return false;
	block = mr_lookup_block(row, RelationGetDescr(reading->table));
	if (block.length > MR_NEIGHBOURS_BLOCK)
		elog(ERROR, "a block has %d entries", block.length);
	for (int i = 0; i < block.length; i++)
	{
		reading->read[i].number = block.numbers[i];
		reading->read[i].score = ((const float *) block.values)[i];
	}
	reading->entries = reading->read;
	reading->length = block.length;
	return true;
}

void
mr_reading_end(MrReading *reading)
{
	if (reading->table == NULL)
		return;
	systable_endscan(reading->rows);
	table_close(reading->table, AccessShareLock);
}
