/*
 * satellite.c
 *	  Satellites: what was said of a parent, and when.
 *
 * A version asserts its content at its time.  Assertions of a parent are ordered by (time, hashdiff), a total
 * order that does not depend on arrival; a delete has the greatest hashdiff of all.  A row of the table stands
 * for two assertions of one content, at applied_at and at confirmed_at; whatever lies between is left out.
 * The last assertion is the current content (C6).
 *
 * A batch's assertions of one parent are sorted, and runs of equal content become one (first, last).  A run
 * confirms the row p that precedes its end when p has the same content and nothing lies between p and the
 * run, neither in the table nor in the batch; else it becomes a row of its own.  Nobody waits for a
 * satellite's row: one that is locked is not confirmed, the run becomes a row.  Rows that say no more than
 * their neighbours are harmless, and losing an assertion is not: so every step that is in doubt inserts.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/leaf.h"
#include "core/millrace.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "vault/asserted.h"
#include "vault/satellite.h"

/* How one source speaks of the parent and its attributes. */
typedef struct SatelliteSource
{
	MrStaging *staging; /* NULL: of another stream */
	MrKeyReader *reader;
	bool parent_is_object; /* deletes name the parent */
	MrAttributeReader attributes;
	char *record_source; /* NULL: the satellite's */
	Datum *key_values; /* a row with nothing but an object's key */
	bool *key_nulls;
} SatelliteSource;

typedef struct MrSatellite
{
	MrTarget base;
	char *record_source; /* NULL: the stream's name */
	MrKey *key; /* the parent's */
	bool every; /* every assertion is a row: history => 'all' */
	MrAttributes attributes;
	SatelliteSource *sources;
	MrTable *table;
	AttrNumber order[4]; /* parent, applied_at, hashdiff, confirmed_at */
	MrStatement *find_predecessors;
	MrStatement *confirm;
} MrSatellite;

/* The columns of the table before the attributes, in the order in which they are written. */
enum
{
	COLUMN_PARENT,
	COLUMN_APPLIED_AT,
	COLUMN_HASHDIFF,
	COLUMN_CONFIRMED_AT,
	COLUMN_POSITION,
	COLUMN_IS_DELETED,
	COLUMN_LOAD_AT,
	COLUMN_RECORD_SOURCE,
	COLUMNS
};

static const char *const column_names[COLUMNS] = {"hash_key",     "applied_at",   "hashdiff",
												  "confirmed_at", "position",     "is_deleted",
												  "load_at",      "record_source"};

typedef struct Assertion
{
	pg_uuid_t parent;
	pg_uuid_t hash;
	TimestampTz time;
	int64 position;
	const MrRow *row; /* NULL: a delete */
	int source;
	bool first_ever; /* the object has never been seen before */
} Assertion;

/* Assertions [first, last] of one parent that are neighbours and say the same. */
typedef struct Run
{
	Assertion *first;
	Assertion *last;
	const Assertion *before; /* the parent's assertion before them in the batch, or NULL */
	TimestampTz confirms; /* applied_at of the row that may be confirmed */
	bool new_parent; /* the table has no row of it */
	pg_uuid_t
		confirms_hash; /* and its hashdiff: the run's, or one made with attributes since removed */
	bool confirming;
	bool done;
} Run;

/* ---- loading ----------------------------------------------------------------------------------------- */

/* The statements on the table's current column names. */
static void
create_statements(MrSatellite *satellite, const MrVaultTable *table, const AttrNumber *attnums)
{
	Oid find_types[] = {INT4ARRAYOID, get_array_type(UUIDOID), TIMESTAMPTZARRAYOID,
						TIMESTAMPTZARRAYOID, get_array_type(UUIDOID)};
	char *relation = mr_relation_name(table->relid);
	const char *names[COLUMNS];
	StringInfoData said;

	for (int i = 0; i < COLUMNS; i++)
		names[i] =
			pstrdup(quote_identifier(NameStr(TupleDescAttr(table->desc, attnums[i] - 1)->attname)));

	/* Columns that tell what a row says when its hash does not. */
	initStringInfo(&said);
	if (satellite->attributes.any_removed)
	{
		appendStringInfo(&said, ", s.%s", names[COLUMN_IS_DELETED]);
		for (int i = 0; i < satellite->attributes.n; i++)
			appendStringInfo(&said, ", s.%s",
							 quote_identifier(NameStr(
								 TupleDescAttr(table->desc, attnums[COLUMNS + i] - 1)->attname)));
	}

	/* One probe of the unique index for each run: the row before its end. */
	satellite->find_predecessors = mr_statement_create(
		psprintf("SELECT u.n, p.* "
				 "FROM unnest($1, $2, $3, $4, $5) AS u(n, parent, first, last, hash) "
				 "CROSS JOIN LATERAL (SELECT s.%s AS \":applied\", s.%s, s.%s AS \":hash\"%s "
				 "FROM %s s WHERE s.%s = u.parent AND (s.%s, s.%s) <= (u.last, u.hash) "
				 "ORDER BY s.%s DESC, s.%s DESC LIMIT 1) p "
				 "WHERE %sp.\":applied\" <= u.first",
				 names[COLUMN_APPLIED_AT], names[COLUMN_CONFIRMED_AT], names[COLUMN_HASHDIFF],
				 said.data, relation, names[COLUMN_PARENT], names[COLUMN_APPLIED_AT],
				 names[COLUMN_HASHDIFF], names[COLUMN_APPLIED_AT], names[COLUMN_HASHDIFF],
				 satellite->attributes.any_removed ? "" : "p.\":hash\" = u.hash AND "),
		lengthof(find_types), find_types);

	satellite->confirm = mr_statement_create(
		psprintf("WITH locked AS MATERIALIZED (SELECT u.n, u.parent, u.applied, u.last, u.hash "
				 "FROM unnest($1, $2, $3, $4, $5) AS u(n, parent, applied, last, hash) "
				 "JOIN %s s ON s.%s = u.parent AND s.%s = u.applied AND s.%s = u.hash "
				 "FOR NO KEY UPDATE OF s SKIP LOCKED) "
				 "UPDATE %s s SET %s = greatest(s.%s, l.last) FROM locked l "
				 "WHERE s.%s = l.parent AND s.%s = l.applied AND s.%s = l.hash RETURNING l.n",
				 relation, names[COLUMN_PARENT], names[COLUMN_APPLIED_AT], names[COLUMN_HASHDIFF],
				 relation, names[COLUMN_CONFIRMED_AT], names[COLUMN_CONFIRMED_AT],
				 names[COLUMN_PARENT], names[COLUMN_APPLIED_AT], names[COLUMN_HASHDIFF]),
		lengthof(find_types), find_types);
}

static void
load_source(MrSatellite *satellite, SatelliteSource *source, const MrTargetSource *from)
{
	Jsonb *columns = mr_vault_json(from->columns);
	MrStaging *staging = from->staging;

	source->staging = staging;
	if (staging == NULL)
		return;
	source->reader = mr_key_reader_create(satellite->key, staging, columns);
	source->parent_is_object = mr_key_is_object(source->reader, staging);
	source->record_source = mr_vault_json_text(mr_vault_json_member(columns, "record_source"));
	mr_attribute_reader_init(&source->attributes, &satellite->attributes, staging, columns);
	source->key_values = palloc0(sizeof(Datum) * staging->desc->natts);
	source->key_nulls = palloc(staging->desc->natts);
	memset(source->key_nulls, true, staging->desc->natts);
}

static MrTarget *
load_standard(const MrTarget *base, Jsonb *definition)
{
	MrSatellite *satellite = palloc0(sizeof(MrSatellite));
	int capacity = COLUMNS + mr_vault_json_length(mr_vault_json_member(definition, "attributes"));
	AttrNumber *attnums = palloc(sizeof(AttrNumber) * capacity);
	MrVaultTable table;

	satellite->base = *base;
	satellite->record_source =
		mr_vault_json_text(mr_vault_json_member(definition, "record_source"));
	satellite->every = strcmp(mr_vault_json_text(mr_vault_json_member(definition, "history")),
							  "all") == 0;
	satellite->key = mr_key_of_parent(mr_vault_json_member(definition, "parent"));

	mr_vault_table_open(&table, base);
	for (int i = 0; i < COLUMNS; i++)
		attnums[i] = mr_vault_attribute(&table, column_names[i]);
	mr_attributes_load(&satellite->attributes, &table, definition, attnums + COLUMNS);
	satellite->table = mr_table_create(base->relid, base->owner, COLUMNS + satellite->attributes.n,
									   attnums, 3);
	memcpy(satellite->order, attnums, sizeof(satellite->order));
	create_statements(satellite, &table, attnums);

	satellite->sources = palloc0(sizeof(SatelliteSource) * Max(base->nsources, 1));
	for (int s = 0; s < base->nsources; s++)
		load_source(satellite, &satellite->sources[s], &base->sources[s]);
	return &satellite->base;
}

static MrTarget *
satellite_load(const MrTarget *base)
{
	Jsonb *definition = mr_vault_json(base->definition);
	char *kind = mr_vault_json_text(mr_vault_json_member(definition, "kind"));

	if (strcmp(kind, "multi_active") == 0)
		return mr_multi_active_load(base);
	if (strcmp(kind, "effectivity") == 0)
		return mr_effectivity_load(base);
	return load_standard(base, definition);
}

/* ---- assertions -------------------------------------------------------------------------------------- */

/* Adds what one version asserts, whose first row has that place among all of its source. */
static int
assert_version(MrSatellite *satellite, int s, const MrVersion *version, int *place,
			   Assertion *assertions, int n)
{
	SatelliteSource *source = &satellite->sources[s];
	TimestampTz time = mr_version_time(source->staging, version);
	/* Nobody else can have told the table of a parent that is the object itself. */
	bool first_ever = satellite->base.nsources == 1 && source->parent_is_object &&
					  version->accepted && !version->known;

	if (version->deleted && source->parent_is_object)
	{
		Assertion *assertion = &assertions[n];

		for (int k = 0; k < source->staging->nkeys; k++)
		{
			source->key_values[source->staging->key[k] - 1] = version->key[k];
			source->key_nulls[source->staging->key[k] - 1] = false;
		}
		if (mr_key_read(source->reader, source->key_values, source->key_nulls) == 0)
			return n;
		mr_key_hash(source->reader, &assertion->parent);
		assertion->hash = mr_deleted_hash;
		assertion->time = time;
		assertion->position = version->message->position;
		assertion->row = NULL;
		assertion->source = s;
		assertion->first_ever = first_ever;
		n++;
	}
	for (int r = 0; r < version->nrows; r++)
	{
		Assertion *assertion = &assertions[n];
		const MrRow *row = &version->rows[r];
		MrKeyHash parent;

		/* Rows without a parent are counted by the hub or link. */
		if (!mr_key_row(source->reader, (*place)++, row, &parent))
			continue;
		assertion->parent = parent.hash;
		mr_attributes_hash(&satellite->attributes, satellite->key->hasher, &source->attributes, row,
						   &assertion->hash);
		assertion->time = time;
		assertion->position = version->message->position;
		assertion->row = row;
		assertion->source = s;
		assertion->first_ever = first_ever;
		n++;
	}
	return n;
}

/* The order of time and content among the assertions of one parent. */
static inline int
compare_content(TimestampTz time, const pg_uuid_t *hash, const Assertion *other)
{
	if (time != other->time)
		return time < other->time ? -1 : 1;
	return memcmp(hash, &other->hash, sizeof(pg_uuid_t));
}

static inline int
compare_assertions(const Assertion *l, const Assertion *r)
{
	int order = memcmp(&l->parent, &r->parent, sizeof(pg_uuid_t));

	return order != 0 ? order : compare_content(l->time, &l->hash, r);
}

#define ST_SORT sort_assertions
#define ST_ELEMENT_TYPE Assertion
#define ST_COMPARE(a, b) compare_assertions(a, b)
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

/* Sorts the assertions and finds the runs; with `every`, only equal assertions are one. */
static int
find_runs(Assertion *assertions, int n, Run *runs, bool every)
{
	int nruns = 0;
	int first_of_parent = 0;

	sort_assertions(assertions, n);
	for (int i = 0; i < n; i++)
	{
		bool same_parent = i > 0 && memcmp(&assertions[i].parent, &assertions[i - 1].parent,
										   sizeof(pg_uuid_t)) == 0;

		if (same_parent &&
			memcmp(&assertions[i].hash, &assertions[i - 1].hash, sizeof(pg_uuid_t)) == 0 &&
			(!every || assertions[i].time == assertions[i - 1].time))
			runs[nruns - 1].last = &assertions[i];
		else
		{
			Run *run = &runs[nruns++];

			memset(run, 0, sizeof(Run));
			run->first = run->last = &assertions[i];
			run->before = same_parent ? &assertions[i - 1] : NULL;
			if (!same_parent)
				first_of_parent = nruns - 1;
		}
		/* One version of an object tells it for all that the batch has of it. */
		if (assertions[i].first_ever)
			runs[first_of_parent].new_parent = true;
	}
	for (int i = 1; i < nruns; i++)
	{
		if (runs[i].before != NULL)
			runs[i].new_parent = runs[i - 1].new_parent;
	}
	return nruns;
}

/* ---- writing ----------------------------------------------------------------------------------------- */

/* Runs a statement whose parameters describe runs: their numbers, parents, a time, the last time, content. */
static uint64
run_statement(const MrSatellite *satellite, MrStatement *statement, const Run *runs,
			  const int *numbers, int n)
{
	bool confirm = statement == satellite->confirm;
	Datum *elements = palloc(sizeof(Datum) * n);
	Datum arrays[5];

	for (int i = 0; i < n; i++)
		elements[i] = Int32GetDatum(numbers[i]);
	arrays[0] = mr_satellite_int_array(elements, n);
	for (int i = 0; i < n; i++)
		elements[i] = UUIDPGetDatum(&runs[numbers[i]].first->parent);
	arrays[1] = mr_satellite_uuid_array(elements, n);
	for (int i = 0; i < n; i++)
		elements[i] = TimestampTzGetDatum(confirm ? runs[numbers[i]].confirms
												  : runs[numbers[i]].first->time);
	arrays[2] = mr_satellite_time_array(elements, n);
	for (int i = 0; i < n; i++)
		elements[i] = TimestampTzGetDatum(runs[numbers[i]].last->time);
	arrays[3] = mr_satellite_time_array(elements, n);
	for (int i = 0; i < n; i++)
		elements[i] = UUIDPGetDatum(confirm ? &runs[numbers[i]].confirms_hash
											: &runs[numbers[i]].first->hash);
	arrays[4] = mr_satellite_uuid_array(elements, n);
	return mr_satellite_run(statement, satellite->base.owner, arrays);
}

/*
 * Does the row found for a run say the same?  When attributes have been removed its hash may have been made
 * with them, too: what is left of it counts.
 */
static bool
says_the_same(MrSatellite *satellite, const Run *run, uint64 found)
{
	int n = satellite->attributes.n;
	Datum *values;
	bool *nulls;
	pg_uuid_t hash;
	bool isnull;

	if (memcmp(DatumGetUUIDP(mr_sql_value(found, 4, &isnull)), &run->first->hash,
			   sizeof(pg_uuid_t)) == 0)
		return true;
	if (!satellite->attributes.any_removed || run->first->row == NULL ||
		DatumGetBool(mr_sql_value(found, 5, &isnull)))
		return false;
	values = palloc(sizeof(Datum) * Max(n, 1));
	nulls = palloc(Max(n, 1));
	for (int i = 0; i < n; i++)
		values[i] = mr_sql_value(found, 6 + i, &nulls[i]);
	mr_attributes_hash_values(&satellite->attributes, satellite->key->hasher, values, nulls, &hash);
	return memcmp(&hash, &run->first->hash, sizeof(pg_uuid_t)) == 0;
}

/* Judges a run by the row before its end, which has the same content (`confirms_hash`). */
static void
match_run(Run *run, TimestampTz applied, TimestampTz confirmed)
{
	/* What the table, or the batch itself, says before the run lies between. */
	if (applied > run->first->time ||
		(run->before != NULL && compare_content(applied, &run->confirms_hash, run->before) < 0))
		return;
	run->done = confirmed >= run->last->time;
	run->confirming = !run->done;
	run->confirms = applied;
}

/* Marks the runs that the table says already, and those that may confirm a row. */
static void
match_predecessors(MrSatellite *satellite, Run *runs, int nruns)
{
	int *numbers = palloc(sizeof(int) * nruns);
	uint64 found;
	int n = 0;
	MrRunAs saved;

	for (int i = 0; i < nruns; i++)
	{
		if (!runs[i].new_parent)
			numbers[n++] = i;
	}
	if (n == 0)
	{
		pfree(numbers);
		return;
	}
	found = run_statement(satellite, satellite->find_predecessors, runs, numbers, n);
	/* Output functions are of types that the owner has chosen. */
	mr_run_as_restricted(&saved, satellite->base.owner);
	for (uint64 i = 0; i < found; i++)
	{
		bool isnull;
		Run *run = &runs[DatumGetInt32(mr_sql_value(i, 1, &isnull))];
		TimestampTz applied = DatumGetTimestampTz(mr_sql_value(i, 2, &isnull));
		TimestampTz confirmed = DatumGetTimestampTz(mr_sql_value(i, 3, &isnull));

		if (!says_the_same(satellite, run, i))
			continue;
		run->confirms_hash = *DatumGetUUIDP(mr_sql_value(i, 4, &isnull));
		match_run(run, applied, confirmed);
	}
	mr_run_back(&saved);
	SPI_freetuptable(SPI_tuptable);
	pfree(numbers);
}

/* Confirms rows that can be locked at once. */
static void
confirm_rows(MrSatellite *satellite, Run *runs, int nruns)
{
	int *numbers = palloc(sizeof(int) * nruns);
	uint64 confirmed;
	int n = 0;

	for (int i = 0; i < nruns; i++)
	{
		if (runs[i].confirming)
			numbers[n++] = i;
	}
	if (n > 0)
	{
		confirmed = run_statement(satellite, satellite->confirm, runs, numbers, n);
		for (uint64 i = 0; i < confirmed; i++)
		{
			bool isnull;

			runs[DatumGetInt32(mr_sql_value(i, 1, &isnull))].done = true;
		}
		SPI_freetuptable(SPI_tuptable);
	}
	pfree(numbers);
}

/* What the i-th run's key begins with, for mr_leaf_look_ahead(). */
static void
begin_key(void *context, int i, Datum *values, bool *nulls)
{
	const Run *run = (const Run *) context + i;

	nulls[0] = nulls[1] = run->new_parent;
	if (run->new_parent)
		return;
	values[0] = UUIDPGetDatum(&run->last->parent);
	values[1] = TimestampTzGetDatum(run->last->time);
}

/*
 * Both at once, without statements; false when the table is not plain enough for that, or rows may say the
 * same under another hash.
 */
static bool
confirm_directly(MrSatellite *satellite, Run *runs, int nruns)
{
	MrAsserted *asserted;
	MrRunAs saved;

	if (satellite->attributes.any_removed)
		return false;
	mr_run_as_restricted(&saved, satellite->base.owner);
	asserted = mr_asserted_open(satellite->base.relid, satellite->order);
	if (asserted != NULL)
	{
		for (int i = 0; i < nruns; i++)
		{
			Run *run = &runs[i];
			TimestampTz applied;
			TimestampTz confirmed;

			mr_asserted_look_ahead(asserted, i, nruns, begin_key, runs);
			if (run->new_parent || !mr_asserted_find(asserted, &run->last->parent, run->last->time,
													 &run->last->hash, &applied, &confirmed))
				continue;
			run->confirms_hash = run->first->hash;
			match_run(run, applied, confirmed);
			if (run->confirming)
				run->done = mr_asserted_confirm(asserted, run->last->time);
		}
		mr_asserted_close(asserted);
	}
	mr_run_back(&saved);
	return asserted != NULL;
}

/* The assertion of a run after so many others of earlier times, or NULL. */
static const Assertion *
assertion_after(const Run *run, int skipped)
{
	const Assertion *assertion = run->first;

	while (skipped > 0 && assertion < run->last)
	{
		assertion++;
		skipped -= assertion->time != assertion[-1].time;
	}
	return skipped > 0 ? NULL : assertion;
}

/*
 * Inserts a row for each run that is left, from its first to its last time, or leaving so many times at its
 * beginning out; returns how many were there already.
 */
static int64
insert_runs(MrSatellite *satellite, const MrBatch *batch, const Run *runs, int nruns, int nleft,
			int skipped)
{
	MrRows *rows = mr_rows_create(satellite->table, nleft);
	Datum *record_sources = palloc(sizeof(Datum) * Max(satellite->base.nsources, 1));
	int64 inserted;
	MrRunAs saved;

	for (int i = 0; i < satellite->base.nsources; i++)
		record_sources[i] = mr_vault_record_source(satellite->sources[i].record_source,
												   satellite->record_source, batch);
	mr_run_as_restricted(&saved, satellite->base.owner);
	for (int i = 0; i < nruns; i++)
	{
		const Run *run = &runs[i];
		const Assertion *assertion = run->done ? NULL : assertion_after(run, skipped);
		const SatelliteSource *source;
		int n;

		if (i + 2 * MR_AHEAD < nruns && runs[i + 2 * MR_AHEAD].first->row != NULL)
			__builtin_prefetch(runs[i + 2 * MR_AHEAD].first->row);
		if (i + MR_AHEAD < nruns && runs[i + MR_AHEAD].first->row != NULL)
			mr_row_prefetch(runs[i + MR_AHEAD].first->row);
		if (assertion == NULL)
			continue;
		source = &satellite->sources[assertion->source];
		n = rows->nrows++;
		rows->values[COLUMN_PARENT][n] = UUIDPGetDatum(&assertion->parent);
		rows->values[COLUMN_APPLIED_AT][n] = TimestampTzGetDatum(assertion->time);
		rows->values[COLUMN_HASHDIFF][n] = UUIDPGetDatum(&assertion->hash);
		rows->values[COLUMN_CONFIRMED_AT][n] = TimestampTzGetDatum(run->last->time);
		rows->values[COLUMN_POSITION][n] = Int64GetDatum(assertion->position);
		rows->values[COLUMN_IS_DELETED][n] = BoolGetDatum(assertion->row == NULL);
		rows->values[COLUMN_LOAD_AT][n] = TimestampTzGetDatum(batch->loaded_at);
		rows->values[COLUMN_RECORD_SOURCE][n] = record_sources[assertion->source];
		for (int a = 0; a < satellite->attributes.n; a++)
		{
			if (assertion->row == NULL)
				rows->nulls[COLUMNS + a][n] = true;
			else
				rows->values[COLUMNS + a][n] = mr_attribute_value(
					&source->attributes, a, assertion->row, &rows->nulls[COLUMNS + a][n]);
		}
	}
	mr_run_back(&saved);
	inserted = mr_table_insert_new(satellite->table, rows, 0, NULL);
	satellite->base.written += inserted;
	return rows->nrows - inserted;
}

static void
satellite_apply(MrTarget *target, MrBatch *batch)
{
	MrSatellite *satellite = (MrSatellite *) target;
	int capacity = mr_vault_count_rows(target, batch);
	Assertion *assertions;
	Run *runs;
	int n = 0;
	int nruns;
	int nleft = 0;
	MrRunAs saved;

	for (int s = 0; s < target->nsources; s++)
	{
		if (satellite->sources[s].staging != NULL)
			capacity += batch->staged[satellite->sources[s].staging->ordinal].nversions;
	}
	if (capacity == 0)
		return;

	assertions = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(Assertion) * capacity);
	/* Casts and output functions are of types that the owner has chosen. */
	mr_run_as_restricted(&saved, target->owner);
	for (int s = 0; s < target->nsources; s++)
	{
		MrStaged *staged;
		int place = 0;

		if (satellite->sources[s].staging == NULL)
			continue;
		staged = &batch->staged[satellite->sources[s].staging->ordinal];
		mr_key_begin(satellite->sources[s].reader, batch, staged);
		for (int v = 0; v < staged->nversions; v++)
		{
			mr_staged_prefetch_columns(staged, v, &satellite->sources[s].attributes.far);
			n = assert_version(satellite, s, &staged->versions[v], &place, assertions, n);
		}
	}
	mr_run_back(&saved);
	if (n == 0)
		return;

	runs = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(Run) * n);
	nruns = find_runs(assertions, n, runs, satellite->every);
	if (!satellite->every && !confirm_directly(satellite, runs, nruns))
	{
		match_predecessors(satellite, runs, nruns);
		confirm_rows(satellite, runs, nruns);
	}
	for (int i = 0; i < nruns; i++)
		nleft += !runs[i].done;
	if (nleft == 0)
		return;

	/*
	 * A row that was there already may end earlier than the run: then what comes after its beginning is still to
	 * be written.  Which rows were there is not known; a few needless ones do no harm.
	 */
	for (int skipped = 0; insert_runs(satellite, batch, runs, nruns, nleft, skipped) > 0; skipped++)
		;
}

const MrTargetKind mr_satellite_kind = {
	.name = "satellite",
	.phase = MR_PHASE_SATELLITE,
	.stage = MR_STAGE_VAULT,
	.load = satellite_load,
	.apply = satellite_apply,
	.filled_from = MR_FILLED_FROM_VERSIONS,
	.clear = mr_vault_clear,
};
