# millrace: PGXS build. `make`, `make install`, `make installcheck`.

EXTENSION = millrace
MODULE_big = millrace
MILLRACE_VERSION = 0.1

# One folder a stage, in the order of the flow; flow/ includes all of them and is included by none.
STAGES = core source decode stage vault mart alert sink model flow

OBJS = $(patsubst %.c,%.o,$(sort $(foreach s,$(STAGES),$(wildcard src/$(s)/*.c))))

# The install script is the SQL parts beside the C, in this order.
SQL_PARTS = src/core/core.sql src/core/declare.sql src/source/server.sql src/source/stream.sql src/source/postgres.sql \
	src/stage/staging.sql src/stage/erasure.sql src/stage/dictionary.sql src/vault/vault.sql src/vault/satellite.sql src/vault/source.sql src/vault/pit.sql src/mart/mart.sql \
	src/alert/outbox.sql src/alert/rule.sql src/alert/alert.sql src/alert/threshold.sql src/alert/absence.sql src/alert/health.sql src/sink/text.sql src/sink/delivery.sql src/sink/validate.sql src/sink/sink.sql src/model/model.sql src/model/replace.sql src/model/owner.sql src/model/online.sql src/model/evaluate.sql src/model/trees.sql \
	src/flow/letter.sql src/flow/flow.sql src/flow/backfill.sql src/flow/verify.sql src/flow/rebuild.sql src/flow/test_rule.sql src/flow/run.sql src/flow/maintain.sql src/flow/erase_alerts.sql src/flow/erase.sql src/flow/trace.sql src/flow/describe.sql src/flow/preview.sql src/flow/status.sql

DATA_built = $(EXTENSION)--$(MILLRACE_VERSION).sql
EXTRA_CLEAN = $(EXTENSION)--$(MILLRACE_VERSION).sql

REGRESS = $(sort $(patsubst sql/%.sql,%,$(wildcard sql/*.sql)))
REGRESS_OPTS = --temp-instance=tmp_check --temp-config=test/postgresql.conf --encoding=UTF8

# Redis is for dictionaries: `make WITH_REDIS=0` builds without hiredis, and says so when one is made.
WITH_REDIS ?= 1

# XGBoost trains trees, in a program of its own: `make WITH_XGBOOST=0` builds without it, and training says so.
WITH_XGBOOST ?= 1
PROGRAM_XGBOOST = $(if $(filter 1,$(WITH_XGBOOST)),millrace_xgboost)
EXTRA_CLEAN += millrace_xgboost

# PostgreSQL 15 does not define PGDLLEXPORT as visible yet.
PG_CPPFLAGS = -I$(CURDIR)/src -I$(libpq_srcdir) '-DPGDLLEXPORT=__attribute__((visibility("default")))'
PG_CFLAGS = -std=gnu99 -fvisibility=hidden -ffp-contract=off -Wdeclaration-after-statement $(if $(WERROR),-Werror) $(if $(DEBUG_POINTS),-DMR_DEBUG_POINTS) $(if $(filter 1,$(WITH_REDIS)),-DMR_WITH_REDIS)
SHLIB_LINK_INTERNAL = $(libpq)
SHLIB_LINK = -lrdkafka -lcurl -lssl -lcrypto $(if $(filter 1,$(WITH_REDIS)),-lhiredis)

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# Headers are few and everything depends on them: rebuild all when one changes.
$(OBJS): $(wildcard src/*/*.h)

# It computes the same of many numbers.
src/model/online_serve.o: CFLAGS += $(CFLAGS_VECTORIZE)

$(EXTENSION)--$(MILLRACE_VERSION).sql: $(SQL_PARTS) Makefile
	cat $(SQL_PARTS) > $@

all: $(PROGRAM_XGBOOST)

millrace_xgboost: src/model/program/millrace_xgboost.c src/model/program/program.h
	$(CC) $(CFLAGS) $(PG_CFLAGS) -o $@ $< $(LDFLAGS) -lxgboost -lm

ifneq ($(PROGRAM_XGBOOST),)
install: install-program
.PHONY: install-program
install-program: $(PROGRAM_XGBOOST) installdirs
	$(INSTALL_PROGRAM) $(PROGRAM_XGBOOST) '$(DESTDIR)$(pkglibdir)/$(PROGRAM_XGBOOST)'
endif

uninstall: uninstall-program
.PHONY: uninstall-program
uninstall-program:
	rm -f '$(DESTDIR)$(pkglibdir)/millrace_xgboost'
