/*
 * compat.h
 *	  Differences between the PostgreSQL versions that millrace builds on.
 *
 * Every PG_VERSION_NUM of the project stands here, with what brought the difference.
 */
#ifndef MR_CORE_COMPAT_H
#define MR_CORE_COMPAT_H

#include "fmgr.h"

#if PG_VERSION_NUM < 150000
#error "millrace needs PostgreSQL 15 or later"
#endif

/* 16 exports the functions that PG_FUNCTION_INFO_V1 names; before, -fvisibility=hidden would hide them. */
#if PG_VERSION_NUM < 160000
#undef PG_FUNCTION_INFO_V1
#define PG_FUNCTION_INFO_V1(funcname) \
	extern PGDLLEXPORT Datum funcname(PG_FUNCTION_ARGS); \
	extern PGDLLEXPORT const Pg_finfo_record *CppConcat(pg_finfo_, funcname)(void); \
	const Pg_finfo_record *CppConcat(pg_finfo_, funcname)(void) \
	{ \
		static const Pg_finfo_record my_finfo = {1}; \
		return &my_finfo; \
	} \
	extern int no_such_variable
#endif

/* 16 lets parseTypeString report errors softly. */
#if PG_VERSION_NUM >= 160000
#define mr_parse_type(name, type, typmod) ((void) parseTypeString(name, type, typmod, NULL))
#else
#define mr_parse_type(name, type, typmod) parseTypeString(name, type, typmod, false)
#endif

/* 18 lets an index scan be instrumented. */
#if PG_VERSION_NUM >= 180000
#define mr_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, 0)
#else
#define mr_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, nkeys, 0)
#endif

/* 16 has one function for the privileges on every kind of object. */
#if PG_VERSION_NUM >= 160000
#define mr_server_aclcheck(server, role) \
	object_aclcheck(ForeignServerRelationId, server, role, ACL_USAGE)
#else
#define mr_server_aclcheck(server, role) pg_foreign_server_aclcheck(server, role, ACL_USAGE)
#endif

#endif							/* MR_CORE_COMPAT_H */
