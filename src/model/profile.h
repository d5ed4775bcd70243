/*
 * profile.h
 *	  What a recommendation is made from: what a user has, or a basket.
 */
#ifndef MR_MODEL_PROFILE_H
#define MR_MODEL_PROFILE_H

#include "model/served.h"

/* One item of a profile. */
typedef struct MrHad
{
	uint32 number;
	uint32 place; /* in the order of ids */
	double weight; /* 0: he has it, and that is all */
} MrHad;

typedef struct MrProfile
{
	MrHad *items; /* of the version that is served, ascending */
	int count;
	int room;
	Datum *unknown; /* ids of others by their order, when they may be answered */
	int nunknown;
} MrProfile;

/* Adds an item; when all are there they are put in order, each once. */
extern void mr_profile_add(MrProfile *profile, uint32 number, double weight);
extern void mr_profile_sort(MrProfile *profile);

/* What a user has now, if the model keeps that, else what he had when the version was trained. */
extern void mr_profile_read(MrProfile *profile, MrServed *served, char *user);

/* An item of the profile, or NULL. */
extern const MrHad *mr_profile_find(const MrProfile *profile, uint32 number);

/* Has it an item that the version does not know? */
extern bool mr_profile_has_unknown(const MrProfile *profile, MrServed *served, Datum id);

#endif /* MR_MODEL_PROFILE_H */
