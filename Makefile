.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(CURDIR)/.tools:$(PATH)
export UV_PYTHON_DOWNLOADS := never

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

# Each stamp carries what it was made from, so a changed lock file is installed again and nothing else is.
$(VENV)/.run-stamp: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("dispatcher needs Python 3.11 or newer; set PYTHON=" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned dependencies into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.test-stamp: $(VENV)/.run-stamp requirements-test.txt
	@echo "installing pinned test tools into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-test.txt
	@touch $@

.PHONY: lock
lock: $(VENV)/.test-stamp ## Compile the hash-locked requirements files from pyproject.toml
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml -o requirements.txt
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml --extra dev --group build -o requirements-dev.txt
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml --extra dev --group build --group test -o requirements-test.txt

include docs/docs.mk

.PHONY: clean
clean: ## Remove what make created, the local database included
	@rm -rf $(VENV) .tools .local build dist

include protos/protos.mk
