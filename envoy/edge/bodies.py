"""Refuses JSON bodies whose values the transcoder would change: it parses leniently, and the service sees only its result.

Refused are: a string where a list is due, a list in a list, an object where a list is due, a string for a boolean, a null in a
list, a field given twice (in a query too), and invalid JSON. The types come from the contract.

A gRPC body must be one uncompressed message. gRPC's library fails other bodies with the same error as a broken connection, and
Envoy would close the shared connection because of it.
"""

from __future__ import annotations

import re
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor

from edge import lua
from edge.config import Config, extension
from mesh.contract import Contract, Method

METADATA = "storymesh.body"
"""Namespace of the filter's dynamic metadata: `refusal` is the kind of its answer, `field` the field at fault."""

_SCRIPT = Path(__file__).with_suffix(".lua").read_text()

# protobuf's JSON mapping also allows numbers as strings, and enum values as numbers.
_KINDS = {"string": ("string",), "boolean": ("boolean",), "number": ("number", "string"), "enum": ("string", "number")}
_WORDS = {
    "string": ("a string", "strings"),
    "boolean": ("true or false", "true and false"),
    "number": ("a number", "numbers"),
    "enum": ("the name of a value", "names of values"),
}


def strict_bodies(contract: Contract) -> Config:
    """The filter. It stands after the buffer filter, which waits for the whole body, and before the transcoder."""
    bindings = [
        (binding, method)
        for method in contract.exposed
        for binding in method.bindings
        # A page's query is dropped, and a body of any media type is passed on.
        if not (binding.takes_any_body or binding.answers_page)
    ]
    methods = [
        {
            "verb": binding.verb,
            "path": _pattern(binding.template),
            "takes_body": binding.takes_body,
            "in_path": re.findall(r"\{(\w+)", binding.template),
            "fields": _fields(method),
        }
        # A template's variable also matches a last segment with a verb of the contract.
        for binding, method in sorted(bindings, key=lambda each: ":" not in each[0].template)
    ]
    calls = {method.path: True for method in contract.exposed}
    return extension(
        "envoy.filters.http.lua.bodies",
        "extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": lua.constants(METADATA=METADATA, METHODS=methods, CALLS=calls) + _SCRIPT},
    )


def _fields(method: Method) -> dict[str, object]:
    """The rules of a message's fields, by every name that the transcoder accepts for the field."""
    fields = method.descriptor.input_type.fields
    return {name: _rule(field) for field in fields for name in (field.name, field.json_name)}


def _rule(field: FieldDescriptor) -> dict[str, object]:
    """The JSON kinds that a field accepts, those that its list items accept (None: all), and the message for others."""
    kind = _kind(field)
    # A ListValue is a list of anything, and a list in JSON.
    if field.is_repeated or kind == "google.protobuf.ListValue":
        items = _KINDS.get(kind)
        words = f"must be a list of {_WORDS[kind][1]}" if items else "must be a list"
        rule: dict[str, object] = {"kinds": {"list": True}, "complaint": words}
        return {"name": field.name, **rule, **({"items": dict.fromkeys(items, True)} if items else {})}
    kinds = _KINDS.get(kind, ("object", "string"))
    words = f"must be {_WORDS[kind][0]}" if kind in _WORDS else "must be an object or a string"
    return {"name": field.name, "kinds": dict.fromkeys(kinds, True), "complaint": words}


def _kind(field: FieldDescriptor) -> str:
    """The JSON kind of the field's values: string, boolean, number, enum, or a message's full name."""
    if field.message_type is not None:
        name: str = field.message_type.full_name
        return name
    if field.enum_type is not None:
        return "enum"
    kinds = {FieldDescriptor.CPPTYPE_STRING: "string", FieldDescriptor.CPPTYPE_BOOL: "boolean"}
    return kinds.get(field.cpp_type, "number")


def _pattern(template: str) -> str:
    """The Lua pattern that matches a path template. Each variable spans one segment."""
    literals = (re.sub(r"([^\w/])", r"%\1", literal) for literal in re.split(r"\{[^}]*\}", template))
    return f"^{'[^/]+'.join(literals)}/?$"
