/*
 * popular.c
 *	  What is popular by a query.
 *
 * The query is the model's owner's, kept as the view millrace_def.model_popular_<id> of items, how many have them and, if wanted, groups.  It
 * is read live, as its owner, when a model answers, and only as far as there is something to be answered.
 */
#include "postgres.h"

#include "core/catalog.h"
#include "core/statement.h"
#include "miscadmin.h"
#include "model/catalogue.h"
#include "model/ids.h"
#include "model/popular.h"
#include "model/served.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/* Rows that are fetched at once: at first, and at most. */
#define FIRST_ROWS 16
#define MOST_ROWS 1024

/* Columns of the view. */
#define ITEM 1
#define GROUP 3

/* Prepares what is asked. */
static void
learn(MrPopularKept *kept, Oid model, int32 model_id, Oid owner)
{
	const char *collate;
	const char *rows;
	MrAsOwner as;

	kept->model_id = 0;
	kept->owner = owner;
	kept->view = mr_definition_view("model_popular", model_id);
	if (!OidIsValid(kept->view))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("what is popular for model %s is gone", mr_relation_name(model)),
						errdetail("Something that its query needs was dropped with CASCADE."),
						errhint("Drop the model with millrace.drop_model() and create it again.")));
	kept->group = get_atttype(kept->view, GROUP);
	collate = OidIsValid(mr_ids_collation(get_atttype(kept->view, ITEM))) ? " COLLATE \"C\"" : "";
	rows =
		psprintf("FROM millrace_def.model_popular_%d AS p WHERE p.item IS NOT NULL AND p.users IS "
				 "NOT NULL",
				 model_id);
	mr_become_owner(&as, owner);
	SPI_connect();
	if (OidIsValid(kept->group))
	{
		kept->all =
			mr_sql_prepare(psprintf("SELECT p.item %s GROUP BY p.item ORDER BY sum(p.users) DESC, "
									"p.item%s",
									rows, collate),
						   0, NULL);
		kept->of_group =
			mr_sql_prepare(psprintf("SELECT p.item %s AND p.of_group = $1 ORDER BY p.users "
									"DESC, p.item%s",
									rows, collate),
						   1, &kept->group);
	}
	else
		kept->all = mr_sql_prepare(
			psprintf("SELECT p.item %s ORDER BY p.users DESC, p.item%s", rows, collate), 0, NULL);
	SPI_finish();
	mr_become_caller(&as);
	kept->model_id = model_id;
}

void
mr_popular_refuse_group(Oid model)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("what is popular for model %s has no groups", mr_relation_name(model))));
}

void
mr_popular_read(MrPopularKept *kept, Oid model, int32 model_id, Oid owner, char *group,
				bool (*offer)(void *context, Datum id), void *context)
{
	MemoryContext memory = CurrentMemoryContext;
	MemoryContext spi;
	SPIPlanPtr plan;
	Datum argument = (Datum) 0;
	int chunk = FIRST_ROWS;
	bool more = true;
	Portal portal;
	MrAsOwner as;

	if (kept->model_id != model_id || kept->owner != owner ||
		kept->view != mr_definition_view("model_popular", model_id))
		learn(kept, model, model_id, owner);
	if (group != NULL && !OidIsValid(kept->group))
		mr_popular_refuse_group(model);
	plan = group == NULL ? kept->all : kept->of_group;
	if (group != NULL)
	{
		Oid input;
		Oid parameter;

		getTypeInputInfo(kept->group, &input, &parameter);
		argument = OidInputFunctionCall(input, group, parameter, -1);
	}
	SPI_connect();
	mr_become_owner(&as, owner);
	portal = SPI_cursor_open(NULL, plan, &argument, NULL, true);
	mr_become_caller(&as);
	while (more)
	{
		SPITupleTable *rows;
		uint64 n;

		CHECK_FOR_INTERRUPTS();
		mr_become_owner(&as, owner);
		SPI_cursor_fetch(portal, true, chunk);
		mr_become_caller(&as);
		rows = SPI_tuptable;
		n = SPI_processed;
		more = n == chunk;
		chunk = Min(chunk * 4, MOST_ROWS);
		/* What is offered outlives SPI. */
		spi = MemoryContextSwitchTo(memory);
		for (uint64 i = 0; i < n; i++)
		{
			bool isnull;

			if (!offer(context, SPI_getbinval(rows->vals[i], rows->tupdesc, 1, &isnull)))
			{
				more = false;
				break;
			}
		}
		MemoryContextSwitchTo(spi);
		SPI_freetuptable(rows);
	}
	SPI_cursor_close(portal);
	SPI_finish();
}
