/*
 * metronome.c
 *	  Watches what the machine gives: does the same little work again and
 *	  again, on each processor, before everything else that runs there.
 *
 *		metronome FILE
 *
 * Runs until it is terminated, and then writes a line "time in microseconds,
 * tab, nanoseconds that the work took" for each beat.  Hardly anything that runs
 * on the machine delays it, so that it shows what the machine itself does: who
 * else uses its processors, and whatever it stands still for.  It needs the
 * right to a real-time priority.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>

#define PAUSE 2000000 /* ns */
#define ROUNDS 2000 /* of work: some microseconds */
#define BEATS (500 * 3600) /* of a processor: an hour */
#define PRIORITY 10

typedef struct Beat
{
	int64_t time; /* us */
	int64_t work; /* ns */
} Beat;

typedef struct Processor
{
	int number;
	long nbeats;
	Beat *beats;
	pthread_t thread;
} Processor;

static atomic_bool ended;

static int64_t
now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* Steps that each need the one before, so that the processor cannot do two at once. */
static uint64_t
work(uint64_t x)
{
	for (int i = 0; i < ROUNDS; i++)
	{
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
	}
	return x;
}

/* Beats on one processor until the end. */
static void *
beat(void *argument)
{
	const struct timespec pause = {0, PAUSE};
	Processor *processor = argument;
	volatile uint64_t x = 1;

	while (!ended && processor->nbeats < BEATS)
	{
		Beat *next = &processor->beats[processor->nbeats++];
		int64_t start;

		nanosleep(&pause, NULL);
		next->time = now(CLOCK_REALTIME) / 1000;
		start = now(CLOCK_MONOTONIC);
		x = work(x);
		next->work = now(CLOCK_MONOTONIC) - start;
	}
	return NULL;
}

/* Starts the beats of a processor before everything else there; false when that is not permitted. */
static int
start(Processor *processor)
{
	struct sched_param priority = {.sched_priority = PRIORITY};
	cpu_set_t only;
	pthread_attr_t attributes;

	processor->beats = malloc(sizeof(Beat) * BEATS);
	CPU_ZERO(&only);
	CPU_SET(processor->number, &only);
	pthread_attr_init(&attributes);
	pthread_attr_setaffinity_np(&attributes, sizeof(only), &only);
	pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
	pthread_attr_setschedpolicy(&attributes, SCHED_FIFO);
	pthread_attr_setschedparam(&attributes, &priority);
	return processor->beats != NULL &&
		   pthread_create(&processor->thread, &attributes, beat, processor) == 0;
}

int
main(int argc, char **argv)
{
	static Processor processors[CPU_SETSIZE];
	int nprocessors = 0;
	FILE *out = argc == 2 ? fopen(argv[1], "w") : NULL;
	cpu_set_t ours;
	sigset_t end;
	int signal;

	if (out == NULL)
	{
		fputs("usage: metronome FILE\n", stderr);
		return 1;
	}
	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	sigaddset(&end, SIGINT);
	pthread_sigmask(SIG_BLOCK, &end, NULL);
	/* Whoever started us may be killed. */
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	sched_getaffinity(0, sizeof(ours), &ours);
	for (int i = 0; i < CPU_SETSIZE; i++)
	{
		if (!CPU_ISSET(i, &ours))
			continue;
		processors[nprocessors].number = i;
		if (!start(&processors[nprocessors++]))
		{
			fputs("metronome: no real-time priority is permitted\n", stderr);
			return 1;
		}
	}
	sigwait(&end, &signal);
	ended = 1;
	for (int i = 0; i < nprocessors; i++)
	{
		pthread_join(processors[i].thread, NULL);
		for (long b = 0; b < processors[i].nbeats; b++)
			fprintf(out, "%lld\t%lld\n", (long long) processors[i].beats[b].time,
					(long long) processors[i].beats[b].work);
	}
	return fclose(out) != 0;
}
