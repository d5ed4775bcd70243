/*
 * expression.h
 *	  Users' SQL expressions over one row: checked when declared, compiled once, evaluated in C.
 */
#ifndef MR_CORE_EXPRESSION_H
#define MR_CORE_EXPRESSION_H

#include "executor/executor.h"
#include "nodes/parsenodes.h"
#include "utils/rel.h"

typedef struct MrExpression
{
	ExprState *state;
	Oid type;
	int16 length;
	bool by_value;
} MrExpression;

/*
 * Compiles an analysed expression whose Vars are of the row it is about (any varno of this query level: the
 * context's scan tuple) and of the row around it (one level up: the context's outer tuple).  The current user
 * must be the expression's owner: his privileges on functions are checked here.
 */
extern MrExpression *mr_expression_compile(Node *expression);

/* Its value, in the current memory context. */
extern Datum mr_expression_value(MrExpression *expression, ExprContext *context, bool *isnull);

/* NULL counts as false. */
extern bool mr_expression_true(MrExpression *expression, ExprContext *context);

/* Refuses what would not give the same result tomorrow; `what` names the expression in the error. */
extern void mr_expression_check_stable(Node *expression, const char *what);

/* Refuses a text that is not one SQL expression, so that it may be put into a statement. */
extern void mr_expression_check_text(const char *expression, const char *what);

/* Refuses a query unless each of its columns has a name that no other has; `what` is the query in the error. */
extern void mr_expression_check_names(const Query *query, const char *what);

/*
 * A condition over the columns of a relation, as the current user means it: one expression, without sub-selects and functions that
 * are volatile.
 */
extern Node *mr_expression_condition(Relation relation, const char *text, const char *what);

/*
 * Printing an expression in which some nodes are to be written otherwise than PostgreSQL does: each of them is
 * replaced by a placeholder, a parameter whose number is the place of its text among the pieces.
 */
extern Node *mr_expression_placeholder(Node *node, char *text, List **pieces);
extern char *mr_expression_print(Node *expression, const List *pieces);

#endif /* MR_CORE_EXPRESSION_H */
