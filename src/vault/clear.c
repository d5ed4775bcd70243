/*
 * clear.c
 *	  Removing rows of a vault table, to be made again from its sources.
 */
#include "postgres.h"

#include "core/millrace.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "vault/vault.h"

/* Everything or what the filter selects, but for the zero key and the ghost record. */
void
mr_vault_clear(MrTarget *target, const char *filter, char **condition)
{
	MrVaultTable table;
	AttrNumber key;
	MrRunAs saved;

	mr_vault_table_open(&table, target);
	key = mr_vault_attribute(&table, "hash_key");
	mr_run_as_restricted(&saved, target->owner);
	(void) mr_sql("DELETE FROM %s AS %s WHERE %s <> '00000000-0000-0000-0000-000000000000'::uuid "
				  "AND (%s\n)",
				  mr_relation_name(target->relid), quote_identifier(get_rel_name(target->relid)),
				  quote_identifier(NameStr(TupleDescAttr(table.desc, key - 1)->attname)),
				  filter == NULL ? "true" : filter);
	mr_run_back(&saved);
	/* What is there already is not made twice: all of it may be applied again. */
	*condition = NULL;
}
