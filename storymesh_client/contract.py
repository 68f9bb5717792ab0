"""What the contracts say about each method that the client decides by."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import ServiceDescriptor
from storymesh.auth.v1 import account_service_pb2, key_service_pb2, registration_service_pb2, session_service_pb2
from storymesh.notification.v1 import notification_service_pb2
from storymesh.options.v1 import policy_pb2
from storymesh.story.v1 import story_service_pb2

_FILES = (
    account_service_pb2,
    key_service_pb2,
    registration_service_pb2,
    session_service_pb2,
    notification_service_pb2,
    story_service_pb2,
)
_WITH_TOKEN = {policy_pb2.ACCESS_USER, policy_pb2.ACCESS_ADMIN}


@dataclass(frozen=True, slots=True)
class Method:
    service: str
    name: str
    needs_token: bool
    without_side_effects: bool

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"


def methods() -> dict[str, Method]:
    """Every method that the edge serves, by path."""
    found = [
        method for file in _FILES for service in file.DESCRIPTOR.services_by_name.values() for method in _of(service)
    ]
    return {method.path: method for method in found}


def _of(service: ServiceDescriptor) -> list[Method]:
    return [
        Method(
            service=service.full_name,
            name=method.name,
            needs_token=method.GetOptions().Extensions[policy_pb2.policy].access in _WITH_TOKEN,
            without_side_effects=method.GetOptions().idempotency_level
            == descriptor_pb2.MethodOptions.IdempotencyLevel.NO_SIDE_EFFECTS,
        )
        for method in service.methods
    ]
