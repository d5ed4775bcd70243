/*
 * memory.h
 *	  How much memory a worker has, and what becomes of it between batches.
 */
#ifndef MR_CORE_MEMORY_H
#define MR_CORE_MEMORY_H

/* From now on this process keeps memory that was freed, up to millrace.worker_memory; and it gives back what it has kept. */
extern void mr_worker_keep_memory(void);
extern void mr_worker_release_memory(void);

/* The memory of its own that this worker has, in bytes; 0 when the system does not tell, and in other processes. */
extern Size mr_worker_memory_taken(void);

#endif /* MR_CORE_MEMORY_H */
