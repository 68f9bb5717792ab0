"""Describes the HTTP surface as OpenAPI 3.1, from the same contracts that the edge transcodes by.

The document is derived from the contracts alone: paths from `google.api.http`, limits from the `buf.validate` rules,
security from the access policies, error statuses from the codes that a method's comment names. Field names and values have
the edge's JSON form: snake_case, enums by name, times in RFC 3339, defaults printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from google.protobuf.message import Message
from openapi_common import (
    ANY_BODY,
    ENDED,
    ERROR_SCHEMAS,
    EVENT_SOURCE,
    HEADERS,
    HEALTH,
    INFO,
    LAST_EVENT_ID,
    OF_EVERY_CALL,
    PAGE,
    REDIRECTED,
    RESPONSES,
)
from openapi_schemas import WELL_KNOWN, described, list_value, renamed, scalar

from mesh import contract
from mesh.contract import Access, Binding, Method
from mesh.services import SERVICES

Json = dict[str, Any]
Comments = dict[str, str]

# The edge's HTTP statuses for the gRPC codes that a method's comment may name.
HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


def openapi(descriptors: FileDescriptorSet) -> Json:
    """The OpenAPI document. Raises ValueError when two messages or methods would share a name in it."""
    return _Document(descriptors).render()


def to_yaml(document: Json) -> str:
    """The document as YAML in its own order, with multi-line texts as blocks and without aliases."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


class _Document:
    """Builds the document; schemas are added when a path refers to them."""

    def __init__(self, descriptors: FileDescriptorSet) -> None:
        self._files = [file for file in descriptors.file if file.package.startswith("storymesh.")]
        self._contract = contract.of(descriptors)
        self._comments = {name: text for file in self._files for name, text in _comments(file)}
        self._schemas: dict[str, Json] = {}
        self._named: dict[str, str] = {}

    def render(self) -> Json:
        paths: dict[str, Json] = {}
        tags: list[Json] = []
        operations: set[str] = set()
        for service in self._services():
            methods = [method for method in self._contract.exposed if method.service == service and method.bindings]
            tags.append({"name": _simple(service), "description": self._comments[service]})
            for method in methods:
                if method.name in operations:
                    raise ValueError(f"two methods are named {method.name}; operation ids have to differ")
                operations.add(method.name)
                for binding in method.bindings:
                    paths.setdefault(binding.template, {})[binding.verb.lower()] = self._operation(method, binding)
        return {
            "openapi": "3.1.0",
            "info": INFO,
            "servers": [{"url": "/"}],
            "tags": [*tags, {"name": "Edge", "description": "What the edge answers itself."}],
            "paths": {**paths, "/health": HEALTH},
            "components": {
                "securitySchemes": {
                    "bearer": {
                        "type": "http",
                        "scheme": "bearer",
                        "bearerFormat": "JWT",
                        "description": "The access_token of a sign-in or refresh.",
                    }
                },
                "headers": HEADERS,
                "responses": RESPONSES,
                "schemas": dict(sorted({**self._schemas, **ERROR_SCHEMAS}.items())),
            },
        }

    def _services(self) -> list[str]:
        """Services with HTTP bindings, in the order of mesh/services.py."""
        places = {name: place for place, name in enumerate(SERVICES)}
        return sorted(self._contract.transcoded_services, key=lambda name: places.get(name.split(".")[1], len(places)))

    def _operation(self, method: Method, binding: Binding) -> Json:
        request = method.descriptor.input_type
        comment = self._comments[method.descriptor.full_name]
        in_path = re.findall(r"\{([a-z_]+)[^}]*\}", binding.template)
        operation: Json = {
            "operationId": method.name,
            "tags": [_simple(method.service)],
            "summary": re.split(r"(?<=[.;])\s", comment)[0].rstrip(".;"),
            "description": comment,
            "security": [] if method.access is Access.PUBLIC else [{"bearer": []}],
            "x-access": method.access.name.lower(),
            "x-rate-limit-class": method.rate_limit_class,
        }
        parameters = [self._parameter(request, name, "path") for name in in_path]
        if not binding.takes_body:
            rest = [field.name for field in request.fields if field.name not in in_path]
            parameters += [self._parameter(request, name, "query") for name in rest]
        if method.resumable:
            parameters.append(LAST_EVENT_ID)
            operation["description"] += f"\n{EVENT_SOURCE}"
        if parameters:
            operation["parameters"] = parameters
        if binding.takes_any_body:
            operation["requestBody"] = ANY_BODY
        elif binding.takes_body:
            operation["requestBody"] = self._request_body(request, in_path)
        operation["responses"] = self._responses(method, comment, binding)
        return operation

    def _parameter(self, message: Descriptor, name: str, where: str) -> Json:
        field = message.fields_by_name[name]
        schema = self._field(field, limits=True)
        if where == "path" and schema.get("type") == "string":
            schema.setdefault("minLength", 1)
        description = schema.pop("description", "")
        required = where == "path" or self._rules(field).get("required", False)
        return {"name": name, "in": where, "required": required, "description": description, "schema": schema}

    def _request_body(self, message: Descriptor, in_path: list[str]) -> Json:
        """The body without the fields in the path, because the edge refuses a request that has a field in both."""
        schema = self._object(message, set(in_path), requested=True)
        return {
            "required": bool(schema.get("required")),
            "content": {"application/json": {"schema": self._component(message, schema)}},
        }

    def _responses(self, method: Method, comment: str, binding: Binding) -> Json:
        message = method.descriptor.output_type
        if method.streams:
            ok: Json = {
                "description": f"A stream of server-sent events; the data of each is one {message.name} in JSON.",
                "content": {"text/event-stream": {"schema": self._reference(message)}},
            }
        elif binding.answers_page:
            ok = {"description": self._comments[message.full_name], "content": PAGE}
        else:
            ok = {
                "description": self._comments[message.full_name],
                "content": {"application/json": {"schema": self._reference(message)}},
            }
        ok["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in OF_EVERY_CALL}
        statuses = {400, 429, 503, 504}
        statuses |= {
            HTTP_STATUS[name] for name in re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", comment) if name in HTTP_STATUS
        }
        statuses |= set() if method.access is Access.PUBLIC else {401}
        statuses |= {403} if method.access is Access.ADMIN else set()
        statuses |= {413, 415} if binding.takes_body else set()
        names = [*map(str, sorted(statuses)), "default"]
        if binding.answers_page:
            return {"200": ok, **{name: {**RESPONSES[name], "content": PAGE} for name in names}}
        other: Json = {"204": ENDED} if method.resumable else {}
        other |= {"302": REDIRECTED} if method.redirects else {}
        return {"200": ok, **other, **{name: {"$ref": f"#/components/responses/{name}"} for name in names}}

    def _reference(self, message: Descriptor) -> Json:
        """A reference to the schema of a response message, which is added if it is new."""
        if message.full_name in WELL_KNOWN:
            return dict(WELL_KNOWN[message.full_name])
        name = self._name(message)
        if name not in self._schemas:
            self._schemas[name] = {}  # a placeholder while the fields are visited, so that recursion ends
            self._schemas[name] = self._object(message, set(), requested=False)
        return {"$ref": f"#/components/schemas/{name}"}

    def _component(self, message: Descriptor, schema: Json) -> Json:
        name = self._name(message)
        self._schemas[name] = schema
        return {"$ref": f"#/components/schemas/{name}"}

    def _name(self, described: Descriptor | EnumDescriptor) -> str:
        """The schema's name: without the package, but with the enclosing messages, as in `WatchStoryResponse.Chunk`."""
        package = described.file.package
        name = described.full_name.removeprefix(f"{package}.")
        if self._named.setdefault(name, described.full_name) != described.full_name:
            raise ValueError(f"{described.full_name} and {self._named[name]} would share the schema name {name}")
        return name

    def _object(self, message: Descriptor, without: set[str], *, requested: bool) -> Json:
        fields = [field for field in message.fields if field.name not in without]
        schema: Json = {
            "type": "object",
            "description": self._comments[message.full_name],
            "properties": {field.name: self._field(field, limits=requested) for field in fields},
        }
        required = [field.name for field in fields if self._always_there(field, requested=requested)]
        if required:
            schema["required"] = required
        alternatives = [
            [member.name for member in oneof.fields]
            for oneof in message.oneofs
            if not all(member.has_presence and oneof.name == f"_{member.name}" for member in oneof.fields)
        ]
        if alternatives:
            schema["description"] += " " + " ".join(
                f"At most one of {', '.join(members)} is present." for members in alternatives
            )
        return schema

    def _always_there(self, field: FieldDescriptor, *, requested: bool) -> bool:
        """Whether JSON Schema lists the field as required: in requests by its rule, in responses if it has no presence.

        The edge prints the defaults of fields without presence.
        """
        if requested:
            return bool(self._rules(field).get("required", False))
        return not field.has_presence

    def _field(self, field: FieldDescriptor, *, limits: bool) -> Json:
        rules = self._rules(field) if limits else {}
        schema: Json
        if field.message_type is not None and field.message_type.full_name == "google.protobuf.ListValue":
            schema = list_value(field, self._rules(field))
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            schema = {
                "type": "object",
                "additionalProperties": self._value(field.message_type.fields_by_name["value"], {}),
            }
        elif field.is_repeated:
            of_list = rules.get("repeated", {})
            items = self._value(field, of_list.get("items", {}))
            schema = {"type": "array", "items": described("", items)}
            schema |= {"minItems": 1} if rules.get("required") else {}
            schema |= renamed(of_list, {"min_items": "minItems", "max_items": "maxItems", "unique": "uniqueItems"})
        else:
            schema = self._value(field, rules)
        return described(self._comments.get(field.full_name, ""), schema)

    def _value(self, field: FieldDescriptor, rules: Json) -> Json:
        if field.message_type is not None:
            return self._reference(field.message_type)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        return scalar(field, rules)

    def _enum(self, enum: EnumDescriptor) -> Json:
        name = self._name(enum)
        values = [value.name for value in enum.values]
        meanings = (f"- `{value.name}`: {self._comments[f'{enum.full_name}.{value.name}']}" for value in enum.values)
        self._schemas[name] = {
            "type": "string",
            "enum": values,
            "description": "\n".join([self._comments[enum.full_name], *meanings]),
        }
        return {"$ref": f"#/components/schemas/{name}"}

    def _rules(self, field: FieldDescriptor) -> Json:
        rules: Json = contract.options_of(field).get("[buf.validate.field]", {})
        return rules


def _simple(service: str) -> str:
    """The name without its package."""
    return service.rpartition(".")[2]


def _comments(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """Leading comments in a file with the full name of what they describe; an enum's value is named inside its enum.

    The path of a source location consists of the field numbers and indices that lead to the element in the file's descriptor.
    """
    by_path = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}

    def visit(within: str, path: tuple[int, ...], parts: list[_Parts]) -> Iterator[tuple[str, str]]:
        for number, kind in parts:
            for index, part in enumerate(kind):
                name, here = f"{within}.{part.name}", (*path, number, index)
                yield name, _prose(by_path.get(here, ""))
                yield from visit(name, here, _parts(part))

    yield from visit(file.package, (), [(4, file.message_type), (5, file.enum_type), (6, file.service)])


_Parts = tuple[int, Iterable[Any]]


def _parts(described: Message) -> list[_Parts]:
    """The elements of a descriptor by kind, each kind with its field number in the descriptor's message."""
    match described:
        case DescriptorProto():
            return [(2, described.field), (3, described.nested_type), (4, described.enum_type)]
        case EnumDescriptorProto():
            return [(2, described.value)]
        case ServiceDescriptorProto():
            return [(2, described.method)]
        case _:
            return []


def _prose(comment: str) -> str:
    """The comment without its line breaks, except before the list of errors."""
    return re.sub(r"\s*\n\s*", " ", comment.strip()).replace(" Errors: ", "\nErrors: ")
