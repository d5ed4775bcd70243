/*
 * secret.c
 *	  Files with passwords and certificates.
 *
 * Whoever may create a server names files that the database server reads as its own user, so the names are
 * confined to one directory, once as they are written and once more where they really lead.  No message says
 * what a file holds, nor whether one outside the directory exists.
 */
#include "postgres.h"

#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/millrace.h"
#include "core/secret.h"
#include "miscadmin.h"
#include "storage/fd.h"

#define SECRET_MAX_LENGTH 65536

/* The directory, as the setting says. */
static char *
secrets_directory(void)
{
	const char *directory = mr_secrets_directory;

	if (directory == NULL || directory[0] == '\0')
		ereport(ERROR, (errcode(ERRCODE_CONFIG_FILE_ERROR),
						errmsg("setting \"%s\" is empty", "millrace.secrets_directory")));
	return is_absolute_path(directory) ? pstrdup(directory) : psprintf("%s/%s", DataDir, directory);
}

static void
report_outside(const char *option)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("the file of option \"%s\" is not within millrace.secrets_directory", option),
			 errhint("Give its name relative to that directory.")));
}

/* Is `path` the directory itself or something in it, as the strings say? */
static bool
is_within(const char *directory, const char *path)
{
	size_t length = strlen(directory);

	while (length > 1 && directory[length - 1] == '/')
		length--;
	return strncmp(directory, path, length) == 0 && path[length] == '/';
}

void
mr_secret_check(const char *option, const char *name)
{
	if (name[0] == '\0')
		ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
						errmsg("option \"%s\" names no file", option)));
	for (const char *part = name; part != NULL; part = strchr(part, '/'))
	{
		if (*part == '/')
			part++;
		if (strncmp(part, "..", 2) == 0 && (part[2] == '/' || part[2] == '\0'))
			report_outside(option);
	}
	if (is_absolute_path(name) && !is_within(secrets_directory(), name))
		report_outside(option);
}

char *
mr_secret_path(const char *option, const char *name)
{
	char *directory = secrets_directory();
	char real_directory[PATH_MAX];
	char real_path[PATH_MAX];
	char *path;

	mr_secret_check(option, name);
	path = is_absolute_path(name) ? pstrdup(name) : psprintf("%s/%s", directory, name);
	if (realpath(directory, real_directory) == NULL)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not find the directory of setting \"%s\": %m",
							   "millrace.secrets_directory"),
						errhint("Make it, readable by the database server's user only.")));
	if (realpath(path, real_path) == NULL)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not find the file of option \"%s\": %m", option),
						errdetail("\"%s\" is looked for in millrace.secrets_directory.", name)));
	if (!is_within(real_directory, real_path))
		report_outside(option);
	return pstrdup(real_path);
}

char *
mr_secret_read(const char *option, const char *name)
{
	char *path = mr_secret_path(option, name);
	struct stat status;
	char *content;
	size_t length;
	FILE *file;

	file = AllocateFile(path, PG_BINARY_R);
	if (file == NULL)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not open the file of option \"%s\": %m", option)));
	if (fstat(fileno(file), &status) != 0 || !S_ISREG(status.st_mode) ||
		status.st_size > SECRET_MAX_LENGTH)
		ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
						errmsg("the file of option \"%s\" is not a plain file of at most %d bytes",
							   option, SECRET_MAX_LENGTH)));
	content = palloc(SECRET_MAX_LENGTH + 1);
	length = fread(content, 1, SECRET_MAX_LENGTH, file);
	if (ferror(file))
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not read the file of option \"%s\": %m", option)));
	FreeFile(file);
	content[length] = '\0';
	if (strlen(content) != length)
		ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
						errmsg("the file of option \"%s\" holds a zero byte", option)));
	while (length > 0 && (content[length - 1] == '\n' || content[length - 1] == '\r'))
		content[--length] = '\0';
	return content;
}
