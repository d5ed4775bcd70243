/*
 * insert.c
 *	  Hubs and links: tables of keys that are inserted once and never change.
 *
 * Every row of every version that a batch holds names a key, also those of versions older than the staged one.
 * Most of them are in the table already: known ones are left out before anything is written.
 */
#include "postgres.h"

#include "core/millrace.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "vault/insert.h"

void
mr_key_table_load(MrKeyTable *table, const MrTarget *base, MrKey *key, const char *prefix,
				  int nmiddle)
{
	Jsonb *definition = mr_vault_json(base->definition);
	AttrNumber *attnums = palloc(sizeof(AttrNumber) * (nmiddle + 3));
	MrVaultTable columns;
	int n = 0;

	table->base = *base;
	table->record_source = mr_vault_json_text(mr_vault_json_member(definition, "record_source"));
	table->key = key;
	table->nmiddle = nmiddle;

	mr_vault_table_open(&columns, base);
	attnums[n++] = mr_vault_attribute(&columns, "hash_key");
	for (int i = 1; i <= nmiddle; i++)
		attnums[n++] = mr_vault_attribute(&columns, psprintf("%s_%d", prefix, i));
	attnums[n++] = mr_vault_attribute(&columns, "load_at");
	attnums[n++] = mr_vault_attribute(&columns, "record_source");
	table->table = mr_table_create(base->relid, base->owner, n, attnums, 1);
	table->known = mr_known_create(base->relid);
	table->readers = mr_key_readers_create(key, base);
	table->record_sources = palloc0(sizeof(char *) * Max(base->nsources, 1));
	for (int s = 0; s < base->nsources; s++)
	{
		table->base.shared |= table->readers[s] == NULL ||
							  !mr_key_has_object(table->readers[s], base->sources[s].staging);
		table->record_sources[s] = mr_vault_json_text(
			mr_vault_json_member(mr_vault_json(base->sources[s].columns), "record_source"));
	}
}

/* Keys that wait at a time: as many as memory can be asked for at once. */
#define WAITING 16

/* The rows of one batch, and the checks of their keys. */
typedef struct KeyRows
{
	MrRows *rows;
	pg_uuid_t *checks;
	MrKeySet *seen;
} KeyRows;

/* Rows with a key, until the memory is there that tells whether that is known. */
typedef struct Waiting
{
	int n;
	struct
	{
		const MrRow *row;
		int place;
		MrKeyHash hash;
	} keys[WAITING];
} Waiting;

/* Puts one row with the key of a source's row into `keys`, unless it is known. */
static void
add_row(MrKeyTable *table, MrKeyReader *reader, int place, const MrRow *source,
		const MrKeyHash *hash, KeyRows *keys, TimestampTz loaded_at, Datum record_source)
{
	MrRows *rows = keys->rows;
	pg_uuid_t *kept;
	int row;

	if (mr_known_contains(table->known, &hash->check) || !mr_key_set_add(keys->seen, &hash->check))
		return;

	mr_key_row_read(reader, place, source);
	row = rows->nrows++;
	kept = palloc(sizeof(pg_uuid_t));
	*kept = hash->hash;
	keys->checks[row] = hash->check;
	rows->values[0][row] = UUIDPGetDatum(kept);
	for (int i = 0; i < table->nmiddle; i++)
		rows->values[1 + i][row] = table->middle(reader, i);
	rows->values[1 + table->nmiddle][row] = TimestampTzGetDatum(loaded_at);
	rows->values[2 + table->nmiddle][row] = record_source;
}

/* Puts all rows that wait into `keys`. */
static void
add_rows(MrKeyTable *table, MrKeyReader *reader, Waiting *waiting, KeyRows *keys,
		 TimestampTz loaded_at, Datum record_source)
{
	for (int i = 0; i < waiting->n; i++)
		add_row(table, reader, waiting->keys[i].place, waiting->keys[i].row, &waiting->keys[i].hash,
				keys, loaded_at, record_source);
	waiting->n = 0;
}

/* The columns between hash key and load_at as text. */
static char *
describe_key(MrKeyTable *table, const Datum *values, const bool *nulls)
{
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < table->nmiddle; i++)
	{
		Oid type = mr_table_column_type(table->table, 1 + i);
		Oid output;
		bool is_varlena;

		getTypeOutputInfo(type, &output, &is_varlena);
		appendStringInfo(&text, "%s%s", i > 0 ? ", " : "",
						 nulls[i] ? "NULL" : OidOutputFunctionCall(output, values[i]));
	}
	return text.data;
}

/*
 * Of rows that were left out because their hash key is there, one may have another key under it: a collision, whose
 * message cannot be taken.  Bytes that differ may still be equal to their type.
 */
static void
refuse_collision(MrKeyTable *table, const MrRows *rows, const bool *different)
{
	Datum *values = palloc(sizeof(Datum) * table->nmiddle);
	bool *nulls = palloc(table->nmiddle);
	int row = mr_table_find_different(table->table, rows, different, 1 + table->nmiddle);
	char *present;
	MrRunAs saved;

	if (row < 0)
		return;
	/* Output functions are of types that the owner has chosen. */
	mr_run_as_restricted(&saved, table->base.owner);
	for (int i = 0; i < table->nmiddle; i++)
		values[i] = mr_sql_value(0, 2 + i, &nulls[i]);
	present = describe_key(table, values, nulls);
	for (int i = 0; i < table->nmiddle; i++)
	{
		values[i] = rows->values[1 + i][row];
		nulls[i] = rows->nulls[1 + i][row];
	}
	ereport(ERROR, (errcode(ERRCODE_UNIQUE_VIOLATION),
					errmsg("hash key %s of %s belongs to another key",
						   DatumGetCString(DirectFunctionCall1(uuid_out, rows->values[0][row])),
						   table->base.name),
					errdetail("In the table it is the key of (%s), in the message that of (%s).",
							  present, describe_key(table, values, nulls)),
					errhint("Unless the row was written by somebody else, two keys have one hash: "
							"message and row cannot both be in the table.")));
}

void
mr_key_table_apply(MrTarget *target, MrBatch *batch)
{
	MrKeyTable *table = (MrKeyTable *) target;
	int capacity = mr_vault_count_rows(target, batch);
	int64 skipped = 0;
	int64 inserted;
	Waiting waiting = {0};
	KeyRows keys;
	bool *different;
	MrRunAs saved;

	if (capacity == 0)
		return;

	mr_known_refresh(table->known);
	keys.seen = mr_key_set_create(Min(capacity, 65536));
	keys.rows = mr_rows_create(table->table, capacity);
	keys.checks = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(pg_uuid_t) * capacity);
	/* Casts and output functions are of types that the owner has chosen. */
	mr_run_as_restricted(&saved, target->owner);
	for (int s = 0; s < target->nsources; s++)
	{
		MrKeyReader *reader = table->readers[s];
		MrStaged *staged;
		Datum record_source;
		int place = 0;

		if (reader == NULL)
			continue;
		record_source = mr_vault_record_source(table->record_sources[s], table->record_source,
											   batch);
		staged = &batch->staged[target->sources[s].staging->ordinal];
		mr_key_begin(reader, batch, staged);
		for (int v = 0; v < staged->nversions; v++)
		{
			const MrVersion *version = &staged->versions[v];

			mr_staged_prefetch_columns(staged, v, &reader->far);
			for (int r = 0; r < version->nrows; r++)
			{
				MrKeyHash *hash = &waiting.keys[waiting.n].hash;

				waiting.keys[waiting.n].row = &version->rows[r];
				waiting.keys[waiting.n].place = place;
				if (!mr_key_row(reader, place++, &version->rows[r], hash))
				{
					skipped++;
					continue;
				}
				mr_known_prefetch(table->known, &hash->check);
				if (++waiting.n == WAITING)
					add_rows(table, reader, &waiting, &keys, batch->loaded_at, record_source);
			}
		}
		add_rows(table, reader, &waiting, &keys, batch->loaded_at, record_source);
	}
	mr_run_back(&saved);
	different = palloc0(Max(keys.rows->nrows, 1));
	inserted = mr_table_insert_new(table->table, keys.rows, 1 + table->nmiddle, different);
	target->written += inserted;
	if (inserted < keys.rows->nrows)
		refuse_collision(table, keys.rows, different);
	mr_known_note(table->known, keys.checks, keys.rows->nrows, inserted);
	mr_vault_count_skipped(target->id, batch, skipped);
}
