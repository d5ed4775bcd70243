#!/usr/bin/env bash
# Builds and tests millrace on other major versions of PostgreSQL, each in a root of the Debian release that has it.
#
#	scripts/matrix.sh               17 and 18, groups regress and property
#	scripts/matrix.sh 18 regress    this version, these groups of scripts/test.sh
#
# Needs root and mmdebstrap; a root takes about a minute and 1 GB, and is kept in MILLRACE_CACHE for as long as it is to hold the
# same packages. The sources are copied in, so that nothing here is touched. FRESH=1 makes the roots anew.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/lib.sh"

# The mirror of Debian that this machine's packages come from; on Ubuntu it has to be said by MIRROR.
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m 1 -E '/debian/?$' || true)}
[ -n "$mirror" ] || die "which mirror of Debian? Say it by MIRROR=…"
packages=gcc,make,libc6-dev,libicu-dev,libssl-dev,libpq-dev,librdkafka-dev,libhiredis-dev,libxgboost-dev,libcurl4-openssl-dev,perl,libipc-run-perl,python3,python3-psycopg2,python3-numpy,python3-xgboost,procps

suite_of() {
	case $1 in
		17) echo trixie ;;
		18) echo sid ;;
		*) die "there is no root for PostgreSQL $1" ;;
	esac
}

# Makes the root of a version, moved into place whole, in the place of those with other packages. postgresql-server-dev is unpacked
# without what it depends on: it wants clang and LLVM, which only with_llvm=yes needs.
make_root() {
	local version=$1 suite part old
	suite=$(suite_of "$version")
	top=$MILLRACE_CACHE/postgresql-$version-$(printf '%s' "$suite $packages" | sha256sum | cut -c 1-8)
	if [ -d "$top" ] && [ -z "${FRESH:-}" ]; then
		return
	fi
	say "making a root with PostgreSQL $version ($suite)"
	mkdir -p "$MILLRACE_CACHE"
	chmod 711 "$MILLRACE_CACHE"
	part=$(mktemp -d "$MILLRACE_CACHE/part.XXXXXX")
	on_exit remove_root "$part"
	# What this machine has to say about mirrors and proxies holds there, too.
	apt-config dump Acquire >"$part.conf"
	echo 'Acquire::Check-Valid-Until "false";' >>"$part.conf"
	# shellcheck disable=SC2016 -- $1 and $MMDEBSTRAP_APT_CONFIG are for the hook
	eatmydata mmdebstrap --quiet --variant=apt --aptopt="$part.conf" --include="$packages,postgresql-$version" \
		--customize-hook='cd "$1/var/tmp" && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -q download postgresql-server-dev-'"$version"' &&
			dpkg -x postgresql-server-dev-*.deb "$1" && rm postgresql-server-dev-*.deb' \
		"$suite" "$part" "$mirror" >"$part.log" 2>&1 </dev/null || die "no root was made: $(tail -n 20 "$part.log")"
	for old in "$MILLRACE_CACHE/postgresql-$version" "$MILLRACE_CACHE/postgresql-$version-"*; do
		remove_root "$old"
	done
	mv -T "$part" "$top"
	chmod 755 "$top"
	rm -f "$part.conf" "$part.log"
}

remove_root() { rm -rf --one-file-system "$1" "$1.conf" "$1.log"; }

# Builds and tests in a root, with namespaces of its own for mounts and processes: all that is started there ends.
test_root() {
	local version=$1
	shift
	rm -rf --one-file-system "$top/millrace"
	mkdir "$top/millrace"
	tar -C "$root" --exclude=./.git --exclude='*.o' --exclude='*.bc' --exclude='*.so' --exclude=./tmp_check -cf - . | tar -C "$top/millrace" -xf -
	# shellcheck disable=SC2016 -- for the inner shells
	unshare --mount --pid --fork --kill-child --mount-proc bash -c '
		top=$1
		shift
		mount -t proc proc "$top/proc" && mount --rbind /dev "$top/dev" && mount -t tmpfs tmpfs "$top/tmp" && chmod 1777 "$top/tmp" || exit 1
		exec chroot "$top" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@"' \
		matrix "$top" PG_CONFIG="/usr/lib/postgresql/$version/bin/pg_config" INSTALL=0 MAKEFLAGS=with_llvm=no LIMIT="${LIMIT:-1200}" \
		/millrace/scripts/test.sh "$@"
}

versions=()
groups=()
for argument in "$@"; do
	if [[ $argument =~ ^[0-9]+$ ]]; then versions+=("$argument"); else groups+=("$argument"); fi
done
[ ${#versions[@]} -gt 0 ] || versions=(17 18)
[ ${#groups[@]} -gt 0 ] || groups=(regress property)

[ "$(id -u)" = 0 ] || die "this needs root"
for command in mmdebstrap eatmydata; do
	command -v "$command" >/dev/null || need_packages matrix
done
code=0
for version in "${versions[@]}"; do
	make_root "$version"
	echo "# PostgreSQL $version: $(chroot "$top" "/usr/lib/postgresql/$version/bin/postgres" --version)"
	test_root "$version" "${groups[@]}" || code=1
done
exit "$code"
