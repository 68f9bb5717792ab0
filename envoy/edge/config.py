"""Helpers for the rendered configuration: plain dicts in the form of Envoy's v3 API."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def typed(message: str, **fields: Any) -> Config:
    """A message inside `google.protobuf.Any`, named without its `envoy.` prefix."""
    return {"@type": f"type.googleapis.com/envoy.{message}", **fields}


def extension(name: str, message: str, **fields: Any) -> Config:
    """An extension by its registered name, with its typed configuration."""
    return {"name": name, "typed_config": typed(message, **fields)}


def seconds(number: float) -> str:
    """A `google.protobuf.Duration` in its JSON form."""
    return f"{number:g}s"


def header(key: str, value: str, *, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Config:
    """A header to set; by default it replaces what an upstream or a client put there."""
    return {"header": {"key": key, "value": value}, "append_action": action}


def always() -> Config:
    """A fraction of 100 %. Several filters do nothing until a fraction says how often to act."""
    return {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
