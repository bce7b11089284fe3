# Everything below needs Python 3.11 to 3.14 and make, and builds its own environment in .venv.
#   make demo [DATA=file.h5ad]   train on a screen (a simulated one by default) and predict
#   make test [ARGS="-k name"]   the tests
# With the oldest versions that are tested: make test PYTHON=python3.11
# Elsewhere, or with versions of your own choice: make test VENV=.venv-other CONSTRAINTS=

VENV ?= .venv
# The newest Python that runs, unless there is an environment already.
ifndef PYTHON
PYTHON := $(shell for python in $(VENV)/bin/python python3.14 python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import ensurepip' 2> /dev/null && { echo $$python; break; }; done)
endif
# constraints.txt holds the oldest versions, constraints-newest.txt the newest.
CONSTRAINTS ?= $(shell $(or $(wildcard $(VENV)/bin/python),$(PYTHON)) -c 'import sys; \
	print("constraints.txt" if sys.version_info < (3, 12) else "constraints-newest.txt")')
DATA ?=
ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
# The extras that tests use.
EXTRAS := chem,eval,ode,ot,scale,shards
# The environment is rebuilt when these contents change, not when a file is merely touched.
KEY := $(shell cat pyproject.toml $(CONSTRAINTS) | cksum | tr ' ' '-')
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
CORE := $(VENV)/.core-$(KEY)
DEV := $(VENV)/.dev-$(KEY)
DOCS := $(VENV)/.docs-$(KEY)
# One thread a process: the tests run in several, and threads that wait for each other's core are slow.
QUIET_CPU := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test plugin lint format docs tutorials bench-quick dev env clean

help:
	@sed -n '2,4s/^# *//p' Makefile
	@echo 'make plugin | lint | format | docs | tutorials | bench-quick | dev | env | clean'

demo: $(CORE)
	$(BIN)/scvi-perturb demo --out demo_out $(if $(DATA),--data '$(DATA)')

test: $(DEV)
	$(QUIET_CPU) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

plugin: $(DEV)
	$(PIP) --no-deps --upgrade --target .plugins examples/plugin examples/parts
	for part in plugin parts; do (cd examples/$$part && PYTHONPATH=$(CURDIR)/.plugins $(QUIET_CPU) \
		$(abspath $(BIN))/python -m pytest -q $(ARGS)) || exit 1; done

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

docs: $(DOCS)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

tutorials: $(DOCS)
	$(QUIET_CPU) $(BIN)/jupyter execute tutorials/*.ipynb

bench-quick: $(CORE)
	$(BIN)/python -m benchmarks.speed --n-cells 4000 --n-genes 1000 --n-epochs 2 --n-repeats 1 --n-to-file 5000 \
		--out benchmarks/results/quick

dev: $(DEV)

env: $(DEV) $(DOCS)

clean:
	rm -rf .venv .venv-newest .plugins demo_out dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(CORE): | $(BIN)/python
	$(PIP) --editable .
	@rm -f $(VENV)/.core-* && touch $@

$(DEV): $(CORE)
	$(PIP) --editable '.[$(EXTRAS)]' --group dev
	@rm -f $(VENV)/.dev-* && touch $@

$(DOCS): $(CORE)
	$(PIP) --editable '.[$(EXTRAS)]' --group doc
	@rm -f $(VENV)/.docs-* && touch $@
