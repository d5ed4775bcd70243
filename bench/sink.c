/*
 * sink.c
 *	  An HTTP sink without delay: answers every POST with 200 as soon as it has come.
 *
 *	  sink REQUESTS [LOG]	prints its port, and after so many requests "SECONDS" from the first to the last
 *
 * LOG gets a line "time in microseconds, tab, body" for each request.
 *
 * Connections stay open.  It knows as much of HTTP as libcurl speaks to it: a Content-Length, no chunks.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS 4096
#define REQUEST 65536

static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/* What has come of the next request of a connection. */
static char *buffers[CONNECTIONS];
static size_t lengths[CONNECTIONS];
static FILE *request_log = NULL;

static double
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void
fail(const char *what)
{
	perror(what);
	exit(1);
}

/* The length of the request at the beginning of a buffer, 0 when it is not there yet. */
static size_t
request_length(const char *buffer, size_t length)
{
	const char *end = memmem(buffer, length, "\r\n\r\n", 4);
	const char *content;
	size_t total;

	if (end == NULL)
		return 0;
	content = memmem(buffer, end - buffer, "Content-Length: ", 16);
	total = end - buffer + 4 + (content ? strtoul(content + 16, NULL, 10) : 0);
	return total <= length ? total : 0;
}

/* Writes when a request has come, and its body. */
static void
log_request(const char *request, size_t length)
{
	const char *body = (const char *) memmem(request, length, "\r\n\r\n", 4) + 4;
	struct timespec time;

	clock_gettime(CLOCK_REALTIME, &time);
	fprintf(request_log, "%lld\t%.*s\n", time.tv_sec * 1000000LL + time.tv_nsec / 1000,
			(int) (request + length - body), body);
}

/* Takes what has come; returns how many requests that were, -1 at the end of the connection. */
static int
serve(int fd)
{
	ssize_t got = read(fd, buffers[fd] + lengths[fd], REQUEST - lengths[fd]);
	int requests = 0;
	size_t length;

	if (got <= 0)
		return -1;
	lengths[fd] += got;
	while ((length = request_length(buffers[fd], lengths[fd])) > 0)
	{
		if (request_log != NULL)
			log_request(buffers[fd], length);
		memmove(buffers[fd], buffers[fd] + length, lengths[fd] - length);
		lengths[fd] -= length;
		if (write(fd, answer, sizeof(answer) - 1) < 0)
			return -1;
		requests++;
	}
	return requests;
}

int
main(int argc, char **argv)
{
	long wanted = argc > 1 ? atol(argv[1]) : 1;
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	int epoll = epoll_create1(0);
	struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
	struct epoll_event events[64];
	double first = 0;
	long requests = 0;
	int one = 1;

	if (argc > 2 && (request_log = fopen(argv[2], "w")) == NULL)
		fail(argv[2]);
	if (listener < 0 || epoll < 0 || bind(listener, (struct sockaddr *) &address, size) != 0 ||
		listen(listener, 512) != 0 ||
		getsockname(listener, (struct sockaddr *) &address, &size) != 0)
		fail("listen");
	epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);

	while (requests < wanted)
	{
		int n = epoll_wait(epoll, events, 64, -1);

		for (int i = 0; i < n; i++)
		{
			int fd = events[i].data.fd;
			int served;

			if (fd == listener)
			{
				fd = accept(listener, NULL, NULL);
				if (fd < 0 || fd >= CONNECTIONS)
					fail("accept");
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
				if (buffers[fd] == NULL)
					buffers[fd] = malloc(REQUEST);
				lengths[fd] = 0;
				event.data.fd = fd;
				epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
				continue;
			}
			served = serve(fd);
			if (served < 0)
				close(fd);
			else if (served > 0)
			{
				if (first == 0)
					first = now();
				requests += served;
			}
		}
	}
	if (request_log != NULL)
		fclose(request_log);
	printf("%.6f\n", now() - first);
	return 0;
}
