/*
 * socket.c
 *	  TCP connections, plain or with TLS.
 *
 * The descriptor does not block; whoever would have to wait sleeps on the latch and the descriptor together, so that
 * a peer that never answers holds up neither a shutdown nor a cancel.  A wake-up that was meant for the process's
 * main loop is given back when the waiting is over.
 *
 * Whoever has other things to do waits in slices: a call whose slice is over fails, says that it waits, and goes on
 * where it was when it is made again.
 */
#include "postgres.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/socket.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define PROBLEM_LENGTH 256

struct MrSocket
{
	int descriptor; /* -1: not open */
	int timeout_ms; /* that one wait may last */
	int slice_ms; /* that one call may wait; 0: as long as it has to */
	bool waits; /* the last call has to be made again */
	TimestampTz since; /* when the wait began that goes on; 0: none */
	struct addrinfo *addresses; /* while it is connecting */
	struct addrinfo *next; /* of them that is tried */
	Size sent; /* bytes of what is being sent */
	SSL_CTX *tls_context;
	SSL *tls; /* NULL: plain */
	MemoryContextCallback callback;
	char problem[PROBLEM_LENGTH];
};

/* Notes why something failed; the result is false, for the caller's own. */
static bool
fail(MrSocket *s, const char *what)
{
	strlcpy(s->problem, what, sizeof(s->problem));
	return false;
}

static bool
fail_errno(MrSocket *s, const char *what)
{
	snprintf(s->problem, sizeof(s->problem), "%s: %s", what, strerror(errno));
	return false;
}

/* Notes what the certificate, or else the last call, did wrong. */
static bool
fail_tls(MrSocket *s, const char *what)
{
	long verified = SSL_get_verify_result(s->tls);

	snprintf(s->problem, sizeof(s->problem), "%s: %s", what,
			 verified != X509_V_OK ? X509_verify_cert_error_string(verified)
								   : "the peer does not speak TLS as we do");
	return false;
}

static void
close_at_reset(void *argument)
{
	mr_socket_close(argument);
}

MrSocket *
mr_socket_create(void)
{
	MrSocket *s = palloc0(sizeof(MrSocket));

	s->descriptor = -1;
	s->callback.func = close_at_reset;
	s->callback.arg = s;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &s->callback);
	return s;
}

bool
mr_socket_is_open(const MrSocket *s)
{
	return s->descriptor >= 0;
}

const char *
mr_socket_problem(const MrSocket *s)
{
	return s->problem;
}

void
mr_socket_slice(MrSocket *s, int slice_ms)
{
	s->slice_ms = slice_ms;
}

bool
mr_socket_waits(const MrSocket *s)
{
	return s->waits;
}

/* Closes the descriptor; what is known of other addresses stays. */
static void
close_descriptor(MrSocket *s)
{
	if (s->tls != NULL)
		SSL_free(s->tls);
	if (s->tls_context != NULL)
		SSL_CTX_free(s->tls_context);
	s->tls = NULL;
	s->tls_context = NULL;
	s->since = 0;
	s->sent = 0;
	if (s->descriptor < 0)
		return;
	close(s->descriptor);
	s->descriptor = -1;
	ReleaseExternalFD();
}

/* Forgets the addresses of a host. */
static void
forget_addresses(MrSocket *s)
{
	if (s->addresses != NULL)
		freeaddrinfo(s->addresses);
	s->addresses = s->next = NULL;
}

void
mr_socket_close(MrSocket *s)
{
	close_descriptor(s);
	forget_addresses(s);
	s->waits = false;
}

/* Waits until the descriptor is ready, or the time is over, or the slice. */
static bool
wait_until(MrSocket *s, int event)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz deadline;
	TimestampTz until;
	bool woken = false;
	int ready = 0;
	long left;

	if (s->since == 0)
		s->since = now;
	until = deadline = TimestampTzPlusMilliseconds(s->since, s->timeout_ms);
	if (s->slice_ms > 0)
		until = Min(deadline, TimestampTzPlusMilliseconds(now, s->slice_ms));
	do
	{
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
		ready = WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH | event,
								  s->descriptor, left, PG_WAIT_EXTENSION);
		if (ready & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			woken = true;
			CHECK_FOR_INTERRUPTS();
		}
	} while ((ready & event) == 0 && left > 0);
	if (woken)
		SetLatch(MyLatch);
	s->waits = (ready & event) == 0 && until < deadline;
	if (s->waits)
		return false;
	s->since = 0;
	if (ready & event)
		return true;
	snprintf(s->problem, sizeof(s->problem), "no answer within %d ms", s->timeout_ms);
	return false;
}

/* Connects to one address. */
static bool
connect_to(MrSocket *s, const struct addrinfo *address)
{
	int error = 0;
	socklen_t length = sizeof(error);
	int one = 1;

	if (s->descriptor < 0)
	{
		if (!AcquireExternalFD())
			return fail_errno(s, "too many files are open");
		s->descriptor = socket(address->ai_family, address->ai_socktype, address->ai_protocol);
		if (s->descriptor < 0)
		{
			ReleaseExternalFD();
			return fail_errno(s, "cannot make a socket");
		}
		if (fcntl(s->descriptor, F_SETFL, O_NONBLOCK) < 0 ||
			fcntl(s->descriptor, F_SETFD, FD_CLOEXEC) < 0)
			return fail_errno(s, "cannot set up a socket");
		(void) setsockopt(s->descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (connect(s->descriptor, address->ai_addr, address->ai_addrlen) == 0)
			return true;
		if (errno != EINPROGRESS)
			return fail_errno(s, "cannot connect");
	}
	if (!wait_until(s, WL_SOCKET_WRITEABLE))
		return false;
	if (getsockopt(s->descriptor, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
		return fail_errno(s, "cannot connect");
	errno = error;
	return error == 0 ? true : fail_errno(s, "cannot connect");
}

/* Finds the addresses of a host. */
static bool
find_addresses(MrSocket *s, const char *host, int port)
{
	struct addrinfo hints = {0};
	char service[16];
	int error;

	hints.ai_socktype = SOCK_STREAM;
	snprintf(service, sizeof(service), "%d", port);
	error = getaddrinfo(host, service, &hints, &s->addresses);
	if (error != 0)
	{
		s->addresses = NULL;
		snprintf(s->problem, sizeof(s->problem), "host \"%s\" is not known: %s", host,
				 gai_strerror(error));
		return false;
	}
	s->next = s->addresses;
	return true;
}

bool
mr_socket_open(MrSocket *s, const char *host, int port, int timeout_ms)
{
	bool connected = false;

	if (!s->waits)
	{
		mr_socket_close(s);
		s->timeout_ms = timeout_ms;
		if (!find_addresses(s, host, port))
			return false;
	}
	s->waits = false;
	while (!connected && s->next != NULL)
	{
		connected = connect_to(s, s->next);
		if (s->waits)
			return false;
		if (!connected)
		{
			close_descriptor(s);
			s->next = s->next->ai_next;
		}
	}
	forget_addresses(s);
	return connected;
}

/* What a call of the library wants to wait for, if it does. */
static bool
wait_for_tls(MrSocket *s, int result, bool *failed)
{
	int error = SSL_get_error(s->tls, result);

	*failed = false;
	if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
	{
		*failed = !wait_until(s, error == SSL_ERROR_WANT_READ ? WL_SOCKET_READABLE
															  : WL_SOCKET_WRITEABLE);
		return !*failed;
	}
	return false;
}

/* Tells the library whom to expect. */
static bool
expect_peer(MrSocket *s, const char *host)
{
	X509_VERIFY_PARAM *parameters = SSL_get0_param(s->tls);

	if (X509_VERIFY_PARAM_set1_ip_asc(parameters, host) == 1)
		return true;
	return SSL_set_tlsext_host_name(s->tls, host) == 1 && SSL_set1_host(s->tls, host) == 1;
}

/* Prepares TLS. */
static bool
make_tls(MrSocket *s, const char *host, const char *ca_file)
{
	s->tls_context = SSL_CTX_new(TLS_client_method());
	if (s->tls_context == NULL)
		return fail(s, "cannot prepare TLS");
	(void) SSL_CTX_set_min_proto_version(s->tls_context, TLS1_2_VERSION);
	SSL_CTX_set_mode(s->tls_context,
					 SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_verify(s->tls_context, SSL_VERIFY_PEER, NULL);
	if (ca_file != NULL ? SSL_CTX_load_verify_locations(s->tls_context, ca_file, NULL) != 1
						: SSL_CTX_set_default_verify_paths(s->tls_context) != 1)
		return fail(s, "cannot read the certificates of the authorities");
	s->tls = SSL_new(s->tls_context);
	if (s->tls == NULL || SSL_set_fd(s->tls, s->descriptor) != 1 || !expect_peer(s, host))
		return fail(s, "cannot prepare TLS");
	return true;
}

bool
mr_socket_secure(MrSocket *s, const char *host, const char *ca_file)
{
	bool failed;
	int result;

	s->waits = false;
	if (s->tls_context == NULL && !make_tls(s, host, ca_file))
		return false;
	while ((result = SSL_connect(s->tls)) != 1)
	{
		if (!wait_for_tls(s, result, &failed))
			return failed ? false : fail_tls(s, "TLS failed");
	}
	return true;
}

bool
mr_socket_send(MrSocket *s, const char *bytes, Size length)
{
	bool failed;

	s->waits = false;
	while (s->sent < length)
	{
		ssize_t sent;

		if (s->tls != NULL)
		{
			sent = SSL_write(s->tls, bytes + s->sent, (int) Min(length - s->sent, PG_INT32_MAX));
			if (sent <= 0)
			{
				if (wait_for_tls(s, (int) sent, &failed))
					continue;
				return failed ? false : fail(s, "the connection was closed");
			}
		}
		else
		{
			sent = send(s->descriptor, bytes + s->sent, length - s->sent, 0);
			if (sent < 0)
			{
				if (errno == EINTR)
					continue;
				if (errno != EAGAIN && errno != EWOULDBLOCK)
					return fail_errno(s, "cannot send");
				if (!wait_until(s, WL_SOCKET_WRITEABLE))
					return false;
				continue;
			}
		}
		s->sent += sent;
	}
	s->sent = 0;
	return true;
}

int
mr_socket_receive(MrSocket *s, char *buffer, int size)
{
	bool failed;

	s->waits = false;
	for (;;)
	{
		ssize_t received;

		if (s->tls != NULL)
		{
			received = SSL_read(s->tls, buffer, size);
			if (received > 0)
				return (int) received;
			if (wait_for_tls(s, (int) received, &failed))
				continue;
			if (!failed)
				(void) fail(s, "the connection was closed");
			return 0;
		}
		received = recv(s->descriptor, buffer, size, 0);
		if (received > 0)
			return (int) received;
		if (received == 0)
		{
			(void) fail(s, "the connection was closed");
			return 0;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != EWOULDBLOCK)
		{
			(void) fail_errno(s, "cannot receive");
			return 0;
		}
		if (!wait_until(s, WL_SOCKET_READABLE))
			return 0;
	}
}
