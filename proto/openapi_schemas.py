"""Schemas of single values: types from the protobuf fields, limits from the `buf.validate` rules."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from openapi_common import DURATION

Json = dict[str, Any]

SCALARS: dict[int, Json] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "format": "int64", "minimum": 0},
    # JSON numbers lose precision beyond 53 bits, so 64-bit integers are sent as strings.
    FieldDescriptor.TYPE_INT64: {"type": "string", "format": "int64"},
    FieldDescriptor.TYPE_UINT64: {"type": "string", "format": "uint64"},
}

WELL_KNOWN: dict[str, Json] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": DURATION,
    "google.protobuf.FieldMask": {"type": "string", "description": "Field names, separated by commas."},
    "google.protobuf.Struct": {"type": "object"},
}

_RULES_OF = {
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_DOUBLE: "double",
}


def scalar(field: FieldDescriptor, rules: Json) -> Json:
    """The schema of a value that is neither a message nor an enum."""
    schema = dict(SCALARS[field.type])
    if field.type == FieldDescriptor.TYPE_STRING:
        # Without presence, protobuf cannot tell an empty string from an unset one.
        not_empty = {"minLength": 1} if rules.get("required") and not field.has_presence else {}
        return schema | not_empty | _string_limits(rules)
    bounds = {"gte": "minimum", "lte": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
    return schema | renamed(rules.get(_RULES_OF.get(field.type, ""), {}), bounds)


def _string_limits(rules: Json) -> Json:
    of_string = rules.get("string", {})
    schema = renamed(of_string, {"min_len": "minLength", "max_len": "maxLength", "pattern": "pattern", "in": "enum"})
    for form in ("email", "uuid", "uri", "hostname", "ipv4", "ipv6"):
        if of_string.get(form):
            schema["format"] = form
    if "pattern" in schema and rules.get("ignore") == "IGNORE_IF_ZERO_VALUE":
        schema["pattern"] = f"^$|{schema['pattern']}"
    if of_string.get("[storymesh.options.v1.address]"):
        # The normalised form; the services accept more spellings.
        schema |= {"format": "email", "maxLength": 254, "x-max-bytes": 254}
    if digits := of_string.get("[storymesh.options.v1.digits]"):
        # `\d` is ASCII here; the services also accept the digits of some other scripts.
        optional = "^$|" if rules.get("ignore") == "IGNORE_IF_ZERO_VALUE" else ""
        schema |= {"maxLength": 40, "pattern": rf"{optional}^\D*(\d\D*){{{digits}}}$"}
    if "max_bytes" in of_string:
        # A character of UTF-8 is at least one byte, so the limit in bytes also bounds the length.
        most = int(of_string["max_bytes"])
        schema |= {"maxLength": most, "x-max-bytes": most}
    return schema


def list_value(field: FieldDescriptor, rules: Json) -> Json:
    """The schema of a `google.protobuf.ListValue`, whose items' type and limits are read from the field's CEL rules.

    Raises ValueError when no rule states the type.
    """
    expressions = " ".join(rule["expression"] for rule in rules.get("cel", ()))

    def said(pattern: str) -> str:
        found = re.search(pattern, expressions)
        return found[1] if found else ""

    kind = _TYPES_OF_CEL.get(said(r"type\(each\) == (\w+)"))
    if kind is None:
        raise ValueError(f"no rule of {field.full_name} says of which type its items are")
    most = said(r"bytes\(string\(each\)\)\.size\(\) <= (\d+)")
    pattern = said(r"string\(each\)\.matches\(r'([^']*)'\)")
    items = {
        "type": kind,
        **({"pattern": pattern} if pattern else {}),
        **_string_limits({"string": {"max_bytes": most}} if most else {}),
    }
    schema: Json = {"type": "array", "items": described("", items)}
    if longest := said(r"this\.size\(\) <= (\d+)"):
        schema["maxItems"] = int(longest)
    if ".unique()" in expressions:
        schema["uniqueItems"] = True
    return schema


_TYPES_OF_CEL = {"string": "string", "double": "number", "bool": "boolean"}


def described(comment: str, schema: Json) -> Json:
    """The schema with the comment as its description, and with the limit in bytes, for which JSON Schema has no keyword."""
    limit = f"At most {schema['x-max-bytes']} bytes in UTF-8." if "x-max-bytes" in schema else ""
    description = " ".join(filter(None, (comment, limit)))
    return {**schema, "description": description} if description else schema


def renamed(values: Json, names: dict[str, str]) -> Json:
    """The values under JSON Schema's names. Protobuf's JSON has 64-bit numbers as strings; these become integers."""
    return {
        name: int(values[key]) if isinstance(values[key], str) and key != "pattern" else values[key]
        for key, name in names.items()
        if key in values
    }
