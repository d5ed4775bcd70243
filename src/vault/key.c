/*
 * key.c
 *	  Business keys: read from rows of staging tables, cast to the hubs' types, hashed.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/millrace.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "vault/vault.h"

/*
 * Of a shared hash: it has been made; there is none, because the key is NULL.  The byte with a hash's version is
 * neither zero nor all ones.
 */
#define HASH_IS_THERE(shared) ((shared)->hash.data[6] != 0)
#define HASH_IS_NONE(shared) ((shared)->hash.data[6] == 0xff)

/* The types of a hub's business key as its definition view shows them: its columns key_1, key_2, …. */
static void
load_part(MrKeyPart *part, int32 hub_id)
{
	Query *definition = mr_definition_query("hub", hub_id);
	int capacity = list_length(definition->targetList);
	ListCell *lc;

	part->hub_id = hub_id;
	part->types = palloc(sizeof(Oid) * capacity);
	part->typmods = palloc(sizeof(int32) * capacity);
	part->columns = palloc0(sizeof(MrHashColumn) * capacity);
	foreach(lc, definition->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);
		Var *var = castNode(Var, entry->expr);

		if (entry->resjunk || strncmp(entry->resname, "key_", 4) != 0)
			continue;
		part->types[part->ncolumns] = var->vartype;
		part->typmods[part->ncolumns] = var->vartypmod;
		mr_hash_column_init(&part->columns[part->ncolumns], var->vartype);
		part->ncolumns++;
	}
}

static MrKey *
key_create(int nparts)
{
	MrKey *key = palloc0(sizeof(MrKey));

	key->nparts = nparts;
	key->parts = palloc0(sizeof(MrKeyPart) * nparts);
	key->hasher = mr_hasher_create();
	return key;
}

MrKey *
mr_key_of_hub(int32 hub_id)
{
	MrKey *key = key_create(1);

	load_part(&key->parts[0], hub_id);
	key->ncolumns = key->parts[0].ncolumns;
	return key;
}

MrKey *
mr_key_of_hubs(Jsonb *link_definition)
{
	Jsonb *hubs = mr_vault_json_member(link_definition, "hubs");
	MrKey *key = key_create(mr_vault_json_length(hubs));

	for (int i = 0; i < key->nparts; i++)
	{
		Jsonb *hub = mr_vault_json_element(hubs, i);

		load_part(&key->parts[i],
				  pg_strtoint32(mr_vault_json_text(mr_vault_json_member(hub, "id"))));
		key->ncolumns += key->parts[i].ncolumns;
	}
	return key;
}

MrKey *
mr_key_of_parent(Jsonb *parent)
{
	if (mr_vault_json_member(parent, "hubs") != NULL)
		return mr_key_of_hubs(parent);
	return mr_key_of_hub(pg_strtoint32(mr_vault_json_text(mr_vault_json_member(parent, "id"))));
}

MrKey *
mr_key_of_parts(const MrKey *whole, const int *parts, int nparts)
{
	MrKey *key = key_create(nparts);

	for (int i = 0; i < nparts; i++)
	{
		key->parts[i] = whole->parts[parts[i]];
		key->ncolumns += key->parts[i].ncolumns;
	}
	return key;
}

/* A reader without its columns. */
static MrKeyReader *
reader_create(MrKey *key)
{
	MrKeyReader *reader = palloc0(sizeof(MrKeyReader));

	reader->key = key;
	reader->attnums = palloc(sizeof(AttrNumber) * key->ncolumns);
	reader->far.attnums = palloc(sizeof(AttrNumber) * key->ncolumns);
	reader->casts = palloc(sizeof(MrCast *) * key->ncolumns);
	reader->values = palloc(sizeof(Datum) * key->ncolumns);
	reader->nulls = palloc(sizeof(bool) * key->ncolumns);
	reader->part_nulls = palloc(sizeof(bool) * key->nparts);
	reader->shared = palloc0(sizeof(pg_uuid_t *) * key->nparts);
	return reader;
}

MrKeyReader *
mr_key_reader_of_parts(const MrKeyReader *whole, MrKey *key, const int *parts)
{
	MrKeyReader *reader = reader_create(key);
	int column = 0;

	for (int i = 0; i < key->nparts; i++)
	{
		int first = 0;

		for (int p = 0; p < parts[i]; p++)
			first += whole->key->parts[p].ncolumns;
		for (int c = 0; c < key->parts[i].ncolumns; c++, column++)
		{
			reader->attnums[column] = whole->attnums[first + c];
			reader->casts[column] = whole->casts[first + c];
		}
	}
	return reader;
}

MrKeyReader *
mr_key_reader_create(MrKey *key, const MrStaging *staging, Jsonb *columns)
{
	MrKeyReader *reader = reader_create(key);
	Jsonb *parts = mr_vault_json_member(columns, "key");
	int column = 0;

	for (int p = 0; p < key->nparts; p++)
	{
		Jsonb *names = mr_vault_json_element(parts, p);

		for (int c = 0; c < key->parts[p].ncolumns; c++, column++)
		{
			char *name = mr_vault_json_text(mr_vault_json_element(names, c));
			AttrNumber attnum = mr_staging_attribute(staging, name);
			Form_pg_attribute attribute;

			if (attnum == InvalidAttrNumber)
				ereport(ERROR,
						(errcode(ERRCODE_UNDEFINED_COLUMN),
						 errmsg("column \"%s\" of staging table %s is gone", name, staging->name)));
			attribute = TupleDescAttr(staging->desc, attnum - 1);
			reader->attnums[column] = attnum;
			if (!attribute->attbyval)
				reader->far.attnums[reader->far.n++] = attnum;
			reader->casts[column] = mr_cast_create(attribute->atttypid, attribute->atttypmod,
												   key->parts[p].types[c],
												   key->parts[p].typmods[c]);
		}
	}
	return reader;
}

MrKeyReader **
mr_key_readers_create(MrKey *key, const MrTarget *target)
{
	MrKeyReader **readers = palloc0(sizeof(MrKeyReader *) * Max(target->nsources, 1));

	for (int s = 0; s < target->nsources; s++)
	{
		const MrTargetSource *source = &target->sources[s];

		if (source->staging != NULL)
			readers[s] = mr_key_reader_create(key, source->staging, mr_vault_json(source->columns));
	}
	return readers;
}

int
mr_key_read(MrKeyReader *reader, const Datum *values, const bool *nulls)
{
	MrKey *key = reader->key;
	int column = 0;
	int found = 0;

	reader->place = -1;
	for (int p = 0; p < key->nparts; p++)
	{
		int first = column;
		bool isnull = false;

		for (int c = 0; c < key->parts[p].ncolumns; c++, column++)
		{
			int source = reader->attnums[column] - 1;

			reader->nulls[column] = nulls[source];
			if (!nulls[source])
				reader->values[column] = mr_cast_value(reader->casts[column], values[source],
													   &reader->nulls[column]);
			isnull |= reader->nulls[column];
		}
		reader->part_nulls[p] = isnull;
		if (!isnull)
			found++;
		else
			memset(reader->nulls + first, true, column - first);
	}
	return found;
}

bool
mr_key_has_object(const MrKeyReader *reader, const MrStaging *staging)
{
	for (int i = 0; i < staging->nkeys; i++)
	{
		bool found = false;

		for (int c = 0; c < reader->key->ncolumns; c++)
			found |= reader->attnums[c] == staging->key[i];
		if (!found)
			return false;
	}
	return true;
}

bool
mr_key_is_object(const MrKeyReader *reader, const MrStaging *staging)
{
	/* The same columns in any order. */
	return reader->key->ncolumns == staging->nkeys && mr_key_has_object(reader, staging);
}

/* Adds one part to the hash that has been begun. */
static void
add_part(MrKeyReader *reader, int part, int first)
{
	MrKeyPart *hub = &reader->key->parts[part];

	for (int c = 0; c < hub->ncolumns; c++)
		mr_hasher_add(reader->key->hasher, &hub->columns[c], reader->values[first + c],
					  reader->nulls[first + c]);
}

void
mr_key_part_hash(MrKeyReader *reader, int part, pg_uuid_t *result)
{
	MrKeyHash *shared = reader->place >= 0 ? &reader->shared[part][reader->place] : NULL;
	MrKeyHash made;
	int first = 0;

	if (reader->part_nulls[part])
	{
		*result = mr_zero_key;
		return;
	}
	if (shared != NULL && HASH_IS_THERE(shared))
	{
		*result = shared->hash;
		return;
	}
	for (int p = 0; p < part; p++)
		first += reader->key->parts[p].ncolumns;
	mr_hasher_begin(reader->key->hasher);
	add_part(reader, part, first);
	mr_hasher_end_checked(reader->key->hasher, &made.hash, &made.check);
	if (shared != NULL)
		*shared = made;
	*result = made.hash;
}

void
mr_key_hash_checked(MrKeyReader *reader, MrKeyHash *result)
{
	int first = 0;

	mr_hasher_begin(reader->key->hasher);
	for (int p = 0; p < reader->key->nparts; p++)
	{
		add_part(reader, p, first);
		first += reader->key->parts[p].ncolumns;
	}
	mr_hasher_end_checked(reader->key->hasher, &result->hash, &result->check);
}

void
mr_key_hash(MrKeyReader *reader, pg_uuid_t *result)
{
	MrKeyHash made;

	mr_key_hash_checked(reader, &made);
	*result = made.hash;
}

/* ---- all rows of a batch ----------------------------------------------------------------------------- */

/* The hashes that one hub's key has in the rows of a staging table. */
typedef struct SharedHashes
{
	int32 hub_id;
	int ncolumns;
	const AttrNumber *attnums;
	MrKeyHash *hashes; /* by row; see HASH_IS_THERE */
} SharedHashes;

/* Finds the hashes of a part, or makes room for them. */
static MrKeyHash *
shared_hashes(const MrKeyPart *part, const AttrNumber *attnums, MrStaged *staged)
{
	Size nrows = 0;
	SharedHashes *shared;
	ListCell *lc;

	foreach(lc, staged->key_hashes)
	{
		shared = lfirst(lc);
		if (shared->hub_id == part->hub_id && shared->ncolumns == part->ncolumns &&
			memcmp(shared->attnums, attnums, sizeof(AttrNumber) * part->ncolumns) == 0)
			return shared->hashes;
	}
	for (int v = 0; v < staged->nversions; v++)
		nrows += staged->versions[v].nrows;
	shared = palloc(sizeof(SharedHashes));
	shared->hub_id = part->hub_id;
	shared->ncolumns = part->ncolumns;
	shared->attnums = attnums;
	shared->hashes = MemoryContextAllocExtended(
		CurrentMemoryContext, Max(nrows, 1) * sizeof(MrKeyHash), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	staged->key_hashes = lappend(staged->key_hashes, shared);
	return shared->hashes;
}

void
mr_key_begin(MrKeyReader *reader, const MrBatch *batch, MrStaged *staged)
{
	MemoryContext previous = MemoryContextSwitchTo(batch->context);
	int first = 0;

	for (int p = 0; p < reader->key->nparts; p++)
	{
		const MrKeyPart *part = &reader->key->parts[p];

		reader->shared[p] = shared_hashes(part, reader->attnums + first, staged);
		first += part->ncolumns;
	}
	MemoryContextSwitchTo(previous);
}

bool
mr_key_row(MrKeyReader *reader, int place, const MrRow *row, MrKeyHash *hash)
{
	MrKeyHash *shared = &reader->shared[0][place];
	bool alone = reader->key->nparts == 1;
	bool named;

	if (!alone || !HASH_IS_THERE(shared))
	{
		named = mr_key_read(reader, row->values, row->nulls) > 0;
		if (named)
			mr_key_hash_checked(reader, hash);
		else
			hash->hash = mr_deleted_hash;
		if (alone)
			*shared = *hash;
	}
	else
	{
		named = !HASH_IS_NONE(shared);
		*hash = *shared;
	}
	return named;
}

void
mr_key_row_read(MrKeyReader *reader, int place, const MrRow *row)
{
	(void) mr_key_read(reader, row->values, row->nulls);
	reader->place = place;
}
