/*
 * clear.c
 *	  Removing rows of a vault table, to be made again from its sources.
 */
#include "postgres.h"

#include "core/catalog.h"
#include "core/millrace.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "vault/vault.h"

/* The current name of a column of the definition, quoted; NULL when it has none of that name. */
static const char *
column_name(const MrVaultTable *table, const char *declared)
{
	AttrNumber attnum = mr_definition_attribute(table->definition, table->relid, declared);

	return attnum == InvalidAttrNumber
			   ? NULL
			   : quote_identifier(NameStr(TupleDescAttr(table->desc, attnum - 1)->attname));
}

/*
 * Everything or what the filter selects, but for the zero key and the ghost record.  Rows that were said together
 * go together: one that is left would say that the others are there.
 */
void
mr_vault_clear(MrTarget *target, const char *filter, char **condition)
{
	char *relation = mr_relation_name(target->relid);
	char *selected;
	MrVaultTable table;
	const char *key;
	MrRunAs saved;

	mr_vault_table_open(&table, target);
	key = column_name(&table, "hash_key");
	if (filter == NULL)
		selected = "true";
	else
	{
		const char *together = key;

		if (column_name(&table, "applied_at") != NULL)
			together = psprintf("%s, %s, %s", key, column_name(&table, "applied_at"),
								column_name(&table, "hashdiff"));
		selected = psprintf("(%s) IN (SELECT %s FROM %s AS %s WHERE (%s\n))", together, together,
							relation, quote_identifier(get_rel_name(target->relid)), filter);
	}

	mr_run_as_restricted(&saved, target->owner);
	(void) mr_sql("DELETE FROM %s WHERE %s <> '00000000-0000-0000-0000-000000000000'::uuid AND %s",
				  relation, key, selected);
	mr_run_back(&saved);
	/* What is there already is not made twice: all of it may be applied again. */
	*condition = NULL;
}
