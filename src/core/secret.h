/*
 * secret.h
 *	  Files with passwords and certificates: all lie within millrace.secrets_directory (C17).
 */
#ifndef MR_CORE_SECRET_H
#define MR_CORE_SECRET_H

/* An error when `name` (an option's value) cannot be a file within the directory; the file may be missing. */
extern void mr_secret_check(const char *option, const char *name);

/* The file's real path, after following links; an error when it is not within the directory. */
extern char *mr_secret_path(const char *option, const char *name);

/* What the file holds, without the newline at its end. */
extern char *mr_secret_read(const char *option, const char *name);

#endif /* MR_CORE_SECRET_H */
