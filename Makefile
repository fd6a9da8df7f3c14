# `make quickstart` and `make test` need nothing but Python >= 3.11, pip and make.
PYTHON ?= python3
VENV ?= .venv
# Exact versions, so that nothing that was released since changes what runs. `make CONSTRAINTS= ...` takes today's.
CONSTRAINTS ?= --constraint constraints.txt
BIN := $(VENV)/bin
DOCS := build/docs-env
PIP := $(BIN)/python -m pip install --quiet $(CONSTRAINTS)

.PHONY: install constraints quickstart test docs golden cluster-test slow lint types bench clean

install: $(VENV)/.installed

# torch first and alone: what is installed after it then takes this torch instead of a newer one.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) "torch~=2.13.0"
	$(PIP) --editable ".[dev]"
	touch $@

# Write down the versions of today; with the oldest Python that mlpt runs on, so that they exist for all.
constraints:
	$(PYTHON) .ci/constraints.py constraints.txt

quickstart: install
	$(BIN)/mlpt pretrain

# Two processes: much of the suite waits for others. The tests of a file stay together.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The documentation site, in build/docs; its tools have an environment of their own.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet

$(DOCS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet $(CONSTRAINTS) "mkdocs-material>=9.6,<10"
	touch $@

# Write down anew the losses that every recipe gives, after a change that is meant to alter them, or new pins.
golden: install
	$(BIN)/python tests/golden/golden_runs.py curves

# The slow tests of what a cluster promises: jobs, autoscaling, faults of disks, storage, processes and nodes. Twenty
# minutes. Those of hangs wait for limits to pass: `make slow`.
cluster-test: install
	$(BIN)/python -m pytest -m slow tests/integration/test_jobs.py tests/integration/test_autoscaling.py \
		tests/integration/test_faults.py tests/integration/test_object_store.py tests/integration/test_nodes.py \
		tests/integration/test_ray_dies.py tests/integration/test_pretrain.py tests/integration/test_loopback.py

slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

bench: install
	$(BIN)/mlpt bench

clean:
	rm -rf $(VENV) build *.egg-info
