/*
 * link.c
 *	  Links: one row for each combination of hubs' keys that ever stood in one row of a source.
 *
 * A hub whose key is NULL takes part with its zero key; a row in which all are NULL is skipped and counted.
 */
#include "postgres.h"

#include "vault/insert.h"

static Datum
hub_key(MrKeyReader *reader, int i)
{
	pg_uuid_t *key = palloc(sizeof(pg_uuid_t));

	mr_key_part_hash(reader, i, key);
	return UUIDPGetDatum(key);
}

static MrTarget *
link_load(const MrTarget *base)
{
	MrKeyTable *link = palloc0(sizeof(MrKeyTable));
	MrKey *key = mr_key_of_hubs(mr_vault_json(base->definition));

	mr_key_table_load(link, base, key, "hub", key->nparts);
	link->middle = hub_key;
	return &link->base;
}

const MrTargetKind mr_link_kind = {
	.name = "link",
	.phase = MR_PHASE_LINK,
	.stage = MR_STAGE_VAULT,
	.load = link_load,
	.apply = mr_key_table_apply,
	.filled_from = MR_FILLED_FROM_VERSIONS,
	.clear = mr_vault_clear,
	.filled_from_staged = true,
};
