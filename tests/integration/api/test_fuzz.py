"""Random bytes and random words to every method: the service answers, and nothing of it is a bug."""

from __future__ import annotations

import logging
import random
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from webhooks.admin.v1 import admin_pb2

from dispatcher.api.server import ADMIN_SERVICES, CALLER_SERVICES
from tests.support.api import Api, code_of, create_endpoint

ROUNDS = 12
SERVICES = (*CALLER_SERVICES, *ADMIN_SERVICES)
WORDS = [
    "",
    "-",
    "*",
    "acme",
    "tenants/acme",
    "tenants/acme/endpoints/billing",
    "tenants/acme/endpoints/-",
    "tenants/../acme",
    "tenants/acme/endpoints/billing/deliveries/1",
    "tenants/acme/endpoints/billing/deliveries/99999999999999999999",
    "tenants/acme/events/e",
    "https://169.254.169.254/",
    "\x00",
    "'; DROP TABLE tenant; --",
    "a" * 5000,
    "\u202e\ud7ff",
    'state = "ACTIVE"',
    "state = state = state",
    "whsec_AAAA",
    "eyJhIjoxfQ",
]
UNEXPECTED = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}


def filled(message: Any, chance: random.Random, depth: int = 0) -> Any:
    """A message with some of its fields set to something."""
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.4 or (field.message_type and depth > 3):
            continue
        count = chance.randint(1, 3) if field.is_repeated else 1
        if field.message_type and field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING:
                getattr(message, field.name)[chance.choice(WORDS)] = chance.choice(WORDS)
        elif field.message_type:
            for _ in range(count):
                filled(
                    getattr(message, field.name).add() if field.is_repeated else _sub(message, field), chance, depth + 1
                )
        elif field.is_repeated:
            getattr(message, field.name).extend(_value(field, chance) for _ in range(count))
        else:
            setattr(message, field.name, _value(field, chance))
    return message


def _sub(message: Any, field: FieldDescriptor) -> Any:
    found = getattr(message, field.name)
    found.SetInParent()
    return found


def _value(field: FieldDescriptor, chance: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            word = chance.choice(WORDS)
            return chance.randbytes(chance.randint(0, 64)) if field.type == FieldDescriptor.TYPE_BYTES else word
        case FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return chance.choice([0.0, -1.0, 1e300, float("nan"), float("inf"), 0.5])
        case FieldDescriptor.CPPTYPE_ENUM:
            return chance.choice([0, 1, 2, 3, 99])
        case FieldDescriptor.CPPTYPE_UINT32 | FieldDescriptor.CPPTYPE_UINT64:
            return chance.choice([0, 1, 2**31])
        case _:
            return chance.choice([0, 1, -1, 2**31 - 1, -(2**31)])


@pytest.mark.parametrize("service", SERVICES)
async def test_no_request_to_a_service_is_a_bug(api: Api, caplog: pytest.LogCaptureFixture, service: str) -> None:
    await api.tenant()
    await api.endpoints.CreateEndpoint(create_endpoint())
    api.control.last_drained.set()
    channel = api.admin_channel if service in ADMIN_SERVICES else api.channel
    with caplog.at_level(logging.ERROR):
        for method in descriptor_pool.Default().FindServiceByName(service).methods:
            if not method.client_streaming:
                await _tried(channel.unary_unary(f"/{service}/{method.name}"), method)
                assert "a call failed unexpectedly" not in caplog.text, method.full_name
    await api.admin.GetStatus(admin_pb2.GetStatusRequest())


async def _tried(call: Any, method: Any) -> None:
    chance, kind = random.Random(method.full_name), message_factory.GetMessageClass(method.input_type)
    for _ in range(ROUNDS):
        whole = filled(kind(), chance).SerializeToString()
        cut = bytearray(whole or b"\x0a")
        cut[chance.randrange(len(cut))] = chance.randrange(256)
        for sent in (whole, bytes(cut), chance.randbytes(chance.randint(1, 200))):
            assert await code_of(call(sent, timeout=15)) not in UNEXPECTED, (method.full_name, sent)


async def test_a_stream_of_garbage_ends_as_an_invalid_request(api: Api) -> None:
    stream: Any = api.channel.stream_stream("/webhooks.v1.PublisherService/PublishStream")
    call = stream(iter([b"\xff\xff\xff"]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [answer async for answer in call]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
