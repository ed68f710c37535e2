# make demo, make test, make bench: each makes its own virtual environment first.
#
#   VENV=DIR      another place for it than .venv
#   VENV=         none: use the python that is active, as it is, and install nothing
#   PYTHON=...    the interpreter that makes it (3.11 or newer)
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                 where PyPI's torch with CUDA is not wanted and the machine's own index has no other
#   N=... SEED=...  how often make torture kills; the choices of an earlier one
#   MINUTES=...     how long make soak injects faults
#   TESTERS=N     so many processes run tests, each its share; 0, or nothing: one runs them all
#   ARGS=...      more arguments for pytest (make test, make quick), the benches or the demo

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
TORCH_INDEX ?=
TESTERS ?= 0
ARGS ?=
N ?= 20
MINUTES ?= 10
SEED ?=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

ifeq ($(strip $(VENV)),)
BIN :=
RUNTIME :=
DEV :=
RIVALS :=
else
BIN := $(VENV)/bin/
# A stamp for each list of pins: the second time costs nothing.
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
# Other frameworks, for the bench alone: never in the same environment as ours.
RIVALS := .venv-rivals/.installed
endif
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet --no-input

.PHONY: help demo test quick lint types pytest bench torture soak rivals proto env format clean

help: ## show the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST))

demo: $(RUNTIME) ## train on real digits while a script steers the run
	@$(BIN)python -m infra.demo $(ARGS)

test: lint types ## lint, types, every test
	@$(MAKE) --no-print-directory pytest

quick: lint types ## lint, types, the tests that take less than five seconds each
	@$(MAKE) --no-print-directory pytest ARGS='-m "not slow" $(ARGS)'

lint: $(DEV) ## ruff: rules and format
	@$(BIN)ruff check .
	@$(BIN)ruff format --check .

types: $(DEV) ## mypy, strict
	@$(BIN)mypy

pytest: $(DEV)
	@$(BIN)python -m pytest --numprocesses $(TESTERS) --dist worksteal $(ARGS)

bench: $(DEV) ## ratios against the bare loop, raw redis-py, memcpy; JSON in bench-results/
	@$(BIN)python -m bench $(ARGS)

torture: $(DEV) ## kill a steered run N times, its server too: nothing lost, nothing done twice
	@$(BIN)python -m infra.torture --kills $(N) $(if $(SEED),--seed $(SEED)) $(ARGS)

soak: $(DEV) ## a fleet at work for MINUTES under random faults: what must hold, and a report
	@$(BIN)python -m infra.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

rivals: $(DEV) $(RIVALS) ## the bench beside FastStream and docket, in an environment of theirs
	@$(BIN)python -m bench rivals

proto: $(DEV) ## generate tolaria_bus/leyline/v1 from contracts/
	@$(BIN)python contracts/generate.py

format: $(DEV) ## write the format that lint asks for
	@$(BIN)ruff format .
	@$(BIN)ruff check --fix .

env: ## make .env for docker compose, with a random password
	@test ! -e .env || { echo "make: .env is there already; it is left as it is"; exit 1; }
	@umask 077; secret=$$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n'); \
	    sed "s/^TOLARIA_REDIS_PASSWORD=.*/&$$secret/" .env.example > .env
	@echo ".env is made, with a random password"

clean: ## remove what was made here, the environment too; runs/ stays
	rm -rf .mypy_cache .ruff_cache .hypothesis .pytest_cache build dist bench-results \
	    soak-results *.egg-info
	rm -rf .venv-rivals
	$(if $(wildcard $(VENV)/pyvenv.cfg),rm -rf $(VENV))
	find . -name __pycache__ -type d -prune -not -path './.git/*' -exec rm -rf {} +

ifneq ($(BIN),)
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	    { echo "make: Python 3.11 or newer is needed; '$(PYTHON)' is not (set PYTHON=...)"; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || \
	    { echo "make: no virtual environment could be made (Debian: apt install python3-venv)"; \
	      rm -rf $(VENV); exit 1; }

# torch first and alone, so that nothing else can choose its build; then the pins; then this
# checkout, with setuptools as pinned and no dependency resolved a second time.
$(RUNTIME): requirements/torch.txt requirements/runtime.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing torch and the pinned requirements into $(VENV) (a few minutes the first time)"
	@$(PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements/torch.txt
	@$(PIP) install -r requirements/runtime.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): requirements/dev.txt $(RUNTIME)
	@echo "installing the pinned tools of the checks into $(VENV)"
	@$(PIP) install -r requirements/dev.txt
	@touch $@

$(RIVALS): requirements/rivals.txt | $(VENV)/bin/python
	@echo "making $(@D) for the rivals of the bench"
	@$(VENV)/bin/python -m venv --clear $(@D) && \
	    $(@D)/bin/python -m pip --disable-pip-version-check --quiet --no-input install -r $< || \
	    { echo "make: no environment for the rivals could be made in $(@D)"; rm -rf $(@D); exit 1; }
	@touch $@
endif
