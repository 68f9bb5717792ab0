"""The two doors of the edge, JSON over HTTP and native gRPC, with one interface for calls and answers.

A test that takes the fixture `door` runs once through each, so that a difference between their reasons is found.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

import grpc
import httpx2
from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf import any_pb2, json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, error_details_pb2, status_pb2
from storymesh.auth.v1 import account_service_pb2, key_service_pb2, registration_service_pb2, session_service_pb2
from storymesh.file.v1 import file_service_pb2
from storymesh.notification.v1 import (
    bounce_service_pb2,
    delivery_service_pb2,
    notification_service_pb2,
    preference_service_pb2,
    system_webhook_service_pb2,
    webhook_service_pb2,
)
from storymesh.ops.v1 import dead_letter_service_pb2, rate_limit_service_pb2
from storymesh.social.v1 import block_service_pb2, profile_service_pb2
from storymesh.story.v1 import story_link_service_pb2, story_service_pb2

SECONDS = 20.0
CONNECTIONS = 128
"""The number of HTTP connections and gRPC channels, larger than the number of concurrent callers in any test."""

_CONTRACTS = (
    account_service_pb2,
    key_service_pb2,
    registration_service_pb2,
    session_service_pb2,
    notification_service_pb2,
    preference_service_pb2,
    webhook_service_pb2,
    system_webhook_service_pb2,
    story_service_pb2,
    story_link_service_pb2,
    file_service_pb2,
    profile_service_pb2,
    block_service_pb2,
    dead_letter_service_pb2,
    rate_limit_service_pb2,
    bounce_service_pb2,
    delivery_service_pb2,
)


def _rule(method: MethodDescriptor) -> HttpRule:
    rule: HttpRule = method.GetOptions().Extensions[annotations_pb2.http]  # type: ignore[index]  # generated without types
    return rule


METHODS: dict[str, MethodDescriptor] = {
    method.name: method
    for contract in _CONTRACTS
    for service in contract.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if not _rule(method).response_body
}
"""The public methods by name, without those that answer over HTTP with pages; names are unique across services."""

# The types of details in a status, registered by name so that they can be printed as JSON.
_DETAILS = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)


@dataclass(frozen=True)
class Answer:
    """The answer to a call, in a form common to both doors."""

    code: str
    """The name of the gRPC status code, such as OK or UNAUTHENTICATED."""
    body: dict[str, Any]
    """The message, or the google.rpc.Status, in its JSON form."""
    text: str
    """The body as received; of gRPC, the message as JSON."""
    headers: dict[str, str] = field(default_factory=dict)
    """The headers; of gRPC also the trailers."""
    http_status: int | None = None

    @property
    def ok(self) -> bool:
        return self.code == "OK"

    @property
    def refusal(self) -> tuple[str, str]:
        return self.code, self.reason

    @property
    def reason(self) -> str:
        return str(self._detail("ErrorInfo").get("reason", ""))

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of ErrorInfo."""
        return dict(self._detail("ErrorInfo").get("metadata", {}))

    @property
    def fields(self) -> set[str]:
        return {each["field"] for each in self._detail("BadRequest").get("field_violations", ())}

    @property
    def retry_seconds(self) -> float | None:
        delay = self._detail("RetryInfo").get("retry_delay")
        return float(delay.removesuffix("s")) if delay else None

    def _detail(self, kind: str) -> dict[str, Any]:
        details = self.body.get("details", ())
        return next((each for each in details if str(each["@type"]).endswith(f".{kind}")), {})


class Door(Protocol):
    """One protocol of the edge."""

    async def call(
        self, name: str, /, *, token: str = "", headers: Mapping[str, str] | None = None, **request: Any
    ) -> Answer:
        """Call a unary method, with the fields of its request in their JSON form."""
        ...


class HttpDoor:
    """JSON over HTTP, with path, verb and body from the contract's annotations."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    async def call(
        self, name: str, /, *, token: str = "", headers: Mapping[str, str] | None = None, **request: Any
    ) -> Answer:
        verb, path, rest, has_body = _bound(METHODS[name], request)
        # A body of any media type: the field is a google.api.HttpBody.
        raw = rest.pop(_rule(METHODS[name]).body, None)
        response = await self._client.request(
            verb,
            path,
            json=rest if has_body else None,
            content=base64.b64decode(raw["data"]) if raw else None,
            params=None if has_body or not rest else rest,
            headers={**({"content-type": raw["content_type"]} if raw else {}), **_bearer(token), **(headers or {})},
        )
        body = response.json()
        code = "OK" if response.is_success else code_pb2.Code.Name(body["code"])
        return Answer(code, body, response.text, dict(response.headers), response.status_code)


class GrpcDoor:
    """Calls over native gRPC."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def call(
        self, name: str, /, *, token: str = "", headers: Mapping[str, str] | None = None, **request: Any
    ) -> Answer:
        method = METHODS[name]
        message = json_format.ParseDict(request, GetMessageClass(method.input_type)())
        calling: grpc.aio.UnaryUnaryMultiCallable[Message, Message] = self._channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=lambda sent: sent.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        call = calling(message, metadata=tuple({**_bearer(token), **(headers or {})}.items()), timeout=SECONDS)
        try:
            body, code = _as_dict(await call), "OK"
        except grpc.aio.AioRpcError as error:
            body, code = _status_of(error), error.code().name
        metadata = [*(await call.initial_metadata()), *(await call.trailing_metadata())]
        # Binary metadata is left out: it is the status, which `body` holds.
        text = {key: value for key, value in metadata if isinstance(value, str)}
        return Answer(code, body, json.dumps(body), text)


class RevolvingDoor:
    """Sends each call through the next door, for tests of the mesh behind them."""

    def __init__(self, *doors: Door) -> None:
        self._doors = itertools.cycle(doors)

    async def call(
        self, name: str, /, *, token: str = "", headers: Mapping[str, str] | None = None, **request: Any
    ) -> Answer:
        return await next(self._doors).call(name, token=token, headers=headers, **request)


def _bound(method: MethodDescriptor, request: Mapping[str, Any]) -> tuple[str, str, dict[str, Any], bool]:
    """Return verb, path, the fields that are not in the path, and whether these form the body."""
    rule = _rule(method)
    verb = str(rule.WhichOneof("pattern"))
    path, rest = str(getattr(rule, verb)), dict(request)
    for name in tuple(rest):
        if f"{{{name}}}" in path:
            path = path.replace(f"{{{name}}}", quote(str(rest.pop(name)), safe=""))
    return verb.upper(), path, rest, rule.body == "*"


def _bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


def _as_dict(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _status_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """Return the error's google.rpc.Status as JSON; without details, only code and message."""
    packed = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    status = status_pb2.Status.FromString(packed if isinstance(packed, bytes) else base64.b64decode(packed))
    details = [_detail(each) for each in status.details]
    return {"code": error.code().value[0], "message": error.details(), "details": details}


def _detail(packed: any_pb2.Any) -> dict[str, Any]:
    for kind in _DETAILS:
        if packed.TypeName() == kind.DESCRIPTOR.full_name:
            return {"@type": packed.type_url, **_as_dict(kind.FromString(packed.value))}
    return {"@type": packed.type_url}
