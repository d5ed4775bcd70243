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

/* 16 moved VARDATA_ANY() and its kind out of postgres.h. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
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

/* 17 lets an index keep something open between insertions. */
#if PG_VERSION_NUM >= 170000
#define mr_index_insert_cleanup(index, info) index_insert_cleanup(index, info)
#else
#define mr_index_insert_cleanup(index, info) ((void) 0)
#endif

/* 18 has a query's targets speak of grouped expressions by Vars of an entry of their own. */
#if PG_VERSION_NUM >= 180000
#define mr_flatten_groups(query) \
	do \
	{ \
		if ((query)->hasGroupRTE) \
		{ \
			(query)->targetList = (List *) flatten_group_exprs(NULL, query, \
															   (Node *) (query)->targetList); \
			(query)->havingQual = flatten_group_exprs(NULL, query, (query)->havingQual); \
		} \
	} while (0)
#else
#define mr_flatten_groups(query) ((void) 0)
#endif

/* 16 lets stringToQualifiedNameList report errors softly. */
#if PG_VERSION_NUM >= 160000
#define mr_qualified_name_list(name) stringToQualifiedNameList(name, NULL)
#else
#define mr_qualified_name_list(name) stringToQualifiedNameList(name)
#endif

/* 18 lets an index scan be instrumented. */
#if PG_VERSION_NUM >= 180000
#define mr_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, 0)
#else
#define mr_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, nkeys, 0)
#endif

/* Splitting pages needs the table from 16 on; 17 finds old snapshots elsewhere. */
#if PG_VERSION_NUM >= 170000
#define mr_bt_search(index, heap, key, buffer, access) _bt_search(index, heap, key, buffer, access)
#elif PG_VERSION_NUM >= 160000
#define mr_bt_search(index, heap, key, buffer, access) \
	_bt_search(index, heap, key, buffer, access, NULL)
#else
#define mr_bt_search(index, heap, key, buffer, access) _bt_search(index, key, buffer, access, NULL)
#endif

/* 16 has other words for what names a relation's files. */
#if PG_VERSION_NUM >= 160000
#define mr_read_recent_buffer(relation, block, buffer) \
	ReadRecentBuffer((relation)->rd_locator, MAIN_FORKNUM, block, buffer)
#else
#define mr_read_recent_buffer(relation, block, buffer) \
	ReadRecentBuffer((relation)->rd_node, MAIN_FORKNUM, block, buffer)
#endif

/* 16 adds as many pages to a relation at once as somebody asks for, and to a heap as an insertion needs. */
#if PG_VERSION_NUM < 160000
#define MR_RELATIONS_GROW_BY_THE_PAGE
#endif

/* 16 tells which indexes an update has to reach, for those that summarize. */
#if PG_VERSION_NUM >= 160000
#define MrUpdateIndexes TU_UpdateIndexes
#define mr_updates_indexes(update, info) \
	((update) == TU_All || ((update) == TU_Summarizing && (info)->ii_Summarizing))
#else
#define MrUpdateIndexes bool
#define mr_updates_indexes(update, info) (update)
#endif

/* 16 has one function for the privileges on every kind of object. */
#if PG_VERSION_NUM >= 160000
#define mr_server_aclcheck(server, role) \
	object_aclcheck(ForeignServerRelationId, server, role, ACL_USAGE)
#define mr_schema_aclcheck(schema, role) \
	object_aclcheck(NamespaceRelationId, schema, role, ACL_USAGE)
#else
#define mr_server_aclcheck(server, role) pg_foreign_server_aclcheck(server, role, ACL_USAGE)
#define mr_schema_aclcheck(schema, role) pg_namespace_aclcheck(schema, role, ACL_USAGE)
#endif

/*
 * The JSON parser.  16 made semantic actions return an error code and errors soft; 17 added a
 * caller's lexer struct and const input; 18 told unescaping apart from the buffer that it goes to.
 */
#if PG_VERSION_NUM >= 160000
#define MrJsonResult JsonParseErrorType
#define MR_JSON_DONE return JSON_SUCCESS
#define mr_json_report(error, lex) json_errsave_error(error, lex, NULL)
#else
#define MrJsonResult void
#define MR_JSON_DONE return
#define mr_json_report(error, lex) json_ereport_error(error, lex)
#endif

#if PG_VERSION_NUM >= 170000
#define mr_json_lexer(text, length) makeJsonLexContextCstringLen(NULL, text, length, PG_UTF8, true)
#else
#define mr_json_lexer(text, length) \
	makeJsonLexContextCstringLen((char *) (text), length, PG_UTF8, true)
#endif

/* Turns the unescaping of strings off. */
#if PG_VERSION_NUM >= 180000
#define mr_json_keep_escapes(lex) ((lex)->need_escapes = false)
#else
#define mr_json_keep_escapes(lex) ((lex)->strval = NULL)
#endif

/* 16: one function checks the ownership of objects of any catalog. */
#if PG_VERSION_NUM < 160000
#define object_ownercheck(classid, objectid, roleid) \
	((classid) == DatabaseRelationId ? pg_database_ownercheck(objectid, roleid) \
									 : pg_extension_ownercheck(objectid, roleid))
#endif

/* 17: a background worker may log in as a role without LOGIN. */
#if PG_VERSION_NUM >= 170000
#define MR_WORKER_FLAGS BGWORKER_BYPASS_ROLELOGINCHECK
#else
#define MR_WORKER_FLAGS 0
#endif

/*
 * Replaces Vars of joins by those of the joined tables.  16 wants the planner's root (NULL before planning); 18
 * also has Vars of GROUP BY's own range table entry.
 */
#if PG_VERSION_NUM >= 180000
#define mr_flatten_vars(query, node) \
	flatten_join_alias_vars(NULL, query, flatten_group_exprs(NULL, query, node))
#elif PG_VERSION_NUM >= 160000
#define mr_flatten_vars(query, node) flatten_join_alias_vars(NULL, query, node)
#else
#define mr_flatten_vars(query, node) flatten_join_alias_vars(query, node)
#endif

/* 16 moved privileges out of the range table. */
#if PG_VERSION_NUM >= 160000
#define mr_check_privileges(query) \
	((void) ExecCheckPermissions((query)->rtable, (query)->rteperminfos, true))
#else
#define mr_check_privileges(query) ((void) ExecCheckRTPerms((query)->rtable, true))
#endif

/* 18: pg_class counts frozen pages. */
#if PG_VERSION_NUM >= 180000
#define mr_class_forget_frozen(class) ((class)->relallfrozen = 0)
#else
#define mr_class_forget_frozen(class) ((void) 0)
#endif

/* 18 asks the locale itself. */
#if PG_VERSION_NUM >= 180000
#define mr_collate_is_c(collation) (pg_newlocale_from_collation(collation)->collate_is_c)
#else
#define mr_collate_is_c(collation) lc_collate_is_c(collation)
#endif

/* 16 has backends known by number, and another name for reading their entries one after the other. */
#if PG_VERSION_NUM >= 160000
#define mr_backend_status(index) pgstat_get_local_beentry_by_index(index)
#else
#define mr_backend_status(index) pgstat_fetch_stat_local_beentry(index)
#endif

/* 17 has sets of events belong to a resource owner instead of a memory context. */
#if PG_VERSION_NUM >= 170000
#define mr_wait_event_set(nevents) CreateWaitEventSet(CurrentResourceOwner, nevents)
#else
#define mr_wait_event_set(nevents) CreateWaitEventSet(CurrentMemoryContext, nevents)
#endif

#endif /* MR_CORE_COMPAT_H */
