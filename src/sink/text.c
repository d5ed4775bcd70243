/*
 * text.c
 *	  Texts as Telegram takes them.
 *
 * A message has less than 4,096 UTF-16 code units.  A longer text is split before it is escaped,
 * between code points, so that no part ends within an entity or a pair of surrogates; where there
 * is a line's end or a space near the limit, it is split there.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "sink/delivery.h"

#define LIMIT 4095 /* code units */
#define NEAR 1000 /* so far back a better place to split is looked for */

/* What a character is written as in HTML, or NULL: as it is. */
static const char *
entity(char c)
{
	switch (c)
	{
		case '<':
			return "&lt;";
		case '>':
			return "&gt;";
		case '&':
			return "&amp;";
		default:
			return NULL;
	}
}

char *
mr_text_escape(const char *text)
{
	StringInfoData escaped;

	initStringInfo(&escaped);
	for (; *text; text++)
	{
		const char *written = entity(*text);

		if (written)
			appendStringInfoString(&escaped, written);
		else
			appendStringInfoChar(&escaped, *text);
	}
	return escaped.data;
}

/* The code units of one character when it is escaped. */
static int
code_units(const char *character, int length)
{
	const char *written = entity(*character);

	if (written)
		return (int) strlen(written);
	return length == 4 ? 2 : 1;
}

List *
mr_text_split(const char *text)
{
	List *parts = NIL;

	/* Spaces between two parts say nothing. */
	while (*text)
	{
		const char *end = text;
		const char *best = NULL;
		int units = 0;
		int best_units = 0;
		char best_kind = 0;

		while (*end)
		{
			int length = pg_mblen(end);
			int more = code_units(end, length);

			if (units + more > LIMIT)
				break;
			units += more;
			end += length;
			if (end[-1] == '\n' || (end[-1] == ' ' && best_kind != '\n') ||
				(end[-1] == ' ' && units - best_units > NEAR))
			{
				best = end;
				best_units = units;
				best_kind = end[-1];
			}
		}
		if (*end && best != NULL && units - best_units <= NEAR)
			end = best;
		parts = lappend(parts, pnstrdup(text, end - text));
		text = end;
		while (parts != NIL && (*text == '\n' || *text == ' '))
			text++;
	}
	/* An empty text cannot be sent. */
	return parts == NIL ? list_make1(pstrdup("-")) : parts;
}
