/*
 * produce.c
 *	  Produces messages {"id": n} in one transaction: produce BROKERS TOPIC commit|abort FROM TO
 */
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void
die(const char *what, const char *why)
{
	fprintf(stderr, "produce: %s: %s\n", what, why);
	exit(1);
}

static void
check(const char *what, rd_kafka_error_t *error)
{
	if (error != NULL)
		die(what, rd_kafka_error_string(error));
}

int
main(int argc, char **argv)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char reason[512];
	rd_kafka_t *producer;

	if (argc != 6)
		die("usage", "produce BROKERS TOPIC commit|abort FROM TO");
	rd_kafka_conf_set(conf, "bootstrap.servers", argv[1], reason, sizeof(reason));
	rd_kafka_conf_set(conf, "transactional.id", "millrace-test", reason, sizeof(reason));
	producer = rd_kafka_new(RD_KAFKA_PRODUCER, conf, reason, sizeof(reason));
	if (producer == NULL)
		die("new", reason);
	check("init_transactions", rd_kafka_init_transactions(producer, 30000));
	check("begin_transaction", rd_kafka_begin_transaction(producer));
	for (long i = atol(argv[4]); i <= atol(argv[5]); i++)
	{
		char key[32];
		char value[64];

		snprintf(key, sizeof(key), "%ld", i);
		snprintf(value, sizeof(value), "{\"id\": %ld}", i);
		if (rd_kafka_producev(producer, RD_KAFKA_V_TOPIC(argv[2]), RD_KAFKA_V_PARTITION(0),
							  RD_KAFKA_V_KEY(key, strlen(key)),
							  RD_KAFKA_V_VALUE(value, strlen(value)),
							  RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
							  RD_KAFKA_V_END) != RD_KAFKA_RESP_ERR_NO_ERROR)
			die("produce", rd_kafka_err2str(rd_kafka_last_error()));
	}
	/* What is aborted must have been written, else there is nothing to hide. */
	rd_kafka_flush(producer, 30000);
	if (strcmp(argv[3], "abort") == 0)
		check("abort_transaction", rd_kafka_abort_transaction(producer, 30000));
	else
		check("commit_transaction", rd_kafka_commit_transaction(producer, 30000));
	rd_kafka_destroy(producer);
	return 0;
}
