/*
 * effectivity.c
 *	  Effectivity satellites: which links of a driving key are there, and when they were.
 *
 * A version that names a driving key names all of its links: those that it does not name have ended.  The
 * driving key is that of one or several hubs of the link.
 */
#include "postgres.h"

#include "core/millrace.h"
#include "utils/builtins.h"
#include "vault/set.h"

static bool
read_member(MrSetSatellite *satellite, MrSetSource *source, MrSetMember *member)
{
	const MrRow *row = member->row;

	/* A driving key with NULL in it drives nothing. */
	if (mr_key_read(source->unit_reader, row->values, row->nulls) < satellite->unit_key->nparts)
		return false;
	mr_key_hash(source->unit_reader, &member->unit);
	(void) mr_key_read(source->reader, row->values, row->nulls);
	mr_key_hash(source->reader, &member->member);
	member->content = mr_zero_key;
	return true;
}

static void
fill_columns(MrSetSatellite *satellite, MrSetSource *source, const MrSetMember *member,
			 Datum **values, bool **nulls, int n)
{
}

MrTarget *
mr_effectivity_load(const MrTarget *base)
{
	MrSetSatellite *satellite = palloc0(sizeof(MrSetSatellite));
	Jsonb *definition = mr_vault_json(base->definition);
	Jsonb *driving = mr_vault_json_member(definition, "driving");
	int ndriving = mr_vault_json_length(driving);
	int *parts = palloc(sizeof(int) * ndriving);
	MrVaultTable table;

	satellite->base = *base;
	satellite->read = read_member;
	satellite->fill = fill_columns;
	satellite->key = mr_key_of_parent(mr_vault_json_member(definition, "parent"));
	for (int i = 0; i < ndriving; i++)
		parts[i] = pg_strtoint32(mr_vault_json_text(mr_vault_json_element(driving, i)));
	satellite->unit_key = mr_key_of_parts(satellite->key, parts, ndriving);

	mr_vault_table_open(&table, base);
	mr_set_load(satellite, &table, "driving_hk", "hash_key", NULL, 0);
	for (int s = 0; s < base->nsources; s++)
	{
		MrSetSource *source = &satellite->sources[s];
		Jsonb *columns;

		if (source->staging == NULL)
			continue;
		columns = mr_vault_json(base->sources[s].columns);
		source->reader = mr_key_reader_create(satellite->key, source->staging, columns);
		source->unit_reader = mr_key_reader_of_parts(source->reader, satellite->unit_key, parts);
		source->is_object = mr_key_is_object(source->unit_reader, source->staging);
	}
	return &satellite->base;
}
