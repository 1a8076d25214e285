# `make demo` or `make test` alone, on a machine with Python 3.11, installs what it needs and does its job.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check audit browser benchmarks format clean
SHELL := /bin/bash

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := platform methods datasets tuning infra
# Test processes side by side; each grows to about 5 GiB.
JOBS ?= 2

# Two threads a library unless a program asks for more: cores are soon oversubscribed by three libraries.
export OMP_NUM_THREADS ?= 2
export RAY_USAGE_STATS_ENABLED := 0
export MPLBACKEND := Agg

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found: install it and run make again" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(INSTALLED) ## Create .venv and install from constraints.txt; does nothing when it stands

demo: $(INSTALLED) ## Learn healthy anatomy, find anomalies, promote a model: six minutes on two cores
	$(BIN)/vesalius demo --out demo

test: $(INSTALLED) ## Run the tests but for the long ones (half an hour on two cores)
	$(BIN)/python -m pytest -m 'not long' --numprocesses $(JOBS) --dist loadfile

# The long ones kill processes, start clusters, measure, and repeat slow checks on what trains like another: one after the other, with the machine to themselves.
test-all: test ## Run everything: kills, clusters, benchmarks (hours)
	@command -v redis-server >/dev/null || apt-get install -y -qq --no-install-recommends redis-server
	$(BIN)/python -m pytest -m long

check: $(INSTALLED) ## Lint, format, types, import floors, layout, dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(addsuffix /vesalius,$(SOURCES)) tests
	$(BIN)/lint-imports
	$(BIN)/python tests/layout_guard.py
	$(BIN)/python tests/dependency_audit.py

audit: $(INSTALLED) ## Ask an advisory service of every pinned package (needs the network)
	$(BIN)/python tests/dependency_audit.py --online

browser: $(INSTALLED) ## Test the pages in Debian's chromium, which is installed where it is missing
	@command -v chromedriver >/dev/null || apt-get install -y -qq --no-install-recommends chromium chromium-driver
	$(BIN)/python -m pytest tests/browser

benchmarks: $(INSTALLED) ## Run the benchmarks and print their figures
	@for file in tests/benchmarks/benchmark_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

format: $(INSTALLED) ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove what was built; the stores and runs you made stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
