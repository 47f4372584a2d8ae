# Everything sets itself up: a virtual environment in .venv with the versions of constraints.txt. The second time is quick.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test traps lint

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_OUTPUT ?= outputs/quickstart-plackett_luce

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(VENV)/.installed-demo  ## Train a small language model on ranked preferences, on the CPU (OVERWRITE=1 trains again)
	@if [ -e "$(DEMO_OUTPUT)/result.json" ] && [ -z "$(OVERWRITE)" ]; then \
		echo "A finished run is in $(DEMO_OUTPUT)/: result.json, curves.png, the adapter."; \
		echo "To train again: make demo OVERWRITE=1"; \
	else \
		set -euo pipefail; \
		folder="$$($(BIN)/python recipes/quickstart/model.py | tail -n 1)"; \
		$(BIN)/accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/train.py \
			--config recipes/quickstart/plackett_luce.yaml --model_name_or_path "$$folder" \
			--output_dir "$(DEMO_OUTPUT)" $(if $(OVERWRITE),--overwrite_output_dir true); \
	fi

test: lint  ## Check style and types, run all tests and the examples in docstrings
	$(BIN)/python -m pytest -n 2

traps: $(VENV)/.installed-test  ## Run the tests of the sixteen silent bugs alone (docs/reliability.md)
	$(BIN)/python -m pytest -n 2 tests -k trap_

lint: $(VENV)/.installed-test  ## Check style and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A stamp is written last, so an interrupted installation starts again.
$(VENV)/.installed-%: pyproject.toml constraints.txt $(VENV)/.created
	@echo "Installing into $(VENV) (the first time takes some minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@

# An environment that works is kept (a CPU build of PyTorch may have been put there); a broken one starts again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, " \
		"$(PYTHON) is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@
