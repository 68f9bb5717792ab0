"""The contract as the edge sees it: every method with its policy and its HTTP bindings.

The descriptor set is read into a pool of its own, so that rendering needs neither the generated stubs nor their registration order,
and a newer contract can be rendered by older code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodOptions
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass

JWKS_METHOD = "/storymesh.auth.v1.KeyService/GetJwks"

_BOUND_VERBS = ("GET", "PUT", "POST", "DELETE", "PATCH")
VERBS = (*_BOUND_VERBS, "HEAD", "OPTIONS")
"""The methods of HTTP that the edge answers by anything but a refusal."""


_RESUME_TOKEN = "resume_token"

_ANSWERED_BY = {"ops": "notification"}
"""Areas of the contract without a service of their own, and whose service answers for them."""


class Access(Enum):
    """Who may call a method; the contract's `ACCESS_*`."""

    PUBLIC = "ACCESS_PUBLIC"
    USER = "ACCESS_USER"
    ADMIN = "ACCESS_ADMIN"
    SERVICE = "ACCESS_SERVICE"


class RateLimitClass(Enum):
    """Which group of rate-limit rules applies; the value is what the limiter's rules call it."""

    DEFAULT = "default"
    CREDENTIALS = "credentials"
    GENERATION = "generation"
    STREAM = "stream"
    REFRESH = "refresh"


@dataclass(frozen=True)
class Binding:
    """One way to call a method over HTTP: a verb and a path template such as `/v1/stories/{story_id}:watch`."""

    verb: str
    template: str
    takes_body: bool


@dataclass(frozen=True)
class Field:
    """A field of a request, by what it is in JSON."""

    name: str
    json_name: str
    kind: str
    """string, boolean, number, enum, or else a message's full name."""
    is_list: bool


@dataclass(frozen=True)
class Method:
    """A method of the contract."""

    service: str
    name: str
    access: Access
    rate_limit_class: RateLimitClass
    streams: bool
    resumable: bool
    """A stream whose messages begin with a `resume_token`, which the request takes: one that can go on over another connection."""
    without_side_effects: bool
    bindings: tuple[Binding, ...]
    fields: tuple[Field, ...] = ()

    @property
    def path(self) -> str:
        """The path of the gRPC call, which transcoded requests have too by the time they are routed."""
        return f"/{self.service}/{self.name}"

    @property
    def area(self) -> str:
        """Which part of the mesh serves it: `story` of `storymesh.story.v1.StoryService`."""
        area = self.service.split(".")[1]
        return _ANSWERED_BY.get(area, area)

    @property
    def exposed(self) -> bool:
        """Whether the outside may try to call it at all."""
        return self.access is not Access.SERVICE


class ContractError(Exception):
    """The descriptor set cannot be rendered; the message says which method is to blame."""


@dataclass(frozen=True)
class Contract:
    """All methods of a descriptor set, in its order."""

    methods: tuple[Method, ...]

    @property
    def exposed(self) -> tuple[Method, ...]:
        return tuple(method for method in self.methods if method.exposed)

    @property
    def transcoded_services(self) -> tuple[str, ...]:
        """The services that have HTTP bindings, each once."""
        return tuple(dict.fromkeys(method.service for method in self.exposed if method.bindings))


def read(path: Path) -> Contract:
    """Reads a serialised `FileDescriptorSet`. Raises ContractError when it is missing or a method has no valid policy."""
    try:
        descriptors = FileDescriptorSet.FromString(path.read_bytes())
    except OSError as error:
        raise ContractError(f"cannot read the contract's descriptor set {path}: {error.strerror}") from error
    pool = DescriptorPool()
    for file in descriptors.file:
        pool.Add(file)
    options = GetMessageClass(pool.FindMessageTypeByName("google.protobuf.MethodOptions"))
    own = [file.name for file in descriptors.file if file.package.startswith("storymesh.")]
    return Contract(
        tuple(
            _method(method, options)
            for name in own
            for service in pool.FindFileByName(name).services_by_name.values()
            for method in service.methods
        )
    )


def _method(descriptor: MethodDescriptor, options_class: Any) -> Method:
    """The method with its options, which are parsed again in the pool that knows the contract's extensions."""
    options = MessageToDict(
        options_class.FromString(descriptor.GetOptions().SerializeToString()), preserving_proto_field_name=True
    )
    policy = options.get("[storymesh.options.v1.policy]", {})
    try:
        access = Access(policy.get("access"))
    except ValueError:
        raise ContractError(f"{descriptor.full_name} has no (storymesh.options.v1.policy).access") from None
    rate_limit_class = policy.get("rate_limit_class", "RATE_LIMIT_CLASS_DEFAULT").removeprefix("RATE_LIMIT_CLASS_")
    return Method(
        service=descriptor.containing_service.full_name,
        name=descriptor.name,
        access=access,
        rate_limit_class=RateLimitClass.DEFAULT
        if rate_limit_class == "UNSPECIFIED"
        else RateLimitClass[rate_limit_class],
        streams=descriptor.server_streaming,
        resumable=descriptor.server_streaming
        and _RESUME_TOKEN in descriptor.input_type.fields_by_name
        and [field.name for field in descriptor.output_type.fields if field.number == 1] == [_RESUME_TOKEN],
        without_side_effects=options.get("idempotency_level")
        == MethodOptions.IdempotencyLevel.Name(MethodOptions.NO_SIDE_EFFECTS),
        bindings=tuple(_bindings(options.get("[google.api.http]", {}))),
        fields=tuple(map(_field, descriptor.input_type.fields)),
    )


def _field(descriptor: FieldDescriptor) -> Field:
    if descriptor.message_type is not None:
        kind = descriptor.message_type.full_name
    elif descriptor.enum_type is not None:
        kind = "enum"
    else:
        kind = {FieldDescriptor.CPPTYPE_STRING: "string", FieldDescriptor.CPPTYPE_BOOL: "boolean"}.get(
            descriptor.cpp_type, "number"
        )
    # A ListValue is a list of anything, and a list in JSON.
    is_list = descriptor.is_repeated or kind == "google.protobuf.ListValue"
    return Field(descriptor.name, descriptor.json_name, kind, is_list)


def _bindings(rule: dict[str, Any]) -> Iterator[Binding]:
    for verb in _BOUND_VERBS:
        if verb.lower() in rule:
            yield Binding(verb=verb, template=rule[verb.lower()], takes_body="body" in rule)
    for further in rule.get("additional_bindings", ()):
        yield from _bindings(further)
