/*
 * unchanged.c
 *	  Values that the source did not send because they are what they were, completed from what is known of the object.
 *
 * What is known is, of the mapped columns, what the newest message before has told in this batch, else what is
 * staged: mapping completes a row before any expression looks at it.  An object of which nothing is staged (it is
 * filtered out, or not copied yet), or a column whose staged value is a computed one, cannot be known: the row is read
 * again where the source can do that, else the change becomes a dead letter.  While a change of an object waits
 * among the dead letters, those after it which are not whole wait, too (C10).
 *
 * A copy of the table may be ahead of the changes that come.  What it has brought is not what the object was before
 * such a change, and need not be told by it: the change leaves no version.  Another object's copy tells nothing of a row
 * that has got its key from it.
 *
 * A change that is delivered once more may lack what has become something else since: it says nothing when its version
 * is no newer than what is remembered, or, in the source's own order, when it updates an object that was deleted.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "core/millrace.h"
#include "lib/rbtree.h"
#include "lib/stringinfo.h"
#include "source/change.h"
#include "stage/mapping.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"

/* What is known of one object. */
typedef struct Known
{
	RBTNode node;
	Datum *key;
	MrMessage *whole; /* the last message that needed nothing else, or NULL */
	MrMessage *anew; /* the same, a delete included: of it nothing older counts */
	bool read; /* what is staged of it has been looked for, or is not needed any more */
	int64 staged_at; /* what is known is what is staged, as of that position; else 0 */
	bool deleted; /* by the last message; what is known is what it was */
	bool incomplete; /* it lacks what a dictionary does not know yet */
	Datum version; /* of that one */
	bool version_null;
	int32 epoch; /* of that one, in the source's own order */
	pg_uuid_t place;
	bool *known; /* by mapped column */
	Datum *values;
	bool *nulls;
} Known;

struct MrUnchanged
{
	MrBatch *batch;
	const MrStaging *staging;
	RBTree *objects;
	MrStatement *staged_row; /* made when it is needed first */
	MrStatement *waiting;
	MrStatement *remembered;
	int *columns; /* by column of staged_row: the mapped column */
	int ncolumns;
	bool letters; /* are there open ones at all? */
};

static int
compare_objects(const RBTNode *left, const RBTNode *right, void *argument)
{
	const MrStaging *staging = argument;

	for (int k = 0; k < staging->nkeys; k++)
	{
		int order = ApplySortComparator(((const Known *) left)->key[k], false,
										((const Known *) right)->key[k], false,
										&staging->plan->key_sort[k]);

		if (order != 0)
			return order;
	}
	return 0;
}

/* Keys are never added twice. */
static void
keep_object(RBTNode *existing, const RBTNode *new, void *argument)
{
}

static RBTNode *
allocate_object(void *argument)
{
	return palloc0(sizeof(Known));
}

static void
free_object(RBTNode *node, void *argument)
{
}

MrUnchanged *
mr_unchanged_create(MrBatch *batch, const MrStaging *staging)
{
	MrUnchanged *objects = palloc0(sizeof(MrUnchanged));

	objects->batch = batch;
	objects->staging = staging;
	objects->objects = rbt_create(sizeof(Known), compare_objects, keep_object, allocate_object,
								  free_object, (void *) staging);
	return objects;
}

static Known *
find_object(MrUnchanged *objects, Datum *key)
{
	Known probe = {.key = key};

	return (Known *) rbt_find(objects->objects, &probe.node);
}

/* An object that nothing is known of yet. */
static Known *
add_object(MrUnchanged *objects, Datum *key)
{
	int nmapped = objects->staging->plan->nmapped;
	Known probe = {.key = key};
	bool new;
	Known *object = (Known *) rbt_insert(objects->objects, &probe.node, &new);

	object->key = palloc(sizeof(Datum) * objects->staging->nkeys);
	memcpy(object->key, key, sizeof(Datum) * objects->staging->nkeys);
	object->version_null = true;
	object->known = palloc0(nmapped);
	object->values = palloc0(sizeof(Datum) * nmapped);
	object->nulls = palloc0(nmapped);
	return object;
}

/* Is what the table has in the mapped column what was mapped? */
static bool
staged_as_mapped(const MrStagingPlan *plan, int column)
{
	const MrMapped *mapped = &plan->mapped[column];

	if (!mapped->same_type || mapped->of_element)
		return false;
	for (int i = 0; i < plan->ncomputed; i++)
	{
		if (plan->computed[i].attnum == mapped->attnum)
			return false;
	}
	return true;
}

/* Selects the mapped columns of an object's row by its key; and whether its letters are open. */
static void
prepare(MrUnchanged *objects)
{
	static const Oid waiting_types[] = {INT4OID,  INT4OID, TEXTOID, INT4OID,
										BYTEAOID, INT8OID, INT8OID, UUIDOID};
	const MrStaging *staging = objects->staging;
	const MrStagingPlan *plan = staging->plan;
	Oid *types = palloc(sizeof(Oid) * staging->nkeys);
	StringInfoData sql;
	MrRunAs saved;

	objects->columns = palloc(sizeof(int) * Max(plan->nmapped, 1));
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT r.%s",
					 quote_identifier(get_attname(staging->relid, plan->position, false)));
	for (int i = staging->nkeys; i < plan->nmapped; i++)
	{
		if (!staged_as_mapped(plan, i))
			continue;
		objects->columns[objects->ncolumns++] = i;
		appendStringInfo(
			&sql, ", r.%s",
			quote_identifier(get_attname(staging->relid, plan->mapped[i].attnum, false)));
	}
	appendStringInfo(&sql, " FROM %s AS r WHERE ", staging->name);
	for (int k = 0; k < staging->nkeys; k++)
	{
		types[k] = TupleDescAttr(staging->desc, staging->key[k] - 1)->atttypid;
		appendStringInfo(&sql, "%sr.%s = $%d", k > 0 ? " AND " : "",
						 quote_identifier(get_attname(staging->relid, staging->key[k], false)),
						 k + 1);
	}
	appendStringInfoString(&sql, " LIMIT 1");
	objects->staged_row = mr_statement_create(sql.data, staging->nkeys, types);
	objects->waiting = mr_statement_create(
		"SELECT FROM millrace.letter l WHERE l.stream_id = $1 AND l.state = 'open' AND l.kind <> 'rule' "
		"AND (l.staging_id = $2 OR l.staging_id IS NULL) AND l.topic = $3 AND l.epoch = $4 "
		"AND l.key = $5 AND l.position > $6 AND (l.position, l.place) < ($7, $8) LIMIT 1",
		lengthof(waiting_types), waiting_types);
	mr_run_as(&saved, mr_extension_owner());
	objects->letters = mr_sql("SELECT FROM millrace.letter WHERE stream_id = %d AND "
							  "state = 'open' AND kind <> 'rule' LIMIT 1",
							  objects->batch->stream->id) > 0;
	SPI_freetuptable(SPI_tuptable);
	mr_run_back(&saved);
}

/*
 * What a change leaves out is not known.  A source that can read the row again is asked to: then nothing comes of the change
 * here, and nobody need know.  Else it is an error, which the caller raises when this returns.
 */
static bool
ask_again(MrMessage *message)
{
	if (message->relation == NULL)
		return false;
	message->reread = message->unknown = true;
	return true;
}

/* The change has to wait for another one. */
static void
report_waiting(const MrStaging *staging, MrMessage *message)
{
	if (ask_again(message))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DATA_EXCEPTION),
			 errmsg("an earlier change of the object is a dead letter of %s", staging->name),
			 errdetail("This change does not have all columns, and what it lacks may stand in the "
					   "earlier one."),
			 errhint("Retry both together, once the earlier one can be taken.")));
}

/* Does a letter of the object wait that came after what is staged (at `staged`)? */
static bool
letter_waits(MrUnchanged *objects, const MrMessage *message, int64 staged)
{
	Datum values[] = {Int32GetDatum(objects->batch->stream->id),
					  Int32GetDatum(objects->staging->id),
					  CStringGetTextDatum(message->topic != NULL ? message->topic : ""),
					  Int32GetDatum(message->epoch),
					  PointerGetDatum(cstring_to_text_with_len(message->key, message->key_length)),
					  Int64GetDatum(staged),
					  Int64GetDatum(message->position),
					  UUIDPGetDatum(&message->place)};
	MrRunAs saved;
	bool waits;

	mr_run_as(&saved, mr_extension_owner());
	waits = mr_statement_run(objects->waiting, values, NULL) > 0;
	SPI_freetuptable(SPI_tuptable);
	mr_run_back(&saved);
	return waits;
}

/* What the table of objects has of the object; NULL when it has never come. */
static Known *
remember(MrUnchanged *objects, Datum *key)
{
	const MrStaging *staging = objects->staging;
	const MrStagingPlan *plan = staging->plan;
	Known *object = NULL;
	MrRunAs saved;
	bool isnull;

	if (objects->remembered == NULL)
	{
		Oid *types = palloc(sizeof(Oid) * staging->nkeys);
		StringInfoData sql;

		initStringInfo(&sql);
		appendStringInfo(&sql,
						 "SELECT flags & 1 <> 0, version, epoch, digest, flags & 2 <> 0 "
						 "FROM millrace_state.object_%d",
						 staging->id);
		for (int k = 0; k < staging->nkeys; k++)
		{
			types[k] = TupleDescAttr(staging->desc, staging->key[k] - 1)->atttypid;
			appendStringInfo(&sql, "%s k%d = $%d", k > 0 ? " AND" : " WHERE", k + 1, k + 1);
		}
		objects->remembered = mr_statement_create(sql.data, staging->nkeys, types);
	}
	mr_run_as(&saved, mr_extension_owner());
	if (mr_statement_run(objects->remembered, key, NULL) > 0)
	{
		object = palloc0(sizeof(Known));
		object->deleted = DatumGetBool(mr_sql_value(0, 1, &isnull));
		object->version = mr_sql_value(0, 2, &object->version_null);
		if (!object->version_null)
			object->version = datumCopy(object->version, plan->version_by_value,
										plan->version_length);
		object->epoch = DatumGetInt32(mr_sql_value(0, 3, &isnull));
		object->place = *DatumGetUUIDP(mr_sql_value(0, 4, &isnull));
		object->incomplete = DatumGetBool(mr_sql_value(0, 5, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	mr_run_back(&saved);
	return object;
}

/* Was the object staged before the source became another one, whose positions tell nothing about the message's? */
static bool
of_other_epoch(MrUnchanged *objects, const Known *object, const MrMessage *message)
{
	const Known *remembered = remember(objects, object->key);

	return remembered == NULL || remembered->epoch != message->epoch;
}

/* Reads what is staged of an object. */
static void
read_staged(MrUnchanged *objects, Known *object, MrMessage *message)
{
	const MrStagingPlan *plan = objects->staging->plan;
	bool isnull;

	object->read = true;
	if (objects->staged_row == NULL)
		prepare(objects);
	if (mr_statement_run(objects->staged_row, object->key, NULL) > 0)
	{
		int64 position = DatumGetInt64(mr_sql_value(0, 1, &isnull));
		SPITupleTable *row = SPI_tuptable;

		for (int c = 0; c < objects->ncolumns; c++)
		{
			int column = objects->columns[c];
			const MrMapped *mapped = &plan->mapped[column];
			Datum value = mr_sql_value(0, c + 2, &object->nulls[column]);

			object->known[column] = true;
			if (object->nulls[column])
				continue;
			/* The row is about to be replaced, and what lies beside it with it. */
			object->values[column] = mapped->length == -1
										 ? PointerGetDatum(PG_DETOAST_DATUM_COPY(value))
										 : datumCopy(value, mapped->by_value, mapped->length);
		}
		if (message->relation != NULL)
			object->staged_at = position;
		mr_change_set_key(message);
		if (objects->letters && message->key != NULL && letter_waits(objects, message, position))
		{
			SPI_freetuptable(row);
			report_waiting(objects->staging, message);
		}
		SPI_freetuptable(row);
	}
	else
		SPI_freetuptable(SPI_tuptable);
	/* What waited is the version that is staged: what it left out was known when it came. */
	if (plan->enriched != NULL && (message->letter == 0 || message->retried))
	{
		const Known *remembered = remember(objects, object->key);

		object->incomplete = remembered != NULL && remembered->incomplete;
	}
}

/* Has this batch met a change of the object after `since` (NULL: at all) that cannot be taken? */
static bool
failed_before(const MrUnchanged *objects, const MrMessage *since, MrMessage *message)
{
	ListCell *lc;

	foreach(lc, objects->batch->failures)
	{
		const MrFailure *failure = lfirst(lc);
		MrMessage *failed = failure->message;

		if (failed >= message || (since != NULL && failed <= since) || failure->silent ||
			failure->element != 0 || failure->expectation != NULL ||
			(failure->staging != NULL && failure->staging != objects->staging))
			continue;
		mr_change_set_key(failed);
		mr_change_set_key(message);
		if (failed->key != NULL && message->key != NULL &&
			failed->key_length == message->key_length &&
			memcmp(failed->key, message->key, message->key_length) == 0)
			return true;
	}
	return false;
}

/* Is a letter older than what is known of its object, in the source's own order? */
static bool
comes_late(const Known *object, const MrMessage *letter)
{
	int64 position = DatumGetInt64(object->version);

	if (letter->epoch != object->epoch)
		return letter->epoch < object->epoch;
	if (letter->position != position)
		return letter->position < position;
	return memcmp(&letter->place, &object->place, sizeof(pg_uuid_t)) < 0;
}

bool
mr_unchanged_said_before(MrUnchanged *objects, const MrVersion *version, bool update)
{
	MrStagingPlan *plan = objects->staging->plan;
	MrMessage *message = version->message;
	const Known *object = find_object(objects, version->key);
	int order;

	/* An insert that waits among the dead letters has made it anew. */
	if (failed_before(objects, object != NULL ? object->anew : NULL, message))
		return false;
	if (object == NULL)
	{
		object = remember(objects, version->key);
		if (object == NULL)
			return false;
		if (objects->staged_row == NULL)
			prepare(objects);
		if (objects->letters && message->key != NULL &&
			letter_waits(objects, message,
						 plan->version == NULL ? DatumGetInt64(object->version) : 0))
			return false;
	}
	if (plan->version != NULL)
	{
		order = ApplySortComparator(version->version, version->version_null, object->version,
									object->version_null, &plan->version_sort);
		/* A letter may be of the version that is there, of which not all could be taken. */
		message->late = message->letter != 0 && order < 0;
		return message->late || (message->letter == 0 && order <= 0);
	}
	if (object->version_null)
		return false;
	message->late = message->letter != 0 && comes_late(object, message);
	return message->late || (update && object->deleted);
}

/*
 * The object with that key, and what is staged of it when nothing newer is known.  What was deleted is known only to the
 * message that moves it.
 */
static Known *
known_object(MrUnchanged *objects, Datum *key, MrMessage *message, bool moved)
{
	Known *object = find_object(objects, key);

	if (object == NULL)
		object = add_object(objects, key);
	if (!object->read && (moved || !object->deleted))
		read_staged(objects, object, message);
	return object;
}

/* May a dictionary still say what stands in the column? */
static bool
is_awaited(const MrUnchanged *objects, const Known *object, int column)
{
	const MrMapped *mapped = &objects->staging->plan->mapped[column];

	return object->incomplete && mapped->enriched && (object->nulls[column] || mapped->nslots > 1);
}

Datum
mr_unchanged_value(MrUnchanged *objects, const MrStaged *staged, Datum *key, MrMessage *message,
				   int column, bool *isnull)
{
	const MrStaging *staging = objects->staging;
	const MrVersion *before = &staged->versions[staged->nversions - 1];
	/* A row that got another key is what it was under the old one. */
	bool moved = message->moved && staged->nversions > 0 && before->message == message - 1;
	Known *object = known_object(objects, moved ? before->key : key, message, moved);

	if (failed_before(objects, object->whole, message))
		report_waiting(staging, message);
	if (object->staged_at > message->position)
	{
		/* That is not what the object was, but what it has become. */
		*isnull = true;
		message->unknown = true;
		if (moved || of_other_epoch(objects, object, message))
			message->reread = true;
		return (Datum) 0;
	}
	if ((!object->known[column] || (object->deleted && !moved) ||
		 is_awaited(objects, object, column)) &&
		!ask_again(message))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("column \"%s\" of %s was not sent, and its value is not known",
						staging->plan->mapped[column].name, staging->name),
				 errdetail("The source does not send large values that an update leaves as they "
						   "are, and no row of the object is staged with it."),
				 errhint("Run ALTER TABLE %s REPLICA IDENTITY FULL at the source, and update the "
						 "row there once more.",
						 staging->plan->source_table != NULL ? staging->plan->source_table : "…")));
	if (message->unknown)
	{
		/* What it has set is not known to those after it. */
		memset(object->known, 0, staging->plan->nmapped);
		*isnull = true;
		return (Datum) 0;
	}
	*isnull = object->nulls[column];
	return object->values[column];
}

void
mr_unchanged_note(MrUnchanged *objects, const MrVersion *version, bool whole, bool deleted)
{
	const MrStagingPlan *plan = objects->staging->plan;
	Known *object = find_object(objects, version->key);

	if (object == NULL)
		object = add_object(objects, version->key);
	/* One that comes late tells nothing of those that are newer. */
	if (plan->version != NULL &&
		ApplySortComparator(version->version, version->version_null, object->version,
							object->version_null, &objects->staging->plan->version_sort) < 0)
		return;
	if (whole)
		object->anew = version->message;
	object->deleted = deleted;
	object->version = version->version;
	object->version_null = version->version_null;
	object->epoch = version->message->epoch;
	object->place = version->message->place;
	if (deleted)
		return;
	object->staged_at = 0;
	object->incomplete = version->incomplete;
	object->read = true;
	if (whole)
		object->whole = version->message;
	for (int i = objects->staging->nkeys; i < plan->nmapped; i++)
	{
		object->known[i] = !plan->mapped[i].of_element;
		object->values[i] = plan->raw->tts_values[i];
		object->nulls[i] = plan->raw->tts_isnull[i];
	}
}
