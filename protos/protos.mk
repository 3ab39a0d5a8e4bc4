# The API: protos/webhooks → src/generated (committed), checked by buf. No network: Google's protos come from the
# installed googleapis-common-protos and grpcio-tools, protoc from grpcio-tools. BIN may point at another environment.
PROTO_BUILD := build/protos
PROTO_FILES := $(sort $(shell cd protos && find webhooks -name '*.proto'))
PROTO_VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
PROTO_GOOGLE = $(shell $(BIN)/python -c 'import google.rpc as rpc; print(rpc.__path__[0].removesuffix("/google/rpc"))')
# The details that errors carry: clients decode them by these, and a transcoder needs them in its descriptor set.
PROTO_DETAILS := google/rpc/error_details.proto
PROTOC = $(BIN)/python -m grpc_tools.protoc -I protos -I $(PROTO_GOOGLE)
PROTO_PACKAGES := webhooks webhooks/v1 webhooks/admin webhooks/admin/v1 externalscaler
# KEDA's, not ours: generated, but neither linted nor part of the API.
PROTO_KEDA := externalscaler/externalscaler.proto

# $(call proto-generate,DIRECTORY): Python modules and their typed stubs, in regular packages, and a descriptor set of
# our own files with the comments, which generated code leaves out: reflection serves them from there.
define proto-generate
mkdir -p $(1)
$(PROTOC) --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTO_FILES) $(PROTO_KEDA)
$(PROTOC) --include_source_info --descriptor_set_out=$(1)/webhooks/descriptors.binpb $(PROTO_FILES)
touch $(PROTO_PACKAGES:%=$(1)/%/__init__.py) $(1)/webhooks/py.typed $(1)/externalscaler/py.typed
endef

.PHONY: proto
proto: $(TEST_READY) ## Generate src/generated from protos/
	@rm -rf src/generated/webhooks src/generated/externalscaler
	@$(call proto-generate,src/generated)

.PHONY: proto-descriptor
proto-descriptor: $(TEST_READY)
	@mkdir -p $(PROTO_BUILD)
	@$(PROTOC) --include_imports --include_source_info \
		--descriptor_set_out=$(PROTO_BUILD)/api.binpb $(PROTO_FILES) $(PROTO_DETAILS)

.PHONY: proto-lint
proto-lint: proto-descriptor ## Lint the protos and their format
	@$(BIN)/buf lint $(PROTO_BUILD)/api.binpb --config protos/buf.yaml
	@$(BIN)/buf format protos --diff --exit-code

.PHONY: proto-breaking
proto-breaking: proto-descriptor ## Compare the protos with those of the last release
	@$(BIN)/buf breaking $(PROTO_BUILD)/api.binpb --against protos/release.binpb --config protos/buf.yaml

.PHONY: proto-check
proto-check: proto-lint proto-breaking ## Check that src/generated is up to date; lint, format, breaking changes
	@rm -rf $(PROTO_BUILD)/generated
	@$(call proto-generate,$(PROTO_BUILD)/generated)
	@diff -r -x __pycache__ $(PROTO_BUILD)/generated src/generated \
		|| { echo 'src/generated is not what protos/ makes: run `make proto`' >&2; exit 1; }

.PHONY: proto-package
proto-package: proto-descriptor ## Zip the protos, Google's included, with a descriptor set, for other languages
	@$(BIN)/python protos/package.py $(PROTO_BUILD)/api.binpb build/dispatcher-protos-$(PROTO_VERSION).zip protos $(PROTO_GOOGLE)

# Part of making a release, and of nothing else: from then on, changes are compared with this one.
.PHONY: proto-release
proto-release: $(TEST_READY)
	@$(PROTOC) --include_imports --descriptor_set_out=protos/release.binpb $(PROTO_FILES)
