/*
 * compat.h
 *	  Differences between the PostgreSQL versions that millrace builds on.
 *
 * Every PG_VERSION_NUM of the project stands here, with what brought the difference.
 */
#ifndef MR_CORE_COMPAT_H
#define MR_CORE_COMPAT_H

#if PG_VERSION_NUM < 150000
#error "millrace needs PostgreSQL 15 or later"
#endif

/* 16 lets parseTypeString report errors softly. */
#if PG_VERSION_NUM >= 160000
#define mr_parse_type(name, type, typmod) ((void) parseTypeString(name, type, typmod, NULL))
#else
#define mr_parse_type(name, type, typmod) parseTypeString(name, type, typmod, false)
#endif

#endif							/* MR_CORE_COMPAT_H */
