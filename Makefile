# Each target does all its own set-up; the second time it finds it done.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
SHIM := build/shim/underlay-shim
PROJECT := $(shell sha256sum pyproject.toml | cut -c 1-16)
RUNTIME := $(VENV)/.runtime-$(PROJECT)
DEV := $(VENV)/.dev-$(PROJECT)
# Most tests wait for the kernel: two workers at least, and no more than the machine bears.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 2 ? 2 : n > 4 ? 4 : n)))
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test test-vm lint bench wheel clean packages-demo packages-test

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: packages-demo $(RUNTIME) $(SHIM) ## pods on the two networks of the underlay, before and after (as root)
	@$(BIN)/underlay lab

test: packages-test lint $(SHIM) ## lint, then every test, on the real kernel in throw-away namespaces (as root)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup tests
	@$(BIN)/python -m tests.vm

test-vm: packages-test $(DEV) $(SHIM) ## of test the part on real virtual functions, in a virtual machine (QEMU)
	@$(BIN)/python -m tests.vm $(ARGUMENTS)

lint: $(DEV) ## format, style, types, layers and budgets
	@$(BIN)/ruff check src shim tests bench hatch_build.py
	@$(BIN)/ruff format --check src shim tests bench hatch_build.py
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest --noconftest -p no:cacheprovider tests/test_style.py

bench: packages-test $(DEV) $(SHIM) ## every promised figure beside its target
	@$(BIN)/python -m bench

wheel: $(DEV) ## dist/*.whl with the shim for x86-64 and arm64, and the sdist
	@$(BIN)/hatchling build

clean: ## everything that make made
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find src shim tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

packages-demo packages-test:
	@tools/packages $(@:packages-%=%)

$(SHIM): shim/underlay-shim.c shim/shim_build.py | $(RUNTIME)
	@$(BIN)/python shim/shim_build.py $@ || { [ $$? = 3 ] && echo "no C compiler: taking ziglang's (411 MB)" && \
	    $(PIP) install ziglang && $(BIN)/python shim/shim_build.py $@; }

$(BIN)/python:
	@python=$$(tools/python) && echo "making $(VENV) with $$python" && $$python -m venv --clear $(VENV)

$(RUNTIME): $(BIN)/python
	@$(PIP) install --editable . && touch $@

$(DEV): $(BIN)/python
	@echo "installing the tools of pyproject.toml's dev extra into $(VENV)"
	@$(PIP) install --editable '.[dev]' && touch $@ $(RUNTIME)
