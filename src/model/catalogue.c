/*
 * catalogue.c
 *	  What may be recommended.
 *
 * The catalogue is a query of the model's owner, kept as the view millrace_def.model_<id>_catalogue, of which the first column is
 * the item.  It is read live, as its owner, when a model answers: for the items that are about to be answered only.  The filter is
 * the caller's own SQL: it is evaluated as the caller, over rows that were read already, and can reach nothing that he cannot.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "miscadmin.h"
#include "model/catalogue.h"
#include "model/ids.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/* Rows that are fetched at once of items that a version does not know. */
#define CHUNK 200

struct MrCatalogue
{
	MrCatalogueKept *kept;
	Oid type; /* of items */
	MrExpression *filter; /* NULL: none */
	ExprContext *context;
};

/* An error goes back by itself: the (sub)transaction's abort does. */
void
mr_become_owner(MrAsOwner *as, Oid owner)
{
	as->nest_level = mr_settings_pin("UTC");
	mr_run_as_restricted(&as->saved, owner);
	as->read_only = XactReadOnly;
	XactReadOnly = true;
}

void
mr_become_caller(MrAsOwner *as)
{
	XactReadOnly = as->read_only;
	mr_run_back(&as->saved);
	mr_settings_unpin(as->nest_level);
}

/* The equality of a type, whatever the search_path. */
static char *
equality(Oid type)
{
	Oid equals = lookup_type_cache(type, TYPECACHE_EQ_OPR)->eq_opr;
	HeapTuple tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(equals));
	Form_pg_operator form;
	char *text;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", equals);
	form = (Form_pg_operator) GETSTRUCT(tuple);
	text = psprintf("OPERATOR(%s.%s)", quote_identifier(get_namespace_name(form->oprnamespace)),
					NameStr(form->oprname));
	ReleaseSysCache(tuple);
	return text;
}

/* Prepares what is asked of a catalogue. */
static void
learn(MrCatalogueKept *kept, Oid model, int32 model_id, Oid owner)
{
	const char *available;
	const char *collate;
	const char *equals;
	const char *item;
	Oid numbers[] = {INT4OID, INT4ARRAYOID};
	MrAsOwner as;
	Oid items;
	Oid type;

	kept->model_id = 0;
	kept->owner = owner;
	kept->view = mr_definition_view("model_catalogue", model_id);
	if (!OidIsValid(kept->view))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("the catalogue of model %s is gone", mr_relation_name(model)),
						errdetail("Something that it needs was dropped with CASCADE."),
						errhint("Drop the model with millrace.drop_model() and create it again.")));
	type = get_atttype(kept->view, 1);
	items = get_array_type(type);
	equals = equality(type);
	item = quote_identifier(get_attname(kept->view, 1, false));
	available = get_attnum(kept->view, "available") != InvalidAttrNumber ? "c.available" : "true";
	collate = OidIsValid(mr_ids_collation(type)) ? " COLLATE \"C\"" : "";
	mr_become_owner(&as, kept->owner);
	SPI_connect();
	kept->known =
		mr_sql_prepare(psprintf("SELECT c.*, u.n::integer FROM unnest($1) WITH ORDINALITY AS "
								"u (id, n) JOIN millrace_def.model_catalogue_%d AS c ON c.%s %s "
								"u.id WHERE %s",
								model_id, item, equals, available),
					   1, &items);
	kept->unknown = mr_sql_prepare(
		psprintf("SELECT c.* FROM millrace_def.model_catalogue_%d AS c WHERE %s AND NOT "
				 "EXISTS (SELECT FROM millrace_state.model_%d_item AS i WHERE i.version = "
				 "$1 AND i.item %s c.%s%s AND i.number <> ALL ($2)) "
				 "ORDER BY c.%s%s",
				 model_id, available, model_id, equals, item, collate, item, collate),
		2, numbers);
	SPI_finish();
	mr_become_caller(&as);
	kept->model_id = model_id;
}

MrCatalogue *
mr_catalogue_open(MrCatalogueKept *kept, Oid model, int32 model_id, Oid owner, const char *filter)
{
	MrCatalogue *catalogue = palloc0(sizeof(MrCatalogue));

	if (kept->model_id != model_id || kept->owner != owner ||
		kept->view != mr_definition_view("model_catalogue", model_id))
		learn(kept, model, model_id, owner);
	catalogue->kept = kept;
	catalogue->type = get_atttype(kept->view, 1);
	if (filter != NULL)
	{
		Relation view = table_open(kept->view, AccessShareLock);

		catalogue->filter = mr_expression_compile(mr_expression_condition(view, filter, "filter"));
		catalogue->context = CreateStandaloneExprContext();
		table_close(view, AccessShareLock);
	}
	return catalogue;
}

void
mr_catalogue_close(MrCatalogue *catalogue)
{
	if (catalogue->context != NULL)
		FreeExprContext(catalogue->context, true);
}

/* Does a row pass the filter? */
static bool
passes(MrCatalogue *catalogue, TupleTableSlot *slot, HeapTuple row)
{
	bool passed;

	if (catalogue->filter == NULL)
		return true;
	ExecStoreHeapTuple(row, slot, false);
	catalogue->context->ecxt_scantuple = slot;
	passed = mr_expression_true(catalogue->filter, catalogue->context);
	ResetExprContext(catalogue->context);
	ExecClearTuple(slot);
	return passed;
}

bool *
mr_catalogue_check(MrCatalogue *catalogue, Datum *ids, int n)
{
	bool *found = palloc0(Max(n, 1) * sizeof(bool));
	SPITupleTable *rows;
	TupleTableSlot *slot;
	TupleDesc desc;
	uint64 nrows;
	Datum array;
	int16 length;
	bool by_value;
	char align;
	int result;
	MrAsOwner as;

	get_typlenbyvalalign(catalogue->type, &length, &by_value, &align);
	array = PointerGetDatum(construct_array(ids, n, catalogue->type, length, by_value, align));
	mr_become_owner(&as, catalogue->kept->owner);
	SPI_connect();
	result = SPI_execute_plan(catalogue->kept->known, &array, NULL, true, 0);
	if (result != SPI_OK_SELECT)
		elog(ERROR, "cannot read a catalogue: %s", SPI_result_code_string(result));
	mr_become_caller(&as);
	rows = SPI_tuptable;
	nrows = SPI_processed;
	desc = rows->tupdesc;
	slot = MakeSingleTupleTableSlot(desc, &TTSOpsHeapTuple);
	for (uint64 i = 0; i < nrows; i++)
	{
		HeapTuple row = rows->vals[i];
		bool isnull;
		int place = DatumGetInt32(heap_getattr(row, desc->natts, desc, &isnull)) - 1;

		if (!found[place])
			found[place] = passes(catalogue, slot, row);
	}
	ExecDropSingleTupleTableSlot(slot);
	SPI_finish();
	return found;
}

void
mr_catalogue_unknown(MrCatalogue *catalogue, int32 version, Datum unused,
					 bool (*offer)(void *context, Datum id), void *context)
{
	Datum arguments[2] = {Int32GetDatum(version), unused};
	TupleTableSlot *slot = NULL;
	bool more = true;
	Portal portal;
	MrAsOwner as;

	SPI_connect();
	mr_become_owner(&as, catalogue->kept->owner);
	portal = SPI_cursor_open(NULL, catalogue->kept->unknown, arguments, NULL, true);
	mr_become_caller(&as);
	while (more)
	{
		SPITupleTable *rows;
		uint64 n;

		CHECK_FOR_INTERRUPTS();
		mr_become_owner(&as, catalogue->kept->owner);
		SPI_cursor_fetch(portal, true, CHUNK);
		mr_become_caller(&as);
		rows = SPI_tuptable;
		n = SPI_processed;
		more = n > 0;
		if (slot == NULL)
			slot = MakeSingleTupleTableSlot(rows->tupdesc, &TTSOpsHeapTuple);
		for (uint64 i = 0; i < n && more; i++)
		{
			bool isnull;
			Datum id = heap_getattr(rows->vals[i], 1, rows->tupdesc, &isnull);

			if (!isnull && passes(catalogue, slot, rows->vals[i]))
				more = offer(context, id);
		}
		SPI_freetuptable(rows);
	}
	ExecDropSingleTupleTableSlot(slot);
	SPI_cursor_close(portal);
	SPI_finish();
}
