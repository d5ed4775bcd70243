/*
 * http.h
 *	  Requests over HTTP, many at once, through libcurl.
 *
 * Nothing here raises an error for what the network does.
 */
#ifndef MR_SINK_HTTP_H
#define MR_SINK_HTTP_H

#include "nodes/pg_list.h"

#define MR_HTTP_ANSWER 8192 /* bytes of an answer that are kept; the rest is not read */

typedef struct MrHttpRequest
{
	const char *url;
	List *headers; /* char * */
	const char *body;
	const char *ca_file; /* NULL: the system's authorities */
	int timeout_ms;
	void *argument;

	/* When it has finished: */
	int status; /* 0: nothing came */
	const char *error; /* why nothing came, or why it was not sent */
	bool refused; /* it was not sent, and never can be: the address is not allowed */
	int retry_after; /* seconds, -1: not said */
	int length;
	char answer[MR_HTTP_ANSWER + 1];

	/* Of http.c */
	void *handle;
	void *list;
	bool private_address;
	char words[256];
} MrHttpRequest;

/*
 * Begins a request, which stays in memory until it is finished.  It ends at once when it cannot be
 * begun.
 */
extern void mr_http_start(MrHttpRequest *request);

/* The next request that has finished, or NULL. */
extern MrHttpRequest *mr_http_finished(void);

/*
 * A descriptor that becomes readable when something has come, and the time in ms after which to
 * look anyway (-1: none).
 */
extern pgsocket mr_http_descriptor(void);
extern long mr_http_timeout(void);

/*
 * Waits for one request, with interrupts served; it is cancelled when an error is raised meanwhile.
 */
extern void mr_http_run(MrHttpRequest *request);

/* Why requests may not go to a URL's host, or NULL: see millrace.allowed_hosts. */
extern const char *mr_http_refusal(const char *url);

#endif /* MR_SINK_HTTP_H */
