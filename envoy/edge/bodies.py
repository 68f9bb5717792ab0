"""Refuses JSON bodies whose values the transcoder would make others of: it reads leniently, and a service sees only what it made.

A text in the place of a list, a list in a list, an object in the place of a list, a text for true or false, a null in a list, a
field given twice, in a query too, and what is no JSON at all. The types are the contract's.

Of a gRPC call it refuses a body that is not one plain message: gRPC's library fails such a call as it fails all calls of a
connection that has broken, and Envoy gives those up.
"""

from __future__ import annotations

import re
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor

from edge import lua
from edge.config import Config, extension
from mesh.contract import Contract, Method

METADATA = "storymesh.body"
"""Dynamic metadata in which the filter leaves, as `refusal`, what kind its answer is, and as `field` which field is at fault."""

_SCRIPT = Path(__file__).with_suffix(".lua").read_text()

# Numbers may come as texts, and names of an enum as numbers: that is protobuf's JSON, and means the same.
_KINDS = {"string": ("string",), "boolean": ("boolean",), "number": ("number", "string"), "enum": ("string", "number")}
_WORDS = {
    "string": ("a string", "strings"),
    "boolean": ("true or false", "true and false"),
    "number": ("a number", "numbers"),
    "enum": ("the name of a value", "names of values"),
}


def strict_bodies(contract: Contract) -> Config:
    """The filter; stands before the transcoder, behind what waits for the whole body."""
    bindings = [(binding, method) for method in contract.exposed for binding in method.bindings]
    methods = [
        {
            "verb": binding.verb,
            "path": _pattern(binding.template),
            "takes_body": binding.takes_body,
            "in_path": re.findall(r"\{(\w+)", binding.template),
            "fields": _fields(method),
        }
        # To a pattern, a last segment with a verb of the contract is an id as well.
        for binding, method in sorted(bindings, key=lambda each: ":" not in each[0].template)
    ]
    calls = {method.path: True for method in contract.exposed}
    return extension(
        "envoy.filters.http.lua.bodies",
        "extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": lua.constants(METADATA=METADATA, METHODS=methods, CALLS=calls) + _SCRIPT},
    )


def _fields(method: Method) -> dict[str, object]:
    """By each name that the transcoder takes for the field."""
    fields = method.descriptor.input_type.fields
    return {name: _rule(field) for field in fields for name in (field.name, field.json_name)}


def _rule(field: FieldDescriptor) -> dict[str, object]:
    """The kinds of JSON that fit, those that fit in a list, and the complaint about others. None of `kinds` of items: all fit."""
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
    """What the field's values are in JSON: string, boolean, number, enum, or else a message's full name."""
    if field.message_type is not None:
        name: str = field.message_type.full_name
        return name
    if field.enum_type is not None:
        return "enum"
    kinds = {FieldDescriptor.CPPTYPE_STRING: "string", FieldDescriptor.CPPTYPE_BOOL: "boolean"}
    return kinds.get(field.cpp_type, "number")


def _pattern(template: str) -> str:
    """Lua's pattern for the paths of a template whose variables each span one segment."""
    literals = (re.sub(r"([^\w/])", r"%\1", literal) for literal in re.split(r"\{[^}]*\}", template))
    return f"^{'[^/]+'.join(literals)}/?$"
