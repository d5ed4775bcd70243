/*
 * server.c
 *	  Options of servers and user mappings, and what they mean to the client library of each wrapper.
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "core/millrace.h"
#include "core/secret.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "source/server.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

PG_FUNCTION_INFO_V1(millrace_kafka_validator);
PG_FUNCTION_INFO_V1(millrace_postgres_validator);
PG_FUNCTION_INFO_V1(millrace_redis_validator);
PG_FUNCTION_INFO_V1(millrace_http_validator);

typedef enum OptionKind
{
	OPTION_TEXT,
	OPTION_NUMBER,
	OPTION_TIME, /* with its unit, else in ms */
	OPTION_SECRET,
	OPTION_FILE, /* the client is told its path */
	OPTION_SECRET_FILE /* the client is told what it holds */
} OptionKind;

typedef struct Option
{
	const char *name;
	Oid catalog;
	OptionKind kind;
	const char *property; /* of the client */
	const char *const *words; /* the values it may have, or NULL for any */
} Option;

/* What servers of one foreign-data wrapper take. */
typedef struct Wrapper
{
	const char *name;
	const Option *options;
	int noptions;
	const char *required; /* option of the server, or NULL */
	const char *required_hint;
} Wrapper;

static const char *const protocols[] = {"PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL", NULL};
static const char *const mechanisms[] = {"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", NULL};
static const char *const identifications[] = {"https", "none", NULL};

static const Option kafka_options[] = {
	{"bootstrap_servers", ForeignServerRelationId, OPTION_TEXT, "bootstrap.servers", NULL},
	{"security_protocol", ForeignServerRelationId, OPTION_TEXT, "security.protocol", protocols},
	{"sasl_mechanism", ForeignServerRelationId, OPTION_TEXT, "sasl.mechanism", mechanisms},
	{"ssl_ca_location", ForeignServerRelationId, OPTION_FILE, "ssl.ca.location", NULL},
	{"ssl_endpoint_identification", ForeignServerRelationId, OPTION_TEXT,
	 "ssl.endpoint.identification.algorithm", identifications},
	{"sasl_username", UserMappingRelationId, OPTION_TEXT, "sasl.username", NULL},
	{"sasl_password", UserMappingRelationId, OPTION_SECRET, "sasl.password", NULL},
	{"sasl_password_file", UserMappingRelationId, OPTION_SECRET_FILE, "sasl.password", NULL},
	{"ssl_certificate_location", UserMappingRelationId, OPTION_FILE, "ssl.certificate.location",
	 NULL},
	{"ssl_key_location", UserMappingRelationId, OPTION_FILE, "ssl.key.location", NULL},
	{"ssl_key_password", UserMappingRelationId, OPTION_SECRET, "ssl.key.password", NULL},
	{"ssl_key_password_file", UserMappingRelationId, OPTION_SECRET_FILE, "ssl.key.password", NULL},
};
static const Wrapper kafka = {"millrace_kafka", kafka_options, lengthof(kafka_options),
							  "bootstrap_servers",
							  "It lists the brokers to begin with, such as 'kafka:9092'."};

static const char *const sslmodes[] = {"disable",   "allow",       "prefer", "require",
									   "verify-ca", "verify-full", NULL};

static const Option postgres_options[] = {
	{"host", ForeignServerRelationId, OPTION_TEXT, "host", NULL},
	{"hostaddr", ForeignServerRelationId, OPTION_TEXT, "hostaddr", NULL},
	{"port", ForeignServerRelationId, OPTION_TEXT, "port", NULL},
	{"dbname", ForeignServerRelationId, OPTION_TEXT, "dbname", NULL},
	{"sslmode", ForeignServerRelationId, OPTION_TEXT, "sslmode", sslmodes},
	{"sslrootcert", ForeignServerRelationId, OPTION_FILE, "sslrootcert", NULL},
	{"keepalives_idle", ForeignServerRelationId, OPTION_TEXT, "keepalives_idle", NULL},
	{"tcp_user_timeout", ForeignServerRelationId, OPTION_TEXT, "tcp_user_timeout", NULL},
	{"username", UserMappingRelationId, OPTION_TEXT, "user", NULL},
	{"password", UserMappingRelationId, OPTION_SECRET, "password", NULL},
	{"password_file", UserMappingRelationId, OPTION_SECRET_FILE, "password", NULL},
	{"sslcert", UserMappingRelationId, OPTION_FILE, "sslcert", NULL},
	{"sslkey", UserMappingRelationId, OPTION_FILE, "sslkey", NULL},
	{"sslpassword", UserMappingRelationId, OPTION_SECRET, "sslpassword", NULL},
	{"sslpassword_file", UserMappingRelationId, OPTION_SECRET_FILE, "sslpassword", NULL},
};
static const Wrapper postgres = {"millrace_postgres", postgres_options, lengthof(postgres_options),
								 "dbname", "It names the database whose tables are read."};

static const char *const switches[] = {"on", "off", NULL};

static const Option redis_options[] = {
	{"host", ForeignServerRelationId, OPTION_TEXT, "host", NULL},
	{"port", ForeignServerRelationId, OPTION_NUMBER, "port", NULL},
	{"database", ForeignServerRelationId, OPTION_NUMBER, "database", NULL},
	{"tls", ForeignServerRelationId, OPTION_TEXT, "tls", switches},
	{"ssl_ca_location", ForeignServerRelationId, OPTION_FILE, "ssl_ca_location", NULL},
	{"timeout", ForeignServerRelationId, OPTION_TIME, "timeout", NULL},
	{"username", UserMappingRelationId, OPTION_TEXT, "username", NULL},
	{"password", UserMappingRelationId, OPTION_SECRET, "password", NULL},
	{"password_file", UserMappingRelationId, OPTION_SECRET_FILE, "password", NULL},
};
static const Wrapper redis = {"millrace_redis", redis_options, lengthof(redis_options), "host",
							  "It is the name or address of the Redis, such as 'localhost'."};

static const char *const http_kinds[] = {"webhook", "telegram", NULL};

static const Option http_options[] = {
	{"url", ForeignServerRelationId, OPTION_TEXT, "url", NULL},
	{"kind", ForeignServerRelationId, OPTION_TEXT, "kind", http_kinds},
	{"ssl_ca_location", ForeignServerRelationId, OPTION_FILE, "ssl_ca_location", NULL},
	{"timeout", ForeignServerRelationId, OPTION_TIME, "timeout", NULL},
	{"token", UserMappingRelationId, OPTION_SECRET, "token", NULL},
	{"token_file", UserMappingRelationId, OPTION_SECRET_FILE, "token", NULL},
	{"signing_key", UserMappingRelationId, OPTION_SECRET, "signing_key", NULL},
	{"signing_key_file", UserMappingRelationId, OPTION_SECRET_FILE, "signing_key", NULL},
};
static const Wrapper http = {"millrace_http", http_options, lengthof(http_options), NULL, NULL};

static const Wrapper *const wrappers[] = {&kafka, &postgres, &redis, &http};

/* How far two words are apart. */
static int
distance(const char *a, const char *b)
{
	return varstr_levenshtein_less_equal(a, strlen(a), b, strlen(b), 1, 1, 1, 4, true);
}

/* An error about an option that does not exist here, with what was probably meant. */
static void
report_unknown(const Wrapper *wrapper, const char *name, Oid catalog)
{
	StringInfoData all;
	const char *nearest = NULL;
	int best = 4;

	initStringInfo(&all);
	for (int i = 0; i < wrapper->noptions; i++)
	{
		const Option *option = &wrapper->options[i];

		if (strcmp(name, option->name) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
					 errmsg("option \"%s\" does not belong here", name),
					 option->catalog == UserMappingRelationId
						 ? errhint("It is an option of the user mapping (CREATE USER MAPPING).")
						 : errhint("It is an option of the server (CREATE SERVER).")));
		if (option->catalog != catalog)
			continue;
		appendStringInfo(&all, "%s%s", all.len > 0 ? ", " : "", option->name);
		if (strlen(name) < NAMEDATALEN && distance(name, option->name) < best)
		{
			best = distance(name, option->name);
			nearest = option->name;
		}
	}
	ereport(ERROR,
			(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND), errmsg("unknown option \"%s\"", name),
			 nearest != NULL ? errhint("Perhaps you meant \"%s\".", nearest)
			 : all.len > 0   ? errhint("Known are: %s.", all.data)
							 : errhint("There are no options here.")));
}

/* The value must be one of an option's words. */
static void
check_words(const Option *option, const char *value)
{
	StringInfoData all;

	initStringInfo(&all);
	for (int i = 0; option->words[i] != NULL; i++)
	{
		if (pg_strcasecmp(value, option->words[i]) == 0)
			return;
		appendStringInfo(&all, "%s%s", i > 0 ? ", " : "", option->words[i]);
	}
	ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					errmsg("invalid value \"%s\" for option \"%s\"", value, option->name),
					errhint("Known are: %s.", all.data)));
}

/* The value must be a number, or a time. */
static void
check_number(const Option *option, const char *value)
{
	int flags = option->kind == OPTION_TIME ? GUC_UNIT_MS : 0;
	const char *hint = NULL;
	int number;

	if (parse_int(value, &number, flags, &hint) && number >= (option->kind == OPTION_TIME ? 1 : 0))
		return;
	ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					errmsg("invalid value \"%s\" for option \"%s\"", value, option->name),
					option->kind == OPTION_TIME ? errhint("It is a time such as '5s' or '500ms'.")
												: errhint("It is a number.")));
}

static const Option *
find_option(const Wrapper *wrapper, const char *name, Oid catalog)
{
	for (int i = 0; i < wrapper->noptions; i++)
	{
		if (wrapper->options[i].catalog == catalog && strcmp(wrapper->options[i].name, name) == 0)
			return &wrapper->options[i];
	}
	return NULL;
}

static bool
has_option(List *options, const char *name)
{
	ListCell *cell;

	foreach(cell, options)
	{
		if (strcmp(((DefElem *) lfirst(cell))->defname, name) == 0)
			return true;
	}
	return false;
}

/* Checks the options of a server or user mapping. */
static void
check_options(const Wrapper *wrapper, List *options, Oid catalog)
{
	ListCell *cell;

	foreach(cell, options)
	{
		DefElem *given = lfirst(cell);
		const Option *option = find_option(wrapper, given->defname, catalog);
		char *value;

		if (option == NULL)
			report_unknown(wrapper, given->defname, catalog);
		value = defGetString(given);
		if (option->words != NULL)
			check_words(option, value);
		if (option->kind == OPTION_NUMBER || option->kind == OPTION_TIME)
			check_number(option, value);
		if (option->kind == OPTION_FILE || option->kind == OPTION_SECRET_FILE)
			mr_secret_check(option->name, value);
		if (value[0] == '\0')
			ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
							errmsg("option \"%s\" is empty", option->name)));
	}
	if (catalog == ForeignServerRelationId && wrapper->required != NULL &&
		!has_option(options, wrapper->required))
		ereport(ERROR, (errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
						errmsg("option \"%s\" is missing", wrapper->required),
						errhint("%s", wrapper->required_hint)));
	for (int i = 0; i < wrapper->noptions; i++)
	{
		const char *secret = wrapper->options[i].name;
		const char *file = psprintf("%s_file", secret);

		if (wrapper->options[i].kind == OPTION_SECRET && has_option(options, secret) &&
			has_option(options, file))
			ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
							errmsg("options \"%s\" and \"%s\" exclude each other", secret, file)));
	}
}

Datum
millrace_kafka_validator(PG_FUNCTION_ARGS)
{
	check_options(&kafka, untransformRelOptions(PG_GETARG_DATUM(0)), PG_GETARG_OID(1));
	PG_RETURN_VOID();
}

Datum
millrace_postgres_validator(PG_FUNCTION_ARGS)
{
	check_options(&postgres, untransformRelOptions(PG_GETARG_DATUM(0)), PG_GETARG_OID(1));
	PG_RETURN_VOID();
}

Datum
millrace_redis_validator(PG_FUNCTION_ARGS)
{
	check_options(&redis, untransformRelOptions(PG_GETARG_DATUM(0)), PG_GETARG_OID(1));
	PG_RETURN_VOID();
}

/* A URL is scheme and host, perhaps with a path; user names and passwords do not belong into it. */
static void
check_url(List *options)
{
	ListCell *cell;
	const char *url = NULL;
	bool telegram = false;

	foreach(cell, options)
	{
		DefElem *given = lfirst(cell);

		if (strcmp(given->defname, "url") == 0)
			url = defGetString(given);
		else if (strcmp(given->defname, "kind") == 0)
			telegram = pg_strcasecmp(defGetString(given), "telegram") == 0;
	}
	if (url == NULL && !telegram)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("option \"%s\" is missing", "url"),
				 errhint("It is where requests go, such as 'https://hooks.example.com'; only "
						 "kind 'telegram' has one of its own.")));
	if (url == NULL)
		return;
	if ((pg_strncasecmp(url, "http://", 7) != 0 && pg_strncasecmp(url, "https://", 8) != 0) ||
		strpbrk(url, "@?# \t\r\n\\") != NULL)
		ereport(
			ERROR,
			(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
			 errmsg("invalid value for option \"%s\"", "url"),
			 errhint("It is http:// or https://, a host, perhaps a port and a path; secrets belong "
					 "into the user mapping.")));
}

Datum
millrace_http_validator(PG_FUNCTION_ARGS)
{
	List *options = untransformRelOptions(PG_GETARG_DATUM(0));

	check_options(&http, options, PG_GETARG_OID(1));
	if (PG_GETARG_OID(1) == ForeignServerRelationId)
		check_url(options);
	PG_RETURN_VOID();
}

const char *
mr_property(List *properties, const char *name)
{
	ListCell *cell;

	foreach(cell, properties)
	{
		MrProperty *property = lfirst(cell);

		if (strcmp(property->name, name) == 0)
			return property->value;
	}
	return NULL;
}

/* Adds what the options of one catalog row mean. */
static List *
add_properties(const Wrapper *wrapper, List *properties, List *options, Oid catalog)
{
	ListCell *cell;

	foreach(cell, options)
	{
		DefElem *given = lfirst(cell);
		const Option *option = find_option(wrapper, given->defname, catalog);
		MrProperty *property;

		/* Of a later version of millrace. */
		if (option == NULL)
			continue;
		property = palloc(sizeof(MrProperty));
		property->name = option->property;
		property->value = defGetString(given);
		if (option->kind == OPTION_FILE)
			property->value = mr_secret_path(option->name, property->value);
		else if (option->kind == OPTION_SECRET_FILE)
			property->value = mr_secret_read(option->name, property->value);
		properties = lappend(properties, property);
	}
	return properties;
}

/* The options of the mapping of `role`, or of PUBLIC; NIL without one. */
static List *
mapping_options(Oid role, Oid server)
{
	HeapTuple tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(role),
									  ObjectIdGetDatum(server));
	List *options = NIL;
	Datum value;
	bool isnull;

	if (!HeapTupleIsValid(tuple))
		tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid),
								ObjectIdGetDatum(server));
	if (!HeapTupleIsValid(tuple))
		return NIL;
	value = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple, Anum_pg_user_mapping_umoptions, &isnull);
	if (!isnull)
		options = untransformRelOptions(value);
	ReleaseSysCache(tuple);
	return options;
}

/* Of which wrapper of ours is the server? */
static const Wrapper *
wrapper_of(const ForeignServer *server)
{
	const char *name = GetForeignDataWrapper(server->fdwid)->fdwname;

	for (int i = 0; i < lengthof(wrappers); i++)
	{
		if (strcmp(wrappers[i]->name, name) == 0)
			return wrappers[i];
	}
	ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
					errmsg("server \"%s\" is of wrapper %s, which millrace does not know",
						   server->servername, name)));
}

/* Whoever may create servers could else use what the network trusts this host with. */
static void
report_no_password(const char *server, const char *hint)
{
	ereport(ERROR, (errcode(ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED),
					errmsg("server \"%s\" of a non-superuser must use a password", server),
					errhint("%s", hint)));
}

/* Does it authenticate itself to the brokers? */
static void
check_kafka_password(const char *server, List *properties)
{
	const char *protocol = mr_property(properties, "security.protocol");
	bool password = protocol != NULL && pg_strncasecmp(protocol, "SASL_", 5) == 0 &&
					mr_property(properties, "sasl.password") != NULL;
	bool key = protocol != NULL && pg_strcasecmp(protocol, "SSL") == 0 &&
			   mr_property(properties, "ssl.key.location") != NULL;

	if (!password && !key)
		report_no_password(server, "Set security_protocol to SASL_SSL and give the user mapping a "
								   "password, or let a superuser own the server.");
}

bool
mr_server_must_use_password(const char *name)
{
	return !superuser_arg(GetForeignServerByName(name, false)->owner);
}

List *
mr_server_properties(const char *name, Oid role)
{
	ForeignServer *server = GetForeignServerByName(name, false);
	const Wrapper *wrapper = wrapper_of(server);
	List *properties;

	if (mr_server_aclcheck(server->serverid, role) != ACLCHECK_OK)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied for foreign server %s", name)));

	properties = add_properties(wrapper, NIL, server->options, ForeignServerRelationId);
	properties = add_properties(wrapper, properties, mapping_options(role, server->serverid),
								UserMappingRelationId);
	if (superuser_arg(server->owner))
		return properties;
	/* Where requests may go is the allow-list's affair. */
	if (wrapper == &kafka)
		check_kafka_password(name, properties);
	else if (wrapper != &http && mr_property(properties, "password") == NULL)
		report_no_password(name, "Give the user mapping a password or password_file, or let a "
								 "superuser own the server.");
	return properties;
}
