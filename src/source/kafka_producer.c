/*
 * kafka_producer.c
 *	  librdkafka's transactional producer.
 *
 * The number is kept as the offset of a consumer group that has the producer's id for its name, in
 * partition 0 of the topic: the broker commits it with the messages or not at all.  After a time-
 * out it is not known whether that has happened.  Then another producer with the same id begins,
 * which ends the transaction one way or the other, and reads which.
 *
 * Calls that have to wait do so in slices, between which their callers may do other things; they
 * remember in the producer how far they are.
 */
#include "postgres.h"

#include <signal.h>

#include "core/millrace.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "source/kafka_library.h"
#include "source/kafka_producer.h"
#include "source/server.h"
#include "storage/ipc.h"
#include "utils/memutils.h"

#define SLICE_MS 20 /* for what the library goes on with when it is asked again */
#define REQUEST_MS 1000 /* for what it begins anew */
#define PROBLEM_LENGTH 512

/* What is under way. */
typedef enum Phase
{
	PHASE_NONE,
	PHASE_BEGIN,
	PHASE_READ,
	PHASE_HAND_OVER,
	PHASE_KEEP,
	PHASE_COMMIT
} Phase;

struct MrKafkaProducer
{
	MemoryContextCallback release;
	MrKafkaProducer *next; /* in open_producers */
	rd_kafka_t *handle;
	rd_kafka_t *reader; /* of the number; NULL when it has been read */
	rd_kafka_queue_t *queue;
	char *id;
	char *topic;
	Phase phase;
	instr_time since; /* of what is under way */
	int timeout_ms;
	int handed_over; /* messages of the transaction */
	char problem[PROBLEM_LENGTH];
};

/* Those of this process that are open: what ends with the process must end in order. */
static MrKafkaProducer *open_producers = NULL;

static void
release_producer(void *arg)
{
	MrKafkaProducer *producer = arg;

	if (producer->handle == NULL)
		return;
	for (MrKafkaProducer **link = &open_producers; *link != NULL; link = &(*link)->next)
	{
		if (*link == producer)
		{
			*link = producer->next;
			break;
		}
	}
	rd_kafka_queue_destroy(producer->queue);
	(void) rd_kafka_purge(producer->handle, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
	mr_kafka_end_handle(producer->handle);
	if (producer->reader)
		mr_kafka_end_handle(producer->reader);
	producer->handle = producer->reader = NULL;
}

static void
release_all(int code, Datum arg)
{
	while (open_producers != NULL)
		release_producer(open_producers);
}

static void
set_problem(MrKafkaProducer *producer, const char *text)
{
	strlcpy(producer->problem, text, sizeof(producer->problem));
}

const char *
mr_kafka_producer_problem(const MrKafkaProducer *producer)
{
	return producer->problem[0] ? producer->problem : "the broker did not answer in time";
}

void
mr_kafka_producer_close(MrKafkaProducer *producer)
{
	release_producer(producer);
}

static const char *const producer_properties[][2] = {
	{"log.connection.close", "false"},
	{"client.id", "millrace"},
	{"enable.idempotence", "true"},
	{"transaction.timeout.ms", "30000"},
	{"message.timeout.ms", "10000"},
	{"topic.metadata.propagation.max.ms", "2000"},
	{"topic.metadata.refresh.fast.interval.ms", "250"},
	{"reconnect.backoff.max.ms", "1000"},
	{"compression.type", "lz4"},
	{"linger.ms", "1"},
};

static const char *const reader_properties[][2] = {
	{"log.connection.close", "false"},
	{"client.id", "millrace"},
	{"enable.auto.commit", "false"},
	{"isolation.level", "read_committed"},
};

/* Fills a configuration; false with the library's words, which never hold a secret's value. */
static bool
configure(rd_kafka_conf_t *conf, const char *const fixed[][2], int nfixed, List *properties,
		  char *error, size_t size)
{
	ListCell *cell;

	for (int i = 0; i < nfixed; i++)
	{
		if (rd_kafka_conf_set(conf, fixed[i][0], fixed[i][1], error, size) != RD_KAFKA_CONF_OK)
			return false;
	}
	foreach(cell, properties)
	{
		MrProperty *property = lfirst(cell);

		if (rd_kafka_conf_set(conf, property->name, property->value, error, size) !=
			RD_KAFKA_CONF_OK)
		{
			if (strstr(property->name, "password") != NULL)
				snprintf(error, size, "invalid value for property \"%s\"", property->name);
			return false;
		}
	}
	return true;
}

/* One handle; NULL with the reason. */
static rd_kafka_t *
make_handle(rd_kafka_type_t type, rd_kafka_conf_t *conf, char *error, size_t size)
{
	rd_kafka_t *handle;
	sigset_t all;
	sigset_t before;

	/* What it has to say comes as errors of calls; its log would go to stderr. */
	rd_kafka_conf_set_log_cb(conf, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	handle = rd_kafka_new(type, conf, error, size);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (handle == NULL)
		rd_kafka_conf_destroy(conf);
	return handle;
}

MrKafkaProducer *
mr_kafka_producer_open(List *properties, const char *id, const char *topic, char **problem)
{
	static bool registered = false;
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_conf_t *reader_conf = rd_kafka_conf_new();
	MrKafkaProducer *producer;
	rd_kafka_t *reader = NULL;
	rd_kafka_t *handle = NULL;
	char error[PROBLEM_LENGTH] = "";

	if (!configure(conf, producer_properties, lengthof(producer_properties), properties, error,
				   sizeof(error)) ||
		!configure(reader_conf, reader_properties, lengthof(reader_properties), properties, error,
				   sizeof(error)) ||
		rd_kafka_conf_set(conf, "transactional.id", id, error, sizeof(error)) != RD_KAFKA_CONF_OK ||
		rd_kafka_conf_set(reader_conf, "group.id", id, error, sizeof(error)) != RD_KAFKA_CONF_OK)
	{
		rd_kafka_conf_destroy(conf);
		rd_kafka_conf_destroy(reader_conf);
		*problem = pstrdup(error);
		return NULL;
	}
	rd_kafka_conf_set_events(conf, RD_KAFKA_EVENT_DR | RD_KAFKA_EVENT_ERROR);
	producer = palloc0(sizeof(MrKafkaProducer));
	producer->id = pstrdup(id);
	producer->topic = pstrdup(topic);
	if (!registered)
		before_shmem_exit(release_all, (Datum) 0);
	registered = true;

	handle = make_handle(RD_KAFKA_PRODUCER, conf, error, sizeof(error));
	if (handle)
		reader = make_handle(RD_KAFKA_CONSUMER, reader_conf, error, sizeof(error));
	else
		rd_kafka_conf_destroy(reader_conf);
	if (reader == NULL)
	{
		if (handle)
			mr_kafka_end_handle(handle);
		*problem = psprintf("cannot start librdkafka: %s", error);
		return NULL;
	}
	producer->handle = handle;
	producer->reader = reader;
	producer->queue = rd_kafka_queue_get_main(handle);
	producer->next = open_producers;
	open_producers = producer;
	producer->release.func = release_producer;
	producer->release.arg = producer;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &producer->release);
	return producer;
}

/* An error in words. */
static const char *
words(rd_kafka_resp_err_t code, const char *reason)
{
	return code == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC ||
				   code == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
			   ? "the topic does not exist on the broker"
			   : reason;
}

/* An error of one message: is it the message's own fault? */
static bool
is_refusal(rd_kafka_resp_err_t error)
{
	switch (error)
	{
		case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
		case RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE:
		case RD_KAFKA_RESP_ERR_INVALID_MSG:
		case RD_KAFKA_RESP_ERR_INVALID_RECORD:
		case RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE:
			return true;
		default:
			return false;
	}
}

static void
note_message(MrKafkaProducer *producer, MrKafkaOut *message, rd_kafka_resp_err_t error)
{
	if (error == RD_KAFKA_RESP_ERR_NO_ERROR)
		return;
	if (is_refusal(error))
	{
		message->refused = true;
		message->error = rd_kafka_err2str(error);
	}
	/* What was given up because of another message is no news. */
	if (error != RD_KAFKA_RESP_ERR__PURGE_QUEUE && error != RD_KAFKA_RESP_ERR__PURGE_INFLIGHT)
		set_problem(producer, words(error, rd_kafka_err2str(error)));
}

/* Reads what the library has to say. */
static void
serve(MrKafkaProducer *producer)
{
	rd_kafka_event_t *event;
	const rd_kafka_message_t *message;

	while ((event = rd_kafka_queue_poll(producer->queue, 0)) != NULL)
	{
		if (rd_kafka_event_type(event) == RD_KAFKA_EVENT_ERROR)
			set_problem(producer, rd_kafka_event_error_string(event));
		while (rd_kafka_event_type(event) == RD_KAFKA_EVENT_DR &&
			   (message = rd_kafka_event_message_next(event)) != NULL)
			note_message(producer, message->_private, message->err);
		rd_kafka_event_destroy(event);
	}
	CHECK_FOR_INTERRUPTS();
}

/* Something begins that may take so long. */
static void
enter(MrKafkaProducer *producer, Phase phase, int timeout_ms)
{
	producer->phase = phase;
	producer->timeout_ms = timeout_ms;
	producer->problem[0] = '\0';
	INSTR_TIME_SET_CURRENT(producer->since);
}

static bool
time_left(const MrKafkaProducer *producer)
{
	instr_time now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, producer->since);
	return INSTR_TIME_GET_MILLISEC(now) < producer->timeout_ms;
}

/* What to do after a call of the library's transactions. */
static MrKafkaVerdict
judge(MrKafkaProducer *producer, rd_kafka_error_t *error)
{
	MrKafkaVerdict verdict;

	if (error == NULL)
		return MR_KAFKA_DONE;
	serve(producer);
	verdict = rd_kafka_error_is_retriable(error) && time_left(producer) ? MR_KAFKA_AGAIN
																		: MR_KAFKA_FAILED;
	if (verdict == MR_KAFKA_FAILED &&
		(producer->problem[0] == '\0' || rd_kafka_error_is_fatal(error)))
		set_problem(producer, words(rd_kafka_error_code(error), rd_kafka_error_string(error)));
	rd_kafka_error_destroy(error);
	return verdict;
}

/* Reads the number that is kept. */
static MrKafkaVerdict
read_kept(MrKafkaProducer *producer, int64 *kept)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_topic_partition_t *partition = rd_kafka_topic_partition_list_add(list, producer->topic,
																			  0);
	rd_kafka_resp_err_t error = rd_kafka_committed(producer->reader, list, REQUEST_MS);

	if (error == RD_KAFKA_RESP_ERR_NO_ERROR)
		error = partition->err;
	*kept = partition->offset < 0 ? -1 : partition->offset;
	rd_kafka_topic_partition_list_destroy(list);
	serve(producer);
	if (error == RD_KAFKA_RESP_ERR_NO_ERROR)
		return MR_KAFKA_DONE;
	if (time_left(producer))
		return MR_KAFKA_AGAIN;
	set_problem(producer, rd_kafka_err2str(error));
	return MR_KAFKA_FAILED;
}

MrKafkaVerdict
mr_kafka_producer_begin(MrKafkaProducer *producer, int timeout_ms, int64 *kept)
{
	MrKafkaVerdict verdict;

	if (producer->phase == PHASE_NONE)
		enter(producer, PHASE_BEGIN, timeout_ms);
	if (producer->phase == PHASE_BEGIN)
	{
		verdict = judge(producer, rd_kafka_init_transactions(producer->handle, SLICE_MS));
		if (verdict != MR_KAFKA_DONE)
			return verdict;
		producer->phase = PHASE_READ;
	}
	verdict = read_kept(producer, kept);
	if (verdict != MR_KAFKA_DONE)
		return verdict;
	mr_kafka_end_handle(producer->reader);
	producer->reader = NULL;
	producer->phase = PHASE_NONE;
	return MR_KAFKA_DONE;
}

/* Hands the messages to the library. */
static MrKafkaVerdict
hand_over(MrKafkaProducer *producer, MrKafkaOut *messages, int count)
{
	for (; producer->handed_over < count; producer->handed_over++)
	{
		MrKafkaOut *message = &messages[producer->handed_over];
		rd_kafka_resp_err_t error = rd_kafka_producev(
			producer->handle, RD_KAFKA_V_TOPIC(producer->topic),
			RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
			RD_KAFKA_V_KEY(message->key, strlen(message->key)),
			RD_KAFKA_V_VALUE((void *) message->value, message->value ? strlen(message->value) : 0),
			RD_KAFKA_V_OPAQUE(message), RD_KAFKA_V_END);

		serve(producer);
		if (error == RD_KAFKA_RESP_ERR__QUEUE_FULL && time_left(producer))
		{
			pg_usleep(1000);
			return MR_KAFKA_AGAIN;
		}
		note_message(producer, message, error);
		if (error != RD_KAFKA_RESP_ERR_NO_ERROR)
			return MR_KAFKA_FAILED;
	}
	return MR_KAFKA_DONE;
}

/* Keeps the number in the transaction. */
static MrKafkaVerdict
keep_number(MrKafkaProducer *producer, int64 number)
{
	rd_kafka_consumer_group_metadata_t *group = rd_kafka_consumer_group_metadata_new(producer->id);
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_error_t *error;

	rd_kafka_topic_partition_list_add(list, producer->topic, 0)->offset = number;
	error = rd_kafka_send_offsets_to_transaction(producer->handle, list, group, REQUEST_MS);
	rd_kafka_topic_partition_list_destroy(list);
	rd_kafka_consumer_group_metadata_destroy(group);
	return judge(producer, error);
}

MrKafkaVerdict
mr_kafka_producer_write(MrKafkaProducer *producer, MrKafkaOut *messages, int count, int64 keep,
						int timeout_ms)
{
	MrKafkaVerdict verdict;

	if (producer->phase == PHASE_NONE)
	{
		enter(producer, PHASE_HAND_OVER, timeout_ms);
		producer->handed_over = 0;
		if (judge(producer, rd_kafka_begin_transaction(producer->handle)) != MR_KAFKA_DONE)
			return MR_KAFKA_FAILED;
	}
	if (producer->phase == PHASE_HAND_OVER)
	{
		verdict = hand_over(producer, messages, count);
		if (verdict != MR_KAFKA_DONE)
			return verdict;
		producer->phase = PHASE_KEEP;
	}
	if (producer->phase == PHASE_KEEP)
	{
		verdict = keep_number(producer, keep);
		if (verdict != MR_KAFKA_DONE)
			return verdict;
		mr_debug_point("delivery_written");
		producer->phase = PHASE_COMMIT;
	}
	verdict = judge(producer, rd_kafka_commit_transaction(producer->handle, SLICE_MS));
	if (verdict != MR_KAFKA_DONE)
		return verdict;
	producer->phase = PHASE_NONE;
	serve(producer);
	return MR_KAFKA_DONE;
}
