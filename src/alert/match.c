/*
 * match.c
 *	  Rules of kind "match": they fire once for each object, whichever of its versions makes them true first.
 *
 * What is known of a key is the mark that it has fired, and with which version.  A delete that is newer ends that life of
 * the object: then the mark says when, older versions that come late belong to the life that is over, and the next true one
 * fires again.  A delete that is older than the version that has fired came late, or comes again, and changes nothing.
 */
#include "postgres.h"

#include "alert/rule.h"
#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "core/statement.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "vault/vault.h"

/* What is known of a key, and what a batch says of it. */
typedef struct Mark
{
	char *key;
	int first; /* among the hits, which are sorted by key and then in the order of arrival */
	int count;
	bool deleted; /* by one of them */
	int first_true; /* the first of them that is no delete, or -1 */
	bool
		inserted; /* by that one, which fires: there was no mark, and deletes before it meant nothing */
	bool changed;
	char *fired; /* version, or NULL */
	char *ended;
} Mark;

/* ---- marks --------------------------------------------------------------------------------------------- */

static char *
state_text(const Mark *mark)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	if (mark->fired != NULL)
	{
		appendStringInfoString(&text, "\"fired\": ");
		escape_json(&text, mark->fired);
	}
	if (mark->ended != NULL)
	{
		appendStringInfo(&text, "%s\"ended\": ", mark->fired != NULL ? ", " : "");
		escape_json(&text, mark->ended);
	}
	appendStringInfoChar(&text, '}');
	return text.data;
}

static int
compare_hits(const void *left, const void *right)
{
	const MrHit *l = *(MrHit *const *) left;
	const MrHit *r = *(MrHit *const *) right;
	int order = strcmp(l->key, r->key);

	return order != 0 ? order : l < r ? -1 : l > r;
}

/* The keys of the hits. */
static Mark *
make_marks(MrHit **hits, int nhits, int *nmarks)
{
	Mark *marks = palloc0(sizeof(Mark) * nhits);

	*nmarks = 0;
	for (int i = 0; i < nhits; i++)
	{
		Mark *mark = *nmarks > 0 ? &marks[*nmarks - 1] : NULL;

		if (mark == NULL || strcmp(mark->key, hits[i]->key) != 0)
		{
			mark = &marks[(*nmarks)++];
			mark->key = hits[i]->key;
			mark->first = i;
			mark->first_true = -1;
		}
		if (!hits[i]->deleted && mark->first_true < 0)
			mark->first_true = i;
		mark->count++;
		mark->deleted |= hits[i]->deleted;
	}
	return marks;
}

static int
compare_key_to_mark(const void *key, const void *mark)
{
	return strcmp(key, ((const Mark *) mark)->key);
}

static Datum
make_text_array(Datum *texts, int n)
{
	return PointerGetDatum(construct_array(texts, n, TEXTOID, -1, false, TYPALIGN_INT));
}

/* Inserts marks of keys that fire for the first time; the others stay as they are. */
static void
insert_marks(const MrRule *rule, MrHit **hits, Mark *marks, int nmarks)
{
	static const Oid types[] = {INT4OID, TEXTARRAYOID, TEXTARRAYOID};
	static MrStatement *insert = NULL;
	Datum *keys = palloc(sizeof(Datum) * nmarks);
	Datum *states = palloc(sizeof(Datum) * nmarks);
	Datum arguments[lengthof(types)];
	uint64 inserted;
	int n = 0;

	if (insert == NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);

		insert = mr_statement_create(
			"INSERT INTO millrace.rule_state (rule_id, key, state) SELECT $1, k, s::json "
			"FROM unnest($2, $3) AS u (k, s) ON CONFLICT DO NOTHING RETURNING key",
			lengthof(types), types);
		MemoryContextSwitchTo(previous);
	}
	for (int i = 0; i < nmarks; i++)
	{
		if (marks[i].first_true < 0)
			continue;
		marks[i].fired = mr_rule_version_text(rule->staging, hits[marks[i].first_true]->version);
		keys[n] = CStringGetTextDatum(marks[i].key);
		states[n++] = CStringGetTextDatum(state_text(&marks[i]));
		marks[i].fired = NULL;
	}
	if (n == 0)
		return;
	arguments[0] = Int32GetDatum(rule->base.id);
	arguments[1] = make_text_array(keys, n);
	arguments[2] = make_text_array(states, n);
	inserted = mr_statement_run(insert, arguments, NULL);
	for (uint64 i = 0; i < inserted; i++)
	{
		Mark *mark = bsearch(mr_sql_text(i, 1), marks, nmarks, sizeof(Mark), compare_key_to_mark);

		mark->inserted = true;
		mark->fired = mr_rule_version_text(rule->staging, hits[mark->first_true]->version);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Reads and locks those of the others that can still change: a key that has fired stays so until its object is deleted. */
static bool *
lock_marks(const MrRule *rule, Mark *marks, int nmarks)
{
	static const Oid types[] = {INT4OID, TEXTARRAYOID, TEXTARRAYOID};
	static MrStatement *select = NULL;
	bool *there = palloc0(nmarks);
	Datum *keys = palloc(sizeof(Datum) * nmarks);
	Datum *deleted = palloc(sizeof(Datum) * nmarks);
	Datum arguments[lengthof(types)];
	uint64 found;
	int n = 0;
	int ndeleted = 0;

	if (select == NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);

		select = mr_statement_create(
			"SELECT key, state::text FROM millrace.rule_state WHERE rule_id = $1 AND key = ANY ($2) "
			"AND (key = ANY ($3) OR state ->> 'fired' IS NULL) ORDER BY key FOR NO KEY UPDATE",
			lengthof(types), types);
		MemoryContextSwitchTo(previous);
	}
	for (int i = 0; i < nmarks; i++)
	{
		if (marks[i].inserted)
			continue;
		keys[n] = CStringGetTextDatum(marks[i].key);
		if (marks[i].deleted)
			deleted[ndeleted++] = keys[n];
		n++;
	}
	if (n == 0)
		return there;
	arguments[0] = Int32GetDatum(rule->base.id);
	arguments[1] = make_text_array(keys, n);
	arguments[2] = ndeleted > 0 ? make_text_array(deleted, ndeleted)
								: PointerGetDatum(construct_empty_array(TEXTOID));
	found = mr_statement_run(select, arguments, NULL);
	for (uint64 i = 0; i < found; i++)
	{
		Mark *mark = bsearch(mr_sql_text(i, 1), marks, nmarks, sizeof(Mark), compare_key_to_mark);
		Jsonb *state = mr_vault_json(mr_sql_text(i, 2));

		mark->fired = mr_vault_json_text(mr_vault_json_member(state, "fired"));
		mark->ended = mr_vault_json_text(mr_vault_json_member(state, "ended"));
		there[mark - marks] = true;
	}
	SPI_freetuptable(SPI_tuptable);
	return there;
}

static void
update_marks(const MrRule *rule, Mark *marks, int nmarks)
{
	static const Oid types[] = {INT4OID, TEXTARRAYOID, TEXTARRAYOID};
	static MrStatement *update = NULL;
	Datum *keys = palloc(sizeof(Datum) * nmarks);
	Datum *states = palloc(sizeof(Datum) * nmarks);
	Datum arguments[lengthof(types)];
	int n = 0;

	if (update == NULL)
	{
		MemoryContext previous = MemoryContextSwitchTo(TopMemoryContext);

		/* They are locked. */
		update = mr_statement_create(
			"UPDATE millrace.rule_state AS r SET state = u.s::json "
			"FROM unnest($2, $3) AS u (k, s) WHERE r.rule_id = $1 AND r.key = u.k",
			lengthof(types), types);
		MemoryContextSwitchTo(previous);
	}
	for (int i = 0; i < nmarks; i++)
	{
		if (!marks[i].changed)
			continue;
		keys[n] = CStringGetTextDatum(marks[i].key);
		states[n++] = CStringGetTextDatum(state_text(&marks[i]));
	}
	if (n == 0)
		return;
	arguments[0] = Int32GetDatum(rule->base.id);
	arguments[1] = make_text_array(keys, n);
	arguments[2] = make_text_array(states, n);
	(void) mr_statement_run(update, arguments, NULL);
}

/* ---- firing -------------------------------------------------------------------------------------------- */

static void
fire(MrHit *hit, const Mark *mark, MrHit **fired, int *nfired)
{
	/* The object's first life is named by its key. */
	hit->occurrence = mark->ended == NULL ? hit->key : psprintf("%s@%s", hit->key, mark->ended);
	fired[(*nfired)++] = hit;
}

/* What the hits of a key from number `from` on make of its mark. */
static void
follow(const MrStaging *staging, Mark *mark, MrHit **hits, int from, MrHit **fired, int *nfired)
{
	for (int i = from; i < mark->first + mark->count; i++)
	{
		MrHit *hit = hits[i];

		if (hit->deleted)
		{
			if (mark->fired == NULL ||
				!mr_rule_version_is_newer(staging, hit->version, mark->fired, false))
				continue;
			mark->ended = mr_rule_version_text(staging, hit->version);
			mark->fired = NULL;
		}
		else
		{
			if (mark->fired != NULL ||
				(mark->ended != NULL &&
				 !mr_rule_version_is_newer(staging, hit->version, mark->ended, true)))
				continue;
			fire(hit, mark, fired, nfired);
			mark->fired = mr_rule_version_text(staging, hit->version);
		}
		mark->changed = true;
	}
}

/* The hits of a rule. */
typedef struct Applying
{
	MrRule *rule;
	MrFound *found;
} Applying;

static void
apply_step(void *argument)
{
	MrRule *rule = ((Applying *) argument)->rule;
	MrFound *found = ((Applying *) argument)->found;
	MemoryContext context = CurrentMemoryContext;
	MrHit **hits = palloc(sizeof(MrHit *) * found->nhits);
	MrHit **fired = palloc(sizeof(MrHit *) * found->nhits);
	int nfired = 0;
	Mark *marks;
	int nmarks;
	bool *there;
	MrRunAs saved;

	for (int i = 0; i < found->nhits; i++)
		hits[i] = &found->hits[i];
	qsort(hits, found->nhits, sizeof(MrHit *), compare_hits);
	marks = make_marks(hits, found->nhits, &nmarks);

	mr_run_as(&saved, mr_extension_owner());
	SPI_connect();
	MemoryContextSwitchTo(context);
	insert_marks(rule, hits, marks, nmarks);
	there = lock_marks(rule, marks, nmarks);
	for (int i = 0; i < nmarks; i++)
	{
		if (marks[i].inserted)
		{
			fire(hits[marks[i].first_true], &marks[i], fired, &nfired);
			follow(rule->staging, &marks[i], hits, marks[i].first_true + 1, fired, &nfired);
		}
		else if (there[i])
			follow(rule->staging, &marks[i], hits, marks[i].first, fired, &nfired);
	}
	update_marks(rule, marks, nmarks);
	SPI_finish();
	mr_run_back(&saved);
	MemoryContextSwitchTo(context);
	mr_rule_fire(rule, fired, nfired);
}

static void
match_apply(MrTarget *target, MrBatch *batch)
{
	MrRule *rule = (MrRule *) target;
	MrFound *found;

	if (!mr_rule_is_judged(rule, batch))
		return;
	found = mr_rule_judge(rule, batch);
	if (found == NULL)
		return;
	mr_rule_write_failures(rule, found->failures);
	/* It may have been suspended just now: what it has found before counts. */
	(void) mr_rule_is_judged(rule, batch);
	if (found->nhits > 0)
	{
		Applying applying = {rule, found};

		mr_rule_write(rule, batch, apply_step, &applying);
	}
}

void
mr_match_load(MrRule *rule)
{
	rule->base.kind = &mr_match_kind;
	rule->of_objects = mr_vault_json_true(mr_vault_json_member(rule->declared, "of_objects"));
}

const MrTargetKind mr_match_kind = {
	.name = "rule",
	.phase = MR_PHASE_RULE,
	.stage = MR_STAGE_ALERT,
	.apply = match_apply,
	.filled_from = MR_FILLED_FROM_VERSIONS,
	.filled_from_staged = true,
	.clear = mr_rule_clear,
};
