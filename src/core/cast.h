/*
 * cast.h
 *	  How a value of one type becomes a value of another, as in an assignment under fixed settings.
 */
#ifndef MR_CORE_CAST_H
#define MR_CORE_CAST_H

typedef struct MrCast MrCast;

/*
 * Compiled in CurrentMemoryContext; NULL when a value of type `from` can be used as it is.  An assignment
 * where there is one, else through the text form.
 */
extern MrCast *mr_cast_create(Oid from, int32 from_typmod, Oid to, int32 to_typmod);

/* The value in the type it is cast to, in CurrentMemoryContext; a NULL cast returns it unchanged. */
extern Datum mr_cast_value(MrCast *cast, Datum value, bool *isnull);

#endif /* MR_CORE_CAST_H */
