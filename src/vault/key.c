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
	reader->casts = palloc(sizeof(MrCast *) * key->ncolumns);
	reader->values = palloc(sizeof(Datum) * key->ncolumns);
	reader->nulls = palloc(sizeof(bool) * key->ncolumns);
	reader->part_nulls = palloc(sizeof(bool) * key->nparts);
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
mr_key_is_object(const MrKeyReader *reader, const MrStaging *staging)
{
	if (reader->key->ncolumns != staging->nkeys)
		return false;
	/* The same columns in any order. */
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
	int first = 0;

	if (reader->part_nulls[part])
	{
		*result = mr_zero_key;
		return;
	}
	for (int p = 0; p < part; p++)
		first += reader->key->parts[p].ncolumns;
	mr_hasher_begin(reader->key->hasher);
	add_part(reader, part, first);
	mr_hasher_end(reader->key->hasher, result);
}

void
mr_key_hash_checked(MrKeyReader *reader, pg_uuid_t *result, pg_uuid_t *check)
{
	int first = 0;

	mr_hasher_begin(reader->key->hasher);
	for (int p = 0; p < reader->key->nparts; p++)
	{
		add_part(reader, p, first);
		first += reader->key->parts[p].ncolumns;
	}
	mr_hasher_end_checked(reader->key->hasher, result, check);
}

void
mr_key_hash(MrKeyReader *reader, pg_uuid_t *result)
{
	pg_uuid_t check;

	mr_key_hash_checked(reader, result, &check);
}
