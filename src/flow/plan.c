/*
 * plan.c
 *	  Compiling a stream, and activating what was declared on it.
 */
#include "postgres.h"

#include "alert/rule.h"
#include "core/catalog.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "flow/backfill.h"
#include "flow/plan.h"
#include "mart/mart.h"
#include "model/online.h"
#include "sink/sink.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "vault/vault.h"

/* All kinds of targets; a new kind is a new file and a line here. */
static const MrTargetKind *const kinds[] = {&mr_hub_kind,  &mr_link_kind, &mr_satellite_kind,
											&mr_pit_kind,  &mr_mart_kind, &mr_model_kind,
											&mr_rule_kind, &mr_sink_kind};

static const MrTargetKind *
kind_named(const char *name)
{
	for (int i = 0; i < lengthof(kinds); i++)
	{
		if (strcmp(kinds[i]->name, name) == 0)
			return kinds[i];
	}
	elog(ERROR, "targets of kind \"%s\" are not known to this version", name);
}

/*
 * The order in which a batch visits its targets.  Whoever meets a row that another worker is inserting waits for that
 * one's commit, and until its own commit the next one waits: as few as can be come after such rows.
 */
static int
compare_targets(const ListCell *left, const ListCell *right)
{
	const MrTarget *l = lfirst(left);
	const MrTarget *r = lfirst(right);

	if (l->kind->phase < MR_PHASE_MART && r->kind->phase < MR_PHASE_MART && l->shared != r->shared)
		return l->shared ? 1 : -1;
	if (l->kind->phase != r->kind->phase)
		return l->kind->phase < r->kind->phase ? -1 : 1;
	return l->relid < r->relid ? -1 : l->relid > r->relid;
}

/* The stream's staging table of that id, or NULL when another stream keeps it. */
static MrStaging *
staging_by_id(const MrStream *stream, int32 id)
{
	ListCell *lc;

	foreach(lc, stream->stagings)
	{
		if (((MrStaging *) lfirst(lc))->id == id)
			return lfirst(lc);
	}
	return NULL;
}

/* The sources of a target, from their configuration. */
static void
load_sources(const MrStream *stream, MrTarget *target)
{
	target->nsources = (int) mr_sql("SELECT staging_id, columns::text FROM millrace.target_source "
									"WHERE target_id = %d ORDER BY ordinal",
									target->id);
	target->sources = palloc0(sizeof(MrTargetSource) * Max(target->nsources, 1));
	for (int i = 0; i < target->nsources; i++)
	{
		bool isnull;

		target->sources[i].staging_id = DatumGetInt32(mr_sql_value(i, 1, &isnull));
		target->sources[i].columns = mr_sql_text(i, 2);
		target->sources[i].staging = staging_by_id(stream, target->sources[i].staging_id);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Compiles the targets that a condition on millrace.target finds. */
static List *
load_targets(const MrStream *stream, const char *condition)
{
	List *targets = NIL;
	uint64 count = mr_sql("SELECT id, kind, relation::oid, owner::oid, definition::text, "
						  "relation::text, state FROM millrace.target t WHERE %s ORDER BY id",
						  condition);
	SPITupleTable *rows = SPI_tuptable;

	for (uint64 i = 0; i < count; i++)
	{
		MrTarget *base = palloc0(sizeof(MrTarget));
		bool isnull;

		SPI_tuptable = rows;
		base->id = DatumGetInt32(mr_sql_value(i, 1, &isnull));
		base->kind = kind_named(mr_sql_text(i, 2));
		base->relid = DatumGetObjectId(mr_sql_value(i, 3, &isnull));
		base->owner = DatumGetObjectId(mr_sql_value(i, 4, &isnull));
		base->definition = mr_sql_text(i, 5);
		base->name = mr_sql_text(i, 6);
		base->filling = strcmp(mr_sql_text(i, 7), "filling") == 0;
		load_sources(stream, base);
		targets = lappend(targets, base->kind->load(base));
	}
	SPI_freetuptable(rows);
	list_sort(targets, compare_targets);
	return targets;
}

MrStream *
mr_flow_compile(MemoryContext parent, int32 stream_id, MrPlan **extraction, List **pending)
{
	MemoryContext previous = CurrentMemoryContext;
	MrRunAs saved;
	MrStream *stream;

	mr_run_as(&saved, mr_extension_owner());
	stream = mr_stream_load(parent, stream_id);
	if (stream != NULL)
	{
		MemoryContextSwitchTo(stream->context);
		stream->stagings = mr_staging_load(stream, extraction);
		stream->targets = load_targets(
			stream, psprintf("state <> 'new' AND EXISTS (SELECT FROM millrace.target_source s "
							 "JOIN millrace.staging g ON g.id = s.staging_id "
							 "WHERE s.target_id = t.id AND g.stream_id = %d)",
							 stream_id));
		mr_rules_arrange(stream->targets);
		mr_sinks_arrange(stream->targets);
		*pending = mr_sql_ids(mr_sql(
			"SELECT DISTINCT t.id, CASE t.kind WHEN 'hub' THEN 1 WHEN 'link' THEN 2 "
			"WHEN 'satellite' THEN 3 WHEN 'pit' THEN 4 WHEN 'mart' THEN 5 WHEN 'rule' THEN 6 ELSE 7 END AS phase FROM millrace.target t "
			"JOIN millrace.target_source s ON s.target_id = t.id "
			"JOIN millrace.staging g ON g.id = s.staging_id "
			"WHERE t.state = 'new' AND g.stream_id = %d ORDER BY phase, t.id",
			stream_id));
	}
	mr_run_back(&saved);
	MemoryContextSwitchTo(previous);
	return stream;
}

MrTarget *
mr_flow_compile_target(MrStream *stream, int32 target_id)
{
	List *targets;
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	targets = load_targets(stream, psprintf("id = %d", target_id));
	if (targets != NIL)
		mr_rule_arrange_alone(linitial(targets), stream->targets);
	mr_run_back(&saved);
	return targets == NIL ? NULL : linitial(targets);
}

/* The transaction that wrote a target's row last; NULL when the row is gone. */
static char *
declared_by(int32 target_id)
{
	bool found = mr_sql("SELECT xmin::text FROM millrace.target WHERE id = %d", target_id) > 0;
	char *xid = found ? mr_sql_text(0, 1) : NULL;

	SPI_freetuptable(SPI_tuptable);
	return xid;
}

void
mr_flow_activate(MrStream *stream, const List *pending)
{
	ListCell *lc;
	MrRunAs saved;

	mr_run_as(&saved, mr_extension_owner());
	foreach(lc, pending)
	{
		char *declared = declared_by(lfirst_int(lc));
		MrTarget *target = mr_flow_compile_target(stream, lfirst_int(lc));

		/* Dropped meanwhile. */
		if (declared == NULL || target == NULL)
			continue;
		/* One that somebody has declared anew since stays 'new'. */
		(void) mr_sql("UPDATE millrace.target SET state = '%s' WHERE id = %d AND xmin = '%s'::xid",
					  mr_backfill_begin(target) ? "filling" : "active", target->id, declared);
	}
	(void) mr_sql("UPDATE millrace.stream SET config_version = config_version + 1 WHERE id = %d",
				  stream->id);
	mr_run_back(&saved);
}
