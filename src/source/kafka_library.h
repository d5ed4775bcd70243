/*
 * kafka_library.h
 *	  librdkafka, for the two files that use it: kafka_client.c and kafka_producer.c.
 */
#ifndef MR_SOURCE_KAFKA_LIBRARY_H
#define MR_SOURCE_KAFKA_LIBRARY_H

#include <librdkafka/rdkafka.h>

/*
 * Destroys a handle.  That may wait for the broker's answer to a request that is on its way, for a
 * minute when there is no broker. Nobody here has that time, so it is done aside, and after a
 * moment not waited for.
 */
extern void mr_kafka_end_handle(rd_kafka_t *handle);

#endif /* MR_SOURCE_KAFKA_LIBRARY_H */
