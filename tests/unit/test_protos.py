"""Rules for the API that buf does not check, or that must hold where buf is not at hand."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from google.api import annotations_pb2, client_pb2, field_behavior_pb2, resource_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from google.protobuf.field_mask_pb2 import FieldMask

FILES: tuple[FileDescriptorProto, ...] = tuple(
    FileDescriptorSet.FromString(resources.files("webhooks").joinpath("descriptors.binpb").read_bytes()).file
)
MODULES = [importlib.import_module(file.name.removesuffix(".proto").replace("/", ".") + "_pb2") for file in FILES]
Behavior = field_behavior_pb2.FieldBehavior


def messages() -> Iterator[Descriptor]:
    """All messages, nested ones included, map entries aside."""
    waiting = [message for module in MODULES for message in module.DESCRIPTOR.message_types_by_name.values()]
    while waiting:
        message = waiting.pop()
        if not message.GetOptions().map_entry:
            yield message
            waiting.extend(message.nested_types)


def enums() -> Iterator[EnumDescriptor]:
    for module in MODULES:
        yield from module.DESCRIPTOR.enum_types_by_name.values()
    for message in messages():
        yield from message.enum_types


def fields() -> list[FieldDescriptor]:
    return [field for message in messages() for field in message.fields]


def methods() -> list[MethodDescriptor]:
    services = [service for module in MODULES for service in module.DESCRIPTOR.services_by_name.values()]
    return [method for service in services for method in service.methods]


def behaviors(field: FieldDescriptor) -> set[int]:
    return set(field.GetOptions().Extensions[field_behavior_pb2.field_behavior])


def name_of(thing: FieldDescriptor | MethodDescriptor | EnumDescriptor) -> str:
    return thing.full_name


def resource_types() -> dict[str, Descriptor]:
    found = {}
    for message in messages():
        if message.GetOptions().HasExtension(resource_pb2.resource):
            found[message.GetOptions().Extensions[resource_pb2.resource].type] = message
    return found


# Where a descriptor keeps what it declares: field numbers of descriptor.proto, as SourceCodeInfo paths use them.
DECLARED: dict[type[object], tuple[tuple[int, str], ...]] = {
    FileDescriptorProto: ((4, "message_type"), (5, "enum_type"), (6, "service")),
    DescriptorProto: ((2, "field"), (3, "nested_type"), (4, "enum_type"), (8, "oneof_decl")),
    EnumDescriptorProto: ((2, "value"),),
    ServiceDescriptorProto: ((2, "method"),),
}


def declarations(parent: object, path: tuple[int, ...] = (), name: str = "") -> Iterator[tuple[tuple[int, ...], str]]:
    """The SourceCodeInfo path and the name of everything that `parent` declares, map entries aside."""
    for number, attribute in DECLARED.get(type(parent), ()):
        for index, child in enumerate(getattr(parent, attribute)):
            if isinstance(child, DescriptorProto) and child.options.map_entry:
                continue
            child_path, child_name = (*path, number, index), f"{name}.{child.name}"
            yield child_path, child_name
            yield from declarations(child, child_path, child_name)


def field_at(message: Descriptor, path: str) -> FieldDescriptor:
    """The field that a dotted path such as `endpoint.name` names; KeyError when there is none."""
    first, _, rest = path.partition(".")
    field = message.fields_by_name[first]
    if not rest:
        return field
    assert field.message_type is not None, f"{first} has no fields"
    return field_at(field.message_type, rest)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_declaration_has_a_comment(file: FileDescriptorProto) -> None:
    locations = file.source_code_info.location
    commented = {tuple(location.path) for location in locations if location.leading_comments.strip()}
    declared = list(declarations(file))
    assert declared
    assert [name for path, name in declared if path not in commented] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_carry_package_options_and_import_no_validator(file: FileDescriptorProto) -> None:
    options = file.options
    assert options.java_multiple_files
    assert options.java_package == f"dispatcher.{file.package}"
    assert options.go_package.startswith(f"dispatcher/{Path(file.name).parent};")
    assert options.csharp_namespace.lower() == f"dispatcher.{file.package}"
    allowed = ("google/api/", "google/protobuf/", "google/rpc/", "webhooks/")
    assert all(dependency.startswith(allowed) for dependency in file.dependency)


def test_every_file_under_protos_is_generated() -> None:
    from externalscaler import externalscaler_pb2

    root = Path(__file__).parents[2] / "protos"
    generated = sorted([externalscaler_pb2.DESCRIPTOR.name, *(file.name for file in FILES)])
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*.proto")) == generated


def test_generated_packages_do_not_collide_with_ours() -> None:
    import webhooks.admin.v1
    import webhooks.v1

    import dispatcher

    roots = {module.__name__.partition(".")[0] for module in (webhooks.v1, webhooks.admin.v1)}
    assert roots == {"webhooks"}
    assert Path(str(webhooks.__file__)).parent != Path(str(dispatcher.__file__)).parent
    assert {file.package for file in FILES} == {"webhooks.v1", "webhooks.admin.v1"}


def test_every_field_says_its_behaviour_once() -> None:
    main = {Behavior.REQUIRED, Behavior.OPTIONAL, Behavior.OUTPUT_ONLY, Behavior.IDENTIFIER}
    assert [field.full_name for field in fields() if len(behaviors(field) & main) != 1] == []


@pytest.mark.parametrize("enum", list(enums()), ids=name_of)
def test_enums_are_prefixed_and_begin_unspecified(enum: EnumDescriptor) -> None:
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
    assert enum.values_by_number[0].name == f"{prefix}UNSPECIFIED"
    assert all(value.name.startswith(prefix) for value in enum.values)


def test_answers_are_output_and_requests_are_not() -> None:
    outer = [message for message in messages() if message.name.endswith(("Request", "Response"))]
    wrong = [
        field.full_name
        for message in outer
        for field in message.fields
        if (Behavior.OUTPUT_ONLY in behaviors(field)) != message.name.endswith("Response")
    ]
    assert wrong == []


@pytest.mark.parametrize("method", [method for method in methods() if method.name != "PublishStream"], ids=name_of)
def test_http_rules_and_signatures_name_fields_of_the_request(method: MethodDescriptor) -> None:
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    template = getattr(rule, rule.WhichOneof("pattern"))
    assert template.startswith("/admin/v1/" if ".admin." in method.full_name else "/v1/")
    signatures = method.GetOptions().Extensions[client_pb2.method_signature]
    assert len(signatures) == 1
    named = [*re.findall(r"\{([a-z_.]+)=", template), *filter(None, signatures[0].split(","))]
    if rule.body not in ("", "*"):
        named.append(rule.body)
    for path in named:
        field_at(method.input_type, path)
    assert bool(rule.body) == (rule.WhichOneof("pattern") in ("post", "patch"))


def test_no_two_methods_share_an_http_rule() -> None:
    rules = [method.GetOptions().Extensions[annotations_pb2.http] for method in methods()]
    bound = [
        (rule.WhichOneof("pattern"), re.sub(r"\{[a-z_.]+=", "{", str(getattr(rule, rule.WhichOneof("pattern")))))
        for rule in rules
        if rule.WhichOneof("pattern")
    ]
    assert len(bound) == len(set(bound))


def test_streams_and_unary_calls_are_what_the_names_say() -> None:
    streams = {method.name for method in methods() if method.client_streaming or method.server_streaming}
    assert streams == {"PublishStream"}


def test_resource_references_lead_to_a_resource() -> None:
    references = [field.GetOptions().Extensions[resource_pb2.resource_reference] for field in fields()]
    referred = {reference.type or reference.child_type for reference in references} - {""}
    assert referred
    assert referred <= resource_types().keys()


def test_resources_begin_with_their_name_and_have_the_names_promised() -> None:
    patterns = {}
    for resource_type, message in resource_types().items():
        assert message.fields_by_name["name"].number == 1
        assert behaviors(message.fields_by_name["name"]) == {Behavior.IDENTIFIER}
        patterns[resource_type.rpartition("/")[2]] = message.GetOptions().Extensions[resource_pb2.resource].pattern[0]
    endpoint = "tenants/{tenant}/endpoints/{endpoint}"
    assert patterns == {
        "Tenant": "tenants/{tenant}",
        "TenantStatus": "tenants/{tenant}/status",
        "EventType": "tenants/{tenant}/eventTypes/{event_type}",
        "Event": "tenants/{tenant}/events/{event}",
        "Endpoint": endpoint,
        "EndpointStatus": f"{endpoint}/status",
        "Delivery": f"{endpoint}/deliveries/{{delivery}}",
        "Attempt": f"{endpoint}/deliveries/{{delivery}}/attempts/{{attempt}}",
        "DeadLetter": f"{endpoint}/deadLetters/{{dead_letter}}",
        "Replay": "tenants/{tenant}/replays/{replay}",
        "Instance": "instances/{instance}",
        "Lease": "leases/{lease}",
    }


@pytest.mark.parametrize("method", methods(), ids=name_of)
def test_standard_methods_have_the_fields_of_their_aips(method: MethodDescriptor) -> None:
    request, answer = set(method.input_type.fields_by_name), set(method.output_type.fields_by_name)
    if method.name.startswith("Create"):
        # A dry run of a replay checks as well, and counts.
        assert request & {"validate_only", "dry_run"}
    elif method.name.startswith("Update"):
        assert {"update_mask", "validate_only"} <= request
        assert method.input_type.fields_by_name["update_mask"].message_type is FieldMask.DESCRIPTOR
        assert "etag" in answer
    elif method.name.startswith("Delete"):
        assert {"name", "etag", "validate_only"} <= request
        assert method.output_type.full_name == "google.protobuf.Empty"
    elif method.name.startswith("List"):
        assert {"page_size", "page_token"} <= request
        assert "next_page_token" in answer


def test_secrets_are_redacted_and_only_a_new_signing_secret_ever_comes_out() -> None:
    words = ("secret", "password", "private_key", "bearerauthentication.token")
    secrets = {field.full_name: field for field in fields() if any(word in field.full_name.lower() for word in words)}
    assert {name.removeprefix("webhooks.v1.") for name in secrets} == {
        "CreateEndpointRequest.signing_secret",
        "RotateSigningKeyRequest.signing_secret",
        "SigningKey.secret",
        "BasicAuthentication.password",
        "BearerAuthentication.token",
        "OAuth2ClientCredentials.client_secret",
        "ClientCertificate.private_key",
        "EndpointAuthentication.secret_headers",
    }
    assert all(field.GetOptions().debug_redact for field in secrets.values())
    shown = {name for name, field in secrets.items() if Behavior.INPUT_ONLY not in behaviors(field)}
    # Of secret headers the names come out.
    assert shown == {"webhooks.v1.SigningKey.secret", "webhooks.v1.EndpointAuthentication.secret_headers"}
