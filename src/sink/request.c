/*
 * request.c
 *	  Deliveries as requests over HTTP, and what their answers mean.
 *
 * A webhook gets the body as it is, a header Idempotency-Key that is the same for each attempt, and
 * when the user mapping has a signing key, a header with the HMAC of time and body.  Telegram gets
 * its text with HTML escaped.
 */
#include "postgres.h"

#include "core/hash.h"
#include "core/millrace.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "sink/delivery.h"
#include "sink/http.h"
#include "source/server.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"

#define TIMEOUT_MS 10000
#define EXCERPT 200 /* bytes of an answer that an error quotes */

/* "t=<unix time>,v1=<HMAC-SHA-256 of time, a dot and the body in hexadecimal>" */
static char *
sign(const char *key, const char *body)
{
	char *time = psprintf(INT64_FORMAT,
						  (int64) (GetCurrentTimestamp() / USECS_PER_SEC +
								   (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * INT64CONST(86400)));

	return psprintf("t=%s,v1=%s", time, mr_hmac(key, psprintf("%s.%s", time, body)));
}

/* Telegram's request for one part. */
static char *
telegram_body(const MrDelivery *delivery)
{
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfo(&body, "{\"chat_id\": %s, ", delivery->channel->chat);
	if (delivery->channel->thread)
		appendStringInfo(&body, "\"message_thread_id\": %s, ", delivery->channel->thread);
	if (!delivery->plain)
		appendStringInfoString(&body, "\"parse_mode\": \"HTML\", ");
	appendStringInfoString(&body, "\"text\": ");
	escape_json(&body, delivery->plain ? delivery->payload : mr_text_escape(delivery->payload));
	appendStringInfoChar(&body, '}');
	return body.data;
}

MrHttpRequest *
mr_request_build(MrDelivery *delivery)
{
	MrChannel *channel = delivery->channel;
	MrHttpRequest *request = palloc0(sizeof(MrHttpRequest));
	const char *timeout = mr_property(channel->properties, "timeout");
	const char *token = mr_property(channel->properties, "token");
	const char *key = mr_property(channel->properties, "signing_key");

	request->url = channel->url;
	request->ca_file = mr_property(channel->properties, "ssl_ca_location");
	request->timeout_ms = TIMEOUT_MS;
	if (timeout != NULL)
		(void) parse_int(timeout, &request->timeout_ms, GUC_UNIT_MS, NULL);
	request->argument = delivery;
	request->headers = list_make2("Content-Type: application/json", "Expect:");
	if (channel->kind == MR_CHANNEL_TELEGRAM)
	{
		request->body = telegram_body(delivery);
		return request;
	}
	request->body = delivery->payload;
	request->headers = list_concat_copy(channel->headers, request->headers);
	request->headers = lappend(request->headers,
							   psprintf("Idempotency-Key: %s-" INT64_FORMAT "-%d", channel->origin,
										delivery->id, delivery->part));
	if (token)
		request->headers = lappend(request->headers, psprintf("Authorization: Bearer %s", token));
	if (key)
		request->headers = lappend(request->headers,
								   psprintf("X-Millrace-Signature: %s", sign(key, request->body)));
	return request;
}

/* What an answer says, on one line, in the server's encoding or not at all. */
static char *
excerpt(const MrHttpRequest *request)
{
	int length = (int) strnlen(request->answer, request->length);
	char *text;

	length = pg_mbcliplen(request->answer, length, EXCERPT);
	if (length == 0 || !pg_verifymbstr(request->answer, length, true))
		return "";
	text = pnstrdup(request->answer, length);
	for (char *c = text; *c; c++)
	{
		if ((unsigned char) *c < ' ')
			*c = ' ';
	}
	return psprintf(": %s", text);
}

/* The seconds that Telegram's answer asks for, -1 when it does not say. */
static int
telegram_retry_after(const MrHttpRequest *request)
{
	static const char name[] = "\"retry_after\":";
	const char *found = strstr(request->answer, name);
	long seconds;

	if (found == NULL)
		return -1;
	seconds = strtol(found + strlen(name), NULL, 10);
	return seconds < 0 ? -1 : (int) Min(seconds, SECS_PER_DAY);
}

void
mr_request_judge(MrDelivery *delivery, const MrHttpRequest *request)
{
	bool telegram = delivery->channel->kind == MR_CHANNEL_TELEGRAM;
	int status = request->status;

	delivery->status = status;
	if (request->refused)
	{
		delivery->outcome = MR_OUTCOME_UNSENT;
		delivery->not_allowed = true;
		delivery->error = pstrdup(request->error);
		return;
	}
	if (status == 0)
	{
		/* Whether it was received is not known: it is sent again with the same key. */
		delivery->outcome = MR_OUTCOME_RETRY;
		delivery->error = pstrdup(request->error ? request->error : "no answer");
		return;
	}
	if (status >= 200 && status < 300)
	{
		delivery->outcome = MR_OUTCOME_SENT;
		return;
	}
	delivery->error = psprintf("HTTP status %d%s", status, excerpt(request));
	if (status == 429)
	{
		delivery->outcome = MR_OUTCOME_RETRY;
		delivery->retry_after = request->retry_after;
		if (telegram && delivery->retry_after < 0)
			delivery->retry_after = telegram_retry_after(request);
	}
	else if (status == 408 || status >= 500 || status < 200)
		delivery->outcome = MR_OUTCOME_RETRY;
	else if (telegram && status == 400 && !delivery->plain &&
			 strstr(request->answer, "entities") != NULL)
		delivery->outcome = MR_OUTCOME_PLAIN;
	else
	{
		delivery->outcome = MR_OUTCOME_DEAD;
		if (status < 400)
			delivery->error = psprintf("HTTP status %d: redirects are not followed", status);
	}
}
