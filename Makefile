# Every target sets itself up: a virtual environment in .venv with the versions of constraints.txt.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help attack demo docs docs-serve test test-fast test-package test-newest test-oldest traps lint

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
DEMO_OUTPUT ?= outputs/quickstart-plackett_luce

# DeepSpeed installs without compiling its kernels: the tests run on processes of the CPU.
export DS_BUILD_OPS := 0

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: $(VENV)/.installed-demo  ## Train a small language model on ranked preferences, on the CPU (OVERWRITE=1 trains again)
	@$(BIN)/trl-dpo-ext quickstart --output_dir "$(DEMO_OUTPUT)" $(if $(OVERWRITE),--overwrite)

test: lint  ## Check style and types, run all tests and the examples in docstrings
	$(BIN)/python -m pytest -n 2

test-fast: lint  ## The same without the slow tests, for daily work
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-package: $(VENV)/.installed-test  ## Build the wheel, install it into an empty environment, and train there
	$(BIN)/python -m pytest tests/package
	@$(MAKE) --no-print-directory docs

# Environments of their own: an installation of other versions must not replace the tested ones.
test-newest:  ## Run all tests with the newest versions that pyproject.toml allows, in .venv-newest
	@$(MAKE) --no-print-directory VENV=.venv-newest CONSTRAINTS=/dev/null .venv-newest/.installed-test
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e ".[test]"
	.venv-newest/bin/python -m pytest -n 2

test-oldest: $(VENV)/.installed-test  ## Run all tests with the oldest versions that pyproject.toml allows, in .venv-oldest
	PYTHONPATH=. $(BIN)/python tests/oldest_versions.py > $(VENV)/oldest.txt
	@$(MAKE) --no-print-directory VENV=.venv-oldest CONSTRAINTS=$(VENV)/oldest.txt .venv-oldest/.installed-test
	.venv-oldest/bin/python -m pytest -n 2

traps: $(VENV)/.installed-test  ## Run the tests of the silent bugs that docs/reliability.md lists
	$(BIN)/python -m pytest -n 2 tests -k "test_trap_ or _traps"

attack: $(VENV)/.installed-test  ## Kill runs, damage files and feed bad input for ten minutes (ATTACK_SECONDS=600), and print counts
	ATTACK_SECONDS=$(or $(ATTACK_SECONDS),600) $(BIN)/python -m pytest -s tests/attack

docs: $(VENV)/.installed-docs  ## Build the documentation site into build/site; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(VENV)/.installed-docs  ## Show the site on 127.0.0.1:8000 while you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

lint: $(VENV)/.installed-test  ## Check style and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The stamp is written last, so an interrupted installation starts again.
$(VENV)/.installed-%: pyproject.toml constraints.txt $(VENV)/.created
	@echo "Installing into $(VENV) (this takes some minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[$*]"
	@touch $@

# A working environment is kept, because it may hold a CPU build of PyTorch; a broken one is made again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; " \
		"$(PYTHON) is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@
