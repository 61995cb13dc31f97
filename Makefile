# Everything runs in .venv, which the targets make themselves. PYTHON=python3.13 picks another interpreter.

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-process test-lowest chaos check bench bench-peers docs clean
SHELL := /bin/sh
# The theme's advertisement of its successor.
export NO_MKDOCS_2_WARNING := 1

# An interpreter counts if it runs (a version manager's shim may not), is new enough, and can make environments
# (Debian's python3 without python3-venv cannot).
usable = $(shell $(1) -c 'import ensurepip, sys, venv; print(sys.version_info >= (3, 11))' 2>/dev/null)

# Without a word from the user, the environment that stands is the one to use.
ifndef PYTHON
PYTHON := $(firstword $(foreach python,.venv/bin/python python3 python3.13 python3.12 python3.11,\
	$(if $(filter True,$(call usable,$(python))),$(python))))
else ifneq ($(call usable,$(PYTHON)),True)
$(error PYTHON=$(PYTHON) does not run, is older than 3.11, or lacks the venv module)
endif

# An environment is good for one interpreter in one place, since it holds absolute paths.
installed := .venv/installed-$(if $(PYTHON),$(shell $(PYTHON) -c 'import os, sys, zlib; \
	print("%d.%d.%d-%x" % (*sys.version_info[:3], zlib.crc32(os.getcwdb())))'),nowhere)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(installed) ## a pipeline that is killed in the middle of a step, and recovers
	@.venv/bin/orchestrator-state demo

# Six at a time on two cores: much of its time a test waits, for a lease to end or a process to start. The fast ones wait
# less. Each process that is started imports the package: from bytecode, which lies in .venv.
pytest := PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/.venv/bytecode .venv/bin/python -m pytest \
	--dist worksteal

test: $(installed) ## every test, on SQLite and on a real Postgres
	@$(pytest) -n 6

test-fast: $(installed) ## each test once, not in all its rows, on the one database or the other; no processes, nothing slow
	@$(pytest) -n 4 --fast

test-process: $(installed) ## the tests that start, kill and freeze processes and servers
	@$(pytest) -n 6 -m process

chaos: $(installed) ## the promise in a hostile world, at length: kills, crashes, failover, bad networks, disks and clocks
	@.venv/bin/python -m tests.chaos.tools
	@.venv/bin/python -m tests.chaos

check: $(installed) ## style, types, layers, documents, and the wheel in an empty environment
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	.venv/bin/mkdocs build --strict
	.venv/bin/python scripts/check_wheel.py

test-lowest: $(installed) ## tests of the store and its engines with the lowest versions that pyproject.toml allows
	@.venv/bin/python scripts/check_lowest.py

bench: $(installed) ## the store's speed beside the raw driver's
	@.venv/bin/python -m benchmarks

bench-peers: .venv/peers/installed ## the same beside DBOS and LangGraph
	@.venv/peers/bin/python -m benchmarks

docs: $(installed) ## serve the documents at http://127.0.0.1:8000
	@.venv/bin/mkdocs serve

clean: ## remove what was built; .venv stays
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The peers pull in what the project does not want, and may want other versions of what it has.
.venv/peers/installed: $(installed) pyproject.toml
	.venv/bin/python -m venv --clear .venv/peers
	.venv/peers/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench-peers]'
	@touch $@

$(installed): pyproject.toml
ifndef PYTHON
	@echo 'No Python >= 3.11 with the venv module is on the PATH. Name one: PYTHON=/path/to/python make ...' >&2
	@exit 1
endif
	@if [ ! -e $@ ]; then \
		base=$$($(PYTHON) -c 'import sys; print(sys._base_executable)') && \
		rm -rf .venv && "$$base" -m venv .venv; \
	fi
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
