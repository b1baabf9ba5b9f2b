# Every target sets up what it needs: a virtual environment in .venv with the pinned packages.
# A fresh machine needs Python 3.11 (or newer) and make, nothing else.

PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/installed
SOURCES := graphs solvers planner examples benchmarks docs tests
OTHER := .venv-torch-$(TORCH)
# A process for each core, up to four, of one thread; a file's tests stay together, for they share
# fixtures, and the longest files go first (tests/conftest.py).
ABREAST := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test suite test-torch format lint types docs bench house clean

demo: setup  ## train GPT-2 in half the memory it needs
	$(BIN)/python -m benchmarks.demo

test: lint  ## everything a change must pass
	$(MAKE) --jobs=2 types suite

suite: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ABREAST)

test-torch:  ## the tests with another release of torch: make test-torch TORCH=2.14.1
	@test -n "$(TORCH)" || { echo "say which release: make test-torch TORCH=2.14.1"; exit 2; }
	$(MAKE) $(OTHER)/installed
	OMP_NUM_THREADS=1 $(OTHER)/bin/python -m pytest $(ABREAST)

# All that is pinned but torch, whose range in pyproject.toml does not count here (--no-deps).
$(OTHER)/installed: constraints.txt pyproject.toml
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	grep -v '^torch==' constraints.txt > $(OTHER)/constraints.txt
	$(OTHER)/bin/python -m pip install --quiet --constraint $(OTHER)/constraints.txt torch==$(TORCH) setuptools
	$(OTHER)/bin/python -m pip install --quiet --requirement $(OTHER)/constraints.txt
	$(OTHER)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(OTHER)/installed

format: setup
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

lint: setup
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: setup
	$(BIN)/mypy

docs: setup  ## the pages and the API reference, in build/docs
	$(BIN)/python -m docs.build_site build/docs

bench: setup  ## every benchmark; each adds a CSV to benchmarks/results
	$(BIN)/python -m benchmarks.zoo
	$(BIN)/python -m benchmarks.baselines
	$(BIN)/python -m benchmarks.solvers
	$(BIN)/python -m benchmarks.batch
	$(BIN)/python -m benchmarks.claim
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.instances benchmarks/instances/*.json
	$(BIN)/python -m benchmarks.tight
	$(BIN)/python -m benchmarks.joint
	$(BIN)/python -m benchmarks.sharding
	$(BIN)/python -m benchmarks.clusters
	$(BIN)/python -m benchmarks.loops
	$(BIN)/python -m benchmarks.allocator
	$(BIN)/python -m benchmarks.as_on_cuda
	$(BIN)/python -m benchmarks.eager
	$(BIN)/python -m benchmarks.estimate
	$(BIN)/python -m benchmarks.gpu

house: setup  ## the rooms in order, who uses whom, and what breaks a rule
	$(BIN)/python -m tests.house

setup: $(STAMP)

# torch goes first and alone, so that the later, larger installation cannot change its build.
$(STAMP): constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0 setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
