/*
 * split.c
 *	  Splitting what a model is trained on, the same way whenever it is asked.
 *
 * Chance is a hash of the ids, so that it can be computed again, in SQL too: hash(seed, user) is
 * hashtextextended(user::text, seed), hash(seed, user, item) is hashtextextended(item::text, hash(seed, user)).
 */
#include "postgres.h"

#include <math.h>

#include "common/hashfn.h"
#include "core/millrace.h"
#include "miscadmin.h"
#include "model/split.h"
#include "utils/memutils.h"

/* One of which the lowest are chosen. */
typedef struct Drawn
{
	TimestampTz time; /* the newest first, when there are times to look at */
	int64 hash;
	uint32 number;
} Drawn;

MrSplitKind
mr_split_kind(const char *name)
{
	static const char *const names[] = {"none", "customer_rows", "customers",
										"time", "leave_one_out", "tables"};

	for (int kind = 0; kind < lengthof(names); kind++)
		if (strcmp(name, names[kind]) == 0)
			return kind;
	elog(ERROR, "there is no split \"%s\"", name);
}

static int
compare_drawn(const void *a, const void *b)
{
	const Drawn *x = a;
	const Drawn *y = b;

	if (x->time != y->time)
		return x->time > y->time ? -1 : 1;
	if (x->hash != y->hash)
		return x->hash < y->hash ? -1 : 1;
	return x->number < y->number ? -1 : x->number > y->number;
}

/* The hash of an id's text. */
static int64
hash_text(const char *text, int64 seed)
{
	return (int64) DatumGetUInt64(
		hash_any_extended((const unsigned char *) text, (int) strlen(text), (uint64) seed));
}

/* How many of n are a share of them: at least one, and not all. */
static uint32
share_of(uint32 n, double share)
{
	return n < 2 ? 0 : Min(Max((uint32) floor(share * n + 0.5), 1), n - 1);
}

/* Marks the first m of a user's pairs, by time when that counts, then by hash; and perhaps the others. */
static void
mark_first(const MrInput *input, uint32 user, uint32 m, bool by_time, int64 user_hash,
		   char *const *item_texts, Drawn *drawn, uint8 others, uint8 *flags)
{
	const uint32 *items = mr_input_column(input, input->user_items, user);
	const TimestampTz *times = mr_input_column(input, input->times, user);
	uint32 n = mr_input_length(input, user);

	for (uint32 i = 0; i < n; i++)
	{
		drawn[i].time = by_time ? times[i] : 0;
		drawn[i].hash = hash_text(item_texts[items[i]], user_hash);
		drawn[i].number = input->user_start[user] + i;
	}
	qsort(drawn, n, sizeof(Drawn), compare_drawn);
	for (uint32 i = 0; i < n; i++)
		flags[drawn[i].number] |= i < m ? MR_PAIR_ASKED : others;
}

/* The texts of all ids, under the settings that make them the same everywhere. */
static char **
id_texts(const MrIds *ids)
{
	uint32 n = mr_ids_count(ids);
	char **texts = MemoryContextAllocHuge(CurrentMemoryContext, Max((Size) n, 1) * sizeof(char *));
	int nest_level = mr_settings_pin("UTC");

	for (uint32 i = 0; i < n; i++)
		texts[i] = mr_ids_text(ids, i);
	mr_settings_unpin(nest_level);
	return texts;
}

/* All users with their hashes. */
static Drawn *
draw_users(const MrInput *input, int64 seed)
{
	Drawn *people = MemoryContextAllocHuge(CurrentMemoryContext,
										   Max((Size) input->nusers, 1) * sizeof(Drawn));
	int nest_level = mr_settings_pin("UTC");

	for (uint32 user = 0; user < input->nusers; user++)
	{
		char *text = mr_ids_text(input->users, user);

		CHECK_FOR_INTERRUPTS();
		people[user].time = 0;
		people[user].hash = hash_text(text, seed);
		people[user].number = user;
		pfree(text);
	}
	mr_settings_unpin(nest_level);
	return people;
}

int64
mr_split_bound(const MrInput *input, uint32 users)
{
	Drawn *people = draw_users(input, 0);
	int64 bound;

	qsort(people, input->nusers, sizeof(Drawn), compare_drawn);
	bound = users >= input->nusers ? PG_INT64_MAX : people[Max(users, 1) - 1].hash;
	pfree(people);
	return bound;
}

MrInput *
mr_split_sample(MrInput *input, int64 bound)
{
	Drawn *people = draw_users(input, 0);
	uint8 *flags = mr_zeros(input->pairs, sizeof(uint8));
	MrInput *sample;

	for (uint32 user = 0; user < input->nusers; user++)
		for (uint32 p = input->user_start[user]; p < input->user_start[user + 1]; p++)
			flags[p] = people[user].hash <= bound;
	sample = mr_input_part(input, flags, 1, true, false);
	pfree(people);
	pfree(flags);
	return sample;
}

void
mr_split(const MrInput *input, MrSplitKind kind, double share, int64 seed, uint8 *flags)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "millrace split",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	bool by_time = kind == MR_SPLIT_LEAVE_ONE_OUT && input->timed;
	char **items;
	Drawn *drawn;
	Drawn *people;
	uint32 chosen = input->nusers;

	if (kind == MR_SPLIT_TIME)
	{
		for (uint32 user = 0; user < input->nusers; user++)
		{
			const bool *late = mr_input_column(input, input->late, user);

			for (uint32 p = 0; p < mr_input_length(input, user); p++)
				if (late[p])
					flags[input->user_start[user] + p] |= MR_PAIR_ASKED;
		}
	}
	else if (kind != MR_SPLIT_TABLES)
	{
		items = id_texts(input->items);
		drawn = MemoryContextAllocHuge(context, Max((Size) input->nitems, 1) * sizeof(Drawn));
		people = draw_users(input, seed);
		if (kind == MR_SPLIT_CUSTOMERS)
		{
			qsort(people, input->nusers, sizeof(Drawn), compare_drawn);
			chosen = share_of(input->nusers, share);
		}
		for (uint32 i = 0; i < chosen; i++)
		{
			uint32 user = people[i].number;
			uint32 n = mr_input_length(input, user);
			uint32 m = kind == MR_SPLIT_LEAVE_ONE_OUT ? n > 1 : share_of(n, share);

			CHECK_FOR_INTERRUPTS();
			mark_first(input, user, m, by_time, people[i].hash, items, drawn,
					   kind == MR_SPLIT_CUSTOMERS ? MR_PAIR_GIVEN : 0, flags);
		}
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}
