# Every target works as the first command after a clone: it installs what is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
MODEL ?= smollm2-135m
PORT ?= 8080
PYTEST_ARGS ?=
BENCH_ARGS ?=
SOAK_SECONDS ?= 120

.PHONY: help install serve chat test test-outside test-fast test-newer test-engines test-faults lint types check bench soak clean
.DEFAULT_GOAL := help

help: ## Show what there is to do
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Serving needs no development tools: the first answer comes sooner without them.
$(VENV)/.runtime: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "llama-runtime needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)."; \
		echo "Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed: $(VENV)/.runtime
	@echo "Installing the development tools into $(VENV) ..."
	@# The pip of an older Python takes twice as long to find what fits together.
	@$(PIP_INSTALL) --upgrade pip
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed ## Create .venv with this package (editable) and the development tools

serve: $(VENV)/.runtime ## Serve MODEL (smollm2-135m) on PORT (8080)
	@$(BIN)/llama-runtime serve $(MODEL) --port $(PORT)

chat: $(VENV)/.runtime ## Talk to MODEL in the terminal
	@$(BIN)/llama-runtime chat $(MODEL)

# What starts no process bears company; the rest goes one after another, for its deadlines' sake.
# Status 5 means that PYTEST_ARGS left nothing to run in one of the two.
test: install ## Run everything that a fresh machine can run, but for test-outside
	@$(BIN)/python -m pytest -q -n auto -m "not (outside or engine or process or slow or alone)" $(PYTEST_ARGS) || [ $$? = 5 ]
	@$(BIN)/python -m pytest -m "not outside and (engine or process or slow or alone)" $(PYTEST_ARGS) || [ $$? = 5 ]

test-outside: install ## Run the tests of what people touch: browser, terminal, foreign clients, pytest plugin
	@$(BIN)/python -m pytest -m outside $(PYTEST_ARGS)

test-fast: install ## Run the tests that need no engine
	@$(BIN)/python -m pytest -m "not engine and not slow and not outside" $(PYTEST_ARGS)

test-newer: ## Run the fast tests on the newest other Python, where there is one
	@scripts/test_newer_python.sh

test-engines: ## Build llama-cpp-python and run the engine tests on every engine
	@scripts/test_engines.sh $(PYTEST_ARGS)

test-faults: install ## Run the whole fault battery and print its table
	@FAULTS=all $(BIN)/python -m pytest -m faults tests/process $(PYTEST_ARGS)

lint: install ## Style, imports, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: install ## Static types, strict
	@$(BIN)/mypy

check: lint types test test-outside test-newer ## What CI runs

bench: install ## Measure us against the engines as they are; writes docs/benchmarks.md and its plot
	@$(BIN)/python scripts/bench.py --out docs $(BENCH_ARGS)

soak: install ## Put the gateway under mixed load for SOAK_SECONDS (120) and kill its engine meanwhile
	@$(BIN)/python scripts/gateway_soak.py --seconds $(SOAK_SECONDS) --kill-every 65

clean: ## Remove what the targets above made
	@rm -rf $(VENV) .venv-newer .venv-engines .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache build dist
	@find . -name __pycache__ -prune -exec rm -rf {} +
