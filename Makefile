# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := pipeline cache heads bench

.PHONY: demo replicate test check format lint types contracts wheel clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed ## embed, fit, evaluate and report on the demo data with gemma3-270m
	PATH="$(CURDIR)/$(BIN):$$PATH" sh bench/demo/run.sh

replicate: .venv/installed ## embed four pools, run the replication study, write docs/replication.md; hours
	PATH="$(CURDIR)/$(BIN):$$PATH" sh bench/studies/replicate.sh

test: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed format lint types contracts wheel test

format: .venv/installed
	$(BIN)/ruff format --check .

lint: .venv/installed
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/mypy

contracts: .venv/installed
	$(BIN)/lint-imports

wheel: .venv/installed ## build the wheel, and import the four rooms from it alone
	rm -rf dist && $(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	cd dist && ../$(BIN)/python -I -c "import sys, glob; sys.path.insert(0, glob.glob('*.whl')[0]); \
	import pipeline.cli, cache.store, heads.registry, bench.report; \
	assert all('.whl' in m.__file__ for m in (pipeline, cache, heads, bench)), pipeline.__file__"

clean:
	rm -rf .venv dist store report.html
