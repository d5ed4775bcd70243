/*
 * ahead.c
 *	  Reading from a connection while its process is busy with something else.
 *
 * A source that is ahead of us stands still once the socket's buffer is full, which holds some hundred changes only:
 * while a batch is processed nothing would be decoded, and while the next one is decoded nothing processed.  So the
 * process lends its connection to a thread, which reads into the memory of the connection's library.
 *
 * The connection belongs to one of them at any time.  The process takes it back by `call`; the thread, which never waits
 * for anything else than the two descriptors, lets go at once.  It knows nothing of PostgreSQL: no errors, no memory
 * contexts, no signals.
 */
#include "postgres.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "source/ahead.h"
#include "storage/ipc.h"

/* As long as this the sender may fill the socket's buffer again, in ns: to wake a reader costs it more than to send. */
#define NAP 200000

struct MrAhead
{
	int descriptor;
	int call; /* an eventfd: the process wants the connection back */
	int (*read)(void *);
	void *connection;
	size_t limit;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool lent; /* under the lock: the connection is the thread's */
	bool quit; /* under the lock */
	bool begun; /* the process's own: it has not taken it back yet */
};

/* The one that has been begun: a process reads one stream. */
static MrAhead *begun = NULL;

/* Reads until it is called, enough has been read, or reading fails: what was wrong is found again by the process. */
static void
read_until_called(MrAhead *ahead)
{
	const struct timespec nap = {.tv_nsec = NAP};
	size_t taken = 0;

	while (taken < ahead->limit)
	{
		struct pollfd polled[] = {{.fd = ahead->call, .events = POLLIN},
								  {.fd = ahead->descriptor, .events = POLLIN}};
		int waiting = 0;

		if (poll(polled, 2, -1) <= 0 || polled[0].revents != 0 ||
			ioctl(ahead->descriptor, FIONREAD, &waiting) < 0 || !ahead->read(ahead->connection))
			return;
		taken += (size_t) Max(waiting, 1);
		if (ppoll(polled, 1, &nap, NULL) != 0)
			return;
	}
}

static void *
run(void *argument)
{
	MrAhead *ahead = argument;

	pthread_mutex_lock(&ahead->lock);
	for (;;)
	{
		while (!ahead->lent && !ahead->quit)
			pthread_cond_wait(&ahead->changed, &ahead->lock);
		if (ahead->quit)
			break;
		pthread_mutex_unlock(&ahead->lock);
		read_until_called(ahead);
		pthread_mutex_lock(&ahead->lock);
		ahead->lent = false;
		pthread_cond_signal(&ahead->changed);
	}
	pthread_mutex_unlock(&ahead->lock);
	return NULL;
}

/* Libraries clean up after themselves when the process exits: nobody must be inside one then. */
static void
end_at_exit(int code, Datum arg)
{
	if (begun != NULL)
		mr_ahead_end(begun);
}

MrAhead *
mr_ahead_create(int descriptor, int (*read)(void *), void *connection)
{
	static bool registered = false;
	/* Not in a memory context: the thread uses it. */
	MrAhead *ahead = calloc(1, sizeof(MrAhead));
	sigset_t all;
	sigset_t before;
	int failed;

	if (ahead == NULL)
		return NULL;
	ahead->call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (ahead->call < 0)
	{
		free(ahead);
		return NULL;
	}
	ahead->descriptor = descriptor;
	ahead->read = read;
	ahead->connection = connection;
	pthread_mutex_init(&ahead->lock, NULL);
	pthread_cond_init(&ahead->changed, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	failed = pthread_create(&ahead->thread, NULL, run, ahead);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (failed != 0)
	{
		close(ahead->call);
		free(ahead);
		return NULL;
	}
	if (!registered)
		before_shmem_exit(end_at_exit, (Datum) 0);
	registered = true;
	return ahead;
}

void
mr_ahead_begin(MrAhead *ahead, size_t limit)
{
	Assert(!ahead->begun);
	if (begun != NULL)
		mr_ahead_end(begun);
	begun = ahead;
	ahead->begun = true;
	pthread_mutex_lock(&ahead->lock);
	ahead->limit = limit;
	ahead->lent = true;
	pthread_cond_signal(&ahead->changed);
	pthread_mutex_unlock(&ahead->lock);
}

void
mr_ahead_end(MrAhead *ahead)
{
	uint64 calls = 1;

	if (!ahead->begun)
		return;
	/* Neither can fail: a counter of one is far from full, and there is something to be read. */
	(void) !write(ahead->call, &calls, sizeof(calls));
	pthread_mutex_lock(&ahead->lock);
	while (ahead->lent)
		pthread_cond_wait(&ahead->changed, &ahead->lock);
	pthread_mutex_unlock(&ahead->lock);
	(void) !read(ahead->call, &calls, sizeof(calls));
	ahead->begun = false;
	begun = NULL;
}

void
mr_ahead_free(MrAhead *ahead)
{
	mr_ahead_end(ahead);
	pthread_mutex_lock(&ahead->lock);
	ahead->quit = true;
	pthread_cond_signal(&ahead->changed);
	pthread_mutex_unlock(&ahead->lock);
	pthread_join(ahead->thread, NULL);
	pthread_cond_destroy(&ahead->changed);
	pthread_mutex_destroy(&ahead->lock);
	close(ahead->call);
	free(ahead);
}
