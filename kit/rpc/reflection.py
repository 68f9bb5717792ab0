"""gRPC reflection by both of its names, which also finds methods and the members of messages."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default, DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2

_V1ALPHA, _V1 = "grpc.reflection.v1alpha", "grpc.reflection.v1"
NAMES = tuple(f"{package}.ServerReflection" for package in (_V1, _V1ALPHA))
"""The two services. Their messages are the same on the wire, so that one servicer speaks both; grpcio-reflection has the older."""


def add(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Serves the default pool's descriptors of these services, and of reflection itself."""
    servicer = reflection.aio.ReflectionServicer((*services, *NAMES), pool=cast("DescriptorPool", _Pool()))
    info = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in NAMES:
        handler = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": info})
        server.add_generic_rpc_handlers((handler,))


class _Pool:
    """The default pool, whose index of files by symbol knows no methods, oneofs, nor members of nested messages."""

    def __getattr__(self, name: str) -> Any:
        return getattr(Default(), name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802  # the pool calls it so
        """Raises KeyError when nothing has this name."""
        pool = Default()
        parent, _, name = symbol.rpartition(".")
        with suppress(KeyError):
            return pool.FindFileContainingSymbol(symbol)
        with suppress(KeyError):
            if name in pool.FindServiceByName(parent).methods_by_name:
                return pool.FindFileContainingSymbol(parent)
        message = pool.FindMessageTypeByName(parent)
        if not any(
            name in members for members in (message.fields_by_name, message.oneofs_by_name, message.enum_values_by_name)
        ):
            raise KeyError(symbol)
        return message.file


def _declare_v1() -> None:
    """Adds v1's file, which is v1alpha's in another package, for clients that ask what reflection itself is."""
    file = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = file.name.replace("v1alpha", "v1"), _V1
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(_V1ALPHA, _V1)
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(_V1ALPHA, _V1)
        method.output_type = method.output_type.replace(_V1ALPHA, _V1)
    Default().Add(file)


_declare_v1()
