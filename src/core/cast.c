/*
 * cast.c
 *	  Casts between column types, compiled with the parser's own rules.
 */
#include "postgres.h"

#include "core/cast.h"
#include "core/millrace.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"

struct MrCast
{
	ExprState *state;
	ExprContext *context;
	int16 length;
	bool by_value;
};

MrCast *
mr_cast_create(Oid from, int32 from_typmod, Oid to, int32 to_typmod)
{
	CaseTestExpr *placeholder;
	Node *expression;
	MrCast *cast;

	if (from == to && (to_typmod < 0 || from_typmod == to_typmod))
		return NULL;

	placeholder = makeNode(CaseTestExpr);
	placeholder->typeId = from;
	placeholder->typeMod = from_typmod;
	placeholder->collation = get_typcollation(from);
	expression = coerce_to_target_type(NULL, (Node *) placeholder, from, to, to_typmod,
									   COERCION_PLPGSQL, COERCE_IMPLICIT_CAST, -1);
	if (expression == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_COERCE),
				 errmsg("cannot cast type %s to %s", format_type_be(from), format_type_be(to))));
	/* Nothing but a new label: the value itself stays. */
	while (IsA(expression, RelabelType))
		expression = (Node *) ((RelabelType *) expression)->arg;
	if (IsA(expression, CaseTestExpr))
		return NULL;

	expression = (Node *) expression_planner((Expr *) expression);
	cast = palloc0(sizeof(MrCast));
	cast->state = ExecInitExpr((Expr *) expression, NULL);
	cast->context = CreateStandaloneExprContext();
	get_typlenbyval(to, &cast->length, &cast->by_value);
	return cast;
}

Datum
mr_cast_value(MrCast *cast, Datum value, bool *isnull)
{
	int nest_level;

	if (cast == NULL)
		return value;
	nest_level = mr_settings_pin("UTC");
	cast->context->caseValue_datum = value;
	cast->context->caseValue_isNull = *isnull;
	ResetExprContext(cast->context);
	value = ExecEvalExprSwitchContext(cast->state, cast->context, isnull);
	if (!*isnull)
		value = datumCopy(value, cast->by_value, cast->length);
	mr_settings_unpin(nest_level);
	return value;
}
