# Needs python3 (3.11 or newer) with pip and a package index; everything else is brought from there.
# Arguments go in ARGS: make up ARGS="--port 9000", make test ARGS="-k handoff".

UV_VERSION := 0.13.9
UV_FOUND := $(shell command -v uv 2>/dev/null)
UV := $(or $(UV_FOUND),.cache/uv-bootstrap/bin/uv)
BIN := .venv/bin
ARGS ?=
COLOUR := $(if $(MAKE_TERMOUT),\033[36m)
PLAIN := $(if $(MAKE_TERMOUT),\033[0m)

export UV_NO_PROGRESS ?= 1
# Compiled once here, not at every start: a start is most of all the loading of code.
export UV_COMPILE_BYTECODE ?= 1
# Also where the environment says otherwise: the tests alone start a hundred processes of this code.
export PYTHONDONTWRITEBYTECODE :=
export PYTHONUNBUFFERED ?= 1
# A company's own certificate authority is in the system's store, not in uv's.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS ?= 1
endif
SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help up test test-full check bench fmt screenshots sync kafka clients spark clean

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## "; print "\nBaton carries a sales lead from hand to hand.\n" } \
	  /^[a-z][a-z-]*:.*## / { printf "  make $(COLOUR)%-12s$(PLAIN) %s\n", $$1, $$2 } \
	  END { print "\n  Arguments: make up ARGS=\"--port 9000\"\n" }' $(MAKEFILE_LIST)

up: .venv/.synced-runtime ## start Baton with the demo playbook on http://127.0.0.1:8080 (PostgreSQL included)
	@exec $(BIN)/baton up --demo $(ARGS)

# Tests wait for processes, too: one worker more than there are cores.
test: .venv/.synced ## run the quick tests (Kafka's too, once `make kafka` has fetched it)
	@$(BIN)/pytest -q -n $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )) --maxprocesses 8 --dist loadgroup -m "not long and not browser" $(ARGS)

test-full: .venv/.synced ## run the tests `make test` leaves out: kill runs, real data, browser, more examples
	@BATON_EXAMPLES=full $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadgroup -m "long or browser or property" $(ARGS)

check: .venv/.synced ## lint, format, types, import layers
	@failed=0; \
	for tool in "ruff check ." "ruff format --check ." pyright lint-imports; do \
	  $(BIN)/$$tool || { echo "check: $$tool failed"; failed=1; }; \
	done; exit $$failed

bench: .venv/.synced ## measure throughput and latency on this machine
	@$(BIN)/python -m bench $(ARGS)

fmt: .venv/.synced ## format, and fix what the linter can fix
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

screenshots: .venv/.synced ## take the pictures of the pages for the documentation (needs Chromium)
	@$(BIN)/python docs/screenshots.py $(ARGS)

kafka: ## fetch Apache Kafka for the tests (needs Java 17 and Maven; 45 MB, once)
	@python3 deploy/kafka/kafka.py fetch

clients: ## fetch what tests take from npm: clients, schemas, generators (needs npm)
	@mkdir -p .cache/clients && cp tests/system/clients/package.json .cache/clients/
	@npm install --prefix .cache/clients --ignore-scripts --no-package-lock --no-audit --no-fund --silent

spark: .venv/.synced ## install PySpark for its test (needs Java 17; 450 MB)
	@$(UV) sync --quiet --frozen --all-extras --group spark

sync: .venv/.synced ## install everything from uv.lock

clean: ## remove caches and the virtual environment; keeps .baton/, where the data is
	@rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build

# The stamps make an unchanged environment cost nothing. `make up` alone installs no test tools, and
# does not remove them either.
.venv/.synced: pyproject.toml uv.lock | $(UV)
	@$(UV) sync --quiet --frozen --all-extras
	@touch .venv/.synced .venv/.synced-runtime

.venv/.synced-runtime: pyproject.toml uv.lock | $(UV)
	@echo "installing (once) ..."
	@$(UV) sync --quiet --frozen --no-dev --extra embedded --inexact
	@touch $@

# `pip install --target` also works where the system's Python is "externally managed" or cannot make
# virtual environments; where pip is missing, venv brings its own.
.cache/uv-bootstrap/bin/uv:
	@echo "getting uv $(UV_VERSION) ..."
	@python3 -m pip install -q --disable-pip-version-check --no-warn-script-location \
	    --target .cache/uv-bootstrap uv==$(UV_VERSION) 2>/dev/null \
	  || { rm -rf .cache/uv-bootstrap && python3 -m venv .cache/uv-bootstrap \
	    && .cache/uv-bootstrap/bin/pip install -q uv==$(UV_VERSION); }
