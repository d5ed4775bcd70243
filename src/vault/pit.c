/*
 * pit.c
 *	  Point-in-time tables: which rows of satellites were valid at the end of each period.
 *
 * A batch names the keys of which something was said, and the earliest time of it.  Their spans are computed anew
 * from the satellites, which the batch has written before, from that time on; or from the beginning of a row that
 * covers it, when others lie within.  So the table is a function of its satellites, whatever came in whatever order.
 * Workers that meet at a key lock it first and look at the satellites afterwards (C4): the later one sees what both
 * have written.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "miscadmin.h"
#include "stage/mapping.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "vault/satellite.h"

#define KEYS_AT_ONCE 5000
/* Plans for few keys are made once; those for many look at their number. */
#define FEW_KEYS 100

typedef struct PitStatements
{
	MrStatement *insert_keys;
	MrStatement *lock_keys;
	MrStatement *compute;
	char *next_keys;
} PitStatements;

typedef struct MrPit
{
	MrTarget base;
	MrKey *key;
	MrKeyReader **readers; /* by source; NULL for sources of other streams */
	bool *is_object; /* by source: deletes and empty versions name the key */
	PitStatements statements;
} MrPit;

/* A key of which something was said, and when first. */
typedef struct Touched
{
	pg_uuid_t key;
	TimestampTz time;
} Touched;

/* The statements on names as they are now; as the extension's owner. */
static void
load_statements(PitStatements *statements, int32 target_id)
{
	Oid types[] = {get_array_type(UUIDOID), TIMESTAMPTZARRAYOID};

	(void) mr_sql("SELECT insert_keys, lock_keys, compute, next_keys "
				  "FROM millrace_internal.pit_statements(%d)",
				  target_id);
	statements->insert_keys = mr_statement_create(mr_sql_text(0, 1), 1, types);
	statements->lock_keys = mr_statement_create(mr_sql_text(0, 2), 1, types);
	statements->compute = mr_statement_create(mr_sql_text(0, 3), 2, types);
	statements->next_keys = mr_sql_text(0, 4);
	SPI_freetuptable(SPI_tuptable);
}

static MrTarget *
pit_load(const MrTarget *base)
{
	MrPit *pit = palloc0(sizeof(MrPit));

	pit->base = *base;
	pit->key = mr_key_of_parent(mr_vault_json_member(mr_vault_json(base->definition), "parent"));
	pit->readers = mr_key_readers_create(pit->key, base);
	pit->is_object = palloc0(Max(base->nsources, 1));
	for (int s = 0; s < base->nsources; s++)
	{
		if (pit->readers[s] != NULL)
			pit->is_object[s] = mr_key_is_object(pit->readers[s], base->sources[s].staging);
	}
	load_statements(&pit->statements, base->id);
	/* After all of its satellites, also those that objects share. */
	pit->base.shared = true;
	return &pit->base;
}

static int
compare_touched(const void *left, const void *right)
{
	const Touched *l = left;
	const Touched *r = right;
	int order = memcmp(&l->key, &r->key, sizeof(pg_uuid_t));

	if (order != 0)
		return order;
	return l->time < r->time ? -1 : l->time > r->time;
}

/* Satellites are read through their indexes, whatever the statistics of young tables say. */
static int
prefer_indexes(void)
{
	int nest_level = NewGUCNestLevel();

	(void) set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	return nest_level;
}

/* Runs a statement over keys as the owner. */
static uint64
run_over_keys(MrStatement *statement, Oid owner, const Touched *touched, int n)
{
	Datum *elements = palloc(sizeof(Datum) * n);
	int nest_level = prefer_indexes();
	Datum arrays[2];
	MrRunAs saved;
	uint64 processed;

	for (int i = 0; i < n; i++)
		elements[i] = UUIDPGetDatum(&touched[i].key);
	arrays[0] = mr_satellite_uuid_array(elements, n);
	for (int i = 0; i < n; i++)
		elements[i] = TimestampTzGetDatum(touched[i].time);
	arrays[1] = mr_satellite_time_array(elements, n);
	(void) set_config_option("plan_cache_mode",
							 n <= FEW_KEYS ? "force_generic_plan" : "force_custom_plan",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	mr_run_as_restricted(&saved, owner);
	processed = mr_statement_run(statement, arrays, NULL);
	mr_run_back(&saved);
	AtEOXact_GUC(false, nest_level);
	pfree(DatumGetPointer(arrays[0]));
	pfree(DatumGetPointer(arrays[1]));
	pfree(elements);
	return processed;
}

/* Adds the key of one row. */
static int
touch(MrKeyReader *reader, const MrRow *row, TimestampTz time, Touched *touched, int n)
{
	if (mr_key_read(reader, row->values, row->nulls) == 0)
		return n;
	mr_key_hash(reader, &touched[n].key);
	touched[n].time = time;
	return n + 1;
}

/* Adds the keys that a version says something of. */
static int
touch_version(const MrPit *pit, int s, const MrVersion *version, Touched *touched, int n)
{
	const MrStaging *staging = pit->base.sources[s].staging;
	TimestampTz time = mr_version_time(staging, version);

	if (version->nrows == 0 && pit->is_object[s])
	{
		MrRow empty = mr_version_empty_row(staging, version);

		return touch(pit->readers[s], &empty, time, touched, n);
	}
	for (int r = 0; r < version->nrows; r++)
		n = touch(pit->readers[s], &version->rows[r], time, touched, n);
	return n;
}

static void
pit_apply(MrTarget *target, MrBatch *batch)
{
	MrPit *pit = (MrPit *) target;
	int capacity = mr_vault_count_rows(target, batch);
	Touched *touched;
	int n = 0;
	int kept = 0;
	MrRunAs saved;

	for (int s = 0; s < target->nsources; s++)
	{
		if (pit->readers[s] != NULL)
			capacity += batch->staged[target->sources[s].staging->ordinal].nversions;
	}
	if (capacity == 0)
		return;
	touched = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(Touched) * capacity);
	/* Casts and output functions are of types that the owner has chosen. */
	mr_run_as_restricted(&saved, target->owner);
	for (int s = 0; s < target->nsources; s++)
	{
		const MrStaged *staged;

		if (pit->readers[s] == NULL)
			continue;
		staged = &batch->staged[target->sources[s].staging->ordinal];
		for (int v = 0; v < staged->nversions; v++)
			n = touch_version(pit, s, &staged->versions[v], touched, n);
	}
	mr_run_back(&saved);
	if (n == 0)
		return;

	/* Sorted, so that nobody waits in a circle; of a key the first time. */
	qsort(touched, n, sizeof(Touched), compare_touched);
	for (int i = 0; i < n; i++)
	{
		if (kept == 0 || memcmp(&touched[kept - 1].key, &touched[i].key, sizeof(pg_uuid_t)) != 0)
			touched[kept++] = touched[i];
	}
	(void) run_over_keys(pit->statements.insert_keys, target->owner, touched, kept);
	(void) run_over_keys(pit->statements.lock_keys, target->owner, touched, kept);
	SPI_freetuptable(SPI_tuptable);
	target->written += (int64) run_over_keys(pit->statements.compute, target->owner, touched, kept);
}

/* ---- filling ----------------------------------------------------------------------------------------- */

/*
 * Computes the spans of the next keys anew, under the exclusive lock of all streams.  Keys of which nothing is said
 * any more lose theirs, so that those who read meanwhile see each key as it was or as it is.
 */
static char *
pit_fill(MrTarget *target, const char *after, int limit, int64 *nkeys)
{
	const PitStatements *statements = &((MrPit *) target)->statements;
	Oid types[] = {UUIDOID, INT8OID};
	/* The key of ghost records comes before all others. */
	Datum values[] = {after == NULL ? UUIDPGetDatum(&mr_zero_key)
									: DirectFunctionCall1(uuid_in, CStringGetDatum(after)),
					  Int64GetDatum(limit)};
	Touched *touched = palloc(sizeof(Touched) * limit);
	int nest_level = prefer_indexes();
	char *reached = NULL;
	MrRunAs saved;
	int n;

	mr_run_as_restricted(&saved, target->owner);
	if (SPI_execute_with_args(statements->next_keys, lengthof(types), types, values, NULL, false,
							  0) != SPI_OK_SELECT)
		elog(ERROR, "cannot read the keys of %s", target->name);
	mr_run_back(&saved);
	AtEOXact_GUC(false, nest_level);
	n = (int) SPI_processed;
	for (int i = 0; i < n; i++)
	{
		bool isnull;

		touched[i].key = *DatumGetUUIDP(mr_sql_value(i, 1, &isnull));
		touched[i].time = DT_NOBEGIN;
	}
	SPI_freetuptable(SPI_tuptable);
	if (n > 0)
		(void) run_over_keys(statements->compute, target->owner, touched, n);
	if (n == limit)
		reached =
			DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&touched[n - 1].key)));
	pfree(touched);
	*nkeys = n;
	return reached;
}

/* What it is made from is not removed: everything is computed anew. */
static void
pit_clear(MrTarget *target, const char *filter, char **condition)
{
	char *reached = NULL;
	int64 nkeys;

	if (filter != NULL)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("point-in-time table %s is rebuilt as a whole", target->name),
						errhint("Leave out the filter.")));
	do
	{
		CHECK_FOR_INTERRUPTS();
		reached = pit_fill(target, reached, KEYS_AT_ONCE, &nkeys);
	} while (reached != NULL);
}

const MrTargetKind mr_pit_kind = {
	.name = "pit",
	.phase = MR_PHASE_PIT,
	.stage = MR_STAGE_VAULT,
	.load = pit_load,
	.apply = pit_apply,
	.filled_from = MR_FILLED_BY_ITSELF,
	.fill = pit_fill,
	.clear = pit_clear,
};
