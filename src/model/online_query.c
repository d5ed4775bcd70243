/*
 * online_query.c
 *	  The queries of models that batches keep up to date.
 *
 * Such a query chooses rows and columns of one staging table.  Sub-selects that do no more than that are taken out first: the
 * query of a model that is trained stands in one, in which its definition casts columns.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/expression.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "model/ids.h"
#include "model/online.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_relation.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(millrace_online_check);
PG_FUNCTION_INFO_V1(millrace_online_estimate);

/* A pair of items takes at most so much, both of its directions and indexes counted; and an item, however few it has. */
#define PAIR_BYTES 20
#define ITEM_BYTES 120

Index
mr_online_source(const Query *definition)
{
	List *from = definition->jointree->fromlist;

	return list_length(from) == 1 && IsA(linitial(from), RangeTblRef)
			   ? (Index) linitial_node(RangeTblRef, from)->rtindex
			   : 0;
}

/* Does a query only choose rows and columns of one table or sub-select? */
static bool
is_plain(Query *query)
{
	Index source = mr_online_source(query);

	return source != 0 && rt_fetch(source, query->rtable)->tablesample == NULL && !query->hasAggs &&
		   !query->hasWindowFuncs && !query->hasTargetSRFs && !query->hasSubLinks &&
		   query->distinctClause == NIL && query->groupClause == NIL &&
		   query->groupingSets == NIL && query->havingQual == NULL && query->limitCount == NULL &&
		   query->limitOffset == NULL && query->setOperations == NULL && query->cteList == NIL;
}

/* Columns of a sub-select become what it computes them from. */
static Node *
column_mutator(Node *node, void *columns)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Var))
		return copyObject((Node *) get_tle_by_resno(columns, ((Var *) node)->varattno)->expr);
	return expression_tree_mutator(node, column_mutator, columns);
}

static bool
reads_whole_row(Node *node, Index source)
{
	Bitmapset *read = NULL;

	pull_varattnos(node, source, &read);
	return bms_is_member(-FirstLowInvalidHeapAttributeNumber, read);
}

Query *
mr_online_query(int32 model_id)
{
	Query *query = mr_definition_query("model", model_id);

	while (is_plain(query))
	{
		Query *inner = rt_fetch(mr_online_source(query), query->rtable)->subquery;

		if (inner == NULL || !is_plain(inner) ||
			reads_whole_row((Node *) query->targetList, mr_online_source(query)) ||
			reads_whole_row((Node *) query->jointree, mr_online_source(query)))
			break;
		query->targetList = (List *) column_mutator((Node *) query->targetList, inner->targetList);
		query->jointree->quals = column_mutator(query->jointree->quals, inner->targetList);
		inner->targetList = query->targetList;
		inner->jointree->quals = make_and_qual(inner->jointree->quals, query->jointree->quals);
		query = inner;
	}
	return query;
}

/* online_check(model integer) → the relation that the query of a model is over; refuses what cannot be kept up to date. */
Datum
millrace_online_check(PG_FUNCTION_ARGS)
{
	Query *query = mr_online_query(PG_GETARG_INT32(0));
	Index source = mr_online_source(query);
	ListCell *lc;

	if (!is_plain(query) || rt_fetch(source, query->rtable)->rtekind != RTE_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the query of an online model must be SELECT … FROM staging [WHERE …]"),
				 errhint("What is not so simple is trained: leave online away.")));
	mr_expression_check_stable((Node *) query->targetList, "the query of an online model");
	mr_expression_check_stable(query->jointree->quals, "the query of an online model");
	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);
		Oid type = exprType((Node *) entry->expr);

		/* users and items */
		if (!entry->resjunk && entry->resno <= 2 && mr_ids_vary(type))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("ids of an online model cannot be of type %s", format_type_be(type)),
					 errdetail("Values of it that are equal may differ."),
					 errhint("Cast them in the query, to text or to bigint.")));
	}
	PG_RETURN_OID(rt_fetch(source, query->rtable)->relid);
}

/*
 * online_estimate(model integer, owner regrole, max_history integer) → pairs of items at most, of what is staged now: no more
 * than all users have together, and than there are of so many items.
 */
Datum
millrace_online_estimate(PG_FUNCTION_ARGS)
{
	int32 model_id = PG_GETARG_INT32(0);
	int32 most = PG_GETARG_INT32(2);
	MrRunAs saved;
	int64 pairs;
	int64 bytes;
	bool isnull;

	SPI_connect();
	mr_run_as_restricted(&saved, PG_GETARG_OID(1));
	(void) mr_sql("SELECT p.n::bigint, least(p.n * %d + p.items * %d, 9e18)::bigint FROM "
				  "(SELECT least(u.pairs, i.n::numeric * (i.n - 1) / 2, 9e18) AS n, i.n AS items "
				  "FROM (SELECT coalesce(sum(h.n::numeric * (h.n - 1) / 2), 0) AS pairs FROM "
				  "(SELECT least(count(DISTINCT d.item), %d) AS n FROM millrace_def.model_%d AS d "
				  "GROUP BY d.user_id) AS h) AS u, "
				  "(SELECT count(DISTINCT d.item) AS n FROM millrace_def.model_%d AS d) AS i) AS p",
				  PAIR_BYTES, ITEM_BYTES, most > 0 ? most : PG_INT32_MAX, model_id, model_id);
	mr_run_back(&saved);
	pairs = DatumGetInt64(mr_sql_value(0, 1, &isnull));
	bytes = DatumGetInt64(mr_sql_value(0, 2, &isnull));
	SPI_finish();
	if (mr_online_model_size >= 0 && bytes > mr_online_model_size * INT64CONST(1024))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the online model may have %lld pairs of items, more than "
						"millrace.online_model_size allows",
						(long long) pairs),
				 errdetail("A pair takes up to %d bytes, and an item %d.", PAIR_BYTES, ITEM_BYTES),
				 errhint("\"max_history\" in params limits what of a user's history counts.")));
	ereport(NOTICE, (errmsg("the online model will have up to %lld pairs of items, %lld kB",
							(long long) pairs, (long long) (bytes / 1024))));
	PG_RETURN_INT64(pairs);
}
