/*
 * part.c
 *	  Parts of what a model is trained on, and how one set of pairs is found in another.
 */
#include "postgres.h"

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
	const double *weights = early ? input->early_weights : input->weights;
	const TimestampTz *times = early ? input->early_times : input->times;

	for (uint32 user = 0; user < input->nusers; user++)
		for (uint32 p = input->user_start[user]; p < input->user_start[user + 1]; p++)
			if (((flags[p] & mask) != 0) == is_set)
			{
				users[user] = items[input->user_items[p]] = 1;
				pairs++;
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
	part->user_items = mr_zeros(pairs, sizeof(uint32));
	if (input->weighted)
		part->weights = mr_zeros(pairs, sizeof(double));
	if (input->timed)
		part->times = mr_zeros(pairs, sizeof(TimestampTz));
	part->item_users = mr_zeros(part->nitems, sizeof(uint32));
	for (uint32 user = 0; user < input->nusers; user++)
		for (uint32 p = input->user_start[user]; p < input->user_start[user + 1]; p++)
		{
			uint32 item = items[input->user_items[p]];

			if (((flags[p] & mask) != 0) != is_set)
				continue;
			if (input->weighted)
				part->weights[part->pairs] = weights[p];
			if (input->timed)
				part->times[part->pairs] = times[p];
			part->item_users[item]++;
			part->user_items[part->pairs++] = item;
			part->user_start[users[user] + 1] = part->pairs;
		}
	pfree(users);
	pfree(items);
	return part;
}

uint32 *
mr_input_places(const MrIds *ids, MrIds *others)
{
	uint32 *places = mr_zeros(mr_ids_count(ids), sizeof(uint32));

	for (uint32 i = 0; i < mr_ids_count(ids); i++)
		if (!mr_ids_place(others, mr_ids_value(ids, i), &places[i]))
			places[i] = MR_UNKNOWN;
	return places;
}

uint32
mr_input_find(const MrInput *input, uint32 user, uint32 item)
{
	uint32 first = input->user_start[user];
	uint32 end = input->user_start[user + 1];

	while (first < end)
	{
		uint32 middle = first + (end - first) / 2;

		if (input->user_items[middle] < item)
			first = middle + 1;
		else
			end = middle;
	}
	return first < input->user_start[user + 1] && input->user_items[first] == item ? first
																				   : MR_UNKNOWN;
}

void
mr_input_mark(const MrInput *input, uint8 *flags, const MrInput *pairs, uint8 bit)
{
	uint32 *users = mr_input_places(pairs->users, input->users);
	uint32 *items = mr_input_places(pairs->items, input->items);

	for (uint32 user = 0; user < pairs->nusers; user++)
		for (uint32 p = pairs->user_start[user]; p < pairs->user_start[user + 1]; p++)
		{
			uint32 item = items[pairs->user_items[p]];
			uint32 at = users[user] == MR_UNKNOWN || item == MR_UNKNOWN
							? MR_UNKNOWN
							: mr_input_find(input, users[user], item);

			if (at != MR_UNKNOWN)
				flags[at] |= bit;
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
