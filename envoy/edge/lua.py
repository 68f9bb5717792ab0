"""Renders values from the contract and the settings as Lua constants, which stand in front of a script."""

from __future__ import annotations

import json


def constants(**values: object) -> str:
    """One Lua assignment per name. Values are strings, booleans, and lists and dicts of these."""
    return "".join(f"local {name} = {_literal(value)}\n" for name, value in values.items())


def _literal(value: object) -> str:
    """A Lua literal: strings and booleans as in JSON, tables with bracketed keys."""
    match value:
        case dict():
            return "{ " + ", ".join(f"[{json.dumps(key)}] = {_literal(of)}" for key, of in value.items()) + " }"
        case list():
            return "{ " + ", ".join(map(_literal, value)) + " }"
        case _:
            return json.dumps(value)
