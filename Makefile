# The environment in .venv is made on first use, and brought up to date when pyproject.toml changes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

demo: .venv/.stamp-run  ## train, kill a worker, and see the run go on bit for bit
	@$(BIN)/elaswave demo

test: .venv/.stamp-dev  ## run the tests
	@$(BIN)/python -m pytest

lint: .venv/.stamp-dev  ## check style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyrefly check
	@$(BIN)/lint-imports

bench: .venv/.stamp-bench  ## measure what the README claims
	@for name in mttr communicator snapshot migration consistency overhead planner throughput continual; do $(BIN)/elaswave bench $$name || exit; done

clean:  ## remove the environment and all caches; runs are kept
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find elaswave tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no python3 found; install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; try make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "==> making .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv

.venv/.stamp-torch: | .venv/bin/python
	@echo "==> installing $(TORCH) (once; this is the big download)"
	@$(PIP) "$(TORCH)"
	@touch $@

.venv/.stamp-run: pyproject.toml .venv/.stamp-torch
	@echo "==> installing elaswave"
	@$(PIP) -e .
	@touch $@

.venv/.stamp-dev: pyproject.toml .venv/.stamp-torch
	@echo "==> installing elaswave and what its tests need"
	@$(PIP) -e '.[dev]'
	@touch $@ .venv/.stamp-run

.venv/.stamp-bench: pyproject.toml .venv/.stamp-torch
	@echo "==> installing elaswave and the rivals of its benches"
	@$(PIP) -e '.[bench]'
	@touch $@ .venv/.stamp-run
