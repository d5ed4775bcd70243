/*
 * memory.c
 *	  What the C library does with a worker's memory between batches.
 *
 * A batch's memory is freed with it.  The library would give it back to the system at once, which then clears every page
 * anew when the next batch touches it: a sixth of the processor time of a bulk load.  So a worker keeps what it is
 * allowed to have, until there is nothing to do.
 */
#include "postgres.h"

#include <limits.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <unistd.h>

#include "core/memory.h"
#include "core/millrace.h"
#include "storage/fd.h"

/* The largest piece that the library may take from memory that was used before. */
#define LARGEST_KEPT (32 * 1024 * 1024)

static bool keeps_memory;

void
mr_worker_keep_memory(void)
{
	keeps_memory = true;
#ifdef __GLIBC__
	(void) mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT);
	(void) mallopt(M_TRIM_THRESHOLD, (int) Min((Size) mr_worker_memory * 1024, (Size) INT_MAX));
#endif
}

void
mr_worker_release_memory(void)
{
#ifdef __GLIBC__
	(void) malloc_trim(0);
#endif
}

Size
mr_worker_memory_taken(void)
{
	unsigned long resident;
	unsigned long shared;
	FILE *file = keeps_memory ? AllocateFile("/proc/self/statm", "r") : NULL;
	bool told;

	if (file == NULL)
		return 0;
	told = fscanf(file, "%*u %lu %lu", &resident, &shared) == 2;
	FreeFile(file);
	return told && resident > shared ? (Size) (resident - shared) * sysconf(_SC_PAGESIZE) : 0;
}
