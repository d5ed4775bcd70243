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
#include "core/millrace.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "vault/vault.h"

/* One attribute: its number is part of the hash and never used again. */
typedef struct Attribute
{
	int32 number;
	Oid type;
	int32 typmod;
	MrHashColumn hash;
} Attribute;

/* How one source speaks of the parent and its attributes. */
typedef struct SatelliteSource
{
	MrStaging *staging; /* NULL: of another stream */
	MrKeyReader *reader;
	bool parent_is_object; /* deletes name the parent */
	AttrNumber *attnums; /* of the attributes; 0: not from this source */
	MrCast **casts;
	Datum *key_values; /* a row with nothing but an object's key */
	bool *key_nulls;
} SatelliteSource;

typedef struct MrSatellite
{
	MrTarget base;
	char *record_source; /* NULL: the stream's name */
	MrKey *key; /* the parent's */
	int nattributes;
	Attribute *attributes;
	SatelliteSource *sources;
	MrTable *table;
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

	for (int i = 0; i < COLUMNS; i++)
		names[i] =
			pstrdup(quote_identifier(NameStr(TupleDescAttr(table->desc, attnums[i] - 1)->attname)));

	/* One probe of the unique index for each run: the row before its end. */
	satellite->find_predecessors = mr_statement_create(
		psprintf("SELECT u.n, p.applied, p.confirmed "
				 "FROM unnest($1, $2, $3, $4, $5) AS u(n, parent, first, last, hash) "
				 "CROSS JOIN LATERAL (SELECT s.%s AS applied, s.%s AS hash, s.%s AS confirmed "
				 "FROM %s s WHERE s.%s = u.parent AND (s.%s, s.%s) <= (u.last, u.hash) "
				 "ORDER BY s.%s DESC, s.%s DESC LIMIT 1) p "
				 "WHERE p.hash = u.hash AND p.applied <= u.first",
				 names[COLUMN_APPLIED_AT], names[COLUMN_HASHDIFF], names[COLUMN_CONFIRMED_AT],
				 relation, names[COLUMN_PARENT], names[COLUMN_APPLIED_AT], names[COLUMN_HASHDIFF],
				 names[COLUMN_APPLIED_AT], names[COLUMN_HASHDIFF]),
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
load_source(MrSatellite *satellite, SatelliteSource *source, const MrTargetSource *from,
			Jsonb *attributes)
{
	Jsonb *columns = mr_vault_json(from->columns);
	Jsonb *names = mr_vault_json_member(columns, "attributes");
	MrStaging *staging = from->staging;

	source->staging = staging;
	if (staging == NULL)
		return;
	source->reader = mr_key_reader_create(satellite->key, staging, columns);
	source->parent_is_object = mr_key_is_object(source->reader, staging);
	source->attnums = palloc0(sizeof(AttrNumber) * Max(satellite->nattributes, 1));
	source->casts = palloc0(sizeof(MrCast *) * Max(satellite->nattributes, 1));
	for (int i = 0; i < satellite->nattributes; i++)
	{
		Attribute *attribute = &satellite->attributes[i];
		char *name =
			mr_vault_json_text(mr_vault_json_member(names, psprintf("%d", attribute->number)));
		Form_pg_attribute column;

		if (name == NULL)
			continue;
		source->attnums[i] = mr_staging_attribute(staging, name);
		if (source->attnums[i] == InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of staging table %s is gone", name, staging->name)));
		column = TupleDescAttr(staging->desc, source->attnums[i] - 1);
		source->casts[i] = mr_cast_create(column->atttypid, column->atttypmod, attribute->type,
										  attribute->typmod);
	}
	source->key_values = palloc0(sizeof(Datum) * staging->desc->natts);
	source->key_nulls = palloc(staging->desc->natts);
	memset(source->key_nulls, true, staging->desc->natts);
}

static MrTarget *
satellite_load(const MrTarget *base)
{
	MrSatellite *satellite = palloc0(sizeof(MrSatellite));
	Jsonb *definition = mr_vault_json(base->definition);
	Jsonb *attributes = mr_vault_json_member(definition, "attributes");
	AttrNumber *attnums;
	MrVaultTable table;

	satellite->base = *base;
	satellite->record_source =
		mr_vault_json_text(mr_vault_json_member(definition, "record_source"));
	satellite->key = mr_key_of_parent(mr_vault_json_member(definition, "parent"));

	mr_vault_table_open(&table, base);
	satellite->nattributes = mr_vault_json_length(attributes);
	satellite->attributes = palloc0(sizeof(Attribute) * Max(satellite->nattributes, 1));
	attnums = palloc(sizeof(AttrNumber) * (COLUMNS + satellite->nattributes));
	for (int i = 0; i < COLUMNS; i++)
		attnums[i] = mr_vault_attribute(&table, column_names[i]);
	for (int i = 0; i < satellite->nattributes; i++)
	{
		Attribute *attribute = &satellite->attributes[i];
		Jsonb *described = mr_vault_json_element(attributes, i);
		Form_pg_attribute column;

		attribute->number =
			pg_strtoint32(mr_vault_json_text(mr_vault_json_member(described, "number")));
		attnums[COLUMNS + i] = mr_vault_attribute(&table,
												  psprintf("attribute_%d", attribute->number));
		column = TupleDescAttr(table.desc, attnums[COLUMNS + i] - 1);
		attribute->type = column->atttypid;
		attribute->typmod = column->atttypmod;
		mr_hash_column_init(&attribute->hash, column->atttypid);
	}
	satellite->table = mr_table_create(base->relid, base->owner, COLUMNS + satellite->nattributes,
									   attnums, 3);
	create_statements(satellite, &table, attnums);

	satellite->sources = palloc0(sizeof(SatelliteSource) * Max(base->nsources, 1));
	for (int s = 0; s < base->nsources; s++)
		load_source(satellite, &satellite->sources[s], &base->sources[s], attributes);
	return &satellite->base;
}

/* ---- assertions -------------------------------------------------------------------------------------- */

/* The value of an attribute in a row of a source. */
static Datum
attribute_value(const SatelliteSource *source, int i, const MrRow *row, bool *isnull)
{
	AttrNumber attnum = source->attnums[i];

	if (attnum == InvalidAttrNumber || row->nulls[attnum - 1])
	{
		*isnull = true;
		return (Datum) 0;
	}
	*isnull = false;
	return mr_cast_value(source->casts[i], row->values[attnum - 1], isnull);
}

/* The hash of what a row says: of the number and value of each attribute that is not NULL. */
static void
hash_content(MrSatellite *satellite, const SatelliteSource *source, const MrRow *row,
			 pg_uuid_t *hash)
{
	MrHasher *hasher = satellite->key->hasher;

	mr_hasher_begin(hasher);
	for (int i = 0; i < satellite->nattributes; i++)
	{
		Attribute *attribute = &satellite->attributes[i];
		bool isnull;
		Datum value = attribute_value(source, i, row, &isnull);

		if (isnull)
			continue;
		mr_hasher_add_int32(hasher, attribute->number);
		mr_hasher_add(hasher, &attribute->hash, value, false);
	}
	mr_hasher_end(hasher, hash);
}

/* Adds what one version asserts. */
static int
assert_version(MrSatellite *satellite, int s, const MrVersion *version, Assertion *assertions,
			   int n)
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

		/* Rows without a parent are counted by the hub or link. */
		if (mr_key_read(source->reader, row->values, row->nulls) == 0)
			continue;
		mr_key_hash(source->reader, &assertion->parent);
		hash_content(satellite, source, row, &assertion->hash);
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

/* Sorts the assertions and finds the runs. */
static int
find_runs(Assertion *assertions, int n, Run *runs)
{
	int nruns = 0;
	int first_of_parent = 0;

	sort_assertions(assertions, n);
	for (int i = 0; i < n; i++)
	{
		bool same_parent = i > 0 && memcmp(&assertions[i].parent, &assertions[i - 1].parent,
										   sizeof(pg_uuid_t)) == 0;

		if (same_parent &&
			memcmp(&assertions[i].hash, &assertions[i - 1].hash, sizeof(pg_uuid_t)) == 0)
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

/*
 * Runs a statement whose parameters describe runs: their numbers, parents, a time, the last time, content.
 * Its plan is generic and goes through the unique index whatever the statistics of a young table say.
 */
static uint64
run_statement(const MrSatellite *satellite, MrStatement *statement, const Run *runs,
			  const int *numbers, int n)
{
	static const char *const planning[][2] = {{"enable_seqscan", "off"},
											  {"enable_bitmapscan", "off"},
											  {"enable_hashjoin", "off"},
											  {"enable_mergejoin", "off"},
											  {"plan_cache_mode", "force_generic_plan"}};
	Datum *elements = palloc(sizeof(Datum) * n);
	Datum arrays[5];
	int nest_level = NewGUCNestLevel();
	MrRunAs saved;
	uint64 processed;

	for (int i = 0; i < lengthof(planning); i++)
		(void) set_config_option(planning[i][0], planning[i][1], PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);

	for (int i = 0; i < n; i++)
		elements[i] = Int32GetDatum(numbers[i]);
	arrays[0] = PointerGetDatum(construct_array(elements, n, INT4OID, 4, true, TYPALIGN_INT));
	for (int i = 0; i < n; i++)
		elements[i] = UUIDPGetDatum(&runs[numbers[i]].first->parent);
	arrays[1] =
		PointerGetDatum(construct_array(elements, n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
	for (int i = 0; i < n; i++)
		elements[i] = TimestampTzGetDatum(statement == satellite->confirm
											  ? runs[numbers[i]].confirms
											  : runs[numbers[i]].first->time);
	arrays[2] = PointerGetDatum(
		construct_array(elements, n, TIMESTAMPTZOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	for (int i = 0; i < n; i++)
		elements[i] = TimestampTzGetDatum(runs[numbers[i]].last->time);
	arrays[3] = PointerGetDatum(
		construct_array(elements, n, TIMESTAMPTZOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	for (int i = 0; i < n; i++)
		elements[i] = UUIDPGetDatum(&runs[numbers[i]].first->hash);
	arrays[4] =
		PointerGetDatum(construct_array(elements, n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));

	mr_run_as_restricted(&saved, satellite->base.owner);
	processed = mr_statement_run(statement, arrays, NULL);
	mr_run_back(&saved);
	AtEOXact_GUC(false, nest_level);
	return processed;
}

/* Marks the runs that the table says already, and those that may confirm a row. */
static void
match_predecessors(MrSatellite *satellite, Run *runs, int nruns)
{
	int *numbers = palloc(sizeof(int) * nruns);
	uint64 found;
	int n = 0;

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
	for (uint64 i = 0; i < found; i++)
	{
		bool isnull;
		Run *run = &runs[DatumGetInt32(mr_sql_value(i, 1, &isnull))];
		TimestampTz applied = DatumGetTimestampTz(mr_sql_value(i, 2, &isnull));
		TimestampTz confirmed = DatumGetTimestampTz(mr_sql_value(i, 3, &isnull));

		/* What the batch itself says before the run lies between. */
		if (run->before != NULL && compare_content(applied, &run->first->hash, run->before) < 0)
			continue;
		run->done = confirmed >= run->last->time;
		run->confirming = !run->done;
		run->confirms = applied;
	}
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

/* Inserts a row for each run that is left: from its first to its last time, or of its last time alone. */
static int64
insert_runs(MrSatellite *satellite, const MrBatch *batch, const Run *runs, int nruns, int nleft,
			bool last_only)
{
	MrRows *rows = mr_rows_create(satellite->table, nleft);
	Datum record_source = mr_vault_record_source(satellite->record_source, batch);
	MrRunAs saved;

	mr_run_as_restricted(&saved, satellite->base.owner);
	for (int i = 0; i < nruns; i++)
	{
		const Run *run = &runs[i];
		const Assertion *assertion = last_only ? run->last : run->first;
		const SatelliteSource *source = &satellite->sources[assertion->source];
		int n;

		if (run->done || (last_only && run->first->time == run->last->time))
			continue;
		n = rows->nrows++;
		rows->values[COLUMN_PARENT][n] = UUIDPGetDatum(&assertion->parent);
		rows->values[COLUMN_APPLIED_AT][n] = TimestampTzGetDatum(assertion->time);
		rows->values[COLUMN_HASHDIFF][n] = UUIDPGetDatum(&assertion->hash);
		rows->values[COLUMN_CONFIRMED_AT][n] = TimestampTzGetDatum(run->last->time);
		rows->values[COLUMN_POSITION][n] = Int64GetDatum(assertion->position);
		rows->values[COLUMN_IS_DELETED][n] = BoolGetDatum(assertion->row == NULL);
		rows->values[COLUMN_LOAD_AT][n] = TimestampTzGetDatum(batch->loaded_at);
		rows->values[COLUMN_RECORD_SOURCE][n] = record_source;
		for (int a = 0; a < satellite->nattributes; a++)
		{
			if (assertion->row == NULL)
				rows->nulls[COLUMNS + a][n] = true;
			else
				rows->values[COLUMNS + a][n] = attribute_value(source, a, assertion->row,
															   &rows->nulls[COLUMNS + a][n]);
		}
	}
	mr_run_back(&saved);
	return rows->nrows - mr_table_insert_new(satellite->table, rows);
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
		const MrStaged *staged;

		if (satellite->sources[s].staging == NULL)
			continue;
		staged = &batch->staged[satellite->sources[s].staging->ordinal];
		for (int v = 0; v < staged->nversions; v++)
			n = assert_version(satellite, s, &staged->versions[v], assertions, n);
	}
	mr_run_back(&saved);
	if (n == 0)
		return;

	runs = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(Run) * n);
	nruns = find_runs(assertions, n, runs);
	match_predecessors(satellite, runs, nruns);
	confirm_rows(satellite, runs, nruns);
	for (int i = 0; i < nruns; i++)
		nleft += !runs[i].done;
	if (nleft == 0)
		return;

	/*
	 * A row that was there already may end earlier than the run: then the last assertion is still to be
	 * written.  Which rows were there is not known; a few needless ones do no harm.
	 */
	if (insert_runs(satellite, batch, runs, nruns, nleft, false) > 0)
		(void) insert_runs(satellite, batch, runs, nruns, nleft, true);
}

const MrTargetKind mr_satellite_kind = {
	.name = "satellite",
	.phase = MR_PHASE_SATELLITE,
	.stage = MR_STAGE_VAULT,
	.load = satellite_load,
	.apply = satellite_apply,
	.filled_from = MR_FILLED_FROM_VERSIONS,
};
