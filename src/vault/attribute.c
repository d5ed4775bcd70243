/*
 * attribute.c
 *	  Attributes of satellites: where they come from, and the hash of what they say.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "vault/satellite.h"

void
mr_attributes_load(MrAttributes *attributes, const MrVaultTable *table, Jsonb *definition,
				   AttrNumber *attnums)
{
	Jsonb *described = mr_vault_json_member(definition, "attributes");
	int n = mr_vault_json_length(described);

	attributes->n = 0;
	attributes->items = palloc0(sizeof(MrAttribute) * Max(n, 1));
	attributes->any_removed = false;
	for (int i = 0; i < n; i++)
	{
		Jsonb *one = mr_vault_json_element(described, i);
		MrAttribute *attribute = &attributes->items[attributes->n];
		Form_pg_attribute column;
		AttrNumber attnum;

		if (mr_vault_json_member(one, "removed") != NULL)
		{
			attributes->any_removed = true;
			continue;
		}
		attribute->number = pg_strtoint32(mr_vault_json_text(mr_vault_json_member(one, "number")));
		attnum = mr_vault_attribute(table, psprintf("attribute_%d", attribute->number));
		column = TupleDescAttr(table->desc, attnum - 1);
		attribute->type = column->atttypid;
		attribute->typmod = column->atttypmod;
		mr_hash_column_init(&attribute->hash, column->atttypid);
		attnums[attributes->n++] = attnum;
	}
}

AttrNumber
mr_satellite_column(const MrStaging *staging, const char *name)
{
	AttrNumber attnum = mr_staging_attribute(staging, name);

	if (attnum == InvalidAttrNumber)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
						errmsg("column \"%s\" of staging table %s is gone", name, staging->name)));
	return attnum;
}

void
mr_attribute_reader_init(MrAttributeReader *reader, const MrAttributes *attributes,
						 const MrStaging *staging, Jsonb *columns)
{
	Jsonb *names = mr_vault_json_member(columns, "attributes");

	reader->attnums = palloc0(sizeof(AttrNumber) * Max(attributes->n, 1));
	reader->far.attnums = palloc(sizeof(AttrNumber) * Max(attributes->n, 1));
	reader->casts = palloc0(sizeof(MrCast *) * Max(attributes->n, 1));
	for (int i = 0; i < attributes->n; i++)
	{
		const MrAttribute *attribute = &attributes->items[i];
		char *name =
			mr_vault_json_text(mr_vault_json_member(names, psprintf("%d", attribute->number)));
		Form_pg_attribute column;

		if (name == NULL)
			continue;
		reader->attnums[i] = mr_satellite_column(staging, name);
		column = TupleDescAttr(staging->desc, reader->attnums[i] - 1);
		if (!column->attbyval)
			reader->far.attnums[reader->far.n++] = reader->attnums[i];
		reader->casts[i] = mr_cast_create(column->atttypid, column->atttypmod, attribute->type,
										  attribute->typmod);
	}
}

Datum
mr_attribute_value(const MrAttributeReader *reader, int i, const MrRow *row, bool *isnull)
{
	AttrNumber attnum = reader->attnums[i];

	if (attnum == InvalidAttrNumber || row->nulls[attnum - 1])
	{
		*isnull = true;
		return (Datum) 0;
	}
	*isnull = false;
	return mr_cast_value(reader->casts[i], row->values[attnum - 1], isnull);
}

void
mr_attributes_hash(MrAttributes *attributes, MrHasher *hasher, const MrAttributeReader *reader,
				   const MrRow *row, pg_uuid_t *hash)
{
	mr_hasher_begin(hasher);
	for (int i = 0; i < attributes->n; i++)
	{
		MrAttribute *attribute = &attributes->items[i];
		bool isnull;
		Datum value = mr_attribute_value(reader, i, row, &isnull);

		if (isnull)
			continue;
		mr_hasher_add_int32(hasher, attribute->number);
		mr_hasher_add(hasher, &attribute->hash, value, false);
	}
	mr_hasher_end(hasher, hash);
}

void
mr_attributes_hash_values(MrAttributes *attributes, MrHasher *hasher, const Datum *values,
						  const bool *nulls, pg_uuid_t *hash)
{
	mr_hasher_begin(hasher);
	for (int i = 0; i < attributes->n; i++)
	{
		if (nulls[i])
			continue;
		mr_hasher_add_int32(hasher, attributes->items[i].number);
		mr_hasher_add(hasher, &attributes->items[i].hash, values[i], false);
	}
	mr_hasher_end(hasher, hash);
}

uint64
mr_satellite_run(MrStatement *statement, Oid owner, Datum *arrays)
{
	int nest_level = mr_settings_prefer_indexes();
	MrRunAs saved;
	uint64 processed;

	mr_run_as_restricted(&saved, owner);
	processed = mr_statement_run(statement, arrays, NULL);
	mr_run_back(&saved);
	mr_settings_unpin(nest_level);
	return processed;
}

Datum
mr_satellite_int_array(Datum *elements, int n)
{
	return PointerGetDatum(construct_array(elements, n, INT4OID, 4, true, TYPALIGN_INT));
}

Datum
mr_satellite_uuid_array(Datum *elements, int n)
{
	return PointerGetDatum(construct_array(elements, n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
}

Datum
mr_satellite_time_array(Datum *elements, int n)
{
	return PointerGetDatum(
		construct_array(elements, n, TIMESTAMPTZOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}
