"""Server reflection with the comments of the protos, so that `grpcurl describe` shows the documentation.

Generated code drops comments, so grpcio's own reflection has none to serve, and it finds no methods (grpc/grpc issue
34743). Both come from the descriptor pool that it asks; `CommentedPool` is one that knows better.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib import resources

import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

# Brings the details of our errors into the default pool, as no generated code of ours does: without them grpcurl prints
# them as base64.
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection

ERROR_DETAILS_FILE: str = error_details_pb2.DESCRIPTOR.name
"""Named so that the import is used, and for whoever wants to see that it is served."""


class CommentedFile:
    """What grpcio's reflection asks of a FileDescriptor; its proto carries the comments where we have them."""

    def __init__(self, descriptor: FileDescriptor, pool: CommentedPool) -> None:
        self._descriptor = descriptor
        self._pool = pool
        self.name: str = descriptor.name

    @property
    def dependencies(self) -> Sequence[CommentedFile]:
        return [CommentedFile(file, self._pool) for file in self._descriptor.dependencies]

    def CopyToProto(self, proto: FileDescriptorProto) -> None:
        commented = self._pool.commented_files.get(self.name)
        if commented is None:
            self._descriptor.CopyToProto(proto)
        else:
            proto.CopyFrom(commented)


class CommentedPool:
    """The part of a DescriptorPool that grpcio's reflection uses, over the default pool.

    `commented_files` are by their import path. Unknown names raise KeyError, as in the pool below.
    """

    def __init__(self, files: FileDescriptorSet) -> None:
        self.commented_files = {file.name: file for file in files.file}
        self._pool = descriptor_pool.Default()

    def FindFileByName(self, name: str) -> CommentedFile:
        return CommentedFile(self._pool.FindFileByName(name), self)

    def FindFileContainingSymbol(self, symbol: str) -> CommentedFile:
        return CommentedFile(self._file_of(symbol), self)

    def FindMessageTypeByName(self, name: str) -> Descriptor:
        return self._pool.FindMessageTypeByName(name)

    def FindExtensionByNumber(self, message: Descriptor, number: int) -> FieldDescriptor:
        return self._pool.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Descriptor) -> list[FieldDescriptor]:
        return self._pool.FindAllExtensions(message)

    def _file_of(self, symbol: str) -> FileDescriptor:
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            # The pool finds everything but methods.
            service_name, _, method_name = symbol.rpartition(".")
            method = self._pool.FindServiceByName(service_name).methods_by_name[method_name]
            return method.containing_service.file


def load_commented_pool() -> CommentedPool:
    """The pool with the comments of our own protos, which `make proto` keeps beside the generated code."""
    content = resources.files("webhooks").joinpath("descriptors.binpb").read_bytes()
    return CommentedPool(FileDescriptorSet.FromString(content))


def enable_reflection(server: grpc.aio.Server, service_names: Collection[str]) -> None:
    """Serve grpc.reflection.v1alpha for the services named in full, and for itself."""
    names = (*service_names, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, pool=load_commented_pool())
