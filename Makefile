# Two commands from a fresh machine: `make demo` and `make test`. Both create .venv when it is not there.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The first interpreter that is really 3.11 or 3.12 (a shim without a version behind it does not count).
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: setup demo demo-road test test-long check format docs bench clean

setup: $(READY)

$(READY): requirements.txt requirements-engine.txt requirements-dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 is needed and neither was found; install one or pass PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-engine.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	$(BIN)/python examples/demo.py

demo-road: $(READY)
	$(BIN)/python examples/make_road_inputs.py
	$(BIN)/python train.py --stages examples/road_demo.yaml

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n auto --maxprocesses 4 --dist loadfile

test-long: $(READY)
	$(BIN)/python -m pytest -m long --timeout 3600 --hypothesis-profile exploring
	$(BIN)/python -m pytest -m "not long" $$(grep -rl "@given" tests) --hypothesis-profile exploring

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)
	$(BIN)/python tools/write_flag_tables.py

bench: $(READY)
	@test -n "$(DATA)" || { echo "error: no data named; run make bench DATA=DIR (what it must hold: README)" >&2; exit 2; }
	$(BIN)/python benchmarks/run.py --data "$(DATA)"

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
