"""Reads each method's policy from the contracts."""

from __future__ import annotations

from collections.abc import Iterable

from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from storymesh.options.v1 import policy_pb2
from storymesh.options.v1.policy_pb2 import Access


def methods_of(services: Iterable[str]) -> dict[str, MethodDescriptor]:
    """The methods of the named services by path, `/package.Service/Method`."""
    pool = descriptor_pool.Default()
    return {
        f"/{service}/{method.name}": method
        for service in services
        for method in pool.FindServiceByName(service).methods
    }


def is_read(method: MethodDescriptor) -> bool:
    """Whether the contract promises that the method changes nothing, in gRPC's words or in HTTP's (RFC 9110, 9.2.1)."""
    options = method.GetOptions()
    http: HttpRule = options.Extensions[annotations_pb2.http]  # type: ignore[index]  # its stub does not say what it extends
    return options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS or http.WhichOneof("pattern") == "get"


def access_of(method: MethodDescriptor) -> Access.ValueType:
    """Raises ValueError when the contract names none: such a method must never be served."""
    access = method.GetOptions().Extensions[policy_pb2.policy].access
    if access == policy_pb2.ACCESS_UNSPECIFIED:
        raise ValueError(f"{method.full_name} has no (storymesh.options.v1.policy).access; set it in its contract")
    return access
