/*
 * mock.c
 *	  librdkafka's mock cluster as a process, for faults that a real broker does not make on demand.
 *
 * mock BROKERS prints the bootstrap servers, then does what the lines of its standard input say:
 *
 *	topic NAME PARTITIONS
 *	down BROKER				refuses connections and closes those there are
 *	up BROKER
 *	rtt BROKER MS
 *	leader TOPIC PARTITION BROKER
 *	errors API CODE COUNT	the next requests of that kind fail (1: Fetch, 2: ListOffsets, 3: Metadata)
 *	flicker API CODE COUNT	every second one of the next requests of that kind fails
 *	missing TOPIC CODE		the topic answers with an error; 0: not any more
 *	quit
 *
 * and prints "ok" after each.
 */
#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Does one line; 0 when there is no such command. */
static int
obey(rd_kafka_mock_cluster_t *cluster, const char *line)
{
	char topic[256];
	int a;
	int b;
	int c;

	if (sscanf(line, "topic %255s %d", topic, &a) == 2)
		rd_kafka_mock_topic_create(cluster, topic, a, 1);
	else if (sscanf(line, "down %d", &a) == 1)
		rd_kafka_mock_broker_set_down(cluster, a);
	else if (sscanf(line, "up %d", &a) == 1)
		rd_kafka_mock_broker_set_up(cluster, a);
	else if (sscanf(line, "rtt %d %d", &a, &b) == 2)
		rd_kafka_mock_broker_set_rtt(cluster, a, b);
	else if (sscanf(line, "leader %255s %d %d", topic, &a, &b) == 3)
		rd_kafka_mock_partition_set_leader(cluster, topic, a, b);
	else if (sscanf(line, "missing %255s %d", topic, &a) == 2)
		rd_kafka_mock_topic_set_error(cluster, topic, (rd_kafka_resp_err_t) a);
	else if (sscanf(line, "errors %d %d %d", &a, &b, &c) == 3)
	{
		for (int i = 0; i < c; i++)
			rd_kafka_mock_push_request_errors(cluster, (int16_t) a, 1, (rd_kafka_resp_err_t) b);
	}
	else if (sscanf(line, "flicker %d %d %d", &a, &b, &c) == 3)
	{
		for (int i = 0; i < c; i++)
			rd_kafka_mock_push_request_errors(cluster, (int16_t) a, 2, (rd_kafka_resp_err_t) b,
											  RD_KAFKA_RESP_ERR_NO_ERROR);
	}
	else
		return 0;
	return 1;
}

int
main(int argc, char **argv)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_mock_cluster_t *cluster;
	char reason[512];
	char line[512];
	rd_kafka_t *handle;

	rd_kafka_conf_set(conf, "log_level", "0", reason, sizeof(reason));
	handle = rd_kafka_new(RD_KAFKA_PRODUCER, conf, reason, sizeof(reason));
	if (handle == NULL || argc != 2)
	{
		fprintf(stderr, "usage: mock BROKERS\n");
		return 1;
	}
	cluster = rd_kafka_mock_cluster_new(handle, atoi(argv[1]));
	printf("%s\n", rd_kafka_mock_cluster_bootstraps(cluster));
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) != NULL && strncmp(line, "quit", 4) != 0)
	{
		puts(obey(cluster, line) ? "ok" : "unknown command");
		fflush(stdout);
	}
	rd_kafka_mock_cluster_destroy(cluster);
	rd_kafka_destroy(handle);
	return 0;
}
