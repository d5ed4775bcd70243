/*
 * mart.h
 *	  What a mart's query is, and the statements that keep its state.  Private to src/mart.
 *
 * A mart groups the rows of one staging table.  Its state is one row a group: the group's columns g1, g2, …,
 * stored values e1, e2, … that are functions of them, the number of rows n, and for each slot k the columns
 * ak_….  Everything but g and e is a sum over rows, so that the difference of new and old rows can be added.
 */
#ifndef MR_MART_MART_H
#define MR_MART_MART_H

#include "core/merge.h"
#include "nodes/parsenodes.h"
#include "stage/staging.h"
#include "utils/tuplestore.h"

/* A column of the state that is computed from rows (g) or from other columns of the group (e). */
typedef struct MrMartColumn
{
	Node *expression; /* NULL: the constant by which a mart without GROUP BY has its one row */
	Oid type;
	int32 typmod;
	Oid collation;
} MrMartColumn;

/* Which aggregate it is; those before MIN follow from counts and sums. */
typedef enum MrMartFunction
{
	MR_FUNCTION_COUNT,
	MR_FUNCTION_SUM,
	MR_FUNCTION_AVG,
	MR_FUNCTION_EVERY,
	MR_FUNCTION_SOME,
	MR_FUNCTION_EXACT_SUM, /* of floating point numbers */
	MR_FUNCTION_EXACT_AVG,
	MR_FUNCTION_MIN,
	MR_FUNCTION_MAX,
	MR_FUNCTION_LATEST,
	MR_FUNCTION_OTHER
} MrMartFunction;

typedef enum MrMartSlotKind
{
	MR_SLOT_VALUES, /* how many values are not NULL, and for some their sum, or how many are true */
	MR_SLOT_OBJECTS, /* how many objects: count(DISTINCT key), subtractable as it is */
	MR_SLOT_DISTINCT, /* how many different values a side table has */
	MR_SLOT_RESULT /* an aggregate that is computed from a side table: column r<number> */
} MrMartSlotKind;

/* What the state keeps for an argument of aggregates with its FILTER. */
typedef struct MrMartSlot
{
	MrMartSlotKind kind;
	int number; /* its columns are a<number>_n, a<number>_sum, … */
	Node *argument; /* NULL: rows; of a result the aggregate */
	Node *filter; /* or NULL */
	Oid type; /* of the argument */
	bool sum;
	bool truth;
	struct MrMartSide *side; /* of DISTINCT and RESULT */
} MrMartSlot;

/* A side table: the values v1, v2, … of each group, and in how many rows they are. */
typedef struct MrMartSide
{
	int number;
	List *values; /* MrMartColumn * */
	Node *filter; /* or NULL */
	MrMartSlot *distinct; /* counts how many different v1 there are, or NULL */
	bool results; /* aggregates are computed from it */
} MrMartSide;

/* What a column of the state beside g and e counts or sums up. */
typedef enum MrMartCount
{
	MR_COUNT_ROWS,
	MR_COUNT_VALUES, /* rows whose argument is not NULL */
	MR_COUNT_OBJECTS,
	MR_COUNT_DISTINCT, /* what a side table says */
	MR_COUNT_TRUE,
	MR_SUM_INT8, /* of smaller integers */
	MR_SUM_NUMERIC, /* of bigint or finite numeric */
	MR_COUNT_NAN,
	MR_COUNT_PLUS, /* infinity */
	MR_COUNT_MINUS
} MrMartCount;

typedef struct MrMartCounter
{
	char *name;
	MrMartCount what;
	char *source; /* over a group's staging rows "r"; NULL when a side table says it */
	MrMartSlot *slot; /* NULL: all rows */
} MrMartCounter;

typedef struct MrMartQuery
{
	Query *query; /* as analysed, all Vars pointing at tables */
	const char *text; /* as typed, for the places of errors; NULL when read from the definition */
	int32 staging_id;
	Oid staging_relid;
	Index staging; /* in the range table */
	char *timezone;
	int nkeys; /* the object's key */
	AttrNumber *keys;
	bool many; /* an object may have several rows */
	List *joined; /* range table indexes of …_current views, as Integer nodes */
	Node *where;
	bool global; /* no GROUP BY: one group, always there */
	List *groups; /* MrMartColumn * */
	List *extras; /* MrMartColumn * */
	List *slots; /* MrMartSlot * */
	List *sides; /* MrMartSide * */
	int stripes; /* rows of the state over which a group is spread; set by mr_mart_stripe */
} MrMartQuery;

#define mr_mart_refuse(mart, node, ...) \
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED), \
					mr_mart_position(mart, (Node *) (node)), __VA_ARGS__))

/* Which tables' columns an expression has. */
typedef struct MrMartColumns
{
	Index staging;
	bool of_staging;
	Var *joined; /* the first column of a joined view, or NULL */
	bool whole; /* a row as a whole, or a system column */
} MrMartColumns;

/* analyze.c: under SPI; refuses what cannot be maintained. */
extern MrMartQuery *mr_mart_analyze(Query *query, const char *text, Oid owner);
extern bool mr_mart_is_joined(MrMartQuery *mart, Node *expression);
extern MrMartColumns mr_mart_columns_of(MrMartQuery *mart, Node *expression);
extern MrMartColumn *mr_mart_make_column(Node *expression);

/* Refuses functions that would give another result for the same row tomorrow, or for another reader. */
extern void mr_mart_check_stability(MrMartQuery *mart, Node *expression, bool immutable);
extern void mr_mart_check_function(MrMartQuery *mart, Node *node, Oid function);

/* Spreads groups over stripes, or refuses to. */
extern void mr_mart_stripe(MrMartQuery *mart, int stripes);

/* aggregate.c */
extern void mr_mart_rewrite(Query *query);
extern MrMartFunction mr_mart_function(const Aggref *aggregate);
extern MrMartSlot *mr_mart_slot(MrMartQuery *mart, Aggref *aggregate, bool add);

/* text.c: where an expression's text will stand, which decides how columns are named. */
typedef enum MrMartPlace
{
	MR_PLACE_ERROR, /* as the user would write it */
	MR_PLACE_ROWS, /* over staging rows "r" */
	MR_PLACE_GROUPS, /* over groups "d" of a delta */
	MR_PLACE_VIEW, /* over the state under the staging table's alias, and joined views */
	MR_PLACE_INDEX, /* over the state, its columns unqualified */
	MR_PLACE_VALUES /* over a side table "s"; see mr_mart_result_text */
} MrMartPlace;

extern char *mr_mart_text(MrMartQuery *mart, Node *expression, MrMartPlace place);
extern char *mr_mart_result_text(MrMartQuery *mart, const MrMartSlot *slot);
extern char *mr_mart_describe(MrMartQuery *mart, Node *expression);
extern int mr_mart_position(const MrMartQuery *mart, Node *expression);

/* state.c: the columns of the state beside g and e (MrMartCounter *), and whether NULL is 0 in one. */
extern List *mr_mart_counters(MrMartQuery *mart);
extern bool mr_mart_is_rare(MrMartCount what);

/* Statements over the state table of that base name and its side tables (with `side`). */
extern List *mr_mart_ddl(MrMartQuery *mart, const char *base, const char *order_by);
extern char *mr_mart_view(MrMartQuery *mart, const char *base);
extern char *mr_mart_state_name(const char *base, const MrMartSide *side);
extern char *mr_mart_base(int32 target_id);
extern char *mr_mart_delta(MrMartQuery *mart, int32 target_id, bool whole);
extern char *mr_mart_upsert(MrMartQuery *mart, int32 target_id);
extern char *mr_mart_side_delta(MrMartQuery *mart, const MrMartSide *side, bool whole);
extern char *mr_mart_side_rows(MrMartQuery *mart, int32 target_id, const MrMartSide *side);
extern char *mr_mart_side_upsert(MrMartQuery *mart, int32 target_id, const MrMartSide *side);
extern char *mr_mart_empty_row(MrMartQuery *mart, const char *base);

/* saved.c: saved statements between which rows travel in tuplestores. */
typedef struct MrSaved MrSaved;

extern MrSaved *mr_saved_create(char *sql);
extern Tuplestorestate *mr_saved_run(MrSaved *saved, TupleDesc *desc);
extern void mr_saved_publish(char *name, Tuplestorestate *store, TupleDesc desc);

/*
 * results.c: aggregates computed from side tables.  The groups are rows of the state that this transaction has
 * locked, or with NULL all of them; the caller is connected to SPI and has set the owner's settings.
 */
typedef struct MrMartResults MrMartResults;

extern MrMartResults *mr_mart_results_create(MrMartQuery *mart, int32 target_id);
extern void mr_mart_results_compute(MrMartResults *results, Oid owner, const MrRows *groups,
									ItemPointerData *places, const bool *chosen);

/*
 * delta.c: what a batch changes, in C.  NULL when a type of the mart cannot be hashed; the staging table's old and
 * new rows are then read by SQL.
 */
typedef struct MrMartDelta MrMartDelta;

extern MrMartDelta *mr_mart_delta_compile(MrMartQuery *mart, const MrStaging *staging, Oid owner);

/*
 * Adds it to the tables of the state, each of which is plain: those of distinct counts, then the mart's own.  Adds to
 * *written how many groups it touched, and returns them, in `keep`, unless that is NULL.
 */
extern MrRows *mr_mart_delta_apply(MrMartDelta *delta, const MrStaged *staged, Oid owner,
								   MrMerge **merges, MrMartResults *results, MrMergeEmpty empty,
								   const char *name, MemoryContext keep, int64 *written);

/* clear.c */
extern void mr_mart_clear(MrTarget *target, const char *filter, char **condition);

/* mart.c */
extern MrMartQuery *mr_mart_load_query(Query *definition, int32 target_id, Oid owner);
extern void mr_mart_check_count(const char *name, int64 n);
extern const MrTargetKind mr_mart_kind;

/*
 * For those who judge groups after the mart has been kept: its groups of which the last batch changed something, each
 * column in the order of the state's; they live until the mart's next batch.  False when it is not known which: any may be.
 */
extern void mr_mart_watch(MrTarget *target);
extern bool mr_mart_touched(MrTarget *target, const MrRows **groups);
extern MrTarget *mr_mart_open(int32 target_id);
extern void mr_mart_rebuild(MrTarget *target, int64 *before, int64 *after);

#endif /* MR_MART_MART_H */
