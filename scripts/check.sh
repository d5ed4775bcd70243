#!/usr/bin/env bash
# Static checks of the sources, of the library and of what the installed extension declares. Prints "ok - …" or "not ok - …" for each,
# with what is wrong before it, and fails when one failed. The build itself (make WERROR=1) is the check on warnings.
#
#	scripts/check.sh                all of them; millrace is built and installed
#	scripts/check.sh --sources      without those that ask the library or a server
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/lib.sh"
cd "$root"

code=0

# A check has failed when its output, what is wrong, is not empty.
check() {
	local name=$1 wrong
	shift
	wrong=$("$@" 2>&1) || wrong+="${wrong:+$'\n'}exit code $?"
	if [ -z "$wrong" ]; then
		echo "ok - $name"
	else
		printf '%s\n' "$wrong" | sed 's/^/# /'
		echo "not ok - $name"
		code=1
	fi
}

c_files() { find src test bench -name '*.[ch]' -not -path '*/tmp_check/*' | sort; }

# The stages in the order of the flow, as the Makefile has them.
stages() { sed -nE 's/^STAGES *= *(.*)$/\1/p' Makefile; }

# ---- sources -----------------------------------------------------------------------------------------------

# Versions of clang-format differ in what they make of the same rules: 14 decides.
clang_format() {
	local format
	for format in clang-format-14 clang-format; do
		if command -v "$format" >/dev/null && [[ "$("$format" --version)" == *"version 14."* ]]; then
			echo "$format"
			return
		fi
	done
}

layout() {
	# shellcheck disable=SC2046 -- no name has a space
	"$(clang_format)" --dry-run -Werror $(c_files) 2>&1 | grep -E 'error:|warning:' | sed -E 's/ \[-W.*$//' | sort -u -t: -k1,1
	true
}

# Each stage includes headers of core, of itself and of stages before it.
stage_order() {
	local stage known=' ' file header
	for stage in $(stages); do
		known+="$stage "
		for file in src/"$stage"/*.[ch]; do
			for header in $(sed -nE 's/^#[ \t]*include[ \t]+"([a-z]+)\/[^"]+".*$/\1/p' "$file" | sort -u); do
				# folders that are not ours are PostgreSQL's
				if [ -d "src/$header" ] && [[ "$known" != *" $header "* ]]; then
					echo "$file includes a header of $header, a stage after its own"
				fi
			done
		done
	done
	for stage in src/*/; do
		[[ "$known" == *" $(basename "$stage") "* ]] || echo "$stage is no stage of the Makefile"
	done
}

# Headers of other people's libraries are included in one file each; PostgreSQL's and the C library's everywhere. OpenSSL is two libraries.
third_party() {
	grep -HoE '^#[ \t]*include[ \t]+<[^>]+>' $(find src -name '*.[ch]') | sed -E 's/:#[ \t]*include[ \t]+</ /; s/>$//' |
		grep -vE ' (assert|ctype|dirent|errno|fcntl|float|limits|locale|math|netdb|poll|pthread|signal|stdarg|stdbool|stddef|stdint|stdio|stdlib|string|time|unistd|(arpa|netinet|sys)/[a-z_]+)\.h$' |
		sed -E 's/ openssl\/ssl\.h$/ libssl/; s/ ([a-z0-9]+)\/.*$/ \1/' | sort -u | awk '{ files[$2] = files[$2] " " $1; n[$2]++ } END { for (h in n) if (n[h] > 1) print h " is included in" files[h] }'
}

file_length() {
	local file
	for file in $(git ls-files src test scripts bench 2>/dev/null | grep -E '\.(c|h|sql|sh|py|pl|pm)$' || c_files); do
		[ ! -f "$file" ] || [ "$(wc -l <"$file")" -lt 1000 ] || echo "$file has $(wc -l <"$file") lines"
	done
}

version_number() { grep -nE '\b(PG_VERSION_NUM|PG_MAJORVERSION_NUM)\b' $(find src -name '*.[ch]' -not -path src/core/compat.h) || true; }

# A script of the extension must be whole when it is loaded by CREATE EXTENSION: nothing is replaced, nothing is taken for granted.
install_script() {
	grep -nE '^CREATE OR REPLACE|^(CREATE|ALTER|DROP) .*IF (NOT )?EXISTS' src/*/*.sql || true
}

# ---- the library and what is installed ---------------------------------------------------------------------

symbols() {
	nm -D --defined-only millrace.so | awk '$2 != "w" { print $3 }' |
		grep -vE '^(mr_|millrace_|pg_finfo_millrace_|_PG_init$|Pg_magic_func$|_init$|_fini$)' || true
}

ask() { psql -qXAt -v ON_ERROR_STOP=1 -c "$1"; }

comments() {
	ask "SELECT 'function ' || oid::regprocedure || ' has no comment' FROM pg_proc
		WHERE pronamespace IN ('millrace'::regnamespace, 'millrace_internal'::regnamespace) AND obj_description(oid, 'pg_proc') IS NULL
		UNION ALL
		SELECT c.oid::regclass || ' has no comment' FROM pg_class c
		WHERE relnamespace = 'millrace'::regnamespace AND relkind IN ('r', 'v', 'm', 'p') AND obj_description(oid, 'pg_class') IS NULL
		UNION ALL
		SELECT 'schema ' || nspname || ' has no comment' FROM pg_namespace
		WHERE nspname LIKE 'millrace%' AND obj_description(oid, 'pg_namespace') IS NULL"
}

# Functions, views and settings have a heading of their own: ### `name`, or ### `name(…)`; tables are not for users.
reference() {
	local name
	ask "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'millrace'::regnamespace
		UNION SELECT relname FROM pg_class WHERE relnamespace = 'millrace'::regnamespace AND relkind IN ('v', 'm')
		UNION SELECT name FROM pg_settings WHERE name LIKE 'millrace.%' AND name <> 'millrace.debug_point' ORDER BY 1" >"$work/names"
	[ -s "$work/names" ] || echo "the server has nothing of millrace"
	while read -r name; do
		grep -qE "^#+ .*\`$name[\`(]" docs/reference.md || echo "docs/reference.md has no heading for $name"
	done <"$work/names"
	# and nothing is described that is not there
	{ grep -oE '^### `[a-z_.]+' docs/reference.md || true; } | sed 's/^### `//' | sort -u | while read -r name; do
		grep -qxF "$name" "$work/names" || echo "docs/reference.md describes $name, which is not there"
	done
}

# Every argument is described: it stands in backquotes somewhere in the entry of its function.
reference_arguments() {
	local function argument
	ask "SELECT DISTINCT proname || ' ' || a FROM pg_proc, unnest(proargnames[:pronargs]) a
		WHERE pronamespace = 'millrace'::regnamespace AND a <> '' ORDER BY 1" | while read -r function argument; do
		awk -v heading="### \`$function" '/^#/ { inside = index($0, heading "(") == 1 || index($0, heading "`") == 1 } inside' docs/reference.md |
			grep -E "\b$argument\b" >/dev/null || echo "docs/reference.md says nothing of argument $argument of $function()"
	done
}

argument_names() {
	ask "SELECT DISTINCT p.oid::regprocedure || ': ' || a || ' is a reserved word'
		FROM pg_proc p, unnest(proargnames) a JOIN pg_get_keywords() k ON k.word = a
		WHERE pronamespace = 'millrace'::regnamespace AND k.catcode <> 'U'"
}

# What reaches the network, starts workers or changes something is not for everybody.
privileges() {
	ask "SELECT p.oid::regprocedure || ' may be executed by PUBLIC' FROM pg_proc p
		WHERE pronamespace = 'millrace'::regnamespace AND provolatile = 'v' AND proname <> 'push'
		  AND (proacl IS NULL OR EXISTS (SELECT FROM aclexplode(proacl) x WHERE x.grantee = 0))
		UNION ALL
		SELECT c.oid::regclass || ' may be changed by PUBLIC' FROM pg_class c, aclexplode(relacl) x
		WHERE relnamespace IN ('millrace'::regnamespace, 'millrace_state'::regnamespace) AND x.grantee = 0 AND x.privilege_type <> 'SELECT'"
}

# Tables of configuration and state, and their sequences, are dumped.
dumped() {
	ask "SELECT c.oid::regclass || ' is not dumped' FROM pg_class c
		JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
		JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'millrace'
		WHERE c.relkind IN ('r', 'S') AND NOT c.oid = ANY (e.extconfig)
		  AND c.relname NOT IN ('worker', 'stage_time', 'letter_rate', 'dictionary_stats') -- what runs now, and its figures: not worth a dump"
}

# Columns of views are of types that Trino and Grafana read.
view_columns() {
	ask "SELECT format('%s.%s is %s', a.attrelid::regclass, a.attname, format_type(a.atttypid, a.atttypmod))
		FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
		WHERE c.relnamespace = 'millrace'::regnamespace AND c.relkind = 'v' AND a.attnum > 0 AND NOT a.attisdropped
		  AND (t.typcategory = 'A' OR t.typtype IN ('c', 'd', 'r', 'm') OR t.typname IN ('interval', 'name', 'oid', 'regclass', 'regrole', 'inet')
		       OR t.typname = 'numeric' AND a.atttypmod < 0)"
}

if [ -n "$(clang_format)" ]; then
	check "the layout of C code is clang-format's" layout
else
	echo "ok - the layout of C code is clang-format's # skip: clang-format 14 is not here"
fi
check "stages include stages before them only" stage_order
check "a library's headers are included in one file" third_party
check "files have less than 1,000 lines" file_length
check "PostgreSQL versions are told apart in src/core/compat.h only" version_number
check "the install script creates, and replaces nothing" install_script
if [ "${1:-}" != --sources ]; then
	temp_dir work
	pg_start "$work/pg" "fsync = off" "millrace.databases = ''" >/dev/null
	ask "CREATE EXTENSION millrace" >/dev/null
	check "exported symbols have our prefixes" symbols
	check "functions, tables and views have comments" comments
	check "docs/reference.md has every function, view and setting" reference
	check "docs/reference.md has every argument" reference_arguments
	check "no argument is named by a reserved word" argument_names
	check "nothing that acts is for PUBLIC" privileges
	check "configuration is dumped" dumped
	check "views have columns of plain types" view_columns
fi
exit "$code"
