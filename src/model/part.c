/*
 * part.c
 *	  Parts of what a model is trained on, and how one set of pairs is found in another.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "model/input.h"
#include "utils/memutils.h"

/* Those of ids that are used, in their order; numbers of all get their new ones. */
static MrIds *
used_ids(const MrIds *ids, const char *what, uint32 *numbers)
{
	MrIds *used = mr_ids_create(mr_ids_type(ids), what);

	for (uint32 i = 0; i < mr_ids_count(ids); i++)
		if (numbers[i] != 0)
			numbers[i] = mr_ids_number(used, mr_ids_value(ids, i));
	(void) mr_ids_sort(used);
	return used;
}

MrInput *
mr_input_part(MrInput *input, const uint8 *flags, uint8 mask, bool is_set, bool early)
{
	MrInput *part;
	uint32 *users = mr_zeros(input->nusers, sizeof(uint32));
	uint32 *items = mr_zeros(input->nitems, sizeof(uint32));
	Size pairs = 0;

	for (uint32 user = 0; user < input->nusers; user++)
	{
		const uint32 *user_items = mr_input_column(input, input->user_items, user);
		const uint8 *user_flags = flags + input->user_start[user];

		CHECK_FOR_INTERRUPTS();
		for (uint32 p = 0; p < mr_input_length(input, user); p++)
			if (((user_flags[p] & mask) != 0) == is_set)
			{
				users[user] = items[user_items[p]] = 1;
				pairs++;
			}
	}
	if (pairs == input->pairs && !early)
	{
		pfree(users);
		pfree(items);
		return input;
	}

	part = palloc0(sizeof(MrInput));
	part->weighted = input->weighted;
	part->timed = input->timed;
	part->users = used_ids(input->users, "user", users);
	part->items = used_ids(input->items, "item", items);
	part->nusers = mr_ids_count(part->users);
	part->nitems = mr_ids_count(part->items);
	part->user_start = mr_zeros((Size) part->nusers + 1, sizeof(uint32));
	mr_input_columns(part, false, pairs, mr_memory_left() / 4);
	part->item_users = mr_zeros(part->nitems, sizeof(uint32));
	for (uint32 user = 0; user < input->nusers; user++)
	{
		const uint32 *user_items = mr_input_column(input, input->user_items, user);
		const double *weights =
			mr_input_column(input, early ? input->early_weights : input->weights, user);
		const TimestampTz *times = mr_input_column(input, early ? input->early_times : input->times,
												   user);
		const uint8 *user_flags = flags + input->user_start[user];

		CHECK_FOR_INTERRUPTS();
		for (uint32 p = 0; p < mr_input_length(input, user); p++)
		{
			uint32 item = items[user_items[p]];

			if (((user_flags[p] & mask) != 0) != is_set)
				continue;
			if (input->weighted)
				*(double *) mr_column_add(part->weights) = weights[p];
			if (input->timed)
				*(TimestampTz *) mr_column_add(part->times) = times[p];
			part->item_users[item]++;
			*(uint32 *) mr_column_add(part->user_items) = item;
			part->user_start[users[user] + 1] = ++part->pairs;
		}
	}
	pfree(users);
	pfree(items);
	return part;
}

uint32
mr_input_find(const MrInput *input, uint32 user, uint32 item)
{
	const uint32 *items = mr_input_column(input, input->user_items, user);
	uint32 first = 0;
	uint32 end = mr_input_length(input, user);

	while (first < end)
	{
		uint32 middle = first + (end - first) / 2;

		if (items[middle] < item)
			first = middle + 1;
		else
			end = middle;
	}
	return first < mr_input_length(input, user) && items[first] == item
			   ? input->user_start[user] + first
			   : MR_UNKNOWN;
}

void
mr_input_mark(const MrInput *input, uint8 *flags, const MrInput *pairs, uint8 bit)
{
	uint32 *users = mr_ids_places(pairs->users, input->users);
	uint32 *items = mr_ids_places(pairs->items, input->items);

	for (uint32 user = 0; user < pairs->nusers; user++)
	{
		const uint32 *user_items = mr_input_column(pairs, pairs->user_items, user);

		CHECK_FOR_INTERRUPTS();
		for (uint32 p = 0; p < mr_input_length(pairs, user); p++)
		{
			uint32 item = items[user_items[p]];
			uint32 at = users[user] == MR_UNKNOWN || item == MR_UNKNOWN
							? MR_UNKNOWN
							: mr_input_find(input, users[user], item);

			if (at != MR_UNKNOWN)
				flags[at] |= bit;
		}
	}
	pfree(users);
	pfree(items);
}

uint32 *
mr_input_popular(const MrInput *input)
{
	Size items = input->nitems;
	uint32 *numbers = mr_zeros(items, sizeof(uint32));
	uint32 *start = mr_zeros((Size) input->nusers + 2, sizeof(uint32));

	for (Size i = 0; i < items; i++)
		start[input->nusers - input->item_users[i] + 1]++;
	for (Size n = 0; n < input->nusers; n++)
		start[n + 1] += start[n];
	for (Size i = 0; i < items; i++)
		numbers[start[input->nusers - input->item_users[i]]++] = i;
	pfree(start);
	return numbers;
}
