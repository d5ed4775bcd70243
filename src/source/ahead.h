/*
 * ahead.h
 *	  Reading from a connection while its process is busy with something else.
 */
#ifndef MR_SOURCE_AHEAD_H
#define MR_SOURCE_AHEAD_H

typedef struct MrAhead MrAhead;

/*
 * A thread that can read a connection: `read` takes what is there now, without waiting, and is false when it has failed.  It
 * is called on a foreign thread, so it calls nothing of PostgreSQL's.  NULL when there can be no thread.
 */
extern MrAhead *mr_ahead_create(int descriptor, int (*read)(void *), void *connection);

/* Gives the connection to the thread, which reads so many bytes at most. */
extern void mr_ahead_begin(MrAhead *ahead, size_t limit);

/* Takes it back: nobody else touches it from here on.  Nothing happens when it was not given away. */
extern void mr_ahead_end(MrAhead *ahead);

extern void mr_ahead_free(MrAhead *ahead);

#endif /* MR_SOURCE_AHEAD_H */
