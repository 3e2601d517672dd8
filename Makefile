# Everything a person types: `make demo` and `make test`. Both set up what is missing first.
.DELETE_ON_ERROR:
SHELL := /bin/bash
# What ends a pipe must not hide that what began it failed.
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := egress webhook workers node_runner
SOURCES := $(shell find $(PACKAGES) -name '*.py' -o -name '*.html' -o -name '*.css' -o -name "*.js" -o -name "*.svg") pyproject.toml README.md
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The installed wheel is what runs; the tree (lab, tests, bench) is found after it, see $(VENV)/.wheel.
export PYTHONSAFEPATH := 1

.PHONY: help setup demo kube-apiserver test unit bench lint format lock images clean
help:
	@echo 'make demo         the main job, end to end, on a network lab of its own (KEEP=1 leaves it running)'
	@echo 'make test         all tests; TESTS=tests/unit for some'
	@echo 'make kube-apiserver   a real API server for the tests that need one, in .lab/bin'
	@echo 'make bench        measures, and writes bench/results.json; BENCH=name for one module of bench/'
	@echo 'make lint         ruff, mypy and the import contracts'
	@echo 'make setup        only what these need: Debian packages and $(VENV)'

setup: $(VENV)/.wheel

$(VENV)/.system: lab/packages.sh
	@mkdir -p $(VENV)
	@# 3: packages are missing and we may not install them; go on, and look again next time.
	@bash lab/packages.sh && touch $@ || [ $$? -eq 3 ]

$(VENV)/.dependencies: requirements/dev.lock | $(VENV)/.system
	@echo '== the virtual environment'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'Hawse needs Python 3.11 or newer: set PYTHON=' >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --require-hashes -r requirements/dev.lock
	@touch $@

$(VENV)/.wheel: $(SOURCES) $(VENV)/.dependencies
	@rm -rf $(VENV)/dist
	@$(BIN)/python -m build --wheel --no-isolation --outdir $(VENV)/dist . > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log >&2; exit 1; }
	@$(BIN)/pip install -q --no-deps --force-reinstall $(VENV)/dist/*.whl
	@$(BIN)/python -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "hawse-tree.pth").write_text(str(pathlib.Path.cwd()) + "\n")'
	@touch $@

demo: setup
	@$(BIN)/python -m lab.demo $(if $(KEEP),--keep)

kube-apiserver: setup
	@bash lab/kube_apiserver/get.sh .lab/bin

# All of them: in two processes side by side, see tests/conftest.py. Some: in one, so that a debugger works.
TESTS ?= tests
JOBS ?= $(if $(filter tests,$(TESTS)),2,0)
test: setup
	@$(BIN)/python -m pytest -n $(JOBS) $(TESTS)

unit: setup
	@$(BIN)/python -m pytest tests/unit

# BENCH: names of modules in bench/, separated by spaces. What runs on the real API server needs it; the first time that
# takes some minutes. 3: there is none to be had here, and what needs it says so.
BENCH ?=
bench: setup
	@[ -n '$(BENCH)' -a -z '$(findstring controlplane,$(BENCH))' ] || bash lab/kube_apiserver/get.sh .lab/bin || [ $$? -eq 3 ]
	@$(BIN)/python -m bench $(BENCH)

lint: setup
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache | tail -n 2

format: setup
	@$(BIN)/ruff format -q . && $(BIN)/ruff check -q --fix .

# Needs uv (PyPI). Resolves for every platform, one version of a package for all of them; the files carry hashes and no
# addresses.
lock:
	uv pip compile pyproject.toml --all-extras --group dev --universal --fork-strategy fewest --python-version 3.11 --generate-hashes --no-header -q -o requirements/dev.lock
	for role in webhook api workers node-runner; do \
	  uv pip compile pyproject.toml --extra $$role -c requirements/dev.lock --universal --python-version 3.11 --generate-hashes --no-header -q -o requirements/$$role.lock; done

images:
	for role in webhook api workers node-runner; do docker build --target $$role -t hawse/$$role . || exit 1; done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .lab
