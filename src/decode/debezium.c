/*
 * debezium.c
 *	  Messages as Debezium writes them, read as they are.
 *
 * A change comes in one of these shapes, with or without Kafka Connect's schema around it:
 *
 *		{"schema": {...}, "payload": {...}}
 *
 *	envelope	{"op": "u", "before": {row}, "after": {row}, "source": {...}, "ts_ms": ..., ...}
 *	unwrapped	{row, "__op": "u", "__deleted": "false", "__table": ...}	(ExtractNewRecordState)
 *	tombstone	no value, or null; the key says whose
 *
 * and the key as {the key's columns}, again with or without a schema.  The row, which paths call $, is
 * what is known of it after the change; of a delete what is known from before, or at least its key.  So
 * a delete and the tombstone after it have the key where every other message has it.  What carries no row
 * (the begin and end of transactions, heartbeats, changes of schemas, messages of the application) is
 * ignored.
 *
 * A message is read by one plan that finds the parts, and the row by the stream's.  Schemas are larger
 * than rows and repeat: a message that begins with the same bytes as one before, up to its payload, has the
 * same schema, which is not read again.  What a schema says of a field's type is applied at once
 * (connect.c), so that no format has to be declared.
 *
 * All columns come as JSON has them, but for two things.  A column of type json is a string, which a path
 * may lead into all the same; and large values that an update has not touched are a placeholder.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "decode/connect.h"
#include "decode/trie.h"

/* How many schemas are remembered, and how large one may be, and all of them. */
#define MAX_SCHEMAS 512
#define MAX_SCHEMA_SIZE (256 * 1024)
#define MAX_SCHEMA_MEMORY (16 * 1024 * 1024)

/* What stands for a value that was not sent: of a text, of bytes, of an array of texts or of numbers. */
typedef struct Placeholder
{
	const char *text;
	int length;
} Placeholder;

#define PLACEHOLDER(text) \
	{ \
		text, sizeof(text) - 1 \
	}

static const Placeholder placeholders[] = {
	PLACEHOLDER("__debezium_unavailable_value"),
	PLACEHOLDER("X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="),
	PLACEHOLDER("[\"__debezium_unavailable_value\"]"),
	PLACEHOLDER("[95,95,100,101,98,101,122,105,117,109,95,117,110,97,118,97,105,108,97,98,108,101,"
				"95,118,97,108,117,101]"),
};

/* The parts of a message that say what it is. */
typedef enum Part
{
	PART_WHOLE,
	PART_OP,
	PART_BEFORE,
	PART_AFTER,
	PART_SOURCE,
	PART_SOURCE_DB,
	PART_SOURCE_SCHEMA,
	PART_SOURCE_TABLE,
	PART_TS_MS,
	PART_EVENT_COUNT,
	PART_DATA_COLLECTIONS,
	PART_TABLE_CHANGES,
	PART_UNWRAPPED_OP,
	PART_UNWRAPPED_DELETED,
	PART_UNWRAPPED_SCHEMA,
	PART_UNWRAPPED_SOURCE_SCHEMA,
	PART_UNWRAPPED_TABLE,
	PART_UNWRAPPED_SOURCE_TABLE,
	PARTS
} Part;

static const char *const part_paths[PARTS] = {
	[PART_WHOLE] = "$",
	[PART_OP] = "$.op",
	[PART_BEFORE] = "$.before",
	[PART_AFTER] = "$.after",
	[PART_SOURCE] = "$.source",
	[PART_SOURCE_DB] = "$.source.db",
	[PART_SOURCE_SCHEMA] = "$.source.schema",
	[PART_SOURCE_TABLE] = "$.source.table",
	[PART_TS_MS] = "$.ts_ms",
	[PART_EVENT_COUNT] = "$.event_count",
	[PART_DATA_COLLECTIONS] = "$.data_collections",
	[PART_TABLE_CHANGES] = "$.tableChanges",
	[PART_UNWRAPPED_OP] = "$.__op",
	[PART_UNWRAPPED_DELETED] = "$.__deleted",
	[PART_UNWRAPPED_SCHEMA] = "$.__schema",
	[PART_UNWRAPPED_SOURCE_SCHEMA] = "$.__source_schema",
	[PART_UNWRAPPED_TABLE] = "$.__table",
	[PART_UNWRAPPED_SOURCE_TABLE] = "$.__source_table",
};

/* What paths start from that is a row. */
static const MrRoot row_roots[] = {MR_ROOT_VALUE, MR_ROOT_KEY, MR_ROOT_BEFORE};

/* A column that some path asks for, or leads into. */
typedef struct Column
{
	MrNode *node;
	bool inside;
} Column;

typedef struct Columns
{
	int count;
	Column *columns;
} Columns;

/* A schema that was read. */
typedef struct Schema
{
	char *prefix; /* the message up to its payload; NULL: not remembered */
	int length;
	MrConnectType *types[MR_ROOT_BEFORE + 1]; /* of the columns of each root */
} Schema;

/* A value or key without the schema around it. */
typedef struct Payload
{
	const char *text; /* NULL: there is none */
	int length;
	const Schema *schema; /* NULL: it came without */
} Payload;

struct MrDebezium
{
	MrConnect *connect;
	MrPlan *wrapper; /* finds schema and payload */
	MrSlot schema_slot;
	MrSlot payload_slot;
	MrPlan *parts;
	MrSlot slots[PARTS];

	/* The columns of each root that is a row, when the stream's plan had so many slots. */
	int nslots;
	Columns columns[MR_ROOT_BEFORE + 1];

	MemoryContext context; /* of the schemas */
	int nschemas;
	int last; /* the one that was found last */
	Schema schemas[MAX_SCHEMAS];
};

/* Makes ready what reads Debezium's messages, in the current memory context. */
MrDebezium *
mr_debezium_create(void)
{
	MrDebezium *debezium = palloc0(sizeof(MrDebezium));
	int i;

	debezium->connect = mr_connect_create();
	debezium->wrapper = mr_plan_create();
	debezium->schema_slot = mr_plan_slot(debezium->wrapper, MR_SCOPE_MESSAGE,
										 mr_path_parse("$.schema"));
	debezium->payload_slot = mr_plan_slot(debezium->wrapper, MR_SCOPE_MESSAGE,
										  mr_path_parse("$.payload"));
	debezium->parts = mr_plan_create();
	for (i = 0; i < PARTS; i++)
		debezium->slots[i] = mr_plan_slot(debezium->parts, MR_SCOPE_MESSAGE,
										  mr_path_parse(part_paths[i]));
	debezium->context = AllocSetContextCreate(CurrentMemoryContext, "millrace schemas",
											  ALLOCSET_DEFAULT_SIZES);
	return debezium;
}

/* The columns of a root, each with a slot, also those that are only led into. */
static void
collect_columns(MrPlan *plan, MrRoot root, Columns *columns)
{
	MrNode *node = plan->roots[root];
	int i;

	columns->count = node ? node->nmembers : 0;
	columns->columns = palloc(Max(columns->count, 1) * sizeof(Column));
	for (i = 0; i < columns->count; i++)
	{
		MrNode *member = node->members[i];
		MrStep step = {MR_STEP_MEMBER, 0, member->name, member->length};
		MrPath path = {root, 1, &step, member->name};

		(void) mr_plan_slot(plan, MR_SCOPE_MESSAGE, &path);
		columns->columns[i].node = member;
		columns->columns[i].inside = member->nmembers > 0 || member->nindexes > 0 ||
									 member->each != NULL;
	}
}

/* Learns which columns the stream's plan asks for, when it has been given new slots. */
void
mr_debezium_prepare(MrPlan *plan)
{
	MrDebezium *debezium = plan->debezium;
	MemoryContext caller;
	int i;

	if (debezium->nslots == plan->scopes[MR_SCOPE_MESSAGE].nslots)
		return;
	caller = MemoryContextSwitchTo(plan->context);
	for (i = 0; i < lengthof(row_roots); i++)
		collect_columns(plan, row_roots[i], &debezium->columns[row_roots[i]]);
	MemoryContextSwitchTo(caller);
	debezium->nslots = plan->scopes[MR_SCOPE_MESSAGE].nslots;
	MemoryContextReset(debezium->context);
	debezium->nschemas = 0;
}

/* Reads what a schema says of the columns that are asked for, into a memory context. */
static void
read_schema(MrDebezium *debezium, Schema *schema, const MrValue *text, MemoryContext context)
{
	MrConnectStruct *row = mr_connect_schema_read(debezium->connect, text->text, text->length);
	int i;
	int j;

	for (i = 0; i < lengthof(row_roots); i++)
	{
		const Columns *columns = &debezium->columns[row_roots[i]];
		MrConnectType *types = MemoryContextAlloc(context,
												  Max(columns->count, 1) * sizeof(MrConnectType));

		for (j = 0; j < columns->count; j++)
			types[j] = mr_connect_field_type(row, columns->columns[j].node->name,
											 columns->columns[j].node->length);
		schema->types[row_roots[i]] = types;
	}
}

/* The schema that a message begins with, if it is known and what follows may be a row. */
static const Schema *
find_schema(MrDebezium *debezium, const char *text, int length)
{
	int i;

	for (i = 0; i < debezium->nschemas; i++)
	{
		int n = (debezium->last + i) % debezium->nschemas;
		const Schema *schema = &debezium->schemas[n];

		if (schema->length < length && text[length - 1] == '}' &&
			(text[schema->length] == '{' || text[schema->length] == '[') &&
			memcmp(schema->prefix, text, schema->length) == 0)
		{
			debezium->last = n;
			return schema;
		}
	}
	return NULL;
}

/* Reads the schema of a message; remembers it when the message ends with its payload. */
static const Schema *
learn_schema(MrDebezium *debezium, const char *text, int length, const MrValue *schema_text,
			 const MrValue *payload)
{
	bool last = payload->text > schema_text->text &&
				payload->text + payload->length == text + length - 1;
	int prefix = payload->text - text;
	Schema *schema;

	if (!last || prefix > MAX_SCHEMA_SIZE)
	{
		schema = palloc0(sizeof(Schema));
		read_schema(debezium, schema, schema_text, CurrentMemoryContext);
		return schema;
	}
	if (debezium->nschemas == MAX_SCHEMAS ||
		MemoryContextMemAllocated(debezium->context, false) > MAX_SCHEMA_MEMORY)
	{
		MemoryContextReset(debezium->context);
		debezium->nschemas = 0;
	}
	schema = &debezium->schemas[debezium->nschemas];
	read_schema(debezium, schema, schema_text, debezium->context);
	schema->length = prefix;
	schema->prefix = MemoryContextAlloc(debezium->context, prefix);
	memcpy(schema->prefix, text, prefix);
	debezium->last = debezium->nschemas++;
	return schema;
}

/* Is the text an object that begins with a member of that name? */
static bool
begins_with(const char *text, int length, const char *name)
{
	const char *end = text + length;
	int name_length = strlen(name);

	while (text < end && mr_json_space(*text))
		text++;
	if (text == end || *text++ != '{')
		return false;
	while (text < end && mr_json_space(*text))
		text++;
	return end - text > name_length + 2 && text[0] == '"' &&
		   memcmp(text + 1, name, name_length) == 0 && text[name_length + 1] == '"';
}

/* Finds parts of a text by a plan. */
static MrDocument *
find_parts(MrPlan *plan, const char *text, int length)
{
	MrMessage message = {0};

	message.value = (char *) text;
	message.value_length = length;
	return mr_plan_run(plan, &message);
}

/* Takes a value or key out of the schema around it, if there is one. */
static Payload
open_payload(MrDebezium *debezium, const char *text, int length)
{
	Payload payload = {text, length, NULL};
	MrDocument *document;
	const MrValue *schema;
	const MrValue *inner;

	/* An unwrapped tombstone without a schema is a null of JSON. */
	if (text == NULL || (length == 4 && memcmp(text, "null", 4) == 0))
	{
		payload.text = NULL;
		return payload;
	}
	payload.schema = find_schema(debezium, text, length);
	if (payload.schema)
	{
		payload.text += payload.schema->length;
		payload.length -= payload.schema->length + 1;
		return payload;
	}
	if (!begins_with(text, length, "schema") && !begins_with(text, length, "payload"))
		return payload;
	document = find_parts(debezium->wrapper, text, length);
	schema = mr_document_value(document, MR_SCOPE_MESSAGE, 0, debezium->schema_slot);
	inner = mr_document_value(document, MR_SCOPE_MESSAGE, 0, debezium->payload_slot);
	/* A row may have columns of these names. */
	if ((schema->kind != MR_CONTAINER && schema->kind != MR_NULL) ||
		(inner->kind != MR_CONTAINER && inner->kind != MR_NULL))
		return payload;
	payload.text = inner->kind == MR_NULL ? NULL : inner->text;
	payload.length = inner->length;
	if (payload.text && schema->kind == MR_CONTAINER)
		payload.schema = learn_schema(debezium, text, length, schema, inner);
	return payload;
}

/* Is the value an object? */
static bool
is_object(const MrValue *value)
{
	return value->kind == MR_CONTAINER && value->text[0] == '{';
}

/* Is it what stands for a value that was not sent? */
static bool
is_placeholder(const MrValue *value)
{
	int i;

	for (i = 0; i < lengthof(placeholders); i++)
	{
		if (value->length == placeholders[i].length &&
			memcmp(value->text, placeholders[i].text, value->length) == 0)
			return value->kind == MR_STRING || value->kind == MR_CONTAINER;
	}
	return false;
}

/* Makes the columns of a row, which was walked, what the source has. */
static void
finish_row(MrPlan *plan, MemoryContext result, MrRoot root, const Schema *schema)
{
	const Columns *columns = &plan->debezium->columns[root];
	MemoryContext caller = MemoryContextSwitchTo(result);
	int i;

	for (i = 0; i < columns->count; i++)
	{
		const Column *column = &columns->columns[i];
		MrValue *value = &plan->scopes[MR_SCOPE_MESSAGE].values[column->node->slot];

		if (mr_value_is_null(value))
			continue;
		if (is_placeholder(value))
		{
			if (root == MR_ROOT_VALUE && !plan->deleted)
				mr_mark_unchanged(plan, column->node);
			else
				value->kind = MR_NULL;
			continue;
		}
		if (schema)
			mr_connect_normalize(plan->debezium->connect, schema->types[root][i], value);
		if (value->kind != MR_STRING || value->form == MR_FORM_TYPED)
			continue;
		value->form = MR_FORM_PLAIN;
		if (column->inside && value->length > 0 && (value->text[0] == '{' || value->text[0] == '['))
		{
			MemoryContextSwitchTo(caller);
			mr_walk_node(plan, result, column->node, "column", value->text, value->length);
			MemoryContextSwitchTo(result);
		}
	}
	MemoryContextSwitchTo(caller);
}

/* Takes a row out of the message. */
static void
walk_row(MrPlan *plan, MemoryContext result, MrRoot root, const char *part, const Payload *row)
{
	if (!plan->roots[root])
		return;
	mr_walk_json(plan, result, root, part, row->text, row->length);
	finish_row(plan, result, root, row->schema);
}

/* The row that a part of the message is. */
static Payload
part_row(const MrValue *part, const Payload *around)
{
	Payload row = {part->text, part->length, around->schema};

	return row;
}

/* Takes the row of a delete out of the key; a key that is no object has no columns. */
static void
walk_key_as_row(MrPlan *plan, MemoryContext result, const MrMessage *message)
{
	Payload key = open_payload(plan->debezium, message->key, message->key_length);

	if (key.text && key.length > 0 && key.text[0] == '{')
		walk_row(plan, result, MR_ROOT_VALUE, "key", &key);
}

/* A part of the message as a text in the current memory context, or NULL. */
static char *
part_text(const MrValue *value)
{
	return mr_value_is_null(value) ? NULL : pnstrdup(value->text, value->length);
}

/* schema.table as the source says it, else as the topic does, which is server.schema.table. */
static char *
table_name(const char *schema, const char *table, const char *topic)
{
	const char *dot;

	if (schema && table)
		return psprintf("%s.%s", schema, table);
	if (!topic)
		return table ? pstrdup(table) : NULL;
	dot = strrchr(topic, '.');
	while (dot && dot > topic && *--dot != '.')
		;
	return pstrdup(dot && *dot == '.' ? dot + 1 : topic);
}

/* What $op gives for an operation of Debezium's. */
static const char *
operation(const MrValue *op)
{
	switch (op->kind == MR_STRING && op->length == 1 ? op->text[0] : '\0')
	{
		case 'c':
			return "I";
		case 'r':
			return "R";
		case 'u':
			return "U";
		case 'd':
			return "D";
		case 't':
			ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION),
							errmsg("TRUNCATE of a source table cannot be applied"),
							errhint("Delete the rows at the source instead; or leave \"t\" in the "
									"connector's skipped.operations, and the rows stay here.")));
			break;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_DATA_EXCEPTION),
					 errmsg("unknown operation %s of a change",
							mr_value_is_null(op)
								? "NULL"
								: psprintf("\"%s\"", pnstrdup(op->text, Min(op->length, 100)))),
					 errdetail("Debezium's are \"c\", \"u\", \"d\" and \"r\".")));
	}
	return NULL;
}

/* Is the object nothing but one member, with that value? */
static bool
is_only_member(const MrValue *whole, const MrValue *value, const char *name)
{
	const char *rest = value->text + value->length;
	const char *end = whole->text + whole->length;

	if (value->kind != MR_NUMBER || !begins_with(whole->text, whole->length, name))
		return false;
	while (rest < end && mr_json_space(*rest))
		rest++;
	return rest == end - 1;
}

/* Does the message carry no row? */
static bool
is_no_change(const MrValue *parts, bool envelope)
{
	const MrValue *op = &parts[PART_OP];

	/* A message of the application. */
	if (envelope)
		return op->kind == MR_STRING && op->length == 1 && op->text[0] == 'm';
	/* A change of a schema, the begin or end of a transaction, a heartbeat. */
	return (is_object(&parts[PART_SOURCE]) && parts[PART_TABLE_CHANGES].kind != MR_ABSENT) ||
		   (parts[PART_EVENT_COUNT].kind != MR_ABSENT &&
			parts[PART_DATA_COLLECTIONS].kind != MR_ABSENT) ||
		   is_only_member(&parts[PART_WHOLE], &parts[PART_TS_MS], "ts_ms");
}

/* Takes an envelope's rows out, and says what the change is. */
static void
walk_envelope(MrPlan *plan, MemoryContext result, const MrMessage *message, const MrValue *parts,
			  const Payload *value)
{
	const MrValue *source = &parts[PART_SOURCE];
	Payload before = part_row(&parts[PART_BEFORE], value);
	Payload after = part_row(&parts[PART_AFTER], value);

	plan->op = operation(&parts[PART_OP]);
	plan->deleted = plan->op[0] == MR_OP_DELETE;
	if (!plan->deleted && !is_object(&parts[PART_AFTER]))
		ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION),
						errmsg("change of operation \"%s\" has no row after it",
							   part_text(&parts[PART_OP])),
						errdetail("Its member \"after\" is missing, or no object.")));
	if (!plan->deleted)
		walk_row(plan, result, MR_ROOT_VALUE, "value", &after);
	else if (is_object(&parts[PART_BEFORE]))
		walk_row(plan, result, MR_ROOT_VALUE, "value", &before);
	else
		walk_key_as_row(plan, result, message);
	if (is_object(&parts[PART_BEFORE]))
		walk_row(plan, result, MR_ROOT_BEFORE, "value", &before);
	if (plan->roots[MR_ROOT_SOURCE])
		mr_walk_json(plan, result, MR_ROOT_SOURCE, "value", source->text, source->length);
}

/* Takes the row out of a message that is one, beside some members of Debezium's. */
static void
walk_unwrapped(MrPlan *plan, MemoryContext result, const MrValue *parts, const Payload *value)
{
	const MrValue *deleted = &parts[PART_UNWRAPPED_DELETED];

	if (!mr_value_is_null(&parts[PART_UNWRAPPED_OP]))
		plan->op = operation(&parts[PART_UNWRAPPED_OP]);
	if (deleted->length == 4 && memcmp(deleted->text, "true", 4) == 0)
		plan->op = "D";
	plan->deleted = plan->op && plan->op[0] == MR_OP_DELETE;
	walk_row(plan, result, MR_ROOT_VALUE, "value", value);
}

/* A part as a text in the current memory context; the other one, when there is no such part. */
static char *
either_text(const MrValue *parts, Part part, Part other)
{
	return part_text(&parts[mr_value_is_null(&parts[part]) ? other : part]);
}

/* Takes out of a value what it says, and of what kind it is. */
static void
walk_value(MrPlan *plan, MemoryContext result, const MrMessage *message, const Payload *value)
{
	MrDebezium *debezium = plan->debezium;
	MrDocument *document = find_parts(debezium->parts, value->text, value->length);
	MrValue parts[PARTS];
	MemoryContext caller;
	bool envelope;
	int i;

	for (i = 0; i < PARTS; i++)
		parts[i] = *mr_document_value(document, MR_SCOPE_MESSAGE, 0, debezium->slots[i]);
	if (!is_object(&parts[PART_WHOLE]))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION), errmsg("message is no change of Debezium's"),
				 errdetail("A change is a JSON object.")));
	envelope = is_object(&parts[PART_SOURCE]) &&
			   (parts[PART_OP].kind != MR_ABSENT || parts[PART_BEFORE].kind != MR_ABSENT ||
				parts[PART_AFTER].kind != MR_ABSENT);
	plan->ignored = is_no_change(parts, envelope);
	if (plan->ignored)
		return;

	caller = MemoryContextSwitchTo(result);
	plan->table =
		envelope
			? table_name(either_text(parts, PART_SOURCE_SCHEMA, PART_SOURCE_DB),
						 part_text(&parts[PART_SOURCE_TABLE]), message->topic)
			: table_name(either_text(parts, PART_UNWRAPPED_SCHEMA, PART_UNWRAPPED_SOURCE_SCHEMA),
						 either_text(parts, PART_UNWRAPPED_TABLE, PART_UNWRAPPED_SOURCE_TABLE),
						 message->topic);
	MemoryContextSwitchTo(caller);
	if (envelope)
		walk_envelope(plan, result, message, parts, value);
	else
		walk_unwrapped(plan, result, parts, value);
}

/* Takes out of a message what the plan asks for, and says what the change is. */
void
mr_debezium_walk(MrPlan *plan, MemoryContext result, const MrMessage *message)
{
	Payload value = open_payload(plan->debezium, message->value, message->value_length);
	Payload key;

	if (value.text)
		walk_value(plan, result, message, &value);
	else
	{
		MemoryContext caller = MemoryContextSwitchTo(result);

		plan->table = table_name(NULL, NULL, message->topic);
		plan->deleted = true;
		MemoryContextSwitchTo(caller);
		walk_key_as_row(plan, result, message);
	}
	if (!plan->roots[MR_ROOT_KEY] || plan->ignored)
		return;
	key = open_payload(plan->debezium, message->key, message->key_length);
	if (key.text)
		walk_row(plan, result, MR_ROOT_KEY, "key", &key);
}
