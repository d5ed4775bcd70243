/*
 * rule.h
 *	  Rules: conditions that are judged in the transaction that loads the data.
 *
 * A rule is a target of the staging table that it reads.  Its expressions are its owner's: they are evaluated as him, in a
 * subtransaction and with an eye on the clock, so that whatever they do ends the rule and not the stream.
 */
#ifndef MR_ALERT_RULE_H
#define MR_ALERT_RULE_H

#include "core/expression.h"
#include "core/statement.h"
#include "stage/staging.h"
#include "utils/jsonb.h"

/* What makes the alerts of a rule; see create_rule(). */
typedef struct MrRule
{
	MrTarget base;
	char *rule_name;
	MrStaging *staging; /* that it reads; NULL: another stream's */
	Query *definition; /* for privileges */
	Jsonb *declared; /* millrace.target.definition */
	TimestampTz since; /* what happened before then is history */
	TimestampTz filled_since; /* so is, when it is filled, what was loaded before then */
	bool resumed; /* it is filled with what has come while it was suspended */
	char *group; /* of rules, of which the first that is true counts; or NULL */
	int ordinal; /* in it */
	bool suspended; /* not judged, which is noted in millrace.rule */
	char *reason; /* not judged, which is still to be noted: why */
	int sqlstate;

	MrExpression *predicate;
	MrExpression *key;
	MrExpression *time; /* or NULL: the message's */
	MrExpression *details; /* or NULL */
	MrExpression *group_by; /* of messages; or NULL */
	MrExpression *object; /* tells objects apart; their elements with it */
	MrExpression *value; /* frequency: what is summed up or counted; or NULL */
	struct MrWindow *window; /* private to frequency.c */
	struct MrThreshold *threshold; /* private to threshold.c */
	ExprContext *context; /* what expressions see: rule->row */
	TupleTableSlot *row;
	Datum *row_values; /* its own arrays: it borrows those of rows */
	bool *row_nulls;
	bool of_objects; /* the key is that of the staging table's objects */
	struct MrJudge *judge; /* private to judge.c */
	struct MrJudge *alone;
} MrRule;

/* The kind of target that a rule is loaded as; what it becomes depends on the kind of rule. */
extern const MrTargetKind mr_rule_kind;

/*
 * Lets rules that read the same staging table be judged in one pass over its rows: called with all targets of a stream
 * after they have been loaded.  A target that was loaded apart needs those of its group among `companions`.
 */
extern void mr_rules_arrange(List *targets);
extern void mr_rule_arrange_alone(MrTarget *target, const List *companions);

/* ---- what the kinds share (rule.c) --------------------------------------------------------------------- */

/* Is the rule judged?  Notes why it is not, when that is not known yet: `batch` is the first that it misses, NULL: what comes now. */
extern bool mr_rule_is_judged(MrRule *rule, const MrBatch *batch);

/* From now on it is not. */
extern void mr_rule_suspend(MrRule *rule, const ErrorData *error);

/* A member of what was declared, or NULL. */
extern char *mr_rule_text(const MrRule *rule, const char *member);

/*
 * Runs `step` as `owner` under the settings of the staging table's expressions, in a subtransaction.  NULL when it went
 * well; else the error, when it is one of the rule or of the data: others are raised again.  A step calls
 * mr_rule_progress() for each row: an error tells, too, that one took too long.
 */
extern ErrorData *mr_rule_try(void (*step)(void *), void *argument, Oid owner,
							  const char *timezone);
extern void mr_rule_progress(void);

/*
 * Writes what a rule has found, as we are: whatever in it cannot be written suspends the rule, and the batch goes on without
 * what it has written.
 */
extern void mr_rule_write(MrRule *rule, const MrBatch *batch, void (*step)(void *), void *argument);

/* Is it an error of the row that was judged?  Else it is one of the rule. */
extern bool mr_rule_error_of_data(const ErrorData *error);

/* The text of an expression of a row, in CurrentMemoryContext; NULL when it is null or there is none. */
extern char *mr_rule_evaluate_text(MrExpression *expression, ExprContext *context);
/* The same, short enough to stand in an index. */
extern char *mr_rule_key_text(MrExpression *expression, ExprContext *context);
extern char *mr_rule_short_text(char *text);

/* ---- versions (version.c) ------------------------------------------------------------------------------ */

extern char *mr_rule_version_text(const MrStaging *staging, const MrVersion *version);
/* Is the version newer than the one that was noted as text, of a state or of its end? */
extern bool mr_rule_version_is_newer(const MrStaging *staging, const MrVersion *version,
									 const char *noted, bool deleted);

/* ---- alerts (fire.c) ----------------------------------------------------------------------------------- */

/* Something that a rule has found. */
typedef struct MrHit
{
	const MrVersion *version;
	bool deleted; /* nothing was found: the object is deleted */
	char *key;
	char *occurrence;
	TimestampTz time;
	char *details; /* JSON text, or NULL */
	char *group_by; /* or NULL */
	char *objects; /* that it tells of, as a JSON list */
	bool history;
} MrHit;

/*
 * Runs a statement as the extension's owner that returns what is to be sent (channel_id, key, group_by, alert_id, message,
 * not_after; of a sink also sink_id, object), and puts that into the outbox.
 */
extern void mr_rule_send(MrStatement *statement, Datum *arguments);

/* Writes hits as alerts, and what is to be sent of them into the outbox. */
extern void mr_rule_fire(MrRule *rule, MrHit *const *hits, int nhits);

/* ---- judging rows (judge.c) ---------------------------------------------------------------------------- */

/* What a rule has found in a batch, in the order of arrival. */
typedef struct MrFound
{
	int nhits;
	int capacity;
	MrHit *hits;
	List *failures; /* MrFailure * */
} MrFound;

/* Judges every version that the batch holds for the rule's staging table; with others, unless they are being filled. */
extern MrFound *mr_rule_judge(MrRule *rule, MrBatch *batch);

/* Makes dead letters of rows that could not be judged. */
extern void mr_rule_write_failures(const MrRule *rule, List *failures);

/* ---- kinds --------------------------------------------------------------------------------------------- */

extern const MrTargetKind mr_match_kind;
extern void mr_match_load(MrRule *rule);
extern const MrTargetKind mr_again_kind;
extern const MrTargetKind mr_frequency_kind;
extern void mr_frequency_load(MrRule *rule);

/* Was a version there before the rule, or does it come from a snapshot? */
extern bool mr_rule_is_history(const MrRule *rule, const MrBatch *batch, const MrVersion *version);
/* The time of what a row tells; the row stands in `context`.  *known (or NULL): it is not when that of a snapshot. */
extern TimestampTz mr_rule_row_time(const MrRule *rule, const MrVersion *version,
									ExprContext *context, bool *known);
/* What MrHit.objects says of a single one. */
extern char *mr_rule_one_object(const char *object);
/* Puts a row where expressions see it, and takes it away again. */
extern void mr_rule_show_row(TupleTableSlot *slot, ExprContext *context, Datum *values,
							 bool *nulls);
extern void mr_rule_hide_row(MrRule *rule);
/* An error when the owner may not read any more what the rule reads, else NULL. */
extern ErrorData *mr_rule_check_privileges(MrRule *rule);
extern const MrTargetKind mr_absence_kind;
extern const MrTargetKind mr_threshold_kind;
extern void mr_threshold_load(MrRule *rule);
/* Reads all groups and follows them, for a rule of kind health. */
extern void mr_threshold_look(MrRule *rule);
/* The statements that read groups; as the extension's owner, under SPI. */
extern void mr_threshold_prepare(MrRule *rule);
/* The mart, among the targets of the stream. */
extern void mr_threshold_find_mart(MrRule *rule, const List *targets);

/* Adds what could not be judged; false when it is not the row's fault, or there is too much of it. */
extern bool mr_rule_note_failure(List **failures, const MrVersion *version, int32 element,
								 const ErrorData *error);
/* MrTargetKind.clear: the rule is judged again, and forgets what it knew. */
extern void mr_rule_clear(MrTarget *target, const char *filter, char **condition);
extern Datum mr_rule_text_array(char **texts, int n);

#endif /* MR_ALERT_RULE_H */
