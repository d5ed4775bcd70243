/*
 * http.c
 *	  Requests over HTTP, many at once, through libcurl's multi interface.
 *
 * libcurl is told of sockets by an epoll descriptor of ours, which a wait event set can hold (sets
 * of PostgreSQL cannot remove). Names are resolved by threads of libcurl's: all signals are blocked
 * around its calls.  No callback calls PostgreSQL: answers go into a buffer of fixed size in the
 * request.
 *
 * Where requests may go is said by millrace.allowed_hosts: the host of the URL must be listed, and
 * the address that it turns out to have must be public, or listed as well.  The address is looked
 * at when the socket is made, after which nothing can change it.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "core/millrace.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "sink/http.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#define CONNECT_TIMEOUT_MS 10000
#define MAX_NETWORKS 64
#define SPARE_HANDLES 64

/* An address with so many bits that count, as IPv6; IPv4 is mapped into it. */
typedef struct Network
{
	unsigned char address[16];
	int bits;
} Network;

static CURLM *multi = NULL;
static int epoll_descriptor = -1;
static TimestampTz timer = 0; /* when libcurl wants to be called, 0: not */

/* millrace.allowed_hosts as last parsed. */
static MemoryContext allowed_context = NULL;
static char *parsed_setting = NULL;
static List *allowed_names = NIL; /* char * */
static char *allowed_url = NULL; /* the last one that was looked at and is allowed */
static Network networks[MAX_NETWORKS];
static int nnetworks = 0;

/* Addresses that only those who are listed may be. */
static const char *const private_networks[] = {
	"0.0.0.0/8",     "10.0.0.0/8",   "100.64.0.0/10",  "127.0.0.0/8",   "169.254.0.0/16",
	"172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3",
	"::/127",        "64:ff9b::/96", "fc00::/7",       "fe80::/10",     "ff00::/8",
	"2002::/16",     "2001::/32",
};

/*
 * ---- where requests may go
 * ----------------------------------------------------------------------------------
 */

/* An address or network as text; false when it is none. */
static bool
parse_network(const char *text, Network *network)
{
	char copy[64];
	char *slash;
	int most = 128;
	struct in_addr v4;

	if (strlen(text) >= sizeof(copy))
		return false;
	strlcpy(copy, text, sizeof(copy));
	slash = strchr(copy, '/');
	if (slash)
		*slash++ = '\0';
	if (inet_pton(AF_INET, copy, &v4) == 1)
	{
		memset(network->address, 0, 10);
		memset(network->address + 10, 0xff, 2);
		memcpy(network->address + 12, &v4, 4);
		most = 32;
	}
	else if (inet_pton(AF_INET6, copy, network->address) != 1)
		return false;
	network->bits = most;
	if (slash)
	{
		char *end;
		long bits = strtol(slash, &end, 10);

		if (*slash == '\0' || *end != '\0' || bits < 0 || bits > most)
			return false;
		network->bits = (int) bits;
	}
	network->bits += 128 - most;
	return true;
}

static bool
within(const unsigned char *address, const Network *network)
{
	int bytes = network->bits / 8;
	int rest = network->bits % 8;

	return memcmp(address, network->address, bytes) == 0 &&
		   (rest == 0 || ((address[bytes] ^ network->address[bytes]) & (0xff << (8 - rest))) == 0);
}

/* Reads the setting again when it has changed. */
static void
read_allowed(void)
{
	const char *setting = mr_allowed_hosts ? mr_allowed_hosts : "";
	MemoryContext old;
	List *entries = NIL;
	ListCell *cell;

	if (parsed_setting != NULL && strcmp(parsed_setting, setting) == 0)
		return;
	if (allowed_context == NULL)
		allowed_context = AllocSetContextCreate(TopMemoryContext, "millrace allowed hosts",
												ALLOCSET_SMALL_SIZES);
	MemoryContextReset(allowed_context);
	allowed_names = NIL;
	allowed_url = NULL;
	nnetworks = 0;
	old = MemoryContextSwitchTo(allowed_context);
	parsed_setting = pstrdup(setting);
	if (!SplitGUCList(pstrdup(setting), ',', &entries))
		ereport(LOG, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					  errmsg("millrace.allowed_hosts is not a list of names: \"%s\"", setting)));
	foreach(cell, entries)
	{
		const char *entry = lfirst(cell);

		if (nnetworks < MAX_NETWORKS && parse_network(entry, &networks[nnetworks]))
			nnetworks++;
		else
			allowed_names = lappend(allowed_names, lfirst(cell));
	}
	MemoryContextSwitchTo(old);
}

/* Is the address listed? */
static bool
address_listed(const unsigned char *address)
{
	for (int i = 0; i < nnetworks; i++)
	{
		if (within(address, &networks[i]))
			return true;
	}
	return false;
}

/* The addresses of the fixed list, parsed once. */
static bool
address_private(const unsigned char *address)
{
	static Network fixed[lengthof(private_networks)];
	static bool parsed = false;

	for (int i = 0; i < lengthof(private_networks) && !parsed; i++)
		(void) parse_network(private_networks[i], &fixed[i]);
	parsed = true;
	for (int i = 0; i < lengthof(private_networks); i++)
	{
		if (within(address, &fixed[i]))
			return true;
	}
	return false;
}

/* Is the name listed, itself or by a pattern like *.example.com? */
static bool
name_listed(const char *name)
{
	ListCell *cell;

	foreach(cell, allowed_names)
	{
		const char *entry = lfirst(cell);
		size_t length = strlen(entry);

		if (strcmp(entry, "*") == 0 || pg_strcasecmp(entry, name) == 0)
			return true;
		if (length > 2 && entry[0] == '*' && entry[1] == '.' && strlen(name) >= length &&
			pg_strcasecmp(name + strlen(name) - (length - 1), entry + 1) == 0)
			return true;
	}
	return false;
}

const char *
mr_http_refusal(const char *url)
{
	CURLU *parts;
	char *host = NULL;
	char *copy = NULL;
	Network address;
	size_t length;

	read_allowed();
	if (allowed_url != NULL && strcmp(allowed_url, url) == 0)
		return NULL;
	parts = curl_url();
	if (parts && curl_url_set(parts, CURLUPART_URL, url, 0) == CURLUE_OK &&
		curl_url_get(parts, CURLUPART_HOST, &host, 0) == CURLUE_OK)
		copy = pstrdup(host);
	curl_free(host);
	curl_url_cleanup(parts);
	if (copy == NULL)
		return "the channel's address is no URL"; /* which may have a token in it */
	length = strlen(copy);
	if (length > 2 && copy[0] == '[' && copy[length - 1] == ']')
	{
		copy[length - 1] = '\0';
		copy++;
	}
	if (parse_network(copy, &address) ? address_listed(address.address) ||
											(name_listed("*") && !address_private(address.address))
									  : name_listed(copy))
	{
		if (allowed_url != NULL)
			pfree(allowed_url);
		allowed_url = MemoryContextStrdup(allowed_context, url);
		return NULL;
	}
	return psprintf("host \"%s\" is not listed in millrace.allowed_hosts", copy);
}

/*
 * ---- what libcurl calls: nothing of PostgreSQL here
 * --------------------------------------------------------
 */

/* Makes the socket, unless the address is a private one that is not listed. */
static curl_socket_t
open_socket(void *argument, curlsocktype purpose, struct curl_sockaddr *to)
{
	MrHttpRequest *request = argument;
	unsigned char address[16] = {0};

	if (to->family == AF_INET)
	{
		memset(address + 10, 0xff, 2);
		memcpy(address + 12, &((struct sockaddr_in *) &to->addr)->sin_addr, 4);
	}
	else if (to->family == AF_INET6)
		memcpy(address, &((struct sockaddr_in6 *) &to->addr)->sin6_addr, 16);
	else
		return CURL_SOCKET_BAD;
	if (address_private(address) && !address_listed(address))
	{
		request->private_address = true;
		return CURL_SOCKET_BAD;
	}
	return socket(to->family, to->socktype | SOCK_CLOEXEC, to->protocol);
}

/* Keeps what fits; more than that ends the transfer. */
static size_t
take_answer(char *bytes, size_t size, size_t count, void *argument)
{
	MrHttpRequest *request = argument;
	size_t fits = Min(size * count, (size_t) (MR_HTTP_ANSWER - request->length));

	memcpy(request->answer + request->length, bytes, fits);
	request->length += (int) fits;
	return fits;
}

/* Watches a socket as libcurl wants it watched. */
static int
watch_socket(CURL *handle, curl_socket_t socket, int what, void *argument, void *known)
{
	struct epoll_event event = {0};

	if (what == CURL_POLL_REMOVE)
	{
		(void) epoll_ctl(epoll_descriptor, EPOLL_CTL_DEL, socket, NULL);
		return 0;
	}
	event.data.fd = socket;
	if (what != CURL_POLL_OUT)
		event.events |= EPOLLIN;
	if (what != CURL_POLL_IN)
		event.events |= EPOLLOUT;
	if (epoll_ctl(epoll_descriptor, EPOLL_CTL_MOD, socket, &event) != 0 && errno == ENOENT)
		(void) epoll_ctl(epoll_descriptor, EPOLL_CTL_ADD, socket, &event);
	return 0;
}

static int
set_timer(CURLM *handle, long timeout_ms, void *argument)
{
	timer = timeout_ms < 0 ? 0 : TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	return 0;
}

/*
 * ---- requests
 * -----------------------------------------------------------------------------------------------
 */

/* Makes the handle of all, once in the life of the process. */
static void
be_ready(void)
{
	sigset_t all;
	sigset_t before;

	if (multi != NULL)
		return;
	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES), errmsg("too many files are open")));
	epoll_descriptor = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_descriptor < 0)
	{
		ReleaseExternalFD();
		ereport(ERROR,
				(errcode_for_socket_access(), errmsg("could not create an epoll descriptor: %m")));
	}
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK)
		multi = curl_multi_init();
	if (multi)
	{
		curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, watch_socket);
		curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, set_timer);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (multi == NULL)
	{
		close(epoll_descriptor);
		ReleaseExternalFD();
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("could not start libcurl")));
	}
}

/* Handles that wait to be used again. */
static CURL *spare[SPARE_HANDLES];
static int nspare = 0;

/* Requests that ended before they began. */
static List *unsent = NIL;

static void
end_unsent(MrHttpRequest *request, const char *why, bool refused)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	strlcpy(request->words, why, sizeof(request->words));
	request->error = request->words;
	request->refused = refused;
	unsent = lappend(unsent, request);
	MemoryContextSwitchTo(old);
}

/* Sets up one handle. */
static bool
set_options(CURL *handle, MrHttpRequest *request)
{
	struct curl_slist *list = NULL;
	ListCell *cell;

	foreach(cell, request->headers)
	{
		struct curl_slist *longer = curl_slist_append(list, lfirst(cell));

		if (longer == NULL)
		{
			curl_slist_free_all(list);
			return false;
		}
		list = longer;
	}
	request->list = list;
#if LIBCURL_VERSION_NUM >= 0x075500
	curl_easy_setopt(handle, CURLOPT_PROTOCOLS_STR, "http,https");
#else
	curl_easy_setopt(handle, CURLOPT_PROTOCOLS, (long) (CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
	curl_easy_setopt(handle, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(handle, CURLOPT_PROXY, "");
	curl_easy_setopt(handle, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(handle, CURLOPT_CONNECTTIMEOUT_MS,
					 (long) Min(request->timeout_ms, CONNECT_TIMEOUT_MS));
	curl_easy_setopt(handle, CURLOPT_TIMEOUT_MS, (long) request->timeout_ms);
	curl_easy_setopt(handle, CURLOPT_OPENSOCKETFUNCTION, open_socket);
	curl_easy_setopt(handle, CURLOPT_OPENSOCKETDATA, request);
	curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, take_answer);
	curl_easy_setopt(handle, CURLOPT_WRITEDATA, request);
	curl_easy_setopt(handle, CURLOPT_PRIVATE, request);
	curl_easy_setopt(handle, CURLOPT_USERAGENT, "millrace/" MR_VERSION);
	if (request->ca_file != NULL)
	{
		curl_easy_setopt(handle, CURLOPT_CAINFO, request->ca_file);
		curl_easy_setopt(handle, CURLOPT_CAPATH, NULL);
	}
	curl_easy_setopt(handle, CURLOPT_HTTPHEADER, list);
	curl_easy_setopt(handle, CURLOPT_POST, 1L);
	curl_easy_setopt(handle, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) strlen(request->body));
	return curl_easy_setopt(handle, CURLOPT_POSTFIELDS, request->body) == CURLE_OK &&
		   curl_easy_setopt(handle, CURLOPT_URL, request->url) == CURLE_OK;
}

/* Gives back what libcurl holds for a request. */
static void
release(MrHttpRequest *request)
{
	if (request->handle)
	{
		curl_multi_remove_handle(multi, request->handle);
		if (nspare < SPARE_HANDLES)
		{
			curl_easy_reset(request->handle);
			spare[nspare++] = request->handle;
		}
		else
			curl_easy_cleanup(request->handle);
	}
	curl_slist_free_all(request->list);
	request->handle = NULL;
	request->list = NULL;
}

void
mr_http_start(MrHttpRequest *request)
{
	const char *refusal = mr_http_refusal(request->url);
	sigset_t all;
	sigset_t before;
	bool begun = false;
	int running;

	request->status = 0;
	request->error = NULL;
	request->refused = request->private_address = false;
	request->retry_after = -1;
	request->length = 0;
	if (refusal != NULL)
	{
		end_unsent(request, refusal, true);
		return;
	}
	be_ready();
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	request->handle = nspare > 0 ? spare[--nspare] : curl_easy_init();
	if (request->handle)
	{
		begun = set_options(request->handle, request) &&
				curl_multi_add_handle(multi, request->handle) == CURLM_OK;
		/* It is written at once, not when the caller waits for it. */
		if (begun)
			curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);
		else
			release(request);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!begun)
		end_unsent(request, "libcurl could not begin the request", false);
}

/* What came of a request. */
static void
finish(MrHttpRequest *request, CURLcode code)
{
	long status = 0;
	curl_off_t retry_after = 0;

	curl_easy_getinfo(request->handle, CURLINFO_RESPONSE_CODE, &status);
	curl_easy_getinfo(request->handle, CURLINFO_RETRY_AFTER, &retry_after);
	/* An answer that is longer than what we want of it was cut by us. */
	if (code == CURLE_OK || (code == CURLE_WRITE_ERROR && request->length == MR_HTTP_ANSWER))
		request->status = (int) status;
	else if (request->private_address)
	{
		request->error = "the host has a private address, which is not listed in "
						 "millrace.allowed_hosts";
		request->refused = true;
	}
	else
	{
		strlcpy(request->words, curl_easy_strerror(code), sizeof(request->words));
		request->error = request->words;
	}
	if (retry_after > 0)
		request->retry_after = (int) Min(retry_after, SECS_PER_DAY);
	request->answer[request->length] = '\0';
}

/* Does what sockets and the clock allow now. */
static void
do_io(void)
{
	struct epoll_event events[64];
	int running;
	int n;

	if (timer != 0 && timer <= GetCurrentTimestamp())
	{
		timer = 0;
		curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);
	}
	n = epoll_wait(epoll_descriptor, events, lengthof(events), 0);
	for (int i = 0; i < n; i++)
	{
		int what = 0;

		if (events[i].events & EPOLLIN)
			what |= CURL_CSELECT_IN;
		if (events[i].events & EPOLLOUT)
			what |= CURL_CSELECT_OUT;
		if (events[i].events & (EPOLLERR | EPOLLHUP))
			what |= CURL_CSELECT_ERR;
		curl_multi_socket_action(multi, events[i].data.fd, what, &running);
	}
}

/* A request that has ended, of those that libcurl has told of; NULL: none. */
static MrHttpRequest *
next_finished(void)
{
	CURLMsg *message;
	int left;

	while ((message = curl_multi_info_read(multi, &left)) != NULL)
	{
		CURLcode code = message->data.result;
		void *private = NULL;
		MrHttpRequest *request;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &private);
		request = private;
		finish(request, code);
		release(request);
		return request;
	}
	return NULL;
}

MrHttpRequest *
mr_http_finished(void)
{
	MrHttpRequest *request = NULL;
	sigset_t all;
	sigset_t before;

	if (unsent != NIL)
	{
		request = linitial(unsent);
		unsent = list_delete_first(unsent);
		return request;
	}
	if (multi == NULL)
		return NULL;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	request = next_finished();
	if (request == NULL)
	{
		do_io();
		request = next_finished();
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return request;
}

/* Ends a request that has not finished. */
static void
cancel(MrHttpRequest *request)
{
	sigset_t all;
	sigset_t before;

	unsent = list_delete_ptr(unsent, request);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	release(request);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

pgsocket
mr_http_descriptor(void)
{
	return epoll_descriptor < 0 ? PGINVALID_SOCKET : epoll_descriptor;
}

long
mr_http_timeout(void)
{
	if (unsent != NIL)
		return 0;
	return timer == 0 ? -1 : TimestampDifferenceMilliseconds(GetCurrentTimestamp(), timer);
}

void
mr_http_run(MrHttpRequest *request)
{
	mr_http_start(request);
	PG_TRY();
	{
		while (mr_http_finished() != request)
		{
			long timeout = mr_http_timeout();

			CHECK_FOR_INTERRUPTS();
			if (timeout == 0)
				continue;
			(void) WaitLatchOrSocket(
				MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH | WL_SOCKET_READABLE,
				mr_http_descriptor(), timeout < 0 ? 1000 : timeout, PG_WAIT_EXTENSION);
			ResetLatch(MyLatch);
		}
	}
	PG_CATCH();
	{
		cancel(request);
		PG_RE_THROW();
	}
	PG_END_TRY();
}
