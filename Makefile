# Everything below needs Python 3.11 and make, and builds its own environment in .venv.
#   make demo [DATA=file.h5ad]   train on a screen (a simulated one by default) and predict
#   make test [ARGS="-k name"]   the tests
# With another Python: make test PYTHON=python3.12 CONSTRAINTS=

PYTHON ?= $(firstword $(shell command -v python3.11 python3))
CONSTRAINTS ?= constraints.txt
DATA ?=
ARGS ?=
WORKERS ?= 2

BIN := .venv/bin
# The environment is rebuilt when these contents change, not when a file is merely touched.
KEY := $(shell cat pyproject.toml $(CONSTRAINTS) | cksum | tr ' ' '-')
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
CORE := .venv/.core-$(KEY)
DEV := .venv/.dev-$(KEY)
DOCS := .venv/.docs-$(KEY)
# One thread a process: the tests run in several.
QUIET_CPU := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test plugin lint format docs tutorials bench-quick env clean

help:
	@sed -n '2,4s/^# *//p' Makefile
	@echo 'make plugin | lint | format | docs | tutorials | bench-quick | env | clean'

demo: $(CORE)
	$(BIN)/scvi-perturb demo --out demo_out $(if $(DATA),--data '$(DATA)')

test: $(DEV)
	$(QUIET_CPU) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

plugin: $(DEV)
	$(PIP) --no-deps --upgrade --target .plugins examples/plugin examples/parts
	for part in plugin parts; do (cd examples/$$part && PYTHONPATH=$(CURDIR)/.plugins $(QUIET_CPU) \
		$(CURDIR)/$(BIN)/python -m pytest -q $(ARGS)) || exit 1; done

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
	$(if $(wildcard tutorials/*.ipynb),$(BIN)/jupyter execute tutorials/*.ipynb,@echo 'no tutorials yet')

bench-quick: $(CORE)
	$(BIN)/python -m benchmarks.speed --n-cells 4000 --n-genes 1000 --n-epochs 2 --n-repeats 1 --n-to-file 5000 \
		--out benchmarks/results/quick

env: $(DEV) $(DOCS)

clean:
	rm -rf .venv .plugins demo_out dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip

$(CORE): | .venv/bin/python
	$(PIP) --editable .
	@rm -f .venv/.core-* && touch $@

$(DEV): $(CORE)
	$(PIP) --editable '.[dev,ot]'
	@rm -f .venv/.dev-* && touch $@

$(DOCS): $(CORE)
	$(PIP) --editable '.[docs]'
	@rm -f .venv/.docs-* && touch $@
