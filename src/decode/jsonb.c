/*
 * jsonb.c
 *	  Makes jsonb of a message while it is walked, so that its text is read once.
 *
 * What jsonb might refuse although it is JSON (numbers that are too large, giant texts) is not made here: who
 * wants the value finds none, asks jsonb's own input function, and gets its error.
 */
#include "postgres.h"

#include "common/jsonapi.h"
#include "decode/trie.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"

/* Longest message, and longest number, that is sure to fit. */
#define MAX_MESSAGE (64 * 1024 * 1024)
#define MAX_NUMBER 1000

struct MrJsonbMaker
{
	JsonbParseState *state;
	JsonbValue *root;
	bool refused;
};

MrJsonbMaker *
mr_jsonb_begin(int length)
{
	MrJsonbMaker *maker = palloc0(sizeof(MrJsonbMaker));

	maker->refused = length > MAX_MESSAGE;
	return maker;
}

struct varlena *
mr_jsonb_end(MrJsonbMaker *maker)
{
	return maker->refused ? NULL : (struct varlena *) JsonbValueToJsonb(maker->root);
}

void
mr_jsonb_container(MrJsonbMaker *maker, bool object, bool begins)
{
	JsonbIteratorToken token = object ? (begins ? WJB_BEGIN_OBJECT : WJB_END_OBJECT)
									  : (begins ? WJB_BEGIN_ARRAY : WJB_END_ARRAY);

	if (!maker->refused)
		maker->root = pushJsonbValue(&maker->state, token, NULL);
}

static void
set_string(JsonbValue *value, const char *text, int length)
{
	value->type = jbvString;
	value->val.string.val = unconstify(char *, text);
	value->val.string.len = length;
}

/* A number as the parser read it; most are small integers. */
static Numeric
number(const char *token, int length)
{
	if (length < 18 && strspn(token + (*token == '-'), "0123456789") == length - (*token == '-'))
		return int64_to_numeric(strtoll(token, NULL, 10));
	return DatumGetNumeric(DirectFunctionCall3(numeric_in, CStringGetDatum(token),
											   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
}

void
mr_jsonb_name(MrJsonbMaker *maker, const char *name, int length)
{
	JsonbValue value;

	if (maker->refused)
		return;
	set_string(&value, name, length);
	maker->root = pushJsonbValue(&maker->state, WJB_KEY, &value);
}

void
mr_jsonb_scalar(MrJsonbMaker *maker, const char *token, int length, JsonTokenType type)
{
	JsonbValue value;

	if (maker->refused)
		return;
	switch (type)
	{
		case JSON_TOKEN_STRING:
			set_string(&value, token, length);
			break;
		case JSON_TOKEN_NUMBER:
			if (length > MAX_NUMBER || strpbrk(token, "eE") != NULL)
			{
				maker->refused = true;
				return;
			}
			value.type = jbvNumeric;
			value.val.numeric = number(token, length);
			break;
		case JSON_TOKEN_TRUE:
		case JSON_TOKEN_FALSE:
			value.type = jbvBool;
			value.val.boolean = type == JSON_TOKEN_TRUE;
			break;
		case JSON_TOKEN_NULL:
			value.type = jbvNull;
			break;
		default:
			elog(ERROR, "unexpected JSON token %d", (int) type);
	}
	if (maker->state == NULL)
	{
		/* jsonb keeps a single scalar as an array that says so. */
		JsonbValue array;

		array.type = jbvArray;
		array.val.array.rawScalar = true;
		array.val.array.nElems = 1;
		maker->root = pushJsonbValue(&maker->state, WJB_BEGIN_ARRAY, &array);
		maker->root = pushJsonbValue(&maker->state, WJB_ELEM, &value);
		maker->root = pushJsonbValue(&maker->state, WJB_END_ARRAY, NULL);
	}
	else
		maker->root = pushJsonbValue(
			&maker->state, maker->state->contVal.type == jbvArray ? WJB_ELEM : WJB_VALUE, &value);
}
