/*
 * socket.h
 *	  A TCP connection, plain or with TLS, whose every wait is on the process's latch and has a deadline.
 *
 * Nothing here raises an error for what the network does: a function says that it failed, and
 * mr_socket_problem tells why, so that the caller decides whether that is an error.
 */
#ifndef MR_CORE_SOCKET_H
#define MR_CORE_SOCKET_H

#include "postgres.h"

typedef struct MrSocket MrSocket;

/*
 * A connection that is not open yet, in CurrentMemoryContext: when that goes, it is closed.
 */
extern MrSocket *mr_socket_create(void);

/*
 * From now on a call waits for no more than so many ms (0: as long as it has to).  One whose time is not over then
 * fails, and the socket says that it waits: the same call goes on.
 */
extern void mr_socket_slice(MrSocket *socket, int slice_ms);
extern bool mr_socket_waits(const MrSocket *socket);

/* Connects within so many ms, which hold for each later wait, too.  False: see the problem. */
extern bool mr_socket_open(MrSocket *socket, const char *host, int port, int timeout_ms);

/* Begins TLS: the peer must have a certificate for `host` from an authority of `ca_file` (NULL: the system's). */
extern bool mr_socket_secure(MrSocket *socket, const char *host, const char *ca_file);

extern bool mr_socket_send(MrSocket *socket, const char *bytes, Size length);

/* At least one byte and at most `size`; 0 when it failed. */
extern int mr_socket_receive(MrSocket *socket, char *buffer, int size);

extern bool mr_socket_is_open(const MrSocket *socket);
extern const char *mr_socket_problem(const MrSocket *socket);
extern void mr_socket_close(MrSocket *socket);

#endif /* MR_CORE_SOCKET_H */
