"""Renders `storymesh.stubs`: one typed stub for every service at the edge, as an attribute named by its resource's plural."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from mesh.contract import Contract

_HEAD = '''"""A stub for every service that the edge serves. Generated from the contracts by proto/generate.py; do not edit."""

from __future__ import annotations

import grpc.aio
'''

_CLASS = '''

class Stubs:
    """Each service's methods, typed, over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:'''


def stubs(contract: Contract) -> str:
    """Source of the module. Raises ValueError when two services would have the same attribute."""
    services = {method.service: method.descriptor.containing_service.file.name for method in contract.exposed}
    imports, attributes = set(), {}
    for service, file in sorted(services.items()):
        package, _, name = service.rpartition(".")
        module = f"{PurePosixPath(file).stem}_pb2_grpc"
        alias = f"{package.split('.')[1]}_{module}"
        attribute = attribute_of(name)
        if attribute in attributes:
            raise ValueError(f"{service} and another service would both be the client's `{attribute}`; rename one")
        imports.add(f"from {package} import {module} as {alias}")
        attributes[attribute] = f"        self.{attribute}: {alias}.{name}AsyncStub = {alias}.{name}Stub(channel)"
    return "\n".join([_HEAD + "\n".join(sorted(imports)), _CLASS, *attributes.values(), ""])


def attribute_of(service: str) -> str:
    """The attribute of a service: `dead_letters` for `DeadLetterService`."""
    noun = re.sub(r"(?<!^)(?=[A-Z])", "_", service.removesuffix("Service")).lower()
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")
