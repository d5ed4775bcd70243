/*
 * kafka_producer.h
 *	  Writing to a topic in transactions, each of which also keeps a number of ours (C21).
 *
 * Nothing here raises an error because of a broker: calls say false, and mr_kafka_producer_problem
 * says why in words.
 */
#ifndef MR_SOURCE_KAFKA_PRODUCER_H
#define MR_SOURCE_KAFKA_PRODUCER_H

#include "nodes/pg_list.h"

typedef struct MrKafkaProducer MrKafkaProducer;

typedef struct MrKafkaOut
{
	const char *key;
	const char *value; /* NULL: a tombstone */
	bool refused; /* it can never be written: `error` says why */
	const char *error;
} MrKafkaOut;

/*
 * A producer in CurrentMemoryContext, ended when that context goes; NULL, with the reason in
 * `problem`, when the properties do not do.  It fences all others of the same id when it begins.
 */
extern MrKafkaProducer *mr_kafka_producer_open(List *properties, const char *id, const char *topic,
											   char **problem);

/* Calls that have to wait do so for a moment, and then are to be made again. */
typedef enum MrKafkaVerdict
{
	MR_KAFKA_DONE,
	MR_KAFKA_AGAIN,
	MR_KAFKA_FAILED
} MrKafkaVerdict;

/*
 * Ends what another one has left open, and reads the number that the last transaction kept; -1:
 * none is there.
 */
extern MrKafkaVerdict mr_kafka_producer_begin(MrKafkaProducer *producer, int timeout_ms,
											  int64 *kept);

/*
 * Writes messages and keeps a number in one transaction.  When it has failed nothing was written,
 * or it is not known; then the producer is of no more use.  A message that was refused says so, and
 * nothing of the transaction was written.
 */
extern MrKafkaVerdict mr_kafka_producer_write(MrKafkaProducer *producer, MrKafkaOut *messages,
											  int count, int64 keep, int timeout_ms);

extern const char *mr_kafka_producer_problem(const MrKafkaProducer *producer);
extern void mr_kafka_producer_close(MrKafkaProducer *producer);

#endif /* MR_SOURCE_KAFKA_PRODUCER_H */
