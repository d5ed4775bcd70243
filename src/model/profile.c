/*
 * profile.c
 *	  What a recommendation is made from.
 *
 * A version's table has what users had when it was trained.  A model over one staging table has their histories besides
 * (online.h), with numbers of its own: what such a number is in a version never changes, so that a session looks for it once.
 */
#include "postgres.h"

#include "access/table.h"
#include "model/input.h"
#include "model/online.h"
#include "model/profile.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* What a number of a history is in a version: so much more than its number there, or this; 0: nobody has looked. */
#define PLACED 1
#define IS_UNKNOWN PG_UINT32_MAX

#define FIRST_PLACES 1024

void
mr_profile_add(MrProfile *profile, uint32 number, double weight)
{
	if (profile->count == profile->room)
	{
		profile->room = Max(profile->room * 2, 64);
		profile->items = profile->items == NULL
							 ? palloc(profile->room * sizeof(MrHad))
							 : repalloc_huge(profile->items, profile->room * sizeof(MrHad));
	}
	profile->items[profile->count].number = number;
	profile->items[profile->count].place = number;
	profile->items[profile->count++].weight = weight;
}

static int
compare_had(const void *a, const void *b)
{
	uint32 x = ((const MrHad *) a)->number;
	uint32 y = ((const MrHad *) b)->number;

	return x < y ? -1 : x > y;
}

void
mr_profile_sort(MrProfile *profile)
{
	int kept = 0;

	if (profile->count > 1)
		qsort(profile->items, profile->count, sizeof(MrHad), compare_had);
	for (int i = 0; i < profile->count; i++)
		if (kept == 0 || profile->items[kept - 1].number != profile->items[i].number)
			profile->items[kept++] = profile->items[i];
	profile->count = kept;
}

const MrHad *
mr_profile_find(const MrProfile *profile, uint32 number)
{
	MrHad wanted = {.number = number};

	return bsearch(&wanted, profile->items, profile->count, sizeof(MrHad), compare_had);
}

/* What a user had when the version was trained. */
static void
read_trained(MrProfile *profile, MrServed *served, char *user)
{
	Relation users = table_open(served->model->tables[MR_USERS].table, AccessShareLock);
	SysScanDesc rows = mr_lookup(users, served->model->tables[MR_USERS].index, 1,
								 Int32GetDatum(served->version), MR_USER_ID,
								 mr_served_read_id(&served->kept->users, user));
	HeapTuple row;

	while (HeapTupleIsValid(row = systable_getnext(rows)))
	{
		MrBlock block = mr_lookup_block(row, RelationGetDescr(users));
		const double *weights = block.values;

		for (int i = 0; i < block.length; i++)
			mr_profile_add(profile, block.numbers[i], weights == NULL ? 1 : weights[i]);
	}
	systable_endscan(rows);
	table_close(users, AccessShareLock);
}

/* ---- histories -------------------------------------------------------------------------------------------- */

/* Does the model keep what users have, and has it counted all of it? */
static bool
is_current(const MrServed *served)
{
	MrIndexed keeping = served->model->tables[MR_KEEPING];
	Relation targets;
	SysScanDesc rows;
	HeapTuple row;
	bool current;
	bool isnull;

	if (served->kept->target_id == 0)
		return false;
	targets = table_open(keeping.table, AccessShareLock);
	rows = mr_lookup(targets, keeping.index, 1, Int32GetDatum(served->kept->target_id), 0,
					 (Datum) 0);
	row = systable_getnext(rows);
	current = HeapTupleIsValid(row) &&
			  strcmp(TextDatumGetCString(
						 mr_lookup_named(row, RelationGetDescr(targets), "state", &isnull)),
					 "active") == 0;
	systable_endscan(rows);
	table_close(targets, AccessShareLock);
	return current;
}

/* Where it stands what a number is in the version. */
static uint32 *
find_place(const MrServed *served, uint32 number)
{
	MrKept *kept = served->kept;
	uint32 room = kept->nplaces;

	if (kept->placed != served->version && room > 0)
		memset(kept->places, 0, room * sizeof(uint32));
	kept->placed = served->version;
	if (number >= room)
	{
		uint32 more = Max(FIRST_PLACES, number + number / 2);

		kept->places = room == 0 ? MemoryContextAllocHuge(CacheMemoryContext, more * sizeof(uint32))
								 : repalloc_huge(kept->places, more * sizeof(uint32));
		kept->nplaces = more;
		memset(kept->places + room, 0, (more - room) * sizeof(uint32));
	}
	return &kept->places[number];
}

/* The id of an item by its number in histories. */
static Datum
find_id(const MrModel *model, uint32 number)
{
	TupleDesc desc;
	HeapTuple row = mr_lookup_row(model->tables[MR_CURRENT_ITEMS], 1, Int32GetDatum(1),
								  MR_ITEM_NUMBER, Int32GetDatum((int32) number), &desc);

	if (row == NULL)
		elog(ERROR, "model %d has no item %u", model->id, number);
	return mr_lookup_column(row, MR_ITEM_ID, desc);
}

/* The weight of an item, of which some events tell: that which a training gives it. */
static double
sum_weights(const MrEvent *events, int nevents)
{
	double sum = 0;

	for (int e = 0; e < nevents; e++)
		for (int i = 0; i < events[e].n; i++)
			sum += mr_detail_weight(events[e].detail);
	/* It would take no other; what is had so is had, but says nothing. */
	return sum >= 0 && sum <= MR_LARGEST_WEIGHT ? sum : 0;
}

/* Adds an item by its number in histories. */
static void
add_item(MrProfile *profile, MrServed *served, uint32 number, double weight)
{
	uint32 *place = find_place(served, number);

	if (*place == 0)
	{
		uint32 found;

		*place = mr_served_find_id(served, find_id(served->model, number), &found) ? found + PLACED
																				   : IS_UNKNOWN;
	}
	if (*place != IS_UNKNOWN)
		mr_profile_add(profile, *place - PLACED, weight);
	else if (served->kept->has_catalogue || served->kept->has_popular)
		profile->unknown[profile->nunknown++] = find_id(served->model, number);
}

static int
compare_ids(const void *a, const void *b, void *kept)
{
	return DatumGetInt32(FunctionCall2Coll(&((MrKept *) kept)->compare,
										   ((MrKept *) kept)->collation, *(const Datum *) a,
										   *(const Datum *) b));
}

/* What a user has. */
static void
read_current(MrProfile *profile, MrServed *served, char *user)
{
	MrIndexed indexed = served->model->tables[MR_CURRENT_USERS];
	Relation users = table_open(indexed.table, AccessShareLock);
	SysScanDesc rows = mr_lookup(users, indexed.index, MR_ONLINE_KEY,
								 mr_served_read_id(&served->kept->users, user), 0, (Datum) 0);
	HeapTuple row = systable_getnext(rows);

	if (HeapTupleIsValid(row))
	{
		Datum history = mr_lookup_column(row, MR_ONLINE_VALUE, RelationGetDescr(users));
		int nevents;
		MrEvent *events = mr_history_read(history, served->kept->weighted, &nevents);
		int next;

		profile->unknown = palloc(sizeof(Datum) * nevents);
		for (int e = 0; e < nevents; e = next)
		{
			for (next = e + 1; next < nevents; next++)
				if (events[next].number != events[e].number)
					break;
			add_item(profile, served, events[e].number,
					 served->kept->weighted ? sum_weights(events + e, next - e) : 1);
		}
	}
	systable_endscan(rows);
	table_close(users, AccessShareLock);
	mr_profile_sort(profile);
	if (profile->nunknown > 1)
		qsort_arg(profile->unknown, profile->nunknown, sizeof(Datum), compare_ids, served->kept);
}

bool
mr_profile_has_unknown(const MrProfile *profile, MrServed *served, Datum id)
{
	return profile->nunknown > 0 && bsearch_arg(&id, profile->unknown, profile->nunknown,
												sizeof(Datum), compare_ids, served->kept) != NULL;
}

/* What a user has of an online model. */
static void
read_counted(MrProfile *profile, MrCounted *counted, char *user)
{
	int count;
	int counting;
	uint32 *items = mr_counted_profile(counted, user, &count, &counting);

	for (int i = 0; i < count; i++)
		mr_profile_add(profile, items[i], i < counting ? 1 : 0);
}

void
mr_profile_read(MrProfile *profile, MrServed *served, char *user)
{
	if (served->counted != NULL)
		read_counted(profile, served->counted, user);
	else if (is_current(served))
		read_current(profile, served, user);
	else
		read_trained(profile, served, user);
}
