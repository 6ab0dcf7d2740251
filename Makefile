# pennyweight: `make help` lists what there is. Needs make and Python 3.11 or newer, no more.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

VENV     := .venv
BIN      := $(VENV)/bin
PIP      := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
PACKAGES := $(VENV)/.packages-installed
PROJECT  := $(VENV)/.project-installed

# Yours to set: make test TESTS=tests/ledger PYTEST_ARGS=-x
TESTS       ?=
PYTEST_ARGS ?=
WORKERS     ?= 2
SCENARIO    ?= transfers
BENCH_ARGS  ?=
UPGRADE     ?=

# What proves the pure core; the rest goes through servers and processes that coverage does not see.
CORE := tests/engine tests/ledger tests/model tests/products

.PHONY: help setup run run-postgres run-loans test heavy check format bench coverage others lock clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: $(PROJECT) ## make .venv with the locked packages and this project
	@:

# The first Python on the path that is new enough and able to make an environment. A name alone
# proves nothing: version managers leave `python3.13` on the path even where it cannot run.
$(PACKAGES): requirements-dev.lock
	@python=; \
	for name in $${PYTHON:-python3.13 python3.12 python3.11 python3}; do \
		if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
		then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo 'make: no Python >= 3.11 with venv and ensurepip found (Debian: apt-get install python3 python3-venv); name one with PYTHON=/path/to/python' >&2; \
		exit 1; \
	fi; \
	echo "setup: $$("$$python" --version) in $(VENV), packages from $<"; \
	"$$python" -m venv --clear $(VENV)
	@$(PIP) install --require-hashes -r $<
	@touch $@

$(PROJECT): pyproject.toml $(PACKAGES)
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

run: setup ## the demo, on a fresh book
	@$(BIN)/pennyweight demo

run-postgres: setup ## the demo on PostgreSQL: three instances, a balancer in front
	@$(BIN)/pennyweight demo --postgres

run-loans: setup ## the demo of loans: two instances on PostgreSQL, SNS and SQS by MiniStack
	@$(BIN)/pennyweight demo --loans

test: setup ## the tests, without the heavy ones
	@$(BIN)/pytest -n $(WORKERS) -m 'not heavy' $(PYTEST_ARGS) $(TESTS)

heavy: setup ## the heavy tests only: crashes, load, fuzzing
	@$(BIN)/pytest -n $(WORKERS) -m heavy --durations=25 $(PYTEST_ARGS) $(TESTS)

check: setup ## format, lint, types, import directions
	@$(BIN)/ruff format --quiet --check --diff
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo
	@echo 'check: all good'

format: setup ## format, and fix what can be fixed by itself
	@$(BIN)/ruff format --quiet
	@$(BIN)/ruff check --quiet --fix

bench: setup ## a benchmark: SCENARIO=transfers BENCH_ARGS='--seconds 10'
	@$(BIN)/pennyweight bench $(SCENARIO) $(BENCH_ARGS)

coverage: setup ## the tests of ledger, products, engine with branch coverage, and the gate on it
	@rm -f .coverage .coverage.* coverage.json
	@$(MAKE) test TESTS='$(CORE)' PYTEST_ARGS='--cov --cov-report= $(PYTEST_ARGS)'
	@$(BIN)/coverage json --quiet -o coverage.json
	@$(BIN)/python .ci/coverage_gate.py coverage.json

others: setup ## all other tests, without coverage, which would cost them a third more time
	@$(MAKE) test PYTEST_ARGS='$(addprefix --ignore=,$(CORE)) $(PYTEST_ARGS)'

# Extras stay in the pins: pip's check of hashes takes `coverage[toml]` for another package than `coverage`,
# and would refuse the lock on the day a newer one comes out.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-strip-extras --no-config --default-index https://pypi.org/simple \
	--custom-compile-command 'make lock' $(UPGRADE)

lock: setup ## write both locks anew; UPGRADE=--upgrade takes newer versions
	@$(LOCK) -o requirements.lock pyproject.toml
	@$(LOCK) -o requirements-dev.lock -c requirements.lock --extra aws --extra kafka --extra postgres \
		--extra search --extra signatures --extra venues --group dev pyproject.toml

clean: ## remove the environment and everything the tools left
	@rm -rf $(VENV) build dist mutants htmlcov coverage.json coverage.xml .coverage .coverage.* \
		.hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .schemathesis
	@find src tests -type d -name __pycache__ -prune -exec rm -rf {} +
