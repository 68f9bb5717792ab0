"""What a Lua script of the edge is told of the contract and the settings: constants, written in front of it."""

from __future__ import annotations

import json


def constants(**values: object) -> str:
    """A line of Lua for each name; values are texts, booleans, and lists and dicts of them."""
    return "".join(f"local {name} = {_literal(value)}\n" for name, value in values.items())


def _literal(value: object) -> str:
    """Texts and booleans are written as in JSON, tables with their keys in brackets."""
    match value:
        case dict():
            return "{ " + ", ".join(f"[{json.dumps(key)}] = {_literal(of)}" for key, of in value.items()) + " }"
        case list():
            return "{ " + ", ".join(map(_literal, value)) + " }"
        case _:
            return json.dumps(value)
