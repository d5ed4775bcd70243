/*
 * catalog.c
 *	  Reading definitions kept as views.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "core/catalog.h"
#include "core/millrace.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "storage/lmgr.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

Oid
mr_definition_view(const char *kind, int32 id)
{
	Oid namespace = get_namespace_oid("millrace_def", true);

	if (!OidIsValid(namespace))
		return InvalidOid;
	return get_relname_relid(psprintf("%s_%d", kind, id), namespace);
}

Query *
mr_definition_query(const char *kind, int32 id)
{
	Oid view = InvalidOid;
	Oid found;
	Relation relation;
	Query *query;

	/* Who declares anew makes another view; by the time that we have its lock, that may have taken its place. */
	while ((found = mr_definition_view(kind, id)) != view)
	{
		if (OidIsValid(view))
			UnlockRelationOid(view, AccessShareLock);
		view = found;
		if (OidIsValid(view))
			LockRelationOid(view, AccessShareLock);
	}
	if (!OidIsValid(view))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("the definition millrace_def.%s_%d is gone", kind, id),
						errdetail("Something that it needs was dropped with CASCADE."),
						strcmp(kind, "model") == 0
							? errhint("millrace.validate() says which it is. Drop it with "
									  "millrace.drop_model() and create it again.")
							: errhint("Create the %s again with replace => true, or drop it with "
									  "millrace.drop_table().",
									  kind)));
	relation = table_open(view, NoLock);
	query = copyObject(get_view_query(relation));
	mr_flatten_groups(query);
	table_close(relation, NoLock);
	return query;
}

Query *
mr_definition_expressions(Query *query)
{
	ListCell *lc;

	foreach(lc, query->rtable)
	{
		RangeTblEntry *entry = lfirst_node(RangeTblEntry, lc);

		if (entry->rtekind == RTE_SUBQUERY && entry->lateral)
			return entry->subquery;
	}
	return query;
}

AttrNumber
mr_definition_attribute(const Query *query, Oid relid, const char *declared)
{
	ListCell *lc;

	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);
		Var *var = (Var *) strip_implicit_coercions((Node *) entry->expr);

		if (entry->resjunk || strcmp(entry->resname, declared) != 0)
			continue;
		if (IsA(var, Var) && var->varlevelsup == 0 &&
			rt_fetch(var->varno, query->rtable)->relid == relid)
			return var->varattno;
	}
	return InvalidAttrNumber;
}
