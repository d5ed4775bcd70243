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

#endif							/* MR_CORE_COMPAT_H */
