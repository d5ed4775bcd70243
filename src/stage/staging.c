/*
 * staging.c
 *	  Compiling staging tables from their configuration.
 *
 * The configuration names columns as they were declared; the definition view millrace_def.staging_<id> says
 * which attributes these are now, and holds the analysed expressions (C14).
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "core/catalog.h"
#include "core/millrace.h"
#include "nodes/nodeFuncs.h"
#include "parser/parse_type.h"
#include "stage/mapping.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/typcache.h"

/* The definition's sub-select while one staging table is compiled. */
typedef struct Compilation
{
	MrStaging *staging;
	MrStagingPlan *plan;
	MrPlan *extraction;
	Query *definition;
} Compilation;

AttrNumber
mr_staging_attribute(const MrStaging *staging, const char *name)
{
	for (int i = 0; i < staging->nnames; i++)
	{
		if (strcmp(staging->names[i].declared, name) == 0)
			return staging->names[i].attnum;
	}
	return InvalidAttrNumber;
}

TimestampTz
mr_version_time(const MrStaging *staging, const MrVersion *version)
{
	if (!staging->version_is_time)
		return version->message->time;
	/* What it takes away may be by a clock that is ahead of the message's. */
	if (version->always && version->has_beaten)
		return Max(version->message->time, DatumGetTimestampTz(version->beaten));
	return version->version_null ? version->message->time : DatumGetTimestampTz(version->version);
}

void
mr_staging_compare(MrStaging *staging, AttrNumber attnum)
{
	for (int i = 1; i <= staging->desc->natts; i++)
	{
		if (attnum == i || attnum == InvalidAttrNumber)
			staging->plan->compared[i] = true;
	}
}

AttrNumber
mr_staging_log_attribute(const MrStaging *staging, Oid log, AttrNumber attnum)
{
	AttrNumber found = InvalidAttrNumber;

	for (int i = 0; i < staging->nnames && found == InvalidAttrNumber; i++)
	{
		if (staging->names[i].attnum == attnum)
			found = get_attnum(log, staging->names[i].declared);
	}
	if (found == InvalidAttrNumber)
		found = get_attnum(log, NameStr(TupleDescAttr(staging->desc, attnum - 1)->attname));
	return found;
}

/*
 * A column of the log, which has to be there and of the type that the batches and those who read it again have: on a log
 * nothing of ours stands, so that PostgreSQL lets its owner change it.
 */
static AttrNumber
log_column(const MrStaging *staging, AttrNumber attnum, const char *name, Oid type)
{
	if (attnum == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("the log of staging table %s has no column \"%s\"", staging->name, name),
				 errhint("Add it to %s again, of type %s.", mr_relation_name(staging->log),
						 format_type_be(type))));
	if (get_atttype(staging->log, attnum) != type)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of the log of staging table %s is %s instead of %s", name,
						staging->name, format_type_be(get_atttype(staging->log, attnum)),
						format_type_be(type)),
				 errhint("Give the column of %s its type back.", mr_relation_name(staging->log))));
	return attnum;
}

/* A plain column of the definition, which must be there. */
static AttrNumber
required_attribute(const Compilation *c, const char *declared)
{
	AttrNumber attnum = mr_staging_attribute(c->staging, declared);

	if (attnum == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of staging table %s is gone", declared, c->staging->name),
				 errhint("Create the staging table again with replace => true.")));
	return attnum;
}

/* The analysed expression of the definition's column `name`, or NULL. */
static Node *
definition_expression(const Compilation *c, const char *name)
{
	ListCell *lc;

	foreach(lc, c->definition->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (!entry->resjunk && strcmp(entry->resname, name) == 0)
			return (Node *) entry->expr;
	}
	return NULL;
}

/* The same, compiled. */
static MrExpression *
compile_expression(const Compilation *c, const char *name)
{
	Node *node = definition_expression(c, name);
	MrExpression *expression;
	MrRunAs saved;

	if (node == NULL)
		return NULL;
	mr_run_as_restricted(&saved, c->staging->owner);
	expression = mr_expression_compile(node);
	mr_run_back(&saved);
	return expression;
}

/* Marks the mapped columns that route speaks of, by the table's column or by raw. */
static bool
mark_for_route(Node *node, void *context)
{
	MrStagingPlan *plan = context;

	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		Var *var = (Var *) node;

		for (int i = 0; i < plan->nmapped; i++)
		{
			if (var->varlevelsup == 1 ? var->varattno == i + 1
									  : var->varattno == plan->mapped[i].attnum)
				plan->mapped[i].for_route = true;
		}
		return false;
	}
	return expression_tree_walker(node, mark_for_route, context);
}

/* The names under which the definition knows the table's columns. */
static void
collect_names(Compilation *c)
{
	MrStaging *staging = c->staging;
	ListCell *lc;

	staging->names = palloc0(sizeof(MrDeclaredName) * list_length(c->definition->targetList));
	foreach(lc, c->definition->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);
		AttrNumber attnum;

		if (entry->resjunk || entry->resname[0] == ':')
			continue;
		attnum = mr_definition_attribute(c->definition, staging->relid, entry->resname);
		if (attnum != InvalidAttrNumber)
		{
			staging->names[staging->nnames].declared = pstrdup(entry->resname);
			staging->names[staging->nnames].attnum = attnum;
			staging->nnames++;
		}
	}
}

/* One mapped column from a row (name, paths, type, format) of SPI_tuptable. */
static void
compile_mapped(Compilation *c, MrMapped *mapped, uint64 row, bool of_table)
{
	bool isnull;
	Datum paths = mr_sql_value(row, 2, &isnull);
	Datum *path_texts;
	int npaths;

	mapped->name = mr_sql_text(row, 1);
	mr_parse_type(mr_sql_text(row, 3), &mapped->type, &mapped->typmod);
	mapped->converter = mr_converter_create(mapped->type, mapped->typmod, mr_sql_text(row, 4));
	mapped->is_domain = get_typtype(mapped->type) == TYPTYPE_DOMAIN ||
						get_typtype(get_element_type(mapped->type)) == TYPTYPE_DOMAIN;
	get_typlenbyval(mapped->type, &mapped->length, &mapped->by_value);
	if (of_table)
	{
		Form_pg_attribute attribute;

		mapped->attnum = required_attribute(c, mapped->name);
		attribute = TupleDescAttr(c->staging->desc, mapped->attnum - 1);
		mapped->same_type = attribute->atttypid == mapped->type;
	}
	deconstruct_array(DatumGetArrayTypeP(paths), TEXTOID, -1, false, TYPALIGN_INT, &path_texts,
					  NULL, &npaths);
	mapped->slots = palloc(sizeof(MrSlot) * Max(npaths, 1));
	for (int i = 0; i < npaths; i++)
	{
		MrPath *path = mr_path_parse(TextDatumGetCString(path_texts[i]));

		mapped->slots[i] = mr_plan_slot(c->extraction, c->plan->scope, path);
		if (mapped->slots[i].scope != MR_SCOPE_MESSAGE)
			mapped->of_element = true;
	}
	mapped->nslots = npaths;
}

/* The version or event time: a single mapped value, or NULL. */
static MrMapped *
compile_single(Compilation *c, const char *member)
{
	MrMapped *mapped = NULL;

	if (mr_sql("SELECT '%s'::text, ARRAY(SELECT json_array_elements_text(m -> 'paths')), "
			   "m ->> 'type', m ->> 'format' FROM millrace.staging s, "
			   "LATERAL (SELECT s.definition -> '%s' AS m) m "
			   "WHERE id = %d AND json_typeof(m) = 'object'",
			   member, member, c->staging->id) == 1)
	{
		mapped = palloc0(sizeof(MrMapped));
		compile_mapped(c, mapped, 0, false);
	}
	SPI_freetuptable(SPI_tuptable);
	return mapped;
}

/* The mapped columns; those of the key come first. */
static void
compile_columns(Compilation *c)
{
	MrStaging *staging = c->staging;
	MrStagingPlan *plan = c->plan;

	plan->nmapped =
		(int) mr_sql("SELECT c ->> 'name', ARRAY(SELECT json_array_elements_text(c -> 'paths')), "
					 "c ->> 'type', c ->> 'format', (c ->> 'key')::boolean "
					 "FROM millrace.staging s, json_array_elements(s.definition -> 'columns') "
					 "WITH ORDINALITY AS e (c, n) WHERE id = %d "
					 "ORDER BY (c ->> 'key')::boolean DESC, n",
					 staging->id);
	plan->mapped = palloc0(sizeof(MrMapped) * Max(plan->nmapped, 1));
	staging->key = palloc(sizeof(AttrNumber) * Max(plan->nmapped, 1));
	for (int i = 0; i < plan->nmapped; i++)
	{
		bool isnull;

		compile_mapped(c, &plan->mapped[i], i, true);
		if (DatumGetBool(mr_sql_value(i, 5, &isnull)))
			staging->key[staging->nkeys++] = plan->mapped[i].attnum;
	}
	SPI_freetuptable(SPI_tuptable);
}

/* The named expressions of a member of the definition: computed columns, or expectations. */
static MrComputed *
compile_named(Compilation *c, const char *member, const char *prefix, bool columns, int *count)
{
	MrComputed *named;

	*count = (int) mr_sql("SELECT c ->> 'name' FROM millrace.staging s, "
						  "json_array_elements(s.definition -> '%s') WITH ORDINALITY AS e (c, n) "
						  "WHERE id = %d ORDER BY n",
						  member, c->staging->id);
	named = palloc0(sizeof(MrComputed) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
	{
		named[i].name = mr_sql_text(i, 1);
		named[i].expression = compile_expression(c, psprintf("%s%s", prefix, named[i].name));
		if (named[i].expression == NULL)
			elog(ERROR, "definition of staging table %s lacks \"%s%s\"", c->staging->name, prefix,
				 named[i].name);
		if (columns)
			named[i].attnum = required_attribute(c, named[i].name);
	}
	SPI_freetuptable(SPI_tuptable);
	return named;
}

/* How values of a column are compared. */
static void
prepare_sort(SortSupport sort, Oid type, Oid collation)
{
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_LT_OPR);

	if (!OidIsValid(entry->lt_opr))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_FUNCTION),
						errmsg("type %s has no order", format_type_be(type))));
	sort->ssup_cxt = CurrentMemoryContext;
	sort->ssup_collation = collation;
	sort->ssup_nulls_first = true;
	PrepareSortSupportFromOrderingOp(entry->lt_opr, sort);
}

/* What the expressions of the definition see: the table's row, and around it the mapped values. */
static void
prepare_slots(Compilation *c)
{
	MrStagingPlan *plan = c->plan;
	TupleDesc raw = CreateTemplateTupleDesc(plan->nmapped);

	for (int i = 0; i < plan->nmapped; i++)
		TupleDescInitEntry(raw, i + 1, plan->mapped[i].name, plan->mapped[i].type,
						   plan->mapped[i].typmod, 0);
	plan->row = MakeSingleTupleTableSlot(c->staging->desc, &TTSOpsVirtual);
	plan->raw = MakeSingleTupleTableSlot(raw, &TTSOpsVirtual);
	plan->context = CreateStandaloneExprContext();
	plan->context->ecxt_scantuple = plan->row;
	plan->context->ecxt_outertuple = plan->raw;
}

/* The tables that rows are written to. */
static void
prepare_tables(Compilation *c)
{
	static const struct
	{
		const char *name;
		Oid type;
	} technical[] = {{"_rows", INT4OID}, {"_deleted", BOOLOID}, {"_message_time", TIMESTAMPTZOID}};
	MrStaging *staging = c->staging;
	MrStagingPlan *plan = c->plan;
	AttrNumber *attnums = palloc(sizeof(AttrNumber) * staging->desc->natts);
	bool *given = palloc0(staging->desc->natts + 1);
	int n = 0;

	for (int i = 0; i < staging->nkeys; i++)
		attnums[n++] = staging->key[i];
	if (staging->element != InvalidAttrNumber)
		attnums[n++] = staging->element;
	for (int i = 0; i < n; i++)
		given[attnums[i]] = true;
	for (int i = 0; i < staging->nnames; i++)
	{
		if (!given[staging->names[i].attnum])
			attnums[n++] = staging->names[i].attnum;
		given[staging->names[i].attnum] = true;
	}
	plan->ncolumns = n;
	plan->columns = attnums;
	plan->table = mr_table_create(staging->relid, staging->owner, n, attnums,
								  staging->nkeys + (staging->element != InvalidAttrNumber));

	if (OidIsValid(staging->log))
	{
		AttrNumber *log_attnums = palloc(sizeof(AttrNumber) * (n + lengthof(technical)));

		for (int i = 0; i < n; i++)
		{
			Form_pg_attribute attribute = TupleDescAttr(staging->desc, attnums[i] - 1);

			log_attnums[i] = log_column(staging,
										mr_staging_log_attribute(staging, staging->log, attnums[i]),
										NameStr(attribute->attname), attribute->atttypid);
		}
		for (int i = 0; i < lengthof(technical); i++)
			log_attnums[n + i] = log_column(staging, get_attnum(staging->log, technical[i].name),
											technical[i].name, technical[i].type);
		plan->log = mr_table_create(staging->log, staging->owner, n + lengthof(technical),
									log_attnums, 0);
	}
}

/* Compiles one staging table; what its row says has been read by the caller. */
static void
compile_staging(Compilation *c, const char *for_each)
{
	MrStaging *staging = c->staging;
	MrStagingPlan *plan = c->plan;
	Form_pg_attribute attribute;

	c->definition = mr_definition_expressions(mr_definition_query("staging", staging->id));
	collect_names(c);
	plan->scope = MR_SCOPE_MESSAGE;
	if (for_each != NULL)
	{
		plan->scope = mr_plan_scope(c->extraction, mr_path_parse(for_each));
		staging->element = required_attribute(c, "_element");
	}
	staging->version = required_attribute(c, "_version");
	staging->event_time = required_attribute(c, "_event_time");
	plan->partition = required_attribute(c, "_partition");
	plan->position = required_attribute(c, "_position");
	plan->loaded_at = required_attribute(c, "_loaded_at");
	if (plan->payload != MR_PAYLOAD_NONE)
		plan->payload_attnum = required_attribute(c, "payload");

	plan->compared = palloc0(sizeof(bool) * (staging->desc->natts + 1));
	compile_columns(c);
	plan->erasures = mr_erasures_load(staging);
	if (plan->erasures != NULL)
	{
		plan->erasable = palloc0(sizeof(bool) * plan->nmapped);
		mr_erasures_mark(plan->erasures, plan->erasable);
	}
	plan->version = compile_single(c, "version");
	plan->event_time = compile_single(c, "event_time");
	if (plan->event_time != NULL && plan->event_time->type != TIMESTAMPTZOID)
		ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
						errmsg("event_time must be timestamptz, not %s",
							   format_type_be(plan->event_time->type))));
	prepare_slots(c);

	attribute = TupleDescAttr(staging->desc, staging->version - 1);
	plan->version_type = attribute->atttypid;
	staging->version_is_time = plan->version != NULL && plan->version_type == TIMESTAMPTZOID;
	get_typlenbyval(plan->version_type, &plan->version_length, &plan->version_by_value);
	prepare_sort(&plan->version_sort, plan->version_type, attribute->attcollation);
	plan->key_sort = palloc0(sizeof(SortSupportData) * Max(staging->nkeys, 1));
	plan->key_length = palloc(sizeof(int16) * Max(staging->nkeys, 1));
	plan->key_by_value = palloc(sizeof(bool) * Max(staging->nkeys, 1));
	for (int i = 0; i < staging->nkeys; i++)
	{
		attribute = TupleDescAttr(staging->desc, staging->key[i] - 1);
		prepare_sort(&plan->key_sort[i], attribute->atttypid, attribute->attcollation);
		plan->key_length[i] = attribute->attlen;
		plan->key_by_value[i] = attribute->attbyval;
	}

	plan->route = compile_expression(c, ":route");
	(void) mark_for_route(definition_expression(c, ":route"), plan);
	plan->deleted = compile_expression(c, ":deleted");
	plan->filter = compile_expression(c, ":filter");
	plan->computed = compile_named(c, "computed", ":computed ", true, &plan->ncomputed);
	plan->expected = compile_named(c, "expect", ":expect ", false, &plan->nexpected);

	prepare_tables(c);
	mr_object_prepare(staging);
}

/* Rows are what their messages say: to the log, the vault and the marts, and again when all of it is made anew. */
static void
refuse_changing_triggers(const MrStaging *staging, Relation relation)
{
	for (int i = 0; relation->trigdesc != NULL && i < relation->trigdesc->numtriggers; i++)
	{
		const Trigger *trigger = &relation->trigdesc->triggers[i];

		if (trigger->tgenabled == TRIGGER_DISABLED || !TRIGGER_FOR_INSERT(trigger->tgtype) ||
			!TRIGGER_FOR_BEFORE(trigger->tgtype) || !TRIGGER_FOR_ROW(trigger->tgtype))
			continue;
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("trigger \"%s\" could change rows of staging table %s before they are inserted",
					trigger->tgname, staging->name),
			 errdetail("Neither the log nor what is made of the table would know."),
			 errhint("Declare what it computes (computed, filter), or make it an AFTER trigger.")));
	}
}

/* Compiles the stream's staging tables that a condition on millrace.staging finds. */
static List *
load_where(MrStream *stream, const char *condition, MrPlan **extraction)
{
	List *stagings = NIL;
	SPITupleTable *rows;
	uint64 nrows;

	*extraction = mr_plan_create();
	if (strcmp(stream->format, "debezium") == 0)
		mr_plan_read_debezium(*extraction);
	nrows =
		mr_sql("SELECT id, relation::oid, owner::oid, timezone, definition_no, "
			   "definition ->> 'for_each', definition ->> 'tombstone', "
			   "definition ->> 'payload', "
			   "(1000000 * extract(epoch FROM (definition ->> 'max_ahead')::interval))::bigint, "
			   "log::oid, log_partition = 'day', definition ->> 'source_table' "
			   "FROM millrace.staging WHERE stream_id = %d AND %s ORDER BY id",
			   stream->id, condition);
	rows = SPI_tuptable;
	for (uint64 i = 0; i < nrows; i++)
	{
		Compilation c = {0};
		char *word;
		char *for_each;
		bool isnull;
		Datum value;
		Relation relation;

		SPI_tuptable = rows;
		c.extraction = *extraction;
		c.staging = palloc0(sizeof(MrStaging));
		c.staging->plan = c.plan = palloc0(sizeof(MrStagingPlan));
		c.staging->ordinal = (int) i;
		c.staging->id = DatumGetInt32(mr_sql_value(i, 1, &isnull));
		c.staging->relid = DatumGetObjectId(mr_sql_value(i, 2, &isnull));
		c.staging->owner = DatumGetObjectId(mr_sql_value(i, 3, &isnull));
		c.staging->timezone = mr_sql_text(i, 4);
		c.plan->definition_no = DatumGetInt32(mr_sql_value(i, 5, &isnull));
		for_each = mr_sql_text(i, 6);
		word = mr_sql_text(i, 7);
		c.plan->tombstone = strcmp(word, "refuse") == 0   ? MR_TOMBSTONE_REFUSE
							: strcmp(word, "always") == 0 ? MR_TOMBSTONE_ALWAYS
							: strcmp(word, "ignore") == 0 ? MR_TOMBSTONE_IGNORE
														  : MR_TOMBSTONE_TIMESTAMP;
		word = mr_sql_text(i, 8);
		c.plan->payload = strcmp(word, "json") == 0    ? MR_PAYLOAD_JSON
						  : strcmp(word, "jsonb") == 0 ? MR_PAYLOAD_JSONB
													   : MR_PAYLOAD_NONE;
		if (c.plan->payload == MR_PAYLOAD_JSONB)
			mr_plan_want_jsonb(*extraction);
		c.plan->max_ahead = DatumGetInt64(mr_sql_value(i, 9, &isnull));
		value = mr_sql_value(i, 10, &isnull);
		c.staging->log = isnull ? InvalidOid : DatumGetObjectId(value);
		c.plan->log_in_days = DatumGetBool(mr_sql_value(i, 11, &isnull));
		c.plan->source_table = mr_sql_text(i, 12);

		relation = try_table_open(c.staging->relid, AccessShareLock);
		if (relation == NULL)
			ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
							errmsg("staging table %d of stream %s was dropped", c.staging->id,
								   stream->name),
							errhint("Remove what is left of it with millrace.drop_table('%u').",
									c.staging->relid)));
		c.staging->name = mr_relation_name(c.staging->relid);
		refuse_changing_triggers(c.staging, relation);
		c.staging->desc = CreateTupleDescCopyConstr(RelationGetDescr(relation));
		table_close(relation, NoLock);
		compile_staging(&c, for_each);
		stagings = lappend(stagings, c.staging);
	}
	SPI_tuptable = rows;
	SPI_freetuptable(rows);
	return stagings;
}

List *
mr_staging_load(MrStream *stream, MrPlan **extraction)
{
	List *stagings = load_where(stream, "true", extraction);

	stream->enrichment = mr_enrich_load(stream, *extraction, stagings);
	return stagings;
}

PG_FUNCTION_INFO_V1(millrace_check_staging);
PG_FUNCTION_INFO_V1(millrace_check_path);
PG_FUNCTION_INFO_V1(millrace_check_format);

/* Raises an error for a path that is none. */
Datum
millrace_check_path(PG_FUNCTION_ARGS)
{
	(void) mr_path_parse(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}

/* Raises an error for a format that does not fit the type. */
Datum
millrace_check_format(PG_FUNCTION_ARGS)
{
	Oid type;
	int32 typmod;

	mr_parse_type(text_to_cstring(PG_GETARG_TEXT_PP(0)), &type, &typmod);
	(void) mr_converter_create(type, typmod,
							   PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1)));
	PG_RETURN_VOID();
}

/* Compiles one staging table, so that what a worker could not compile is an error of the declaration. */
Datum
millrace_check_staging(PG_FUNCTION_ARGS)
{
	MrPlan *extraction;
	MrStream *stream;
	List *stagings;

	SPI_connect();
	stream = mr_stream_load(CurrentMemoryContext, PG_GETARG_INT32(0));
	stagings = load_where(stream, psprintf("id = %d", PG_GETARG_INT32(1)), &extraction);
	(void) mr_enrich_load(stream, extraction, stagings);
	SPI_finish();
	PG_RETURN_VOID();
}
