/*
 * server.h
 *	  Endpoints: servers and their user mappings.
 */
#ifndef MR_SOURCE_SERVER_H
#define MR_SOURCE_SERVER_H

#include "nodes/pg_list.h"

/* A property of a client library. */
typedef struct MrProperty
{
	const char *name;
	char *value;
} MrProperty;

/*
 * What a client library must be told to reach a server as `role`, as a list of MrProperty *, secrets included.  An
 * error when the role may not use the server, or a non-superuser's server uses no password.
 */
extern List *mr_server_properties(const char *server, Oid role);

/* Must the endpoint ask for the password, because a non-superuser owns the server? */
extern bool mr_server_must_use_password(const char *server);

/* A property of such a list, or NULL. */
extern const char *mr_property(List *properties, const char *name);

#endif /* MR_SOURCE_SERVER_H */
