"""Reads each method's policy from the contracts."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
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


def access_of(method: MethodDescriptor) -> Access.ValueType:
    """Raises ValueError when the contract names none: such a method must never be served."""
    access = method.GetOptions().Extensions[policy_pb2.policy].access
    if access == policy_pb2.ACCESS_UNSPECIFIED:
        raise ValueError(f"{method.full_name} has no (storymesh.options.v1.policy).access; set it in its contract")
    return access
