"""What reflection serves, asked through the servicer that grpcio registers, without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2

# The modules register their descriptors when they are imported.
from webhooks.admin.v1 import admin_pb2  # noqa: F401 - see above
from webhooks.v1 import delivery_pb2, endpoint_pb2, event_type_pb2, publisher_pb2, tenant_pb2  # noqa: F401 - see above

from dispatcher.api.reflection import ERROR_DETAILS_FILE, load_commented_pool


async def ask(**question: object) -> reflection_pb2.ServerReflectionResponse:
    servicer = reflection.aio.ReflectionServicer(["webhooks.v1.PublisherService"], pool=load_commented_pool())

    async def questions() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(**question)

    answers = [answer async for answer in servicer.ServerReflectionInfo(questions(), None)]
    assert len(answers) == 1
    return answers[0]


async def files_of(**question: object) -> dict[str, FileDescriptorProto]:
    answer = await ask(**question)
    assert answer.WhichOneof("message_response") == "file_descriptor_response", answer
    files = [FileDescriptorProto.FromString(file) for file in answer.file_descriptor_response.file_descriptor_proto]
    return {file.name: file for file in files}


@pytest.mark.parametrize(
    ("symbol", "path"),
    [
        ("webhooks.v1.PublisherService", "webhooks/v1/publisher.proto"),
        ("webhooks.v1.DeliveryService.GetEndpointStatus", "webhooks/v1/delivery.proto"),
        ("webhooks.v1.Endpoint.State", "webhooks/v1/endpoint.proto"),
        ("webhooks.admin.v1.Lease", "webhooks/admin/v1/admin.proto"),
    ],
)
async def test_a_symbol_is_answered_by_its_file_with_comments(symbol: str, path: str) -> None:
    files = await files_of(file_containing_symbol=symbol)
    assert any(location.leading_comments for location in files[path].source_code_info.location)


async def test_a_files_imports_come_with_it_googles_included() -> None:
    files = await files_of(file_by_filename="webhooks/v1/publisher.proto")
    assert {"webhooks/v1/event.proto", "google/api/annotations.proto", "google/rpc/status.proto"} <= files.keys()
    missing = {path for file in files.values() for path in file.dependency} - files.keys()
    assert not missing


async def test_error_details_are_served() -> None:
    assert ERROR_DETAILS_FILE in await files_of(file_containing_symbol="google.rpc.BadRequest")


@pytest.mark.parametrize(
    "symbol", ["webhooks.v1.Nothing", "webhooks.v1.PublisherService.Nothing", "webhooks.v1.Event.Nothing.Deep", "", "."]
)
async def test_an_unknown_symbol_is_not_found(symbol: str) -> None:
    answer = await ask(file_containing_symbol=symbol)
    assert answer.error_response.error_code == 5


async def test_extensions_are_found() -> None:
    question = reflection_pb2.ExtensionRequest(containing_type="google.protobuf.FieldOptions", extension_number=1052)
    files = await files_of(file_containing_extension=question)
    assert "google/api/field_behavior.proto" in files
    answer = await ask(all_extension_numbers_of_type="google.protobuf.FieldOptions")
    assert 1052 in answer.all_extension_numbers_response.extension_number
