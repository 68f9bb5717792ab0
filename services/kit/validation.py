"""Enforces the field rules that stand in the contracts (protovalidate)."""

from __future__ import annotations

from google.protobuf.message import Message
from protovalidate import Validator
from protovalidate import Violation as RuleViolation

from .errors import InvalidArgument, Violation

# What a person can act on, for the rules whose own message shows a regular expression.
_DESCRIPTIONS = {"string.pattern": "has characters or a form that this field does not allow"}

# The details travel in the trailers, which clients and Envoy limit to some kilobytes.
_MOST_VIOLATIONS = 20

_validator = Validator()


def validate(message: Message) -> None:
    """Raises InvalidArgument with the first violations, each with its field's path and its rule as the reason."""
    violations = _validator.collect_violations(message)
    if violations:
        raise InvalidArgument([_explained(violation) for violation in violations[:_MOST_VIOLATIONS]])


def _explained(violation: RuleViolation) -> Violation:
    rule = violation.proto.rule_id or ""
    description = _DESCRIPTIONS.get(rule) or violation.proto.message or "is not valid"
    return Violation(_path(violation), description, rule.upper().replace(".", "_"))


def _path(violation: RuleViolation) -> str:
    """Such as `preferences[2]`."""
    path = ""
    for element in violation.proto.field.elements if violation.proto.field else ():
        path += f".{element.field_name}" if path else str(element.field_name)
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path
