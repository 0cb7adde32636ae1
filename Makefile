# Every target makes the virtual environment it needs; nothing but make and Python >= 3.11 is assumed.
#   make demo            see the theorem checked; writes run-demo/
#   make test            run the whole suite
#   make lint            style, imports, types
#   make docs            build the documentation into site/
#   make test PYTHON=python3.12 VENV=.venv312 ARGS="-k bounds"
#   make test WORKERS=0  in one process
#   make test ARGS=--exhaustive   and further shapes, element types and models of every kind

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Tests of one file share what they compile, so files, not tests, are what processes share out.
WORKERS ?= auto
PYTEST = $(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Read once, when NumPy loads, which pytest's plugins do before any conftest runs.
export OPENBLAS_NUM_THREADS ?= 1
DECLARED = pyproject.toml constraints.txt

.DELETE_ON_ERROR:
.PHONY: demo test lint docs parity

demo: $(VENV)/.made-run
	$(VENV)/bin/spectral-theorem demo --out run-demo $(ARGS)

test: $(VENV)/.made-dev
	$(PYTEST) $(ARGS)

lint: $(VENV)/.made-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/.made-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict $(ARGS)

parity: $(VENV)/.made-parity
	SPECTRAL_THEOREM_REQUIRE_PARITY=1 $(PYTEST) --dist worksteal tests/parity $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "got $$($(PYTHON) --version 2>&1) as $(PYTHON); expected Python >= 3.11; try make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.made-run: $(DECLARED) | $(VENV)/bin/python
	$(PIP) --editable ".[whisper]"
	@touch $@

$(VENV)/.made-dev: $(DECLARED) | $(VENV)/bin/python
	$(PIP) --editable ".[dev]"
	@touch $@ $(VENV)/.made-run

$(VENV)/.made-docs: $(DECLARED) | $(VENV)/bin/python
	$(PIP) --editable ".[docs]"
	@touch $@

# torch goes first and alone, so that the pinned build is in place before anything else asks for torch.
$(VENV)/.made-parity: $(DECLARED) $(VENV)/.made-dev
	$(PIP) torch==2.13.0
	$(PIP) --editable ".[parity]"
	@touch $@
