/*
 * validate.c
 *	  Whether a channel can be used, and sending one message over it now.
 */
#include "postgres.h"

#include "core/millrace.h"
#include "core/statement.h"
#include "sink/delivery.h"
#include "sink/http.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(millrace_check_channel);
PG_FUNCTION_INFO_V1(millrace_send_test);

/* The channel with its properties; what is wrong with them is an error. */
static MrChannel *
open_channel(const char *name)
{
	MrChannel *channel = mr_channel_by_name(name);
	const char *refusal;

	if (channel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("channel \"%s\" does not exist", name)));
	mr_channel_connect(channel);
	refusal = channel->url ? mr_http_refusal(channel->url) : NULL;
	if (refusal)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("%s", refusal),
				 errhint("A superuser can add it: ALTER SYSTEM SET millrace.allowed_hosts = …; "
						 "SELECT pg_reload_conf().")));
	return channel;
}

/* Raises an error when a channel cannot be used as it is declared. */
Datum
millrace_check_channel(PG_FUNCTION_ARGS)
{
	SPI_connect();
	(void) open_channel(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	SPI_finish();
	PG_RETURN_VOID();
}

/* Sends over HTTP. */
static void
send_request(MrDelivery *delivery)
{
	MrHttpRequest *request;

	do
	{
		request = mr_request_build(delivery);
		mr_http_run(request);
		mr_request_judge(delivery, request);
		delivery->plain = true;
	} while (delivery->outcome == MR_OUTCOME_PLAIN);
}

/* Sends one message now, and says what came back: NULL when it was taken. */
Datum
millrace_send_test(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	MrDelivery delivery = {.part = 1, .parts = 1, .key = "test", .retry_after = -1};
	MrChannel *channel;
	text *result = NULL;

	SPI_connect();
	channel = open_channel(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	/* Not what the worker's own producer is known by. */
	channel->origin = psprintf("test-%s", channel->origin);
	delivery.channel = channel;
	delivery.id = GetCurrentTimestamp();
	delivery.payload = mr_claim_test_body(channel);
	if (delivery.payload && channel->kind == MR_CHANNEL_TELEGRAM)
		delivery.payload = linitial(mr_text_split(delivery.payload));
	if (channel->url)
		send_request(&delivery);
	else
		mr_batch_send_one(&delivery);
	if (delivery.outcome != MR_OUTCOME_SENT)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		result = cstring_to_text(delivery.error ? delivery.error : "it was not sent");
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(result);
}
