"""Reads the contract: every method with its access, rate-limit class, idempotency and HTTP bindings.

This is the only reader of method options. The edge's configuration, the OpenAPI document, the client's table of methods, access
control and retries between services are all derived from it, so they agree. It imports protobuf's runtime alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass

DESCRIPTORS = Path(__file__).resolve().parents[1] / "gen" / "descriptors.binpb"
"""The descriptor set of this repository's contracts."""

BOUND_VERBS = ("GET", "PUT", "POST", "DELETE", "PATCH")
"""The HTTP methods that a contract can bind a method to."""

_RESUME_TOKEN = "resume_token"
_HTTP_BODY = "google.api.HttpBody"
_CLASS = "RATE_LIMIT_CLASS_"


class Access(Enum):
    """The callers that a method admits: the contract's `ACCESS_*`."""

    PUBLIC = "ACCESS_PUBLIC"
    USER = "ACCESS_USER"
    ADMIN = "ACCESS_ADMIN"
    SERVICE = "ACCESS_SERVICE"


class Idempotency(Enum):
    """The effect of repeating a call: the contract's `idempotency_level`."""

    UNKNOWN = "IDEMPOTENCY_UNKNOWN"
    """A repetition may do the work twice."""
    NO_SIDE_EFFECTS = "NO_SIDE_EFFECTS"
    """The call changes nothing; it is a read."""
    IDEMPOTENT = "IDEMPOTENT"
    """A repetition changes nothing more than the first call did."""


_REQUIRED = {
    "GET": (Idempotency.NO_SIDE_EFFECTS,),
    "PUT": (Idempotency.NO_SIDE_EFFECTS, Idempotency.IDEMPOTENT),
    "DELETE": (Idempotency.NO_SIDE_EFFECTS, Idempotency.IDEMPOTENT),
}
"""Idempotency that HTTP requires of a verb (RFC 9110, 9.2.1 and 9.2.2): clients and proxies repeat requests because of it."""


@dataclass(frozen=True)
class Binding:
    """One way to call a method over HTTP: a verb and a path template such as `/v1/stories/{story_id}:watch`."""

    verb: str
    template: str
    takes_body: bool
    takes_any_body: bool = False
    """Whether the body is passed on as it comes, of whatever media type: the contract binds it to a google.api.HttpBody."""
    answers_page: bool = False
    """Whether a field of the response, a google.api.HttpBody, is the answer's body as it stands: a page instead of JSON."""
    hidden_below: str = ""
    """The path's beginning before a variable that is a secret (`debug_redact`), such as `/s/`; empty if there is none."""


@dataclass(frozen=True)
class Method:
    """A method of the contract."""

    descriptor: MethodDescriptor = field(repr=False)
    """The method's descriptor, with its request and response messages, in the pool that the contract was read into."""
    access: Access
    rate_limit_class: str
    """Name of the group of rate-limit rules that applies, such as `default`."""
    idempotency: Idempotency
    bindings: tuple[Binding, ...]
    redirects: bool = False
    """Whether browsers are sent on to the URL that the service names: the contract's option `redirects`."""

    @property
    def service(self) -> str:
        """Full name of the gRPC service, such as `storymesh.story.v1.StoryService`."""
        name: str = self.descriptor.containing_service.full_name
        return name

    @property
    def name(self) -> str:
        return self.descriptor.name

    @property
    def path(self) -> str:
        """Path of the gRPC call; a transcoded request has it as well when it is routed."""
        return f"/{self.service}/{self.name}"

    @property
    def area(self) -> str:
        """Name of the mesh's service that serves the method: `story` for `storymesh.story.v1.StoryService`."""
        return self.service.split(".")[1]

    @property
    def exposed(self) -> bool:
        """Whether the edge serves the method to callers outside the mesh."""
        return self.access is not Access.SERVICE

    @property
    def streams(self) -> bool:
        """Whether the server sends a stream of messages."""
        return self.descriptor.server_streaming

    @property
    def reads(self) -> bool:
        """Whether the call has no side effects."""
        return self.idempotency is Idempotency.NO_SIDE_EFFECTS

    @property
    def repeatable(self) -> bool:
        """Whether a call with an unknown outcome may be repeated."""
        return self.idempotency is not Idempotency.UNKNOWN

    @property
    def answers_pages(self) -> bool:
        """Whether people open it in a browser: it answers over HTTP with pages, errors included."""
        return any(binding.answers_page for binding in self.bindings)

    @property
    def resumable(self) -> bool:
        """Whether the stream can be resumed over another connection.

        If so, the first field of its messages is a `resume_token`, and the request has a field of that name.
        """
        first = [each.name for each in self.descriptor.output_type.fields if each.number == 1]
        return self.streams and first == [_RESUME_TOKEN] and _RESUME_TOKEN in self.descriptor.input_type.fields_by_name


@dataclass(frozen=True)
class Contract:
    """All methods of a descriptor set, in its order."""

    methods: tuple[Method, ...]
    rate_limit_classes: tuple[str, ...]
    """Every rate-limit class in the contract, used or not."""

    @property
    def exposed(self) -> tuple[Method, ...]:
        return tuple(method for method in self.methods if method.exposed)

    @property
    def hidden_below(self) -> tuple[str, ...]:
        """Beginnings of paths that no log and no trace shows beyond, because a secret follows, each once."""
        bindings = (binding for method in self.exposed for binding in method.bindings)
        return tuple(dict.fromkeys(binding.hidden_below for binding in bindings if binding.hidden_below))

    @property
    def transcoded_services(self) -> tuple[str, ...]:
        """The services that have HTTP bindings, each once."""
        return tuple(dict.fromkeys(method.service for method in self.exposed if method.bindings))


class ContractError(ValueError):
    """The contract is invalid; the message names the file or the method, and what to change."""


def read(path: Path = DESCRIPTORS) -> Contract:
    """Reads a serialised `FileDescriptorSet`. Raises ContractError when it is missing or a method has no valid policy."""
    try:
        descriptors = FileDescriptorSet.FromString(path.read_bytes())
    except OSError as error:
        raise ContractError(f"cannot read the contract's descriptor set {path}: {error.strerror}") from error
    return of(descriptors)


def of(descriptors: FileDescriptorSet) -> Contract:
    """The contract in a descriptor set, read into a pool of its own, which is independent of generated modules.

    The set must hold every import before the file that names it. Raises ContractError.
    """
    pool = DescriptorPool()
    for file in descriptors.file:
        pool.Add(file)
    own = [file for file in descriptors.file if file.package.startswith("storymesh.")]
    services = [f"{file.package}.{service.name}" for file in own for service in file.service]
    classes = pool.FindEnumTypeByName("storymesh.options.v1.RateLimitClass").values
    names = (value.name.removeprefix(_CLASS).lower() for value in classes if value.number)
    return Contract(tuple(_methods(pool, services)), tuple(names))


def linked(services: Iterable[str]) -> dict[str, Method]:
    """The methods of services whose generated modules are imported, by path.

    Raises ContractError, and KeyError for a service whose module is not imported.
    """
    # Generated modules hold their options as bytes; these modules define the extensions that decode them.
    from google.api import annotations_pb2  # noqa: F401
    from storymesh.options.v1 import policy_pb2  # noqa: F401

    return {method.path: method for method in _methods(descriptor_pool.Default(), services)}


def _methods(pool: DescriptorPool, services: Iterable[str]) -> Iterator[Method]:
    for service in services:
        yield from map(_method, pool.FindServiceByName(service).methods)


def options_of(described: MethodDescriptor | FieldDescriptor) -> dict[str, Any]:
    """The options of a method or field in protobuf's JSON form; a key of an extension is its full name in brackets."""
    parent = described.containing_service if isinstance(described, MethodDescriptor) else described.containing_type
    options = described.GetOptions()
    # Parsed again with the pool that holds the contract's extensions.
    pool = parent.file.pool  # type: ignore[union-attr]  # only extensions stand outside a message
    options_class = GetMessageClass(pool.FindMessageTypeByName(options.DESCRIPTOR.full_name))
    return MessageToDict(options_class.FromString(options.SerializeToString()), preserving_proto_field_name=True)


def _method(descriptor: MethodDescriptor) -> Method:
    options = options_of(descriptor)
    policy = options.get("[storymesh.options.v1.policy]", {})
    try:
        access = Access(policy.get("access"))
    except ValueError:
        raise ContractError(
            f"{descriptor.full_name} has no (storymesh.options.v1.policy).access; set it in its contract"
        ) from None
    rate_limit_class = str(policy.get("rate_limit_class", f"{_CLASS}UNSPECIFIED")).removeprefix(_CLASS).lower()
    method = Method(
        descriptor,
        access,
        "default" if rate_limit_class == "unspecified" else rate_limit_class,
        Idempotency(options.get("idempotency_level", Idempotency.UNKNOWN.value)),
        tuple(_bindings(descriptor, options.get("[google.api.http]", {}))),
        redirects=bool(options.get("[storymesh.options.v1.redirects]", False)),
    )
    if method.answers_pages and not all(binding.answers_page for binding in method.bindings):
        raise ContractError(
            f"{descriptor.full_name} answers with a page at some of its paths only; bind it alike at all"
        )
    for binding in method.bindings:
        allowed = _REQUIRED.get(binding.verb, tuple(Idempotency))
        if method.idempotency not in allowed:
            raise ContractError(
                f"{descriptor.full_name} is bound to {binding.verb}, which HTTP lets anybody repeat; "
                f"set its idempotency_level to {' or '.join(each.value for each in allowed)}, or bind it to POST"
            )
    return method


def _bindings(descriptor: MethodDescriptor, rule: dict[str, Any]) -> Iterator[Binding]:
    for verb in BOUND_VERBS:
        if verb.lower() in rule:
            template = rule[verb.lower()]
            yield Binding(
                verb=verb,
                template=template,
                takes_body="body" in rule,
                takes_any_body=_is_http_body(descriptor.input_type, rule.get("body", "")),
                answers_page=_is_http_body(descriptor.output_type, rule.get("response_body", "")),
                hidden_below=_before_a_secret(descriptor.input_type, template),
            )
    for further in rule.get("additional_bindings", ()):
        yield from _bindings(descriptor, further)


def _is_http_body(message: Descriptor, name: str) -> bool:
    field = message.fields_by_name.get(name)
    return field is not None and field.message_type is not None and field.message_type.full_name == _HTTP_BODY


def _before_a_secret(message: Descriptor, template: str) -> str:
    for variable in re.finditer(r"\{(\w+)[^}]*\}", template):
        if options_of(message.fields_by_name[variable[1]]).get("debug_redact"):
            return template[: variable.start()]
    return ""
