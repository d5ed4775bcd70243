/*
 * hub.c
 *	  Hubs: one row for each business key that any version of any source ever named.
 *
 * A row of which any business key column is NULL names none: it is skipped and counted.
 */
#include "postgres.h"

#include "vault/insert.h"

static Datum
business_key(MrKeyReader *reader, int i)
{
	return reader->values[i];
}

static MrTarget *
hub_load(const MrTarget *base)
{
	MrKeyTable *hub = palloc0(sizeof(MrKeyTable));
	MrKey *key = mr_key_of_hub(base->id);

	mr_key_table_load(hub, base, key, "key", key->ncolumns);
	hub->middle = business_key;
	return &hub->base;
}

const MrTargetKind mr_hub_kind = {
	.name = "hub",
	.phase = MR_PHASE_HUB,
	.stage = MR_STAGE_VAULT,
	.load = hub_load,
	.apply = mr_key_table_apply,
	.filled_from = MR_FILLED_FROM_VERSIONS,
	.clear = mr_vault_clear,
	.filled_from_staged = true,
};
