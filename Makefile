# What a person types. `make demo` and `make test` set everything up in .venv first.

PYTHON ?= python3
# The build of torch: cpu, cu128, …; by default what the package index gives, which on Linux brings CUDA.
TORCH ?=
VENV := .venv
BIN := $(VENV)/bin
# Two processes, each with an OpenSearch of its own (3 GB); PARALLEL= runs the tests in one. One that dies ends
# the run, which names its test: with another in its place pytest-xdist 3.8 waits for ever at the end.
PARALLEL ?= -n 2 --max-worker-restart 0
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-train test test-unit test-integration lint format docs bench dist clean

help:  ## Show this help.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: $(STAMP)  ## Create .venv and install oskit with all extras into it (TORCH=cpu: without CUDA).

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "oskit needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "Python cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install -q uv
	@echo "Installing oskit with all extras into $(VENV): $(if $(TORCH),torch for $(TORCH).,6.6 GB on the disk, 4 GB of them CUDA (without it: make setup TORCH=cpu).)"
	$(BIN)/python -m uv pip install -q --compile-bytecode $(if $(TORCH),--torch-backend=$(TORCH)) --python $(BIN)/python \
	  --config-settings editable_mode=compat -e '.[all]' --group dev
	@touch $@

demo: $(STAMP)  ## The whole path on a small collection: load, export, deploy, ingest, search, verify.
	$(BIN)/oskit demo --output demo-output

demo-train: $(STAMP)  ## The same with an encoder that is trained first: some minutes on two cores.
	$(BIN)/oskit demo --train --output demo-train-output

test: $(STAMP)  ## All tests; the integration tests start a real OpenSearch.
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-unit: $(STAMP)  ## The quick tests alone.
	$(BIN)/python -m pytest tests/unit $(PARALLEL) $(ARGS)

test-integration: $(STAMP)  ## The tests on a real OpenSearch alone.
	$(BIN)/python -m pytest tests/integration $(PARALLEL) $(ARGS)

lint: $(STAMP)  ## Style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Put the code into the project's format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## Write docs/cli.md, docs/recipe-keys.md and the tables of words from the code itself.
	$(BIN)/python docs/write_cli_reference.py
	$(BIN)/python docs/write_recipe_reference.py
	$(BIN)/python docs/write_server_words.py
	$(BIN)/python docs/write_permissions.py

bench: $(STAMP)  ## The ratios of the README and of benchmarks/README.md, measured on this machine.
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.head

dist: $(STAMP)  ## A wheel and a source archive in dist/.
	$(BIN)/python -m build --installer uv

clean:  ## Remove what was built; downloads stay cached.
	rm -rf build dist demo-output demo-train-output quality-output *.egg-info .pytest_cache .mypy_cache .ruff_cache
