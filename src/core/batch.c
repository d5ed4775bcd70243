/*
 * batch.c
 *	  A batch's memory.
 */
#include "postgres.h"

#include "core/batch.h"
#include "utils/memutils.h"

MrBatch *
mr_batch_create(MemoryContext parent)
{
	MrBatch *batch = MemoryContextAllocZero(parent, sizeof(MrBatch));

	/* Nearly everything in it stays until it is reset: side by side, and not rounded up to powers of two. */
	batch->context = GenerationContextCreate(parent, "millrace batch", ALLOCSET_DEFAULT_SIZES);
	return batch;
}

/* Empties the batch for the next messages. */
void
mr_batch_reset(MrBatch *batch)
{
	MemoryContext context = batch->context;

	MemoryContextReset(context);
	memset(batch, 0, sizeof(MrBatch));
	batch->context = context;
}

MrMessage *
mr_batch_add(MrBatch *batch)
{
	MrMessage *message;

	if (batch->nmessages == batch->capacity)
	{
		int capacity = Max(256, batch->capacity * 2);
		MrMessage *grown = MemoryContextAllocHuge(batch->context, sizeof(MrMessage) * capacity);

		if (batch->nmessages > 0)
			memcpy(grown, batch->messages, sizeof(MrMessage) * batch->nmessages);
		if (batch->messages != NULL)
			pfree(batch->messages);
		batch->messages = grown;
		batch->capacity = capacity;
	}
	message = &batch->messages[batch->nmessages++];
	memset(message, 0, sizeof(MrMessage));
	return message;
}

char *
mr_batch_copy(MrBatch *batch, const char *bytes, int length)
{
	char *copy = MemoryContextAlloc(batch->context, length + 1);

	memcpy(copy, bytes, length);
	copy[length] = '\0';
	batch->bytes += length;
	return copy;
}
