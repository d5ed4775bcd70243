/*
 * copied.c
 *	  Versions of models in shared memory.
 *
 * A version never changes once its transaction has committed, and its number is not used again: so a copy needs no invalidation.
 * Which version is served is read from the tables.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "common/hashfn.h"
#include "core/copies.h"
#include "core/millrace.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "model/copied.h"
#include "model/lists.h"
#include "model/predictor.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(millrace_model_copies);
PG_FUNCTION_INFO_V1(millrace_forget_copies);

/* How long a session does without, when there is no copy, until it asks for one again (ms). */
#define ASK_AGAIN 1000

/* What the registry tells of a version. */
typedef struct Registered
{
	uint64 items; /* of neighbours */
	uint64 neighbours;
	uint64 digest; /* of what determines the content */
	bool is_own; /* made by the current transaction */
} Registered;

/* Reads the registry's row of a version; false when there is none. */
static bool
read_registered(int32 model_id, int32 version, Registered *registered)
{
	TupleDesc desc;
	HeapTuple row = mr_lookup_row(mr_lookup_configuration("model_version", "model_version_pkey"), 1,
								  Int32GetDatum(model_id), 2, Int32GetDatum(version), &desc);
	text *hash;
	bool isnull;

	if (row == NULL)
		return false;
	hash = DatumGetTextPP(mr_lookup_named(row, desc, "input_hash", &isnull));
	registered->items = DatumGetInt32(mr_lookup_named(row, desc, "items", &isnull));
	registered->neighbours = DatumGetInt64(mr_lookup_named(row, desc, "neighbours", &isnull));
	registered->digest = DatumGetUInt64(hash_any_extended(
		(unsigned char *) VARDATA_ANY(hash), VARSIZE_ANY_EXHDR(hash),
		(uint64) DatumGetTimestampTz(mr_lookup_named(row, desc, "trained_at", &isnull))));
	registered->is_own = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(row->t_data));
	return true;
}

dsm_segment *
mr_copied_attach(MrModel *model, int32 version)
{
	MrCopyKey key = {.database = MyDatabaseId, .relation = model->relation, .version = version};
	TimestampTz now = GetCurrentStatementStartTimestamp();
	dsm_segment *segment = NULL;
	Registered registered;

	if (!mr_copies_enabled() || !TimestampDifferenceExceeds(model->asked, now, ASK_AGAIN))
		return NULL;
	if (read_registered(model->id, version, &registered) && !registered.is_own)
	{
		key.digest = registered.digest;
		segment = mr_copy_attach(&key, "mr_copied_main");
	}
	model->asked = segment == NULL ? now : 0;
	return segment;
}

/* The process that makes a copy. */
void
mr_copied_main(Datum slot)
{
	MrCopyKey key = mr_copy_loader_start(slot);
	dsm_segment *segment;
	Registered registered;
	HeapTuple model = NULL;
	TupleDesc desc;
	int32 id;
	char *kind;
	bool isnull;

	if (mr_extension_exists())
		model = mr_lookup_row(mr_lookup_configuration("model", "model_relation_key"), 2,
							  ObjectIdGetDatum(key.relation), 0, (Datum) 0, &desc);
	if (model == NULL)
		proc_exit(0);
	id = DatumGetInt32(mr_lookup_column(model, 1, desc));
	kind = TextDatumGetCString(mr_lookup_named(model, desc, "kind", &isnull));
	if (!read_registered(id, key.version, &registered) || registered.digest != key.digest)
		proc_exit(0);
	segment = strcmp(kind, "xgboost") == 0
				  ? mr_predictor_copy(id, key.version)
				  : mr_lists_copy(id, key.version, registered.items, registered.neighbours);
	if (segment == NULL)
		proc_exit(0);
	mr_copy_publish(segment);
	PopActiveSnapshot();
	CommitTransactionCommand();
	proc_exit(0);
}

/* ---- for SQL ---------------------------------------------------------------------------------------------- */

/* The copies in shared memory: model, version, whether it is there, bytes. */
Datum
millrace_model_copies(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	MrCopyInfo *copies;
	int n = mr_copy_list(&copies);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		Datum values[4] = {
			ObjectIdGetDatum(copies[i].key.relation), Int32GetDatum(copies[i].key.version),
			BoolGetDatum(copies[i].state == MR_COPY_READY), Int64GetDatum(copies[i].size)};
		bool nulls[4] = {false};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Lets go of the copies of a model, of one version or (0) of all. */
Datum
millrace_forget_copies(PG_FUNCTION_ARGS)
{
	mr_copy_forget(PG_GETARG_OID(0), PG_GETARG_INT32(1));
	PG_RETURN_VOID();
}
