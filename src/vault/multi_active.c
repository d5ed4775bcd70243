/*
 * multi_active.c
 *	  Multi-active satellites: several rows of a parent hold at a time, one for each sub-key.
 *
 * When the parent's key is the source's own, a version tells all of them: those that it does not name have ended.
 * Else every object speaks for the sub-keys that its rows name, and for no others.
 */
#include "postgres.h"

#include "core/millrace.h"
#include "vault/set.h"

static bool
read_member(MrSetSatellite *satellite, MrSetSource *source, MrSetMember *member)
{
	const MrRow *row = member->row;
	MrHasher *hasher = satellite->key->hasher;

	if (mr_key_read(source->reader, row->values, row->nulls) == 0)
		return false;
	mr_key_hash(source->reader, &member->unit);
	mr_hasher_begin(hasher);
	for (int i = 0; i < satellite->nsub_key; i++)
	{
		bool isnull = row->nulls[source->sub_key[i] - 1];
		Datum value = (Datum) 0;

		if (!isnull)
			value = mr_cast_value(source->sub_key_casts[i], row->values[source->sub_key[i] - 1],
								  &isnull);
		mr_hasher_add(hasher, &satellite->sub_key[i], value, isnull);
	}
	mr_hasher_end(hasher, &member->member);
	mr_attributes_hash(&satellite->attributes, hasher, &source->attributes, row, &member->content);
	return true;
}

static void
fill_columns(MrSetSatellite *satellite, MrSetSource *source, const MrSetMember *member,
			 Datum **values, bool **nulls, int n)
{
	const MrRow *row = member->row;

	for (int i = 0; i < satellite->nsub_key; i++)
	{
		nulls[i][n] = row == NULL || row->nulls[source->sub_key[i] - 1];
		if (!nulls[i][n])
			values[i][n] = mr_cast_value(source->sub_key_casts[i],
										 row->values[source->sub_key[i] - 1], &nulls[i][n]);
	}
	values += satellite->nsub_key;
	nulls += satellite->nsub_key;
	for (int i = 0; i < satellite->attributes.n; i++)
	{
		nulls[i][n] = row == NULL;
		if (row != NULL)
			values[i][n] = mr_attribute_value(&source->attributes, i, row, &nulls[i][n]);
	}
}

/* Do the columns of parent and sub-key make the source's own key? */
static bool
names_member(const MrSetSatellite *satellite, const MrSetSource *source)
{
	const MrStaging *staging = source->staging;

	for (int k = 0; k < staging->nkeys; k++)
	{
		bool found = false;

		for (int c = 0; c < satellite->key->ncolumns; c++)
			found |= source->reader->attnums[c] == staging->key[k];
		for (int i = 0; i < satellite->nsub_key; i++)
			found |= source->sub_key[i] == staging->key[k];
		if (!found)
			return false;
	}
	return satellite->key->ncolumns + satellite->nsub_key == staging->nkeys;
}

static void
load_source(MrSetSatellite *satellite, MrSetSource *source, const MrTargetSource *from)
{
	Jsonb *columns = mr_vault_json(from->columns);
	Jsonb *names = mr_vault_json_member(columns, "sub_key");

	source->reader = source->unit_reader = mr_key_reader_create(satellite->key, source->staging,
																columns);
	source->sub_key = palloc(sizeof(AttrNumber) * satellite->nsub_key);
	source->sub_key_casts = palloc(sizeof(MrCast *) * satellite->nsub_key);
	for (int i = 0; i < satellite->nsub_key; i++)
	{
		Form_pg_attribute column;

		source->sub_key[i] = mr_satellite_column(
			source->staging, mr_vault_json_text(mr_vault_json_element(names, i)));
		column = TupleDescAttr(source->staging->desc, source->sub_key[i] - 1);
		source->sub_key_casts[i] = mr_cast_create(column->atttypid, column->atttypmod,
												  satellite->sub_key_types[i],
												  satellite->sub_key_typmods[i]);
	}
	mr_attribute_reader_init(&source->attributes, &satellite->attributes, source->staging, columns);
	source->is_object = satellite->whole ? mr_key_is_object(source->reader, source->staging)
										 : names_member(satellite, source);
}

MrTarget *
mr_multi_active_load(const MrTarget *base)
{
	MrSetSatellite *satellite = palloc0(sizeof(MrSetSatellite));
	Jsonb *definition = mr_vault_json(base->definition);
	int nsub_key = mr_vault_json_length(mr_vault_json_member(definition, "sub_key"));
	int capacity = nsub_key + mr_vault_json_length(mr_vault_json_member(definition, "attributes"));
	AttrNumber *further = palloc(sizeof(AttrNumber) * capacity);
	MrVaultTable table;

	satellite->base = *base;
	satellite->read = read_member;
	satellite->fill = fill_columns;
	satellite->key = satellite->unit_key =
		mr_key_of_parent(mr_vault_json_member(definition, "parent"));
	satellite->nsub_key = nsub_key;
	satellite->sub_key = palloc0(sizeof(MrHashColumn) * nsub_key);
	satellite->sub_key_types = palloc(sizeof(Oid) * nsub_key);
	satellite->sub_key_typmods = palloc(sizeof(int32) * nsub_key);

	mr_vault_table_open(&table, base);
	for (int i = 0; i < nsub_key; i++)
	{
		Form_pg_attribute column;

		further[i] = mr_vault_attribute(&table, psprintf("sub_key_%d", i + 1));
		column = TupleDescAttr(table.desc, further[i] - 1);
		satellite->sub_key_types[i] = column->atttypid;
		satellite->sub_key_typmods[i] = column->atttypmod;
		mr_hash_column_init(&satellite->sub_key[i], column->atttypid);
	}
	mr_attributes_load(&satellite->attributes, &table, definition, further + nsub_key);
	mr_set_load(satellite, &table, "hash_key", "sub_key_hk", further,
				nsub_key + satellite->attributes.n);
	for (int s = 0; s < base->nsources; s++)
	{
		if (satellite->sources[s].staging != NULL)
			load_source(satellite, &satellite->sources[s], &base->sources[s]);
	}
	return &satellite->base;
}
