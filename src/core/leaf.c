/*
 * leaf.c
 *	  Many keys in ascending order against a unique B-tree.
 *
 * index_insert() descends from the root for every entry.  Batches come sorted, so many of their keys go to one
 * leaf; here the leaf that the last key went to stays locked, and the next key is tried there first.  Then its leaf
 * is looked for on the page above, and that page in a copy of the one above it: only what these do not tell, or was
 * split since, needs a descent from the root.
 * Entries wait on a page of their own until the leaf is let go, and are put there together.  What is done to a leaf is
 * what nbtree itself does when an entry fits: with the same WAL record, when entries are few, and else with one of generic WAL
 * for all.  Whatever is not that simple is left to nbtree: a key that is there already (dead or alive), a full
 * page, an index of before version 4.
 *
 * A copy may be old.  Splits move keys to the right only, which the high key of the page below tells; the keys of a page
 * that is deleted come to the one on its right: what a page begins with only becomes less.  And a page that was deleted is
 * not used again before the transactions are over that ran at that time, of which we are one.
 *
 * Nobody can put an entry with the same key elsewhere meanwhile: inserters look for their key on the leaf
 * whose bounds enclose it, which we hold.  A key equal to the leaf's high key may have its equals on the next
 * page, and is left to nbtree, too.
 */
#include "postgres.h"

#include "access/nbtree.h"
#include "access/nbtxlog.h"
#include "access/rmgr.h"
#include "access/xact.h"
#include "access/xloginsert.h"
#include "core/compat.h"
#include "core/extend.h"
#include "core/leaf.h"
#include "core/order.h"
#include "core/recent.h"
#include "miscadmin.h"
#include "storage/predicate.h"
#include "utils/typcache.h"

/* Entries near nbtree's limit of a third of a page are nbtree's. */
#define LARGE_ENTRY (BLCKSZ / 4)

/* What a record of WAL costs beside its data, in bytes that could be copied meanwhile. */
#define RECORD_COST 100

/* How often a place is guessed before the rest is halved: most keys are hashes, which lie evenly. */
#define GUESSES 3

/* How many keys ahead memory is asked for: one for each step of expect(). */
#define AHEAD 4

/* How far off a guess usually is, in entries. */
#define AROUND 8

/* What orders most keys.  The second number counts only beside another key that begins with the same value. */
typedef struct Number
{
	uint64 first; /* of the first column's value */
	uint64 second; /* of the second one's; or 0 */
} Number;

/* A page of the index that leads to others. */
typedef struct Inner
{
	BlockNumber block; /* or invalid */
	bool has_copy;
	bool has_range;
	Number from; /* numbers of the first key there, and of the last one; if has_range */
	Number to;
	PGAlignedBlock copy; /* what the page was, if has_copy */
} Inner;

/* Where an inner page leads. */
typedef struct Way
{
	BlockNumber block;
	bool has_from; /* says the inner page where that one begins, */
	bool has_to; /* and where it ends? */
	Number from; /* numbers between which those of that page lie */
	Number to;
} Way;

/* Where a key may stand that comes soon. */
typedef struct Expected
{
	BlockNumber block; /* of its leaf, or of the page above that; or invalid */
	Page page; /* or NULL */
	Number number;
	Number from; /* numbers between which those of the page lie */
	Number to;
	OffsetNumber place; /* near it; or invalid */
} Expected;

struct MrLeaf
{
	Relation heap;
	Relation index;
	BTScanInsert key; /* without a tuple's place: stands before all entries equal to it */
	int flags[INDEX_MAX_KEYS]; /* of the key's columns, when not null */
	MrPrefix prefix[MR_LEAF_BEGINNING]; /* of the first columns */
	Number number; /* of the key; only if has_number */
	bool has_number;
	Number from; /* numbers between which those of the entries after `last` lie, more or less */
	Number to;
	Buffer buffer; /* pinned and locked; or invalid */
	int access; /* how */
	OffsetNumber
		last; /* the next key is hoped to be greater than this entry; or the place before all */
	OffsetNumber place; /* the first entry that is greater than the key, or one that is equal */
	unsigned nexpected;
	Expected expected[AHEAD]; /* the last ones that were */
	int nwaiting;
	/* From here on, nothing is zero at first: these are pages. */
	Inner above; /* the page above the leaf that was gone to last */
	Inner top; /* the page above that one */
	PGAlignedBlock waiting; /* a leaf with the entries, in order, that go to the one that is held */
	OffsetNumber
		places[MaxIndexTuplesPerPage]; /* of the entries there before which they will stand */
};

/* Another page takes the place of an inner one. */
static void
set_inner(Inner *inner, BlockNumber block)
{
	inner->block = block;
	inner->has_copy = inner->has_range = false;
}

MrLeaf *
mr_leaf_create(Relation heap, Relation index)
{
	MrLeaf *leaf = palloc(sizeof(MrLeaf));

	memset(leaf, 0, offsetof(MrLeaf, above));
	leaf->heap = heap;
	leaf->index = index;
	set_inner(&leaf->above, InvalidBlockNumber);
	set_inner(&leaf->top, InvalidBlockNumber);
	for (int i = 0; i < AHEAD; i++)
		leaf->expected[i].block = InvalidBlockNumber;
	_bt_pageinit((Page) leaf->waiting.data, BLCKSZ);
	BTPageGetOpaque((Page) leaf->waiting.data)->btpo_flags = BTP_LEAF;
	leaf->key = _bt_mkscankey(index, NULL);
	leaf->key->keysz = IndexRelationGetNumberOfKeyAttributes(index);
	/* Without a number, nobody would wait for us before he uses pages again. */
	(void) GetCurrentTransactionId();
	_bt_metaversion(index, &leaf->key->heapkeyspace, &leaf->key->allequalimage);
	for (int i = 0; i < leaf->key->keysz; i++)
		leaf->flags[i] = leaf->key->scankeys[i].sk_flags & ~SK_ISNULL;
	for (int i = 0; i < Min(leaf->key->keysz, lengthof(leaf->prefix)); i++)
	{
		if (index->rd_indoption[i] != 0 ||
			index->rd_opfamily[i] !=
				lookup_type_cache(index->rd_opcintype[i], TYPECACHE_BTREE_OPFAMILY)->btree_opf)
			break;
		mr_prefix_init(&leaf->prefix[i], TupleDescAttr(RelationGetDescr(index), i)->atttypid,
					   index->rd_indcollation[i]);
	}
	return leaf;
}

/* Has a column numbers that order its values? */
static inline bool
is_numbered(const MrLeaf *leaf, int column)
{
	return OidIsValid(leaf->prefix[column].type);
}

/* The number of a key that does not begin with a null. */
static inline Number
number_of(const MrLeaf *leaf, const Datum *values, const bool *nulls)
{
	Number number = {.first = mr_prefix_of(&leaf->prefix[0], values[0])};

	if (is_numbered(leaf, 1))
		number.second = nulls[1] ? PG_UINT64_MAX : mr_prefix_of(&leaf->prefix[1], values[1]);
	return number;
}

static void
set_key(MrLeaf *leaf, const Datum *values, const bool *nulls)
{
	for (int i = 0; i < leaf->key->keysz; i++)
	{
		ScanKey column = &leaf->key->scankeys[i];

		column->sk_argument = values[i];
		column->sk_flags = leaf->flags[i] | (nulls[i] ? SK_ISNULL : 0);
	}
	leaf->has_number = is_numbered(leaf, 0) && !nulls[0];
	if (leaf->has_number)
		leaf->number = number_of(leaf, values, nulls);
}

/* The number of a column's value in an entry; 0 when an entry of an inner page leaves it out. */
static inline uint64
column_at(const MrLeaf *leaf, IndexTuple entry, int column)
{
	bool isnull;
	Datum value;

	if (column > 0 && BTreeTupleGetNAtts(entry, leaf->index) <= column)
		return 0;
	value = index_getattr(entry, column + 1, RelationGetDescr(leaf->index), &isnull);
	return isnull ? PG_UINT64_MAX : mr_prefix_of(&leaf->prefix[column], value);
}

static inline IndexTuple
entry_at(Page page, OffsetNumber place)
{
	return (IndexTuple) PageGetItem(page, PageGetItemId(page, place));
}

/* The number of an entry. */
static inline Number
number_at(const MrLeaf *leaf, Page page, OffsetNumber place)
{
	IndexTuple entry = entry_at(page, place);

	return (Number){.first = column_at(leaf, entry, 0),
					.second = is_numbered(leaf, 1) ? column_at(leaf, entry, 1) : 0};
}

/* Does an entry with the key's first number begin with the key's first value? */
static bool
begins_alike(const MrLeaf *leaf, IndexTuple entry)
{
	bool isnull;
	Datum value = index_getattr(entry, 1, RelationGetDescr(leaf->index), &isnull);

	return !isnull &&
		   mr_prefix_is_same(&leaf->prefix[0], leaf->key->scankeys[0].sk_argument, value);
}

/* Compares the key with an entry, as _bt_compare() does; *number is the entry's, as far as it was looked at. */
static inline int
compare(const MrLeaf *leaf, Page page, OffsetNumber place, Number *number)
{
	if (leaf->has_number)
	{
		IndexTuple entry = entry_at(page, place);

		*number = (Number){.first = column_at(leaf, entry, 0)};
		if (leaf->number.first != number->first)
			return leaf->number.first < number->first ? -1 : 1;
		if (is_numbered(leaf, 1) && begins_alike(leaf, entry))
		{
			number->second = column_at(leaf, entry, 1);
			if (leaf->number.second != number->second)
				return leaf->number.second < number->second ? -1 : 1;
		}
	}
	return _bt_compare(leaf->index, leaf->key, page, place);
}

/* Is the key less than all of the next page? */
static bool
is_before_next(const MrLeaf *leaf)
{
	Page page = BufferGetPage(leaf->buffer);
	Number number;

	return P_RIGHTMOST(BTPageGetOpaque(page)) || compare(leaf, page, P_HIKEY, &number) < 0;
}

/* Is the key greater than one that belongs to the page that is held, and less than all of the next page? */
static bool
is_between(const MrLeaf *leaf)
{
	Page page = BufferGetPage(leaf->buffer);
	Number number;

	if (leaf->nwaiting > 0)
		return compare(leaf, (Page) leaf->waiting.data, leaf->nwaiting, &number) > 0 &&
			   is_before_next(leaf);
	return leaf->last >= P_FIRSTDATAKEY(BTPageGetOpaque(page)) &&
		   compare(leaf, page, leaf->last, &number) > 0 && is_before_next(leaf);
}

/* Is one number less than another? */
static inline bool
is_less(Number number, Number other)
{
	return number.first != other.first ? number.first < other.first : number.second < other.second;
}

/*
 * Where the key should stand among the places from `low` to before `high`, whose numbers lie between the two.  Many entries may begin with
 * the value of a key that others do not begin with: where these end cannot be told from numbers.
 */
static inline OffsetNumber
guess(Number number, OffsetNumber low, OffsetNumber high, Number from, Number to)
{
	bool alike = from.first == to.first;
	uint64 wanted = alike ? number.second : number.first;
	uint64 least = alike ? from.second : from.first;
	uint64 most = alike ? to.second : to.first;

	if (!alike && (wanted == least || wanted == most))
		return low + (high - low) / 2;
	if (wanted <= least)
		return low;
	if (wanted >= most)
		return high - 1;
	return Min(
		low + (OffsetNumber) ((double) (wanted - least) / (double) (most - least) * (high - low)),
		high - 1);
}

/* Asks for the entries around a place that was guessed: the next guesses fall there. */
static pg_attribute_always_inline void
prefetch_around(Page page, OffsetNumber place, OffsetNumber low, OffsetNumber high)
{
	low = place > low + AROUND ? place - AROUND : low;
	high = Min(place + AROUND + 1, high);
	for (OffsetNumber i = low; i < high; i++)
		__builtin_prefetch(PageGetItem(page, PageGetItemId(page, i)));
}

/* The first place from `low` to before `high` whose entry has a number that is not less than this one. */
static OffsetNumber
search_number(const MrLeaf *leaf, Page page, Number number, OffsetNumber low, OffsetNumber high,
			  Number from, Number to)
{
	int guesses = GUESSES;

	while (low < high)
	{
		OffsetNumber middle = guesses-- > 0 ? guess(number, low, high, from, to)
											: low + (high - low) / 2;
		Number found = number_at(leaf, page, middle);

		if (is_less(found, number))
		{
			low = OffsetNumberNext(middle);
			from = found;
		}
		else
		{
			high = middle;
			to = found;
		}
	}
	return low;
}

/* The first place from `low` to before `high` whose entry is greater than the key, or one whose entry is equal. */
static OffsetNumber
search(const MrLeaf *leaf, Page page, OffsetNumber low, OffsetNumber high, Number from, Number to,
	   bool *equal)
{
	int guesses = leaf->has_number ? GUESSES : 0;

	*equal = false;
	while (low < high)
	{
		OffsetNumber middle = guesses-- > 0 ? guess(leaf->number, low, high, from, to)
											: low + (high - low) / 2;
		Number number = {0};
		int order;

		if (guesses == GUESSES - 1)
			prefetch_around(page, middle, low, high);
		order = compare(leaf, page, middle, &number);
		if (order == 0)
		{
			*equal = true;
			return middle;
		}
		if (order > 0)
		{
			low = OffsetNumberNext(middle);
			from = number;
		}
		else
		{
			high = middle;
			to = number;
		}
	}
	return low;
}

/* Adds one entry to the leaf, as _bt_insertonpg() does. */
static void
add_entry(MrLeaf *leaf, IndexTuple entry, OffsetNumber place)
{
	Page page = BufferGetPage(leaf->buffer);
	xl_btree_insert record = {.offnum = place};
	XLogRecPtr written;

	START_CRIT_SECTION();
	if (PageAddItem(page, (Item) entry, IndexTupleSize(entry), place, false, false) ==
		InvalidOffsetNumber)
		elog(PANIC, "failed to add an entry to block %u of index \"%s\"",
			 BufferGetBlockNumber(leaf->buffer), RelationGetRelationName(leaf->index));
	MarkBufferDirty(leaf->buffer);
	if (RelationNeedsWAL(leaf->index))
	{
		XLogBeginInsert();
		XLogRegisterData((char *) &record, SizeOfBtreeInsert);
		XLogRegisterBuffer(0, leaf->buffer, REGBUF_STANDARD);
		XLogRegisterBufData(0, (char *) entry, IndexTupleSize(entry));
		written = XLogInsert(RM_BTREE_ID, XLOG_BTREE_INSERT_LEAF);
		PageSetLSN(page, written);
	}
	END_CRIT_SECTION();
}

/* A part of a page, as records of generic WAL have it. */
typedef struct PagePart
{
	OffsetNumber offset;
	OffsetNumber length;
} PagePart;

/* Adds a part of the leaf to the record of WAL that is being made. */
static void
log_part(const MrLeaf *leaf, PagePart *part, Size offset, Size length)
{
	part->offset = offset;
	part->length = length;
	XLogRegisterBufData(0, (char *) part, sizeof(PagePart));
	XLogRegisterBufData(0, (char *) BufferGetPage(leaf->buffer) + offset, length);
}

/* Where the pointer to an entry stands on its page. */
static Size
pointer_offset(OffsetNumber place)
{
	return SizeOfPageHeaderData + sizeof(ItemIdData) * (place - 1);
}

/* Adds all entries that wait to the leaf at once. */
static void
add_together(MrLeaf *leaf)
{
	Page page = BufferGetPage(leaf->buffer);
	PageHeader header = (PageHeader) page;
	Page waiting = (Page) leaf->waiting.data;
	LocationIndex from = ((PageHeader) waiting)->pd_upper;
	Size size = ((PageHeader) waiting)->pd_special - from;
	LocationIndex to = header->pd_upper - size;
	OffsetNumber end = OffsetNumberNext(PageGetMaxOffsetNumber(page));
	PagePart parts[3];
	XLogRecPtr written;

	START_CRIT_SECTION();
	memcpy(page + to, waiting + from, size);
	for (int i = leaf->nwaiting - 1; i >= 0; i--)
	{
		OffsetNumber place = leaf->places[i];
		ItemId item = PageGetItemId(page, place + i);
		ItemId source = PageGetItemId(waiting, i + 1);

		memmove(item + 1, item - i, sizeof(ItemIdData) * (end - place));
		ItemIdSetNormal(item, ItemIdGetOffset(source) - from + to, ItemIdGetLength(source));
		end = place;
	}
	header->pd_lower += sizeof(ItemIdData) * leaf->nwaiting;
	header->pd_upper = to;
	MarkBufferDirty(leaf->buffer);
	if (RelationNeedsWAL(leaf->index))
	{
		Size first = pointer_offset(leaf->places[0]);

		XLogBeginInsert();
		XLogRegisterBuffer(0, leaf->buffer, REGBUF_STANDARD);
		log_part(leaf, &parts[0], offsetof(PageHeaderData, pd_lower), 2 * sizeof(LocationIndex));
		log_part(leaf, &parts[1], first, header->pd_lower - first);
		log_part(leaf, &parts[2], to, size);
		written = XLogInsert(RM_GENERIC_ID, 0);
		PageSetLSN(page, written);
	}
	END_CRIT_SECTION();
}

/* May a leaf have marks that are not logged?  A standby that compares pages knows of them in nbtree's records only. */
static bool
has_marks(Page page)
{
	BTPageOpaque opaque = BTPageGetOpaque(page);

	return (opaque->btpo_flags & (BTP_HAS_GARBAGE | BTP_SPLIT_END)) != 0 ||
		   opaque->btpo_cycleid != 0;
}

/* Adds all entries that wait to the leaf. */
static void
add_waiting(MrLeaf *leaf)
{
	Page page = BufferGetPage(leaf->buffer);
	PageHeader waiting = (PageHeader) leaf->waiting.data;
	Size moved = ((PageHeader) page)->pd_lower - pointer_offset(leaf->places[0]);

	if (moved < (Size) RECORD_COST * (leaf->nwaiting - 1) && !has_marks(page))
		add_together(leaf);
	else
	{
		for (int i = 0; i < leaf->nwaiting; i++)
			add_entry(
				leaf,
				(IndexTuple) PageGetItem((Page) waiting, PageGetItemId((Page) waiting, i + 1)),
				leaf->places[i] + i);
	}
	leaf->nwaiting = 0;
	waiting->pd_lower = SizeOfPageHeaderData;
	waiting->pd_upper = waiting->pd_special;
}

void
mr_leaf_release(MrLeaf *leaf)
{
	if (leaf->nwaiting > 0)
		add_waiting(leaf);
	if (BufferIsValid(leaf->buffer))
		_bt_relbuf(leaf->index, leaf->buffer);
	leaf->buffer = InvalidBuffer;
}

/* ---- the way to a leaf -------------------------------------------------------------------------- */

/* The place of an inner page's first key: before it is an entry that is less than all. */
static OffsetNumber
first_key(Page page)
{
	return OffsetNumberNext(P_FIRSTDATAKEY(BTPageGetOpaque(page)));
}

static OffsetNumber
end_of_keys(Page page)
{
	return OffsetNumberNext(PageGetMaxOffsetNumber(page));
}

/* Is it a page so many levels above the leaves, and in use? */
static bool
is_inner(Page page, uint32 level)
{
	return !P_IGNORE(BTPageGetOpaque(page)) && BTPageGetOpaque(page)->btpo_level == level;
}

/* Pins and locks a page. */
static Buffer
get_page(const MrLeaf *leaf, BlockNumber block, int access)
{
	Buffer buffer = mr_recent_read(leaf->index, block);

	_bt_lockbuf(leaf->index, buffer, access);
	_bt_checkpage(leaf->index, buffer);
	return buffer;
}

/* Copies an inner page, if it is still one of that level. */
static void
copy_inner(const MrLeaf *leaf, Inner *inner, uint32 level)
{
	Buffer buffer = get_page(leaf, inner->block, BT_READ);
	Page page = BufferGetPage(buffer);
	Page copy = (Page) inner->copy.data;

	inner->has_copy = is_inner(page, level);
	if (inner->has_copy)
		memcpy(copy, page, BLCKSZ);
	_bt_relbuf(leaf->index, buffer);
	inner->has_range = inner->has_copy && is_numbered(leaf, 0) &&
					   end_of_keys(copy) > first_key(copy);
	if (inner->has_range)
	{
		inner->from = number_at(leaf, copy, first_key(copy));
		inner->to = number_at(leaf, copy, end_of_keys(copy) - 1);
	}
}

/* Where the entry before a place of an inner page leads. */
static Way
way_before(const MrLeaf *leaf, Page page, OffsetNumber place)
{
	Way way = {.block = BTreeTupleGetDownLink(entry_at(page, OffsetNumberPrev(place))),
			   .to = {PG_UINT64_MAX, PG_UINT64_MAX}};

	way.has_from = is_numbered(leaf, 0) && place > first_key(page);
	if (way.has_from)
		way.from = number_at(leaf, page, OffsetNumberPrev(place));
	way.has_to = is_numbered(leaf, 0) && place < end_of_keys(page);
	if (way.has_to)
		way.to = number_at(leaf, page, place);
	return way;
}

/* Where an inner page, whose numbers lie between the two, leads the key; false when it does not tell. */
static bool
find_way(const MrLeaf *leaf, Page page, Number from, Number to, Way *way)
{
	BTPageOpaque opaque = BTPageGetOpaque(page);
	OffsetNumber first = first_key(page);
	OffsetNumber place;
	Number number;
	bool equal;

	if (end_of_keys(page) < first ||
		(!P_RIGHTMOST(opaque) && compare(leaf, page, P_HIKEY, &number) >= 0))
		return false;
	place = search(leaf, page, first, end_of_keys(page), from, to, &equal);
	/* Where its first child begins, an inner page does not say. */
	if (equal || (place == first && !P_LEFTMOST(opaque)))
		return false;
	*way = way_before(leaf, page, place);
	return true;
}

/* The same on the copy, if there is one. */
static bool
find_way_on_copy(const MrLeaf *leaf, Inner *inner, Way *way)
{
	return inner->has_copy && find_way(leaf, (Page) inner->copy.data, inner->from, inner->to, way);
}

/* The same on a page above leaves itself, to which the way from its parent is given. */
static bool
find_way_on_page(const MrLeaf *leaf, const Way *to_page, Way *way)
{
	Buffer buffer = get_page(leaf, to_page->block, BT_READ);
	Page page = BufferGetPage(buffer);
	bool found = is_inner(page, 1) && find_way(leaf, page, to_page->from, to_page->to, way);

	_bt_relbuf(leaf->index, buffer);
	return found;
}

/*
 * Finds the way to the key's leaf by the pages above; false when these do not tell it.  The page above the leaf is read in place for the first
 * leaf that is looked for there, and copied for the second: in a small batch, most have one.
 */
static bool
find_leaf(MrLeaf *leaf, Way *way)
{
	Way to_above;

	if (find_way_on_copy(leaf, &leaf->above, way))
		return true;
	if (BlockNumberIsValid(leaf->top.block) && !leaf->top.has_copy)
		copy_inner(leaf, &leaf->top, 2);
	if (find_way_on_copy(leaf, &leaf->top, &to_above) && to_above.block != leaf->above.block)
	{
		set_inner(&leaf->above, to_above.block);
		return find_way_on_page(leaf, &to_above, way);
	}
	if (!BlockNumberIsValid(leaf->above.block) || leaf->above.has_copy)
		return false;
	copy_inner(leaf, &leaf->above, 1);
	return find_way_on_copy(leaf, &leaf->above, way);
}

/* Goes to the leaf of a key by way of the pages above; false when they do not lead there. */
static bool
descend_from_above(MrLeaf *leaf, int access, Way *way)
{
	if (!find_leaf(leaf, way))
		return false;
	leaf->buffer = get_page(leaf, way->block, access);
	if (!P_IGNORE(BTPageGetOpaque(BufferGetPage(leaf->buffer))) && is_before_next(leaf))
		return true;
	mr_leaf_release(leaf);
	return false;
}

/* Goes to the leaf of a key from the root; false when its place may be on another one, or there is none. */
static bool
descend_from_root(MrLeaf *leaf, int access)
{
	BTStack stack = mr_bt_search(leaf->index, leaf->heap, leaf->key, &leaf->buffer, access);
	BTStack parent = stack != NULL ? stack->bts_parent : NULL;

	set_inner(&leaf->above, stack != NULL ? stack->bts_blkno : InvalidBlockNumber);
	set_inner(&leaf->top, parent != NULL ? parent->bts_blkno : InvalidBlockNumber);
	_bt_freestack(stack);
	return BufferIsValid(leaf->buffer) && is_before_next(leaf);
}

/* Goes to the leaf of a key; false when its place may be on another one, or there is none. */
static bool
descend(MrLeaf *leaf, int access)
{
	Way way = {0};
	bool is_its_leaf;
	OffsetNumber last;
	Page page;

	mr_leaf_release(leaf);
	leaf->access = access;
	is_its_leaf = descend_from_above(leaf, access, &way);
	if (!is_its_leaf)
	{
		way = (Way){0};
		is_its_leaf = descend_from_root(leaf, access);
	}
	/* To readers, an empty index has no page. */
	if (!BufferIsValid(leaf->buffer))
		return false;
	/* The page stays, whatever we say of this key: what is remembered has to be of it. */
	page = BufferGetPage(leaf->buffer);
	leaf->last = OffsetNumberPrev(P_FIRSTDATAKEY(BTPageGetOpaque(page)));
	leaf->from = (Number){0};
	leaf->to = (Number){PG_UINT64_MAX, PG_UINT64_MAX};
	last = PageGetMaxOffsetNumber(page);
	if (leaf->has_number && last > leaf->last)
	{
		/* What the page above says is at hand. */
		leaf->from = way.has_from ? way.from : number_at(leaf, page, OffsetNumberNext(leaf->last));
		leaf->to = way.has_to ? way.to : number_at(leaf, page, last);
	}
	return is_its_leaf;
}

/* Goes to the place of a key. */
static MrLeafFinding
seek(MrLeaf *leaf, const Datum *values, const bool *nulls, int access)
{
	Number from;
	bool equal;
	Page page;

	set_key(leaf, values, nulls);
	if ((!BufferIsValid(leaf->buffer) || leaf->access != access || !is_between(leaf)) &&
		!descend(leaf, access))
		return BufferIsValid(leaf->buffer) ? MR_LEAF_UNSURE : MR_LEAF_NONE;
	page = BufferGetPage(leaf->buffer);
	from = leaf->from;
	leaf->from = leaf->number;
	leaf->place = search(leaf, page, OffsetNumberNext(leaf->last),
						 OffsetNumberNext(PageGetMaxOffsetNumber(page)), from, leaf->to, &equal);
	leaf->last = equal ? leaf->place : OffsetNumberPrev(leaf->place);
	return equal ? MR_LEAF_ONE : MR_LEAF_NONE;
}

/* Where a key that comes later may stand, as far as that is known. */
static Expected *
expected(MrLeaf *leaf, int calls_ago)
{
	return &leaf->expected[(leaf->nexpected - calls_ago) % AHEAD];
}

/* Finds the page below an inner one where a number's place is, and asks for what tells where that stands. */
static void
expect_below(MrLeaf *leaf, Inner *inner, Expected *key, Number number)
{
	Page page = (Page) inner->copy.data;
	Way way = way_before(leaf, page,
						 search_number(leaf, page, number, first_key(page), end_of_keys(page),
									   inner->from, inner->to));

	key->block = way.block;
	mr_recent_prefetch_place(leaf->index, key->block);
	key->number = number;
	key->from = way.from;
	key->to = way.to;
}

/* Asks for the page where a key is expected. */
static void
expect_page(MrLeaf *leaf, Expected *key)
{
	key->page = mr_recent_prefetch(leaf->index, key->block);
	if (key->page == NULL)
		return;
	/* Where it ends, and in front of it mostly the first entry that was put there: its high key. */
	__builtin_prefetch(key->page + BLCKSZ - PG_CACHE_LINE_SIZE / 2);
	__builtin_prefetch(key->page + BLCKSZ - PG_CACHE_LINE_SIZE);
}

/* The end of the places of a page that others may be changing. */
static OffsetNumber
end_of(Page page)
{
	return Min(PageGetMaxOffsetNumber(page), MaxIndexTuplesPerPage) + 1;
}

/* Asks for the pointers to the entries that are guessed to be near. */
static void
expect_pointers(Expected *key)
{
	OffsetNumber end = end_of(key->page);

	key->place = end > P_FIRSTKEY ? guess(key->number, P_FIRSTKEY, end, key->from, key->to) : 0;
	if (!OffsetNumberIsValid(key->place))
		return;
	__builtin_prefetch(PageGetItemId(key->page, Max(key->place, P_FIRSTKEY + AROUND) - AROUND));
	__builtin_prefetch(PageGetItemId(key->page, Min(key->place + AROUND, end)));
}

/* Asks for those entries. */
static void
expect_entries(const Expected *key)
{
	if (OffsetNumberIsValid(key->place))
		prefetch_around(key->page, key->place, P_FIRSTKEY, end_of(key->page));
}

/*
 * A key that begins with these values comes AHEAD calls later, or none: asks for what leads to its page, which is the one above its leaf when no copy
 * tells that; for the page of the one that was said a
 * call before, for the pointers to the entries near it of the one before that, and for the entries of the one before that.
 */
static void
expect(MrLeaf *leaf, const Datum *values, const bool *nulls)
{
	Expected *key = expected(leaf, 0);
	Number number;

	if (BlockNumberIsValid(expected(leaf, 1)->block))
		expect_page(leaf, expected(leaf, 1));
	if (expected(leaf, 2)->page != NULL)
		expect_pointers(expected(leaf, 2));
	if (expected(leaf, 3)->page != NULL)
		expect_entries(expected(leaf, 3));
	key->block = InvalidBlockNumber;
	key->page = NULL;
	key->place = InvalidOffsetNumber;
	leaf->nexpected++;
	if (nulls[0])
		return;
	number = number_of(leaf, values, nulls);
	if (BufferIsValid(leaf->buffer) && leaf->has_number && !is_less(leaf->to, number))
	{
		Page page = BufferGetPage(leaf->buffer);
		OffsetNumber low = OffsetNumberNext(leaf->last);
		OffsetNumber high = OffsetNumberNext(PageGetMaxOffsetNumber(page));

		if (low < high)
			prefetch_around(page, guess(number, low, high, leaf->from, leaf->to), low, high);
	}
	else if (leaf->above.has_range && (!leaf->top.has_range || !is_less(leaf->above.to, number)))
		expect_below(leaf, &leaf->above, key, number);
	else if (leaf->top.has_range)
		expect_below(leaf, &leaf->top, key, number);
}

/* Does the entry fit into the leaf, beside those that wait? */
static bool
has_room(const MrLeaf *leaf, Size size)
{
	Page page = BufferGetPage(leaf->buffer);
	const PageHeaderData *waiting = (const PageHeaderData *) leaf->waiting.data;
	Size taken = waiting->pd_lower - SizeOfPageHeaderData + waiting->pd_special - waiting->pd_upper;

	return PageGetExactFreeSpace(page) >= taken + MAXALIGN(size) + sizeof(ItemIdData) &&
		   !P_INCOMPLETE_SPLIT(BTPageGetOpaque(page));
}

bool
mr_leaf_insert(MrLeaf *leaf, Datum *values, bool *nulls, ItemPointer tuple)
{
	IndexTuple entry = index_form_tuple(RelationGetDescr(leaf->index), values, nulls);
	Size size = IndexTupleSize(entry);
	bool is_free = leaf->key->heapkeyspace && size <= LARGE_ENTRY &&
				   seek(leaf, values, nulls, BT_WRITE) == MR_LEAF_NONE;
	bool put = is_free && has_room(leaf, size);

	if (put)
	{
		CheckForSerializableConflictIn(leaf->index, NULL, BufferGetBlockNumber(leaf->buffer));
		entry->t_tid = *tuple;
		if (PageAddItem((Page) leaf->waiting.data, (Item) entry, size, leaf->nwaiting + 1, false,
						false) == InvalidOffsetNumber)
			elog(ERROR, "failed to keep an entry of index \"%s\"",
				 RelationGetRelationName(leaf->index));
		leaf->places[leaf->nwaiting++] = leaf->place;
	}
	else
	{
		mr_leaf_release(leaf);
		/* The leaf is going to be split. */
		if (is_free)
			mr_extend_index(leaf->index);
	}
	pfree(entry);
	return put;
}

/* Where an entry of the page that is held leads to. */
static MrLeafFinding
follow(const MrLeaf *leaf, OffsetNumber number, ItemPointer place)
{
	Page page = BufferGetPage(leaf->buffer);
	ItemId item = PageGetItemId(page, number);
	IndexTuple found = (IndexTuple) PageGetItem(page, item);

	if (ItemIdIsDead(item) || BTreeTupleIsPosting(found))
		return MR_LEAF_UNSURE;
	*place = found->t_tid;
	return MR_LEAF_ONE;
}

MrLeafFinding
mr_leaf_find(MrLeaf *leaf, const Datum *values, const bool *nulls, ItemPointer place)
{
	MrLeafFinding finding = leaf->key->heapkeyspace ? seek(leaf, values, nulls, BT_READ)
													: MR_LEAF_UNSURE;

	return finding == MR_LEAF_ONE ? follow(leaf, leaf->place, place) : finding;
}

MrLeafFinding
mr_leaf_find_last(MrLeaf *leaf, const Datum *values, const bool *nulls, ItemPointer place)
{
	MrLeafFinding finding = leaf->key->heapkeyspace ? seek(leaf, values, nulls, BT_READ)
													: MR_LEAF_UNSURE;
	BTPageOpaque opaque;

	if (finding == MR_LEAF_UNSURE || !BufferIsValid(leaf->buffer))
		return finding;
	opaque = BTPageGetOpaque(BufferGetPage(leaf->buffer));
	if (finding == MR_LEAF_ONE)
		return follow(leaf, leaf->place, place);
	if (leaf->place > P_FIRSTDATAKEY(opaque))
		return follow(leaf, OffsetNumberPrev(leaf->place), place);
	return P_LEFTMOST(opaque) ? MR_LEAF_NONE : MR_LEAF_UNSURE;
}

void
mr_leaf_look_ahead(MrLeaf *leaf, int i, int n, MrLeafBegin begin, void *context)
{
	if (!is_numbered(leaf, 0))
		return;
	for (int next = i == 0 ? 1 : i + AHEAD; next <= i + AHEAD; next++)
	{
		Datum values[lengthof(leaf->prefix)];
		bool nulls[lengthof(leaf->prefix)] = {true, true};

		if (next < n)
			begin(context, next, values, nulls);
		expect(leaf, values, nulls);
	}
}
