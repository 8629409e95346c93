# Two commands on a machine that has only Python (3.11 or newer) and make:
#   make mnist_es    sets up .venv, trains MNIST from function values, says where the figures are
#   make test        sets up .venv, runs the tests
PYTHON ?= python3
JOBS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

ifdef UV
CREATE = $(UV) venv -q --python "$$(command -v $(PYTHON))" $(VENV)
INSTALL = $(UV) pip install -q --python $(BIN)/python
else
CREATE = $(PYTHON) -m venv $(VENV)
INSTALL = $(BIN)/python -m pip install -q --disable-pip-version-check
endif

.DEFAULT_GOAL := help
.PHONY: help mnist_es test lint format ci clean

help:  ## list the targets
	@sed -n 's/^\([a-z_]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12
	@echo 'Variables: PYTHON=$(PYTHON)  JOBS=$(JOBS) (test processes)  ARGS="options of the program or of pytest"'

mnist_es: $(VENV)/.run  ## train an MNIST network from function values alone (options: ARGS="--help")
	@$(BIN)/python -m experiments.mnist_es $(ARGS)

test: $(VENV)/.dev  ## run all tests (options of pytest: ARGS="-k stencils")
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

lint: $(VENV)/.dev  ## style (ruff), layers (import-linter), types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --cache-dir .cache/import-linter
	$(BIN)/mypy

format: $(VENV)/.dev  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ci:  ## everything that must pass before a merge
	.ci/run

clean:  ## remove environments and caches, keep runs/
	rm -rf .venv .venv-oldest .venv-newest .cache build dist *.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# A stamp is newer than pyproject.toml when everything it asks for is installed.
$(VENV)/.run: pyproject.toml | $(BIN)/python
	@echo "Installing zojax and what the experiments need into $(VENV) ..."
	@$(INSTALL) -e '.[experiments]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "Installing zojax with experiments, tests and linters into $(VENV) ..."
	@$(INSTALL) -e '.[experiments,tune,test,dev]'
	@touch $@ $(VENV)/.run

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'zojax needs Python 3.11 or newer, and PYTHON=$(PYTHON) is' \
	    "$$($(PYTHON) --version 2>/dev/null || echo not there)." \
	    'Name one that is: make PYTHON=/path/to/python3.11' >&2; exit 2; }
	@$(CREATE) || { rm -rf $(VENV); \
	  echo 'Could not create $(VENV); on Debian and Ubuntu: apt install python3-venv' >&2; exit 2; }
