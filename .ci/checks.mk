# What .ci/run calls, each also by itself. Quick, and without a network once .venv is there.
.PHONY: check
check: ## Run every check but the tests (what .ci/run does first)
	@.ci/run --quick

.PHONY: lint
lint: $(TEST_READY) ## Check style and format (ruff)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: format
format: $(TEST_READY) ## Format, and fix what ruff can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: types
types: $(TEST_READY) ## Check types (mypy, strict)
	@$(BIN)/mypy
	@$(BIN)/mypy .ci/*.py docs/*.py protos/*.py

.PHONY: imports
imports: $(TEST_READY) ## Check which module may import which (import-linter, rules in pyproject.toml)
	@PYTHONPATH=src:src/generated $(BIN)/lint-imports --no-logo

.PHONY: sizes
sizes: $(TEST_READY) ## Check lengths of functions and modules
	@$(BIN)/python .ci/check_sizes.py

.PHONY: layout
layout: $(TEST_READY) ## Check what the top level holds, and that no file names a package registry
	@$(BIN)/python .ci/check_layout.py

.PHONY: locks
locks: $(TEST_READY) ## Check that the lock files are pinned, hashed, without URLs, and agree
	@$(BIN)/python .ci/check_locks.py

.PHONY: docs-check
docs-check: $(RUN_READY) ## Check that what is made from the code is current
	@PYTHONPATH=src:src/generated:. $(BIN)/python docs/generate.py --check

.PHONY: tools
tools: $(TEST_READY) ## Put grpcurl, buf, helm, helm3, kubectl and promtool into .tools/
	@$(BIN)/python .ci/get_tools.py .tools
