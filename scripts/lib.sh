# Functions that the scripts share: packages, clean-up, a private PostgreSQL, a private Apache Kafka.
# Source it from a bash script that has `set -euo pipefail`; nothing runs until a function is called.
#
#   need_packages build test kafka    (and demo, redis, cron, matrix) installs what is missing (root or sudo); nothing with INSTALL=0
#   pg_start DIR [LINE ...]           a server in DIR/data; LINEs go to its postgresql.conf; exports PG*
#   pg_stop DIR [MODE]                stops it (fast, or immediate); pg_start DIR starts it again
#   kafka_start DIR [--scram]         a broker in DIR; exports KAFKA_BOOTSTRAP and what --scram needs
#   connect_start DIR FILE ...        Kafka Connect in DIR, with Debezium; each FILE declares a connector
#   connect_stop [SIGNAL], connect_run    ends its process; starts it again
#   kafka_stop [SIGNAL], kafka_restart [SIGNAL], kafka_topic NAME PARTITIONS [KEY=VALUE ...]
#   redis_start DIR [--tls] [LINE ...]  a Redis in DIR; LINEs go to its redis.conf; exports REDIS_PORT and what --tls needs
#   redis_stop [SIGNAL], redis_restart [SIGNAL], redis COMMAND ...
#   temp_dir VAR                      a temporary folder that others cannot enter, removed at the end
#   on_exit COMMAND [ARG ...]         what must happen at the end, last one first
#
# Everything listens on 127.0.0.1 only and is gone when the script ends, whatever ends it.

KAFKA_VERSION=3.9.1
DEBEZIUM_VERSION=3.4.0.Final      # runs on Java 17
MILLRACE_CACHE="${MILLRACE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/millrace}"
PYTHON=/usr/bin/python3           # the one that python3-psycopg2 and python3-numpy are for
on_exit_commands=()

say() { printf '%s\n' "$*" >&2; }
die() { say "$0: $*"; exit 1; }

# Registers a command for the end of the script.
on_exit() {
	on_exit_commands+=("$(printf '%q ' "$@")")
	trap run_on_exit EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	trap 'exit 129' HUP
}

# Runs the registered commands, last one first, and keeps the script's exit code.
run_on_exit() {
	local code=$? i
	trap '' INT TERM HUP
	set +e
	for ((i = ${#on_exit_commands[@]} - 1; i >= 0; i--)); do
		eval "${on_exit_commands[i]}"
	done
	on_exit_commands=()
	exit "$code"
}

# Makes a temporary folder and puts its name into the variable VAR (not printed: a subshell would lose the clean-up).
temp_dir() {
	local made
	made=$(mktemp -d "${TMPDIR:-/tmp}/millrace.XXXXXX")
	chmod 711 "$made"           # the server's user passes through, nobody lists it
	on_exit rm -rf "$made"
	printf -v "$1" '%s' "$made"
}

# Puts a port that nobody listens on into the variable VAR, below the range from which outgoing connections take theirs. It is ours as
# long as this shell has its lock: servers start later, and again.
free_port() {
	local number lock
	mkdir -p "$MILLRACE_CACHE/ports"
	while :; do
		number=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
		exec {lock}>"$MILLRACE_CACHE/ports/$number"
		if flock -n "$lock" && ! (exec 3<>"/dev/tcp/127.0.0.1/$number") 2>/dev/null; then
			break
		fi
		exec {lock}>&-
	done
	printf -v "$1" '%s' "$number"
}

# Waits until COMMAND succeeds, at most SECONDS.
wait_for() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < deadline)) || return 1
		sleep 0.1
	done
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "this needs root or sudo: $*"
	fi
}

# ---- packages ----------------------------------------------------------------------------------------------

apt_updated=
apt_update() {
	[ -n "$apt_updated" ] || as_root apt-get update -qq
	apt_updated=1
}

# The major version that is worked with: the installed one, else the distribution's own.
pg_major() {
	local config=${PG_CONFIG:-pg_config}
	if command -v "$config" >/dev/null; then
		"$config" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/'
	else
		apt-cache depends postgresql 2>/dev/null | sed -nE 's/.*Depends: postgresql-([0-9]+)$/\1/p' | head -n 1
	fi
}

installed() {
	dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q ' installed$'
}

# The packages of a group that are missing. Java counts as there whatever package it came from.
missing_packages() {
	local group package wanted=()
	for group in "$@"; do
		case $group in
			build) wanted+=(build-essential "postgresql-$(pg_major)" "postgresql-server-dev-$(pg_major)" librdkafka-dev libpq-dev libhiredis-dev libcurl4-openssl-dev libssl-dev libxgboost-dev) ;;
			demo) wanted+=(python3) ;;
			test) wanted+=(python3 python3-psycopg2 python3-numpy python3-xgboost libipc-run-perl clang-format) ;;
			matrix) wanted+=(mmdebstrap eatmydata debian-archive-keyring) ;;
			redis) wanted+=(redis-server redis-tools openssl) ;;
			cron) wanted+=("postgresql-$(pg_major)-cron") ;;
			kafka)
				wanted+=(kcat maven openssl)
				command -v java >/dev/null || wanted+=(default-jre-headless) ;;
			*) die "no group of packages is called $group" ;;
		esac
	done
	for package in "${wanted[@]}"; do
		installed "$package" || echo "$package"
	done
}

# Installs what is missing of the groups build, demo, test, kafka and matrix. A complete machine is left alone.
need_packages() {
	local missing said
	[ "${INSTALL:-1}" = 1 ] || return 0
	command -v apt-get >/dev/null || die "this needs Debian or Ubuntu (apt-get); elsewhere install by hand: see README"
	[ -n "$(pg_major)" ] || apt_update
	missing=$(missing_packages "$@")
	[ -n "$missing" ] || return 0
	say "installing" $missing
	apt_update
	# shellcheck disable=SC2086 -- one word a package
	said=$(as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends $missing \
		2>&1 </dev/null) || { say "$said"; die "these packages could not be installed:" $missing; }
}

# ---- PostgreSQL --------------------------------------------------------------------------------------------

# PostgreSQL refuses to run as root, so root hands over to the user that its package made.
as_server() {
	if [ "$(id -u)" = 0 ]; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi
}

pg_bin() { echo "$("${PG_CONFIG:-pg_config}" --bindir)/$1"; }

# Starts the server of DIR, made when it is not there yet, and points PG* at it. Extra LINEs win over the settings here.
pg_start() {
	local dir line
	dir=$(realpath -m "$1")
	shift
	if [ ! -f "$dir/port" ]; then
		mkdir -p "$dir"
		od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$dir/password"
		free_port PGPORT
		echo "$PGPORT" >"$dir/port"
		chmod 700 "$dir"
		[ "$(id -u)" != 0 ] || chown -R postgres: "$dir"
		as_server "$(pg_bin initdb)" --no-sync -D "$dir/data" -U postgres -E UTF8 --locale=C.UTF-8 --lc-collate=C \
			--auth-local=trust --auth-host=scram-sha-256 --pwfile="$dir/password" >"$dir/initdb.log" ||
			die "initdb failed: $(cat "$dir/initdb.log")"
		cat >>"$dir/data/postgresql.conf" <<-CONF
			listen_addresses = '127.0.0.1'
			port = $(cat "$dir/port")
			unix_socket_directories = '$dir'
			shared_preload_libraries = 'millrace'
			fsync = on
			timezone = 'UTC'
		CONF
		on_exit pg_stop "$dir"
	fi
	for line in "$@"; do
		printf '%s\n' "$line" >>"$dir/data/postgresql.conf"
	done
	as_server "$(pg_bin pg_ctl)" -D "$dir/data" -l "$dir/server.log" -w -t 180 start >/dev/null ||
		die "the server in $dir does not start: $(tail -n 5 "$dir/server.log")"
	PGHOST=$dir
	PGPORT=$(cat "$dir/port")
	PGPASSWORD=$(cat "$dir/password")        # for those who come over TCP; the socket needs none
	PGUSER=postgres
	PGDATABASE=postgres
	export PGHOST PGPORT PGPASSWORD PGUSER PGDATABASE
}

# Stops the server of DIR if it runs: fast by default, or in another mode of pg_ctl.
pg_stop() {
	local dir
	dir=$(realpath -m "$1")
	[ -f "$dir/data/postmaster.pid" ] || return 0
	as_server "$(pg_bin pg_ctl)" -D "$dir/data" -m "${2:-fast}" -w -t 60 stop >/dev/null 2>&1 ||
		as_server "$(pg_bin pg_ctl)" -D "$dir/data" -m immediate -w stop >/dev/null 2>&1 || true
}

# ---- Apache Kafka ------------------------------------------------------------------------------------------

# Fetches jars of org.apache.kafka, with what they need, into FOLDER of the cache: kafka_fetch FOLDER ARTIFACT ... Once for all runs; moved
# into place whole, so that two runs at once do not meet.
kafka_fetch() {
	local jars="$MILLRACE_CACHE/$1" part artifact
	[ ! -d "$jars" ] || return 0
	say "fetching $1 (once)"
	shift
	mkdir -p "$MILLRACE_CACHE"
	part=$(mktemp -d "$MILLRACE_CACHE/part.XXXXXX")
	{
		echo '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
		echo '<groupId>millrace</groupId><artifactId>kafka</artifactId><version>1</version><dependencies>'
		for artifact in "$@"; do
			echo "<dependency><groupId>org.apache.kafka</groupId><artifactId>$artifact</artifactId><version>$KAFKA_VERSION</version></dependency>"
		done
		echo '</dependencies></project>'
	} >"$part/pom.xml"
	maven "$part" -f "$part/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
		-DincludeScope=runtime -DoutputDirectory="$part/jars"
	mv -T "$part/jars" "$jars" 2>/dev/null || true
	rm -rf "$part"
}

# Runs Maven, which writes its log into a folder that goes when it fails.
maven() {
	local part=$1
	shift
	mvn -q -B "$@" >"$part/log" 2>&1 </dev/null || { cat "$part/log" >&2; rm -rf "$part"; die "Maven could not fetch what is needed"; }
}

kafka_jars() {
	KAFKA_JARS=$MILLRACE_CACHE/kafka-$KAFKA_VERSION
	kafka_fetch "kafka-$KAFKA_VERSION" kafka_2.13 kafka-tools
}

# Kafka's tools run for a moment each: what is compiled well takes longer than it saves.
kafka_java() { java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp "$KAFKA_JARS/*" "$@"; }

# Makes a certificate authority and a server key for 127.0.0.1, and a second authority that signed nothing, for tests.
make_keys() {
	local name
	for name in ca wrong-ca; do
		openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=millrace test $name" \
			-keyout "$1/$name.key" -out "$1/$name.pem" 2>/dev/null
	done
	openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout "$1/server.key" -out "$1/server.csr" 2>/dev/null
	openssl x509 -req -in "$1/server.csr" -CA "$1/ca.pem" -CAkey "$1/ca.key" -CAcreateserial -days 3650 \
		-extfile <(echo 'subjectAltName=DNS:localhost,IP:127.0.0.1') -out "$1/server.crt" 2>/dev/null
	cat "$1/server.key" "$1/server.crt" >"$1/server.pem"
	chmod 644 "$1/ca.pem" "$1/wrong-ca.pem"
}

# Starts one broker (KRaft, controller in the same process) in DIR and exports KAFKA_BOOTSTRAP. With --scram there is a
# second listener with TLS that takes SCRAM-SHA-512 and PLAIN: KAFKA_SASL_BOOTSTRAP, KAFKA_USER, KAFKA_PASSWORD, KAFKA_CA
# and KAFKA_WRONG_CA say how. The plain listener stays, for tools.
kafka_start() {
	local scram=${2:-} controller port listeners format=()
	KAFKA_DIR=$(realpath -m "$1")
	kafka_jars
	mkdir -p "$KAFKA_DIR"
	free_port controller
	free_port port
	KAFKA_BOOTSTRAP=127.0.0.1:$port
	listeners=PLAINTEXT://$KAFKA_BOOTSTRAP
	if [ "$scram" = --scram ]; then
		free_port port
		KAFKA_SASL_BOOTSTRAP=127.0.0.1:$port
		KAFKA_USER=app
		KAFKA_PASSWORD=app-secret
		KAFKA_CA=$KAFKA_DIR/ca.pem
		KAFKA_WRONG_CA=$KAFKA_DIR/wrong-ca.pem
		export KAFKA_SASL_BOOTSTRAP KAFKA_USER KAFKA_PASSWORD KAFKA_CA KAFKA_WRONG_CA
		listeners=$listeners,SASL_SSL://$KAFKA_SASL_BOOTSTRAP
		make_keys "$KAFKA_DIR"
		format=(--add-scram "SCRAM-SHA-512=[name=$KAFKA_USER,password=$KAFKA_PASSWORD]")
	fi
	cat >"$KAFKA_DIR/server.properties" <<-CONF
		process.roles=broker,controller
		node.id=1
		controller.quorum.voters=1@127.0.0.1:$controller
		controller.listener.names=CONTROLLER
		listeners=$listeners,CONTROLLER://127.0.0.1:$controller
		listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL
		inter.broker.listener.name=PLAINTEXT
		log.dirs=$KAFKA_DIR/log
		# the data's timestamps are made up: age must not delete them
		log.retention.ms=-1
		message.max.bytes=33554432
		auto.create.topics.enable=false
		offsets.topic.replication.factor=1
		offsets.topic.num.partitions=1
		transaction.state.log.replication.factor=1
		transaction.state.log.min.isr=1
		transaction.state.log.num.partitions=1
		group.initial.rebalance.delay.ms=0
		# a broker that was killed may come back at once
		broker.session.timeout.ms=2000
		broker.heartbeat.interval.ms=500
	CONF
	[ "$scram" != --scram ] || cat >>"$KAFKA_DIR/server.properties" <<-CONF
		listener.name.sasl_ssl.sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN
		listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
		listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_$KAFKA_USER="$KAFKA_PASSWORD";
		ssl.keystore.type=PEM
		ssl.keystore.location=$KAFKA_DIR/server.pem
	CONF
	# A UUID as Kafka writes it: 16 bytes in base64, here of which none is a sign.
	kafka_java kafka.tools.StorageTool format -t "$(head -c 16 /dev/urandom | base64 | tr -d '=\n' | tr '+/' ab)" \
		-c "$KAFKA_DIR/server.properties" "${format[@]}" >"$KAFKA_DIR/format.log" 2>&1 ||
		die "Kafka could not format its folder: $(tail -n 3 "$KAFKA_DIR/format.log")"
	export KAFKA_BOOTSTRAP KAFKA_DIR
	KAFKA_PID=
	on_exit kafka_stop KILL
	kafka_run
}

log4j_properties() {
	printf '%s\n' 'log4j.rootLogger=WARN, out' 'log4j.appender.out=org.apache.log4j.ConsoleAppender' \
		'log4j.appender.out.layout=org.apache.log4j.PatternLayout' \
		'log4j.appender.out.layout.ConversionPattern=%d %p %c %m%n'
}

# Starts the broker's process, with heap and collector as Kafka's own scripts have them, and waits until it answers.
kafka_run() {
	log4j_properties >"$KAFKA_DIR/log4j.properties"
	java -Xmx1g -Xms1g -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:InitiatingHeapOccupancyPercent=35 -Dlog4j.configuration="file:$KAFKA_DIR/log4j.properties" \
		-cp "$KAFKA_JARS/*" kafka.Kafka "$KAFKA_DIR/server.properties" \
		>>"$KAFKA_DIR/broker.log" 2>&1 </dev/null &
	KAFKA_PID=$!
	wait_for 180 kafka_answers || die "Kafka does not answer: $(tail -n 5 "$KAFKA_DIR/broker.log")"
}

kafka_answers() { kcat -b "$KAFKA_BOOTSTRAP" -L -m 2 | grep -q 'broker 1 at'; }

# Stops the broker: cleanly, or at once with KILL.
kafka_stop() {
	[ -n "${KAFKA_PID:-}" ] || return 0
	kill -s "${1:-TERM}" "$KAFKA_PID" 2>/dev/null || true
	wait "$KAFKA_PID" 2>/dev/null || true
	KAFKA_PID=
}

kafka_restart() {
	kafka_stop "${1:-TERM}"
	kafka_run
}

# Makes a topic; further arguments are its settings, such as retention.ms=1000.
kafka_topic() {
	local name=$1 partitions=$2 setting config=()
	shift 2
	for setting in "$@"; do
		config+=(--config "$setting")
	done
	kafka_java org.apache.kafka.tools.TopicCommand --bootstrap-server "$KAFKA_BOOTSTRAP" --create \
		--topic "$name" --partitions "$partitions" --replication-factor 1 "${config[@]}" >"$KAFKA_DIR/topic.log" 2>&1 ||
		die "topic $name was not made: $(tail -n 3 "$KAFKA_DIR/topic.log")"
}

# ---- Kafka Connect -----------------------------------------------------------------------------------------

# Fetches Kafka Connect, and Debezium's connector of PostgreSQL into the folder of plug-ins.
connect_jars() {
	local plugins="$MILLRACE_CACHE/debezium-$DEBEZIUM_VERSION" part
	CONNECT_JARS=$MILLRACE_CACHE/connect-$KAFKA_VERSION
	CONNECT_PLUGINS=$plugins
	kafka_fetch "connect-$KAFKA_VERSION" connect-runtime
	[ ! -d "$plugins" ] || return 0
	say "fetching Debezium $DEBEZIUM_VERSION (once)"
	part=$(mktemp -d "$MILLRACE_CACHE/part.XXXXXX")
	maven "$part" org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy \
		-Dartifact="io.debezium:debezium-connector-postgres:$DEBEZIUM_VERSION:tar.gz:plugin" -DoutputDirectory="$part"
	mkdir "$part/plugins"
	tar -C "$part/plugins" -xzf "$part"/*.tar.gz
	mv -T "$part/plugins" "$plugins" 2>/dev/null || true
	rm -rf "$part"
}

# Starts one Connect worker with connectors as the files declare them. It forgets at once what it has done, but for what it has written
# down every two seconds.
connect_start() {
	local port
	CONNECT_DIR=$(realpath -m "$1")
	shift
	CONNECT_FILES=("$@")
	connect_jars
	mkdir -p "$CONNECT_DIR"
	free_port port
	log4j_properties >"$CONNECT_DIR/log4j.properties"
	cat >"$CONNECT_DIR/worker.properties" <<-CONF
		bootstrap.servers=$KAFKA_BOOTSTRAP
		listeners=http://127.0.0.1:$port
		key.converter=org.apache.kafka.connect.json.JsonConverter
		value.converter=org.apache.kafka.connect.json.JsonConverter
		offset.storage.file.filename=$CONNECT_DIR/offsets
		offset.flush.interval.ms=2000
		plugin.path=$CONNECT_PLUGINS
	CONF
	CONNECT_PID=
	on_exit connect_stop KILL
	connect_run
}

connect_run() {
	java -Xmx1g -Xms256m -XX:+UseSerialGC -Dlog4j.configuration="file:$CONNECT_DIR/log4j.properties" \
		-cp "$CONNECT_JARS/*" org.apache.kafka.connect.cli.ConnectStandalone "$CONNECT_DIR/worker.properties" "${CONNECT_FILES[@]}" \
		>>"$CONNECT_DIR/connect.log" 2>&1 </dev/null &
	CONNECT_PID=$!
}

connect_stop() {
	[ -n "${CONNECT_PID:-}" ] || return 0
	[ "${1:-TERM}" != KILL ] || connect_freeze
	kill -s "${1:-TERM}" "$CONNECT_PID" 2>/dev/null || true
	wait "$CONNECT_PID" 2>/dev/null || true
	CONNECT_PID=
}

# Stops Connect's threads at a moment at which none of them writes the file of offsets. It is emptied first, not replaced: killed in
# between, Connect would know of nothing, read its tables anew and never tell what was deleted meanwhile.
connect_freeze() {
	while kill -s STOP "$CONNECT_PID" 2>/dev/null; do
		until [ -z "$(grep -L '^State:.*T' /proc/"$CONNECT_PID"/task/*/status 2>/dev/null)" ]; do
			sleep 0.01
		done
		[ -n "$(find /proc/"$CONNECT_PID"/fd -lname "$CONNECT_DIR/offsets" 2>/dev/null)" ] || break
		kill -s CONT "$CONNECT_PID"
		sleep 0.01
	done
}

# ---- Redis -------------------------------------------------------------------------------------------------

# Starts a Redis in DIR that keeps nothing on disk and exports REDIS_PORT. With --tls it speaks nothing but TLS: REDIS_CA and
# REDIS_WRONG_CA are authorities that signed its certificate, and did not.
redis_start() {
	local plain
	REDIS_DIR=$(realpath -m "$1")
	shift
	mkdir -p "$REDIS_DIR"
	free_port REDIS_PORT
	REDIS_OPTIONS=()
	plain="port $REDIS_PORT"
	if [ "${1:-}" = --tls ]; then
		shift
		make_keys "$REDIS_DIR"
		REDIS_CA=$REDIS_DIR/ca.pem
		REDIS_WRONG_CA=$REDIS_DIR/wrong-ca.pem
		REDIS_OPTIONS=(--tls --cacert "$REDIS_CA")
		plain="port 0
			tls-port $REDIS_PORT
			tls-cert-file $REDIS_DIR/server.crt
			tls-key-file $REDIS_DIR/server.key
			tls-ca-cert-file $REDIS_CA
			tls-auth-clients no"
		export REDIS_CA REDIS_WRONG_CA
	fi
	printf '%s\n' "$plain" 'bind 127.0.0.1' 'save ""' 'appendonly no' "dir $REDIS_DIR" "$@" >"$REDIS_DIR/redis.conf"
	export REDIS_PORT REDIS_DIR
	REDIS_PID=
	on_exit redis_stop KILL
	redis_run
}

# Starts its process and waits until it answers; a password that it asks for is an answer.
redis_run() {
	redis-server "$REDIS_DIR/redis.conf" >>"$REDIS_DIR/log" 2>&1 </dev/null &
	REDIS_PID=$!
	wait_for 60 redis_answers || die "Redis does not answer: $(tail -n 5 "$REDIS_DIR/log")"
}

redis_answers() { redis ping | grep -qE 'PONG|NOAUTH'; }

# Runs commands, given as arguments or one a line on stdin.
redis() { redis-cli -h 127.0.0.1 -p "$REDIS_PORT" "${REDIS_OPTIONS[@]}" "$@"; }

redis_stop() {
	[ -n "${REDIS_PID:-}" ] || return 0
	kill -s "${1:-TERM}" "$REDIS_PID" 2>/dev/null || true
	wait "$REDIS_PID" 2>/dev/null || true
	REDIS_PID=
}

redis_restart() {
	redis_stop "${1:-TERM}"
	redis_run
}
