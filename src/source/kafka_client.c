/*
 * kafka_client.c
 *	  librdkafka, through its queue and event interface.
 *
 * librdkafka runs threads of its own.  They must never run PostgreSQL code nor receive its signals: all
 * signals are blocked where threads are made, no callback is registered, and logs, errors and messages all
 * come out of one queue that this process polls.  An eventfd becomes readable when that queue does.
 *
 * A handle is assigned once and thrown away to read from elsewhere: seeking and re-assigning in old versions
 * may deliver messages that were fetched for the position before.
 */
#include "postgres.h"

#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/millrace.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "source/kafka_client.h"
#include "source/kafka_library.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

/* Of librdkafka 2.6.1, which fixed the nonce of SCRAM. */
#define FIRST_GOOD_SCRAM 0x02060100

struct MrKafkaClient
{
	MemoryContext context;
	MemoryContextCallback release;
	MrKafkaClient *next; /* in open_clients */
	rd_kafka_t *handle;
	rd_kafka_queue_t *queue;
	rd_kafka_event_t *event; /* the polled message's */
	const rd_kafka_message_t *message;
	rd_kafka_topic_partition_t *partition; /* that the polled error is about */
	MemoryContext words; /* for making up a problem */
	int descriptor;
	bool assigned;
	bool scram;
	char *problem;
	const char *code;
	char *logged; /* the last line that went to the log, so that it is not repeated */
};

/* Those of this process that are open: what ends with the process must end in order. */
static MrKafkaClient *open_clients = NULL;

/* Forgets what was polled before. */
static void
forget_event(MrKafkaClient *client)
{
	if (client->partition != NULL)
		rd_kafka_topic_partition_destroy(client->partition);
	if (client->event != NULL)
		rd_kafka_event_destroy(client->event);
	client->partition = NULL;
	client->event = NULL;
	client->message = NULL;
}

/* Handles that are being destroyed by threads of their own. */
static volatile int endings = 0;

/* A thread: destroys a handle.  Nothing of PostgreSQL is touched here. */
static void *
end_handle(void *handle)
{
	rd_kafka_destroy_flags(handle, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
	(void) __sync_sub_and_fetch(&endings, 1);
	return NULL;
}

/*
 * At the end, before exit(): a thread that is still busy must not meet the libraries that exit() takes down.
 * Shared memory has been left by now.
 */
static void
exit_at_once(int code, Datum arg)
{
	if (endings > 0)
		_exit(code);
}

void
mr_kafka_end_handle(rd_kafka_t *handle)
{
	static bool registered = false;
	pthread_t thread;
	sigset_t all;
	sigset_t before;
	int left;

	if (!registered)
		on_proc_exit(exit_at_once, (Datum) 0);
	registered = true;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	left = __sync_add_and_fetch(&endings, 1) - 1;
	if (pthread_create(&thread, NULL, end_handle, handle) == 0)
		(void) pthread_detach(thread);
	else
		(void) end_handle(handle);
	pthread_sigmask(SIG_SETMASK, &before, NULL);

	for (int waited = 0; endings > left && waited < 500; waited += 5)
		pg_usleep(5000);
}

/* Ends a client: events, queue, handle. */
static void
release_client(void *arg)
{
	MrKafkaClient *client = arg;
	sigset_t all;
	sigset_t before;

	if (client->handle == NULL)
		return;
	for (MrKafkaClient **link = &open_clients; *link != NULL; link = &(*link)->next)
	{
		if (*link == client)
		{
			*link = client->next;
			break;
		}
	}
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	forget_event(client);
	rd_kafka_queue_io_event_enable(client->queue, -1, NULL, 0);
	rd_kafka_queue_destroy(client->queue);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	mr_kafka_end_handle(client->handle);
	client->handle = NULL;
}

/* Ends all clients before the process does. */
static void
release_all(int code, Datum arg)
{
	while (open_clients != NULL)
		release_client(open_clients);
}

/* Remembers why nothing comes. */
static void
set_problem(MrKafkaClient *client, const char *code, char *problem)
{
	if (client->problem != NULL)
		pfree(client->problem);
	client->problem = MemoryContextStrdup(client->context, problem);
	client->code = code;
}

static void
clear_problem(MrKafkaClient *client)
{
	if (client->problem != NULL)
		pfree(client->problem);
	client->problem = NULL;
	client->code = NULL;
}

/* Puts an error of the library into words. */
static void
note_error(MrKafkaClient *client, rd_kafka_resp_err_t error, const char *topic, const char *reason)
{
	bool told = reason != NULL;
	MemoryContext old;

	if (!told)
		reason = rd_kafka_err2str(error);

	MemoryContextReset(client->words);
	old = MemoryContextSwitchTo(client->words);
	switch (error)
	{
		case RD_KAFKA_RESP_ERR__AUTHENTICATION:
		case RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED:
			set_problem(
				client, "authentication",
				psprintf(
					"the broker refuses the user name or the password: %s%s", reason,
					client->scram && mr_kafka_scram_is_broken()
						? psprintf("; with SCRAM this fails with the right password, too, when "
								   "the broker is Kafka 4 or later and librdkafka (%s here) is "
								   "older than 2.6.1",
								   rd_kafka_version_str())
						: ""));
			break;
		case RD_KAFKA_RESP_ERR__SSL:
			set_problem(client, "tls",
						psprintf("cannot make a TLS connection to the broker: %s", reason));
			break;
		case RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN:
			/* Whatever made them so has been told already, and better. */
			if (client->problem == NULL)
				set_problem(client, "unreachable",
							psprintf("no broker can be reached: %s", reason));
			break;
		case RD_KAFKA_RESP_ERR__TRANSPORT:
		case RD_KAFKA_RESP_ERR__RESOLVE:
		case RD_KAFKA_RESP_ERR__TIMED_OUT:
			/* A connection that is refused its password is closed, too; and why is better than that. */
			if (client->code == NULL || (told && strcmp(client->code, "unreachable") == 0))
				set_problem(client, "unreachable", psprintf("cannot reach the broker: %s", reason));
			break;
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
			set_problem(client, "topic",
						topic != NULL ? psprintf("topic \"%s\" does not exist on the broker", topic)
									  : psprintf("the topic does not exist: %s", reason));
			break;
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
			set_problem(
				client, "denied",
				topic != NULL
					? psprintf("the broker does not allow this user to read topic \"%s\"", topic)
					: psprintf("the broker does not allow this user to read: %s", reason));
			break;
		case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_NOT_COORDINATOR:
		case RD_KAFKA_RESP_ERR__WAIT_COORD:
			/* The group is only for information. */
			ereport(DEBUG1, (errmsg_internal("librdkafka: %s", reason)));
			break;
		default:
			set_problem(client, "other", psprintf("librdkafka: %s", reason));
			break;
	}
	MemoryContextSwitchTo(old);
}

/* The library's log goes to ours: what is serious, and not twice in a row. */
static void
note_log(MrKafkaClient *client, rd_kafka_event_t *event)
{
	const char *facility;
	const char *line;
	int level;

	if (rd_kafka_event_log(event, &facility, &line, &level) != 0)
		return;
	/* Failing connections are told as errors as well; the log of the process that runs tells those. */
	if (level > 4 || strcmp(facility, "FAIL") == 0 || strcmp(facility, "ERROR") == 0)
	{
		ereport(DEBUG1, (errmsg_internal("librdkafka: %s: %s", facility, line)));
		return;
	}
	if (client->logged != NULL && strcmp(client->logged, line) == 0)
		return;
	if (client->logged != NULL)
		pfree(client->logged);
	client->logged = MemoryContextStrdup(client->context, line);
	ereport(LOG, (errmsg("librdkafka: %s: %s", facility, line)));
}

/* The library's properties of ours, before those of the user. */
static const char *const fixed_properties[][2] = {
	{"log.queue", "true"},
	{"log.connection.close", "false"},
	{"enable.auto.commit", "false"},
	{"enable.auto.offset.store", "false"},
	{"enable.partition.eof", "true"},
	{"auto.offset.reset", "error"},
	{"isolation.level", "read_committed"},
	{"allow.auto.create.topics", "false"},
	{"client.id", "millrace"},
	{"reconnect.backoff.max.ms", "2000"},
	{"topic.metadata.refresh.fast.interval.ms", "250"},
	{"fetch.error.backoff.ms", "100"},
	{"receive.message.max.bytes", "120000000"},
};

/* Of the worker's memory an eighth waits in the queue, and a sixteenth in each answer that is on its way. */
static bool
set_memory(rd_kafka_conf_t *conf, char *error, size_t size)
{
	char value[32];

	snprintf(value, sizeof(value), "%d", Max(1024, mr_worker_memory / 8));
	if (rd_kafka_conf_set(conf, "queued.max.messages.kbytes", value, error, size) !=
		RD_KAFKA_CONF_OK)
		return false;
	snprintf(value, sizeof(value), "%d", Min(Max(1024, mr_worker_memory / 16), 65536) * 1024);
	return rd_kafka_conf_set(conf, "fetch.max.bytes", value, error, size) == RD_KAFKA_CONF_OK;
}

/* Fills a configuration; false with the library's words, which never hold a secret's value. */
static bool
configure(rd_kafka_conf_t *conf, List *properties, char *error, size_t size)
{
	ListCell *cell;

	for (int i = 0; i < lengthof(fixed_properties); i++)
	{
		if (rd_kafka_conf_set(conf, fixed_properties[i][0], fixed_properties[i][1], error, size) !=
			RD_KAFKA_CONF_OK)
			return false;
	}
	if (!set_memory(conf, error, size))
		return false;
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
	rd_kafka_conf_set_events(conf,
							 RD_KAFKA_EVENT_FETCH | RD_KAFKA_EVENT_ERROR | RD_KAFKA_EVENT_LOG);
	return true;
}

static void
close_descriptor(void *arg)
{
	close((int) (intptr_t) arg);
}

pgsocket
mr_kafka_descriptor(void)
{
	MemoryContextCallback *release = palloc(sizeof(MemoryContextCallback));
	int descriptor = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	if (descriptor < 0)
		ereport(ERROR, (errcode_for_socket_access(), errmsg("could not create an eventfd: %m")));
	release->func = close_descriptor;
	release->arg = (void *) (intptr_t) descriptor;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, release);
	return descriptor;
}

MrKafkaClient *
mr_kafka_connect(List *properties, pgsocket descriptor, char **problem)
{
	static bool registered = false;
	const char *mechanism = mr_property(properties, "sasl.mechanism");
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	MrKafkaClient *client;
	uint64 one = 1;
	char error[512];
	rd_kafka_t *handle;
	sigset_t all;
	sigset_t before;

	if (!configure(conf, properties, error, sizeof(error)))
	{
		rd_kafka_conf_destroy(conf);
		*problem = pstrdup(error);
		return NULL;
	}
	client = palloc0(sizeof(MrKafkaClient));
	client->context = CurrentMemoryContext;
	client->words = AllocSetContextCreate(client->context, "millrace words", ALLOCSET_SMALL_SIZES);
	client->scram = mechanism != NULL && pg_strncasecmp(mechanism, "SCRAM", 5) == 0;
	if (!registered)
	{
		before_shmem_exit(release_all, (Datum) 0);
		registered = true;
	}

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	handle = rd_kafka_new(RD_KAFKA_CONSUMER, conf, error, sizeof(error));
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (handle == NULL)
	{
		rd_kafka_conf_destroy(conf);
		*problem = psprintf("cannot start librdkafka: %s", error);
		return NULL;
	}

	client->handle = handle;
	client->descriptor = descriptor;
	rd_kafka_poll_set_consumer(handle);
	client->queue = rd_kafka_queue_get_consumer(handle);
	(void) rd_kafka_set_log_queue(handle, client->queue);
	rd_kafka_queue_io_event_enable(client->queue, descriptor, &one, sizeof(one));
	client->next = open_clients;
	open_clients = client;
	client->release.func = release_client;
	client->release.arg = client;
	MemoryContextRegisterResetCallback(client->context, &client->release);
	return client;
}

void
mr_kafka_disconnect(MrKafkaClient *client)
{
	release_client(client);
}

const char *
mr_kafka_problem(const MrKafkaClient *client, const char **code)
{
	if (code != NULL)
		*code = client->code;
	return client->problem;
}

/* What an error means to the partition that it is about. */
static MrKafkaEvent
partition_error(MrKafkaClient *client, rd_kafka_resp_err_t error, const char *topic,
				int32 partition, int64 offset, const char *reason, MrKafkaRecord *record)
{
	record->topic = topic;
	record->partition = partition;
	record->offset = offset;
	switch (error)
	{
		case RD_KAFKA_RESP_ERR__PARTITION_EOF:
			clear_problem(client);
			return MR_KAFKA_END;
		case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
		case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
			return MR_KAFKA_LOST;
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
			note_error(client, RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC, topic, reason);
			return MR_KAFKA_LOST;
		default:
			note_error(client, error, topic, reason);
			return MR_KAFKA_NOTHING;
	}
}

/*
 * One event of the queue, `client->event`.  MR_KAFKA_NOTHING also for what has been dealt with here.
 */
static MrKafkaEvent
read_event(MrKafkaClient *client, MrKafkaRecord *record)
{
	switch (rd_kafka_event_type(client->event))
	{
		case RD_KAFKA_EVENT_FETCH:
			{
				const rd_kafka_message_t *message = rd_kafka_event_message_next(client->event);
				rd_kafka_timestamp_type_t type;

				if (message == NULL)
					return MR_KAFKA_NOTHING;
				/* Static in the handle: valid as long as it. */
				record->topic = rd_kafka_topic_name(message->rkt);
				if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR)
					return partition_error(client, message->err, record->topic, message->partition,
										   message->offset, rd_kafka_message_errstr(message),
										   record);
				record->partition = message->partition;
				record->offset = message->offset;
				record->time = rd_kafka_message_timestamp(message, &type);
				record->key = message->key;
				record->key_length = message->key_len;
				record->value = message->payload;
				record->value_length = message->len;
				client->message = message;
				if (client->problem != NULL)
					clear_problem(client);
				return MR_KAFKA_MESSAGE;
			}
		case RD_KAFKA_EVENT_ERROR:
			{
				rd_kafka_resp_err_t error = rd_kafka_event_error(client->event);
				const char *reason = rd_kafka_event_error_string(client->event);

				client->partition = rd_kafka_event_topic_partition(client->event);
				if (client->partition != NULL)
					return partition_error(client, error, client->partition->topic,
										   client->partition->partition, client->partition->offset,
										   reason, record);
				note_error(client, error, NULL, reason);
				return MR_KAFKA_NOTHING;
			}
		case RD_KAFKA_EVENT_LOG:
			note_log(client, client->event);
			return MR_KAFKA_NOTHING;
		default:
			return MR_KAFKA_NOTHING;
	}
}

void
mr_kafka_begin_poll(MrKafkaClient *client)
{
	uint64 count;

	while (read(client->descriptor, &count, sizeof(count)) < 0 && errno == EINTR)
		;
}

MrKafkaEvent
mr_kafka_poll(MrKafkaClient *client, MrKafkaRecord *record)
{
	for (;;)
	{
		MrKafkaEvent event;

		forget_event(client);
		client->event = rd_kafka_queue_poll(client->queue, 0);
		if (client->event == NULL)
			return MR_KAFKA_NOTHING;
		event = read_event(client, record);
		if (event != MR_KAFKA_NOTHING)
			return event;
	}
}

/* Reads what the library has to say before anything is assigned; after that the queue holds messages. */
static void
read_errors(MrKafkaClient *client)
{
	MrKafkaRecord record;

	if (client->assigned)
		return;
	while (mr_kafka_poll(client, &record) != MR_KAFKA_NOTHING)
		;
}

bool
mr_kafka_wait(MrKafkaClient *client, int timeout_ms)
{
	int events;

	events = WaitLatchOrSocket(MyLatch,
							   WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							   client->descriptor, timeout_ms, PG_WAIT_EXTENSION);
	if (events & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return (events & WL_SOCKET_READABLE) != 0;
}

/* Calls that wait for an answer take the time that is left in slices, the first ones short. */
typedef struct Patience
{
	instr_time begin;
	int timeout_ms;
	int slice_ms;
} Patience;

static void
begin_patience(Patience *patience, int timeout_ms)
{
	INSTR_TIME_SET_CURRENT(patience->begin);
	patience->timeout_ms = timeout_ms;
	patience->slice_ms = 250;
}

/* The next slice, 0 when the time is over. */
static int
next_slice(Patience *patience)
{
	instr_time now;
	int left;
	int slice;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, patience->begin);
	left = patience->timeout_ms - (int) INSTR_TIME_GET_MILLISEC(now);
	if (left <= 0)
		return 0;
	slice = Min(patience->slice_ms, left);
	patience->slice_ms = Min(patience->slice_ms * 2, 1000);
	return slice;
}

/* Is it worth waiting on after an error? */
static bool
may_pass(MrKafkaClient *client, rd_kafka_resp_err_t error)
{
	CHECK_FOR_INTERRUPTS();
	read_errors(client);
	if (client->code != NULL &&
		(strcmp(client->code, "authentication") == 0 || strcmp(client->code, "tls") == 0))
		return false;
	switch (error)
	{
		case RD_KAFKA_RESP_ERR__TRANSPORT:
		case RD_KAFKA_RESP_ERR__TIMED_OUT:
		case RD_KAFKA_RESP_ERR__WAIT_CACHE:
		case RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN:
		case RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION:
		case RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT:
			return true;
		default:
			return false;
	}
}

/* Errors that come at once are not asked about again at once. */
static void
pause_a_little(void)
{
	(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 50, PG_WAIT_EXTENSION);
}

bool
mr_kafka_partitions(MrKafkaClient *client, const char *topic, int timeout_ms, int *count)
{
	rd_kafka_resp_err_t error = RD_KAFKA_RESP_ERR__TIMED_OUT;
	rd_kafka_topic_t *handle = rd_kafka_topic_new(client->handle, topic, NULL);
	Patience patience;
	bool found = false;
	int slice;

	if (handle == NULL)
	{
		note_error(client, rd_kafka_last_error(), topic, NULL);
		return false;
	}
	PG_TRY();
	{
		begin_patience(&patience, timeout_ms);
		while (!found && (slice = next_slice(&patience)) > 0)
		{
			const struct rd_kafka_metadata *metadata;

			error = rd_kafka_metadata(client->handle, 0, handle, &metadata, slice);
			if (error == RD_KAFKA_RESP_ERR_NO_ERROR)
			{
				if (metadata->topic_cnt == 1)
				{
					error = metadata->topics[0].err;
					*count = metadata->topics[0].partition_cnt;
				}
				else
					error = RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC;
				rd_kafka_metadata_destroy(metadata);
				found = error == RD_KAFKA_RESP_ERR_NO_ERROR && *count > 0;
			}
			if (!found)
			{
				if (!may_pass(client, error))
					break;
				pause_a_little();
			}
		}
	}
	PG_FINALLY();
	{
		rd_kafka_topic_destroy(handle);
	}
	PG_END_TRY();
	if (found)
		clear_problem(client);
	else
		note_error(client, error, topic, NULL);
	return found;
}

/* The topics of the broker's answer. */
static List *
read_topics(const struct rd_kafka_metadata *metadata)
{
	List *topics = NIL;

	for (int i = 0; i < metadata->topic_cnt; i++)
	{
		MrKafkaTopic *topic;

		if (metadata->topics[i].err != RD_KAFKA_RESP_ERR_NO_ERROR ||
			metadata->topics[i].partition_cnt <= 0)
			continue;
		topic = palloc0(sizeof(MrKafkaTopic));
		topic->name = pstrdup(metadata->topics[i].topic);
		topic->partitions = metadata->topics[i].partition_cnt;
		topics = lappend(topics, topic);
	}
	return topics;
}

bool
mr_kafka_topics(MrKafkaClient *client, int timeout_ms, List **topics)
{
	rd_kafka_resp_err_t error = RD_KAFKA_RESP_ERR__TIMED_OUT;
	Patience patience;
	int slice;

	begin_patience(&patience, timeout_ms);
	while ((slice = next_slice(&patience)) > 0)
	{
		const struct rd_kafka_metadata *metadata;

		error = rd_kafka_metadata(client->handle, 1, NULL, &metadata, slice);
		if (error == RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			PG_TRY();
			{
				*topics = read_topics(metadata);
			}
			PG_FINALLY();
			{
				rd_kafka_metadata_destroy(metadata);
			}
			PG_END_TRY();
			clear_problem(client);
			return true;
		}
		if (!may_pass(client, error))
			break;
		pause_a_little();
	}
	note_error(client, error, NULL, NULL);
	return false;
}

bool
mr_kafka_offset_at(MrKafkaClient *client, const char *topic, int32 partition, int64 time,
				   int timeout_ms, int64 *offset)
{
	rd_kafka_resp_err_t error = RD_KAFKA_RESP_ERR__TIMED_OUT;
	Patience patience;
	int slice;

	begin_patience(&patience, timeout_ms);
	while ((slice = next_slice(&patience)) > 0)
	{
		rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
		rd_kafka_topic_partition_t *element = rd_kafka_topic_partition_list_add(list, topic,
																				partition);

		element->offset = time;
		error = rd_kafka_offsets_for_times(client->handle, list, slice);
		if (error == RD_KAFKA_RESP_ERR_NO_ERROR)
			error = element->err;
		*offset = element->offset < 0 ? -1 : element->offset;
		rd_kafka_topic_partition_list_destroy(list);
		if (error == RD_KAFKA_RESP_ERR_NO_ERROR)
			return true;
		if (!may_pass(client, error))
			break;
		pause_a_little();
	}
	note_error(client, error, topic, NULL);
	return false;
}

/*
 * The ends are asked for one by one: the library's own call for both takes a failed answer for the lower one
 * as "the partition is empty" when the answer for the upper one comes with it.
 */
bool
mr_kafka_watermarks(MrKafkaClient *client, const char *topic, int32 partition, int timeout_ms,
					int64 *low, int64 *high)
{
	return mr_kafka_offset_at(client, topic, partition, RD_KAFKA_OFFSET_BEGINNING, timeout_ms,
							  low) &&
		   mr_kafka_offset_at(client, topic, partition, RD_KAFKA_OFFSET_END, timeout_ms, high) &&
		   *low >= 0 && *high >= *low;
}

/* A list of the library from ours. */
static rd_kafka_topic_partition_list_t *
partition_list(const MrKafkaBegin *begins, int count)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(count);

	for (int i = 0; i < count; i++)
		rd_kafka_topic_partition_list_add(list, begins[i].topic, begins[i].partition)->offset =
			begins[i].offset;
	return list;
}

bool
mr_kafka_assign(MrKafkaClient *client, const MrKafkaBegin *begins, int count)
{
	rd_kafka_topic_partition_list_t *list = partition_list(begins, count);
	rd_kafka_resp_err_t error;
	sigset_t all;
	sigset_t before;

	client->assigned = true;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = rd_kafka_assign(client->handle, list);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	rd_kafka_topic_partition_list_destroy(list);
	if (error != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		note_error(client, error, NULL, NULL);
		return false;
	}
	return true;
}

/* Appends bytes as a JSON string: text as it is, anything else in hexadecimal as bytea shows it. */
static void
append_bytes(StringInfo json, const char *bytes, size_t length)
{
	char *text;

	if (memchr(bytes, '\0', length) == NULL && pg_verify_mbstr(PG_UTF8, bytes, length, true))
		text = pnstrdup(bytes, length);
	else
	{
		text = palloc(length * 2 + 3);
		strcpy(text, "\\x");
		hex_encode(bytes, length, text + 2);
		text[length * 2 + 2] = '\0';
	}
	escape_json(json, text);
	pfree(text);
}

char *
mr_kafka_headers(MrKafkaClient *client)
{
	rd_kafka_headers_t *headers;
	StringInfoData json;
	const char *name;
	const void *value;
	size_t size;

	if (client->message == NULL ||
		rd_kafka_message_headers(client->message, &headers) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return NULL;
	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	for (size_t i = 0;
		 rd_kafka_header_get_all(headers, i, &name, &value, &size) == RD_KAFKA_RESP_ERR_NO_ERROR;
		 i++)
	{
		if (i > 0)
			appendStringInfoString(&json, ", ");
		append_bytes(&json, name, strlen(name));
		appendStringInfoString(&json, ": ");
		if (value == NULL)
			appendStringInfoString(&json, "null");
		else
			append_bytes(&json, value, size);
	}
	appendStringInfoChar(&json, '}');
	return json.data;
}

int64
mr_kafka_known_end(MrKafkaClient *client, const char *topic, int32 partition)
{
	int64 low;
	int64 high;

	if (rd_kafka_get_watermark_offsets(client->handle, topic, partition, &low, &high) !=
			RD_KAFKA_RESP_ERR_NO_ERROR ||
		high < 0)
		return -1;
	return high;
}

void
mr_kafka_nudge(MrKafkaClient *client)
{
	const struct rd_kafka_metadata *metadata;

	/* Any request wakes the thread that decides whether to fetch.  The answer is not waited for. */
	if (rd_kafka_metadata(client->handle, 0, NULL, &metadata, 1) == RD_KAFKA_RESP_ERR_NO_ERROR)
		rd_kafka_metadata_destroy(metadata);
}

void
mr_kafka_commit(MrKafkaClient *client, const MrKafkaBegin *offsets, int count)
{
	rd_kafka_topic_partition_list_t *list = partition_list(offsets, count);

	(void) rd_kafka_commit(client->handle, list, 1);
	rd_kafka_topic_partition_list_destroy(list);
}

const char *
mr_kafka_library_version(void)
{
	return rd_kafka_version_str();
}

bool
mr_kafka_scram_is_broken(void)
{
	return rd_kafka_version() < FIRST_GOOD_SCRAM;
}
