"""Enforces the field rules that stand in the contracts (protovalidate), and gives what has several spellings its one form."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message
from protobuf.wkt import FileDescriptorSet as OtherFileDescriptorSet
from protovalidate import Validator
from protovalidate import Violation as RuleViolation
from storymesh.options.v1 import rules_pb2

from kit.errors import InvalidArgument, Violation
from kit.identity import email_addresses

# What a person can act on, for the rules whose own message shows a regular expression.
_DESCRIPTIONS = {"string.pattern": "has characters or a form that this field does not allow"}

# The details travel in the trailers, which clients and Envoy limit to some kilobytes.
_MOST_VIOLATIONS = 20


@cache
def _validator() -> Validator:
    """Knows our own rules beforehand: contracts use them without importing the file that defines them."""
    files = {each.name: each.serialized_pb for each in _with_imports(rules_pb2.DESCRIPTOR)}
    definitions = FileDescriptorSet(file=map(FileDescriptorProto.FromString, files.values()))
    # protovalidate is built on another protobuf runtime; the wire form is common to both.
    return Validator(registry=OtherFileDescriptorSet.from_binary(definitions.SerializeToString()).to_registry())


def _with_imports(file: FileDescriptor) -> Iterator[FileDescriptor]:
    for imported in file.dependencies:
        yield from _with_imports(imported)
    yield file


def validate(message: Message) -> None:
    """Raises InvalidArgument with the first violations, each with its field's path and its rule as the reason.

    The addresses of a valid message are normalized in place, so that no operation meets another form.
    """
    violations = [_explained(violation) for violation in _validator().collect_violations(_shortened(message))]
    named = {violation.field for violation in violations}
    for field in _address_fields(message.DESCRIPTOR):
        # One that is empty is required, or is not given.
        if field not in named and (text := getattr(message, field)):
            try:
                setattr(message, field, email_addresses.normalized(text))
            except email_addresses.NotAnAddress as error:
                violations.append(Violation(field, str(error), "STRING_EMAIL"))
    if violations:
        raise InvalidArgument(violations[:_MOST_VIOLATIONS])


def _shortened(message: Message) -> Message:
    """The message with too long lists cut to what breaks their rule, and all others that are told of, as well as the whole does.

    Each item is judged, for tens of microseconds: 64,000 empty ones, which take 128 KB, would keep everybody waiting for seconds.
    """
    too_long = [(field, kept) for field, kept in _lists(message.DESCRIPTOR) if len(getattr(message, field)) > kept]
    if not too_long:
        return message
    shortened = type(message)()
    shortened.CopyFrom(message)
    for field, kept in too_long:
        del getattr(shortened, field)[kept:]
    return shortened


@cache
def _lists(message: Descriptor) -> tuple[tuple[str, int], ...]:
    """The fields that hold several, each with how many items are judged at most; all stand in the request itself."""
    rules = ((field.name, field.GetOptions().Extensions[validate_pb2.field].repeated) for field in message.fields)
    return tuple(
        (name, max(rule.max_items, _MOST_VIOLATIONS) + 1) for name, rule in rules if rule.HasField("max_items")
    )


@cache
def _address_fields(message: Descriptor) -> tuple[str, ...]:
    """The fields whose rule is `(storymesh.options.v1.address)`; all stand in the request itself."""
    return tuple(
        field.name
        for field in message.fields
        if field.GetOptions().Extensions[validate_pb2.field].string.Extensions[rules_pb2.address]
    )


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
