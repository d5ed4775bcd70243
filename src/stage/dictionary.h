/*
 * dictionary.h
 *	  One dictionary as a worker uses it: entries by id, remembered for a while.
 *
 *		begin → entry, entry, … → ask → select → read → values
 *
 * Entries are wanted for a whole batch, then asked for together; what was found is read (parsed) where an error of
 * the data can be caught.  An entry stays where it is until the next mr_dictionary_begin.
 */
#ifndef MR_STAGE_DICTIONARY_H
#define MR_STAGE_DICTIONARY_H

#include "decode/plan.h"

typedef struct MrDictionary MrDictionary;
typedef struct MrEntry MrEntry;

/* What was counted since the figures were last taken. */
typedef struct MrDictionaryCounts
{
	int64 hits; /* ids that were remembered */
	int64 misses; /* ids that were asked for */
	int64 unknown; /* of these, those of which nothing was found */
	int64 requests; /* in which they were asked for together */
	double seconds; /* that these took */
} MrDictionaryCounts;

/* The dictionary of that id, compiled into CurrentMemoryContext; NULL when it is gone.  The caller has connected to SPI. */
extern MrDictionary *mr_dictionary_load(int32 id);
extern int32 mr_dictionary_id(const MrDictionary *dictionary);
extern const char *mr_dictionary_name(const MrDictionary *dictionary);
extern bool mr_dictionary_has_elements(const MrDictionary *dictionary);

/* The number of the value that a path from its step `first` on finds in an entry.  Before the first entry. */
extern int mr_dictionary_want(MrDictionary *dictionary, const MrPath *path, int first);

/* A new batch: entries that were used least are forgotten when there are too many. */
extern void mr_dictionary_begin(MrDictionary *dictionary);

/* The entry of an id; `fresh` when what is remembered of it does not count. */
extern MrEntry *mr_dictionary_entry(MrDictionary *dictionary, const char *id, int length,
									bool fresh);

/* Asks a Redis for all entries that are wanted.  In a transaction or outside. */
extern void mr_dictionary_ask(MrDictionary *dictionary);

/* The same for a table, in a transaction whose caller has connected to SPI. */
extern void mr_dictionary_select(MrDictionary *dictionary);

/*
 * Reads what was found.  Bad data is raised as an error; then mr_dictionary_refuse says so of the entry at
 * which it was, and reading is begun again.
 */
extern void mr_dictionary_read(MrDictionary *dictionary);
extern void mr_dictionary_refuse(MrDictionary *dictionary, const char *why);

/* The values of an entry, or of that element of it, by the numbers of mr_dictionary_want; NULL: not known. */
extern const MrValue *mr_dictionary_values(const MrDictionary *dictionary, const MrEntry *entry,
										   const char *element, int length);

extern const char *mr_entry_id(const MrEntry *entry);
extern bool mr_entry_is_known(const MrEntry *entry);
/* Why there is something that cannot be used, or NULL. */
extern const char *mr_entry_problem(const MrEntry *entry);
/* Why some entry of this batch cannot be used, or NULL; told once. */
extern char *mr_dictionary_complaint(MrDictionary *dictionary);

extern MrDictionaryCounts mr_dictionary_take_counts(MrDictionary *dictionary);

#endif /* MR_STAGE_DICTIONARY_H */
