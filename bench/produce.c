/*-------------------------------------------------------------------------
 *
 * produce.c
 *	  Producer for benches and tests: sends the lines of gen_orders.py
 *	  --timestamps to a Kafka topic.
 *
 *		produce BROKERS TOPIC [--rate R] [--log FILE] [FILE]
 *
 * A line is partition, key, timestamp in ms and value, with tabs between; an
 * empty value is a tombstone.  With --rate, R messages a second are sent
 * evenly, each with the time of its sending as its timestamp, and --log writes
 * a line "key, tab, that time in microseconds" for each.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>

#include <librdkafka/rdkafka.h>

#define CROWDED 5000 /* messages a second */

#define TICK 1000 /* us */

static long failures = 0;

/* Reports what is wrong and ends the program. */
static void
die(const char *format, ...)
{
	va_list args;

	fputs("produce: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

/* Counts the messages that the broker did not take. */
static void
delivered(rd_kafka_t *kafka, const rd_kafka_message_t *message, void *opaque)
{
	(void) kafka;
	(void) opaque;
	if (message->err && failures++ == 0)
		fprintf(stderr, "produce: a message was not taken: %s\n", rd_kafka_err2str(message->err));
}

/* Returns the wall-clock time in microseconds. */
static long long
now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

/*
 * Serves delivery reports until the wall clock shows the given time.  It sleeps a millisecond at least, after which several messages may
 * be due: waking for each would take a processor from what is measured.
 */
static void
wait_until(rd_kafka_t *kafka, long long when)
{
	rd_kafka_poll(kafka, 0);
	for (;;)
	{
		long long left = when - now_us();
		struct timespec pause;

		if (left <= 0)
			return;
		if (left < TICK)
			left = TICK;
		pause.tv_sec = left / 1000000;
		pause.tv_nsec = left % 1000000 * 1000;
		nanosleep(&pause, NULL);
	}
}

/* Cuts the next tab-separated field off a line and returns it. */
static char *
next_field(char **rest, long line_number)
{
	char *field = *rest;
	char *tab = strchr(field, '\t');

	if (tab == NULL)
		die("line %ld: partition, key, timestamp and value are wanted", line_number);
	*tab = '\0';
	*rest = tab + 1;
	return field;
}

/*
 * Makes the producer: large batches for bulk, and where messages come so fast that the broker would be busy with requests alone,
 * of which librdkafka sends one for each partition.  Otherwise it waits a millisecond for company.
 */
static rd_kafka_t *
make_producer(const char *brokers, double rate)
{
	const char *settings[][2] = {
		{"bootstrap.servers", brokers},
		{"linger.ms", rate > 0 && rate <= CROWDED ? "1" : "20"}, /* how long it waits */
		{"batch.num.messages", "100000"},
		{"queue.buffering.max.messages", "200000"},
		{"message.max.bytes", "33554432"},
	};
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *kafka;
	char error[512];

	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
		if (rd_kafka_conf_set(conf, settings[i][0], settings[i][1], error, sizeof(error)) !=
			RD_KAFKA_CONF_OK)
			die("%s", error);
	rd_kafka_conf_set_dr_msg_cb(conf, delivered);
	kafka = rd_kafka_new(RD_KAFKA_PRODUCER, conf, error, sizeof(error));
	if (kafka == NULL)
		die("%s", error);
	return kafka;
}

/* Sends one message, waiting while the queue is full. */
static void
send_message(rd_kafka_t *kafka, const char *topic, int partition, char *key, long long timestamp_ms,
			 char *value, size_t length)
{
	rd_kafka_resp_err_t error;
	void *payload = length > 0 ? value : NULL;

	while ((error = rd_kafka_producev(
				kafka, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(partition),
				RD_KAFKA_V_KEY(key, strlen(key)), RD_KAFKA_V_TIMESTAMP(timestamp_ms),
				RD_KAFKA_V_VALUE(payload, length), RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
				RD_KAFKA_V_END)) == RD_KAFKA_RESP_ERR__QUEUE_FULL)
		rd_kafka_poll(kafka, 10);
	if (error)
		die("%s", rd_kafka_err2str(error));
}

int
main(int argc, char **argv)
{
	const char *positional[3] = {NULL, NULL, NULL};
	int positionals = 0;
	double rate = 0;
	FILE *in = stdin;
	FILE *log = NULL;
	rd_kafka_t *kafka;
	char *line = NULL;
	size_t capacity = 0;
	ssize_t length;
	long count = 0;
	long long start;

	for (int i = 1; i < argc; i++)
	{
		if (strcmp(argv[i], "--rate") == 0 && i + 1 < argc)
			rate = atof(argv[++i]);
		else if (strcmp(argv[i], "--log") == 0 && i + 1 < argc)
		{
			if ((log = fopen(argv[++i], "w")) == NULL)
				die("%s: %s", argv[i], strerror(errno));
		}
		else if (positionals < 3 && argv[i][0] != '-')
			positional[positionals++] = argv[i];
		else
			positionals = 4;
	}
	if (positionals < 2 || positionals > 3)
		die("usage: produce BROKERS TOPIC [--rate R] [--log FILE] [FILE]");
	if (positional[2] != NULL && (in = fopen(positional[2], "r")) == NULL)
		die("%s: %s", positional[2], strerror(errno));

	kafka = make_producer(positional[0], rate);
	start = now_us();
	while ((length = getline(&line, &capacity, in)) > 0)
	{
		char *rest = line;
		char *partition;
		char *key;
		long long timestamp_ms;

		if (line[length - 1] == '\n')
			line[--length] = '\0';
		count++;
		partition = next_field(&rest, count);
		key = next_field(&rest, count);
		timestamp_ms = atoll(next_field(&rest, count));
		if (rate > 0)
		{
			long long sent_us;

			wait_until(kafka, start + (long long) (count * 1000000.0 / rate));
			sent_us = now_us();
			timestamp_ms = sent_us / 1000;
			if (log)
				fprintf(log, "%s\t%lld\n", key, sent_us);
		}
		else if (count % 1000 == 0)
			rd_kafka_poll(kafka, 0);
		send_message(kafka, positional[1], atoi(partition), key, timestamp_ms, rest,
					 line + length - rest);
	}
	if (rd_kafka_flush(kafka, 60000) != RD_KAFKA_RESP_ERR_NO_ERROR)
		failures += rd_kafka_outq_len(kafka);
	rd_kafka_destroy(kafka);
	if (log)
		fclose(log);
	fprintf(stderr, "produced %ld messages in %.2f s\n", count - failures,
			(now_us() - start) / 1e6);
	return failures > 0;
}
