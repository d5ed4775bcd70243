/*
 * set.c
 *	  Satellites whose content is a set of rows.
 *
 * A version asserts a whole set of a unit at its time: the set's hash takes the place that the hash of one
 * row's content has in a standard satellite, and everything said there (satellite.c) holds of sets.  Its rows
 * share unit, applied_at and hashdiff, and are told apart by their members; they are written in one statement,
 * so either all of them are there or none.  Confirming takes the rows that can be locked at once: a set has
 * been asserted at a time when any of its rows says so.  An empty set is one row that is_deleted.
 *
 * Being right in any order follows: what holds at a time is the set asserted last before it, and no member's end
 * is ever written.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "stage/mapping.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "vault/set.h"

/* The columns of the table before the further ones, in the order in which they are written. */
enum
{
	COLUMN_UNIT,
	COLUMN_APPLIED_AT,
	COLUMN_HASHDIFF,
	COLUMN_MEMBER,
	COLUMN_CONFIRMED_AT,
	COLUMN_POSITION,
	COLUMN_IS_DELETED,
	COLUMN_LOAD_AT,
	COLUMN_RECORD_SOURCE,
	COLUMNS
};

typedef struct Assertion
{
	pg_uuid_t unit;
	pg_uuid_t member; /* zero, unless every member is a unit of its own */
	pg_uuid_t hash;
	TimestampTz time;
	int64 position;
	int source;
	int nmembers; /* at least one: an empty set has one without a row */
	MrSetMember *members;
} Assertion;

/* Assertions [first, last] of one unit that are neighbours and say the same. */
typedef struct Run
{
	Assertion *first;
	Assertion *last;
	const Assertion *before; /* the unit's assertion before them in the batch, or NULL */
	TimestampTz confirms; /* applied_at of the rows that may be confirmed */
	pg_uuid_t confirms_hash; /* and their hash */
	bool confirming;
	bool done;
} Run;

/* ---- loading ----------------------------------------------------------------------------------------- */

/*
 * An expression for the hash of what the set p says, of the unit and member u.  When attributes have been removed it
 * may have been made with them, too: what is left of its members counts.
 */
static char *
hash_of_set(const MrSetSatellite *satellite, const MrVaultTable *table, const AttrNumber *attnums,
			const char *const *names, const char *alone)
{
	const MrAttributes *attributes = &satellite->attributes;
	StringInfoData numbers;
	StringInfoData values;
	char *content;

	if (!attributes->any_removed)
		return "p.hash";
	initStringInfo(&numbers);
	initStringInfo(&values);
	for (int i = 0; i < attributes->n; i++)
	{
		AttrNumber attnum = attnums[COLUMNS + satellite->nsub_key + i];

		appendStringInfo(&numbers, ",%d", attributes->items[i].number);
		appendStringInfo(
			&values, ", s.%s",
			quote_identifier(NameStr(TupleDescAttr(table->desc, attnum - 1)->attname)));
	}
	/* NULL says nothing: it stands there for when nothing is left. */
	content = psprintf("millrace.hashdiff('{0%s}', NULL::pg_catalog.int4%s)", numbers.data,
					   values.data);
	if (satellite->whole)
		content = psprintf("millrace.hash_set(array_agg(s.%s ORDER BY s.%s), "
						   "array_agg(%s ORDER BY s.%s))",
						   names[COLUMN_MEMBER], names[COLUMN_MEMBER], content,
						   names[COLUMN_MEMBER]);
	return psprintf(
		"CASE WHEN p.hash = u.hash THEN p.hash ELSE (SELECT %s FROM %s s "
		"WHERE s.%s = u.unit%s AND s.%s = p.applied AND s.%s = p.hash AND NOT s.%s) END",
		content, mr_relation_name(table->relid), names[COLUMN_UNIT], alone,
		names[COLUMN_APPLIED_AT], names[COLUMN_HASHDIFF], names[COLUMN_IS_DELETED]);
}

static void
create_statements(MrSetSatellite *satellite, const MrVaultTable *table, const AttrNumber *attnums)
{
	Oid types[] = {INT4ARRAYOID,        get_array_type(UUIDOID), get_array_type(UUIDOID),
				   TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID,     get_array_type(UUIDOID)};
	char *relation = mr_relation_name(table->relid);
	const char *names[COLUMNS];
	char *alone;

	for (int i = 0; i < COLUMNS; i++)
		names[i] =
			pstrdup(quote_identifier(NameStr(TupleDescAttr(table->desc, attnums[i] - 1)->attname)));
	satellite->unit = pstrdup(names[COLUMN_UNIT]);
	satellite->set = psprintf("%s, %s, %s", names[COLUMN_UNIT], names[COLUMN_APPLIED_AT],
							  names[COLUMN_HASHDIFF]);
	alone = satellite->whole ? "" : psprintf(" AND s.%s = u.member", names[COLUMN_MEMBER]);

	/* One probe of the unique index for each run: the row before its end. */
	satellite->find_predecessors = mr_statement_create(
		psprintf("SELECT u.n, p.applied, p.confirmed, p.hash "
				 "FROM unnest($1, $2, $3, $4, $5, $6) AS u(n, unit, member, first, last, hash) "
				 "CROSS JOIN LATERAL (SELECT s.%s AS applied, s.%s AS hash, s.%s AS confirmed "
				 "FROM %s s WHERE s.%s = u.unit%s AND (s.%s, s.%s) <= (u.last, u.hash) "
				 "ORDER BY s.%s DESC, s.%s DESC LIMIT 1) p "
				 "WHERE p.applied <= u.first AND %s = u.hash",
				 names[COLUMN_APPLIED_AT], names[COLUMN_HASHDIFF], names[COLUMN_CONFIRMED_AT],
				 relation, names[COLUMN_UNIT], alone, names[COLUMN_APPLIED_AT],
				 names[COLUMN_HASHDIFF], names[COLUMN_APPLIED_AT], names[COLUMN_HASHDIFF],
				 hash_of_set(satellite, table, attnums, names, alone)),
		lengthof(types), types);

	satellite->confirm = mr_statement_create(
		psprintf(
			"WITH locked AS MATERIALIZED (SELECT u.n, u.unit, s.%s AS member, u.applied, u.last, "
			"u.hash FROM unnest($1, $2, $3, $4, $5, $6) AS u(n, unit, member, applied, last, hash) "
			"JOIN %s s ON s.%s = u.unit%s AND s.%s = u.applied AND s.%s = u.hash "
			"FOR NO KEY UPDATE OF s SKIP LOCKED) "
			"UPDATE %s s SET %s = greatest(s.%s, l.last) FROM locked l "
			"WHERE s.%s = l.unit AND s.%s = l.applied AND s.%s = l.hash AND s.%s = l.member "
			"RETURNING l.n",
			names[COLUMN_MEMBER], relation, names[COLUMN_UNIT], alone, names[COLUMN_APPLIED_AT],
			names[COLUMN_HASHDIFF], relation, names[COLUMN_CONFIRMED_AT],
			names[COLUMN_CONFIRMED_AT], names[COLUMN_UNIT], names[COLUMN_APPLIED_AT],
			names[COLUMN_HASHDIFF], names[COLUMN_MEMBER]),
		lengthof(types), types);
}

void
mr_set_load(MrSetSatellite *satellite, const MrVaultTable *table, const char *unit,
			const char *member, const AttrNumber *further, int nfurther)
{
	const char *names[COLUMNS] = {unit,         "applied_at",   "hashdiff",
								  member,       "confirmed_at", "position",
								  "is_deleted", "load_at",      "record_source"};
	const MrTarget *base = &satellite->base;
	Jsonb *definition = mr_vault_json(base->definition);
	AttrNumber *attnums = palloc(sizeof(AttrNumber) * (COLUMNS + nfurther));

	/* The configuration knows satellites; which kind of them this is was found by its loader. */
	satellite->base.kind = &mr_set_kind;
	satellite->record_source =
		mr_vault_json_text(mr_vault_json_member(definition, "record_source"));
	satellite->every = strcmp(mr_vault_json_text(mr_vault_json_member(definition, "history")),
							  "all") == 0;
	satellite->whole = mr_vault_json_true(mr_vault_json_member(definition, "whole"));

	for (int i = 0; i < COLUMNS; i++)
		attnums[i] = mr_vault_attribute(table, names[i]);
	for (int i = 0; i < nfurther; i++)
		attnums[COLUMNS + i] = further[i];
	satellite->table = mr_table_create(base->relid, base->owner, COLUMNS + nfurther, attnums,
									   COLUMN_MEMBER + 1);
	create_statements(satellite, table, attnums);

	satellite->sources = palloc0(sizeof(MrSetSource) * Max(base->nsources, 1));
	for (int s = 0; s < base->nsources; s++)
	{
		satellite->sources[s].staging = base->sources[s].staging;
		satellite->sources[s].record_source = mr_vault_json_text(
			mr_vault_json_member(mr_vault_json(base->sources[s].columns), "record_source"));
	}
}

/* ---- assertions -------------------------------------------------------------------------------------- */

/* What batches assert, while it is collected. */
typedef struct Collected
{
	MrSetMember *members; /* of all assertions */
	int nmembers;
	Assertion *assertions;
	int n;
	int64 skipped; /* rows with the member of another row of their set */
} Collected;

static int
compare_members(const void *left, const void *right)
{
	const MrSetMember *l = left;
	const MrSetMember *r = right;
	int order = memcmp(&l->unit, &r->unit, sizeof(pg_uuid_t));

	if (order == 0)
		order = memcmp(&l->member, &r->member, sizeof(pg_uuid_t));
	return order != 0 ? order : memcmp(&l->content, &r->content, sizeof(pg_uuid_t));
}

/* One assertion of the members [first, first + n), which are of one unit. */
static void
add_assertion(MrSetSatellite *satellite, Collected *collected, int s, const MrVersion *version,
			  MrSetMember *first, int n)
{
	Assertion *assertion = &collected->assertions[collected->n++];
	MrHasher *hasher = satellite->key->hasher;

	assertion->unit = first->unit;
	assertion->member = satellite->whole ? mr_zero_key : first->member;
	assertion->time = mr_version_time(satellite->sources[s].staging, version);
	assertion->position = version->message->position;
	assertion->source = s;
	assertion->members = first;
	assertion->nmembers = n;
	if (version->nrows == 0)
		assertion->hash = mr_deleted_hash;
	else if (!satellite->whole)
		assertion->hash = first->content;
	else
	{
		mr_hasher_begin(hasher);
		for (int i = 0; i < n; i++)
		{
			mr_hasher_add_bytes(hasher, (char *) first[i].member.data, UUID_LEN);
			mr_hasher_add_bytes(hasher, (char *) first[i].content.data, UUID_LEN);
		}
		mr_hasher_end(hasher, &assertion->hash);
	}
}

/* The empty set, when the object's key names the unit. */
static void
assert_nothing(MrSetSatellite *satellite, int s, const MrVersion *version, Collected *collected)
{
	MrSetSource *source = &satellite->sources[s];
	MrSetMember *member = &collected->members[collected->nmembers];
	MrRow *row;

	if (!source->is_object || version->held_back || (!version->deleted && !satellite->whole))
		return;
	row = palloc(sizeof(MrRow));
	*row = mr_version_empty_row(source->staging, version);
	member->row = row;
	if (!satellite->read(satellite, source, member))
		return;
	if (satellite->whole)
	{
		member->member = mr_zero_key;
		member->row = NULL;
	}
	collected->nmembers++;
	add_assertion(satellite, collected, s, version, member, 1);
}

/* Adds what one version asserts. */
static void
assert_version(MrSetSatellite *satellite, int s, const MrVersion *version, Collected *collected)
{
	MrSetMember *members = &collected->members[collected->nmembers];
	int n = 0;
	int kept = 0;

	if (version->nrows == 0)
	{
		assert_nothing(satellite, s, version, collected);
		return;
	}
	for (int r = 0; r < version->nrows; r++)
	{
		members[n].row = &version->rows[r];
		/* Rows without a parent are counted by the hub or link. */
		if (satellite->read(satellite, &satellite->sources[s], &members[n]))
			n++;
	}
	qsort(members, n, sizeof(MrSetMember), compare_members);
	/* Of rows with one member the last content counts, whatever the order of the elements. */
	for (int i = 0; i < n; i++)
	{
		if (kept > 0 && memcmp(&members[kept - 1].unit, &members[i].unit, sizeof(pg_uuid_t)) == 0 &&
			memcmp(&members[kept - 1].member, &members[i].member, sizeof(pg_uuid_t)) == 0)
		{
			if (memcmp(&members[kept - 1].content, &members[i].content, sizeof(pg_uuid_t)) != 0)
				collected->skipped++;
			kept--;
		}
		members[kept++] = members[i];
	}
	collected->nmembers += kept;
	for (int first = 0, next; first < kept; first = next)
	{
		for (next = first + 1; satellite->whole && next < kept; next++)
		{
			if (memcmp(&members[next].unit, &members[first].unit, sizeof(pg_uuid_t)) != 0)
				break;
		}
		add_assertion(satellite, collected, s, version, &members[first], next - first);
	}
}

/* The order of time and content among the assertions of one unit. */
static inline int
compare_content(TimestampTz time, const pg_uuid_t *hash, const Assertion *other)
{
	if (time != other->time)
		return time < other->time ? -1 : 1;
	return memcmp(hash, &other->hash, sizeof(pg_uuid_t));
}

static inline int
compare_units(const Assertion *left, const Assertion *right)
{
	int order = memcmp(&left->unit, &right->unit, sizeof(pg_uuid_t));

	return order != 0 ? order : memcmp(&left->member, &right->member, sizeof(pg_uuid_t));
}

static int
compare_assertions(const void *left, const void *right)
{
	const Assertion *l = left;
	const Assertion *r = right;
	int order = compare_units(l, r);

	return order != 0 ? order : compare_content(l->time, &l->hash, r);
}

/* Sorts the assertions and finds the runs; with `every`, only equal assertions are one. */
static int
find_runs(Assertion *assertions, int n, Run *runs, bool every)
{
	int nruns = 0;

	qsort(assertions, n, sizeof(Assertion), compare_assertions);
	for (int i = 0; i < n; i++)
	{
		bool same_unit = i > 0 && compare_units(&assertions[i], &assertions[i - 1]) == 0;

		if (same_unit &&
			memcmp(&assertions[i].hash, &assertions[i - 1].hash, sizeof(pg_uuid_t)) == 0 &&
			(!every || assertions[i].time == assertions[i - 1].time))
			runs[nruns - 1].last = &assertions[i];
		else
		{
			Run *run = &runs[nruns++];

			memset(run, 0, sizeof(Run));
			run->first = run->last = &assertions[i];
			run->before = same_unit ? &assertions[i - 1] : NULL;
		}
	}
	return nruns;
}

/* ---- writing ----------------------------------------------------------------------------------------- */

/* Runs a statement whose parameters describe runs: numbers, units, members, a time, the last time, content. */
static uint64
run_statement(const MrSetSatellite *satellite, MrStatement *statement, const Run *runs,
			  const int *numbers, int n)
{
	bool confirm = statement == satellite->confirm;
	Datum *elements = palloc(sizeof(Datum) * n);
	Datum arrays[6];

	for (int i = 0; i < n; i++)
		elements[i] = Int32GetDatum(numbers[i]);
	arrays[0] = mr_satellite_int_array(elements, n);
	for (int i = 0; i < n; i++)
		elements[i] = UUIDPGetDatum(&runs[numbers[i]].first->unit);
	arrays[1] = mr_satellite_uuid_array(elements, n);
	for (int i = 0; i < n; i++)
		elements[i] = UUIDPGetDatum(&runs[numbers[i]].first->member);
	arrays[2] = mr_satellite_uuid_array(elements, n);
	for (int i = 0; i < n; i++)
		elements[i] = TimestampTzGetDatum(confirm ? runs[numbers[i]].confirms
												  : runs[numbers[i]].first->time);
	arrays[3] = mr_satellite_time_array(elements, n);
	for (int i = 0; i < n; i++)
		elements[i] = TimestampTzGetDatum(runs[numbers[i]].last->time);
	arrays[4] = mr_satellite_time_array(elements, n);
	for (int i = 0; i < n; i++)
		elements[i] = UUIDPGetDatum(confirm ? &runs[numbers[i]].confirms_hash
											: &runs[numbers[i]].first->hash);
	arrays[5] = mr_satellite_uuid_array(elements, n);
	return mr_satellite_run(statement, satellite->base.owner, arrays);
}

/* Finds the runs that the table says already, and confirms rows for others. */
static void
match_and_confirm(MrSetSatellite *satellite, Run *runs, int nruns)
{
	int *numbers = palloc(sizeof(int) * nruns);
	uint64 found;
	bool isnull;
	int n = 0;

	for (int i = 0; i < nruns; i++)
		numbers[i] = i;
	found = run_statement(satellite, satellite->find_predecessors, runs, numbers, nruns);
	for (uint64 i = 0; i < found; i++)
	{
		int number = DatumGetInt32(mr_sql_value(i, 1, &isnull));
		Run *run = &runs[number];
		TimestampTz applied = DatumGetTimestampTz(mr_sql_value(i, 2, &isnull));

		run->confirms_hash = *DatumGetUUIDP(mr_sql_value(i, 4, &isnull));
		/* What the batch itself says before the run lies between. */
		if (run->before != NULL && compare_content(applied, &run->confirms_hash, run->before) < 0)
			continue;
		run->done = DatumGetTimestampTz(mr_sql_value(i, 3, &isnull)) >= run->last->time;
		run->confirms = applied;
		if (!run->done)
			numbers[n++] = number;
	}
	SPI_freetuptable(SPI_tuptable);
	if (n > 0)
	{
		found = run_statement(satellite, satellite->confirm, runs, numbers, n);
		for (uint64 i = 0; i < found; i++)
			runs[DatumGetInt32(mr_sql_value(i, 1, &isnull))].done = true;
		SPI_freetuptable(SPI_tuptable);
	}
	pfree(numbers);
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

/* Inserts rows for each run that is left: from one of its assertions to its last time. */
static int64
insert_runs(MrSetSatellite *satellite, const MrBatch *batch, const Run *runs, int nruns,
			int skipped)
{
	Datum *record_sources = palloc(sizeof(Datum) * Max(satellite->base.nsources, 1));
	int capacity = 0;
	int64 inserted;
	MrRows *rows;
	MrRunAs saved;

	for (int i = 0; i < satellite->base.nsources; i++)
		record_sources[i] = mr_vault_record_source(satellite->sources[i].record_source,
												   satellite->record_source, batch);
	for (int i = 0; i < nruns; i++)
	{
		const Assertion *assertion = runs[i].done ? NULL : assertion_after(&runs[i], skipped);

		if (assertion != NULL)
			capacity += assertion->nmembers;
	}
	if (capacity == 0)
		return 0;
	rows = mr_rows_create(satellite->table, capacity);

	mr_run_as_restricted(&saved, satellite->base.owner);
	for (int i = 0; i < nruns; i++)
	{
		const Run *run = &runs[i];
		const Assertion *assertion = run->done ? NULL : assertion_after(run, skipped);

		if (assertion == NULL)
			continue;
		for (int m = 0; m < assertion->nmembers; m++)
		{
			const MrSetMember *member = &assertion->members[m];
			bool nothing = memcmp(&assertion->hash, &mr_deleted_hash, sizeof(pg_uuid_t)) == 0;
			int n = rows->nrows++;

			rows->values[COLUMN_UNIT][n] = UUIDPGetDatum(&assertion->unit);
			rows->values[COLUMN_APPLIED_AT][n] = TimestampTzGetDatum(assertion->time);
			rows->values[COLUMN_HASHDIFF][n] = UUIDPGetDatum(&assertion->hash);
			rows->values[COLUMN_MEMBER][n] = UUIDPGetDatum(&member->member);
			rows->values[COLUMN_CONFIRMED_AT][n] = TimestampTzGetDatum(run->last->time);
			rows->values[COLUMN_POSITION][n] = Int64GetDatum(assertion->position);
			rows->values[COLUMN_IS_DELETED][n] = BoolGetDatum(nothing);
			rows->values[COLUMN_LOAD_AT][n] = TimestampTzGetDatum(batch->loaded_at);
			rows->values[COLUMN_RECORD_SOURCE][n] = record_sources[assertion->source];
			satellite->fill(satellite, &satellite->sources[assertion->source], member,
							rows->values + COLUMNS, rows->nulls + COLUMNS, n);
		}
	}
	mr_run_back(&saved);
	inserted = mr_table_insert_new(satellite->table, rows, 0, NULL);
	satellite->base.written += inserted;
	return rows->nrows - inserted;
}

static void
set_apply(MrTarget *target, MrBatch *batch)
{
	MrSetSatellite *satellite = (MrSetSatellite *) target;
	int capacity = mr_vault_count_rows(target, batch);
	Collected collected = {0};
	Run *runs;
	int nruns;
	MrRunAs saved;

	for (int s = 0; s < target->nsources; s++)
	{
		if (satellite->sources[s].staging != NULL)
			capacity += batch->staged[satellite->sources[s].staging->ordinal].nversions;
	}
	if (capacity == 0)
		return;

	collected.members = MemoryContextAllocHuge(CurrentMemoryContext,
											   sizeof(MrSetMember) * capacity);
	collected.assertions = MemoryContextAllocHuge(CurrentMemoryContext,
												  sizeof(Assertion) * capacity);
	/* Casts and output functions are of types that the owner has chosen. */
	mr_run_as_restricted(&saved, target->owner);
	for (int s = 0; s < target->nsources; s++)
	{
		const MrStaged *staged;

		if (satellite->sources[s].staging == NULL)
			continue;
		staged = &batch->staged[satellite->sources[s].staging->ordinal];
		for (int v = 0; v < staged->nversions; v++)
			assert_version(satellite, s, &staged->versions[v], &collected);
	}
	mr_run_back(&saved);
	mr_vault_count_skipped(target->id, batch, collected.skipped);
	if (collected.n == 0)
		return;

	runs = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(Run) * collected.n);
	nruns = find_runs(collected.assertions, collected.n, runs, satellite->every);
	if (!satellite->every)
		match_and_confirm(satellite, runs, nruns);
	/* As in a standard satellite: rows that were there may end earlier than the run. */
	for (int skipped = 0; insert_runs(satellite, batch, runs, nruns, skipped) > 0; skipped++)
		;
}

/* Whole sets of which the filter selects a row: what is left of one would pass for all of it. */
static void
set_clear(MrTarget *target, const char *filter, char **condition)
{
	MrSetSatellite *satellite = (MrSetSatellite *) target;
	char *relation = mr_relation_name(target->relid);
	MrRunAs saved;

	mr_run_as_restricted(&saved, target->owner);
	(void) mr_sql("DELETE FROM %s WHERE %s <> '00000000-0000-0000-0000-000000000000'::uuid "
				  "AND (%s) IN (SELECT %s FROM %s AS %s WHERE (%s\n))",
				  relation, satellite->unit, satellite->set, satellite->set, relation,
				  quote_identifier(get_rel_name(target->relid)), filter == NULL ? "true" : filter);
	mr_run_back(&saved);
	*condition = NULL;
}

const MrTargetKind mr_set_kind = {
	.name = "satellite",
	.phase = MR_PHASE_SATELLITE,
	.stage = MR_STAGE_VAULT,
	.apply = set_apply,
	.filled_from = MR_FILLED_FROM_VERSIONS,
	.clear = set_clear,
};
